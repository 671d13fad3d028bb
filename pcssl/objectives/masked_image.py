"""MAE: masked autoencoder.

He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv 2111.06377; the defaults are those of
the authors' code (facebookresearch/mae). The encoder sees a random quarter of an image's patches; a small decoder gets
their features, and a learnt token elsewhere, and predicts the pixels of the patches that were hidden.

Ours: the class token does not enter the decoder; the number of hidden patches is rounded, not cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from pcssl.config import Range
from pcssl.data.masks import block_mask
from pcssl.image.backbones.vit import Block, ViT, initialise, patchify, sine_positions
from pcssl.image.settings import ImageData
from pcssl.image.tokens import grid_places
from pcssl.image.views import CROP_VIEWS, ViewConfig
from pcssl.objectives.image import ImageBatch, ImageObjective
from pcssl.registry import register

Count = Annotated[int, Range(1)]


class MaskedPixelLoss(nn.Module):
    """Mean squared error on hidden patches. normalize: every target patch to mean 0 and variance 1 first."""

    def __init__(self, normalize: bool = True):
        super().__init__()
        self.normalize = normalize

    def forward(self, prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        """prediction, target: (B, N, P) pixels of patches. hidden: (B, N) bool."""
        if self.normalize:
            target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
        return (prediction.float() - target)[hidden].square().mean()


class Decoder(nn.Module):
    """From the features of visible patches to the pixels of all."""

    def __init__(self, dim: int, width: int, depth: int, heads: int, pixels: int):
        super().__init__()
        self.enter = nn.Linear(dim, width)
        self.token = nn.Parameter(nn.init.normal_(torch.empty(width), std=0.02))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.leave = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, pixels))
        self.apply(initialise)

    def forward(self, visible: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
        """visible: (B, n, dim). hidden: (B, N) bool. positions: (N, width). Returns (B, N, pixels)."""
        x = self.token.expand(*hidden.shape, -1).clone()
        x[~hidden] = self.enter(visible).flatten(0, 1).to(x.dtype)
        return self.leave(self.blocks(x + positions.to(x.dtype)))


@dataclass(frozen=True)
class MAEConfig:
    """mask_ratio: part of the patches that is hidden. normalize_targets: see `MaskedPixelLoss`.
    width, depth, heads: of the decoder.
    """

    views: tuple[ViewConfig, ...] = CROP_VIEWS
    mask_ratio: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 0.75
    normalize_targets: bool = True
    width: Count = 512
    depth: Count = 8
    heads: Count = 16

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width: {self.width} must be a multiple of 4 and of the {self.heads} heads")


@register("objective", "mae", config=MAEConfig)
class MAE(ImageObjective):
    """Needs the `vit` backbone, which can be shown some patches only."""

    def __init__(self, config: MAEConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        if not isinstance(backbone, ViT):
            raise ValueError(f"mae needs the model vit; {type(backbone).__name__} cannot leave patches out")
        self.patch = backbone.config.patch
        self.encoder = backbone
        self.decoder = Decoder(
            backbone.channels[-1], config.width, config.depth, config.heads, data.channels * self.patch**2
        )
        self.loss = MaskedPixelLoss(config.normalize_targets)

    def backbone(self) -> nn.Module:
        return self.encoder

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        losses, features = [], []
        for images in batch.views:
            hidden = patch_mask(images, self.patch, self.config.mask_ratio)
            prediction, visible = self.reconstruct(images, hidden)
            losses.append(self.loss(prediction, patchify(images, self.patch), hidden))
            features.append(visible.mean(1))
        return {"loss": torch.stack(losses).mean(), **self.health("visible", torch.cat(features))}

    def reconstruct(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted pixels (B, N, C patch patch), and the features (B, n, D) of the visible patches."""
        keep = torch.nonzero(~hidden)[:, 1].view(len(images), -1)
        visible = self.encoder(images, keep)[0].dense
        grid = images.shape[2] // self.patch, images.shape[3] // self.patch
        positions = sine_positions(grid, self.config.width, self.encoder.config.grid, images.device)
        return self.decoder(visible, hidden, positions), visible


def patch_mask(images: Tensor, patch: int, ratio: float, cell: int = 1) -> Tensor:
    """(B, N) bool: hide `ratio` of every image's squares of `cell` x `cell` patches, the same number in each."""
    grid = images.shape[2] // patch, images.shape[3] // patch
    coord, image = grid_places(grid, 1, len(images), images.device)
    return block_mask(coord.floor().long(), image, cell, ratio).view(len(images), -1)
