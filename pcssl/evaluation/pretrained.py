"""A checkpoint as something to use: a backbone that knows its voxel size and inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcssl.config import ComponentConfig, component
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation.features import PointFeatures
from pcssl.models.checkpoints import released_state
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

    def extract(self, scene: Scene, levels: tuple[int, ...] | None = None) -> Tokens:
        """A feature for every point of the scene: Tokens with features (N, D) float32 on the CPU.

        levels: which of the backbone's levels, finest = 0; all by default, concatenated fine to coarse.
        """
        features = PointFeatures(self.backbone, self.voxel_size, levels, self.mode)(scene)
        return Tokens(features, scene.coord, torch.zeros(len(scene), dtype=torch.int64))

    def with_random_weights(self, seed: int) -> PretrainedModel:
        """The same architecture, freshly initialised."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = self.model.build()
        device = next(self.backbone.parameters()).device
        return PretrainedModel(fresh.to(device).eval(), self.model, self.voxel_size, {"weights": "random"}, self.mode)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> PretrainedModel:
    """Read a checkpoint of `pcssl train`, or the released Masked Scene Modeling weights.

    Released weights are the paper's main model: voxels of 2 cm, read in the `msm` mode.
    Raises UserError for a file that is missing, damaged, of another kind, or whose tensors do
    not fit (all are named). Nothing in the file is executed.
    """
    content = read_torch_file(path)
    if content.get("format") == FORMAT:
        if content["config"].get("kind") == "images":
            raise UserError(f"{path} was trained on images, not on scenes; pcssl.evaluation.load_image_model reads it")
        model = model_config(content["config"]["model"], str(path))
        state = backbone_state(content)
        card = {**content["card"], "step": content["step"], "total_steps": content["total_steps"]}
        voxel_size, mode = content["config"]["data"]["voxel_size"], "exact"
    elif (released := released_state(content)) is not None:
        model, state, voxel_size, mode = component("model", "hunet"), released, 0.02, "msm"
        card = {"weights": "released Masked Scene Modeling"}
    else:
        raise UserError(
            f"{path} is neither a pcssl checkpoint nor released MSM weights (its keys: "
            f"{', '.join(map(str, list(content)[:5]))})"
        )
    backbone = model.build()
    load_state(backbone, state, str(path))
    return PretrainedModel(backbone.to(device).eval(), model, float(voxel_size), card, mode)


def model_config(section: dict[str, Any], source: str) -> ComponentConfig:
    """The `model` section of a checkpoint as a config; UserError if this version cannot build it."""
    options = {k: v for k, v in section.items() if k != "name"}
    try:
        return component("model", section["name"], **options)
    except UserError as error:
        raise UserError(f"{source}: cannot build its model: {error}") from error
