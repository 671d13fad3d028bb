"""Values of a sparse grid at arbitrary points, in memory proportional to the points."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.ops.checks import FLOATING, INT64, INTEGER, check_tensors
from pcssl.ops.keys import KEY_RANGE, key_shift, lookup, pack_keys

MODES = ("exact", "zero", "nearest", "msm")


def interpolate(
    features: Tensor,
    coords: Tensor,
    sorted_keys: Tensor,
    order: Tensor,
    points: Tensor,
    batch: Tensor,
    mode: str = "exact",
) -> Tensor:
    """Read a sparse level at points, differentiably in `features`.

    features: (M, C) and coords: (M, 4) int32 [batch, x, y, z] of the level's voxels;
    sorted_keys: (M,) their ascending keys, order: (M,) the row of each key.
    points: (P, 3) float in units of this level's voxels, voxel v covering [v, v + 1).
    batch: (P,) integer scene of every point.
    mode: "exact": trilinear between voxel centres, weights renormalised over the occupied
        ones; "zero": the same with empty voxels as zeros; "nearest": the nearest of the eight
        surrounding voxels that is occupied; "msm": the arithmetic of the released Masked
        Scene Modeling code, a dense grid per scene of extent (largest index + 1) read at
        p / extent * (extent - 1) with zeros outside.
    Returns (P, C); 0 where none of the eight surrounding voxels is occupied.
    """
    check_level(features, coords, sorted_keys, order, points, batch, mode)
    if features.shape[0] == 0 or len(points) == 0:
        return features.new_zeros(len(points), features.shape[1])
    position = released_position(coords, points, batch) if mode == "msm" else points - 0.5
    rows, distance = _corners(position, batch, sorted_keys, order)
    found = rows >= 0
    weights = (1 - distance).prod(2) * found
    if mode == "exact":
        total = weights.sum(1, keepdim=True)
        weights = weights / total.masked_fill(total == 0, 1)
    elif mode == "nearest":
        squared = distance.square().sum(2).masked_fill(~found, float("inf"))
        weights = F.one_hot(squared.argmin(1), 8).to(weights.dtype) * found
    return F.embedding_bag(
        rows.clamp(min=0), features, mode="sum", per_sample_weights=weights.to(features.dtype)
    )


def check_level(
    features: Tensor, coords: Tensor, sorted_keys: Tensor, order: Tensor, points: Tensor, batch: Tensor, mode: str
) -> None:
    """TypeError or ValueError for inputs that `interpolate` does not take."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    check_tensors(
        features=(features, FLOATING, ("M", "C")),
        coords=(coords, INTEGER, ("M", 4)),
        sorted_keys=(sorted_keys, INT64, ("M",)),
        order=(order, INT64, ("M",)),
        points=(points, FLOATING, ("P", 3)),
        batch=(batch, INTEGER, ("P",)),
    )


def _corners(position: Tensor, batch: Tensor, sorted_keys: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (P, 8) of the voxels around each position, -1 where empty, and |distance| (P, 8, 3)."""
    low = torch.floor(position)
    corners = list(itertools.product((0, 1), repeat=3))
    rows = torch.cat([order, order.new_full((1,), -1)])
    found = [rows[lookup(sorted_keys, keys)] for keys in _corner_keys(low, batch, corners)]
    distance = [(position - low - low.new_tensor(corner)).abs() for corner in corners]
    return torch.stack(found, 1), torch.stack(distance, 1)


def _corner_keys(low: Tensor, batch: Tensor, corners: list[tuple[int, int, int]]) -> Iterator[Tensor]:
    """Keys (P,) of the cells low + corner, -1 where that is beyond the key range."""

    def keys(cell: Tensor) -> Tensor:
        return pack_keys(torch.cat([batch.long()[:, None], cell.long()], 1))

    if bool(((low >= KEY_RANGE[0]) & (low < KEY_RANGE[1])).all()):
        base = keys(low)
        yield from (base + key_shift(corner) for corner in corners)
        return
    for corner in corners:
        moved = low + low.new_tensor(corner)
        cell = moved.clamp(*KEY_RANGE)
        yield keys(cell).masked_fill((cell != moved).any(1), -1)


def released_position(coords: Tensor, points: Tensor, batch: Tensor, scenes: int | None = None) -> Tensor:
    """Where mode "msm" reads, with whole numbers at voxel centres.

    scenes: more than any scene's number; None looks for it, which waits for a GPU.
    """
    scenes = scenes or int(max(coords[:, 0].max(), batch.max())) + 1
    extent = coords.new_zeros(scenes, 3).scatter_reduce(
        0, coords[:, :1].long().expand(-1, 3), coords[:, 1:], "amax", include_self=True
    )
    extent = (extent + 1).to(points.dtype)[batch.long()]
    return (points / extent) * (extent - 1)
