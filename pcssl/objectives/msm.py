"""Masked Scene Modeling.

Hermosilla, Stippel, Sick, "Masked Scene Modeling: Narrowing the Gap Between Supervised and
Self-Supervised Learning in 3D Scene Understanding", CVPR 2025, arXiv 2504.06719. The training
code was never released; what the paper leaves open is an option of `MSMConfig`, marked "ours".

A scene gives two views. A momentum teacher sees both whole; the student sees a crop of each,
with whole blocks of voxels removed before its encoder. Its decoder works on the crop's full
geometry with learnt tokens at the hidden voxels, and predicts there, at every level, what the
teacher computes at the same place in the other view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.data.masks import block_mask, crop_around, nearest_crop
from pcssl.data.scene import Scene
from pcssl.data.settings import DataConfig
from pcssl.data.transforms import augment
from pcssl.data.views import Points, VoxelView, voxel_view
from pcssl.objectives.base import Objective
from pcssl.objectives.teacher import Teacher
from pcssl.registry import register
from pcssl.schedules import cosine
from pcssl.sparse import Geometry, SparseTensor, current_engine
from pcssl.statistics import effective_rank, feature_std, linear_r2


@dataclass(frozen=True)
class MSMConfig:
    """mask_ratio: part of the occupied mask cells that is hidden (paper: 0.4; counted in cells: ours).
        At 0 nothing is hidden (for ablation).
    mask_level: level whose voxels are the mask cells, None = the coarsest (ours, the only reading
        that hides a region at every level; 0 draws masks at the finest level, "top-down").
    crop: range of the student's part of a view's voxels, around a random centre (ours).
    max_voxels: cap of a view; a larger one is cut around a place that both views share (paper:
        crop size 240000).
    momentum: of the teacher at the first and the last step, cosine between (paper; cosine: ours).
    loss: regression on the teacher's features (ours).
    target_norm: what they are made into (ours). whiten: their principal axes all get variance 1, so that the loss asks
        for all they hold, see `Whitening`; layer: each is layer-normed over its channels; channel: each channel gets
        mean 0 and variance 1 in the step; none: as they are.
    tokens: a learnt token at hidden voxels of all levels, or of the coarsest only (ours: all).
    matching: what the target at a place is (ours): the nearest teacher voxel within a voxel edge, or the mean of
        those around it with trilinear weights.
    teacher_view: the teacher sees whole views (paper), or only what the student's crop of that view has.
    predictor: a student-only MLP per level before the loss (paper; its shape: ours).
    loss_voxels: of the student's crop: the hidden ones (paper), or all of them (ours): a shown voxel is then asked for
        what the teacher has there in the other view. With nothing hidden it is all of them.
    loss_levels: all levels, or only the finest (for ablation).
    evaluate: the network that probes and exports use.
    """

    mask_ratio: Annotated[float, Range(0, 1, high_open=True)] = 0.4
    mask_level: Annotated[int, Range(0)] | None = None
    crop: tuple[Annotated[float, Range(0, 1, low_open=True)], Annotated[float, Range(0, 1, low_open=True)]] = (0.4, 1.0)
    max_voxels: Annotated[int, Range(1)] = 240_000
    momentum: tuple[Annotated[float, Range(0, 1)], Annotated[float, Range(0, 1)]] = (0.996, 1.0)
    loss: Literal["smooth_l1", "mse", "cosine"] = "smooth_l1"
    target_norm: Literal["whiten", "layer", "channel", "none"] = "whiten"
    tokens: Literal["all", "coarsest"] = "all"
    matching: Literal["nearest", "trilinear"] = "nearest"
    teacher_view: Literal["whole", "crop"] = "whole"
    predictor: bool = True
    loss_voxels: Literal["hidden", "crop"] = "hidden"
    loss_levels: Literal["all", "finest"] = "all"
    evaluate: Literal["student", "teacher"] = "student"

    def __post_init__(self) -> None:
        if self.crop[0] > self.crop[1]:
            raise ValueError(f"crop: {self.crop[0]} is above {self.crop[1]}")


@dataclass(frozen=True)
class MSMSample:
    """View A and view B of one scene, and per view which voxels are in the student's crop and hidden."""

    views: tuple[VoxelView, VoxelView]
    crop: tuple[Tensor, Tensor]
    hidden: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MSMBatch:
    """All views of a batch, as one: view v of scene s has batch index 2 s + v.

    coords: (N, 4) int32 [batch, x, y, z], in the order of their keys. features: (N, C). origin: (N, 3) metres.
    crop, hidden: (N,) bool; hidden voxels are in the crop.
    """

    coords: Tensor
    features: Tensor
    origin: Tensor
    crop: Tensor
    hidden: Tensor

    @property
    def num_voxels(self) -> int:
        return self.coords.shape[0]

    def to(self, device: torch.device) -> MSMBatch:
        return MSMBatch(*(x.to(device, non_blocking=True) for x in vars(self).values()))

    def pin_memory(self) -> MSMBatch:
        return MSMBatch(*(x.pin_memory() for x in vars(self).values()))


