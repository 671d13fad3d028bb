"""Parametric furniture of living rooms, bedrooms and offices: each function builds one `Group`.

The front faces +y, the back (y = -depth / 2) goes to the wall. Sizes are metres.
"""

from __future__ import annotations

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.materials import Material
from pcssl.data.rooms.piece import Group, Kit, Piece, Top, pushed_back


def four_legs(piece: Piece, width: float, depth: float, height: float, finish: Material) -> None:
    """Round or square legs at the corners of a width x depth rectangle."""
    kit = piece.kit
    thick, square = kit.uniform(0.02, 0.04), kit.chance(0.5)
    for sx in (-1, 1):
        for sy in (-1, 1):
            x, y = sx * (width / 2 - thick), sy * (depth / 2 - thick)
            if square:
                piece.box((2 * thick, 2 * thick, height), (x, y, 0), finish)
            else:
                piece.tube((x, y, 0), (x, y, height), thick, finish)


def fronts(
    piece: Piece, width: float, y: float, z0: float, z1: float, columns: int, rows: int, finish: Material,
    middle: float = 0.0,
) -> None:  # fmt: skip
    """Doors or drawers on the plane `y` about x = `middle`: raised panels with gaps, and handles."""
    kit, gap, thick = piece.kit, 0.012, 0.02
    handle, upright = kit.material(), kit.chance(0.5)
    w, h = width / columns, (z1 - z0) / rows
    for i in range(columns):
        for j in range(rows):
            x, z = middle - width / 2 + (i + 0.5) * w, z0 + j * h
            piece.box((w - gap, thick, h - gap), (x, y + thick / 2, z + gap / 2), finish)
            long = min(0.16, 0.5 * (h if upright else w))
            grip = np.array([x + (0.38 * w if upright else 0), y + thick + 0.025, z + 0.6 * h])
            half = np.array([0, 0, long / 2]) if upright else np.array([long / 2, 0, 0])
            piece.tube(grip - half, grip + half, 0.012, handle)


def dining_chair(kit: Kit, finish: Material | None = None) -> Group:
    chair, finish = Piece("chair", kit), finish or kit.material()
    w, d, seat, back = kit.uniform(0.4, 0.5), kit.uniform(0.4, 0.5), kit.uniform(0.42, 0.48), kit.uniform(0.35, 0.55)
    four_legs(chair, w, d, seat - 0.03, finish)
    if kit.chance(0.5):
        chair.cushion((w, d, 0.06), (0, 0, seat - 0.04), kit.material(), 0.025)
    else:
        chair.box((w, d, 0.03), (0, 0, seat - 0.03), finish)
    rear = -d / 2 + 0.02
    if kit.chance(0.5):
        chair.box((w, 0.03, 0.75 * back), (0, rear, seat + 0.25 * back), finish)
        for x in (-w / 2 + 0.025, w / 2 - 0.025):
            chair.tube((x, rear, seat), (x, rear, seat + 0.3 * back), 0.016, finish)
    else:
        for x in np.linspace(-w / 2 + 0.025, w / 2 - 0.025, kit.integer(3, 5)):
            chair.tube((x, rear, seat), (x, rear, seat + back), 0.016, finish)
        chair.box((w, 0.035, 0.09), (0, rear, seat + back - 0.05), finish)
    return Group((w, d, seat + back), [chair])


def office_chair(kit: Kit, finish: Material | None = None) -> Group:
    chair, metal, cloth = Piece("office chair", kit), kit.material(), finish or kit.material()
    w, seat, back, base = kit.uniform(0.44, 0.52), kit.uniform(0.42, 0.52), kit.uniform(0.4, 0.65), kit.uniform(0.26, 0.32)
    for angle in np.arange(5) * 2 * np.pi / 5 + kit.uniform(0, 1):
        tip = (base * np.cos(angle), base * np.sin(angle), 0.06)
        chair.tube((0, 0, 0.1), tip, 0.025, metal)
        chair.loft([(0, 0.025, 0.025), (0.06, 0.025, 0.025)], metal, (tip[0], tip[1], 0))
    chair.tube((0, 0, 0.08), (0, 0, seat - 0.05), 0.03, metal)
    chair.cushion((w, w, 0.09), (0, 0, seat - 0.06), cloth, 0.04)
    chair.cushion((w * 0.92, 0.08, back), (0, -w / 2, seat + 0.08), cloth, 0.035)
    chair.box((0.06, 0.03, 0.2), (0, -w / 2 - 0.03, seat - 0.03), metal)
    if kit.chance(0.6):
        for x in (-w / 2 - 0.03, w / 2 + 0.03):
            chair.box((0.05, 0.26, 0.03), (x, -0.03, seat + 0.2), metal)
            chair.tube((x, -0.1, seat), (x, -0.1, seat + 0.2), 0.018, metal)
    side = max(w + 0.12, 2 * base)
    return Group((side, side, seat + back + 0.08), [chair])


