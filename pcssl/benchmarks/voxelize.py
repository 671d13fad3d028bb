"""Points to voxels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pcssl.benchmarks import spconv_peer
from pcssl.benchmarks.case import Case, Settings, Step, engines, nbytes, peer
from pcssl.benchmarks.samples import Sample
from pcssl.ops import unpack_keys
from pcssl.ops.keys import pack_keys
from pcssl.ops.voxelize import Voxels
from pcssl.sparse import use_engine


def cases(sample: Sample, settings: Settings) -> Iterator[Case]:
    contestants = {name: partial(ours, engine, sample) for name, engine in engines("voxelize", settings).items()}
    if settings.peers and sample.device.type == "cpu":
        contestants["numpy unique"] = partial(numpy_unique, sample)
    if settings.peers and sample.scenes == 1 and peer("spconv"):
        contestants["spconv voxels"] = partial(spconv_peer.voxels, sample)
    inverse, voxels = len(sample.points) * 8, len(sample.geometry)
    traffic = nbytes(sample.points, sample.batch) + inverse + voxels * (16 + 8)
    yield Case({"points": len(sample.points)}, contestants, traffic, footprint=traffic, answer=of_points)


def of_points(found: Voxels) -> Tensor:
    """The voxel of every point, whatever the order of the voxels."""
    return found.coords[:, -3:][found.inverse]


def ours(engine: str, sample: Sample) -> Step:
    with use_engine(engine) as found:
        make = found.voxelize
    return lambda: make(sample.points, sample.voxel_size, sample.batch)


def numpy_unique(sample: Sample) -> Step:
    """As most data pipelines do it."""
    points, batch = sample.points.numpy(), sample.batch[:, None]

    def step() -> Voxels:
        index = torch.from_numpy(np.floor(points / np.float32(sample.voxel_size)).astype(np.int64))
        keys = pack_keys(torch.cat([batch, index], 1)).numpy()
        keys, inverse, counts = (torch.from_numpy(x) for x in np.unique(keys, return_inverse=True, return_counts=True))
        return Voxels(unpack_keys(keys), inverse, counts)

    return step
