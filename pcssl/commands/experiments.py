"""`pcssl experiments`: many runs that differ in a line each, and their table."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pcssl.commands.probe import write_text
from pcssl.commands.train import ImageTrainConfig, TrainConfig
from pcssl.config import Range, load_config, to_dict
from pcssl.errors import UserError
from pcssl.visualization import bar_chart, save_png

_NO_SETTING = ("output", "seed", "device", "log_every", "checkpoint_every", "monitor_every")

_DESCRIPTION = """\
Train and probe the configs of a plan, for several seeds, and put their scores into a table and a picture.

  python tools/experiments.py configs/plans/ablations.yaml             everything that is not done yet
  python tools/experiments.py configs/plans/ablations.yaml --only full,no_mask --seeds 0
  python tools/experiments.py configs/plans/ablations.yaml --jobs 4    four runs at a time, each with its share of the cores
  python tools/experiments.py configs/plans/ablations.yaml --report    only the table of what is done

A run that was cut off is continued, one whose results are there is skipped; results of other settings than the
configs have now are refused. Runs go to `output` of the plan; a small JSON file of each, the table and the picture go to
its `results`. On a CPU, --jobs with a run on each core is faster than one after another on all of them.
"""


@dataclass(frozen=True)
class Run:
    """config: file, relative to the plan. paper: the score that a paper prints for it, in percent."""

    name: str
    config: str
    what: str = ""
    paper: float | None = None


@dataclass(frozen=True)
class Plan:
    """runs: the most telling first. orders: lists of names whose scores should rise, to be checked."""

    output: str
    results: str
    runs: tuple[Run, ...]
    seeds: tuple[Annotated[int, Range(0)], ...] = (0, 1, 2)
    orders: tuple[tuple[str, ...], ...] = ()
    title: str = ""
    overrides: tuple[str, ...] = field(default=())


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl experiments`."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("plan", type=Path, help="YAML file, for example configs/plans/ablations.yaml")
    parser.add_argument("--only", metavar="A,B", help="names of runs (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="S", help="default: those of the plan")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--report", action="store_true", help="run nothing; make the table of what is done")
    parser.add_argument("--dry-run", action="store_true", help="list what would run")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, report after each."""
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: give at least 1")
    plan = load_config(args.plan, Plan, [])
    chosen = _chosen(plan, args.only)
    now = {r.name: settings(args.plan, plan, r) for r in plan.runs}
    old = stale(plan, now)
    if old and not args.report:
        raise UserError(
            f"{', '.join(str(path) for path in old)}: made with other settings than the configs have now, scores would not compare; "
            f"delete them and their runs in {plan.output}, or name other folders in the plan (--report shows the table)"
        )
    todo = [(r, seed) for seed in args.seeds or plan.seeds for r in chosen if not result_path(plan, r.name, seed).exists()]
    if args.dry_run:
        for r, seed in todo:
            print(f"{r.name} seed {seed}: {' '.join(_command(plan, args.plan, r, seed))}")
        return 0
    if args.report:
        todo = []
    if args.jobs > 1:
        _build_datasets(args.plan, plan, todo)
    failed = []
    for (r, seed), status in _run_all(plan, args.plan, todo, now, args.jobs):
        if status == 130:
            print("pcssl experiments: stopped; the same command goes on", file=sys.stderr)
            return 130
        if status:
            failed.append(f"{r.name} seed {seed} (status {status}, see {_folder(plan, r.name, seed) / 'log.txt'})")
        report(plan)
    report(plan, old)
    if failed:
        raise UserError("these runs failed: " + "; ".join(failed))
    return 0


def _chosen(plan: Plan, only: str | None) -> list[Run]:
    names = [r.name for r in plan.runs]
    if only is None:
        return list(plan.runs)
    unknown = [name for name in only.split(",") if name not in names]
    if unknown:
        raise UserError(f"no run called {', '.join(unknown)} in the plan; it has {', '.join(names)}")
    return [r for r in plan.runs if r.name in only.split(",")]


def _folder(plan: Plan, name: str, seed: int) -> Path:
    return Path(plan.output) / name / f"seed{seed}"


def settings(file: Path, plan: Plan, r: Run) -> dict[str, Any]:
    """Every setting of the run that can change its scores, as plain values."""
    config = to_dict(load_config(file.parent / r.config, TrainConfig | ImageTrainConfig, list(plan.overrides)))
    return {key: value for key, value in config.items() if key not in _NO_SETTING}


def same(a: Any, b: Any) -> bool:
    """Whether all that both know is equal: an option that came later has a default that does as before."""
    if isinstance(a, dict) and isinstance(b, dict):
        return all(same(a[key], b[key]) for key in a.keys() & b.keys())
    return a == b


def stale(plan: Plan, now: dict[str, dict[str, Any]]) -> list[Path]:
    """Results that were made with other settings than their configs have now."""
    found = []
    for r in plan.runs:
        for path in sorted(Path(plan.results).glob(f"{r.name}_seed*.json")):
            if not same(json.loads(path.read_text())["settings"], json.loads(json.dumps(now[r.name]))):
                found.append(path)
    return found


def result_path(plan: Plan, name: str, seed: int) -> Path:
    return Path(plan.results) / f"{name}_seed{seed}.json"


def _command(plan: Plan, file: Path, r: Run, seed: int) -> list[str]:
    return [
        sys.executable, "-m", "pcssl", "train", str(file.parent / r.config),
        f"output={_folder(plan, r.name, seed)}", f"seed={seed}", *plan.overrides, "--resume",
    ]  # fmt: skip


