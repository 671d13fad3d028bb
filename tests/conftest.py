"""Shared by all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # small tensors: threads only get in each other's way
# A job in the background of a script ignores Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

REAL = Path(os.environ.get("PCSSL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_scans() -> Path:
    """Folder of real scans: $PCSSL_TEST_DATA, or shared/data beside the repository."""
    if not REAL.is_dir():
        pytest.skip(f"no real scans at {REAL}; set PCSSL_TEST_DATA to their folder")
    return REAL
