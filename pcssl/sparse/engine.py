"""Which implementation runs the sparse operators.

An engine is a table of functions with the signatures of `pcssl.ops`. `reference` is plain
torch and always there. `native` and `spconv` are modules that add themselves with
`add_engine` when they can run here. Layers ask `current_engine()` at each call, so weights
and geometries do not depend on the choice. Outside of `use_engine` it is the best one that is
there; spconv is taken only when asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from pcssl import ops
from pcssl.errors import UserError, in_one_line
from pcssl.registry import did_you_mean


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
    displace: Callable = ops.displace
    scatter_sum: Callable = ops.scatter_sum
    radius_neighbors: Callable = ops.radius_neighbors


PREFERENCE = ("native", "reference")  # what "auto" takes, first that is there
MODULES = {"native": "pcssl.sparse.native", "spconv": "pcssl.sparse.spconv"}
REMEDIES = {
    "native": "install a C++20 compiler (g++ 11 or later) and run `pip install` again",
    "spconv": f"run `pip install {'spconv-cu120==2.3.6' if sys.version_info < (3, 12) else 'spconv-cu126==2.3.8'}`",
}

_engines: dict[str, Engine] = {}
_missing: dict[str, str] = {}  # why
_current: list[Engine] = []


def add_engine(engine: Engine) -> None:
    """Make an engine known under its name."""
    _engines[engine.name] = engine


def why_missing(name: str) -> str | None:
    """Why an engine of MODULES cannot run here, in one line; None if it can. Imports its module."""
    if name not in _engines and name not in _missing:
        try:
            module = importlib.import_module(MODULES[name])
            _missing[name] = (getattr(module, "LOAD_ERROR", None) or "it is not built").splitlines()[0]
        except Exception as error:  # a binary made for another torch or Python can fail in any way
            _missing[name] = in_one_line(error)
    return None if name in _engines else _missing[name]


def available_engines() -> list[str]:
    """Names of all engines that can run here."""
    for name in MODULES:
        why_missing(name)
    return sorted(_engines)


def current_engine() -> Engine:
    return _current[-1] if _current else _engines[best_engine()]


@contextmanager
def use_engine(name: str = "auto") -> Iterator[Engine]:
    """Run the operators inside the `with` block on this engine; UserError if it cannot run here."""
    _current.append(_find(best_engine(name)))
    try:
        yield _current[-1]
    finally:
        _current.pop()


def _find(name: str) -> Engine:
    if name in _engines:
        return _engines[name]
    if name not in MODULES:
        known = sorted({"auto", *_engines, *MODULES})
        raise UserError(f"unknown engine {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    if (why := why_missing(name)) is not None:
        raise UserError(
            f"engine {name!r} cannot run here ({why}); {REMEDIES[name]}; available: {', '.join(available_engines())}"
        )
    return _engines[name]


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
        f"pcssl: the compiled operators cannot be used ({why_missing('native')}), so plain torch runs instead, several "
        f"times slower on a CPU; {REMEDIES['native']}; `pcssl doctor` says more",
        file=sys.stderr,
    )
