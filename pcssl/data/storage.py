"""Where the arrays of prepared scenes lie: a folder of npy files a scene, a .pth file a scene, or packed shards.

Each kind has a function that lists the scenes of a split, or gives None where the split is not of its kind.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from pcssl.errors import UserError

_AGAIN = "prepare the scene again"


class StoredScene(Protocol):
    """The arrays of one scene; name: the scene's; place: for messages."""

    name: str
    place: str

    def arrays(self) -> dict[str, np.ndarray]:
        """Name ("coord", "segment20", ...) -> array of numbers; UserError for what cannot be read."""


def scenes_of(root: Path, split: str) -> Sequence[StoredScene]:
    """The scenes of a split, sorted by their folders' names; UserError if there are none."""
    for kind in (_packed_scenes, _folder_scenes, _pth_scenes):
        scenes = kind(root, split) if split else None
        if scenes:
            return scenes
    if split and (root / split).is_dir():
        raise UserError(f"{root / split}: no scenes in it; prepare the split again with `pcssl prepare`")
    raise UserError(f"{root}: no split {split!r}; it has {', '.join(splits_of(root)) or 'none'}")


def splits_of(root: Path) -> list[str]:
    """The splits that are there, sorted."""
    folders = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    packs = [path.name.removesuffix(_INDEX) for path in root.glob(f"*{_INDEX}")]
    return sorted(packs + [name for name in folders if _has_scenes(root / name)])


def _has_scenes(folder: Path) -> bool:
    patterns = ("*/coord.npy", "*.pth", "*/*/coord.npy", "*/*.pth")
    return any(next(folder.glob(pattern), None) for pattern in patterns)


# ---- folders


@dataclass(frozen=True)
class FolderScene:
    folder: Path
    name: str

    @property
    def place(self) -> str:
        return str(self.folder)

    def arrays(self) -> dict[str, np.ndarray]:
        return {path.stem: _load_npy(path) for path in sorted(self.folder.glob("*.npy"))}


def _folder_scenes(root: Path, split: str) -> list[FolderScene] | None:
    """ROOT/<split>/<scene>/*.npy, or with one folder between (<house>/<room>, named <house>_<room>)."""
    scenes = []
    for folder in _folders(root / split):
        inner = [] if (folder / "coord.npy").exists() else [f for f in _folders(folder) if (f / "coord.npy").exists()]
        if inner:
            scenes += [FolderScene(room, f"{folder.name}_{room.name}") for room in inner]
        elif not any(folder.glob("*.pth")):
            scenes.append(FolderScene(folder, folder.name))
    return scenes or None


def _folders(parent: Path) -> list[Path]:
    """Sorted, without those being written (`<scene>.tmp-<pid>`)."""
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.is_dir() and ".tmp-" not in p.name and not p.name.startswith("."))


def _load_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a npy file, or damaged ({error}); {_AGAIN}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim == 0:
        raise UserError(f"{path}: does not hold an array of numbers; {_AGAIN}")
    return array


# ---- .pth files: Pointcept's older layout

_PTH_NAMES = ((re.compile(r"semantic_gt(\d*)"), r"segment\1"), (re.compile(r"instance_gt"), "instance"))


@dataclass(frozen=True)
class PthScene:
    path: Path
    name: str

    @property
    def place(self) -> str:
        return str(self.path)

    def arrays(self) -> dict[str, np.ndarray]:
        content = load_pth(self.path)
        if not isinstance(content, dict):
            raise UserError(f"{self.path}: holds no dict of arrays; prepare the scene again")
        found = {}
        for key, value in content.items():
            array = np.asarray(value) if isinstance(value, (np.ndarray, torch.Tensor)) else None
            if array is not None and array.ndim and array.dtype.kind in "fiu":
                for pattern, name in _PTH_NAMES:
                    key = pattern.sub(name, key) if pattern.fullmatch(key) else key
                # Some scripts saved labels as floats.
                is_label = key.startswith(("segment", "instance"))
                found[key] = array.astype(np.int64) if is_label and array.dtype.kind == "f" else array
        return found


def _pth_scenes(root: Path, split: str) -> list[PthScene] | None:
    """ROOT/<split>/<scene>.pth, or <house>/<room>.pth, named <house>_<room>."""
    folder = root / split
    files = sorted([*folder.glob("*.pth"), *folder.glob("*/*.pth")])
    return [PthScene(path, "_".join(path.relative_to(folder).with_suffix("").parts)) for path in files] or None


def load_pth(path: Path) -> object:
    """What torch.save wrote, as far as it is tensors, numpy arrays and plain values; nothing in the file is run."""
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except MemoryError:
        raise
    except Exception as error:  # torch reads damaged bytes as whatever they happen to say
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: not a torch file of plain arrays, or damaged ({why or type(error).__name__})"
        ) from error


