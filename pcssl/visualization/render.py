"""Pictures of point clouds without a display: an orthographic splat renderer in numpy.

    image = render_points(scene.coord, scene.color, normal=scene.normal)
    save_png("room.png", image)

Every point is a disc that faces the camera; a z-buffer keeps the nearest. Rooms are opened:
the ceiling and the walls between the camera and the room are left out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pcssl.errors import UserError

SUPERSAMPLING = 2
MARGIN = 0.04  # of the picture, free on each side
UNLABELLED = (160, 160, 160)

EMPTY = np.uint64(2**64 - 1)  # a pixel of the z-buffer that shows nothing
LOW_BITS = np.uint64(2**32 - 1)

CELL = 0.25  # metres: columns of the room's plan
ROOM_HEIGHT = 1.8  # metres: lower things have no ceiling and no walls
CEILING_SLAB = 0.3  # metres below the ceiling: what is cut with it, lamps and beams


def render_points(
    coord: np.ndarray,  # (N, 3)
    color: np.ndarray,  # (N, 3)
    *,
    view: Literal["oblique", "top"] = "oblique",
    size: tuple[int, int] = (1200, 900),
    normal: np.ndarray | None = None,  # (N, 3)
    point_size: float | None = None,
    mark: np.ndarray | None = None,  # (3,)
) -> Image.Image:
    """A picture of points on white.

    coord: metres, z up. color: uint8. normal: unit vectors that point out of the surface, into
    the room; without them they are estimated. Arrays or CPU tensors.
    view: "oblique", from above at an angle, or "top", straight down, y up in the picture.
    size: (width, height) in pixels; the points are scaled to fill it.
    point_size: diameter of a point in metres; by default what closes the surfaces.
    mark: a place that gets a ring, whether it can be seen or not.
    Raises ValueError on shapes that do not match and on NaN or infinite coordinates.
    """
    coord, color, normal = _checked(coord, color, normal)
    if len(coord) == 0:
        return Image.new("RGB", size, "white")
    if normal is None:
        normal = _estimate_normals(coord)
    axes = _camera(view, normal)
    keep = open_room(coord, normal, axes[2] if view == "oblique" else None)
    coord, color, normal = coord[keep], color[keep], normal[keep]

    canvas = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    middle = coord.mean(axis=0)
    xyz = (coord - middle) @ axes.T  # right, down, away
    pixel, scale = _fit(xyz[:, :2], canvas)
    diameter = point_size or 2.6 * point_spacing(coord)
    index = _splat(pixel, xyz[:, 2], canvas, max(0.5 * diameter * scale, 1.0), diameter)

    seen = index >= 0
    depth = _plane_depth(index, pixel, xyz[:, 2], normal @ axes.T, scale)
    picture = np.full((*index.shape, 3), 255, np.float32)
    light = _lambert(normal, axes)[index[seen]] * _occlusion(depth, scale)[seen]
    picture[seen] = color[index[seen]] * light[:, None]
    image = _shrink(picture)
    if mark is not None:
        across = (np.asarray(mark, np.float64) - middle) @ axes[:2].T - xyz[0, :2]
        _ring(image, (pixel[0] + across * scale) / SUPERSAMPLING)
    return image


def label_colors(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colours (N, 3) uint8 of labels (N,): row `label` of the palette (K, 3); grey where negative.

    Raises ValueError if a label is beyond the palette.
    """
    labels, palette = np.asarray(labels), np.asarray(palette, np.uint8).reshape(-1, 3)
    if labels.size and labels.max() >= len(palette):
        raise ValueError(f"label {labels.max()} has no colour: the palette has {len(palette)}")
    return np.concatenate([palette, np.array([UNLABELLED], np.uint8)])[np.where(labels < 0, len(palette), labels)]


