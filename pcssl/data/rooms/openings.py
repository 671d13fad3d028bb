"""What hangs on or breaks through a wall. Frame: x along the wall, y = 0 on the wall's face and
growing into the room, z the height above the floor.

Windows, pictures, mirrors and boards share frames, panes and materials: which one it is shows in
where it hangs, what surrounds it and how large it is, less in a patch of it.
"""

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


# ---------------------------------------------------------------- doors


def door(kit: Kit, w: float, h: float, angle: float, double: bool = False) -> list[Piece]:
    """A door to the outside in its frame; `angle` 0 is shut, up to about 1.6 rad swung into the room.

    What is behind an open one was never scanned.
    """
    frame, finish, depth = Piece("door", kit), kit.material("board"), kit.uniform(0.02, 0.1)
    _reveal(frame, w, 0, h, depth, finish, sill=False)
    if kit.chance(0.85):
        _casing(frame, w, 0, h, finish, sill=False)
    leaf_finish = finish if kit.chance(0.5) else kit.material("board")
    if double:
        for side in (-1, 1):
            _hang_leaf(frame, w, h, 0.0, side, -depth, leaf_finish, w / 2)
    else:
        _hang_leaf(frame, w, h, angle, kit.pick((-1, 1)), -depth if angle == 0 else 0.02, leaf_finish, w)
    return [frame]


def inner_door(kit: Kit, w: float, h: float, thick: float, angle: float) -> tuple[list[Piece], list[Piece]]:
    """A door between two rooms: what belongs to the room it opens into, and to the other."""
    frame, back, finish = Piece("door", kit), Piece("door", kit), kit.material("board")
    _reveal(frame, w, 0, h, thick, finish, sill=False)
    _casing(frame, w, 0, h, finish, sill=False)
    _casing(back, w, 0, h, finish, sill=False)
    y = -thick / 2 if angle == 0 else 0.02
    _hang_leaf(frame, w, h, angle, kit.pick((-1, 1)), y, finish if kit.chance(0.6) else kit.material("board"), w)
    return [frame, _threshold(kit, w, thick)], [back]


def passage(kit: Kit, w: float, h: float, thick: float) -> tuple[list[Piece], list[Piece]]:
    """An open passage, bare (wall) or framed (a door frame)."""
    framed = kit.chance(0.4)
    near, far = (Piece("doorframe" if framed else "wall", kit) for _ in range(2))
    finish = kit.material("board" if framed else "wall")
    _reveal(near, w, 0, h, thick, finish, sill=False)
    if not framed:
        return [near, _threshold(kit, w, thick)], []
    _casing(near, w, 0, h, finish, sill=False)
    _casing(far, w, 0, h, finish, sill=False)
    return [near, _threshold(kit, w, thick)], [far]


def _threshold(kit: Kit, w: float, thick: float) -> Piece:
    """The floor within a doorway."""
    sill = Piece("floor", kit)
    sill.add(shapes.sheet((-w / 2, -thick, 0), (w, 0, 0), (0, thick, 0), kit.density()), kit.material("floor"))
    return sill


def _hang_leaf(
    frame: Piece, w: float, h: float, angle: float, hinge: int, y: float, finish: Material, wide: float
) -> None:
    """A leaf `wide` metres wide, hinged at the side `hinge` of an opening that is w wide."""
    leaf = _leaf(frame.kit, wide - 0.01, h - 0.01, finish)
    for mesh, color in zip(leaf.meshes, leaf.colors):
        points = rotate_z(mesh.vertices, angle)
        # A leaf hung on the right is the mirror image, so its faces must turn round.
        faces = mesh.faces if hinge < 0 else mesh.faces[:, ::-1]
        points = points * (-hinge, 1.0, 1.0) + (hinge * (w / 2 - 0.005), y, 0)
        frame.meshes.append(shapes.Mesh(points, faces))
        frame.colors.append(color)


def _leaf(kit: Kit, w: float, h: float, finish: Material) -> Piece:
    """A door leaf with its hinge along the z axis, reaching to x = w, the room side at y = 0."""
    leaf, metal = Piece("door", kit), kit.material("metal")
    leaf.box((w, 0.04, h), (w / 2, -0.02, 0.005), finish)
    rows = kit.pick((0, 0, 1, 2, 3))
    pane = kit.material("image") if kit.chance(0.25) else finish
    for side in (-1, 1):
        y = 0.006 if side > 0 else -0.046
        for j in range(rows):
            tall = (h - 0.3) / rows
            leaf.box((w - 0.26, 0.012, tall - 0.12), (w / 2, y, 0.2 + j * tall), pane if j == rows - 1 else finish)
        knob = (w - 0.07, -0.02 + side * 0.07, 1.02)
        leaf.pipe(((w - 0.07, -0.02, 1.02), knob, (w - 0.19, knob[1], 1.02)), 0.013, metal)
    return leaf


