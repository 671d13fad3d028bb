"""Linear probe in closed form: ridge regression on the classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTIES = tuple(10.0**e for e in range(-6, 3))


@dataclass(frozen=True)
class RidgeProbe:
    """Standardised features and a linear map to one score a class; call it with (N, D) features for (N,) predictions.

    Seconds where a trained linear layer takes minutes, without a learning rate; a little below it in accuracy.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    penalty: float

    @classmethod
    def fit(
        cls, features: Tensor, labels: Tensor, classes: int, penalties: tuple[float, ...] = PENALTIES, standardize: bool = True
    ) -> RidgeProbe:
        """features: (M, D) float. labels: (M,) int64 in 0..classes-1. penalties: on the squared weights, in units of
        the mean variance times M; the one with the least leave-one-out error is taken, which has a closed form.
        standardize: every feature by its own spread; else all by one number, and strong features are penalised less.
        """
        if not len(labels):
            raise ValueError("a ridge probe needs at least one labelled row")
        x, y = features.double(), F.one_hot(labels, classes).double()
        mean, std = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
        if not standardize:
            std = std.square().mean().sqrt().expand_as(std)
        x, bias = (x - mean) / std, y.mean(0)
        y = y - bias
        variance, axes = torch.linalg.eigh(x.T @ x)
        variance, x = variance.clamp(min=0), x @ axes
        errors = []
        for penalty in penalties:
            inverse = 1 / (variance + penalty * len(x))
            left_out = 1 - 1 / len(x) - (x.square() * inverse).sum(1)
            residual = (y - x @ (inverse[:, None] * (x.T @ y))) / left_out[:, None].clamp(min=1e-9)
            errors.append(float(residual.square().sum()))
        penalty = penalties[errors.index(min(errors))]
        weight = axes @ ((x.T @ y) / (variance + penalty * len(x))[:, None])
        return cls(mean.float(), std.float(), weight.float(), bias.float(), penalty)

    def __call__(self, features: Tensor) -> Tensor:
        return (((features - self.mean) / self.std) @ self.weight + self.bias).argmax(1)
