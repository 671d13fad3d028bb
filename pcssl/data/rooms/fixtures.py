"""Kitchens and bathrooms: counters with sinks, refrigerators, toilets, tubs, machines. Sizes are metres."""

from __future__ import annotations

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.materials import Material
from pcssl.data.rooms.openings import hanging, rod
from pcssl.data.rooms.piece import Block, Group, Kit, Piece, Top, pushed_back
from pcssl.data.rooms.seating import four_legs
from pcssl.data.rooms.storage import HANDLE, cabinet, fronts


def basin(piece: Piece, a: float, b: float, depth: float, at: tuple, finish: Material, power: float) -> None:
    """A sunk bowl with a rim, a tap and a drain; `at` is the middle of the opening."""
    kit, step = piece.kit, 0.8 * piece.kit.step
    piece.add(shapes.bowl(a, b, depth, step, power), finish, at)
    rim = [(0, a, b), (0.012, a + 0.005, b + 0.005), (0.012, a + 0.025, b + 0.025), (0, a + 0.03, b + 0.03)]
    piece.add(shapes.flipped(shapes.loft(rim, step, power)), finish, at)
    metal, x, y, z = kit.material("metal"), *at
    rear, rise = y - b - 0.035, kit.uniform(0.1, 0.28)
    piece.pipe(((x, rear, z), (x, rear, z + rise), (x, y - 0.3 * b, z + 0.85 * rise)), 0.013, metal)


def _slab(top: Piece, w: float, d: float, h: float, thick: float, stone: Material, holes: list[tuple]) -> None:
    """A worktop with its upper side at h and elliptic holes (x, a, b, power) in it."""
    kit, edge, cuts = top.kit, -w / 2, []
    for x, a, b, power in holes:
        cuts.append((edge, x - a - 0.06))
        plate = shapes.plate_with_hole(2 * a + 0.12, d, a, b, kit.density(), power)
        top.add(plate, stone, (x, 0, h))
        top.box((2 * a + 0.12, 0.02, thick - 0.003), (x, d / 2 - 0.01, h - thick), stone)
        edge = x + a + 0.06
    for x0, x1 in [*cuts, (edge, w / 2)]:
        if x1 - x0 > 0.01:
            top.box((x1 - x0, d, thick), ((x0 + x1) / 2, 0, h - thick), stone)


def kitchen_run(kit: Kit, width: float, sink: bool = True) -> Group:
    """Base cabinets (cabinet) under a worktop (counter), mostly with a sink (sink) and a hob."""
    d, h, thick = kit.uniform(0.58, 0.65), kit.uniform(0.84, 0.94), kit.uniform(0.03, 0.05)
    base, top = Piece("kitchen cabinet", kit), Piece(kit.pick(("counter", "kitchen counter")), kit)
    finish, stone = kit.material("board"), kit.material("board")
    base.box((width - 0.01, d - 0.06, h - thick - 0.1), (0, -0.02, 0.1), finish)
    base.box((width - 0.05, d - 0.12, 0.1), (0, -0.05, 0), kit.material("board"))
    fronts(base, width - 0.01, d / 2 - 0.05, 0.11, h - thick, max(1, round(width / 0.5)), kit.integer(1, 3), finish)
    pieces, holes, tops = [base, top], [], []
    if sink:
        a, b, power, depth = kit.uniform(0.18, 0.3), kit.uniform(0.16, 0.2), kit.uniform(3, 9), kit.uniform(0.14, 0.2)
        x = kit.uniform(-1, 1) * (width / 2 - 2 * a - 0.2)
        twins = (x - a - 0.04, x + a + 0.08) if a < 0.22 and kit.chance(0.5) else (x,)
        holes, bowl, steel = [(at, a, b, power) for at in twins], Piece("sink", kit), kit.material("glaze")
        for at in twins:
            basin(bowl, a, b, depth, (at, 0, h), steel, power)
        pieces.append(bowl)
    _slab(top, width, d, h, thick, stone, holes)
    if kit.chance(0.7):
        top.box((width, 0.02, kit.uniform(0.06, 0.5)), (0, -d / 2 + 0.01, h), stone if kit.chance(0.5) else kit.material("tile"))
    edges = [-width / 2] + [e for x, a, _, _ in holes for e in (x - a - 0.08, x + a + 0.08)] + [width / 2]
    tops = [Top(a, b, -d / 2 + 0.06, d / 2, h, 0.4) for a, b in zip(edges[::2], edges[1::2]) if b - a > 0.2]
    return Group((width, d, h), pieces, tops)


