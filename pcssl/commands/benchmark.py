"""`pcssl benchmark`: how fast the operators are on this machine, beside what else does the same."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from pcssl.benchmarks import OPERATORS
from pcssl.benchmarks.case import DTYPES, Settings
from pcssl.benchmarks.measure import ceilings, measure
from pcssl.benchmarks.report import Report
from pcssl.benchmarks.samples import Sample, hall, room, rooms, scan
from pcssl.errors import UserError
from pcssl.registry import did_you_mean
from pcssl.sparse import use_engine
from pcssl.sparse.engine import best_engine
from pcssl.training.trainer import pick_device

_DESCRIPTION = f"""\
Time an operator beside the other engines and other packages that do the same.

  python tools/benchmark.py conv --peers
  python tools/benchmark.py interpolate --peers --memory --hall 1 2 4 --channels 8
  python tools/benchmark.py all --peers --scan scan.ply --out numbers.json

operators:
{chr(10).join(f"  {name:13}{what}" for name, (_, what) in OPERATORS.items())}
  {"all":13}one after the other

Contestants take turns, in one run; printed are medians. Before a contestant is timed its numbers are
compared with the chosen engine's. Columns: times, its time over the chosen engine's; scaling, its time
at the first number of threads over this one; of gemm, time of a matrix product of as many operations
over its own; of matmul and of copy, its speed as a share of what a big matrix product and a big copy
reach here (bytes: the least that must move); peak, memory beyond the inputs.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("operator", metavar="OPERATOR", help=f"{', '.join(OPERATORS)} or all")
    parser.add_argument("--engine", default="auto", help="engine to time (default: the best that is there)")
    parser.add_argument("--peers", action="store_true", help="also time the other engines and other packages")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=_positive(int), nargs="+", default=[1, 2], metavar="T", help="on the CPU")
    parser.add_argument("--channels", type=_positive(int), nargs="+", metavar="C", help="interpolate: of the finest level")
    parser.add_argument("--dtype", nargs="+", default=["fp32"], choices=list(DTYPES), help="conv only")
    parser.add_argument("--voxel-size", type=_positive(float), nargs="+", default=[0.02, 0.04], metavar="METRES")
    parser.add_argument("--room", type=int, default=0, metavar="N", help="number of the generated room")
    parser.add_argument("--voxels", type=_positive(int), nargs="+", metavar="N", help="instead: so many voxels of rooms, as a batch")
    parser.add_argument("--scan", action="append", metavar="FILE", help="instead: a real scan; may be given again")
    parser.add_argument("--hall", type=_positive(int), nargs="+", metavar="TIMES",
                        help="instead: a made hall of 10 x 10 x 3 m, its halves moved apart to so many times its length")  # fmt: skip
    parser.add_argument("--points", type=_positive(int), metavar="N", help="take so many points around a scene's middle")
    parser.add_argument("--repeats", type=_positive(int), default=5, help="the median of so many runs is printed")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="keep the numbers, with what they depend on")


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    number.__name__ = f"positive {kind.__name__}"  # for argparse's message
    return number


def run(args: argparse.Namespace) -> int:
    """Exit status 1 if a contestant failed or found other numbers than the others."""
    operators, device, settings = _check(args)
    scenes = _scenes(args)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        args.threads = [torch.get_num_threads()]
    before = torch.get_num_threads()
    failed = False
    report = Report(args.out, device, vars(args) | {"engine": settings.engine, "out": str(args.out)})
    try:
        with use_engine(settings.engine):
            for sample, operator in ((s, o) for s in _samples(args, scenes, device) for o in operators):
                module, what = OPERATORS[operator]
                report.section(operator, what, sample)
                for case in importlib.import_module(module).cases(sample, settings):
                    for count in args.threads:
                        report.ceilings(count, case.dtype, *ceilings(device, count, case.dtype))
                    for row in measure(case, args.threads, args.repeats, device, args.memory):
                        report.add(case, row)
                        failed |= row.failed
    finally:
        torch.set_num_threads(before)
    return int(failed)


def _check(args: argparse.Namespace) -> tuple[list[str], torch.device, Settings]:
    """What to time, where and with what; UserError before anything is measured."""
    if args.operator not in (*OPERATORS, "all"):
        near = did_you_mean(args.operator, OPERATORS)
        raise UserError(f"unknown operator {args.operator!r}{near}; known: {', '.join(OPERATORS)}, all")
    with use_engine(best_engine(args.engine)) as engine:  # UserError if it is not there
        pass
    device = pick_device(args.device)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {args.device}: only cpu and cuda can be timed")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        if device.index >= torch.cuda.device_count():
            raise UserError(f"--device {args.device}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    if device.type == "cpu" and "tf32" in args.dtype:
        raise UserError("--dtype tf32: a mode of CUDA GPUs; add --device cuda")
    operators = list(OPERATORS) if args.operator == "all" else [args.operator]
    channels = tuple(args.channels) if args.channels else None
    return operators, device, Settings(engine.name, args.peers, channels, tuple(args.dtype))


def _scenes(args: argparse.Namespace) -> list[tuple[str, torch.Tensor]]:
    """Name and points (P, 3) of the scenes that are read or made once."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"pcssl benchmark: warning: {message}", file=sys.stderr)
        found = [(Path(path).name, scan(path, args.points)) for path in args.scan or ()]
    found += [(f"hall, {times} times as long", hall(times, args.points)) for times in args.hall or ()]
    if not found and not args.voxels:
        found.append((f"room {args.room}", room(args.room, args.points)))
    return found


def _samples(args: argparse.Namespace, scenes: list[tuple[str, torch.Tensor]], device: torch.device) -> Iterator[Sample]:
    for size in args.voxel_size:
        made = [(name, partial(_one_scene, points)) for name, points in scenes]
        made += [(f"rooms from {args.room}", partial(rooms, args.room, n, size, args.points)) for n in args.voxels or ()]
        for name, make in made:
            try:
                points, batch = make()
                sample = Sample(name, points.to(device), batch.to(device), size)
                sample.geometry  # noqa: B018
            except ValueError as error:
                raise UserError(f"--voxel-size {size:g}: {error}") from error
            yield sample


def _one_scene(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return points, torch.zeros(len(points), dtype=torch.int64)
