"""Semantic segmentation scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """mIoU, mean accuracy and overall accuracy in 0..1; iou: per class, NaN for classes that neither
    occur nor are predicted (left out of the mean, as mean accuracy leaves out absent classes)."""

    miou: float
    macc: float
    oacc: float
    iou: list[float]


def confusion_matrix(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64 counts, rows: labels, columns: predictions; label -1 is ignored."""
    known = (label >= 0) & (label < classes)
    cell = label[known].long() * classes + prediction[known].long()
    return torch.bincount(cell, minlength=classes**2).view(classes, classes)


def scores(confusion: Tensor) -> Scores:
    """Scores of a confusion matrix."""
    c = confusion.double()
    hit, label, prediction = c.diag(), c.sum(1), c.sum(0)
    union = label + prediction - hit
    iou = torch.where(union > 0, hit / union.clamp(min=1), torch.nan)
    acc = torch.where(label > 0, hit / label.clamp(min=1), torch.nan)
    return Scores(
        miou=float(iou.nanmean()), macc=float(acc.nanmean()), oacc=float(hit.sum() / c.sum().clamp(min=1)), iou=iou.tolist()
    )
