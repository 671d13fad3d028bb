"""Points to voxels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pcssl.ops.checks import FLOATING, INTEGER, check_tensors
from pcssl.ops.keys import pack_keys, unpack_keys


@dataclass(frozen=True)
class Voxels:
    """The occupied voxels of a point set, in the order of their keys.

    coords: (M, 4) int32 [batch, x, y, z]. inverse: (N,) int64, the voxel of every point.
    counts: (M,) int64, points in every voxel.
    """

    coords: Tensor
    inverse: Tensor
    counts: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean of per-point `values` (N, C) over every voxel: (M, C), floating point."""
        if not values.is_floating_point():
            values = values.float()
        total = values.new_zeros(self.counts.numel(), values.shape[1]).index_add_(0, self.inverse, values)
        return total / self.counts[:, None].to(values.dtype)


def voxelize(points: Tensor, voxel_size: float, batch: Tensor | None = None) -> Voxels:
    """Occupied voxels of `points`: voxel i covers [i, i + 1) * voxel_size along each axis.

    points: (N, 3) float, metres; finite. batch: (N,) integer scene index, or None for one scene.
    Raises ValueError for points that are not finite, voxel_size <= 0 or coordinates out of
    the key range (see `pack_keys`).
    """
    check_points(points, voxel_size, batch)
    if not bool(torch.isfinite(points).all()):
        raise ValueError("points contain NaN or infinite coordinates")
    index = torch.floor(points / voxel_size).long()
    if batch is None:
        batch = index.new_zeros(index.shape[0])
    keys, inverse, counts = torch.unique(
        pack_keys(torch.cat([batch.long()[:, None], index], 1)), return_inverse=True, return_counts=True
    )
    return Voxels(unpack_keys(keys), inverse, counts)


def check_points(points: Tensor, voxel_size: float, batch: Tensor | None) -> None:
    """TypeError or ValueError for inputs that `voxelize` does not take, whatever is in them."""
    check_tensors(points=(points, FLOATING, ("N", 3)), batch=(batch, INTEGER, ("N",)))
    if not voxel_size > 0:
        raise ValueError(f"voxel_size must be positive, got {voxel_size}")
