"""Linear probe: one linear layer on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.schedules import warmup_cosine


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
        epochs: int = 30,
        batch_size: int = 4096,
        lr: float = 0.01,
        weight_decay: float = 0.01,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> LinearProbe:
        """Cross-entropy with AdamW, betas (0.9, 0.95), cosine with 1 % warm-up (settings of the paper's
        probe where it gives them). features: (M, D) float; labels: (M,) int64 in 0..classes-1."""
        features, labels = features.to(device), labels.to(device)
        mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
        rng = torch.Generator().manual_seed(seed)
        layer = nn.Linear(features.shape[1], classes)
        nn.init.zeros_(layer.bias)
        nn.init.normal_(layer.weight, std=0.01, generator=rng)
        layer.to(device)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)
        batches = max(1, len(features) // batch_size)
        total = epochs * batches
        for step in range(total):
            if step % batches == 0:
                order = torch.randperm(len(features), generator=rng).to(device)
            rows = order[(step % batches) * batch_size :][:batch_size]
            for group in optimizer.param_groups:
                group["lr"] = warmup_cosine(step, total // 100, total, lr)
            loss = F.cross_entropy(layer((features[rows] - mean) / std), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return cls(mean, std, layer)

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        features = features.to(self.mean.device)
        return self.layer((features - self.mean) / self.std).argmax(1).cpu()
