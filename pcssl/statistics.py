"""What can be said of features without labels: spread, rank, and what of geometry they hold."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def feature_std(features: Tensor) -> Tensor:
    """Spread of directions over rows (N, C): 0 when all features are equal (collapse), about 1 when isotropic."""
    if len(features) < 2:
        return features.new_zeros(())
    unit = F.normalize(features.float(), dim=1)
    return unit.std(0).mean() * features.shape[1] ** 0.5


def effective_rank(features: Tensor) -> Tensor:
    """exp of the entropy of the covariance's eigenvalues, as shares of their sum: 1 to C.

    features: (N, C). After Roy and Vetterli, "The effective rank", EUSIPCO 2007, on the spectrum of the
    covariance. 1 when all features lie on one line, or are equal; NaN when they are not finite.
    """
    if len(features) < 2:
        return features.new_ones(())
    if not bool(features.isfinite().all()):
        return features.new_full((), torch.nan)
    centred = features.double() - features.double().mean(0)
    share = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    total = share.sum()
    if float(total) <= 0:
        return features.new_ones(())
    share = share / total
    return torch.exp(-(share * share.clamp(min=1e-300).log()).sum()).float()


def linear_r2(known: Tensor, wanted: Tensor, ridge: float = 1e-3) -> Tensor:
    """How much of `wanted` (N, K) a linear map of `known` (N, C) explains, on the rows it was not fitted on.

    Fitted on every other row. Returns the share of variance over all K columns: at most 1, and 0 where a
    constant does as well or there is nothing to explain.
    """
    if len(known) < 4:
        return known.new_zeros(())
    x, y = known.double(), wanted.double()
    x = (x - x[::2].mean(0)) / x[::2].std(0).clamp(min=1e-8)
    y = y - y[::2].mean(0)
    gram = x[::2].T @ x[::2] / len(x[::2])
    weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), x[::2].T @ y[::2] / len(x[::2]))
    left, whole = (y[1::2] - x[1::2] @ weight).square().sum(), y[1::2].square().sum()
    return (1 - left / whole).clamp(min=0).float() if float(whole) > 1e-12 * len(y) else known.new_zeros(())
