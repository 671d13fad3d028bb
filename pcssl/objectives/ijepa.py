"""I-JEPA: the features of blocks of an image are predicted from the features of the rest.

Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture", CVPR 2023, arXiv
2301.08243; the defaults are those of the authors' code (facebookresearch/ijepa). The encoder sees a large block of
patches without those of four smaller ones; a narrow predictor is asked for the teacher's features there, place by place.

Ours: blocks reach every row and column (the authors' never touch the last); the sides of a block differ at most by
`aspect` either way (theirs 0.75 to 1.5); where contexts of a batch are cut to the smallest, chance chooses what
stays, not the order; a batch is drawn anew where a context would be nearly empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.data.masks import random_boxes
from pcssl.image.backbones.vit import Block, ViT, initialise, sine_positions
from pcssl.image.settings import ImageData
from pcssl.image.tokens import grid_places
from pcssl.image.views import ViewConfig
from pcssl.objectives.image import ImageBatch, ImageObjective, no_class_token
from pcssl.objectives.teacher import Teacher
from pcssl.registry import register
from pcssl.schedules import linear

Count = Annotated[int, Range(1)]
Part = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, 1, low_open=True)]

LEAST = 0.05  # of the patches, that a context must have; the authors' 10 of 196
DRAWS = 100  # tried at most


class LatentLoss(nn.Module):
    """Smooth L1 between predicted features and the teacher's, layer-normalised."""

    def forward(self, prediction: Tensor, target: Tensor, places: Tensor) -> Tensor:
        """prediction: (B, T, m, D). target: (B, N, D), gets no gradient. places: (B, T, m) int64 rows of the target."""
        target = F.layer_norm(target.detach().float(), target.shape[-1:])
        return F.smooth_l1_loss(prediction.float(), take(target, places))


def take(x: Tensor, places: Tensor) -> Tensor:
    """Rows (B, ...) of x (B, N, D): (B, ..., D)."""
    rows = places.flatten(1)[:, :, None].expand(-1, -1, x.shape[2])
    return x.gather(1, rows).view(*places.shape, x.shape[2])


def draw_blocks(
    grid: tuple[int, int], images: int, targets: int = 4, target: tuple[float, float] = (0.15, 0.2),
    context: tuple[float, float] = (0.85, 1.0), aspect: float = 1.5, device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The patches that are seen (images, n) and those of each target (images, targets, m), int64, never the same.

    target, context: range of a block's share of the grid. Sizes are drawn once for all images, places for each.
    ValueError where the targets leave too little.
    """
    for _ in range(DRAWS):
        coord, scene = grid_places(grid, 1, images * targets, device)
        inside = random_boxes(coord.long(), scene, target, aspect, one_size=True).view(images, targets, -1)
        first = images * inside.shape[2]
        seen = random_boxes(coord[:first].long(), scene[:first], context, one_size=True).view(images, -1)
        seen &= ~inside.any(1)
        count = int(seen.sum(1).min())
        if count >= max(1.0, LEAST * inside.shape[2]):
            chance = torch.rand(seen.shape, device=device)
            rows = torch.where(seen, chance, -1).topk(count).indices.sort(1).values
            return rows, torch.nonzero(inside)[:, 2].view(images, targets, -1)
    raise ValueError(
        f"targets: {targets} blocks of {target[0]:g} to {target[1]:g} of {grid[0]} x {grid[1]} patches leave no context; "
        "ask for fewer or smaller ones"
    )


class Predictor(nn.Module):
    """From the features of the context to those at other places; each block is predicted without knowing of the others."""

    def __init__(self, dim: int, width: int, depth: int, heads: int):
        super().__init__()
        self.enter = nn.Linear(dim, width)
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.leave = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, dim))
        self.apply(initialise)

    def forward(self, context: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """context: (B, n, dim). here: (B, n, width) its positions. there: (B, T, m, width). Returns (B, T, m, dim)."""
        images, targets = there.shape[:2]
        known = (self.enter(context) + here).repeat_interleave(targets, 0)
        asked = (self.token + there).flatten(0, 1).to(known.dtype)
        out = self.blocks(torch.cat([known, asked], 1))[:, known.shape[1] :]
        return self.leave(out).unflatten(0, (images, targets))


@dataclass(frozen=True)
class IJEPAConfig:
    """targets: blocks an image. target, context: range of a block's share of the image. aspect: at most this between
    the sides of a target. width, depth, heads: of the predictor. momentum: of the teacher at the first and the last
    step, linear between. evaluate: the network that probes and exports use.
    """

    views: tuple[ViewConfig, ...] = (ViewConfig(scale=(0.3, 1.0), flip=0),)
    targets: Count = 4
    target: tuple[Share, Share] = (0.15, 0.2)
    context: tuple[Share, Share] = (0.85, 1.0)
    aspect: Annotated[float, Range(1)] = 1.5
    width: Count = 384
    depth: Count = 12
    heads: Count = 12
    momentum: tuple[Part, Part] = (0.996, 1.0)
    evaluate: Literal["student", "teacher"] = "teacher"

    def __post_init__(self) -> None:
        for name in ("target", "context"):
            if getattr(self, name)[0] > getattr(self, name)[1]:
                raise ValueError(f"{name}: {getattr(self, name)} is no range")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width: {self.width} must be a multiple of 4 and of the {self.heads} heads")


@register("objective", "ijepa", config=IJEPAConfig)
class IJEPA(ImageObjective):
    """Needs the `vit` backbone without a class token, which nothing would teach to stand for the image."""

    def __init__(self, config: IJEPAConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        if not isinstance(backbone, ViT):
            raise ValueError(f"ijepa needs the model vit; {type(backbone).__name__} cannot leave patches out")
        no_class_token(backbone, "ijepa")
        self.student = backbone
        self.teacher = Teacher(backbone)
        self.predictor = Predictor(backbone.channels[-1], config.width, config.depth, config.heads)
        self.loss = LatentLoss()
        for view in config.views:  # tells at once if the blocks do not fit
            self._blocks(view.size, view.size, 1)

    def backbone(self) -> nn.Module:
        return self.student if self.config.evaluate == "student" else self.teacher.network

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        losses, features = [], []
        for images in batch.views:
            keep, places = self._blocks(*images.shape[2:], len(images), images.device)
            target = self.teacher(images)[0]
            losses.append(self.loss(self.predict(images, keep, places), target.dense, places))
            features.append(target.pooled)
        return {"loss": torch.stack(losses).mean(), **self.health("teacher", torch.cat(features))}

    def predict(self, images: Tensor, keep: Tensor, places: Tensor) -> Tensor:
        """Features (B, T, m, D) at places (B, T, m), from the patches keep (B, n)."""
        grid = self._grid(*images.shape[2:])
        positions = sine_positions(grid, self.config.width, self.student.config.grid, images.device)
        return self.predictor(self.student(images, keep)[0].dense, positions[keep], positions[places])

    def after_step(self, step: int) -> dict[str, float]:
        momentum = linear(step, self.total_steps, *self.config.momentum)
        self.teacher.update(self.student, momentum)
        return {"momentum": momentum}

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        patch = self.student.config.patch
        return height // patch, width // patch

    def _blocks(self, height: int, width: int, images: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        c = self.config
        return draw_blocks(self._grid(height, width), images, c.targets, c.target, c.context, c.aspect, device)
