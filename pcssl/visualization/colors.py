"""Colours of points from what is known of them: plain functions on arrays, each with the legend it needs.

A legend says what the colours mean: named colours (`Swatches`), a scale of numbers (`Scale`), or None where
colours mean nothing by themselves (the input, principal components).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.data.datasets import SceneSource, distinct_colors
from pcssl.data.scannet_classes import SCANNET20_COLORS, SCANNET20_NAMES, SCANNET200_COLORS, SCANNET200_NAMES
from pcssl.visualization.render import UNLABELLED, label_colors

RGB = tuple[int, int, int]

# Of "magma", turned around: pale for low values, so that what is alike stands out from a bright room.
HEAT: tuple[RGB, ...] = (
    (228, 228, 234), (252, 226, 181), (254, 194, 140), (251, 136, 97),
    (230, 80, 98), (183, 55, 121), (129, 37, 129), (81, 18, 124), (28, 16, 68),
)  # fmt: skip
RIGHT, WRONG = (188, 204, 216), (205, 46, 48)
SEEN, HIDDEN, OUTSIDE = (88, 142, 196), (232, 139, 52), (222, 222, 222)
PALE = 232  # of each channel: what others fade to


@dataclass(frozen=True)
class Swatches:
    """(name, colour) of every kind of point there is."""

    entries: tuple[tuple[str, RGB], ...]


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high` as the colours of `HEAT`."""

    name: str
    low: float
    high: float


Legend = Swatches | Scale | None


@dataclass(frozen=True)
class Classes:
    """names and colours (0..255) of the classes that labels and predictions number."""

    names: tuple[str, ...]
    colors: tuple[RGB, ...]

    @classmethod
    def of(cls, data: SceneSource) -> Classes:
        return cls(data.classes, data.colors)

    @classmethod
    def called(cls, label: str, count: int) -> Classes:
        """ScanNet's for its label sets, numbers and distinct colours for others of `count` classes."""
        if label == "segment20":
            return cls(SCANNET20_NAMES, SCANNET20_COLORS)
        if label == "segment200":
            return cls(SCANNET200_NAMES, SCANNET200_COLORS)
        return cls(tuple(map(str, range(count))), distinct_colors(count))

    def paint(self, labels: Tensor) -> Tensor:
        """(N, 3) uint8 of labels (N,); grey where negative. ValueError beyond the classes."""
        return torch.from_numpy(label_colors(labels.numpy(), np.array(self.colors)))

    def legend(self, labels: Tensor) -> Swatches:
        """The classes of at least 0.3 % of the labels (M,), in their order."""
        count = torch.bincount(labels[labels >= 0], minlength=1)
        present = torch.nonzero((count > 0) & (count >= 0.003 * len(labels)))[:, 0].tolist()
        unlabelled = (("no label", UNLABELLED),) if bool((labels < 0).any()) else ()
        return Swatches(tuple((self.names[c], self.colors[c]) for c in present) + unlabelled)


def similarity(features: Tensor, query: Tensor, mean: Tensor) -> Tensor:
    """Cosine similarity (N,) in [-1, 1] of features (N, D) with one (D,), both without their mean (D,).

    Features share a large common part, which would make everything alike.
    """
    return F.cosine_similarity(features.float() - mean, (query.float() - mean)[None], dim=1)


def heat(values: Tensor, scale: Scale) -> Tensor:
    """(N, 3) uint8 of values (N,); those beyond the scale take the colour of its end."""
    table = np.array(HEAT, np.float64)
    place = ((values.double() - scale.low) / (scale.high - scale.low)).clamp(0, 1).numpy() * (len(table) - 1)
    rgb = np.stack([np.interp(place, np.arange(len(table)), table[:, i]) for i in range(3)], axis=1)
    return torch.from_numpy(rgb.round().astype(np.uint8))


def error_colors(labels: Tensor, predictions: Tensor) -> tuple[Tensor, Swatches]:
    """(N, 3) uint8: red where a prediction (N,) is not the label (N,), and the legend with its share."""
    known = labels >= 0
    wrong = known & (labels != predictions)
    share = 100 * float(wrong.sum()) / max(1, int(known.sum()))
    entries = [(f"right {100 - share:.0f} %", RIGHT), (f"wrong {share:.0f} %", WRONG)]
    if not bool(known.all()):
        entries.append(("no label", UNLABELLED))
    return _choose(torch.where(known, wrong.long(), 2), (RIGHT, WRONG, UNLABELLED)), Swatches(tuple(entries))


def mask_colors(crop: Tensor, hidden: Tensor) -> Tensor:
    """(N, 3) uint8 of which points (N,) bool are in the student's crop, and hidden from it there."""
    return _choose(torch.where(crop, hidden.long(), 2), (SEEN, HIDDEN, OUTSIDE))


def mask_legend(crop: Tensor, hidden: Tensor) -> Swatches:
    """What the colours of `mask_colors` mean, of those that there are."""
    parts = (("student sees", SEEN, crop & ~hidden), ("hidden", HIDDEN, crop & hidden), ("outside its crop", OUTSIDE, ~crop))
    return Swatches(tuple((name, color) for name, color, points in parts if points.any()))


def faded(colors: Tensor, keep: Tensor, part: float = 0.75) -> Tensor:
    """Colours (N, 3) uint8, mixed with `part` of light grey where `keep` (N,) bool is false."""
    pale = colors.float() * (1 - part) + part * PALE
    return torch.where(keep[:, None], colors, pale.round().to(torch.uint8))


def _choose(kind: Tensor, colors: tuple[RGB, ...]) -> Tensor:
    return torch.tensor(colors, dtype=torch.uint8)[kind]
