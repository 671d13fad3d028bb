"""SwAV and MSN: which prototype one view belongs to is predicted from another view.

SwAV: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020, arXiv
2006.09882; the defaults are those of the authors' code (facebookresearch/swav). SEER (Goyal et al., arXiv 2202.08360)
is the same loss at scale: epsilon 0.03, 10 iterations, 16 000 prototypes, a head without BatchNorm.

Ours: the prototypes are of unit length by construction instead of after every update; which views give codes is told
by their size; there is no queue of earlier features, so a batch should not be much smaller than the prototypes.

MSN: Assran et al., "Masked Siamese Networks for Label-Efficient Learning", ECCV 2022, arXiv 2204.07141; the defaults are
those of the authors' code (facebookresearch/msn). Views with patches left out, and small ones, predict the teacher's
prototypes of a whole view; the prototypes that they take on average are to be many.
Ours: every image leaves out patches of its own (the authors' the same in a batch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from pcssl.config import Range
from pcssl.image.backbones.vit import ViT
from pcssl.image.settings import ImageData
from pcssl.image.tokens import pooled
from pcssl.image.views import ViewConfig
from pcssl.models.heads import Prototypes, head
from pcssl.objectives.image import Embedder, ImageBatch, ImageObjective, large_views, several_images
from pcssl.objectives.targets import sinkhorn, soft_cross_entropy
from pcssl.objectives.teacher import Teacher
from pcssl.registry import register
from pcssl.schedules import linear

Count = Annotated[int, Range(1)]
Steps = Annotated[int, Range(0)]
Part = Annotated[float, Range(0, 1)]
Temperature = Annotated[float, Range(0, low_open=True)]

_COLOR = {"jitter": (0.8, 0.8, 0.8, 0.2), "grey": 0.2, "blur": 0.5}
SWAV_VIEWS = (ViewConfig(count=2, scale=(0.14, 1.0), **_COLOR), ViewConfig(count=6, size=96, scale=(0.05, 0.14), **_COLOR))


class SwAVLoss(nn.Module):
    """Cross-entropy of the balanced assignment of one view and the prototypes' probabilities of every other view.

    epsilon, iterations: of `sinkhorn`; without iterations nothing balances the prototypes, and all images end in one.
    """

    def __init__(self, temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3):
        super().__init__()
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations

    def forward(self, scores: Sequence[Tensor], assigned: int = 2) -> Tensor:
        """Cosines (B, K) of every view with the prototypes; the first `assigned` views give codes, without gradient."""
        losses = [
            soft_cross_entropy(code, other / self.temperature)
            for i, code in enumerate(sinkhorn(s, self.epsilon, self.iterations) for s in scores[:assigned])
            for v, other in enumerate(scores)
            if v != i
        ]
        return sum(losses) / len(losses)


@dataclass(frozen=True)
class SwAVConfig:
    """views: those of the largest size, which come first, give codes.
    head, hidden, out: byol is SwAV's (a hidden layer with BatchNorm), dino SEER's shape (two without).
    epsilon, iterations: see `SwAVLoss`. freeze_prototypes: steps in which they do not move.
    """

    views: tuple[ViewConfig, ...] = SWAV_VIEWS
    head: Literal["byol", "dino", "dino_bn"] = "byol"
    hidden: Count = 2048
    out: Count = 128
    prototypes: Count = 3000
    temperature: Temperature = 0.1
    epsilon: Temperature = 0.05
    iterations: Steps = 3
    freeze_prototypes: Steps = 313


@register("objective", "swav", config=SwAVConfig)
class SwAV(ImageObjective):
    """Works with any image backbone."""

    def __init__(self, config: SwAVConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        self.large = large_views(config.views, "swav")
        mlp = head(config.head, backbone.channels[-1], config.hidden, config.out)
        self.network = Embedder(backbone, nn.Sequential(mlp, Prototypes(config.out, config.prototypes)))
        self.loss = SwAVLoss(config.temperature, config.epsilon, config.iterations)

    def backbone(self) -> nn.Module:
        return self.network.backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        self.network.head[1].weight.requires_grad_(step >= self.config.freeze_prototypes)
        embedding, scores = self.network(*batch.views)
        loss = self.loss(scores.chunk(len(batch.views)), self.large)
        used = scores.detach().argmax(1).unique().numel()
        return {"loss": loss, "prototypes_used": loss.new_tensor(used), **self.health("student", embedding)}


class MSNLoss(nn.Module):
    """Cross-entropy of a teacher's sharp probabilities and the anchors', and how unevenly the anchors use the prototypes.

    temperature: of the probabilities. sharpening: the teacher's are raised to 1 / sharpening. iterations: of `sinkhorn`
    on them. weight: of the second part.
    """

    def __init__(self, temperature: float = 0.1, sharpening: float = 0.25, iterations: int = 3, weight: float = 1.0):
        super().__init__()
        self.temperature, self.sharpening, self.iterations, self.weight = temperature, sharpening, iterations, weight

    def forward(self, anchors: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines with the prototypes: anchors (V B, K), view after view, and the teacher's (B, K), without gradient.

        Returns the loss and its two parts.
        """
        # The power of a softmax is a softmax at a lower temperature, which cannot underflow.
        sharp = (target.float() / (self.temperature * self.sharpening)).log_softmax(1)
        code = sinkhorn(sharp, 1.0, self.iterations)
        logits = anchors.float() / self.temperature
        predicted = soft_cross_entropy(code.repeat(len(anchors) // len(target), 1), logits)
        uneven = unevenness(logits.softmax(1))
        return predicted + self.weight * uneven, predicted, uneven


def unevenness(probabilities: Tensor) -> Tensor:
    """log K less the entropy of the mean of rows (M, K): 0 where all columns are used alike, log K where one is."""
    mean = probabilities.mean(0)
    return math.log(len(mean)) + (mean * mean.clamp(min=1e-30).log()).sum()


_MSN_COLOR = {"jitter": (0.4, 0.4, 0.4, 0.1), "grey": 0.2, "blur": 0.5}
MSN_VIEWS = (
    ViewConfig(count=2, scale=(0.3, 1.0), **_MSN_COLOR),
    ViewConfig(count=10, size=96, scale=(0.05, 0.3), **_MSN_COLOR),
)


@dataclass(frozen=True)
class MSNConfig:
    """views: the teacher sees the first whole; the student the others of the largest size, less patch_drop of their
    patches, and the smaller ones. head, hidden, out: MLP before the prototypes. sharpening, iterations, weight: see
    `MSNLoss`. momentum: of the teacher at the first and the last step, linear between.
    evaluate: the network that probes and exports use.
    """

    views: tuple[ViewConfig, ...] = MSN_VIEWS
    patch_drop: Annotated[float, Range(0, 1, high_open=True)] = 0.15
    head: Literal["dino", "dino_bn"] = "dino_bn"
    hidden: Count = 2048
    out: Count = 256
    prototypes: Count = 1024
    temperature: Temperature = 0.1
    sharpening: Temperature = 0.25
    iterations: Steps = 3
    weight: Annotated[float, Range(0)] = 1.0
    momentum: tuple[Part, Part] = (0.996, 1.0)
    evaluate: Literal["student", "teacher"] = "teacher"


@register("objective", "msn", config=MSNConfig)
class MSN(ImageObjective):
    """Needs the `vit` backbone, which can be shown some patches only."""

    def __init__(self, config: MSNConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        if not isinstance(backbone, ViT):
            raise ValueError(f"msn needs the model vit; {type(backbone).__name__} cannot leave patches out")
        self.large = large_views(config.views, "msn")
        if self.large < 2:
            raise ValueError("views: msn needs two or more of the largest size, one for the teacher")
        self.student = Embedder(backbone, head(config.head, backbone.channels[-1], config.hidden, config.out))
        self.teacher = Teacher(self.student, batch_statistics=True)
        self.prototypes = Prototypes(config.out, config.prototypes)
        self.loss = MSNLoss(config.temperature, config.sharpening, config.iterations, config.weight)
        several_images(self, data)

    def backbone(self) -> nn.Module:
        return (self.student if self.config.evaluate == "student" else self.teacher.network).backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        embedding, target = self.teacher(batch.views[0])
        masked = torch.cat(batch.views[1 : self.large])
        anchors = [pooled(self.student.backbone(masked, self.keep(masked)))]
        anchors += [self.student.embed(*batch.views[self.large :])] if len(batch.views) > self.large else []
        scores = self.prototypes(self.student.head(torch.cat(anchors)))
        loss, predicted, uneven = self.loss(scores, self.prototypes(target))
        parts = {"loss/predicted": predicted.detach(), "loss/uneven": uneven.detach()}
        return {"loss": loss, **parts, **self.health("teacher", embedding)}

    def keep(self, images: Tensor) -> Tensor:
        """(B, n) int64 random patches of every image, all but patch_drop of them, one at least."""
        patch = self.student.backbone.config.patch
        patches = (images.shape[2] // patch) * (images.shape[3] // patch)
        kept = max(int(patches * (1 - self.config.patch_drop)), 1)
        return torch.rand(len(images), patches, device=images.device).topk(kept).indices

    def after_step(self, step: int) -> dict[str, float]:
        momentum = linear(step, self.total_steps, *self.config.momentum)
        self.teacher.update(self.student, momentum)
        return {"momentum": momentum}
