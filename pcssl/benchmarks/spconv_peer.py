"""spconv's own operators, as its layers call them, on our voxels."""

from __future__ import annotations

import torch
from torch import Tensor

from pcssl.benchmarks.case import DTYPES, Step
from pcssl.benchmarks.samples import Sample
from pcssl.ops.voxelize import Voxels


def dtype_for(dtype: str, device: torch.device) -> str | None:
    """What spconv computes in where we compute in `dtype`; None: nothing like it.

    It knows no bf16: its fp16 is what that is compared with. On the CPU it knows float32 only.
    """
    if device.type == "cpu":
        return "fp32" if dtype == "fp32" else None
    return "fp16" if dtype == "bf16" else dtype


def _algorithm(device: torch.device):
    import spconv.pytorch as spconv

    # On the GPU its default for 3x3x3; Native is the only one that runs on the CPU.
    return spconv.ConvAlgo.Native if device.type == "cpu" else spconv.ConvAlgo.MaskImplicitGemm


def _grid(sample: Sample) -> list[int]:
    return (sample.geometry.coords[:, 1:].amax(0) + 1).tolist()


def layer(sample: Sample, channels: int, dtype: str, backward: bool) -> Step:
    """Its submanifold layer with the maps made beforehand; results as `conv.layer`'s."""
    import spconv.pytorch as spconv
    from spconv import constants

    from pcssl.benchmarks.conv import operands

    constants.SPCONV_ALLOW_TF32 = dtype == "tf32"
    features, weight, grad = operands(sample, channels, dtype)
    features.requires_grad_(backward)
    # No bias: it has none on the CPU.
    algorithm = _algorithm(sample.device)
    conv = spconv.SubMConv3d(channels, channels, 3, bias=False, indice_key="map", algo=algorithm)
    conv = conv.to(sample.device, DTYPES[dtype]).train(backward).requires_grad_(backward)
    conv.weight.data.copy_(weight.view(conv.weight.shape))
    coords, grid, scenes = sample.geometry.coords, _grid(sample), sample.scenes
    with torch.no_grad():
        maps = conv(spconv.SparseConvTensor(features.detach(), coords, grid, scenes)).indice_dict

    def step() -> tuple[Tensor, ...]:
        out = conv(spconv.SparseConvTensor(features, coords, grid, scenes, indice_dict=maps)).features
        if not backward:
            return (out,)
        to_features, to_weight = torch.autograd.grad(out, (features, conv.weight), grad)
        return out.detach(), to_features, to_weight.view(weight.shape)

    return step


def pairs(sample: Sample) -> Step:
    """Its maps of a 3x3x3 submanifold convolution; returns the number of pairs of each offset (27,)."""
    from spconv.pytorch import ops

    coords, size = sample.geometry.coords, (_grid(sample), _algorithm(sample.device), [3] * 3, [1] * 3, [1] * 3)
    options = {"dilation": [1] * 3, "out_padding": [0] * 3, "subm": True}

    def on_cpu() -> Tensor:
        half = ops.get_indice_pairs(coords, sample.scenes, *size, **options)[2][:13]
        return torch.cat([half, half.new_tensor([len(coords)]), half.flip(0)])

    def on_gpu() -> Tensor:
        return ops.get_indice_pairs_implicit_gemm(coords, sample.scenes, *size, **options)[2]

    return on_cpu if sample.device.type == "cpu" else on_gpu


def voxels(sample: Sample) -> Step:
    """Its hashing of points, one point kept a voxel."""
    from spconv.pytorch.utils import PointToVoxel

    size, count = sample.voxel_size, len(sample.geometry)
    high = [size * n for n in _grid(sample)]
    hashing = PointToVoxel([size] * 3, [0.0] * 3 + high, 3, count, 1, sample.device)

    def step() -> Voxels:
        _, zyx, counts, inverse = hashing.generate_voxel_with_id(sample.points)
        return Voxels(zyx.flip(1), inverse, counts)

    return step
