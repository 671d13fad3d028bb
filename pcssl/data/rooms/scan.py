"""What a hand-held depth camera would have seen of a flat, and how badly.

The camera walks through each room. A vertex is kept if enough of its views saw it well. A view
sees a vertex that faces it, lies in its field and is not behind the surface that is in front in
the same direction (a depth map of surface elements). Nothing is seen through doors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pcssl.data.rooms.fuse import blended
from pcssl.data.rooms.layout import Room
from pcssl.data.rooms.materials import smooth_noise
from pcssl.data.rooms.piece import Kit
from pcssl.data.rooms.shapes import Mesh

PIXEL = 0.021  # of the depth map, as a tangent: a vertex spacing of 2.1 cm at 1 m
HALF_W, HALF_H = 0.85, 0.54  # half the field, as tangents: a camera that sways 15 degrees about each pose
COLUMNS, ROWS = int(2 * HALF_W / PIXEL) + 1, int(2 * HALF_H / PIXEL) + 1
NEAR, FAR = 0.35, 4.5  # metres
GRAZING = 0.12  # cosine of incidence under which nothing is measured
CHUNK = 0.7  # metres: vertices are culled in cubes


class View(NamedTuple):
    position: np.ndarray  # (3,)
    axes: np.ndarray  # (3, 3) right, up, forward


class Seen(NamedTuple):
    """Vertices that remain, and how far from their best view."""

    index: np.ndarray  # (M,) into the vertices
    distance: np.ndarray  # (M,) metres
    toward: np.ndarray  # (M, 3) unit vectors to that view
    quality: np.ndarray  # (M,) how well they were seen, about 0.1 to 10


# ---------------------------------------------------------------- the path


def camera_path(room: Room, kit: Kit) -> list[View]:
    """Poses of a walk over the free floor; every part of the room is looked at from a few metres."""
    views, spots = [], _standing_room(room, kit.rng)
    count = int(np.clip(kit.uniform(1.6, 2.2) * room.area, 18, 40))
    for target in _spread(_over_plan(room, kit.rng, 300, 0.02), count, kit.rng):
        distance = np.hypot(*(spots - target).T)
        # From one or two metres, though not always from the best place.
        at = spots[np.argmin(np.abs(distance - kit.uniform(0.7, 2.4)) + kit.rng.uniform(0, 0.8, len(spots)))]
        views.append(_looking(at, target, room.height, kit))
    return views


def _looking(at: np.ndarray, target: np.ndarray, height: float, kit: Kit) -> View:
    """A pose over `at`, turned to a place on the plan: mostly down at it, now and then up the wall."""
    eye = np.array([*at, kit.uniform(1.25, 1.7)])
    aim = np.array([*target, max(0.0, kit.rng.normal(0.25, 0.35)) if kit.chance(0.97) else height - 0.3])
    forward = (aim - eye) / max(math.dist(aim, eye), 1e-6)
    if abs(forward[2]) > 0.95:
        forward = np.array([0.28, 0.0, -0.96])
    right = np.array([forward[1], -forward[0], 0.0]) / math.hypot(forward[0], forward[1])
    up = _cross(right, forward)
    roll = float(kit.rng.normal(0, 0.06))
    c, s = math.cos(roll), math.sin(roll)
    return View(eye, np.stack([c * right + s * up, c * up - s * right, forward]))


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _over_plan(room: Room, rng: np.random.Generator, count: int, margin: float) -> np.ndarray:
    x0, x1, y0, y1 = room.bounds
    spots = np.stack([rng.uniform(x0, x1, count), rng.uniform(y0, y1, count)], 1)
    return spots[room.inside(spots, margin)]


def _standing_room(room: Room, rng: np.random.Generator) -> np.ndarray:
    """Places (N, 2) far enough from furniture; nearer where a room is crowded."""
    spots = _over_plan(room, rng, 400, 0.25)
    for margin in (0.35, 0.2, 0.05):
        free = np.ones(len(spots), bool)
        for solid in room.solid:
            if solid.z0 < 1.7:
                free &= ~solid.base.grown(margin).contains(spots)
        if free.sum() >= 6:
            break
    # Where nobody could stand, the scan is taken from over the furniture.
    return spots[free] if free.any() else spots


def _spread(spots: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Farthest-point choice with random weights, so that it is not a lattice."""
    chosen = [int(rng.integers(len(spots)))]
    gap = np.hypot(*(spots - spots[chosen[0]]).T)
    for _ in range(min(count, len(spots)) - 1):
        chosen.append(int(np.argmax(gap * rng.uniform(0.6, 1.0, len(spots)))))
        gap = np.minimum(gap, np.hypot(*(spots - spots[chosen[-1]]).T))
    return spots[chosen]


