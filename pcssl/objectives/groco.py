"""GroCo: group ordering, by a sorting network that has gradients.

Shvetsova, Petersen, Kukleva, Schiele, Kuehne, "Learning by Sorting: Self-supervised Learning with Group Ordering
Constraints", ICCV 2023, arXiv 2301.02009; method and defaults are those of the authors' code
(ninatu/learning_by_sorting), the relaxed odd-even network is that of Petersen et al., ICLR 2022, with the Cauchy
distribution (diffsort). The similarities of an image to its other views and to its hardest negatives are sorted; the
loss asks that the views land above all negatives, in whatever order within the two groups.

Ours: the comparators are slices, not matrices; the two cross-entropies of the paper, of landing above and of landing
below, are one number for one number, so that one is computed; the optimiser is the run's (theirs: SGD with momentum,
learning rate 24 at batches of 1024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcssl.config import Range
from pcssl.image.settings import ImageData
from pcssl.image.views import ViewConfig
from pcssl.models.heads import head
from pcssl.objectives.image import Embedder, ImageBatch, ImageObjective
from pcssl.registry import register

Count = Annotated[int, Range(1)]
Steepness = Annotated[float, Range(0, low_open=True)]

_COLOR = {"jitter": (0.4, 0.4, 0.2, 0.1), "grey": 0.2}
GROCO_VIEWS = (
    ViewConfig(scale=(0.14, 1.0), **_COLOR, blur=1.0),
    ViewConfig(scale=(0.14, 1.0), **_COLOR, blur=0.1, solarize=0.2),
    ViewConfig(count=6, size=96, scale=(0.05, 0.14), **_COLOR, blur=0.5),
)


class OddEvenSort(nn.Module):
    """Odd-even transposition sort, ascending, whose every exchange is as sure as the difference is large.

    steepness: towards infinity the exact sort. Finite, neighbours are mixed, and the result need not be ascending.
    """

    def __init__(self, steepness: float = 1.0):
        super().__init__()
        self.steepness = steepness

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, n). Returns what each rank gets (B, n), and P (B, n, n): P[b, rank, input] is its share of each
        input; rows and columns of P sum to 1, and P @ x is the first.
        """
        count = x.shape[1]
        # What a rank holds: its share of every input, and last its value.
        held = torch.cat([torch.eye(count, dtype=x.dtype, device=x.device).expand(len(x), -1, -1), x[:, :, None]], 2)
        for layer in range(count):
            first = layer % 2
            pairs = (count - first) // 2
            a, b = held[:, first : first + 2 * pairs].unflatten(1, (pairs, 2)).unbind(2)
            stay = torch.atan(self.steepness * (b - a)[:, :, -1:]) / math.pi + 0.5
            low, high = stay * a + (1 - stay) * b, (1 - stay) * a + stay * b
            mixed = torch.stack([low, high], 2).flatten(1, 2)
            held = torch.cat([held[:, :first], mixed, held[:, first + 2 * pairs :]], 1)
        return held[:, :, -1], held[:, :, :-1]


class GroupOrderingLoss(nn.Module):
    """Every image's other views shall be sorted above its hardest negatives.

    negatives: the most similar other images, in the same view, of the batch. steepness: of the sorting network; the
    higher, the more the hardest negative counts. stop_grad: only the anchor moves, not what it is compared with.
    """

    def __init__(self, negatives: int = 10, steepness: float = 1.0, stop_grad: bool = True):
        super().__init__()
        self.negatives, self.stop_grad = negatives, stop_grad
        self.sort = OddEvenSort(steepness)

    def forward(self, views: Sequence[Tensor], large: int | None = None) -> Tensor:
        """views: of (B, D), row i of all the same image. large: so many first views are positives, None = all.

        ValueError when the batch has too few images, or an anchor has no other view. In float32, or float64 if given.
        """
        if len(views[0]) <= self.negatives:
            raise ValueError(f"{self.negatives} negatives need a batch of {self.negatives + 1} or more; it has {len(views[0])}")
        if len(views[:large]) < 2:
            raise ValueError("views: two or more large ones are needed, each is the other's positive")
        with torch.autocast(views[0].device.type, enabled=False):
            unit = [F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1) for z in views]
            other = [z.detach() for z in unit] if self.stop_grad else unit
            return torch.stack([self._anchor(unit[v], v, other, large) for v in range(len(unit))]).mean()

    def _anchor(self, anchor: Tensor, view: int, other: list[Tensor], large: int | None) -> Tensor:
        positive = torch.stack([(anchor * z).sum(1) for p, z in enumerate(other[:large]) if p != view], 1)
        itself = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
        negative = (anchor @ other[view].T).masked_fill(itself, -torch.inf).topk(self.negatives, dim=1).values
        return self.ordering(positive, negative)

    def ordering(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Similarities (B, n) and (B, K): cross-entropy of each one's probability to land among the n highest."""
        scores = torch.cat([negative.sort(dim=1).values, positive.sort(dim=1).values], 1)
        above = self.sort(scores)[1][:, negative.shape[1] :].sum(1).clamp(0, 1)
        wanted = (torch.arange(scores.shape[1], device=scores.device) >= negative.shape[1]).to(scores)
        return F.binary_cross_entropy(above, wanted.expand_as(above))


@dataclass(frozen=True)
class GroCoConfig:
    """views: positives are those of the largest size, which come first. hidden, out: of the projector (the paper's
    hidden width is the backbone's). negatives, steepness, stop_grad: see `GroupOrderingLoss`.
    """

    views: tuple[ViewConfig, ...] = GROCO_VIEWS
    hidden: Count = 2048
    out: Count = 2048
    negatives: Count = 10
    steepness: Steepness = 1.0
    stop_grad: bool = True


@register("objective", "groco", config=GroCoConfig)
class GroCo(ImageObjective):
    """Works with any image backbone; batches must have more images than `negatives`."""

    def __init__(self, config: GroCoConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        sizes = [view.size for view in config.views for _ in range(view.count)]
        self.large = sizes.count(max(sizes))
        if self.large < 2 or sizes != sorted(sizes, reverse=True):
            raise ValueError("views: groco needs two or more of the largest size, which come first")
        if data.batch_size <= config.negatives:
            raise ValueError(f"negatives: {config.negatives} need data.batch_size={config.negatives + 1} or more")
        self.network = Embedder(backbone, head("mocov3", backbone.channels[-1], config.hidden, config.out))
        self.loss = GroupOrderingLoss(config.negatives, config.steepness, config.stop_grad)

    def backbone(self) -> nn.Module:
        return self.network.backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        embedding, z = self.network(*batch.views)
        loss = self.loss(z.chunk(len(batch.views)), self.large)
        return {"loss": loss, **self.health("student", embedding)}
