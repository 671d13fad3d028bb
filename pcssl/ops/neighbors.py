"""Neighbour tables: which input voxel each kernel offset of each output voxel reads."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pcssl.ops.checks import INT64, INTEGER, check_tensors
from pcssl.ops.keys import lookup, pack_keys, shifted_keys


def kernel_offsets(kernel: int, dilation: int = 1) -> list[tuple[int, int, int]]:
    """Offsets (x, y, z) of a cubic kernel, in the order of the flattened weight axes.

    Odd kernels are centred; even ones start at 0 and reach to the positive side.
    """
    low = -(kernel // 2) if kernel % 2 else 0
    return list(itertools.product([dilation * (low + i) for i in range(kernel)], repeat=3))


def neighbor_table(
    out_coords: Tensor,
    sorted_keys: Tensor,
    order: Tensor,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Row of the input voxel at stride * out + offset, for every kernel offset and output voxel.

    out_coords: (N, 4) int32 [batch, x, y, z], in units of the output grid.
    sorted_keys: (M,) int64 ascending keys of the input voxels; order: (M,) the input row of each.
    Returns (kernel ** 3, N) int32, -1 where no voxel is there.
    """
    check_table(out_coords, sorted_keys, order, kernel, stride, dilation)
    base = out_coords.clone()
    base[:, 1:] *= stride
    base_keys = pack_keys(base)
    offsets = kernel_offsets(kernel, dilation)
    table = torch.empty(len(offsets), len(base), dtype=torch.int32, device=base.device)
    # One more entry, so that position -1 (absent) reads row -1.
    rows = torch.cat([order, order.new_full((1,), -1)]).int()
    # Where the outputs are the inputs, offset -o is the mirror image of offset o.
    mirrored = (
        kernel % 2 == 1
        and stride == 1
        and base_keys.shape == sorted_keys.shape
        and torch.equal(base_keys[order], sorted_keys)
    )
    searched = offsets[: len(offsets) // 2 + 1] if mirrored else offsets
    for k, keys in enumerate(shifted_keys(base, base_keys, searched)):
        table[k] = rows[lookup(sorted_keys, keys)]
    for k in range(len(searched), len(offsets)):
        into = table[len(offsets) - 1 - k]
        out = torch.nonzero(into >= 0)[:, 0]
        table[k] = -1
        table[k, into[out].long()] = out.int()
    return table


def check_table(
    out_coords: Tensor, sorted_keys: Tensor, order: Tensor, kernel: int, stride: int, dilation: int
) -> None:
    """TypeError or ValueError for inputs that `neighbor_table` does not take, whatever the coordinates are."""
    if min(kernel, stride, dilation) < 1:
        raise ValueError(f"kernel, stride and dilation must be positive, got {kernel}, {stride} and {dilation}")
    check_tensors(
        out_coords=(out_coords, INTEGER, ("N", 4)),
        sorted_keys=(sorted_keys, INT64, ("M",)),
        order=(order, INT64, ("M",)),
    )
