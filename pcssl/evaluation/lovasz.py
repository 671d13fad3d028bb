"""A loss that follows the mean IoU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def lovasz_softmax(probability: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Lovász-Softmax: the convex extension of 1 - IoU to probabilities, mean over the classes that occur.

    Berman, Triki and Blaschko, "The Lovász-Softmax Loss", CVPR 2018. For hard predictions it is 1 - IoU itself.
    probability: (n, K), rows sum to 1. label: (n,) int64 in 0..K-1. weight: (n,) > 0, points that each row stands for
    (default: one). Returns a scalar in 0..1, 0 for no rows.
    """
    wanted = F.one_hot(label, probability.shape[1]).to(probability.dtype)
    error, order = (wanted - probability).abs().sort(0, descending=True)
    size = torch.ones_like(probability[:, 0]) if weight is None else weight.to(probability.dtype)
    size, wanted = size[order], wanted.gather(0, order)
    total = (size * wanted).sum(0)
    # 1 - IoU when the rows down to each one are taken wrong; its growth is what an error there costs.
    missed, alien = (size * wanted).cumsum(0), (size * (1 - wanted)).cumsum(0)
    jaccard = 1 - (total - missed) / (total + alien).clamp(min=1e-12)
    growth = torch.diff(jaccard, dim=0, prepend=torch.zeros_like(jaccard[:1]))
    present = total > 0
    return (error * growth).sum(0)[present].sum() / present.sum().clamp(min=1)
