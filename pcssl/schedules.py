"""Schedules of a number over the steps of a run."""

from __future__ import annotations

import math


def cosine(step: int, total: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at step `total` along half a cosine; flat outside."""
    progress = min(max(step / max(total, 1), 0.0), 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(step: int, total: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at step `total` along a line; flat outside."""
    return start + (end - start) * min(max(step / max(total, 1), 0.0), 1.0)


def warmup_cosine(step: int, warmup: int, total: int, peak: float, end: float = 0.0) -> float:
    """Linear from near 0 to `peak` over `warmup` steps, then a cosine to `end` at step `total`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return cosine(step - warmup, total - warmup, peak, end)
