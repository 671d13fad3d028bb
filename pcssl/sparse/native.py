"""The `native` engine: compiled operators for CPU tensors.

They compute in float32. Features in bfloat16 and float16, and autocast, are converted on the way
in and out, so that sums stay in float32. Whatever the operators do not take (other devices and
dtypes) runs on the reference, operator by operator. The binary comes from csrc/ when the package
is installed; without it this module adds no engine.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import pcssl
from pcssl import ops
from pcssl.ops.curves import DEPTH, check_coords, check_curve
from pcssl.ops.interpolate import check_level, released_position
from pcssl.ops.keys import check_range
from pcssl.ops.nearest import cell_keys, check_neighbors
from pcssl.ops.neighbors import check_table
from pcssl.ops.segment import REDUCTIONS, check_reduction, check_segments
from pcssl.ops.sparse_conv import KernelMap, check_conv
from pcssl.ops.voxelize import Voxels, check_points
from pcssl.sparse.engine import Engine, add_engine

CPUS = ("avx512", "avx2", "portable")  # instruction sets, widest first


def _find_library() -> Path | None:
    if chosen := os.environ.get("PCSSL_LIBRARY"):  # another build, such as the one with sanitizers
        return Path(chosen)
    # An editable install puts the binary in site-packages, not beside this file.
    for folder in pcssl.__path__:
        path = Path(folder) / "pcssl_native.so"
        if path.exists():
            return path
    return None


LIBRARY = _find_library()


def _symbols() -> ctypes.CDLL:
    if LIBRARY is None:
        raise RuntimeError("the compiled operators of pcssl are not built")
    library = ctypes.CDLL(str(LIBRARY))
    library.pcssl_cpu.restype = ctypes.c_char_p
    library.pcssl_scratch_peak.restype = ctypes.c_int64
    return library


def current_cpu() -> str:
    """The instruction set that the convolutions use: one of CPUS."""
    return _symbols().pcssl_cpu().decode()


def use_cpu(name: str) -> None:
    """Use another instruction set from now on; the environment variable PCSSL_CPU does so at the start.

    ValueError if this CPU or this build does not have it.
    """
    if not _symbols().pcssl_use_cpu(name.encode()):
        raise ValueError(f"instruction set {name!r} cannot be used here; known: {', '.join(CPUS)}")


def scratch_peak() -> int:
    """The most bytes that the operators held at any one time since the last call, besides inputs and results."""
    return _symbols().pcssl_scratch_peak()


HALVES = (torch.bfloat16, torch.float16)


def _takes(*tensors: Tensor | None, also: tuple[torch.dtype, ...] = ()) -> bool:
    return all(t is None or (t.device.type == "cpu" and t.dtype in (torch.float32, *also)) for t in tensors)


def sparse_conv(features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None) -> Tensor:
    """As `pcssl.ops.sparse_conv`; half precision is that of inputs and result alone."""
    check_conv(features, weight, kernel_map, bias)
    if not _takes(features, weight, bias, also=HALVES):
        return ops.sparse_conv(features, weight, kernel_map, bias)
    back = None
    if features.requires_grad and torch.is_grad_enabled() and not kernel_map.symmetric:
        back = kernel_map.transposed.table
    out = torch.ops.pcssl.sparse_conv(
        features.float().contiguous(), weight.float(), None if bias is None else bias.float().contiguous(),
        kernel_map.table.contiguous(), back, False,
    )  # fmt: skip
    return out.to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else features.dtype)


def neighbor_table(
    out_coords: Tensor, sorted_keys: Tensor, order: Tensor, kernel: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """As `pcssl.ops.neighbor_table`."""
    check_table(out_coords, sorted_keys, order, kernel, stride, dilation)
    if out_coords.device.type != "cpu" or out_coords.dtype != torch.int32:
        return ops.neighbor_table(out_coords, sorted_keys, order, kernel, stride, dilation)
    out_coords = out_coords.contiguous()
    if len(out_coords):
        low, high = torch.ops.pcssl.bounds(out_coords).tolist()
        scale = (1, stride, stride, stride)
        check_range([a * s for a, s in zip(low, scale)], [a * s for a, s in zip(high, scale)])
    return torch.ops.pcssl.neighbor_table(
        out_coords, sorted_keys.contiguous(), order.contiguous(), kernel, stride, dilation
    )


def curve_codes(coords: Tensor, curve: str, depth: int = DEPTH) -> Tensor:
    """As `pcssl.ops.curve_codes`."""
    check_coords(coords)
    if coords.device.type != "cpu" or coords.dtype != torch.int32 or not len(coords):
        return ops.curve_codes(coords, curve, depth)
    coords = coords.contiguous()
    low, high = torch.ops.pcssl.bounds(coords).tolist()
    check_curve(curve, depth, min(low[1:]), max(high[1:]))
    return torch.ops.pcssl.curve_codes(coords, curve.startswith("yxz"), curve.endswith("hilbert"), depth)


def voxelize(points: Tensor, voxel_size: float, batch: Tensor | None = None) -> Voxels:
    """As `pcssl.ops.voxelize`."""
    check_points(points, voxel_size, batch)
    if not _takes(points) or not len(points):
        return ops.voxelize(points, voxel_size, batch)
    scene = points.new_zeros(1, dtype=torch.int64).expand(len(points)) if batch is None else batch.long()
    keys, bounds = torch.ops.pcssl.voxel_keys(points.contiguous(), voxel_size, scene)
    low, high = bounds.tolist()
    if low[0] == torch.iinfo(torch.int64).min:
        raise ValueError("points contain NaN or infinite coordinates")
    check_range(low, high)
    return Voxels(*torch.ops.pcssl.unique_voxels(keys))


def nearest(
    queries: Tensor, query_batch: Tensor, points: Tensor, point_batch: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """As `pcssl.ops.nearest`."""
    check_neighbors(queries, query_batch, points, point_batch, radius)
    if not _takes(queries, points):
        return ops.nearest(queries, query_batch, points, point_batch, radius)
    return _point_neighbors(torch.ops.pcssl.nearest, queries, query_batch, points, point_batch, radius)


def radius_neighbors(
    queries: Tensor,
    query_batch: Tensor,
    points: Tensor,
    point_batch: Tensor,
    radius: float,
    k: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `pcssl.ops.radius_neighbors`."""
    check_neighbors(queries, query_batch, points, point_batch, radius, k)
    if not _takes(queries, points):
        return ops.radius_neighbors(queries, query_batch, points, point_batch, radius, k)
    return _point_neighbors(torch.ops.pcssl.radius_neighbors, queries, query_batch, points, point_batch, radius, k or 0)