def upholstered(kit: Kit, category: str, width: float, seats: int) -> Group:
    """Sofa or armchair: base, seat and back cushions, arms; legs or a closed base."""
    sofa, cloth = Piece(category, kit), kit.material()
    pads = cloth if kit.chance(0.6) else kit.material()
    d, seat, back = kit.uniform(0.78, 0.98), kit.uniform(0.38, 0.47), kit.uniform(0.34, 0.5)
    arm_w, arm_h, lift = kit.uniform(0.1, 0.24), kit.uniform(0.12, 0.26), kit.pick((0.0, 0.06, 0.1))
    inner, thick = width - 2 * arm_w, kit.uniform(0.16, 0.24)
    sofa.cushion((width, d, seat - 0.12 - lift), (0, 0, lift), cloth, 0.04)
    if lift:
        four_legs(sofa, width - 0.1, d - 0.1, lift, kit.material())
    sofa.cushion((width, thick, seat + back - lift), (0, -d / 2 + thick / 2, lift), cloth, 0.07)
    for sign in (-1, 1):
        at = (sign * (width - arm_w) / 2, 0, lift)
        sofa.cushion((arm_w, d, seat + arm_h - lift), at, cloth, min(0.08, arm_w / 2))
    each = inner / seats
    for i in range(seats):
        x = -inner / 2 + (i + 0.5) * each
        sofa.cushion((each - 0.01, d - thick, 0.16), (x, thick / 2, seat - 0.14), pads, 0.06)
        sofa.cushion((each - 0.02, 0.18, back), (x, -d / 2 + thick + 0.06, seat), pads, 0.07)
    pieces = [sofa] + _loose_cushions(kit, inner, seat, -d / 2 + thick + 0.25)
    return Group((width, d, seat + back), pieces)


def _loose_cushions(kit: Kit, width: float, z: float, y: float) -> list[Piece]:
    pieces = []
    for _ in range(kit.integer(0, 2) if width > 1 else 0):
        cushion = Piece("cushion", kit)
        side = kit.uniform(0.3, 0.45)
        cushion.cushion((side, 0.14, side), (kit.uniform(-0.4, 0.4) * width, y, z), kit.material(), 0.065)
        pieces.append(cushion)
    return pieces


def sofa(kit: Kit) -> Group:
    seats = kit.integer(2, 3)
    return upholstered(kit, "couch", seats * kit.uniform(0.62, 0.78) + kit.uniform(0.2, 0.4), seats)


def armchair(kit: Kit) -> Group:
    return upholstered(kit, "armchair", kit.uniform(0.75, 1.0), 1)


def ottoman(kit: Kit) -> Group:
    piece = Piece("ottoman", kit)
    w, d, h = kit.uniform(0.4, 0.9), kit.uniform(0.4, 0.6), kit.uniform(0.35, 0.48)
    if kit.chance(0.5):
        piece.cushion((w, d, h), (0, 0, 0), kit.material(), 0.07)
    else:
        piece.loft([(0, w / 2, w / 2), (h - 0.04, w / 2, w / 2), (h, w / 2.3, w / 2.3), (h, 0, 0)], kit.material())
        d = w
    return Group((w, d, h), [piece])


