"""Folders of generated rooms: resumable, parallel, never a mixture of two collections."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from pcssl.data.rooms.generate import generate_room
from pcssl.data.rooms.write import scene_name, write_label_table, write_manifest, write_scene, write_splits
from pcssl.errors import UserError

# Raise it whenever the same (seed, index) gives other bytes.
GENERATOR_VERSION = 3


def generate_rooms(
    raw_dir: str | Path, *, scenes: int, val: int, seed: int = 0, workers: int = 1, progress: bool = True
) -> None:
    """Write `scenes` generated rooms in ScanNet's raw layout; the last `val` are for validation.

    A scene depends on (seed, index) only, not on `workers` or `scenes`. Complete scenes are
    kept, so an interrupted call is resumed by the same call. One process a folder at a time.

    Raises UserError for bad numbers, and for a folder that holds something else.
    """
    if not 1 <= scenes <= 9999 or not 0 <= val <= scenes:
        raise UserError(f"rooms: scenes={scenes}, val={val}: need 1 <= scenes <= 9999 and 0 <= val <= scenes")
    if workers < 1 or seed < 0:
        raise UserError(f"rooms: workers={workers}, seed={seed}: workers must be at least 1, seed at least 0")
    raw = Path(raw_dir)
    _claim(raw, {"generator": "pcssl rooms", "version": GENERATOR_VERSION, "seed": seed, "scenes": scenes, "val": val})
    names = [scene_name(i) for i in range(scenes)]
    missing = [i for i, name in enumerate(names) if not (raw / "scans" / name).is_dir()]
    report = _Progress(scenes, scenes - len(missing), progress)
    _write_all(raw, seed, missing, min(workers, len(missing)), report.one_more)
    write_label_table(raw)
    write_splits(raw, names, val)


def _claim(raw: Path, manifest: dict) -> None:
    """Make the folder this collection's, or refuse."""
    path = raw / "rooms.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        other = [k for k in manifest if not isinstance(found, dict) or found.get(k) != manifest[k]]
        if other:
            got = found if isinstance(found, dict) else {}
            differ = ", ".join(f"{k} is {got.get(k)!r}, asked {manifest[k]!r}" for k in other)
            raise UserError(f"{raw}: holds other generated rooms ({differ}); use another folder, or delete this one")
        return
    if raw.exists() and any(raw.iterdir()):
        raise UserError(f"{raw}: not empty and without rooms.json, so not generated rooms; use a new folder")
    raw.mkdir(parents=True, exist_ok=True)
    write_manifest(raw, manifest)


def _write_share(raw: Path, seed: int, indices: list[int], done: Callable[[int], None]) -> None:
    for index in indices:
        write_scene(generate_room(seed, index), raw, scene_name(index))
        done(index)


def _work(raw: Path, seed: int, indices: list[int], reports: Connection) -> None:
    """A worker process: its share of the scenes, each reported when it is on disk."""
    # Ctrl-C reaches all processes of a terminal; the parent alone decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _write_share(raw, seed, indices, reports.send)


def _write_all(raw: Path, seed: int, indices: list[int], workers: int, done: Callable[[int], None]) -> None:
    """Write the scenes, calling `done(index)` after each; no worker outlives this call."""
    if workers <= 1:
        return _write_share(raw, seed, indices, done)
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, BaseProcess] = {}
    try:
        for first in range(workers):
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(raw, seed, indices[first::workers], send), daemon=True)
            process.start()
            send.close()  # the worker's copy is then the only one, so its end is seen here
            running[receive] = process
        _collect(running, done)
    finally:
        # Killing is safe: a scene's folder gets its name only when it is complete.
        for process in running.values():
            process.terminate()
            process.join()


def _collect(running: dict[Connection, BaseProcess], done: Callable[[int], None]) -> None:
    """Pass the workers' reports on until all have ended well; RuntimeError if one has not."""
    open_ends = list(running)
    while open_ends:
        for receive in wait(open_ends):
            try:
                done(receive.recv())
            except EOFError:
                open_ends.remove(receive)
                running[receive].join()
                code = running[receive].exitcode
                if code:
                    raise RuntimeError(f"rooms: a worker ended with exit code {code}; finished scenes are kept") from None


class _Progress:
    """One line on stderr: scenes done and the time that is left."""

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self.total, self.done, self.shown = total, done, shown
        self.first, self.start = done, time.monotonic()

    def one_more(self, index: int) -> None:
        self.done += 1
        if not self.shown:
            return
        each = (time.monotonic() - self.start) / (self.done - self.first)
        left = each * (self.total - self.done)
        end = "\n" if self.done == self.total else ""
        text = f"\rrooms {self.done}/{self.total}  {each:.2f} s each  {int(left // 60)}:{int(left % 60):02d} left "
        print(text, end=end, file=sys.stderr, flush=True)
