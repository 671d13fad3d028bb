"""Reduction over segments: pooling the voxels of a level into those of the next."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.benchmarks.case import PASSES, Case, Maker, Settings, Step, engines, nbytes, peer
from pcssl.benchmarks.samples import Sample
from pcssl.ops.segment import REDUCTIONS
from pcssl.sparse import use_engine

CHANNELS = (64,)


def cases(sample: Sample, settings: Settings) -> Iterator[Case]:
    for channels, reduce, backward in product(settings.channels or CHANNELS, REDUCTIONS, (False, True)):
        contestants: dict[str, Maker] = {
            name: partial(ours, engine, sample, channels, reduce, backward)
            for name, engine in engines("segment_reduce", settings).items()
        }
        if settings.peers:
            contestants["torch"] = partial(torch_segment_reduce, sample, channels, reduce, backward)
            if peer("torch-scatter"):
                contestants["torch-scatter"] = partial(torch_scatter, sample, channels, reduce, backward)
        values, out = len(sample.geometry) * channels * 4, len(sample.levels[1]) * channels * 4
        yield Case(
            {"C": channels, "reduce": reduce, "pass": PASSES[backward]},
            contestants,
            traffic=(values + out) * (2 if backward else 1) + nbytes(_offsets(sample)),
            footprint=values + out,
            tolerance=1e-4,
        )


def _offsets(sample: Sample) -> Tensor:
    """Where the voxels of each coarse voxel start, the fine ones lying in the order of the coarse."""
    _, parent = sample.geometry.coarser()
    return F.pad(torch.bincount(parent).cumsum(0), (1, 0))


def _step(sample: Sample, channels: int, backward: bool, reduce) -> Step:
    """reduce: (values, offsets) -> (S, C). Returns (out,) or (out, gradient)."""
    generator = sample.generator()
    values = sample.random(len(sample.geometry), channels, generator=generator).requires_grad_(backward)
    offsets = _offsets(sample)
    grad = sample.random(len(offsets) - 1, channels, generator=generator)

    def step() -> tuple[Tensor, ...]:
        out = reduce(values, offsets)
        return (out.detach(), *(torch.autograd.grad(out, values, grad) if backward else ()))

    return step


def ours(engine: str, sample: Sample, channels: int, reduce: str, backward: bool) -> Step:
    with use_engine(engine) as found:
        make = found.segment_reduce
    return _step(sample, channels, backward, lambda values, offsets: make(values, offsets, reduce))


def torch_segment_reduce(sample: Sample, channels: int, reduce: str, backward: bool) -> Step:
    return _step(
        sample, channels, backward, lambda values, offsets: torch.segment_reduce(values, reduce, offsets=offsets, axis=0)
    )


def torch_scatter(sample: Sample, channels: int, reduce: str, backward: bool) -> Step:
    from torch_scatter import segment_csr

    return _step(sample, channels, backward, lambda values, offsets: segment_csr(values, offsets, reduce=reduce))
