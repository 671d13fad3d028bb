"""Datasets that a config can name: where their scenes lie, and what their classes are."""

from __future__ import annotations

import colorsys
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pcssl.config import Range
from pcssl.data.layouts import arkitscenes, matterport3d, s3dis, scannetpp, structured3d
from pcssl.data.layouts.scannet import find_scannet
from pcssl.data.limited import Limit, LimitedScenes
from pcssl.data.manifest import alone, has_manifest
from pcssl.data.preparation import prepare
from pcssl.data.prepared import PreparedDataset
from pcssl.data.rooms import generate_rooms
from pcssl.data.scannet_classes import (
    SCANNET20_COLORS,
    SCANNET20_NAMES,
    SCANNET200_COLORS,
    SCANNET200_GROUPS,
    SCANNET200_NAMES,
)
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.registry import register

Colors = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class SceneSource:
    """A dataset in a prepared layout.

    root: the folder. label: the field of `Scene.labels` to score, None if there is none. classes: their names.
    colors: of the classes, 0..255. groups: name -> its classes, for scores of their own.
    splits: names that stand for other splits ("train" -> "Area_1+Area_2"). limit: of the split "train".
    by_split: scenes have names that are their own in their folder only.
    """

    root: Path
    label: str | None = None
    classes: tuple[str, ...] = ()
    colors: Colors = ()
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    limit: Limit | None = None
    by_split: bool = False

    def __post_init__(self) -> None:
        if not self.colors:
            object.__setattr__(self, "colors", distinct_colors(len(self.classes)))

    def parts(self, split: str) -> list[str]:
        """The folders of a split."""
        return [name for part in split.split("+") for name in self.splits.get(part, part).split("+")]

    def scenes(self, split: str) -> Sequence[Scene]:
        """The scenes of one split, or of several joined by "+"; UserError when they are not there."""
        data = PreparedDataset(self.root, "+".join(self.parts(split)), self.by_split)
        return LimitedScenes(data, self.limit, self.label) if self.limit and split == "train" else data


def distinct_colors(count: int) -> Colors:
    """Colours that differ, for classes without a customary palette."""
    hues = (i * 0.618034 % 1 for i in range(count))  # the golden ratio spreads any number of them
    parts = (colorsys.hsv_to_rgb(hue, 0.5 + 0.25 * (i % 3), 0.95 - 0.2 * (i % 2)) for i, hue in enumerate(hues))
    return tuple(tuple(round(255 * part) for part in rgb) for rgb in parts)


def _require(root: str, title: str, command: str, where: str) -> Path:
    if not Path(root).is_dir():
        raise UserError(
            f"{title} is not at {root}. {where} (`python tools/prepare.py {command} --help` says what to download), "
            f"then run\n    python tools/prepare.py {command} --raw FOLDER --out {root}\n"
            "Without it, pre-training runs at once on generated rooms:\n"
            "    python tools/train.py configs/msm_rooms.yaml"
        )
    return Path(root)


@dataclass(frozen=True)
class ScanNetConfig:
    """ScanNet v2, prepared. label: the benchmark of 20 or of 200 classes.

    limit: "scenes-P" trains on P percent of the scenes, "points-K" with the labels of K points a scene.
    limit_file: the data-efficient benchmark's list for it; without one a list of our own is drawn, by limit_seed.
    """

    root: str = "data/scannet"
    label: Literal["segment20", "segment200"] = "segment20"
    limit: str | None = None
    limit_file: str | None = None
    limit_seed: Annotated[int, Range(0)] = 0


@register("dataset", "scannet", config=ScanNetConfig)
def scannet(config: ScanNetConfig) -> SceneSource:
    root = _require(config.root, "ScanNet", "scannet", "To get it, sign the terms of use at http://www.scan-net.org")
    limit = Limit.parse(config.limit, config.limit_file, config.limit_seed) if config.limit else None
    if limit:
        print(f"ScanNet: limited to {limit}", file=sys.stderr)
    if config.label == "segment20":
        return SceneSource(root, "segment20", SCANNET20_NAMES, SCANNET20_COLORS, limit=limit)
    return SceneSource(root, "segment200", SCANNET200_NAMES, SCANNET200_COLORS, SCANNET200_GROUPS, limit=limit)


@dataclass(frozen=True)
class S3DISConfig:
    """S3DIS, prepared. test_area: the split "val" is this area and "train" the other five; 5 is the usual split,
    1 to 6 one after the other are the 6-fold one. The areas have the names Area_1 .. Area_6 as well.
    """

    root: str = "data/s3dis"
    test_area: Annotated[int, Range(1, 6)] = 5


