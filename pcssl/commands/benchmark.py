"""`pcssl benchmark`: how fast the operators are on this machine, beside what else does the same."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pcssl.data.rooms import generate_room
from pcssl.ops.sparse_conv import KernelMap
from pcssl.sparse import Geometry, available_engines, use_engine
from pcssl.sparse.engine import best_engine

Step = Callable[[], object]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("operator", choices=["conv", "map"], help="3x3x3 submanifold convolution, or its neighbour table")
    parser.add_argument("--peers", action="store_true", help="also time the other engines that are there")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128, 256], metavar="C")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="T")
    parser.add_argument("--voxel-size", type=float, nargs="+", default=[0.02, 0.04], metavar="METRES")
    parser.add_argument("--room", type=int, default=0, help="number of the generated room")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many runs is printed")
    parser.add_argument("--engine", default="auto", help="engine to time (default: the best that is there)")


def run(args: argparse.Namespace) -> int:
    before = torch.get_num_threads()
    try:
        with use_engine(args.engine):
            for voxel_size in args.voxel_size:
                geometry = _room(args.room, voxel_size)
                for threads in args.threads:
                    torch.set_num_threads(threads)
                    if args.operator == "conv":
                        _time_conv(args, geometry, voxel_size, threads)
                    else:
                        _time_map(args, geometry, voxel_size, threads)
    finally:
        torch.set_num_threads(before)
    return 0


def _room(index: int, voxel_size: float) -> Geometry:
    from pcssl.ops import voxelize

    return Geometry(voxelize(torch.from_numpy(generate_room(0, index).vertices), voxel_size).coords)


def medians(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Milliseconds of each step. They take turns, so that a busy machine slows all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first is to warm up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _peers(args: argparse.Namespace) -> list[str]:
    names = [best_engine(args.engine)]
    if args.peers:
        names += [name for name in available_engines() if name not in names]
    return names


def _time_map(args: argparse.Namespace, geometry: Geometry, voxel_size: float, threads: int) -> None:
    tables = {}
    for name in _peers(args):
        with use_engine(name) as engine:
            if engine.neighbor_table not in tables.values():  # spconv's is the reference's
                tables[name] = engine.neighbor_table
    found = medians({name: _map_step(table, geometry) for name, table in tables.items()}, args.repeats)
    print(f"\n3x3x3 neighbour table, {len(geometry)} voxels of {100 * voxel_size:g} cm, {threads} thread(s)")
    for name, ms in found.items():
        print(f"  {name:12}{ms:10.2f} ms")


def _map_step(table: Callable[..., Tensor], geometry: Geometry) -> Step:
    return lambda: table(geometry.coords, geometry.sorted_keys, geometry.order, 3)


def _time_conv(args: argparse.Namespace, geometry: Geometry, voxel_size: float, threads: int) -> None:
    kernel_map = geometry.submanifold_map(3)
    pairs = int((kernel_map.table >= 0).sum())
    print(
        f"\n3x3x3 submanifold convolution, {len(geometry)} voxels of {100 * voxel_size:g} cm, "
        f"{pairs / len(geometry):.1f} pairs a voxel, {threads} thread(s); median ms, in brackets the speed\n"
        f"relative to sgemm of the same FLOPs (forward + backward: three of them)"
    )
    names = _peers(args)
    print(f"{'':8}{'pass':18}{'sgemm':>9}" + "".join(f"{name:>20}" for name in names))
    for channels in args.channels:
        for backward in (False, True):
            steps = {"sgemm": _matrix_product(pairs // 27, channels, 3 if backward else 1)}
            for name in names:
                steps[name] = _conv_step(name, geometry, kernel_map, channels, backward)
            found = medians(steps, args.repeats)
            row = "".join(f"{found[n]:>12.1f} ({100 * found['sgemm'] / found[n]:4.0f}%)" for n in names)
            print(f"C={channels:<6}{'forward+backward' if backward else 'forward':18}{found['sgemm']:>9.1f}{row}", flush=True)


def _matrix_product(rows: int, channels: int, times: int) -> Step:
    a, b = torch.randn(rows, 27 * channels), torch.randn(27 * channels, channels)
    return lambda: [a @ b for _ in range(times)]


def _conv_step(name: str, geometry: Geometry, kernel_map: KernelMap, channels: int, backward: bool) -> Step:
    features = torch.randn(len(geometry), channels, requires_grad=backward)
    # Layers keep weights as (out, K, in).
    weight = torch.randn(channels, 27, channels, requires_grad=backward)
    grad = torch.randn(len(geometry), channels)
    with use_engine(name) as engine:
        conv = engine.sparse_conv

    def step() -> None:
        out = conv(features, weight.permute(1, 2, 0), kernel_map)
        if backward:
            torch.autograd.grad(out, (features, weight), grad)

    return step