def _numpy_globals() -> list:
    """What an array needs to be unpickled, under the names of numpy 1 and 2."""
    parts = np.array(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    names = {"_reconstruct": parts[0], "scalar": parts[1]}
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    functions = [(function, f"{module}.{name}") for module in modules for name, function in names.items()]
    dtypes = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name not in ("ObjectDType", "VoidDType")]
    return [*functions, np.ndarray, np.dtype, *dtypes]


# ---- packed shards: tar files of the npy files, and an index of where each begins

_INDEX = ".pack.json"
_VERSION = 1


@dataclass(frozen=True)
class PackedScene:
    """offsets: array -> byte where its npy file begins in the shard."""

    shard: Path
    name: str
    offsets: dict[str, int]

    @property
    def place(self) -> str:
        return f"{self.shard}: {self.name}"

    def arrays(self) -> dict[str, np.ndarray]:
        # Opened for every scene: a handle that loader workers share would share its position too.
        try:
            with open(self.shard, "rb") as file:
                return {name: self._read(file, offset) for name, offset in sorted(self.offsets.items())}
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{self.place}: cannot be read ({error}); copy or pack the shard again") from error

    @staticmethod
    def _read(file: io.BufferedReader, offset: int) -> np.ndarray:
        file.seek(offset)
        return np.load(file, allow_pickle=False)


def _packed_scenes(root: Path, split: str) -> list[PackedScene] | None:
    path = root / f"{split}{_INDEX}"
    if not path.exists():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        sizes = index["shards"]
        scenes = [PackedScene(root / scene["shard"], scene["name"], scene["offsets"]) for scene in index["scenes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the index of a pack, or damaged ({error!r}); pack again") from error
    if index.get("version") != _VERSION:
        raise UserError(f"{path}: is of version {index.get('version')}, this pcssl reads {_VERSION}; pack again")
    for name, size in sizes.items():
        if not (root / name).exists() or (root / name).stat().st_size != size:
            raise UserError(f"{root / name}: is missing, or not of its {size} bytes; copy or pack it again")
    return scenes


def pack(root: Path, out: Path, *, shard_bytes: int = 1 << 30) -> Iterator[tuple[str, int, int]]:
    """Write every split of a prepared folder as tar shards with an index; yields (split, scenes done, of).

    The shards are plain tar files of <split>/<scene>/<array>.npy, which `tar xf` turns into folders again.
    shard_bytes: a shard is closed when it has grown to this. `out` appears only when it is complete; UserError
    if it is there already, or for a scene that cannot be read.
    """
    splits = splits_of(root) if root.is_dir() else []
    if not splits:
        raise UserError(f"{root}: no prepared scenes there; prepare them with `pcssl prepare`")
    if out.exists():
        raise UserError(f"{out}: is there already; choose another folder, or remove it")
    part = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        for split in splits:
            yield from _pack_split(scenes_of(root, split), split, part, shard_bytes)
        for path in root.iterdir():  # manifests and lists of classes
            if path.is_file() and not path.name.startswith("."):
                shutil.copy2(path, part / path.name)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _pack_split(
    scenes: Sequence[StoredScene], split: str, out: Path, shard_bytes: int
) -> Iterator[tuple[str, int, int]]:
    listed, shards, tar = [], {}, None
    try:
        for done, scene in enumerate(scenes, 1):
            if tar is None:
                name = f"{split}-{len(shards):05d}.tar"
                tar = tarfile.open(out / name, "w", format=tarfile.USTAR_FORMAT)
            offsets = {
                key: _append(tar, f"{split}/{scene.name}/{key}.npy", array) for key, array in scene.arrays().items()
            }
            listed.append({"name": scene.name, "shard": name, "offsets": offsets})
            if tar.offset >= shard_bytes or done == len(scenes):
                tar.close()
                shards[name], tar = (out / name).stat().st_size, None
            yield split, done, len(scenes)
    finally:
        if tar is not None:
            tar.close()
    index = {"version": _VERSION, "split": split, "shards": shards, "scenes": listed}
    (out / f"{split}{_INDEX}").write_text(json.dumps(index, separators=(",", ":")), encoding="utf-8")


def _append(tar: tarfile.TarFile, name: str, array: np.ndarray) -> int:
    """Add an array as a npy file; the byte where that begins."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    member = tarfile.TarInfo(name)
    member.size = buffer.tell()
    buffer.seek(0)
    tar.addfile(member, buffer)
    blocks = -(-member.size // tarfile.BLOCKSIZE)
    return tar.offset - blocks * tarfile.BLOCKSIZE
