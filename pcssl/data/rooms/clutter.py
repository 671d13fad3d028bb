"""Small things on floors and furniture. Most have categories outside the 20 classes; some of
them, drawn at random, are left without any annotation."""

from __future__ import annotations

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.furniture import screen
from pcssl.data.rooms.piece import Group, Kit, Piece


def _single(piece: Piece, w: float, d: float, h: float, skip: float = 0.3) -> Group:
    if piece.kit.chance(skip):
        piece.category = None
    return Group((w, d, h), [piece])


def carton(kit: Kit) -> Group:
    piece, finish = Piece("box", kit), kit.material()
    w, d, h = kit.uniform(0.2, 0.55), kit.uniform(0.2, 0.45), kit.uniform(0.12, 0.45)
    piece.box((w, d, h), (0, 0, 0), finish)
    return _single(piece, w, d, h)


def small_carton(kit: Kit) -> Group:
    piece = Piece("box", kit)
    w, d, h = kit.uniform(0.1, 0.3), kit.uniform(0.1, 0.25), kit.uniform(0.06, 0.25)
    piece.box((w, d, h), (0, 0, 0), kit.material())
    return _single(piece, w, d, h)


def book_stack(kit: Kit) -> Group:
    piece, z = Piece("book", kit), 0.0
    w, d = kit.uniform(0.18, 0.26), kit.uniform(0.22, 0.32)
    for _ in range(kit.integer(1, 5)):
        thick = kit.uniform(0.02, 0.05)
        size = (w * kit.uniform(0.8, 1), d * kit.uniform(0.8, 1), thick)
        piece.box(size, (0, 0, z), kit.material(), kit.uniform(-0.3, 0.3))
        z += thick
    return _single(piece, w, d, z)


def monitor(kit: Kit) -> Group:
    w = kit.uniform(0.42, 0.7)
    return Group((w, 0.2, 0.5), [screen(kit, "monitor", w, 0.0)])


def keyboard(kit: Kit) -> Group:
    piece = Piece("keyboard", kit)
    piece.box((0.42, 0.14, 0.02), (0, 0, 0), kit.material())
    return Group((0.42, 0.14, 0.02), [piece])


def lamp(kit: Kit, tall: bool = False) -> Group:
    """A foot, a stem and a shade that is open below."""
    piece, metal = Piece("lamp", kit), kit.material()
    h = kit.uniform(1.3, 1.7) if tall else kit.uniform(0.35, 0.6)
    foot, shade = (0.15, 0.2) if tall else (0.08, 0.14)
    piece.loft([(0, foot, foot), (0.025, foot, foot), (0.03, 0.02, 0.02)], metal)
    piece.tube((0, 0, 0.02), (0, 0, h - 0.1), 0.014, metal)
    cone = shapes.loft([(h - 0.24, shade, shade), (h, 0.6 * shade, 0.6 * shade)], kit.density())
    cloth = kit.material()
    piece.add(cone, cloth)
    piece.add(shapes.flipped(cone), cloth)
    return _single(piece, 2 * shade, 2 * shade, h, 0.1)


def floor_lamp(kit: Kit) -> Group:
    return lamp(kit, tall=True)


def trash_can(kit: Kit) -> Group:
    piece, finish = Piece("trash can", kit), kit.material()
    r, h, power = kit.uniform(0.12, 0.19), kit.uniform(0.28, 0.6), kit.pick((2.0, 6.0))
    skin = [(0, 0.82 * r, 0.82 * r), (h, r, r)]
    piece.loft(skin, finish, power=power)
    inside = shapes.loft([(h, r - 0.006, r - 0.006), (0.02, 0.8 * r, 0.8 * r)], kit.density(), power)
    piece.add(inside, finish)
    piece.add(shapes.disc(0.8 * r, 0.8 * r, kit.density(), None, power), finish, (0, 0, 0.03))
    return Group((2 * r, 2 * r, h), [piece])


