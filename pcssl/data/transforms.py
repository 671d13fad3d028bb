"""Random changes of a scene's points for pre-training.

Values of the defaults: those that Masked Scene Contrast (CVPR 2023) and Sonata (CVPR 2025)
use; Masked Scene Modeling does not print its own. Every function takes `Points`, on any device, and a
`torch.Generator` of the CPU, whose numbers are the same everywhere, and returns new `Points`; `origin` is
never touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from pcssl.config import Range
from pcssl.data.views import Points
from pcssl.ops.bounds import bounds
from pcssl.sparse import current_engine

Probability = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0)]


@dataclass(frozen=True)
class AugmentConfig:
    """scale: range of the factor. rotate_z, tilt: largest angle about z, and about x and y, in degrees.
    flip: probability, for x and y each. jitter, jitter_clip: metres. elastic: (granularity, magnitude)
    pairs in metres. color_*: strength; translation and noise as a part of 255.
    drop_color, drop_normal: probability that a view has none, for models that must do without.
    """

    scale: tuple[float, float] = (0.9, 1.1)
    rotate_z: Annotated[float, Range(0, 180)] = 180.0
    tilt: Annotated[float, Range(0, 180)] = 180 / 64
    flip: Probability = 0.5
    jitter: Positive = 0.005
    jitter_clip: Positive = 0.02
    elastic: tuple[tuple[float, float], ...] = ((0.2, 0.4), (0.8, 1.6))
    elastic_probability: Probability = 0.95
    brightness: Positive = 0.4
    contrast: Positive = 0.4
    saturation: Positive = 0.2
    hue: Annotated[float, Range(0, 0.5)] = 0.1
    color_jitter_probability: Probability = 0.8
    auto_contrast_probability: Probability = 0.2
    color_translation: Positive = 0.05
    color_translation_probability: Probability = 0.95
    color_noise: Positive = 0.05
    color_noise_probability: Probability = 0.95
    drop_color: Probability = 0.0
    drop_normal: Probability = 0.0


def augment(points: Points, config: AugmentConfig, rng: torch.Generator) -> Points:
    """All transforms of the config, geometry first."""
    c = config
    points = center(points)
    points = linear(points, random_scale(c.scale, rng) * random_rotation(c.rotate_z, c.tilt, rng) @ random_flip(c.flip, rng))
    points = jitter(points, c.jitter, c.jitter_clip, rng)
    if chance(c.elastic_probability, rng):
        for granularity, magnitude in c.elastic:
            points = elastic(points, granularity, magnitude, rng)
    color = points.color
    if chance(c.color_jitter_probability, rng):
        color = color_jitter(color, c.brightness, c.contrast, c.saturation, c.hue, rng)
    if chance(c.auto_contrast_probability, rng):
        color = auto_contrast(color, blend=uniform(0, 1, rng))
    if chance(c.color_translation_probability, rng):
        shift = (torch.rand(3, generator=rng) * 2 - 1) * 255 * c.color_translation
        color = (color + shift.to(color.device)).clamp(0, 255)
    if chance(c.color_noise_probability, rng):
        noise = torch.randn(color.shape, generator=rng).to(color.device)
        color = noise.mul_(255).mul_(c.color_noise).add_(color).clamp_(0, 255)
    points = replace(points, color=color)
    if chance(c.drop_color, rng):
        points = drop_color(points)
    return drop_normal(points) if chance(c.drop_normal, rng) else points


def drop_color(points: Points) -> Points:
    """The grey that becomes a feature of 0."""
    return replace(points, color=torch.full_like(points.color, 127.5))


def drop_normal(points: Points) -> Points:
    """Zeros, which stay zeros as features."""
    return replace(points, normal=torch.zeros_like(points.normal))


def uniform(low: float, high: float, rng: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def chance(probability: float, rng: torch.Generator) -> bool:
    return float(torch.rand((), generator=rng)) < probability


def center(points: Points) -> Points:
    """Middle of the bounding box to x = y = 0, lowest point to z = 0."""
    low, high = bounds(points.coord)
    middle = (low + high) / 2
    return replace(points, coord=points.coord - torch.stack([middle[0], middle[1], low[2]]))


def linear(points: Points, matrix: Tensor) -> Points:
    """coord @ matrix.T, for a matrix that turns, mirrors and scales alike in all directions; normals turn with it."""
    scale = torch.linalg.det(matrix).abs() ** (1 / 3)
    return replace(points, coord=turned(points.coord, matrix), normal=turned(points.normal, matrix / scale))


def turned(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows (N, 3) @ matrix.T, for a matrix on the CPU."""
    matrix = matrix.to(rows.device)
    # Four rows side by side: a product of three columns keeps a CPU waiting.
    whole = len(rows) // 4 * 4
    wide = rows[:whole].reshape(-1, 12) @ torch.block_diag(*[matrix.T] * 4)
    return torch.cat([wide.view(-1, 3), rows[whole:] @ matrix.T])


