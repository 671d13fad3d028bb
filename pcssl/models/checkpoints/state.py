"""Strict loading of a state dict, with every tensor that does not fit named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from pcssl.errors import UserError


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state`; UserError names every missing, unexpected or mis-shaped tensor."""
    own = module.state_dict()
    problems = {"missing": own.keys() - state.keys(), "unexpected": state.keys() - own.keys()}
    shapes = defaultdict(set)
    for name in own.keys() & state.keys():
        if state[name].shape != own[name].shape:
            shapes[f"{tuple(state[name].shape)} instead of {tuple(own[name].shape)}"].add(name)
    said = [f"{what}: {grouped(names)}" for what, names in problems.items() if names]
    said += [f"wrong shape: {grouped(names)} {shape}" for shape, names in sorted(shapes.items())]
    if said:
        raise UserError(f"{source} does not fit {type(module).__name__}; {'; '.join(said)}")
    module.load_state_dict(state)


def grouped(names: Iterable[str]) -> str:
    """Dotted names in a shell's short form, none left out.

    >>> grouped(["up.0.weight", "up.1.weight", "up.0.bias", "up.1.bias", "norm.scale"])
    'norm.scale, up.{0,1}.{bias,weight}'
    """
    # Parts are merged from the last to the first wherever all the other parts agree, so that the
    # form stands for the names and for no others.
    groups = {tuple((part,) for part in name.split(".")) for name in names}
    for place in reversed(range(max(map(len, groups), default=0))):
        alike = defaultdict(set)
        for group in groups:
            if place < len(group):
                alike[group[:place], group[place + 1 :]].update(group[place])
        groups = {g for g in groups if place >= len(g)} | {
            (*before, tuple(sorted(parts, key=_order)), *after) for (before, after), parts in alike.items()
        }
    written = (".".join(p[0] if len(p) == 1 else f"{{{','.join(p)}}}" for p in g) for g in groups)
    return ", ".join(sorted(written, key=_order))


def _order(part: str) -> tuple[int, int, str]:
    return (0, int(part), part) if part.isdigit() else (1, 0, part)
