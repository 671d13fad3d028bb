"""Meshes of simple surfaces, sampled on grids.

Every function returns a `Mesh` in its own frame (metres, z up) whose faces turn
counter-clockwise seen from outside, so that normals made from faces point outwards. `step` is
the distance of neighbouring vertices. Patches do not share vertices along sharp edges.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Mesh(NamedTuple):
    vertices: np.ndarray  # (N, 3) float64
    faces: np.ndarray  # (F, 3) int64


def merge(meshes: Sequence[Mesh]) -> Mesh:
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes])
    vertices = np.concatenate([m.vertices for m in meshes])
    return Mesh(vertices, np.concatenate([m.faces + s for m, s in zip(meshes, starts)]))


def flipped(mesh: Mesh) -> Mesh:
    """The same surface seen from its other side."""
    return Mesh(mesh.vertices, mesh.faces[:, ::-1])


def cells(length: float, step: float) -> int:
    return max(1, round(float(length) / step))


@functools.lru_cache(maxsize=1024)
def _grid_faces(nu: int, nv: int) -> np.ndarray:
    """(F, 3) faces of a grid of nu x nv cells whose vertices are numbered along v first."""
    index = np.arange((nu + 1) * (nv + 1)).reshape(nu + 1, nv + 1)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    # Alternate the diagonal, as a regular one would give every patch the same visible grain.
    odd = (np.add.outer(np.arange(nu), np.arange(nv)) % 2).astype(bool)
    faces = np.empty((nu, nv, 6), np.int64)
    for i, (one, other) in enumerate(((a, a), (b, b), (c, d), (a, b), (c, c), (d, d))):
        faces[:, :, i] = np.where(odd, one, other)
    faces = faces.reshape(-1, 3)
    faces.flags.writeable = False
    return faces


def surface(fn: Callable[[np.ndarray, np.ndarray], np.ndarray], nu: int, nv: int) -> Mesh:
    """Map a grid on [0, 1]^2 by `fn(u, v) -> (N, 3)`; its outside is the side of du x dv."""
    u, v = np.repeat(np.linspace(0, 1, nu + 1), nv + 1), np.tile(np.linspace(0, 1, nv + 1), nu + 1)
    # Small grids come again and again; large ones would fill the memory.
    return Mesh(fn(u, v), (_grid_faces if nu * nv < 2000 else _grid_faces.__wrapped__)(nu, nv))


def sheet(origin: Sequence[float], u: Sequence[float], v: Sequence[float], step: float) -> Mesh:
    """Flat parallelogram from `origin` along the vectors `u` and `v`; outside along u x v."""
    nu, nv = cells(math.hypot(*u), step), cells(math.hypot(*v), step)

    def fn(s: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.stack([origin[i] + s * u[i] + t * v[i] for i in range(3)], 1)

    return surface(fn, nu, nv)


@functools.lru_cache(maxsize=256)
def _lattice(nx: int, ny: int, nz: int) -> Mesh:
    """The skin of a block of nx x ny x nz cells, as a cube [0, 1]^3 whose sides share vertices along the edges."""
    # Of each side: where it lies on its own axis, and the axes of u and v; its outside is along u x v.
    sides = ((0, 1, 0), (nz, 0, 1), (0, 0, 2), (ny, 2, 0), (0, 2, 1), (nx, 1, 2))
    counts = (nx, ny, nz)
    vertices, faces = np.empty(((nx + 1) * (ny + 1) * (nz + 1) - (nx - 1) * (ny - 1) * (nz - 1), 3)), []
    for value, u, v in sides:
        node: list = [value] * 3
        node[u] = np.repeat(np.arange(counts[u] + 1), counts[v] + 1)
        node[v] = np.tile(np.arange(counts[v] + 1), counts[u] + 1)
        number = _number_on_skin(*node, *counts)
        vertices[number] = np.stack(np.broadcast_arrays(*(node[i] / counts[i] for i in range(3))), 1)
        faces.append(number[_grid_faces.__wrapped__(counts[u], counts[v])])
    lattice = Mesh(vertices, np.concatenate(faces))
    for array in lattice:
        array.flags.writeable = False
    return lattice


def _number_on_skin(i: np.ndarray, j: np.ndarray, k: np.ndarray, nx: int, ny: int, nz: int) -> np.ndarray:
    """The number of node (i, j, k), which lies on the skin of a block, among all that do, x slowest, z fastest."""
    whole = (ny + 1) * (nz + 1)  # in the slices at both ends; the others are rings
    ring = whole - (ny - 1) * (nz - 1)
    in_ring = np.where(j == 0, k, nz + 1 + np.where(j == ny, (ny - 1) * 2 + k, (j - 1) * 2 + (k > 0)))
    before = np.where(i == 0, 0, whole + (i - 1) * ring)
    return before + np.where((i == 0) | (i == nx), j * (nz + 1) + k, in_ring)


def box(size: Sequence[float], step: float) -> Mesh:
    """Box on the plane z = 0, centred at x = y = 0; its sides share their edges."""
    unit = _lattice(*(cells(s, step) for s in size))
    return Mesh((unit.vertices - (0.5, 0.5, 0.0)) * size, unit.faces)


def pillow(size: Sequence[float], step: float) -> Mesh:
    """A filled cushion lying on z = 0: thick in the middle, thin along the seam."""
    nx, ny = cells(size[0], step), cells(size[1], step)
    unit = _lattice(nx, ny, 1)
    x, y, z = (2 * unit.vertices - 1).T
    thick = z * np.maximum(0.12, (1 - x**4) * (1 - y**4)) ** 0.5
    shrink = 1 - 0.08 * (x * x + y * y)
    return Mesh(np.stack([x * shrink, y * shrink, 1 + thick], 1) * np.divide(size, 2), unit.faces)


def bent_sheet(profile: Sequence[Sequence[float]], width: float, step: float, bow: float = 0.0) -> Mesh:
    """A sheet `width` wide along x that follows `profile`, points (y, z).

    It faces to the right of the profile's way in the (y, z) plane. `bow` metres is how far the
    middle of its width lies behind its edges.
    """
    knots = np.asarray(profile, float)
    at = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(knots, axis=0).T))])
    slope = np.gradient(knots, at, axis=0)

    def fn(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        y, z, dy, dz = (np.interp(v * at[-1], at, column) for column in (*knots.T, *slope.T))
        deep = bow * (1 - (2 * u - 1) ** 2)
        return np.stack([(0.5 - u) * width, y - deep * dz, z + deep * dy], 1)

    return surface(fn, cells(width, step), cells(at[-1], step))


def perforated(
    us: Sequence[float], vs: Sequence[float], holes: Sequence[tuple[float, float, float, float]], step: float
) -> Mesh:
    """A flat sheet over [us[0], us[-1]] x [vs[0], vs[-1]] at z = 0, facing up, without the rectangles
    `holes` (u0, u1, v0, v1). `us` and `vs` must hold the edges of the holes.
    """
    lines = []
    for knots in (us, vs):
        parts = [np.linspace(a, b, cells(b - a, step) + 1)[:-1] for a, b in zip(knots[:-1], knots[1:])]
        lines.append(np.append(np.concatenate(parts), knots[-1]))
    nu, nv = len(lines[0]) - 1, len(lines[1]) - 1
    faces = _grid_faces.__wrapped__(nu, nv)
    x, y = np.repeat(lines[0], nv + 1), np.tile(lines[1], nu + 1)
    mid_x, mid_y = x[faces].mean(1), y[faces].mean(1)
    keep = np.ones(len(faces), bool)
    for u0, u1, v0, v1 in holes:
        keep &= ~((mid_x > u0) & (mid_x < u1) & (mid_y > v0) & (mid_y < v1))
    used, faces = np.unique(faces[keep], return_inverse=True)
    return Mesh(np.stack([x, y, np.zeros(len(x))], 1)[used], faces.reshape(-1, 3))


def rounded_box(size: Sequence[float], radius: float, step: float) -> Mesh:
    """A box whose edges are rounded with `radius` (cushions, mattresses, tubs)."""
    half = np.asarray(size, float) / 2
    radius = min(radius, 0.98 * half.min())
    mesh = box(size, step)
    centred = mesh.vertices - (0, 0, half[2])
    core = np.clip(centred, -(half - radius), half - radius)
    out = centred - core
    out *= radius / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)
    return Mesh(core + out + (0, 0, half[2]), mesh.faces)


def tube(start: Sequence[float], end: Sequence[float], radius: float, step: float) -> Mesh:
    """Open cylinder between two points: legs, rods, handles."""
    p, q = np.asarray(start, float), np.asarray(end, float)
    axis = (q - p) / np.linalg.norm(q - p)
    e1 = np.cross(axis, (1.0, 0, 0) if abs(axis[0]) < 0.9 else (0, 1.0, 0))
    e1 /= np.linalg.norm(e1)
    e2 = np.cross(axis, e1)

    def fn(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        c, s = np.cos(2 * np.pi * u)[:, None], np.sin(2 * np.pi * u)[:, None]
        return p + v[:, None] * (q - p) + radius * (c * e1 + s * e2)

    around = max(6, cells(2 * np.pi * radius, step))
    return surface(fn, around, cells(np.linalg.norm(q - p), step))


def loft(rings: Sequence[Sequence[float]], step: float, power: float = 2.0) -> Mesh:
    """Skin over stacked superellipses, each (z, a, b) or (z, a, b, x, y), a and b half axes.

    `power` 2 is an ellipse, larger is squarer. Rings that go up give an outside skin, rings that
    go down an inside one.
    """
    table = np.array([tuple(r) + (0.0,) * (5 - len(r)) for r in rings], float)
    length = np.linalg.norm(np.diff(table[:, [0, 1, 3]], axis=0), axis=1)
    at = np.concatenate([[0], np.cumsum(length)])
    count = cells(at[-1], step)
    knots = np.unique(np.concatenate([np.linspace(0, at[-1], count + 1), at]))
    rows = np.stack([np.interp(knots, at, column) for column in table.T], 1)

    def fn(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        row = rows[np.rint(v * (len(rows) - 1)).astype(int)]
        x, y = superellipse(2 * np.pi * u, power)
        return np.stack([row[:, 3] + row[:, 1] * x, row[:, 4] + row[:, 2] * y, row[:, 0]], 1)

    around = max(6, cells(2 * np.pi * table[:, 1:3].max(), step))
    return surface(fn, around, len(rows) - 1)


def superellipse(angle: np.ndarray, power: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of |x|^p + |y|^p = 1."""
    c, s = np.cos(angle), np.sin(angle)
    r = (np.abs(c) ** power + np.abs(s) ** power) ** (-1 / power)
    return r * c, r * s


