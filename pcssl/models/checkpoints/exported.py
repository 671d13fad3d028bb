"""A model as one file that describes itself: weights in safetensors, the settings and the card in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from safetensors.torch import save

from pcssl.atomic import replacing
from pcssl.config import Range, from_dict, to_dict
from pcssl.errors import UserError
from pcssl.models.checkpoints.weights import ImageWeights, Weights, model_config, written_by
from pcssl.sparse.tensor import READING_MODES

FORMAT = "pcssl-model-1"
FILE = "model.safetensors"


@dataclass(frozen=True)
class _Reading:
    """How the model is used, see `Weights`."""

    voxel_size: Annotated[float, Range(0, low_open=True)]
    inputs: str
    mode: Literal[READING_MODES]


@dataclass(frozen=True)
class _ImageReading:
    """The same of a model of images, see `ImageWeights`."""

    channels: Literal[1, 3]
    size: Annotated[int, Range(1)]


# What a file's `kind` says; files without one are of scenes.
KINDS = {"scenes": (Weights, _Reading), "images": (ImageWeights, _ImageReading)}


def write_model(path: Path, weights: Weights | ImageWeights) -> None:
    """Write the file; it appears under its name only when it is whole. UserError if it cannot be written."""
    kind = next(name for name, (made, _) in KINDS.items() if isinstance(weights, made))
    section = to_dict(weights)["model"]
    reading = {field.name: getattr(weights, field.name) for field in fields(KINDS[kind][1])}
    parts = {"model": section, "reading": reading, "card": weights.card, "config": weights.config}
    metadata = {"format": FORMAT, "kind": kind, **{name: json.dumps(part) for name, part in parts.items()}}
    # Tensors that share memory would be refused.
    state = {name: x.detach().cpu().clone().contiguous() for name, x in weights.state.items()}
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(save(state, metadata))  # save_file would make a file that others may not read
    except OSError as error:
        raise UserError(f"cannot write model {path}: {error.strerror or error}") from error


def matches(content: Mapping[str, Any], path: Path) -> bool:
    return str(content.get("metadata", {}).get("format", "")).startswith("pcssl-model-")


def read(content: Mapping[str, Any], path: Path) -> Weights | ImageWeights:
    """What `write_model` wrote."""
    metadata = content["metadata"]
    if metadata["format"] != FORMAT:
        raise UserError(f"{path} has the format {metadata['format']}, this pcssl reads {FORMAT}; update pcssl")
    try:
        section, reading, card, config = (json.loads(metadata[n]) for n in ("model", "reading", "card", "config"))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: its header is damaged ({error})") from error
    kind = metadata.get("kind", "scenes")
    if kind not in KINDS:
        raise UserError(f"{path} is a model of {kind}, this pcssl knows {', '.join(KINDS)}; update pcssl")
    made, settings = KINDS[kind]
    try:
        reading = from_dict(reading, settings, str(path))
    except UserError as error:
        raise UserError(f"{error}{written_by(card)}") from error
    model = model_config(section, card, path)
    return made(model, content["state_dict"], **vars(reading), card=card, config=config)
