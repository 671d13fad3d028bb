"""`ImageTokens`: a level of an image backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pcssl.tokens import Tokens


@dataclass(frozen=True)
class ImageTokens(Tokens):
    """`Tokens` of B images that have N tokens each, image after image, row after row: T = B N.

    features: (B N, D). coord: (B N, 2) float32 x, y of the token's centre in pixels of the input, whose upper left
    corner is 0, 0. batch: (B N,) int64. images: B. grid: rows and columns, None where only some tokens were kept.
    stride: pixels between tokens. cls: (B, D) class tokens, or None.
    """

    images: int
    stride: int
    grid: tuple[int, int] | None = None
    cls: Tensor | None = None

    @property
    def dense(self) -> Tensor:
        """(B, N, D)."""
        return self.features.unflatten(0, (self.images, -1))

    @property
    def map(self) -> Tensor:
        """(B, D, rows, columns)."""
        return self.dense.transpose(1, 2).unflatten(2, self.grid)

    @property
    def index(self) -> Tensor:
        """(B N, 2) int64: column and row."""
        return torch.div(self.coord, self.stride, rounding_mode="floor").long()

    @property
    def pooled(self) -> Tensor:
        """(B, D): the class token where there is one, else the mean of the tokens."""
        return self.dense.mean(1) if self.cls is None else self.cls

    @classmethod
    def from_map(cls, features: Tensor, stride: int) -> ImageTokens:
        """From (B, D, rows, columns)."""
        count, grid = len(features), tuple(features.shape[2:])
        coord, batch = grid_places(grid, stride, count, features.device)
        return cls(features.flatten(2).transpose(1, 2).flatten(0, 1), coord, batch, count, stride, grid)


def grid_places(grid: tuple[int, int], stride: int, count: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Centres (count * rows * columns, 2) x, y in pixels, and which image each belongs to."""
    y, x = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    coord = (torch.stack([x, y], 2).flatten(0, 1) + 0.5) * stride
    return coord.repeat(count, 1), torch.arange(count, device=device).repeat_interleave(len(coord))


def pooled(levels: Sequence[ImageTokens]) -> Tensor:
    """(B, D): what stands for a whole image, from the coarsest level."""
    return levels[-1].pooled
