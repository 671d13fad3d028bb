"""Small things on floors and furniture. They have categories outside the 20 classes; some of
them, drawn at random, are left without any annotation. Sizes are metres."""

from __future__ import annotations

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.piece import Group, Kit, Piece


def _single(piece: Piece, w: float, d: float, h: float, skip: float = 0.3) -> Group:
    if piece.kit.chance(skip):
        piece.category = None
    return Group((w, d, h), [piece])


# ---------------------------------------------------------------- boxes, bags, books


def carton(kit: Kit) -> Group:
    """Shut, or open with its flaps up."""
    piece, finish = Piece("box", kit), kit.material(kit.pick(("board", "thing")))
    w, d, h = kit.uniform(0.2, 0.55), kit.uniform(0.2, 0.45), kit.uniform(0.12, 0.45)
    piece.box((w, d, h), (0, 0, 0), finish)
    if kit.chance(0.3):
        for side in (-1, 1):
            flap = shapes.bent_sheet([(0, 0), (side * 0.3 * d, 0.08)], w, kit.density())
            piece.two_sided(flap, finish, (0, side * d / 2, h))
    return _single(piece, w, 1.6 * d, h + 0.08)


def small_carton(kit: Kit) -> Group:
    piece = Piece("box", kit)
    w, d, h = kit.uniform(0.1, 0.3), kit.uniform(0.1, 0.25), kit.uniform(0.06, 0.25)
    piece.box((w, d, h), (0, 0, 0), kit.material("thing"))
    return _single(piece, w, d, h)


def book_stack(kit: Kit) -> Group:
    piece, z = Piece("book", kit), 0.0
    w, d = kit.uniform(0.18, 0.26), kit.uniform(0.22, 0.32)
    for _ in range(kit.integer(1, 5)):
        thick = kit.uniform(0.02, 0.05)
        size = (w * kit.uniform(0.8, 1), d * kit.uniform(0.8, 1), thick)
        piece.box(size, (0, 0, z), kit.material("thing"), kit.uniform(-0.3, 0.3))
        z += thick
    return _single(piece, 1.3 * w, 1.2 * d, z)


def paper_stack(kit: Kit) -> Group:
    piece, h = Piece("paper", kit), kit.uniform(0.015, 0.12)
    piece.box((0.21, 0.3, h), (0, 0, 0), kit.material("ceiling"), kit.uniform(-0.2, 0.2))
    return _single(piece, 0.3, 0.36, h, 0.5)


def bag(kit: Kit) -> Group:
    """A handbag or shopping bag."""
    piece, cloth = Piece("bag", kit), kit.material("cloth")
    w, d, h = kit.uniform(0.25, 0.45), kit.uniform(0.14, 0.24), kit.uniform(0.25, 0.42)
    piece.cushion((w, d, h), (0, 0, 0), cloth, 0.05)
    for y in (-0.04, 0.04):
        piece.pipe(((-0.08, y, h - 0.02), (-0.05, y, h + 0.12), (0.05, y, h + 0.12), (0.08, y, h - 0.02)), 0.01, cloth)
    return _single(piece, w, d, h + 0.12)


def backpack(kit: Kit) -> Group:
    piece, cloth = Piece("backpack", kit), kit.material("cloth")
    w, h = kit.uniform(0.28, 0.34), kit.uniform(0.4, 0.52)
    piece.cushion((w, 0.18, h), (0, -0.03, 0), cloth, 0.08)
    piece.cushion((0.75 * w, 0.1, 0.45 * h), (0, 0.08, 0.03), cloth, 0.04)
    return _single(piece, w, 0.3, h)


def suitcase(kit: Kit) -> Group:
    piece, finish = Piece("suitcase", kit), kit.material("thing")
    w, d, h = kit.uniform(0.35, 0.5), kit.uniform(0.2, 0.28), kit.uniform(0.5, 0.72)
    piece.cushion((w, d, h), (0, 0, 0.03), finish, 0.05)
    piece.pipe(((-0.1, -0.06, h), (-0.1, -0.06, h + 0.25), (0.1, -0.06, h + 0.25), (0.1, -0.06, h)), 0.011, kit.material("metal"))
    return _single(piece, w, d, h + 0.25)