# ---------------------------------------------------------------- what the poses see


def vertex_normals(mesh: Mesh) -> np.ndarray:
    """(N, 3) unit normals, area weighted; zero where a vertex has no face."""
    a, b, c = mesh.faces.T
    columns = np.ascontiguousarray(mesh.vertices.T)
    u, v = [x[b] - x[a] for x in columns], [x[c] - x[a] for x in columns]
    total = np.empty_like(mesh.vertices)
    for i in range(3):
        face = u[i - 2] * v[i - 1] - u[i - 1] * v[i - 2]
        total[:, i] = sum(np.bincount(corner, face, len(total)) for corner in (a, b, c))
    length = np.sqrt((total**2).sum(1, keepdims=True))
    return total / np.maximum(length, 1e-12)


class _Surface:
    """Vertices in cubes, so that a view reads only those that it may see."""

    def __init__(self, points: np.ndarray, normals: np.ndarray) -> None:
        cell = np.floor(points / CHUNK).astype(np.int64)
        cell -= cell.min(0)
        sides = cell.max(0) + 1
        key = (cell[:, 0] * sides[1] + cell[:, 1]) * sides[2] + cell[:, 2]
        # What faces one way is seen by the same views.
        facing = np.argmax(np.abs(normals), axis=1)
        facing = 2 * facing + (normals[np.arange(len(normals)), facing] > 0)
        key = (key * 6 + facing).astype(np.int32)
        self.order = np.argsort(key, kind="stable")
        self.start = np.flatnonzero(np.diff(key[self.order], prepend=-1))
        self.stop = np.append(self.start[1:], len(key))
        self.points = np.ascontiguousarray(points[self.order].T, np.float32)
        self.normals = np.ascontiguousarray(normals[self.order].T, np.float32)
        low = np.stack([np.minimum.reduceat(axis, self.start) for axis in self.points], 1)
        high = np.stack([np.maximum.reduceat(axis, self.start) for axis in self.points], 1)
        self.middle, self.radius = (low + high) / 2, np.sqrt(((high - low) ** 2).sum(1)) / 2 + 1e-3
        # A lower bound on how far vertices face away: the flat cubes, most of all, go at once.
        self.facing_low = np.stack([np.minimum.reduceat(axis, self.start) for axis in self.normals], 1)
        self.facing_high = np.stack([np.maximum.reduceat(axis, self.start) for axis in self.normals], 1)

    def may_see(self, view: View) -> np.ndarray:
        """Rows of the sorted vertices in cubes that meet the field of a view."""
        offset = self.middle - view.position
        right, up, forward = ((offset * axis).sum(1) for axis in view.axes)
        r = self.radius
        # The sides of the field are planes through the eye, at these angles.
        ok = (forward > -r) & ((offset**2).sum(1) < (FAR + r) ** 2)
        ok &= (np.abs(right) - HALF_W * forward) < r * math.hypot(1, HALF_W)
        ok &= (np.abs(up) - HALF_H * forward) < r * math.hypot(1, HALF_H)
        # Offset times normal is positive for all that the cube holds: it faces away.
        least = np.zeros(len(r))
        for axis in range(3):
            ends = [(offset[:, axis] + s * r) * n for s in (-1, 1) for n in (self.facing_low[:, axis], self.facing_high[:, axis])]
            least += np.min(ends, axis=0)
        ok &= least < 0
        chosen = np.flatnonzero(ok)
        lengths = self.stop[chosen] - self.start[chosen]
        first = np.repeat(self.start[chosen] - (np.cumsum(lengths) - lengths), lengths)
        return first + np.arange(len(first))


