"""How much memory is used, free, and needed."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from pcssl.errors import UserError

T = TypeVar("T")
_STATM = Path("/proc/self/statm")
_UNITS = {"": 1, "B": 1, **{f"{p}{u}": k**i for i, p in enumerate("KMGT", 1) for u, k in (("", 1000), ("B", 1000), ("IB", 1024))}}


def parse_bytes(text: str | float) -> int:
    """Bytes from a number or from text; UserError for anything else.

    >>> parse_bytes("4GB"), parse_bytes("1.5GiB"), parse_bytes(500)
    (4000000000, 1610612736, 500)
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([a-zA-Z]*)\s*", str(text))
    if not found or found[2].upper() not in _UNITS:
        raise UserError(f"{text!r} is not an amount of memory; write it like 4GB or 500MB")
    return round(float(found[1]) * _UNITS[found[2].upper()])


class Memory:
    """The memory in which a device's tensors lie: of the process for the CPU, torch's part of it for a GPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.known = device.type == "cuda" or _STATM.exists()

    def used(self) -> int:
        """Bytes in use, after giving back to the system what is free."""
        self.give_back()
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _resident()

    def give_back(self) -> None:
        """Return free memory to the system: glibc keeps what smaller tensors took."""
        if self.known and self.device.type == "cpu":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)

    def free(self) -> int:
        """Bytes that can still be had."""
        if self.device.type == "cuda":
            unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return torch.cuda.mem_get_info(self.device)[0] + unused
        return min(_available(), *_left_in_group())

    def peak(self, function: Callable[[], T]) -> tuple[T, int]:
        """What `function` returns, and the most bytes that it had in use beside those in use before."""
        before = self.used()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return function(), torch.cuda.max_memory_allocated(self.device) - before
        watch = _Watch()
        try:
            result = function()
        finally:
            watch.stop()
        return result, watch.most - before


class _Watch:
    """Looks at the process's memory every millisecond: the system's own record of the peak never falls."""

    def __init__(self) -> None:
        self.most = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.001):
            self.most = max(self.most, _resident())

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        self.most = max(self.most, _resident())


def _resident() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _available() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _left_in_group() -> list[int]:
    """What the control group of the process may still take, where one is set."""
    left = []
    for limit, usage in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            left.append(int(Path("/sys/fs/cgroup", limit).read_text()) - int(Path("/sys/fs/cgroup", usage).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return left or [2**62]
