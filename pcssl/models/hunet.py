"""HUNet: the hierarchical encoder-decoder of Masked Scene Modeling.

Hermosilla, Stippel, Sick, "Masked Scene Modeling", CVPR 2025, arXiv 2504.06719. Structure,
names and shapes of all tensors are those of the released model, so its weights load as they
are. Sizes that the paper gives are in the docstring of `HUNetConfig`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.ops.curves import CURVES
from pcssl.registry import register
from pcssl.sparse import (
    Geometry,
    SparseConv,
    SparseConvTranspose,
    SparseTensor,
    SubmanifoldConv,
    local_attention,
)

Probability = Annotated[float, Range(0, 1, high_open=True)]
Count = Annotated[int, Range(0)]


@dataclass(frozen=True)
class HUNetConfig:
    """Sizes, finest level first. The defaults are the paper's main model (67.6 M parameters).

    heads: attention heads where `*_attention` is not 0; channels must be divisible by them.
    window: voxels along the curve that each voxel attends to, half to either side.
    drop_path: probability of the deepest blocks; it rises from 0 at the first encoder block
        and falls back in the decoder (the schedule is ours; the paper gives the number).
    shuffle_curves: in training, permute the curve list at each call.
    """

    in_channels: Annotated[int, Range(1)] = 6
    channels: tuple[int, ...] = (32, 64, 128, 256, 384)
    decoder_channels: tuple[int, ...] = (64, 96, 128, 256, 384)
    blocks: tuple[Count, ...] = (2, 2, 2, 2, 2)
    decoder_blocks: tuple[Count, ...] = (2, 2, 2, 2, 2)
    attention: tuple[Count, ...] = (0, 0, 0, 2, 2)
    decoder_attention: tuple[Count, ...] = (0, 0, 0, 2, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32, 48)
    decoder_heads: tuple[int, ...] = (4, 8, 16, 32, 48)
    window: Annotated[int, Range(2)] = 1024
    drop_path: Probability = 0.2
    attention_dropout: Probability = 0.1
    shuffle_curves: bool = True

    def __post_init__(self) -> None:
        levels = len(self.channels)
        if levels < 2:
            raise ValueError("channels must list at least two levels")
        for name in ("decoder_channels", "blocks", "decoder_blocks", "attention", "decoder_attention", "heads", "decoder_heads"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"{name} must list {levels} levels, as channels does")
        for channels, attention, heads in (
            (self.channels, self.attention, self.heads),
            (self.decoder_channels, self.decoder_attention, self.decoder_heads),
        ):
            for c, a, h in zip(channels, attention, heads):
                if a and (h < 1 or c % h):
                    raise ValueError(f"{c} channels cannot be split over {h} attention heads")


class _Scale(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))


class _ScaledByRMS(torch.autograd.Function):
    """x / (rms(x) + 1e-4) * scale; x (..., C), scale (C,). Written out, as the chain of its operations takes three times as long."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        wide = _wide(x)
        rms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        ctx.save_for_backward(x, scale, rms)
        return (wide * (rms + 1e-4).reciprocal()).to(x.dtype).mul_(scale.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, scale, rms = ctx.saved_tensors
        wide, grad = _wide(x), _wide(grad)
        inverse = (rms + 1e-4).reciprocal()
        unit = wide * inverse
        product = grad * unit
        along = (product @ scale.to(product.dtype))[..., None] / (x.shape[-1] * rms).clamp(min=1e-30)
        grad_x = (grad * scale).mul_(inverse).addcmul_(unit, along, value=-1)
        return grad_x.to(x.dtype), product.flatten(0, -2).sum(0).to(scale.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class RMSNorm(nn.Module):
    """x / (rms(x) + 1e-4) * scale, over channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _Scale(channels)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return _ScaledByRMS.apply(x, self.norm.scale)


class LayerScale(nn.Module):
    def __init__(self, channels: int, start: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((1, channels), start))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma.to(x.dtype) * x


class Residual(LayerScale):
    """x + gamma * branch, the branch of a whole scene left out with probability `drop` in training."""

    def __init__(self, channels: int, drop: float):
        super().__init__(channels, 0.1)
        self.drop = drop

    def forward(self, x: Tensor, branch: Tensor, batch: Tensor) -> Tensor:
        branch = self.gamma * branch
        if self.training and self.drop > 0 and len(x):
            keep = (torch.rand(int(batch.max()) + 1, device=x.device) >= self.drop).to(branch.dtype)
            branch = branch * (keep / (1 - self.drop))[batch.long(), None]
        return x + branch


class ConvBlock(nn.Module):
    """x + gamma * Norm(Conv(GELU(Conv(Norm(x)))))."""

    def __init__(self, channels: int, drop: float):
        super().__init__()
        self.conv1 = SubmanifoldConv(channels, channels, 3, bias=False)
        self.conv2 = SubmanifoldConv(channels, channels, 3, bias=False)
        self.norm = RMSNorm(channels)
        self.skip_path = Residual(channels, drop)
        self.norm_post_layer = RMSNorm(channels)

    def forward(self, x: SparseTensor, curve: str) -> SparseTensor:
        h = self.conv1(x.replace(self.norm(x.features)))
        h = self.conv2(h.replace(F.gelu(h.features)))
        return x.replace(self.skip_path(x.features, self.norm_post_layer(h.features), x.batch))


class AttentionBlock(nn.Module):
    """Local attention along a curve, then a GEGLU feed-forward of ratio 4; no biases."""

    def __init__(self, channels: int, heads: int, window: int, dropout: float, drop: float):
        super().__init__()
        self.heads, self.window, self.dropout = heads, window, dropout
        self.norm = RMSNorm(channels)
        self.linear_in = nn.Linear(channels, 3 * channels, bias=False)
        self.linear_out = nn.Linear(channels, channels, bias=False)
        self.skip_path_1 = Residual(channels, drop)
        self.mlp_norm = RMSNorm(channels)
        self.mlp_lin_1 = nn.Linear(channels, 8 * channels, bias=False)
        self.mlp_lin_2 = nn.Linear(4 * channels, channels, bias=False)
        self.skip_path_2 = Residual(channels, drop)

    def forward(self, x: SparseTensor, curve: str) -> SparseTensor:
        features = self.skip_path_1(x.features, self._attend(x, curve), x.batch)
        gate, value = self.mlp_lin_1(self.mlp_norm(features)).chunk(2, -1)
        features = self.skip_path_2(features, self.mlp_lin_2(value * F.gelu(gate)), x.batch)
        return x.replace(features)

    def _attend(self, x: SparseTensor, curve: str) -> Tensor:
        n, c = x.features.shape
        q, k, v = self.linear_in(self.norm(x.features)).view(n, 3, self.heads, c // self.heads).unbind(1)
        dropout = self.dropout if self.training else 0.0
        out = local_attention(q, k, v, x.geometry, curve, self.window, dropout)
        return self.linear_out(out.reshape(n, c))


@register("model", "hunet", config=HUNetConfig)
class HUNet(nn.Module):
    """Hierarchical sparse U-Net with convolutions and local attention.

    forward(x: SparseTensor with (N, in_channels)) -> list of SparseTensor, finest level first:
    the decoder's residual stream at every level, with `.channels` and `.strides` to match.
    In eval mode the same input gives the same output (the released code keeps attention
    dropout and curve shuffling on).
    """

    def __init__(self, config: HUNetConfig):
        super().__init__()
        c = self.config = config
        self.channels = tuple(c.decoder_channels)
        self.strides = tuple(2**level for level in range(len(c.channels)))
        levels, enc, dec = len(c.channels), c.channels, c.decoder_channels
        drop = [c.drop_path * i / (levels - 1) for i in range(levels)]

        self.init_transform = nn.Sequential(nn.Linear(c.in_channels, enc[0]), RMSNorm(enc[0]))
        self.down = nn.ModuleList(
            nn.ModuleList([SparseConv(enc[i], enc[i + 1], 2), RMSNorm(enc[i + 1])]) for i in range(levels - 1)
        )
        self.resnet_enc = nn.ModuleList(
            nn.ModuleList(ConvBlock(enc[i], drop[i]) for _ in range(c.blocks[i])) for i in range(levels)
        )
        self.att_enc = nn.ModuleList(
            self._attention(enc[i], c.attention[i], c.heads[i], drop[i]) for i in range(levels)
        )
        # The decoder's lists run from the coarsest level to the finest, as in the released model.
        rising = list(reversed(range(levels)))
        self.decoder_init_norm = RMSNorm(enc[-1])
        self.up = nn.ModuleList(
            nn.ModuleList([RMSNorm(dec[i]), SparseConvTranspose(dec[i], dec[i - 1], 2)]) for i in rising[:-1]
        )
        self.att_dec = nn.ModuleList(
            self._attention(dec[i], c.decoder_attention[i], c.decoder_heads[i], drop[i]) for i in rising
        )
        self.resnet_dec = nn.ModuleList(
            nn.ModuleList(ConvBlock(dec[i], drop[i]) for _ in range(c.decoder_blocks[i])) for i in rising
        )
        self.linears_skip = nn.ModuleList(
            nn.Sequential(RMSNorm(enc[i - 1]), nn.Linear(enc[i - 1], dec[i - 1])) for i in rising[:-1]
        )
        self.skip = nn.ModuleList(LayerScale(dec[i - 1], 1.0) for i in rising[:-1])

    def _attention(self, channels: int, count: int, heads: int, drop: float) -> nn.ModuleDict:
        # Released names count from 1.
        c = self.config
        return nn.ModuleDict(
            {str(i + 1): AttentionBlock(channels, heads, c.window, c.attention_dropout, drop) for i in range(count)}
        )

    def forward(self, x: SparseTensor) -> list[SparseTensor]:
        encoded = self.encode(x)
        return self.decode(encoded, [level.geometry for level in encoded])

    def encode(self, x: SparseTensor) -> list[SparseTensor]:
        """Encoder features of every level, finest first."""
        curves = self._curves()
        x = x.replace(self.init_transform(x.features))
        levels = []
        for i, (convs, attention) in enumerate(zip(self.resnet_enc, self.att_enc)):
            if i:
                conv, norm = self.down[i - 1]
                x = conv(x)
                x = x.replace(norm(x.features))
            x = self._stage(x, convs, attention, curves)
            levels.append(x)
        return levels

    def decode(
        self, encoded: list[SparseTensor], geometries: list[Geometry], tokens: list[Tensor] | None = None
    ) -> list[SparseTensor]:
        """Decoder features of every level on `geometries`, finest first.

        encoded: what `encode` gives, on the same voxels or on a part of them. geometries: the
        level to decode on, finest first, each the `coarser()` of the one before.
        tokens: per level (C_decoder,), what stands at voxels the encoder has not seen.
        """
        curves = self._curves()
        filled = [_Fill(level.geometry, geometry) for level, geometry in zip(encoded, geometries)]
        token = tokens if tokens is not None else [None] * len(encoded)
        features = filled[-1](self.decoder_init_norm(encoded[-1].features), token[-1])
        x = self._stage(SparseTensor(features, geometries[-1]), self.resnet_dec[0], self.att_dec[0], curves)
        levels = [x]
        for step, i in enumerate(reversed(range(len(encoded) - 1))):
            norm, conv = self.up[step]
            up = conv(x.replace(norm(x.features)), geometries[i]).features
            skip = filled[i](self.linears_skip[step](encoded[i].features), token[i])
            x = SparseTensor(self.skip[step](up) + skip, geometries[i])
            x = self._stage(x, self.resnet_dec[step + 1], self.att_dec[step + 1], curves)
            levels.insert(0, x)
        return levels

    def _stage(self, x: SparseTensor, convs: nn.ModuleList, attention: nn.ModuleDict, curves: list[str]) -> SparseTensor:
        for i, block in enumerate([*convs, *attention.values()]):
            x = block(x, curves[(i - len(convs)) % len(curves)])
        return x

    def _curves(self) -> list[str]:
        curves = list(CURVES)
        if self.training and self.config.shuffle_curves:
            # torch's generator, so that one seed governs a run and a resumed run goes on alike.
            random.Random(int(torch.randint(2**31, (1,)))).shuffle(curves)
        return curves


class _Fill:
    """Puts features of a part of a geometry's voxels in place, and a token everywhere else."""

    def __init__(self, part: Geometry, whole: Geometry):
        self.same = part is whole
        if not self.same:
            self.rows = whole.find(part.coords)
            if bool((self.rows < 0).any()):
                raise ValueError("the encoder saw voxels that the geometry to decode on does not have")
        self.size = len(whole)

    def __call__(self, features: Tensor, token: Tensor | None) -> Tensor:
        if self.same:
            return features
        if token is None:
            raise ValueError("decoding on more voxels than were encoded needs tokens")
        base = token.to(features.dtype).expand(self.size, -1)
        return base.index_copy(0, self.rows, features)
