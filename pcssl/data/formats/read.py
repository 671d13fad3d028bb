"""From a file to a `Scene`: the reader of its format, its frame, and what every format needs in the same way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from pcssl.data.formats.frame import UP_AXES, metres_per, origin_of, turn_up, warn_of_unit, warn_of_up
from pcssl.data.formats.las import read_las
from pcssl.data.formats.mesh import read_mesh, sample_faces
from pcssl.data.formats.npz import read_npz
from pcssl.data.formats.pcd import read_pcd
from pcssl.data.formats.ply import read_ply
from pcssl.data.formats.scan import GREY, RawScan, ReadOptions
from pcssl.data.formats.table import read_table
from pcssl.data.normals import estimate_normals, normals_from_faces
from pcssl.data.scene import Scene
from pcssl.errors import UserError

_COARSEST_STEP = 0.005  # metres between float32 neighbours: a quarter of the usual 2 cm voxel

_TABLES = (".xyz", ".txt", ".csv", ".asc", ".pts")
_MESHES = (".obj", ".glb", ".gltf", ".stl", ".off")
_UP = {".glb": "y", ".gltf": "y"}  # by their specification; the others have none

# extension -> reader; a new format is one line here and one function
READERS: dict[str, Callable[[Path, ReadOptions], RawScan]] = {
    ".ply": read_ply,
    ".npz": read_npz,
    ".pcd": read_pcd,
    ".las": read_las,
    ".laz": read_las,
    **dict.fromkeys(_TABLES, read_table),
    **dict.fromkeys(_MESHES, read_mesh),
}


def read_scene(
    path: str | Path,
    *,
    unit: str | float = "auto",
    up: str = "auto",
    columns: Sequence[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    normals: bool = True,
) -> Scene:
    """Read one scan.

    path: a file with one of the extensions in `READERS`, in any case.
    unit: of the file: m, cm, mm, km, ft, in, or metres per unit as a number. "auto" is the metre, with a
        warning if the scene is then wider or smaller than scenes are.
    up: the file's axis that points up, turned to z: x, y, z, -x, -y (camera frames) or -z. "auto" is z (y for
        GLB and GLTF, whose specification says so), with a warning if another axis seems to be up.
    columns: of a text table, the names of its columns in order, "-" for one to leave out.
    samples: None: PLY gives its vertices, other meshes are sampled evenly by area (5000 points a m2, at most
        5 million); 0: the vertices of any mesh; n: n points on the faces of any mesh.
    seed: of the sampling; the same one gives the same points.
    normals: whether to make normals (from the faces, else from neighbours) where there are none.

    Points with a NaN or infinite coordinate are dropped, with a warning. Raises UserError for a file
    that cannot be used.
    """
    path = Path(path)
    metres = metres_per(unit)
    if up not in ("auto", *UP_AXES):
        raise UserError(f"up is {up!r}; give one of {', '.join(UP_AXES)}")
    if samples is not None and samples < 0:
        raise UserError(f"samples is {samples}; give a number of points, or 0 for the vertices")
    options = ReadOptions(None if columns is None else tuple(columns), samples, seed, metres)
    raw = read_raw(path, options)
    _check_shapes(raw, path)
    upward = _UP.get(path.suffix.lower(), "z") if up == "auto" else up
    raw.coord = turn_up(raw.coord * metres, upward)
    raw.normal = None if raw.normal is None else turn_up(raw.normal, upward)
    if unit == "auto":
        warn_of_unit(raw.coord, path)
    if up == "auto":
        warn_of_up(raw.coord, path)
    return complete(raw, path, name=path.stem, normals=normals)


def read_raw(path: Path, options: ReadOptions | None = None) -> RawScan:
    """What a file holds; UserError if it is missing, damaged or of an unknown format."""
    options = options or ReadOptions()
    suffix = path.suffix.lower()
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give one file ({', '.join(READERS)})")
    if suffix not in READERS:
        raise UserError(f"{path}: unknown extension {path.suffix!r}; known: {', '.join(READERS)}")
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    if options.columns is not None and suffix not in _TABLES:
        raise UserError(f"{path}: has names for its columns; --columns is for text ({', '.join(_TABLES)})")
    try:
        raw = READERS[suffix](path, options)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; check its permissions") from error
    return sample_faces(raw, options, path) if options.samples and suffix not in _MESHES else raw


def complete(raw: RawScan, where: str | Path, *, name: str, normals: bool = True) -> Scene:
    """Make a Scene: check lengths, drop unusable points, fill what is missing.

    raw: in metres, z up. where: file or folder, for messages. name: the scene's.
    A scan far from zero is shifted by `Scene.origin`, with a warning, so that float32 holds its millimetres.
    Raises UserError when nothing usable is left or arrays disagree.
    """
    _check_shapes(raw, where)
    raw = _without_invalid_points(raw, where)
    filled = []
    origin = origin_of(raw.coord)
    if origin.any():
        far = " ".join(f"{value:.0f}" for value in origin)
        warnings.warn(f"{where}: lies far from zero; {far} is subtracted and kept as the scene's origin", stacklevel=3)
    coord = torch.from_numpy(_as_float32(raw.coord - origin, where))
    if raw.color is None and raw.intensity is not None:
        color = torch.from_numpy(_grey_of(raw.intensity))
        filled.append("color")
    elif raw.color is None:
        color = torch.full((len(coord), 3), GREY, dtype=torch.uint8)
        filled.append("color")
    else:
        color = torch.from_numpy(np.array(raw.color))
    normal = None if raw.normal is None else _unit_normals(raw.normal, coord)
    if normal is None and normals:
        if raw.face is not None and len(raw.face):
            normal = normals_from_faces(coord, torch.from_numpy(raw.face))
        else:
            normal = estimate_normals(coord)
            filled.append("normal")
    labels = {key: _as_int32(value, f"{where}: {key!r}") for key, value in raw.labels.items()}
    instance = None if raw.instance is None else _as_int32(raw.instance, f"{where}: 'instance'")
    return Scene(coord, color, normal, labels, instance, name, tuple(filled), tuple(origin.tolist())).check()


def _check_shapes(raw: RawScan, where: str | Path) -> None:
    if raw.coord.ndim != 2 or raw.coord.shape[1] != 3:
        raise UserError(f"{where}: 'coord' is {raw.coord.shape}; save it as (N, 3)")
    n = len(raw.coord)
    expected = {"color": (raw.color, (n, 3)), "normal": (raw.normal, (n, 3)), "instance": (raw.instance, (n,))}
    expected["intensity"] = (raw.intensity, (n,))
    expected |= {name: (values, (n,)) for name, values in raw.labels.items()}
    for name, (values, shape) in expected.items():
        if values is not None and values.shape != shape:
            raise UserError(f"{where}: {name!r} is {values.shape} but 'coord' has {n} points; save it as {shape}")


def _without_invalid_points(raw: RawScan, where: str | Path) -> RawScan:
    n = len(raw.coord)
    if n == 0:
        raise UserError(f"{where}: has no points; check how it was made")
    keep = np.isfinite(raw.coord).all(axis=1)
    dropped = n - int(keep.sum())
    if dropped == 0:
        return raw
    if dropped == n:
        raise UserError(f"{where}: all {n} points have NaN or infinite coordinates; check how it was made")
    warnings.warn(f"{where}: dropped {dropped} of {n} points with NaN or infinite coordinates", stacklevel=4)

    def take(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[keep]

    face = raw.face
    if face is not None:
        face = (np.cumsum(keep) - 1)[face[keep[face].all(axis=1)]]
    labels = {name: values[keep] for name, values in raw.labels.items()}
    return RawScan(
        raw.coord[keep], take(raw.color), take(raw.normal), labels, take(raw.instance), face, take(raw.intensity)
    )


def _as_float32(coord: np.ndarray, where: str | Path) -> np.ndarray:
    farthest = np.abs(coord).max()
    with np.errstate(over="ignore", invalid="ignore"):
        step = np.spacing(np.float32(farthest))
    if not step <= _COARSEST_STEP:
        raise UserError(
            f"{where}: a point lies {farthest:.3g} m from the others' middle, where float32 cannot tell points closer "
            f"than {step:.2g} m apart; remove stray points, or set the unit (--unit mm)"
        )
    return coord.astype(np.float32)


def _grey_of(intensity: np.ndarray) -> np.ndarray:
    """(N, 3) uint8: intensities as greys, from the lowest to the highest but for 1 % at each end."""
    finite = intensity[np.isfinite(intensity)]
    low, high = np.percentile(finite, (1, 99)) if len(finite) else (0.0, 0.0)
    if high <= low:
        return np.full((len(intensity), 3), GREY, np.uint8)
    grey = np.rint((intensity - low) / (high - low) * 255).clip(0, 255)
    return np.repeat(np.where(np.isfinite(grey), grey, GREY).astype(np.uint8)[:, None], 3, axis=1)


def _unit_normals(normal: np.ndarray, coord: torch.Tensor) -> torch.Tensor | None:
    """Unit length, estimates where a normal is zero or not finite; None if none is usable."""
    length = np.linalg.norm(normal, axis=1)
    usable = np.isfinite(length) & (length > 1e-6)
    if not usable.any():
        return None
    unit = torch.from_numpy(normal / np.where(usable, length, 1.0)[:, None]).float()
    if not usable.all():
        missing = torch.from_numpy(~usable)
        unit[missing] = estimate_normals(coord)[missing]
    return unit


def _as_int32(values: np.ndarray, what: str) -> torch.Tensor:
    if len(values) and (values.min() < -(2**31) or values.max() >= 2**31):
        raise UserError(f"{what} goes from {values.min()} to {values.max()}; labels must fit 32 bits, -1 for none")
    return torch.from_numpy(values.astype(np.int32))
