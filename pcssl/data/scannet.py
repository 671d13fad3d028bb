"""ScanNet's raw layout -> the prepared layout that training reads.

Raw, one folder a scene in RAW, RAW/scans or RAW/scans_test:
    <scene>_vh_clean_2.ply                   the mesh
    <scene>.aggregation.json (or <scene>_vh_clean.aggregation.json) and
    <scene>_vh_clean_2.0.010000.segs.json    labels and instances, by segments of the mesh
    <scene>_vh_clean_2.labels.ply            without those two: NYU40 ids of the vertices
    <scene>.txt                              may hold the axis alignment
Prepared, the layout of Pointcept: OUT/<split>/<scene>/{coord,color,normal,segment20,segment200,instance}.npy
"""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pcssl.data.formats import RawScan, complete, read_raw
from pcssl.data.scannet_classes import SCANNET20_IDS, SCANNET200_IDS
from pcssl.data.scene import Scene
from pcssl.errors import UserError

LABEL_MAP = "scannetv2-labels.combined.tsv"
SPLITS = ("train", "val", "test")
# The official v2 lists (1201, 312 and 100 scenes), as ScanNet's benchmark scripts bring them.
_OFFICIAL_LISTS = Path(__file__).parent / "splits"
_OFFICIAL_NAME = re.compile(r"scene\d{4}_\d{2}")


@dataclass
class LabelMap:
    """Category name -> position in the 20 and in the 200 classes; names without a class are left out."""

    to20: dict[str, int]
    to200: dict[str, int]


@dataclass
class PrepareSummary:
    """What became of the scenes.

    prepared: written now; unlabelled: those of them without labels. skipped: complete before.
    unlisted: in no split list, left out. failed: (scene, reason), the reason names the file.
    notes: what the user should know, one line each.
    """

    prepared: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.prepared)} scenes prepared"]
        if self.unlabelled:
            parts.append(f"{len(self.unlabelled)} of them without labels")
        parts += [f"{len(self.skipped)} already there", f"{len(self.failed)} failed"]
        if self.unlisted:
            parts.append(f"{len(self.unlisted)} in no split list")
        return ", ".join(parts)


def prepare_scannet(
    raw: str | Path,
    out: str | Path,
    *,
    workers: int,
    splits: str | Path | None = None,
    overwrite: bool = False,
    labels_tsv: str | Path | None = None,
    progress: bool = True,
) -> PrepareSummary:
    """Prepare every scene under `raw` into `out`/<split>/<scene>.

    workers: processes; 0 works in this one.
    splits: folder with scannetv2_{train,val,test}.txt; by default looked up in raw, raw/splits and
        raw/meta_data, then the official lists where the names are ScanNet's. Without any list all
        scenes go to train (those in raw/scans_test to test).
    overwrite: prepare scenes again that are complete; otherwise they are skipped.
    labels_tsv: ScanNet's label map; by default looked up where the lists are.
    progress: report on stderr.

    A scene that cannot be prepared is reported and skipped; nothing half-written is left. On Ctrl-C
    the scenes under way are finished first. Raises UserError when there is nothing to prepare from.
    """
    raw, out = Path(raw), Path(out)
    if workers < 0:
        raise UserError(f"workers is {workers}; give 0 (this process) or the number of processes")
    summary = PrepareSummary()
    scenes = find_scenes(raw)
    places = [raw, raw / "splits", raw / "meta_data"]
    split_of = _assign_splits(scenes, places, None if splits is None else Path(splits), summary)
    label_map = None
    if any(_find_labels(scenes[name])[0] for name in split_of):
        label_map = read_label_map(_find_label_map(places, splits, labels_tsv))
    jobs = []
    for name, split in split_of.items():
        target = out / split / name
        if (target / "coord.npy").exists() and not overwrite:
            summary.skipped.append(name)
        else:
            jobs.append(_Job(scenes[name], target, label_map))
    report = _Report(len(jobs)) if progress else None
    if report:
        for note in summary.notes:
            report.line(note)
    run = _in_pool(jobs, workers) if workers else ((job, _attempt(job)) for job in jobs)
    with closing(run):
        for job, outcome in run:
            _record(summary, job.folder.name, outcome, report)
    return summary