def bench(kit: Kit) -> Group:
    piece, finish = Piece("bench", kit), kit.material()
    w, d, h = kit.uniform(0.9, 1.5), kit.uniform(0.32, 0.45), kit.uniform(0.4, 0.5)
    four_legs(piece, w, d, h - 0.04, finish)
    piece.box((w, d, 0.05), (0, 0, h - 0.05), finish)
    return Group((w, d, h), [piece], [Top(-w / 2, w / 2, -d / 2, d / 2, h)])


def table(kit: Kit, category: str, w: float, d: float, h: float) -> Group:
    """A top on legs, or on one column with a foot; now and then round."""
    piece, finish = Piece(category, kit), kit.material()
    legs = finish if kit.chance(0.5) else kit.material()
    thick = kit.uniform(0.025, 0.05)
    if kit.chance(0.3):
        a, b = w / 2, d / 2
        piece.loft([(h - thick, a, b), (h, a, b)], finish)
        piece.add(shapes.disc(a, b, kit.density()), finish, (0, 0, h))
        piece.tube((0, 0, 0), (0, 0, h - thick), 0.05, legs)
        piece.loft([(0, 0.6 * b, 0.6 * b), (0.03, 0.55 * b, 0.55 * b), (0.06, 0.05, 0.05)], legs)
        return Group((w, d, h), [piece], [Top(-0.6 * a, 0.6 * a, -0.6 * b, 0.6 * b, h)])
    piece.box((w, d, thick), (0, 0, h - thick), finish)
    four_legs(piece, w - 0.04, d - 0.04, h - thick, legs)
    if kit.chance(0.4):
        for y in (-d / 2 + 0.07, d / 2 - 0.07):
            piece.box((w - 0.16, 0.02, 0.08), (0, y, h - thick - 0.08), legs)
    if h < 0.55 and kit.chance(0.4):
        piece.box((w - 0.12, d - 0.12, 0.02), (0, 0, 0.12), legs)
    return Group((w, d, h), [piece], [Top(-w / 2, w / 2, -d / 2, d / 2, h)])


def dining_table(kit: Kit) -> Group:
    category = kit.pick(("table", "dining table"))
    return table(kit, category, kit.uniform(0.8, 1.8), kit.uniform(0.75, 0.95), kit.uniform(0.7, 0.78))


def coffee_table(kit: Kit) -> Group:
    return table(kit, "coffee table", kit.uniform(0.6, 1.2), kit.uniform(0.45, 0.7), kit.uniform(0.35, 0.5))


def end_table(kit: Kit) -> Group:
    side = kit.uniform(0.38, 0.55)
    return table(kit, "end table", side, side * kit.uniform(0.9, 1.1), kit.uniform(0.42, 0.62))


def desk(kit: Kit) -> Group:
    """A top on a drawer pedestal and a side panel, with a screen panel at the back."""
    piece, finish = Piece("desk", kit), kit.material()
    w, d, h = kit.uniform(1.0, 1.8), kit.uniform(0.55, 0.8), kit.uniform(0.7, 0.78)
    panel = finish if kit.chance(0.6) else kit.material()
    piece.box((w, d, 0.03), (0, 0, h - 0.03), finish)
    if kit.chance(0.75):
        piece.box((w - 0.06, 0.02, h * kit.uniform(0.4, 0.8)), (0, -d / 2 + 0.06, h * 0.18), panel)
    side, pw = kit.pick((-1, 1)), kit.uniform(0.36, 0.46)
    for sign in (-1, 1):
        if sign == side and kit.chance(0.75):
            x = sign * (w - pw) / 2
            piece.box((pw, d - 0.08, h - 0.03), (x, 0, 0), panel)
            fronts(piece, pw, d / 2 - 0.04, 0.04, h - 0.05, 1, kit.integer(2, 4), panel, x)
        elif kit.chance(0.6):
            piece.box((0.03, d - 0.04, h - 0.03), (sign * (w / 2 - 0.03), 0, 0), panel)
        else:
            for y in (-d / 2 + 0.05, d / 2 - 0.05):
                piece.tube((sign * (w / 2 - 0.05), y, 0), (sign * (w / 2 - 0.05), y, h - 0.03), 0.025, panel)
    top = h
    if kit.chance(0.25):
        piece.box((w, 0.24, 0.02), (0, -d / 2 + 0.12, h + 0.35), finish)
        for x in (-w / 2 + 0.01, 0, w / 2 - 0.01):
            piece.box((0.02, 0.24, 0.35), (x, -d / 2 + 0.12, h), finish)
        top = h + 0.37
    return Group((w, d, top), [piece], [Top(-w / 2, w / 2, -d / 2 + (0.24 if top > h else 0), d / 2, h)])


