"""NPZ: arrays by name, as numpy.savez writes them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from pcssl.data.formats.scan import LABEL_PREFIXES, RawScan, ReadOptions, listed, one_line, to_color
from pcssl.errors import UserError

# What numpy and zipfile raise; MemoryError: of a header that promises more than there is, RuntimeError: encrypted.
_DAMAGE = (ValueError, EOFError, KeyError, AttributeError, TypeError, MemoryError, RuntimeError, NotImplementedError)
_DAMAGE += (zipfile.BadZipFile, zlib.error)


def read_npz(path: Path, options: ReadOptions) -> RawScan:
    """Arrays coord (or xyz, points), color, normal, instance, and integer segment*, label*, class*."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except _DAMAGE as error:
        raise UserError(
            f"{path}: not an npz archive of plain arrays, or damaged ({one_line(error)}); "
            "write it with numpy.savez(path, coord=...)"
        ) from error
    keys = {key.lower(): key for key in arrays}

    def pick(*names: str) -> np.ndarray | None:
        array = next((arrays[keys[name]] for name in names if name in keys), None)
        if array is not None and array.dtype.kind not in "fiu":
            raise UserError(f"{path}: {names[0]!r} holds {array.dtype}, not numbers; save a number array")
        return array

    coord = pick("coord", "xyz", "points")
    if coord is None:
        raise UserError(f"{path}: no 'coord' (or 'xyz', 'points'); it has {listed(keys)}; rename the coordinates")
    color = pick("color", "colors", "rgb")
    normal = pick("normal", "normals")
    labels = {low: arrays[key] for low, key in keys.items() if low.startswith(LABEL_PREFIXES)}
    return RawScan(
        coord=coord.astype(np.float64),
        color=None if color is None else to_color(color, path),
        normal=None if normal is None else normal.astype(np.float64),
        labels={low: values for low, values in labels.items() if values.dtype.kind in "iu"},
        instance=pick("instance"),
    )