def prepare_scene(folder: str | Path, target: str | Path, label_map: LabelMap | None = None) -> bool:
    """Prepare one raw scene folder into the folder `target`, replacing it; whether it has labels.

    Raises UserError for a missing or broken file, then `target` is as it was.
    """
    folder, target = Path(folder), Path(target)
    name = folder.name
    mesh = folder / f"{name}_vh_clean_2.ply"
    raw = read_raw(mesh)
    # What a mesh may carry under these names is not known to be ScanNet's numbering.
    raw.labels, raw.instance = {}, None
    _read_labels(raw, folder, label_map)
    _align(raw, folder / f"{name}.txt")
    _save(complete(raw, mesh, name=name), target)
    return bool(raw.labels)


def find_scenes(raw: Path) -> dict[str, Path]:
    """Scene name -> folder, sorted; UserError if there is none."""
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; give the one that holds ScanNet's scene folders")
    found: dict[str, Path] = {}
    for parent in (raw, raw / "scans", raw / "scans_test"):
        for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
            if folder.is_dir() and _is_scene(folder):
                found.setdefault(folder.name, folder)
    if not found:
        hint = "it is a scene itself, give the folder above it" if _is_scene(raw) else (
            "expected <scene>/<scene>_vh_clean_2.ply in it, in its scans or in its scans_test"
        )  # fmt: skip
        raise UserError(f"{raw}: no scenes found; {hint}")
    return dict(sorted(found.items()))


def _is_scene(folder: Path) -> bool:
    """Also when its mesh is missing, so that a download that stopped halfway is reported."""
    if _OFFICIAL_NAME.fullmatch(folder.name):
        return True
    return any(p.name.startswith((f"{folder.name}_vh_clean", f"{folder.name}.aggregation")) for p in folder.iterdir())


def read_split_lists(folder: Path) -> dict[str, str]:
    """Scene name -> split, from the lists in a folder; empty if it has none."""
    split_of: dict[str, str] = {}
    for split in SPLITS:
        path = folder / f"scannetv2_{split}.txt"
        for name in _read_text(path).split() if path.exists() else ():
            if split_of.setdefault(name, split) != split:
                raise UserError(f"{path}: {name} is also in the {split_of[name]} list; keep it in one")
    return split_of


def _assign_splits(
    scenes: dict[str, Path], places: list[Path], given: Path | None, summary: PrepareSummary
) -> dict[str, str]:
    """Scene -> split for the scenes to prepare; unlisted ones and notes go into the summary."""
    if given is not None:
        source, lists = given, read_split_lists(given)
        if not lists:
            raise UserError(
                f"{given}: no scannetv2_train.txt, _val.txt or _test.txt in it; give the folder of the lists"
            )
    else:
        source, lists = next(((p, found) for p in places if (found := read_split_lists(p))), (None, {}))
        if not lists and any(_OFFICIAL_NAME.fullmatch(name) for name in scenes):
            source, lists = "ScanNet v2", read_split_lists(_OFFICIAL_LISTS)
    if not lists:
        summary.notes.append("no split list found: all scenes go to train, those in scans_test to test")
        return {name: "test" if f.parent.name == "scans_test" else "train" for name, f in scenes.items()}
    summary.unlisted = [name for name in scenes if name not in lists]
    if len(summary.unlisted) == len(scenes):
        some = ", ".join(list(scenes)[:3])
        raise UserError(f"none of the {len(scenes)} scenes ({some}, ...) is in the lists of {source}; check --splits")
    if summary.unlisted:
        some = ", ".join(summary.unlisted[:3]) + (", ..." if len(summary.unlisted) > 3 else "")
        summary.notes.append(f"left out {len(summary.unlisted)} scenes that {source} does not list: {some}")
    return {name: lists[name] for name in scenes if name in lists}


