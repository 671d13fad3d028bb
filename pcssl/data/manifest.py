"""The manifest of a prepared dataset: what every scene was made from, and what it holds.

OUT/manifest.jsonl has one JSON object a line and scene. A run appends a line as soon as a scene's folder is in
its place, so a run that is killed loses at most the scenes under way; at its end the file is sorted and put
in its place whole. A run of one share of the scenes keeps OUT/manifest.2-of-8.jsonl beside those of the other
shares; the next run without shares merges them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pcssl.errors import UserError


@dataclass(frozen=True)
class SourceFile:
    """A file that a scene was made from. path: relative to the raw folder where it lies in it. mtime: nanoseconds."""

    path: str
    size: int
    mtime: int
    sha256: str

    @classmethod
    def of(cls, path: Path, raw: Path) -> SourceFile:
        """UserError if there is no such file."""
        if not path.exists():
            raise UserError(f"{path}: no such file; check that the download is complete")
        status = path.stat()
        return cls(relative(path, raw), status.st_size, status.st_mtime_ns, hash_files([path]))


@dataclass(frozen=True)
class Entry:
    """One prepared scene.

    dataset, recipe: which reader made it, with which options. raw: the folder that it read, absolute.
    points: how many. labels: label field -> class -> points that have it ("-1": none).
    files: array file -> bytes. sha256: of these files, in the order of their names.
    """

    dataset: str
    recipe: str
    raw: str
    split: str
    name: str
    source: tuple[SourceFile, ...]
    points: int
    labels: dict[str, dict[str, int]]
    files: dict[str, int]
    sha256: str

    @property
    def key(self) -> str:
        return f"{self.split}/{self.name}"

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Entry:
        """ValueError, KeyError or TypeError for a line that is no entry."""
        values = json.loads(line)
        return cls(**{**values, "source": tuple(SourceFile(**file) for file in values["source"])})


@dataclass(frozen=True)
class Shard:
    """The share `index` (from 1) of `count`. A scene's share follows from its name alone."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        index, _, count = text.partition("/")
        if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
            raise UserError(f"--shard is {text!r}; give i/n with 1 <= i <= n, for example 2/8")
        return cls(int(index), int(count))

    def takes(self, name: str) -> bool:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % self.count == self.index - 1


class Manifest:
    """The entries of a prepared folder, by "split/name", and the file that they are kept in.

    A context manager: it holds the folder's lock, so that two runs do not write the same share; UserError if
    another one does. Leaving it writes the file anew, sorted.

    damaged: lines that were no entries (a killed run's last one); their scenes are prepared again.
    """

    def __init__(self, out: Path, shard: Shard | None = None) -> None:
        self.out, self.shard = out, shard
        self.path = out / ("manifest.jsonl" if shard is None else f"manifest.{shard.index}-of-{shard.count}.jsonl")
        self.entries: dict[str, Entry] = {}
        self.damaged = 0

    def __enter__(self) -> Manifest:
        self.out.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(f"{self.path}: another run is preparing here; wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass
        self.entries, self.damaged = read_entries(_manifests(self.out))
        if self._ends_midline():
            self._file.write("\n")
        return self

    def __exit__(self, *_) -> None:
        try:
            self._write()
        finally:
            self._file.close()

    def add(self, entry: Entry) -> None:
        """Keep an entry, at once also on disk."""
        self.entries[entry.key] = entry
        self._file.write(entry.to_json() + "\n")
        self._file.flush()

    def remove(self, key: str) -> None:
        self.entries.pop(key)

    def _ends_midline(self) -> bool:
        with open(self.path, "rb") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def _write(self) -> None:
        mine = [e for _, e in sorted(self.entries.items()) if self.shard is None or self.shard.takes(e.name)]
        write_text(self.path, "".join(entry.to_json() + "\n" for entry in mine))
        if self.shard is None:
            for path in _manifests(self.out)[1:]:
                path.unlink(missing_ok=True)


def _manifests(out: Path) -> list[Path]:
    return sorted(out.glob("manifest*.jsonl"), key=lambda p: (p.name != "manifest.jsonl", p.name))


def has_manifest(out: Path) -> bool:
    return bool(_manifests(out))


def read_entries(paths: list[Path]) -> tuple[dict[str, Entry], int]:
    """Entries by "split/name", later lines over earlier ones, and the number of lines that are none."""
    entries, damaged = {}, 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = Entry.from_json(line)
                except (ValueError, KeyError, TypeError):
                    damaged += bool(line.strip())
                else:
                    entries[entry.key] = entry
    return entries, damaged


def hash_files(paths: list[Path]) -> str:
    """SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        for block in _blocks(path):
            digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            yield block


def relative(path: Path, raw: Path) -> str:
    """A path as the manifest names it."""
    return path.relative_to(raw).as_posix() if path.is_relative_to(raw) else str(path.absolute())


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another run is preparing here; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield


def write_text(path: Path, text: str) -> None:
    """Put a text file in its place whole."""
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
