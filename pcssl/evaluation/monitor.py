"""A small probe during training: a fixed few scenes and points, in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation.features import PointFeatures, sample_points
from pcssl.evaluation.linear import LinearProbe
from pcssl.evaluation.metrics import confusion_matrix, scores
from pcssl.evaluation.neighbors import NearestNeighborProbe


class SmallProbe:
    """Call it with a backbone and a step for {"probe/linear": mIoU, "probe/1-nn": mIoU}.

    Fitted on `points` class-aware points of each of the first training scenes, scored on as many of each
    of the first val scenes: comparable within a run, not with the full protocol. UserError without labels.
    """

    def __init__(
        self, train: Sequence[Scene], val: Sequence[Scene], label: str, classes: int, voxel_size: float,
        scenes: tuple[int, int] = (8, 4), points: int = 1000,
    ):  # fmt: skip
        self.label, self.classes, self.voxel_size = label, classes, voxel_size
        self.train, self.val = (self._chosen(s, n, points) for s, n in zip((train, val), scenes))

    def _chosen(self, scenes: Sequence[Scene], count: int, points: int) -> list[tuple[Scene, torch.Tensor]]:
        kept = [scenes[i] for i in range(min(count, len(scenes)))]
        for scene in kept:
            if self.label not in scene.labels:
                raise UserError(f"scene {scene.name} has no {self.label}; a small probe during training needs labels")
        if not any(bool((scene.labels[self.label] >= 0).any()) for scene in kept):
            raise UserError(f"no point of {', '.join(scene.name for scene in kept)} has a {self.label}; a small probe needs labels")
        return [(s, sample_points(s.labels[self.label], points, torch.Generator().manual_seed(i))) for i, s in enumerate(kept)]

    def __call__(self, backbone: nn.Module, step: int) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            x, y = self._features(backbone, self.train)
            query, known = self._features(backbone, self.val)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            linear = LinearProbe.fit(x, y, self.classes, epochs=20, min_steps=200, device=x.device)
        nearest = NearestNeighborProbe.fit(x, y, self.classes, whiten=True, device=x.device)
        found = {"linear": linear(query), "1-nn": nearest(query)[0]}
        return {f"probe/{name}": scores(confusion_matrix(p, known, self.classes)).miou for name, p in found.items()}

    def _features(self, backbone: nn.Module, scenes: list[tuple[Scene, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        source = PointFeatures(backbone, self.voxel_size)
        features = [source.encode(scene).read(scene.coord[rows]) for scene, rows in scenes]
        labels = [scene.labels[self.label][rows].long() for scene, rows in scenes]
        return torch.cat(features), torch.cat(labels)
