"""Reduction over contiguous runs of rows (CSR segments), and over rows that share an index."""

from __future__ import annotations

import torch
from torch import Tensor

from pcssl.ops.checks import FLOATING, INT64, INTEGER, check_tensors

REDUCTIONS = ("sum", "mean", "max")


def segment_reduce(values: Tensor, offsets: Tensor, reduce: str = "sum") -> Tensor:
    """Reduce the rows offsets[i]..offsets[i+1]-1 of `values` to row i, differentiably.

    values: (N, C) floating point. offsets: (S + 1,) int64, rising from 0 to N.
    reduce: "sum", "mean" or "max". Returns (S, C); an empty segment gives 0.
    """
    check_segments(values, offsets, reduce)
    lengths = offsets.diff()
    count = lengths.numel()
    segment = torch.repeat_interleave(torch.arange(count, device=values.device), lengths)
    if reduce == "max":
        index = segment[:, None].expand_as(values)
        # What is there before must equal no maximum: torch would share the gradient with it.
        before = values.new_full((count, *values.shape[1:]), torch.nan)
        out = before.scatter_reduce(0, index, values, "amax", include_self=False)
        return torch.where((lengths > 0)[:, None], out, 0)
    out = values.new_zeros(count, *values.shape[1:]).index_add(0, segment, values)
    return out if reduce == "sum" else out / lengths.clamp(min=1)[:, None].to(values.dtype)


def scatter_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums of the rows that share an index, differentiably.

    values: (N, C) floating point. index: (N,) int64 in 0..size-1. Returns (size, C); 0 for an index without rows.
    """
    check_scatter(values, index)
    return values.new_zeros(size, values.shape[1]).index_add(0, index, values)


def check_scatter(values: Tensor, index: Tensor) -> None:
    """TypeError or ValueError for inputs that `scatter_sum` does not take, whatever the indices are."""
    check_tensors(values=(values, FLOATING, ("N", "C")), index=(index, INT64, ("N",)))


def check_segments(values: Tensor, offsets: Tensor, reduce: str) -> None:
    """As `check_reduction`; also ValueError if the offsets are not segments of `values`."""
    check_reduction(values, offsets, reduce)
    if offsets.ndim != 1 or offsets.numel() == 0 or int(offsets[-1]) != values.shape[0] or int(offsets[0]) != 0:
        raise ValueError(f"offsets must rise from 0 to {values.shape[0]} rows")
    if bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError("offsets must not fall")


def check_reduction(values: Tensor, offsets: Tensor, reduce: str) -> None:
    """TypeError or ValueError for inputs that `segment_reduce` does not take, whatever the offsets are."""
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {REDUCTIONS}, got {reduce!r}")
    check_tensors(values=(values, FLOATING, ("N", "C")), offsets=(offsets, INTEGER, ("S + 1",)))
