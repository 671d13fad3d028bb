"""Instances: linear heads on frozen features, grouping as PointGroup does, ScanNet's average precision.

Jiang et al., "PointGroup: Dual-Set Point Grouping for 3D Instance Segmentation", CVPR 2020. A linear layer
gives every point a class, another one an offset to the middle of its instance. Points of a class that lie
close together, where they are and where their offsets move them, are proposals; a proposal's score is the mean
probability of its class (PointGroup learns a network for that; here nothing but linear layers is trained).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcssl.evaluation.linear import LinearProbe
from pcssl.sparse import current_engine

STUFF = ("wall", "floor")  # classes without instances in ScanNet's benchmark
OVERLAPS = tuple(np.round(np.arange(0.5, 0.95, 0.05), 2).tolist())  # AP is the mean over these
CROWD = 64  # points of a cell that look for neighbours
MIN_POINTS = 100  # of a ground-truth instance that counts, as in ScanNet's benchmark


@dataclass(frozen=True)
class Proposals:
    """label: (P,) int64. score: (P,) 0..1. mask: (P, N) bool."""

    label: Tensor
    score: Tensor
    mask: Tensor


@dataclass(frozen=True)
class InstanceProbe:
    """semantic: the linear probe. offset: (D, 3) and (3,), on features standardised as the probe does.
    things: classes with instances. radius: metres within which points belong together. smallest: points of a proposal.
    """

    semantic: LinearProbe
    offset: tuple[Tensor, Tensor]
    things: tuple[int, ...]
    radius: float = 0.04
    smallest: int = 50

    @classmethod
    def fit(
        cls, features: Tensor, labels: Tensor, offsets: Tensor, classes: list[str], *, rows: Tensor, radius: float,
        weights: Tensor | None = None, epochs: int = 30, lovasz: bool = False, seed: int = 0, device: torch.device | str = "cpu",
    ) -> InstanceProbe:  # fmt: skip
        """features: (M, D); labels: (M,); offsets: (M, 3) metres to the middle of the instance, NaN where there is
        none; rows: to use of them. The offsets are fitted by ridge regression."""
        semantic = LinearProbe.fit(
            features, labels, len(classes), rows=rows, weights=weights, epochs=epochs, lovasz=lovasz, seed=seed, device=device,
        )  # fmt: skip
        things = tuple(i for i, name in enumerate(classes) if name not in STUFF)
        thing = torch.isin(labels[rows], torch.tensor(things)) & offsets[rows].isfinite().all(1)
        offset = _ridge(semantic, features, offsets, rows[thing], device)
        return cls(semantic, offset, things, radius)

    @torch.no_grad()
    def points(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(n, D) features -> class probabilities (n, K) and offsets (n, 3)."""
        x = (features.to(self.semantic.mean.device) - self.semantic.mean) / self.semantic.std
        return self.semantic.layer(x).softmax(1), x @ self.offset[0] + self.offset[1]

    @torch.no_grad()
    def group(self, coord: Tensor, probability: Tensor, offset: Tensor) -> Proposals:
        """Proposals of one scene: coord (N, 3) metres, and what `points` gave."""
        label = probability.argmax(1)
        found: list[tuple[int, Tensor]] = []
        for place in (coord, coord + offset):
            for kind in self.things:
                rows = torch.nonzero(label == kind)[:, 0]
                for part in clusters(place[rows], self.radius, self.smallest):
                    found.append((kind, rows[part]))
        if not found:
            empty = torch.zeros(0, device=coord.device)
            return Proposals(empty.long(), empty, torch.zeros(0, len(coord), dtype=torch.bool, device=coord.device))
        mask = torch.zeros(len(found), len(coord), dtype=torch.bool, device=coord.device)
        for i, (_, rows) in enumerate(found):
            mask[i, rows] = True
        score = torch.stack([probability[rows, kind].mean() for kind, rows in found])
        kinds = torch.tensor([kind for kind, _ in found], device=coord.device)
        kept = suppress(mask, score, 0.3)
        return Proposals(kinds[kept], score[kept], mask[kept])


