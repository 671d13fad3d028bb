"""Raw scenes -> the prepared layout that training reads: in parallel, resumable, with a manifest.

A layout (pcssl/data/layouts) finds the scenes under a raw folder and says how to read one; `prepare` does the rest.
Prepared, as Pointcept does: OUT/<split>/<scene>/{coord,color,normal,segment*,instance}.npy
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from pcssl.data.manifest import Entry, Manifest, Shard, SourceFile, has_manifest, hash_files, relative, write_text
from pcssl.data.scene import Scene
from pcssl.errors import UserError


@dataclass(frozen=True)
class RawScene:
    """A scene to prepare.

    files: what it is made from; a change of one of them makes it outdated.
    read: makes the scene; goes to worker processes. Raises UserError for what cannot be used.
    """

    name: str
    split: str
    files: tuple[Path, ...]
    read: Callable[[], Scene]

    @property
    def key(self) -> str:
        return f"{self.split}/{self.name}"


@dataclass
class Source:
    """What a layout found under a raw folder.

    dataset: name of the layout. recipe: version of its reader and its options; another recipe makes the prepared
    scenes outdated. unlisted: scenes that no split list names. notes: what the user should know, one line each.
    extra: name -> text of small files that belong into the prepared folder.
    """

    dataset: str
    recipe: str
    raw: Path
    scenes: list[RawScene]
    unlisted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)


@dataclass
class PrepareSummary:
    """What became of the scenes.

    prepared: written now; unlabelled and changed: those of them without labels, and those that were there from
    another state of the source. skipped: complete before. moved: to another split. unlisted: in no split list,
    left out. gone: prepared once, but no more in the source; their folders stay. elsewhere: of other shares.
    failed: (scene, reason), the reason names the file. notes: what the user should know, one line each.
    """

    prepared: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.prepared)} scenes prepared"]
        if self.changed:
            parts.append(f"{len(self.changed)} of them anew")
        if self.unlabelled:
            parts.append(f"{len(self.unlabelled)} of them without labels")
        parts += [f"{len(self.skipped)} already there", f"{len(self.failed)} failed"]
        rest = {
            "moved to another split": self.moved,
            "in no split list": self.unlisted,
            "no more in the source": self.gone,
            "of other shares": self.elsewhere,
        }
        return ", ".join(parts + [f"{len(names)} {what}" for what, names in rest.items() if names])


def prepare(
    source: Source,
    out: str | Path,
    *,
    workers: int,
    overwrite: bool = False,
    verify: bool = False,
    shard: Shard | None = None,
    progress: bool = True,
) -> PrepareSummary:
    """Prepare the scenes of `source` into `out`/<split>/<scene>, those that are missing or outdated.

    A scene is outdated when a source file changed (size or time, then content), when the recipe did, or when a
    prepared file is missing or of another size.

    workers: processes; 0 works in this one. overwrite: prepare all scenes again.
    verify: compare the content of all files, sources and prepared ones, with the manifest's hashes.
    shard: only this share of the scenes. progress: report on stderr.

    A scene that cannot be prepared is reported and skipped; nothing half-written is left. On Ctrl-C the scenes
    under way are finished first. Raises UserError for a folder that something else made, and OSError for a full disk.
    """
    out = Path(out)
    if workers < 0:
        raise UserError(f"workers is {workers}; give 0 (this process) or the number of processes")
    _refuse_foreign(source, out, overwrite)
    summary = PrepareSummary(unlisted=source.unlisted, notes=list(source.notes))
    with Manifest(out, shard) as manifest:
        mine = [scene for scene in source.scenes if shard is None or shard.takes(scene.name)]
        summary.elsewhere = [s.key for s in source.scenes if shard is not None and not shard.takes(s.name)]
        _move(source, mine, manifest, summary)
        jobs = _outdated(source, mine, manifest, summary, overwrite, verify)
        _note_gone(source, manifest, summary)
        for name, text in source.extra.items():
            write_text(out / name, text)
        report = _Report(len(jobs)) if progress else None
        if report:
            for note in summary.notes:
                report.line(note)

        def keep(outcome: _Outcome) -> _Outcome:
            if outcome.entry:
                manifest.add(outcome.entry)
            return outcome

        run = _in_pool(jobs, workers, keep) if workers else ((job, keep(_attempt(job))) for job in jobs)
        with closing(run):
            for job, outcome in run:
                _record(summary, job, outcome, report)
    return summary


def _refuse_foreign(source: Source, out: Path, overwrite: bool) -> None:
    if any(out.glob("*.pack.json")):
        raise UserError(
            f"{out}: holds packed shards, which new scenes cannot join; prepare into another folder and pack that"
        )
    if overwrite or has_manifest(out):
        return
    there = next((s for s in source.scenes if (out / s.split / s.name / "coord.npy").exists()), None)
    if there:
        raise UserError(
            f"{out / there.split / there.name}: is there already, and {out} has no manifest.jsonl that says what it was "
            "made from; use another folder, or --overwrite to prepare its scenes again"
        )


def _move(source: Source, mine: list[RawScene], manifest: Manifest, summary: PrepareSummary) -> None:
    """Take scenes along whose split changed: left where it was, a scene could be in train and in val."""
    wanted = {scene.key for scene in source.scenes}
    left = {e.name: e for key, e in manifest.entries.items() if key not in wanted and _is_of(e, source)}
    for scene in mine:
        entry = left.get(scene.name)
        before, after = (manifest.out / (entry or scene).key for entry in (entry, scene))
        if entry is None or scene.key in manifest.entries or after.exists() or not before.exists():
            continue
        after.parent.mkdir(parents=True, exist_ok=True)
        before.rename(after)
        manifest.remove(entry.key)
        manifest.add(replace(entry, split=scene.split))
        summary.moved.append(scene.name)


def _is_of(entry: Entry, source: Source) -> bool:
    return entry.dataset == source.dataset and entry.raw == str(source.raw.absolute())


def _outdated(
    source: Source, mine: list[RawScene], manifest: Manifest, summary: PrepareSummary, overwrite: bool, verify: bool
) -> list[_Job]:
    jobs = []
    for scene in mine:
        entry = manifest.entries.get(scene.key)
        target = manifest.out / scene.split / scene.name
        job = _Job(scene, source.dataset, source.recipe, source.raw, target, again=entry is not None)
        if entry and not overwrite:
            current = _still_true(entry, job, verify)
            if current:
                if current != entry:
                    manifest.add(current)
                summary.skipped.append(scene.name)
                continue
        jobs.append(job)
    if manifest.damaged:
        summary.notes.append(f"{manifest.path}: {manifest.damaged} damaged lines; their scenes are prepared again")
    return jobs


def _still_true(entry: Entry, job: _Job, verify: bool) -> Entry | None:
    """The entry, with the files' new times, if the scene need not be prepared again."""
    if entry.dataset != job.dataset or entry.recipe != job.recipe or not _intact(entry, job.target, verify):
        return None
    known = {file.path: file for file in entry.source}
    if known.keys() != {relative(path, job.raw) for path in job.scene.files}:
        return None
    if not all(path.exists() for path in job.scene.files):
        return None
    source = []
    for path in job.scene.files:
        file = known[relative(path, job.raw)]
        status = path.stat()
        if status.st_size != file.size:
            return None
        if verify or status.st_mtime_ns != file.mtime:
            now = SourceFile.of(path, job.raw)
            if now.sha256 != file.sha256:
                return None
            file = now
        source.append(file)
    return replace(entry, source=tuple(source), raw=str(job.raw.absolute()))


