"""The prepared layout: one folder of npy files a scene, by split. What training reads.

ROOT/<split>/<scene>/coord.npy (N, 3), color.npy (N, 3), normal.npy (N, 3), segment*.npy (N,), instance.npy (N,)
as `pcssl prepare` writes it, and as Pointcept's preprocessing scripts do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from pcssl.data.formats import RawScan, complete, to_color
from pcssl.data.scene import Scene
from pcssl.errors import UserError


class PreparedDataset(Dataset):
    """The scenes of one split ("train") or several ("train+val"), as `Scene`s.

    Labels of any integer type become int32; the files' -1 stays "no label". A missing color.npy gives
    grey and a missing normal.npy normals estimated at every read, both named in `Scene.filled`.
    Raises UserError for a root, split or scene that cannot be used.

    names: the scenes' names, in order. folders: their folders.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = Path(root), split
        if not self.root.is_dir():
            raise UserError(f"{root}: no such folder; make it with `pcssl prepare scannet --raw RAW --out {root}`")
        self.folders = [folder for part in split.split("+") for folder in self._scenes_of(part)]
        self.names = [folder.name for folder in self.folders]

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Scene:
        folder = self.folders[index]
        files = {path.stem: path for path in sorted(folder.glob("*.npy"))}
        coord = _load(files["coord"]).astype(np.float64) if "coord" in files else None
        if coord is None:
            raise UserError(f"{folder}: no coord.npy; prepare the scene again")
        labels = {name: _load_ids(path, len(coord)) for name, path in files.items() if name.startswith("segment")}
        color, normal = (_load_rows(files[n], len(coord)) if n in files else None for n in ("color", "normal"))
        raw = RawScan(
            coord=coord,
            color=None if color is None else to_color(color, files["color"]),
            normal=None if normal is None else normal.astype(np.float64),
            labels=labels,
            instance=_load_ids(files["instance"], len(coord)) if "instance" in files else None,
        )
        return complete(raw, folder, name=folder.name)

    def _scenes_of(self, split: str) -> list[Path]:
        folders = _scene_folders(self.root / split) if split else []
        if folders:
            for folder in folders:
                if not (folder / "coord.npy").exists():
                    raise UserError(f"{folder}: no coord.npy; prepare the scene again, or remove the folder")
            return folders
        if split and (self.root / split).is_dir():
            old = any((self.root / split).glob("*.pth"))
            why = "only .pth files of an older layout" if old else "no scene folders"
            raise UserError(f"{self.root / split}: {why} in it; prepare the split again with `pcssl prepare`")
        present = [
            folder.name
            for folder in sorted(self.root.iterdir())
            if any((scene / "coord.npy").exists() for scene in _scene_folders(folder))
        ]
        raise UserError(f"{self.root}: no split {split!r}; it has {', '.join(present) or 'none'}")


def _scene_folders(folder: Path) -> list[Path]:
    """The scenes of a split, sorted, without those being written (`<scene>.tmp-<pid>`)."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and ".tmp-" not in p.name and not p.name.startswith("."))


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a npy file, or damaged ({error}); prepare the scene again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim == 0:
        raise UserError(f"{path}: does not hold an array of numbers; prepare the scene again")
    return array


def _load_rows(path: Path, points: int) -> np.ndarray:
    array = _load(path)
    if len(array) != points:
        raise UserError(f"{path}: has shape {array.shape} but coord.npy has {points} points; prepare the scene again")
    return array


def _load_ids(path: Path, points: int) -> np.ndarray:
    """(N,) integers; a column (N, 1) is taken too."""
    array = _load_rows(path, points).reshape(points, -1)
    if array.dtype.kind not in "iu" or array.shape[1] != 1:
        raise UserError(f"{path}: {array.shape} {array.dtype}, expected one integer a point; prepare the scene again")
    return array[:, 0]
