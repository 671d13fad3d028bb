"""Views of images: crop, flip, colour, blur; and where every place of a view lies in its image.

A sample draws its random numbers when it is made, from a generator of its own; they are applied to a
whole batch at once, so that small images cost little. The result is the same for any batch and worker.

Crops and colours follow DINO (facebookresearch/dino) and MoCo v3, with our own code on tensors: the hue is
turned in YIQ instead of HSV, and brightness, contrast, saturation and hue come in this order.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.image.picture import luma

Probability = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, low_open=True)]
Strength = Annotated[float, Range(0)]

DRAWS = 14  # random numbers of a view, each with a place of its own
AREA, SHAPE, LEFT, TOP, FLIP, JITTER, BRIGHT, CONTRAST, SATURATE, HUE, GREY, BLUR, SIGMA, SOLARIZE = range(DRAWS)
_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class ViewConfig:
    """One kind of view of an image.

    count: views of this kind. size: px, square. scale: range of the crop's area, as a part of the image's.
    aspect: range of its width over its height, before scaling to the square. flip: probability.
    jitter: brightness, contrast, saturation (factors within 1 -+ this) and hue (turns, -+), with probability jitter_p.
    grey, blur, solarize: probabilities. sigma: range of the blur, px.
    """

    count: Annotated[int, Range(1)] = 1
    size: Annotated[int, Range(1)] = 224
    scale: tuple[Positive, Positive] = (0.2, 1.0)
    aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: Probability = 0.5
    jitter: tuple[Strength, Strength, Strength, Strength] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: Probability = 0.8
    grey: Probability = 0.0
    blur: Probability = 0.0
    sigma: tuple[Positive, Positive] = (0.1, 2.0)
    solarize: Probability = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "aspect", "sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: {low} is above {high}")
        if self.scale[1] > 1:
            raise ValueError(f"scale: a crop's area is at most 1, the whole image; got {self.scale[1]}")


# The published settings: DINO's README and main_dino.py, MoCo v3's main_moco.py, MAE's main_pretrain.py.
_COLOR = {"jitter": (0.4, 0.4, 0.2, 0.1), "grey": 0.2}
DINO_VIEWS = (
    ViewConfig(scale=(0.4, 1.0), **_COLOR, blur=1.0),
    ViewConfig(scale=(0.4, 1.0), **_COLOR, blur=0.1, solarize=0.2),
    ViewConfig(count=8, size=96, scale=(0.05, 0.4), **_COLOR, blur=0.5),
)
MOCO_VIEWS = (
    ViewConfig(scale=(0.08, 1.0), **_COLOR, blur=1.0),
    ViewConfig(scale=(0.08, 1.0), **_COLOR, blur=0.1, solarize=0.2),
)
CROP_VIEWS = (ViewConfig(scale=(0.2, 1.0)),)


def draw(kinds: Sequence[ViewConfig], rng: torch.Generator) -> Tensor:
    """(views, DRAWS) random numbers of one image, in 0..1."""
    return torch.rand(sum(kind.count for kind in kinds), DRAWS, generator=rng)


def make_views(images: Sequence[Tensor], draws: Tensor, kinds: Sequence[ViewConfig]) -> tuple[list[Tensor], list[Tensor]]:
    """All views of a batch.

    images: B of (C, H, W) float32 in 0..1, of any sizes. draws: (B, views, DRAWS).
    Returns per view (B, C, size, size) float32 in -1..1, and (B, 2, 3) float32: the pixel x, y of the view lies at
    map @ (x, y, 1) in the image.
    """
    views, maps = [], []
    for kind in kinds:
        for _ in range(kind.count):
            u = draws[:, len(views)]
            affine = crop_map(torch.tensor([x.shape[1:] for x in images]), u, kind)
            pixels = colored(sample(images, affine, kind.size), u, kind)
            views.append(2 * pixels - 1)
            maps.append(affine)
    return views, maps


def to_source(coord: Tensor, batch: Tensor, affine: Tensor) -> Tensor:
    """Places (T, 2) x, y in views, to places in their images. batch: (T,) rows of affine (B, 2, 3)."""
    return (affine[batch, :, :2] @ coord[:, :, None])[:, :, 0] + affine[batch, :, 2]


def crop_map(shape: Tensor, u: Tensor, kind: ViewConfig) -> Tensor:
    """(B, 2, 3) maps of random crops, flipped or not. shape: (B, 2) height and width. u: (B, DRAWS)."""
    height, width = shape.float().unbind(1)
    area = height * width * torch.lerp(*(u.new_tensor(kind.scale)[:, None]), u[:, AREA])
    aspect = torch.exp(torch.lerp(*u.new_tensor(kind.aspect).log()[:, None], u[:, SHAPE]))
    w = torch.minimum((area * aspect).sqrt(), width)
    h = torch.minimum((area / aspect).sqrt(), height)
    left, top = u[:, LEFT] * (width - w), u[:, TOP] * (height - h)
    flipped = u[:, FLIP] < kind.flip
    zero = torch.zeros_like(w)
    x = torch.stack([torch.where(flipped, -w, w) / kind.size, zero, left + torch.where(flipped, w, zero)], 1)
    y = torch.stack([zero, h / kind.size, top], 1)
    return torch.stack([x, y], 1)


def sample(images: Sequence[Tensor], affine: Tensor, size: int) -> Tensor:
    """(B, C, size, size) read from the images at affine (B, 2, 3); where a view shrinks, averaged over its pixels."""
    step = affine[:, :, :2].abs().sum(2).amax(1)  # image pixels a view pixel
    groups = defaultdict(list)
    for i, image in enumerate(images):
        groups[image.shape, math.ceil(float(step[i]) - 1e-3)].append(i)
    out = images[0].new_empty(len(images), images[0].shape[0], size, size)
    for (shape, fine), rows in groups.items():
        fine = max(fine, 1)
        line = (torch.arange(size * fine) + 0.5) / fine
        y, x = torch.meshgrid(line, line, indexing="ij")
        places = torch.stack([x, y, torch.ones_like(x)], 2) @ affine[rows].transpose(1, 2)[:, None]
        grid = 2 * places / places.new_tensor([shape[2], shape[1]]) - 1
        stacked = torch.stack([images[i] for i in rows])
        read = F.grid_sample(stacked, grid, mode="bilinear", padding_mode="border", align_corners=False)
        out[rows] = F.avg_pool2d(read, fine) if fine > 1 else read
    return out


def colored(x: Tensor, u: Tensor, kind: ViewConfig) -> Tensor:
    """Colour jitter, grey, blur, solarisation of (B, C, H, W) in 0..1. u: (B, DRAWS)."""

    def on(place: int, probability: float) -> Tensor:
        return (u[:, place] < probability).view(-1, 1, 1, 1)

    if any(kind.jitter) and kind.jitter_p > 0:
        x = torch.where(on(JITTER, kind.jitter_p), _jitter(x, u, kind.jitter), x)
    if kind.grey > 0 and x.shape[1] == 3:
        x = torch.where(on(GREY, kind.grey), luma(x), x)
    if kind.blur > 0:
        x = torch.where(on(BLUR, kind.blur), gaussian_blur(x, torch.lerp(*u.new_tensor(kind.sigma)[:, None], u[:, SIGMA])), x)
    if kind.solarize > 0:
        x = torch.where(on(SOLARIZE, kind.solarize) & (x >= 0.5), 1 - x, x)
    return x


def _jitter(x: Tensor, u: Tensor, strength: tuple[float, float, float, float]) -> Tensor:
    def factor(place: int, s: float) -> Tensor:
        return (1 + s * (2 * u[:, place] - 1)).clamp(min=0).view(-1, 1, 1, 1)

    x = (x * factor(BRIGHT, strength[0])).clamp(0, 1)
    grey = luma(x) if x.shape[1] == 3 else x
    x = torch.lerp(grey.mean((1, 2, 3), keepdim=True), x, factor(CONTRAST, strength[1])).clamp(0, 1)
    if x.shape[1] == 3:
        x = torch.lerp(luma(x), x, factor(SATURATE, strength[2])).clamp(0, 1)
        x = turn_hue(x, strength[3] * (2 * u[:, HUE] - 1))
    return x


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the colour plane of YIQ: (B, 3, H, W), turns (B,) of a full circle each. Luma stays."""
    to = x.new_tensor(_TO_YIQ)
    c, s = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    rotate = torch.stack([one, zero, zero, zero, c, -s, zero, s, c], 1).view(-1, 3, 3)
    return torch.einsum("bij,bjhw->bihw", torch.linalg.inv(to) @ rotate @ to, x).clamp(0, 1)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """(B, C, H, W) with a sigma (B,) each, px; the kernel reaches 3 of the largest sigma, the border reflects."""
    reach = min(math.ceil(3 * float(sigma.max())), min(x.shape[2:]) - 1)
    if reach < 1:
        return x
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)[:, None]
    flat = F.pad(x, (reach,) * 4, mode="reflect").flatten(0, 1)[None]
    flat = F.conv2d(flat, kernel[:, :, None], groups=flat.shape[1])
    return F.conv2d(flat, kernel[..., None], groups=flat.shape[1]).view(x.shape)
