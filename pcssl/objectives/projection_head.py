"""SimCLR with a choice of projection heads, and what theory says of the layers before and after one.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv 2002.05709.
Xue, Gan, Ni, Joshi, Mirzasoleiman, "Investigating the Benefits of Projection Head for Representation Learning", ICLR
2024, arXiv 2403.11391. The paper's: a head that is thrown away after training helps because layers weigh features the
more unequally the higher they are, and a feature that the augmentations destroy is still there below the head; an
untrained head that weighs units by kappa ** -i does as well as a trained one.

Ours: the formulas of the linear case (`spectral_solution`, a layer k of L holds a weight w as w ** (k / L)), derived
from the paper's setting; `pcssl.evaluation.layers` scores the layers of any network, 2D or 3D, by equal probes.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from pcssl.config import Range
from pcssl.image.settings import ImageData
from pcssl.image.views import ViewConfig
from pcssl.models.heads import head
from pcssl.objectives.contrast import NTXent
from pcssl.objectives.image import Embedder, ImageBatch, ImageObjective
from pcssl.registry import register

Count = Annotated[int, Range(1)]
HeadKind = Literal["none", "linear", "mlp", "fixed"]

SIMCLR_VIEWS = (ViewConfig(count=2, scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=0.5),)


class FixedReweightHead(nn.Module):
    """Unit i times kappa ** -i, nothing to train: (..., dim) -> (..., dim) float32. kappa 1 changes nothing.

    A range kappa ** dim of 100 to 1000 is sensible; far beyond, most units learn nothing, which is warned of.
    """

    def __init__(self, dim: int, kappa: float = 1.05):
        super().__init__()
        if kappa < 1:
            raise ValueError(f"kappa: {kappa} must be at least 1")
        weight = torch.exp(-math.log(kappa) * torch.arange(dim, dtype=torch.float64)).float()
        self.register_buffer("weight", weight)
        idle = int((weight < 1e-6).sum())
        if idle:
            fit = 1000 ** (1 / dim)
            warnings.warn(f"kappa {kappa} leaves {idle} of {dim} units a weight below 1e-6; try {fit:.4f}", stacklevel=2)

    def forward(self, x: Tensor) -> Tensor:
        return x.float() * self.weight


def projection(kind: HeadKind, dim: int, hidden: int, out: int, kappa: float = 1.05) -> nn.Module:
    """A head: none at all, a linear layer, SimCLR's MLP with one hidden layer, or `FixedReweightHead`."""
    if kind == "none":
        return nn.Identity()
    if kind == "fixed":
        return FixedReweightHead(dim, kappa)
    return nn.Linear(dim, out) if kind == "linear" else head("simclr", dim, hidden, out)


# ---------------------------------------------------------------- the linear case


class SpectralLoss(nn.Module):
    """-2 E[a . b] over views of one image, + E[(z . z')^2] over all pairs of all views; not normalised.

    HaoChen et al., NeurIPS 2021, arXiv 2106.04156. Ours: the pairs of a view with itself and with its positive are
    among the second part, so that it is exactly the squared Frobenius norm of the second moment.
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, D) each, row i of both of one image. Computed in float32 at least, also under autocast."""
        exact = torch.promote_types(a.dtype, torch.float32)
        with torch.autocast(a.device.type, enabled=False):
            a, b = a.to(exact), b.to(exact)
            z = torch.cat([a, b])
            return -2 * (a * b).sum(1).mean() + (z.T @ z / len(z)).square().sum()


def spectral_solution(moment: Tensor, positive: Tensor, rank: int | None = None) -> Tensor:
    """The linear map W (rank, d) of least spectral loss of z = W x; any rotation of it is another.

    moment: (d, d) E[x x^T]. positive: (d, d) E[x x+^T], symmetric, of two views of one image. rank: width of z.
    W^T W is moment^-1 positive moment^-1, or of its whitened form the `rank` largest directions.
    """
    variance, axes = torch.linalg.eigh(moment)
    if float(variance[0]) <= 0:
        raise ValueError("moment: it must be positive definite; add noise or leave out constant directions")
    whiten = axes * variance.rsqrt() @ axes.T
    strength, directions = torch.linalg.eigh(whiten @ positive @ whiten)
    strength, directions = strength.flip(0)[:rank].clamp(min=0), directions.flip(1)[:, :rank]
    return strength.sqrt()[:, None] * directions.T @ whiten


def feature_weights(weight: Tensor, features: Tensor) -> Tensor:
    """(m,): how much a linear map (k, d) makes of each feature, the columns, of length 1, of (d, m)."""
    return (weight @ features).norm(dim=0)


# ---------------------------------------------------------------- the objective


@dataclass(frozen=True)
class SimCLRConfig:
    """views: two. head: "mlp" of `hidden` and `out`, "linear" to `out`, "fixed" with `kappa`, or "none".
    loss: "nt_xent" with a temperature, or "spectral", which has none.
    """

    views: tuple[ViewConfig, ...] = SIMCLR_VIEWS
    head: HeadKind = "mlp"
    hidden: Count = 2048
    out: Count = 128
    kappa: Annotated[float, Range(1)] = 1.05
    loss: Literal["nt_xent", "spectral"] = "nt_xent"
    temperature: Annotated[float, Range(0, low_open=True)] = 0.1


@register("objective", "simclr", config=SimCLRConfig)
class SimCLR(ImageObjective):
    """Works with any image backbone; logs the rank of the features before and after the head."""

    def __init__(self, config: SimCLRConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        if sum(view.count for view in config.views) != 2:
            raise ValueError("views: simclr needs two")
        width = backbone.channels[-1]
        self.network = Embedder(backbone, projection(config.head, width, config.hidden, config.out, config.kappa))
        self.loss = NTXent(config.temperature) if config.loss == "nt_xent" else SpectralLoss()

    def backbone(self) -> nn.Module:
        return self.network.backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        before, after = self.network(*batch.views)
        return {"loss": self.loss(*after.chunk(2)), **self.health("pre", before), **self.health("post", after)}