def _build_datasets(file: Path, plan: Plan, todo: Sequence[tuple[Run, int]]) -> None:
    """Read, and where they are generated make, what runs that start together would make at the same time."""
    configs = [load_config(file.parent / r.config, TrainConfig | ImageTrainConfig, list(plan.overrides)) for r, _ in todo]
    for dataset in {repr(c.data.dataset): c.data.dataset for c in configs}.values():
        dataset.build()


def _run_all(
    plan: Plan, file: Path, todo: Sequence[tuple[Run, int]], now: dict[str, dict[str, Any]], jobs: int
) -> Iterator[tuple[tuple[Run, int], int]]:
    """Every run that ended, and its exit status: 130, the last one, where it was stopped."""
    stopping = threading.Event()

    def one(number: int) -> int:
        if stopping.is_set():
            return 130
        r, seed = todo[number]
        print(f"experiments: {number + 1} of {len(todo)}: {r.name}, seed {seed}", file=sys.stderr, flush=True)
        status = _run(plan, file, r, seed, now[r.name], jobs)
        if status == 130:
            stopping.set()
        return status

    with ThreadPoolExecutor(jobs) as pool:
        runs = {pool.submit(one, number): todo[number] for number in range(len(todo))}
        try:
            for done in as_completed(runs):
                yield runs[done], done.result()
        except KeyboardInterrupt:  # the runs have been told by the same Ctrl-C, and save before the pool closes
            stopping.set()
            yield todo[0], 130
        finally:
            stopping.set()


def _run(plan: Plan, file: Path, r: Run, seed: int, now: dict[str, Any], jobs: int = 1) -> int:
    folder = _folder(plan, r.name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    begin, whole = time.monotonic(), not (folder / "checkpoint.pt").exists()
    environment = dict(os.environ)
    if jobs > 1:  # threads of several runs on one core wait for each other
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    with open(folder / "log.txt", "a") as log:
        status = subprocess.run(_command(plan, file, r, seed), stdout=log, stderr=log, env=environment, check=False).returncode
    if status:
        return status
    if not (folder / "results.json").exists():
        raise UserError(f"{r.name} seed {seed} has no results.json in {folder}; set probe.after_training in {r.config} or in `overrides`")
    found = json.loads((folder / "results.json").read_text())
    kept = {
        "run": r.name, "seed": seed, "minutes": round((time.monotonic() - begin) / 60, 1) if whole else None,  # of a run that went on: not known
        "protocol": found["protocol"], "fingerprint": found["data"]["fingerprint"], "machine": found["machine"],
        "results": {
            source: {head: {"miou": s["miou"]["mean"], "macc": s["macc"]["mean"]} for head, s in heads.items()}
            for source, heads in found["results"].items()
        },
        "settings": now,
    }  # fmt: skip
    write_text(result_path(plan, r.name, seed), json.dumps(kept, indent=1) + "\n")
    return 0


Scores = dict[str, dict[str, dict[int, float]]]


def collect(plan: Plan) -> Scores:
    """Per run and head the mIoU by seed, of every seed that is done, in percent."""
    found: Scores = {}
    for r in plan.runs:
        contents: list[dict[str, Any]] = [json.loads(p.read_text()) for p in Path(plan.results).glob(f"{r.name}_seed*.json")]
        for content in sorted(contents, key=lambda content: content["seed"]):
            for head, score in content["results"]["trained"].items():
                found.setdefault(r.name, {}).setdefault(head, {})[content["seed"]] = 100 * score["miou"]
    return found


def report(plan: Plan, old: Sequence[Path] = ()) -> None:
    """Write README.md and scores.png beside the results, print the table. old: results of other settings."""
    found = collect(plan)
    page = [f"# {plan.title or 'Experiments'}", table(plan, found), *check_orders(plan, found)]
    if old:
        page.append(f"Made with other settings than the configs have now: {', '.join(path.stem for path in old)}.")
    write_text(Path(plan.results) / "README.md", "\n\n".join(page) + "\n")
    print("\n\n".join(page[1:]))
    linear = {name: list(scores["linear"].values()) for name, scores in found.items() if "linear" in scores}
    if linear:
        means = {"linear mIoU, mean and each seed": [statistics.mean(values) for values in linear.values()]}
        image = bar_chart(list(linear), means, plan.title or "Experiments", single=list(linear.values()))
        save_png(Path(plan.results) / "scores.png", image)


def table(plan: Plan, found: Scores) -> str:
    heads = list(dict.fromkeys(head for scores in found.values() for head in scores))
    paper = any(r.paper is not None for r in plan.runs)
    header = ["", "what", *heads, "seeds", *(["paper"] if paper else [])]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for r in plan.runs:
        scores = found.get(r.name, {})
        cells = [_cell(scores.get(head)) for head in heads]
        seeds = str(max((len(v) for v in scores.values()), default=0))
        last = ["-" if r.paper is None else f"{r.paper:.1f}"] if paper else []
        lines.append("| " + " | ".join([r.name, r.what, *cells, seeds, *last]) + " |")
    return "\n".join(lines)


def _cell(by_seed: dict[int, float] | None) -> str:
    if not by_seed:
        return "-"
    values = list(by_seed.values())
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{v:.1f}' for v in values)})"


def check_orders(plan: Plan, found: Scores) -> list[str]:
    """A line for every pair of an expected order: whether it holds in the mean of the seeds that both have done, and in how many."""
    lines = []
    for order in plan.orders:
        for low, high in zip(order, order[1:]):
            a, b = (found.get(name, {}).get("linear", {}) for name in (low, high))
            gaps = [b[seed] - a[seed] for seed in a if seed in b]
            if gaps:
                gap = statistics.mean(gaps)
                holds = "holds" if gap > 0 else "DOES NOT HOLD"
                lines.append(f"- {low} < {high}: {holds} by {gap:+.1f}, in {sum(g > 0 for g in gaps)} of {len(gaps)} seeds")
    return ["\n".join(lines)] if lines else []
