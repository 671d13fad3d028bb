"""The `data:` section of a run's config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pcssl.config import Component, Range
from pcssl.data.transforms import AugmentConfig


@dataclass(frozen=True)
class DataConfig:
    """dataset: which scenes. split: one split, or several joined by "+".
    voxel_size: edge of the finest voxels, metres. workers: loader processes, 0 = in the main one.
    max_bad: fraction of the scenes that may be unusable (unreadable, empty, without a finite point); they are
        left out, each with a line that says why; with more the run stops.
    """

    dataset: Annotated[Any, Component("dataset")]
    split: str = "train"
    voxel_size: Annotated[float, Range(0, low_open=True)] = 0.02
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch_size: Annotated[int, Range(1)] = 12
    workers: Annotated[int, Range(0)] = 4
    max_bad: Annotated[float, Range(0, 1)] = 0.05
