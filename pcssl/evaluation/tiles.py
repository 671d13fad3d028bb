"""A scene cut into overlapping tiles in x and y, and the weights with which their features are blended."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

OVERLAP = 0.25  # of a tile's edge
_CHUNK = 1_000_000  # points looked at together


@dataclass(frozen=True)
class Axis:
    """Tiles along x or y, in columns: tile k covers [k * step, k * step + edge)."""

    count: int
    edge: int
    overlap: int

    @classmethod
    def cover(cls, length: int, edge: int) -> Axis:
        """As few tiles of at most `edge` columns as cover `length`, all of the same edge."""
        if edge >= length:
            return cls(1, length, 0)
        overlap = max(1, round(OVERLAP * edge))
        count = -(-(length - overlap) // (edge - overlap))
        return cls(count, -(-(length + (count - 1) * overlap) // count), overlap)

    @property
    def step(self) -> int:
        return self.edge - self.overlap

    def weight(self, k: int, place: Tensor) -> Tensor:
        """Of tile k at places in columns: 1 where it is alone, falling to 0 at its borders; all tiles together: 1."""
        weight = torch.ones_like(place)
        if k > 0:
            weight = weight.minimum((place - k * self.step) / self.overlap)
        if k < self.count - 1:
            weight = weight.minimum(1 - (place - (k + 1) * self.step) / self.overlap)
        return weight.clamp(0, 1)


@dataclass(frozen=True)
class Tile:
    """rows: (n,) int64 points of the scene, ascending. weight: (n,) float32. corner: (3,) int64, its first voxel."""

    rows: Tensor
    weight: Tensor
    corner: Tensor


class Columns:
    """The points of a scene by upright columns, each as wide as a voxel of the coarsest level.

    Tiles are made of whole columns, so that they have the voxels of the whole scene at every level.
    coord: (N, 3) metres. shift: (3,) metres, where voxel 0 begins. stride: of the coarsest level.
    """

    def __init__(self, coord: Tensor, shift: Tensor, voxel_size: float, stride: int):
        self.coord, self.shift, self.voxel_size, self.stride = coord, shift, voxel_size, stride
        self.size = tuple((self._index(coord.amax(0, keepdim=True))[0, :2] // stride + 1).tolist())
        key, self.order = torch.sort(torch.cat([self._key(part) for part in coord.split(_CHUNK)]))
        keys, self.points = torch.unique_consecutive(key, return_counts=True)
        self.start = self.points.cumsum(0) - self.points
        self.place = torch.stack([keys // self.size[1], keys % self.size[1]], 1)  # (C, 2)
        self.voxels = self._count_voxels()

    def _index(self, coord: Tensor) -> Tensor:
        return torch.floor((coord - self.shift) / self.voxel_size).long()

    def _key(self, coord: Tensor) -> Tensor:
        x, y, _ = (self._index(coord) // self.stride).unbind(1)
        small = self.size[0] * self.size[1] < 2**31
        return (x * self.size[1] + y).to(torch.int32 if small else torch.int64)

    def _count_voxels(self) -> Tensor:
        """(C,) occupied voxels of every column."""
        counts = []
        for columns in torch.arange(len(self.points)).split(max(1, _CHUNK * len(self.points) // len(self.order))):
            x, y, z = self._index(self.coord[self._rows(columns)]).unbind(1)
            column = torch.repeat_interleave(torch.arange(len(columns)), self.points[columns])
            height = int(z.max()) + 1
            size = self.stride * self.stride * height
            voxel = torch.unique(column * size + (x % self.stride * self.stride + y % self.stride) * height + z)
            counts.append(torch.bincount(voxel // size, minlength=len(columns)))
        return torch.cat(counts)

    def _rows(self, columns: Tensor) -> Tensor:
        """Points of these columns, column after column."""
        counts = self.points[columns]
        first = torch.repeat_interleave(self.start[columns] - counts.cumsum(0) + counts, counts)
        return self.order[first + torch.arange(len(first))]

    def axes(self, edge: int) -> tuple[Axis, Axis]:
        """Tiles of at most `edge` columns."""
        return Axis.cover(self.size[0], edge), Axis.cover(self.size[1], edge)

    def total(self, edge: int) -> int:
        """Points of all tiles together."""
        return int(self.points[self._membership(self.axes(edge))[1]].sum())

    def largest(self, edge: int) -> tuple[int, int]:
        """Voxels of the tile that has most, points of the tile that has most."""
        axes = self.axes(edge)
        tile, column = self._membership(axes)
        tiles, where = torch.unique(tile, return_inverse=True)
        most = [torch.zeros(len(tiles), dtype=torch.int64).index_add_(0, where, n[column]).max() for n in (self.voxels, self.points)]
        return int(most[0]), int(most[1])

    def _membership(self, axes: tuple[Axis, Axis]) -> tuple[Tensor, Tensor]:
        """Pairs of a tile's number and a column in it: a column is in one or two tiles along each axis."""
        tile, column = [], []
        last = [(self.place[:, i] // a.step).clamp(max=a.count - 1) for i, a in enumerate(axes)]
        for back in itertools.product((0, 1), repeat=2):
            k = [last[i] - back[i] for i in range(2)]
            inside = [(k[i] >= 0) & (self.place[:, i] < k[i] * a.step + a.edge) for i, a in enumerate(axes)]
            found = torch.nonzero(inside[0] & inside[1])[:, 0]
            tile.append(k[0][found] * axes[1].count + k[1][found])
            column.append(found)
        return torch.cat(tile), torch.cat(column)

    def tiles(self, edge: int) -> Iterator[Tile]:
        """All tiles that hold points."""
        axes = self.axes(edge)
        tile, column = self._membership(axes)
        order = torch.argsort(tile, stable=True)
        numbers, counts = torch.unique_consecutive(tile[order], return_counts=True)
        for number, columns in zip(numbers.tolist(), column[order].split(counts.tolist())):
            k = divmod(number, axes[1].count)
            rows = self._rows(columns).sort().values
            place = (self.coord[rows, :2] - self.shift[:2]) / (self.voxel_size * self.stride)
            weight = axes[0].weight(k[0], place[:, 0]) * axes[1].weight(k[1], place[:, 1])
            corner = torch.tensor([k[0] * axes[0].step * self.stride, k[1] * axes[1].step * self.stride, 0])
            yield Tile(rows, weight, corner)

    def patch(self, voxels: int) -> Tensor:
        """Rows of the square around the fullest column that has about `voxels` voxels, or of all columns."""
        distance = (self.place - self.place[self.voxels.argmax()]).abs().amax(1)
        order = torch.argsort(distance)
        count = int(torch.searchsorted(self.voxels[order].cumsum(0), voxels)) + 1
        return self._rows(order[:count])
