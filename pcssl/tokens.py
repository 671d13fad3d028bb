"""`Tokens`: what a backbone hands to probes, masks, mining and discovery, in 2D and 3D alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.sparse import current_engine


@dataclass(frozen=True)
class Tokens:
    """features: (T, D). coord: (T, 2) or (T, 3), where each token is. batch: (T,) its scene or image."""

    features: Tensor
    coord: Tensor
    batch: Tensor

    def __len__(self) -> int:
        return self.features.shape[0]


def neighbors(tokens: Tokens, radius: float, k: int | None = None) -> tuple[Tensor, Tensor]:
    """The tokens of the same scene or image within `radius` of every token, itself among them.

    Returns offsets (T + 1,) and indices, those of token i at offsets[i] : offsets[i + 1], the nearest first;
    at most k of them if k is given. In image patches of p pixels, 1.5 p reaches the 8 around.
    """
    coord = F.pad(tokens.coord.float(), (0, 3 - tokens.coord.shape[1]))
    batch = tokens.batch.int()
    return current_engine().radius_neighbors(coord, batch, coord, batch, radius, k)[:2]


def pool(tokens: Tokens, cell: float) -> tuple[Tokens, Tensor]:
    """Means of features and coordinates over the cells, of edge `cell`, of a grid through the origin.

    Returns the pooled tokens, ordered by batch and cell, and (T,) int64, the pooled row of every token.
    """
    place = torch.cat([tokens.batch[:, None].long(), torch.floor(tokens.coord / cell).long()], 1)
    cells, parent = torch.unique(place, dim=0, return_inverse=True)
    count = torch.bincount(parent, minlength=len(cells))[:, None]

    def mean(x: Tensor) -> Tensor:
        return x.new_zeros(len(cells), x.shape[1]).index_add_(0, parent, x) / count

    return Tokens(mean(tokens.features), mean(tokens.coord), cells[:, 0].to(tokens.batch.dtype)), parent
