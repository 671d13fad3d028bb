"""The `data:` section of a run's config: what any data has, and what scenes have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pcssl.config import Component, Range
from pcssl.data.crops import SceneChange
from pcssl.data.transforms import AugmentConfig

Length = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True)
class SampleConfig:
    """dataset: which scenes or images. split: one split, or several joined by "+".
    batch_size: scenes or images of a batch. workers: loader processes, 0 = in the main one.
    max_bad: fraction of them that may be unusable (unreadable, empty, without a finite value); they are
        left out, each with a line that says why; with more the run stops.
    """

    dataset: Annotated[Any, Component("dataset")]
    split: str = "train"
    batch_size: Annotated[int, Range(1)] = 12
    workers: Annotated[int, Range(0)] = 4
    max_bad: Annotated[float, Range(0, 1)] = 0.05

    item: ClassVar[str] = "scene"
    prepare_on = "worker"
    max_voxels = None  # without annotation: no option, unless a subclass makes it one

    def change(self) -> SceneChange:
        """What happens to an item before it is sampled."""
        return SceneChange()

    def card(self) -> dict[str, Any]:
        """What a checkpoint should say of the input."""
        return {}


@dataclass(frozen=True)
class DataConfig(SampleConfig):
    """Scenes, besides what `SampleConfig` says.

    voxel_size: edge of the finest voxels, metres.
    max_voxels: instead of batch_size, as many scenes as have so many voxels in all, each scene counted once and
        before augmentation.
    crop: parts of scenes that make a sample, before any view: a sphere's radius or a box's (x, y, z), metres.
    mix: probability that a sample is two scenes in one place (Mix3D).
    prepare_on: where samples are made of scenes: by the workers on the CPU, or by the training process on its device,
        for which workers only read. "auto": on the device if that is a GPU and the method can.
    """

    voxel_size: Length = 0.02
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    max_voxels: Annotated[int, Range(1)] | None = None
    crop: Length | tuple[Length, Length, Length] | None = None
    mix: Annotated[float, Range(0, 1)] = 0.0
    prepare_on: Literal["auto", "worker", "device"] = "auto"

    def change(self) -> SceneChange:
        return SceneChange(self.crop, self.mix)

    def card(self) -> dict[str, Any]:
        return {"voxel_size": self.voxel_size, "inputs": "colour / 127.5 - 1, normal"}
