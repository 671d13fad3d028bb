"""Nearest neighbours within a radius, by hashing points into cells of that radius."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from pcssl.ops.keys import lookup, pack_keys, shifted_keys


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
    for pair, point, distance in _pairs(queries, query_batch, points, point_batch, radius):
        closest = best.scatter_reduce(0, pair, distance, "amin")
        index = torch.where(closest < best, len(points), index)
        tie = distance == closest[pair]
        index = index.scatter_reduce(0, pair[tie], point[tie], "amin")
        best = closest
    far = (best > radius) | (index == len(points))
    return index.masked_fill(far, -1), best.masked_fill(far, float("inf"))


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
    for pair, point, distance in _pairs(queries, query_batch, points, point_batch, radius):
        near = distance <= radius
        found.append([pair[near], point[near], distance[near]])
    pair, index, distance = map(torch.cat, zip(*found))
    order = torch.argsort(index)
    for key in (distance, pair):
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
    """(query, point, distance) of all pairs within `radius` and some farther ones, in 27 parts."""
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    if len(points) == 0 or len(queries) == 0:
        return

    def cells(x: Tensor, batch: Tensor) -> Tensor:
        return torch.cat([batch.long()[:, None], torch.floor(x / radius).long()], 1)

    keys, order = torch.sort(pack_keys(cells(points, point_batch)), stable=True)
    keys, counts = torch.unique_consecutive(keys, return_counts=True)
    starts = counts.cumsum(0) - counts
    home = cells(queries, query_batch)
    around = list(itertools.product((-1, 0, 1), repeat=3))
    for cell_keys in shifted_keys(home, pack_keys(home), around):
        at = lookup(keys, cell_keys)
        rows = torch.nonzero(at >= 0)[:, 0]
        at = at[rows]
        pair, point = _expand(rows, starts[at], counts[at])
        point = order[point]
        yield pair, point, (queries[pair] - points[point]).norm(dim=1)


def _expand(rows: Tensor, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Every (row, position) with position in starts[i] .. starts[i] + counts[i] - 1."""
    first = counts.cumsum(0) - counts
    row = torch.repeat_interleave(rows, counts)
    shift = torch.repeat_interleave(starts - first, counts)
    return row, torch.arange(len(row), device=rows.device) + shift
