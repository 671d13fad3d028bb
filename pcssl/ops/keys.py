"""Voxel coordinates packed into one sortable 64-bit key: batch, x, y, z from high to low."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pcssl.ops.bounds import bounds
from pcssl.ops.checks import MAX_ROWS

AXIS_BITS = 17
BATCH_BITS = 12
KEY_RANGE = (-(1 << (AXIS_BITS - 1)), (1 << (AXIS_BITS - 1)) - 1)  # lowest, highest index of an axis
MAX_BATCH = (1 << BATCH_BITS) - 1


def pack_keys(coords: Tensor) -> Tensor:
    """Keys of voxels, in the lexicographic order of (batch, x, y, z).

    coords: (N, 4) integer [batch, x, y, z]; batch in 0..4095, axes in KEY_RANGE
        (65,536 voxels to either side: 1.3 km at 2 cm).
    Returns (N,) int64, not negative. Raises ValueError when a coordinate is out of range.
    """
    if coords.ndim != 2 or coords.shape[1] != 4 or coords.is_floating_point():
        raise ValueError(f"coords must be (N, 4) integers, got {tuple(coords.shape)} {coords.dtype}")
    if coords.shape[0] > MAX_ROWS:
        raise ValueError(f"coords has {coords.shape[0]} rows, more than the {MAX_ROWS} that 32 bits can number")
    if coords.shape[0]:
        check_range(*torch.stack(bounds(coords)).tolist())
    b, x, y, z = coords.long().unbind(1)
    low = KEY_RANGE[0]
    return (((((b << AXIS_BITS) + (x - low)) << AXIS_BITS) + (y - low)) << AXIS_BITS) + (z - low)


def key_shift(offset: tuple[int, int, int]) -> int:
    """What a step of `offset` adds to a key, as long as no axis leaves its range."""
    x, y, z = offset
    return (((x << AXIS_BITS) + y) << AXIS_BITS) + z


def shifted_keys(coords: Tensor, keys: Tensor, offsets: list[tuple[int, int, int]]) -> Iterator[Tensor]:
    """Keys of coords + offset, (N,) int64 for each offset in turn; -1 where that is out of range.

    coords: (N, 4) integer [batch, x, y, z] with the keys `keys`. Adding to a packed key is
    right as long as no axis leaves its bits, which only voxels at the edge of the range can.
    """
    reach = max((abs(o) for offset in offsets for o in offset), default=0)
    inside = len(coords) == 0 or (
        int(coords[:, 1:].min()) - reach >= KEY_RANGE[0] and int(coords[:, 1:].max()) + reach <= KEY_RANGE[1]
    )
    for offset in offsets:
        shifted = keys + key_shift(offset)
        if not inside:
            moved = coords[:, 1:].long() + coords.new_tensor(offset).long()
            ok = ((moved >= KEY_RANGE[0]) & (moved <= KEY_RANGE[1])).all(1)
            shifted = torch.where(ok, shifted, -1)
        yield shifted


def unpack_keys(keys: Tensor) -> Tensor:
    """The inverse of `pack_keys`: (N,) int64 -> (N, 4) int32 [batch, x, y, z]."""
    mask = (1 << AXIS_BITS) - 1
    axes = [((keys >> (AXIS_BITS * i)) & mask) + KEY_RANGE[0] for i in (2, 1, 0)]
    return torch.stack([keys >> (3 * AXIS_BITS), *axes], 1).int()


def lookup(sorted_keys: Tensor, queries: Tensor) -> Tensor:
    """Positions of `queries` (any shape, int64) in `sorted_keys` (M,), -1 where absent; int64."""
    if sorted_keys.numel() == 0:
        return torch.full_like(queries, -1)
    at = torch.searchsorted(sorted_keys, queries).clamp_(max=sorted_keys.numel() - 1)
    return at.masked_fill_(sorted_keys[at] != queries, -1)


def check_range(low: list[int], high: list[int]) -> None:
    """ValueError if voxels whose [batch, x, y, z] are within low..high have no keys."""
    if low[0] < 0 or high[0] > MAX_BATCH:
        raise ValueError(f"batch index {low[0]}..{high[0]} is outside 0..{MAX_BATCH}")
    if min(low[1:]) < KEY_RANGE[0] or max(high[1:]) > KEY_RANGE[1]:
        raise ValueError(
            f"voxel coordinates {low[1:]}..{high[1:]} are outside {KEY_RANGE[0]}..{KEY_RANGE[1]}; "
            "centre the scene or use larger voxels"
        )
