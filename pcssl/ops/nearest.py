"""Points near other points of the same scene, by hashing points into cells of about the radius."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pcssl.ops.checks import FLOATING, INTEGER, check_tensors
from pcssl.ops.keys import lookup, pack_keys, shifted_keys

# Edge of a cell in radii: rounding must not put a point within the radius beyond the next cell.
CELL = 1.01


def nearest(
    queries: Tensor, query_batch: Tensor, points: Tensor, point_batch: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """The nearest point of the same scene to every query, if one lies within `radius`.

    queries: (Q, 3), points: (P, 3) float, the same units as radius, finite; *_batch: (Q,), (P,)
    integer. radius: positive, at least 1/65,000 of the largest coordinate.
    Returns index (Q,) int64, -1 where no point is within reach, and distance (Q,), inf there.
    Of equally near points the one with the lowest index is taken.
    """
    check_neighbors(queries, query_batch, points, point_batch, radius)
    index = torch.full((len(queries),), len(points), dtype=torch.int64, device=queries.device)
    best = torch.full((len(queries),), float("inf"), dtype=queries.dtype, device=queries.device)
    for query, point, squared in _near(queries, query_batch, points, point_batch, radius):
        closest = best.scatter_reduce(0, query, squared, "amin")
        index = torch.where(closest < best, len(points), index)
        tie = squared == closest[query]
        index = index.scatter_reduce(0, query[tie], point[tie], "amin")
        best = closest
    return index.masked_fill(best.isinf(), -1), best.sqrt()


def radius_neighbors(
    queries: Tensor,
    query_batch: Tensor,
    points: Tensor,
    point_batch: Tensor,
    radius: float,
    k: int | None = None,
) -> tuple[Tensor, Tensor]:
    """All points of the same scene within `radius` of every query, or the k nearest of them.

    Arguments as for `nearest`; k: at least 1, or None for all.
    Returns offsets (Q + 1,) int64 and indices (offsets[-1],) int64: those of query i are
    indices[offsets[i] : offsets[i + 1]], the nearest first, of equally near ones the lowest index.
    """
    check_neighbors(queries, query_batch, points, point_batch, radius, k)
    found = list(_near(queries, query_batch, points, point_batch, radius))
    query, point = (torch.cat([pairs[i] for pairs in found] or [points.new_zeros(0).long()]) for i in (0, 1))
    squared = torch.cat([pairs[2] for pairs in found] or [points.new_zeros(0)])
    order = torch.arange(len(query), device=query.device)
    for key in (point, squared, query):  # stable: the last one counts first
        order = order[torch.sort(key[order], stable=True)[1]]
    query, point = query[order], point[order]
    counts = torch.bincount(query, minlength=len(queries))
    if k is not None:
        rank = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        point, counts = point[rank < k], counts.clamp(max=k)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), point


def check_neighbors(
    queries: Tensor, query_batch: Tensor, points: Tensor, point_batch: Tensor, radius: float, k: int | None = None
) -> None:
    """ValueError or TypeError for inputs that are not as `nearest` and `radius_neighbors` say."""
    check_tensors(
        queries=(queries, FLOATING, ("Q", 3)),
        query_batch=(query_batch, INTEGER, ("Q",)),
        points=(points, FLOATING, ("P", 3)),
        point_batch=(point_batch, INTEGER, ("P",)),
    )
    if queries.dtype != points.dtype:
        raise TypeError(f"queries are {queries.dtype}, points {points.dtype}; give both the same type")
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be positive and finite, got {radius}")
    if k is not None and k < 1:
        raise ValueError(f"k must be positive, or None for all points, got {k}")


def cell_keys(x: Tensor, batch: Tensor, radius: float, name: str) -> tuple[Tensor, Tensor]:
    """Cells (N, 4) [batch, x, y, z] of points and their keys (N,); ValueError if some have none."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} contain NaN or infinite coordinates")
    cells = torch.cat([batch.long()[:, None], torch.floor(x / (CELL * radius)).long()], 1)
    return cells, pack_keys(cells)


def _near(
    queries: Tensor, query_batch: Tensor, points: Tensor, point_batch: Tensor, radius: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Query, point and squared distance of all pairs within the radius, a part of them at a time."""
    home = cell_keys(queries, query_batch, radius, "queries")
    keys, order = torch.sort(cell_keys(points, point_batch, radius, "points")[1], stable=True)
    if len(points) == 0 or len(queries) == 0:
        return
    keys, counts = torch.unique_consecutive(keys, return_counts=True)
    starts = counts.cumsum(0) - counts
    around = list(itertools.product((-1, 0, 1), repeat=3))
    reach = points.new_tensor(radius)
    for shifted in shifted_keys(*home, around):
        at = lookup(keys, shifted)
        rows = torch.nonzero(at >= 0)[:, 0]
        at = at[rows]
        query, point = _expand(rows, starts[at], counts[at])
        point = order[point]
        x, y, z = (queries[query] - points[point]).unbind(1)
        # In this order, and each step rounded: engines agree to the bit on what is near and equally near.
        squared = x * x + y * y + z * z
        within = squared <= reach * reach
        yield query[within], point[within], squared[within]


def _expand(rows: Tensor, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Every (row, position) with position in starts[i] .. starts[i] + counts[i] - 1."""
    first = counts.cumsum(0) - counts
    row = torch.repeat_interleave(rows, counts)
    shift = torch.repeat_interleave(starts - first, counts)
    return row, torch.arange(len(row), device=rows.device) + shift
