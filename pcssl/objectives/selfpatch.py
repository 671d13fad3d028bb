"""SelfPatch: a patch's teacher is what its most similar neighbours have in common.

Yun, Lee, Kim, Shin, "Patch-level Representation Learning for Self-supervised Vision Transformers", CVPR 2022, arXiv
2206.07990; the method and the defaults are those of the authors' code (alinlab/SelfPatch): on top of DINO, the teacher
picks of each patch's 8 neighbours the 4 most similar, makes one token of them by class attention, and the student's
own token of that patch predicts it, in the same view. The class token belongs to this head, not to the backbone.

Ours: at the border the neighbourhood is mirrored (`wrap: true` is the authors' table, where the left edge neighbours
the right one); any grid, square or not; keys and values of a token are computed once for all sets that it is in;
weight decay and drop path are the run's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.image.settings import ImageData
from pcssl.objectives.distillation import DINO, DINOConfig, DistillationLoss
from pcssl.objectives.image import ImageBatch
from pcssl.objectives.targets import Centre, soft_cross_entropy
from pcssl.registry import register

Count = Annotated[int, Range(1)]


def neighbor_index(rows: int, columns: int, size: int = 3, wrap: bool = False) -> Tensor:
    """(rows * columns, size * size - 1) int64: the patches around every patch of a grid, row after row.

    Beyond the border the grid is mirrored (-1 -> 1), or goes on at the other side with `wrap`. ValueError where the
    grid is smaller than the mirror needs.
    """
    reach = size // 2
    if size % 2 == 0 or size < 3:
        raise ValueError(f"size: {size} must be odd and at least 3")
    if min(rows, columns) <= reach:
        raise ValueError(f"a grid of {rows} x {columns} patches has no neighbourhood of {size} x {size}")

    def around(count: int) -> Tensor:
        at = torch.arange(count)[:, None] + torch.arange(-reach, reach + 1)
        return at % count if wrap else (count - 1) - ((count - 1) - at.abs()).abs()

    y, x = around(rows)[:, None, :, None], around(columns)[None, :, None, :]
    index = (y * columns + x).flatten(0, 1).flatten(1)
    middle = size * size // 2
    return torch.cat([index[:, :middle], index[:, middle + 1 :]], 1)


@torch.no_grad()
def positive_patches(tokens: Tensor, neighbors: Tensor, k: int = 4) -> Tensor:
    """(B, N, k) int64: of the neighbours (N, K) of every patch, the k of the largest cosine. tokens: (B, N, D)."""
    unit = F.normalize(tokens.float(), dim=2)
    similarity = (unit @ unit.transpose(1, 2)).gather(2, neighbors.expand(len(tokens), -1, -1))
    return neighbors.expand(len(tokens), -1, -1).gather(2, similarity.topk(k, dim=2).indices)


class ClassAttentionBlock(nn.Module):
    """A query looks at itself and at a set of tokens, which stay as they are; then an MLP on the query."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads: {dim} channels cannot be divided into {heads}")
        hidden = int(dim * mlp_ratio)
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.query, self.key_value, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, query: Tensor, tokens: Tensor, sets: Tensor | None = None) -> Tensor:
        """query: (B, Q, D). tokens: (B, N, D). sets: (B, Q, k) the tokens that each query sees; None = all."""
        normed = self.norm1(query)
        seen = self.key_value(self.norm1(tokens))
        if sets is None:
            seen = seen[:, None].expand(-1, query.shape[1], -1, -1)
        else:
            image = torch.arange(len(tokens), device=tokens.device)[:, None, None]
            seen = seen[image, sets]
        seen = torch.cat([self.key_value(normed)[:, :, None], seen], 2)  # (B, Q, 1 + k, 2 D)
        key, value = seen.unflatten(3, (2, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        q = self.query(normed).unflatten(2, (self.heads, 1, -1))
        out = F.scaled_dot_product_attention(q, key, value).flatten(2)
        query = query + self.proj(out)
        return query + self.mlp(self.norm2(query))


class PatchAggregation(nn.Module):
    """One learnt query that makes a token of any set of tokens: of a whole image, or of a patch's neighbours."""

    def __init__(self, dim: int, heads: int, depth: int = 2):
        super().__init__()
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))
        self.blocks = nn.ModuleList(ClassAttentionBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, tokens: Tensor, sets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The image's token (B, D), and (B, N, D): the patches themselves, or their sets (B, N, k) aggregated."""
        patches = tokens if sets is None else self._aggregate(tokens, sets)
        return self.norm(self._aggregate(tokens)[:, 0]), self.norm(patches)

    def _aggregate(self, tokens: Tensor, sets: Tensor | None = None) -> Tensor:
        query = self.query.to(tokens.dtype).expand(len(tokens), 1 if sets is None else sets.shape[1], -1)
        for block in self.blocks:
            query = block(query, tokens, sets)
        return query


class SelfPatchLoss(nn.Module):
    """DINO's loss on images, and the patches' in every view: the teacher's patch i and the student's patch i."""

    def __init__(
        self, classes: int, patch_classes: int, patch_weight: float = 0.1, student_temperature: float = 0.1,
        centre_momentum: float = 0.9,
    ):  # fmt: skip
        super().__init__()
        self.patch_weight = patch_weight
        self.image = DistillationLoss(classes, student_temperature, centre_momentum)
        self.patch_centre = Centre(patch_classes, centre_momentum)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], student_patches: Sequence[Tensor],
        teacher_patches: Sequence[Tensor], temperature: float,
    ) -> dict[str, Tensor]:  # fmt: skip
        """student, teacher: scores (B, K) of views, see `DistillationLoss`. Patches: (B, N, P) of the same views in
        both, of any N. Moves the centres when training. Returns loss, loss/image and loss/patch.
        """
        image = self.image(student, teacher, temperature)
        losses = [
            soft_cross_entropy(self.patch_centre(target, temperature), scores / self.image.student_temperature)
            for target, scores in zip(teacher_patches, student_patches, strict=True)
        ]
        if self.training:
            self.patch_centre.update(torch.cat([scores.flatten(0, 1) for scores in teacher_patches]))
        patch = torch.stack(losses).mean()
        loss = image + self.patch_weight * patch
        return {"loss": loss, "loss/image": image.detach(), "loss/patch": patch.detach()}


