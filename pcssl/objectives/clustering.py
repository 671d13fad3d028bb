"""SwAV: which prototype one view belongs to is predicted from another view.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020, arXiv
2006.09882; the defaults are those of the authors' code (facebookresearch/swav). SEER (Goyal et al., arXiv 2202.08360)
is the same loss at scale: epsilon 0.03, 10 iterations, 16 000 prototypes, a head without BatchNorm.

Ours: the prototypes are of unit length by construction instead of after every update; which views give codes is told
by their size; there is no queue of earlier features, so a batch should not be much smaller than the prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from pcssl.config import Range
from pcssl.image.settings import ImageData
from pcssl.image.views import ViewConfig
from pcssl.models.heads import Prototypes, head
from pcssl.objectives.image import Embedder, ImageBatch, ImageObjective, large_views
from pcssl.objectives.targets import sinkhorn, soft_cross_entropy
from pcssl.registry import register

Count = Annotated[int, Range(1)]
Steps = Annotated[int, Range(0)]
Part = Annotated[float, Range(0, 1)]
Temperature = Annotated[float, Range(0, low_open=True)]

_COLOR = {"jitter": (0.8, 0.8, 0.8, 0.2), "grey": 0.2, "blur": 0.5}
SWAV_VIEWS = (ViewConfig(count=2, scale=(0.14, 1.0), **_COLOR), ViewConfig(count=6, size=96, scale=(0.05, 0.14), **_COLOR))


class SwAVLoss(nn.Module):
    """Cross-entropy of the balanced assignment of one view and the prototypes' probabilities of every other view.

    epsilon, iterations: of `sinkhorn`; without iterations nothing balances the prototypes, and all images end in one.
    """

    def __init__(self, temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3):
        super().__init__()
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations

    def forward(self, scores: Sequence[Tensor], assigned: int = 2) -> Tensor:
        """Cosines (B, K) of every view with the prototypes; the first `assigned` views give codes, without gradient."""
        losses = [
            soft_cross_entropy(code, other / self.temperature)
            for i, code in enumerate(sinkhorn(s, self.epsilon, self.iterations) for s in scores[:assigned])
            for v, other in enumerate(scores)
            if v != i
        ]
        return sum(losses) / len(losses)


@dataclass(frozen=True)
class SwAVConfig:
    """views: those of the largest size, which come first, give codes.
    head, hidden, out: byol is SwAV's (a hidden layer with BatchNorm), dino SEER's shape (two without).
    epsilon, iterations: see `SwAVLoss`. freeze_prototypes: steps in which they do not move.
    """

    views: tuple[ViewConfig, ...] = SWAV_VIEWS
    head: Literal["byol", "dino", "dino_bn"] = "byol"
    hidden: Count = 2048
    out: Count = 128
    prototypes: Count = 3000
    temperature: Temperature = 0.1
    epsilon: Temperature = 0.05
    iterations: Steps = 3
    freeze_prototypes: Steps = 313


@register("objective", "swav", config=SwAVConfig)
class SwAV(ImageObjective):
    """Works with any image backbone."""

    def __init__(self, config: SwAVConfig, backbone: nn.Module, data: ImageData, total_steps: int):
        super().__init__(config, backbone, data, total_steps)
        self.large = large_views(config.views, "swav")
        mlp = head(config.head, backbone.channels[-1], config.hidden, config.out)
        self.network = Embedder(backbone, nn.Sequential(mlp, Prototypes(config.out, config.prototypes)))
        self.loss = SwAVLoss(config.temperature, config.epsilon, config.iterations)

    def backbone(self) -> nn.Module:
        return self.network.backbone

    def forward(self, batch: ImageBatch, step: int) -> dict[str, Tensor]:
        self.network.head[1].weight.requires_grad_(step >= self.config.freeze_prototypes)
        embedding, scores = self.network(*batch.views)
        loss = self.loss(scores.chunk(len(batch.views)), self.large)
        used = scores.detach().argmax(1).unique().numel()
        return {"loss": loss, "prototypes_used": loss.new_tensor(used), **self.health("student", embedding)}
