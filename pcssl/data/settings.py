"""The `data:` section of a run's config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pcssl.config import Component, Range
from pcssl.data.transforms import AugmentConfig

Length = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True)
class DataConfig:
    """dataset: which scenes. split: one split, or several joined by "+".
    voxel_size: edge of the finest voxels, metres. workers: loader processes, 0 = in the main one.
    batch_size: scenes of a batch. max_voxels: instead, as many scenes as have so many voxels in all, each
        scene counted once and before augmentation.
    crop: parts of scenes that make a sample, before any view: a sphere's radius or a box's (x, y, z), metres.
    mix: probability that a sample is two scenes in one place (Mix3D).
    prepare_on: where samples are made of scenes: by the workers on the CPU, or by the training process on its device,
        for which workers only read. "auto": on the device if that is a GPU and the method can.
    max_bad: fraction of the scenes that may be unusable (unreadable, empty, without a finite point); they are
        left out, each with a line that says why; with more the run stops.
    """

    dataset: Annotated[Any, Component("dataset")]
    split: str = "train"
    voxel_size: Length = 0.02
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch_size: Annotated[int, Range(1)] = 12
    max_voxels: Annotated[int, Range(1)] | None = None
    crop: Length | tuple[Length, Length, Length] | None = None
    mix: Annotated[float, Range(0, 1)] = 0.0
    workers: Annotated[int, Range(0)] = 4
    prepare_on: Literal["auto", "worker", "device"] = "auto"
    max_bad: Annotated[float, Range(0, 1)] = 0.05
