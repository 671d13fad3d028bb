"""What a reader of checkpoints hands out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pcssl.config import ComponentConfig


@dataclass(frozen=True)
class Weights:
    """A backbone's weights, and what is needed to build and use it.

    model: config of the backbone. state: all its tensors, by the names of `model.build().state_dict()`.
    voxel_size: metres. inputs: what it is given at a voxel, a name in `pcssl.data.inputs.INPUTS`.
    mode: how its levels are read at points, see `pcssl.ops.interpolate`.
    card: what is known of its training: method, dataset, license, ...
    """

    model: ComponentConfig
    state: dict[str, Tensor]
    voxel_size: float
    inputs: str = "color_normal"
    mode: str = "exact"
    card: dict[str, Any] = field(default_factory=dict)
