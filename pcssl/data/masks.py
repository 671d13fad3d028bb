"""Which voxels or patches a student does not see: masks over (index, batch) in any dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.sparse import current_engine

BOXES = 100  # tried at most; rows that none of them reached are hidden at random


def block_mask(
    index: Tensor, batch: Tensor, cell: int, ratio: float, generator: torch.Generator | None = None, *, up: bool = False
) -> Tensor:
    """Hide whole cells of a coarser grid: `ratio` of the occupied cells of every scene.

    index: (N, d) integer grid coordinates of up to three dimensions (voxels, image patches).
    batch: (N,) integer scene. cell: edge of a cell in grid units. ratio: 0..1, counted in cells,
    rounded, or rounded `up`; a scene of two cells or more keeps a visible one and, for ratio > 0, a hidden one.
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
    hide = counts.double() * ratio
    hide = (hide.ceil() if up else hide.round()).long().clamp(min=1)
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


def random_boxes(
    index: Tensor, batch: Tensor, share: tuple[float, float], aspect: float = 1.0, generator: torch.Generator | None = None,
    *, one_size: bool = False,
) -> Tensor:  # fmt: skip
    """What lies in one random box of every scene.

    index: (N, d) integer grid coordinates. batch: (N,) integer scene. share: range of the box's volume, as a part of
    that of the scene's bounding box. aspect: at most this between two sides, beside the bounding box's own. A direction
    in which a scene is one cell thick does not count: a plane of voxels gets the boxes of an image.
    one_size: the same draw for all scenes, so that grids of one size get boxes of one size.
    Every place where the box fits is equally likely. Returns (N,) bool.
    """
    if not (0 < share[0] <= share[1] <= 1 and aspect >= 1):
        raise ValueError(f"share must be a range within 0..1 and aspect at least 1, got {share} and {aspect}")
    scene, row = torch.unique(batch, return_inverse=True)
    thick = (index != index[:1]).any(0)
    if not thick.any():
        return torch.ones(len(index), dtype=torch.bool, device=index.device)
    index = index[:, thick]
    size, rows = (len(scene), index.shape[1]), row[:, None].expand_as(index)
    low = index.new_zeros(size).scatter_reduce(0, rows, index, "amin", include_self=False)
    extent = index.new_zeros(size).scatter_reduce(0, rows, index, "amax", include_self=False) - low + 1

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=index.device)

    draws = 1 if one_size else len(scene)
    stretch = (uniform(draws, size[1]) - 0.5) * math.log(aspect)
    wide = (extent > 1).float()
    count = wide.sum(1, keepdim=True).clamp(min=1)
    stretch = torch.exp(stretch - (stretch * wide).sum(1, keepdim=True) / count)
    volume = torch.lerp(*torch.tensor(share, device=index.device)[:, None, None], uniform(draws, 1))
    side = (extent * volume ** (1 / count) * stretch).round().long().clamp(min=1).minimum(extent)
    corner = low + (uniform(*size) * (extent - side + 1)).long().minimum(extent - side)
    return ((index >= corner[row]) & (index < (corner + side)[row])).all(1)


def boxes_mask(
    index: Tensor, batch: Tensor, ratio: float, share: tuple[float, float] = (0.08, 0.25), aspect: float = 3.0,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Hide round(ratio n) of the n rows of every scene, in random boxes; the last box is thinned out to that number.

    Arguments as for `random_boxes`. Returns (N,) bool.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be within 0..1, got {ratio}")
    _, row, counts = torch.unique(batch, return_inverse=True, return_counts=True)
    wanted = (counts * ratio).round().long()
    turn = torch.full((len(index),), float(BOXES), device=index.device)  # the box that hides a row
    for number in range(BOXES):
        inside = random_boxes(index, batch, share, aspect, generator)
        turn = torch.where(inside, turn.clamp(max=number), turn)
        covered = torch.bincount(row[turn < BOXES], minlength=len(counts))
        if bool((covered >= wanted).all()):
            break
    # Sorted by scene, turn and chance, the first rows of a scene are hidden.
    order = torch.argsort(turn + torch.rand(len(turn), generator=generator, device=index.device))
    order = order[torch.argsort(row[order], stable=True)]
    rank = torch.arange(len(order), device=index.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    hidden = torch.empty(len(index), dtype=torch.bool, device=index.device)
    hidden[order] = rank < wanted[row[order]]
    return hidden
