"""A room that is filled step by step, and what keeps things apart: on the floor, on walls and on tops."""

from __future__ import annotations

import math
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
        c, s = math.cos(self.angle), math.sin(self.angle)
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        local = [(i * self.half_w, j * self.half_d) for i, j in signs]
        return np.array([(self.x + c * a - s * b, self.y + s * a + c * b) for a, b in local])

    def grown(self, by: float) -> Footprint:
        return self._replace(half_w=self.half_w + by, half_d=self.half_d + by)

    def overlaps(self, other: Footprint) -> bool:
        """Separating axis test; touching is not overlapping."""
        dx, dy = other.x - self.x, other.y - self.y
        reach = math.hypot(self.half_w, self.half_d) + math.hypot(other.half_w, other.half_d)
        if dx * dx + dy * dy > reach * reach:
            return False
        turn = other.angle - self.angle
        c, s = abs(math.cos(turn)), abs(math.sin(turn))
        for one, two in ((self, other), (other, self)):
            ca, sa = math.cos(one.angle), math.sin(one.angle)
            along, across = abs(ca * dx + sa * dy), abs(ca * dy - sa * dx)
            if along > one.half_w + c * two.half_w + s * two.half_d - 1e-6:
                return False
            if across > one.half_d + s * two.half_w + c * two.half_d - 1e-6:
                return False
        return True

    def contains(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool for points (N, 2)."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        x, y = points[:, 0] - self.x, points[:, 1] - self.y
        return (np.abs(c * x + s * y) <= self.half_w) & (np.abs(c * y - s * x) <= self.half_d)


class Solid(NamedTuple):
    """A footprint between two heights."""

    base: Footprint
    z0: float
    z1: float

    def overlaps(self, other: Solid) -> bool:
        return self.z0 < other.z1 - 1e-6 and other.z0 < self.z1 - 1e-6 and self.base.overlaps(other.base)


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
    inner: list[tuple[float, float]] = field(default_factory=list)  # stretches with another room behind them

    def point(self, u: float, out: float = 0.0) -> tuple[float, float]:
        """The place u metres along the wall, `out` metres into the room."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return self.start[0] + u * c - out * s, self.start[1] + u * s + out * c

    def free(self, rect: Rect) -> bool:
        inside = rect.u0 >= -1e-6 and rect.u1 <= self.length + 1e-6
        return inside and not any(rect.overlaps(other) for other in self.taken)

    def free_spans(self, z0: float, z1: float) -> list[tuple[float, float]]:
        """Stretches of the wall with nothing on it between two heights."""
        spans, at = [], 0.0
        for rect in sorted(r for r in self.taken if r.z0 < z1 and z0 < r.z1):
            if rect.u0 > at:
                spans.append((at, rect.u0))
            at = max(at, rect.u1)
        return [*spans, (at, self.length)] if at < self.length else spans

    def outside(self, u0: float, u1: float) -> bool:
        """Is the open air behind this stretch?"""
        return not any(u0 < b and a < u1 for a, b in self.inner)


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
        c, s = math.cos(self.angle), math.sin(self.angle)
        return self.x + c * x - s * y, self.y + s * x + c * y


class Room:
    """A floor plan that is filled step by step; what does not fit is not placed.

    bounds: x0, x1, y0, y1 of its inner faces. notch: (corner 0..3, width, depth) cut away, or None.
    """

    def __init__(self, kit: Kit, kind: str, bounds: tuple, height: float, notch: tuple | None = None) -> None:
        self.kit, self.kind, self.bounds, self.height, self.notch = kit, kind, bounds, height, notch
        self.rects = _floor_rects(bounds, notch)
        self.area = sum((r[1] - r[0]) * (r[3] - r[2]) for r in self.rects)
        self.walls = _walls(_outline(bounds, notch))
        self.solid: list[Solid] = []  # nothing may overlap these
        self.clear: list[Solid] = []  # kept free of furniture, but one may walk there
        self.placed: list[Placed] = []
        self.cut = [] if notch is None else [Solid(_notch_footprint(bounds, notch), 0.0, height)]

    def inside(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """(N,) bool: which of (N, 2) points lie in the plan, `margin` away from its outer walls."""
        x0, x1, y0, y1 = self.bounds
        edge = margin - 1e-6
        ok = (points[:, 0] >= x0 + edge) & (points[:, 0] <= x1 - edge)
        ok &= (points[:, 1] >= y0 + edge) & (points[:, 1] <= y1 - edge)
        for cut in self.cut:
            ok &= ~cut.base.grown(margin - 1e-5).contains(points)
        return ok

    def fits(self, solid: Solid, clear: bool = True) -> bool:
        """Inside the plan and clear of everything that stands there?"""
        if solid.z1 > self.height - 0.01 or not self.inside(solid.base.corners()).all():
            return False
        blocks = self.solid + self.cut + (self.clear if clear else [])
        return not any(solid.overlaps(block) for block in blocks)

    def put(self, group: Group, x: float, y: float, z: float, angle: float) -> None:
        """Place without asking; its blocks are then taken."""
        self.placed += [Placed(piece, x, y, z, angle) for piece in group.pieces]
        self.solid += solids(group, x, y, z, angle)

    def stand(self, group: Group, x: float, y: float, angle: float, gap: float = 0.0, z: float = 0.0) -> Spot | None:
        """At this place, if it is free there (and `gap` metres around)."""
        blocks = solids(group, x, y, z, angle)
        if not all(self.fits(block._replace(base=block.base.grown(gap))) for block in blocks):
            return None
        self.put(group, x, y, z, angle)
        return Spot(group, x, y, angle)

    def against_wall(self, group: Group, walls: list[Wall] | None = None, tries: int = 30,
                     corner: bool = False, front: float = 0.0) -> Spot | None:  # fmt: skip
        """Back to a wall, clear of doors and windows, with `front` metres kept free before its middle.

        corner: mostly at an end of the wall, or next to what stands there already.
        """
        w, _, h = group.size
        spans = [(wall, *span) for wall in walls or self.walls for span in wall.free_spans(0.0, h) if span[1] - span[0] >= w]
        for _ in range(tries if spans else 0):
            wall, low, high = self.kit.pick(spans)
            ends = (low + w / 2 + 1e-6, high - w / 2 - 1e-6)
            u = self.kit.pick(ends) if corner and self.kit.chance(0.7) else self.kit.uniform(*ends)
            spot = self.at_wall(group, wall, u, front)
            if spot:
                return spot
        return None

    def at_wall(self, group: Group, wall: Wall, u: float, front: float = 0.0, z: float = 0.0) -> Spot | None:
        """Back to this wall at u, its underside at height z."""
        w, d, h = group.size
        rect = Rect(u - w / 2, u + w / 2, z, z + h)
        if not wall.free(rect):
            return None
        gap = self.kit.uniform(0.005, 0.03)
        x, y = wall.point(u, d / 2 + gap)
        if front:
            ahead = Footprint(*wall.point(u, d + gap + front / 2), wall.angle, min(0.48 * w, 0.3), front / 2)
            if not self.fits(Solid(ahead, 0.0, 1.0), clear=False):
                return None
        spot = self.stand(group, x, y, wall.angle, z=z)
        if spot:
            spot.wall, spot.u = wall, u
            wall.taken.append(rect)
        return spot

    def beside(self, group: Group, spot: Spot | None, side: int, gap: float) -> Spot | None:
        """Next to something at a wall, flush with its back."""
        if spot is None or spot.wall is None:
            return None
        u = spot.u + side * (spot.group.size[0] / 2 + gap + group.size[0] / 2)
        return self.at_wall(group, spot.wall, u)

    def in_the_open(self, group: Group, gap: float, tries: int = 40, turn: float | None = None) -> Spot | None:
        """Anywhere on the floor with `gap` metres around it."""
        areas = np.array([(r[1] - r[0]) * (r[3] - r[2]) for r in self.rects])
        for _ in range(tries):
            rect = self.rects[int(self.kit.rng.choice(len(self.rects), p=areas / areas.sum()))]
            x, y = self.kit.uniform(rect[0], rect[1]), self.kit.uniform(rect[2], rect[3])
            angle = self.kit.integer(0, 3) * np.pi / 2 if turn is None else turn
            spot = self.stand(group, x, y, angle + float(self.kit.rng.normal(0, 0.03)), gap)
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

    def on_top(self, group: Group, spot: Spot, top: Top, to_front: bool = False) -> bool:
        """Stand something on a top of what stands at `spot`, where it is free; small things turn a little."""
        half_w, half_d = group.size[0] / 2, group.size[1] / 2
        span_x, span_y = top.x1 - top.x0 - 2 * half_w, top.y1 - top.y0 - 2 * half_d
        if span_x < 0 or span_y < 0 or group.size[2] > top.room:
            return False
        for _ in range(6):
            x = top.x0 + half_w + self.kit.uniform(0, 1) * span_x
            y = top.y0 + half_d + (self.kit.uniform(0, 0.4) if to_front else self.kit.uniform(0, 1)) * span_y
            turn = 0.0 if to_front else float(self.kit.rng.normal(0, 0.08))
            if self.stand(group, *spot.at(x, y), spot.angle + turn, z=top.z + 0.002):
                return True
        return False


def solids(group: Group, x: float, y: float, z: float, angle: float) -> list[Solid]:
    """The blocks of a group that stands at (x, y, z)."""
    c, s = math.cos(angle), math.sin(angle)
    found = []
    for b in group.blocks:
        mx, my = (b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2
        base = Footprint(x + c * mx - s * my, y + s * mx + c * my, angle, (b.x1 - b.x0) / 2, (b.y1 - b.y0) / 2)
        found.append(Solid(base, z + b.z0, z + b.z1))
    return found


def _notch_footprint(bounds: tuple, notch: tuple) -> Footprint:
    x0, x1, y0, y1 = bounds
    corner, w, d = notch
    x = x0 + w / 2 if corner in (0, 3) else x1 - w / 2
    y = y0 + d / 2 if corner in (0, 1) else y1 - d / 2
    return Footprint(x, y, 0.0, w / 2, d / 2)


def _outline(bounds: tuple, notch: tuple | None) -> list[tuple[float, float]]:
    """Corners counter-clockwise."""
    x0, x1, y0, y1 = bounds
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if notch is None:
        return corners
    k, w, d = notch
    x, y = corners[k]
    ix, iy = x + (w if k in (0, 3) else -w), y + (d if k in (0, 1) else -d)
    # Walking round, corners 0 and 2 are reached along y and left along x; 1 and 3 the other way.
    cut = [(x, iy), (ix, iy), (ix, y)] if k in (0, 2) else [(ix, y), (ix, iy), (x, iy)]
    return corners[:k] + cut + corners[k + 1 :]


def _walls(corners: list[tuple[float, float]]) -> list[Wall]:
    walls = []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        walls.append(Wall((x0, y0), math.atan2(y1 - y0, x1 - x0), math.hypot(x1 - x0, y1 - y0)))
    return walls


def _floor_rects(bounds: tuple, notch: tuple | None) -> list[tuple[float, float, float, float]]:
    """Rectangles (x0, x1, y0, y1) that tile the plan."""
    if notch is None:
        return [tuple(bounds)]
    x0, x1, y0, y1 = bounds
    hole = _notch_footprint(bounds, notch)
    left = notch[0] in (0, 3)
    edge = hole.x + hole.half_w if left else hole.x - hole.half_w
    low, high = (y0, hole.y - hole.half_d) if notch[0] in (2, 3) else (hole.y + hole.half_d, y1)
    full = (edge, x1, y0, y1) if left else (x0, edge, y0, y1)
    part = (x0, edge, low, high) if left else (edge, x1, low, high)
    return [full, part]