class PatchNetwork(nn.Module):
    """Backbone, aggregation and a head each for images and patches. positives: neighbours that make a patch's target."""

    def __init__(
        self, backbone: nn.Module, aggregation: PatchAggregation, image_head: nn.Module, patch_head: nn.Module,
        positives: int = 4, wrap: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.backbone, self.aggregation, self.image_head, self.patch_head = backbone, aggregation, image_head, patch_head
        self.positives, self.wrap = positives, wrap

    def forward(self, views: Sequence[Tensor], local: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """V views (B, C, h, w) of any sizes -> image tokens (V B, D), and per view scores (B, K) and (B, N, P).

        local: patches are their aggregated positives, as in the teacher; else themselves. Views of one size go
        through the backbone together, all of them through the heads.
        """
        images, patches = {}, {}
        for shape in {view.shape: None for view in views}:
            rows = [i for i, view in enumerate(views) if view.shape == shape]
            level = self.backbone(torch.cat([views[i] for i in rows]))[-1]
            tokens, sets = level.dense, None
            if local:
                around = neighbor_index(*level.grid, wrap=self.wrap).to(tokens.device)
                sets = positive_patches(tokens, around, self.positives)
            image, patch = self.aggregation(tokens, sets)
            images |= zip(rows, image.chunk(len(rows)))
            patches |= zip(rows, patch.chunk(len(rows)))
        embedding = torch.cat([images[i] for i in range(len(views))])
        flat = [patches[i].flatten(0, 1) for i in range(len(views))]
        scores = self.patch_head(torch.cat(flat)).split([len(x) for x in flat])
        scores = [s.unflatten(0, (len(v), -1)) for s, v in zip(scores, views)]
        return embedding, list(self.image_head(embedding).chunk(len(views))), scores


@dataclass(frozen=True)
class SelfPatchConfig(DINOConfig):
    """Besides DINO's options:

    patch_prototypes: of the patches' head. patch_weight: of their loss. positives: neighbours of the 8 that are
    aggregated. heads, depth: of the aggregation. wrap: whether the grid is a torus, as in the authors' code.
    """

    patch_prototypes: Count = 4096
    patch_weight: Annotated[float, Range(0)] = 0.1
    positives: Annotated[int, Range(1, 8)] = 4
    heads: Count = 6
    depth: Count = 2
    wrap: bool = False


@register("objective", "selfpatch", config=SelfPatchConfig)
class SelfPatch(DINO):
    """Works with any image backbone without a class token; uses the tokens of its coarsest level.

    The authors' ViT has no final norm either (`model: {cls_token: false, final_norm: false}`): the aggregation has it.
    """

    def __init__(self, config: SelfPatchConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        for size in {view.size for view in config.views}:
            neighbor_index(size // backbone.strides[-1], size // backbone.strides[-1])
        self.loss = SelfPatchLoss(
            config.prototypes, config.patch_prototypes, config.patch_weight, config.student_temperature, config.centre_momentum
        )

    def network(self, backbone: nn.Module) -> PatchNetwork:
        config, dim = self.config, backbone.channels[-1]
        if getattr(backbone, "cls_token", None) is not None:
            raise ValueError("selfpatch has a class token of its own; set model.cls_token=false")
        heads = (self.scores_of(dim, count) for count in (config.prototypes, config.patch_prototypes))
        aggregation = PatchAggregation(dim, config.heads, config.depth)
        return PatchNetwork(backbone, aggregation, *heads, config.positives, config.wrap)

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        moves = step >= self.config.freeze_last * self.total_steps
        for head in (self.student.image_head, self.student.patch_head):
            head[1].weight.requires_grad_(moves)
        embedding, target, target_patches = self.teacher(batch.views, True)
        _, scores, patches = self.student(batch.views, False)
        values = self.loss(scores, target[: self.large], patches, target_patches, self.temperature(step))
        return {**values, **self.health("teacher", embedding)}
