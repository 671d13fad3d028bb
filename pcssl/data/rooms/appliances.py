"""Larger things on the floor that are none of the twenty classes but `otherfurniture`, or nothing. Sizes are metres."""

from __future__ import annotations

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.piece import Group, Kit, Piece, Top, pushed_back
from pcssl.data.rooms.seating import four_legs
from pcssl.data.rooms.storage import HANDLE, fronts


def trash_can(kit: Kit) -> Group:
    piece, finish = Piece("trash can", kit), kit.material("thing")
    r, h, power = kit.uniform(0.12, 0.2), kit.uniform(0.28, 0.65), kit.pick((2.0, 6.0))
    piece.loft([(0, 0.82 * r, 0.82 * r), (h, r, r)], finish, power=power)
    if kit.chance(0.4):
        piece.add(shapes.disc(r, r, kit.density(), lambda t: 0.05 * (1 - t**2), power), finish, (0, 0, h))
        return Group((2 * r, 2 * r, h + 0.05), [piece])
    inside = shapes.loft([(h, r - 0.006, r - 0.006), (0.02, 0.8 * r, 0.8 * r)], kit.density(), power)
    piece.add(inside, finish)
    piece.add(shapes.disc(0.8 * r, 0.8 * r, kit.density(), None, power), finish, (0, 0, 0.03))
    return Group((2 * r, 2 * r, h), [piece])


def recycling_bins(kit: Kit) -> Group:
    piece, count = Piece("recycling bin", kit), kit.integer(2, 3)
    w, d, h = 0.34, kit.uniform(0.35, 0.45), kit.uniform(0.55, 0.8)
    for i in range(count):
        x, finish = (i - (count - 1) / 2) * (w + 0.02), kit.material("thing")
        piece.box((w, d, h - 0.12), (x, 0, 0), finish)
        piece.cushion((w, d, 0.12), (x, 0, h - 0.12), kit.material("thing"), 0.04)
    return Group((count * (w + 0.02), d, h), [piece])


def piano(kit: Kit) -> Group:
    piece, finish = Piece("piano", kit), kit.material("board")
    w, d, h = kit.uniform(1.4, 1.5), kit.uniform(0.58, 0.65), kit.uniform(1.05, 1.25)
    piece.box((w, 0.32, h), (0, -d / 2 + 0.16, 0), finish)
    piece.box((w, d - 0.02, 0.14), (0, 0.01, 0.6), finish)
    piece.box((w - 0.16, 0.15, 0.03), (0, d / 2 - 0.1, 0.73), kit.material("image"))
    for x in (-w / 2 + 0.05, w / 2 - 0.05):
        piece.box((0.08, d, 0.6), (x, 0, 0), finish)
    return Group((w, d, h), [piece], [Top(-w / 2, w / 2, -d / 2, -d / 2 + 0.3, h)])


def fireplace(kit: Kit) -> Group:
    piece, stone = Piece("fireplace", kit), kit.material("tile")
    w, d, h = kit.uniform(1.1, 1.5), kit.uniform(0.28, 0.4), kit.uniform(1.0, 1.25)
    for x in (-w / 2 + 0.14, w / 2 - 0.14):
        piece.box((0.28, d, h - 0.08), (x, 0, 0), stone)
    piece.box((w - 0.56, d, h - 0.78), (0, 0, 0.7), stone)
    piece.box((w - 0.56, 0.05, 0.7), (0, -d / 2 + 0.05, 0), kit.material("thing"))
    piece.box((w + 0.1, d, 0.08), (0, 0, h - 0.08), kit.material("board"))
    return Group((w + 0.1, d, h), [piece], [Top(-w / 2, w / 2, -d / 2, d / 2, h)])


def ladder(kit: Kit) -> Group:
    piece, metal, h = Piece("ladder", kit), kit.material("metal"), kit.uniform(1.2, 1.8)
    for y in (-0.3, 0.3):
        for x in (-0.2, 0.2):
            piece.tube((x, y, 0), (0.8 * x, 0.1 * y, h), 0.018, metal)
    for z in np.arange(0.25, h, 0.26):
        t = z / h
        piece.box((0.36 - 0.06 * t, 0.07, 0.02), (0, 0.3 * (1 - 0.9 * t), z), metal)
    return Group((0.46, 0.66, h), [piece])


