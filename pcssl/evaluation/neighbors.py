"""Nearest-neighbour probe: labels of the most similar known points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 8_192  # queries compared at once, fewer where
PAIRS = 2**27  # similarities would be more than this: 0.5 GB


@dataclass(frozen=True)
class Centring:
    """Call it with (N, D) features. mean: (D,)."""

    mean: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return features - self.mean


@dataclass(frozen=True)
class Whitening:
    """Call it with (N, D) features. mean: (D,); turn: (D, D)."""

    mean: Tensor
    turn: Tensor

    @classmethod
    def fit(cls, features: Tensor, floor: float = 0.1) -> Whitening:
        """floor: added to the variances of the standardised features' principal axes, so that noise stays small."""
        mean, std = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
        x = (features - mean) / std
        variance, axes = torch.linalg.eigh((x.T @ x / len(x)).double())
        turn = axes * (variance.clamp(min=0) + floor).rsqrt()
        return cls(mean, (turn / std[:, None]).float())

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.turn


@dataclass(frozen=True)
class NearestNeighborProbe:
    """Exact cosine neighbours among centred or whitened features.

    Features of several levels have scales of their own, and a few directions may hold most of the variance: as they
    are, a cosine would see little else. `whiten` standardises them and turns them to their principal axes, each
    divided by sqrt(variance + 0.1), with the statistics of the database and without labels.

    k = 1 takes the nearest label; k > 1 votes with weights exp(similarity / temperature), as in Wu et al.,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018. The Masked Scene Modeling
    paper states neither; both are ours.
    """

    database: Tensor
    labels: Tensor
    classes: int
    prepare: Centring | Whitening
    temperature: float = 0.07

    @classmethod
    def fit(
        cls, features: Tensor, labels: Tensor, classes: int, *, whiten: bool = False, temperature: float = 0.07,
        device: torch.device | str = "cpu",
    ) -> NearestNeighborProbe:
        """features: (M, D) float; labels: (M,) int64."""
        features = features.to(device)
        prepare = Whitening.fit(features) if whiten else Centring(features.mean(0))
        return cls(F.normalize(prepare(features), dim=1), labels.to(device), classes, prepare, temperature)

    @torch.no_grad()
    def __call__(self, features: Tensor, ks: tuple[int, ...] = (1,)) -> list[Tensor]:
        """(N, D) features -> per k the (N,) predictions."""
        out: list[list[Tensor]] = [[] for _ in ks]
        for block in features.split(max(1, min(BLOCK, PAIRS // max(len(self.database), 1)))):
            query = F.normalize(self.prepare(block.to(self.database.device)), dim=1)
            similarity, rows = (query @ self.database.T).topk(min(max(ks), len(self.database)), dim=1)
            label = self.labels[rows]
            for i, k in enumerate(ks):
                out[i].append(self._vote(similarity[:, :k], label[:, :k]).cpu())
        return [torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64) for parts in out]

    def _vote(self, similarity: Tensor, label: Tensor) -> Tensor:
        weight = torch.exp((similarity - similarity[:, :1]) / self.temperature)
        votes = weight.new_zeros(len(weight), self.classes).scatter_add_(1, label, weight)
        return votes.argmax(1)
