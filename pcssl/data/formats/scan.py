"""`RawScan`: what a file holds; and how named columns, the same in every format, become one."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from pcssl.errors import UserError

GREY = 127
POSITION = ("x", "y", "z")
COLORS = (
    ("red", "green", "blue"),
    ("r", "g", "b"),
    ("diffuse_red", "diffuse_green", "diffuse_blue"),
    ("rf", "gf", "bf"),  # CloudCompare's floats
)
NORMALS = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"), ("normalx", "normaly", "normalz"))
INTENSITIES = ("intensity", "i", "reflectance")
LABEL_PREFIXES = ("segment", "label", "class")
INSTANCE = "instance"


@dataclass
class RawScan:
    """What a file holds, before anything is dropped or made up.

    coord: (N, 3) float64, the file's own unit and axes. color: (N, 3) uint8. normal: (N, 3) float64, any
    length. labels: name -> (N,) integer. instance: (N,) integer. face: (F, 3) int64, rows of coord.
    intensity: (N,) float64, of any range.
    """

    coord: np.ndarray
    color: np.ndarray | None = None
    normal: np.ndarray | None = None
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    instance: np.ndarray | None = None
    face: np.ndarray | None = None
    intensity: np.ndarray | None = None


@dataclass(frozen=True)
class ReadOptions:
    """What a reader has to know beside the path.

    columns: names of the columns of a text table, in order; "-" leaves one out. None: the table's own.
    samples: None: a mesh of scan vertices (PLY) as its vertices, others sampled by area; 0: vertices; n: n points.
    seed: of the sampling. metres: per unit of the file, for the density of the sampling.
    """

    columns: tuple[str, ...] | None = None
    samples: int | None = None
    seed: int = 0
    metres: float = 1.0


def plain_name(name: str) -> str:
    """A column's name without case, quotes, units in brackets and CloudCompare's "scalar_"."""
    return name.strip(" \"'").split("[")[0].split("(")[0].strip().lower().removeprefix("scalar_")


def is_known(name: str) -> bool:
    """Whether `from_columns` uses a column of this plain name."""
    triples = (POSITION, *COLORS, *NORMALS)
    return any(name in t for t in triples) or name in (*INTENSITIES, INSTANCE) or name.startswith(LABEL_PREFIXES)


def from_columns(columns: Mapping[str, np.ndarray], where: str | Path) -> RawScan:
    """A RawScan of columns (N,) by plain name; those that are not known are left out.

    Labels and instances may be floats that hold whole numbers, NaN for none; other floats are left out.
    Raises UserError, naming `where`, without x, y and z, and for colours out of range.
    """

    def pick(names: tuple[str, ...]) -> np.ndarray | None:
        return np.stack([columns[n] for n in names], axis=1) if all(n in columns for n in names) else None

    coord = pick(POSITION)
    if coord is None:
        raise UserError(f"{where}: no x, y and z in its columns; it has {listed(columns)}; export with coordinates")
    color = next((c for c in map(pick, COLORS) if c is not None), None)
    normal = next((n for n in map(pick, NORMALS) if n is not None), None)
    intensity = next((columns[name] for name in INTENSITIES if name in columns), None)
    ids = {n: _whole(c) for n, c in columns.items() if n.startswith(LABEL_PREFIXES) or n == INSTANCE}
    return RawScan(
        coord=coord.astype(np.float64, copy=False),
        color=None if color is None else to_color(color, where),
        normal=None if normal is None else normal.astype(np.float64, copy=False),
        labels={name: values for name, values in ids.items() if values is not None and name != INSTANCE},
        instance=ids.get(INSTANCE),
        intensity=None if intensity is None else intensity.astype(np.float64),
    )


def _whole(values: np.ndarray) -> np.ndarray | None:
    """Integers of an integer column or of whole floats, -1 for NaN; None for anything else."""
    if values.dtype.kind in "iu":
        return np.array(values)
    numbers = np.where(np.isnan(values), -1, values)
    exact = np.abs(numbers).max(initial=0) < 2**53 and (numbers == np.rint(numbers)).all()
    return numbers.astype(np.int64) if exact else None


def to_color(values: np.ndarray, where: str | Path) -> np.ndarray:
    """Colours as uint8, from floats in 0..1 or 0..255, bytes, or 16-bit integers; NaN becomes grey.

    Raises UserError, naming `where`, for other values.
    """
    if values.dtype == np.uint8 or values.size == 0:
        return values.astype(np.uint8)
    floats = values.astype(np.float64)
    low, high = np.nanmin(np.append(floats, 0)), np.nanmax(np.append(floats, 0))
    if values.dtype.kind == "f" and high <= 1.001:
        top = 1.0
    else:
        top = 65535.0 if values.dtype.kind in "iu" and high > 255 else 255.0
    if low < 0 or high > top * 1.001:
        raise UserError(f"{where}: colours from {low:g} to {high:g}; save them as 0..255 or as floats in 0..1")
    bytes_ = np.rint(floats * (255 / top)).clip(0, 255)
    return np.where(np.isnan(bytes_), GREY, bytes_).astype(np.uint8)


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(names) or "nothing"


def one_line(error: BaseException) -> str:
    """A library's message on one line, short enough to read."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def need(module: str, package: str, path: Path) -> ModuleType:
    """Import a library that only some formats need."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{path}: reading {path.suffix} needs {package}; run pip install '{package}'") from error
