"""Clusters: what features know of classes with no labels at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class KMeans:
    """k-means of standardised features; call it with (N, D) features for (N,) cluster numbers."""

    centres: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, features: Tensor, clusters: int, *, steps: int = 50, seed: int = 0, device: torch.device | str = "cpu") -> KMeans:
        """Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii, 2007). features: (M, D), M >= 1."""
        x = features.to(device).float()
        mean, std = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
        x = (x - mean) / std
        centres = _spread(x, min(clusters, len(x)), torch.Generator().manual_seed(seed))
        for _ in range(steps):
            member = _closest(x, centres)
            count = torch.bincount(member, minlength=len(centres))
            total = torch.zeros_like(centres).index_add_(0, member, x)
            moved = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], centres)
            if torch.equal(moved, centres):
                break
            centres = moved
        return cls(centres, mean, std)

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        return _closest((features.to(self.mean.device).float() - self.mean) / self.std, self.centres).cpu()


def _spread(x: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """k-means++: each next seed is drawn with probability proportional to its squared distance."""
    chosen = [int(torch.randint(len(x), (1,), generator=rng))]
    away = (x - x[chosen[0]]).square().sum(1)
    for _ in range(count - 1):
        weight = away.double().cpu()
        if float(weight.sum()) == 0:  # fewer distinct points than clusters
            break
        at = float(torch.rand((), generator=rng, dtype=torch.float64)) * float(weight.sum())
        chosen.append(min(int(torch.searchsorted(weight.cumsum(0), at, right=True)), len(x) - 1))
        away = torch.minimum(away, (x - x[chosen[-1]]).square().sum(1))
    return x[chosen].clone()


def _closest(x: Tensor, centres: Tensor) -> Tensor:
    # |x|^2 is the same for all centres.
    parts = [(centres.square().sum(1) - 2 * part @ centres.T).argmin(1) for part in x.split(65_536)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def match_clusters(counts: Tensor) -> Tensor:
    """The class of every cluster that labels the most points right, a cluster a class (Hungarian matching).

    counts: (classes, clusters). Returns (clusters,) int64, -1 for clusters left over.
    """
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    found = torch.full((counts.shape[1],), -1, dtype=torch.int64)
    found[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return found
