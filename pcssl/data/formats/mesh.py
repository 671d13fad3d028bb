"""Meshes: OBJ, GLB, GLTF, STL and OFF through trimesh; and points drawn from the faces of any mesh."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcssl.data.formats.scan import GREY, RawScan, ReadOptions, need, one_line
from pcssl.errors import UserError

POINTS_PER_M2 = 5000  # two in each face of a 2 cm voxel: six of seven voxels on a surface get some
MOST_POINTS = 5_000_000  # of a mesh whose number is not given; 1000 m2


@dataclass
class Draw:
    """Points on faces. face: (M,) int64 rows, ascending; weight: (M, 3) float64 of its corners, summing to 1."""

    face: np.ndarray
    weight: np.ndarray


def read_mesh(path: Path, options: ReadOptions) -> RawScan:
    """Points on the faces, evenly by area; the vertices if `options.samples` is 0.

    Colours are those of the texture, the faces or the vertices.
    """
    pieces = _load(path)
    raw = _vertices(pieces, path)
    if options.samples == 0:
        return raw
    if raw.face is None:
        raise UserError(f"{path}: has no faces to sample; --samples 0 takes its {len(raw.coord)} vertices as points")
    draw = draw_points(raw, options, path)
    if not all(map(_is_mesh, pieces)):
        warnings.warn(f"{path}: left out the points beside its meshes; --samples 0 keeps all vertices", stacklevel=2)
    points = interpolated(raw, draw)
    points.color = _face_colors(pieces, draw, points.color)
    return points


def sample_faces(raw: RawScan, options: ReadOptions, path: Path) -> RawScan:
    """Points on the faces of a scan whose colours are those of its vertices."""
    if raw.face is None:
        raise UserError(f"{path}: has no faces to draw {options.samples} samples from; leave --samples out")
    return interpolated(raw, draw_points(raw, options, path))


def draw_points(raw: RawScan, options: ReadOptions, path: Path) -> Draw:
    """Points evenly by area: each face gets its share rounded up or down, at random places.

    As many as `options.samples`, or `POINTS_PER_M2` up to `MOST_POINTS`. The same seed draws the same.
    """
    corners = raw.coord[raw.face]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    summed = np.cumsum(np.where(np.isfinite(area), area, 0))
    if not (np.isfinite(summed[-1]) and summed[-1] > 0):
        raise UserError(f"{path}: its {len(area)} faces have no area; check how it was made")
    count = options.samples
    if count is None:
        wanted = summed[-1] * options.metres**2 * POINTS_PER_M2
        count = int(min(max(wanted, 1), MOST_POINTS))
        if wanted > MOST_POINTS:
            warnings.warn(
                f"{path}: {summed[-1] * options.metres**2:.3g} m2 of faces, sampled by {MOST_POINTS} points, not by "
                f"{POINTS_PER_M2} a m2; check --unit, or give their number with --samples",
                stacklevel=2,
            )
    rng = np.random.default_rng(options.seed)
    face = np.searchsorted(summed, (np.arange(count) + rng.random()) / count * summed[-1], side="right")
    root, part = np.sqrt(rng.random(count)), rng.random(count)
    weight = np.stack([1 - root, root * (1 - part), root * part], axis=1)
    return Draw(np.minimum(face, len(area) - 1), weight)


def interpolated(raw: RawScan, draw: Draw) -> RawScan:
    """The drawn points as a scan: place and colour between the corners, the face's normal, the nearest corner's ids."""
    corner = raw.face[draw.face]
    coord = np.einsum("mk,mkc->mc", draw.weight, raw.coord[corner])
    sides = raw.coord[raw.face[:, 1:]] - raw.coord[raw.face[:, :1]]
    across = np.cross(sides[:, 0], sides[:, 1])
    normal = across / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), np.finfo(float).tiny)
    color = None
    if raw.color is not None:
        color = np.rint(np.einsum("mk,mkc->mc", draw.weight, raw.color[corner])).astype(np.uint8)
    nearest = corner[np.arange(len(corner)), draw.weight.argmax(axis=1)]
    return RawScan(
        coord,
        color,
        normal[draw.face],
        {name: values[nearest] for name, values in raw.labels.items()},
        None if raw.instance is None else raw.instance[nearest],
        intensity=None if raw.intensity is None else raw.intensity[nearest],
    )


def _load(path: Path) -> list[Any]:
    """The meshes and point sets of a file, each moved to its place; their types are trimesh's."""
    trimesh = need("trimesh", "trimesh", path)
    kind = path.suffix.lower()[1:]
    content = path.read_bytes()
    try:
        if kind in ("obj", "off") or (kind == "stl" and not _is_binary_stl(content)):
            content = _text(content, kind)
        resolver = trimesh.resolvers.FilePathResolver(str(path))
        scene = trimesh.load_scene(io.BytesIO(content), file_type=kind, resolver=resolver, process=False)
        pieces = scene.dump()
    except FileNotFoundError as error:
        raise UserError(f"{path}: refers to {one_line(error)}, which is not there; copy it too") from error
    except Exception as error:  # its parsers raise what they come upon
        raise UserError(
            f"{path}: not {kind.upper()}, or cut short or damaged ({one_line(error)}); export it again"
        ) from error
    pieces = [p for p in pieces if isinstance(p, (trimesh.Trimesh, trimesh.PointCloud))]
    for piece in pieces:
        if kind == "stl":
            piece.merge_vertices()  # it has three of its own for each face
        if piece.vertices.shape != (len(piece.vertices), 3):
            raise UserError(f"{path}: its vertices have no x, y and z; damaged, export it again")
        if _is_mesh(piece) and not 0 <= piece.faces.min() <= piece.faces.max() < len(piece.vertices):
            raise UserError(f"{path}: a face refers to a vertex that is not there; damaged, export it again")
    return pieces