def plant(kit: Kit) -> Group:
    """A pot with leaves: bent strips that lean outwards."""
    piece, green = Piece("plant", kit), kit.material()
    r, h = kit.uniform(0.1, 0.17), kit.uniform(0.4, 1.1)
    piece.loft([(0, 0.75 * r, 0.75 * r), (1.8 * r, r, r)], kit.material())
    piece.add(shapes.disc(r, r, kit.density()), kit.material(), (0, 0, 1.7 * r))
    for angle in np.arange(9) * 2.4 + kit.uniform(0, 1):
        piece.add(_leaf(kit, h * kit.uniform(0.6, 1.0), kit.uniform(0.15, 0.3)), green, (0, 0, 1.6 * r), angle)
    return _single(piece, 0.5, 0.5, h + 1.6 * r, 0.2)


def _leaf(kit: Kit, height: float, reach: float) -> shapes.Mesh:
    wide = kit.uniform(0.08, 0.14)

    def fn(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        width = wide * np.sin(np.pi * np.clip(v * 0.95 + 0.05, 0, 1))
        return np.stack([reach * v**2, (0.5 - u) * width, height * (v - 0.25 * v**3)], 1)

    leaf = shapes.surface(fn, 3, shapes.cells(height, kit.density()))
    return shapes.merge([leaf, shapes.flipped(leaf)])


def bag(kit: Kit) -> Group:
    piece, cloth = Piece("bag", kit), kit.material()
    w, d, h = kit.uniform(0.3, 0.45), kit.uniform(0.16, 0.24), kit.uniform(0.3, 0.45)
    piece.cushion((w, d, h), (0, 0, 0), cloth, 0.07)
    piece.tube((-0.08, 0, h - 0.02), (0.08, 0, h + 0.05), 0.012, cloth)
    return _single(piece, w, d, h)


def bottle_group(kit: Kit) -> Group:
    """Bottles, cups and jars: never annotated."""
    piece = Piece(None, kit)
    for x in np.arange(kit.integer(2, 4)) * 0.1 - 0.12:
        r, h = kit.uniform(0.025, 0.045), kit.uniform(0.08, 0.28)
        piece.loft([(0, r, r), (0.7 * h, r, r), (0.85 * h, 0.4 * r, 0.4 * r), (h, 0.4 * r, 0.4 * r), (h, 0, 0)],
                   kit.material(), (x, kit.uniform(-0.04, 0.04), 0))  # fmt: skip
    return Group((0.42, 0.16, 0.28), [piece])


def appliance(kit: Kit) -> Group:
    """A microwave or coffee machine: a box with a panel, never annotated."""
    piece, finish = Piece(None, kit), kit.material()
    w, d, h = kit.uniform(0.22, 0.5), kit.uniform(0.25, 0.36), kit.uniform(0.22, 0.34)
    piece.cushion((w, d, h), (0, 0, 0), finish, 0.02)
    piece.box((0.7 * w, 0.012, 0.7 * h), (-0.1 * w, d / 2 + 0.006, 0.15 * h), kit.material())
    return Group((w, d, h), [piece])


def mat(kit: Kit) -> Group:
    """A rug or bath mat: thin, and one may stand on it."""
    piece = Piece("mat", kit)
    w, d = kit.uniform(0.6, 2.0), kit.uniform(0.45, 1.4)
    piece.box((w, d, 0.015), (0, 0, 0), kit.material())
    return _single(piece, w, d, 0.015)


ON_FLOOR = (carton, carton, bag, plant, floor_lamp, trash_can, book_stack)
ON_DESK = (monitor, monitor, keyboard, book_stack, lamp, small_carton, bottle_group)
ON_TABLE = (book_stack, bottle_group, bottle_group, small_carton, plant, lamp)
ON_COUNTER = (appliance, appliance, bottle_group, small_carton)
ON_CABINET = (book_stack, small_carton, lamp, plant, carton)
