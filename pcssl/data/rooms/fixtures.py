"""Kitchens and bathrooms: counters with sinks, refrigerators, toilets, tubs, shower curtains."""

from __future__ import annotations

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.furniture import cabinet, fronts
from pcssl.data.rooms.materials import Material
from pcssl.data.rooms.piece import Group, Kit, Piece, Top, pushed_back


def basin(piece: Piece, a: float, b: float, depth: float, at: tuple, finish: Material, power: float) -> None:
    """A sunk bowl with a rim, a tap and a drain; `at` is the middle of the opening."""
    kit, step = piece.kit, 0.8 * piece.kit.step
    piece.add(shapes.bowl(a, b, depth, step, power), finish, at)
    rim = [(0, a, b), (0.012, a + 0.005, b + 0.005), (0.012, a + 0.025, b + 0.025), (0, a + 0.03, b + 0.03)]
    piece.add(shapes.flipped(shapes.loft(rim, step, power)), finish, at)
    metal, x, y, z = kit.material(), *at
    rear, rise = y - b - 0.035, kit.uniform(0.1, 0.28)
    piece.tube((x, rear, z), (x, rear, z + rise), 0.014, metal)
    piece.tube((x, rear, z + rise), (x, y - 0.3 * b, z + 0.85 * rise), 0.012, metal)


def kitchen_run(kit: Kit, width: float) -> Group:
    """Base cabinets (cabinet) under a worktop (counter) with a sink let in (sink)."""
    d, h, slab = kit.uniform(0.58, 0.65), kit.uniform(0.84, 0.94), kit.uniform(0.03, 0.05)
    base, top, sink = Piece("kitchen cabinet", kit), Piece(kit.pick(("counter", "kitchen counter")), kit), Piece("sink", kit)
    finish, stone, steel = kit.material(), kit.material(), kit.material()
    base.box((width - 0.01, d - 0.06, h - slab - 0.1), (0, -0.02, 0.1), finish)
    base.box((width - 0.05, d - 0.12, 0.1), (0, -0.05, 0), kit.material())
    fronts(base, width - 0.01, d / 2 - 0.05, 0.11, h - slab, max(1, round(width / 0.5)), kit.integer(1, 2), finish)
    a, b = kit.uniform(0.2, 0.3), kit.uniform(0.16, 0.2)
    room = width / 2 - a - 0.08
    x, power = kit.uniform(-room, room), kit.uniform(3, 9)
    left, right = x - a - 0.06, x + a + 0.06
    for x0, x1 in ((-width / 2, left), (right, width / 2)):
        top.box((x1 - x0, d, slab), ((x0 + x1) / 2, 0, h - slab), stone)
    mid = shapes.plate_with_hole(right - left, d, a, b, kit.density(), power)
    top.add(mid, stone, (x, 0, h))
    top.box((right - left, 0.02, slab - 0.003), (x, d / 2 - 0.01, h - slab), stone)
    basin(sink, a, b, kit.uniform(0.14, 0.2), (x, 0, h), steel, power)
    if kit.chance(0.6):
        top.box((width, 0.02, kit.uniform(0.1, 0.5)), (0, -d / 2 + 0.01, h), stone)
    tops = [Top(*span, -d / 2 + 0.04, d / 2, h) for span in ((-width / 2, left), (right, width / 2)) if span[1] - span[0] > 0.3]
    return Group((width, d, h), [base, top, sink], tops)


def counter_block(kit: Kit) -> Group:
    """An island or reception counter: a closed body whose slab hangs over."""
    piece = Piece("counter", kit)
    w, d, h = kit.uniform(1.0, 1.9), kit.uniform(0.5, 0.8), kit.uniform(0.85, 1.1)
    piece.box((w - 0.1, d - 0.16, h - 0.05), (0, 0, 0), kit.material())
    piece.box((w, d, 0.05), (0, 0, h - 0.05), kit.material())
    return Group((w, d, h), [piece], [Top(-w / 2, w / 2, -d / 2, d / 2, h)])


def wall_cabinet(kit: Kit, width: float) -> Group:
    """An upper kitchen cabinet, its underside at z = 0."""
    piece, finish = Piece("kitchen cabinet", kit), kit.material()
    d, h = kit.uniform(0.3, 0.38), kit.uniform(0.55, 0.8)
    piece.box((width, d, h), (0, 0, 0), finish)
    fronts(piece, width, d / 2, 0.005, h, max(1, round(width / 0.5)), 1, finish)
    return Group((width, d, h), [piece])


