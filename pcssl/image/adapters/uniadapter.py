"""UniAdapter: a bottleneck beside the MLP of every block of a frozen ViT.

Lu, Huo, Yang, Ding, Zhan, Tomizuka, "UniAdapter: Unified Parameter-Efficient Transfer Learning for Cross-modal
Modeling", ICLR 2024, arXiv 2302.06605 (RERV/UniAdapter). In the paper one down-projection serves images, text and
both; of a ViT alone the visual branch remains: h = x + attention(norm x), then h + mlp(norm h) + adapter(h), with a
LayerNorm and a scale of its own.

Ours: the up-projection starts at 0, so that the network starts as it was (in the authors' code only one of the
branches does).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from pcssl.config import Range
from pcssl.image.backbones.vit import Block, ViT, ViTConfig
from pcssl.registry import register


class UniAdapter(nn.Module):
    """scale * up(relu(down(norm x))), 0 at the start. learn_scale: whether the scale is a parameter."""

    def __init__(self, dim: int, bottleneck: int = 64, scale: float = 0.1, learn_scale: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down, self.up = nn.Linear(dim, bottleneck), nn.Linear(bottleneck, dim)
        self.scale = nn.Parameter(torch.tensor(float(scale))) if learn_scale else scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(self.down(self.norm(x)).relu())


class AdaptedBlock(Block):
    """A block that keeps its own layers and has an adapter beside its MLP."""

    def __init__(self, block: Block, adapter: UniAdapter):
        nn.Module.__init__(self)
        _take_layers(self, block)
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._kept(self.attention(self.norm1(x)))
        return x + self._kept(self.mlp(self.norm2(x))) + self.adapter(x)

    def plain(self) -> Block:
        """The block without its adapter."""
        block = Block.__new__(Block)
        nn.Module.__init__(block)
        _take_layers(block, self)
        return block


def _take_layers(block: Block, source: Block) -> None:
    """The very layers, neither copied nor made anew; and whether it is training, as paths are dropped then."""
    block.training = source.training
    for name in ("norm1", "norm2", "attention", "mlp", "drop"):
        setattr(block, name, getattr(source, name))


def inject_adapters(vit: ViT, bottleneck: int = 64, scale: float = 0.1, learn_scale: bool = False) -> list[nn.Parameter]:
    """Freeze a ViT in place and give every block an adapter; returns what is trainable: theirs alone.

    Per block that is bottleneck (2 dim + 1) + 3 dim numbers, one more with `learn_scale`.
    """
    if any(isinstance(block, AdaptedBlock) for block in vit.blocks):
        raise ValueError("this ViT has adapters already; remove_adapters(vit) takes them out")
    vit.requires_grad_(False)
    place = next(vit.parameters())
    for i, block in enumerate(vit.blocks):
        vit.blocks[i] = AdaptedBlock(block, UniAdapter(vit.config.dim, bottleneck, scale, learn_scale).to(place))
    return [p for p in vit.parameters() if p.requires_grad]


def remove_adapters(vit: ViT) -> None:
    """The ViT as it was, still frozen."""
    for i, block in enumerate(vit.blocks):
        vit.blocks[i] = block.plain() if isinstance(block, AdaptedBlock) else block


@dataclass(frozen=True)
class AdaptedViTConfig(ViTConfig):
    """A ViT's options, and those of its adapters, see `UniAdapter`."""

    bottleneck: Annotated[int, Range(1)] = 64
    scale: float = 0.1
    learn_scale: bool = False


@register("model", "adapted_vit", config=AdaptedViTConfig)
class AdaptedViT(ViT):
    """A frozen `vit` with adapters; a run's `init:` may be a checkpoint of the plain one."""

    def __init__(self, config: AdaptedViTConfig):
        super().__init__(config)
        inject_adapters(self, config.bottleneck, config.scale, config.learn_scale)

    def completed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a plain ViT, and this one's adapters."""
        return {k: v for k, v in self.state_dict().items() if ".adapter." in k} | state
