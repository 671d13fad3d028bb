"""The probe: trained features beside random weights and input features, on one dataset."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch

from pcssl.config import Range
from pcssl.data.datasets import SceneSource
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation.features import PointFeatures, PointInputs, collect
from pcssl.evaluation.linear import LinearProbe
from pcssl.evaluation.metrics import Scores, confusion_matrix, scores
from pcssl.evaluation.neighbors import NearestNeighborProbe
from pcssl.evaluation.pretrained import PretrainedModel

Count = Annotated[int, Range(1)]


@dataclass(frozen=True)
class ProbeConfig:
    """train_split, val_split: scenes to fit and to score on.
    train_points: class-aware sample a training scene, for both probes.
    val_points: random points a val scene that the nearest neighbour is scored on, 0 = all; the
        linear probe is always scored on all points.
    database: most points that the nearest neighbour searches.
    seeds: for the samples and the linear layer; scores are mean and standard deviation over them.
    """

    train_split: str = "train"
    val_split: str = "val"
    train_points: Count = 2000
    val_points: Annotated[int, Range(0)] = 0
    database: Count = 100_000
    neighbors: tuple[Count, ...] = (1, 20)
    epochs: Count = 30
    seeds: Count = 3


def probe(
    model: PretrainedModel, data: SceneSource, config: ProbeConfig, *, floors: bool = True, report: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Linear probe and nearest neighbour of a model, of random weights and of input features.

    Returns plain values: {"protocol": ..., "classes": [...], "results": {source: {head: {"miou":
    {"mean", "std"}, ..., "iou": [per class]}}}}. Random weights are drawn anew for every seed.
    Raises UserError when the dataset has no labels, or the val split none.
    """
    if data.label is None:
        raise UserError(f"{data.root} names no label to score; set label and classes of the dataset")
    say = report or (lambda line: print(line, file=sys.stderr, flush=True))
    train, val = _labelled(data, config.train_split), _labelled(data, config.val_split)
    sources: dict[str, Callable[[int], Any]] = {
        "trained": lambda seed: PointFeatures(model.backbone, model.voxel_size, mode=model.mode)
    }
    if floors:
        sources["random weights"] = lambda seed: PointFeatures(
            model.with_random_weights(seed).backbone, model.voxel_size, mode=model.mode
        )
        sources["input features"] = lambda seed: PointInputs()
    results: dict[str, Any] = {}
    for name, make in sources.items():
        per_seed = []
        for seed in range(config.seeds):
            begin = time.monotonic()
            per_seed.append(_score(make(seed), train, val, data, config, seed, next(model.backbone.parameters()).device))
            linear, nearest = per_seed[-1]["linear"], per_seed[-1][f"{config.neighbors[0]}-nn"]
            say(
                f"probe: {name}, seed {seed}: linear mIoU {100 * linear.miou:.1f}, nearest neighbour "
                f"{100 * nearest.miou:.1f} ({time.monotonic() - begin:.0f} s)"
            )
        results[name] = {head: _summary([run[head] for run in per_seed]) for head in per_seed[0]}
    return {"protocol": asdict(config), "label": data.label, "classes": list(data.classes), "results": results}


def _score(source, train, val, data: SceneSource, config: ProbeConfig, seed: int, device) -> dict[str, Scores]:
    classes = len(data.classes)
    features, labels = collect(source, train, data.label, config.train_points, seed)
    linear = LinearProbe.fit(features, labels, classes, epochs=config.epochs, seed=seed, device=device)
    rng = torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(features), generator=rng)[: config.database]
    nearest = NearestNeighborProbe.fit(features[kept], labels[kept], classes, device=device)
    heads = ["linear", *(f"{k}-nn" for k in config.neighbors)]
    confusion = {head: torch.zeros(classes, classes, dtype=torch.int64) for head in heads}
    for scene in val:
        label = scene.labels[data.label]
        asked = _asked(label, config.val_points, rng)
        for part, values in source.chunks(scene):
            confusion["linear"] += confusion_matrix(linear(values), label[part], classes)
            rows = torch.nonzero(asked[part])[:, 0]
            for k, found in zip(config.neighbors, nearest(values[rows.to(values.device)], config.neighbors)):
                confusion[f"{k}-nn"] += confusion_matrix(found, label[part][rows], classes)
    return {head: scores(matrix) for head, matrix in confusion.items()}


def _asked(label: torch.Tensor, count: int, rng: torch.Generator) -> torch.Tensor:
    """(N,) bool: which points the nearest neighbour is scored on."""
    known = label >= 0
    if count == 0 or int(known.sum()) <= count:
        return known
    rows = torch.nonzero(known)[:, 0]
    asked = torch.zeros_like(known)
    asked[rows[torch.randperm(len(rows), generator=rng)[:count]]] = True
    return asked


def _labelled(data: SceneSource, split: str) -> Sequence[Scene]:
    scenes = data.scenes(split)
    if data.label not in scenes[0].labels:
        raise UserError(f"{data.root}: scene {scenes[0].name} of split {split!r} has no {data.label}; a probe needs labels")
    return scenes


def _summary(runs: list[Scores]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key in ("miou", "macc", "oacc"):
        values = torch.tensor([getattr(run, key) for run in runs], dtype=torch.float64)
        out[key] = {"mean": float(values.mean()), "std": float(values.std(correction=0)), "runs": values.tolist()}
    iou = torch.tensor([run.iou for run in runs], dtype=torch.float64).nanmean(0)
    out["iou"] = [None if torch.isnan(v) else float(v) for v in iou]
    return out
