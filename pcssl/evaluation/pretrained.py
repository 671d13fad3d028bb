"""A checkpoint as something to use: a backbone that knows its voxel size and inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcssl.config import ComponentConfig
from pcssl.data.inputs import INPUTS
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation.features import PointFeatures
from pcssl.models.checkpoints import load_state, read_weights
from pcssl.tokens import Tokens
from pcssl.training.trainer import pick_device


@dataclass(frozen=True)
class PretrainedModel:
    """backbone: in eval mode. model: its config. voxel_size: metres. card: what is known of its training."""

    backbone: nn.Module
    model: ComponentConfig
    voxel_size: float
    card: dict[str, Any]
    mode: str = "exact"
    inputs: str = "color_normal"

    def point_features(self, levels: tuple[int, ...] | None = None) -> PointFeatures:
        return PointFeatures(self.backbone, self.voxel_size, levels, self.mode, self.inputs)

    def extract(self, scene: Scene, levels: tuple[int, ...] | None = None) -> Tokens:
        """A feature for every point of the scene: Tokens with features (N, D) float32 on the CPU.

        levels: which of the backbone's levels, finest = 0; all by default, concatenated fine to coarse.
        """
        features = self.point_features(levels)(scene)
        return Tokens(features, scene.coord, torch.zeros(len(scene), dtype=torch.int64))

    def with_random_weights(self, seed: int) -> PretrainedModel:
        """The same architecture, freshly initialised."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = self.model.build()
        device = next(self.backbone.parameters()).device
        return replace(self, backbone=fresh.to(device).eval(), card={"weights": "random"})


def load_model(name: str | Path, device: torch.device | str = "auto") -> PretrainedModel:
    """A model to extract features with.

    name: model.safetensors or a checkpoint of `pcssl train`, the folder of a run, weights that others have
        released (`pcssl.models.checkpoints`); or on the Hugging Face Hub owner/name or hf://owner/name/file.
    device: "auto" takes the GPU when there is one.

    Raises UserError for a model that is missing, damaged, of another kind, or whose tensors do
    not fit (all are named). Nothing in the file is executed.
    """
    weights = read_weights(name)
    if weights.inputs not in INPUTS:
        raise UserError(f"{name} wants the inputs {weights.inputs!r}, this pcssl knows {', '.join(INPUTS)}; update pcssl")
    backbone = weights.model.build()
    load_state(backbone, weights.state, str(name))
    backbone = backbone.to(pick_device(str(device))).eval()
    return PretrainedModel(backbone, weights.model, weights.voxel_size, weights.card, weights.mode, weights.inputs)