def observe(points: np.ndarray, normals: np.ndarray, returns: np.ndarray, views: list[View], kit: Kit) -> Seen:
    """Which vertices (N, 3) survive the scan. returns: (N,) the share of light that comes back."""
    surface = _Surface(points, normals)
    n = len(points)
    quality, best = np.zeros(n, np.float32), np.full(n, -1, np.float32)
    distance, which = np.full(n, FAR, np.float32), np.zeros(n, np.int32)
    for number, view in enumerate(views):
        row, far, cosine = _visible(surface, view)
        # Depth cameras lose surfaces that are far away or turned away.
        value = np.minimum(1.6 * cosine, 1) * np.clip(1.5 - far / FAR * 1.3, 0.1, 1) * np.float32(kit.uniform(0.6, 1.4))
        quality[row] += value
        better = value > best[row]
        chosen = row[better]
        best[chosen], distance[chosen], which[chosen] = value[better], far[better], number
    order = surface.order
    quality *= returns[order].astype(np.float32)
    sorted_points = surface.points.T  # float32
    patchy = np.exp(0.9 * smooth_noise(sorted_points, 0.7, kit.rng.uniform(0, 6, 6)))
    patchy *= np.exp(0.6 * smooth_noise(sorted_points, 2.9, kit.rng.uniform(0, 6, 6)))
    keep = quality > 0.14 * patchy
    keep = keep[np.argsort(order)]  # in the order of the vertices
    back = np.empty(n, np.int64)
    back[order] = np.arange(n)
    index = np.flatnonzero(keep)
    row = back[index]
    eyes = np.stack([view.position for view in views])[which[row]]
    ray = eyes - points[index]
    ray /= np.maximum(np.sqrt((ray**2).sum(1, keepdims=True)), 1e-6)
    return Seen(index, distance[row].astype(float), ray, quality[row].astype(float))