def _point_neighbors(
    operator: Callable, queries: Tensor, query_batch: Tensor, points: Tensor, point_batch: Tensor, *rest: float
) -> tuple[Tensor, Tensor]:
    inputs = (queries.detach(), query_batch.long(), points.detach(), point_batch.long())
    try:
        return operator(*(x.contiguous() for x in inputs), *rest)
    except RuntimeError:
        # It has looked at the points, faster than Python can; this says what is wrong with them.
        cell_keys(queries, query_batch, rest[0], "queries")
        cell_keys(points, point_batch, rest[0], "points")
        raise


def segment_reduce(values: Tensor, offsets: Tensor, reduce: str = "sum") -> Tensor:
    """As `pcssl.ops.segment_reduce`."""
    check_reduction(values, offsets, reduce)
    if not _takes(values, also=HALVES):
        return ops.segment_reduce(values, offsets, reduce)
    try:
        out = torch.ops.pcssl.segment_reduce(
            values.float().contiguous(), offsets.long().contiguous(), REDUCTIONS.index(reduce)
        )
    except RuntimeError:
        # It has looked at the offsets, faster than Python can; this says what is wrong with them.
        check_segments(values, offsets, reduce)
        raise
    return out.to(values.dtype)


def interpolate(
    features: Tensor,
    coords: Tensor,
    sorted_keys: Tensor,
    order: Tensor,
    points: Tensor,
    batch: Tensor,
    mode: str = "exact",
) -> Tensor:
    """As `pcssl.ops.interpolate`; a point outside the range of keys has no voxels around it."""
    check_level(features, coords, sorted_keys, order, points, batch, mode)
    if not _takes(features, also=HALVES) or not _takes(points) or not len(points) or not len(features):
        return ops.interpolate(features, coords, sorted_keys, order, points, batch, mode)
    scenes = torch.stack(torch.aminmax(batch)).tolist()
    check_range([scenes[0], 0, 0, 0], [scenes[1], 0, 0, 0])
    with torch.no_grad():
        position = released_position(coords, points, batch) if mode == "msm" else points - 0.5
        rows, weights = torch.ops.pcssl.corner_weights(
            position.contiguous(), batch.long().contiguous(), sorted_keys.contiguous(), order.contiguous(),
            {"exact": 0, "zero": 1, "msm": 1, "nearest": 2}[mode],
        )  # fmt: skip
    return torch.ops.pcssl.weighted_rows(features.float().contiguous(), rows, weights).to(features.dtype)


