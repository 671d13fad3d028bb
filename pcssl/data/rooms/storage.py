"""Cabinets, wardrobes, shelves, and what else is a box with doors. Sizes are metres."""

from __future__ import annotations

import numpy as np

from pcssl.data.rooms.materials import Material
from pcssl.data.rooms.piece import Block, Group, Kit, Piece, Top, pushed_back
from pcssl.data.rooms.seating import four_legs

HANDLE = 0.06  # metres that a handle stands out


def fronts(
    piece: Piece, width: float, y: float, z0: float, z1: float, columns: int, rows: int, finish: Material,
    middle: float = 0.0,
) -> None:  # fmt: skip
    """Doors or drawers on the plane `y` about x = `middle`: panels with gaps, flat or framed, and handles.

    Cabinets, wardrobes, desks, kitchens, refrigerators and ovens all wear these.
    """
    kit, gap, thick = piece.kit, piece.kit.uniform(0.006, 0.014), 0.02
    metal, grip = kit.material("metal"), kit.pick(("bar", "bar", "long", "knob", "none"))
    upright, framed = kit.chance(0.5), kit.chance(0.3)
    w, h = width / columns, (z1 - z0) / rows
    for i in range(columns):
        for j in range(rows):
            x, z = middle - width / 2 + (i + 0.5) * w, z0 + j * h
            piece.box((w - gap, thick, h - gap), (x, y + thick / 2, z + gap / 2), finish)
            if framed and min(w, h) > 0.3:
                piece.box((w - 0.14, 0.03, h - 0.14), (x, y + thick / 2, z + 0.07), finish)
            span = h if upright else w
            long = {"bar": min(0.16, 0.5 * span), "long": 0.7 * span, "knob": 0.03, "none": 0.0}[grip]
            side = 1 if i % 2 == 0 else -1
            at = np.array([x + (side * 0.4 * w if upright else 0), y + thick + 0.025, z + 0.55 * h])
            half = np.array([0, 0, long / 2]) if upright else np.array([long / 2, 0, 0])
            if long:
                piece.tube(at - half, at + half, 0.012, metal)


def cabinet(kit: Kit, category: str, w: float, d: float, h: float, columns: int, rows: int) -> Group:
    """A closed carcass with doors or drawers, on a plinth, on feet or on the floor; often with another top."""
    piece, finish = Piece(category, kit), kit.material("board")
    door = finish if kit.chance(0.7) else kit.material("board")
    lift, slab = kit.pick((0.0, 0.06, 0.12)), kit.pick((0.0, 0.03, 0.04))
    piece.box((w, d, h - lift - slab), (0, 0, lift), finish)
    if slab:
        over = kit.uniform(0, 0.02)
        piece.box((w + 2 * over, d + over, slab), (0, over / 2, h - slab), kit.material("board"))
    if lift and kit.chance(0.5):
        four_legs(piece, w - 0.04, d - 0.04, lift, finish)
    elif lift:
        piece.box((w - 0.04, d - 0.06, lift), (0, -0.02, 0), finish)
    fronts(piece, w, d / 2, lift + 0.01, h - slab - 0.01, columns, rows, door)
    top = Top(-w / 2, w / 2, -d / 2 - HANDLE / 2, d / 2 - HANDLE / 2, h)
    return Group((w + 0.04, d + HANDLE, h), pushed_back([piece], HANDLE), [top])


def storage_cabinet(kit: Kit) -> Group:
    """Low or tall, with doors, drawers or both."""
    w, h = kit.uniform(0.5, 1.3), kit.uniform(0.7, 2.0)
    rows = 1 if h < 1.3 and kit.chance(0.6) else kit.integer(2, 3)
    return cabinet(kit, "cabinet", w, kit.uniform(0.35, 0.62), h, max(1, round(w / kit.uniform(0.4, 0.65))), rows)


def sideboard(kit: Kit) -> Group:
    w = kit.uniform(1.2, 2.0)
    return cabinet(kit, "cabinet", w, kit.uniform(0.38, 0.5), kit.uniform(0.65, 0.95), round(w / 0.5), kit.integer(1, 3))


def tall_cabinet(kit: Kit) -> Group:
    """A larder or broom cupboard, as large as a refrigerator."""
    w, h = kit.uniform(0.5, 0.8), kit.uniform(1.5, 2.1)
    return cabinet(kit, "cabinet", w, kit.uniform(0.55, 0.66), h, 1 if w < 0.65 else 2, kit.integer(1, 2))


