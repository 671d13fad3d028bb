"""`Geometry`: occupied voxels and the maps derived from them. `SparseTensor`: features on one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.ops import lookup, pack_keys
from pcssl.ops.curves import DEPTH
from pcssl.ops.interpolate import MODES
from pcssl.ops.keys import AXIS_BITS, KEY_RANGE
from pcssl.ops.sparse_conv import KernelMap
from pcssl.sparse.engine import current_engine

READING_MODES = (*MODES, "voxel")  # of `Geometry.interpolate`

T = TypeVar("T")


class Geometry:
    """The occupied voxels of a batch of scenes at one stride.

    coords: (N, 4) int32 [batch, x, y, z], in units of this level's voxels, without duplicates.
    stride: edge of a voxel in units of the finest level.
    It owns every map derived from the coordinates (neighbour tables, the coarser level, curve
    orders), built on first use: layers, directions and networks on one geometry share them.
    ascending: the coordinates are known to be distinct and in the order of their keys, as `voxelize` leaves them;
        keys are then made, and looked at, when they are first needed.
    Raises ValueError for duplicate voxels or coordinates out of range.
    """

    def __init__(self, coords: Tensor, stride: int = 1, *, ascending: bool = False):
        self.coords = coords.int()
        self.stride = stride
        self._maps: dict[tuple, object] = {}
        if not ascending:
            self._sorted()  # looks for what is wrong

    @property
    def sorted_keys(self) -> Tensor:
        """(N,) int64 ascending."""
        return self._sorted()[0]

    @property
    def order(self) -> Tensor:
        """(N,) int64: the row of every sorted key."""
        return self._sorted()[1]

    def _sorted(self) -> tuple[Tensor, Tensor]:
        def make() -> tuple[Tensor, Tensor]:
            keys = pack_keys(self.coords)
            if bool((keys[1:] > keys[:-1]).all()):
                return keys, torch.arange(len(keys), device=keys.device)
            keys, order = torch.sort(keys)
            if bool((keys[1:] == keys[:-1]).any()):
                raise ValueError("coords contain duplicate voxels; voxelize the points first")
            return keys, order

        return self.cached(("sorted",), make)

    def __len__(self) -> int:
        return self.coords.shape[0]

    @property
    def device(self) -> torch.device:
        return self.coords.device

    @property
    def batch(self) -> Tensor:
        """(N,) int32 scene of every voxel."""
        return self.coords[:, 0]

    def cached(self, key: tuple, make: Callable[[], T]) -> T:
        """The map called `key`, made on first use and kept as long as the geometry."""
        if key not in self._maps:
            self._maps[key] = make()
        return self._maps[key]

    def find(self, coords: Tensor) -> Tensor:
        """Rows of voxels: (M, 4) -> (M,) int64, -1 where this geometry has none."""
        at = lookup(self.sorted_keys, pack_keys(coords))
        return torch.where(at >= 0, self.order[at.clamp(min=0)], -1) if len(self) else at

    def coarser(self) -> tuple[Geometry, Tensor]:
        """The next level (stride doubled), and (N,) int64: the coarse row of every voxel here."""

        def make() -> tuple[Geometry, Tensor]:
            # Indices are small enough for float32 to hold them exactly.
            voxels = current_engine().voxelize(self.coords[:, 1:].float(), 2.0, self.batch)
            return Geometry(voxels.coords, self.stride * 2, ascending=True), voxels.inverse

        return self.cached(("coarser",), make)

    def pool(self, features: Tensor, reduce: str = "max") -> SparseTensor:
        """Features (N, C) reduced over the voxels of every cell of the next coarser level."""

        def make() -> tuple[Tensor, Tensor]:
            coarse, parent = self.coarser()
            counts = torch.bincount(parent, minlength=len(coarse))
            return torch.argsort(parent, stable=True), F.pad(counts.cumsum(0), (1, 0))

        order, offsets = self.cached(("children",), make)
        pooled = current_engine().segment_reduce(features.index_select(0, order), offsets, reduce)
        return SparseTensor(pooled, self.coarser()[0])

    def submanifold_map(self, kernel: int, dilation: int = 1) -> KernelMap:
        """From these voxels to themselves."""
        return self.cached(
            ("submanifold", kernel, dilation), lambda: self._map_to(self, kernel, stride=1, dilation=dilation)
        )

    def down_map(self, kernel: int, dilation: int = 1) -> KernelMap:
        """From these voxels to the next coarser level."""
        return self.cached(
            ("down", kernel, dilation), lambda: self._map_to(self.coarser()[0], kernel, stride=2, dilation=dilation)
        )

    def _map_to(self, out: Geometry, kernel: int, stride: int, dilation: int) -> KernelMap:
        table = current_engine().neighbor_table(out.coords, self.sorted_keys, self.order, kernel, stride, dilation)
        return KernelMap(table, len(self), symmetric=out is self and kernel % 2 == 1)

    def curve_order(self, curve: str, depth: int = DEPTH) -> Tensor:
        """(N,) int64 rows in the order of a space-filling curve of `depth` bits an axis, scene after scene.

        Curves need coordinates from 0 on: scenes that reach below are shifted as a whole.
        """

        def make() -> Tensor:
            coords = self.coords
            if len(self):
                coords = torch.cat([coords[:, :1], coords[:, 1:] - coords[:, 1:].amin(0).clamp(max=0)], 1)
            return torch.argsort(current_engine().curve_codes(coords, curve, depth), stable=True)

        return self.cached(("curve", curve, depth), make)

    def scene_sizes(self) -> Tensor:
        """(B,) int64 voxels of each scene, in the order of their batch index; empty ones left out."""
        return self.cached(
            ("sizes",),
            lambda: torch.unique_consecutive(self.sorted_keys >> (3 * AXIS_BITS), return_counts=True)[1],
        )

    def interpolate(self, features: Tensor, points: Tensor, batch: Tensor, mode: str = "exact") -> Tensor:
        """Read `features` (N, C) at points (P, 3) in units of the finest level's voxels.

        mode: as `pcssl.ops.interpolate`, or "voxel": the voxel that holds the point, 0 where it is empty.
        """
        if mode == "voxel":
            cell = torch.floor(points / self.stride)
            known = cell.clamp(*KEY_RANGE)
            rows = self.find(torch.cat([batch[:, None], known], 1).int())
            rows = rows.masked_fill((known != cell).any(1), -1)
            return F.pad(features, (0, 0, 0, 1))[rows]  # row -1 is the padding
        return current_engine().interpolate(
            features, self.coords, self.sorted_keys, self.order, points / self.stride, batch, mode
        )


@dataclass(frozen=True)
class SparseTensor:
    """Features (N, C) on the voxels of a geometry."""

    features: Tensor
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.features.shape[0] != len(self.geometry):
            raise ValueError(
                f"features are {tuple(self.features.shape)}, the geometry has {len(self.geometry)} voxels"
            )

    @classmethod
    def from_coords(cls, features: Tensor, coords: Tensor, stride: int = 1) -> SparseTensor:
        """Features (N, C) at voxels (N, 4) int32 [batch, x, y, z]."""
        return cls(features, Geometry(coords, stride))

    @property
    def coords(self) -> Tensor:
        return self.geometry.coords

    @property
    def batch(self) -> Tensor:
        return self.geometry.batch

    @property
    def stride(self) -> int:
        return self.geometry.stride

    def replace(self, features: Tensor) -> SparseTensor:
        """Other features on the same voxels."""
        return SparseTensor(features, self.geometry)
