"""MYOW: mine your own view, an image's neighbour as one more view of it.

Azabou et al., "Mine Your Own vieW: Self-Supervised Learning Through Across-Sample Prediction", 2021, arXiv 2102.10106;
the defaults are those of the authors' code for CIFAR (nerdslab/myow). BYOL (Grill et al., NeurIPS 2020) predicts a
momentum encoder's projection of one view from another view; MYOW predicts that of the nearest other image too, found
among the momentum encoder's representations, through a second projector on top of the first (cascaded).

Ours: the pool is the rest of the batch, as in the authors' later code (myow-neuro), and an image is never mined for itself
(in the authors' code for CIFAR anchors and pool are the same images, so that it mostly is); the momentum encoder's
BatchNorms use the batch in hand, and their running statistics are the online network's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.image.settings import ImageData
from pcssl.image.tokens import pooled
from pcssl.image.views import ViewConfig
from pcssl.models.heads import head
from pcssl.objectives.image import ImageBatch, ImageObjective, several_images
from pcssl.objectives.teacher import Teacher
from pcssl.registry import register
from pcssl.schedules import cosine, linear

Count = Annotated[int, Range(1)]
Part = Annotated[float, Range(0, 1)]
Layout = Literal["cascaded", "parallel"]
TargetInit = Literal["copy", "reset"]

MYOW_VIEWS = (
    ViewConfig(count=2, size=32, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2),
    ViewConfig(size=32, scale=(0.8, 1.0)),
)


class PredictionLoss(nn.Module):
    """Mean of 2 - 2 cosine, which is the squared distance of unit vectors: BYOL's loss, of both of MYOW's terms."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, D) each, row i of both belonging together. The target gets no gradient."""
        return 2 - 2 * F.cosine_similarity(prediction.float(), target.detach().float(), dim=1).mean()


def myow_weight(step: int, warmup: int, ramp_end: int, weight: float) -> float:
    """Of the mined term: 0 before step `warmup`, then along a line to `weight` at step `ramp_end`."""
    return 0.0 if step < warmup else linear(step - warmup, ramp_end - warmup, 0.0, weight) if step < ramp_end else weight


class ViewMiner(nn.Module):
    """One of the k nearest of a pool, by cosine, each as likely; the choice is drawn from torch's global generator."""

    def __init__(self, k: int = 1):
        super().__init__()
        self.k = k

    @torch.no_grad()
    def forward(self, y: Tensor, pool: Tensor, exclude: Tensor | None = None) -> Tensor:
        """y: (B, D). pool: (L, D). exclude: (B, L) bool, what must not be taken. Returns (B,) int64 rows of the pool.

        ValueError when nothing is left for a row.
        """
        with torch.autocast(y.device.type, enabled=False):  # rounded to bfloat16 many of the pool are as near
            similarity = F.normalize(y.float(), dim=1) @ F.normalize(pool.float(), dim=1).T
        left = torch.full((len(y),), len(pool), device=y.device)
        if exclude is not None:
            similarity, left = similarity.masked_fill(exclude, -torch.inf), (~exclude).sum(1)
        if bool((left < 1).any()):
            raise ValueError("the pool has nothing but excluded rows; it needs one at least")
        nearest = similarity.topk(min(self.k, len(pool)), dim=1).indices
        # A row of fewer than k candidates draws among those it has.
        draw = torch.rand(len(y), device=y.device) * left.clamp(max=self.k)
        return nearest.gather(1, draw.long()[:, None])[:, 0]


class Branch(nn.Module):
    """Encoder f, projector g and second projector h; online and, averaged, as the target."""

    def __init__(self, encoder: nn.Module, projector: nn.Module, mined_projector: nn.Module, layout: Layout = "cascaded"):
        super().__init__()
        self.encoder, self.projector, self.mined_projector, self.layout = encoder, projector, mined_projector, layout

    def mined(self, y: Tensor) -> Tensor:
        """h(g(y)), or h(y) when parallel."""
        return self.mined_projector(self.projector(y) if self.layout == "cascaded" else y)


