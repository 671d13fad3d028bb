"""MAE, SimMIM and BEiT: what is hidden of an image is predicted, as pixels or as words of a codebook.

MAE: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv 2111.06377; the defaults are those of
the authors' code (facebookresearch/mae). The encoder sees a random quarter of an image's patches; a small decoder gets
their features, and a learnt token elsewhere, and predicts the pixels of the patches that were hidden.
Ours: no class token, which no loss would reach.

SimMIM: Xie et al., "SimMIM: a Simple Framework for Masked Image Modeling", CVPR 2022, arXiv 2111.09886; the defaults are
those of the authors' code (microsoft/SimMIM) for ViTs. The encoder sees all patches, a learnt token in place of 60 % of the
squares of 32 px; one linear layer predicts their pixels. Ours: no class token.

BEiT: Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022, arXiv 2106.08254; the mask is that of the
authors' code (microsoft/unilm): boxes over 75 of 196 patches. A linear layer predicts the words of the hidden patches.
Ours: the words are not those of a discrete VAE but the nearest of a k-means codebook of patches' pixels; no class token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.clusters import KMeans
from pcssl.config import Range
from pcssl.data.masks import block_mask, boxes_mask
from pcssl.errors import UserError
from pcssl.image.backbones.vit import Block, ViT, initialise, patchify, sine_positions
from pcssl.image.settings import ImageData
from pcssl.image.tokens import grid_places
from pcssl.image.views import CROP_VIEWS, ViewConfig
from pcssl.objectives.image import ImageBatch, ImageObjective, no_class_token
from pcssl.registry import register

Count = Annotated[int, Range(1)]
Ratio = Annotated[float, Range(0, 1, low_open=True, high_open=True)]
Share = Annotated[float, Range(0, 1, low_open=True)]


class MaskedPixelLoss(nn.Module):
    """Mean error on hidden patches, to the given power: squared (MAE) or absolute (SimMIM).

    normalize: every target patch to mean 0 and variance 1 first.
    """

    def __init__(self, normalize: bool = True, power: int = 2):
        super().__init__()
        self.normalize, self.power = normalize, power

    def forward(self, prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        """prediction, target: (B, N, P) pixels of patches. hidden: (B, N) bool."""
        if self.normalize:
            target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
        return (prediction.float() - target)[hidden].abs().pow(self.power).mean()


class MaskedWordLoss(nn.Module):
    """Mean cross-entropy of the words of hidden patches."""

    def forward(self, prediction: Tensor, words: Tensor, hidden: Tensor) -> Tensor:
        """prediction: (B, N, K) logits. words: (B, N) int64 below K. hidden: (B, N) bool."""
        return F.cross_entropy(prediction[hidden].float(), words[hidden])


class Codebook(nn.Module):
    """Words for patches: the nearest of `size` centres, found by k-means in the first patches that it sees.

    The centres are buffers, so a checkpoint has them. Pixels are standardised, place by place.
    """

    def __init__(self, size: int, pixels: int):
        super().__init__()
        self.register_buffer("centres", torch.zeros(size, pixels))
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("std", torch.ones(pixels))
        self.register_buffer("ready", torch.tensor(False))

    @torch.no_grad()
    def fit(self, patches: Tensor) -> None:
        """patches: (M, pixels) float. ValueError if they have fewer different values than there are words."""
        found = KMeans.fit(patches, len(self.centres), device=patches.device)
        if len(found.centres) < len(self.centres):
            raise ValueError(f"codes: {len(self.centres)} are more than the {len(found.centres)} different patches of a batch")
        for name in ("centres", "mean", "std"):
            getattr(self, name).copy_(getattr(found, name))
        self.ready.fill_(True)

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, pixels) -> (B, N) int64. The first call finds the centres."""
        flat = patches.flatten(0, 1).float()
        if not self.ready:
            self.fit(flat)
        return KMeans(self.centres, self.mean, self.std)(flat).to(patches.device).view(patches.shape[:2])


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
    mask_ratio: Ratio = 0.75
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
        no_class_token(backbone, "mae")
        self.patch = backbone.config.patch
        try_masks(self.mask, config.views, data.channels, self.patch)
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
            hidden = self.mask(images)
            prediction, visible = self.reconstruct(images, hidden)
            losses.append(self.loss(prediction, patchify(images, self.patch), hidden))
            features.append(visible.mean(1))
        return {"loss": torch.stack(losses).mean(), **self.health("visible", torch.cat(features))}

    def mask(self, images: Tensor) -> Tensor:
        """(B, N) bool."""
        return patch_mask(images, self.patch, self.config.mask_ratio)

    def reconstruct(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted pixels (B, N, C patch patch), and the features (B, n, D) of the visible patches."""
        keep = torch.nonzero(~hidden)[:, 1].view(len(images), -1)
        visible = self.encoder(images, keep)[0].dense
        grid = images.shape[2] // self.patch, images.shape[3] // self.patch
        positions = sine_positions(grid, self.config.width, self.encoder.config.grid, images.device)
        return self.decoder(visible, hidden, positions), visible


class TokenEncoder(nn.Module):
    """A ViT that sees a learnt token in place of hidden patches, and a linear layer on every patch."""

    def __init__(self, vit: ViT, out: int):
        super().__init__()
        self.backbone = vit
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(vit.channels[-1]), std=0.02))
        self.head = nn.Linear(vit.channels[-1], out)

    def forward(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, C, H, W). hidden: (B, N) bool. Returns features (B, N, D) and what the head makes of them."""
        features = self.backbone(images, hidden=hidden, token=self.token)[0].dense
        return features, self.head(features)


class MaskedTokens(ImageObjective, ABC):
    """What SimMIM and BEiT share. Needs the `vit` backbone, which can be shown a token in place of a patch."""

    def __init__(self, config, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        if not isinstance(backbone, ViT):
            raise ValueError(f"{type(self).__name__.lower()} needs the model vit; {type(backbone).__name__} has no token to hide patches with")
        no_class_token(backbone, type(self).__name__.lower())
        self.patch = backbone.config.patch
        try_masks(self.mask, config.views, data.channels, self.patch)
        self.network = TokenEncoder(backbone, self.width(data.channels * self.patch**2))

    @abstractmethod
    def width(self, pixels: int) -> int:
        """What the head predicts of a patch of so many values."""

    @abstractmethod
    def mask(self, images: Tensor) -> Tensor:
        """(B, N) bool."""

    @abstractmethod
    def compare(self, prediction: Tensor, patches: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """`loss` and other numbers. prediction: (B, N, width). patches: (B, N, pixels)."""

    def backbone(self) -> nn.Module:
        return self.network.backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        images = torch.cat(batch.views)
        hidden = self.mask(images)
        features, prediction = self.network(images, hidden)
        found = self.compare(prediction, patchify(images, self.patch), hidden)
        return found | self.health("tokens", features.mean(1))


@dataclass(frozen=True)
class SimMIMConfig:
    """views: of one size. mask_ratio: part of the squares that is hidden. cell: patches a side of such a square."""

    views: tuple[ViewConfig, ...] = (ViewConfig(scale=(0.67, 1.0)),)
    mask_ratio: Ratio = 0.6
    cell: Count = 2

    def __post_init__(self) -> None:
        one_size(self.views)


@register("objective", "simmim", config=SimMIMConfig)
class SimMIM(MaskedTokens):
    def __init__(self, config: SimMIMConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        self.loss = MaskedPixelLoss(normalize=False, power=1)

    def width(self, pixels: int) -> int:
        return pixels

    def mask(self, images: Tensor) -> Tensor:
        return patch_mask(images, self.patch, self.config.mask_ratio, self.config.cell)

    def compare(self, prediction: Tensor, patches: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        return {"loss": self.loss(prediction, patches, hidden)}


@dataclass(frozen=True)
class BEiTConfig:
    """views: of one size. mask_ratio: part of the patches that is hidden, in boxes. box: range of a box's share of the
    image. aspect: at most this between the sides of a box. codes: words of the codebook.
    """

    views: tuple[ViewConfig, ...] = (ViewConfig(scale=(0.08, 1.0)),)
    mask_ratio: Ratio = 75 / 196
    box: tuple[Share, Share] = (16 / 196, 75 / 196)
    aspect: Annotated[float, Range(1)] = 10 / 3
    codes: Annotated[int, Range(2)] = 8192

    def __post_init__(self) -> None:
        one_size(self.views)
        if self.box[0] > self.box[1]:
            raise ValueError(f"box: {self.box} is no range")


@register("objective", "beit", config=BEiTConfig)
class BEiT(MaskedTokens):
    def __init__(self, config: BEiTConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        self.codebook = Codebook(config.codes, data.channels * self.patch**2)
        self.loss = MaskedWordLoss()
        patches = data.batch_size * sum(view.count * (view.size // self.patch) ** 2 for view in config.views)
        if config.codes > patches:
            raise ValueError(f"codes: {config.codes} are more than the {patches} patches of a batch; ask for fewer or raise data.batch_size")

    def width(self, pixels: int) -> int:
        return self.config.codes

    def mask(self, images: Tensor) -> Tensor:
        coord, image = grid_places(self._grid(images), 1, len(images), images.device)
        c = self.config
        return boxes_mask(coord.long(), image, c.mask_ratio, c.box, c.aspect).view(len(images), -1)

    def compare(self, prediction: Tensor, patches: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        try:
            words = self.codebook(patches)
        except ValueError as error:
            raise UserError(f"objective.{error}; ask for fewer or raise data.batch_size") from error
        right = (prediction.argmax(2) == words)[hidden].float().mean()
        return {"loss": self.loss(prediction, words, hidden), "accuracy": right}

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.patch, images.shape[3] // self.patch


def one_size(views: tuple[ViewConfig, ...]) -> None:
    if len({view.size for view in views}) != 1:
        raise ValueError("views: all must be of one size")


def patch_mask(images: Tensor, patch: int, ratio: float, cell: int = 1) -> Tensor:
    """(B, N) bool: hide `ratio` of every image's squares of `cell` x `cell` patches, rounded up, the same number in each."""
    grid = images.shape[2] // patch, images.shape[3] // patch
    coord, image = grid_places(grid, 1, len(images), images.device)
    return block_mask(coord.floor().long(), image, cell, ratio, up=True).view(len(images), -1)


def try_masks(mask: Callable[[Tensor], Tensor], views: Sequence[ViewConfig], channels: int, patch: int) -> None:
    """ValueError if nothing of a view would be hidden, or all of it."""
    with torch.random.fork_rng(devices=[]):
        for view in views:
            hidden = mask(torch.zeros(1, channels, view.size, view.size))
            if not hidden.any() or hidden.all():
                what = "nothing" if not hidden.any() else "everything"
                raise ValueError(f"of a view of {view.size} px, {hidden.shape[1]} patches of {patch} px, the mask hides {what}")
