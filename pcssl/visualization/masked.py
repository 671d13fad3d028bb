"""What Masked Scene Modeling shows its student of a scene, and what the student is to predict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from pcssl.config import from_dict
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.models.checkpoints import load_state
from pcssl.objectives.msm import MSM, MSMBatch, level_means
from pcssl.sparse import Geometry, SparseTensor
from pcssl.training.checkpoint import load_checkpoint
from pcssl.training.settings import RunConfig


@dataclass(frozen=True)
class MaskedScene:
    """One draw of the objective's sampler, read at the points of the scene.

    taken, color: per view (N,) bool, in the part of the scene that the view takes, and (N, 3) uint8, as its augmentation
    made them.
    crop, hidden: (N,) bool, in the student's crop of the first view, and hidden in it.
    targets: per level, finest first, (N, C) float32 of the teacher on the second view, NaN where it has none.
    asked: per level (N,) bool, where the student is to predict them.
    """

    taken: list[Tensor]
    color: list[Tensor]
    crop: Tensor
    hidden: Tensor
    targets: list[Tensor]
    asked: list[Tensor]


def load_objective(path: str | Path) -> MSM:
    """The Masked Scene Modeling objective of a checkpoint, student and teacher; UserError if it holds none."""
    content = load_checkpoint(path)
    known = {field.name for field in fields(RunConfig)}  # a run's file also says how it is to be probed
    config = from_dict({k: v for k, v in content["config"].items() if k in known}, RunConfig, str(path))
    if config.objective.name != "msm":
        raise UserError(f"{path} was trained by {config.objective.name!r}; only msm hides parts and has targets")
    objective = config.objective.build(config.model.build(), config.data, content["total_steps"])
    load_state(objective, content["objective"], str(path))
    return objective.eval()


@torch.no_grad()
def mask_scene(objective: MSM, scene: Scene, seed: int = 0) -> MaskedScene:
    """Draw the two views of a training step, of the whole scene, and run the teacher. It needs colour and normals."""
    device = next(objective.parameters()).device
    sample = objective.sampler()(scene, torch.Generator().manual_seed(seed))
    batch = objective.collate([sample]).to(device)
    edge = objective.data.voxel_size
    voxels, taken = zip(*(_nearest(view.origin, scene.coord, edge) for view in sample.views))
    crop, hidden = (part[voxels[0]] & taken[0] for part in (sample.crop[0], sample.hidden[0]))
    rgb = [view.features[voxel, :3] for view, voxel in zip(sample.views, voxels)]
    color = [((c + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for c in rgb]

    targets, asked = [], []
    for places, features, wanted, stride in _levels(objective, batch):
        row, there = _nearest(places[0], scene.coord, edge * stride)
        asked.append(wanted[row] & there & crop)
        row, there = _nearest(places[1], scene.coord, edge * stride)
        targets.append(torch.where(there[:, None], features[row], torch.nan))
    return MaskedScene(list(taken), color, crop, hidden, targets, asked)


def _levels(objective: MSM, batch: MSMBatch) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor, Tensor, int]]:
    """Per level: places of the student's and of the teacher's voxels, teacher features, where the student is asked, stride."""
    shown = slice(None) if objective.config.teacher_view == "whole" else batch.crop
    whole = Geometry(batch.coords[shown])
    targets = objective.teacher(SparseTensor(batch.features[shown], whole))
    predictions, seen = objective.predict(batch)
    mine = level_means(predictions[0].geometry, batch.origin[batch.crop], len(predictions))
    theirs = level_means(whole, batch.origin[shown], len(targets))
    for level, (prediction, target) in enumerate(zip(predictions, targets)):
        first, second = prediction.batch == 0, target.batch == 1
        places = mine[level][first].cpu(), theirs[level][second].cpu()
        yield places, target.features[second].float().cpu(), objective.asked(seen[level][first]).cpu(), target.stride


def _nearest(places: Tensor, coord: Tensor, edge: float) -> tuple[Tensor, Tensor]:
    """For every point (N, 3) the nearest of the places (M, 3): its row, and whether it is within a voxel of this edge.

    By place rather than by index: an augmented voxel may be 10 % smaller or larger, and bent.
    """
    away, row = cKDTree(places.numpy()).query(coord.numpy())
    return torch.from_numpy(row), torch.from_numpy(away <= 1.2 * 3**0.5 * edge)