def bed(kit: Kit) -> Group:
    """Frame, mattress, head board, a cover with folds, pillows."""
    piece, frame, cover = Piece("bed", kit), kit.material(), kit.material()
    w, d = kit.pick((0.9, 1.2, 1.4, 1.6, 1.8)) + kit.uniform(-0.05, 0.05), kit.uniform(1.95, 2.15)
    lift, rail, mattress = kit.uniform(0.04, 0.16), kit.uniform(0.14, 0.24), kit.uniform(0.16, 0.26)
    top = lift + rail + mattress - 0.04
    piece.box((w, d, rail), (0, 0, lift), frame)
    four_legs(piece, w - 0.04, d - 0.04, lift, frame)
    piece.cushion((w - 0.04, d - 0.06, mattress), (0, 0.01, lift + rail - 0.04), kit.material(), 0.06)
    if kit.chance(0.8):
        piece.box((w + 0.04, 0.06, top + kit.uniform(0.25, 0.6)), (0, -d / 2 + 0.03, 0), frame)
    if kit.chance(0.25):
        piece.box((w + 0.02, 0.05, top + kit.uniform(0.0, 0.2)), (0, d / 2 - 0.02, 0), frame)
    long = d * kit.uniform(0.55, 0.75)
    piece.add(_cover(kit, w + 0.05, long, 0.5 * mattress), cover, (0, d / 2 - long / 2 - 0.02, top))
    pieces = [piece]
    places = (0.0,) if w < 1.3 else (-w / 4, w / 4)
    for x in places:
        pillow = Piece("pillow", kit)
        size = (kit.uniform(0.45, 0.65), kit.uniform(0.34, 0.42), 0.14)
        pillow.cushion(size, (x, -d / 2 + 0.34, top - 0.01), kit.material(), 0.068)
        pieces.append(pillow)
    return Group((w + 0.06, d + 0.02, top + 0.1), pieces)


