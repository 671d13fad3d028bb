"""ARKitScenes' 3DOD set: a phone's meshes, and boxes around furniture.

    3dod/{Training,Validation}/<video>/<video>_3dod_mesh.ply
    3dod/{Training,Validation}/<video>/<video>_3dod_annotation.json
Labels: segment (17 classes), from the smallest box that a point lies in; a box holds a bit of floor and wall too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pcssl.data.formats import complete, read_raw
from pcssl.data.layouts.files import read_json, require_folder
from pcssl.data.preparation import RawScene, Source
from pcssl.data.scene import Scene
from pcssl.errors import UserError

CLASSES = (
    "cabinet", "refrigerator", "shelf", "stove", "bed", "sink", "washer", "toilet", "bathtub", "oven", "dishwasher",
    "fireplace", "stool", "chair", "table", "tv_monitor", "sofa",
)  # fmt: skip
_SPLITS = {"Training": "train", "Validation": "val"}


def find_arkitscenes(raw: str | Path) -> Source:
    """The scans under `raw` or `raw`/3dod; Training becomes train, Validation val."""
    raw = require_folder(Path(raw), "ARKitScenes' 3dod folder")
    top = raw / "3dod" if (raw / "3dod").is_dir() else raw
    source = Source("arkitscenes", "arkitscenes 1", raw, [])
    for folder, split in _SPLITS.items():
        for scan in sorted((top / folder).glob("*")):
            mesh, boxes = (scan / f"{scan.name}_3dod_{what}" for what in ("mesh.ply", "annotation.json"))
            if scan.is_dir():
                boxes = boxes if boxes.exists() else None
                files = (mesh, boxes) if boxes else (mesh,)
                source.scenes.append(
                    RawScene(scan.name, split, files, partial(read_arkit_scan, scan.name, mesh, boxes))
                )
    if not source.scenes:
        raise UserError(f"{raw}: no scans found; expected 3dod/Training/<video>/<video>_3dod_mesh.ply in it")
    return source


def read_arkit_scan(name: str, mesh: Path, boxes: Path | None) -> Scene:
    raw = read_raw(mesh)
    raw.labels, raw.instance = {}, None
    if boxes:
        raw.labels["segment"], raw.instance = _label(raw.coord, _read_boxes(boxes))
    return complete(raw, mesh, name=name)


def _read_boxes(path: Path) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(class or -1, centre (3,), lengths (3,), axes as rows (3, 3)) of every box."""
    found = []
    try:
        for item in read_json(path)["data"]:
            box = item["segments"]["obbAligned"]
            label = item["label"].translate(str.maketrans(" -/", "___"))
            parts = (np.asarray(box[key], dtype=np.float64) for key in ("centroid", "axesLengths", "normalizedAxes"))
            centre, lengths, axes = (part.reshape(shape) for part, shape in zip(parts, (3, 3, (3, 3))))
            found.append((CLASSES.index(label) if label in CLASSES else -1, centre, lengths, axes))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not ARKitScenes' boxes ({error!r}); download it again") from error
    return found


def _label(
    coord: np.ndarray, boxes: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    segment, instance = np.full(len(coord), -1), np.full(len(coord), -1)
    # The largest first, so that the smallest stays.
    for number in sorted(range(len(boxes)), key=lambda i: -boxes[i][2].prod()):
        class_id, centre, lengths, axes = boxes[number]
        inside = (np.abs((coord - centre) @ axes.T) <= lengths / 2).all(axis=1)
        segment[inside], instance[inside] = class_id, number
    return segment, instance