def counter_block(kit: Kit) -> Group:
    """An island or a bar: a closed body, fronts on one side, whose slab hangs over."""
    body, top = Piece(kit.pick(("kitchen cabinet", "counter")), kit), Piece("counter", kit)
    w, d, h = kit.uniform(1.0, 2.0), kit.uniform(0.5, 0.9), kit.uniform(0.85, 1.1)
    finish = kit.material("board")
    body.box((w - 0.1, d - 0.2, h - 0.05), (0, 0, 0), finish)
    if kit.chance(0.6):
        fronts(body, w - 0.12, d / 2 - 0.1, 0.08, h - 0.08, max(2, round(w / 0.5)), kit.integer(1, 2), finish)
    top.box((w, d, 0.05), (0, 0, h - 0.05), kit.material("board"))
    return Group((w, d, h), [body, top], [Top(-w / 2, w / 2, -d / 2, d / 2, h)])


def reception(kit: Kit) -> Group:
    """A counter with a raised shelf towards the visitors."""
    piece, finish = Piece("counter", kit), kit.material("board")
    w, d, h = kit.uniform(1.4, 2.2), kit.uniform(0.6, 0.8), kit.uniform(1.0, 1.15)
    piece.box((w, 0.06, h), (0, d / 2 - 0.1, 0), finish)
    piece.box((w, d - 0.1, 0.03), (0, -0.05, 0.72), kit.material("board"))
    piece.box((w + 0.06, 0.28, 0.04), (0, d / 2 - 0.14, h - 0.04), kit.material("board"))
    for x in (-w / 2 + 0.03, w / 2 - 0.03):
        piece.box((0.04, d - 0.1, 0.72), (x, -0.05, 0), finish)
    return Group((w + 0.06, d, h), [piece], [Top(-w / 2, w / 2, d / 2 - 0.26, d / 2 - 0.02, h)])


def wall_cabinet(kit: Kit, width: float) -> Group:
    """An upper kitchen cabinet, its underside at z = 0."""
    piece, finish = Piece("kitchen cabinet", kit), kit.material("board")
    d, h = kit.uniform(0.3, 0.38), kit.uniform(0.5, 0.8)
    piece.box((width, d, h), (0, 0, 0), finish)
    fronts(piece, width, d / 2, 0.005, h, max(1, round(width / 0.5)), 1, finish)
    return Group((width, d + HANDLE, h), pushed_back([piece], HANDLE))


def range_hood(kit: Kit, width: float) -> Group:
    """A hood over the hob, its underside at z = 0."""
    piece, finish, h = Piece("range hood", kit), kit.material("metal"), kit.uniform(0.5, 0.7)
    w, d = min(width, 0.75), 0.48
    piece.loft([(0, w / 2, d / 2), (0.06, w / 2, d / 2), (0.18, 0.15, 0.13), (h, 0.15, 0.13)], finish, power=12)
    piece.add(shapes.flipped(shapes.disc(w / 2, d / 2, kit.density(), None, 12)), finish)
    return Group((w, d, h), [piece])


def refrigerator(kit: Kit) -> Group:
    """One door, two one above the other, two side by side, or a low one; fronts as on any tall cabinet."""
    piece, finish = Piece("refrigerator", kit), kit.material(kit.pick(("board", "board", "glaze", "metal")))
    style = kit.pick(("single", "stacked", "stacked", "twin", "low"))
    w = kit.uniform(0.8, 0.95) if style == "twin" else kit.uniform(0.54, 0.76)
    d, h = kit.uniform(0.58, 0.72), kit.uniform(0.82, 1.1) if style == "low" else kit.uniform(1.5, 2.0)
    foot = kit.uniform(0.02, 0.08)
    if kit.chance(0.4):
        piece.cushion((w, d - 0.02, h), (0, -0.01, 0), finish, 0.03)
    else:
        piece.box((w, d - 0.02, h), (0, -0.01, 0), finish)
    if style == "stacked":
        split = h * kit.uniform(0.3, 0.7)
        fronts(piece, w, d / 2 - 0.02, foot, split, 1, 1, finish)
        fronts(piece, w, d / 2 - 0.02, split, h, 1, 1, finish)
    else:
        fronts(piece, w, d / 2 - 0.02, foot, h - 0.01, 2 if style == "twin" else 1, 1, finish)
    top = Top(-w / 2, w / 2, -d / 2, d / 2 - 0.15, h)
    return Group((w + 0.02, d + HANDLE, h), pushed_back([piece], HANDLE), [top])


