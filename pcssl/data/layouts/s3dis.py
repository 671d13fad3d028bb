"""S3DIS (Stanford3dDataset_v1.2 or its Aligned_Version): text files of points, one an object.

    Area_<1..6>/<room>/Annotations/<class>_<number>.txt     lines of x y z red green blue
Labels: segment (13 classes); an object's file is an instance. Without faces, normals are estimated.
"""

from __future__ import annotations

import io
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from pcssl.data.formats import RawScan, complete
from pcssl.data.layouts.files import require_folder
from pcssl.data.preparation import RawScene, Source
from pcssl.data.scene import Scene
from pcssl.errors import UserError

CLASSES = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
    "clutter",
)  # fmt: skip
COLORS = (
    (0, 255, 0), (0, 0, 255), (0, 255, 255), (255, 255, 0), (255, 0, 255), (100, 100, 255), (200, 200, 100),
    (170, 120, 200), (255, 0, 0), (200, 100, 100), (10, 200, 100), (200, 200, 200), (50, 50, 50),
)  # fmt: skip
AREAS = tuple(f"Area_{i}" for i in range(1, 7))

# In the published files a few bytes have lost their bit 0x20: "185\x00187" was "185 187", "103.0\x100000" was
# "103.000000", "-9.1\x160" was "-9.160". Of the control bytes only white space belongs there.
_MENDED = bytes(byte | 0x20 if byte < 0x20 and byte not in b"\t\n\r" else byte for byte in range(256))


def find_s3dis(raw: str | Path) -> Source:
    """The rooms under `raw`/Area_*, prepared as <area>/<room>. UserError if there are none."""
    raw = require_folder(Path(raw), "S3DIS's Area_1 .. Area_6")
    rooms = sorted(path for path in raw.glob("Area_*/*") if (path / "Annotations").is_dir())
    if not rooms:
        raise UserError(f"{raw}: no rooms found; expected Area_1/<room>/Annotations/<object>.txt in it")
    source = Source("s3dis", "s3dis 1", raw, [])
    for room in rooms:
        files = tuple(sorted((room / "Annotations").glob("*.txt")))
        if files:
            source.scenes.append(RawScene(room.name, room.parent.name, files, partial(read_s3dis_room, room, files)))
        else:
            source.notes.append(f"{room}: left out, its Annotations are empty")
    absent = [area for area in AREAS if not any(room.parent.name == area for room in rooms)]
    if absent:
        source.notes.append(f"{raw}: no rooms of {', '.join(absent)}")
    return source


def read_s3dis_room(room: Path, files: tuple[Path, ...]) -> Scene:
    """A room from its objects' files. Other objects than the 13 classes (stairs) are clutter."""
    tables = [read_points(path) for path in files]
    points = np.concatenate(tables)
    counts = [len(table) for table in tables]
    kinds = [path.stem.split("_")[0] for path in files]
    ids = [CLASSES.index(kind) if kind in CLASSES else CLASSES.index("clutter") for kind in kinds]
    raw = RawScan(
        coord=points[:, :3],
        color=points[:, 3:].clip(0, 255).astype(np.uint8),
        labels={"segment": np.repeat(ids, counts)},
        instance=np.repeat(np.arange(len(files)), counts),
    )
    return complete(raw, room, name=room.name)


def read_points(path: Path) -> np.ndarray:
    """(N, 6) float64 of one object; bytes known to be broken are mended with a warning.

    UserError that names the line for anything else that is no six numbers.
    """
    found = path.read_bytes()
    text = found.translate(_MENDED)
    if text != found:
        broken = sum(a != b for a, b in zip(text, found))
        warnings.warn(f"{path}: mended {broken} bytes that had lost a bit", stacklevel=2)
    if not text.strip():
        return np.empty((0, 6))
    try:
        values = np.loadtxt(io.BytesIO(text), comments=None, ndmin=2, encoding="latin-1")
        if values.shape[1] == 6:
            return values
    except ValueError:
        pass
    raise UserError(f"{path}: line {_first_bad_line(text)}: not six numbers x y z r g b; get the file again")


def _first_bad_line(text: bytes) -> int:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            good = len([float(word) for word in line.split()]) in (0, 6)
        except ValueError:
            good = False
        if not good:
            return number
    return 0
