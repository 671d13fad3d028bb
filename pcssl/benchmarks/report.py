"""The table on the screen and the numbers in a file."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import pcssl
from pcssl.benchmarks.case import Case
from pcssl.benchmarks.measure import Row
from pcssl.benchmarks.samples import Sample
from pcssl.errors import UserError
from pcssl.sparse import native

# Heading, width, and how a row shows there; None shows as nothing.
_Column = tuple[str, int, Callable[[Row], Any]]


class Report:
    """Rows are printed and saved one by one, so that what was measured stays when one stops.

    path: JSON file with `machine`, `settings`, `command`, `date`, `ceilings` and `rows`, or None.
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
        self._before: list[str] = []
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
        self._columns: list[_Column] = []
        scenes = f"{sample.scenes} scenes, " if sample.scenes > 1 else ""
        print(
            f"\n{operator}: {title}\n{sample.name} at {100 * sample.voxel_size:g} cm: {scenes}"
            f"{len(sample.points):,} points, {len(sample.geometry):,} voxels"
        )

    def add(self, case: Case, row: Row, options: Any) -> None:
        if not self._columns:
            self._columns = _columns(case, options)
            heads = [f"{label:{_width(label)}}" for label in case.labels]
            print("".join(heads) + "".join(f"{head:>{width}}" for head, width, _ in self._columns))
            self._before = []
        labels = [f"{value!s:{_width(label)}}" for label, value in case.labels.items()]
        shown = labels if labels != self._before else [" " * len(text) for text in labels]
        self._before = labels
        values = "".join(f"{show(row) or '':>{width}}" for _, width, show in self._columns)
        print("".join(shown) + values + (f"  {row.note}" if row.note else ""), flush=True)
        measured = {key: None if value != value or value == math.inf else value for key, value in asdict(row).items()}
        self.content["rows"].append(self._about | {"case": case.labels} | measured)
        self._save()

    def ceilings(self, threads: int, dtype: str, tflops: float, gbs: float) -> None:
        """What a big matrix product and a big copy reach, said once."""
        found = {"threads": threads, "dtype": dtype, "matmul_tflops": tflops, "copy_gbs": gbs}
        if found not in self.content["ceilings"]:
            self.content["ceilings"].append(found)
            print(f"here, {threads} thread(s): matmul {dtype} {tflops:.3g} TFLOP/s, copy {gbs:.3g} GB/s")

    def _save(self) -> None:
        if self.path is None:
            return
        temporary = self.path.with_name(f".{self.path.name}.tmp-{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.content, indent=1) + "\n")
            os.replace(temporary, self.path)
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be written: {error.strerror or error}; choose another place") from error
        finally:
            temporary.unlink(missing_ok=True)


def _width(label: str) -> int:
    return {"pass": 18, "table": 21, "mode": 21, "curve": 13}.get(label, 8)


def _columns(case: Case, options: Any) -> list[_Column]:
    """options: `threads`, `memory` of the command line."""

    def number(value: float | None) -> str | None:
        return None if value is None else f"{value:.0f}" if value >= 999.5 else f"{value:.3g}"

    def percent(value: float | None) -> str | None:
        return None if value is None else f"{100 * value:.0f}%"

    def megabytes(value: int | None) -> str | None:
        return None if value is None else f"{value / 1e6:,.1f}"

    columns: list[_Column] = [
        ("threads", 8, lambda row: row.threads),
        (f"  {'by':16}", 18, lambda row: f"  {row.by:16}"),
        ("ms", 10, lambda row: None if row.ms is None else f"{row.ms:.2f}" if row.ms >= 1 else f"{row.ms:.3f}"),
        ("times", 9, lambda row: None if row.times is None else f"{row.times:.2f}x"),
    ]
    if len(options.threads) > 1:
        columns.append(("scaling", 9, lambda row: None if row.scaling is None else f"{row.scaling:.2f}x"))
    if case.gemm:
        columns.append(("of gemm", 9, lambda row: percent(row.of_gemm)))
    if case.flops:
        columns += [("TFLOP/s", 9, lambda row: number(row.tflops)), ("of matmul", 11, lambda row: percent(row.of_matmul))]
    columns += [("GB/s", 8, lambda row: number(row.gbs)), ("of copy", 9, lambda row: percent(row.of_copy))]
    if options.memory:
        columns += [("peak MB", 10, lambda row: megabytes(row.peak)), ("in+out MB", 11, lambda row: megabytes(row.footprint))]
    return columns


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    on_gpu = device.type == "cuda"
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "instructions": native.current_cpu() if native.LIBRARY else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "spconv": _version("spconv"),
        "pcssl": _version("pcssl") or "not installed",
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    """Of an installed distribution; spconv comes as spconv, spconv-cu120, ..."""
    for name in metadata.packages_distributions().get(package, [package]):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _commit() -> str | None:
    """The commit of the checkout that pcssl runs from, with "-dirty" if files differ from it."""
    folder = Path(pcssl.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # the repository around may be another project's
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
