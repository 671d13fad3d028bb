"""Floor plans, and rules that keep things apart: on the floor, on the walls and on tops."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.piece import Group, Kit, Piece, Top, rotate_z


class Footprint(NamedTuple):
    """An oriented rectangle on the floor."""

    x: float
    y: float
    angle: float
    half_w: float
    half_d: float

    def corners(self) -> np.ndarray:
        """(4, 2)"""
        c, s = np.cos(self.angle), np.sin(self.angle)
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        local = [(i * self.half_w, j * self.half_d) for i, j in signs]
        return np.array([(self.x + c * a - s * b, self.y + s * a + c * b) for a, b in local])

    def grown(self, by: float) -> Footprint:
        return self._replace(half_w=self.half_w + by, half_d=self.half_d + by)

    def overlaps(self, other: Footprint) -> bool:
        """Separating axis test; touching is not overlapping."""
        mine, theirs = self.corners(), other.corners()
        for angle in (self.angle, self.angle + np.pi / 2, other.angle, other.angle + np.pi / 2):
            axis = (np.cos(angle), np.sin(angle))
            a = mine[:, 0] * axis[0] + mine[:, 1] * axis[1]
            b = theirs[:, 0] * axis[0] + theirs[:, 1] * axis[1]
            if a.max() <= b.min() + 1e-6 or b.max() <= a.min() + 1e-6:
                return False
        return True

    def contains(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool for points (N, 2)."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        x, y = points[:, 0] - self.x, points[:, 1] - self.y
        return (np.abs(c * x + s * y) <= self.half_w) & (np.abs(c * y - s * x) <= self.half_d)


class Rect(NamedTuple):
    """A taken rectangle on a wall: along it and up it."""

    u0: float
    u1: float
    z0: float
    z1: float

    def overlaps(self, other: Rect) -> bool:
        along = self.u0 < other.u1 and other.u0 < self.u1
        return along and self.z0 < other.z1 and other.z0 < self.z1


@dataclass
class Wall:
    """From `start` along `angle` with the room on the left."""

    start: tuple[float, float]
    angle: float
    length: float
    taken: list[Rect] = field(default_factory=list)
    openings: list[Rect] = field(default_factory=list)

    def point(self, u: float, out: float = 0.0) -> tuple[float, float]:
        """The place u metres along the wall, `out` metres into the room."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        return self.start[0] + u * c - out * s, self.start[1] + u * s + out * c

    def free(self, rect: Rect) -> bool:
        inside = rect.u0 >= -1e-6 and rect.u1 <= self.length + 1e-6
        return inside and not any(rect.overlaps(other) for other in self.taken)


class Placed(NamedTuple):
    piece: Piece
    x: float
    y: float
    z: float
    angle: float

    def mesh(self) -> shapes.Mesh:
        """The whole piece in room coordinates."""
        mesh = shapes.merge(self.piece.meshes)
        return shapes.Mesh(rotate_z(mesh.vertices, self.angle) + (self.x, self.y, self.z), mesh.faces)


@dataclass
class Spot:
    """Where a group came to stand."""

    group: Group
    x: float
    y: float
    angle: float
    wall: Wall | None = None
    u: float = 0.0

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Room coordinates of a point in the group's frame."""
        c, s = np.cos(self.angle), np.sin(self.angle)
        return self.x + c * x - s * y, self.y + s * x + c * y