def basket(kit: Kit) -> Group:
    piece, r, h = Piece("basket", kit), kit.uniform(0.14, 0.22), kit.uniform(0.18, 0.32)
    piece.loft([(0, 0.8 * r, 0.8 * r), (h, r, r)], kit.material("board"))
    piece.add(shapes.disc(0.97 * r, 0.97 * r, kit.density(), lambda t: 0.06 * (1 - t**2)), kit.material("cloth"), (0, 0, h - 0.05))
    return _single(piece, 2 * r, 2 * r, h)


def bucket(kit: Kit) -> Group:
    piece, finish, r, h = Piece("bucket", kit), kit.material("thing"), kit.uniform(0.12, 0.15), kit.uniform(0.22, 0.3)
    skin = shapes.loft([(0, 0.8 * r, 0.8 * r), (h, r, r)], kit.density())
    piece.add(skin, finish)
    piece.add(shapes.flipped(skin), finish)
    return _single(piece, 2 * r, 2 * r, h)


# ---------------------------------------------------------------- electric things


def _screen(piece: Piece, width: float, height: float, z: float, lean: float = 0.0) -> None:
    """A flat screen whose lower edge is at z."""
    case = piece.kit.material("thing")
    piece.box((width, 0.035, height), (0, lean, z), case)
    piece.box((width - 0.03, 0.008, height - 0.03), (0, lean + 0.021, z + 0.015), piece.kit.material("image"))


def monitor(kit: Kit) -> Group:
    """One screen on a foot, or two."""
    piece, w, metal = Piece("monitor", kit), kit.uniform(0.42, 0.65), kit.material("thing")
    _screen(piece, w, 0.6 * w, 0.1)
    piece.box((0.05, 0.04, 0.16), (0, -0.03, 0), metal)
    piece.box((0.24, 0.18, 0.015), (0, 0, 0), metal)
    return _single(piece, w, 0.2, 0.1 + 0.6 * w, 0.1)


def television(kit: Kit) -> Group:
    piece, w, metal = Piece("tv", kit), kit.uniform(0.75, 1.2), kit.material("thing")
    _screen(piece, w, 0.57 * w, 0.06)
    for x in (-0.3 * w, 0.3 * w):
        piece.box((0.04, 0.2, 0.07), (x, 0, 0), metal)
    return _single(piece, w, 0.22, 0.06 + 0.57 * w, 0.05)


def laptop(kit: Kit) -> Group:
    piece, case, w = Piece("laptop", kit), kit.material("metal"), kit.uniform(0.3, 0.38)
    piece.box((w, 0.24, 0.018), (0, 0.02, 0), case)
    piece.box((w - 0.06, 0.1, 0.004), (0, 0.0, 0.018), kit.material("thing"))
    lid = shapes.bent_sheet([(-0.1, 0.02), (-0.16, 0.23)], w, kit.density())
    piece.add(lid, kit.material("image"))
    piece.add(shapes.flipped(lid), case)
    return _single(piece, w, 0.33, 0.23, 0.2)


def keyboard(kit: Kit) -> Group:
    piece = Piece("keyboard", kit)
    piece.box((0.42, 0.14, 0.022), (0, 0, 0), kit.material("thing"))
    return _single(piece, 0.42, 0.14, 0.022, 0.4)


def computer_tower(kit: Kit) -> Group:
    piece, w, d, h = Piece("computer tower", kit), kit.uniform(0.17, 0.21), kit.uniform(0.38, 0.48), kit.uniform(0.38, 0.47)
    piece.box((w, d, h), (0, 0, 0), kit.material("thing"))
    piece.box((0.8 * w, 0.01, 0.3 * h), (0, d / 2, 0.6 * h), kit.material("image"))
    return _single(piece, w, d + 0.02, h, 0.2)


def printer(kit: Kit) -> Group:
    piece, finish = Piece("printer", kit), kit.material("thing")
    w, d, h = kit.uniform(0.38, 0.48), kit.uniform(0.32, 0.42), kit.uniform(0.16, 0.32)
    piece.cushion((w, d, h), (0, 0, 0), finish, 0.025)
    piece.box((0.7 * w, 0.12, 0.02), (0, d / 2 + 0.05, 0.05), kit.material("thing"))
    return _single(piece, w, d + 0.22, h, 0.2)


