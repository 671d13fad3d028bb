"""Colours from features: the first three principal components as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pcssl.errors import UserError

GREY = 128  # of a channel that tells nothing


class PCAColors:
    """A map from features to colours, fitted once and used for many scenes.

        colors = PCAColors().fit([features_a, features_b])
        rgb = colors(features_a)  # (N, 3) uint8

    Fitted on several scenes together, a colour means the same in all of them. The features are
    centred but not standardised: a channel that hardly varies should not count as much as the
    others. Each component is scaled by its 2nd to 98th percentile, so that a few extreme points
    do not take the contrast from the rest. Two fits of the same features give the same colours.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None  # (D,)
        self.axes: Tensor | None = None  # (D, 3), zero where there is no such component
        self.low: Tensor | None = None  # (3,)
        self.high: Tensor | None = None  # (3,)

    def fit(self, features: Tensor | Sequence[Tensor], rows: int = 20_000, seed: int = 0) -> PCAColors:
        """Fit on the features of one scene, (N, D), or of several; return self.

        rows: how many rows to look at, drawn at random, the same number from each scene.
        Raises UserError on NaN or infinite features, ValueError on a wrong shape or no rows.
        """
        scenes = [features] if isinstance(features, Tensor) else list(features)
        if not scenes or not all(len(x) for x in scenes):
            raise ValueError("PCA colours: nothing to fit, a scene has no points")
        generator = torch.Generator().manual_seed(seed)
        share = max(1, rows // len(scenes))
        sample = torch.cat([_checked(x)[_pick(len(x), share, generator).to(x.device)].double().cpu() for x in scenes])
        self.mean = sample.mean(dim=0)
        centred = sample - self.mean
        self.axes = _principal_axes(centred, self.mean)
        bounds = torch.tensor([0.02, 0.98], dtype=torch.double)
        self.low, self.high = torch.quantile(centred @ self.axes, bounds, dim=0)
        return self

    def __call__(self, features: Tensor) -> Tensor:
        """Colours (N, 3) uint8 of features (N, D), on their device.

        Raises UserError on NaN or infinite features, ValueError if D is not what was fitted.
        """
        if self.mean is None:
            raise RuntimeError("PCA colours: call fit() first")
        if _checked(features).shape[1] != len(self.mean):
            raise ValueError(f"PCA colours: fitted on {len(self.mean)} channels, got {features.shape[1]}")
        fitted = (self.mean, self.axes, self.low, self.high)
        mean, axes, low, high = (x.to(features.device, torch.float) for x in fitted)
        span = high - low
        scaled = ((features.float() - mean) @ axes - low) / torch.where(span > 0, span, 1)
        rgb = (scaled.clamp(0, 1) * 255).round()
        return torch.where(span > 0, rgb, GREY).to(torch.uint8)


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2:
        raise ValueError(f"PCA colours: features must be (N, D), got {tuple(features.shape)}")
    bad = int((~torch.isfinite(features)).any(dim=1).sum())
    if bad:
        raise UserError(f"PCA colours: {bad} of {len(features)} feature rows hold NaN or infinity")
    return features


def _pick(n: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` of n rows in random order, or all of them in their own: (min(n, count),) int64."""
    return torch.randperm(n, generator=generator)[:count] if n > count else torch.arange(n)


def _principal_axes(centred: Tensor, mean: Tensor) -> Tensor:
    """The three directions of largest variance of (R, D) rows, as columns (D, 3); zeros for want of more.

    mean: (D,), what was taken off the rows: it tells how large their rounding errors are.
    """
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(centred))  # ascending
    variance, axes = variance.flip(0)[:3], axes.flip(1)[:, :3]
    # The sign of an eigenvector is arbitrary: let its largest entry be positive.
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    # What is left of a constant is rounding, and would be blown up to full contrast.
    real = variance > 1e-10 * variance[0] + 1e-12 * mean.square().sum()
    result = centred.new_zeros(centred.shape[1], 3)
    result[:, : len(variance)] = axes * largest.sign() * real
    return result