# ---------------------------------------------------------------- windows and what hangs before them


def window(kit: Kit, w: float, z0: float, z1: float) -> list[Piece]:
    """Frame, mullions and panes, set back in the wall or flush with it; now and then a blind, half down."""
    piece, finish = Piece("window", kit), kit.material("board")
    flush = kit.chance(0.4)
    depth, bar = kit.uniform(0.005, 0.02) if flush else kit.uniform(0.06, 0.18), kit.uniform(0.03, 0.07)
    if not flush:
        _reveal(piece, w, z0, z1, depth, finish if kit.chance(0.5) else kit.material("wall"), sill=True)
    if flush or kit.chance(0.7):
        _casing(piece, w, z0, z1, finish, sill=not flush)
    y, thick = -depth + 0.02, 0.04
    columns = kit.pick((1, max(1, round(w / kit.uniform(0.5, 0.9)))))
    for x in np.linspace(-w / 2 + bar / 2, w / 2 - bar / 2, columns + 1):
        piece.box((bar, thick, z1 - z0), (x, y, z0), finish)
    for z in np.linspace(z0, z1 - bar, kit.pick((2, 2, 3, 4))):
        piece.box((w, thick, bar), (0, y, z), finish)
    pane = shapes.sheet((w / 2, -depth, z0), (-w, 0, 0), (0, 0, z1 - z0), kit.density())
    piece.add(pane, kit.material("image"))
    if kit.chance(0.2):
        return [piece, _blind(kit, w, z0, z1)]
    return [piece]


def _blind(kit: Kit, w: float, z0: float, z1: float) -> Piece:
    """A roller blind or slats before a window, partly down."""
    piece, cloth, low = Piece("blinds", kit), kit.material("cloth"), z0 + kit.uniform(0.1, 0.7) * (z1 - z0)
    piece.tube((-w / 2, 0.06, z1 + 0.02), (w / 2, 0.06, z1 + 0.02), 0.025, cloth)
    if kit.chance(0.5):
        piece.box((w, 0.008, z1 - low), (0, 0.06, low), cloth)
    else:
        for z in np.arange(low, z1, 0.07):
            piece.box((w, 0.04, 0.008), (0, 0.06, z), cloth)
    return piece


def hanging(piece: Piece, wide: float, low: float, top: float, x: float, y: float, cloth: Material) -> None:
    """A curtain of either kind: folds of cloth from `top` down to `low`, about the plane `y`."""
    kit = piece.kit
    folds = wide * kit.uniform(3, 9)
    sheet = shapes.drape(wide, top - low, kit.uniform(0.03, 0.1), folds, kit.uniform(0, 6), kit.density())
    piece.two_sided(sheet, cloth, (x, y, low))


def rod(piece: Piece, half: float, y: float, z: float) -> None:
    piece.tube((-half, y, z), (half, y, z), 0.014, piece.kit.material("metal"))


def curtains(kit: Kit, w: float, z1: float, low: float) -> list[Piece]:
    """Cloth on a rod before a window of width w: a pair, one to a side, or a sheet over all of it."""
    top, span = z1 + kit.uniform(0.05, 0.15), w + kit.uniform(0.2, 0.4)
    cloth, style = kit.material("cloth"), kit.pick(("pair", "pair", "single", "full"))
    share = 0.98 if style == "full" else kit.uniform(0.2, 0.48)
    pieces = []
    for side in {"pair": (-1, 1), "single": (kit.pick((-1, 1)),), "full": (1,)}[style]:
        piece = Piece("curtain", kit)
        hanging(piece, span * share, low, top, side * span * (1 - share) / 2, 0.1, cloth)
        pieces.append(piece)
    if kit.chance(0.6):
        rod(pieces[0], span / 2 + 0.05, 0.1, top)
    return pieces


# ---------------------------------------------------------------- flat things and small ones on walls