def _intact(entry: Entry, target: Path, verify: bool) -> bool:
    try:
        if any((target / name).stat().st_size != size for name, size in entry.files.items()):
            return False
        return not verify or hash_files([target / name for name in sorted(entry.files)]) == entry.sha256
    except OSError:
        return False


def _note_gone(source: Source, manifest: Manifest, summary: PrepareSummary) -> None:
    wanted = {scene.key for scene in source.scenes}
    summary.gone = sorted(key for key, e in manifest.entries.items() if key not in wanted and _is_of(e, source))
    if summary.gone:
        some = ", ".join(summary.gone[:3]) + (", ..." if len(summary.gone) > 3 else "")
        summary.notes.append(
            f"{len(summary.gone)} prepared scenes are no more in {source.raw} or its lists ({some}); their folders "
            f"stay in {manifest.out} and are read like the others"
        )


@dataclass(frozen=True)
class _Job:
    scene: RawScene
    dataset: str
    recipe: str
    raw: Path
    target: Path
    again: bool  # the manifest has it, from another state of its files


@dataclass
class _Outcome:
    entry: Entry | None = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)


def _attempt(job: _Job) -> _Outcome:
    """Prepare a scene; whatever is wrong with it becomes text. Only a full disk is raised."""
    outcome = _Outcome()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            outcome.entry = _prepare_scene(job)
        except UserError as error:
            outcome.error = str(error)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            outcome.error = f"{error.filename or job.target}: {error.strerror or error}"
        except Exception as error:  # one odd scene must not cost the other thousand
            outcome.error = f"{job.scene.files[0]}: {type(error).__name__}: {error}"
    outcome.warnings = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return outcome


