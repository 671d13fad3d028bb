"""The released Masked Scene Modeling weights (phermosilla/msm)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pcssl.config import component
from pcssl.models.checkpoints.weights import Weights
from pcssl.models.hunet import HUNetConfig

NAME = "MSM"
PREFIX = "module.student."


def matches(content: Mapping[str, Any], path: Path) -> bool:
    return released_state(content) is not None


def read(content: Mapping[str, Any], path: Path) -> Weights:
    """The paper's main model: voxels of 2 cm, read in the `msm` mode."""
    card = {"weights": "released Masked Scene Modeling"}
    return Weights(component("model", "hunet"), released_state(content), 0.02, mode="msm", card=card)


def released_state(content: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The backbone's state dict of a released checkpoint's content, or None if it is not one.

    The tensors stand under "state_dict" or "model", their names behind "module.student.".
    """
    for key in ("state_dict", "model"):
        state = content.get(key)
        if isinstance(state, Mapping):
            found = {name[len(PREFIX) :]: x for name, x in state.items() if str(name).startswith(PREFIX)}
            if found:
                return found
    return None


def hunet_config_from_released(arguments: Mapping[str, Any]) -> HUNetConfig:
    """Our config from the released model's constructor arguments, whose decoder runs coarse to fine."""

    def rising(key: str) -> tuple[int, ...]:
        return tuple(reversed(arguments[key]))

    (window,) = set(arguments["window_sizes"]) | set(arguments["dec_window_sizes"])
    return HUNetConfig(
        in_channels=arguments["in_channels"],
        channels=tuple(arguments["channels"]),
        decoder_channels=rising("dec_channels"),
        blocks=tuple(arguments["resnet_layers"]),
        decoder_blocks=rising("dec_resnet_layers"),
        attention=tuple(arguments["att_layers"]),
        decoder_attention=rising("dec_att_layers"),
        heads=tuple(arguments["num_heads"]),
        decoder_heads=rising("dec_num_heads"),
        window=window,
        drop_path=arguments["drop_path"],
        attention_dropout=arguments["att_drop_prob"],
        shuffle_curves=arguments["shuffle_sfc"],
    )