@dataclass(frozen=True)
class MSMSampler:
    """Makes an `MSMSample` from a scene; see `Objective.sampler`."""

    config: MSMConfig
    data: DataConfig
    strides: tuple[int, ...]

    def __call__(self, scene: Scene, rng: torch.Generator) -> MSMSample:
        points = Points.from_scene(scene)
        views = [self._view(points, rng) for _ in range(2)]
        centre = points.origin[int(torch.randint(len(scene), (1,), generator=rng))]
        views = [_cut(view, centre, self.config.max_voxels) for view in views]
        crops = [self._crop(view, rng) for view in views]
        hidden = [self._hide(view, crop, rng) for view, crop in zip(views, crops)]
        return MSMSample(tuple(views), tuple(crops), tuple(hidden))

    def _view(self, points: Points, rng: torch.Generator) -> VoxelView:
        # A whole number of voxels moves the borders of the coarser levels' cells.
        offset = torch.randint(self.strides[-1], (3,), generator=rng)
        return voxel_view(augment(points, self.data.augment, rng), self.data.voxel_size, offset)

    def _crop(self, view: VoxelView, rng: torch.Generator) -> Tensor:
        low, high = self.config.crop
        part = low + (high - low) * float(torch.rand((), generator=rng))
        return nearest_crop(view.index.float(), max(1, round(part * len(view.index))), rng)

    def _hide(self, view: VoxelView, crop: Tensor, rng: torch.Generator) -> Tensor:
        level = len(self.strides) - 1 if self.config.mask_level is None else self.config.mask_level
        index = view.index[crop]
        hidden = torch.zeros_like(crop)
        hidden[crop] = block_mask(
            index, index.new_zeros(len(index)), self.strides[level], self.config.mask_ratio, rng
        )
        return hidden


def _cut(view: VoxelView, centre: Tensor, count: int) -> VoxelView:
    if len(view.index) <= count:
        return view
    keep = crop_around(view.origin, centre, count)
    return replace(view, index=view.index[keep], features=view.features[keep], origin=view.origin[keep])


class Predictor(nn.Sequential):
    """Norm, linear to twice the width, GELU, linear back."""

    def __init__(self, channels: int):
        super().__init__(
            nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )


class Whitening(nn.Module):
    """Turns the teacher's features into targets whose principal axes all have variance 1.

    The mean and the covariance are running ones over the voxels of whole views: those of a step's few hidden voxels, of
    a scene or two, would change from step to step, and have fewer rows than channels at the coarse levels.
    """

    def __init__(self, channels: int, momentum: float = 0.95):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("square", torch.zeros(channels, channels))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """features: (N, C) of all voxels of a step. One that is not finite is left out: it would stay in the moments."""
        if len(features) and bool(features.isfinite().all()):
            self.steps += 1
            rate = max(1 - self.momentum, 1 / int(self.steps))
            with torch.autocast(features.device.type, enabled=False):
                features = features.float()
                self.mean.lerp_(features.mean(0), rate)
                self.square.lerp_(features.T @ features / len(features), rate)

    @torch.no_grad()
    def forward(self, target: Tensor) -> Tensor:
        """(n, C) -> (n, C) float32. No axis is turned: it is the symmetric root of the inverse covariance."""
        mean = self.mean.double()
        values, axes = torch.linalg.eigh(self.square.double() - torch.outer(mean, mean))
        # The floor keeps axes that hold next to nothing from becoming targets of full size.
        values = values.clamp(min=0) + (1e-3 * values.mean()).clamp(min=1e-12)
        return ((target.double() - mean) @ (axes * values.rsqrt() @ axes.T)).float()


