"""DINO and iBOT: self-distillation without labels, of images and of hidden patches.

DINO: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, arXiv 2104.14294; the defaults
are those of the authors' code (facebookresearch/dino). A teacher, the average of the student's weights, sees the large
views of an image; the student sees all views, and predicts the teacher's class probabilities of every other view.

Ours: which views the teacher sees is told by their size; weight decay stays constant over the run; a BatchNorm in the
head (an option of the authors' code) uses the batch's statistics in the teacher too.

iBOT: Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR 2022, arXiv 2111.07832; the defaults are
those of the authors' code (bytedance/ibot), but for the views, which are DINO's. The student also predicts the teacher's
class probabilities of patches that it does not see, in the same view; one head serves images and patches.
Ours: all masked views of a batch hide the same number of patches; the centre of patches is that of the hidden ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from pcssl.config import Range
from pcssl.data.masks import boxes_mask
from pcssl.image.backbones.vit import ViT
from pcssl.image.settings import ImageData
from pcssl.image.tokens import grid_places
from pcssl.image.views import DINO_VIEWS, ViewConfig
from pcssl.models.heads import Prototypes, head
from pcssl.objectives.image import Embedder, ImageBatch, ImageObjective, large_views
from pcssl.objectives.targets import Centre, soft_cross_entropy
from pcssl.objectives.teacher import Teacher
from pcssl.registry import register
from pcssl.schedules import cosine, linear

Count = Annotated[int, Range(1)]
Part = Annotated[float, Range(0, 1)]
Temperature = Annotated[float, Range(0, low_open=True)]


class DistillationLoss(nn.Module):
    """Cross-entropy of a teacher's centred, sharpened probabilities and a student's, over pairs of different views."""

    def __init__(self, classes: int, student_temperature: float = 0.1, centre_momentum: float = 0.9):
        super().__init__()
        self.student_temperature = student_temperature
        self.centre = Centre(classes, centre_momentum)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
        """Scores (B, K) of every view; the teacher's views are the student's first. Moves the centre when training."""
        targets = [self.centre(scores, temperature) for scores in teacher]
        losses = [
            soft_cross_entropy(target, scores / self.student_temperature)
            for q, target in enumerate(targets)
            for v, scores in enumerate(student)
            if v != q
        ]
        if self.training:
            for scores in teacher:
                self.centre.update(scores)
        return sum(losses) / len(losses)


@dataclass(frozen=True)
class DINOConfig:
    """views: the teacher sees those of the largest size, which come first.
    head, hidden, bottleneck, prototypes: MLP (dino_bn: with BatchNorm) to `bottleneck`, then cosines to `prototypes`.
    teacher_temperature: at the start, and after the first `temperature_warmup` of the steps.
    momentum: of the teacher at the first and the last step, cosine between. freeze_last: part of the steps in which
        the prototypes do not move. evaluate: the network that probes and exports use.
    """

    views: tuple[ViewConfig, ...] = DINO_VIEWS
    head: Literal["dino", "dino_bn"] = "dino"
    hidden: Count = 2048
    bottleneck: Count = 256
    prototypes: Count = 65_536
    student_temperature: Temperature = 0.1
    teacher_temperature: tuple[Temperature, Temperature] = (0.04, 0.04)
    temperature_warmup: Part = 0.1
    momentum: tuple[Part, Part] = (0.996, 1.0)
    centre_momentum: Part = 0.9
    freeze_last: Part = 0.01
    evaluate: Literal["student", "teacher"] = "teacher"


@register("objective", "dino", config=DINOConfig)
class DINO(ImageObjective):
    """Works with any image backbone."""

    embedder = Embedder

    def __init__(self, config: DINOConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        self.large = large_views(config.views, type(self).__name__.lower())
        self.student = self.network(backbone)
        self.teacher = Teacher(self.student, batch_statistics=True)
        self.loss = DistillationLoss(config.prototypes, config.student_temperature, config.centre_momentum)

    def network(self, backbone: nn.Module) -> nn.Module:
        """What the student is, and the teacher a copy of."""
        return self.embedder(backbone, self.scores_of(backbone.channels[-1], self.config.prototypes))

    def scores_of(self, dim: int, prototypes: int) -> nn.Sequential:
        mlp = head(self.config.head, dim, self.config.hidden, self.config.bottleneck)
        return nn.Sequential(mlp, Prototypes(self.config.bottleneck, prototypes))

    def temperature(self, step: int) -> float:
        """The teacher's."""
        warmup = round(self.config.temperature_warmup * self.total_steps)
        return linear(step, warmup, *self.config.teacher_temperature)

    def backbone(self) -> nn.Module:
        return (self.student if self.config.evaluate == "student" else self.teacher.network).backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        self.student.head[1].weight.requires_grad_(step >= self.config.freeze_last * self.total_steps)
        embedding, target = self.teacher(*batch.views[: self.large])
        scores = self.student(*batch.views)[1]
        loss = self.loss(scores.chunk(len(batch.views)), target.chunk(self.large), self.temperature(step))
        return {"loss": loss, **self.health("teacher", embedding)}

    def after_step(self, step: int) -> dict[str, float]:
        momentum = cosine(step, self.total_steps, *self.config.momentum)
        self.teacher.update(self.student, momentum)
        return {"momentum": momentum}


