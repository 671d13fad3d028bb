"""Sparse convolution over a neighbour table."""

from __future__ import annotations

import weakref
from functools import cached_property

import torch
from torch import Tensor

from pcssl.ops.checks import FLOATING, INT32, MAX_ROWS, check_tensors


class KernelMap:
    """Which input row each kernel offset of each output row reads, and the same as row pairs.

    table: (K, N_out) int32, -1 where there is no input voxel; an offset names an input row at
        most once. num_in: rows of the input.
    symmetric: the table read with its offsets from last to first is its own transpose, as for
        odd kernels from a set of voxels to itself.
    Maps are built once per geometry and shared by every layer, direction and network on it.
    Raises TypeError for a table that is not int32, ValueError for rows that the input does not have.
    """

    def __init__(self, table: Tensor, num_in: int, symmetric: bool = False):
        check_tensors(table=(table, INT32, ("K", "N_out")))
        if num_in > MAX_ROWS:
            raise ValueError(f"the input has {num_in} rows, more than the {MAX_ROWS} that a table can number")
        if table.numel() and int(table.max()) >= num_in:
            raise ValueError(f"the table names row {int(table.max())} of an input of {num_in} rows")
        if symmetric and num_in != table.shape[1]:
            raise ValueError(f"a symmetric map has as many inputs as outputs, got {num_in} and {table.shape[1]}")
        self.table = table
        self.num_in = num_in
        self.symmetric = symmetric
        self.plan: list[Tensor] | None = None  # what the GPU's kernels derive from the table
        self._transposed: KernelMap | None = None
        self._origin: weakref.ref[KernelMap] | None = None

    @property
    def num_out(self) -> int:
        return self.table.shape[1]

    @cached_property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Per kernel offset the (output rows, input rows) that it connects, int64."""
        found = [torch.nonzero(row >= 0)[:, 0] for row in self.table]
        return [(out, self.table[k].index_select(0, out).long()) for k, out in enumerate(found)]

    @property
    def transposed(self) -> KernelMap:
        """The map from outputs back to inputs: what a transposed convolution walks."""
        turned = self._transposed or (self._origin and self._origin())
        if turned is None:
            turned = self._transposed = self._transpose()
            # Weakly: maps that held each other would keep their memory until Python looks for cycles.
            turned._origin = weakref.ref(self)
        return turned

    def _transpose(self) -> KernelMap:
        if self.symmetric:
            return KernelMap(self.table.flip(0), self.num_out, symmetric=True)
        # One more column takes what has no input voxel.
        table = self.table.new_full((self.table.shape[0], self.num_in + 1), -1)
        into = torch.where(self.table >= 0, self.table, self.num_in).long()
        rows = torch.arange(self.num_out, dtype=torch.int32, device=self.table.device)
        table.scatter_(1, into, rows.expand_as(into))
        return KernelMap(table[:, :-1].contiguous(), self.num_out)


def check_conv(features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None) -> None:
    """ValueError when shapes do not fit the map or devices differ, TypeError when a dtype is wrong."""
    check_tensors(
        features=(features, FLOATING, ("N", "C_in")),
        weight=(weight, FLOATING, ("K", "C_in of the weight", "C_out")),
        bias=(bias, FLOATING, ("C_out of the bias",)),
        table=(kernel_map.table, INT32, ("K of the table", "N_out")),
    )
    k, c_in, c_out = weight.shape
    if features.shape != (kernel_map.num_in, c_in):
        raise ValueError(f"features are {tuple(features.shape)}, the map and weight want {(kernel_map.num_in, c_in)}")
    if k != kernel_map.table.shape[0]:
        raise ValueError(f"weight has {k} kernel offsets, the map {kernel_map.table.shape[0]}")
    if bias is not None and bias.shape != (c_out,):
        raise ValueError(f"bias is {tuple(bias.shape)}, the weight wants {(c_out,)}")


def sparse_conv(features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None) -> Tensor:
    """out[i] = sum over k of features[table[k, i]] @ weight[k], plus bias; differentiable.

    features: (N_in, C_in). weight: (K, C_in, C_out). bias: (C_out,) or None.
    Returns (N_out, C_out) in the dtype of `features`. Under autocast the products run in
    autocast's dtype; sums over offsets and the weight gradient are float32 at least.
    Raises ValueError when shapes do not fit the map or devices differ, TypeError when a dtype is wrong.
    """
    check_conv(features, weight, kernel_map, bias)
    if torch.is_autocast_enabled(features.device.type):
        features = features.to(torch.get_autocast_dtype(features.device.type))
    out = _SparseConv.apply(features, weight, kernel_map)
    return out if bias is None else out + bias.to(out.dtype)


def _sum_type(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class _SparseConv(torch.autograd.Function):
    """Gathered rows are recomputed in the backward pass, so memory stays at one offset's rows."""

    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.map = kernel_map
        w = weight.to(features.dtype)
        out = features.new_zeros(kernel_map.num_out, weight.shape[2], dtype=_sum_type(features.dtype))
        for k, (rows, into) in enumerate(kernel_map.pairs):
            if rows.numel():
                out.index_add_(0, rows, (features.index_select(0, into) @ w[k]).to(out.dtype))
        return out.to(features.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        want_features, want_weight = ctx.needs_input_grad[:2]
        grad = grad.contiguous()
        w = weight.to(features.dtype)
        sums = _sum_type(features.dtype)
        grad_features = torch.zeros_like(features, dtype=sums) if want_features else None
        grad_weight = torch.zeros_like(weight, dtype=_sum_type(weight.dtype)) if want_weight else None
        for k, (rows, into) in enumerate(ctx.map.pairs):
            if not rows.numel():
                continue
            g = grad.index_select(0, rows)
            if want_features:
                grad_features.index_add_(0, into, (g @ w[k].t()).to(sums))
            if want_weight:
                # bf16 and fp16 products would be rounded after sums over many rows.
                grad_weight[k] = features.index_select(0, into).to(grad_weight.dtype).t() @ g.to(grad_weight.dtype)
        return (
            None if grad_features is None else grad_features.to(features.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
        )