def stove(kit: Kit) -> Group:
    """A free-standing oven with a hob: in the run it looks like one more cabinet."""
    piece, finish = Piece("stove", kit), kit.material("board")
    w, d, h = kit.uniform(0.5, 0.75), kit.uniform(0.58, 0.64), kit.uniform(0.84, 0.92)
    piece.box((w, d, h), (0, 0, 0), finish)
    fronts(piece, w, d / 2, 0.16, h - 0.13, 1, 1, kit.material("image"))
    fronts(piece, w, d / 2, 0.01, 0.15, 1, 1, finish)
    for x in (-0.15, 0.15):
        for y in (-0.13, 0.13):
            piece.loft([(0, 0.09, 0.09), (0.02, 0.085, 0.085), (0.02, 0, 0)], kit.material("metal"), (x, y, h))
    for x in np.linspace(-0.35, 0.35, 5) * w:
        piece.tube((x, d / 2, h - 0.06), (x, d / 2 + 0.03, h - 0.06), 0.018, kit.material("metal"))
    return Group((w + 0.02, d + HANDLE, h), pushed_back([piece], HANDLE), [])


def washing_machine(kit: Kit) -> Group:
    """A machine with a round door, or a dishwasher with a flap."""
    round_door = kit.chance(0.6)
    piece, finish = Piece("washing machine" if round_door else "dishwasher", kit), kit.material("glaze")
    w, d, h = 0.6, kit.uniform(0.52, 0.62), kit.uniform(0.82, 0.9)
    piece.cushion((w, d, h), (0, 0, 0), finish, 0.015)
    piece.box((w - 0.04, 0.02, 0.1), (0, d / 2, h - 0.13), kit.material("thing"))
    if round_door:
        face = shapes.disc(0.17, 0.17, kit.density(), lambda r: 0.04 * (1 - r**2))
        upright = shapes.Mesh(face.vertices[:, [0, 2, 1]] * (-1, 1, 1), face.faces)
        piece.add(upright, kit.material("image"), (0, d / 2 + 0.005, 0.45))
    else:
        fronts(piece, w, d / 2, 0.08, h - 0.15, 1, 1, finish)
    return Group((w, d + HANDLE, h), pushed_back([piece], HANDLE), [Top(-w / 2, w / 2, -d / 2, d / 2 - HANDLE, h)])


# ---------------------------------------------------------------- bathrooms


def toilet(kit: Kit) -> Group:
    """On a foot with a cistern, or hung from a box on the wall; lid open or shut."""
    piece, glaze = Piece("toilet", kit), kit.material("glaze")
    lid = glaze if kit.chance(0.6) else kit.material("board")
    h, a, b, power = kit.uniform(0.38, 0.44), kit.uniform(0.17, 0.2), kit.uniform(0.22, 0.27), kit.pick((2.0, 2.3, 3.5))
    d, hung = 0.2 + 2 * b, kit.chance(0.3)
    y = d / 2 - b
    foot = [(0.15, 0.3 * a, 0.3 * b, 0, y - 0.1)] if hung else [(0, 0.6 * a, 0.75 * b, 0, y - 0.06)]
    piece.loft(foot + [(0.2, 0.6 * a, 0.7 * b, 0, y - 0.05), (h - 0.1, 0.95 * a, 0.95 * b, 0, y), (h, a, b, 0, y)], glaze, power=power)
    if kit.chance(0.5):
        piece.loft([(h, a, b, 0, y), (h + 0.03, a, b, 0, y)], lid, power=power)
        piece.add(shapes.disc(a, b, kit.density(), lambda r: 0.03 - 0.015 * r**4, power), lid, (0, y, h + 0.012))
    else:
        ring = [(0, a, b), (0.03, a, b), (0.03, 0.7 * a, 0.72 * b), (0, 0.68 * a, 0.7 * b)]
        piece.loft(ring, lid, (0, y, h), power)
        piece.add(shapes.bowl(0.7 * a, 0.72 * b, 0.2, 0.02, power), glaze, (0, y, h))
        piece.cushion((2 * a, 0.03, 1.7 * b), (0, y - b + 0.01, h + 0.04), lid, 0.014)
    tank, wide = kit.uniform(0.3, 0.42), kit.uniform(0.36, 0.46)
    if hung:
        piece.box((wide, 0.16, h + 0.6 * tank), (0, -d / 2 + 0.08, 0), kit.material("tile"))
    else:
        piece.cushion((wide, 0.18, tank), (0, -d / 2 + 0.09, h - 0.03), glaze, 0.03)
        piece.box((0.2, 0.16, h), (0, -d / 2 + 0.1, 0), glaze)
    return Group((0.46, d, h + tank), [piece])


