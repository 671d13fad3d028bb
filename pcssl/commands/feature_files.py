"""Files of features: written through a file on the disk, so that they may be larger than memory; and what is done."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcssl.atomic import replacing
from pcssl.data import Scene, write_ply
from pcssl.errors import UserError
from pcssl.visualization import PCAColors

SUFFIXES = (".npz", ".npy", ".ply")
_PIECE = 8_000_000  # bytes of a file looked at together


class FeatureFile:
    """Features (N, D) in an .npy file, opened for each part anew: what stays mapped counts as memory of the process."""

    def __init__(self, path: Path, points: int, channels: int, dtype: type):
        self.path, self.shape = path, (points, channels)
        np.lib.format.open_memmap(path, "w+", dtype, self.shape)
        _take_space(path)

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add values (n, D) to these rows, which are ascending."""
        size = max(1, _PIECE // max(4 * self.shape[1], 4096))  # a page of the disk is the least that is mapped
        for at, added in zip(rows.split(size), values.split(size)):
            array = np.load(self.path, mmap_mode="r+")
            array[at.numpy()] += added.numpy().astype(array.dtype, copy=False)

    def parts(self) -> Iterator[Tensor]:
        """All rows in order, float32."""
        size = max(1, _PIECE // (4 * self.shape[1]))
        for start in range(0, self.shape[0], size):
            yield torch.from_numpy(np.load(self.path, mmap_mode="r")[start : start + size].astype(np.float32))

    def sample(self, count: int = 20_000) -> Tensor:
        """At most `count` rows, evenly spread."""
        rows = np.unique(np.linspace(0, self.shape[0] - 1, count).astype(np.int64))
        return torch.from_numpy(np.load(self.path, mmap_mode="r")[rows].astype(np.float32))


def _take_space(path: Path) -> None:
    """Have the disk keep room for all of a sparse file: where it is full, a write to a mapped file kills the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"{path.parent}: no room for {path.stat().st_size / 1e9:.1f} GB of features") from error


@contextmanager
def scratch(target: Path, points: int, channels: int, dtype: type) -> Iterator[FeatureFile]:
    """A file of zeros beside `target`, gone in the end unless it has been moved."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.stem}.tmp-{os.getpid()}.npy")
    try:
        yield FeatureFile(path, points, channels, dtype)
    finally:
        path.unlink(missing_ok=True)


def save(features: FeatureFile, target: Path, scene: Scene, colors: PCAColors) -> None:
    """Write the features under `target`, in the format of its suffix; nothing is there before all is."""
    if target.suffix == ".npy":
        os.replace(features.path, target)
    elif target.suffix == ".ply":
        write_ply(target, Scene(scene.coord, color_of(features, colors), scene.normal, origin=scene.origin))
    else:
        with replacing(target) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            with archive.open("features.npy", "w", force_zip64=True) as file, open(features.path, "rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
            for name, array in (("coord", scene.coord.numpy()), ("origin", np.array(scene.origin))):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array)


def color_of(features: FeatureFile, colors: PCAColors) -> Tensor:
    """(N, 3) uint8; the first file that is coloured chooses the colours of all."""
    if colors.mean is None:
        colors.fit(features.sample())
    return torch.cat([colors(part) for part in features.parts()])


class Folder:
    """A folder of features and, in its index.json, of which scans and how they were made.

    settings: all that the features depend on. Raises UserError if those in the folder are of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], overwrite: bool):
        self.path, self.index = path, path / "index.json"
        self.content: dict[str, Any] = {"settings": settings, "done": {}}
        if self.index.exists() and not overwrite:
            found = self._read()
            differ = [key for key, value in settings.items() if found["settings"].get(key) != value]
            if differ:
                raise UserError(
                    f"{path} holds features of other settings ({', '.join(differ)}); choose another folder, or --overwrite"
                )
            self.content = found

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.index.read_text())
            if isinstance(found["settings"], dict) and isinstance(found["done"], dict):
                return found
        except (ValueError, KeyError, TypeError):
            pass
        raise UserError(f"{self.index} is damaged; choose another folder, or --overwrite")

    def has(self, scan: Path, target: Path) -> bool:
        """Whether this scan, as it is now, is done and its file whole."""
        entry = self.content["done"].get(target.name)
        return entry is not None and scan.is_file() and target.is_file() and entry == _entry(scan, target)

    def add(self, scan: Path, target: Path) -> None:
        """Note that a scan is done."""
        self.content["done"][target.name] = _entry(scan, target)
        with replacing(self.index) as temporary:
            temporary.write_text(json.dumps(self.content, indent=1) + "\n")

    def load_colors(self) -> PCAColors:
        """Those that an earlier call has chosen, or unfitted ones."""
        colors = PCAColors()
        if "colors" in self.content:
            for name, values in self.content["colors"].items():
                setattr(colors, name, torch.tensor(values, dtype=torch.double))
        return colors

    def keep_colors(self, colors: PCAColors) -> None:
        """Let a later call take the same colours; written by the next `add`."""
        if colors.mean is not None:
            parts = {"mean": colors.mean, "axes": colors.axes, "low": colors.low, "high": colors.high}
            self.content["colors"] = {name: x.tolist() for name, x in parts.items()}


def _entry(scan: Path, target: Path) -> dict[str, Any]:
    found = scan.stat()
    return {"scan": str(scan.resolve()), "size": found.st_size, "time": found.st_mtime_ns, "bytes": target.stat().st_size}
