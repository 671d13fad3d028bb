"""A network of your own as a backbone."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from pcssl.config import Range
from pcssl.errors import UserError
from pcssl.image.tokens import ImageTokens
from pcssl.registry import register

Count = Annotated[int, Range(1)]


@dataclass(frozen=True)
class ModuleConfig:
    """entry: "package.module:callable" that makes the network. options: what it is called with.

    in_channels, size: of an image (px) that it is tried with, to learn its levels.
    """

    entry: str
    options: dict[str, Any] = field(default_factory=dict)
    in_channels: Count = 3
    size: Count = 224


@register("model", "module", config=ModuleConfig)
def module_(config: ModuleConfig) -> ModuleBackbone:
    name, _, attribute = config.entry.partition(":")
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"model.entry: {config.entry!r} cannot be found ({error}); give package.module:callable") from error
    return ModuleBackbone(factory(**config.options), torch.zeros(1, config.in_channels, config.size, config.size))


class ModuleBackbone(nn.Module):
    """Wraps an nn.Module that makes feature maps (B, D, h, w), or vectors (B, D), of images: one, or a list of them.

    example: (1, C, H, W), images that it is tried with in eval mode.
    """

    def __init__(self, module: nn.Module, example: Tensor):
        super().__init__()
        self.module = module
        training = module.training
        with torch.no_grad():
            levels = self.eval()(example)
        module.train(training)
        self.channels = tuple(level.features.shape[1] for level in levels)
        self.strides = tuple(level.stride for level in levels)

    def forward(self, images: Tensor) -> list[ImageTokens]:
        """Levels in the order of the module, which should be finest first."""
        found = self.module(images)
        maps = [found] if isinstance(found, Tensor) else found
        if not isinstance(maps, Sequence) or not all(isinstance(x, Tensor) and x.ndim in (2, 4) for x in maps):
            raise ValueError(f"{type(self.module).__name__} must return (B, D, h, w) or (B, D) tensors, or a list of them")
        maps = [x[:, :, None, None] if x.ndim == 2 else x for x in maps]
        return [ImageTokens.from_map(x, max(1, round(images.shape[2] / x.shape[2]))) for x in maps]
