"""Rules by which things come together: tops with things on them, chairs at tables, pictures at eye
height, curtains at windows. Each asks the room whether there is space, and leaves out what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pcssl.data.rooms import clutter, fixtures, openings, seating, tables
from pcssl.data.rooms.layout import Footprint, Placed, Rect, Room, Solid, Spot, Wall
from pcssl.data.rooms.piece import Group, Kit

Builder = Callable[[Kit], Group]


def draw(kit: Kit, table: Sequence[tuple[Builder, float]]) -> Builder:
    """A builder of ((builder, weight), ...)."""
    weights = np.array([weight for _, weight in table], float)
    return table[int(kit.rng.choice(len(table), p=weights / weights.sum()))][0]


# ---------------------------------------------------------------- on tops


def topped(room: Room, spot: Spot | None, kinds: Sequence[Builder], most: int, to_front: bool = False) -> None:
    """Up to `most` things of these kinds on each top of what stands there."""
    if spot is None or not kinds:
        return
    for top in spot.group.tops:
        for _ in range(room.kit.integer(0, most)):
            room.on_top(room.kit.pick(kinds)(room.kit), spot, top, to_front)


# ---------------------------------------------------------------- seats


def chair_at(room: Room, spot: Spot, make: Callable, along: float, side: int, deep: float, finish=None) -> None:
    """A chair before (side 1) or behind (side -1) what stands at `spot`, facing it.

    deep: the depth of the table there. Pushed under it where that fits, else pulled out.
    """
    kit, chair = room.kit, make(room.kit, finish)
    turn = spot.angle + (np.pi if side > 0 else 0.0) + float(kit.rng.normal(0, 0.2))
    first = -kit.uniform(0.1, 0.32) if kit.chance(0.4) else kit.uniform(0.0, 0.3)
    for gap in (first, 0.03, kit.uniform(0.1, 0.4)):
        x, y = spot.at(along, side * (deep / 2 + gap + chair.size[1] / 2))
        if room.stand(chair, x, y, turn):
            return


def seats(room: Room, spot: Spot | None, make: Callable, share: float = 0.92) -> None:
    """Alike chairs along both long sides and sometimes at the ends of a table."""
    if spot is None:
        return
    kit, (w, d, _) = room.kit, spot.group.size
    finish = kit.material("board" if make is seating.dining_chair else "cloth")
    for side in (-1, 1):
        for x in tables.row_offsets(w, kit.uniform(0.56, 0.75)):
            if kit.chance(share):
                chair_at(room, spot, make, x, side, d, finish)
    turned = Spot(spot.group, spot.x, spot.y, spot.angle + np.pi / 2)
    for side in (-1, 1):
        if kit.chance(0.45):
            chair_at(room, turned, make, 0.0, side, w, finish)


def dining_set(room: Room, things: Sequence[Builder]) -> None:
    """A table with chairs round it, in the open or with one side at a wall; smaller where it does not fit."""
    kit = room.kit
    make = kit.pick((seating.dining_chair, seating.dining_chair, seating.shell_chair))
    for _ in range(4):
        group = tables.dining_table(kit)
        if kit.chance(0.25):
            spot = room.against_wall(group, tries=15, front=0.5)
        else:
            spot = room.in_the_open(group, kit.uniform(0.2, 0.45), tries=25)
        if spot:
            seats(room, spot, make)
            return topped(room, spot, things, 4)


def work_place(room: Room, things: Sequence[Builder]) -> None:
    """A desk, at the wall where there is space, with a chair before it and a screen on it."""
    kit = room.kit
    spot = None
    for _ in range(3):
        group = tables.corner_desk(kit) if kit.chance(0.12) else tables.desk(kit)
        spot = spot or room.against_wall(group, tries=15, corner=kit.chance(0.5), front=0.5)
        spot = spot or room.in_the_open(group, 0.05, tries=15)
    if not spot:
        return
    group = spot.group
    w, d, _ = group.size
    for _ in range(2 if w > 1.5 and kit.chance(0.4) else 1):
        room.on_top(kit.pick((clutter.monitor, clutter.monitor, clutter.laptop))(kit), spot, spot.group.tops[0], True)
    topped(room, spot, things, 3)
    make = kit.pick((seating.office_chair, seating.office_chair, seating.dining_chair, seating.shell_chair))
    chair_at(room, spot, make, kit.uniform(-0.2, 0.2) * w, 1, d)


def rows_of_seats(room: Room) -> None:
    """A lecture room: rows that face a board, with tables or joined seats, a lectern and a table in front."""
    kit = room.kit
    front = max(room.walls, key=lambda wall: (wall.length > 3) * kit.uniform(0.5, 1) - any(o.z0 > 0 for o in wall.openings))
    deep = (room.bounds[3] - room.bounds[2]) if abs(np.cos(front.angle)) > 0.7 else (room.bounds[1] - room.bounds[0])
    board(room, front, kit.uniform(1.8, 3.0))
    finish, joined = kit.material("cloth"), kit.chance(0.5)
    make = kit.pick((seating.shell_chair, seating.dining_chair))
    pitch = kit.uniform(0.8, 0.95) if joined else kit.uniform(1.05, 1.25)
    aisle = kit.pick((0.5, kit.uniform(0.35, 0.65)))
    for out in np.arange(1.9, deep - 0.4, pitch):
        for low, high in ((0.5, aisle * front.length - 0.4), (aisle * front.length + 0.4, front.length - 0.5)):
            count = int((high - low) / 0.62)
            if count >= 2:
                _row(room, front, (low + high) / 2, out, count, finish, make if not joined else None)
    _speakers_place(room, front)


def _row(room: Room, front: Wall, u: float, out: float, count: int, finish, make: Callable | None) -> None:
    kit = room.kit
    x, y = front.point(u, out)
    if make is None:
        for fewer in range(count, 1, -1):
            if room.stand(seating.seat_row(kit, fewer, finish), x, y, front.angle + np.pi):
                return
        return
    # The table stands with its front to the speaker; the chairs are behind it.
    spot = room.stand(tables.lecture_table(kit, count * 0.6), x, y, front.angle + np.pi)
    if spot is None:
        return
    for along in tables.row_offsets(count * 0.6, 0.6):
        if kit.chance(0.85):
            chair_at(room, spot, make, along, -1, spot.group.size[1], finish)
    topped(room, spot, (clutter.laptop, clutter.paper_stack, clutter.bottles), 1)


def _speakers_place(room: Room, front: Wall) -> None:
    kit = room.kit
    for make in (tables.lectern, tables.desk):
        for _ in range(10):
            group = make(kit)
            u, out = kit.uniform(0.6, max(0.7, front.length - 0.6)), kit.uniform(0.7, 1.4)
            spot = room.stand(group, *front.point(u, out), front.angle + (0.0 if make is tables.lectern else np.pi))
            if spot:
                topped(room, spot, (clutter.laptop, clutter.projector, clutter.paper_stack), 2)
                break


# ---------------------------------------------------------------- on walls


def hang(room: Room, make: Callable, w: float, h: float, middle: float, wall: Wall | None = None) -> bool:
    """A flat thing whose middle is at this height, on a free stretch of a wall."""
    kit = room.kit
    for _ in range(6):
        on, z = wall or kit.pick(room.walls), middle - h / 2
        spans = [(a, b) for a, b in on.free_spans(z - 0.05, z + h + 0.05) if b - a > w + 0.2]
        if not spans:
            continue
        low, high = kit.pick(spans)
        u = kit.uniform(low + w / 2 + 0.1, high - w / 2 - 0.1)
        rect = Rect(u - w / 2 - 0.06, u + w / 2 + 0.06, z - 0.05, z + h + 0.05)
        if rect.z1 < room.height - 0.02 and on.free(rect) and room.on_wall(make(kit, w, h, z), on, u, rect):
            return True
    return False


def flat(category: str) -> Callable:
    return lambda kit, w, h, z: openings.panel(kit, category, w, h, z)


def pictures(room: Room, most: int) -> None:
    """One here and there, or a row of alike ones; their middles at eye height."""
    kit = room.kit
    for _ in range(kit.integer(0, most)):
        w, h = kit.uniform(0.25, 1.2), kit.uniform(0.25, 0.9)
        if w > 0.9 and kit.chance(0.5):
            w, h = h, w
        hang(room, flat("picture"), w, h, kit.uniform(1.4, 1.7))


def board(room: Room, wall: Wall | None = None, w: float | None = None) -> None:
    kit = room.kit
    category = kit.pick(("whiteboard", "whiteboard", "blackboard", "bulletin board", "projector screen"))
    hang(room, flat(category), w or kit.uniform(1.0, 2.2), kit.uniform(0.8, 1.2), kit.uniform(1.35, 1.55), wall)


def dress_windows(room: Room, holes: list[tuple[Wall, float, Rect]], share: float) -> None:
    """Curtains, radiators and plants at windows."""
    kit = room.kit
    for wall, u, hole in holes:
        if kit.chance(share):
            _curtains(room, wall, u, hole)
        if hole.z0 > 0.7 and kit.chance(0.4):
            _radiator(room, wall, u, (hole.u1 - hole.u0) * kit.uniform(0.6, 0.95))


def _curtains(room: Room, wall: Wall, u: float, hole: Rect) -> None:
    kit, w = room.kit, hole.u1 - hole.u0
    low = kit.uniform(0.02, 0.1) if kit.chance(0.6) else max(0.05, hole.z0 - kit.uniform(0.05, 0.2))
    wide = w / 2 + 0.22
    if u - wide < 0 or u + wide > wall.length:
        return
    cover = Solid(Footprint(*wall.point(u, 0.09), wall.angle, wide, 0.085), low, min(hole.z1 + 0.2, room.height - 0.02))
    if not room.fits(cover):
        return
    room.solid.append(cover)
    wall.taken.append(Rect(u - wide, u + wide, low, cover.z1))
    pieces = openings.curtains(kit, w, min(hole.z1, room.height - 0.2), low)
    room.placed += [Placed(piece, *wall.point(u), 0.0, wall.angle) for piece in pieces]


def _radiator(room: Room, wall: Wall, u: float, w: float) -> None:
    solid = Solid(Footprint(*wall.point(u, 0.08), wall.angle, w / 2, 0.07), 0.0, 0.75)
    rect = Rect(u - w / 2, u + w / 2, 0.05, 0.72)
    if room.fits(solid) and room.on_wall(openings.radiator(room.kit, w), wall, u, rect):
        room.solid.append(solid)


# ---------------------------------------------------------------- kitchens, floors, ceilings


def kitchen_wall(room: Room, things: Sequence[Builder], width: float) -> Spot | None:
    """A run with upper cabinets, and a refrigerator or a larder, a stove or a dishwasher at its ends."""
    kit = room.kit
    run = None
    for wide in (width, 0.75 * width, 1.2):
        run = run or room.against_wall(fixtures.kitchen_run(kit, wide), tries=30, corner=kit.chance(0.5), front=0.6)
    if run is None:
        return None
    topped(room, run, things, 3)
    upper_cabinets(room, run)
    for side in (-1, 1) if kit.chance(0.5) else (1, -1):
        if kit.chance(0.45):
            beside = room.beside(fixtures.stove(kit) if kit.chance(0.6) else fixtures.washing_machine(kit), run, side, 0.01)
            if beside and kit.chance(0.6):
                more = fixtures.kitchen_run(kit, kit.uniform(0.5, 1.2), sink=False)
                topped(room, room.beside(more, beside, side, 0.01), things, 2)
    return run


def upper_cabinets(room: Room, run: Spot) -> None:
    """Cabinets over a kitchen run, with a hood or a gap between them."""
    kit, w = room.kit, run.group.size[0]
    if kit.chance(0.2):
        return
    z = kit.uniform(1.38, 1.55)
    cut = kit.uniform(-0.25, 0.25) * w
    spans = [(-w / 2, w / 2)] if kit.chance(0.35) else [(-w / 2, cut - 0.3), (cut + 0.3, w / 2)]
    for a, b in spans:
        if b - a > 0.25:
            room.at_wall(fixtures.wall_cabinet(kit, b - a - 0.01), run.wall, run.u + (a + b) / 2, z=z)
    if len(spans) == 2 and kit.chance(0.6):
        room.at_wall(fixtures.range_hood(kit, 0.58), run.wall, run.u + cut, z=1.6)


def rug(room: Room, most: float) -> None:
    """Flat on the floor, and furniture stands on it."""
    kit = room.kit
    group = clutter.mat(kit, most)
    for _ in range(8):
        rect = kit.pick(room.rects)
        x, y = kit.uniform(rect[0], rect[1]), kit.uniform(rect[2], rect[3])
        shape = Footprint(x, y, kit.pick((0.0, np.pi / 2)) + float(kit.rng.normal(0, 0.03)), group.size[0] / 2, group.size[1] / 2)
        if room.inside(shape.corners(), 0.02).all() and not any(c.base.overlaps(shape) for c in room.cut):
            room.placed += [Placed(piece, x, y, 0.0, shape.angle) for piece in group.pieces]
            return


def ceiling_lamps(room: Room) -> None:
    kit = room.kit
    x0, x1, y0, y1 = kit.pick(room.rects)
    group = clutter.ceiling_lamp(kit, room.height)
    r = group.size[0] / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    hung = Solid(Footprint(x, y, 0.0, r, r), room.height - group.size[2], room.height - 0.02)
    if room.fits(hung):
        room.solid.append(hung)
        room.placed += [Placed(piece, x, y, 0.0, 0.0) for piece in group.pieces]


def small_things(room: Room, table: Sequence[tuple[Builder, float]], most: int) -> None:
    """Things on the floor: mostly along walls and in corners."""
    kit = room.kit
    for _ in range(kit.integer(0, most)):
        group = draw(kit, table)(kit)
        if kit.chance(0.65):
            room.against_wall(group, tries=12, corner=kit.chance(0.4))
        else:
            room.in_the_open(group, 0.05, tries=12, turn=kit.uniform(0, 2 * np.pi))
