"""Features of scenes that may be larger than memory: whole where they fit, in blended tiles where not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation.features import Frame, PointFeatures
from pcssl.evaluation.memory import Memory
from pcssl.evaluation.tiles import Columns, Tile

PART_BYTES = 8_000_000  # of features handed out together
FREE_PART = 0.7  # of the free memory, taken where no limit is given
SAFETY = 1.25  # for scenes that need more than the patch that was measured
RESERVE = 64_000_000  # for the allocator's leftovers and the part of a result that is being written
POINT_BYTES = 250  # a tile's points, their voxels and weights
PATCH = 20_000  # voxels to measure
SMALLEST = 4  # columns along a tile's edge
SURELY = 64_000  # bytes a voxel, more than the largest known models need

Progress = Callable[[float], None]


class TiledFeatures:
    """A feature for every point of a scene within a bound of memory.

    source: the backbone and how it is read. max_memory: bytes, of the whole process on the CPU, of torch's
    tensors on a GPU; None: a part of what is free.
    """

    def __init__(self, source: PointFeatures, max_memory: int | None = None):
        self.source = source
        self.device = next(source.backbone.parameters()).device
        self.memory = Memory(self.device)
        if max_memory is not None and not self.memory.known:
            raise UserError("a limit of memory needs Linux or a CUDA GPU: here it cannot be measured")
        self.max_memory = max_memory

    @torch.no_grad()
    def parts(self, scene: Scene, kept: int = 0, progress: Progress | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (n,) int64 and what to add to them: (n, D) float32, on the CPU. A point in several tiles comes as often.

        kept: bytes of memory that the caller is going to fill with them. progress: is told the part done, 0..1.
        Raises UserError if the scene cannot be cut small enough.
        """
        frame = Frame.of(scene.coord, self.source.voxel_size)
        columns = Columns(scene.coord, frame.shift, self.source.voxel_size, self.source.backbone.strides[-1])
        edge = self._edge(scene, frame, columns, kept)
        done, total = 0, columns.total(edge)
        for tile in columns.tiles(edge):
            for rows, features in self._tile(scene, frame, tile):
                yield rows, features
                done += len(rows)
                if progress:
                    progress(done / total)
            self.memory.give_back()  # what this tile leaves is not to be lacking for the next

    def _tile(self, scene: Scene, frame: Frame, tile: Tile) -> Iterator[tuple[Tensor, Tensor]]:
        part = scene[tile.rows]
        levels = self.source.encode(part, frame, tile.corner)
        for rows, features in levels.chunks(part.coord, self.source.levels, self._part()):
            yield tile.rows[rows], features.cpu() * tile.weight[rows, None]

    def _part(self) -> int:
        """Points to read together."""
        channels = [self.source.backbone.channels[i] for i in self.source.levels or range(len(self.source.backbone.channels))]
        return max(1024, PART_BYTES // (4 * sum(channels)))

    def _edge(self, scene: Scene, frame: Frame, columns: Columns, kept: int) -> int:
        """Edge of the largest tiles that fit, in columns."""
        whole = max(columns.size)
        if not self.memory.known:
            return whole
        used = self.memory.used()
        limit = used + FREE_PART * self.memory.free() if self.max_memory is None else self.max_memory
        left = limit - used - kept - RESERVE
        if int(columns.voxels.sum()) * SURELY < left:
            return whole
        fixed, a_voxel = self._measure(scene, frame, columns, left)

        def need(edge: int) -> float:
            voxels, points = columns.largest(edge)
            return fixed + SAFETY * a_voxel * voxels + POINT_BYTES * points

        edge = whole
        while need(edge) > left:
            if edge <= SMALLEST:
                least = limit - left + need(edge)
                raise UserError(
                    f"{scene.name or 'the scene'}: {_said(limit)} of memory is too little for the smallest tiles; "
                    f"{_said(used + kept)} are in use before, it takes {_said(1.05 * least)}"
                )
            edge = max(SMALLEST, math.floor(0.85 * edge))
        return edge

    def _measure(self, scene: Scene, frame: Frame, columns: Columns, left: float) -> tuple[float, float]:
        """Bytes needed whatever a tile's size, and bytes for every voxel of it, measured on patches of this scene."""
        found: list[tuple[int, int]] = []  # voxels, peak
        for voxels in (PATCH // 100, PATCH // 10, PATCH):
            if len(found) == 2 and found[1][1] + 10 * (found[1][1] - found[0][1]) > left:
                break
            part = scene[columns.patch(voxels)]
            levels, peak = self.memory.peak(partial(self.source.encode, part, frame))
            found.append((len(levels.levels[0].geometry), peak))
        rows = part.coord.repeat(-(-self._part() // len(part)), 1)[: self._part()]
        reading = self.memory.peak(partial(levels.read, rows, self.source.levels))[1]
        (few, small), (many, large) = found[0], found[-1]
        return small + reading, max(large - small, 0) / max(many - few, 1)


def _said(size: float) -> str:
    return f"{size / 1e9:.2g} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
