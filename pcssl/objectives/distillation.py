"""DINO: self-distillation without labels.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, arXiv 2104.14294; the defaults
are those of the authors' code (facebookresearch/dino). A teacher, the average of the student's weights, sees the large
views of an image; the student sees all views, and predicts the teacher's class probabilities of every other view.

Ours: which views the teacher sees is told by their size; weight decay stays constant over the run; a BatchNorm in the
head (an option of the authors' code) uses the batch's statistics in the teacher too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from pcssl.config import Range
from pcssl.image.settings import ImageData
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

    def __init__(self, config: DINOConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        self.large = large_views(config.views, "dino")
        mlp = head(config.head, backbone.channels[-1], config.hidden, config.bottleneck)
        self.student = Embedder(backbone, nn.Sequential(mlp, Prototypes(config.bottleneck, config.prototypes)))
        self.teacher = Teacher(self.student, batch_statistics=True)
        self.loss = DistillationLoss(config.prototypes, config.student_temperature, config.centre_momentum)

    def backbone(self) -> nn.Module:
        return (self.student if self.config.evaluate == "student" else self.teacher.network).backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        self.student.head[1].weight.requires_grad_(step >= self.config.freeze_last * self.total_steps)
        embedding, target = self.teacher(*batch.views[: self.large])
        scores = self.student(*batch.views)[1]
        warmup = round(self.config.temperature_warmup * self.total_steps)
        temperature = linear(step, warmup, *self.config.teacher_temperature)
        loss = self.loss(scores.chunk(len(batch.views)), target.chunk(self.large), temperature)
        return {"loss": loss, **self.health("teacher", embedding)}

    def after_step(self, step: int) -> dict[str, float]:
        momentum = cosine(step, self.total_steps, *self.config.momentum)
        self.teacher.update(self.student, momentum)
        return {"momentum": momentum}