def _visible(surface: _Surface, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the sorted vertices that one view sees, their distance and cosine of incidence."""
    row = surface.may_see(view)
    offset = surface.points[:, row] - view.position.astype(np.float32)[:, None]
    normal = surface.normals[:, row]
    away = offset[0] * normal[0] + offset[1] * normal[1] + offset[2] * normal[2]
    axes = view.axes.astype(np.float32)
    right, up, forward = (axis[0] * offset[0] + axis[1] * offset[1] + axis[2] * offset[2] for axis in axes)
    ok = (away < 0) & (forward > 0.05) & (np.abs(right) < HALF_W * forward) & (np.abs(up) < HALF_H * forward)
    sel = np.flatnonzero(ok)
    offset, normal, forward = offset[:, sel], normal[:, sel], forward[sel]
    far = np.sqrt(offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2)
    cosine = -away[sel] / far
    line = ((up[sel] / forward + HALF_H) / PIXEL).astype(np.int64)
    column = ((right[sel] / forward + HALF_W) / PIXEL).astype(np.int64)
    front = _front(line, column, far)
    mine = np.flatnonzero((far > NEAR) & (far < FAR) & (cosine > GRAZING))
    other = front[line[mine], column[mine]]
    gap = far[mine] - far[other]
    behind = sum((offset[i, mine] - offset[i, other]) * normal[i, other] for i in range(3))
    # Within one pixel of the same surface, or of a corner, depths differ by no more than this.
    spread = np.minimum(2 * PIXEL * far[other] / np.maximum(cosine[other], 0.05), 0.25)
    hidden = (gap > 0.02) & ((behind < -0.012) | (gap > spread + 0.02))
    mine = mine[~hidden]
    return row[sel[mine]], far[mine], cosine[mine]


def _front(row: np.ndarray, column: np.ndarray, far: np.ndarray) -> np.ndarray:
    """(ROWS, COLUMNS) index of the nearest vertex in each pixel; near vertices are splatted wide."""
    empty = np.iinfo(np.int64).max
    wide = COLUMNS + 4  # a margin of two cells on every side takes the splats
    key = ((far * 1000).astype(np.int64) << 32) | np.arange(len(far))
    depth = np.full((ROWS + 4) * wide, empty)
    cell = (row + 2) * wide + column + 2
    np.minimum.at(depth, cell, key)
    cross, ring = ((0, 1), (0, -1), (1, 0), (-1, 0)), ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 2), (0, -2), (2, 0), (-2, 0))
    for reach, shifts in ((1.6, cross), (0.8, ring)):
        near = np.flatnonzero(far < reach)
        for down, right in shifts:
            np.minimum.at(depth, cell[near] + down * wide + right, key[near])
    depth = depth.reshape(ROWS + 4, wide)[2:-2, 2:-2]
    return np.where(depth == empty, 0, depth & 0xFFFFFFFF)


# ---------------------------------------------------------------- how badly


def depth_noise(
    points: np.ndarray, normals: np.ndarray, faces: np.ndarray, rough: np.ndarray, seen: Seen, kit: Kit
) -> np.ndarray:
    """Points (M, 3) as measured: off the surface, more so far away, in smooth waves as fusion of many
    frames leaves them, with jitter, more of it where edges are `rough` (M,), and shifted within the surface."""
    rng, single = kit.rng, points.astype(np.float32)
    sigma = (0.0012 + 0.0012 * seen.distance**2) * kit.uniform(0.6, 1.2)
    waves = smooth_noise(single, 1.3, rng.uniform(0, 6, 6)) + smooth_noise(single, 3.7, rng.uniform(0, 6, 6))
    jitter = (0.5 + 2.5 * rough) * rng.standard_normal(len(points))
    push = blended(sigma * (0.7 * waves + jitter), faces, 2)
    drift = np.stack([smooth_noise(single, 0.25, rng.uniform(0, 6, 6)) for _ in range(3)], 1)
    slide = rng.uniform(-0.3, 0.3, points.shape) * kit.step
    slide -= (slide * normals).sum(1, keepdims=True) * normals
    return points + push[:, None] * normals + 0.006 * drift + slide


def shade(colors: np.ndarray, normals: np.ndarray, points: np.ndarray, kit: Kit) -> np.ndarray:
    """uint8 colours under soft lights, darker in corners, with the scene's exposure, white balance and noise."""
    rng = kit.rng
    low, high = points.min(0), points.max(0)
    light = kit.uniform(0.6, 0.95) * _ambient(points, normals)
    for _ in range(max(2, round((high[0] - low[0]) * (high[1] - low[1]) / 12))):
        lamp = np.array([*rng.uniform(low[:2], high[:2]), kit.uniform(1.4, 2.5)])
        offset = lamp - points
        reach = np.sqrt((offset**2).sum(1))
        facing = np.maximum((offset * normals).sum(1) / np.maximum(reach, 0.2), 0)
        light += kit.uniform(0.2, 0.7) * facing / (1 + 0.35 * reach**2)
    light *= 1 + 0.15 * smooth_noise(points.astype(np.float32), 0.4, rng.uniform(0, 6, 6))
    # Lamps are warm, and cameras correct that in part.
    balance = kit.uniform(0.8, 1.45) * (1 + rng.normal(0, 0.05, 3)) * (np.array([1.1, 1.0, 0.82]) ** kit.uniform(-0.2, 1.0))
    linear = np.clip(colors, 0.02, 1) * light[:, None] * balance
    linear = linear ** kit.uniform(0.7, 1.05) + rng.normal(0, 0.012, colors.shape)
    return np.rint(255 * np.clip(linear, 0, 1)).astype(np.uint8)


def _ambient(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """(N,) how open the space before each point is, in [0.4, 1]: less under tables and in corners."""
    side = 0.2
    low = points.min(0) - 4 * side
    shape = ((points.max(0) - low) / side).astype(np.int64) + 5
    taken = np.zeros(shape, np.float32)
    taken[tuple(((points - low) / side).astype(np.int64).T)] = 1.0
    for axis in range(3):  # the mean over 3 cells a side
        taken = (np.roll(taken, 1, axis) + taken + np.roll(taken, -1, axis)) / 3
    at = ((points + 0.25 * normals - low) / side - 0.5).astype(np.float32)
    cell = at.astype(np.int64)
    part, flat, row = at - cell, taken.ravel(), (cell[:, 0] * shape[1] + cell[:, 1]) * shape[2] + cell[:, 2]
    level = np.zeros(len(points), np.float32)
    for i, j, k in np.ndindex(2, 2, 2):
        weight = np.abs((1 - i - part[:, 0]) * (1 - j - part[:, 1]) * (1 - k - part[:, 2]))
        level += weight * flat[row + (i * shape[1] + j) * shape[2] + k]
    return np.clip(1.25 - 1.3 * level, 0.4, 1.0)
