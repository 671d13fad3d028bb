"""What a backbone is given at every voxel, by name: `color_normal`, ..."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pcssl.data.views import VoxelView


def _color_normal(view: VoxelView, zero: Tensor) -> Tensor:
    return view.features


def _coord_color_normal(view: VoxelView, zero: Tensor) -> Tensor:
    color, normal = view.features.split(3, 1)
    return torch.cat([view.origin - zero, (color + 1) / 2, normal], 1)


def _half_coord_color_normal(view: VoxelView, zero: Tensor) -> Tensor:
    return _coord_color_normal(view, zero) * view.features.new_tensor([0.5] * 3 + [1.0] * 6)


# name -> function of a view and a place in metres (3,), to which coordinates are relative: the middle of the scene
# in x and y, its lowest point in z. Of a scene cut in tiles, all tiles have that of the whole.
INPUTS: dict[str, Callable[[VoxelView, Tensor], Tensor]] = {
    "color_normal": _color_normal,  # (M, 6): colour / 127.5 - 1, unit normal
    "coord_color_normal": _coord_color_normal,  # (M, 9): metres, colour / 255, unit normal
    "half_coord_color_normal": _half_coord_color_normal,  # the same with half the metres
}
