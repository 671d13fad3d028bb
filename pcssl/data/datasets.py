"""Datasets that a config can name: where their scenes lie, and what their classes are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pcssl.config import Range
from pcssl.data.prepared import PreparedDataset
from pcssl.data.rooms import generate_rooms
from pcssl.data.scannet import prepare_scannet
from pcssl.data.scannet_classes import SCANNET20_NAMES, SCANNET200_NAMES
from pcssl.errors import UserError
from pcssl.registry import register

_CLASSES = {"segment20": SCANNET20_NAMES, "segment200": SCANNET200_NAMES}


class SceneSource:
    """A dataset in the prepared layout.

    root: the folder. label: the field of `Scene.labels` to score. classes: their names.
    """

    def __init__(self, root: str, label: str | None, classes: tuple[str, ...]):
        self.root, self.label, self.classes = Path(root), label, classes

    def scenes(self, split: str) -> PreparedDataset:
        """The scenes of one split, or of several joined by "+"; UserError when they are not there."""
        return PreparedDataset(self.root, split)


@dataclass(frozen=True)
class ScanNetConfig:
    """ScanNet v2, prepared. label: the benchmark of 20 or of 200 classes."""

    root: str = "data/scannet"
    label: Literal["segment20", "segment200"] = "segment20"


@register("dataset", "scannet", config=ScanNetConfig)
def scannet(config: ScanNetConfig) -> SceneSource:
    if not Path(config.root).is_dir():
        raise UserError(
            f"ScanNet is not at {config.root}. To get it: sign the terms of use at http://www.scan-net.org and "
            "download the scenes (_vh_clean_2.ply, .aggregation.json, _vh_clean_2.0.010000.segs.json, .txt and the "
            "label map; `python tools/prepare.py scannet --help` lists the commands), then run\n"
            f"    python tools/prepare.py scannet --raw FOLDER --out {config.root}\n"
            "Without it, pre-training runs at once on generated rooms:\n"
            "    python tools/train.py configs/msm_rooms.yaml"
        )
    return SceneSource(config.root, config.label, _CLASSES[config.label])


@dataclass(frozen=True)
class FolderConfig:
    """Your own scenes in the prepared layout; label: a field to score, if there is one."""

    root: str
    label: str | None = None
    classes: tuple[str, ...] = ()


@register("dataset", "folder", config=FolderConfig)
def folder(config: FolderConfig) -> SceneSource:
    return SceneSource(config.root, config.label, config.classes)


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
    # Both steps skip what is there, and refuse a folder made with other settings.
    generate_rooms(root / "raw", scenes=config.scenes, val=config.val, seed=config.seed, workers=workers)
    summary = prepare_scannet(root / "raw", root, workers=workers)
    if summary.failed:
        raise UserError(f"{root}: {len(summary.failed)} generated rooms could not be prepared; remove the folder")
    return SceneSource(config.root, "segment20", SCANNET20_NAMES)
