"""`Tokens`: what a backbone hands to probes, masks, mining and discovery, in 2D and 3D alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """features: (T, D). coord: (T, 2) or (T, 3), where each token is. batch: (T,) its scene or image."""

    features: Tensor
    coord: Tensor
    batch: Tensor

    def __len__(self) -> int:
        return self.features.shape[0]
