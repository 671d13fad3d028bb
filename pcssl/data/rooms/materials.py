"""Colours and procedural textures.

A surface is painted by a role ("board", "cloth", ...), not by the class that wears it: doors,
tables, desks, counters, refrigerators and window frames all draw from `board`, beds, sofas and
both kinds of curtains from `cloth`, pictures, panes and screens from `image`. A role is a
mixture of families (wood, paint, stone, ...), each with its own range of colours. A scene has
a few favourites per role, so that things in one room go together, and differs from the next.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

# Hue, saturation and value ranges of each family; one row is drawn with the share in front.
# The whole circle of hues stands for those of interiors: see HUES.
FAMILIES: dict[str, tuple[tuple, ...]] = {
    "paint": ((0.5, (0.08, 0.16), (0.0, 0.16), (0.72, 0.98)), (0.3, (0, 1), (0.03, 0.3), (0.55, 0.95)),
              (0.2, (0, 1), (0.15, 0.6), (0.25, 0.75))),
    "wood": ((0.4, (0.055, 0.11), (0.3, 0.6), (0.45, 0.85)), (0.4, (0.03, 0.09), (0.35, 0.7), (0.12, 0.42)),
             (0.2, (0.06, 0.13), (0.1, 0.3), (0.55, 0.9))),
    "lacquer": ((0.45, (0.06, 0.16), (0.0, 0.08), (0.75, 1.0)), (0.2, (0, 1), (0.0, 0.15), (0.05, 0.2)),
                (0.15, (0, 1), (0.0, 0.1), (0.3, 0.7)), (0.2, (0, 1), (0.2, 0.75), (0.25, 0.85))),
    "cloth": ((0.35, (0.05, 0.14), (0.05, 0.35), (0.3, 0.9)), (0.25, (0, 1), (0.0, 0.1), (0.1, 0.95)),
              (0.4, (0, 1), (0.2, 0.8), (0.15, 0.8))),
    "leather": ((0.6, (0.03, 0.08), (0.3, 0.65), (0.08, 0.45)), (0.4, (0.05, 0.12), (0.0, 0.25), (0.05, 0.85))),
    "metal": ((1.0, (0.5, 0.65), (0.0, 0.07), (0.3, 0.9)),),
    "ceramic": ((0.75, (0.06, 0.16), (0.0, 0.07), (0.78, 1.0)), (0.25, (0, 1), (0.05, 0.35), (0.45, 0.9))),
    "stone": ((0.6, (0.05, 0.12), (0.02, 0.25), (0.35, 0.85)), (0.4, (0, 1), (0.0, 0.12), (0.1, 0.6))),
    "pane": ((0.4, (0.5, 0.65), (0.05, 0.35), (0.45, 1.0)), (0.3, (0.2, 0.45), (0.1, 0.5), (0.15, 0.7)),
             (0.3, (0, 1), (0.0, 0.4), (0.03, 0.5))),
    "leaf": ((1.0, (0.2, 0.38), (0.3, 0.75), (0.12, 0.6)),),
}  # fmt: skip

# Warm hues are the most frequent indoors, then blues.
HUES = (((0.0, 0.14), 0.5), ((0.52, 0.66), 0.25), ((0.2, 0.45), 0.15), ((0.85, 1.0), 0.1))

# Families by role, with their shares.
ROLES: dict[str, tuple[tuple[str, float], ...]] = {
    "wall": (("paint", 0.86), ("stone", 0.04), ("wood", 0.05), ("cloth", 0.05)),
    "tile": (("ceramic", 0.55), ("stone", 0.3), ("paint", 0.15)),
    "floor": (("wood", 0.42), ("stone", 0.22), ("cloth", 0.3), ("paint", 0.06)),
    "ceiling": (("paint", 1.0),),
    "board": (("wood", 0.52), ("lacquer", 0.32), ("paint", 0.06), ("stone", 0.06), ("metal", 0.04)),
    "cloth": (("cloth", 0.82), ("leather", 0.12), ("lacquer", 0.06)),
    "glaze": (("ceramic", 0.7), ("lacquer", 0.15), ("stone", 0.08), ("metal", 0.07)),
    "metal": (("metal", 0.6), ("lacquer", 0.25), ("wood", 0.15)),
    "image": (("pane", 0.6), ("cloth", 0.2), ("lacquer", 0.2)),
    "leaf": (("leaf", 0.85), ("cloth", 0.15)),
    "thing": (("lacquer", 0.4), ("cloth", 0.35), ("wood", 0.15), ("metal", 0.1)),
}  # fmt: skip

# Textures of each family, with their shares.
TEXTURES: dict[str, tuple[tuple[str, float], ...]] = {
    "paint": (("plain", 0.85), ("stripes", 0.08), ("blobs", 0.07)),
    "wood": (("wood", 0.9), ("plain", 0.1)),
    "lacquer": (("plain", 0.85), ("blobs", 0.1), ("stripes", 0.05)),
    "cloth": (("plain", 0.4), ("speckle", 0.3), ("stripes", 0.13), ("checks", 0.09), ("blobs", 0.08)),
    "leather": (("plain", 0.6), ("speckle", 0.4)),
    "metal": (("plain", 0.8), ("gradient", 0.2)),
    "ceramic": (("plain", 0.9), ("gradient", 0.1)),
    "stone": (("speckle", 0.5), ("blobs", 0.3), ("plain", 0.2)),
    "pane": (("image", 0.6), ("gradient", 0.25), ("plain", 0.15)),
    "leaf": (("speckle", 0.6), ("plain", 0.4)),
}
# The share of light that comes back to a depth camera; little from glass and polished metal.
RETURNS = {"pane": 0.45, "metal": 0.75, "ceramic": 0.9, "lacquer": 0.92}


@dataclass
class Material:
    """A texture in the frame of the piece that wears it."""

    texture: str
    base: np.ndarray  # (3,) linear rgb in [0, 1]
    other: np.ndarray  # (3,)
    axes: np.ndarray  # (3,) a permutation of x, y, z: how the texture lies
    period: float  # metres
    phases: np.ndarray  # (6,)
    returns: float = 1.0
    joints: tuple[float, float] | None = None  # metres between dark lines: tiles, planks

    def paint(self, points: np.ndarray) -> np.ndarray:
        """(N, 4) colours in [0, 1] of points (N, 3), and the share of light that a depth camera gets back."""
        p = points[:, self.axes]
        painted = np.empty((len(p), 4))
        painted[:, 3] = self.returns
        if self.texture == "plain" and self.joints is None:
            painted[:, :3] = self.base
            return painted
        painted[:, :3] = self.base + np.clip(self._mix(p), 0, 1)[:, None] * (self.other - self.base)
        if self.joints is not None:
            painted[:, :3] *= self._joints(points)[:, None]
        return painted

    def _mix(self, p: np.ndarray) -> np.ndarray:
        """(N,) how much of the other colour."""
        turn = 2 * np.pi / self.period
        if self.texture == "stripes":
            return (np.sin(turn * p[:, 0] + self.phases[0]) > 0.2).astype(float)
        if self.texture == "checks":
            return 0.5 * (np.sin(turn * p[:, 0]) > 0) + 0.5 * (np.sin(turn * p[:, 1]) > 0)
        if self.texture == "wood":
            wave = smooth_noise(p * (1.0, 0.15, 1.0), 0.6 / self.period, self.phases)
            return 0.5 + 0.4 * np.sin(2.5 * turn * p[:, 0] + 4 * wave) * (0.4 + 0.6 * np.abs(wave))
        if self.texture == "speckle":
            return np.abs(smooth_noise(p, 5 / self.period, self.phases)) * 1.6
        if self.texture == "blobs":
            return (smooth_noise(p, 0.8 / self.period, self.phases) > 0.15).astype(float)
        if self.texture == "gradient":
            return 0.5 + 0.5 * np.sin(0.25 * turn * p[:, 0] + self.phases[0])
        if self.texture == "image":
            coarse = smooth_noise(p, 0.35 / self.period, self.phases)
            return np.rint(2.5 * (coarse + 0.5 * smooth_noise(p, 1.2 / self.period, self.phases[::-1]))) / 2.5 + 0.4
        return np.zeros(len(p))

    def _joints(self, points: np.ndarray) -> np.ndarray:
        """(N,) brightness: dark lines between tiles or planks, and each of them a little different."""
        number = [np.floor(points[:, i] / self.joints[i % 2]) for i in range(3)]
        within = [points[:, i] / self.joints[i % 2] - number[i] for i in range(3)]
        mixed = np.sin(12.9 * number[0] + 78.2 * number[1] + 37.7 * number[2] + self.phases[0]) * 43758.5
        tone = 0.88 + 0.16 * (mixed - np.floor(mixed))
        # Of a flat surface one coordinate is constant: it lies within a tile or nearly never.
        line = sum((within[i] * self.joints[i % 2] < 0.012) & (np.ptp(points[:, i]) > 0.02) for i in range(3)) > 0
        return np.where(line, 0.62, tone)


def smooth_noise(points: np.ndarray, frequency: float, phases: np.ndarray) -> np.ndarray:
    """A smooth random field, about in [-1, 1], of points (N, 3); `frequency` in waves a metre."""
    x, y, z = (np.float32(2 * np.pi * frequency) * points[:, i].astype(np.float32) for i in range(3))
    a, b, c, d, e, f = (np.float32(phase) for phase in phases)
    # Python numbers keep single precision, which is enough here and fast.
    first = np.sin(0.9 * x + 0.5 * np.sin(0.7 * y + a) + b) + np.sin(0.8 * y - 0.4 * z + c)
    second = np.sin(0.7 * z + 0.6 * x + d) + np.sin(1.7 * (x - y) + e) * np.cos(1.3 * z + f)
    return 0.25 * (first + second)


class Palette:
    """The materials of one scene."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.favourites = {role: [_material(rng, role) for _ in range(3)] for role in ROLES}
        self.loyalty = rng.uniform(0.2, 0.8)  # how often a favourite is taken

    def material(self, rng: np.random.Generator, role: str) -> Material:
        if role != "image" and rng.uniform() < self.loyalty:
            return self.favourites[role][int(rng.integers(3))]
        return _material(rng, role)


