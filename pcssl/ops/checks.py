"""What operators ask of the tensors they are given, looked at before anything runs."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING, INTEGER, INT32, INT64 = "floating point", "integer", "int32", "int64"
MAX_ROWS = 2**31 - 1  # rows are numbered in 32 bits


def check_tensors(**tensors: tuple[Tensor | None, str, tuple[int | str, ...]]) -> None:
    """Each input by name: the tensor (None: left out), its kind and its axes.

    kind: one of the constants above. axes: a size, or a name that stands for one size wherever
    it occurs. Raises TypeError for a wrong kind; ValueError for a wrong shape, more than MAX_ROWS
    along an axis, and tensors that are not on one device.
    """
    sizes: dict[str, int] = {}
    first = None
    for name, (x, kind, axes) in tensors.items():
        if x is None:
            continue
        if not isinstance(x, Tensor) or not _is(kind, x.dtype):
            raise TypeError(f"{name} must be {kind}, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
        known = {axis: sizes[axis] for axis in axes if axis in sizes}
        wanted = [known.get(axis, n) if isinstance(axis, str) else axis for axis, n in zip(axes, x.shape)]
        if x.ndim != len(axes) or list(x.shape) != wanted:
            shape = ", ".join(map(str, axes)) + "," * (len(axes) == 1)
            where = " with " + ", ".join(f"{axis} = {n}" for axis, n in known.items()) if known else ""
            raise ValueError(f"{name} must be ({shape}){where}, got {tuple(x.shape)}")
        sizes.update((axis, n) for axis, n in zip(axes, x.shape) if isinstance(axis, str))
        if max(x.shape) > MAX_ROWS:
            raise ValueError(f"{name} is {tuple(x.shape)}: more rows than the {MAX_ROWS} that 32 bits can number")
        first = first or (name, x.device)
        if x.device != first[1]:
            raise ValueError(f"{name} is on {x.device}, {first[0]} on {first[1]}; move them to one device")


def _is(kind: str, dtype: torch.dtype) -> bool:
    if kind == FLOATING:
        return dtype.is_floating_point
    if kind == INTEGER:
        return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    return dtype == getattr(torch, kind)