class PatchDistillationLoss(nn.Module):
    """Cross-entropy of a teacher's centred, sharpened probabilities and a student's, patch by patch."""

    def __init__(self, classes: int, student_temperature: float = 0.1, centre_momentum: float = 0.9):
        super().__init__()
        self.student_temperature = student_temperature
        self.centre = Centre(classes, centre_momentum)

    def forward(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Scores (M, K) of hidden patches. Moves the centre when training."""
        loss = soft_cross_entropy(self.centre(teacher, temperature), student / self.student_temperature)
        if self.training:
            self.centre.update(teacher)
        return loss


class PatchEmbedder(Embedder):
    """A ViT and a head on whole images and on hidden patches."""

    def __init__(self, backbone: ViT, head: nn.Module):
        super().__init__(backbone, head)
        self.token = nn.Parameter(torch.zeros(backbone.channels[-1]))

    def forward(self, views: Sequence[Tensor], hidden: Tensor, show: bool) -> tuple[Tensor, Tensor, Tensor]:
        """views: V times (B, C, h, w). hidden: (L B, N) bool, patches of the first L views. show: it sees them all the same.

        Returns embeddings (V B, D), what the head makes of them (V B, K), and of the M hidden patches (M, K).
        """
        large = len(hidden) // len(views[0])
        images = torch.cat(list(views[:large]))
        level = self.backbone(images)[-1] if show else self.backbone(images, hidden=hidden, token=self.token)[-1]
        rest = [self.embed(*views[large:])] if len(views) > large else []
        embedding = torch.cat([level.pooled, *rest])
        patches = level.dense[hidden]
        # Together, so that a BatchNorm sees images and patches alike.
        scores, of_patches = self.head(torch.cat([embedding, patches])).split([len(embedding), len(patches)])
        return embedding, scores, of_patches


@dataclass(frozen=True)
class IBOTConfig(DINOConfig):
    """As for dino, and:
    masked: part of the large views that hide patches. mask_ratio: range of the part of their patches, in boxes.
    patch_weight: of the patches' loss beside that of the images.
    """

    prototypes: Count = 8192
    teacher_temperature: tuple[Temperature, Temperature] = (0.04, 0.07)
    temperature_warmup: Part = 30 / 800
    masked: Part = 0.5
    mask_ratio: tuple[Part, Part] = (0.1, 0.5)
    patch_weight: Annotated[float, Range(0)] = 1.0

    def __post_init__(self) -> None:
        if self.mask_ratio[0] > self.mask_ratio[1]:
            raise ValueError(f"mask_ratio: {self.mask_ratio} is no range")


@register("objective", "ibot", config=IBOTConfig)
class IBOT(DINO):
    """Needs the `vit` backbone, which can be shown a token in place of a patch."""

    embedder = PatchEmbedder

    def __init__(self, config: IBOTConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        if not isinstance(backbone, ViT):
            raise ValueError(f"ibot needs the model vit; {type(backbone).__name__} has no token to hide patches with")
        super().__init__(config, backbone, data, total_steps)
        self.patch_loss = PatchDistillationLoss(config.prototypes, config.student_temperature, config.centre_momentum)

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        self.student.head[1].weight.requires_grad_(step >= self.config.freeze_last * self.total_steps)
        views, large = batch.views, batch.views[: self.large]
        hidden = self.mask(torch.cat(large))
        embedding, target, target_patches = self.teacher(large, hidden, True)
        _, scores, patches = self.student(views, hidden, False)
        temperature = self.temperature(step)
        image = self.loss(scores.chunk(len(views)), target.chunk(self.large), temperature)
        patch = self.patch_loss(patches, target_patches, temperature)
        loss = image + self.config.patch_weight * patch
        return {"loss": loss, "loss/image": image.detach(), "loss/patch": patch.detach(), **self.health("teacher", embedding)}

    def mask(self, images: Tensor) -> Tensor:
        """(B, N) bool: the same number of patches, one at least, in `masked` of the images, one at least."""
        grid = tuple(n // self.student.backbone.config.patch for n in images.shape[2:])
        coord, image = grid_places(grid, 1, len(images), images.device)
        low, high = self.config.mask_ratio
        ratio = max(low + (high - low) * float(torch.rand(())), 1 / (grid[0] * grid[1]))
        chosen = torch.rand(len(images), device=images.device).argsort() < max(round(self.config.masked * len(images)), 1)
        return boxes_mask(coord.long(), image, ratio).view(len(images), -1) & chosen[:, None]