def _cover(kit: Kit, width: float, length: float, drop: float) -> shapes.Mesh:
    """A blanket: flat on top, hanging over both sides, with soft folds."""
    flat, phase, step = width, kit.uniform(0, 6), kit.density()
    total = flat + 2 * drop

    def fn(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        s = (u - 0.5) * total
        over = np.maximum(np.abs(s) - flat / 2, 0)
        x = np.clip(s, -flat / 2, flat / 2)
        fold = 0.018 * np.sin(7 * s + 5 * v + phase) * np.sin(6 * v - 3 * s)
        return np.stack([x, (v - 0.5) * length, 0.04 - over + fold], 1)

    return shapes.surface(fn, shapes.cells(total, step), shapes.cells(length, step))


def cabinet(kit: Kit, category: str, w: float, d: float, h: float, columns: int, rows: int) -> Group:
    """A closed carcass with doors or drawers, on a plinth, on feet or on the floor."""
    piece, finish = Piece(category, kit), kit.material()
    door = finish if kit.chance(0.7) else kit.material()
    lift = kit.pick((0.0, 0.06, 0.1))
    piece.box((w, d, h - lift), (0, 0, lift), finish)
    if lift and kit.chance(0.5):
        four_legs(piece, w - 0.04, d - 0.04, lift, finish)
    elif lift:
        piece.box((w - 0.04, d - 0.06, lift), (0, -0.02, 0), finish)
    fronts(piece, w, d / 2, lift + 0.01, h - 0.02, columns, rows, door)
    top = Top(-w / 2, w / 2, -d / 2 - 0.03, d / 2 - 0.03, h)
    return Group((w, d + 0.06, h), pushed_back([piece], 0.06), [top])


def storage_cabinet(kit: Kit) -> Group:
    w, h = kit.uniform(0.5, 1.3), kit.uniform(0.7, 2.0)
    return cabinet(kit, "cabinet", w, kit.uniform(0.35, 0.6), h, max(1, round(w / 0.5)), 1 if h < 1.3 else kit.integer(1, 3))


def file_cabinet(kit: Kit) -> Group:
    rows = kit.integer(2, 4)
    return cabinet(kit, "file cabinet", kit.uniform(0.4, 0.5), kit.uniform(0.5, 0.65), 0.1 + 0.32 * rows, 1, rows)


def dresser(kit: Kit) -> Group:
    return cabinet(kit, "dresser", kit.uniform(0.8, 1.4), kit.uniform(0.42, 0.52), kit.uniform(0.75, 1.1), 2, kit.integer(3, 4))


def nightstand(kit: Kit) -> Group:
    return cabinet(kit, "nightstand", kit.uniform(0.38, 0.52), kit.uniform(0.35, 0.45), kit.uniform(0.45, 0.65), 1, kit.integer(1, 3))


def wardrobe(kit: Kit) -> Group:
    columns = kit.integer(2, 3)
    return cabinet(kit, "wardrobe", columns * kit.uniform(0.42, 0.55), kit.uniform(0.52, 0.64), kit.uniform(1.8, 2.15), columns, 1)


def tv_stand(kit: Kit) -> Group:
    group = cabinet(kit, "tv stand", kit.uniform(1.1, 1.8), kit.uniform(0.38, 0.5), kit.uniform(0.42, 0.62), 3, 1)
    if kit.chance(0.85):
        group.pieces.append(screen(kit, "tv", kit.uniform(0.8, 1.2), group.size[2]))
    return group


def screen(kit: Kit, category: str, width: float, z: float, y: float = 0.0) -> Piece:
    """A flat screen on its foot, standing at height z."""
    piece, case, height = Piece(category, kit), kit.material(), 0.58 * width
    piece.box((width, 0.04, height), (0, y, z + 0.08), case)
    piece.box((width - 0.04, 0.012, height - 0.04), (0, y + 0.02, z + 0.1), kit.material())
    piece.box((0.05, 0.05, 0.12), (0, y - 0.02, z), case)
    piece.box((0.4 * width, 0.18, 0.015), (0, y, z), case)
    return piece


def bookshelf(kit: Kit) -> Group:
    """Sides, boards, sometimes a back, and rows of books that belong to the shelf."""
    piece, finish = Piece("bookshelf", kit), kit.material()
    w, d, h = kit.uniform(0.6, 1.3), kit.uniform(0.25, 0.4), kit.uniform(0.9, 2.1)
    for x in (-w / 2 + 0.0125, w / 2 - 0.0125):
        piece.box((0.025, d, h), (x, 0, 0), finish)
    if kit.chance(0.75):
        piece.box((w, 0.012, h), (0, -d / 2 + 0.006, 0), finish)
    count = max(2, round(h / kit.uniform(0.3, 0.42)))
    levels = np.linspace(0.05, h - 0.03, count + 1)
    inks = [kit.material() for _ in range(4)]
    for z in levels:
        piece.box((w - 0.05, d - 0.01, 0.025), (0, 0, z), finish)
    for low, high in zip(levels[:-1], levels[1:]):
        if kit.chance(0.85):
            _book_row(piece, inks, w - 0.06, d, low + 0.025, high - low - 0.06)
    return Group((w, d, h), [piece], [Top(-w / 2, w / 2, -d / 2, d / 2, h)])


def _book_row(piece: Piece, inks: list[Material], width: float, depth: float, z: float, room: float) -> None:
    kit, x = piece.kit, -width / 2 + piece.kit.uniform(0, 0.1)
    end = width / 2 - piece.kit.uniform(0, 0.4) * width
    while x < end - 0.05:
        wide = kit.uniform(0.025, 0.075)
        if kit.chance(0.9):
            size = (wide - 0.004, kit.uniform(0.55, 0.85) * depth, kit.uniform(0.6, 1.0) * room)
            piece.box(size, (x + wide / 2, -0.05 * depth, z), kit.pick(inks))
        x += wide