def coat_stand(kit: Kit) -> Group:
    piece, wood, h = Piece("coat rack", kit), kit.material("board"), kit.uniform(1.6, 1.85)
    piece.tube((0, 0, 0.03), (0, 0, h), 0.022, wood)
    piece.loft([(0, 0.22, 0.22), (0.03, 0.2, 0.2), (0.05, 0.02, 0.02)], wood)
    for angle in np.arange(4) * 1.57 + kit.uniform(0, 1):
        tip = (0.16 * np.cos(angle), 0.16 * np.sin(angle), h - 0.05)
        piece.tube((0, 0, h - 0.18), tip, 0.012, wood)
        if kit.chance(0.45):
            long = kit.uniform(0.5, 0.9)
            piece.cushion((0.22, 0.2, long), (tip[0], tip[1], h - 0.1 - long), kit.material("cloth"), 0.07)
    return Group((0.56, 0.56, h), [piece])


def water_cooler(kit: Kit) -> Group:
    piece, h = Piece("water cooler", kit), kit.uniform(0.9, 1.05)
    piece.box((0.32, 0.34, h), (0, 0, 0), kit.material("glaze"))
    piece.loft([(h, 0.05, 0.05), (h + 0.06, 0.13, 0.13), (h + 0.34, 0.13, 0.13), (h + 0.36, 0, 0)], kit.material("image"))
    return Group((0.34, 0.36, h + 0.36), [piece])


def copier(kit: Kit) -> Group:
    """An office printer on the floor."""
    piece, finish = Piece("copier", kit), kit.material("thing")
    w, d, h = kit.uniform(0.55, 0.7), kit.uniform(0.55, 0.65), kit.uniform(0.9, 1.15)
    piece.box((w, d, h - 0.3), (0, 0, 0), finish)
    fronts(piece, w, d / 2, 0.05, h - 0.32, 1, kit.integer(2, 4), finish)
    piece.box((w - 0.04, d - 0.15, 0.12), (0, -0.05, h - 0.3), kit.material("thing"))
    piece.box((w, d - 0.02, 0.16), (0, -0.01, h - 0.18), finish)
    piece.box((0.2, 0.1, 0.03), (0.15 * w, d / 2 - 0.04, h - 0.04), kit.material("image"))
    return Group((w + 0.02, d + HANDLE, h), pushed_back([piece], HANDLE))


def cart(kit: Kit) -> Group:
    """A trolley with shelves, or with a projector."""
    piece, metal = Piece("cart", kit), kit.material("metal")
    w, d, h = kit.uniform(0.45, 0.8), kit.uniform(0.35, 0.5), kit.uniform(0.65, 0.95)
    four_legs(piece, w, d, h, metal)
    for z in (0.12, 0.5 * h, h - 0.03):
        piece.box((w, d, 0.03), (0, 0, z), metal)
    return Group((w, d, h), [piece], [Top(-w / 2, w / 2, -d / 2, d / 2, h)])


def room_divider(kit: Kit) -> Group:
    """A folding screen or a partition on feet."""
    piece, cloth, h = Piece("divider", kit), kit.material("cloth"), kit.uniform(1.4, 1.8)
    w, folds = kit.uniform(1.2, 1.8), kit.integer(3, 4)
    edges = np.linspace(-w / 2, w / 2, folds + 1)
    for i, (x0, x1) in enumerate(zip(edges[:-1], edges[1:])):
        sign = 1 if i % 2 else -1
        angle = float(np.arctan2(0.24 * sign, x1 - x0))
        piece.box((np.hypot(x1 - x0, 0.24), 0.03, h), ((x0 + x1) / 2, 0, 0.02), cloth, angle)
    return Group((w, 0.3, h), [piece])


def easel_board(kit: Kit) -> Group:
    """A flip chart or a white board on wheels."""
    piece, metal = Piece("whiteboard", kit), kit.material("metal")
    w, h = kit.uniform(0.7, 1.6), kit.uniform(1.6, 1.85)
    piece.box((w, 0.03, 0.55 * h), (0, 0, 0.42 * h), kit.material("board"))
    for x in (-w / 2 + 0.04, w / 2 - 0.04):
        piece.tube((x, 0, 0.04), (x, 0, h), 0.018, metal)
        piece.tube((x, -0.25, 0.03), (x, 0.25, 0.03), 0.018, metal)
    return Group((w, 0.54, h), [piece])


def bicycle(kit: Kit) -> Group:
    piece, tyre, frame = Piece("bicycle", kit), kit.material("thing"), kit.material("thing")
    r, base = kit.uniform(0.3, 0.35), kit.uniform(0.5, 0.54)
    for x in (-base, base):
        angles = np.linspace(0, 2 * np.pi, 15)
        piece.pipe([(x + r * np.cos(a), 0, r + 0.01 + r * np.sin(a)) for a in angles], 0.02, tyre)
    seat, head, crank = (-0.18, 0, 0.85), (0.38, 0, 0.86), (-0.05, 0, 0.3)
    for line in ((crank, seat), (crank, head), ((-0.14, 0, 0.7), (0.36, 0, 0.75)), ((-base, 0, r), crank),
                 ((-base, 0, r), (-0.14, 0, 0.7)), ((base, 0, r), head)):  # fmt: skip
        piece.tube(*line, 0.018, frame)
    piece.tube((0.4, -0.24, 0.92), (0.4, 0.24, 0.92), 0.014, frame)
    piece.cushion((0.24, 0.13, 0.06), (-0.2, 0, 0.86), tyre, 0.025)
    return Group((1.75, 0.5, 0.98), [piece])


