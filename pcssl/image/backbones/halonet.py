"""Blocked local attention.

Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones", CVPR 2021, arXiv 2103.12731.
There is no official code. The attention, its down-sampling and the stages' layout are the paper's. Ours: the position
term is scaled like the content term, what lies outside the image is masked (not attended to as zeros), and sizes that
the block does not divide are padded and cut again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.image.backbones.checks import check_images
from pcssl.image.tokens import ImageTokens
from pcssl.registry import register

Count = Annotated[int, Range(1)]


def halo_windows(x: Tensor, block: int, halo: int) -> Tensor:
    """(B, C, H, W), sides multiples of the block -> (B, C, blocks, (block + 2 halo)^2), zeros outside of the image."""
    size = block + 2 * halo
    windows = F.pad(x, (halo,) * 4).unfold(2, size, block).unfold(3, size, block)
    return windows.flatten(4).flatten(2, 3)


def halo_mask(height: int, width: int, block: int, halo: int, device: torch.device | str | None = None) -> Tensor:
    """(blocks, (block + 2 halo)^2) bool: which places of every block's window lie inside an image of any sides."""
    inside = torch.ones(1, 1, height, width, device=device)
    return halo_windows(F.pad(inside, (0, -width % block, 0, -height % block)), block, halo)[0, 0].bool()


class HaloAttention(nn.Module):
    """Every block x block of queries attends to itself and a halo around it.

    stride: only every stride-th query of a block is kept, which makes the output smaller by it.
    """

    def __init__(
        self, dim: int, dim_out: int | None = None, block: int = 8, halo: int = 3, heads: int = 8, stride: int = 1
    ):
        super().__init__()
        dim_out = dim_out or dim
        if dim_out % heads:
            raise ValueError(f"{dim_out} channels cannot be divided into {heads} heads")
        if block % stride:
            raise ValueError(f"a block of {block} cannot be sub-sampled by {stride}")
        self.block, self.halo, self.heads, self.stride = block, halo, heads, stride
        self.scale = (dim_out // heads) ** -0.5
        self.qkv = nn.Conv2d(dim, 3 * dim_out, 1, bias=False)
        places = 2 * (block + halo) - 1
        self.rows = nn.Parameter(torch.randn(places, dim_out // heads) * self.scale)
        self.columns = nn.Parameter(torch.randn(places, dim_out // heads) * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim_out, ceil(H / stride), ceil(W / stride))."""
        b, h, s = self.block, self.halo, self.stride
        height, width = x.shape[2:]
        q, k, v = F.pad(self.qkv(x), (0, -width % b, 0, -height % b)).chunk(3, 1)
        rows, columns = q.shape[2] // b, q.shape[3] // b
        q = q[:, :, ::s, ::s].unflatten(3, (columns, b // s)).unflatten(2, (rows, b // s))
        # (B, heads, blocks, queries, d), queries row after row
        q = q.unflatten(1, (self.heads, -1)).permute(0, 1, 3, 5, 4, 6, 2).flatten(4, 5).flatten(2, 3)
        k, v = (halo_windows(t, b, h).unflatten(1, (self.heads, -1)).permute(0, 1, 3, 4, 2) for t in (k, v))
        logits = self.scale * (q @ k.transpose(3, 4) + self._positions(q))
        seen = halo_mask(height, width, b, h, x.device)
        out = logits.masked_fill(~seen[:, None], -math.inf).softmax(4) @ v
        out = out.transpose(3, 4).unflatten(4, (b // s, b // s)).unflatten(2, (rows, columns))
        out = out.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return out[:, :, : -(-height // s), : -(-width // s)]

    def _positions(self, q: Tensor) -> Tensor:
        """q . (row of dy + row of dx): (B, heads, blocks, queries, window)."""
        b, h, s = self.block, self.halo, self.stride
        # The query's true place in its block, also when queries are sub-sampled.
        offset = torch.arange(b + 2 * h, device=q.device) - torch.arange(0, b, s, device=q.device)[:, None] + b - 1
        q = q.unflatten(3, (b // s, b // s))
        down = torch.einsum("zhnyxd,yvd->zhnyxv", q, self.rows[offset])
        across = torch.einsum("zhnyxd,xvd->zhnyxv", q, self.columns[offset])
        return (down[..., :, None] + across[..., None, :]).flatten(5).flatten(3, 4)


class HaloBottleneck(nn.Module):
    """1 x 1, attention, 1 x 1, and the residual."""

    def __init__(self, inside: int, width: int, out: int, block: int, halo: int, heads: int, stride: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            HaloAttention(width, width, block, halo, heads, stride), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        same = inside == out and stride == 1
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x) + self.shortcut(x))


@dataclass(frozen=True)
class HaloNetConfig:
    """The defaults are H1's block, halo, depths and ratios (8.1 M parameters with a classifier of 1000).

    H0 is `expansion: 0.5` and `blocks: [3, 3, 7, 3]`.
    widths: of the attention at each level; its output has `expansion` times as many. head_width: channels of a head.
    stem: "large" is 7 x 7 with stride 2 and a max-pool; "small" is 3 x 3 with stride 1, for tiny images.
    """

    in_channels: Count = 3
    widths: tuple[Count, ...] = (64, 128, 256, 512)
    blocks: tuple[Count, ...] = (3, 3, 10, 3)
    expansion: Annotated[float, Range(0, low_open=True)] = 1
    head_width: Count = 16
    block: Annotated[int, Range(2)] = 8
    halo: Annotated[int, Range(0)] = 3
    stem: Literal["large", "small"] = "large"

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"widths and blocks: {len(self.widths)} and {len(self.blocks)} levels")
        if self.block % 2:
            raise ValueError(f"block: {self.block} must be even: levels are halved by taking every other query")
        if odd := [width for width in self.widths if width % self.head_width]:
            raise ValueError(f"widths: {odd[0]} cannot be divided into heads of {self.head_width}")
        if odd := [width for width in self.widths if width * self.expansion % 1]:
            raise ValueError(f"expansion: {self.expansion} times {odd[0]} is not a whole number of channels")


@register("model", "halonet", config=HaloNetConfig)
class HaloNet(nn.Module):
    """A level after every stage."""

    def __init__(self, config: HaloNetConfig):
        super().__init__()
        self.config = config
        large, width = config.stem == "large", config.widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_channels, width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1) if large else nn.Identity(),
        )  # fmt: skip
        self.channels = tuple(round(width * config.expansion) for width in config.widths)
        self.stages = nn.ModuleList()
        inside = width
        for i, (width, count) in enumerate(zip(config.widths, config.blocks)):
            stage, out = [], self.channels[i]
            for j in range(count):
                stride, heads = (2 if i > 0 and j == 0 else 1), width // config.head_width
                stage.append(HaloBottleneck(inside, width, out, config.block, config.halo, heads, stride))
                inside = out
            self.stages.append(nn.Sequential(*stage))
        self.strides = tuple((4 if large else 1) * 2**i for i in range(len(config.widths)))

    def forward(self, images: Tensor) -> list[ImageTokens]:
        """images: (B, C, H, W) of any size."""
        check_images(images, self.config.in_channels, weight=self.stem[0].weight)
        x, levels = self.stem(images), []
        for stage, stride in zip(self.stages, self.strides):
            x = stage(x)
            levels.append(ImageTokens.from_map(x, stride))
        return levels
