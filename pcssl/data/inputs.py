"""What a backbone is given at every voxel, by name: `color_normal`, ..."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pcssl.data.views import VoxelView


def _color_normal(view: VoxelView, zero: Tensor) -> Tensor:
    return view.features


# name -> function of a view and a place in metres (3,), to which coordinates are relative: the middle of the scene
# in x and y, its lowest point in z. Of a scene cut in tiles, all tiles have that of the whole.
INPUTS: dict[str, Callable[[VoxelView, Tensor], Tensor]] = {
    "color_normal": _color_normal,  # (M, 6): colour / 127.5 - 1, unit normal
}
