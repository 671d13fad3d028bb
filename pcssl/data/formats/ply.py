"""PLY: points or a mesh, ascii or binary; the one format that is also written."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement, PlyParseError

from pcssl.data.formats.scan import RawScan, ReadOptions, from_columns, listed, one_line, plain_name
from pcssl.data.scene import Scene
from pcssl.errors import UserError

_BYTES = {"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "double": 8}
_BYTES |= {"int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "float32": 4, "float64": 8}


def read_ply(path: Path, options: ReadOptions) -> RawScan:
    """The vertices with their columns, and the faces as triangles."""
    ply = _parse(path)
    if "vertex" not in ply:
        raise UserError(f"{path}: no 'vertex' element; it has {listed(e.name for e in ply.elements)}; export points")
    vertex = ply["vertex"].data
    names = [name for name in vertex.dtype.names or () if vertex.dtype[name].kind in "iuf"]
    raw = from_columns({plain_name(name): vertex[name] for name in names}, path)
    raw.face = _triangles(ply, len(vertex), path)
    return raw


def _parse(path: Path) -> PlyData:
    triangles = {"face": {"vertex_indices": 3, "vertex_index": 3}}
    try:
        _check_promises(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy's, of empty lines, beside the error that follows
            try:
                # Nearly every mesh is all triangles: read in one piece, some fifty times faster.
                return PlyData.read(str(path), known_list_len=triangles)
            except PlyParseError:
                return PlyData.read(str(path))
    except (PlyParseError, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise UserError(
            f"{path}: not a PLY file, or cut short or damaged ({one_line(error)}); copy or export it again"
        ) from error


def _check_promises(path: Path) -> None:
    """Raise ValueError if the header names more rows than the file has bytes for: plyfile would make room for them."""
    needed, rows, text = 0, 0, False
    with open(path, "rb") as file:
        for line in iter(lambda: file.readline(4096), b""):
            words = line.decode("ascii", "replace").split()
            if words[:1] == ["format"]:
                text = words[1:2] == ["ascii"]
            elif words[:1] == ["element"] and len(words) == 3:
                rows = int(words[2])
            elif words[:1] == ["property"] and len(words) >= 3:
                # the least that a value takes: a digit and a space, or for a list its empty length
                needed += rows * (2 if text else _BYTES.get(words[2] if words[1] == "list" else words[1], 1))
            elif words == ["end_header"]:
                present = os.fstat(file.fileno()).st_size - file.tell() + 1  # ascii may lack the last line's end
                if needed > present:
                    raise ValueError(f"cut short: the header promises at least {needed} bytes, {present - 1} follow")
                return


def _triangles(ply: PlyData, points: int, path: Path) -> np.ndarray | None:
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


def write_ply(path: str | Path, scene: Scene, *, faces: np.ndarray | torch.Tensor | None = None) -> None:
    """Write a scene as binary little-endian PLY.

    Labels and instance become integer properties of their names; `read_scene` takes back those
    that start with "segment", "label" or "class", and "instance". A scene with an origin gets its
    full coordinates back, as doubles.

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

    if any(scene.origin):
        add(("x", "y", "z"), scene.coord.double() + torch.tensor(scene.origin, dtype=torch.float64), "<f8")
    else:
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