def file_cabinet(kit: Kit) -> Group:
    rows = kit.integer(2, 4)
    return cabinet(kit, "file cabinet", kit.uniform(0.4, 0.5), kit.uniform(0.5, 0.65), 0.1 + 0.32 * rows, 1, rows)


def locker_wall(kit: Kit) -> Group:
    columns = kit.integer(2, 4)
    return cabinet(kit, "cabinet", 0.4 * columns, kit.uniform(0.4, 0.5), kit.uniform(1.6, 1.95), columns, kit.integer(1, 4))


def dresser(kit: Kit) -> Group:
    return cabinet(kit, "dresser", kit.uniform(0.8, 1.4), kit.uniform(0.42, 0.52), kit.uniform(0.75, 1.1), 2, kit.integer(3, 4))


def nightstand(kit: Kit) -> Group:
    return cabinet(kit, "nightstand", kit.uniform(0.38, 0.52), kit.uniform(0.35, 0.45), kit.uniform(0.45, 0.65), 1, kit.integer(1, 3))


def wardrobe(kit: Kit) -> Group:
    columns = kit.integer(2, 4)
    w, h = columns * kit.uniform(0.42, 0.55), kit.uniform(1.8, 2.2)
    return cabinet(kit, "wardrobe", w, kit.uniform(0.52, 0.64), h, columns, 1)


def tv_stand(kit: Kit) -> Group:
    return cabinet(kit, "tv stand", kit.uniform(1.1, 1.8), kit.uniform(0.38, 0.5), kit.uniform(0.42, 0.62), 3, 1)


# ---------------------------------------------------------------- open shelves


def bookshelf(kit: Kit) -> Group:
    """A closed case, an open frame or a case over doors, filled with what belongs to it."""
    piece, finish = Piece("bookshelf", kit), kit.material("board")
    w, d, h = kit.uniform(0.6, 1.4), kit.uniform(0.25, 0.42), kit.uniform(0.8, 2.15)
    style = kit.pick(("case", "case", "frame", "doors"))
    low = 0.05 if style != "doors" else h * kit.uniform(0.3, 0.45)
    if style == "frame":
        four_legs(piece, w, d, h, kit.material("metal"))
    else:
        for x in (-w / 2 + 0.0125, w / 2 - 0.0125):
            piece.box((0.025, d, h), (x, 0, 0), finish)
        if kit.chance(0.75):
            piece.box((w, 0.012, h), (0, -d / 2 + 0.006, 0), finish)
    if style == "doors":
        piece.box((w - 0.05, d - 0.04, low), (0, -0.02, 0), finish)
        fronts(piece, w, d / 2 - 0.02, 0.03, low - 0.01, max(1, round(w / 0.5)), 1, finish)
    _filled(piece, finish, w - 0.05, d, np.linspace(low, h - 0.03, max(2, round((h - low) / kit.uniform(0.28, 0.42))) + 1))
    extra = HANDLE if style == "doors" else 0.0
    top = Top(-w / 2, w / 2, -d / 2 - extra / 2, d / 2 - extra / 2, h)
    return Group((w, d + extra, h), pushed_back([piece], extra), [top])


