"""Space-filling curve keys: z-order and Hilbert, plain or with the first two axes swapped."""

from __future__ import annotations

import torch
from torch import Tensor

from pcssl.ops.checks import INTEGER, check_tensors

DEPTH = 16  # bits an axis
CURVES = ("xyz_z-order", "yxz_z-order", "xyz_hilbert", "yxz_hilbert")


def curve_codes(coords: Tensor, curve: str, depth: int = DEPTH) -> Tensor:
    """Position of every voxel along a space-filling curve; sorting by it keeps scenes apart.

    coords: (N, 4) integer [batch, x, y, z], axes in 0..2**depth - 1.
    curve: one of CURVES; "yxz" swaps the first two axes. depth: bits an axis, at most 16.
    Returns (N,) int64 with the batch index above the lowest 3 * depth bits.
    """
    check_coords(coords)
    batch, axes = coords[:, 0].long(), coords[:, 1:].long()
    check_curve(curve, depth, *([int(axes.min()), int(axes.max())] if axes.numel() else [0, 0]))
    if curve.startswith("yxz"):
        axes = axes[:, [1, 0, 2]]
    if curve.endswith("hilbert"):
        axes = _hilbert_transpose(axes, depth)
    return (batch << (3 * depth)) | _interleave(axes, hilbert=curve.endswith("hilbert"))


def check_coords(coords: Tensor) -> None:
    """TypeError or ValueError if these are not the coordinates of voxels, whatever their range."""
    check_tensors(coords=(coords, INTEGER, ("N", 4)))


def check_curve(curve: str, depth: int, low: int, high: int) -> None:
    """ValueError if there is no such curve or coordinates low..high do not fit it."""
    if curve not in CURVES:
        raise ValueError(f"unknown curve {curve!r}; known: {', '.join(CURVES)}")
    if not 1 <= depth <= DEPTH:
        raise ValueError(f"depth must be 1..{DEPTH}, got {depth}")
    if low < 0 or high >= 1 << depth:
        raise ValueError(f"curve coordinates must be 0..{(1 << depth) - 1}, got {low}..{high}")


def _spread(x: Tensor) -> Tensor:
    """Move bit i of a 16-bit number to bit 3 i."""
    for shift, mask in ((16, 0x0000FF0000FF), (8, 0x00F00F00F00F), (4, 0x0C30C30C30C3), (2, 0x249249249249)):
        x = (x | (x << shift)) & mask
    return x


def _interleave(axes: Tensor, hilbert: bool) -> Tensor:
    x, y, z = (_spread(a) for a in axes.unbind(1))
    return (x << 2) | (y << 1) | z


def _hilbert_transpose(axes: Tensor, depth: int) -> Tensor:
    """Skilling's transform ("Programming the Hilbert curve", 2004): axes to transposed index."""
    x = list(axes.unbind(1))
    q = 1 << (depth - 1)
    while q > 1:
        p = q - 1
        for i in range(3):
            high = (x[i] & q) != 0
            swap = (x[0] ^ x[i]) & p
            x0 = torch.where(high, x[0] ^ p, x[0] ^ swap)
            x[i] = torch.where(high, x[i], x[i] ^ swap) if i else x0
            x[0] = x0
        q >>= 1
    x[1] = x[1] ^ x[0]
    x[2] = x[2] ^ x[1]
    t = torch.zeros_like(x[2])
    q = 1 << (depth - 1)
    while q > 1:
        t = torch.where((x[2] & q) != 0, t ^ (q - 1), t)
        q >>= 1
    return torch.stack([a ^ t for a in x], 1)
