"""Nearest-neighbour probe: labels of the most similar known points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 8_192  # queries compared at once: bounds the similarity matrix


@dataclass(frozen=True)
class NearestNeighborProbe:
    """Exact cosine neighbours in a database of centred features.

    k = 1 takes the nearest label; k > 1 votes with weights exp(similarity / temperature), as in
    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR
    2018. The Masked Scene Modeling paper states neither; both are ours.
    """

    database: Tensor
    labels: Tensor
    classes: int
    mean: Tensor
    temperature: float = 0.07

    @classmethod
    def fit(
        cls, features: Tensor, labels: Tensor, classes: int, *, temperature: float = 0.07, device: torch.device | str = "cpu"
    ) -> NearestNeighborProbe:
        """features: (M, D) float; labels: (M,) int64. The mean of the database is taken off all features."""
        mean = features.mean(0)
        database = F.normalize(features - mean, dim=1).to(device)
        return cls(database, labels.to(device), classes, mean.to(device), temperature)

    @torch.no_grad()
    def __call__(self, features: Tensor, ks: tuple[int, ...] = (1,)) -> list[Tensor]:
        """(N, D) features -> per k the (N,) predictions."""
        out: list[list[Tensor]] = [[] for _ in ks]
        for block in features.split(BLOCK):
            query = F.normalize(block.to(self.database.device) - self.mean, dim=1)
            similarity, rows = (query @ self.database.T).topk(min(max(ks), len(self.database)), dim=1)
            label = self.labels[rows]
            for i, k in enumerate(ks):
                out[i].append(self._vote(similarity[:, :k], label[:, :k]).cpu())
        return [torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64) for parts in out]

    def _vote(self, similarity: Tensor, label: Tensor) -> Tensor:
        weight = torch.exp((similarity - similarity[:, :1]) / self.temperature)
        votes = weight.new_zeros(len(weight), self.classes).scatter_add_(1, label, weight)
        return votes.argmax(1)
