"""The Point Transformer V3 encoder as Sonata, Concerto and Utonia train and release it.

Wu et al., "Point Transformer V3", CVPR 2024, arXiv 2312.10035; Wu et al., "Sonata", CVPR 2025, arXiv
2503.16429; Zhang et al., "Concerto", NeurIPS 2025, arXiv 2510.23607; Zhang et al., "Utonia", 2026, arXiv
2603.03283. Structure, names and shapes of all tensors are those of the released encoders, so their
weights load as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.ops.curves import CURVES
from pcssl.registry import register
from pcssl.sparse import Geometry, SparseTensor, SubmanifoldConv, patch_attention

Probability = Annotated[float, Range(0, 1, high_open=True)]
Count = Annotated[int, Range(1)]


@dataclass(frozen=True)
class PTv3Config:
    """Sizes, finest level first. The defaults are Sonata's base model (108.5 M parameters).

    patch: voxels along a curve that attend to one another.
    shrink_patches: the smallest scene of a batch sets the patch size of all when it is shorter than
        `patch`, as the released code does without flash attention; then features of a scene depend
        on what else is in the batch. Off: a short scene attends to itself alone.
    drop_path: probability of the last block; it rises from 0 at the first.
    mask_token: a learnt row that stands for masked inputs in Sonata's pre-training.
    rope_base: queries and keys are turned by the places of their voxels, which are the first three input
        channels, with frequencies from 1 towards 1 / rope_base a unit of length (Utonia: 10). None: they are not.
    """

    in_channels: Count = 9
    channels: tuple[Count, ...] = (48, 96, 192, 384, 512)
    blocks: tuple[Count, ...] = (3, 3, 3, 12, 3)
    heads: tuple[Count, ...] = (3, 6, 12, 24, 32)
    patch: Count = 1024
    shrink_patches: bool = False
    mlp_ratio: Count = 4
    drop_path: Probability = 0.3
    mask_token: bool = False
    shuffle_curves: bool = True
    rope_base: Annotated[float, Range(1, low_open=True)] | None = None

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.blocks) == len(self.heads):
            raise ValueError("channels, blocks and heads must list the same number of levels")
        for channels, heads in zip(self.channels, self.heads):
            if channels % heads:
                raise ValueError(f"{channels} channels cannot be split over {heads} attention heads")
            if self.rope_base is not None and channels // heads % 6:
                raise ValueError(f"rope_base needs heads of 6, 12, ... channels; {channels} over {heads} heads are not")
        if self.rope_base is not None and self.in_channels < 9:
            raise ValueError("rope_base needs in_channels 9, coordinates before colour and normal")


class DropPath(nn.Module):
    """Leaves out the branch of single voxels with probability `drop` in training."""

    def __init__(self, drop: float):
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop > 0):
            return x
        keep = (torch.rand(len(x), 1, device=x.device) >= self.drop).to(x.dtype)
        return x * keep / (1 - self.drop)


class Rotary(nn.Module):
    """Turns pairs of a head's channels by the place of the voxel: a third of the channels for each axis.

    Su et al., "RoFormer", 2021, in three dimensions as in Utonia. Products of turned queries and keys
    depend on differences of places alone.
    """

    def __init__(self, head_channels: int, base: float):
        super().__init__()
        axis = head_channels // 3
        # A buffer that is saved: the released weights hold it.
        self.register_buffer("inv_freq", torch.tensor([base ** (-i / axis) for i in range(0, axis, 2)]))

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """x: (N, heads, D). place: (N, 3), in the unit of the frequencies."""
        angle = (place[:, :, None] * self.inv_freq)[:, None]  # (N, 1, 3, D / 6)
        cos, sin = angle.cos(), angle.sin()
        a, b = x.unflatten(-1, (3, 2, -1)).unbind(-2)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -2).flatten(-3).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int, rope_base: float | None):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        if rope_base is not None:
            self.rope = Rotary(channels // heads, rope_base)

    def forward(
        self, x: Tensor, geometry: Geometry, place: Tensor | None, curve: str, patch: int, depth: int
    ) -> Tensor:
        n, c = x.shape
        q, k, v = self.qkv(x).view(n, 3, self.heads, c // self.heads).unbind(1)
        if place is not None:
            q, k = self.rope(q, place), self.rope(k, place)
        return self.proj(patch_attention(q, k, v, geometry, curve, patch, depth).reshape(n, c))


class MLP(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A convolution as positional encoding, patch attention, feed-forward: each normed before and added."""

    def __init__(self, channels: int, heads: int, config: PTv3Config, drop: float):
        super().__init__()
        conv = SubmanifoldConv(channels, channels, 3)
        self.cpe = nn.ModuleList([conv, nn.Linear(channels, channels), nn.LayerNorm(channels)])
        self.norm1 = nn.ModuleList([nn.LayerNorm(channels)])
        self.attn = Attention(channels, heads, config.rope_base)
        self.norm2 = nn.ModuleList([nn.LayerNorm(channels)])
        self.mlp = nn.ModuleList([MLP(channels, channels * config.mlp_ratio)])
        self.drop_path = DropPath(drop)

    def forward(self, x: SparseTensor, place: Tensor | None, curve: str, patch: int, depth: int) -> SparseTensor:
        conv, linear, norm = self.cpe
        features = x.features + norm(linear(conv(x).features))
        attended = self.attn(self.norm1[0](features), x.geometry, place, curve, patch, depth)
        features = features + self.drop_path(attended)
        features = features + self.drop_path(self.mlp[0](self.norm2[0](features)))
        return x.replace(features)


