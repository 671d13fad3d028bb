"""Room types: what stands in each and by which rules it is arranged.

Every function takes an empty `Room` with doors and windows and fills it. What does not fit is
left out, so the same recipe gives sparse and crowded rooms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pcssl.data.rooms import clutter, fixtures, furniture, openings
from pcssl.data.rooms.layout import Footprint, Placed, Rect, Room, Spot, Wall, new_room
from pcssl.data.rooms.piece import Group, Kit


def bedroom(room: Room) -> None:
    kit = room.kit
    for _ in range(2 if kit.chance(0.2) else 1):
        spot = room.against_wall(furniture.bed(kit), tries=40)
        if spot:
            for side in (-1, 1):
                if kit.chance(0.7):
                    small = kit.pick((furniture.nightstand, furniture.nightstand, furniture.end_table))
                    _topped(room, room.beside(small(kit), spot, side, kit.uniform(0.03, 0.12)), clutter.ON_CABINET, 1)
    _along_walls(room, (furniture.wardrobe, furniture.dresser, furniture.storage_cabinet), 2)
    if kit.chance(0.5):
        _work_place(room)
    if kit.chance(0.4):
        _loose(room, (furniture.armchair, furniture.ottoman, furniture.bench))
    if kit.chance(0.3):
        _along_walls(room, (furniture.bookshelf, furniture.tv_stand), 1)


def living_room(room: Room) -> None:
    kit = room.kit
    for _ in range(kit.integer(1, 2)):
        spot = room.against_wall(furniture.sofa(kit), tries=60, front=0.5)
        if not spot:
            continue
        ahead = spot.group.size[1] / 2 + kit.uniform(0.3, 0.4)
        table = furniture.coffee_table(kit)
        x, y = spot.at(kit.uniform(-0.3, 0.3), ahead + table.size[1] / 2)
        _topped(room, room.stand(table, x, y, spot.angle), clutter.ON_TABLE, 2)
        for side in (-1, 1):
            if kit.chance(0.5):
                _topped(room, room.beside(furniture.end_table(kit), spot, side, 0.08), clutter.ON_CABINET, 1)
    _along_walls(room, (furniture.tv_stand,), 1)
    for _ in range(kit.integer(0, 2)):
        _loose(room, (furniture.armchair, furniture.armchair, furniture.ottoman))
    _along_walls(room, (furniture.bookshelf, furniture.bookshelf, furniture.storage_cabinet), kit.integer(1, 3))
    if kit.chance(0.35):
        dining_set(room)


def kitchen(room: Room) -> None:
    kit = room.kit
    run = room.against_wall(fixtures.kitchen_run(kit, kit.uniform(1.5, 2.8)), tries=60, corner=kit.chance(0.6), front=0.7)
    if run:
        _topped(room, run, clutter.ON_COUNTER, 3)
        _upper_cabinets(room, run)
        for side in (-1, 1) if kit.chance(0.5) else (1, -1):
            if room.beside(fixtures.refrigerator(kit), run, side, 0.02):
                break
        else:
            room.against_wall(fixtures.refrigerator(kit), tries=30)
    if kit.chance(0.4):
        spot = room.in_the_open(fixtures.counter_block(kit), 0.5, turn=run.angle if run else None)
        _topped(room, spot, clutter.ON_COUNTER, 2)
    dining_set(room)
    _along_walls(room, (furniture.storage_cabinet, furniture.storage_cabinet, furniture.bench), kit.integer(0, 2))


def bathroom(room: Room) -> None:
    kit = room.kit
    tub = kit.chance(0.8) and room.against_wall(fixtures.bathtub(kit), tries=80, corner=True)
    if not tub or kit.chance(0.15):
        room.against_wall(fixtures.shower_corner(kit), tries=60, corner=True)
    room.against_wall(fixtures.toilet(kit), tries=60, front=0.4)
    basin = fixtures.vanity(kit) if kit.chance(0.5) else fixtures.pedestal_sink(kit)
    spot = room.against_wall(basin, tries=60, front=0.4)
    if spot and kit.chance(0.8):
        w, h, z = kit.uniform(0.4, 0.8), kit.uniform(0.5, 0.8), kit.uniform(1.1, 1.3)
        rect = Rect(spot.u - w / 2, spot.u + w / 2, z, z + h)
        room.on_wall(openings.panel(kit, "mirror", w, h, z), spot.wall, spot.u, rect)
    for _ in range(kit.integer(1, 2)):
        _hang(room, "towel", 0.5, 1.3)
    if kit.chance(0.5):
        _along_walls(room, (furniture.storage_cabinet,), 1)
    if kit.chance(0.5):
        _rug(room)


def office(room: Room) -> None:
    kit = room.kit
    for _ in range(kit.integer(2, 4)):
        _work_place(room)
    _along_walls(room, (furniture.bookshelf, furniture.file_cabinet, furniture.storage_cabinet), kit.integer(2, 4))
    if kit.chance(0.6):
        w = kit.uniform(1.0, 2.0)
        _hang(room, "whiteboard", w, kit.uniform(0.8, 1.1))
    if kit.chance(0.35):
        dining_set(room)
    if kit.chance(0.25):
        _loose(room, (furniture.armchair, furniture.sofa))


def studio(room: Room) -> None:
    """One room for everything: a bit of kitchen, a bed or sofa, a table."""
    kit = room.kit
    run = room.against_wall(fixtures.kitchen_run(kit, kit.uniform(1.2, 1.9)), tries=60, corner=True, front=0.6)
    if run:
        _topped(room, run, clutter.ON_COUNTER, 2)
        _upper_cabinets(room, run)
        if not room.beside(fixtures.refrigerator(kit), run, kit.pick((-1, 1)), 0.02):
            room.against_wall(fixtures.refrigerator(kit), tries=30)
    if kit.chance(0.6):
        room.against_wall(furniture.bed(kit), tries=40)
    room.against_wall(furniture.sofa(kit), tries=60, front=0.4)
    dining_set(room)
    _along_walls(room, (furniture.wardrobe, furniture.bookshelf, furniture.tv_stand), 2)


def meeting_room(room: Room) -> None:
    """A long table with chairs; or a lounge with a reception counter."""
    kit = room.kit
    table = furniture.table(kit, "table", kit.uniform(1.6, 2.6), kit.uniform(0.9, 1.2), kit.uniform(0.7, 0.78))
    _seats(room, room.in_the_open(table, 0.45, tries=80), kit.pick((furniture.office_chair, furniture.dining_chair)))
    if kit.chance(0.4):
        _topped(room, room.against_wall(fixtures.counter_block(kit)), clutter.ON_COUNTER, 2)
    _hang(room, "whiteboard", kit.uniform(1.2, 2.2), 1.1)
    _along_walls(room, (furniture.storage_cabinet, furniture.bookshelf, furniture.bench), kit.integer(1, 3))


# Size ranges are the longer and the shorter side, in metres.
ROOM_TYPES: dict[str, tuple[Callable[[Room], None], tuple[float, float], tuple[float, float]]] = {
    "bedroom": (bedroom, (3.3, 5.0), (3.0, 4.2)),
    "living room": (living_room, (4.0, 6.5), (3.5, 5.5)),
    "kitchen": (kitchen, (3.6, 5.6), (3.0, 4.4)),
    "bathroom": (bathroom, (2.8, 3.7), (2.2, 3.0)),
    "office": (office, (3.4, 6.0), (3.2, 4.8)),
    "studio": (studio, (4.8, 7.0), (4.0, 5.5)),
    "meeting room": (meeting_room, (4.4, 6.5), (3.6, 5.2)),
}

# What else may stand there, until the floor is as full as was drawn for the room.
FILLERS: dict[str, tuple[Callable, ...]] = {
    "bedroom": (furniture.bookshelf, furniture.storage_cabinet, furniture.dresser, furniture.armchair, furniture.desk,
                furniture.dining_chair, furniture.ottoman, furniture.end_table, furniture.wardrobe),
    "living room": (furniture.armchair, furniture.sofa, furniture.bookshelf, furniture.storage_cabinet, furniture.desk,
                    furniture.end_table, furniture.ottoman, furniture.dining_table, furniture.dining_chair),
    "kitchen": (furniture.storage_cabinet, furniture.dining_chair, furniture.dining_chair, fixtures.counter_block,
                furniture.end_table, furniture.dining_table, furniture.bench, fixtures.refrigerator),
    "bathroom": (furniture.storage_cabinet, furniture.ottoman, furniture.bench, clutter.trash_can, clutter.carton),
    "office": (furniture.desk, furniture.desk, furniture.file_cabinet, furniture.bookshelf, furniture.storage_cabinet,
               furniture.dining_table, furniture.armchair, furniture.office_chair, furniture.end_table),
    "studio": (furniture.bookshelf, furniture.storage_cabinet, furniture.desk, furniture.armchair, furniture.end_table,
               furniture.dining_chair, fixtures.counter_block, furniture.dresser, clutter.carton),
    "meeting room": (furniture.dining_chair, furniture.office_chair, furniture.sofa, furniture.storage_cabinet,
                     furniture.coffee_table, furniture.bookshelf, fixtures.counter_block, furniture.desk),
}  # fmt: skip

# Each block of this many scenes holds every type, in an order drawn anew for each block.
BLOCK = ("bedroom", "bedroom", "living room", "living room", "kitchen", "kitchen", "bathroom",
         "bathroom", "office", "studio", "meeting room", "office")  # fmt: skip


def furnished_room(kit: Kit, kind: str) -> Room:
    """A room of one of `ROOM_TYPES` with everything in it but walls, floor and ceiling."""
    fill, long, short = ROOM_TYPES[kind]
    sides = [kit.uniform(*long), kit.uniform(*short)]
    # Larger rooms are scanned more coarsely, so that their size in vertices differs less.
    kit.step = float(np.clip(0.0083 * np.sqrt(sides[0] * sides[1]), 0.028, 0.039))
    room = new_room(kit, *(sides if kit.chance(0.5) else sides[::-1]))
    _doors(room, 1 if kind == "bathroom" or kit.chance(0.6) else 2)
    _windows(room, kit.integer(0, 1) if kind == "bathroom" else kit.integer(1, 3))
    fill(room)
    _fill_up(room, FILLERS[kind], kit.uniform(0.2, 0.42))
    for _ in range(kit.integer(0, 1) if kind == "bathroom" else kit.integer(1, 4)):
        _hang(room, "picture", kit.uniform(0.25, 1.1), kit.uniform(0.3, 0.9))
    if kind != "bathroom" and kit.chance(0.35):
        _rug(room)
    things = (clutter.trash_can, clutter.carton) if kind == "bathroom" else clutter.ON_FLOOR
    for _ in range(kit.integer(0, 2) if kind == "bathroom" else kit.integer(1, 5)):
        _small_thing(room, kit.pick(things)(kit))
    return room


def _fill_up(room: Room, kinds: Sequence[Callable], share: float) -> None:
    """Add furniture until it covers `share` of the floor, or nothing fits any more."""
    kit, area = room.kit, sum((r[1] - r[0]) * (r[3] - r[2]) for r in room.rects)
    for _ in range(25):
        if sum(4 * s.half_w * s.half_d for s in room.solid) >= share * area:
            return
        make = kit.pick(kinds)
        if make is furniture.desk:
            _work_place(room)
        elif make is furniture.dining_table:
            dining_set(room)
        else:
            group = make(kit)
            if group.size[2] < 1.2 and kit.chance(0.25):
                room.in_the_open(group, 0.2, turn=kit.uniform(0, 2 * np.pi))
            else:
                spot = room.against_wall(group, corner=kit.chance(0.3), front=0.25)
                _topped(room, spot, clutter.ON_CABINET, 2)


def _doors(room: Room, count: int) -> None:
    kit = room.kit
    for _ in range(count * 8):
        wall, w, h = kit.pick(room.walls), kit.uniform(0.75, 1.0), kit.uniform(1.95, 2.15)
        if wall.length < w + 0.5 or sum(bool(w.openings) for w in room.walls) >= count:
            continue
        u = kit.uniform(0.2 + w / 2, wall.length - 0.2 - w / 2)
        rect = Rect(u - w / 2 - 0.12, u + w / 2 + 0.12, 0.0, h + 0.12)
        angle = 0.0 if kit.chance(0.55) else kit.uniform(0.5, 1.6)
        clear = Footprint(*wall.point(u, 0.5), wall.angle, w / 2 + (0.15 if angle else 0.0), 0.5)
        if not room.fits(clear._replace(half_d=0.495)) or not room.on_wall(openings.door(kit, w, h, angle), wall, u, rect):
            continue
        wall.openings.append(Rect(u - w / 2, u + w / 2, 0.0, h))
        room.clear.append(clear)


def _windows(room: Room, count: int) -> None:
    kit = room.kit
    for _ in range(count):
        wall = kit.pick(room.walls)
        w, z0 = kit.uniform(0.7, 2.0), kit.pick((0.1, 0.7, 0.9, 1.0)) + kit.uniform(-0.05, 0.15)
        z1 = min(kit.uniform(1.9, 2.2), room.height - 0.2)
        if wall.length < w + 0.6:
            continue
        u = kit.uniform(w / 2 + 0.3, wall.length - w / 2 - 0.3)
        rect = Rect(u - w / 2 - 0.12, u + w / 2 + 0.12, z0 - 0.06, z1 + 0.02)
        if not room.on_wall(openings.window(kit, w, z0, z1), wall, u, rect):
            continue
        wall.openings.append(Rect(u - w / 2, u + w / 2, z0, z1))
        if kit.chance(0.65):
            _curtains(room, wall, u, w, z0, z1)
        if z0 > 0.75 and kit.chance(0.4):
            _radiator(room, wall, u, w * kit.uniform(0.6, 0.95))


def _curtains(room: Room, wall: Wall, u: float, w: float, z0: float, z1: float) -> None:
    kit = room.kit
    low = kit.uniform(0.02, 0.1) if kit.chance(0.6) else max(0.05, z0 - kit.uniform(0.05, 0.2))
    pieces = openings.curtains(kit, w, min(z1, room.height - 0.2), low)
    x, y = wall.point(u)
    wide = w / 2 + 0.25
    if u - wide < 0 or u + wide > wall.length:
        return
    cover = Footprint(*wall.point(u, 0.09), wall.angle, wide, 0.09)
    if not room.fits(cover._replace(half_d=0.085)):
        return
    room.clear.append(cover)
    wall.taken.append(Rect(u - wide, u + wide, low, z1 + 0.2))
    room.placed += [Placed(piece, x, y, 0.0, wall.angle) for piece in pieces]


def _radiator(room: Room, wall: Wall, u: float, w: float) -> None:
    shape = Footprint(*wall.point(u, 0.09), wall.angle, w / 2, 0.08)
    rect = Rect(u - w / 2, u + w / 2, 0.05, 0.7)
    if room.fits(shape) and room.on_wall(openings.radiator(room.kit, w), wall, u, rect):
        room.solid.append(shape)


def _hang(room: Room, category: str, w: float, h: float) -> None:
    """A flat thing at about eye height on a free stretch of wall."""
    kit = room.kit
    for _ in range(12):
        wall = kit.pick(room.walls)
        if wall.length < w + 0.2:
            continue
        u, z = kit.uniform(w / 2 + 0.1, wall.length - w / 2 - 0.1), kit.uniform(1.5, 1.75) - h / 2
        rect = Rect(u - w / 2 - 0.06, u + w / 2 + 0.06, z - 0.05, z + h + 0.05)
        pieces = openings.towel(kit, w, z + h) if category == "towel" else openings.panel(kit, category, w, h, z)
        if room.on_wall(pieces, wall, u, rect):
            return


def _along_walls(room: Room, kinds: Sequence[Callable], count: int) -> None:
    for _ in range(count):
        make = room.kit.pick(kinds)
        spot = room.against_wall(make(room.kit), corner=room.kit.chance(0.4), front=0.3)
        if spot and spot.group.size[2] < 1.7:
            things = () if make is furniture.tv_stand else clutter.ON_CABINET
            _topped(room, spot, things, room.kit.integer(0, 2))


def _topped(room: Room, spot: Spot | None, kinds: Sequence[Callable], count: int, face_front: bool = False) -> None:
    if spot and kinds:
        room.on_top(tuple(kinds), spot, room.kit.integer(0, count), face_front)


def _work_place(room: Room) -> None:
    """A desk at the wall with a chair before it and a screen on it."""
    kit = room.kit
    spot = room.against_wall(furniture.desk(kit), tries=60, front=0.6)
    if not spot:
        return
    room.on_top(clutter.ON_DESK, spot, kit.integer(1, 4), face_front=True)
    make = kit.pick((furniture.office_chair, furniture.office_chair, furniture.dining_chair))
    _chair_at(room, spot, make, kit.uniform(-0.2, 0.2) * spot.group.size[0], 1, _pulled_out(kit))


def _pulled_out(kit: Kit) -> float:
    """How far a chair is pulled out from its table."""
    return kit.uniform(0.02, 0.3)


def _chair_at(room: Room, spot: Spot, make: Callable, along: float, side: int, gap: float, finish=None) -> None:
    """A chair before (side 1) or behind (side -1) what stands at `spot`, facing it."""
    chair = make(room.kit, finish)
    x, y = spot.at(along, side * (spot.group.size[1] / 2 + gap + chair.size[1] / 2))
    turn = spot.angle + (np.pi if side > 0 else 0.0) + float(room.kit.rng.normal(0, 0.25))
    room.stand(chair, x, y, turn)


def dining_set(room: Room) -> None:
    """A table with chairs round it; a smaller one is tried where the first does not fit."""
    for _ in range(3):
        spot = room.in_the_open(furniture.dining_table(room.kit), room.kit.uniform(0.25, 0.45))
        if spot:
            return _seats(room, spot, furniture.dining_chair)


def _seats(room: Room, spot: Spot | None, make: Callable) -> None:
    """Alike chairs along both long sides and sometimes at the ends of a table."""
    if spot is None:
        return
    kit, finish = room.kit, room.kit.material()
    w = spot.group.size[0]
    count = max(1, int(w / 0.65))
    for side in (-1, 1):
        for i in range(count):
            if kit.chance(0.85):
                _chair_at(room, spot, make, (i + 0.5) / count * w - w / 2, side, _pulled_out(kit), finish)
    turned = Spot(spot.group, spot.x, spot.y, spot.angle + np.pi / 2)
    for side in (-1, 1):
        if kit.chance(0.4):
            gap = (w - spot.group.size[1]) / 2 + _pulled_out(kit)
            _chair_at(room, turned, make, 0.0, side, gap, finish)
    room.on_top(clutter.ON_TABLE, spot, kit.integer(0, 3))


def _upper_cabinets(room: Room, run: Spot) -> None:
    """Cabinets over a kitchen run, with or without a gap (for a hood) between them."""
    kit, w = room.kit, run.group.size[0]
    if kit.chance(0.2):
        return
    edges = [-w / 2, w / 2] if kit.chance(0.4) else [-w / 2, kit.uniform(-0.2, 0.2) * w, w / 2]
    z = kit.uniform(1.4, 1.55)
    for a, b in zip(edges[:-1], edges[1:]):
        group = fixtures.wall_cabinet(kit, b - a - 0.01)
        u = run.u + (a + b) / 2
        rect = Rect(u - group.size[0] / 2, u + group.size[0] / 2, z, z + group.size[2])
        if rect.z1 < room.height - 0.02 and run.wall.free(rect):
            run.wall.taken.append(rect)
            room.put(group, *run.wall.point(u, group.size[1] / 2 + 0.005), z, run.angle)


def _loose(room: Room, kinds: Sequence[Callable]) -> None:
    """Seats that stand anywhere, turned anyhow."""
    kit = room.kit
    room.in_the_open(kit.pick(kinds)(kit), 0.15, tries=40, turn=kit.uniform(0, 2 * np.pi))


def _small_thing(room: Room, group: Group) -> None:
    if room.kit.chance(0.6):
        room.against_wall(group, corner=room.kit.chance(0.4))
    else:
        room.in_the_open(group, 0.1, turn=room.kit.uniform(0, 2 * np.pi))


def _rug(room: Room) -> None:
    """Flat on the floor where nothing stands; one may walk on it, so it blocks nothing."""
    group = clutter.mat(room.kit)
    if room.in_the_open(group, 0.02):
        room.solid.pop()
