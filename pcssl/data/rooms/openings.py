"""What hangs on or breaks through a wall. Frame: x along the wall, y = 0 on the wall's face and
growing into the room, z the height above the floor."""

from __future__ import annotations

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.materials import Material
from pcssl.data.rooms.piece import Kit, Piece, rotate_z


def _reveal(piece: Piece, w: float, z0: float, z1: float, depth: float, finish: Material, sill: bool) -> None:
    """The inner faces of an opening through the wall."""
    step, a = piece.kit.density(), w / 2
    piece.add(shapes.sheet((-a, -depth, z0), (0, depth, 0), (0, 0, z1 - z0), step), finish)
    piece.add(shapes.sheet((a, -depth, z0), (0, 0, z1 - z0), (0, depth, 0), step), finish)
    piece.add(shapes.sheet((-a, -depth, z1), (0, depth, 0), (w, 0, 0), step), finish)
    if sill:
        piece.add(shapes.sheet((-a, -depth, z0), (w, 0, 0), (0, depth, 0), step), finish)


def _casing(piece: Piece, w: float, z0: float, z1: float, finish: Material, sill: bool) -> None:
    """A flat frame on the wall around an opening."""
    wide, thick = piece.kit.uniform(0.05, 0.1), piece.kit.uniform(0.015, 0.03)
    for x in (-(w + wide) / 2, (w + wide) / 2):
        piece.box((wide, thick, z1 - z0 + wide), (x, thick / 2, z0), finish)
    piece.box((w, thick, wide), (0, thick / 2, z1), finish)
    if sill:
        piece.box((w + 2 * wide, 0.12, 0.03), (0, 0.04, z0 - 0.03), finish)


def _leaf(kit: Kit, w: float, h: float) -> Piece:
    """A door leaf with its hinge along the z axis, reaching to x = w, the room side at y = 0."""
    leaf, finish, metal = Piece("door", kit), kit.material(), kit.material()
    leaf.box((w, 0.04, h), (w / 2, -0.02, 0.005), finish)
    rows = kit.integer(0, 3)
    for side in (-1, 1):
        y = 0.006 if side > 0 else -0.046
        for j in range(rows):
            tall = (h - 0.3) / rows
            leaf.box((w - 0.26, 0.012, tall - 0.12), (w / 2, y, 0.2 + j * tall), finish)
        knob = (w - 0.07, -0.02 + side * 0.07, 1.02)
        leaf.tube((w - 0.07, -0.02, 1.02), knob, 0.014, metal)
        leaf.tube(knob, (w - 0.19, knob[1], 1.02), 0.012, metal)
    return leaf


def door(kit: Kit, w: float, h: float, angle: float) -> list[Piece]:
    """A door in its frame; `angle` 0 is shut, up to about 1.9 rad swung into the room."""
    frame, finish = Piece("door", kit), kit.material()
    depth = kit.uniform(0.03, 0.12)
    _reveal(frame, w, 0, h, depth, finish, sill=False)
    _casing(frame, w, 0, h, finish, sill=False)
    leaf, hinge = _leaf(kit, w - 0.01, h - 0.01), kit.pick((-1, 1))
    for mesh, color in zip(leaf.meshes, leaf.colors):
        points = rotate_z(mesh.vertices, angle)
        # A leaf hung on the right is the mirror image, so its faces must turn round.
        faces = mesh.faces if hinge < 0 else mesh.faces[:, ::-1]
        points = points * (-hinge, 1.0, 1.0) + (hinge * (w / 2 - 0.005), -depth if angle == 0 else 0.02, 0)
        frame.meshes.append(shapes.Mesh(points, faces))
        frame.colors.append(color)
    return [frame]


def window(kit: Kit, w: float, z0: float, z1: float) -> list[Piece]:
    """Frame, mullions, a sill and panes set back in the wall."""
    piece, finish = Piece("window", kit), kit.material()
    depth, bar = kit.uniform(0.06, 0.2), kit.uniform(0.04, 0.07)
    reveal = finish if kit.chance(0.5) else kit.material()
    _reveal(piece, w, z0, z1, depth, reveal, sill=True)
    if kit.chance(0.7):
        _casing(piece, w, z0, z1, finish, sill=True)
    y = -depth + 0.025
    columns = max(1, round(w / kit.uniform(0.5, 0.9)))
    for x in np.linspace(-w / 2 + bar / 2, w / 2 - bar / 2, columns + 1):
        piece.box((bar, 0.05, z1 - z0), (x, y, z0), finish)
    for z in np.linspace(z0, z1 - bar, kit.integer(2, 3)):
        piece.box((w, 0.05, bar), (0, y, z), finish)
    pane = kit.material()
    piece.add(shapes.sheet((w / 2, -depth, z0), (-w, 0, 0), (0, 0, z1 - z0), kit.density()), pane)
    return [piece]


def curtains(kit: Kit, w: float, z1: float, low: float) -> list[Piece]:
    """One or two wavy sheets on a rod in front of a window of width w."""
    top, span = z1 + kit.uniform(0.05, 0.18), w + kit.uniform(0.3, 0.5)
    cloth, both, share = kit.material(), kit.chance(0.75), kit.uniform(0.2, 0.45)
    pieces = []
    for side in (-1, 1) if both else (kit.pick((-1, 1)),):
        piece, wide = Piece("curtain", kit), span * share
        depth = kit.uniform(0.04, 0.1)
        sheet = shapes.drape(wide, top - low, depth, wide * kit.uniform(5, 9), kit.uniform(0, 6), kit.density())
        at = (side * (span - wide) / 2, 0.1, low)
        piece.add(sheet, cloth, at)
        piece.add(shapes.flipped(sheet), cloth, (at[0], 0.094, low))
        pieces.append(piece)
    if kit.chance(0.6):
        pieces[0].tube((-span / 2 - 0.08, 0.1, top), (span / 2 + 0.08, 0.1, top), 0.014, kit.material())
    return pieces


def panel(kit: Kit, category: str, w: float, h: float, z: float) -> list[Piece]:
    """A framed flat thing on the wall: picture, mirror, whiteboard."""
    piece, thick, rim = Piece(category, kit), kit.uniform(0.015, 0.04), kit.uniform(0.02, 0.05)
    frame = kit.material()
    piece.box((w, thick, h), (0, thick / 2, z), kit.material())
    if kit.chance(0.8):
        out = thick + 0.015
        for x in (-(w - rim) / 2, (w - rim) / 2):
            piece.box((rim, out, h), (x, out / 2, z), frame)
        for low in (z, z + h - rim):
            piece.box((w, out, rim), (0, out / 2, low), frame)
    return [piece]


def radiator(kit: Kit, w: float) -> list[Piece]:
    piece, finish = Piece("radiator", kit), kit.material()
    h, z = kit.uniform(0.4, 0.6), kit.uniform(0.08, 0.15)
    piece.box((w, 0.04, h), (0, 0.07, z), finish)
    for x in np.arange(-w / 2 + 0.04, w / 2 - 0.02, 0.08):
        piece.box((0.045, 0.03, h), (x, 0.1, z), finish)
    return [piece]


def towel(kit: Kit, w: float, z: float) -> list[Piece]:
    """A towel over a bar."""
    piece, h = Piece("towel", kit), kit.uniform(0.4, 0.7)
    sheet = shapes.drape(w, h, 0.02, 3 * w, kit.uniform(0, 6), kit.density())
    piece.add(sheet, kit.material(), (0, 0.07, z - h))
    piece.tube((-w / 2 - 0.06, 0.06, z), (w / 2 + 0.06, 0.06, z), 0.012, kit.material())
    return [piece]
