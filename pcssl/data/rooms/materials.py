"""Colours and procedural textures.

Each scene has one palette and every surface of every class draws from it in the same way, so
that colour tells objects of a scene apart but not classes.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

KINDS = ("plain", "stripes", "checks", "wood", "speckle", "gradient")
KIND_SHARES = (0.3, 0.12, 0.12, 0.2, 0.14, 0.12)


@dataclass
class Material:
    """A texture in the frame of the piece that wears it."""

    kind: str
    base: np.ndarray  # (3,) linear rgb in [0, 1]
    other: np.ndarray  # (3,)
    axes: np.ndarray  # (3,) a permutation of x, y, z: how the texture lies
    period: float  # metres
    phases: np.ndarray  # (6,)

    def paint(self, points: np.ndarray) -> np.ndarray:
        """Colours (N, 3) in [0, 1] of points (N, 3)."""
        p = points[:, self.axes]
        blotch = smooth_noise(p, 2.5 / (0.3 + self.period), self.phases)
        mix = np.clip(self._pattern(p, blotch) + 0.12 * blotch, 0, 1)[:, None]
        return self.base + mix * (self.other - self.base)

    def _pattern(self, p: np.ndarray, blotch: np.ndarray) -> np.ndarray:
        turn = 2 * np.pi / self.period
        if self.kind == "stripes":
            return (np.sin(turn * p[:, 0]) > 0.2).astype(float)
        if self.kind == "checks":
            return (np.sin(turn * p[:, 0]) * np.sin(turn * p[:, 1]) > 0).astype(float)
        if self.kind == "wood":
            return 0.5 + 0.4 * np.sin(2 * turn * p[:, 0] + 2.5 * blotch + 0.7 * p[:, 1])
        if self.kind == "speckle":
            return 0.5 * np.abs(smooth_noise(p, 3 / self.period, self.phases[::-1])) ** 2
        if self.kind == "gradient":
            return 0.5 + 0.5 * np.sin(0.25 * turn * p[:, 0] + self.phases[0])
        return np.zeros(len(p))


def smooth_noise(points: np.ndarray, frequency: float, phases: np.ndarray) -> np.ndarray:
    """A smooth random field, about in [-1, 1], of points (N, 3); `frequency` in waves a metre."""
    x, y, z = (2 * np.pi * frequency * points[:, i] for i in range(3))
    a, b, c, d, e, f = phases
    first = np.sin(0.9 * x + 0.5 * np.sin(0.7 * y + a) + b) + np.sin(0.8 * y - 0.4 * z + c)
    second = np.sin(0.7 * z + 0.6 * x + d) + np.sin(1.7 * (x - y) + e) * np.cos(1.3 * z + f)
    return 0.25 * (first + second)


class Palette:
    """The colours of one scene."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.colors = np.array([_indoor_color(rng) for _ in range(rng.integers(7, 12))])

    def material(self, rng: np.random.Generator) -> Material:
        base, other = self.colors[rng.choice(len(self.colors), 2, replace=False)]
        kind = KINDS[rng.choice(len(KINDS), p=KIND_SHARES)]
        strength = rng.uniform(0.15, 0.45) if kind in ("wood", "speckle") else rng.uniform(0.1, 0.8)
        base = base * rng.uniform(0.8, 1.2) + rng.normal(0, 0.04, 3)
        other = base + strength * (other - base)
        axes = rng.permutation(3)
        phases = rng.uniform(0, 2 * np.pi, 6)
        return Material(kind, base, other, axes, float(rng.uniform(0.08, 0.6)), phases)


def _indoor_color(rng: np.random.Generator) -> np.ndarray:
    """Greys, woods and muted hues, about as often as in homes and offices."""
    kind = rng.choice(3, p=(0.35, 0.3, 0.35))
    if kind == 0:
        hue, saturation, value = rng.uniform(), rng.uniform(0, 0.1), rng.uniform(0.2, 1.0)
    elif kind == 1:
        hue, saturation, value = rng.uniform(0.04, 0.12), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.9)
    else:
        hue, saturation, value = rng.uniform(), rng.uniform(0.1, 0.55), rng.uniform(0.3, 0.9)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value))
