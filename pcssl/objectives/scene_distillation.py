"""DINO, iBOT and SwAV on scenes: the losses of the methods on images, at the voxels of every level.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (DINO), ICCV 2021, arXiv 2104.14294;
Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR 2022, arXiv 2111.07832; Caron et al.,
"Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (SwAV), NeurIPS 2020, arXiv 2006.09882.

A scene gives the two views of Masked Scene Modeling: a teacher sees both whole, the student a crop of each, with a learnt
token instead of the features of hidden cells (iBOT; their places stay known). A voxel of any level is a part of the
scene. For shown parts the student predicts the teacher's class probabilities at the same place in the other view (DINO),
for hidden parts those at the same place in the same view (iBOT). The classes of a part are cosines of what a head
makes of it with learnt prototypes, sharpened after the centre is taken off (DINO), or balanced over all parts (SwAV).
With a momentum of 0 the teacher is the student itself, in eval mode, as SwAV has it.

From the papers: the losses, the teacher, the heads, the temperatures. Ours: that a scene's parts are voxels, matched as
Masked Scene Modeling matches them; a head, prototypes and a centre for each level, and the mean of the levels' losses;
one centre for shown and hidden parts; all sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from pcssl.config import Range
from pcssl.data.scene import Scene
from pcssl.data.settings import DataConfig
from pcssl.models.heads import Prototypes, head
from pcssl.objectives.base import Objective
from pcssl.objectives.distillation import DistillationLoss
from pcssl.objectives.msm import MSM, MSMBatch, MSMConfig, MSMSample, MSMSampler, level_health, level_means
from pcssl.objectives.targets import sinkhorn, soft_cross_entropy
from pcssl.objectives.teacher import Teacher
from pcssl.registry import register
from pcssl.schedules import cosine
from pcssl.sparse import Geometry, SparseTensor, current_engine
from pcssl.statistics import feature_std

Count = Annotated[int, Range(1)]
Part = Annotated[float, Range(0, 1)]
Temperature = Annotated[float, Range(0, low_open=True)]


@dataclass(frozen=True)
class SceneDistillationConfig:
    """targets: centre (DINO), or sinkhorn (SwAV; teacher_temperature is then its epsilon).
    parts: random voxels of a level in a step, over all views, that the loss is taken at.
    mask_ratio: part of the cells of the coarsest level whose features are hidden from the student; 0 = none.
    crop: range of the student's part of a view's voxels. max_voxels: cap of a view.
    head, hidden, bottleneck, prototypes: of every level, as for `dino`.
    momentum: of the teacher at the first and the last step, cosine between.
    evaluate: the network that probes and exports use.
    """

    targets: Literal["centre", "sinkhorn"] = "centre"
    parts: Count = 2048
    mask_ratio: Annotated[float, Range(0, 1, high_open=True)] = 0.4
    crop: tuple[Annotated[float, Range(0, 1, low_open=True)], Annotated[float, Range(0, 1, low_open=True)]] = (0.4, 1.0)
    max_voxels: Count = 240_000
    head: Literal["dino", "dino_bn"] = "dino_bn"
    hidden: Count = 2048
    bottleneck: Count = 256
    prototypes: Annotated[int, Range(2)] = 4096
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = 0.04
    momentum: tuple[Part, Part] = (0.996, 1.0)
    centre_momentum: Part = 0.9
    evaluate: Literal["student", "teacher"] = "student"

    def __post_init__(self) -> None:
        if self.crop[0] > self.crop[1]:
            raise ValueError(f"crop: {self.crop[0]} is above {self.crop[1]}")


@register("objective", "scene_distillation", config=SceneDistillationConfig)
class SceneDistillation(Objective):
    """Works with any backbone for scenes."""

    def __init__(self, config: SceneDistillationConfig, backbone: nn.Module, data: DataConfig, total_steps: int):
        super().__init__()
        if not isinstance(data, DataConfig):
            raise ValueError("it works on scenes; `dino` is the method for images")
        self.config, self.data, self.total_steps = config, data, total_steps
        self.student = backbone
        self.heads = nn.ModuleList(
            nn.Sequential(
                head(config.head, channels, config.hidden, config.bottleneck),
                Prototypes(config.bottleneck, config.prototypes),
            )
            for channels in backbone.channels
        )
        self.teacher = Teacher(backbone)
        self.teacher_heads = Teacher(self.heads, batch_statistics=True)
        self.token = nn.Parameter(torch.zeros(backbone.config.in_channels)) if config.mask_ratio > 0 else None
        self.losses = nn.ModuleList(
            DistillationLoss(config.prototypes, config.student_temperature, config.centre_momentum)
            for _ in (backbone.channels if config.targets == "centre" else ())
        )

    def sampler(self) -> Callable[[Scene, torch.Generator], MSMSample]:
        c = self.config
        views = MSMConfig(mask_ratio=c.mask_ratio, crop=c.crop, max_voxels=c.max_voxels)
        return MSMSampler(views, self.data, tuple(self.student.strides))

    collate = MSM.collate

    def backbone(self) -> nn.Module:
        return self.student if self.config.evaluate == "student" else self.teacher.network

    def after_step(self, step: int) -> dict[str, float]:
        momentum = cosine(step, self.total_steps, *self.config.momentum)
        self.teacher.update(self.student, momentum)
        self.teacher_heads.update(self.heads, momentum)
        return {"momentum": momentum}

    def forward(self, batch: MSMBatch, step: int) -> dict[str, Tensor]:
        whole = Geometry(batch.coords)
        targets = self.teacher(SparseTensor(batch.features, whole))
        whole_place = level_means(whole, torch.cat([batch.origin, batch.features[:, 3:6]], 1), len(targets))
        predictions = self.predict(batch)
        marked = torch.cat([batch.origin, batch.hidden[:, None].float()], 1)[batch.crop]
        crop_place = level_means(predictions[0].geometry, marked, len(predictions))

        out: dict[str, Tensor] = {}
        losses = []
        for i, (prediction, target) in enumerate(zip(predictions, targets)):
            out[f"std/level{i}"] = feature_std(target.features)
            out[f"std_student/level{i}"] = feature_std(prediction.features.detach())
            rows, match = self.pairs(prediction, crop_place[i], target, whole_place[i])
            if len(rows) > 1:  # BatchNorm needs two
                scores = self.heads[i](prediction.features[rows])
                with torch.no_grad():
                    wanted = self.teacher_heads.network[i](target.features[match])
                losses.append(self.loss(i, scores, wanted))
                out[f"loss/level{i}"] = losses[-1].detach()
                out[f"classes/level{i}"] = classes_in_use(scores.detach() / self.config.student_temperature)
            if self.watched:
                origin, normal = whole_place[i].split(3, 1)
                out |= level_health(i, prediction.features, target.features, origin, normal)
        # Without two pairs (a scene of a few points) the step has no gradient but stays valid.
        out["loss"] = torch.stack(losses).mean() if losses else 0 * predictions[0].features.sum()
        return out

    def predict(self, batch: MSMBatch) -> list[SparseTensor]:
        """The student's levels on the crop, finest first; it does not see the features of hidden voxels."""
        features, hidden = batch.features[batch.crop], batch.hidden[batch.crop]
        if self.token is not None:
            features = torch.where(hidden[:, None], self.token, features)
        return self.student(SparseTensor(features, Geometry(batch.coords[batch.crop])))

    def pairs(
        self, prediction: SparseTensor, place: Tensor, target: SparseTensor, target_place: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows of the student's voxels, and of the teacher's nearest within a voxel edge of their places.

        place: (n, 4) metres before augmentation, and 1 where hidden. A shown voxel's is in the other view of its scene,
        a hidden one's in the same view. Returns (P,) and (P,) int64, P at most `parts`.
        """
        rows = torch.randperm(len(place), device=place.device)[: self.config.parts]
        origin, hidden = place[rows, :3].contiguous(), place[rows, 3] > 0.5
        view = torch.where(hidden, prediction.batch[rows], prediction.batch[rows] ^ 1)
        edge = self.data.voxel_size * prediction.stride
        match = current_engine().nearest(origin, view, target_place[:, :3].contiguous(), target.batch, edge)[0]
        return rows[match >= 0], match[match >= 0]

    def loss(self, level: int, scores: Tensor, wanted: Tensor) -> Tensor:
        """Cross-entropy of the student's classes of parts (P, K) with the teacher's."""
        c = self.config
        if c.targets == "sinkhorn":
            return soft_cross_entropy(sinkhorn(wanted, c.teacher_temperature), scores / c.student_temperature)
        # As of two views: the teacher's own, which nothing is asked of, and the student's.
        return self.losses[level]((wanted, scores), (wanted,), c.teacher_temperature)


@torch.no_grad()
def classes_in_use(logits: Tensor) -> Tensor:
    """exp of the entropy of the mean probabilities over rows (P, K): 1 when all parts are in one class, K when spread evenly."""
    share = logits.float().softmax(1).mean(0)
    return torch.exp(-(share * share.clamp(min=1e-30).log()).sum())
