"""Shared by all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # small tensors: threads only get in each other's way
# A job in the background of a script ignores Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

REAL = Path(os.environ.get("PCSSL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


SEEDS = (0, 1, 2)  # of every run that is judged by what it learns


@pytest.fixture
def over_seeds(record_property) -> Callable[[Callable[[int], dict[str, float]]], dict[str, torch.Tensor]]:
    """Calls measure(seed) for every seed; name -> what was found, in their order. `--junitxml=FILE` keeps the numbers."""

    def run(measure: Callable[[int], dict[str, float]]) -> dict[str, torch.Tensor]:
        runs = [measure(seed) for seed in SEEDS]
        for name in runs[0]:
            record_property(name, " ".join(f"{found[name]:.4f}" for found in runs))
        return {name: torch.tensor([found[name] for found in runs]) for name in runs[0]}

    return run


@pytest.fixture(scope="session")
def real_scans() -> Path:
    """Folder of real scans: $PCSSL_TEST_DATA, or shared/data beside the repository."""
    if not REAL.is_dir():
        pytest.skip(f"no real scans at {REAL}; set PCSSL_TEST_DATA to their folder")
    return REAL
