"""Which voxels a student does not see."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.sparse import current_engine


def block_mask(index: Tensor, batch: Tensor, cell: int, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide whole cells of a coarser grid: `ratio` of the occupied cells of every scene.

    index: (N, d) integer grid coordinates of up to three dimensions (voxels, image patches).
    batch: (N,) integer scene. cell: edge of a cell in grid units. ratio: 0..1, counted in cells,
    rounded; a scene of two cells or more keeps a visible one and, for ratio > 0, a hidden one.
    Returns (N,) bool, True where hidden.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be within 0..1, got {ratio}")
    if ratio == 0 or index.shape[0] == 0:
        return torch.zeros(index.shape[0], dtype=torch.bool, device=index.device)
    # Cells are the voxels of voxels. An image's patches lie in one plane.
    cells = current_engine().voxelize(F.pad(index.float(), (0, 3 - index.shape[1])), float(cell), batch)
    scene = cells.coords[:, 0].long()
    counts = torch.unique_consecutive(scene, return_counts=True)[1]
    draw = torch.rand(len(scene), generator=generator, device=generator.device if generator else index.device)
    draw = draw.to(index.device)
    # Sorted by scene and draw, a cell's rank within its scene says whether it is among the hidden.
    order = torch.argsort(draw)
    order = order[torch.argsort(scene[order], stable=True)]
    rank = torch.arange(len(scene), device=index.device)
    rank = rank - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    hide = (counts * ratio).round().long().clamp(min=1)
    hide = torch.minimum(hide, counts - 1)
    hidden = torch.empty(len(scene), dtype=torch.bool, device=index.device)
    hidden[order] = rank < torch.repeat_interleave(hide, counts)
    return hidden[cells.inverse]


def nearest_crop(coord: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """The `count` points nearest to a random one: (N, d) float -> (N,) bool."""
    if count >= len(coord):
        return torch.ones(len(coord), dtype=torch.bool, device=coord.device)
    centre = coord[int(torch.randint(len(coord), (1,), generator=generator))]
    return crop_around(coord, centre, count)


def crop_around(coord: Tensor, centre: Tensor, count: int) -> Tensor:
    """The `count` points nearest to `centre` (d,): (N,) bool."""
    if count >= len(coord):
        return torch.ones(len(coord), dtype=torch.bool, device=coord.device)
    away = (coord - centre).square().sum(1)
    # Finding one value and comparing is several times faster than naming the rows; ties go by row.
    limit = away.kthvalue(count).values
    keep = away < limit
    ties = torch.nonzero(away == limit)[:, 0]
    keep[ties[: count - int(keep.sum())]] = True
    return keep
