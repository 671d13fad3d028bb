"""Linear probe: one linear layer on frozen features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.evaluation.lovasz import lovasz_softmax
from pcssl.schedules import warmup_cosine

IN_MEMORY = 250_000_000  # features that are standardised once and kept: 1 GB; more are read batch by batch


@dataclass(frozen=True)
class LinearProbe:
    """Standardised features and a linear layer; call it with (N, D) features for (N,) predictions."""

    mean: Tensor
    std: Tensor
    layer: nn.Linear

    @classmethod
    def fit(
        cls,
        features: Tensor,
        labels: Tensor,
        classes: int,
        *,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        weights: Tensor | None = None,
        epochs: int = 30,
        min_steps: int = 600,
        batch_size: int = 4096,
        lr: float = 0.01,
        weight_decay: float = 0.01,
        lovasz: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> LinearProbe:
        """Cross-entropy with AdamW, betas (0.9, 0.95), cosine with 1 % warm-up (settings of the paper's
        probe where it gives them).

        features: (M, D) floating point, may lie on disk: beyond 1 GB only a batch is in memory at a time.
        labels: (M,) int64 in 0..classes-1. rows, columns: use these only. weights: (M,) > 0, what each row counts in
        the loss (default: the same). epochs: over the rows, but at
        least `min_steps` steps, so that few labels are fitted as well as many. lovasz: add `lovasz_softmax` to the loss.
        """
        rows = torch.arange(len(labels)) if rows is None else rows
        if not len(rows):
            raise ValueError("a linear probe needs at least one labelled point")

        def take(some: Tensor) -> Tensor:
            found = features[some].to(device).float()
            return found if columns is None else found[:, columns.to(device)]

        counts = None if weights is None else weights / weights[rows].mean()
        mean, std = _statistics(take, rows)

        def standardised(some: Tensor) -> Tensor:
            return (take(some) - mean) / std

        if len(rows) * len(mean) <= IN_MEMORY:
            kept, targets = standardised(rows), labels[rows].to(device)
            counts = None if counts is None else counts[rows]
            rows = torch.arange(len(rows))
        else:
            kept = targets = None
        rng = torch.Generator().manual_seed(seed)
        layer = nn.Linear(len(mean), classes)
        nn.init.zeros_(layer.bias)
        nn.init.normal_(layer.weight, std=0.01, generator=rng)
        layer.to(device)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)
        batches = max(1, len(rows) // batch_size)
        total = max(epochs * batches, min_steps)
        for step in range(total):
            if step % batches == 0:
                order = rows[torch.randperm(len(rows), generator=rng)]
            batch = order[(step % batches) * batch_size :][:batch_size]
            if kept is not None:
                x, y = kept[batch.to(device)], targets[batch.to(device)]
            else:
                batch = batch.sort().values  # in the order of the disk
                x, y = standardised(batch), labels[batch].to(device)
            for group in optimizer.param_groups:
                group["lr"] = warmup_cosine(step, total // 100, total, lr)
            count = None if counts is None else counts[batch.to(counts.device)].to(device)
            logits = layer(x)
            loss = F.cross_entropy(logits, y, reduction="none")
            loss = (loss if count is None else loss * count).mean()
            if lovasz:
                loss = loss + lovasz_softmax(logits.softmax(1), y, count)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return cls(mean, std, layer)

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        return self._logits(features).argmax(1).cpu()

    @torch.no_grad()
    def probability(self, features: Tensor) -> Tensor:
        """(N, D) features -> (N, classes)."""
        return self._logits(features).softmax(1)

    def _logits(self, features: Tensor) -> Tensor:
        return self.layer((features.to(self.mean.device) - self.mean) / self.std)


def _statistics(take: Callable[[Tensor], Tensor], rows: Tensor, block: int = 65_536) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature over the rows, a block in memory at a time."""
    total = squares = 0
    for part in rows.split(block):
        found = take(part).double()
        total, squares = total + found.sum(0), squares + found.square().sum(0)
    mean = total / len(rows)
    std = (squares / len(rows) - mean.square()).clamp(min=0).sqrt()
    return mean.float(), std.float().clamp(min=1e-6)