def _find_label_map(places: list[Path], splits: str | Path | None, given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    places = places + ([] if splits is None else [Path(splits)])
    for place in places:
        if (place / LABEL_MAP).exists():
            return place / LABEL_MAP
    raise UserError(f"{places[0]}: no {LABEL_MAP}, which the labels need; download it or give --labels-tsv")


def read_label_map(path: Path) -> LabelMap:
    """Read ScanNet's table of categories; of a category listed twice the first line counts."""
    rows = csv.DictReader(_read_text(path).splitlines(), delimiter="\t")
    needed = ("id", "raw_category", "nyu40id")
    missing = [column for column in needed if column not in (rows.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; give ScanNet's {LABEL_MAP}, separated by tabs")
    seen: set[str] = set()
    label_map = LabelMap({}, {})
    for row in rows:
        category = row["raw_category"]
        if category in seen:
            continue
        seen.add(category)
        for column, ids, classes in (
            ("nyu40id", SCANNET20_IDS, label_map.to20),
            ("id", SCANNET200_IDS, label_map.to200),
        ):
            text = (row[column] or "").strip()
            if text and not text.isdigit():
                raise UserError(f"{path}: line {rows.line_num}: {column} is {text!r}, not a number; get the file again")
            if text and int(text) in ids:
                classes[category] = ids.index(int(text))
    return label_map


def _find_labels(folder: Path) -> tuple[Path | None, Path | None, Path | None]:
    """The aggregation, segments and labels.ply files of a scene, None where absent."""
    name = folder.name
    aggregations = (f"{name}.aggregation.json", f"{name}_vh_clean.aggregation.json")
    aggregation = next((folder / a for a in aggregations if (folder / a).exists()), None)
    segments = folder / f"{name}_vh_clean_2.0.010000.segs.json"
    vertex_labels = folder / f"{name}_vh_clean_2.labels.ply"
    return aggregation, segments if segments.exists() else None, vertex_labels if vertex_labels.exists() else None


def _read_labels(raw: RawScan, folder: Path, label_map: LabelMap | None) -> None:
    """Fill raw.labels and raw.instance as far as the scene's files tell."""
    aggregation, segments, vertex_labels = _find_labels(folder)
    if aggregation and segments:
        if label_map is None:
            raise UserError(f"{aggregation}: needs the label map {LABEL_MAP}; give it with --labels-tsv")
        _read_segment_labels(raw, aggregation, segments, label_map)
    elif vertex_labels:
        nyu40 = read_raw(vertex_labels).labels.get("label")
        if nyu40 is None:
            raise UserError(f"{vertex_labels}: its vertices have no integer 'label'; download it again")
        _same_length(vertex_labels, len(nyu40), raw)
        raw.labels["segment20"] = _class_of_nyu40(nyu40)
    elif aggregation or segments:
        have, lack = ("aggregation", "segs") if aggregation else ("segs", "aggregation")
        raise UserError(
            f"{aggregation or segments}: the {lack}.json that goes with this {have}.json is missing; get it"
        )


def _class_of_nyu40(nyu40: np.ndarray) -> np.ndarray:
    table = np.full(max(SCANNET20_IDS) + 2, -1)
    table[list(SCANNET20_IDS)] = np.arange(len(SCANNET20_IDS))
    beyond = len(table) - 1  # holds -1
    known = (nyu40 >= 0) & (nyu40 < beyond)
    return table[np.where(known, nyu40, beyond)]


def _read_segment_labels(raw: RawScan, aggregation: Path, segments: Path, label_map: LabelMap) -> None:
    try:
        of_vertex = np.asarray(_read_json(segments)["segIndices"], dtype=np.int64).reshape(-1)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{segments}: no list of integers 'segIndices' in it; download it again") from error
    _same_length(segments, len(of_vertex), raw)
    ids, row = np.unique(of_vertex, return_inverse=True)
    row = row.reshape(-1)
    of_segment = np.full((len(ids), 3), -1)
    try:
        for group in _read_json(aggregation)["segGroups"]:
            category = group["label"]
            value = (label_map.to20.get(category, -1), label_map.to200.get(category, -1), int(group["id"]))
            of_segment[np.isin(ids, np.asarray(group["segments"], dtype=np.int64))] = value
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{aggregation}: not the 'segGroups' of ScanNet ({error!r}); download it again") from error
    raw.labels = {"segment20": of_segment[row, 0], "segment200": of_segment[row, 1]}
    raw.instance = of_segment[row, 2]


def _same_length(path: Path, length: int, raw: RawScan) -> None:
    if length != len(raw.coord):
        raise UserError(f"{path}: labels {length} vertices, the mesh has {len(raw.coord)}; download both again")


def _align(raw: RawScan, info: Path) -> None:
    """Turn the scan so that its walls follow the axes, where ScanNet says how."""
    lines = _read_text(info).splitlines() if info.exists() else []
    text = next((line.partition("=")[2] for line in lines if line.partition("=")[0].strip() == "axisAlignment"), None)
    if text is None:
        return
    try:
        matrix = np.array(text.split(), dtype=np.float64)
    except ValueError:
        matrix = np.empty(0)
    if matrix.shape != (16,) or not np.isfinite(matrix).all():
        raise UserError(f"{info}: axisAlignment is not 16 numbers; download it again or delete the line")
    matrix = matrix.reshape(4, 4)
    raw.coord = raw.coord @ matrix[:3, :3].T + matrix[:3, 3]
    if raw.normal is not None:
        raw.normal = raw.normal @ matrix[:3, :3].T


def _save(scene: Scene, target: Path) -> None:
    """Write the arrays beside the target, then put the whole folder in its place."""
    # int64 labels and -1 for "none" are what Pointcept writes, so either can read the other's.
    arrays = {"coord": scene.coord, "color": scene.color, "normal": scene.normal}
    arrays |= {name: label.long() for name, label in scene.labels.items()}
    if scene.instance is not None:
        arrays["instance"] = scene.instance.long()
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    part = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        part.mkdir()
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array.numpy())
        if target.exists():
            # Moved whole: a folder half deleted could pass for a complete one.
            target.rename(part.with_name(f"{part.name}-old"))
        part.rename(target)
    finally:
        _sweep(target)


def _sweep(target: Path) -> None:
    """Remove what unfinished attempts at a scene left beside it, also of runs that were killed."""
    for leftover in target.parent.glob(f"{target.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file, or damaged; get it again") from error


def _read_json(path: Path) -> dict:
    try:
        return json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON, or cut short ({error}); download it again") from error


@dataclass(frozen=True)
class _Job:
    folder: Path
    target: Path
    label_map: LabelMap | None


@dataclass
class _Outcome:
    labelled: bool = False
    error: str | None = None
    warnings: list[str] = field(default_factory=list)


def _attempt(job: _Job) -> _Outcome:
    """Prepare a scene; whatever is wrong with it becomes text. Only a full disk is raised."""
    outcome = _Outcome()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            outcome.labelled = prepare_scene(job.folder, job.target, job.label_map)
        except UserError as error:
            outcome.error = str(error)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            outcome.error = f"{error.filename or job.target}: {error.strerror or error}"
        except Exception as error:  # one odd scene must not cost the other thousand
            outcome.error = f"{job.folder}: {type(error).__name__}: {error}"
    outcome.warnings = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return outcome


def _record(summary: PrepareSummary, name: str, outcome: _Outcome, report: _Report | None) -> None:
    summary.notes += outcome.warnings
    lines = [f"warning: {text}" for text in outcome.warnings]
    if outcome.error is not None:
        summary.failed.append((name, outcome.error))
        lines.append(f"failed: {name}: {outcome.error}")
    else:
        summary.prepared.append(name)
        if not outcome.labelled:
            summary.unlabelled.append(name)
    if report:
        for line in lines:
            report.line(line)
        report.step()


def _in_pool(jobs: list[_Job], workers: int) -> Iterator[tuple[_Job, _Outcome]]:
    """Each job with its outcome, as they finish, in `workers` processes.

    When a worker dies (most often: killed for want of memory) all jobs under way are lost with it
    and nobody knows whose fault it was: each is tried once more on its own.
    """
    waiting = deque(jobs)
    while waiting:
        lost = yield from _until_broken(waiting, workers)
        for job in lost:
            if (yield from _until_broken(deque([job]), 1)):
                _sweep(job.target)
                yield job, _Outcome(error=f"{job.folder}: the process died on it twice, perhaps for want of memory")


def _until_broken(waiting: deque[_Job], workers: int) -> Generator[tuple[_Job, _Outcome], None, list[_Job]]:
    """Take jobs from `waiting` until it is empty or a worker dies; returns the jobs that were lost."""
    lost: list[_Job] = []
    running: dict[Future, _Job] = {}
    spawn = multiprocessing.get_context("spawn")  # forking a process with torch's threads can hang
    pool = ProcessPoolExecutor(min(workers, len(waiting)), mp_context=spawn, initializer=_start_worker)
    try:
        while (waiting or running) and not lost:
            while waiting and len(running) < workers:
                future = pool.submit(_attempt, waiting[0])
                running[future] = waiting.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    lost.append(job)
                else:
                    yield job, outcome
    except BrokenProcessPool:  # found by submit: the job is still waiting
        pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return lost + list(running.values())


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent decides, and lets scenes under way finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


class _Report:
    """One line on stderr that is rewritten; in a log file a line every ten seconds."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.started = time.monotonic()
        self.live = sys.stderr.isatty()
        self.printed = self.started

    def line(self, text: str) -> None:
        print(f"\r\033[K{text}" if self.live else text, file=sys.stderr, flush=True)

    def step(self) -> None:
        self.done += 1
        now = time.monotonic()
        last = self.done == self.total
        if not self.live and not last and now - self.printed < 10:
            return
        self.printed = now
        rate = self.done / max(now - self.started, 1e-9)
        left = time.strftime("%H:%M:%S", time.gmtime((self.total - self.done) / rate))
        text = f"{self.done}/{self.total} scenes, {rate:.1f} a second, {left} left"
        if self.live:
            print(f"\r\033[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            self.line(text)