def _ridge(probe: LinearProbe, features: Tensor, offsets: Tensor, rows: Tensor, device) -> tuple[Tensor, Tensor]:
    channels = len(probe.mean)
    gram = torch.zeros(channels, channels, dtype=torch.float64, device=device)
    moment = torch.zeros(channels, 3, dtype=torch.float64, device=device)
    total_x, total_y = torch.zeros(channels, dtype=torch.float64, device=device), torch.zeros(3, dtype=torch.float64, device=device)
    for part in rows.split(65_536):
        x = ((features[part].to(device).float() - probe.mean) / probe.std).double()
        y = offsets[part].to(device).double()
        gram, moment, total_x, total_y = gram + x.T @ x, moment + x.T @ y, total_x + x.sum(0), total_y + y.sum(0)
    count = max(len(rows), 1)
    mean_x, mean_y = total_x / count, total_y / count
    gram = gram / count - mean_x[:, None] * mean_x + 1e-2 * torch.eye(channels, dtype=torch.float64, device=device)
    weight = torch.linalg.solve(gram, moment / count - mean_x[:, None] * mean_y)
    return weight.float(), (mean_y - mean_x @ weight).float()


def instance_offsets(coord: Tensor, instance: Tensor) -> Tensor:
    """(N, 3) from every point to the middle of its instance's points; NaN where it has none (-1)."""
    known = instance >= 0
    ids, place = torch.unique(instance[known], return_inverse=True)
    total = torch.zeros(len(ids), 3).index_add_(0, place, coord[known])
    middle = total / torch.bincount(place, minlength=len(ids))[:, None].clamp(min=1)
    out = torch.full_like(coord, torch.nan)
    out[known] = middle[place] - coord[known]
    return out


def clusters(coord: Tensor, radius: float, smallest: int) -> list[Tensor]:
    """Rows of every group of points that steps of at most `radius` connect, with `smallest` points or more."""
    if len(coord) < smallest:
        return []
    # Points of a cell with a diagonal below the radius are connected. Of a crowded cell, as when points move to the middle of
    # their instance, some look for neighbours for all: pairs would grow with the square of the crowd.
    cell = torch.unique((coord / (0.57 * radius)).floor(), dim=0, return_inverse=True)[1]
    order = torch.argsort(cell, stable=True)
    sizes = torch.bincount(cell)
    begin = sizes.cumsum(0) - sizes
    rank = torch.arange(len(cell), device=cell.device) - begin[cell[order]]
    kept = order[rank < CROWD].sort().values
    scene = torch.zeros(len(kept), dtype=torch.int64, device=coord.device)
    offsets, index = current_engine().radius_neighbors(coord[kept], scene, coord[kept], scene, radius)[:2]
    connected = kept[connected_components(offsets, index)]
    label = torch.empty_like(cell)
    label[kept] = connected
    label = label[order[begin]][cell]
    order = torch.argsort(label, stable=True)
    counts = torch.unique_consecutive(label[order], return_counts=True)[1]
    return [part for part in order.split(counts.tolist()) if len(part) >= smallest]


def connected_components(offsets: Tensor, index: Tensor) -> Tensor:
    """(N,) int64, equal for nodes that are connected: the lowest node of each component.

    offsets: (N + 1,) and index: neighbours of every node, in both directions. Nodes take the lowest label
    around them and jump to that label's own, so that long chains need few rounds. Any device.
    """
    count = len(offsets) - 1
    source = torch.repeat_interleave(torch.arange(count, device=offsets.device), offsets.diff())
    label = torch.arange(count, device=offsets.device)
    while True:
        lowest = label.scatter_reduce(0, source, label[index], "amin")
        # Hook the old representative, too: it carries the news to all who point at it.
        lowest = lowest.scatter_reduce(0, label, lowest, "amin")
        lowest = lowest[lowest]
        if torch.equal(lowest, label):
            return label
        label = lowest


def suppress(mask: Tensor, score: Tensor, overlap: float) -> Tensor:
    """Rows of proposals to keep, best first: none overlaps a better one by more (IoU)."""
    inside = mask.float()
    both = inside @ inside.T
    size = inside.sum(1)
    iou = both / (size[:, None] + size[None] - both).clamp(min=1)
    kept: list[int] = []
    for i in score.argsort(descending=True, stable=True).tolist():
        if not kept or float(iou[i, kept].max()) <= overlap:
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64, device=mask.device)


