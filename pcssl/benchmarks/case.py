"""A case: one task, done by several contestants with the same numbers."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pcssl import ops
from pcssl.sparse import available_engines, use_engine

Step = Callable[[], Any]
Maker = Callable[[], Step]

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 3e-2, "fp16": 3e-2}
PASSES = {False: "forward", True: "forward+backward"}


class LeftOut(Exception):
    """Why a contestant does not take part in a case."""


@dataclass(frozen=True)
class Settings:
    """What a user chose: the engine to time, and what it is timed beside.

    channels: None for the operator's own. dtypes: names in DTYPES.
    """

    engine: str
    peers: bool = False
    channels: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] = ("fp32",)


@dataclass(frozen=True)
class Case:
    """One line of questions to every contestant.

    labels: what tells it from the operator's other cases, e.g. {"C": 64, "pass": "forward"}.
    contestants: name -> maker of its step, the chosen engine first. Makers can be pickled (partials
        of module functions): to measure memory they are called in a process of their own.
    gemm: maker of a matrix product of as many operations, or None.
    flops: floating-point operations, 0 where they do not matter.
    traffic: bytes that must at least be read and written. footprint: bytes of inputs and outputs.
    answer: what of a step's result the contestants must agree on, to within `tolerance` times its
        largest value.
    """

    labels: dict[str, Any]
    contestants: dict[str, Maker]
    traffic: int
    footprint: int
    flops: int = 0
    gemm: Maker | None = None
    dtype: str = "fp32"
    tolerance: float = 0.0
    answer: Callable[[Any], Tensor | Sequence[Tensor]] = lambda result: result


def engines(operator: str, settings: Settings) -> dict[str, str]:
    """Name in the table -> engine, for the chosen engine and, among peers, all others that are there.

    An engine without an operator of its own runs the reference's, and is called so.
    """
    chosen = [settings.engine, *(available_engines() if settings.peers else [])]
    found: dict[str, str] = {}
    for name in chosen:
        with use_engine(name) as engine:
            own = getattr(engine, operator) is not getattr(ops, operator)
        found.setdefault(name if own else "reference", name)
    return found


_HOW = {
    "spconv": ("spconv.pytorch", "`pip install spconv-cu120`, Python 3.10 or 3.11"),
    "torch-scatter": ("torch_scatter", "`pip install --no-build-isolation torch-scatter`"),
}


@cache
def peer(name: str) -> bool:
    """Whether a package to compare with is there; if not, that is said once."""
    module, how = _HOW[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated parts of torch
            importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: built for another torch or CUDA
        why = f"is not installed ({how})" if isinstance(error, ModuleNotFoundError) else f"does not load: {error}"
        print(f"pcssl benchmark: left out: {name} {why}", file=sys.stderr)
        return False
    return True


def nbytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
