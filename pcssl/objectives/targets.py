"""What a teacher's or the prototypes' scores become before a student is asked to predict them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Centre(nn.Module):
    """A running mean of scores, which is taken off them before the softmax, against collapse to one class (DINO).

    mean: (K,). momentum: of the running mean.
    """

    def __init__(self, size: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(size))

    def forward(self, scores: Tensor, temperature: float) -> Tensor:
        """softmax((scores - mean) / temperature) over the last axis, float32, without gradient."""
        return ((scores.detach().float() - self.mean) / temperature).softmax(-1)

    @torch.no_grad()
    def update(self, scores: Tensor) -> None:
        """mean = momentum * mean + (1 - momentum) * mean of all rows of scores (..., K)."""
        mean = scores.detach().float().flatten(0, -2).mean(0)
        # What is not finite would stay in the mean.
        self.mean.lerp_(torch.where(mean.isfinite(), mean, self.mean), 1 - self.momentum)


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3, prior: Tensor | None = None) -> Tensor:
    """Soft assignment of B rows to K columns that uses all columns alike: Cuturi, NIPS 2013, as SwAV applies it.

    scores: (B, K), higher = nearer. epsilon: smoothness; towards 0 the assignment is hard. prior: (K,) share of the
    rows that each column should get, 0 = none, None = 1 / K. Works on logarithms, so that no scale of the scores overflows.
    Returns (B, K) in the type of the scores (float32 of lower ones); every row sums to 1, every column to its share of B after enough iterations.
    """
    log = scores.double() if scores.dtype == torch.float64 else scores.float()
    log = log / epsilon
    share = torch.full_like(log[0], 1 / log.shape[1]).log() if prior is None else prior.to(log).log()
    for _ in range(iterations):
        total = log.logsumexp(0)
        log = log - total.masked_fill(total.isneginf(), 0) + share  # a column without a share stays empty
        log = log - log.logsumexp(1, keepdim=True)
    return log.softmax(1)


def soft_cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """Mean over rows of -sum target log softmax(logits). target: (..., K) probabilities."""
    return -(target * logits.float().log_softmax(-1)).sum(-1).mean()
