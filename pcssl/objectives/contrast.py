"""MoCo v3: contrast with a momentum encoder, in-batch negatives; and SimCLR's loss, which has no such encoder.

Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021, arXiv 2104.02057; the
defaults are those of the authors' code for ViTs (facebookresearch/moco-v3). The paper's: the loss and its scale, the
projector and the predictor, the momentum's cosine, the patch embedding that stays random, batch statistics in the teacher.
Ours: negatives are those of one device; any backbone may be used, with pooled tokens where there is no class token.

NT-Xent: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv 2002.05709.
The paper's: all other views of the batch are negatives, cosines over a temperature. Ours: negatives of one device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.image.settings import ImageData
from pcssl.image.views import MOCO_VIEWS, ViewConfig
from pcssl.models.heads import head
from pcssl.objectives.image import Embedder, ImageBatch, ImageObjective, several_images
from pcssl.objectives.teacher import Teacher
from pcssl.registry import register
from pcssl.schedules import cosine

Count = Annotated[int, Range(1)]
Part = Annotated[float, Range(0, 1)]


class InfoNCE(nn.Module):
    """Which of the B keys belongs to a query? Cross-entropy over cosines; times 2 temperature, as MoCo v3 scales it."""

    def __init__(self, temperature: float = 0.2):
        super().__init__()
        self.temperature = temperature

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, D) each, row i of both belonging together. The keys get no gradient."""
        with torch.autocast(queries.device.type, enabled=False):  # bfloat16 rounds cosines by up to 0.004
            logits = F.normalize(queries.float(), dim=1) @ F.normalize(keys.detach().float(), dim=1).T / self.temperature
        return 2 * self.temperature * F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class NTXent(nn.Module):
    """SimCLR's: which of the 2 B - 1 others is a view of the same image?"""

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B, D) each, row i of both of one image."""
        z = F.normalize(torch.cat([a, b]).float(), dim=1)
        with torch.autocast(z.device.type, enabled=False):
            logits = (z @ z.T / self.temperature).fill_diagonal_(-torch.inf)
        return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(a)))


@dataclass(frozen=True)
class MoCoV3Config:
    """views: two. hidden, out: of the projector and the predictor. temperature: of the softmax.
    momentum: of the key encoder at the first and the last step, cosine between.
    freeze_patches: a ViT's patch embedding stays random, which the paper found to be more stable.
    """

    views: tuple[ViewConfig, ...] = MOCO_VIEWS
    hidden: Count = 4096
    out: Count = 256
    temperature: Annotated[float, Range(0, low_open=True)] = 0.2
    momentum: tuple[Part, Part] = (0.99, 1.0)
    freeze_patches: bool = True
    evaluate: Literal["student", "teacher"] = "student"


@register("objective", "mocov3", config=MoCoV3Config)
class MoCoV3(ImageObjective):
    """Works with any image backbone."""

    def __init__(self, config: MoCoV3Config, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        if sum(view.count for view in config.views) != 2:
            raise ValueError("views: mocov3 needs two")
        if config.freeze_patches and hasattr(backbone, "patch_embed"):
            backbone.patch_embed.requires_grad_(False)
        self.student = Embedder(backbone, head("mocov3", backbone.channels[-1], config.hidden, config.out))
        self.teacher = Teacher(self.student, batch_statistics=True)
        self.predictor = head("mocov3_predictor", config.out, config.hidden, config.out)
        self.loss = InfoNCE(config.temperature)
        several_images(self, data)

    def backbone(self) -> nn.Module:
        return (self.student if self.config.evaluate == "student" else self.teacher.network).backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        # A view at a time: BatchNorm's statistics of one must not tell of the other.
        embedding, queries = zip(*(self.student(view) for view in batch.views))
        queries = [self.predictor(q) for q in queries]
        keys = [self.teacher(view)[1] for view in batch.views]
        loss = self.loss(queries[0], keys[1]) + self.loss(queries[1], keys[0])
        return {"loss": loss, **self.health("student", torch.cat(embedding))}

    def after_step(self, step: int) -> dict[str, float]:
        momentum = cosine(step, self.total_steps, *self.config.momentum)
        self.teacher.update(self.student, momentum)
        return {"momentum": momentum}
