"""Tables and desks: one builder for both, so that a patch of either looks the same.

A desk is a table that stands at a wall with a chair on one side and a screen on it. Low ones are
coffee and end tables. Sizes are metres.
"""

from __future__ import annotations

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.materials import Material
from pcssl.data.rooms.piece import Block, Group, Kit, Piece, Top
from pcssl.data.rooms.seating import four_legs
from pcssl.data.rooms.storage import fronts

STYLES = ("legs", "legs", "frames", "panels", "trestle", "column", "drawers")


def worktop(kit: Kit, category: str, w: float, d: float, h: float, style: str, rounded: bool = False) -> Group:
    """A top on legs, on frames, on side panels, on trestles, on columns or on a set of drawers."""
    piece, finish = Piece(category, kit), kit.material("board")
    legs, thick = (finish if kit.chance(0.5) else kit.material("board")), kit.uniform(0.022, 0.05)
    if rounded:
        piece.loft([(h - thick, w / 2, d / 2), (h, w / 2, d / 2)], finish)
        piece.add(shapes.disc(w / 2, d / 2, kit.density()), finish, (0, 0, h))
    else:
        piece.box((w, d, thick), (0, 0, h - thick), finish)
    blocks = _support(piece, w, d, h - thick, "column" if rounded else style, legs)
    slab = Block(-w / 2, w / 2, -d / 2, d / 2, h - thick, h)
    reach = 0.33 if rounded else 0.5
    return Group((w, d, h), [piece], [Top(-reach * w, reach * w, -reach * d, reach * d, h)], [slab, *blocks])


def _support(piece: Piece, w: float, d: float, h: float, style: str, finish: Material) -> list[Block]:
    """What carries the top; the blocks that it takes up."""
    kit = piece.kit
    ends = [Block(x0, x0 + 0.08, -d / 2, d / 2, 0, h) for x0 in (-w / 2, w / 2 - 0.08)]
    if style == "legs":
        four_legs(piece, w - 0.04, d - 0.04, h, finish)
        if kit.chance(0.5):
            for y in (-d / 2 + 0.07, d / 2 - 0.07):
                piece.box((w - 0.16, 0.02, 0.07), (0, y, h - 0.07), finish)
    elif style == "frames":
        for x in (-w / 2 + 0.05, w / 2 - 0.05):
            near, far = (x, d / 2 - 0.05, 0.02), (x, -d / 2 + 0.05, 0.02)
            piece.pipe(((*near[:2], h), near, far, (*far[:2], h)), 0.018, finish)
    elif style == "panels":
        for x in (-w / 2 + 0.03, w / 2 - 0.03):
            piece.box((0.03, d - 0.04, h), (x, 0, 0), finish)
    elif style == "trestle":
        for x in (-w / 2 + 0.06, w / 2 - 0.06):
            for y in (-d / 2 + 0.05, d / 2 - 0.05):
                piece.tube((x, y, 0), (x, 0.2 * y, h), 0.02, finish)
            piece.box((0.05, 0.5 * d, 0.04), (x, 0, h - 0.04), finish)
        piece.tube((-w / 2 + 0.06, 0, 0.5 * h), (w / 2 - 0.06, 0, 0.5 * h), 0.018, finish)
    elif style == "column":
        ends, foot = [], min(0.32 * d, 0.45)
        for x in (0.0,) if w < 1.5 * d else (-w / 4, w / 4):
            piece.tube((x, 0, 0), (x, 0, h), kit.uniform(0.03, 0.07), finish)
            piece.loft([(0, foot, foot), (0.03, 0.9 * foot, 0.9 * foot), (0.06, 0.05, 0.05)], finish, (x, 0, 0))
            ends.append(Block(x - 0.1, x + 0.1, -0.1, 0.1, 0, h))
    else:
        return _drawers(piece, w, d, h, finish)
    if h > 0.6 and style in ("legs", "frames", "panels") and kit.chance(0.25):
        tall = h * kit.uniform(0.3, 0.6)
        piece.box((w - 0.1, 0.02, tall), (0, -d / 2 + 0.06, h - tall), finish)
        ends.append(Block(-w / 2, w / 2, -d / 2, -d / 2 + 0.08, 0.1, h))
    return ends


def _drawers(piece: Piece, w: float, d: float, h: float, finish: Material) -> list[Block]:
    """A set of drawers under one end or both, legs or a panel under the other."""
    kit, wide, side = piece.kit, min(piece.kit.uniform(0.36, 0.46), 0.4 * w), piece.kit.pick((-1, 1))
    blocks, both = [], w > 1.4 and kit.chance(0.3)
    for sign in (-1, 1):
        if sign == side or both:
            x = sign * (w - wide) / 2
            piece.box((wide, d - 0.08, h), (x, 0, 0), finish)
            fronts(piece, wide, d / 2 - 0.04, 0.04, h - 0.01, 1, kit.integer(2, 4), finish, x)
            blocks.append(Block(x - wide / 2, x + wide / 2, -d / 2, d / 2, 0, h))
        else:
            x = sign * (w / 2 - 0.03)
            if kit.chance(0.5):
                piece.box((0.03, d - 0.04, h), (x, 0, 0), finish)
            else:
                for y in (-d / 2 + 0.05, d / 2 - 0.05):
                    piece.tube((x, y, 0), (x, y, h), 0.022, finish)
            blocks.append(Block(x - 0.04, x + 0.03, -d / 2, d / 2, 0, h))
    return blocks


