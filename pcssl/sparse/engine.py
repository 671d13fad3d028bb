"""Which implementation runs the sparse operators.

An engine is a table of functions with the signatures of `pcssl.ops`. `reference` is plain
torch and always there. Another engine adds itself with `add_engine`; layers ask
`current_engine()` at each call, so weights and geometries do not depend on the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pcssl import ops
from pcssl.errors import UserError


@dataclass(frozen=True)
class Engine:
    name: str
    sparse_conv: Callable
    neighbor_table: Callable
    interpolate: Callable


PREFERENCE = ("native", "reference")  # what "auto" takes, first that is there

_engines: dict[str, Engine] = {}
_current: list[Engine] = []


def add_engine(engine: Engine) -> None:
    """Make an engine known under its name."""
    _engines[engine.name] = engine


def available_engines() -> list[str]:
    return sorted(_engines)


def current_engine() -> Engine:
    return _current[-1]


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


add_engine(Engine("reference", ops.sparse_conv, ops.neighbor_table, ops.interpolate))
_current.append(_engines["reference"])


def best_engine(name: str = "auto") -> str:
    """The engine of a setting: "auto" is the first available of the preferred order."""
    if name != "auto":
        return name
    return next(n for n in PREFERENCE if n in _engines)