class Room:
    """A floor plan that is filled step by step; what does not fit is not placed."""

    def __init__(self, kit: Kit, width: float, depth: float, height: float, notch: tuple | None) -> None:
        self.kit, self.width, self.depth, self.height = kit, width, depth, height
        self.notch = notch  # (corner 0..3, width, depth) cut away, or None
        self.rects = _floor_rects(width, depth, notch)
        self.walls = _walls(_outline(width, depth, notch))
        self.solid: list[Footprint] = []  # nothing may overlap these
        self.clear: list[Footprint] = []  # kept free of furniture, but one may walk there
        self.placed: list[Placed] = []

    def inside(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """(N,) bool: which of (N, 2) points lie in the plan, `margin` away from its outer walls."""
        half = np.array([self.width, self.depth]) / 2 - margin
        ok = np.all(np.abs(points) <= half + 1e-6, axis=1)
        if self.notch:
            ok &= ~_notch_footprint(self.width, self.depth, self.notch).grown(margin - 1e-5).contains(points)
        return ok

    def fits(self, shape: Footprint) -> bool:
        if not self.inside(shape.corners()).all():
            return False
        blocks: Iterable[Footprint] = self.solid + self.clear
        if self.notch:
            blocks = [*blocks, _notch_footprint(self.width, self.depth, self.notch)]
        return not any(shape.overlaps(block) for block in blocks)

    def put(self, group: Group, x: float, y: float, z: float, angle: float) -> None:
        self.placed += [Placed(piece, x, y, z, angle) for piece in group.pieces]

    def stand(self, group: Group, x: float, y: float, angle: float, gap: float = 0.0) -> Spot | None:
        """On the floor, if it is free there (and `gap` metres around)."""
        shape = Footprint(x, y, angle, group.size[0] / 2 + gap, group.size[1] / 2 + gap)
        if not self.fits(shape):
            return None
        self.solid.append(shape.grown(-gap))
        self.put(group, x, y, 0.0, angle)
        return Spot(group, x, y, angle)

    def against_wall(self, group: Group, walls: list[Wall] | None = None, tries: int = 40,
                     corner: bool = False, front: float = 0.0) -> Spot | None:  # fmt: skip
        """Back to a wall, clear of doors and windows, with `front` metres kept free before it."""
        w, d, h = group.size
        for _ in range(tries):
            wall = self.kit.pick(walls or self.walls)
            room = wall.length - w
            if room < 0:
                continue
            u = w / 2 + (self.kit.pick((0.0, room)) if corner else self.kit.uniform(0, room))
            spot = self._try_wall(group, wall, u, d, h, front)
            if spot:
                return spot
        return None

    def _try_wall(self, group: Group, wall: Wall, u: float, d: float, h: float, front: float) -> Spot | None:
        w = group.size[0]
        rect = Rect(u - w / 2, u + w / 2, 0.0, h)
        if not wall.free(rect):
            return None
        gap = self.kit.uniform(0.005, 0.03)
        x, y = wall.point(u, d / 2 + gap)
        ahead = Footprint(*wall.point(u, d + gap + front / 2), wall.angle, 0.48 * w, front / 2)
        if not self.inside(ahead.corners()).all() or any(ahead.overlaps(o) for o in self.solid):
            return None
        spot = self.stand(group, x, y, wall.angle)
        if spot:
            spot.wall, spot.u = wall, u
            wall.taken.append(rect)
        return spot

    def beside(self, group: Group, spot: Spot, side: int, gap: float) -> Spot | None:
        """Next to something at a wall, flush with its back."""
        if spot.wall is None:
            return None
        u = spot.u + side * (spot.group.size[0] / 2 + gap + group.size[0] / 2)
        return self._try_wall(group, spot.wall, u, group.size[1], group.size[2], 0.0)

    def in_the_open(self, group: Group, gap: float, tries: int = 60, turn: float | None = None) -> Spot | None:
        """Anywhere on the floor with `gap` metres around it."""
        for _ in range(tries):
            rect = self.rects[self.kit.rng.choice(len(self.rects), p=_areas(self.rects))]
            x, y = self.kit.uniform(rect[0], rect[1]), self.kit.uniform(rect[2], rect[3])
            angle = self.kit.integer(0, 3) * np.pi / 2 if turn is None else turn
            spot = self.stand(group, x, y, angle + self.kit.rng.normal(0, 0.03), gap)
            if spot:
                return spot
        return None

    def on_wall(self, pieces: list[Piece], wall: Wall, u: float, rect: Rect) -> bool:
        """Hang on a wall whose rectangle `rect` is then taken; False if it is not free."""
        if rect.z1 > self.height - 0.02 or not wall.free(rect):
            return False
        wall.taken.append(rect)
        x, y = wall.point(u)
        self.placed += [Placed(piece, x, y, 0.0, wall.angle) for piece in pieces]
        return True

    def on_top(self, make: tuple, spot: Spot, count: int, face_front: bool = False) -> None:
        """Up to `count` things of the kinds `make` on the tops of what stands at `spot`."""
        for top in spot.group.tops:
            busy: list[Footprint] = []
            for _ in range(count):
                group = self.kit.pick(make)(self.kit)
                shape = self._room_on(top, group, busy, face_front)
                if shape is None or top.z + group.size[2] > self.height - 0.1:
                    continue
                busy.append(shape)
                self.put(group, *spot.at(shape.x, shape.y), top.z, spot.angle + shape.angle)

    def _room_on(self, top: Top, group: Group, busy: list[Footprint], face_front: bool) -> Footprint | None:
        half_w, half_d = group.size[0] / 2, group.size[1] / 2
        span_x, span_y = top.x1 - top.x0 - 2 * half_w, top.y1 - top.y0 - 2 * half_d
        if span_x < 0 or span_y < 0:
            return None
        for _ in range(6):
            x = top.x0 + half_w + self.kit.uniform(0, 1) * span_x
            y = top.y0 + half_d + self.kit.uniform(0, 0.5 if face_front else 1) * span_y
            turn = 0.0 if face_front else float(self.kit.rng.normal(0, 0.08))
            shape = Footprint(x, y, turn, half_w, half_d)
            if not any(shape.overlaps(other) for other in busy):
                return shape
        return None


def new_room(kit: Kit, width: float, depth: float) -> Room:
    """An empty room: rectangular, or L-shaped if it is large enough."""
    notch = None
    if min(width, depth) > 3.6 and kit.chance(0.4):
        notch = (kit.integer(0, 3), width * kit.uniform(0.25, 0.45), depth * kit.uniform(0.25, 0.45))
    return Room(kit, width, depth, kit.uniform(2.3, 2.9), notch)


def _notch_footprint(width: float, depth: float, notch: tuple) -> Footprint:
    corner, w, d = notch
    sx, sy = ((-1, -1), (1, -1), (1, 1), (-1, 1))[corner]
    return Footprint(sx * (width - w) / 2, sy * (depth - d) / 2, 0.0, w / 2, d / 2)


def _outline(width: float, depth: float, notch: tuple | None) -> list[tuple[float, float]]:
    """Corners counter-clockwise."""
    a, b = width / 2, depth / 2
    corners = [(-a, -b), (a, -b), (a, b), (-a, b)]
    if notch is None:
        return corners
    k, w, d = notch
    x, y = corners[k]
    ix, iy = x - np.sign(x) * w, y - np.sign(y) * d
    # Walking round, corners 0 and 2 are reached along y and left along x; 1 and 3 the other way.
    cut = [(x, iy), (ix, iy), (ix, y)] if k in (0, 2) else [(ix, y), (ix, iy), (x, iy)]
    return corners[:k] + cut + corners[k + 1 :]


def _walls(corners: list[tuple[float, float]]) -> list[Wall]:
    walls = []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        length = float(np.hypot(x1 - x0, y1 - y0))
        walls.append(Wall((x0, y0), float(np.arctan2(y1 - y0, x1 - x0)), length))
    return walls


def _floor_rects(width: float, depth: float, notch: tuple | None) -> list[tuple[float, float, float, float]]:
    """Rectangles (x0, x1, y0, y1) that tile the plan."""
    a, b = width / 2, depth / 2
    if notch is None:
        return [(-a, a, -b, b)]
    hole = _notch_footprint(width, depth, notch)
    left = hole.x < 0
    edge = hole.x + hole.half_w if left else hole.x - hole.half_w
    low, high = (-b, hole.y - hole.half_d) if hole.y > 0 else (hole.y + hole.half_d, b)
    full = (edge, a, -b, b) if left else (-a, edge, -b, b)
    part = (-a, edge, low, high) if left else (edge, a, low, high)
    return [full, part]


def _areas(rects: list) -> np.ndarray:
    area = np.array([(r[1] - r[0]) * (r[3] - r[2]) for r in rects])
    return area / area.sum()


def shell(room: Room) -> list[Placed]:
    """Walls with their openings cut out, floor and ceiling; each wall is an instance."""
    kit, placed = room.kit, []
    paints = [kit.material()] * len(room.walls)
    if kit.chance(0.4):
        paints[kit.integer(0, len(paints) - 1)] = kit.material()
    base = kit.material() if kit.chance(0.5) else None
    for wall, paint in zip(room.walls, paints):
        piece = Piece("wall", kit)
        for mesh in _pierced(wall, room.height, kit.density()):
            piece.add(mesh, paint)
        if base is not None:
            _skirting(piece, wall, base)
        placed.append(Placed(piece, *wall.start, 0.0, wall.angle))
    floor, ceiling = Piece("floor", kit), Piece("ceiling" if kit.chance(0.5) else None, kit)
    stone, white, step = kit.material(), kit.material(), kit.density()
    for x0, x1, y0, y1 in room.rects:
        flat = shapes.sheet((x0, y0, 0), (x1 - x0, 0, 0), (0, y1 - y0, 0), step)
        floor.add(flat, stone)
        ceiling.add(shapes.flipped(flat), white, (0, 0, room.height))
    return placed + [Placed(piece, 0.0, 0.0, 0.0, 0.0) for piece in (floor, ceiling)]


def _pierced(wall: Wall, height: float, step: float) -> list[shapes.Mesh]:
    """The wall in its own frame as rectangles around the openings."""
    us = sorted({0.0, wall.length, *(e for o in wall.openings for e in (o.u0, o.u1))})
    zs = sorted({0.0, height, *(e for o in wall.openings for e in (o.z0, o.z1))})
    sheets = []
    for u0, u1 in zip(us[:-1], us[1:]):
        for z0, z1 in zip(zs[:-1], zs[1:]):
            cell = Rect(u0, u1, z0, z1)
            if not any(cell.overlaps(opening) for opening in wall.openings):
                # The room is on +y: u runs against x so that u x v points there.
                sheets.append(shapes.sheet((u1, 0, z0), (u0 - u1, 0, 0), (0, 0, z1 - z0), step))
    return sheets


def _skirting(piece: Piece, wall: Wall, finish) -> None:
    """A low board along the wall's foot, interrupted at doors."""
    ends = [0.0] + [e for o in sorted(wall.openings) if o.z0 <= 0 for e in (o.u0 - 0.1, o.u1 + 0.1)] + [wall.length]
    for u0, u1 in zip(ends[::2], ends[1::2]):
        if u1 - u0 > 0.05:
            piece.box((u1 - u0, 0.015, 0.08), ((u0 + u1) / 2, 0.0075, 0), finish)