def dining_table(kit: Kit) -> Group:
    style = kit.pick(STYLES[:-1]) if kit.chance(0.9) else "drawers"
    if kit.chance(0.2):
        side = kit.uniform(0.8, 1.2)
        return worktop(kit, "table", side, side, kit.uniform(0.7, 0.77), "column", rounded=True)
    category = kit.pick(("table", "dining table"))
    return worktop(kit, category, kit.uniform(0.9, 1.8), kit.uniform(0.65, 0.95), kit.uniform(0.7, 0.77), style)


def meeting_table(kit: Kit) -> Group:
    w, d = kit.uniform(1.6, 3.0), kit.uniform(0.9, 1.25)
    return worktop(kit, "table", w, d, kit.uniform(0.7, 0.77), kit.pick(STYLES[:-1]), rounded=kit.chance(0.2))


def lecture_table(kit: Kit, w: float) -> Group:
    return worktop(kit, "table", w, kit.uniform(0.4, 0.6), kit.uniform(0.7, 0.77), kit.pick(("legs", "frames", "panels")))


def desk(kit: Kit) -> Group:
    style = "drawers" if kit.chance(0.4) else kit.pick(STYLES)
    group = worktop(kit, "desk", kit.uniform(0.9, 1.8), kit.uniform(0.55, 0.85), kit.uniform(0.7, 0.77), style)
    return _with_rack(kit, group) if kit.chance(0.2) else group


def _with_rack(kit: Kit, group: Group) -> Group:
    """A shelf over the rear of a desk."""
    (w, d, h), piece, finish = group.size, group.pieces[0], kit.material("board")
    high, deep = kit.uniform(0.3, 0.45), 0.22
    piece.box((w, deep, 0.02), (0, -d / 2 + deep / 2, h + high), finish)
    for x in (-w / 2 + 0.01, 0, w / 2 - 0.01):
        piece.box((0.02, deep, high), (x, -d / 2 + deep / 2, h), finish)
    top = h + high + 0.02
    group.blocks.append(Block(-w / 2, w / 2, -d / 2, -d / 2 + deep, h, top))
    tops = [Top(-w / 2, w / 2, -d / 2 + deep, d / 2, h), Top(-w / 2, w / 2, -d / 2, -d / 2 + deep, top)]
    return Group((w, d, top), group.pieces, tops, group.blocks)


def corner_desk(kit: Kit) -> Group:
    """Two tops at a right angle."""
    w, d, h, deep = kit.uniform(1.4, 1.9), kit.uniform(1.3, 1.6), kit.uniform(0.7, 0.77), kit.uniform(0.55, 0.7)
    piece, finish, legs, side = Piece("desk", kit), kit.material("board"), kit.material("board"), kit.pick((-1, 1))
    parts = [(w, deep, 0.0, -(d - deep) / 2), (deep, d - deep, side * (w - deep) / 2, deep / 2)]
    tops, blocks = [], []
    for wide, long, x, y in parts:
        piece.box((wide, long, 0.03), (x, y, h - 0.03), finish)
        box = (x - wide / 2, x + wide / 2, y - long / 2, y + long / 2)
        tops.append(Top(*box, h))
        blocks.append(Block(*box, h - 0.03, h))
    for sx, sy in ((-1, -1), (1, -1), (side, 1)):
        x, y = sx * (w / 2 - 0.05), sy * (d / 2 - 0.05)
        piece.box((0.05, 0.05, h - 0.03), (x, y, 0), legs)
        blocks.append(Block(x - 0.05, x + 0.05, y - 0.05, y + 0.05, 0, h))
    return Group((w, d, h), [piece], tops, blocks)


def coffee_table(kit: Kit) -> Group:
    w, d, h = kit.uniform(0.6, 1.2), kit.uniform(0.45, 0.7), kit.uniform(0.35, 0.5)
    group = worktop(kit, "coffee table", w, d, h, kit.pick(STYLES[:-1]), rounded=kit.chance(0.25))
    return _filled_below(group)


def end_table(kit: Kit) -> Group:
    side = kit.uniform(0.36, 0.55)
    h = kit.uniform(0.42, 0.62)
    return _filled_below(worktop(kit, "end table", side, side * kit.uniform(0.9, 1.1), h, kit.pick(STYLES), kit.chance(0.3)))


def _filled_below(group: Group) -> Group:
    """Low tables: nothing is pushed under them, and some have a second board."""
    (w, d, _), piece = group.size, group.pieces[0]
    if piece.kit.chance(0.3):
        piece.box((0.8 * w, 0.8 * d, 0.02), (0, 0, 0.12), piece.kit.material("board"))
    return Group(group.size, group.pieces, group.tops)


def console(kit: Kit) -> Group:
    """A narrow table at a wall."""
    return worktop(kit, "table", kit.uniform(0.8, 1.4), kit.uniform(0.3, 0.42), kit.uniform(0.7, 0.85), kit.pick(STYLES))


def lectern(kit: Kit) -> Group:
    piece, finish = Piece("stand", kit), kit.material("board")
    w, d, h = kit.uniform(0.5, 0.7), kit.uniform(0.4, 0.5), kit.uniform(1.0, 1.2)
    if kit.chance(0.6):
        piece.box((0.8 * w, 0.7 * d, h - 0.1), (0, 0, 0), finish)
    else:
        piece.box((0.12, 0.12, h - 0.1), (0, 0, 0), finish)
        piece.box((0.7 * w, 0.8 * d, 0.03), (0, 0, 0), finish)
    slope = shapes.bent_sheet([(d / 2, h - 0.12), (-d / 2, h)], w, kit.density())
    piece.two_sided(slope, finish)
    return Group((w, d, h), [piece])


def row_offsets(width: float, each: float) -> np.ndarray:
    """Middles of as many places of `each` metres as fit along a width."""
    count = max(1, int(width / each))
    return (np.arange(count) + 0.5) * width / count - width / 2