class Pooling(nn.Module):
    """To the next coarser level by the maximum of projected features."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.proj = nn.Linear(in_channels, channels)
        self.norm = nn.ModuleList([nn.LayerNorm(channels)])

    def forward(self, x: SparseTensor) -> SparseTensor:
        pooled = x.geometry.pool(self.proj(x.features), "max")
        return pooled.replace(F.gelu(self.norm[0](pooled.features)))


class Stem(nn.Module):
    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(in_channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.linear(x)))


class Embedding(nn.Module):
    def __init__(self, config: PTv3Config):
        super().__init__()
        self.stem = Stem(config.in_channels, config.channels[0])
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, config.channels[0]))

    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.replace(self.stem(x.features))


@register("model", "ptv3", config=PTv3Config)
class PTv3(nn.Module):
    """Point Transformer V3 encoder.

    forward(x: SparseTensor with (N, in_channels)) -> list of SparseTensor, finest level first, with
    `.channels` and `.strides` to match.
    """

    def __init__(self, config: PTv3Config):
        super().__init__()
        c = self.config = config
        self.channels = tuple(c.channels)
        self.strides = tuple(2**level for level in range(len(c.channels)))
        self.embedding = Embedding(c)
        total = sum(c.blocks)
        drop = iter(c.drop_path * i / max(total - 1, 1) for i in range(total))
        self.enc = nn.ModuleDict()
        for i, channels in enumerate(c.channels):
            stage = nn.ModuleDict()
            if i:
                stage["down"] = Pooling(c.channels[i - 1], channels)
            for b in range(c.blocks[i]):
                stage[f"block{b}"] = Block(channels, c.heads[i], c, next(drop))
            self.enc[f"enc{i}"] = stage

    def forward(self, x: SparseTensor) -> list[SparseTensor]:
        place = None if self.config.rope_base is None else x.features[:, :3]
        x = self.embedding(x)
        levels = []
        for stage in self.enc.values():
            if "down" in stage:
                place = None if place is None else x.geometry.pool(place, "mean").features
                x = stage["down"](x)
            x = self._stage(x, place, stage)
            levels.append(x)
        return levels

    def _stage(self, x: SparseTensor, place: Tensor | None, stage: nn.ModuleDict) -> SparseTensor:
        patch = self.config.patch
        if self.config.shrink_patches and len(x.geometry):
            patch = min(patch, int(x.geometry.scene_sizes().min()))
        # Hilbert curves of different depths differ; the released model takes the smallest that fits.
        depth = (int(x.coords[:, 1:].max()) + 1).bit_length() if len(x.geometry) else 1
        curves = self._curves()
        blocks = (block for name, block in stage.items() if name != "down")
        for i, block in enumerate(blocks):
            x = block(x, place, curves[i % len(curves)], patch, depth)
        return x

    def _curves(self) -> list[str]:
        if not (self.training and self.config.shuffle_curves):
            return list(CURVES)
        return [CURVES[i] for i in torch.randperm(len(CURVES)).tolist()]
