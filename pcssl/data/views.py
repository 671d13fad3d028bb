"""From a scene's points to voxels a backbone takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.data.scene import Scene
from pcssl.ops.bounds import bounds
from pcssl.sparse import current_engine

IN_CHANNELS = 6


@dataclass
class Points:
    """Points on the way to voxels, as transforms change them.

    coord: (N, 3) float32 metres. origin: (N, 3) the same points before any transform.
    color: (N, 3) float32 in 0..255. normal: (N, 3) float32 unit vectors.
    """

    coord: Tensor
    origin: Tensor
    color: Tensor
    normal: Tensor

    @classmethod
    def from_scene(cls, scene: Scene) -> Points:
        """ValueError when the scene has no colour or normals (readers fill them in)."""
        if scene.color is None or scene.normal is None:
            raise ValueError(f"scene {scene.name!r} needs color and normal")
        return cls(scene.coord, scene.coord, scene.color.float(), scene.normal)

    def __getitem__(self, rows: Tensor) -> Points:
        return Points(self.coord[rows], self.origin[rows], self.color[rows], self.normal[rows])


@dataclass(frozen=True)
class VoxelView:
    """One scene's occupied voxels.

    index: (M, 3) int32 from 0 on. features: (M, 6) float32, colour / 127.5 - 1 and unit normal
    (0 where the normals of its points cancel).
    origin: (M, 3) float32 metres, mean place of the voxel's points before any transform.
    inverse: (N,) int64 voxel of every point. shift: (3,) float32 metres, coord = index * size + shift.
    """

    index: Tensor
    features: Tensor
    origin: Tensor
    inverse: Tensor
    shift: Tensor


def grid_shift(coord: Tensor, voxel_size: float) -> Tensor:
    """(3,) metres: where the voxel of the lowest coordinates begins, a multiple of the voxel size."""
    low = bounds(coord)[0]
    # The product can round to above the lowest point, which would then have index -1.
    return torch.minimum(torch.floor(low / voxel_size) * voxel_size, low)


def voxel_view(
    points: Points, voxel_size: float, offset: Tensor | None = None, shift: Tensor | None = None
) -> VoxelView:
    """Mean colour, normal and place of the points of every voxel.

    shift: (3,) metres, where voxel 0 begins; None: `grid_shift` of these points. offset: (3,) integer, added to
    every index.
    """
    shift = grid_shift(points.coord, voxel_size) if shift is None else shift
    voxels = current_engine().voxelize(points.coord - shift, voxel_size)
    values = torch.cat([points.color, points.normal, points.origin], 1)
    total = current_engine().scatter_sum(values, voxels.inverse, len(voxels.counts))
    color, normal, origin = (total / voxels.counts[:, None]).split(3, 1)
    features = torch.cat([color / 127.5 - 1, F.normalize(normal, dim=1)], 1)
    index = voxels.coords[:, 1:]
    if offset is not None:
        offset = offset.to(index.device)
        index, shift = index + offset.int(), shift - offset * voxel_size
    return VoxelView(index, features, origin, voxels.inverse, shift)
