"""Nearest neighbours within a radius, by hashing points into cells of about that radius."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from pcssl.ops.keys import lookup, pack_keys, shifted_keys

# Edge of a cell in radii: rounding must not put a point within the radius beyond the next cell.
CELL = 1.01


def nearest(
    queries: Tensor, query_batch: Tensor, points: Tensor, point_batch: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """The nearest point of the same scene to every query, if one lies within `radius`.

    queries: (Q, 3), points: (P, 3) float, the same units as radius; *_batch: (Q,), (P,) integer.
    Returns index (Q,) int64, -1 where no point is within reach, and distance (Q,), inf there.
    Of equally near points the one with the lowest index is taken.
    """
    index = torch.full((len(queries),), len(points), dtype=torch.int64, device=queries.device)
    best = torch.full((len(queries),), float("inf"), dtype=queries.dtype, device=queries.device)
    for pair, point, squared in _pairs(queries, query_batch, points, point_batch, radius):
        closest = best.scatter_reduce(0, pair, squared, "amin")
        index = torch.where(closest < best, len(points), index)
        tie = squared == closest[pair]
        index = index.scatter_reduce(0, pair[tie], point[tie], "amin")
        best = closest
    return index.masked_fill(best.isinf(), -1), best.sqrt()


def radius_neighbors(
    queries: Tensor, query_batch: Tensor, points: Tensor, point_batch: Tensor, radius: float, k: int | None = None
) -> tuple[Tensor, Tensor]:
    """All points of the same scene within `radius` of every query, or the k nearest of them.

    queries: (Q, 3), points: (P, 3) float, the same units as radius; *_batch: (Q,), (P,) integer.
    Returns offsets (Q + 1,) and index (E,) int64: index[offsets[i] : offsets[i + 1]] are the
    points near query i, the nearest first, equally near ones by their index.
    """
    if k is not None and k < 1:
        raise ValueError(f"k must be positive, got {k}")
    found = [[torch.zeros(0, dtype=torch.int64, device=queries.device)] * 2 + [queries.new_zeros(0)]]
    found += _pairs(queries, query_batch, points, point_batch, radius)
    pair, index, squared = map(torch.cat, zip(*found))
    order = torch.argsort(index)
    for key in (squared, pair):
        order = order[torch.argsort(key[order], stable=True)]
    pair, index = pair[order], index[order]
    counts = torch.bincount(pair, minlength=len(queries))
    if k is not None:
        place = torch.arange(len(pair), device=pair.device) - (counts.cumsum(0) - counts)[pair]
        index, counts = index[place < k], counts.clamp(max=k)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), index


def _pairs(
    queries: Tensor, query_batch: Tensor, points: Tensor, point_batch: Tensor, radius: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(query, point, squared distance) of all pairs within `radius`, in 27 parts."""
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    if len(points) == 0 or len(queries) == 0:
        return

    def cells(x: Tensor, batch: Tensor) -> Tensor:
        return torch.cat([batch.long()[:, None], torch.floor(x / (CELL * radius)).long()], 1)

    keys, order = torch.sort(pack_keys(cells(points, point_batch)), stable=True)
    keys, counts = torch.unique_consecutive(keys, return_counts=True)
    starts = counts.cumsum(0) - counts
    home = cells(queries, query_batch)
    around = list(itertools.product((-1, 0, 1), repeat=3))
    reach = points.new_tensor(radius)
    for cell_keys in shifted_keys(home, pack_keys(home), around):
        at = lookup(keys, cell_keys)
        rows = torch.nonzero(at >= 0)[:, 0]
        at = at[rows]
        pair, point = _expand(rows, starts[at], counts[at])
        point = order[point]
        x, y, z = (queries[pair] - points[point]).unbind(1)
        # In this order, and each step rounded: engines agree to the bit on what is near and equally near.
        squared = x * x + y * y + z * z
        near = squared <= reach * reach
        yield pair[near], point[near], squared[near]


def _expand(rows: Tensor, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Every (row, position) with position in starts[i] .. starts[i] + counts[i] - 1."""
    first = counts.cumsum(0) - counts
    row = torch.repeat_interleave(rows, counts)
    shift = torch.repeat_interleave(starts - first, counts)
    return row, torch.arange(len(row), device=rows.device) + shift
