"""3x3x3 submanifold convolution beside a matrix product of as many operations and a layer of spconv."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from pcssl.benchmarks import spconv_peer
from pcssl.benchmarks.case import DTYPES, PASSES, TOLERANCES, Case, Maker, Settings, Step, engines, nbytes, peer
from pcssl.benchmarks.samples import Sample
from pcssl.sparse import use_engine

CHANNELS = (32, 64, 128, 256)


def cases(sample: Sample, settings: Settings) -> Iterator[Case]:
    table = sample.geometry.submanifold_map(3).table
    pairs, voxels = int((table >= 0).sum()), len(sample.geometry)
    for dtype in settings.dtypes:
        for channels in settings.channels or CHANNELS:
            features = voxels * channels * DTYPES[dtype].itemsize
            weight = 27 * channels**2 * DTYPES[dtype].itemsize
            for backward in (False, True):
                yield Case(
                    labels={"C": channels, "dtype": dtype, "pass": PASSES[backward]},
                    contestants=_contestants(sample, settings, channels, dtype, backward),
                    gemm=partial(matrix_product, sample, max(pairs // 27, 1), channels, dtype, 3 if backward else 1),
                    flops=2 * pairs * channels**2 * (3 if backward else 1),
                    # Backward reads features, both gradients' table and weights, and the gradient twice.
                    traffic=(6 if backward else 2) * features + (3 if backward else 1) * (weight + nbytes(table)),
                    footprint=2 * features + nbytes(table),
                    dtype=dtype,
                    tolerance=TOLERANCES[dtype],
                )


def _contestants(sample: Sample, settings: Settings, channels: int, dtype: str, backward: bool) -> dict[str, Maker]:
    found: dict[str, Maker] = {
        name: partial(layer, engine, sample, channels, dtype, backward)
        for name, engine in engines("sparse_conv", settings).items()
    }
    if settings.peers and peer("spconv"):
        kind = spconv_peer.dtype_for(dtype, sample.device)
        if kind:
            name = "spconv layer" if kind == dtype else f"spconv layer {kind}"
            found[name] = partial(spconv_peer.layer, sample, channels, kind, backward)
    return found


def operands(sample: Sample, channels: int, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, C), weight as layers keep it (C, 27, C), gradient (N, C)."""
    generator, kind = sample.generator(), DTYPES[dtype]
    voxels = len(sample.geometry)
    features = sample.random(voxels, channels, generator=generator).to(kind)
    weight = sample.random(channels, 27, channels, generator=generator).to(kind)
    return features, weight, sample.random(voxels, channels, generator=generator).to(kind)


def layer(engine: str, sample: Sample, channels: int, dtype: str, backward: bool) -> Step:
    """(out,), or (out, gradient of the features, gradient of the weight)."""
    features, weight, grad = operands(sample, channels, dtype)
    features.requires_grad_(backward)
    weight.requires_grad_(backward)
    kernel_map = sample.geometry.submanifold_map(3)
    with use_engine(engine) as found:
        conv = found.sparse_conv

    def step() -> tuple[Tensor, ...]:
        out = conv(features, weight.permute(1, 2, 0), kernel_map)
        return (out.detach(), *(torch.autograd.grad(out, (features, weight), grad) if backward else ()))

    return step


def matrix_product(sample: Sample, rows: int, channels: int, dtype: str, times: int) -> Step:
    """(rows, 27 C) x (27 C, C), so often."""
    a = torch.randn(rows, 27 * channels, device=sample.device).to(DTYPES[dtype])
    b = torch.randn(27 * channels, channels, device=sample.device).to(DTYPES[dtype])
    return lambda: [torch.mm(a, b) for _ in range(times)]
