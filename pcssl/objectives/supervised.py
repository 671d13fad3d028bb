"""Training with labels: the ceiling that self-supervised features are measured against, and fine-tuning.

A linear layer on the same multi-resolution features that the probes read, trained together with the
backbone by cross-entropy at labelled points. From random weights it is the supervised ceiling; from a
pre-trained checkpoint (`init` of the run) with a lower rate on the backbone it is fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.data.masks import crop_around
from pcssl.data.scene import Scene
from pcssl.data.settings import DataConfig
from pcssl.data.transforms import augment
from pcssl.data.views import Points, VoxelView, voxel_view
from pcssl.objectives.base import Objective
from pcssl.registry import register
from pcssl.sparse import Geometry, SparseTensor


@dataclass(frozen=True)
class SupervisedConfig:
    """label: the field of `Scene.labels` to learn, with `classes` classes.
    points: random labelled points of a view that the loss is taken at.
    max_voxels: cap of a view; a larger one is cut around a random place.
    backbone_lr: rate of the backbone as a part of the optimizer's; below 1 for fine-tuning.
    """

    label: str = "segment20"
    classes: Annotated[int, Range(2)] = 20
    points: Annotated[int, Range(1)] = 16_384
    max_voxels: Annotated[int, Range(1)] = 240_000
    backbone_lr: Annotated[float, Range(0)] = 1.0


@dataclass(frozen=True)
class SupervisedSample:
    """A view, and labelled points of it: place (P, 3) in voxels, label (P,)."""

    view: VoxelView
    place: Tensor
    label: Tensor


@dataclass(frozen=True)
class SupervisedBatch:
    """coords: (N, 4) int32. features: (N, C). place: (P, 3) in voxels, batch: (P,), label: (P,) int64."""

    coords: Tensor
    features: Tensor
    place: Tensor
    batch: Tensor
    label: Tensor

    @property
    def num_voxels(self) -> int:
        return self.coords.shape[0]

    def to(self, device: torch.device) -> SupervisedBatch:
        return SupervisedBatch(*(x.to(device, non_blocking=True) for x in vars(self).values()))

    def pin_memory(self) -> SupervisedBatch:
        return SupervisedBatch(*(x.pin_memory() for x in vars(self).values()))


@dataclass(frozen=True)
class SupervisedSampler:
    config: SupervisedConfig
    data: DataConfig

    def __call__(self, scene: Scene, rng: torch.Generator) -> SupervisedSample:
        if self.config.label not in scene.labels:
            raise ValueError(f"it has no label {self.config.label!r}; it has {', '.join(scene.labels) or 'none'}")
        label = scene.labels[self.config.label].long()
        if int(label.max()) >= self.config.classes:
            raise ValueError(f"label {int(label.max())} is not below the {self.config.classes} classes")
        moved = augment(Points.from_scene(scene), self.data.augment, rng)
        view = voxel_view(moved, self.data.voxel_size)
        kept = label >= 0
        if len(view.index) > self.config.max_voxels:
            centre = view.origin[int(torch.randint(len(view.origin), (1,), generator=rng))]
            inside = crop_around(view.origin, centre, self.config.max_voxels)
            view = VoxelView(view.index[inside], view.features[inside], view.origin[inside], view.inverse, view.shift)
            kept = kept & inside[view.inverse]
        rows = torch.nonzero(kept)[:, 0]
        rows = rows[torch.randperm(len(rows), generator=rng)[: self.config.points].to(rows.device)]
        return SupervisedSample(view, (moved.coord[rows] - view.shift) / self.data.voxel_size, label[rows])


@register("objective", "supervised", config=SupervisedConfig)
class Supervised(Objective):
    """Works with any backbone."""

    samples_on_device = True

    def __init__(self, config: SupervisedConfig, backbone: nn.Module, data: DataConfig, total_steps: int):
        super().__init__()
        self.config, self.data = config, data
        self.network = backbone
        # Normalised by running statistics, so that in evaluation it is linear in the features.
        self.head = segmentation_head(sum(backbone.channels), config.classes)

    def sampler(self) -> Callable[[Scene, torch.Generator], SupervisedSample]:
        return SupervisedSampler(self.config, self.data)

    def collate(self, samples: list[SupervisedSample]) -> SupervisedBatch:
        return SupervisedBatch(
            coords=torch.cat([F.pad(s.view.index, (1, 0), value=b) for b, s in enumerate(samples)]),
            features=torch.cat([s.view.features for s in samples]),
            place=torch.cat([s.place for s in samples]),
            batch=torch.cat([torch.full_like(s.label, b) for b, s in enumerate(samples)]),
            label=torch.cat([s.label for s in samples]),
        )

    def backbone(self) -> nn.Module:
        return self.network

    def lr_factor(self, name: str) -> float:
        return self.config.backbone_lr if name.startswith("network.") else 1.0

    def forward(self, batch: SupervisedBatch, step: int) -> dict[str, Tensor]:
        levels = self.network(SparseTensor(batch.features, Geometry(batch.coords)))
        if len(batch.label) < 2:  # running statistics need two points; such a step has no gradient but stays valid
            return {"loss": 0 * levels[0].features.sum()}
        read = [level.geometry.interpolate(level.features, batch.place, batch.batch) for level in levels]
        logits = self.head(torch.cat(read, 1).float())
        loss = F.cross_entropy(logits, batch.label)
        accuracy = (logits.argmax(1) == batch.label).float().mean()
        return {"loss": loss, "accuracy": accuracy}


def segmentation_head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, classes))