def pedestal_sink(kit: Kit) -> Group:
    """A basin on a column or hung from the wall."""
    piece, glaze = Piece("sink", kit), kit.material("glaze")
    a, b, h = kit.uniform(0.2, 0.32), kit.uniform(0.15, 0.22), kit.uniform(0.78, 0.88)
    w, d, power = 2 * a + 0.12, 2 * b + 0.14, kit.uniform(2, 5)
    outer = [(0, 0.4 * a, 0.4 * b), (0.06, 0.8 * w / 2, 0.8 * d / 2), (0.14, w / 2, d / 2), (0.17, w / 2, d / 2)]
    piece.loft(outer, glaze, (0, 0, h - 0.17), 4)
    piece.add(shapes.plate_with_hole(w, d, a, b, kit.density(), power), glaze, (0, 0, h))
    basin(piece, a, b, kit.uniform(0.1, 0.14), (0, 0.02, h), glaze, power)
    if kit.chance(0.6):
        piece.loft([(0, 0.12, 0.1), (0.1, 0.08, 0.07), (h - 0.15, 0.09, 0.08)], glaze, (0, -0.04, 0))
    return Group((w, d, h + 0.2), [piece])


def vanity(kit: Kit) -> Group:
    """A bathroom cabinet with a basin let into its top."""
    w, d, h = kit.uniform(0.6, 1.3), kit.uniform(0.45, 0.55), kit.uniform(0.75, 0.86)
    group = cabinet(kit, "bathroom vanity", w, d, h - 0.03, max(1, round(w / 0.45)), kit.integer(1, 2))
    top, sink, power = Piece("bathroom counter", kit), Piece("sink", kit), kit.uniform(2, 5)
    a, b, x = kit.uniform(0.2, 0.26), kit.uniform(0.14, 0.18), kit.uniform(-1, 1) * (w / 2 - 0.34)
    _slab(top, w + 0.02, d + 0.02, h, 0.03, kit.material("board"), [(x, a, b, power)])
    basin(sink, a, b, kit.uniform(0.1, 0.15), (x, 0.0, h), kit.material("glaze"), power)
    pieces = group.pieces + pushed_back([top, sink], HANDLE)
    ends = ((-w / 2, x - a - 0.1), (x + a + 0.1, w / 2))
    tops = [Top(*end, -d / 2, d / 2 - HANDLE, h) for end in ends if end[1] - end[0] > 0.12]
    return Group((w + 0.03, d + HANDLE + 0.02, h), pieces, tops)