def contact_sheet(
    images: Sequence[Sequence[Image.Image | None]], row_titles: Sequence[str], column_titles: Sequence[str]
) -> Image.Image:
    """Pictures in rows and columns with titles on the left and on top; None leaves a place empty.

    Raises ValueError unless there is a title for each row and column.
    """
    if len(images) != len(row_titles) or any(len(row) != len(column_titles) for row in images):
        shape = f"{len(images)} rows of {sorted({len(row) for row in images})} pictures"
        raise ValueError(f"{shape}, but {len(row_titles)} row and {len(column_titles)} column titles")
    present = [image for row in images for image in row if image is not None]
    cell_w = max((image.width for image in present), default=0)
    cell_h = max((image.height for image in present), default=0)
    font = ImageFont.load_default(size=max(12, cell_h // 20))
    gap = max(4, cell_h // 50)
    widths, heights = zip(*(font.getbbox(title)[2:] for title in (*row_titles, *column_titles, "Ag")))
    left = max(widths[: len(row_titles)], default=0) + 2 * gap
    top = max(heights) + 2 * gap
    # A column is at least as wide as its title.
    cell_w = max(cell_w, *widths[len(row_titles) :])

    sheet = Image.new("RGB", (left + len(column_titles) * (cell_w + gap), top + len(images) * (cell_h + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for c, title in enumerate(column_titles):
        draw.text((left + c * (cell_w + gap) + cell_w // 2, top // 2), title, "black", font, anchor="mm")
    for r, (title, row) in enumerate(zip(row_titles, images)):
        y = top + r * (cell_h + gap)
        draw.text((gap, y + cell_h // 2), title, "black", font, anchor="lm")
        for c, image in enumerate(row):
            if image is not None:
                sheet.paste(image, (left + c * (cell_w + gap) + (cell_w - image.width) // 2, y))
    return sheet


def save_png(path: str | Path, image: Image.Image) -> None:
    """Write a PNG under a temporary name and rename it: a reader never sees half a file."""
    _save(Path(path), image, format="PNG")


def save_picture(path: str | Path, image: Image.Image) -> None:
    """Write a JPEG where the name ends in .jpg, else a PNG, as `save_png` does; UserError if it cannot be written."""
    path = Path(path)
    options = {"format": "JPEG", "quality": 90} if path.suffix.lower() == ".jpg" else {"format": "PNG", "optimize": True}
    try:
        _save(path, image, **options)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; choose another place") from error


def _save(path: Path, image: Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        image.save(temporary, **options)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------- the camera


def _camera(view: str, normal: np.ndarray) -> np.ndarray:
    """(3, 3): the directions right, down and away from the camera, as rows."""
    if view == "top":
        return np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
    if view != "oblique":
        raise ValueError(f"view must be 'oblique' or 'top', got {view!r}")
    azimuth, elevation = _heading(normal) + np.radians(60), np.radians(45)
    away = np.array([np.cos(azimuth), np.sin(azimuth), -np.tan(elevation)]) * np.cos(elevation)
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0])
    return np.stack([right, np.cross(away, right), away])


def _heading(normal: np.ndarray) -> float:
    """The direction of the walls in radians, in [-pi/4, pi/4]: a right angle more is the same room."""
    walls = normal[np.abs(normal[:, 2]) < 0.3]
    turns = np.exp(4j * np.arctan2(walls[:, 1], walls[:, 0])).sum()
    return float(np.angle(turns)) / 4 if abs(turns) > 1e-9 else 0.0


def _fit(xy: np.ndarray, canvas: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Pixel coordinates (N, 2) that fill the canvas, and pixels per metre."""
    # In a big scan a stray point in a thousand should not make the room small.
    trim = 0.1 if len(xy) >= 10_000 else 0.0
    low, high = np.percentile(xy, [trim, 100 - trim], axis=0)
    free = np.array(canvas) * (1 - 2 * MARGIN)
    scale = float(np.min(free / np.maximum(high - low, 1e-3)))
    return (xy - (low + high) / 2) * scale + np.array(canvas) / 2, scale


# ---------------------------------------------------------------- opening a room


def open_room(coord: np.ndarray, normal: np.ndarray, away: np.ndarray | None = None) -> np.ndarray:
    """Which points to show, (N,) bool: no ceiling, and no walls seen from behind.

    away: the direction from the camera into the scene, or None to keep all walls.
    """
    floor, roof = np.percentile(coord[:, 2], [0.5, 99.5])
    if roof - floor < ROOM_HEIGHT:
        return np.ones(len(coord), bool)
    column, top = _columns(coord)
    keep = _below_ceiling(coord[:, 2], column, top, floor + 0.6 * (roof - floor))
    if away is not None:
        upright = np.abs(normal[:, 2]) < 0.5
        tall = top.ravel()[column] > floor + 0.6 * (roof - floor)  # what stands in front of a room, not in it
        keep &= ~(upright & tall & (normal @ away > 0))
    return keep if keep.any() else np.ones(len(coord), bool)


def _columns(coord: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The plan in square cells: each point's flat cell index (N,), and the top of each cell (X, Y), -inf if empty."""
    low = coord[:, :2].min(axis=0)
    extent = coord[:, :2].max(axis=0) - low
    cell = np.floor((coord[:, :2] - low) / max(CELL, extent.max() / 1000)).astype(np.int64)
    shape = cell.max(axis=0) + 1
    column = cell[:, 0] * shape[1] + cell[:, 1]
    top = np.full(shape.prod(), -np.inf)
    np.maximum.at(top, column, coord[:, 2])
    return column, top.reshape(shape)


def _below_ceiling(z: np.ndarray, column: np.ndarray, top: np.ndarray, upper: float) -> np.ndarray:
    """Points that no ceiling holds, (N,) bool. upper: the height above which a surface may be one."""
    tall = top > upper
    # A wall is a line in the plan, a ceiling an area: most cells around it are tall too.
    around = np.pad(tall, 2).astype(np.int64)
    around = sum(around[i : i + tall.shape[0], j : j + tall.shape[1]] for i in range(5) for j in range(5))
    ceiling = tall & (around > 12)
    if ceiling.sum() < 0.2 * np.isfinite(top).sum():
        return np.ones(len(z), bool)
    cut = np.median(top[ceiling]) - CEILING_SLAB  # level, so that the walls end evenly
    local = np.where(ceiling, top - CEILING_SLAB, np.inf).ravel()  # lower ceilings: corridors, slopes
    return z < np.minimum(cut, local[column])


def _estimate_normals(coord: np.ndarray) -> np.ndarray:
    """Unit normals (N, 3) of the planes through the points of each small cube, turned to the middle of the room.

    Good enough to light a picture and to know a wall; a cube with too few points gets (0, 0, 1).
    """
    low = coord.min(axis=0)
    cell = np.floor((coord - low) / max(3 * point_spacing(coord), 1e-6)).astype(np.int64)
    shape = cell.max(axis=0) + 1
    _, cube = np.unique((cell[:, 0] * shape[1] + cell[:, 1]) * shape[2] + cell[:, 2], return_inverse=True)
    count = np.bincount(cube)
    mean = np.stack([np.bincount(cube, coord[:, i]) for i in range(3)], axis=1) / count[:, None]
    offset = coord - mean[cube]
    covariance = np.zeros((len(count), 3, 3))
    for i in range(3):
        for j in range(3):
            covariance[:, i, j] = np.bincount(cube, offset[:, i] * offset[:, j])
    normal = np.linalg.eigh(covariance)[1][:, :, 0]
    normal[count < 4] = (0, 0, 1)
    inward = np.median(coord, axis=0) - mean
    normal[(normal * inward).sum(axis=1) < 0] *= -1
    return normal[cube]


# ---------------------------------------------------------------- drawing


def point_spacing(coord: np.ndarray) -> float:
    """Distance between neighbouring points of the surface in metres, from how many share a cube."""
    low = coord.min(axis=0)
    side = max(float(np.linalg.norm(coord.max(axis=0) - low)), 1e-3) / 200
    while True:
        cell = np.floor((coord - low) / side).astype(np.int64)
        shape = cell.max(axis=0) + 1
        cubes = len(np.unique((cell[:, 0] * shape[1] + cell[:, 1]) * shape[2] + cell[:, 2]))
        # With few points in a cube, empty cubes inside the surface would be missed.
        if len(coord) >= 8 * cubes or cubes < 64:
            return side * float(np.sqrt(cubes / len(coord)))
        side *= 1.5


def _splat(
    pixel: np.ndarray, depth: np.ndarray, canvas: tuple[int, int], radius: float, thickness: float
) -> np.ndarray:
    """The visible point of each pixel: index (H, W), -1 for none.

    A disc bulges toward the camera by `thickness`, so that of two points at the same depth the
    one whose centre is nearer to the pixel wins.
    """
    width, height = canvas
    x, y = np.floor(pixel).astype(np.int64).T
    inside = np.flatnonzero((x >= 0) & (x < width) & (y >= 0) & (y < height))
    depth = (depth - depth.min()).astype(np.float32)
    # Of points in one pixel only the nearest can show, and it is at least as near in all of the disc.
    first = _nearest(y[inside] * width + x[inside], depth[inside], inside, np.full(width * height, EMPTY))
    point = (first[first < EMPTY] & LOW_BITS).astype(np.int64)

    reach = int(radius)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    bulge = (dx * dx + dy * dy) / (radius * radius)
    dx, dy, bulge = dx[bulge <= 1], dy[bulge <= 1], bulge[bulge <= 1].astype(np.float32) * np.float32(thickness)
    buffer = np.full(width * height, EMPTY)
    for part in np.array_split(point, 1 + len(point) * len(dx) // 4_000_000):  # a bound on the memory
        column, row = x[part, None] + dx, y[part, None] + dy
        ok = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        owner = np.broadcast_to(part[:, None], ok.shape)[ok]
        _nearest((row * width + column)[ok], (depth[part, None] + bulge)[ok], owner, buffer)
    return np.where(buffer < EMPTY, (buffer & LOW_BITS).astype(np.int64), -1).reshape(height, width)


def _nearest(cell: np.ndarray, depth: np.ndarray, point: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """Let each cell of the buffer keep the nearest point: one number, depth in its high half, point in its low.

    depth: float32, not negative, which sorts like its bits.
    """
    key = (depth.view(np.uint32).astype(np.uint64) << np.uint64(32)) | point.astype(np.uint64)
    np.minimum.at(buffer, cell, key)
    return buffer


def _plane_depth(
    index: np.ndarray, pixel: np.ndarray, depth: np.ndarray, normal: np.ndarray, scale: float
) -> np.ndarray:
    """Depth of each pixel (H, W), inf where there is none, as if each disc lay in its surface.

    Without this the shading would show the discs instead of what they make up. normal: in camera axes.
    """
    rows, columns = np.nonzero(index >= 0)
    point = index[rows, columns]
    n = normal[point]
    facing = np.where(n[:, 2] < 0, -1, 1) * np.maximum(np.abs(n[:, 2]), 0.4)  # bounded at grazing angles
    across = n[:, 0] * (columns + 0.5 - pixel[point, 0]) + n[:, 1] * (rows + 0.5 - pixel[point, 1])
    result = np.full(index.shape, np.inf, np.float32)
    result[rows, columns] = depth[point] - across / (facing * scale)
    return result


def _lambert(normal: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Brightness (N,) in [0.72, 1] from a lamp behind the camera's left shoulder; both sides of a surface alike."""
    lamp = -axes[2] - 0.5 * axes[0] - 0.6 * axes[1]
    return 0.72 + 0.28 * np.abs(normal @ (lamp / np.linalg.norm(lamp)))


def _occlusion(depth: np.ndarray, scale: float) -> np.ndarray:
    """Brightness (H, W) in (0, 1]: darker where a pixel lies behind the pixels around it.

    Compared in opposite pairs, so that a slanted plane stays bright. scale: pixels per metre.
    """
    total = np.zeros_like(depth)
    for part in (0.0035, 0.01):  # of the picture: the shading suits a cup as well as a hall
        step = max(1, round(part * depth.shape[0]))
        metres = step / scale
        padded = np.pad(depth, step, constant_values=np.inf)
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            pair = []
            for sign in (1, -1):
                y, x = step + sign * dy * step, step + sign * dx * step
                near = padded[y : y + depth.shape[0], x : x + depth.shape[1]]
                pair.append(np.where(np.isfinite(near), near, depth))  # the background hides nothing
            with np.errstate(invalid="ignore"):
                behind = (depth - (pair[0] + pair[1]) / 2) / metres
                total += np.clip(behind - 0.15, 0, 2)  # not the noise of the points
    return np.exp(-0.08 * np.nan_to_num(total))


def _ring(image: Image.Image, at: np.ndarray) -> None:
    """A white ring with dark rims around a pixel (2,)."""
    radius = max(5.0, image.height / 60)
    for grow, width, color in ((0.4, 0.8, "black"), (0.2, 0.4, "white")):
        reach = radius * (1 + grow)
        box = (at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach)
        ImageDraw.Draw(image).ellipse(box, outline=color, width=max(1, round(radius * width)))


def _shrink(picture: np.ndarray) -> Image.Image:
    """The mean of each block of SUPERSAMPLING pixels a side."""
    s = SUPERSAMPLING
    height, width = picture.shape[0] // s, picture.shape[1] // s
    mean = picture.reshape(height, s, width, s, 3).mean(axis=(1, 3))
    return Image.fromarray(np.clip(mean + 0.5, 0, 255).astype(np.uint8))


def _checked(
    coord: np.ndarray, color: np.ndarray, normal: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    coord, color = np.asarray(coord, np.float64), np.asarray(color)
    normal = None if normal is None else np.asarray(normal, np.float64)
    n = len(coord)
    for what, x in (("coord", coord), ("color", color), ("normal", normal)):
        if x is not None and x.shape != (n, 3):
            raise ValueError(f"{what} is {x.shape}, expected {(n, 3)}")
    if color.dtype != np.uint8:
        raise ValueError(f"color is {color.dtype}, expected uint8")
    if not np.isfinite(coord).all():
        raise ValueError(f"{(~np.isfinite(coord)).any(axis=1).sum()} of {n} coordinates are NaN or infinite")
    return coord, color, normal
