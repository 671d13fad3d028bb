"""Moving points by a smooth field."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def displace(points: Tensor, field: Tensor, low: Tensor, spacing: float) -> Tensor:
    """Add to every point the vector that a regular grid of vectors has there, read trilinearly.

    points: (N, 3) float. field: (X, Y, Z, 3), at least two along each axis; vector (i, j, k) lies at
    low + spacing * (i, j, k). Points beyond the grid take the vector of its border. Returns (N, 3).
    """
    if field.ndim != 4 or field.shape[3] != 3 or min(field.shape[:3]) < 2:
        raise ValueError(f"field must be (X, Y, Z, 3) with at least two along each axis, got {tuple(field.shape)}")
    last = torch.tensor([n - 1 for n in field.shape[:3]], dtype=field.dtype).to(field.device)
    place = (points - low) / spacing / last * 2 - 1
    grid = place.flip(1)[None, :, None, None]
    moved = F.grid_sample(field.permute(3, 0, 1, 2)[None], grid, padding_mode="border", align_corners=True)
    return points + moved[0, :, :, 0, 0].T
