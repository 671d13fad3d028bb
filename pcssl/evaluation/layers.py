"""Which layer of a network should be used: features before and after a projection head, or any others, by equal probes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pcssl.evaluation.neighbors import NearestNeighborProbe
from pcssl.evaluation.ridge import RidgeProbe
from pcssl.models.heads import Prototypes
from pcssl.statistics import effective_rank


def probe_layers(
    known: dict[str, Tensor], labels: Tensor, query: dict[str, Tensor], expected: Tensor, classes: int
) -> dict[str, dict[str, float]]:
    """Per layer: accuracy of ridge regression and of 10 neighbours, effective rank, and inequality of its directions.

    known, query: (M, D) and (N, D) features of each layer, of points or images, D its own. labels, expected: (M,) and
    (N,) int64. The layers share one budget: all are rotated to principal components and cut to the narrowest's width.
    The components are not scaled to equal spread, after which layers that only differ in the weights of their units
    could not be told apart.
    """
    width = min(x.shape[1] for x in known.values())
    found = {}
    for name in known:
        x, q, spread = principal(known[name], query[name], width)
        ridge = RidgeProbe.fit(x, labels, classes, standardize=False)(q)
        nearest = NearestNeighborProbe.fit(x, labels, classes)(q, (10,))[0]
        found[name] = {
            "ridge": float((ridge == expected).float().mean()),
            "10-nn": float((nearest == expected).float().mean()),
            "rank": float(effective_rank(known[name])),
            "inequality": weight_inequality(spread),
        }
    return found


@torch.no_grad()
def head_layers(head: nn.Module, features: Tensor) -> dict[str, Tensor]:
    """What a head in eval mode makes of features (N, D), on the CPU: "pre", what enters each further linear layer, "post".

    Scores of prototypes are not features: there, "post" is what is compared with them.
    """
    found = {"pre": features}
    x = features.to(next((t.device for t in (*head.parameters(), *head.buffers())), "cpu"))
    for i, step in enumerate(_steps(head)):
        if isinstance(step, Prototypes):
            break
        if i and isinstance(step, nn.Linear):
            found[f"hidden {len(found)}"] = x.cpu()
        x = step(x)
    return found | {"post": x.cpu()}


def _steps(head: nn.Module) -> Iterator[nn.Module]:
    if not isinstance(head, nn.Sequential):
        yield head
        return
    for part in head:
        yield from _steps(part)


def principal(known: Tensor, query: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both on the first `width` principal axes of the first, centred by it; and its spread along them."""
    mean = known.double().mean(0)
    x = known.double() - mean
    variance, axes = torch.linalg.eigh(x.T @ x / len(x))
    axes, spread = axes.flip(1)[:, :width], variance.flip(0)[:width].clamp(min=0).sqrt()
    return (x @ axes).float(), ((query.double() - mean) @ axes).float(), spread


def weight_inequality(weights: Tensor) -> float:
    """How unequal weights (n,) >= 0 are: log n less the entropy of their shares; 0 = all equal, log n = one alone."""
    share = weights.double() / weights.double().sum().clamp(min=1e-300)
    return float(share.new_tensor(len(share)).log() + (share * share.clamp(min=1e-300).log()).sum())
