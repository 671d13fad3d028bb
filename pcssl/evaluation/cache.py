"""Features on disk, so that a backbone runs once a scene however many heads are tried on it.

    FOLDER/<key>/sample/{features,labels,coord,offset,scene,even,weight}.npy   rows of sampled points, scene after scene
    FOLDER/<key>/sample/meta.json                                       how many: it is written last
    FOLDER/<key>/scenes/<number>.npz                                    the levels of whole scenes
    FOLDER/<key>/scores/<key>.json                                      what a head was scored with

Of the scenes that heads are fitted on, a fixed sample of points is kept; of the scenes they are
scored on, every level on its voxels, from which features of all points are read again.
Features are float16. Everything is written under a temporary name and renamed: what a stopped
run has finished is found by the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pcssl.data.manifest import alone
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation.features import PointFeatures, SceneLevels, even_points, point_inputs, sample_points
from pcssl.evaluation.instances import instance_offsets
from pcssl.evaluation.lists import FewLists
from pcssl.sparse import SparseTensor

EVEN = 200  # random points a scene that are kept beside the class-aware ones, for probes with few labels
_FIELDS = ("features", "labels", "coord", "offset", "scene", "even", "weight")


@dataclass(frozen=True)
class Sample:
    """Sampled points of many scenes; features stay on disk until their rows are taken.

    features: (M, D) float16. labels: (M,) int64. coord: (M, 3) metres. offset: (M, 3) metres to the middle
    of the point's instance, NaN where it has none. scene: (M,) int64 number of the scene. even: (M,) int64, the place of a point in its scene's
    class-blind draw, -1 for points of the class-aware one, -2 for those that the benchmark's lists name. weight: (M,) float32, how many labelled points of its scene
    a row stands for: with these the class-aware sample means the same as all points. listed: title -> rows of the benchmark's lists.
    """

    features: Tensor
    labels: Tensor
    coord: Tensor
    offset: Tensor
    scene: Tensor
    even: Tensor
    weight: Tensor
    listed: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, aware: bool = True) -> Tensor:
        """(m,) int64 rows of the class-aware sample, or of the class-blind one."""
        return torch.nonzero(self.even == -1 if aware else self.even >= 0)[:, 0]

    def draw(self, rows: Tensor, count: int, seed: int) -> Tensor:
        """At most `count` of these rows, as likely as the points they stand for: a class-blind part.

        A row is drawn once at most, so many rows cannot be class-blind: those of large classes would all be taken and the rest filled
        with rare ones. The count is cut so that at most a tenth of the points stand behind rows that should come more than once.
        """
        if not len(rows):
            return rows
        rng = torch.Generator().manual_seed(seed)
        order = rows[torch.randperm(len(rows), generator=rng)]
        weight = self.weight[order].double()
        heavy = weight.sort().values
        limit = heavy[torch.searchsorted(heavy.cumsum(0), 0.9 * heavy.sum()).clamp(max=len(heavy) - 1)]
        count = min(count, int(weight.sum() / limit))
        # Systematic sampling: rows in random order take the part of a line that is their chance, marks lie at distance 1.
        line = (count * weight / weight.sum()).clamp(max=1).cumsum(0)
        marks = torch.arange(round(float(line[-1]))) + torch.rand(1, generator=rng, dtype=torch.float64)
        return order[torch.searchsorted(line, marks).clamp(max=len(line) - 1).unique()]


class InputFeatures:
    """The sanity floor as a source: colour, normal and height, no backbone."""

    channels = (7,)
    key = "inputs"

    def sample(self, scene: Scene, rows: Tensor) -> Tensor:
        return point_inputs(scene)[rows]

    def chunks(self, scene: Scene) -> Iterator[tuple[slice, Tensor]]:
        yield slice(0, len(scene)), point_inputs(scene)


class BackboneFeatures:
    """Multi-resolution features of a backbone as a source. levels: those that are read. channels: of each of them."""

    def __init__(self, features: PointFeatures):
        self.features = features
        every = tuple(range(len(features.backbone.channels)))
        self.levels = every if features.levels is None else tuple(features.levels)
        self.channels = tuple(features.backbone.channels[i] for i in self.levels)
        some = () if self.levels == every else (self.levels,)
        self.key = weights_key(features.backbone, features.voxel_size, features.mode, features.inputs, *some)

    def sample(self, scene: Scene, rows: Tensor) -> Tensor:
        levels = self.features.encode(scene)
        coord = scene.coord[rows]
        return torch.cat([values.cpu() for _, values in levels.chunks(coord, self.levels)]) if len(rows) else torch.zeros(0, sum(self.channels))

    def chunks(self, scene: Scene) -> Iterator[tuple[slice, Tensor]]:
        return self.features.encode(scene).chunks(scene.coord, self.levels)


def weights_key(module: nn.Module, *settings: Any) -> str:
    """Changes with any weight or setting, also those of the module that no weight tells (heads, windows)."""
    digest = hashlib.sha256(repr((type(module).__name__, getattr(module, "config", None), settings)).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_key(path: str | Path) -> str:
    """Changes with the content of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def data_keys(scenes: Sequence[Scene], label: str, classes: int) -> tuple[str, str]:
    """What a result says of its scenes, and what files made from them are kept under.

    The first changes with their names, order, sizes and labels, and is the same on every machine; the second with
    every byte of them. UserError for a scene without the label, or with one that is not in -1..classes-1, and when no point has one.
    """
    said = hashlib.sha256(label.encode())
    content = hashlib.sha256()
    labelled = 0
    for scene in scenes:
        if label not in scene.labels:
            raise UserError(f"scene {scene.name} has no {label}; a probe needs the labels of every scene")
        known = scene.labels[label]
        if len(known) and int(known.max()) >= classes:
            raise UserError(f"scene {scene.name}: {label} is up to {int(known.max())}, but the dataset names {classes} classes")
        if len(known) and int(known.min()) < -1:
            raise UserError(f"scene {scene.name}: {label} is {int(known.min())} somewhere; points without a label have -1")
        labelled += int((known >= 0).sum())
        histogram = torch.bincount(known.long() + 1).tolist()
        said.update(repr((scene.name, len(scene), histogram, scene.coord[:1].tolist())).encode())
        for x in (scene.coord, scene.color, scene.normal, known, scene.instance):
            content.update(b"none" if x is None else x.contiguous().numpy())
    if not labelled:
        raise UserError(f"no point of these {len(scenes)} scenes ({scenes[0].name}, ...) has a {label}; a probe needs labels")
    return said.hexdigest(), said.hexdigest()[:12] + content.hexdigest()[:12]


