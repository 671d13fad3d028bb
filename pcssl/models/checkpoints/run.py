"""Checkpoints of `pcssl train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pcssl.errors import UserError
from pcssl.models.checkpoints.weights import Weights, model_config

FORMAT = "pcssl-checkpoint-1"


def matches(content: Mapping[str, Any], path: Path) -> bool:
    return content.get("format") == FORMAT


def read(content: Mapping[str, Any], path: Path) -> Weights:
    """The network that the run offers for evaluation."""
    if content.get("config", {}).get("kind") == "images":
        raise UserError(f"{path} was trained on images, not on scenes; pcssl.evaluation.load_image_model reads it")
    try:
        config, card = content["config"], content["card"]
        card = {**card, "step": content["step"], "total_steps": content["total_steps"]}
        section, voxel_size = config["model"], float(config["data"]["voxel_size"])
        state = backbone_state(content)
    except KeyError as error:
        raise UserError(f"{path} holds no {error}; it is not whole, or of another version of pcssl") from error
    return Weights(model_config(section, card, path), state, voxel_size, card=card, config=config)


def backbone_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of the network that a checkpoint of ours offers for evaluation."""
    prefix = content["backbone_prefix"]
    return {k[len(prefix) :]: v for k, v in content["objective"].items() if k.startswith(prefix)}
