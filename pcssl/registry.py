"""Names for the parts that a config can choose: models, objectives, datasets.

    @register("objective", "msm", config=MSMConfig)
    class MSM(Objective):
        def __init__(self, config: MSMConfig, ...): ...

    objective = create("objective", "msm", mask_ratio=0.4)

A part of your own is registered in the same way, in a module of your own that the config names:

    imports: [my_package.my_objective]
    objective: {name: my_objective, mask_ratio: 0.4}
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

from pcssl.errors import UserError

# A part is known once its module is imported. These are imported at the first question
# about their kind, so that asking for a model does not import the datasets.
MODULES: dict[str, list[str]] = {
    "model": ["pcssl.models", "pcssl.image.backbones", "pcssl.image.adapters"],
    "objective": ["pcssl.objectives"],
    "dataset": ["pcssl.data", "pcssl.image.datasets"],
}

Factory = TypeVar("Factory", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """What `register` was told: `factory(config, *args)` makes the part."""

    factory: Callable[..., Any]
    config: type


_entries: dict[str, dict[str, Entry]] = {}
_imported: set[str] = set()


def register(kind: str, name: str, *, config: type) -> Callable[[Factory], Factory]:
    """Decorator: make a class or factory known as `name` among the parts of this `kind`.

    config: the dataclass of its options; the factory gets an instance as its first argument.
    Raises TypeError if `config` is no dataclass or has an option called "name", and ValueError
    if the name is taken.
    """
    if not (isinstance(config, type) and is_dataclass(config)):
        raise TypeError(f"{kind} {name!r}: config must be a dataclass, not {config!r}")
    if any(f.name == "name" for f in fields(config)):
        raise TypeError(f"{kind} {name!r}: an option cannot be called 'name': that key holds {name!r}")

    def add(factory: Factory) -> Factory:
        known = _entries.setdefault(kind, {})
        if name in known and _origin(known[name].factory) != _origin(factory):
            raise ValueError(f"{kind} {name!r} is already registered by {_origin(known[name].factory)}")
        known[name] = Entry(factory, config)
        return factory

    return add


def lookup(kind: str, name: str) -> Entry:
    """The entry of that name. UserError if there is none, with the near matches and all names."""
    known = names(kind)
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known) or 'none'}")
    return _entries[kind][name]


def names(kind: str) -> list[str]:
    """All names of this kind, sorted. UserError if there is no such kind."""
    if kind not in MODULES and kind not in _entries:
        kinds = sorted(MODULES.keys() | _entries.keys())
        raise UserError(f"unknown kind {kind!r}{did_you_mean(kind, kinds)}; known: {', '.join(kinds)}")
    for module in MODULES.get(kind, ()):
        _import(module)
    return sorted(_entries.get(kind, ()))


def create(kind: str, name: str, /, *args: Any, **options: Any) -> Any:
    """Make a part: its options are checked by the rules of a config file, then
    `factory(config, *args)` is called.

    UserError if the name is unknown or an option is not what the part's config allows.
    """
    from pcssl.config import component  # config.py imports this module

    return component(kind, name, **options).build(*args)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The near matches in parentheses, for an error message, or "" if nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(n) for n in near)}?)" if near else ""


def _import(module: str) -> None:
    if module in _imported:
        return
    _imported.add(module)  # before the import: the module may itself look something up
    try:
        importlib.import_module(module)
    except BaseException:
        _imported.discard(module)
        raise


def _origin(factory: Callable[..., Any]) -> str:
    # By name, not identity: a reloaded module registers its parts again.
    return f"{factory.__module__}.{factory.__qualname__}"
