"""How much a model loses on corrupted images, and whether it serves all groups alike.

The three indicators by group are those of Goyal et al., "Fairness Indicators for Systematic Assessments of Visual
Feature Extractors", FAccT 2022, arXiv 2202.07603, as SEER (arXiv 2202.08360) reports them: labels that harm, hits among
the first predictions, and retrieval of the same attribute. They work on features and predictions of any model, of
images or of scenes. Ours: the corruptions, which are simple ones for images of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcssl.image.views import gaussian_blur

DISPARATE = 0.2
BLOCK = 4_096  # queries compared at once: bounds the similarity matrix


@dataclass(frozen=True)
class GroupRates:
    """A rate over all samples, and over those of each group."""

    overall: float
    groups: dict[Hashable, float]

    @property
    def gap(self) -> float:
        """The best served group's rate less the worst's."""
        return max(self.groups.values()) - min(self.groups.values())

    @property
    def disparate(self) -> bool:
        """Whether the gap is above the paper's threshold for the association of labels."""
        return self.gap > DISPARATE

    def summary(self) -> dict[str, Any]:
        """Plain values: {"overall", "groups", "gap", "disparate"}."""
        return {"overall": self.overall, "groups": dict(self.groups), "gap": self.gap, "disparate": self.disparate}


def rates(values: Tensor, groups: Sequence[Hashable]) -> GroupRates:
    """Means of values (N,), bool or float. groups: the group of every sample. ValueError unless they are as many."""
    if len(values) != len(groups) or not len(values):
        raise ValueError(f"groups: {len(groups)} for {len(values)} samples; one for each, and one sample at least")
    names = list(dict.fromkeys(groups))
    number = {name: i for i, name in enumerate(names)}
    member = torch.tensor([number[g] for g in groups], device=values.device)
    values = values.double()
    sums = values.new_zeros(len(names)).index_add_(0, member, values)
    mean = sums / torch.bincount(member, minlength=len(names))
    return GroupRates(float(values.mean()), dict(zip(names, mean.tolist())))


@torch.no_grad()
def retrieval_precision(
    queries: Tensor, database: Tensor, attribute: Tensor, known: Tensor, groups: Sequence[Hashable],
    ks: Sequence[int] = (1, 5, 10, 50),
) -> dict[int, GroupRates]:  # fmt: skip
    """Share of the k most similar database entries (cosine) that have the query's attribute, by group of the query.

    queries: (N, D), database: (M, D) features. attribute: (N,), known: (M,) int64. ValueError if a k is above M.
    """
    if max(ks) > len(database):
        raise ValueError(f"ks: {max(ks)} is more than the {len(database)} entries of the database")
    entries = F.normalize(database.float(), dim=1).T
    found = torch.cat([(F.normalize(q.float(), dim=1) @ entries).topk(max(ks)).indices for q in queries.split(BLOCK)])
    same = (known[found] == attribute[:, None]).double()
    return {k: rates(same[:, :k].mean(1), groups) for k in ks}


def hit_rate(top: Tensor, target: Tensor, groups: Sequence[Hashable]) -> GroupRates:
    """Share of samples whose target is among the predictions. top: (N, k) labels. target: (N,)."""
    return rates((top == target[:, None]).any(1), groups)


def label_association(
    top: Tensor, confidence: Tensor, kinds: Mapping[str, Sequence[int]], groups: Sequence[Hashable],
    thresholds: Sequence[float] = (0.0,),
) -> dict[str, dict[float, GroupRates]]:  # fmt: skip
    """Share of samples that get a label of some kind (of a crime, not human, ...) with a confidence of the threshold or more.

    top, confidence: (N, k) predicted labels and how sure each is. kinds: name -> its labels.
    """
    out: dict[str, dict[float, GroupRates]] = {}
    for kind, labels in kinds.items():
        of_kind = torch.isin(top, torch.tensor(list(labels), dtype=top.dtype, device=top.device))
        out[kind] = {t: rates((of_kind & (confidence >= t)).any(1), groups) for t in thresholds}
    return out


# ---------------------------------------------------------------- corrupted images


def rotate(images: Tensor, degrees: float = 20.0) -> Tensor:
    """About the centre; what comes from outside is 0."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = images.new_tensor([[c, -s, 0], [s, c, 0]]).expand(len(images), -1, -1)
    # Affine maps work on -1..1 whatever the shape: an image that is not square is sheared a little.
    return F.grid_sample(images, F.affine_grid(turn, images.shape, align_corners=False), align_corners=False)


def shift(images: Tensor, part: float = 1 / 8) -> Tensor:
    """To the right by this part of the width; 0 comes in."""
    step = max(round(part * images.shape[3]), 1)
    return F.pad(images, (step, 0))[..., : images.shape[3]]


def fade(images: Tensor, contrast: float = 0.5) -> Tensor:
    """Contrast around middle grey."""
    return 0.5 + contrast * (images - 0.5)


def noise(images: Tensor, std: float = 0.2, seed: int = 0) -> Tensor:
    """Gaussian, the same for every call; the result stays in 0..1."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    return (images + std * drawn).clamp(0, 1)


def blur(images: Tensor, sigma: float = 1.0) -> Tensor:
    """Gaussian; sigma: px."""
    return gaussian_blur(images, images.new_full((len(images),), sigma))


CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {"rotate": rotate, "shift": shift, "fade": fade, "noise": noise, "blur": blur}


def corruption_sweep(
    predict: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor,
    corruptions: Mapping[str, Callable[[Tensor], Tensor]] = CORRUPTIONS,
) -> dict[str, float]:  # fmt: skip
    """Accuracy on clean images and under every corruption. predict: images (N, C, H, W) in 0..1 -> (N,) labels."""
    versions = {"clean": lambda x: x, **corruptions}
    return {name: float((predict(change(images)) == labels).double().mean()) for name, change in versions.items()}
