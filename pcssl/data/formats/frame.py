"""The frame of a scan: its unit, which way is up, how far it lies from the origin.

Nothing is changed on a guess. What looks wrong is said in a warning, with the option that would mend it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from pcssl.errors import UserError

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "km": 1000.0, "ft": 0.3048, "in": 0.0254}

# up axis -> proper rotation that makes it z; x stays where it can
_TURNS = {
    "x": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "y": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "-x": ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    "-y": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "-z": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
}
UP_AXES = tuple(_TURNS)

_ENOUGH = 20_000  # points looked at for a guess
_SLAB = 0.05  # metres: thickness in which a floor lies
_FULL = 0.2  # share of the points from which two slabs are a floor and a ceiling
_VIEW = 1.2  # x / z and y / z at the edge of a camera's picture, 50 degrees off its axis
_FARTHEST = 16_384.0  # metres, beyond which float32 rounds by more than 1 mm
_ROUND = 1000.0  # metres, of which an origin is a multiple


def metres_per(unit: str | float) -> float:
    """Metres per unit: a name of `UNITS`, "auto" (metres), or a positive number. Raises UserError."""
    if unit in ("auto", *UNITS):
        return UNITS.get(unit, 1.0)
    try:
        metres = float(unit)
    except (TypeError, ValueError):
        metres = np.nan
    if not (np.isfinite(metres) and metres > 0):
        raise UserError(f"unit is {unit!r}; give one of {', '.join(UNITS)}, or metres per unit such as 0.001")
    return metres


def turn_up(coord: np.ndarray, up: str) -> np.ndarray:
    """(N, 3) points or directions, turned so that the axis `up` becomes z."""
    return coord if up == "z" else coord @ np.array(_TURNS[up], dtype=coord.dtype).T


def warn_of_unit(coord: np.ndarray, where: str | Path) -> None:
    """Warn when a scene is wider or smaller than scenes are. coord: (N, 3) metres."""
    few = _few(coord)
    if len(few) < 2:
        return
    width = float(np.ptp(np.percentile(few, (0.5, 99.5), axis=0), axis=0).max())  # whatever a stray point does
    if width > 500:
        guess = "centimetres, read it with --unit cm" if width < 2000 else "millimetres, read it with --unit mm"
    elif 0 < width < 0.1:
        guess = "kilometres, read it with --unit km"
    else:
        return
    warnings.warn(
        f"{where}: the scene is {width:.3g} m wide; if its unit is {guess}; --unit m says that it is right",
        stacklevel=3,
    )


def warn_of_up(coord: np.ndarray, where: str | Path) -> None:
    """Warn when another axis than z seems to point up. coord: (N, 3) metres.

    Two signs are looked for. A floor and a ceiling fill two thin slabs across the upward axis as walls
    seldom do: one axis has over a fifth of the points in its two fullest slabs, and twice as many as z.
    A camera's frame: all points in a cone around +z, as seen from the origin, so that y points down.
    """
    few = _few(coord)
    if len(few) < 100:
        return
    share = [_share_in_two_slabs(few[:, axis]) for axis in range(3)]
    flat = int(np.argmax(share))
    if flat != 2 and share[flat] > _FULL and share[flat] > 2 * share[2]:
        name = "xyz"[flat]
        sign = f"{share[flat]:.0%} of the points lie in two planes across {name}, {share[2]:.0%} across z"
        advice = f"if {name} points up read it with --up {name} (or -{name})"
    elif np.mean((np.abs(few[:, :2]) < _VIEW * few[:, 2:]).all(axis=1)) > 0.999:
        sign = "all points lie before a camera at the origin that looks along z"
        advice = "if y points down read it with --up=-y"
    else:
        return
    warnings.warn(f"{where}: z may not be up: {sign}; {advice}; --up z says that it is right", stacklevel=3)


def _share_in_two_slabs(values: np.ndarray) -> float:
    slab = np.floor((values - values.min()) / _SLAB)
    _, counts = np.unique(slab, return_counts=True)  # not bincount: a stray point may be far
    return float(np.sort(counts)[-2:].sum() / len(values))


def _few(coord: np.ndarray) -> np.ndarray:
    """Some of the finite points, evenly over the file."""
    few = coord[:: max(len(coord) // _ENOUGH, 1)]
    return few[np.isfinite(few).all(axis=1)]


def origin_of(coord: np.ndarray) -> np.ndarray:
    """(3,) float64 to subtract from coord (N, 3) before it becomes float32; zero where nothing is gained.

    Whole kilometres near the middle of a scan that lies farther than 16 km from zero, as georeferenced ones do.
    """
    if np.abs(coord).max() <= _FARTHEST:
        return np.zeros(3)
    return np.rint(np.median(coord, axis=0) / _ROUND) * _ROUND
