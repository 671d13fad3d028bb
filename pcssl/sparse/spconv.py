"""The `spconv` engine: convolutions by spconv 2, segment sums by torch-scatter where that is installed.

For comparison, and for those who have it. spconv works on the kernel maps of pcssl, so every
engine computes on the same pairs; what it does not have runs on the reference. Importing this
module adds the engine; ImportError without spconv.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from pcssl import ops
from pcssl.errors import UserError
from pcssl.ops.segment import check_segments
from pcssl.ops.sparse_conv import KernelMap, check_conv
from pcssl.sparse.engine import Engine, add_engine

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of its use of torch.cuda.amp
    from spconv.core import ConvAlgo
    from spconv.pytorch import ops as spconv_ops

try:
    import torch_scatter
except (ImportError, OSError, RuntimeError):  # not there, or made for another torch
    torch_scatter = None

# float16 on a CPU would be rounded at each of the offsets' sums; spconv has no bfloat16 at all.
DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32, torch.float16)}
MASKED_OFFSETS = 32  # up to so many, spconv's default on a GPU is its masked implicit GEMM


def sparse_conv(features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None) -> Tensor:
    """As `pcssl.ops.sparse_conv`, also under autocast; UserError for a dtype that spconv does not have.

    In float16 spconv's sums are as it tunes them, and the weight gradient is rounded to float16.
    """
    check_conv(features, weight, kernel_map, bias)
    device = features.device.type
    if torch.is_autocast_enabled(device):
        features = features.to(torch.get_autocast_dtype(device))
    if features.dtype not in DTYPES.get(device, ()):
        dtype = str(features.dtype).removeprefix("torch.")
        raise UserError(f"the spconv engine has no {dtype} on {device}; set precision=fp32, or take another engine")
    filters = weight.permute(2, 0, 1).to(features.dtype).contiguous()  # no copy of a layer's weight
    out = _SparseConv.apply(features.contiguous(), filters, kernel_map)
    return out if bias is None else out + bias.to(out.dtype)


def segment_reduce(values: Tensor, offsets: Tensor, reduce: str = "sum") -> Tensor:
    """As `pcssl.ops.segment_reduce`."""
    # Of a maximum that several rows share, torch-scatter gives the gradient to one of them alone.
    if torch_scatter is None or reduce == "max" or values.dtype not in (torch.float32, torch.float64):
        return ops.segment_reduce(values, offsets, reduce)
    check_segments(values, offsets, reduce)
    return torch_scatter.segment_csr(values, offsets, reduce=reduce)


class _SparseConv(torch.autograd.Function):
    """filters: (C_out, K, C_in), spconv's layout. spconv's own function would turn to float16 under autocast."""

    @staticmethod
    def forward(ctx, features: Tensor, filters: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, filters)
        ctx.plan = _plan(kernel_map)
        if ctx.plan is None:
            return features.new_zeros(kernel_map.num_out, filters.shape[0])
        with torch.autocast(features.device.type, enabled=False):
            out, ctx.kept = ctx.plan.forward(features, filters)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        features, filters = ctx.saved_tensors
        if ctx.plan is None:
            return torch.zeros_like(features), torch.zeros_like(filters), None
        with torch.autocast(features.device.type, enabled=False):
            return *ctx.plan.backward(features, filters, grad.contiguous(), ctx.kept), None


@dataclass(frozen=True)
class _Native:
    """spconv's gather, matrix product, scatter, one offset after the other.

    pairs: (2, K, P) int32 rows of inputs and of outputs, counts: (K,) int32 on the CPU, so many of each
    offset's P are used. centred: the middle offset maps every row to itself, and is one plain product.
    """

    pairs: Tensor
    counts: Tensor
    num_out: int
    centred: bool

    @staticmethod
    def of(kernel_map: KernelMap, counts: Tensor) -> _Native:
        table = kernel_map.table
        offset, out = torch.nonzero(table >= 0, as_tuple=True)
        first = counts.cumsum(0) - counts
        position = torch.arange(len(out), device=table.device) - first[offset]
        pairs = table.new_full((2, len(table), int(counts.max())), -1)
        pairs[0, offset, position] = table[offset, out]
        pairs[1, offset, position] = out.int()
        middle = table[len(table) // 2]
        centred = kernel_map.symmetric and torch.equal(middle, torch.arange(len(middle)).to(middle))
        return _Native(pairs, counts.int().cpu(), kernel_map.num_out, centred)

    def forward(self, features: Tensor, filters: Tensor) -> tuple[Tensor, None]:
        out = spconv_ops.indice_conv(
            features, filters, self.pairs, self.counts, self.num_out, subm=self.centred, algo=ConvAlgo.Native
        )
        return out, None

    def backward(self, features: Tensor, filters: Tensor, grad: Tensor, kept: None) -> tuple[Tensor, Tensor]:
        return spconv_ops.indice_conv_backward(
            features, filters, grad, self.pairs, self.counts, subm=self.centred, algo=ConvAlgo.Native
        )


@dataclass(frozen=True)
class _Masked:
    """spconv's masked implicit GEMM on a GPU: a table a direction, its rows sorted by which offsets they have."""

    table: Tensor
    back: Tensor
    rows: tuple[Tensor, Tensor]
    back_rows: tuple[Tensor, Tensor]
    filter: list[np.ndarray]

    @staticmethod
    def of(kernel_map: KernelMap) -> _Masked:
        table, back = kernel_map.table.contiguous(), kernel_map.transposed.table.contiguous()
        return _Masked(table, back, _sorted_rows(table), _sorted_rows(back), [np.array([0xFFFFFFFF], dtype=np.uint32)])

    def forward(self, features: Tensor, filters: Tensor) -> tuple[Tensor, tuple[Tensor, int]]:
        mask, order = self.rows
        # is_train: keep what the weight gradient needs. Not is_subm: that reads the way back off the forward masks.
        out, tiles, width = spconv_ops.implicit_gemm(
            features, filters, self.table, [mask], [order], self.table.shape[1], self.filter,
            is_train=True, is_subm=False,
        )  # fmt: skip
        return out, (tiles, width)

    def backward(
        self, features: Tensor, filters: Tensor, grad: Tensor, kept: tuple[Tensor, int]
    ) -> tuple[Tensor, Tensor]:
        (mask, order), (back_mask, back_order), (tiles, width) = self.rows, self.back_rows, kept
        return spconv_ops.implicit_gemm_backward(
            features, filters, grad, self.table, self.back, [mask], [back_mask], [order], [back_order],
            mask_output_fwd=tiles, masks=self.filter, mask_width=width, is_subm=False,
        )  # fmt: skip


def _sorted_rows(table: Tensor) -> tuple[Tensor, Tensor]:
    """Bit masks (N, 1) int32 of the offsets that each row has, rising, and the row (N,) int32 of each."""
    mask = table.new_zeros(table.shape[1])
    for k, row in enumerate(table):  # kernels are cubes, so at most 27 bits
        mask |= (row >= 0).int() << k
    mask, order = torch.sort(mask)
    return mask[:, None].contiguous(), order.int()


_plans: WeakKeyDictionary[KernelMap, _Native | _Masked | None] = WeakKeyDictionary()


def _plan(kernel_map: KernelMap) -> _Native | _Masked | None:
    """A map in the form that spconv wants, made once and kept as long as the map; None if it has no pairs."""
    if kernel_map not in _plans:
        counts = (kernel_map.table >= 0).sum(1)
        if not int(counts.sum()):
            plan = None
        elif kernel_map.table.is_cuda and len(counts) <= MASKED_OFFSETS:
            plan = _Masked.of(kernel_map)
        else:
            plan = _Native.of(kernel_map, counts)
        _plans[kernel_map] = plan
    return _plans[kernel_map]


add_engine(Engine("spconv", sparse_conv=sparse_conv, segment_reduce=segment_reduce))
