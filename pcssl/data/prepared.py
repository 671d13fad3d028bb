"""The prepared layout, what training reads.

ROOT/<split>/<scene>/coord.npy (N, 3), color.npy (N, 3), normal.npy (N, 3), segment*.npy (N,), instance.npy (N,),
and origin.npy (3,) float64, what was subtracted from a scan far from zero; as `pcssl prepare` writes it, and as Pointcept's preprocessing scripts do; Pointcept's older .pth files and the
shards that `pcssl prepare pack` writes hold the same arrays (pcssl/data/storage.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from pcssl.data.formats import RawScan, complete, to_color
from pcssl.data.scene import Scene
from pcssl.data.storage import scenes_of
from pcssl.errors import UserError

_AGAIN = "prepare the scene again"


class PreparedDataset(Dataset):
    """The scenes of one split ("train") or several ("train+val"), as `Scene`s.

    Labels of any integer type become int32; the files' -1 stays "no label". A missing color gives
    grey and a missing normal normals estimated at every read, both named in `Scene.filled`.
    Raises UserError for a root or split that cannot be used, and when a scene is asked for that cannot.

    by_split: scenes of several splits share their names, which are then told apart: <split>_<scene>.
    names: the scenes' names, in order.
    """

    def __init__(self, root: str | Path, split: str, by_split: bool = False) -> None:
        self.root, self.split = Path(root), split
        if not self.root.is_dir():
            raise UserError(f"{root}: no such folder; make it with `pcssl prepare` (its --help lists the datasets)")
        self._scenes = [
            replace(scene, name=f"{part}_{scene.name}") if by_split else scene
            for part in split.split("+")
            for scene in scenes_of(self.root, part)
        ]
        self.names = [scene.name for scene in self._scenes]

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Scene:
        stored = self._scenes[index]
        arrays, place = stored.arrays(), stored.place
        if "coord" not in arrays:
            raise UserError(f"{place}: no coord; {_AGAIN}")
        points = len(arrays["coord"])
        color, normal = (_rows(arrays, name, points, place) for name in ("color", "normal"))
        raw = RawScan(
            coord=arrays["coord"].astype(np.float64),
            color=None if color is None else to_color(color, f"{place}: color"),
            normal=None if normal is None else normal.astype(np.float64),
            labels={name: _ids(arrays, name, points, place) for name in arrays if name.startswith("segment")},
            instance=_ids(arrays, "instance", points, place),
        )
        scene = complete(raw, place, name=stored.name)
        if "origin" in arrays:  # only of scans far from zero
            origin = arrays["origin"]
            if origin.shape != (3,) or not np.isfinite(origin).all():
                raise UserError(f"{place}: origin is {origin.tolist()}, expected three numbers in metres; {_AGAIN}")
            scene.origin = tuple(float(a + b) for a, b in zip(origin, scene.origin))
        return scene


def _rows(arrays: dict[str, np.ndarray], name: str, points: int, place: str) -> np.ndarray | None:
    array = arrays.get(name)
    if array is not None and len(array) != points:
        raise UserError(f"{place}: {name} has shape {array.shape} but coord has {points} points; {_AGAIN}")
    return array


def _ids(arrays: dict[str, np.ndarray], name: str, points: int, place: str) -> np.ndarray | None:
    """(N,) integers; a column (N, 1) is taken too, and of ScanNet++'s three candidates (N, 3) the first."""
    array = _rows(arrays, name, points, place)
    if array is None:
        return None
    columns = array.reshape(points, -1).shape[1] if points else 1
    if array.dtype.kind not in "iu" or columns not in (1, 3):
        raise UserError(f"{place}: {name} is {array.shape} {array.dtype}, expected one integer a point; {_AGAIN}")
    return array.reshape(points, -1)[:, 0]
