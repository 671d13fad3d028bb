"""Reading a scan from a file, and writing one.

A format is one function in `READERS`: path -> `RawScan`, what the file holds and nothing else.
`complete` makes a `Scene` of it, the same way for every format.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement, PlyParseError

from pcssl.data.normals import estimate_normals, normals_from_faces
from pcssl.data.scene import Scene
from pcssl.errors import UserError

GREY = 127
_COARSEST_STEP = 0.005  # metres between float32 neighbours: a quarter of the usual 2 cm voxel
_COLOR_COLUMNS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_LABEL_PREFIXES = ("segment", "label")


@dataclass
class RawScan:
    """What a file holds, before anything is dropped or made up.

    coord: (N, 3) float64, the file's own unit. color: (N, 3) uint8. normal: (N, 3) float64, any length.
    labels: name -> (N,) integer. instance: (N,) integer. face: (F, 3) int64, rows of coord.
    """

    coord: np.ndarray
    color: np.ndarray | None = None
    normal: np.ndarray | None = None
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    instance: np.ndarray | None = None
    face: np.ndarray | None = None


def read_scene(path: str | Path, *, scale: float = 1.0, normals: bool = True) -> Scene:
    """Read one scan.

    path: a file with one of the extensions in `READERS`, in any case.
    scale: metres per unit of the file, e.g. 0.001 for millimetres.
    normals: whether to make normals (from the faces, else from neighbours) where there are none.

    Points with a NaN or infinite coordinate are dropped, with a warning. A width that no room has
    is warned of as a wrong unit. Raises UserError for a file that cannot be used.
    """
    path = Path(path)
    if not (np.isfinite(scale) and scale > 0):
        raise UserError(f"scale is {scale}; give a positive number of metres per unit, e.g. 0.001 for millimetres")
    raw = read_raw(path)
    raw.coord = raw.coord * scale
    _warn_of_units(raw.coord, path)
    return complete(raw, path, name=path.stem, normals=normals)


def read_raw(path: Path) -> RawScan:
    """What a file holds; UserError if it is missing, damaged or of an unknown format."""
    reader = READERS.get(path.suffix.lower())
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give one file ({', '.join(READERS)})")
    if reader is None:
        raise UserError(f"{path}: unknown extension {path.suffix!r}; known: {', '.join(READERS)}")
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    try:
        return reader(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; check its permissions") from error


def complete(raw: RawScan, where: str | Path, *, name: str, normals: bool = True) -> Scene:
    """Make a Scene: check lengths, drop unusable points, fill what is missing.

    raw: in metres. where: file or folder, for messages. name: the scene's.
    Raises UserError when nothing usable is left or arrays disagree.
    """
    _check_shapes(raw, where)
    raw = _without_invalid_points(raw, where)
    filled = []
    coord = torch.from_numpy(_as_float32(raw.coord, where))
    if raw.color is None:
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
    return Scene(coord, color, normal, labels, instance, name, tuple(filled)).check()


def write_ply(path: str | Path, scene: Scene, *, faces: np.ndarray | torch.Tensor | None = None) -> None:
    """Write a scene as binary little-endian PLY.

    Labels and instance become integer properties of their names; `read_scene` takes back those
    that start with "segment" or "label", and "instance".

    faces: (F, 3) integer rows of the scene's points, or None.
    Folders are made as needed. The file appears under its name only when it is whole.
    Raises UserError if it cannot be written.
    """
    path = Path(path)
    elements = [PlyElement.describe(_vertex_table(scene.check()), "vertex")]
    if faces is not None:
        table = np.empty(len(faces), dtype=[("vertex_indices", "<i4", (3,))])
        table["vertex_indices"] = np.asarray(faces)
        elements.append(PlyElement.describe(table, "face"))
    part = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            PlyData(elements, byte_order="<").write(str(part))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; choose another place") from error


def _vertex_table(scene: Scene) -> np.ndarray:
    columns: dict[str, np.ndarray] = {}

    def add(names: tuple[str, ...], values: torch.Tensor | None, dtype: str) -> None:
        if values is not None:
            table = values.reshape(len(scene), len(names)).numpy().astype(dtype)
            columns.update({name: table[:, i] for i, name in enumerate(names)})

    add(("x", "y", "z"), scene.coord, "<f4")
    add(("nx", "ny", "nz"), scene.normal, "<f4")
    add(("red", "green", "blue"), scene.color, "u1")
    for name, label in scene.labels.items():
        add((name,), label, "<i4")
    add(("instance",), scene.instance, "<i4")
    table = np.empty(len(scene), dtype=[(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    return table


def _read_ply(path: Path) -> RawScan:
    ply = _parse_ply(path)
    if "vertex" not in ply:
        raise UserError(f"{path}: no 'vertex' element; it has {_listed(e.name for e in ply.elements)}; export points")
    vertex = ply["vertex"].data
    columns = {name.lower(): name for name in vertex.dtype.names or ()}

    def pick(names: tuple[str, ...]) -> np.ndarray | None:
        if not all(name in columns for name in names):
            return None
        return np.stack([vertex[columns[name]] for name in names], axis=1)

    coord = pick(("x", "y", "z"))
    if coord is None:
        raise UserError(f"{path}: no x, y and z in its vertices; they have {_listed(columns)}; export with coordinates")
    color = next((c for c in map(pick, _COLOR_COLUMNS) if c is not None), None)
    normal = pick(("nx", "ny", "nz"))
    integers = {low: np.array(vertex[name]) for low, name in columns.items() if vertex.dtype[name].kind in "iu"}
    return RawScan(
        coord=coord.astype(np.float64),
        color=None if color is None else to_color(color, path),
        normal=None if normal is None else normal.astype(np.float64),
        labels={name: values for name, values in integers.items() if name.startswith(_LABEL_PREFIXES)},
        instance=integers.get("instance"),
        face=_ply_triangles(ply, len(vertex), path),
    )


def _parse_ply(path: Path) -> PlyData:
    triangles = {"face": {"vertex_indices": 3, "vertex_index": 3}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy's, of empty lines, beside the error that follows
            try:
                # Nearly every mesh is all triangles: read in one piece, some fifty times faster.
                return PlyData.read(str(path), known_list_len=triangles)
            except PlyParseError:
                return PlyData.read(str(path))
    except (PlyParseError, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{path}: not a PLY file, or cut short or damaged ({what}); copy or export it again") from error


def _ply_triangles(ply: PlyData, points: int, path: Path) -> np.ndarray | None:
    """(F, 3) int64, polygons cut into fans; None without faces."""
    if "face" not in ply:
        return None
    face = ply["face"].data
    name = next((n for n in face.dtype.names or () if n in ("vertex_indices", "vertex_index")), None)
    if name is None or len(face) == 0:
        return None
    corners = face[name]
    if corners.ndim == 2:
        polygons = [np.asarray(corners)]
    else:
        count = np.array([len(c) for c in corners])
        polygons = [np.stack(corners[count == n]) for n in np.unique(count) if n >= 3]
    fans = [p[:, [0, i, i + 1]] for p in polygons for i in range(1, p.shape[1] - 1)]
    if not fans:
        return None
    triangles = np.concatenate(fans).astype(np.int64)
    if triangles.min() < 0 or triangles.max() >= points:
        wrong = triangles.max() if triangles.max() >= points else triangles.min()
        raise UserError(f"{path}: a face refers to vertex {wrong} but there are {points}; damaged, export it again")
    return triangles


def _read_npz(path: Path) -> RawScan:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not an npz archive of plain arrays, or damaged ({' '.join(str(error).split())}); "
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
        raise UserError(f"{path}: no 'coord' (or 'xyz', 'points'); it has {_listed(keys)}; rename the coordinates")
    color = pick("color", "colors", "rgb")
    normal = pick("normal", "normals")
    labels = {low: arrays[key] for low, key in keys.items() if low.startswith(_LABEL_PREFIXES)}
    return RawScan(
        coord=coord.astype(np.float64),
        color=None if color is None else to_color(color, path),
        normal=None if normal is None else normal.astype(np.float64),
        labels={low: values for low, values in labels.items() if values.dtype.kind in "iu"},
        instance=pick("instance"),
    )


# extension -> reader; a new format is one line here and one function
READERS: dict[str, Callable[[Path], RawScan]] = {".ply": _read_ply, ".npz": _read_npz}


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


def _check_shapes(raw: RawScan, where: str | Path) -> None:
    if raw.coord.ndim != 2 or raw.coord.shape[1] != 3:
        raise UserError(f"{where}: 'coord' is {raw.coord.shape}; save it as (N, 3)")
    n = len(raw.coord)
    expected = {"color": (raw.color, (n, 3)), "normal": (raw.normal, (n, 3)), "instance": (raw.instance, (n,))}
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
    return RawScan(raw.coord[keep], take(raw.color), take(raw.normal), labels, take(raw.instance), face)


def _as_float32(coord: np.ndarray, where: str | Path) -> np.ndarray:
    farthest = np.abs(coord).max()
    with np.errstate(over="ignore", invalid="ignore"):
        step = np.spacing(np.float32(farthest))
    if not step <= _COARSEST_STEP:
        raise UserError(
            f"{where}: a point lies {farthest:.3g} m from the origin, where float32 cannot tell points closer than "
            f"{step:.2g} m apart; subtract the offset of a georeferenced scan, or set the unit (--scale 0.001 for mm)"
        )
    return coord.astype(np.float32)


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


def _warn_of_units(coord: np.ndarray, where: str | Path) -> None:
    """Warn when a scene is wider or smaller than scenes are."""
    finite = coord[np.isfinite(coord).all(axis=1)] if coord.ndim == 2 else coord[:0]
    if len(finite) < 2:
        return
    extent = float(np.ptp(finite, axis=0).max())
    if extent > 500:
        guess = "centimetres, read it with --scale 0.01" if extent < 2000 else "millimetres, read it with --scale 0.001"
    elif 0 < extent < 0.1:
        guess = "kilometres, read it with --scale 1000"
    else:
        return
    warnings.warn(f"{where}: the scene is {extent:.3g} m wide; if its unit is {guess}", stacklevel=3)


def _listed(names) -> str:
    return ", ".join(names) or "nothing"
