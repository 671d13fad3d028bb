"""Beds: frame, mattress, cover with folds, pillows. Sizes are metres."""

from __future__ import annotations

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.materials import Material
from pcssl.data.rooms.piece import Block, Group, Kit, Piece, Top
from pcssl.data.rooms.seating import four_legs


def bed(kit: Kit) -> Group:
    """On a frame, on a box spring or on bars; head board, foot board and cover or none."""
    piece, frame = Piece("bed", kit), kit.material("board")
    w, d = kit.pick((0.9, 1.0, 1.2, 1.4, 1.6, 1.8)) + kit.uniform(-0.05, 0.05), kit.uniform(1.95, 2.15)
    lift, rail, mattress = kit.uniform(0.04, 0.2), kit.uniform(0.12, 0.26), kit.uniform(0.16, 0.26)
    top, style = lift + rail + mattress - 0.04, kit.pick(("frame", "frame", "spring", "bars"))
    if style == "spring":
        piece.cushion((w, d - 0.04, rail), (0, 0, lift), kit.material("cloth"), 0.03)
    else:
        piece.box((w, d, rail), (0, 0, lift), frame)
    four_legs(piece, w - 0.04, d - 0.04, lift, frame)
    piece.cushion((w - 0.04, d - 0.06, mattress), (0, 0.01, lift + rail - 0.04), kit.material("cloth"), 0.06)
    head = _boards(piece, w, d, top, style, frame)
    if kit.chance(0.85):
        long = d * kit.uniform(0.5, 0.78)
        sheet = _cover(kit, w + 0.04, long, mattress * kit.uniform(0.4, 1.3))
        piece.add(sheet, kit.material("cloth"), (0, d / 2 - long / 2 - 0.03, top))
    pieces = [piece] + _pillows(kit, w, -d / 2 + 0.34, top)
    blocks = [Block(-w / 2 - 0.03, w / 2 + 0.03, -d / 2, d / 2, 0, top + 0.16)]
    if head:
        blocks.append(Block(-w / 2 - 0.03, w / 2 + 0.03, -d / 2, -d / 2 + 0.1, top + 0.16, max(head, top + 0.2)))
    lying = Top(-0.4 * w, 0.4 * w, 0.0, 0.4 * d, top + 0.16)
    return Group((w + 0.06, d + 0.02, max(head, top + 0.16)), pieces, [lying], blocks)


def _boards(piece: Piece, w: float, d: float, top: float, style: str, frame: Material) -> float:
    """Head board and foot board; the height of the head, 0 for none."""
    kit, high = piece.kit, top + piece.kit.uniform(0.25, 0.65)
    if style == "bars":
        metal = kit.material("metal")
        for y, h in ((-d / 2 + 0.03, high), (d / 2 - 0.02, top + 0.1)):
            piece.tube((-w / 2, y, h), (w / 2, y, h), 0.018, metal)
            for x in np.linspace(-w / 2, w / 2, max(4, round(w / 0.14))):
                piece.tube((x, y, 0), (x, y, h), 0.012, metal)
        return high
    if kit.chance(0.2):
        return 0.0
    if style == "spring":
        piece.cushion((w, 0.1, high), (0, -d / 2 + 0.05, 0), kit.material("cloth"), 0.04)
    else:
        piece.box((w + 0.04, 0.06, high), (0, -d / 2 + 0.03, 0), frame)
    if kit.chance(0.25):
        piece.box((w + 0.02, 0.05, top + kit.uniform(0.0, 0.2)), (0, d / 2 - 0.02, 0), frame)
    return high


def _pillows(kit: Kit, w: float, y: float, z: float) -> list[Piece]:
    pieces = []
    for x in (0.0,) if w < 1.3 else (-w / 4, w / 4):
        pillow, wide = Piece("pillow", kit), min(kit.uniform(0.48, 0.68), 0.48 * w if w > 1.3 else 0.9 * w)
        pillow.pillow((wide, kit.uniform(0.36, 0.44), 0.16), (x, y, z - 0.01), kit.material("cloth"))
        pieces.append(pillow)
    return pieces


def _cover(kit: Kit, width: float, length: float, drop: float) -> shapes.Mesh:
    """A blanket: flat on top, hanging over both sides, with soft folds."""
    phase, rough, step = kit.uniform(0, 6), kit.uniform(0.008, 0.022), kit.density()
    total = width + 2 * drop

    def fn(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        s = (u - 0.5) * total
        over = np.maximum(np.abs(s) - width / 2, 0)
        x = np.clip(s, -width / 2, width / 2)
        fold = rough * np.sin(7 * s + 5 * v + phase) * np.sin(6 * v - 3 * s)
        return np.stack([x, (v - 0.5) * length, 0.03 - over + fold], 1)

    return shapes.surface(fn, shapes.cells(total, step), shapes.cells(length, step))


def bunk_bed(kit: Kit) -> Group:
    """Two beds one above the other, with a ladder."""
    piece, frame = Piece("bed", kit), kit.material("board")
    w, d, h = kit.uniform(0.95, 1.05), kit.uniform(2.0, 2.1), kit.uniform(1.55, 1.75)
    four_legs(piece, w, d, h, frame)
    pieces = [piece]
    for z in (0.25, h - 0.45):
        piece.box((w, d, 0.1), (0, 0, z), frame)
        piece.cushion((w - 0.06, d - 0.06, 0.16), (0, 0, z + 0.08), kit.material("cloth"), 0.05)
        piece.add(_cover(kit, w - 0.05, 0.6 * d, 0.05), kit.material("cloth"), (0, 0.15 * d, z + 0.24))
        pieces += _pillows(kit, w, -d / 2 + 0.3, z + 0.24)
    piece.box((0.03, 0.6 * d, 0.1), (w / 2 - 0.02, 0.1 * d, h - 0.1), frame)
    for y in (d / 2 - 0.45, d / 2 - 0.1):
        piece.tube((w / 2 + 0.03, y, 0), (w / 2 + 0.03, y, h), 0.016, frame)
    for z in np.arange(0.25, h, 0.28):
        piece.tube((w / 2 + 0.03, d / 2 - 0.45, z), (w / 2 + 0.03, d / 2 - 0.1, z), 0.014, frame)
    return Group((w + 0.1, d, h), pieces)


def day_bed(kit: Kit) -> Group:
    """A bed with its long side at the wall, cushions along it."""
    piece = Piece("bed", kit)
    w, d, rail = kit.uniform(1.9, 2.1), kit.uniform(0.85, 1.0), kit.uniform(0.22, 0.34)
    piece.box((w, d, rail), (0, 0, 0.04), kit.material("board"))
    piece.cushion((w - 0.04, d - 0.04, 0.2), (0, 0, rail), kit.material("cloth"), 0.06)
    for x in (-w / 2 + 0.02, w / 2 - 0.02):
        if kit.chance(0.5):
            piece.box((0.04, d, rail + 0.45), (x, 0, 0), kit.material("board"))
    pieces = [piece]
    for x in np.linspace(-0.3 * w, 0.3 * w, kit.integer(1, 3)):
        cushion = Piece("pillow", kit)
        cushion.pillow((0.5, 0.38, 0.15), (x, -d / 2 + 0.24, rail + 0.19), kit.material("cloth"))
        pieces.append(cushion)
    return Group((w, d, rail + 0.5), pieces)