def cube_shelf(kit: Kit) -> Group:
    """Square compartments, some with boxes."""
    piece, finish, cell = Piece("bookshelf", kit), kit.material("board"), kit.uniform(0.33, 0.4)
    columns, rows, d = kit.integer(2, 4), kit.integer(1, 5), kit.uniform(0.3, 0.4)
    w, h = columns * cell, rows * cell + 0.02
    for x in np.linspace(-w / 2, w / 2, columns + 1):
        piece.box((0.025, d, h), (x, 0, 0), finish)
    if kit.chance(0.7):
        piece.box((w, 0.012, h), (0, -d / 2 + 0.006, 0), finish)
    inks = [kit.material("thing") for _ in range(4)]
    for z in np.linspace(0, h - 0.025, rows + 1):
        piece.box((w, d, 0.025), (0, 0, z), finish)
    for i in range(columns * rows):
        x, z = (i % columns + 0.5) * cell - w / 2, (i // columns) * cell + 0.025
        if kit.chance(0.35):
            piece.box((cell - 0.05, d - 0.04, cell - 0.07), (x, 0.01, z), kit.pick(inks))
        elif kit.chance(0.7):
            _book_row(piece, inks, cell - 0.04, d, z, cell - 0.08, x)
    return Group((w + 0.025, d, h), [piece], [Top(-w / 2, w / 2, -d / 2, d / 2, h)])


def _filled(piece: Piece, finish: Material, w: float, d: float, levels: np.ndarray) -> None:
    """Boards with rows of books, boxes or nothing between them."""
    kit = piece.kit
    inks = [kit.material("thing") for _ in range(5)]
    full = kit.uniform(0.4, 0.95)
    for z in levels:
        piece.box((w, d - 0.01, 0.025), (0, 0, z), finish)
    for low, high in zip(levels[:-1], levels[1:]):
        if kit.chance(full):
            _book_row(piece, inks, w - 0.02, d, low + 0.025, high - low - 0.05)
        elif kit.chance(0.5):
            wide = kit.uniform(0.2, 0.35)
            size = (wide, 0.8 * d, kit.uniform(0.5, 0.9) * (high - low - 0.04))
            piece.box(size, (kit.uniform(-0.5, 0.5) * (w - wide), 0, low + 0.025), kit.pick(inks))


def _book_row(
    piece: Piece, inks: list[Material], width: float, depth: float, z: float, room: float, middle: float = 0.0
) -> None:
    kit, x = piece.kit, -width / 2 + piece.kit.uniform(0, 0.1)
    end = width / 2 - piece.kit.uniform(0, 0.5) * width
    while x < end - 0.05:
        wide = kit.uniform(0.025, 0.075)
        if kit.chance(0.92):
            size = (wide - 0.003, kit.uniform(0.55, 0.85) * depth, kit.uniform(0.6, 0.98) * room)
            piece.box(size, (middle + x + wide / 2, -0.05 * depth, z), kit.pick(inks))
        x += wide


def rack(kit: Kit) -> Group:
    """A metal rack with boxes and containers on its boards."""
    piece, metal = Piece("rack", kit), kit.material("metal")
    w, d, h = kit.uniform(0.7, 1.2), kit.uniform(0.35, 0.5), kit.uniform(1.0, 1.9)
    four_legs(piece, w, d, h, metal)
    levels = np.linspace(0.08, h - 0.03, kit.integer(3, 5))
    for z, high in zip(levels, [*levels[1:], None]):
        piece.box((w, d, 0.025), (0, 0, z), metal)
        for x in np.arange(-w / 2 + 0.17, w / 2 - 0.15, 0.34) if high else ():
            if kit.chance(0.6):
                tall = kit.uniform(0.4, 0.85) * (high - z)
                piece.box((0.3, 0.8 * d, tall - 0.03), (x, 0, z + 0.025), kit.material("thing"))
    return Group((w, d, h), [piece], [Top(-w / 2, w / 2, -d / 2, d / 2, h)])


def shoe_rack(kit: Kit) -> Group:
    piece, finish = Piece("rack", kit), kit.material("board")
    w, d, h = kit.uniform(0.6, 0.9), kit.uniform(0.28, 0.34), kit.uniform(0.4, 0.6)
    four_legs(piece, w, d, h, finish)
    for z in (0.1, h - 0.03):
        piece.box((w, d, 0.02), (0, 0, z), finish)
        for x in np.arange(-w / 2 + 0.08, w / 2 - 0.06, 0.13) if z < 0.2 else ():
            piece.cushion((0.09, 0.24, 0.09), (x, 0, z + 0.02), kit.material("thing"), 0.04)
    return Group((w, d, h), [piece], [Top(-w / 2, w / 2, -d / 2, d / 2, h)])


def clothes_rail(kit: Kit) -> Group:
    """A rail on a frame with clothes."""
    piece, metal = Piece("rack", kit), kit.material("metal")
    w, d, h = kit.uniform(0.8, 1.3), 0.45, kit.uniform(1.4, 1.7)
    for x in (-w / 2 + 0.02, w / 2 - 0.02):
        piece.tube((x, 0, 0.02), (x, 0, h), 0.016, metal)
        piece.tube((x, -d / 2, 0.02), (x, d / 2, 0.02), 0.016, metal)
    piece.tube((-w / 2, 0, h), (w / 2, 0, h), 0.016, metal)
    for x in np.arange(-w / 2 + 0.1, w / 2 - 0.08, 0.09):
        if kit.chance(0.6):
            long = kit.uniform(0.55, 1.0)
            piece.cushion((0.06, 0.42, long), (x, 0, h - 0.03 - long), kit.material("cloth"), 0.025)
    return Group((w, d, h), [piece], blocks=[Block(-w / 2, w / 2, -d / 2, d / 2, 0, h)])
