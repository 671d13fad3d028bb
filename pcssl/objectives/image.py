"""What the methods on images share: views as samples, a backbone with a head on whole images, health metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pcssl.errors import UserError
from pcssl.image.backbones.vit import ViT
from pcssl.image.picture import Picture
from pcssl.image.settings import ImageData
from pcssl.image.tokens import pooled
from pcssl.image.views import ViewConfig, draw, make_views
from pcssl.objectives.base import Objective
from pcssl.statistics import effective_rank, feature_std


@dataclass(frozen=True)
class ImageSample:
    """pixels: (C, H, W) float32 in 0..1. draws: (views, DRAWS). label, index: of the picture."""

    pixels: Tensor
    draws: Tensor
    label: int
    index: int


@dataclass(frozen=True)
class ImageBatch:
    """views: a list of (B, C, h, w) float32 in -1..1, in the order of the config.

    maps: a list of (B, 2, 3) float32, from the pixels of each view to those of its image, see `views.to_source`.
    index: (B,) int64 numbers of the images in the dataset. label: (B,) int64, -1 = none.
    """

    views: list[Tensor]
    maps: list[Tensor]
    index: Tensor
    label: Tensor

    @property
    def num_images(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> ImageBatch:
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> ImageBatch:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> ImageBatch:
        views, maps = ([change(x) for x in part] for part in (self.views, self.maps))
        return ImageBatch(views, maps, change(self.index), change(self.label))


@dataclass(frozen=True)
class ImageSampler:
    """See `Objective.sampler`."""

    views: tuple[ViewConfig, ...]
    channels: int

    def __call__(self, picture: Picture, rng: torch.Generator) -> ImageSample:
        return ImageSample(picture.values(self.channels), draw(self.views, rng), picture.label, picture.index)


class ImageObjective(Objective):
    """A method on images: `forward` gets an `ImageBatch`. Its config has `views: tuple[ViewConfig, ...]`."""

    counted = "images"

    def __init__(self, config: Any, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__()
        if not isinstance(data, ImageData):
            raise UserError("this objective works on images; say `kind: images` in the config and choose an image dataset")
        self.config, self.data, self.total_steps = config, data, total_steps
        try_views(backbone, config.views, data.channels)

    def sampler(self) -> Callable[[Picture, torch.Generator], ImageSample]:
        return ImageSampler(self.config.views, self.data.channels)

    def collate(self, samples: list[ImageSample]) -> ImageBatch:
        draws = torch.stack([s.draws for s in samples])
        views, maps = make_views([s.pixels for s in samples], draws, self.config.views)
        label, index = (torch.tensor([getattr(s, name) for s in samples]) for name in ("label", "index"))
        return ImageBatch(views, maps, index, label)

    def health(self, name: str, features: Tensor) -> dict[str, Tensor]:
        """Numbers to log of features (N, D): their spread, and on watched steps the effective rank of up to 2048."""
        out = {f"std/{name}": feature_std(features.detach())}
        if self.watched:
            rows = torch.linspace(0, len(features) - 1, min(len(features), 2048), device=features.device).long()
            out[f"rank/{name}"] = effective_rank(features.detach()[rows])
        return out


def large_views(views: Sequence[ViewConfig], method: str) -> int:
    """How many views are of the largest size; ValueError unless there are two views or more, the largest first."""
    sizes = [view.size for view in views for _ in range(view.count)]
    if len(sizes) < 2 or sizes != sorted(sizes, reverse=True):
        raise ValueError(f"views: {method} needs two or more, the largest first")
    return sizes.count(sizes[0])


@torch.no_grad()
def try_views(backbone: nn.Module, views: Sequence[ViewConfig], channels: int) -> None:
    """UserError if the backbone cannot take a view of some size."""
    was_training = backbone.training
    backbone.eval()
    for size in sorted({view.size for view in views}):
        try:
            backbone(torch.zeros(1, channels, size, size))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"objective.views: the model cannot take views of {size} px: {error}") from error
    backbone.train(was_training)


def no_class_token(vit: ViT, method: str) -> None:
    """ValueError if the backbone has one: evaluation would take it for the image, and the method teaches it nothing."""
    if vit.config.cls_token:
        raise ValueError(f"{method} has no use for a class token; set model.cls_token=false")


def several_images(method: nn.Module, data: ImageData) -> None:
    """ValueError if a batch is one image and some BatchNorm1d of the method would get one row."""
    if data.batch_size < 2 and any(isinstance(module, nn.BatchNorm1d) for module in method.modules()):
        raise ValueError("its heads have BatchNorm, which needs two images or more; raise data.batch_size")


class Embedder(nn.Module):
    """A backbone and a head on what stands for a whole image."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, *views: Tensor) -> tuple[Tensor, Tensor]:
        """V views (B, C, h, w), of any sizes -> embeddings (V B, D) and what the head makes of them (V B, K).

        Views of one size go through the backbone together, all of them through the head.
        """
        embedding = self.embed(*views)
        return embedding, self.head(embedding)

    def embed(self, *views: Tensor) -> Tensor:
        """The embeddings alone."""
        embedded: dict[int, Tensor] = {}
        for shape in {view.shape: None for view in views}:
            rows = [i for i, view in enumerate(views) if view.shape == shape]
            embedded |= zip(rows, pooled(self.backbone(torch.cat([views[i] for i in rows]))).chunk(len(rows)))
        return torch.cat([embedded[i] for i in range(len(views))])
