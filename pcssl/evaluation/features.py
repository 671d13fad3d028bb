"""A feature for every point of a scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.data.scene import Scene
from pcssl.data.views import Points, voxel_view
from pcssl.sparse import SparseTensor

CHUNK = 65_536  # points read at once: bounds memory at wide features


@dataclass(frozen=True)
class PointFeatures:
    """Multi-resolution features of a hierarchical backbone: all levels, read at the points, fine to coarse.

    backbone: SparseTensor -> levels. voxel_size: metres. levels: which, None = all.
    mode: how a level is read, see `pcssl.ops.interpolate`.
    """

    backbone: nn.Module
    voxel_size: float
    levels: tuple[int, ...] | None = None
    mode: str = "exact"

    @torch.no_grad()
    def chunks(self, scene: Scene) -> Iterator[tuple[slice, Tensor]]:
        """(rows, features (n, D) float32 on the backbone's device) over all points, in order.

        The backbone runs once, in eval mode. ValueError if the scene lacks colour or normals.
        """
        device = next(self.backbone.parameters()).device
        view = voxel_view(Points.from_scene(scene), self.voxel_size)
        coords = F.pad(view.index, (1, 0)).to(device)
        was_training = self.backbone.training
        self.backbone.eval()
        levels = self.backbone(SparseTensor.from_coords(view.features.to(device), coords))
        self.backbone.train(was_training)
        chosen = range(len(levels)) if self.levels is None else self.levels
        points = ((scene.coord - view.shift) / self.voxel_size).to(device)
        for start in range(0, len(points), CHUNK):
            part = points[start : start + CHUNK]
            batch = torch.zeros(len(part), dtype=torch.int64, device=device)
            read = [levels[i].geometry.interpolate(levels[i].features, part, batch, self.mode) for i in chosen]
            yield slice(start, start + len(part)), torch.cat(read, 1).float()

    def __call__(self, scene: Scene) -> Tensor:
        """(N, D) float32 features of all points, on the CPU."""
        return torch.cat([features.cpu() for _, features in self.chunks(scene)])


@dataclass(frozen=True)
class PointInputs:
    """The sanity floor: what a point knows by itself."""

    def chunks(self, scene: Scene) -> Iterator[tuple[slice, Tensor]]:
        features = point_inputs(scene)
        for start in range(0, len(features), CHUNK):
            yield slice(start, min(start + CHUNK, len(features))), features[start : start + CHUNK]


def point_inputs(scene: Scene) -> Tensor:
    """Colour / 127.5 - 1, normal, and height above the lowest point in metres: (N, 7) float32."""
    points = Points.from_scene(scene)
    height = scene.coord[:, 2:] - scene.coord[:, 2].min()
    return torch.cat([points.color / 127.5 - 1, points.normal, height], 1)


def sample_points(label: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Rows of `count` labelled points, every class of the scene with the same share as far as it has points.

    label: (N,) with -1 for none. Returns (<= count,) int64, sorted.
    """
    known = torch.nonzero(label >= 0)[:, 0]
    known = known[torch.randperm(len(known), generator=rng)]
    # Rank within the class: the lowest ranks of all classes fill the sample evenly.
    order = torch.argsort(label[known], stable=True)
    sizes = torch.unique_consecutive(label[known][order], return_counts=True)[1]
    rank = torch.arange(len(known)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    first = torch.argsort(rank, stable=True)[:count]
    return known[order[first]].sort().values


def collect(source: PointFeatures | PointInputs, scenes: Sequence[Scene], label: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (M, D) float32 and labels (M,) int64 of a class-aware sample of `count` points a scene."""
    features, labels = [], []
    for i, scene in enumerate(scenes):
        rows = sample_points(scene.labels[label], count, torch.Generator().manual_seed(seed * 1_000_003 + i))
        labels.append(scene.labels[label][rows].long())
        for part, values in source.chunks(scene):
            inside = rows[(rows >= part.start) & (rows < part.stop)] - part.start
            features.append(values[inside.to(values.device)].cpu())
    return torch.cat(features), torch.cat(labels)