def speaker(kit: Kit) -> Group:
    piece, w, h = Piece("speaker", kit), kit.uniform(0.15, 0.24), kit.uniform(0.25, 0.9)
    piece.box((w, w, h), (0, 0, 0), kit.material("thing"))
    return _single(piece, w, w, h)


def telephone(kit: Kit) -> Group:
    piece, finish = Piece("telephone", kit), kit.material("thing")
    piece.box((0.17, 0.2, 0.04), (0.03, 0, 0), finish)
    piece.cushion((0.05, 0.2, 0.04), (-0.06, 0, 0.03), finish, 0.015)
    return _single(piece, 0.24, 0.22, 0.08, 0.5)


def projector(kit: Kit) -> Group:
    piece = Piece("projector", kit)
    piece.cushion((0.32, 0.26, 0.12), (0, 0, 0), kit.material("thing"), 0.03)
    piece.tube((0.08, 0.13, 0.06), (0.08, 0.16, 0.06), 0.035, kit.material("image"))
    return _single(piece, 0.34, 0.34, 0.13)


def lamp(kit: Kit, tall: bool = False) -> Group:
    """A foot, a stem and a shade, or an arm with a head."""
    piece, metal, cloth = Piece("lamp", kit), kit.material("metal"), kit.material("cloth")
    h = kit.uniform(1.3, 1.75) if tall else kit.uniform(0.32, 0.6)
    foot, shade = (0.15, kit.uniform(0.14, 0.24)) if tall else (0.08, kit.uniform(0.08, 0.15))
    piece.loft([(0, foot, foot), (0.025, foot, foot), (0.03, 0.02, 0.02)], metal)
    if kit.chance(0.25):
        piece.pipe(((0, 0, 0.02), (0, -0.06, 0.8 * h), (0, 0.5 * shade, h)), 0.012, metal)
        piece.loft([(h - 0.05, 0.06, 0.09), (h, 0.05, 0.06), (h + 0.02, 0, 0)], metal, (0, 0.5 * shade, 0))
        return _single(piece, 0.3, 0.3, h + 0.02, 0.1)
    piece.tube((0, 0, 0.02), (0, 0, h - 0.1), 0.014, metal)
    top = shade * kit.uniform(0.5, 1.0)
    cone = shapes.loft([(h - 1.2 * shade, shade, shade), (h, top, top)], kit.density())
    piece.two_sided(cone, cloth)
    return _single(piece, 2 * shade, 2 * shade, h, 0.1)


def floor_lamp(kit: Kit) -> Group:
    return lamp(kit, tall=True)


def appliance(kit: Kit) -> Group:
    """A microwave, a toaster or a coffee machine."""
    kind = kit.pick(("microwave", "toaster", "coffee maker"))
    piece, finish = Piece(kind, kit), kit.material("thing")
    if kind == "microwave":
        w, d, h = kit.uniform(0.44, 0.52), kit.uniform(0.32, 0.38), kit.uniform(0.25, 0.3)
        piece.box((w, d, h), (0, 0, 0), finish)
        piece.box((0.68 * w, 0.012, 0.8 * h), (-0.1 * w, d / 2 + 0.006, 0.1 * h), kit.material("image"))
    elif kind == "toaster":
        w, d, h = 0.28, 0.17, 0.19
        piece.cushion((w, d, h), (0, 0, 0), finish, 0.05)
    else:
        w, d, h = kit.uniform(0.18, 0.28), kit.uniform(0.25, 0.34), kit.uniform(0.3, 0.36)
        piece.box((w, 0.45 * d, h), (0, -0.27 * d, 0), finish)
        piece.box((w, d, 0.04), (0, 0, 0), finish)
        piece.box((w, 0.9 * d, 0.1), (0, -0.03, h - 0.1), finish)
    return _single(piece, w, d + 0.02, h, 0.4)


# ---------------------------------------------------------------- dishes and food


def bottles(kit: Kit) -> Group:
    """Bottles, cups and jars in a row."""
    piece, count = Piece("bottle", kit), kit.integer(1, 4)
    for i in range(count):
        r, h, x = kit.uniform(0.025, 0.045), kit.uniform(0.08, 0.3), 0.1 * (i - (count - 1) / 2)
        piece.loft([(0, r, r), (0.7 * h, r, r), (0.85 * h, 0.4 * r, 0.4 * r), (h, 0.4 * r, 0.4 * r), (h, 0, 0)],
                   kit.material("thing"), (x, kit.uniform(-0.03, 0.03), 0))  # fmt: skip
    return _single(piece, 0.1 * count, 0.16, 0.3, 0.7)


