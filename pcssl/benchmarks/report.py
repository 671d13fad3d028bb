"""The table on the screen and the numbers in a file."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pcssl.benchmarks.case import Case
from pcssl.benchmarks.measure import Row
from pcssl.benchmarks.samples import Sample
from pcssl.errors import UserError
from pcssl.sparse import available_engines
from pcssl.version import commit, pcssl_version

# Heading, width, field of a row and how it is written; None shows as nothing.
_Column = tuple[str, int, str, Callable[[Any], str]]


class Report:
    """Rows are printed and saved one by one, so that what was measured stays when one stops.

    path: JSON file with `command`, `date`, `machine`, `settings`, `ceilings` and `rows`, or None.
    settings: what the command line says, `threads` and `memory` among it.
    """

    def __init__(self, path: Path | None, device: torch.device, settings: dict[str, Any]):
        self.path = path
        self.content = {
            "command": shlex.join(sys.argv),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(device),
            "settings": settings,
            "ceilings": [],
            "rows": [],
        }
        self._save()
        print("  ".join(f"{key} {value}" for key, value in self.content["machine"].items() if value is not None))

    def section(self, operator: str, title: str, sample: Sample) -> None:
        """What the next rows are about."""
        self._about = {
            "operator": operator,
            "sample": sample.name,
            "scenes": sample.scenes,
            "points": len(sample.points),
            "voxel_size": sample.voxel_size,
            "voxels": len(sample.geometry),
        }
        self._columns: list[_Column] = []  # known with the first case
        self._before: list[str] = []
        scenes = f"{sample.scenes} scenes, " if sample.scenes > 1 else ""
        print(
            f"\n{operator}: {title}\n{sample.name} at {100 * sample.voxel_size:g} cm: {scenes}"
            f"{len(sample.points):,} points, {len(sample.geometry):,} voxels"
        )

    def add(self, case: Case, row: Row) -> None:
        if not self._columns:
            self._columns = _columns(case, self.content["settings"])
            heads = [f"{label:{_width(label)}}" for label in case.labels]
            print("".join(heads) + "".join(f"{head:>{width}}" for head, width, *_ in self._columns))
        labels = [f"{value!s:{_width(label)}}" for label, value in case.labels.items()]
        shown = labels if labels != self._before else [" " * len(text) for text in labels]
        self._before = labels
        measured = asdict(row)
        written = ["" if measured[field] is None else write(measured[field]) for *_, field, write in self._columns]
        values = "".join(f"{text:>{width}}" for text, (_, width, *_) in zip(written, self._columns))
        print("".join(shown) + values + (f"  {row.note}" if row.note else ""), flush=True)
        if row.difference is not None and not math.isfinite(row.difference):
            measured["difference"] = None  # JSON has no infinity; the note says it
        self.content["rows"].append(self._about | {"case": case.labels} | measured)
        self._save()

    def ceilings(self, threads: int, dtype: str, tflops: float, gbs: float) -> None:
        """What a big matrix product and a big copy reach, said once."""
        found = {"threads": threads, "dtype": dtype, "matmul_tflops": tflops, "copy_gbs": gbs}
        if found not in self.content["ceilings"]:
            self.content["ceilings"].append(found)
            print(f"ceilings with {threads} thread(s): matmul {dtype} {tflops:.3g} TFLOP/s, copy {gbs:.3g} GB/s")

    def _save(self) -> None:
        if self.path is None:
            return
        temporary = self.path.with_name(f".{self.path.name}.tmp-{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps(self.content, indent=1) + "\n")
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be written: {error.strerror or error}; choose another place") from error


def _width(label: str) -> int:
    return {"pass": 18, "table": 21, "mode": 21, "curve": 13}.get(label, 8)


def _columns(case: Case, settings: dict[str, Any]) -> list[_Column]:
    columns: list[_Column] = [
        ("threads", 8, "threads", str),
        (f"  {'by':16}", 18, "by", "  {:16}".format),
        ("ms", 10, "ms", _number),
        ("times", 8, "times", "{:.2f}".format),
    ]
    if len(settings["threads"]) > 1:
        columns.append(("scaling", 9, "scaling", "{:.2f}".format))
    if case.gemm:
        columns.append(("of gemm", 9, "of_gemm", "{:.0%}".format))
    if case.flops:
        columns += [("TFLOP/s", 9, "tflops", _number), ("of matmul", 11, "of_matmul", "{:.0%}".format)]
    columns += [("GB/s", 9, "gbs", _number), ("of copy", 9, "of_copy", "{:.0%}".format)]
    if settings["memory"]:
        columns += [("peak MB", 10, "peak", _megabytes), ("in+out MB", 11, "footprint", _megabytes)]
    return columns


def _number(value: float) -> str:
    """Three digits at least."""
    return f"{value:.{max(0, min(4, 2 - math.floor(math.log10(value))))}f}" if value > 0 else "0"


def _megabytes(value: int) -> str:
    return f"{value / 1e6:.1f}"


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    on_gpu = device.type == "cuda"
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "instructions": _instructions(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "spconv": _version("spconv", *(f"spconv-cu{n}" for n in (118, 120, 121, 124, 126))),
        "pcssl": pcssl_version(),
        "commit": commit(),
    }


def _instructions() -> str | None:
    """The instruction set of the compiled convolutions."""
    if "native" not in available_engines():
        return None
    from pcssl.sparse import native

    return native.current_cpu()


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(*names: str) -> str | None:
    """Of the first of these distributions that is installed."""
    for name in names:
        try:
            return f"{metadata.version(name)}{name.removeprefix(names[0])}"
        except metadata.PackageNotFoundError:
            continue
    return None
