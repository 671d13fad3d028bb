"""Your own scans: files of any format that `read_scene` knows, in a folder.

    RAW/<scan>.ply ...                   all for training, or
    RAW/{train,val,test}/<scan>.ply ...  with splits
Labels: what the files hold under the names segment* or label*.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pcssl.data.formats import READERS, read_scene
from pcssl.data.layouts.files import require_folder
from pcssl.data.preparation import RawScene, Source
from pcssl.data.scene import Scene
from pcssl.errors import UserError

_SPLITS = ("train", "val", "test")


def find_folder(raw: str | Path, **reading: Any) -> Source:
    """The scans in `raw`, or in its folders train, val and test. reading: options of `read_scene`."""
    raw = require_folder(Path(raw), "your scans")
    splits = {split: raw / split for split in _SPLITS if (raw / split).is_dir()} or {"train": raw}
    recipe = " ".join(["folder 1", *(f"{key}={value}" for key, value in sorted(reading.items()))])
    source = Source("folder", recipe, raw, [])
    for split, folder in splits.items():
        files: dict[str, Path] = {}
        for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in READERS and p.is_file()):
            if files.setdefault(path.stem, path) != path:
                raise UserError(f"{path}: {files[path.stem].name} has the same name; rename one of them")
        source.scenes += [RawScene(name, split, (path,), partial(_read, path, reading)) for name, path in files.items()]
    if not source.scenes:
        raise UserError(f"{raw}: no scans found; expected files of {', '.join(READERS)} in it, or in its train and val")
    if len(splits) == 1:
        source.notes.append(
            f"all scans go to {next(iter(splits))}; folders named train, val and test in {raw} make splits"
        )
    return source


def _read(path: Path, reading: dict[str, Any]) -> Scene:
    scene = read_scene(path, **reading)
    # Only fields of these names are read back as labels.
    scene.labels = {
        name if name.startswith("segment") else f"segment_{name}": value for name, value in scene.labels.items()
    }
    return scene