@register("objective", "msm", config=MSMConfig)
class MSM(Objective):
    """Needs a backbone with `encode(x)`, `decode(encoded, geometries, tokens)`, `.channels`, `.strides`."""

    samples_on_device = True

    def __init__(self, config: MSMConfig, backbone: nn.Module, data: DataConfig, total_steps: int):
        super().__init__()
        for method in ("encode", "decode"):
            if not hasattr(backbone, method):
                raise ValueError(f"msm needs a backbone with {method}(); {type(backbone).__name__} has none")
        if config.mask_level is not None and config.mask_level >= len(backbone.strides):
            raise ValueError(f"mask_level must be below {len(backbone.strides)}, the backbone's levels")
        self.config, self.data, self.total_steps = config, data, total_steps
        self.student = backbone
        self.teacher = Teacher(backbone)
        learnt = range(len(backbone.channels)) if config.tokens == "all" else [len(backbone.channels) - 1]
        self.tokens = nn.ParameterDict(
            {str(i): nn.Parameter(nn.init.trunc_normal_(torch.empty(backbone.channels[i]), std=0.02)) for i in learnt}
        )
        self.whitening = nn.ModuleList(Whitening(c) for c in backbone.channels if config.target_norm == "whiten")
        self.predictors = nn.ModuleList(
            Predictor(c) if config.predictor else nn.Identity() for c in backbone.channels
        )

    def sampler(self) -> Callable[[Scene, torch.Generator], MSMSample]:
        return MSMSampler(self.config, self.data, tuple(self.student.strides))

    def collate(self, samples: list[MSMSample]) -> MSMBatch:
        rows = [
            (2 * s + v, sample.views[v], sample.crop[v], sample.hidden[v])
            for s, sample in enumerate(samples)
            for v in range(2)
        ]
        return MSMBatch(
            coords=torch.cat([F.pad(view.index, (1, 0), value=b) for b, view, _, _ in rows]),
            features=torch.cat([view.features for _, view, _, _ in rows]),
            origin=torch.cat([view.origin for _, view, _, _ in rows]),
            crop=torch.cat([crop for _, _, crop, _ in rows]),
            hidden=torch.cat([hidden for _, _, _, hidden in rows]),
        )

    def backbone(self) -> nn.Module:
        return self.student if self.config.evaluate == "student" else self.teacher.network

    def after_step(self, step: int) -> dict[str, float]:
        momentum = cosine(step, self.total_steps, *self.config.momentum)
        self.teacher.update(self.student, momentum)
        return {"momentum": momentum}

    def forward(self, batch: MSMBatch, step: int) -> dict[str, Tensor]:
        shown = slice(None) if self.config.teacher_view == "whole" else batch.crop
        whole = Geometry(batch.coords[shown], ascending=True)
        targets = self.teacher(SparseTensor(batch.features[shown], whole))
        for whitening, target in zip(self.whitening, targets):
            whitening.update(target.features)
        predictions, seen = self.predict(batch)
        crop_origin = level_means(predictions[0].geometry, batch.origin[batch.crop], len(predictions))
        whole_origin = level_means(whole, batch.origin[shown], len(targets))
        whole_normal = level_means(whole, batch.features[shown, 3:6], len(targets)) if self.watched else None

        out: dict[str, Tensor] = {}
        losses = []
        for i, (prediction, target) in enumerate(zip(predictions, targets)):
            out[f"std/level{i}"] = feature_std(some(target.features))
            out[f"std_student/level{i}"] = feature_std(some(prediction.features))
            if self.config.loss_levels == "finest" and i > 0:
                continue
            rows = torch.nonzero(self.asked(seen[i]))[:, 0]
            found, wanted = self._targets(prediction, rows, crop_origin[i], target, whole_origin[i])
            out[f"matched/level{i}"] = found.float().mean() if len(rows) else found.new_zeros((), dtype=torch.float)
            if len(wanted):
                predicted = self.predictors[i](prediction.features[rows[found]])
                wanted = self._normalized(i, wanted)
                loss = self._regress(predicted, wanted)
                if self.watched:
                    out[f"cosine/level{i}"] = F.cosine_similarity(predicted.detach().float(), wanted, dim=1).mean()
                out[f"loss/level{i}"] = loss.detach()
                losses.append(loss)
            if self.watched:
                out |= level_health(i, prediction.features, target.features, whole_origin[i], whole_normal[i])
        # Without a single pair (a scene of a few points) the step has no gradient but stays valid.
        out["loss"] = torch.stack(losses).mean() if losses else 0 * predictions[0].features.sum()
        return out

    def predict(self, batch: MSMBatch) -> tuple[list[SparseTensor], list[Tensor]]:
        """The student's decoder levels on the crop, finest first, and per level (n,) bool: was encoded."""
        visible = batch.crop & ~batch.hidden
        given = Geometry(batch.coords[visible], ascending=True)
        encoded = self.student.encode(SparseTensor(batch.features[visible], given))
        if visible[batch.crop].all():  # nothing hidden: both are the same voxels
            geometries = [level.geometry for level in encoded]
        else:
            geometries = [Geometry(batch.coords[batch.crop], ascending=True)]
            for _ in encoded[1:]:
                geometries.append(geometries[-1].coarser()[0])
        tokens = [self._token(i) for i in range(len(encoded))]
        seen = level_marks(geometries[0], visible[batch.crop], len(encoded))
        return self.student.decode(encoded, geometries, tokens), seen

    def asked(self, seen: Tensor) -> Tensor:
        """(n,) bool, at which voxels of the student the loss is taken, of (n,) bool, which were encoded."""
        hidden_only = self.config.loss_voxels == "hidden" and self.config.mask_ratio > 0
        return ~seen if hidden_only else torch.ones_like(seen)

    def _token(self, level: int) -> Tensor:
        if str(level) in self.tokens:
            return self.tokens[str(level)]
        return next(iter(self.tokens.values())).new_zeros(self.student.channels[level])

    def _targets(
        self, prediction: SparseTensor, rows: Tensor, origin: Tensor, target: SparseTensor, target_origin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the teacher computes in the other view at the places of these rows.

        Returns (len(rows),) bool, whether it has a voxel within a voxel edge there, and (found, C) for those.
        """
        edge = self.data.voxel_size * prediction.stride
        places = (origin[rows], prediction.batch[rows] ^ 1, target_origin, target.batch)
        if self.config.matching == "nearest":
            match = current_engine().nearest(*places, edge)[0]
            return match >= 0, target.features[match[match >= 0]]
        offsets, index = current_engine().radius_neighbors(*places, edge)[:2]
        query = torch.repeat_interleave(torch.arange(len(rows), device=offsets.device), offsets.diff())
        away = (origin[rows][query] - target_origin[index]).abs()
        weight = (1 - away / edge).clamp(min=0).prod(1).clamp(min=1e-6)[:, None]
        total = weight.new_zeros(len(rows), 1).index_add_(0, query, weight)
        mean = weight.new_zeros(len(rows), target.features.shape[1])
        mean.index_add_(0, query, weight * target.features[index].float())
        found = total[:, 0] > 0
        return found, (mean[found] / total[found]).to(target.features.dtype)

    def _normalized(self, level: int, target: Tensor) -> Tensor:
        """Targets (n, C) as the loss takes them, float32; see `MSMConfig.target_norm`."""
        target = target.float()
        if self.config.target_norm == "whiten":
            return self.whitening[level](target)
        if self.config.target_norm == "layer":
            return F.layer_norm(target, target.shape[1:])
        if self.config.target_norm == "channel":
            return F.batch_norm(target, None, None, training=True) if len(target) > 1 else torch.zeros_like(target)
        return target

    def _regress(self, prediction: Tensor, target: Tensor) -> Tensor:
        prediction = prediction.float()
        if self.config.loss == "cosine":
            return 1 - F.cosine_similarity(prediction, target, dim=1).mean()
        if self.config.loss == "mse":
            return F.mse_loss(prediction, target)
        return F.smooth_l1_loss(prediction, target)


def some(x: Tensor, rows: int = 2048) -> Tensor:
    """At most so many rows, evenly spread: enough for a statistic."""
    return x.detach()[torch.linspace(0, len(x) - 1, min(len(x), rows), device=x.device).long()]


@torch.no_grad()
def level_health(level: int, student: Tensor, teacher: Tensor, origin: Tensor, normal: Tensor) -> dict[str, Tensor]:
    """Rank of both networks' features, and how well the teacher's tell height and normal, on at most 2048 voxels."""

    teacher, origin, normal = some(teacher), some(origin), some(normal)
    return {
        f"rank/level{level}": effective_rank(teacher),
        f"rank_student/level{level}": effective_rank(some(student)),
        f"height_r2/level{level}": linear_r2(teacher, origin[:, 2:]),
        f"normal_r2/level{level}": linear_r2(teacher, normal),
    }


def level_marks(geometry: Geometry, marked: Tensor, levels: int) -> list[Tensor]:
    """For every level, (n,) bool: whether a marked one (N,) of the finest voxels is below the voxel."""
    marks = [marked]
    for _ in range(levels - 1):
        coarse, parent = geometry.coarser()
        above = marked.new_zeros(len(coarse))
        above[parent[marked]] = True
        marks.append(above)
        geometry, marked = coarse, above
    return marks


def level_means(geometry: Geometry, values: Tensor, levels: int) -> list[Tensor]:
    """Mean of per-voxel values (N, C) over the finest voxels below each voxel, for every level."""
    means, total = [values], F.pad(values, (0, 1), value=1.0)  # the last column counts
    for _ in range(levels - 1):
        geometry, parent = geometry.coarser()
        total = current_engine().scatter_sum(total, parent, len(geometry))
        means.append(total[:, :-1] / total[:, -1:])
    return means
