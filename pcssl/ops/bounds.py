"""The extent of points and voxels."""

from __future__ import annotations

import torch
from torch import Tensor

WIDE = 256


def bounds(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest of every column: (N, d), N at least 1 -> (d,), (d,)."""
    # Of so many rows side by side a CPU reduces whole vectors, several times faster than a few columns.
    whole = len(rows) // WIDE * WIDE
    wide = rows[:whole].reshape(-1, WIDE * rows.shape[1])
    low, high = (
        torch.cat([reduce(wide, 0).view(WIDE, -1), rows[whole:]]) if whole else rows for reduce in (torch.amin, torch.amax)
    )
    return low.amin(0), high.amax(0)
