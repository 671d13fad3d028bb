"""Peak memory of a step beyond its inputs."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

import pcssl
from pcssl.benchmarks.case import Maker

# The C library gives large blocks back as soon as they are freed: what is resident is in use.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak(make: Maker, device: torch.device) -> int:
    """Bytes that the step takes at most, beyond what is there before it; its result counts.

    On the CPU another process runs the step twice and reads the high-water mark of its resident
    memory of the second time. RuntimeError where that cannot be done, with the reason.
    """
    return _cuda_peak(make) if device.type == "cuda" else _child_peak(make)


def available(device: torch.device) -> int:
    """Bytes of memory that are free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    try:
        return _kilobytes("/proc/meminfo", "MemAvailable")
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _cuda_peak(make: Maker) -> int:
    step = make()
    step()
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _child_peak(make: Maker) -> int:
    child = _child()
    try:
        pickle.dump((torch.get_num_threads(), make), child.stdin)
        child.stdin.flush()
        answer = json.loads(child.stdout.readline() or '"its process ended, out of memory perhaps"')
    except BrokenPipeError:
        answer = "its process ended"
    if isinstance(answer, str):
        child.kill()
        child.wait()
        _child.cache_clear()
        raise RuntimeError(answer)
    return answer


@cache
def _child() -> subprocess.Popen:
    """One process for all that is measured: it ends with ours, when its input does."""
    return subprocess.Popen(
        [sys.executable, "-m", "pcssl.benchmarks.memory"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(pcssl.__file__).parents[1],
        env=os.environ | _ALLOCATOR,
    )


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print is no answer
    while True:
        try:
            threads, make = pickle.load(sys.stdin.buffer)
        except (EOFError, KeyboardInterrupt):
            return
        torch.set_num_threads(threads)
        try:
            answer = _peak_here(make)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), file=answers, flush=True)


def _peak_here(make: Maker) -> int:
    step = make()
    step()  # threads, buffers and maps that stay
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark falls to what is resident now
    before = _kilobytes("/proc/self/status", "VmRSS")
    step()
    return _kilobytes("/proc/self/status", "VmHWM") - before


def _kilobytes(path: str, field: str) -> int:
    """Bytes of a line such as "VmRSS: 1234 kB"."""
    with open(path) as file:
        return 1024 * int(next(line for line in file if line.startswith(field + ":")).split()[1])


if __name__ == "__main__":
    _serve()