def disc(
    a: float,
    b: float,
    step: float,
    height: Callable[[np.ndarray], np.ndarray] | None = None,
    power: float = 2.0,
) -> Mesh:
    """Filled superellipse facing up, with `height(r)` for r in [0, 1] from centre to rim."""
    count = (max(2, cells(1.7 * a, step)), max(2, cells(1.7 * b, step)))
    return _blown_square(count, a, b, power, lambda r: (r, 0 * r if height is None else height(r)))


def bowl(a: float, b: float, depth: float, step: float, power: float = 2.0) -> Mesh:
    """The inside of a bowl hanging from the rim z = 0: flat in the middle, upright at the rim."""
    count = (max(4, cells(1.7 * a + 1.5 * depth, step)), max(4, cells(1.7 * b + 1.5 * depth, step)))

    def profile(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.sin(np.pi * t / 2) ** (2 / 3), -depth * np.cos(np.pi * t / 2)

    return _blown_square(count, a, b, power, profile)


def _blown_square(count: tuple[int, int], a: float, b: float, power: float, profile: Callable) -> Mesh:
    """A square grid blown up to a superellipse, so that it is about equally dense everywhere.

    `profile(t) -> (radius, height)` for t in [0, 1] from the middle to the rim.
    """

    def fn(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        x, y = 2 * u - 1, 2 * v - 1
        ex, ey = superellipse(np.arctan2(y, x), power)
        radius, height = profile(np.maximum(np.abs(x), np.abs(y)))
        return np.stack([a * radius * ex, b * radius * ey, height], 1)

    return surface(fn, *count)


def plate_with_hole(
    width: float, depth: float, a: float, b: float, step: float, power: float = 2.0
) -> Mesh:
    """Rectangle facing up (z = 0, centred) with a superellipse of half axes a, b cut out."""
    outline = 2 * (width + depth)

    def fn(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        angle = 2 * np.pi * u
        c, s = np.cos(angle), np.sin(angle)
        reach = 1 / np.maximum(np.abs(c) / (width / 2), np.abs(s) / (depth / 2))
        ex, ey = superellipse(np.arctan2(s / b, c / a), power)
        inner, outer = np.stack([a * ex, b * ey], 1), np.stack([reach * c, reach * s], 1)
        xy = outer + v[:, None] * (inner - outer)
        return np.concatenate([xy, np.zeros((len(xy), 1))], 1)

    gap = max((width - 2 * a) / 2, (depth - 2 * b) / 2)
    return surface(fn, cells(outline, step), cells(gap, step))


def drape(width: float, height: float, depth: float, waves: float, phase: float, step: float) -> Mesh:
    """Wavy hanging sheet: x in [-w/2, w/2], z in [0, h], facing +y, folds `depth` deep."""

    def fn(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        fold = np.sin(2 * np.pi * waves * u + phase + 0.8 * np.sin(3 * u + v))
        loose = 0.55 + 0.45 * (1 - v)
        return np.stack([(0.5 - u) * width, 0.5 * depth * fold * loose, v * height], 1)

    return surface(fn, max(cells(width, step), int(8 * waves)), cells(height, step))