def _register_shapes() -> None:
    """What comes out for what goes in, for torch.compile."""
    fake = torch.library.register_fake

    @fake("pcssl::sparse_conv")
    def _(features, weight, bias, table, back, flip):
        return features.new_empty(table.shape[1], weight.shape[2])

    @fake("pcssl::sparse_conv_weight_grad")
    def _(features, grad, table):
        return features.new_empty(grad.shape[1], table.shape[0], features.shape[1])

    @fake("pcssl::neighbor_table")
    def _(out_coords, sorted_keys, order, size, stride, dilation):
        return out_coords.new_empty(size**3, out_coords.shape[0])

    @fake("pcssl::bounds")
    def _(coords):
        return coords.new_empty(2, 4, dtype=torch.int64)

    @fake("pcssl::voxel_keys")
    def _(points, size, batch):
        return batch.new_empty(points.shape[0]), batch.new_empty(2, 4)

    @fake("pcssl::unique_voxels")
    def _(keys):
        count = torch.library.get_ctx().new_dynamic_size()
        return keys.new_empty(count, 4, dtype=torch.int32), torch.empty_like(keys), keys.new_empty(count)

    @fake("pcssl::curve_codes")
    def _(coords, swap, hilbert, depth):
        return coords.new_empty(coords.shape[0], dtype=torch.int64)

    @fake("pcssl::segment_reduce")
    def _(values, offsets, reduction):
        return values.new_empty(offsets.shape[0] - 1, values.shape[1])

    @fake("pcssl::segment_reduce_grad")
    def _(grad, values, out, offsets, reduction):
        return torch.empty_like(values)

    @fake("pcssl::nearest")
    def _(queries, query_batch, points, point_batch, radius):
        return torch.empty_like(query_batch), queries.new_empty(queries.shape[0])

    @fake("pcssl::radius_neighbors")
    def _(queries, query_batch, points, point_batch, radius, k):
        found = torch.library.get_ctx().new_dynamic_size()
        return query_batch.new_empty(queries.shape[0] + 1), query_batch.new_empty(found)

    @fake("pcssl::corner_weights")
    def _(position, batch, sorted_keys, order, mode):
        shape = position.shape[0], 8
        return position.new_empty(shape, dtype=torch.int32), position.new_empty(shape)

    @fake("pcssl::weighted_rows")
    def _(features, rows, weights):
        return features.new_empty(rows.shape[0], features.shape[1])

    @fake("pcssl::weighted_rows_grad")
    def _(grad, rows, weights, num_rows):
        return grad.new_empty(num_rows, grad.shape[1])


def _register_derivatives() -> None:
    native, autograd = torch.ops.pcssl, torch.library.register_autograd

    def keep_conv(ctx, inputs, output):
        features, weight, bias, table, back, flip = inputs
        ctx.save_for_backward(features, weight, table, back)
        ctx.flip = flip

    def conv_gradients(ctx, grad):
        features, weight, table, back = ctx.saved_tensors
        grad = grad.contiguous()
        to_features = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            turned = weight.transpose(1, 2)
            if back is None:  # a symmetric map: its table read backwards leads from outputs to inputs
                to_features = native.sparse_conv(grad, turned, None, table, None, not ctx.flip)
            else:
                to_features = native.sparse_conv(grad, turned, None, back, table, ctx.flip)
        if ctx.needs_input_grad[1]:
            to_weight = native.sparse_conv_weight_grad(features, grad, table).permute(1, 2, 0)
            if ctx.flip:
                to_weight = to_weight.flip(0)
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum(0)
        return to_features, to_weight, to_bias, None, None, None

    def keep_segments(ctx, inputs, output):
        values, offsets, ctx.reduction = inputs
        if REDUCTIONS[ctx.reduction] != "max":  # which looks at no more than their shapes
            values, output = (x.new_empty(1, 1).expand_as(x) for x in (values, output))
        ctx.save_for_backward(values, output, offsets)

    def segment_gradients(ctx, grad):
        return native.segment_reduce_grad(grad.contiguous(), *ctx.saved_tensors, ctx.reduction), None, None

    def keep_weighted(ctx, inputs, output):
        features, rows, weights = inputs
        ctx.save_for_backward(rows, weights)
        ctx.num_rows = features.shape[0]

    def weighted_gradients(ctx, grad):
        # Weights depend on points, which are not learnt.
        return native.weighted_rows_grad(grad.contiguous(), *ctx.saved_tensors, ctx.num_rows), None, None

    def no_second_derivative(ctx, *grads):
        raise NotImplementedError("the native engine has no second derivatives here; use the reference engine")

    autograd("pcssl::sparse_conv", conv_gradients, setup_context=keep_conv)
    autograd("pcssl::segment_reduce", segment_gradients, setup_context=keep_segments)
    autograd("pcssl::weighted_rows", weighted_gradients, setup_context=keep_weighted)
    for name in ("sparse_conv_weight_grad", "segment_reduce_grad", "weighted_rows_grad"):
        autograd(f"pcssl::{name}", no_second_derivative)


if LIBRARY is not None:
    torch.ops.load_library(str(LIBRARY))
    _register_shapes()
    _register_derivatives()
    add_engine(
        Engine(
            "native", sparse_conv, neighbor_table, interpolate, curve_codes, voxelize, segment_reduce, nearest,
            radius_neighbors,
        )  # fmt: skip
    )
