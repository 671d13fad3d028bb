"""A training sample of Masked Scene Modeling from a scene in memory: all that is done to it before networks run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.benchmarks import numpy_sample
from pcssl.benchmarks.case import Case, Settings, Step, engines
from pcssl.benchmarks.samples import Sample
from pcssl.config import component
from pcssl.data.masks import block_mask, nearest_crop
from pcssl.data.scene import Scene
from pcssl.data.settings import DataConfig
from pcssl.data.transforms import AugmentConfig, augment
from pcssl.data.views import Points, VoxelView, voxel_view
from pcssl.objectives.msm import MSMConfig, MSMSampler, level_marks, level_means
from pcssl.sparse import Geometry, current_engine, use_engine

STRIDES = (1, 2, 4, 8, 16)
AUGMENT, MSM = AugmentConfig(), MSMConfig()
STUDENT = 0.7  # of a view's voxels, in the stage "mask"; in "all" it is drawn
STAGES = ("augment", "voxels", "mask", "match", "all")
Masks = tuple[Any, Any]  # (M,) bool: in the student's crop, hidden
Matches = list[Any]  # of a level: distances to the matches of both views' hidden voxels


def cases(sample: Sample, settings: Settings) -> Iterator[Case]:
    """The stages one by one, each given the same, then all of them."""
    for stage in STAGES:
        contestants = {name: partial(ours, engine, stage, sample) for name, engine in engines("voxelize", settings).items()}
        if settings.peers and sample.device.type == "cpu":
            contestants["numpy and scipy"] = partial(theirs, stage, sample)
        # Once a scene with colours and normals, and two views' features, places and voxels.
        traffic = len(sample.points) * (12 + 3 + 12) + 2 * len(sample.geometry) * (24 + 12 + 16)
        # All together is compared by counts: rounding moves a few points to other voxels, and the crop's centre is a
        # voxel drawn by its number, which is another one where voxels have another order.
        tolerance = 0.01 if stage == "all" else 1e-4
        yield Case({"stage": stage}, contestants, traffic, traffic, tolerance=tolerance, answer=ANSWERS[stage])


def ours(engine: str, stage: str, sample: Sample) -> Step:
    work = Ours(sample)

    def step() -> Any:
        with use_engine(engine):
            return getattr(work, stage)()

    return step


def theirs(stage: str, sample: Sample) -> Step:
    return getattr(Numpy(sample), stage)


class Ours:
    """The stages as training runs them, and what each is given: the same for every contestant.

    Two views of every scene follow each other in a list.
    """

    def __init__(self, sample: Sample):
        self.voxel_size = sample.voxel_size
        self.scenes = [_scene(sample.points[sample.batch == i], i) for i in range(sample.scenes)]
        self.seeds = range(2 * len(self.scenes))
        with use_engine("reference"):
            self.points = self.augment()
            self.views = self.voxels()
            self.masks = self.mask()

    def augment(self) -> list[Points]:
        return [augment(Points.from_scene(self.scenes[i // 2]), AUGMENT, _generator(i)) for i in self.seeds]

    def voxels(self) -> list[VoxelView]:
        return [voxel_view(points, self.voxel_size, _offset(i)) for points, i in zip(self.points, self.seeds)]

    def mask(self) -> list[Masks]:
        return [self._masks(view.index, i) for view, i in zip(self.views, self.seeds)]

    def _masks(self, index: Tensor, seed: int) -> Masks:
        rng = _generator(seed)
        crop = nearest_crop(index.float(), max(1, round(STUDENT * len(index))), rng)
        hidden = torch.zeros_like(crop)
        inside = index[crop]
        hidden[crop] = block_mask(inside, inside.new_zeros(len(inside)), STRIDES[-1], MSM.mask_ratio, rng)
        return crop, hidden

    def match(self) -> Matches:
        return self._matches(self.views, self.masks)

    def _matches(self, views: list[VoxelView], masks: list[Masks]) -> Matches:
        coords = torch.cat([F.pad(view.index, (1, 0), value=i) for i, view in enumerate(views)])
        origin = torch.cat([view.origin for view in views])
        kept, hidden = (torch.cat(masks) for masks in zip(*masks))
        whole, crop = Geometry(coords, ascending=True), Geometry(coords[kept], ascending=True)
        whole_origin = level_means(whole, origin, len(STRIDES))
        crop_origin = level_means(crop, origin[kept], len(STRIDES))
        seen = level_marks(crop, ~hidden[kept], len(STRIDES))
        found = []
        for level, stride in enumerate(STRIDES):
            rows = torch.nonzero(~seen[level])[:, 0]
            places = crop_origin[level][rows], crop.batch[rows] ^ 1, whole_origin[level], whole.batch
            found.append(current_engine().nearest(*places, self.voxel_size * stride)[1])
            whole, crop = whole.coarser()[0], crop.coarser()[0]
        return found

    def all(self) -> tuple[list[VoxelView], list[Masks], Matches]:
        sampler = MSMSampler(MSM, DataConfig(component("dataset", "folder", root="none"), voxel_size=self.voxel_size), STRIDES)
        samples = [sampler(scene, _generator(i)) for i, scene in enumerate(self.scenes)]
        views = [view for sample in samples for view in sample.views]
        masks = [masks for sample in samples for masks in zip(sample.crop, sample.hidden)]
        return views, masks, self._matches(views, masks)


class Numpy:
    """The same by `numpy_sample`."""

    def __init__(self, sample: Sample):
        given = Ours(sample)
        self.voxel_size = given.voxel_size
        self.clouds = [numpy_sample.Cloud.from_points(Points.from_scene(scene)) for scene in given.scenes]
        self.points = [numpy_sample.Cloud.from_points(points) for points in given.points]
        self.views = [
            numpy_sample.View(*(x.numpy() for x in (view.index.long(), view.features, view.origin, view.inverse)))
            for view in given.views
        ]
        self.masks = [tuple(x.numpy() for x in masks) for masks in given.masks]

    def augment(self) -> list[numpy_sample.Cloud]:
        return [numpy_sample.augment(self.clouds[i // 2], AUGMENT, _generator(i)) for i in range(len(self.views))]

    def voxels(self) -> list[numpy_sample.View]:
        return [
            numpy_sample.voxelize(points, self.voxel_size, _offset(i).numpy()) for i, points in enumerate(self.points)
        ]

    def mask(self) -> list[Masks]:
        masks = []
        for i, view in enumerate(self.views):
            rng = _generator(i)
            crop = self._crop(view, STUDENT, rng)
            masks.append((crop, self._hide(view, crop, rng)))
        return masks

    def _crop(self, view: numpy_sample.View, part: float, rng: torch.Generator) -> np.ndarray:
        return numpy_sample.nearest_crop(view.index.astype(np.float32), max(1, round(part * len(view.index))), rng)

    def _hide(self, view: numpy_sample.View, crop: np.ndarray, rng: torch.Generator) -> np.ndarray:
        hidden = np.zeros_like(crop)
        hidden[crop] = numpy_sample.block_mask(view.index[crop], STRIDES[-1], MSM.mask_ratio, rng)
        return hidden

    def match(self) -> Matches:
        return self._matches(self.views, self.masks)

    def _matches(self, views: list[numpy_sample.View], masks: list[Masks]) -> Matches:
        pairs = [slice(i, i + 2) for i in range(0, len(views), 2)]
        found = [numpy_sample.match(views[pair], masks[pair], self.voxel_size, len(STRIDES)) for pair in pairs]
        return [np.concatenate(level) for level in zip(*found)]

    def all(self) -> tuple[list[numpy_sample.View], list[Masks], Matches]:
        views, masks = [], []
        low, high = MSM.crop
        for i, cloud in enumerate(self.clouds):
            rng = _generator(i)
            pair = []
            for _ in range(2):
                offset = torch.randint(STRIDES[-1], (3,), generator=rng).numpy()
                pair.append(numpy_sample.voxelize(numpy_sample.augment(cloud, AUGMENT, rng), self.voxel_size, offset))
            centre = cloud.origin[int(torch.randint(len(cloud.origin), (1,), generator=rng))]
            pair = [numpy_sample.cut(view, centre, MSM.max_voxels) for view in pair]
            crops = [self._crop(view, low + (high - low) * float(torch.rand((), generator=rng)), rng) for view in pair]
            masks += [(crop, self._hide(view, crop, rng)) for view, crop in zip(pair, crops)]
            views += pair
        return views, masks, self._matches(views, masks)


def _scene(coord: Tensor, seed: int) -> Scene:
    """Colours and normals by chance: any take as long."""
    rng = _generator(seed)
    color = torch.randint(0, 256, coord.shape, generator=rng).to(torch.uint8)
    normal = F.normalize(torch.randn(coord.shape, generator=rng), dim=1)
    return Scene(coord, color.to(coord.device), normal.to(coord.device))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _offset(seed: int) -> Tensor:
    return torch.randint(STRIDES[-1], (3,), generator=_generator(seed))


def _of_points(found: list[Points] | list[numpy_sample.Cloud]) -> list[Tensor]:
    return [torch.as_tensor(x) for points in found for x in (points.coord, points.color, points.normal)]


def _of_voxels(found: list[VoxelView] | list[numpy_sample.View]) -> list[Tensor]:
    """What every point's voxel has, whatever the order of the voxels."""
    return [torch.as_tensor(x[view.inverse]) for view in found for x in (view.index, view.features, view.origin)]


def _of_masks(found: list[Masks]) -> list[Tensor]:
    return [torch.as_tensor(mask).float() for masks in found for mask in masks]


def _of_matches(found: Matches) -> list[Tensor]:
    """Distances in rising order, whatever the order of the voxels; their number where none is near."""
    distances = [torch.as_tensor(level).double().sort().values for level in found]
    return [level[level.isfinite()] for level in distances] + [torch.tensor([len(level) for level in distances])]


def _of_all(found: tuple) -> Tensor:
    """Voxels of the views, their share in the crop, and at every level the share of the hidden ones with a match."""
    views, masks, matches = found
    counts = [len(view.index) / len(view.inverse) for view in views]
    shares = [float(torch.as_tensor(crop).float().mean()) for crop, _ in masks]
    matched = [float(torch.as_tensor(level).isfinite().float().mean()) for level in matches if len(level)]
    return torch.tensor([*counts, *shares, *matched])


ANSWERS: dict[str, Callable[[Any], Tensor | list[Tensor]]] = {
    "augment": _of_points, "voxels": _of_voxels, "mask": _of_masks, "match": _of_matches, "all": _of_all,
}  # fmt: skip
