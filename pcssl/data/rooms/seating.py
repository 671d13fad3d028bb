"""Chairs, sofas and other seats: each function builds one `Group`.

The front faces +y, the back (y = -depth / 2) goes to the wall. Sizes are metres.
"""

from __future__ import annotations

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.materials import Material
from pcssl.data.rooms.piece import Block, Group, Kit, Piece, moved


def four_legs(piece: Piece, width: float, depth: float, height: float, finish: Material) -> None:
    """Round or square legs at the corners of a width x depth rectangle."""
    kit = piece.kit
    thick, square = kit.uniform(0.016, 0.035), kit.chance(0.5)
    for sx in (-1, 1):
        for sy in (-1, 1):
            x, y = sx * (width / 2 - thick), sy * (depth / 2 - thick)
            if square:
                piece.box((2 * thick, 2 * thick, height), (x, y, 0), finish)
            else:
                piece.tube((x, y, 0), (x, y, height), thick, finish)


def _seat_blocks(w: float, d: float, seat: float, top: float) -> list[Block]:
    """The part that goes under a table, and the back that does not."""
    back = -d / 2 + min(0.14, 0.4 * d)
    return [Block(-w / 2, w / 2, -d / 2, d / 2, 0, seat), Block(-w / 2, w / 2, -d / 2, back, seat, top)]


def _sled(piece: Piece, w: float, d: float, seat: float, finish: Material, cantilever: bool) -> None:
    """Bent tubes on both sides instead of legs."""
    for x in (-w / 2 + 0.02, w / 2 - 0.02):
        front, rear = (x, d / 2 - 0.03, 0.02), (x, -d / 2 + 0.03, 0.02)
        path = [(x, d / 2 - 0.03, seat), front, rear]
        piece.pipe(path if cantilever else [*path, (x, -d / 2 + 0.03, seat)], 0.014, finish)
    for y in (-d / 2 + 0.03, d / 2 - 0.03):
        piece.tube((-w / 2 + 0.02, y, 0.02), (w / 2 - 0.02, y, 0.02), 0.014, finish)


def _back(chair: Piece, w: float, rear: float, seat: float, back: float, finish: Material, pad: Material) -> None:
    """Slats, a ladder, a board or a padded back."""
    kit, style = chair.kit, chair.kit.pick(("slats", "ladder", "board", "pad"))
    posts = (-w / 2 + 0.025, w / 2 - 0.025)
    for x in posts if style != "slats" else np.linspace(*posts, kit.integer(4, 6)):
        chair.tube((x, rear, seat), (x, rear, seat + back - 0.02), 0.016, finish)
    if style == "slats":
        chair.box((w, 0.035, 0.09), (0, rear, seat + back - 0.08), finish)
    elif style == "ladder":
        for z in np.linspace(seat + 0.15, seat + back - 0.07, kit.integer(2, 4)):
            chair.box((w, 0.025, 0.06), (0, rear, z), finish)
    elif style == "board":
        chair.box((w, 0.025, 0.6 * back), (0, rear, seat + 0.4 * back), finish)
    else:
        chair.cushion((w, 0.06, 0.65 * back), (0, rear, seat + 0.35 * back), pad, 0.028)


def dining_chair(kit: Kit, finish: Material | None = None) -> Group:
    """A wooden or metal chair on legs or runners."""
    chair, finish, pad = Piece("chair", kit), finish or kit.material("board"), kit.material("cloth")
    w, d, seat, back = kit.uniform(0.4, 0.5), kit.uniform(0.4, 0.5), kit.uniform(0.42, 0.48), kit.uniform(0.35, 0.55)
    if kit.chance(0.7):
        four_legs(chair, w, d, seat - 0.03, finish)
    else:
        _sled(chair, w, d, seat - 0.02, kit.material("metal"), kit.chance(0.4))
    if kit.chance(0.55):
        chair.cushion((w, d, 0.06), (0, 0, seat - 0.04), pad, 0.025)
    else:
        chair.box((w, d, 0.03), (0, 0, seat - 0.03), finish)
    _back(chair, w, -d / 2 + 0.03, seat, back, finish, pad)
    return Group((w, d, seat + back), [chair], blocks=_seat_blocks(w, d, seat + 0.03, seat + back))