class AveragePrecision:
    """AP as ScanNet's benchmark defines it, over scenes that are added one by one.

    A prediction is right if it overlaps a ground-truth instance of its class by more than the threshold (IoU); a second
    one on the same instance is wrong, and one that overlaps two (below a threshold of 0.5) finds the first alone. Predictions of which more than the threshold lies on unlabelled points, on
    other classes than `things`, or on instances below 100 points are not counted.
    """

    def __init__(self, classes: list[str]):
        self.things = [i for i, name in enumerate(classes) if name not in STUFF]
        self.classes = classes
        self.overlaps = (*OVERLAPS, 0.25)
        self._true = {(c, o): [] for c in self.things for o in self.overlaps}
        self._score = {(c, o): [] for c in self.things for o in self.overlaps}
        self._missed = dict.fromkeys(self._true, 0)
        self._wanted = dict.fromkeys(self.things, 0)

    def add(self, found: Proposals, label: Tensor, instance: Tensor) -> None:
        """label, instance: (N,) of all points of the scene, -1 for none."""
        label, instance = label.cpu().numpy(), instance.cpu().numpy()
        mask, kinds, score = found.mask.cpu().numpy(), found.label.cpu().numpy(), found.score.cpu().numpy()
        void = ~np.isin(label, self.things) | (instance < 0)
        for kind in self.things:
            ids, counts = np.unique(instance[(label == kind) & (instance >= 0)], return_counts=True)
            truth = [(label == kind) & (instance == i) for i in ids]
            rows = np.nonzero((kinds == kind) & (mask.sum(1) >= MIN_POINTS))[0]
            rows = rows[np.argsort(-score[rows], kind="stable")]
            inter = np.array([[(mask[r] & t).sum() for t in truth] for r in rows]).reshape(len(rows), len(truth))
            size = mask[rows].sum(1)
            iou = inter / np.maximum(size[:, None] + counts[None] - inter, 1)
            large = counts >= MIN_POINTS
            ignored = ((mask[rows] & void).sum(1) + (inter * ~large).sum(1)) / np.maximum(size, 1)
            self._wanted[kind] += int(large.sum())
            for overlap in self.overlaps:
                self._match(kind, overlap, iou, large, ignored, score[rows])

    def _match(self, kind, overlap, iou, large, ignored, score) -> None:
        true, scores = self._true[kind, overlap], self._score[kind, overlap]
        hits = iou > overlap
        taken: set[int] = set()
        for t in np.nonzero(large)[0]:
            rows = [row for row in np.nonzero(hits[:, t])[0] if row not in taken]
            taken.update(rows[:1])
            if not rows:
                self._missed[kind, overlap] += 1
            # The best scored one counts, further ones on the same instance are wrong.
            for place, row in enumerate(rows):
                true.append(place == 0)
                scores.append(float(score[row]))
        for row in np.nonzero(~hits.any(1))[0] if hits.size else range(len(score)):
            if ignored[row] <= overlap:
                true.append(False)
                scores.append(float(score[row]))

    def scores(self) -> dict[str, Any]:
        """{"ap", "ap50", "ap25"} as means over classes that occur, and "classes": {name: the three}."""
        table = {}
        for kind in self.things:
            if self._wanted[kind]:
                ap = {o: self._precision(kind, o) for o in self.overlaps}
                mean = float(np.mean([ap[o] for o in OVERLAPS]))
                table[self.classes[kind]] = {"ap": mean, "ap50": ap[0.5], "ap25": ap[0.25]}
        means = {key: float(np.mean([row[key] for row in table.values()])) if table else 0.0 for key in ("ap", "ap50", "ap25")}
        return {**means, "classes": table}

    def _precision(self, kind: int, overlap: float) -> float:
        """Area under the precision-recall curve, by the benchmark's own rule of steps."""
        score, true = np.array(self._score[kind, overlap]), np.array(self._true[kind, overlap], dtype=bool)
        if not len(score):
            return 0.0
        order = np.argsort(score, kind="stable")
        score, true = score[order], true[order]
        below = np.concatenate([[0], np.cumsum(true)])
        first = np.unique(score, return_index=True)[1]
        hits = true.sum() - below[first]
        wrong = len(score) - first - hits
        left_out = below[first] + self._missed[kind, overlap]
        precision = np.append(hits / np.maximum(hits + wrong, 1), 1.0)
        recall = np.append(hits / np.maximum(hits + left_out, 1), 0.0)
        around = np.concatenate([recall[:1], recall, [0.0]])
        return float(precision @ ((around[:-2] - around[2:]) / 2))


__all__ = [
    "AveragePrecision", "InstanceProbe", "Proposals", "clusters", "connected_components", "instance_offsets", "suppress",
]  # fmt: skip