def random_scale(span: tuple[float, float], rng: torch.Generator) -> float:
    return uniform(*span, rng)


def random_rotation(z_degrees: float, tilt_degrees: float, rng: torch.Generator) -> Tensor:
    """(3, 3) rotation: about z within +-z_degrees, then about x and y within +-tilt_degrees."""
    matrix = torch.eye(3)
    for axis, limit in ((2, z_degrees), (0, tilt_degrees), (1, tilt_degrees)):
        angle = math.radians(uniform(-limit, limit, rng))
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def random_flip(probability: float, rng: torch.Generator) -> Tensor:
    """(3, 3) mirror of x and of y, each with this probability."""
    signs = [-1.0 if chance(probability, rng) else 1.0 for _ in range(2)]
    return torch.diag(torch.tensor([*signs, 1.0]))


def jitter(points: Points, sigma: float, clip: float, rng: torch.Generator) -> Points:
    noise = torch.randn(points.coord.shape, generator=rng).to(points.coord.device)
    return replace(points, coord=noise.mul_(sigma).clamp_(-clip, clip).add_(points.coord))


def elastic(points: Points, granularity: float, magnitude: float, rng: torch.Generator) -> Points:
    """Add a smooth random displacement: noise on a grid of this spacing, box-filtered, read trilinearly.

    Normals stay: the bend they would follow is below their own noise.
    """
    low, high = bounds(points.coord)
    size = ((high - low) / granularity).floor().long().cpu() + 3
    if int(size.prod()) > 20_000_000:
        raise ValueError(f"elastic distortion grid {size.tolist()} is too large: is the scene in metres?")
    noise = torch.randn(*size.tolist(), 3, generator=rng)
    for axis in (0, 1, 2) * 2:
        noise = _smooth(noise, axis)
    field = (noise * magnitude).to(points.coord.device)
    return replace(points, coord=current_engine().displace(points.coord, field, low, granularity))


def _smooth(x: Tensor, axis: int) -> Tensor:
    """Mean of every entry and the two beside it, with zeros beyond the ends."""
    out = x.clone()
    length = x.shape[axis] - 1
    out.narrow(axis, 1, length).add_(x.narrow(axis, 0, length))
    out.narrow(axis, 0, length).add_(x.narrow(axis, 1, length))
    return out.div_(3)


def auto_contrast(color: Tensor, blend: float) -> Tensor:
    """Stretch each channel to 0..255 and mix with the original; a channel of one value stays."""
    low, high = bounds(color)
    stretched = torch.where(high > low, (color - low) * (255 / (high - low).clamp(min=1e-6)), color)
    return ((1 - blend) * color + blend * stretched).clamp(0, 255)


def color_jitter(
    color: Tensor, brightness: float, contrast: float, saturation: float, hue: float, rng: torch.Generator
) -> Tensor:
    """Random factors for brightness, contrast and saturation, and a turn of the hue (1 = full circle)."""

    def factor(strength: float) -> float:
        return uniform(max(0.0, 1 - strength), 1 + strength, rng)

    color = (color * factor(brightness)).clamp(0, 255)
    grey = (color @ YIQ[0].to(color.device)).mean()
    color = ((color - grey) * factor(contrast) + grey).clamp(0, 255)
    turn, gain = 2 * math.pi * uniform(-hue, hue, rng), factor(saturation)
    spin = torch.tensor([
        [1.0, 0.0, 0.0],
        [0.0, gain * math.cos(turn), -gain * math.sin(turn)],
        [0.0, gain * math.sin(turn), gain * math.cos(turn)],
    ])
    return turned(color, torch.linalg.inv(YIQ) @ spin @ YIQ).clamp(0, 255)


# Luma and two colour axes (NTSC); saturation and hue are a scaling and a turn of the latter.
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
