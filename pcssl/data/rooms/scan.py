"""What a hand-held depth camera would have seen of a room, and how badly.

A vertex is kept if enough views saw it well. A view sees a vertex that faces it, lies in its
field and is not behind the surface that is in front in the same direction (a spherical depth
map of surface elements).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pcssl.data.rooms.layout import Room
from pcssl.data.rooms.materials import smooth_noise
from pcssl.data.rooms.piece import Kit
from pcssl.data.rooms.shapes import Mesh

PIXEL = np.deg2rad(1.15)  # of the depth map; a vertex spacing of 3 cm at 1.5 m
COLUMNS, ROWS = int(2 * np.pi / PIXEL) + 1, int(np.pi / PIXEL) + 1
NEAR, FAR = 0.35, 5.5  # metres
GRAZING = 0.15  # cosine of incidence under which nothing is measured


class Camera(NamedTuple):
    position: np.ndarray  # (3,)
    yaw: float  # middle of the sweep, radians
    half_sweep: float  # radians
    low: float  # sine of the lowest elevation
    high: float


class Seen(NamedTuple):
    """Vertices that remain, and how far from their best view."""

    index: np.ndarray  # (M,) into the vertices
    distance: np.ndarray  # (M,) metres
    toward: np.ndarray  # (M, 3) unit vectors to that view


def cameras(room: Room, kit: Kit) -> list[Camera]:
    """Positions over free floor, spread out, each looking through a wide sweep."""
    spots = np.stack([kit.rng.uniform(-0.5, 0.5, 400) * room.width, kit.rng.uniform(-0.5, 0.5, 400) * room.depth], 1)
    spots = spots[room.inside(spots, 0.25)]
    spots = _standing_room(spots, room)
    chosen = _spread(spots, min(len(spots), kit.integer(14, 24)), kit.rng)
    center = np.average(chosen, axis=0)
    views = []
    for x, y in chosen:
        home = np.arctan2(center[1] - y, center[0] - x)
        yaw = home + kit.rng.normal(0, 1.0)
        height = kit.uniform(1.3, 1.8)
        half = kit.uniform(0.7, 1.7)
        views.append(Camera(np.array([x, y, height]), yaw, half, -kit.uniform(0.8, 0.97), kit.uniform(0.1, 0.5)))
    return views


def _standing_room(spots: np.ndarray, room: Room) -> np.ndarray:
    """The spots (N, 2) that are far enough from furniture; nearer where a room is crowded."""
    for margin in (0.4, 0.25, 0.1):
        ok = np.ones(len(spots), bool)
        for block in room.solid:
            ok &= ~block.grown(margin).contains(spots)
        if ok.sum() >= 6:
            break
    # Where nobody could stand, the scan is taken from over the furniture.
    return spots[ok] if ok.any() else spots


def _spread(spots: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Farthest-point choice with random weights, so that it is not a lattice."""
    chosen = [int(rng.integers(len(spots)))]
    gap = np.hypot(*(spots - spots[chosen[0]]).T)
    for _ in range(count - 1):
        chosen.append(int(np.argmax(gap * rng.uniform(0.6, 1.0, len(spots)))))
        gap = np.minimum(gap, np.hypot(*(spots - spots[chosen[-1]]).T))
    return spots[chosen]


def vertex_normals(mesh: Mesh) -> np.ndarray:
    """(N, 3) unit normals, area weighted; zero where a vertex has no face."""
    corners = mesh.vertices[mesh.faces]
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.empty_like(mesh.vertices)
    flat = mesh.faces.ravel()
    for axis in range(3):
        total[:, axis] = np.bincount(flat, np.repeat(face[:, axis], 3), len(mesh.vertices))
    length = np.sqrt((total**2).sum(1, keepdims=True))
    return total / np.maximum(length, 1e-12)


def observe(mesh: Mesh, normals: np.ndarray, views: list[Camera], kit: Kit) -> Seen:
    """The vertices that the views see well enough."""
    n = len(mesh.vertices)
    # Faces' centres close the gaps between vertices when the depth map is filled.
    centers = mesh.vertices[mesh.faces[::2]].mean(1)
    center_normals = normals[mesh.faces[::2, 0]]
    points, normal = np.concatenate([mesh.vertices, centers]), np.concatenate([normals, center_normals])
    quality, best = np.zeros(n), np.zeros(n)
    distance, toward = np.full(n, FAR), np.zeros((n, 3))
    for view in views:
        index, far, ray, grazing = _visible(points, normal, n, view)
        # Depth cameras lose surfaces that are far away or turned away.
        value = grazing * np.clip(1.6 - far / FAR * 1.5, 0.05, 1) * kit.uniform(0.6, 1.4)
        quality[index] += value
        better = value > best[index]
        chosen = index[better]
        best[chosen], distance[chosen], toward[chosen] = value[better], far[better], -ray[better]
    patchy = np.exp(0.8 * smooth_noise(mesh.vertices, 0.9, kit.rng.uniform(0, 6, 6)))
    patchy *= np.exp(0.5 * smooth_noise(mesh.vertices, 3.1, kit.rng.uniform(0, 6, 6)))
    keep = np.flatnonzero(quality > 0.13 * patchy)
    return Seen(keep, distance[keep], toward[keep])


