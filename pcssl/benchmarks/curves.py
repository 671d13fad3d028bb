"""Keys of space-filling curves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pcssl.benchmarks.case import Case, Settings, Step, engines, nbytes
from pcssl.benchmarks.samples import Sample
from pcssl.ops import CURVES
from pcssl.sparse import use_engine


def cases(sample: Sample, settings: Settings) -> Iterator[Case]:
    """No package that we know of has these keys on tensors: the other engines and the copy are what there is."""
    traffic = nbytes(sample.geometry.coords) + len(sample.geometry) * 8
    for curve in CURVES:
        contestants = {
            name: partial(ours, engine, sample, curve) for name, engine in engines("curve_codes", settings).items()
        }
        yield Case({"curve": curve}, contestants, traffic, footprint=traffic)


def ours(engine: str, sample: Sample, curve: str) -> Step:
    with use_engine(engine) as found:
        make = found.curve_codes
    return lambda: make(sample.geometry.coords, curve)