class MYOWNetwork(nn.Module):
    """Both losses of MYOW around any encoder that gives (B, D): images, point clouds, neural activity.

    projector: (D) -> (Z). mined_projector: (Z), or (D) when parallel, -> (V). predictor: (Z) -> (Z).
    mined_predictor: (V) -> (V). k: see `ViewMiner`. symmetric, target_init: see `MYOWConfig`.
    Call `target.update(online, momentum)` after every step. ValueError for a layout or target_init that there is not.
    """

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, mined_projector: nn.Module, predictor: nn.Module,
        mined_predictor: nn.Module, layout: Layout = "cascaded", k: int = 1, symmetric: bool = True, target_init: TargetInit = "copy",
    ):  # fmt: skip
        super().__init__()
        for name, value, known in (("layout", layout, get_args(Layout)), ("target_init", target_init, get_args(TargetInit))):
            if value not in known:
                raise ValueError(f"{name}: {value!r} is none of {', '.join(known)}")
        self.online = Branch(encoder, projector, mined_projector, layout)
        self.target = Teacher(self.online, batch_statistics=True)
        if target_init == "reset":
            for layer in self.target.network.encoder.modules():
                if hasattr(layer, "reset_parameters"):
                    layer.reset_parameters()
        self.predictor, self.mined_predictor = predictor, mined_predictor
        self.miner, self.symmetric, self.loss = ViewMiner(k), symmetric, PredictionLoss()

    def augmented_loss(self, a: Tensor, b: Tensor) -> Tensor:
        """BYOL between two views (B, ...) of the same images: b predicted from a and, when symmetric, a from b."""
        target = self.target.network
        ways = ((a, b), (b, a))[: 1 + self.symmetric]
        with torch.no_grad():
            wanted = [target.projector(target.encoder(x)) for _, x in ways]
        found = [self.predictor(self.online.projector(self.online.encoder(x))) for x, _ in ways]
        return sum(self.loss(p, t) for p, t in zip(found, wanted)) / len(ways)

    def mined_loss(self, x: Tensor, pool: Tensor, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Anchors (B, ...) against their neighbours in a pool (L, ...). Returns the loss and the mined rows (B,)."""
        y = self.online.encoder(x)
        with torch.no_grad():
            candidates = self.target.network.encoder(pool)
            rows = self.miner(y, candidates, exclude)
            wanted = self.target.network.mined(candidates[rows])
        return self.loss(self.mined_predictor(self.online.mined(y)), wanted), rows


@dataclass(frozen=True)
class MYOWConfig:
    """views: two, and a milder one, from which neighbours are mined.
    hidden, out: of the projector and its predictor. mined_hidden, mined_out: of the second ones.
    layout: the second projector works on the first (cascaded), or on the representation. neighbors: k.
    weight: w of the mined term in (augmented + w mined) / (1 + w), after `warmup` and a ramp to `ramp_end`, parts of
        the run; myow-neuro's (1 - v) augmented + v mined is w = v / (1 - v).
    symmetric: the augmented term both ways; or the first view predicts the second alone, in half the time (the
        authors' for neural activity).
    momentum: of the target at the first and the last step, cosine between.
    target_init: the target's encoder begins as a copy, or (myow-neuro) with its layers' weights drawn anew, as torch
        draws them.
    """

    views: tuple[ViewConfig, ...] = MYOW_VIEWS
    hidden: Count = 4096
    out: Count = 256
    mined_hidden: Count = 1024
    mined_out: Count = 64
    layout: Layout = "cascaded"
    neighbors: Count = 1
    weight: Annotated[float, Range(0)] = 1.0
    warmup: Part = 0.125
    ramp_end: Part = 0.1375
    symmetric: bool = True
    momentum: tuple[Part, Part] = (0.98, 1.0)
    target_init: TargetInit = "copy"

    def __post_init__(self) -> None:
        if self.ramp_end < self.warmup:
            raise ValueError(f"ramp_end: {self.ramp_end} is before warmup, {self.warmup}")


class Whole(nn.Module):
    """A backbone, as an encoder of whole images."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return pooled(self.backbone(images))


@register("objective", "myow", config=MYOWConfig)
class MYOW(ImageObjective):
    """Works with any image backbone."""

    def __init__(self, config: MYOWConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        if sum(view.count for view in config.views) != 3:
            raise ValueError("views: myow needs three, the last a milder one")
        c, width = config, backbone.channels[-1]
        self.network = MYOWNetwork(
            Whole(backbone),
            head("byol", width, c.hidden, c.out),
            head("byol", c.out if c.layout == "cascaded" else width, c.mined_hidden, c.mined_out),
            head("byol", c.out, c.hidden, c.out),
            head("byol", c.mined_out, c.mined_hidden, c.mined_out),
            c.layout,
            c.neighbors,
            c.symmetric,
            c.target_init,
        )
        several_images(self, data)

    def backbone(self) -> nn.Module:
        return self.network.online.encoder.backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        a, b, mild = batch.views
        augmented = self.network.augmented_loss(a, b)
        out = {"loss/augmented": augmented.detach()}
        warmup, ramp_end = (round(part * self.total_steps) for part in (self.config.warmup, self.config.ramp_end))
        weight = myow_weight(step, warmup, ramp_end, self.config.weight)
        mined = augmented.new_zeros(())
        if weight > 0 and len(batch.index.unique()) > 1:
            same = batch.index[:, None] == batch.index
            mined, rows = self.network.mined_loss(mild, mild, same)
            out["loss/mined"] = mined.detach()
            if bool((batch.label >= 0).all()):  # only to watch
                out["mined_same_label"] = (batch.label == batch.label[rows]).float().mean()
        out["loss"] = (augmented + weight * mined) / (1 + weight)
        if self.watched:
            with torch.no_grad():
                out |= self.health("target", self.network.target.network.encoder(mild))
        return out

    def after_step(self, step: int) -> dict[str, float]:
        momentum = cosine(step, self.total_steps, *self.config.momentum)
        self.network.target.update(self.network.online, momentum)
        return {"momentum": momentum}