def bathtub(kit: Kit) -> Group:
    """A tub along the wall (its long side is x), panelled or free-standing; most have a shower curtain."""
    piece, glaze = Piece("bathtub", kit), kit.material("glaze")
    w, d, h = kit.uniform(1.4, 1.75), kit.uniform(0.68, 0.8), kit.uniform(0.45, 0.62)
    a, b, step = w / 2 - 0.07, d / 2 - 0.07, kit.density()
    free = kit.chance(0.25)
    power = kit.uniform(2.2, 3) if free else kit.uniform(3, 7)
    if free:
        skin = [(0, 0.75 * w / 2, 0.7 * d / 2), (0.15, 0.85 * w / 2, 0.85 * d / 2), (h, w / 2, d / 2), (h, a, b)]
        piece.loft(skin, glaze, power=power)
    else:
        apron = glaze if kit.chance(0.6) else kit.material("tile")
        for angle, long, out in ((0, w, d / 2), (np.pi, w, d / 2), (np.pi / 2, d, w / 2), (-np.pi / 2, d, w / 2)):
            piece.add(shapes.sheet((-long / 2, -out, 0), (long, 0, 0), (0, 0, h), step), apron, turn=angle)
        piece.add(shapes.plate_with_hole(w, d, a, b, step, power), glaze, (0, 0, h))
    piece.add(shapes.bowl(a, b, 0.85 * h, step, power), glaze, (0, 0, h))
    x = w / 2 - 0.12
    piece.pipe(((x, 0, h - 0.05), (x, 0, h + 0.18), (x - 0.14, 0, h + 0.14)), 0.016, kit.material("metal"))
    pieces = [piece]
    if not free and kit.chance(0.85):
        pieces.append(shower_curtain(kit, w, d / 2, low=kit.uniform(0.12, 0.45)))
    block = Block(-w / 2, w / 2, -d / 2 - 0.05, d / 2 + 0.05, 0, h if len(pieces) == 1 else 2.15)
    return Group((w, d + 0.1, h), pushed_back(pieces, 0.1), blocks=[block])


def shower_curtain(kit: Kit, width: float, y: float, low: float) -> Piece:
    """Cloth on a rod in the plane `y`, partly drawn: made as curtains at windows are."""
    piece, top = Piece("shower curtain", kit), kit.uniform(1.85, 2.1)
    drawn = width * kit.uniform(0.25, 0.95)
    hanging(piece, drawn, low, top, kit.pick((-1, 1)) * (width - drawn) / 2, y + 0.02, kit.material("cloth"))
    rod(piece, width / 2, y, top)
    return piece


def shower_corner(kit: Kit) -> Group:
    """A flat shower tray behind a curtain, where there is no tub."""
    tray, w, d = Piece("shower floor", kit), kit.uniform(0.85, 1.1), kit.uniform(0.8, 0.95)
    tray.box((w, d, kit.uniform(0.03, 0.12)), (0, 0, 0), kit.material("glaze"))
    pieces = [tray, shower_curtain(kit, w, d / 2, low=kit.uniform(0.12, 0.3))]
    block = Block(-w / 2, w / 2, -d / 2 - 0.05, d / 2 + 0.05, 0, 2.15)
    return Group((w, d + 0.1, 1.0), pushed_back(pieces, 0.1), blocks=[block])


def laundry_basket(kit: Kit) -> Group:
    piece, finish = Piece("laundry basket", kit), kit.material("thing")
    r, h, power = kit.uniform(0.18, 0.24), kit.uniform(0.4, 0.6), kit.pick((2.0, 5.0))
    piece.loft([(0, 0.85 * r, 0.85 * r), (h, r, r)], finish, power=power)
    piece.add(shapes.disc(r, r, kit.density(), lambda t: 0.08 * (1 - t**2), power), kit.material("cloth"), (0, 0, h - 0.06))
    return Group((2 * r, 2 * r, h), [piece])


def drying_rack(kit: Kit) -> Group:
    """A folding rack with washing."""
    piece, metal = Piece("rack", kit), kit.material("metal")
    w, d, h = kit.uniform(0.8, 1.2), kit.uniform(0.45, 0.55), kit.uniform(0.85, 1.0)
    four_legs(piece, w, d, h, metal)
    for y in np.linspace(-d / 2, d / 2, 6):
        piece.tube((-w / 2, y, h), (w / 2, y, h), 0.01, metal)
    for x in np.arange(-w / 2 + 0.15, w / 2 - 0.1, 0.3):
        if kit.chance(0.7):
            long = kit.uniform(0.25, 0.6)
            piece.two_sided(shapes.drape(0.26, long, 0.02, 1, kit.uniform(0, 6), kit.density()), kit.material("cloth"),
                            (x, kit.uniform(-0.3, 0.3) * d, h - long))  # fmt: skip
    return Group((w, d, h), [piece])