def exercise_machine(kit: Kit) -> Group:
    """A treadmill."""
    piece, finish = Piece("treadmill", kit), kit.material("thing")
    piece.box((0.7, 1.5, 0.16), (0, 0, 0), finish)
    for x in (-0.3, 0.3):
        piece.tube((x, -0.6, 0.1), (x, -0.68, 1.2), 0.03, finish)
        piece.tube((x, -0.66, 1.0), (x, -0.2, 0.95), 0.022, finish)
    piece.box((0.6, 0.1, 0.25), (0, -0.68, 1.05), kit.material("image"))
    return Group((0.72, 1.52, 1.3), [piece])


def ironing_board(kit: Kit) -> Group:
    piece, metal, h = Piece("ironing board", kit), kit.material("metal"), kit.uniform(0.8, 0.92)
    piece.cushion((1.2, 0.36, 0.04), (0, 0, h - 0.04), kit.material("cloth"), 0.018)
    for side in (-1, 1):
        piece.tube((side * 0.4, 0.15 * side, 0.02), (-side * 0.35, 0.05 * side, h - 0.03), 0.014, metal)
        piece.tube((side * 0.4, -0.18, 0.02), (side * 0.4, 0.18, 0.02), 0.014, metal)
    return Group((1.24, 0.4, h), [piece])


def fan(kit: Kit) -> Group:
    piece, finish, h = Piece("fan", kit), kit.material("thing"), kit.uniform(1.0, 1.3)
    piece.loft([(0, 0.2, 0.2), (0.03, 0.2, 0.2), (0.05, 0.03, 0.03)], finish)
    piece.tube((0, 0, 0.03), (0, 0, h), 0.02, finish)
    for y in (-0.06, 0.06):
        piece.tube((0, y - 0.04, h), (0, y + 0.04, h), 0.22, finish)
    face = shapes.disc(0.22, 0.22, kit.density(), lambda r: 0.04 * (1 - r**2))
    for turn, y in ((0.0, 0.1), (np.pi, -0.1)):
        upright = shapes.Mesh(face.vertices[:, [0, 2, 1]] * (-1, 1, 1), face.faces)
        piece.add(upright, finish, (0, y, h), turn)
    return Group((0.46, 0.4, h + 0.22), [piece])


def heater(kit: Kit) -> Group:
    """An electric heater on castors."""
    piece, finish, w = Piece("radiator", kit), kit.material("glaze"), kit.uniform(0.35, 0.6)
    for x in np.arange(-w / 2 + 0.03, w / 2, 0.075):
        piece.cushion((0.05, 0.16, 0.52), (x, 0, 0.08), finish, 0.02)
    piece.box((0.1, 0.24, 0.08), (0, 0, 0), finish)
    return Group((w + 0.02, 0.26, 0.62), [piece])


def aquarium(kit: Kit) -> Group:
    piece, w, d, h = Piece("furniture", kit), kit.uniform(0.7, 1.1), 0.4, kit.uniform(1.0, 1.2)
    piece.box((w, d, 0.65), (0, 0, 0), kit.material("board"))
    piece.box((w - 0.02, d - 0.02, h - 0.7), (0, 0, 0.65), kit.material("image"))
    piece.box((w, d, 0.05), (0, 0, h - 0.05), kit.material("board"))
    return Group((w, d, h), [piece])


def storage_bins(kit: Kit) -> Group:
    """Plastic containers in a stack."""
    piece, z = Piece("storage bin", kit), 0.0
    w, d = kit.uniform(0.4, 0.6), kit.uniform(0.35, 0.45)
    for _ in range(kit.integer(1, 3)):
        h = kit.uniform(0.2, 0.35)
        piece.loft([(z, 0.46 * w, 0.46 * d), (z + h, 0.5 * w, 0.5 * d)], kit.material("thing"), power=8)
        piece.add(shapes.disc(0.5 * w, 0.5 * d, kit.density(), None, 8), kit.material("thing"), (0, 0, z + h))
        z += h
    return Group((w, d, z), [piece], [Top(-0.4 * w, 0.4 * w, -0.4 * d, 0.4 * d, z)])
