"""Time, agreement, and the ceilings of the machine."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pcssl.benchmarks.case import DTYPES, Case, LeftOut, Maker, Step
from pcssl.benchmarks.memory import peak
from pcssl.errors import UserError

GEMM = "gemm"  # its name in the table


@dataclass
class Row:
    """What one contestant did in a case; None: not measured or of no meaning here.

    ms: median. times: of the chosen engine's time. scaling: time at the first number of threads over
    the time at this one. of_gemm: its time over ours. of_matmul, of_copy: share of the ceilings.
    peak: bytes beyond the inputs. difference: from the first contestant's numbers, as a share of their
    largest. failed: crashed, or its numbers differ.
    """

    threads: int
    by: str
    ms: float | None = None
    times: float | None = None
    scaling: float | None = None
    of_gemm: float | None = None
    tflops: float | None = None
    of_matmul: float | None = None
    gbs: float | None = None
    of_copy: float | None = None
    peak: int | None = None
    footprint: int | None = None
    difference: float | None = None
    failed: bool = False
    note: str = ""


def measure(case: Case, threads: Sequence[int], repeats: int, device: torch.device, memory: bool) -> Iterator[Row]:
    """A row for every contestant at every number of threads."""
    alone: dict[str, float] = {}
    with precision(case.dtype):
        torch.set_num_threads(threads[0])
        trial = _Trial(case)
        for count in threads:
            torch.set_num_threads(count)
            found = medians(trial.steps, repeats, device)
            for by in contestants(case):
                row = Row(count, by, found.get(by), difference=trial.differences.get(by))
                row.failed, row.note = trial.notes.get(by, (False, ""))
                if by in found:
                    _compare(row, case, found, device)
                    row.scaling = alone.setdefault(by, found[by]) / found[by]
                    if memory and by != GEMM:
                        _weigh(row, case, device)
                yield row


class _Trial:
    """Every contestant's step, called once: who can do it, and who finds the same numbers."""

    def __init__(self, case: Case):
        self.steps: dict[str, Step] = {}
        self.differences: dict[str, float] = {}
        self.notes: dict[str, tuple[bool, str]] = {}  # failed, why
        expected = None
        for by, make in contestants(case).items():
            try:
                step = make()
                found = step()
                if by != GEMM:
                    found = case.answer(found)
                    expected = found if expected is None else expected
                    self._agree(by, difference(found, expected), case.tolerance)
                self.steps[by] = step
            except (LeftOut, UserError) as reason:  # the second: what an engine says it does not have
                self.notes[by] = False, str(reason)
            except Exception as error:  # whatever a package throws, the others are still timed
                self.notes[by] = True, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"

    def _agree(self, by: str, found: float, tolerance: float) -> None:
        self.differences[by] = found
        if not found <= tolerance:  # NaN does not agree either
            self.notes[by] = True, f"its numbers differ by {found:.1e} of the largest"


def contestants(case: Case) -> dict[str, Maker]:
    return ({GEMM: case.gemm} if case.gemm else {}) | case.contestants


def difference(found: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    """The largest difference as a share of the largest expected value; inf where shapes differ."""
    if not isinstance(found, Tensor):
        return max(difference(a, b) for a, b in zip(found, expected, strict=True))
    if found.shape != expected.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    worst = (found.double() - expected.double()).abs().max()
    return float(worst / expected.double().abs().max().clamp(min=1e-300))


def _compare(row: Row, case: Case, found: dict[str, float], device: torch.device) -> None:
    first = found.get(next(iter(case.contestants)))
    row.times = found[row.by] / first if first else None
    tflops, gbs = ceilings(device, row.threads, case.dtype)
    if case.flops:
        row.tflops = case.flops / found[row.by] * 1e-9
        row.of_matmul = row.tflops / tflops
    if row.by != GEMM:  # a matrix product gathers nothing
        row.gbs = case.traffic / found[row.by] * 1e-6
        row.of_copy = row.gbs / gbs
    if GEMM in found:
        row.of_gemm = found[GEMM] / found[row.by]


def _weigh(row: Row, case: Case, device: torch.device) -> None:
    row.footprint = case.footprint
    try:
        row.peak = peak(case.contestants[row.by], device)
    except (OSError, RuntimeError) as error:
        row.note = f"{row.note}{'; ' if row.note else ''}memory not measured: {error}"


def medians(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of each step. They take turns, so that a busy machine slows all of them alike."""
    watch = stopwatch(device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            ms = watch(step)
            if turn:  # the first is to warm up
                times[name].append(ms)
    return {name: statistics.median(values) for name, values in times.items()}


def stopwatch(device: torch.device) -> Callable[[Step], float]:
    """Milliseconds of a call: by CUDA events after a flush of the L2 cache, or by the clock."""
    if device.type != "cuda":
        return _clock
    flush = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)

    def watch(step: Step) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return watch


def _clock(step: Step) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


@cache
def ceilings(device: torch.device, threads: int, dtype: str) -> tuple[float, float]:
    """What the machine can do: TFLOP/s of a big matrix product in this dtype, GB/s of a big copy."""
    on_gpu = device.type == "cuda"
    edge, size = (8192, 1 << 30) if on_gpu else (512, 1 << 27)
    a = torch.randn(edge, edge, device=device).to(DTYPES[dtype])
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with precision(dtype):
        ms = medians({"matmul": lambda: a @ a, "copy": lambda: target.copy_(source)}, 5, device)
    torch.set_num_threads(before)
    return 2 * edge**3 / ms["matmul"] * 1e-9, 2 * size / ms["copy"] * 1e-6


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Whether float32 products may use TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
