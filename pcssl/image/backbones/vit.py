"""Vision Transformer.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929. Positions are fixed sines and
cosines as in MoCo v3 and MAE, computed for whatever grid comes in, so that no table is stored or interpolated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.image.backbones.checks import check_images
from pcssl.image.tokens import ImageTokens, grid_places
from pcssl.registry import register

Count = Annotated[int, Range(1)]


@dataclass(frozen=True)
class ViTConfig:
    """The defaults are ViT-S/16 at 224 px, 21.6 M parameters.

    patch: px. grid: tokens a side that positions are counted in; another grid is stretched over it.
    cls_token: without it, the mean of the tokens stands for the image. final_norm: LayerNorm after the last block.
    drop_path: probability of the last block; it rises from 0 at the first.
    """

    in_channels: Count = 3
    patch: Count = 16
    dim: Count = 384
    depth: Count = 12
    heads: Count = 6
    mlp_ratio: Annotated[float, Range(0, low_open=True)] = 4.0
    grid: Count = 14
    cls_token: bool = True
    final_norm: bool = True
    drop_path: Annotated[float, Range(0, 1, high_open=True)] = 0.0

    def __post_init__(self) -> None:
        if self.dim % 4:
            raise ValueError(f"dim: {self.dim} must be a multiple of 4: a sine and a cosine of x and of y")
        if self.dim % self.heads:
            raise ValueError(f"dim: {self.dim} cannot be divided into {self.heads} heads")


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, D)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        """Queries, keys and values: (3, B, heads, N, D / heads)."""
        return self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def weights(self, x: Tensor) -> Tensor:
        """(B, heads, N, N): how much token i takes from token j."""
        q, k, _ = self.split(x)
        return (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3)

    def forward(self, x: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(*self.split(x))
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); each branch is left out for whole images with probability drop."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, drop: float = 0.0):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._kept(self.attention(self.norm1(x)))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return x
        return x * (torch.rand(len(x), 1, 1, device=x.device) >= self.drop) / (1 - self.drop)


@register("model", "vit", config=ViTConfig)
class ViT(nn.Module):
    """One level: tokens of `patch` px."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.channels, self.strides = (config.dim,), (config.patch,)
        self.patch_embed = nn.Linear(config.in_channels * config.patch**2, config.dim)
        self.cls_token = nn.Parameter(torch.empty(config.dim)) if config.cls_token else None
        drops = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.mlp_ratio, drop) for drop in drops)
        self.norm = nn.LayerNorm(config.dim, eps=1e-6) if config.final_norm else nn.Identity()
        self.apply(initialise)
        if config.cls_token:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(
        self, images: Tensor, keep: Tensor | None = None, hidden: Tensor | None = None, token: Tensor | None = None
    ) -> list[ImageTokens]:
        """images: (B, C, H, W), H and W multiples of the patch.

        keep: (B, n) int64 patches, row after row, that the network sees; the others do not exist for it.
        hidden: (B, N) bool patches whose content is replaced by token (D,); their place is known.
        ValueError for images that do not fit.
        """
        x, places = self.embed(images, keep, hidden, token)
        for block in self.blocks:
            x = block(x)
        return self._level(self.norm(x), images, places, whole=keep is None)

    def embed(
        self, images: Tensor, keep: Tensor | None = None, hidden: Tensor | None = None, token: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What enters the blocks, (B, [1 +] n, D), and the centres (B, n, 2) of the patches in px."""
        patch = self.config.patch
        check_images(images, self.config.in_channels, patch, self.patch_embed.weight)
        grid = images.shape[2] // patch, images.shape[3] // patch
        x = self.patch_embed(patchify(images, patch))
        if hidden is not None:
            x = torch.where(hidden[:, :, None], token.to(x.dtype), x)
        places = grid_places(grid, patch, len(images), images.device)[0].view(len(images), -1, 2)
        x = x + self.positions(grid, images.device).to(x.dtype)
        if keep is not None:
            x, places = (v.gather(1, keep[:, :, None].expand(-1, -1, v.shape[2])) for v in (x, places))
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), 1, -1), x], 1)
        return x, places

    def positions(self, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
        """(N, D) sines and cosines of the patches of a grid."""
        return sine_positions(grid, self.config.dim, self.config.grid, device)

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> Tensor:
        """(B, heads, T, T) of the last block, T = [1 +] N: row 0 is the class token's, where there is one."""
        x = self.embed(images)[0]
        for block in self.blocks[:-1]:
            x = block(x)
        last = self.blocks[-1]
        return last.attention.weights(last.norm1(x))

    def _level(self, x: Tensor, images: Tensor, places: Tensor, whole: bool) -> list[ImageTokens]:
        cls, patch = None, self.config.patch
        if self.cls_token is not None:
            cls, x = x[:, 0], x[:, 1:]
        batch = torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])
        grid = (images.shape[2] // patch, images.shape[3] // patch) if whole else None
        return [ImageTokens(x.flatten(0, 1), places.flatten(0, 1), batch, len(x), patch, grid, cls)]


def initialise(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases, as MAE and MoCo v3."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sine_positions(grid: tuple[int, int], dim: int, reference: int, device: torch.device | None = None) -> Tensor:
    """(N, dim): per axis, sines and cosines of the place at dim / 4 wavelengths from 2 pi to 2 pi 10000 tokens.

    The grid is stretched so that it has `reference` tokens a side.
    """
    wave = 10_000 ** -(torch.arange(dim // 4, device=device) / (dim // 4))
    parts = []
    for axis, count in enumerate(grid):
        place = (torch.arange(count, device=device) + 0.5) * (reference / count) - 0.5
        angle = place[:, None] * wave
        both = torch.cat([angle.sin(), angle.cos()], 1)
        parts.append(both[:, None].expand(-1, grid[1], -1) if axis == 0 else both[None].expand(grid[0], -1, -1))
    return torch.cat([parts[1], parts[0]], 2).flatten(0, 1)


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C patch patch), row after row."""
    return F.pixel_unshuffle(images, patch).flatten(2).transpose(1, 2)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`."""
    return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, grid), patch)
