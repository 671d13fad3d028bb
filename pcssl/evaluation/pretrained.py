"""A checkpoint as something to use: a backbone that knows its voxel size and inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcssl.config import ComponentConfig, component
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation.features import PointFeatures
from pcssl.models.checkpoints import Weights, read_released
from pcssl.tokens import Tokens
from pcssl.training.checkpoint import FORMAT, backbone_state, load_state, read_torch_file


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


def load_model(path: str | Path, device: torch.device | str = "cpu") -> PretrainedModel:
    """Read a checkpoint of `pcssl train`, or weights that others have released (`pcssl.models.checkpoints`).

    Raises UserError for a file that is missing, damaged, of another kind, or whose tensors do
    not fit (all are named). Nothing in the file is executed.
    """
    content = read_torch_file(path)
    weights = _own_weights(content, path) if content.get("format") == FORMAT else read_released(content, Path(path))
    backbone = weights.model.build()
    load_state(backbone, weights.state, str(path))
    w, backbone = weights, backbone.to(device).eval()
    return PretrainedModel(backbone, w.model, w.voxel_size, w.card, w.mode, w.inputs)


def _own_weights(content: dict[str, Any], path: str | Path) -> Weights:
    card = {**content["card"], "step": content["step"], "total_steps": content["total_steps"]}
    model = _model_config(content["config"]["model"], str(path))
    return Weights(model, backbone_state(content), float(content["config"]["data"]["voxel_size"]), card=card)


def _model_config(section: dict[str, Any], source: str) -> ComponentConfig:
    options = {k: v for k, v in section.items() if k != "name"}
    try:
        return component("model", section["name"], **options)
    except UserError as error:
        raise UserError(f"{source}: cannot build its model: {error}") from error