def _draw(rng: np.random.Generator, table: tuple) -> object:
    """An entry of ((entry, share), ...)."""
    at = rng.uniform() * sum(share for _, share in table)
    for entry, share in table:
        at -= share
        if at < 0:
            return entry
    return table[-1][0]


def _material(rng: np.random.Generator, role: str) -> Material:
    family = _draw(rng, ROLES[role])
    texture = _draw(rng, TEXTURES[family])
    base = _color(rng, family)
    # Patterns and pictures have a second colour of their own; grain and speckle a shade of the first.
    if texture in ("image", "checks", "stripes", "blobs", "gradient"):
        other = _color(rng, family)
        if texture != "image":
            other = base + rng.uniform(0.1, 0.4 if texture == "blobs" else 0.9) * (other - base)
    else:
        other = base * rng.uniform(0.45, 0.85)
    long = rng.uniform(0.25, 1.0) if texture == "image" else rng.uniform(0.06, 0.4)
    material = Material(texture, base, other, rng.permutation(3), float(long), rng.uniform(0, 6.28, 6),
                        RETURNS.get(family, 1.0))  # fmt: skip
    if role == "tile" or (role == "floor" and family == "stone"):
        side = rng.uniform(0.1, 0.45)
        material.joints = (side, side * rng.choice((1.0, 1.0, 2.0)))
    elif role == "floor" and family == "wood":
        material.joints = (rng.uniform(0.09, 0.2), rng.uniform(0.7, 1.6))
    return material


def _color(rng: np.random.Generator, family: str) -> np.ndarray:
    rows = FAMILIES[family]
    hue, *rest = _draw(rng, tuple((row[1:], row[0]) for row in rows))
    hsv = (_draw(rng, HUES) if hue == (0, 1) else hue, *rest)
    return np.array(colorsys.hsv_to_rgb(*(rng.uniform(*span) for span in hsv)))