class FeatureCache:
    """Features of one source on the scenes of one dataset. folder: of all caches. count: sampled points a scene, None = all labelled ones.
    lists: of the benchmark, whose points are kept, too."""

    def __init__(
        self, folder: Path, source: BackboneFeatures | InputFeatures, train_key: str, val_key: str, count: int | None,
        lists: FewLists | None = None,
    ):  # fmt: skip
        self.source, self.lists = source, lists
        listed = [lists.key] if lists else []
        key = hashlib.sha256("|".join((source.key, train_key, val_key, str(count), str(EVEN), "weighted", *listed)).encode()).hexdigest()[:20]
        self.folder, self.count = folder / key, count
        try:
            (self.folder / "scenes").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot keep features in {self.folder}: {error.strerror}; choose another folder with --cache") from error

    def sample(self, scenes: Sequence[Scene], label: str, progress: Callable[[int, int], None]) -> Sample:
        """The sampled points of these scenes: read from disk, or computed and kept."""
        done = self.folder / "sample" / "meta.json"
        if not done.exists():
            with alone(self.folder):
                if not done.exists():
                    self._compute(scenes, label, progress, done)
        arrays = {name: np.load(self.folder / "sample" / f"{name}.npy", mmap_mode="c") for name in self._fields}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        bits = tensors.pop("lists", None)
        sample = Sample(**{name: x if name == "features" else x.clone() for name, x in tensors.items()})
        return sample if bits is None else replace(sample, listed=self._listed(sample, bits, scenes))

    @property
    def _fields(self) -> tuple[str, ...]:
        return (*_FIELDS, "lists") if self.lists else _FIELDS

    def _listed(self, sample: Sample, bits: Tensor, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        """Title -> rows, of every list."""
        names = getattr(scenes, "names", None) or [scene.name for scene in scenes]
        aware = sample.rows()
        found = {title: aware[torch.isin(sample.scene[aware], self.lists.chosen(title, names))] for title in self.lists.scenes}
        return found | {title: torch.nonzero(bits >> bit & 1)[:, 0] for bit, title in enumerate(self.lists.points)}

    def _compute(self, scenes: Sequence[Scene], label: str, progress: Callable[[int, int], None], done: Path) -> None:
        (self.folder / "parts").mkdir(exist_ok=True)
        for i in range(len(scenes)):
            path = self.folder / "parts" / f"{i}.npz"
            if not path.exists():
                _save(path, lambda file, i=i: np.savez(file, **self._part(scenes[i], i, label)))
            progress(i + 1, len(scenes))
        temporary = self.folder / f".sample.tmp-{os.getpid()}"
        try:
            self._join(len(scenes), temporary)
            shutil.rmtree(self.folder / "sample", ignore_errors=True)
            os.replace(temporary, done.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(self.folder / "parts")

    def _part(self, scene: Scene, number: int, label: str) -> dict[str, np.ndarray]:
        rng = torch.Generator().manual_seed(number)
        known = scene.labels[label]
        aware = sample_points(known, self.count, rng)
        even = even_points(known, EVEN, rng)
        none = torch.zeros(0, dtype=torch.int64)
        listed, bits = self.lists.rows(scene, known) if self.lists else (none, none)
        rows = torch.cat([aware, even, listed])
        draw = torch.cat([torch.full((len(aware),), -1), torch.arange(len(even)), torch.full((len(listed),), -2)])
        values = {
            "features": half(self.source.sample(scene, rows), scene.name),
            "labels": known[rows].long(),
            "coord": scene.coord[rows],
            "offset": _offsets(scene)[rows],
            "scene": torch.full((len(rows),), number),
            "even": draw,
            "weight": torch.cat([represented(known, aware), *(represented(known, x, by_class=False) for x in (even, listed))]),
            "lists": torch.cat([torch.zeros(len(aware) + len(even), dtype=torch.int64), bits]),
        }
        return {name: values[name].numpy() for name in self._fields}

    def _join(self, count: int, folder: Path) -> None:
        """One file a field out of all parts, a part in memory at a time."""
        folder.mkdir(exist_ok=True)
        parts = [self.folder / "parts" / f"{i}.npz" for i in range(count)]
        sizes = []
        for path in parts:
            with np.load(path) as part:
                sizes.append(len(part["labels"]))
        for name in self._fields:
            # Written, not mapped: on a full disk a write fails, where a mapped page would kill the process.
            with _named(folder / f"{name}.npy"), open(folder / f"{name}.npy", "wb") as file:
                for i, path in enumerate(parts):
                    with np.load(path) as part:
                        rows = part[name]
                    if i == 0:
                        about = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": (sum(sizes), *rows.shape[1:])}
                        np.lib.format.write_array_header_1_0(file, about)
                    file.write(np.ascontiguousarray(rows).data.cast("B") if rows.size else b"")
        (folder / "meta.json").write_text(json.dumps({"scenes": count, "points": sum(sizes)}))

    def chunks(self, scene: Scene, number: int) -> Iterator[tuple[slice, Tensor]]:
        """(rows, features) over all points of a scene that is scored; `number` names it in the cache."""
        if isinstance(self.source, InputFeatures):
            yield from self.source.chunks(scene)
            return
        path = self.folder / "scenes" / f"{number}.npz"
        if not path.exists():
            levels = self.source.features.encode(scene)
            _save(path, lambda file: np.savez(file, **pack_levels(levels, scene.name)))
        yield from unpack_levels(path, self.source.features.mode).chunks(scene.coord, self.source.levels)

    def score(self, key: str) -> Any:
        """What `keep_score` was given under this key, None if nothing."""
        with contextlib.suppress(FileNotFoundError, ValueError):  # not there, or empty after a crash of the machine
            return json.loads(self._score_file(key).read_text())

    def keep_score(self, key: str, value: Any) -> None:
        """value: anything that JSON holds."""
        path = self._score_file(key)
        path.parent.mkdir(exist_ok=True)
        _save(path, lambda file: file.write(json.dumps(value).encode()))

    def _score_file(self, key: str) -> Path:
        return self.folder / "scores" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"


def represented(label: Tensor, rows: Tensor, by_class: bool = True) -> Tensor:
    """(len(rows),) float32: labelled points per sampled one, of the same class or of all."""
    if not by_class:
        return torch.full((len(rows),), int((label >= 0).sum()) / max(len(rows), 1))
    taken = label[rows].long()
    counts, drawn = torch.bincount(label[label >= 0].long()), torch.bincount(taken)
    return (counts[taken] / drawn[taken]).float()


def _offsets(scene: Scene) -> Tensor:
    none = scene.instance is None
    return torch.full_like(scene.coord, torch.nan) if none else instance_offsets(scene.coord, scene.instance)


def pack_levels(scene: SceneLevels, name: str) -> dict[str, np.ndarray]:
    arrays = {"shift": scene.shift.numpy(), "voxel_size": np.float64(scene.voxel_size)}
    for i, level in enumerate(scene.levels):
        arrays[f"coords{i}"] = level.coords.cpu().numpy()
        arrays[f"features{i}"] = half(level.features.cpu(), name).numpy()
        arrays[f"stride{i}"] = np.int64(level.stride)
    return arrays


def unpack_levels(path: Path, mode: str) -> SceneLevels:
    with np.load(path) as file:
        count = sum(name.startswith("stride") for name in file.files)
        levels = [
            SparseTensor.from_coords(
                torch.from_numpy(file[f"features{i}"]).float(), torch.from_numpy(file[f"coords{i}"]), int(file[f"stride{i}"])
            )
            for i in range(count)
        ]
        return SceneLevels(levels, torch.from_numpy(file["shift"]), float(file["voxel_size"]), mode)


def half(features: Tensor, name: str) -> Tensor:
    """To float16; UserError where that cannot hold a value."""
    if not bool((features.abs() <= 65504).all()):
        raise UserError(f"scene {name!r}: features are not finite, or too large for float16; the model has diverged")
    return features.half()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """A failed write knows no file; its error should say which disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _save(path: Path, write: Callable[[Any], None]) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with _named(path), open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