def _is_mesh(piece: Any) -> bool:
    return len(getattr(piece, "faces", ())) > 0


def _is_binary_stl(content: bytes) -> bool:
    return len(content) >= 84 and len(content) == 84 + 50 * int.from_bytes(content[80:84], "little")


def _text(content: bytes, kind: str) -> bytes:
    """The text as UTF-8, since other encodings make trimesh look for a library; ValueError if it is cut short."""
    if b"\0" in content:
        raise ValueError("bytes that are not text" if kind != "stl" else "not as long as its header says")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if kind == "obj":  # which has no end to look for
        return text.encode()
    lines = [line for line in (line.split("#")[0].strip() for line in text.splitlines()) if line]
    if kind == "stl" and not (lines and re.match("solid", lines[0], re.I) and re.match("endsolid", lines[-1], re.I)):
        raise ValueError("it does not run from solid to endsolid")
    if kind == "off" and not lines:
        raise ValueError("it is empty")
    if kind == "off":
        numbers = re.sub(r"^[A-Z]*OFF", "", " ".join(lines[:2])).split()[:2]
        head = 1 if len(lines[0].split()) > 1 else 2  # lines up to the counts
        if len(lines) < head + sum(map(int, numbers)):
            raise ValueError(f"{len(lines)} lines, but the header says {' vertices and '.join(numbers)} faces")
    return text.encode()


def _vertices(pieces: list[Any], path: Path) -> RawScan:
    """All vertices of meshes and the faces as rows of them; colours where some piece has them."""
    meshes = [piece for piece in pieces if _is_mesh(piece)]
    starts = np.cumsum([0, *(len(p.vertices) for p in pieces)])
    if not pieces or starts[-1] == 0:
        raise UserError(f"{path}: has no vertices; check how it was made")
    order = {id(piece): start for piece, start in zip(pieces, starts)}
    face = [np.asarray(piece.faces, dtype=np.int64) + order[id(piece)] for piece in meshes]
    return RawScan(
        np.concatenate([np.asarray(p.vertices, dtype=np.float64) for p in pieces]),
        _joined_colors([_vertex_colors(p) for p in pieces], np.diff(starts)),
        face=np.concatenate(face) if face else None,
    )


def _joined_colors(colors: list[np.ndarray | None], counts: np.ndarray) -> np.ndarray | None:
    """(N, 3) uint8, grey for the pieces without; None if no piece has any."""
    if all(color is None for color in colors):
        return None
    return np.concatenate([np.full((n, 3), GREY, np.uint8) if c is None else c for c, n in zip(colors, counts)])


def _vertex_colors(piece: Any) -> np.ndarray | None:
    """(V, 3) uint8 or None."""
    if not _is_mesh(piece):
        colors = getattr(piece, "colors", None)
        return np.asarray(colors)[:, :3].astype(np.uint8) if colors is not None and len(colors) else None
    if piece.visual.kind == "texture":
        return _texture_colors(piece.visual, piece.visual.uv, len(piece.vertices))
    if piece.visual.kind in ("vertex", "face"):
        return np.asarray(piece.visual.vertex_colors)[:, :3].astype(np.uint8)
    return None


def _face_colors(pieces: list[Any], draw: Draw, between: np.ndarray | None) -> np.ndarray | None:
    """Colours of the drawn points. between: (M, 3) those between the vertices', for what has no others."""
    start = 0
    for piece in filter(_is_mesh, pieces):
        end = start + len(piece.faces)
        rows = slice(*np.searchsorted(draw.face, (start, end)))
        local = draw.face[rows] - start
        if between is not None and piece.visual.kind == "face":
            between[rows] = np.asarray(piece.visual.face_colors)[local, :3]
        elif between is not None and piece.visual.kind == "texture" and piece.visual.uv is not None:
            corner = np.asarray(piece.visual.uv)[np.asarray(piece.faces)[local]]
            uv = np.einsum("mk,mkc->mc", draw.weight[rows], corner)
            between[rows] = _texture_colors(piece.visual, uv, len(uv))
        start = end
    return between


def _texture_colors(visual: Any, uv: np.ndarray | None, count: int) -> np.ndarray:
    """(count, 3) uint8 of the picture at uv (count, 2), else of the material."""
    material = visual.material
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if picture is not None and uv is not None:
        pixels = np.asarray(picture.convert("RGB"))
        height, width, _ = pixels.shape
        uv = np.where(uv == 1, 1, np.nan_to_num(uv) % 1)  # from the lower left, repeated beyond 0..1
        column = np.minimum((uv[:, 0] * width).astype(np.int64), width - 1)
        row = np.minimum(((1 - uv[:, 1]) * height).astype(np.int64), height - 1)
        return pixels[row, column]
    return np.tile(np.asarray(material.main_color, dtype=np.uint8)[:3], (count, 1))
