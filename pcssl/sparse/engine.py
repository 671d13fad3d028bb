"""Which implementation runs the sparse operators.

An engine is a table of functions with the signatures of `pcssl.ops`. `reference` is plain
torch and always there. Another engine adds itself with `add_engine`; layers ask
`current_engine()` at each call, so weights and geometries do not depend on the choice.
Outside of `use_engine` it is the best one that is there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from pcssl import ops
from pcssl.errors import UserError


@dataclass(frozen=True)
class Engine:
    """Operators that an engine does not have are the reference's."""

    name: str
    sparse_conv: Callable = ops.sparse_conv
    neighbor_table: Callable = ops.neighbor_table
    interpolate: Callable = ops.interpolate
    curve_codes: Callable = ops.curve_codes
    voxelize: Callable = ops.voxelize
    segment_reduce: Callable = ops.segment_reduce
    nearest: Callable = ops.nearest
    radius_neighbors: Callable = ops.radius_neighbors


PREFERENCE = ("native", "reference")  # what "auto" takes, first that is there

_engines: dict[str, Engine] = {}
_current: list[Engine] = []


def add_engine(engine: Engine) -> None:
    """Make an engine known under its name."""
    _engines[engine.name] = engine


def available_engines() -> list[str]:
    return sorted(_engines)


def current_engine() -> Engine:
    return _current[-1] if _current else _engines[best_engine()]


@contextmanager
def use_engine(name: str) -> Iterator[Engine]:
    """Run the operators inside the `with` block on this engine; UserError if it is not there."""
    if name not in _engines:
        raise UserError(f"engine {name!r} is not available here; available: {', '.join(available_engines())}")
    _current.append(_engines[name])
    try:
        yield _engines[name]
    finally:
        _current.pop()


add_engine(Engine("reference"))


def best_engine(name: str = "auto") -> str:
    """The engine of a setting: "auto" is the first available of the preferred order."""
    if name != "auto":
        return name
    best = next(n for n in PREFERENCE if n in _engines)
    if best != PREFERENCE[0]:
        _say_what_is_missing()
    return best


@cache
def _say_what_is_missing() -> None:
    """Once, because everything still works, only slower."""
    print(
        "pcssl: the compiled operators are not built, so plain torch runs instead, several times slower on a CPU; "
        "install a C++20 compiler (g++ 11 or later) and run `pip install` again",
        file=sys.stderr,
    )
