"""Sparse convolution on a GPU: compiled kernels, their plan, and their gradients.

The rows of a neighbour table are sorted once, so that a tile of rows shares its kernel offsets (csrc/cuda/
sparse_conv_plan.cu). The plan stays with its `KernelMap`: layers, directions and networks on it share it. Nothing
here waits for the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pcssl import ops
from pcssl.ops.sparse_conv import KernelMap, check_conv

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def sparse_conv(
    features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None, operators=torch.ops.pcssl
) -> Tensor:
    """As `pcssl.ops.sparse_conv`, on a GPU. operators: the library that has the kernels.

    float32 is multiplied as TF32 where `torch.backends.cuda.matmul` allows it, else exactly. Sums are float32 in all
    dtypes, the weight's gradient too, and are the same bits in every run.
    """
    check_conv(features, weight, kernel_map, bias)
    device = features.device.type
    if torch.is_autocast_enabled(device):
        features = features.to(torch.get_autocast_dtype(device))
    if features.dtype not in DTYPES or weight.dtype not in DTYPES:
        return ops.sparse_conv(features, weight, kernel_map, bias)
    back = []
    if features.requires_grad and torch.is_grad_enabled() and not kernel_map.symmetric:
        back = plan(kernel_map.transposed, operators)
    tf32 = features.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    start = None if bias is None else bias.float().contiguous()
    return operators.implicit_gemm(
        features.contiguous(), weight, start, plan(kernel_map, operators), back, False, tf32
    )


def plan(kernel_map: KernelMap, operators=torch.ops.pcssl) -> list[Tensor]:
    """The table (K, N), its columns sorted (K + 1, N'), and masks (N' / 32, ceil(K / 32)); all int32.

    N' is N rounded up to whole tiles. The last row of the sorted table is the output row of each column.
    """
    if kernel_map.plan is None:
        table = kernel_map.table.contiguous()
        order = None
        for keys in operators.conv_keys(table):  # from the least significant
            if order is not None:
                keys = keys[order]
            step = torch.sort(keys, stable=True).indices
            order = step if order is None else order[step]
        kernel_map.plan = [table, *operators.conv_rows(table, order)]
    return kernel_map.plan


def register(library: str) -> None:
    """Shapes for torch.compile, and derivatives, of the operators in a library."""
    operators = getattr(torch.ops, library)
    fake, autograd = torch.library.register_fake, torch.library.register_autograd

    @fake(f"{library}::implicit_gemm")
    def _(features, weight, bias, plan, back, flip, tf32):
        return features.new_empty(plan[0].shape[1], weight.shape[2])

    @fake(f"{library}::implicit_gemm_weight_grad")
    def _(features, grad, table, tf32):
        return features.new_empty(grad.shape[1], table.shape[0], features.shape[1], dtype=torch.float32)

    @fake(f"{library}::conv_keys")
    def _(table):
        return table.new_empty((table.shape[0] + 31) // 32, table.shape[1], dtype=torch.int64)

    @fake(f"{library}::conv_rows")
    def _(table, order):
        padded = (table.shape[1] + 127) // 128 * 128
        return table.new_empty(table.shape[0] + 1, padded), table.new_empty(padded // 32, (table.shape[0] + 31) // 32)

    def keep(ctx, inputs, output):
        features, weight, _, plan, back, ctx.flip, ctx.tf32 = inputs
        ctx.save_for_backward(features, weight, *plan, *back)

    def gradients(ctx, grad):
        features, weight, *plans = ctx.saved_tensors
        plan, back = plans[:3], plans[3:]
        grad = grad.contiguous()
        to_features = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            turned = weight.transpose(1, 2)
            if back:
                to_features = operators.implicit_gemm(grad, turned, None, back, plan, ctx.flip, ctx.tf32)
            else:  # a symmetric map: its table read backwards leads from outputs to inputs
                to_features = operators.implicit_gemm(grad, turned, None, plan, [], not ctx.flip, ctx.tf32)
        if ctx.needs_input_grad[1]:
            to_weight = operators.implicit_gemm_weight_grad(features, grad, plan[0], ctx.tf32).permute(1, 2, 0)
            to_weight = (to_weight.flip(0) if ctx.flip else to_weight).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum(0, dtype=torch.float32)
        return to_features, to_weight, to_bias, [None] * len(plan), [None] * len(back), None, None

    def no_second_derivative(ctx, *grads):
        raise NotImplementedError("the native engine has no second derivatives here; use the reference engine")

    autograd(f"{library}::implicit_gemm", gradients, setup_context=keep)
    autograd(f"{library}::implicit_gemm_weight_grad", no_second_derivative)
