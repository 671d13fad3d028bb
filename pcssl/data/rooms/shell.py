"""Walls with their openings cut out, floors and ceilings."""

from __future__ import annotations

from pcssl.data.rooms import shapes
from pcssl.data.rooms.layout import Placed, Rect, Room, Wall
from pcssl.data.rooms.materials import Material
from pcssl.data.rooms.piece import Kit, Piece


def shell(room: Room) -> list[Placed]:
    """A room's walls, floor and ceiling; each wall is an instance."""
    kit = room.kit
    tiled = room.kind == "bathroom" and kit.chance(0.75) or room.kind == "kitchen" and kit.chance(0.2)
    paint = kit.material("tile" if tiled else "wall")
    paints = [paint] * len(room.walls)
    if kit.chance(0.35):
        paints[kit.integer(0, len(paints) - 1)] = kit.material("wall")
    foot = kit.material("board") if kit.chance(0.65) and not tiled else None
    lower = _lower_half(kit) if kit.chance(0.15) else None
    placed = [_wall(room, wall, finish, lower, foot) for wall, finish in zip(room.walls, paints)]
    return placed + _floor_and_ceiling(room)


def _lower_half(kit: Kit) -> tuple[Material, float]:
    """Panelling or tiles up to a height."""
    return kit.material(kit.pick(("tile", "wall", "board"))), kit.uniform(0.85, 1.4)


def _wall(room: Room, wall: Wall, paint: Material, lower: tuple | None, foot: Material | None) -> Placed:
    piece, kit = Piece("wall", room.kit), room.kit
    us = sorted({0.0, wall.length, *(e for o in wall.openings for e in (o.u0, o.u1))})
    zs = sorted({0.0, room.height, *(e for o in wall.openings for e in (o.z0, o.z1))})
    flat = shapes.perforated(us, zs, wall.openings, kit.density())
    # The sheet faces up: turned upright it must face the room on +y.
    upright = shapes.Mesh(flat.vertices[:, [0, 2, 1]], flat.faces[:, ::-1])
    piece.add(upright, paint)
    if lower is not None:
        finish, height = lower
        low = upright.vertices[:, 2] < height
        piece.colors[0][low] = finish.paint(upright.vertices[low])
    if foot is not None:
        _skirting(piece, wall, foot)
    return Placed(piece, *wall.start, 0.0, wall.angle)


def _skirting(piece: Piece, wall: Wall, finish: Material) -> None:
    """A low board along the wall's foot, interrupted at doors."""
    tall = piece.kit.uniform(0.05, 0.12)
    ends = [0.0] + [e for o in sorted(wall.openings) if o.z0 <= 0 for e in (o.u0 - 0.1, o.u1 + 0.1)] + [wall.length]
    for u0, u1 in zip(ends[::2], ends[1::2]):
        if u1 - u0 > 0.05:
            piece.box((u1 - u0, 0.015, tall), ((u0 + u1) / 2, 0.0075, 0), finish)


def _floor_and_ceiling(room: Room) -> list[Placed]:
    kit = room.kit
    x0, x1, y0, y1 = room.bounds
    holes, xs, ys = [], {x0, x1}, {y0, y1}
    for cut in room.cut:
        base = cut.base
        hole = Rect(base.x - base.half_w, base.x + base.half_w, base.y - base.half_d, base.y + base.half_d)
        holes.append(hole)
        xs, ys = xs | {hole.u0, hole.u1}, ys | {hole.z0, hole.z1}
    flat = shapes.perforated(_distinct(xs), _distinct(ys), holes, kit.density())
    floor = Piece("floor", kit)
    floor.add(flat, kit.material("tile" if room.kind == "bathroom" and kit.chance(0.6) else "floor"))
    ceiling = Piece("ceiling" if kit.chance(0.7) else None, kit)
    ceiling.add(shapes.flipped(flat), kit.material("ceiling"), (0, 0, room.height))
    return [Placed(piece, 0.0, 0.0, 0.0, 0.0) for piece in (floor, ceiling)]


def _distinct(values: set[float]) -> list[float]:
    """Sorted, without those that differ by rounding only."""
    ordered = sorted(values)
    return [ordered[0]] + [b for a, b in zip(ordered[:-1], ordered[1:]) if b - a > 1e-6]