def _prepare_scene(job: _Job) -> Entry:
    """Read a scene and write it, replacing the target; after an error the target is as it was."""
    # Hashed before they are read: a file that changes meanwhile is then found changed the next time.
    source = tuple(SourceFile.of(path, job.raw) for path in job.scene.files)
    scene = job.scene.read()
    save_scene(scene, job.target)
    files = sorted(job.target.glob("*.npy"))
    return Entry(
        job.dataset, job.recipe, str(job.raw.absolute()), job.scene.split, job.scene.name, source,
        points=len(scene),
        labels={name: _histogram(label) for name, label in scene.labels.items()},
        files={path.name: path.stat().st_size for path in files},
        sha256=hash_files(files),
    )  # fmt: skip


def _histogram(label: torch.Tensor) -> dict[str, int]:
    values, counts = np.unique(label.numpy(), return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts)}


def save_scene(scene: Scene, target: Path) -> None:
    """Write a scene's arrays beside the target folder, then put the whole folder in its place."""
    # int64 labels and -1 for "none" are what Pointcept writes, so either can read the other's.
    arrays = {"coord": scene.coord, "color": scene.color, "normal": scene.normal}
    arrays |= {name: label.long() for name, label in scene.labels.items()}
    if scene.instance is not None:
        arrays["instance"] = scene.instance.long()
    if any(scene.origin):
        arrays["origin"] = torch.tensor(scene.origin, dtype=torch.float64)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    part = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        part.mkdir()
        for name, array in arrays.items():
            if array is not None:
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


def _record(summary: PrepareSummary, job: _Job, outcome: _Outcome, report: _Report | None) -> None:
    name = job.scene.name
    summary.notes += outcome.warnings
    lines = [f"warning: {text}" for text in outcome.warnings]
    if outcome.error is not None:
        summary.failed.append((name, outcome.error))
        lines.append(f"failed: {name}: {outcome.error}")
    else:
        summary.prepared.append(name)
        if job.again:
            summary.changed.append(name)
        if not outcome.entry.labels:
            summary.unlabelled.append(name)
    if report:
        for line in lines:
            report.line(line)
        report.step()


def _in_pool(jobs: list[_Job], workers: int, keep: Callable[[_Outcome], _Outcome]) -> Iterator[tuple[_Job, _Outcome]]:
    """Each job with its outcome, as they finish, in `workers` processes.

    keep: called with every outcome, also with those that come after the caller stopped (Ctrl-C).

    When a worker dies (most often: killed for want of memory) all jobs under way are lost with it
    and nobody knows whose fault it was: each is tried once more on its own.
    """
    waiting = deque(jobs)
    while waiting:
        lost = yield from _until_broken(waiting, workers, keep)
        for job in lost:
            if (yield from _until_broken(deque([job]), 1, keep)):
                _sweep(job.target)
                yield (
                    job,
                    _Outcome(error=f"{job.scene.files[0]}: the process died on it twice, perhaps for want of memory"),
                )


def _until_broken(
    waiting: deque[_Job], workers: int, keep: Callable[[_Outcome], _Outcome]
) -> Generator[tuple[_Job, _Outcome], None, list[_Job]]:
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
                    outcome = keep(future.result())
                except BrokenProcessPool:
                    lost.append(job)
                else:
                    yield job, outcome
    except BrokenProcessPool:  # found by submit: the job is still waiting
        pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for future in running:
            if not future.cancelled() and future.exception() is None:
                keep(future.result())
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