def refrigerator(kit: Kit) -> Group:
    piece, finish = Piece("refrigerator", kit), kit.material()
    small = kit.chance(0.25)
    w, d = kit.uniform(0.55, 0.8), kit.uniform(0.58, 0.72)
    h = kit.uniform(0.8, 1.1) if small else kit.uniform(1.4, 1.95)
    split = h if small else h * kit.uniform(0.35, 0.7)
    piece.box((w, d - 0.06, h), (0, -0.03, 0.0), finish)
    spans = ((0.04, split - 0.008), (split + 0.008, h)) if split < h else ((0.04, h),)
    side, handle = kit.pick((-1, 1)), kit.material()
    for z0, z1 in spans:
        piece.cushion((w, 0.065, z1 - z0), (0, d / 2 - 0.03, z0), finish, 0.02)
        x, long = side * (w / 2 - 0.05), 0.6 * (z1 - z0)
        z = z0 + 0.2 * (z1 - z0)
        piece.tube((x, d / 2 + 0.035, z), (x, d / 2 + 0.035, z + long), 0.013, handle)
    return Group((w, d + 0.08, h), pushed_back([piece], 0.08), [Top(-w / 2, w / 2, -d / 2, d / 2 - 0.15, h)])


def toilet(kit: Kit) -> Group:
    """Foot, bowl, seat, a lid that is open or shut, and a cistern."""
    piece, glaze = Piece("toilet", kit), kit.material()
    lid_color = glaze if kit.chance(0.6) else kit.material()
    h, a, b = kit.uniform(0.38, 0.44), kit.uniform(0.17, 0.2), kit.uniform(0.22, 0.27)
    d = 0.2 + 2 * b
    y = d / 2 - b
    foot = [(0, 0.6 * a, 0.75 * b, 0, y - 0.06), (0.12, 0.52 * a, 0.62 * b, 0, y - 0.06)]
    piece.loft(foot + [(h - 0.1, 0.95 * a, 0.95 * b, 0, y), (h, a, b, 0, y)], glaze)
    shut = kit.chance(0.4)
    if shut:
        step = kit.density()
        piece.loft([(h, a, b, 0, y), (h + 0.03, a, b, 0, y)], lid_color)
        piece.add(shapes.disc(a, b, step, lambda r: 0.03 - 0.015 * r**4), lid_color, (0, y, h + 0.012))
    else:
        ring = [(0, a, b), (0.03, a, b), (0.03, 0.7 * a, 0.72 * b), (0, 0.68 * a, 0.7 * b)]
        piece.loft(ring, lid_color, (0, y, h))
        piece.add(shapes.bowl(0.7 * a, 0.72 * b, 0.2, 0.02), glaze, (0, y, h))
        piece.cushion((2 * a, 0.03, 1.7 * b), (0, y - b + 0.01, h + 0.04), lid_color, 0.014)
    tank_h = kit.uniform(0.3, 0.42)
    piece.cushion((kit.uniform(0.36, 0.46), 0.18, tank_h), (0, -d / 2 + 0.09, h - 0.03), glaze, 0.03)
    piece.box((0.2, 0.16, h), (0, -d / 2 + 0.1, 0), glaze)
    return Group((0.46, d, h + tank_h), [piece])


def pedestal_sink(kit: Kit) -> Group:
    piece, glaze = Piece("sink", kit), kit.material()
    a, b, h = kit.uniform(0.22, 0.32), kit.uniform(0.17, 0.22), kit.uniform(0.78, 0.88)
    w, d, power = 2 * a + 0.12, 2 * b + 0.14, kit.uniform(2, 4)
    outer = [(0, 0.4 * a, 0.4 * b), (0.06, 0.8 * w / 2, 0.8 * d / 2), (0.14, w / 2, d / 2), (0.17, w / 2, d / 2)]
    piece.loft(outer, glaze, (0, 0, h - 0.17), 4)
    rim = shapes.plate_with_hole(w, d, a, b, kit.density(), power)
    piece.add(rim, glaze, (0, 0, h))
    basin(piece, a, b, kit.uniform(0.1, 0.14), (0, 0.02, h), glaze, power)
    if kit.chance(0.7):
        piece.loft([(0, 0.12, 0.1), (0.1, 0.08, 0.07), (h - 0.15, 0.09, 0.08)], glaze, (0, -0.04, 0))
    return Group((w, d, h), [piece])


