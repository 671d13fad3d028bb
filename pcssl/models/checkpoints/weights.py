"""What a reader of checkpoints hands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pcssl.config import ComponentConfig, component
from pcssl.errors import UserError
from pcssl.version import pcssl_version


@dataclass(frozen=True)
class Weights:
    """A backbone's weights, and what is needed to build and use it.

    model: config of the backbone. state: all its tensors, by the names of `model.build().state_dict()`.
    voxel_size: metres. inputs: what it is given at a voxel, a name in `pcssl.data.inputs.INPUTS`.
    mode: how its levels are read at points, see `Geometry.interpolate`.
    card: what is known of its training: method, dataset, license, ..., plain values.
    config: the whole config of the run that made it, if there was one.
    """

    model: ComponentConfig
    state: dict[str, Tensor]
    voxel_size: float
    inputs: str = "color_normal"
    mode: str = "exact"
    card: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class ImageWeights:
    """The same of a backbone of images. channels: 1 or 3, size: px a side, of the images it was trained on."""

    model: ComponentConfig
    state: dict[str, Tensor]
    channels: int
    size: int
    card: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None


def model_config(section: Mapping[str, Any], card: Mapping[str, Any], path: Path) -> ComponentConfig:
    """The backbone's config from a file's plain values; UserError says which version of pcssl wrote them."""
    options = {key: value for key, value in section.items() if key != "name"}
    try:
        return component("model", section["name"], **options)
    except UserError as error:
        raise UserError(f"{path}: cannot build its model: {error}{written_by(card)}") from error


def written_by(card: Mapping[str, Any]) -> str:
    """The end of a message about a config of another version, or "" if it is of this one."""
    version = card.get("version", "of unknown version")
    return "" if version == pcssl_version() else f" (written by pcssl {version}, this is {pcssl_version()})"