def shell_chair(kit: Kit, finish: Material | None = None) -> Group:
    """Seat and back bent from one sheet, on legs or a swivel foot."""
    chair, finish = Piece("chair", kit), finish or kit.material("thing")
    w, d, seat, back = kit.uniform(0.42, 0.52), kit.uniform(0.46, 0.54), kit.uniform(0.42, 0.47), kit.uniform(0.33, 0.45)
    profile = [(d / 2, seat - 0.03), (d / 2 - 0.06, seat), (-d / 2 + 0.16, seat - 0.02), (-d / 2 + 0.06, seat + 0.08),
               (-d / 2 + 0.02, seat + back)]  # fmt: skip
    sheet = shapes.bent_sheet(profile, w, kit.density(), -0.03)
    chair.two_sided(sheet, finish)
    metal = kit.material("metal")
    if kit.chance(0.6):
        four_legs(chair, w, d - 0.08, seat - 0.03, metal)
    else:
        chair.tube((0, 0, 0.03), (0, 0, seat - 0.02), 0.03, metal)
        chair.loft([(0, 0.22, 0.22), (0.03, 0.2, 0.2), (0.05, 0.03, 0.03)], metal)
    return Group((w, d, seat + back), [chair], blocks=_seat_blocks(w, d, seat + 0.03, seat + back))


def office_chair(kit: Kit, finish: Material | None = None) -> Group:
    """A swivel chair on five castors, with or without arms."""
    chair, metal, cloth = Piece("office chair", kit), kit.material("metal"), finish or kit.material("cloth")
    w, seat, back, base = kit.uniform(0.44, 0.52), kit.uniform(0.42, 0.52), kit.uniform(0.4, 0.65), kit.uniform(0.26, 0.31)
    for angle in np.arange(5) * 2 * np.pi / 5 + kit.uniform(0, 1):
        tip = (base * np.cos(angle), base * np.sin(angle), 0.06)
        chair.tube((0, 0, 0.1), tip, 0.025, metal)
        chair.loft([(0, 0.025, 0.025), (0.06, 0.025, 0.025)], metal, (tip[0], tip[1], 0))
    chair.tube((0, 0, 0.08), (0, 0, seat - 0.05), 0.03, metal)
    chair.cushion((w, w, 0.09), (0, 0, seat - 0.06), cloth, 0.04)
    rear, z = -w / 2, seat + 0.08
    profile = [(rear + 0.03, z), (rear - 0.01, z + 0.3 * back), (rear, z + 0.7 * back), (rear - 0.04, z + back)]
    if kit.chance(0.5):
        chair.two_sided(shapes.bent_sheet(profile, 0.92 * w, kit.density(), 0.03), cloth)
    else:
        chair.cushion((0.92 * w, 0.08, back), (0, rear, z), cloth, 0.035)
    chair.box((0.06, 0.03, 0.25), (0, rear - 0.04, seat - 0.05), metal)
    arms = 0.23 if kit.chance(0.55) else 0.03
    if arms > 0.1:
        for x in (-w / 2 - 0.03, w / 2 + 0.03):
            chair.box((0.05, 0.26, 0.03), (x, -0.03, seat + 0.2), metal)
            chair.tube((x, -0.1, seat), (x, -0.1, seat + 0.2), 0.018, metal)
    side = max(w + 0.12, 2 * base)
    return Group((side, side, z + back), [chair], blocks=_seat_blocks(side, side, seat + arms, z + back))


