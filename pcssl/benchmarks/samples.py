"""The points that operators are timed on: generated rooms, real scans, a made hall."""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from pcssl.data import read_scene
from pcssl.data.rooms import generate_room
from pcssl.sparse import Geometry, current_engine


class Sample:
    """Points of one or more scenes and their voxels.

    points: (P, 3) float32 metres, every scene from 0 on. batch: (P,) int64.
    """

    def __init__(self, name: str, points: Tensor, batch: Tensor, voxel_size: float):
        self.name, self.points, self.batch, self.voxel_size = name, points, batch, voxel_size

    def __reduce__(self):
        # To another process go the points alone: maps are quickly made again.
        return Sample, (self.name, self.points, self.batch, self.voxel_size)

    @property
    def device(self) -> torch.device:
        return self.points.device

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry(current_engine().voxelize(self.points, self.voxel_size, self.batch).coords)

    @cached_property
    def levels(self) -> list[Geometry]:
        """Strides 1, 2, 4, 8, 16, as in a U-Net."""
        found = [self.geometry]
        while len(found) < 5:
            found.append(found[-1].coarser()[0])
        return found

    @property
    def scenes(self) -> int:
        return int(self.batch.max()) + 1

    def generator(self) -> torch.Generator:
        """Every contestant draws the same numbers."""
        return torch.Generator(self.device).manual_seed(0)

    def random(self, *shape: int, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, device=self.device)


@cache
def room(index: int, limit: int | None) -> Tensor:
    """Points of a generated room."""
    return _placed(torch.from_numpy(generate_room(0, index).vertices), limit)


def scan(path: str, limit: int | None) -> Tensor:
    """Points of a file; UserError if it cannot be read."""
    return _placed(read_scene(path, normals=False).coord, limit)


def rooms(first: int, voxels: int, voxel_size: float, limit: int | None) -> tuple[Tensor, Tensor]:
    """Points and batch index of as many rooms as have `voxels` voxels together, the last one cut to fit."""
    parts: list[Tensor] = []
    while True:
        parts.append(room(first + len(parts), limit))
        points = torch.cat(parts)
        batch = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(p) for p in parts]))
        found = current_engine().voxelize(points, voxel_size, batch)
        if len(found.coords) >= voxels:
            keep = found.inverse < voxels  # voxels are in the order of their scenes
            return points[keep], batch[keep]


def hall(times_as_long: int, limit: int | None) -> Tensor:
    """Surfaces of a furnished 10 x 10 x 3 m hall, a point every 3 cm: floor, four walls, sixty boxes.

    times_as_long: the second half of the hall is moved away until the whole is so many times as
    long. The voxels at 2 cm stay the same at every stride up to 16; the volume grows.
    """
    rng = np.random.default_rng(0)
    long, high = 10.0, 3.0
    parts = [_box(rng, (0, 0, 0), (long, long, high), top=False)]
    for _ in range(60):
        size = rng.uniform((0.4, 0.4, 0.4), (2.0, 1.0, 2.0))
        parts.append(_box(rng, (*rng.uniform((0, 0), long - size[:2]), 0), size, top=True))
    points = _placed(torch.from_numpy(np.concatenate(parts).astype(np.float32)), limit)
    middle = 16 * 0.02 * round(float(points[:, 0].max()) / 2 / (16 * 0.02))
    step = 16 * 0.02 * round((times_as_long - 1) * long / (16 * 0.02))
    points[:, 0] += step * (points[:, 0] >= middle)
    return points


def _box(rng: np.random.Generator, corner: tuple, size: tuple, top: bool) -> np.ndarray:
    """Points on the four sides of a box and on its top or its bottom."""
    (w, d, h), x, y, z = size, *np.eye(3)
    origin = np.asarray(corner, float)
    faces = [(origin + z * h * top, x * w, y * d)]
    faces += [(origin, x * w, z * h), (origin + y * d, x * w, z * h)]
    faces += [(origin, y * d, z * h), (origin + x * w, y * d, z * h)]
    return np.concatenate([_rectangle(rng, *face) for face in faces])


def _rectangle(rng: np.random.Generator, corner: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A point every 3 cm, moved by a depth camera's 3 mm of noise."""
    counts = [max(2, round(float(np.linalg.norm(edge)) / 0.03)) for edge in (u, v)]
    s, t = np.meshgrid(*((np.arange(n) + 0.5) / n for n in counts))
    return corner + s.reshape(-1, 1) * u + t.reshape(-1, 1) * v + rng.normal(0, 0.003, (s.size, 3))


def _placed(points: Tensor, limit: int | None) -> Tensor:
    """From 0 on; with a limit, so many points nearest to the middle, as dense as they were."""
    if limit is not None and limit < len(points):
        distance = (points - points.median(0).values).norm(dim=1)
        points = points[distance.argsort()[:limit].sort().values]
    return points - points.amin(0)
