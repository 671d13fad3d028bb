"""All levels of a U-Net read at the points, beside dense grids and torch's grid_sample."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from pcssl.benchmarks.case import Case, LeftOut, Maker, Settings, Step, engines, nbytes
from pcssl.benchmarks.memory import available
from pcssl.benchmarks.samples import Sample
from pcssl.sparse import Geometry, use_engine

CHANNELS = (16, 64)
WIDTHS = (1, 1.5, 2, 4, 6)  # a level's channels over the finest level's: 64 to 384 in the paper's model
MODES = {"msm": "released arithmetic", "exact": "exact"}
LAYOUTS = ("CXYZ", "XYZC")


def cases(sample: Sample, settings: Settings) -> Iterator[Case]:
    """Mode "msm" is what dense grids give, see `pcssl.ops.interpolate`; "exact" is what evaluation uses."""
    for channels in settings.channels or CHANNELS:
        for mode, label in MODES.items():
            contestants: dict[str, Maker] = {
                name: partial(sparse, engine, sample, channels, mode)
                for name, engine in engines("interpolate", settings).items()
            }
            if mode == "msm" and settings.peers:
                contestants |= {f"dense {layout}": partial(dense, sample, channels, layout) for layout in LAYOUTS}
            widths = [int(channels * width) for width in WIDTHS]
            levels = sum(len(g) * c * 4 + nbytes(g.coords) for g, c in zip(sample.levels, widths))
            traffic = levels + len(sample.points) * (sum(widths) * 4 + nbytes(sample.points[0]))
            yield Case(
                {"C": channels, "mode": label},
                contestants,
                traffic,
                footprint=traffic,
                # grid_sample computes positions in [-1, 1], which costs it some digits of float32.
                tolerance=1e-3,
            )


def features(sample: Sample, channels: int) -> list[Tensor]:
    """Random features (N, C) of every level."""
    generator = sample.generator()
    return [
        sample.random(len(level), int(channels * width), generator=generator)
        for level, width in zip(sample.levels, WIDTHS)
    ]


def sparse(engine: str, sample: Sample, channels: int, mode: str) -> Step:
    """Values of every level at the points: (P, C) each."""
    values = features(sample, channels)

    def step() -> list[Tensor]:
        points = sample.points / sample.voxel_size
        with use_engine(engine):
            return [g.interpolate(v, points, sample.batch, mode) for g, v in zip(sample.levels, values)]

    return step


def dense(sample: Sample, channels: int, layout: str) -> Step:
    """The same by a dense grid for each scene and level, as the released code of Masked Scene Modeling does it.

    layout: "CXYZ" as that code has it; "XYZC" with the channels of a voxel side by side.
    """
    values = features(sample, channels)
    sizes = [int(_extents(g, sample.scenes).prod(1).amax()) * v[0].nbytes for g, v in zip(sample.levels, values)]
    if 2 * max(sizes) > (free := available(sample.device)):  # some stays for the others
        raise LeftOut(f"left out: a grid of {max(sizes) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")

    def step() -> list[Tensor]:
        points = sample.points / sample.voxel_size
        return [_read_dense(g, v, points / g.stride, sample, layout) for g, v in zip(sample.levels, values)]

    return step


def _extents(geometry: Geometry, scenes: int) -> Tensor:
    """(B, 3) int64: the largest index of every scene + 1."""
    index = geometry.batch.long()[:, None].expand(-1, 3)
    low = geometry.coords.new_zeros(scenes, 3)
    return low.scatter_reduce(0, index, geometry.coords[:, 1:], "amax", include_self=True).long() + 1


def _read_dense(geometry: Geometry, values: Tensor, points: Tensor, sample: Sample, layout: str) -> Tensor:
    out = values.new_empty(len(points), values.shape[1])
    for scene, extent in enumerate(_extents(geometry, sample.scenes)):
        here, inside = geometry.batch == scene, sample.batch == scene
        x, y, z = geometry.coords[here, 1:].long().unbind(1)
        rows, shape = (x * extent[1] + y) * extent[2] + z, extent.tolist()
        if layout == "CXYZ":
            grid = values.new_zeros(values.shape[1], shape[0] * shape[1] * shape[2])
            grid[:, rows] = values[here].t()
            grid = grid.view(1, -1, *shape)
        else:
            grid = values.new_zeros(shape[0] * shape[1] * shape[2], values.shape[1])
            grid[rows] = values[here]
            grid = grid.view(1, *shape, -1).permute(0, 4, 1, 2, 3)
        place = (2 * points[inside] / extent - 1).flip(1).view(1, 1, 1, -1, 3)
        found = F.grid_sample(grid, place, mode="bilinear", padding_mode="zeros", align_corners=True)
        out[inside] = found.view(values.shape[1], -1).t()
    return out
