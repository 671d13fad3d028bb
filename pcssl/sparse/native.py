"""The `native` engine: compiled operators for tensors in float32 on the CPU, and on GPUs where nvcc built them.

Whatever they do not take (other devices and dtypes, autocast on the CPU) runs on the reference,
operator by operator. The binary comes from csrc/ when the package is installed; without it this
module adds no engine.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import pcssl
from pcssl import ops
from pcssl.ops.curves import DEPTH, check_coords, check_curve
from pcssl.ops.interpolate import check_level, released_position
from pcssl.ops.keys import MAX_BATCH, check_range
from pcssl.ops.nearest import cell_keys, check_neighbors
from pcssl.ops.neighbors import check_table
from pcssl.ops.segment import REDUCTIONS, check_reduction, check_scatter, check_segments
from pcssl.ops.sparse_conv import KernelMap, check_conv
from pcssl.ops.voxelize import Voxels, check_points
from pcssl.sparse import implicit_gemm
from pcssl.sparse.engine import Engine, add_engine

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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
LOAD_ERROR: str | None = None  # why there is a library that cannot be used; LIBRARY is None then


def _symbols() -> ctypes.CDLL:
    if LIBRARY is None:
        raise RuntimeError(LOAD_ERROR or "the compiled operators of pcssl are not built")
    library = ctypes.CDLL(str(LIBRARY))
    library.pcssl_scratch_peak.restype = ctypes.c_int64
    library.pcssl_cpu.restype = library.pcssl_cuda_architectures.restype = ctypes.c_char_p
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


def cuda_architectures() -> list[int]:
    """GPU architectures that the library was built for, 80 for compute capability 8.0; none without nvcc."""
    return [int(name) for name in _symbols().pcssl_cuda_architectures().decode().split(",") if name.isdigit()]


def runs_on(capability: tuple[int, int], architectures: Sequence[int]) -> bool:
    """Whether a GPU of this compute capability can run what was built for these architectures.

    Machine code runs within its major version from its minor version on; what is newer than all of
    them compiles the code of the newest.
    """
    gpu = 10 * capability[0] + capability[1]
    return any(gpu // 10 == a // 10 and gpu >= a for a in architectures) or gpu > max(architectures, default=gpu)


class Operators:
    """The functions of the engine on the operators torch.ops.<namespace>, with the signatures of `pcssl.ops`.

    gpu: whether these work in a GPU's memory. To look into it before an operator is queued would
    wait for all that was queued before, so what is looked at on the CPU is not there: where an
    offset, a row or a scene number is out of range, a GPU leaves it out instead of raising.
    """

    def __init__(self, namespace: str, gpu: bool):
        self.operators = getattr(torch.ops, namespace)
        self.gpu = gpu

    def engine(self, name: str) -> Engine:
        """An engine of these functions alone."""
        return Engine(name, **{function: getattr(self, function) for function in FUNCTIONS})

    def sparse_conv(
        self, features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None
    ) -> Tensor:
        """On a CPU half precision is that of inputs and result alone."""
        check_conv(features, weight, kernel_map, bias)
        if self.gpu:
            return implicit_gemm.sparse_conv(features, weight, kernel_map, bias, self.operators)
        if any(x is not None and x.dtype not in DTYPES for x in (features, weight, bias)):
            return ops.sparse_conv(features, weight, kernel_map, bias)
        back = None
        if features.requires_grad and torch.is_grad_enabled() and not kernel_map.symmetric:
            back = kernel_map.transposed.table
        out = self.operators.sparse_conv(
            features.float().contiguous(), weight.float(), None if bias is None else bias.float().contiguous(),
            kernel_map.table.contiguous(), back, False,
        )  # fmt: skip
        return out.to(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else features.dtype)

    def neighbor_table(
        self, out_coords: Tensor, sorted_keys: Tensor, order: Tensor, kernel: int, stride: int = 1, dilation: int = 1
    ) -> Tensor:
        check_table(out_coords, sorted_keys, order, kernel, stride, dilation)
        if out_coords.dtype != torch.int32:
            return ops.neighbor_table(out_coords, sorted_keys, order, kernel, stride, dilation)
        out_coords = out_coords.contiguous()
        if len(out_coords) and not self.gpu:
            low, high = self.operators.bounds(out_coords).tolist()
            scale = (1, stride, stride, stride)
            check_range([a * s for a, s in zip(low, scale)], [a * s for a, s in zip(high, scale)])
        return self.operators.neighbor_table(
            out_coords, sorted_keys.contiguous(), order.contiguous(), kernel, stride, dilation
        )

    def curve_codes(self, coords: Tensor, curve: str, depth: int = DEPTH) -> Tensor:
        check_coords(coords)
        if coords.dtype != torch.int32 or not len(coords):
            return ops.curve_codes(coords, curve, depth)
        coords = coords.contiguous()
        # On a GPU too: codes of voxels out of range would be those of other voxels.
        low, high = self.operators.bounds(coords).tolist()
        check_curve(curve, depth, min(low[1:]), max(high[1:]))
        return self.operators.curve_codes(coords, curve.startswith("yxz"), curve.endswith("hilbert"), depth)

    def voxelize(self, points: Tensor, voxel_size: float, batch: Tensor | None = None) -> Voxels:
        check_points(points, voxel_size, batch)
        if points.dtype != torch.float32 or not len(points):
            return ops.voxelize(points, voxel_size, batch)
        scene = points.new_zeros(1, dtype=torch.int64).expand(len(points)) if batch is None else batch.long()
        scene = scene.contiguous() if self.gpu else scene
        keys, bounds = self.operators.voxel_keys(points.contiguous(), voxel_size, scene)
        low, high = bounds.tolist()
        if low[0] == torch.iinfo(torch.int64).min:
            raise ValueError("points contain NaN or infinite coordinates")
        check_range(low, high)
        return Voxels(*self.operators.unique_voxels(keys))

    def segment_reduce(self, values: Tensor, offsets: Tensor, reduce: str = "sum") -> Tensor:
        check_reduction(values, offsets, reduce)
        if values.dtype not in DTYPES:
            return ops.segment_reduce(values, offsets, reduce)
        values_in = values if self.gpu else values.float()
        try:
            out = self.operators.segment_reduce(
                values_in.contiguous(), offsets.long().contiguous(), REDUCTIONS.index(reduce)
            )
        except RuntimeError:
            # It has looked at the offsets, faster than Python can; this says what is wrong with them.
            check_segments(values, offsets, reduce)
            raise
        return out.to(values.dtype)

    def interpolate(
        self,
        features: Tensor,
        coords: Tensor,
        sorted_keys: Tensor,
        order: Tensor,
        points: Tensor,
        batch: Tensor,
        mode: str = "exact",
    ) -> Tensor:
        """A point outside the range of keys has no voxels around it."""
        check_level(features, coords, sorted_keys, order, points, batch, mode)
        if features.dtype not in DTYPES or points.dtype != torch.float32 or not len(points) or not len(features):
            return ops.interpolate(features, coords, sorted_keys, order, points, batch, mode)
        if not self.gpu:
            scenes = torch.stack(torch.aminmax(batch)).tolist()
            check_range([scenes[0], 0, 0, 0], [scenes[1], 0, 0, 0])
        with torch.no_grad():
            scenes = MAX_BATCH + 1 if self.gpu else None
            position = released_position(coords, points, batch, scenes) if mode == "msm" else points - 0.5
            rows, weights = self.operators.corner_weights(
                position.contiguous(), batch.long().contiguous(), sorted_keys.contiguous(), order.contiguous(),
                {"exact": 0, "zero": 1, "msm": 1, "nearest": 2}[mode],
            )  # fmt: skip
        values = features if self.gpu else features.float()
        return self.operators.weighted_rows(values.contiguous(), rows, weights).to(features.dtype)

    def nearest(
        self, queries: Tensor, query_batch: Tensor, points: Tensor, point_batch: Tensor, radius: float
    ) -> tuple[Tensor, Tensor]:
        check_neighbors(queries, query_batch, points, point_batch, radius)
        learnt = queries.requires_grad or points.requires_grad  # the operator has no derivative
        if queries.dtype != torch.float32 or learnt:
            return ops.nearest(queries, query_batch, points, point_batch, radius)
        return self._near(self.operators.nearest, queries, query_batch, points, point_batch, radius)

    def radius_neighbors(
        self,
        queries: Tensor,
        query_batch: Tensor,
        points: Tensor,
        point_batch: Tensor,
        radius: float,
        k: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        check_neighbors(queries, query_batch, points, point_batch, radius, k)
        if queries.dtype != torch.float32:
            return ops.radius_neighbors(queries, query_batch, points, point_batch, radius, k)
        return self._near(self.operators.radius_neighbors, queries, query_batch, points, point_batch, radius, k or 0)

    def _near(
        self, operator: Callable, queries: Tensor, query_batch: Tensor, points: Tensor, point_batch: Tensor, *rest: float
    ) -> tuple[Tensor, Tensor]:
        inputs = (queries.detach(), query_batch.long(), points.detach(), point_batch.long())
        try:
            return operator(*(x.contiguous() for x in inputs), *rest)
        except RuntimeError:
            cell_keys(queries, query_batch, rest[0], "queries")  # as above
            cell_keys(points, point_batch, rest[0], "points")
            raise

    def displace(self, points: Tensor, field: Tensor, low: Tensor, spacing: float) -> Tensor:
        plain = {x.dtype for x in (points, field, low)} == {torch.float32} and not (points.requires_grad or field.requires_grad)
        if self.gpu or not plain:
            return ops.displace(points, field, low, spacing)
        return self.operators.displace(points.contiguous(), field.contiguous(), low.contiguous(), spacing)

    def scatter_sum(self, values: Tensor, index: Tensor, size: int) -> Tensor:
        check_scatter(values, index)
        if self.gpu or values.dtype != torch.float32 or values.requires_grad:
            return ops.scatter_sum(values, index, size)
        return self.operators.scatter_sum(values.contiguous(), index.contiguous(), size)


FUNCTIONS = (
    "sparse_conv", "neighbor_table", "interpolate", "curve_codes", "voxelize", "segment_reduce", "nearest",
    "radius_neighbors", "displace", "scatter_sum",
)  # fmt: skip


@functools.cache
def _built_for_gpu(index: int) -> bool:
    built = cuda_architectures()
    if runs_on(torch.cuda.get_device_capability(index), built):
        return True
    have = ", ".join(f"{a / 10:.1f}" for a in built)
    print(
        f"pcssl: no compiled operators for {torch.cuda.get_device_name(index)}, so plain torch runs on it, several "
        + (f"times slower; there are some for compute capability {have}" if built else
           "times slower; install the CUDA toolkit (nvcc) and run `pip install` again"),
        file=sys.stderr,
    )  # fmt: skip
    return False


ON_CPU, ON_GPU = Operators("pcssl", gpu=False), Operators("pcssl", gpu=True)


def _by_device(name: str) -> Callable:
    """The function `name` on the operators of the device that its first tensor is on."""
    reference = getattr(ops, name)

    @functools.wraps(reference)
    def call(*args, **kwargs):
        first = args[0] if args else next(iter(kwargs.values()), None)
        device = first.device if isinstance(first, Tensor) else None  # what is no tensor, the reference refuses
        if device is not None and device.type == "cpu":
            return getattr(ON_CPU, name)(*args, **kwargs)
        if device is not None and device.type == "cuda" and _built_for_gpu(device.index):
            return getattr(ON_GPU, name)(*args, **kwargs)
        return reference(*args, **kwargs)

    return call


(
    sparse_conv, neighbor_table, interpolate, curve_codes, voxelize, segment_reduce, nearest, radius_neighbors, displace,
    scatter_sum,
) = map(_by_device, FUNCTIONS)  # fmt: skip


def register(namespace: str) -> None:
    """Shapes and derivatives of the operators torch.ops.<namespace>."""
    _register_shapes(namespace)
    _register_derivatives(namespace)
    implicit_gemm.register(namespace)


def _register_shapes(namespace: str) -> None:
    """What comes out for what goes in, for torch.compile."""

    def fake(name: str) -> Callable:
        return torch.library.register_fake(f"{namespace}::{name}")

    @fake("sparse_conv")
    def _(features, weight, bias, table, back, flip):
        return features.new_empty(table.shape[1], weight.shape[2])

    @fake("sparse_conv_weight_grad")
    def _(features, grad, table):
        return features.new_empty(grad.shape[1], table.shape[0], features.shape[1])

    @fake("neighbor_table")
    def _(out_coords, sorted_keys, order, size, stride, dilation):
        return out_coords.new_empty(size**3, out_coords.shape[0])

    @fake("bounds")
    def _(coords):
        return coords.new_empty(2, 4, dtype=torch.int64)

    @fake("voxel_keys")
    def _(points, size, batch):
        return batch.new_empty(points.shape[0]), batch.new_empty(2, 4)

    @fake("unique_voxels")
    def _(keys):
        count = torch.library.get_ctx().new_dynamic_size()
        return keys.new_empty(count, 4, dtype=torch.int32), torch.empty_like(keys), keys.new_empty(count)

    @fake("curve_codes")
    def _(coords, swap, hilbert, depth):
        return coords.new_empty(coords.shape[0], dtype=torch.int64)

    @fake("segment_reduce")
    def _(values, offsets, reduction):
        return values.new_empty(offsets.shape[0] - 1, values.shape[1])

    @fake("segment_reduce_grad")
    def _(grad, values, out, offsets, reduction):
        return values.new_empty(values.shape)

    @fake("corner_weights")
    def _(position, batch, sorted_keys, order, mode):
        shape = position.shape[0], 8
        return position.new_empty(shape, dtype=torch.int32), position.new_empty(shape)

    @fake("weighted_rows")
    def _(features, rows, weights):
        return features.new_empty(rows.shape[0], features.shape[1])

    @fake("displace")
    def _(points, field, low, spacing):
        return torch.empty_like(points)

    @fake("scatter_sum")
    def _(values, index, size):
        return values.new_empty(size, values.shape[1])

    @fake("weighted_rows_grad")
    def _(grad, rows, weights, num_rows, deterministic):
        return grad.new_empty(num_rows, grad.shape[1])

    @fake("nearest")
    def _(queries, query_batch, points, point_batch, radius):
        count = queries.shape[0]
        return queries.new_empty(count, dtype=torch.int64), queries.new_empty(count)

    @fake("radius_neighbors")
    def _(queries, query_batch, points, point_batch, radius, k):
        found = torch.library.get_ctx().new_dynamic_size()
        return query_batch.new_empty(queries.shape[0] + 1), query_batch.new_empty(found)


def _register_derivatives(namespace: str) -> None:
    native = getattr(torch.ops, namespace)

    def autograd(name: str, backward: Callable, setup_context: Callable | None = None) -> None:
        torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup_context)

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
        deterministic = torch.are_deterministic_algorithms_enabled()
        to_features = native.weighted_rows_grad(grad.contiguous(), *ctx.saved_tensors, ctx.num_rows, deterministic)
        return to_features, None, None

    def no_second_derivative(ctx, *grads):
        raise NotImplementedError("the native engine has no second derivatives here; use the reference engine")

    autograd("sparse_conv", conv_gradients, setup_context=keep_conv)
    autograd("segment_reduce", segment_gradients, setup_context=keep_segments)
    autograd("weighted_rows", weighted_gradients, setup_context=keep_weighted)
    for name in ("sparse_conv_weight_grad", "segment_reduce_grad", "weighted_rows_grad"):
        autograd(name, no_second_derivative)


if LIBRARY is not None:
    try:
        torch.ops.load_library(str(LIBRARY))
        register("pcssl")
    except (OSError, RuntimeError) as error:  # built for another torch, or a library that it needs is gone
        LIBRARY, LOAD_ERROR = None, f"{LIBRARY} cannot be used: {error}"
    else:
        add_engine(Engine("native", **{name: globals()[name] for name in FUNCTIONS}))
