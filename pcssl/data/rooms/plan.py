"""Flats: which rooms lie side by side, how large they are, and where doors join them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pcssl.data.rooms import openings
from pcssl.data.rooms.layout import Footprint, Rect, Room, Solid, Wall
from pcssl.data.rooms.piece import Kit

# Floor area in square metres of a room that is a scan by itself, and the least width.
AREAS = {
    "bedroom": (10, 17, 2.7), "living room": (14, 26, 3.3), "kitchen": (8, 16, 2.3), "bathroom": (4.6, 8.5, 1.9),
    "office": (10, 22, 2.7), "meeting room": (14, 25, 3.2), "lecture room": (26, 40, 4.6),
}  # fmt: skip
IN_A_FLAT = 0.78  # rooms of flats are smaller
THICK = 0.12  # of the walls between rooms, metres
PASSAGE = 0.95  # depth of the floor that is kept free at a door


def flat(kit: Kit, kinds: Sequence[str]) -> list[Room]:
    """Empty rooms of these kinds with doors between them, and mostly one to the outside."""
    share = 1.0 if len(kinds) == 1 else IN_A_FLAT
    areas = [share * kit.uniform(*AREAS[kind][:2]) for kind in kinds]
    ratio = kit.uniform(1.0, 1.7)
    width = math.sqrt(sum(areas) * ratio)
    whole = (0.0, width, 0.0, width / ratio)
    height = kit.uniform(2.35, 2.9)
    cells = _divide(kit, whole if kit.chance(0.5) else (0.0, width / ratio, 0.0, width), list(zip(kinds, areas)))
    rooms = [_room(kit, kind, cell, notch, height) for kind, cell, notch in cells]
    _find_inner_walls(rooms)
    for one, two in _joined(kit, rooms):
        _door_between(kit, one, two)
    entrance = max(rooms, key=lambda room: room.area)
    for _ in range(kit.integer(0, 1) if len(rooms) > 1 else 1):
        _outer_door(kit, entrance)
    return rooms


def _room(kit: Kit, kind: str, cell: tuple, notch: tuple | None, height: float) -> Room:
    x0, x1, y0, y1 = cell
    inner = (x0 + THICK / 2, x1 - THICK / 2, y0 + THICK / 2, y1 - THICK / 2)
    return Room(kit, kind, inner, height, notch)


def _divide(kit: Kit, cell: tuple, parts: list[tuple[str, float]]) -> list[tuple]:
    """Divide a rectangle among rooms (kind, area) in proportion: [(kind, rectangle, notch)]."""
    x0, x1, y0, y1 = cell
    w, d = x1 - x0, y1 - y0
    if len(parts) == 1:
        kind = parts[0][0]
        notch = None
        if min(w, d) > 3.7 and kit.chance(0.3):
            notch = (kit.integer(0, 3), w * kit.uniform(0.2, 0.42), d * kit.uniform(0.2, 0.42))
        return [(kind, cell, notch)]
    parts = sorted(parts, key=lambda part: part[1])
    if len(parts) == 2 and kit.chance(0.55):
        bite = _bite(kit, cell, *parts)
        if bite:
            return bite
    # The largest room takes one side, alone or with the smallest.
    ends = [parts[-1]] if len(parts) < 4 else [parts[-1], parts[0]]
    rest = [part for part in parts if part not in ends]
    share = sum(area for _, area in ends) / sum(area for _, area in parts)
    share = share if kit.chance(0.5) else 1 - share
    one, two = (ends, rest) if share > 0.5 else (rest, ends)
    share = sum(area for _, area in one) / sum(area for _, area in parts)
    if w > d:
        a, b = (x0, x0 + share * w, y0, y1), (x0 + share * w, x1, y0, y1)
    else:
        a, b = (x0, x1, y0, y0 + share * d), (x0, x1, y0 + share * d, y1)
    return _divide(kit, a, one) + _divide(kit, b, two)


def _bite(kit: Kit, cell: tuple, small: tuple[str, float], large: tuple[str, float]) -> list[tuple] | None:
    """The small room takes a corner of the rectangle, and the large one is L-shaped."""
    x0, x1, y0, y1 = cell
    w, d = x1 - x0, y1 - y0
    area = w * d * small[1] / (small[1] + large[1])
    a = math.sqrt(area) * kit.uniform(0.85, 1.25)
    b = area / a
    least, most = AREAS[small[0]][2], 0.62
    if min(a, b) < least or a > most * w or b > most * d:
        return None
    k = kit.integer(0, 3)
    left, low = k in (0, 3), k in (0, 1)
    corner = (x0 if left else x1 - a, x0 + a if left else x1, y0 if low else y1 - b, y0 + b if low else y1)
    return [(small[0], corner, None), (large[0], cell, (k, a, b))]


# ---------------------------------------------------------------- walls that two rooms share


def _shared(one: Wall, two: Wall) -> tuple[float, float] | None:
    """The stretch (u0, u1) of wall `one` that has wall `two` at its back, or None."""
    if math.cos(one.angle - two.angle) > -0.99:
        return None
    c, s = math.cos(one.angle), math.sin(one.angle)
    dx, dy = two.start[0] - one.start[0], two.start[1] - one.start[1]
    if not 0 < -(c * dy - s * dx) < 1.5 * THICK:
        return None
    end = c * dx + s * dy
    low, high = max(0.0, end - two.length), min(one.length, end)
    return (low, high) if high > low + 0.05 else None


def _find_inner_walls(rooms: list[Room]) -> None:
    for room in rooms:
        others = [wall for other in rooms if other is not room for wall in other.walls]
        for wall in room.walls:
            wall.inner = [s for s in (_shared(wall, other) for other in others) if s]


def _joined(kit: Kit, rooms: list[Room]) -> list[tuple[Room, Room]]:
    """Pairs of neighbours, as many as make one flat of them, the widest passages first."""
    links = []
    for i, one in enumerate(rooms):
        for j in range(i):
            stretches = [_shared(a, b) for a in one.walls for b in rooms[j].walls]
            widest = max((s[1] - s[0] for s in stretches if s), default=0.0)
            if widest > 1.15:
                links.append((widest * kit.uniform(0.6, 1.0), i, j))
    group, pairs = list(range(len(rooms))), []
    for _, i, j in sorted(links, reverse=True):
        if group[i] != group[j]:
            old = group[j]
            group = [group[i] if g == old else g for g in group]
            pairs.append((rooms[i], rooms[j]))
    return pairs


def _door_between(kit: Kit, one: Room, two: Room) -> None:
    """A door or an open passage through the wall that two rooms share."""
    pairs = [(a, b, _shared(a, b)) for a in one.walls for b in two.walls]
    a, b, (low, high) = max((p for p in pairs if p[2]), key=lambda p: p[2][1] - p[2][0])
    open_plan = {one.kind, two.kind} <= {"living room", "kitchen", "office", "meeting room"} and kit.chance(0.75)
    w = min(kit.uniform(1.0, 2.2) if open_plan else kit.uniform(0.75, 0.95), high - low - 0.3)
    h = kit.uniform(1.95, 2.15)
    for _ in range(10):
        u = kit.uniform(low + 0.15 + w / 2, high - 0.15 - w / 2)
        v = _across(a, b, u)
        # The leaf swings into the first room; a shut one is seen from there only.
        angle = 0.0 if kit.chance(0.2) else kit.uniform(0.9, 1.6)
        pieces = openings.passage(kit, w, h, THICK) if open_plan else openings.inner_door(kit, w, h, THICK, angle)
        swing = 0.0 if open_plan or not angle else 0.15
        if not (_clear_at(one, a, u, w, h, swing) and _clear_at(two, b, v, w, h, 0.0)):
            continue
        one.on_wall(pieces[0], a, u, _frame_rect(u, w, h))
        two.on_wall(pieces[1], b, v, _frame_rect(v, w, h))
        for room, wall, at in ((one, a, u), (two, b, v)):
            wall.openings.append(Rect(at - w / 2, at + w / 2, 0.0, h))
            room.clear.append(_threshold(wall, at, w, 0.0 if room is two else swing))
        return


def _across(a: Wall, b: Wall, u: float) -> float:
    """The place on wall b that is opposite u on wall a."""
    x, y = a.point(u)
    c, s = math.cos(b.angle), math.sin(b.angle)
    return c * (x - b.start[0]) + s * (y - b.start[1])


def _frame_rect(u: float, w: float, h: float) -> Rect:
    return Rect(u - w / 2 - 0.12, u + w / 2 + 0.12, 0.0, h + 0.12)


def _threshold(wall: Wall, u: float, w: float, swing: float) -> Solid:
    """The air before a door."""
    return Solid(Footprint(*wall.point(u, PASSAGE / 2), wall.angle, w / 2 + swing, PASSAGE / 2), 0.0, 2.1)


def _clear_at(room: Room, wall: Wall, u: float, w: float, h: float, swing: float) -> bool:
    before = _threshold(wall, u, w, swing)
    slim = before._replace(base=before.base._replace(half_d=PASSAGE / 2 - 0.005))
    return wall.free(_frame_rect(u, w, h)) and room.fits(slim)


def _outer_door(kit: Kit, room: Room) -> None:
    for _ in range(12):
        double = room.kind in ("lecture room", "meeting room") and kit.chance(0.2)
        wall, w, h = kit.pick(room.walls), kit.uniform(1.3, 1.7) if double else kit.uniform(0.75, 1.0), kit.uniform(1.95, 2.15)
        if wall.length < w + 0.5:
            continue
        u = kit.uniform(0.2 + w / 2, wall.length - 0.2 - w / 2)
        angle = 0.0 if double or kit.chance(0.6) else kit.uniform(0.5, 1.6)
        swing = 0.15 if angle else 0.0
        if not wall.outside(u - w / 2 - 0.1, u + w / 2 + 0.1) or not _clear_at(room, wall, u, w, h, swing):
            continue
        room.on_wall(openings.door(kit, w, h, angle, double), wall, u, _frame_rect(u, w, h))
        wall.openings.append(Rect(u - w / 2, u + w / 2, 0.0, h))
        room.clear.append(_threshold(wall, u, w, swing))
        return


def windows(kit: Kit, room: Room, count: int) -> list[tuple[Wall, float, Rect]]:
    """Up to `count` windows in outer walls: (wall, middle, rectangle of the opening)."""
    made = []
    for _ in range(3 * count):
        if len(made) == count:
            break
        wall = kit.pick(room.walls)
        w, z0 = kit.uniform(0.6, 2.2), kit.pick((0.1, 0.5, 0.8, 0.95)) + kit.uniform(-0.05, 0.15)
        z1 = min(kit.uniform(1.8, 2.25), room.height - 0.15)
        if wall.length < w + 0.6:
            continue
        u = kit.uniform(w / 2 + 0.25, wall.length - w / 2 - 0.25)
        frame = Rect(u - w / 2 - 0.12, u + w / 2 + 0.12, z0 - 0.06, z1 + 0.1)
        if not wall.outside(frame.u0, frame.u1) or not room.on_wall(openings.window(kit, w, z0, z1), wall, u, frame):
            continue
        hole = Rect(u - w / 2, u + w / 2, z0, z1)
        wall.openings.append(hole)
        made.append((wall, u, hole))
    return made

