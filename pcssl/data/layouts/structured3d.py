"""Structured3D: a point cloud of every room from its panorama.

    [Structured3D/]scene_<number>/2D_rendering/<room>/panorama/camera_xyz.txt       camera, millimetres
                                                     .../full/depth.png            16 bit, distance in millimetres
                                                     .../full/rgb_rawlight.png, semantic.png (NYU40 ids)
Labels: segment (25 classes). Normals are estimated. The perspective views are not read.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pcssl.data.formats import RawScan, complete
from pcssl.data.layouts.files import read_text, require_folder
from pcssl.data.preparation import RawScene, Source
from pcssl.data.scene import Scene
from pcssl.errors import UserError

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "picture", "desk", "shelves",
    "curtain", "dresser", "pillow", "mirror", "ceiling", "refrigerator", "television", "nightstand", "sink", "lamp",
    "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip
_NYU40_IDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 17, 18, 19, 22, 24, 25, 32, 34, 35, 38, 39, 40)
_NAME = re.compile(r"scene_(\d{5})")
_NO_READING = (0, 65535)


def find_structured3d(raw: str | Path) -> Source:
    """The rooms under `raw`, as scene_<number>_room_<room>; the dataset's splits go by the number."""
    raw = require_folder(Path(raw), "Structured3D's scene_00000 .. scene_03499")
    top = raw / "Structured3D" if (raw / "Structured3D").is_dir() else raw
    source = Source("structured3d", "structured3d 1", raw, [])
    for folder in sorted(top.glob("scene_*/2D_rendering/*/panorama")):
        house, room = folder.parents[2].name, folder.parents[0].name
        number = _NAME.fullmatch(house)
        if number:
            split = "train" if int(number[1]) < 3000 else "val" if int(number[1]) < 3250 else "test"
            name = f"{house}_room_{room}"
            source.scenes.append(
                RawScene(name, split, tuple(_files(folder).values()), partial(read_room, name, folder))
            )
    if not source.scenes:
        raise UserError(
            f"{raw}: no panoramas found; expected scene_00000/2D_rendering/<room>/panorama; unpack the zip files"
        )
    return source


def _files(folder: Path) -> dict[str, Path]:
    images = {"depth": "depth.png", "color": "rgb_rawlight.png", "label": "semantic.png"}
    return {"camera": folder / "camera_xyz.txt"} | {key: folder / "full" / name for key, name in images.items()}


def read_room(name: str, folder: Path) -> Scene:
    files = _files(folder)
    try:
        camera = np.array(read_text(files["camera"]).split(), dtype=np.float64) / 1000
    except ValueError:
        camera = np.empty(0)
    if camera.shape != (3,):
        raise UserError(f"{files['camera']}: not the three numbers of a camera; get it again")
    depth, color, label = (_image(files[key]) for key in ("depth", "color", "label"))
    if depth.ndim != 2 or label.shape != depth.shape or color.shape[:2] != depth.shape or color.ndim != 3:
        raise UserError(
            f"{folder}: depth {depth.shape}, colours {color.shape} and labels {label.shape} do not fit; get them again"
        )
    seen = ~np.isin(depth, _NO_READING)
    coord = depth[seen, None] / 1000 * directions(*depth.shape)[seen] + camera
    class_of = np.full(256, -1)
    class_of[list(_NYU40_IDS)] = np.arange(len(_NYU40_IDS))
    raw = RawScan(
        coord, color[seen][:, :3].astype(np.uint8), labels={"segment": class_of[label[seen].astype(np.uint8)]}
    )
    return complete(raw, folder, name=name)


def directions(height: int, width: int) -> np.ndarray:
    """(height, width, 3) where the pixels of a panorama look: its middle along -y, to the right towards -x, z up."""
    turn = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    rise = (0.5 - (np.arange(height) + 0.5) / height)[:, None] * np.pi
    x, y = -np.sin(turn) * np.cos(rise), -np.cos(turn) * np.cos(rise)
    return np.stack([x, y, np.broadcast_to(np.sin(rise), x.shape)], axis=-1)


def _image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); get it again") from error