def stool(kit: Kit, finish: Material | None = None) -> Group:
    """Without a back: low, or as high as a bar."""
    piece, finish = Piece("stool", kit), finish or kit.material("board")
    r, h = kit.uniform(0.16, 0.22), kit.pick((0.45, 0.65, 0.75)) + kit.uniform(-0.03, 0.03)
    if kit.chance(0.5):
        piece.tube((0, 0, 0.02), (0, 0, h), 0.03, kit.material("metal"))
        piece.loft([(0, r, r), (0.02, r, r), (0.04, 0.03, 0.03)], kit.material("metal"))
    else:
        four_legs(piece, 1.7 * r, 1.7 * r, h - 0.02, finish)
    piece.loft([(h - 0.04, r, r), (h, r, r), (h + 0.005, 0, 0)], kit.material("cloth"), power=kit.pick((2.0, 6.0)))
    return Group((2 * r, 2 * r, h), [piece])


def seat_row(kit: Kit, seats: int, finish: Material) -> Group:
    """Chairs of a lecture room joined on a beam, with or without writing boards."""
    piece, metal = Piece("chair", kit), kit.material("metal")
    pitch, seat, back = kit.uniform(0.54, 0.6), kit.uniform(0.43, 0.46), kit.uniform(0.38, 0.45)
    w, d = seats * pitch, 0.56
    piece.box((w, 0.05, 0.05), (0, -0.05, 0.32), metal)
    for x in np.linspace(-w / 2 + 0.25, w / 2 - 0.25, max(2, seats // 2 + 1)):
        piece.tube((x, -0.05, 0.02), (x, -0.05, 0.34), 0.025, metal)
        piece.box((0.06, 0.4, 0.03), (x, -0.05, 0), metal)
    pad, boards = kit.chance(0.4), kit.chance(0.4)
    for i in range(seats):
        x = (i + 0.5) * pitch - w / 2
        if pad:
            piece.cushion((0.48, 0.44, 0.07), (x, 0.03, seat - 0.06), finish, 0.03)
            piece.cushion((0.48, 0.06, back), (x, -0.22, seat + 0.06), finish, 0.025)
        else:
            profile = [(0.25, seat), (-0.12, seat - 0.02), (-0.2, seat + 0.08), (-0.25, seat + back)]
            piece.two_sided(shapes.bent_sheet(profile, 0.46, kit.density(), -0.02), finish)
        if boards:
            piece.box((0.22, 0.3, 0.02), (x + 0.14, 0.1, seat + 0.24), kit.material("board"))
    return Group((w, d, seat + back + 0.06), [piece])


def upholstered(kit: Kit, category: str, width: float, seats: int) -> Group:
    """Sofa or armchair: base, seat and back cushions, arms or none; legs or a closed base."""
    sofa, cloth = Piece(category, kit), kit.material("cloth")
    pads = cloth if kit.chance(0.7) else kit.material("cloth")
    d, seat, back = kit.uniform(0.76, 0.98), kit.uniform(0.38, 0.47), kit.uniform(0.3, 0.5)
    arm_h, lift = kit.pick((0.0, 0.14, 0.2, 0.26)), kit.pick((0.0, 0.06, 0.12))
    arm_w = kit.uniform(0.1, 0.24) if arm_h else 0.0
    inner, thick = width - 2 * arm_w, kit.uniform(0.14, 0.24)
    sofa.cushion((width, d, seat - 0.12 - lift), (0, 0, lift), cloth, 0.04)
    if lift:
        four_legs(sofa, width - 0.1, d - 0.1, lift, kit.material("board"))
    sofa.cushion((width, thick, seat + back - lift), (0, -d / 2 + thick / 2, lift), cloth, 0.07)
    for sign in (-1, 1) if arm_h else ():
        at = (sign * (width - arm_w) / 2, 0, lift)
        sofa.cushion((arm_w, d, seat + arm_h - lift), at, cloth, min(0.08, arm_w / 2))
    each, tufted = inner / seats, kit.chance(0.3)
    for i in range(seats):
        x = -inner / 2 + (i + 0.5) * each
        sofa.cushion((each - 0.01, d - thick, 0.16), (x, thick / 2, seat - 0.14), pads, 0.06)
        if not tufted:
            sofa.cushion((each - 0.02, 0.18, back), (x, -d / 2 + thick + 0.06, seat), pads, 0.07)
    pieces = [sofa] + loose_cushions(kit, inner, seat, -d / 2 + thick + 0.25)
    return Group((width, d, seat + back), pieces)


def loose_cushions(kit: Kit, width: float, z: float, y: float) -> list[Piece]:
    """Cushions that lean against a back, side by side."""
    count = kit.integer(0, 3) if width > 1 else 0
    pieces = []
    for x in (np.arange(count) + 0.5) * width / max(count, 1) - width / 2:
        cushion, side = Piece("cushion", kit), kit.uniform(0.32, 0.42)
        lying = shapes.pillow((side, side, 0.15), kit.density())
        # Turned up on its edge, leaning back a little.
        u, v, t = lying.vertices[:, 0], lying.vertices[:, 1] + side / 2, lying.vertices[:, 2]
        upright = np.stack([-u, t - 0.25 * v, 0.95 * v], 1)
        cushion.add(shapes.Mesh(upright, lying.faces), kit.material("cloth"), (x, y, z + 0.01))
        pieces.append(cushion)
    return pieces


def sofa(kit: Kit) -> Group:
    seats = kit.integer(2, 3)
    return upholstered(kit, "couch", seats * kit.uniform(0.62, 0.78) + kit.uniform(0.2, 0.4), seats)


def corner_sofa(kit: Kit) -> Group:
    """A sofa with a long seat at one end."""
    group = upholstered(kit, "couch", kit.uniform(2.0, 2.5), 3)
    (w, d, h), long, wide = group.size, kit.uniform(0.55, 0.75), kit.uniform(0.7, 0.85)
    side, chaise, seat = kit.pick((-1, 1)), Piece("couch", kit), kit.uniform(0.4, 0.45)
    chaise.cushion((wide, long, seat), (side * (w - wide) / 2, (d + long) / 2 - 0.03, 0), kit.material("cloth"), 0.06)
    chaise.colors = [np.broadcast_to(group.pieces[0].colors[0][:1], chaise.colors[0].shape)]
    sofa = group.pieces[0]
    sofa.meshes, sofa.colors = sofa.meshes + chaise.meshes, sofa.colors + chaise.colors
    x0 = side * (w - wide) / 2 - wide / 2
    y, full = -(d + long) / 2, d + long
    blocks = [Block(-w / 2, w / 2, y, y + d, 0, h), Block(x0, x0 + wide, y + d, y + full, 0, seat)]
    return Group((w, full, h), moved(group.pieces, (0, -long / 2, 0)), blocks=blocks)


def armchair(kit: Kit) -> Group:
    return upholstered(kit, "armchair", kit.uniform(0.72, 1.0), 1)


def ottoman(kit: Kit) -> Group:
    piece, cloth = Piece("ottoman", kit), kit.material("cloth")
    w, d, h = kit.uniform(0.4, 0.9), kit.uniform(0.4, 0.6), kit.uniform(0.35, 0.48)
    if kit.chance(0.5):
        piece.cushion((w, d, h), (0, 0, 0), cloth, 0.07)
    else:
        piece.loft([(0, w / 2, w / 2), (h - 0.04, w / 2, w / 2), (h, w / 2.3, w / 2.3), (h, 0, 0)], cloth)
        d = w
    return Group((w, d, h), [piece])


def bench(kit: Kit) -> Group:
    piece, finish = Piece("bench", kit), kit.material("board")
    w, d, h = kit.uniform(0.9, 1.5), kit.uniform(0.32, 0.45), kit.uniform(0.4, 0.5)
    four_legs(piece, w, d, h - 0.04, finish)
    piece.box((w, d, 0.05), (0, 0, h - 0.05), finish)
    return Group((w, d, h), [piece])