def _visible(points: np.ndarray, normals: np.ndarray, n: int, view: Camera) -> tuple:
    """Of the first n points, those that one view sees: index, distance, ray, cosine of incidence."""
    offset = points - view.position
    far = np.sqrt(offset[:, 0] ** 2 + offset[:, 1] ** 2 + offset[:, 2] ** 2)
    turn = np.arctan2(offset[:, 1], offset[:, 0]) - view.yaw
    turn -= 2 * np.pi * np.rint(turn / (2 * np.pi))
    rise = offset[:, 2] / np.maximum(far, 1e-6)
    field = (np.abs(turn) < view.half_sweep) & (rise > view.low) & (rise < view.high) & (far < FAR) & (far > 0.05)
    cosine = -(offset * normals).sum(1) / np.maximum(far, 1e-6)
    sel = np.flatnonzero(field & (cosine > 0.02))
    far, cosine, offset = far[sel], cosine[sel], offset[sel]
    row = ((np.arcsin(rise[sel]) + np.pi / 2) / PIXEL).astype(np.int64)
    column = ((turn[sel] + np.pi) / PIXEL).astype(np.int64)
    front = _front(row, column, far)
    target = (sel < n) & (far > NEAR)
    mine, other = np.flatnonzero(target), front[row[target], column[target]]
    behind = ((offset[mine] - offset[other]) * normals[sel[other]]).sum(1)
    gap = far[mine] - far[other]
    # Within one pixel of the same surface, or of a corner, depths differ by no more than this.
    spread = np.minimum(2 * PIXEL * far[other] / cosine[other], 0.25)
    hidden = (gap > 0.02) & ((behind < -0.012) | (gap > spread + 0.02))
    ok = mine[~hidden & (cosine[mine] > GRAZING)]
    return sel[ok], far[ok], offset[ok] / far[ok, None], cosine[ok]


def _front(row: np.ndarray, column: np.ndarray, far: np.ndarray) -> np.ndarray:
    """(ROWS, COLUMNS) index of the nearest point in each direction; near points are splatted wide."""
    empty = np.iinfo(np.int64).max
    wide = COLUMNS + 4  # a margin of two cells on every side takes the splats
    key = (np.rint(far * 1000).astype(np.int64) << 32) | np.arange(len(far))
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


def depth_noise(points: np.ndarray, seen: Seen, spacing: float, kit: Kit) -> np.ndarray:
    """Points (M, 3) as measured: pushed along the rays, more so far away, partly in smooth waves
    (as fusion leaves them), and shifted a little within the surface."""
    rng = kit.rng
    sigma = np.clip(0.0015 + 0.0006 * seen.distance**2, 0.002, 0.01) * kit.uniform(0.7, 1.1)
    waves = smooth_noise(points, 2.3, rng.uniform(0, 6, 6)) + smooth_noise(points, 6.0, rng.uniform(0, 6, 6))
    push = sigma * (0.9 * waves + 0.6 * rng.standard_normal(len(points)))
    drift = np.stack([smooth_noise(points, 0.25, rng.uniform(0, 6, 6)) for _ in range(3)], 1)
    slide = rng.uniform(-0.2, 0.2, points.shape) * spacing
    slide -= (slide * seen.toward).sum(1, keepdims=True) * seen.toward
    return points + push[:, None] * seen.toward + 0.005 * drift + slide


def shade(colors: np.ndarray, normals: np.ndarray, points: np.ndarray, kit: Kit) -> np.ndarray:
    """uint8 colours under two soft lights with the scene's exposure, white balance and noise."""
    rng = kit.rng
    light = np.full(len(colors), kit.uniform(0.65, 0.9))
    for _ in range(2):
        lamp = np.array([kit.uniform(-2, 2), kit.uniform(-2, 2), kit.uniform(1.0, 2.6)])
        offset = lamp - points
        reach = np.sqrt((offset**2).sum(1))
        facing = np.maximum((offset * normals).sum(1) / np.maximum(reach, 0.2), 0)
        light += kit.uniform(0.15, 0.4) * facing / (1 + 0.15 * reach**2)
    light *= 1 + 0.12 * smooth_noise(points, 0.5, rng.uniform(0, 6, 6))
    balance = kit.uniform(0.85, 1.35) * (1 + rng.normal(0, 0.05, 3))
    linear = np.clip(colors, 0.02, 1) * light[:, None] * balance
    linear = linear ** kit.uniform(0.75, 1.05) + rng.normal(0, 0.02, colors.shape)
    return np.rint(255 * np.clip(linear, 0, 1)).astype(np.uint8)