@register("dataset", "s3dis", config=S3DISConfig)
def s3dis_(config: S3DISConfig) -> SceneSource:
    root = _require(config.root, "S3DIS", "s3dis", "To get it, agree to its terms on Stanford's page")
    val = f"Area_{config.test_area}"
    splits = {"train": "+".join(area for area in s3dis.AREAS if area != val), "val": val}
    return SceneSource(root, "segment", s3dis.CLASSES, s3dis.COLORS, splits=splits, by_split=True)


@dataclass(frozen=True)
class ScanNetPPConfig:
    """ScanNet++, prepared. The names of the classes are read from root/top100.txt."""

    root: str = "data/scannetpp"


@register("dataset", "scannetpp", config=ScanNetPPConfig)
def scannetpp_(config: ScanNetPPConfig) -> SceneSource:
    root = _require(config.root, "ScanNet++", "scannetpp", "To get it, apply at https://kaldir.vc.in.tum.de/scannetpp")
    path = root / scannetpp.CLASS_FILE
    if not path.exists():
        raise UserError(f"{path}: no such file; copy metadata/semantic_benchmark/{path.name} of ScanNet++ there")
    return SceneSource(root, "segment", tuple(path.read_text(encoding="utf-8").splitlines()))


@dataclass(frozen=True)
class Structured3DConfig:
    """Structured3D's rooms, prepared."""

    root: str = "data/structured3d"


@register("dataset", "structured3d", config=Structured3DConfig)
def structured3d_(config: Structured3DConfig) -> SceneSource:
    where = "To get it, fill in the form at https://structured3d-dataset.org"
    root = _require(config.root, "Structured3D", "structured3d", where)
    return SceneSource(root, "segment", structured3d.CLASSES)


@dataclass(frozen=True)
class Matterport3DConfig:
    """Matterport3D's regions, prepared; the classes are ScanNet's 20 and ceiling."""

    root: str = "data/matterport3d"


@register("dataset", "matterport3d", config=Matterport3DConfig)
def matterport3d_(config: Matterport3DConfig) -> SceneSource:
    where = "To get it, sign the terms of use at https://niessner.github.io/Matterport"
    root = _require(config.root, "Matterport3D", "matterport3d", where)
    return SceneSource(root, "segment21", matterport3d.CLASSES, matterport3d.COLORS)


@dataclass(frozen=True)
class ARKitScenesConfig:
    """ARKitScenes' meshes, prepared; the labels come from boxes."""

    root: str = "data/arkitscenes"


@register("dataset", "arkitscenes", config=ARKitScenesConfig)
def arkitscenes_(config: ARKitScenesConfig) -> SceneSource:
    where = "To get it, use the scripts of https://github.com/apple/ARKitScenes"
    root = _require(config.root, "ARKitScenes", "arkitscenes", where)
    # Pointcept's script keeps the names of the dataset's own folders.
    splits = {
        s: own
        for s, own in (("train", "Training"), ("val", "Validation"))
        if not (root / s).is_dir() and (root / own).is_dir()
    }
    return SceneSource(root, "segment", arkitscenes.CLASSES, splits=splits)


@dataclass(frozen=True)
class FolderConfig:
    """Your own scenes in the prepared layout; label: a field to score, if there is one, and its classes' names."""

    root: str
    label: str | None = None
    classes: tuple[str, ...] = ()


@register("dataset", "folder", config=FolderConfig)
def folder(config: FolderConfig) -> SceneSource:
    return SceneSource(Path(config.root), config.label, config.classes)


@dataclass(frozen=True)
class RoomsConfig:
    """Generated rooms with ScanNet's 20 classes, made on first use. scenes, of which `val` for validation."""

    root: str = "data/rooms"
    scenes: Annotated[int, Range(2)] = 60
    val: Annotated[int, Range(1)] = 12
    seed: Annotated[int, Range(0)] = 0


@register("dataset", "rooms", config=RoomsConfig)
def rooms(config: RoomsConfig) -> SceneSource:
    root, workers = Path(config.root), os.cpu_count() or 1
    with alone(root):  # several runs may begin at once
        # Both steps skip what is there, and refuse a folder made with other settings.
        generate_rooms(root / "raw", scenes=config.scenes, val=config.val, seed=config.seed, workers=workers)
        summary = prepare(find_scannet(root / "raw"), root, workers=workers, overwrite=not has_manifest(root))
    if summary.failed:
        raise UserError(f"{root}: {len(summary.failed)} generated rooms could not be prepared; remove the folder")
    return SceneSource(root, "segment20", SCANNET20_NAMES, SCANNET20_COLORS)