def vanity(kit: Kit) -> Group:
    """A bathroom cabinet with a basin let into its top."""
    w, d, h = kit.uniform(0.6, 1.2), kit.uniform(0.45, 0.55), kit.uniform(0.75, 0.86)
    group = cabinet(kit, "bathroom vanity", w, d, h - 0.03, max(1, round(w / 0.45)), kit.integer(1, 2))
    top, sink = Piece("counter", kit), Piece("sink", kit)
    stone, a, b, power = kit.material(), kit.uniform(0.2, 0.26), kit.uniform(0.14, 0.18), kit.uniform(2, 5)
    top.add(shapes.plate_with_hole(w + 0.02, d + 0.02, a, b, kit.density(), power), stone, (0, 0, h))
    top.box((w + 0.02, 0.02, 0.03), (0, d / 2, h - 0.032), stone)
    for x in (-w / 2, w / 2):
        top.box((0.02, d, 0.03), (x, 0, h - 0.032), stone)
    basin(sink, a, b, kit.uniform(0.1, 0.15), (0, 0.02, h), kit.material(), power)
    return Group((w + 0.03, d + 0.06, h), group.pieces + pushed_back([top, sink], 0.06))


def bathtub(kit: Kit) -> Group:
    """A tub along the wall (its long side is x); most have a shower curtain on a rod."""
    piece, glaze = Piece("bathtub", kit), kit.material()
    w, d, h = kit.uniform(1.45, 1.75), kit.uniform(0.68, 0.8), kit.uniform(0.45, 0.6)
    a, b, power = w / 2 - 0.07, d / 2 - 0.07, kit.uniform(3, 6)
    apron, step = (glaze if kit.chance(0.7) else kit.material()), kit.density()
    for angle, long, out in ((0, w, d / 2), (np.pi, w, d / 2), (np.pi / 2, d, w / 2), (-np.pi / 2, d, w / 2)):
        piece.add(shapes.sheet((-long / 2, -out, 0), (long, 0, 0), (0, 0, h), step), apron, turn=angle)
    piece.add(shapes.plate_with_hole(w, d, a, b, step, power), glaze, (0, 0, h))
    piece.add(shapes.bowl(a, b, 0.85 * h, step, power), glaze, (0, 0, h))
    metal = kit.material()
    piece.tube((w / 2 - 0.12, 0, h), (w / 2 - 0.12, 0, h + 0.18), 0.016, metal)
    piece.tube((w / 2 - 0.12, 0, h + 0.18), (w / 2 - 0.26, 0, h + 0.14), 0.016, metal)
    pieces = [piece]
    if kit.chance(0.9):
        pieces.append(shower_curtain(kit, w, d / 2))
    return Group((w, d + 0.08, max(h, 1.0)), pushed_back(pieces, 0.08))


def shower_curtain(kit: Kit, width: float, y: float) -> Piece:
    """A two-sided wavy sheet, partly drawn, in the plane `y`, hanging from above head height."""
    piece, cloth = Piece("shower curtain", kit), kit.material()
    drawn, top, low = width * kit.uniform(0.3, 0.8), kit.uniform(1.85, 2.1), kit.uniform(0.12, 0.35)
    x = kit.pick((-1, 1)) * (width - drawn) / 2
    sheet = shapes.drape(drawn, top - low, kit.uniform(0.04, 0.09), drawn * kit.uniform(5, 8), kit.uniform(0, 6), kit.density())
    piece.add(sheet, cloth, (x, y + 0.03, low))
    piece.add(shapes.flipped(sheet), cloth, (x, y + 0.022, low))
    piece.tube((-width / 2, y, top), (width / 2, y, top), 0.014, kit.material())
    return piece


def shower_corner(kit: Kit) -> Group:
    """A flat shower tray behind a curtain, where there is no tub."""
    tray, w, d = Piece(None, kit), kit.uniform(0.85, 1.1), kit.uniform(0.8, 0.95)
    tray.box((w, d, 0.08), (0, 0, 0), kit.material())
    return Group((w, d + 0.08, 1.0), pushed_back([tray, shower_curtain(kit, w, d / 2)], 0.08))