def dishes(kit: Kit) -> Group:
    """A plate, with a bowl and a cup."""
    piece, glaze = Piece("plate", kit), kit.material("glaze")
    r = kit.uniform(0.1, 0.14)
    piece.add(shapes.disc(r, r, kit.density(), lambda t: 0.012 + 0.015 * t**3), glaze)
    if kit.chance(0.5):
        bowl = shapes.bowl(0.07, 0.07, 0.055, 0.7 * kit.step)
        piece.two_sided(bowl, kit.material("glaze"), (0, 0, 0.07))
    cup = kit.material("glaze")
    piece.loft([(0, 0.03, 0.03), (0.09, 0.04, 0.04), (0.09, 0.034, 0.034), (0.02, 0.028, 0.028)], cup, (r + 0.06, 0.03, 0))
    return _single(piece, 2 * r + 0.2, 2 * r, 0.1, 0.7)


def dish_rack(kit: Kit) -> Group:
    piece, metal = Piece("dish rack", kit), kit.material("metal")
    piece.box((0.4, 0.28, 0.03), (0, 0, 0), metal)
    for x in np.arange(-0.16, 0.17, 0.045):
        if kit.chance(0.6):
            piece.tube((x, 0, 0.13), (x + 0.012, 0, 0.13), 0.1, kit.material("glaze"))
    return _single(piece, 0.42, 0.3, 0.24, 0.5)


def pot(kit: Kit) -> Group:
    """A pot with a lid, or a kettle."""
    piece, metal, r, h = Piece("coffee kettle", kit), kit.material("metal"), kit.uniform(0.08, 0.13), kit.uniform(0.1, 0.2)
    piece.loft([(0, r, r), (h, r, r), (h + 0.03, 0.3 * r, 0.3 * r), (h + 0.03, 0, 0)], metal)
    piece.pipe(((r, 0, 0.8 * h), (r + 0.09, 0, 0.9 * h)), 0.013, kit.material("thing"))
    return _single(piece, 2 * r + 0.2, 2 * r, h + 0.03, 0.6)


def fruit_bowl(kit: Kit) -> Group:
    piece, r = Piece("bowl", kit), kit.uniform(0.12, 0.17)
    piece.two_sided(shapes.bowl(r, r, 0.08, kit.density()), kit.material("glaze"), (0, 0, 0.08))
    for angle in np.arange(kit.integer(2, 5)) * 1.4:
        ball = [(0, 0, 0), (0.012, 0.03, 0.03), (0.04, 0.04, 0.04), (0.07, 0.03, 0.03), (0.08, 0, 0)]
        piece.loft(ball, kit.material("leaf"), (0.5 * r * np.cos(angle), 0.5 * r * np.sin(angle), 0.04))
    return _single(piece, 2 * r, 2 * r, 0.14, 0.5)


# ---------------------------------------------------------------- plants, cloth, ornaments


def plant(kit: Kit, least: float = 0.5, most: float = 1.3) -> Group:
    """A pot with leaves: bent strips that lean outwards, or a bush on a stem."""
    piece, green = Piece("plant", kit), kit.material("leaf")
    h = kit.uniform(least, most)
    r = 0.06 + 0.08 * h
    piece.loft([(0, 0.75 * r, 0.75 * r), (1.8 * r, r, r)], kit.material("glaze"))
    piece.add(shapes.disc(r, r, kit.density()), kit.material("board"), (0, 0, 1.7 * r))
    if kit.chance(0.4):
        piece.tube((0, 0, 1.7 * r), (0, 0, 0.7 * h), 0.02, kit.material("board"))
        for _ in range(max(4, int(9 * h))):
            size = kit.uniform(0.1, 0.22) * h
            at = kit.rng.normal(0, 0.13 * h, 2)
            piece.pillow((size, size, 0.5 * size), (at[0], at[1], h * kit.uniform(0.5, 0.9)), green, kit.uniform(0, 3))
    else:
        for angle in np.arange(int(7 + 4 * h)) * 2.4 + kit.uniform(0, 1):
            leaf = _leaf(kit, h * kit.uniform(0.5, 0.9), h * kit.uniform(0.15, 0.35))
            piece.two_sided(leaf, green, (0, 0, 1.6 * r), angle)
    return _single(piece, 0.7 * h, 0.7 * h, h, 0.2)


