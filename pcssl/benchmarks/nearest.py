"""The nearest point of another view within a radius, as objectives match voxels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from pcssl.benchmarks.case import Case, Settings, Step, engines, nbytes
from pcssl.benchmarks.samples import Sample
from pcssl.sparse import use_engine

RADII = (1, 4)  # in voxel edges


def cases(sample: Sample, settings: Settings) -> Iterator[Case]:
    for radius in (edges * sample.voxel_size for edges in RADII):
        contestants = {
            name: partial(ours, engine, sample, radius) for name, engine in engines("nearest", settings).items()
        }
        if settings.peers and sample.device.type == "cpu" and sample.scenes == 1:
            contestants["scipy tree"] = partial(scipy_tree, sample, radius)
        traffic = 2 * nbytes(sample.points, sample.batch) + len(sample.points) * (8 + 4)
        yield Case(
            {"radius": f"{100 * radius:g} cm"},
            contestants,
            traffic,
            footprint=traffic,
            tolerance=1e-4,
            answer=partial(_distance, radius),
        )


def _distance(radius: float, found: tuple[Tensor, Tensor]) -> Tensor:
    """The distance, at most the radius: of two points as near either may be named."""
    return found[1].clamp(max=radius)


def _views(sample: Sample) -> tuple[Tensor, Tensor]:
    """Two scans of the same points, half a voxel apart."""
    noise = sample.random(len(sample.points), 3, generator=sample.generator())
    return sample.points + 0.5 * sample.voxel_size * noise, sample.points


def ours(engine: str, sample: Sample, radius: float) -> Step:
    queries, points = _views(sample)
    with use_engine(engine) as found:
        find = found.nearest
    return lambda: find(queries, sample.batch, points, sample.batch, radius)


def scipy_tree(sample: Sample, radius: float) -> Step:
    """Building the tree counts, as building the hash does."""
    queries, points = (x.numpy() for x in _views(sample))

    def step() -> tuple[Tensor, Tensor]:
        tree = cKDTree(points)
        distance, index = tree.query(queries, distance_upper_bound=radius, workers=torch.get_num_threads())
        return torch.from_numpy(index), torch.from_numpy(distance)

    return step