def panel(kit: Kit, category: str, w: float, h: float, z: float) -> list[Piece]:
    """A flat thing on the wall (picture, mirror, board): framed, frameless, or with a mount."""
    piece, thick, rim = Piece(category, kit), kit.uniform(0.008, 0.035), kit.uniform(0.02, 0.06)
    board = category in ("whiteboard", "blackboard", "bulletin board")
    inner = kit.material("board" if board else "image")
    piece.box((w, thick, h), (0, thick / 2, z), inner)
    if kit.chance(0.75):
        frame, out = kit.material("board"), thick + kit.uniform(0.005, 0.02)
        for x in (-(w - rim) / 2, (w - rim) / 2):
            piece.box((rim, out, h), (x, out / 2, z), frame)
        for low in (z, z + h - rim):
            piece.box((w, out, rim), (0, out / 2, low), frame)
        if not board and min(w, h) > 0.4 and kit.chance(0.3):
            piece.box((0.5 * w, out, 0.5 * h), (0, out / 2, z + 0.25 * h), kit.material("image"))
    if board:
        piece.box((0.6 * w, 0.06, 0.02), (0, 0.05, z - 0.02), kit.material("metal"))
    return [piece]


def wall_clock(kit: Kit, w: float, h: float, z: float) -> list[Piece]:
    piece, r = Piece("clock", kit), w / 2
    face = shapes.disc(r, r, kit.density())
    upright = shapes.Mesh(face.vertices[:, [0, 2, 1]] * (-1, 1, 1), face.faces)
    piece.add(upright, kit.material("image"), (0, 0.035, z + r))
    piece.tube((0, 0.0, z + r), (0, 0.035, z + r), r, kit.material("thing"))
    return [piece]


def towel(kit: Kit, w: float, h: float, z: float) -> list[Piece]:
    """A towel over a bar."""
    piece = Piece("towel", kit)
    sheet = shapes.drape(w, h, 0.02, 3 * w, kit.uniform(0, 6), kit.density())
    piece.add(sheet, kit.material("cloth"), (0, 0.07, z))
    piece.tube((-w / 2 - 0.05, 0.06, z + h), (w / 2 + 0.05, 0.06, z + h), 0.012, kit.material("metal"))
    return [piece]


def wall_shelf(kit: Kit, w: float, h: float, z: float) -> list[Piece]:
    """A board on brackets, with books and small things that belong to it."""
    piece, finish = Piece("shelf", kit), kit.material("board")
    piece.box((w, 0.22, 0.025), (0, 0.11, z), finish)
    x = -w / 2 + 0.05
    while x < w / 2 - 0.1:
        wide = kit.uniform(0.03, 0.09)
        if kit.chance(0.6):
            piece.box((wide, 0.15, kit.uniform(0.1, h - 0.03)), (x + wide / 2, 0.09, z + 0.025), kit.material("thing"))
        x += wide + 0.005
    return [piece]


def coat_hooks(kit: Kit, w: float, h: float, z: float) -> list[Piece]:
    """A rail with jackets."""
    piece = Piece("clothes", kit)
    piece.box((w, 0.02, 0.06), (0, 0.01, z + h - 0.06), kit.material("board"))
    for x in np.arange(-w / 2 + 0.15, w / 2 - 0.1, 0.28):
        if kit.chance(0.7):
            long = h * kit.uniform(0.6, 0.95)
            piece.cushion((0.24, 0.12, long), (x, 0.08, z + h - 0.05 - long), kit.material("cloth"), 0.05)
    return [piece]


def fire_extinguisher(kit: Kit, w: float, h: float, z: float) -> list[Piece]:
    piece, finish = Piece("fire extinguisher", kit), kit.material("thing")
    piece.loft([(0, 0.07, 0.07), (0.36, 0.07, 0.07), (0.42, 0.03, 0.03), (0.46, 0.03, 0.03), (0.46, 0, 0)], finish,
               (0, 0.09, z))  # fmt: skip
    piece.pipe(((0, 0.09, z + 0.44), (0.08, 0.12, z + 0.4), (0.09, 0.12, z + 0.1)), 0.012, kit.material("metal"))
    return [piece]


def radiator(kit: Kit, w: float) -> list[Piece]:
    """Ribs or a plain panel under a window."""
    piece, finish = Piece("radiator", kit), kit.material("board")
    h, z, style = kit.uniform(0.4, 0.6), kit.uniform(0.08, 0.15), kit.pick(("ribs", "panel", "tubes"))
    if style != "tubes":
        piece.box((w, 0.04, h), (0, 0.07, z), finish)
    if style == "ribs":
        for x in np.arange(-w / 2 + 0.04, w / 2 - 0.02, 0.08):
            piece.box((0.045, 0.03, h), (x, 0.1, z), finish)
    elif style == "tubes":
        for x in np.arange(-w / 2 + 0.03, w / 2 - 0.02, 0.06):
            piece.tube((x, 0.08, z), (x, 0.08, z + h), 0.022, finish)
        for low in (z, z + h - 0.03):
            piece.box((w, 0.05, 0.03), (0, 0.08, low), finish)
    return [piece]