def pot_plant(kit: Kit) -> Group:
    return plant(kit, 0.2, 0.45)


def _leaf(kit: Kit, height: float, reach: float) -> shapes.Mesh:
    wide = kit.uniform(0.06, 0.13)

    def fn(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        width = wide * np.sin(np.pi * np.clip(v * 0.95 + 0.05, 0, 1))
        return np.stack([reach * v**2, (0.5 - u) * width, height * (v - 0.25 * v**3)], 1)

    return shapes.surface(fn, 3, shapes.cells(height, kit.density()))


def vase(kit: Kit) -> Group:
    piece, r, h = Piece("decoration", kit), kit.uniform(0.05, 0.09), kit.uniform(0.15, 0.35)
    bulge = kit.uniform(0.25, 0.6)
    piece.loft([(0, 0.6 * r, 0.6 * r), (bulge * h, r, r), (0.9 * h, 0.4 * r, 0.4 * r), (h, 0.5 * r, 0.5 * r)], kit.material("glaze"))
    return _single(piece, 2 * r, 2 * r, h, 0.5)


def photo_frame(kit: Kit) -> Group:
    """A small picture that stands."""
    piece, w, h = Piece("picture", kit), kit.uniform(0.14, 0.3), kit.uniform(0.16, 0.32)
    board = shapes.bent_sheet([(0.0, 0.0), (-0.06, h)], w, kit.density())
    piece.add(board, kit.material("image"))
    piece.add(shapes.flipped(board), kit.material("board"))
    return Group((w, 0.14, h), [piece])


def folded_cloth(kit: Kit) -> Group:
    """Towels, clothes or a blanket in a heap."""
    piece = Piece(kit.pick(("clothes", "blanket", "towel")), kit)
    w, d, h = kit.uniform(0.25, 0.5), kit.uniform(0.22, 0.4), kit.uniform(0.08, 0.18)
    piece.pillow((w, d, h), (0, 0, 0), kit.material("cloth"), kit.uniform(-0.4, 0.4))
    if kit.chance(0.5):
        piece.pillow((0.8 * w, 0.7 * d, 0.8 * h), (0.02, 0.01, 0.6 * h), kit.material("cloth"), kit.uniform(-0.5, 0.5))
    return _single(piece, 1.15 * w, 1.2 * d, 1.4 * h)


def cushion(kit: Kit) -> Group:
    piece, side = Piece("cushion", kit), kit.uniform(0.35, 0.6)
    piece.pillow((side, side, 0.35 * side), (0, 0, 0), kit.material("cloth"))
    return _single(piece, side, side, 0.35 * side, 0.2)


def shoes(kit: Kit) -> Group:
    piece, finish = Piece("shoe", kit), kit.material("thing")
    for x in (-0.06, 0.06):
        piece.cushion((0.09, 0.27, 0.06), (x, 0, 0), finish, 0.028)
        piece.cushion((0.08, 0.12, 0.1), (x, -0.07, 0), finish, 0.035)
    return _single(piece, 0.24, 0.28, 0.1, 0.4)


def ball(kit: Kit) -> Group:
    piece, r = Piece("ball", kit), kit.uniform(0.09, 0.3)
    angles = np.linspace(-np.pi / 2, np.pi / 2, 9)
    rings = [(r + r * np.sin(a), r * np.cos(a), r * np.cos(a)) for a in angles]
    piece.loft(rings, kit.material("thing"))
    return _single(piece, 2 * r, 2 * r, 2 * r)


def toy(kit: Kit) -> Group:
    """A stuffed animal, sitting."""
    piece, fur = Piece("stuffed animal", kit), kit.material("cloth")
    s = kit.uniform(0.8, 1.8)
    for size, z in (((0.2, 0.17, 0.2), 0.0), ((0.15, 0.14, 0.14), 0.18)):
        piece.cushion([s * v for v in size], (0, 0, s * z), fur, 0.07 * s)
    for x in (-0.07, 0.07):
        piece.cushion((0.07 * s, 0.16 * s, 0.07 * s), (x * s, 0.1 * s, 0), fur, 0.03 * s)
        piece.cushion((0.05 * s, 0.03 * s, 0.06 * s), (x * s, 0, 0.29 * s), fur, 0.012 * s)
    return _single(piece, 0.22 * s, 0.36 * s, 0.36 * s)


def guitar(kit: Kit) -> Group:
    """On a stand."""
    piece, wood = Piece("guitar", kit), kit.material("board")
    for z, r in ((0.12, 0.19), (0.36, 0.15)):
        piece.tube((0, -0.08, z + r * 0.9), (0, 0.02, z + r * 0.9), r, wood)
        face = shapes.disc(r, r, kit.density())
        upright = shapes.Mesh(face.vertices[:, [0, 2, 1]] * (-1, 1, 1), face.faces)
        piece.add(upright, wood, (0, 0.02, z + r * 0.9))
        piece.add(upright, wood, (0, -0.08, z + r * 0.9), np.pi)
    piece.box((0.06, 0.03, 0.5), (0, 0.0, 0.55), kit.material("board"))
    piece.pipe(((-0.15, 0.15, 0), (0, -0.1, 0.3), (0.15, 0.15, 0)), 0.014, kit.material("metal"))
    return _single(piece, 0.42, 0.34, 1.06)


def soap(kit: Kit) -> Group:
    piece, r, h = Piece("soap dispenser", kit), kit.uniform(0.03, 0.045), kit.uniform(0.1, 0.18)
    piece.loft([(0, r, r), (0.75 * h, r, r), (0.8 * h, 0.3 * r, 0.3 * r), (h, 0.3 * r, 0.3 * r), (h, 0, 0)], kit.material("glaze"))
    return _single(piece, 2 * r, 2 * r, h, 0.6)


def paper_roll(kit: Kit) -> Group:
    piece, r, h = Piece("toilet paper", kit), 0.055, kit.uniform(0.1, 0.25)
    piece.loft([(0, r, r), (h, r, r), (h, 0.02, 0.02)], kit.material("ceiling"))
    return _single(piece, 2 * r, 2 * r, h, 0.5)


def vacuum_cleaner(kit: Kit) -> Group:
    piece, finish = Piece("vacuum cleaner", kit), kit.material("thing")
    piece.cushion((0.28, 0.4, 0.24), (0, 0, 0), finish, 0.09)
    piece.pipe(((0, 0.2, 0.18), (0.1, 0.32, 0.5), (0.05, 0.42, 0.9), (0.05, 0.5, 0.05)), 0.02, kit.material("metal"))
    return _single(piece, 0.4, 1.05, 0.95)


def broom(kit: Kit) -> Group:
    """Upright in its corner."""
    piece, h = Piece("broom", kit), kit.uniform(1.2, 1.5)
    piece.box((0.3, 0.07, 0.12), (0, 0, 0), kit.material("thing"))
    piece.tube((0, 0, 0.1), (0, -0.02, h), 0.014, kit.material("board"))
    return _single(piece, 0.32, 0.1, h, 0.5)


def mat(kit: Kit, most: float = 2.2) -> Group:
    """A rug or bath mat: thin, and one may stand on it."""
    piece, round_one = Piece("mat", kit), kit.chance(0.2)
    w, d = kit.uniform(0.6, most), kit.uniform(0.45, 0.7 * most)
    cloth = kit.material("cloth")
    if round_one:
        piece.add(shapes.disc(d / 2, d / 2, kit.density()), cloth, (0, 0, 0.012))
        return _single(piece, d, d, 0.012)
    piece.box((w, d, 0.015), (0, 0, 0), cloth)
    return _single(piece, w, d, 0.015)


def ceiling_lamp(kit: Kit, height: float) -> Group:
    """Hanging from the ceiling, z = 0 is the floor."""
    piece, r = Piece("light", kit), kit.uniform(0.15, 0.3)
    drop = kit.uniform(0.05, 0.6)
    low = height - drop - 0.2
    piece.tube((0, 0, low + 0.2), (0, 0, height - 0.02), 0.012, kit.material("metal"))
    shade = shapes.loft([(low, r, r), (low + 0.2, kit.uniform(0.2, 1.0) * r, kit.uniform(0.2, 1.0) * r)], kit.density())
    piece.two_sided(shade, kit.material("cloth"))
    return _single(piece, 2 * r, 2 * r, drop + 0.2, 0.2)
