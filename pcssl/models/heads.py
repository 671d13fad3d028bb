"""The heads of self-supervised methods, in 2D and 3D alike: an MLP, and prototypes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLPHead(nn.Sequential):
    """Linear layers with norm and activation between them: (B, dim) -> (B, out).

    hidden: widths between. batch_norm: after every hidden layer, which then has no bias.
    last_norm: a BatchNorm without parameters at the end (MoCo v3, GroCo).
    """

    def __init__(
        self, dim: int, hidden: tuple[int, ...], out: int, *, batch_norm: bool = False, last_norm: bool = False,
        activation: type[nn.Module] = nn.ReLU, bias: bool = True,
    ):  # fmt: skip
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(nn.Linear(dim, width, bias=not batch_norm))
            layers += [nn.BatchNorm1d(width)] if batch_norm else []
            layers.append(activation())
            dim = width
        layers.append(nn.Linear(dim, out, bias=bias and not last_norm))
        layers += [nn.BatchNorm1d(out, affine=False)] if last_norm else []
        super().__init__(*layers)


class Prototypes(nn.Module):
    """Cosine of every row (B, dim) with `count` learnt directions: (B, count).

    The same as a linear layer without bias whose weight norm is fixed at 1, after normalising its input.
    """

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=1))


# What the papers' code has: (hidden layers, batch norm, norm at the end, activation).
_HEADS = {
    "dino": (2, False, False, nn.GELU),
    "dino_bn": (2, True, False, nn.GELU),
    "mocov3": (2, True, True, nn.ReLU),
    "mocov3_predictor": (1, True, True, nn.ReLU),
    "byol": (1, True, False, nn.ReLU),
    "simclr": (1, False, False, nn.ReLU),
}
HeadName = Literal["dino", "dino_bn", "mocov3", "mocov3_predictor", "byol", "simclr"]


def head(name: HeadName, dim: int, hidden: int, out: int) -> MLPHead:
    """A head by the name of its paper."""
    layers, batch_norm, last_norm, activation = _HEADS[name]
    return MLPHead(dim, (hidden,) * layers, out, batch_norm=batch_norm, last_norm=last_norm, activation=activation)
