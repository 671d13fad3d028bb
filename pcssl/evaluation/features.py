"""A feature for every point of a scene."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.data.inputs import INPUTS
from pcssl.data.scene import Scene
from pcssl.data.transforms import turned
from pcssl.data.views import Points, grid_shift, voxel_view
from pcssl.sparse import SparseTensor

CHUNK = 65_536  # points read at once: bounds memory at wide features


@dataclass(frozen=True)
class Frame:
    """What the tiles of a scene have in common: shift (3,) metres, where voxel 0 begins; zero (3,) metres, to which
    coordinates are relative: the middle in x and y, the lowest point in z.
    """

    shift: Tensor
    zero: Tensor

    @classmethod
    def of(cls, coord: Tensor, voxel_size: float) -> Frame:
        low, high = coord.amin(0), coord.amax(0)
        return cls(grid_shift(coord, voxel_size), torch.cat([(low[:2] + high[:2]) / 2, low[2:]]))


@dataclass(frozen=True)
class SceneLevels:
    """What a backbone made of one scene: features on the voxels of every level, finest first.

    shift: (3,) metres, the place of voxel 0's corner. voxel_size: metres.
    mode: how a level is read, see `pcssl.ops.interpolate`.
    """

    levels: list[SparseTensor]
    shift: Tensor
    voxel_size: float
    mode: str = "exact"

    def read(self, coord: Tensor, chosen: Sequence[int] | None = None) -> Tensor:
        """(n, D) float32 features at places (n, 3) in metres: the chosen levels (None: all) side by side."""
        device = self.levels[0].features.device
        points = ((coord - self.shift) / self.voxel_size).to(device)
        batch = torch.zeros(len(points), dtype=torch.int64, device=device)
        chosen = range(len(self.levels)) if chosen is None else chosen
        read = [
            self.levels[i].geometry.interpolate(self.levels[i].features.float(), points, batch, self.mode) for i in chosen
        ]
        return torch.cat(read, 1).float()

    def chunks(
        self, coord: Tensor, chosen: Sequence[int] | None = None, size: int = CHUNK
    ) -> Iterator[tuple[slice, Tensor]]:
        """(rows, features of these rows) over all places, in order."""
        for start in range(0, len(coord), size):
            part = slice(start, min(start + size, len(coord)))
            yield part, self.read(coord[part], chosen)


@dataclass(frozen=True)
class PointFeatures:
    """Multi-resolution features of a hierarchical backbone: all levels, read at the points, fine to coarse.

    backbone: SparseTensor -> levels. voxel_size: metres. levels: which, None = all.
    mode: how a level is read, see `pcssl.ops.interpolate`. inputs: a name in `pcssl.data.inputs.INPUTS`.
    """

    backbone: nn.Module
    voxel_size: float
    levels: tuple[int, ...] | None = None
    mode: str = "exact"
    inputs: str = "color_normal"

    @torch.no_grad()
    def encode(self, scene: Scene, frame: Frame | None = None, corner: Tensor | None = None) -> SceneLevels:
        """Run the backbone once, in eval mode. ValueError if the scene lacks colour or normals.

        frame: of the scene that this one is a tile of. corner: (3,) integer, the first voxel of the tile in it.
        """
        device = next(self.backbone.parameters()).device
        frame = frame or Frame.of(scene.coord, self.voxel_size)
        offset = None if corner is None else -corner
        view = voxel_view(Points.from_scene(scene), self.voxel_size, offset, frame.shift)
        coords = F.pad(view.index, (1, 0)).to(device)
        was_training = self.backbone.training
        self.backbone.eval()
        features = INPUTS[self.inputs](view, frame.zero)
        levels = self.backbone(SparseTensor.from_coords(features.to(device), coords))
        self.backbone.train(was_training)
        return SceneLevels(levels, view.shift, self.voxel_size, self.mode)

    @torch.no_grad()
    def chunks(self, scene: Scene) -> Iterator[tuple[slice, Tensor]]:
        """(rows, features (n, D) float32 on the backbone's device) over all points, in order."""
        yield from self.encode(scene).chunks(scene.coord, self.levels)

    def __call__(self, scene: Scene) -> Tensor:
        """(N, D) float32 features of all points, on the CPU."""
        return torch.cat([features.cpu() for _, features in self.chunks(scene)])


def turn_scene(scene: Scene, angle: float) -> Scene:
    """The scene and its normals turned about the vertical axis. angle: radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    normal = None if scene.normal is None else turned(scene.normal, matrix)
    return replace(scene, coord=turned(scene.coord, matrix), normal=normal)


def point_inputs(scene: Scene) -> Tensor:
    """Colour / 127.5 - 1, normal, and height above the lowest point in metres: (N, 7) float32."""
    points = Points.from_scene(scene)
    height = scene.coord[:, 2:] - scene.coord[:, 2].min()
    return torch.cat([points.color / 127.5 - 1, points.normal, height], 1)


def sample_points(label: Tensor, count: int | None, rng: torch.Generator) -> Tensor:
    """Rows of `count` labelled points, every class of the scene with the same share as far as it has points.

    label: (N,) with -1 for none. count None: all labelled points. Returns (<= count,) int64, sorted.
    """
    known = torch.nonzero(label >= 0)[:, 0]
    known = known[torch.randperm(len(known), generator=rng)]
    # Rank within the class: the lowest ranks of all classes fill the sample evenly.
    order = torch.argsort(label[known], stable=True)
    sizes = torch.unique_consecutive(label[known][order], return_counts=True)[1]
    rank = torch.arange(len(known)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    first = torch.argsort(rank, stable=True)[:count]
    return known[order[first]].sort().values


def even_points(label: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Rows of `count` random labelled points, whatever their class: (<= count,) int64, in the order drawn."""
    known = torch.nonzero(label >= 0)[:, 0]
    return known[torch.randperm(len(known), generator=rng)[:count]]
