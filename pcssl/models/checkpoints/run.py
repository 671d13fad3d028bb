"""Checkpoints of `pcssl train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pcssl.errors import UserError
from pcssl.models.checkpoints.weights import ImageWeights, Weights, model_config

FORMAT = "pcssl-checkpoint-1"


def matches(content: Mapping[str, Any], path: Path) -> bool:
    return content.get("format") == FORMAT


def read(content: Mapping[str, Any], path: Path) -> Weights | ImageWeights:
    """The network that the run offers for evaluation."""
    try:
        config, card = content["config"], content["card"]
        card = {**card, "step": content["step"], "total_steps": content["total_steps"]}
        section, data, state = config["model"], config["data"], backbone_state(content)
        if config.get("kind") == "images":
            made, reading = ImageWeights, {"channels": data["channels"], "size": _largest_view(config)}
        else:
            made, reading = Weights, {"voxel_size": float(data["voxel_size"])}
    except KeyError as error:
        raise UserError(f"{path} holds no {error}; it is not whole, or of another version of pcssl") from error
    return made(model_config(section, card, path), state, **reading, card=card, config=config)


def _largest_view(config: Mapping[str, Any]) -> int:
    return max(view["size"] for view in config["objective"]["views"])


def backbone_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of the network that a checkpoint of ours offers for evaluation."""
    prefix = content["backbone_prefix"]
    return {k[len(prefix) :]: v for k, v in content["objective"].items() if k.startswith(prefix)}
