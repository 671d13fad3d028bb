"""Neighbour tables: which voxels each kernel offset reads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from pcssl.benchmarks import spconv_peer
from pcssl.benchmarks.case import Case, Settings, Step, engines, nbytes, peer
from pcssl.benchmarks.samples import Sample
from pcssl.sparse import Geometry, use_engine

TABLES = {"3x3x3 submanifold": 3, "3x3x3 with the sort": 3, "2x2x2 stride 2": 2}


def cases(sample: Sample, settings: Settings) -> Iterator[Case]:
    """The table from sorted keys; from coordinates alone, as spconv makes its pairs; and of the way down."""
    for label, kernel in TABLES.items():
        contestants = {
            name: partial(table, engine, sample, label) for name, engine in engines("neighbor_table", settings).items()
        }
        if label == "3x3x3 with the sort" and settings.peers and peer("spconv"):
            contestants["spconv pairs"] = partial(spconv_peer.pairs, sample)
        rows = len(sample.geometry if kernel == 3 else sample.levels[1])
        traffic = nbytes(sample.geometry.coords, sample.geometry.sorted_keys) + kernel**3 * rows * 4
        yield Case({"table": label}, contestants, traffic, footprint=traffic, answer=counts)


def table(engine: str, sample: Sample, label: str) -> Step:
    geometry, coarse = sample.geometry, sample.levels[1]
    with use_engine(engine) as found:
        make = found.neighbor_table

    def sort_too() -> Tensor:
        fresh = Geometry(geometry.coords)
        return make(fresh.coords, fresh.sorted_keys, fresh.order, 3)

    return {
        "3x3x3 submanifold": lambda: make(geometry.coords, geometry.sorted_keys, geometry.order, 3),
        "3x3x3 with the sort": sort_too,
        "2x2x2 stride 2": lambda: make(coarse.coords, geometry.sorted_keys, geometry.order, 2, 2),
    }[label]


def counts(found: Tensor) -> Tensor:
    """Pairs of each offset, in ascending order: engines store pairs in ways of their own."""
    return (found if found.ndim == 1 else (found >= 0).sum(1)).sort().values
