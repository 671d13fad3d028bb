"""Released Point Transformer V3 encoders: Sonata (facebook/sonata), Concerto and Utonia (Pointcept).

Such a file holds {"config": constructor arguments, "state_dict": tensors}; the three share the constructor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pcssl.config import ComponentConfig, component
from pcssl.errors import UserError
from pcssl.models.checkpoints.weights import Weights

NAME = "Sonata, Concerto or Utonia"

STEM = "embedding.stem.linear.weight"
REQUIRED = ("in_channels", "order", "enc_depths", "enc_channels", "enc_num_head", "enc_patch_size", "enc_mode")
OPTIONAL = ("stride", "mlp_ratio", "drop_path", "mask_token", "shuffle_orders", "rope_base")

# What our encoder is, and nothing else.
FIXED: dict[str, Any] = {
    "in_channels": 9, "order": ("z", "z-trans", "hilbert", "hilbert-trans"), "enc_mode": True, "qkv_bias": True,
    "qk_scale": None, "attn_drop": 0, "proj_drop": 0, "layer_scale": None, "pre_norm": True, "enable_rpe": False,
}  # fmt: skip

# Of training, of a decoder that `enc_mode` leaves out, or how the same numbers are computed.
WITHOUT_EFFECT = {
    "freeze_encoder", "shift_coords", "jitter_coords", "rescale_coords", "dec_depths", "dec_channels", "dec_num_head",
    "dec_patch_size", "traceable", "enable_flash", "upcast_attention", "upcast_softmax",
}  # fmt: skip


def matches(content: Mapping[str, Any], path: Path) -> bool:
    state = content.get("state_dict")
    return isinstance(state, Mapping) and any(_is_encoder(k) or _is_training(k) or _is_head(k) for k in map(str, state))


def read(content: Mapping[str, Any], path: Path) -> Weights:
    """Voxels of 2 cm; points have the features of the voxel that holds them, as the released code maps them back."""
    state, config = content["state_dict"], content.get("config")
    if any(map(_is_training, map(str, state))):
        raise UserError(f"{path} is a checkpoint of a training run; take the encoder's own file, such as sonata.pth")
    if any(map(_is_head, map(str, state))):
        raise UserError(f"{path} is a linear probe's head; take the encoder it stands on, such as sonata.pth")
    if not isinstance(config, Mapping):
        raise UserError(f"{path} has an encoder's tensors but no `config` beside `state_dict`")
    if odd := [name for name, x in state.items() if not isinstance(x, Tensor)]:
        raise UserError(f"{path}: {', '.join(map(str, odd[:5]))} of its state_dict are no tensors")
    model = _model(dict(config), path)
    if model.options.rope_base is None:
        return Weights(model, dict(state), 0.02, "coord_color_normal", "voxel", {"weights": "released Sonata or Concerto"})
    # Utonia sees rooms at half their size in voxels of 1 cm.
    return Weights(model, dict(state), 0.02, "half_coord_color_normal", "voxel", {"weights": "released Utonia"})


def _is_encoder(name: str) -> bool:
    return name == STEM


def _is_training(name: str) -> bool:
    return name.endswith(f"backbone.{STEM}")


def _is_head(name: str) -> bool:
    return name == "seg_head.weight"


def _model(config: dict[str, Any], path: Path) -> ComponentConfig:
    """UserError that names every key and value that is not supported."""
    config = {key: tuple(x) if isinstance(x, list) else x for key, x in config.items()}
    if problems := list(_problems(config)):
        raise UserError(f"{path}: config of its model: {'; '.join(problems)}")
    options = {
        "channels": "enc_channels", "blocks": "enc_depths", "heads": "enc_num_head", "in_channels": "in_channels",
        "mlp_ratio": "mlp_ratio", "drop_path": "drop_path", "mask_token": "mask_token",
        "shuffle_curves": "shuffle_orders", "rope_base": "rope_base",
    }  # fmt: skip
    given = {ours: config[theirs] for ours, theirs in options.items() if theirs in config}
    if isinstance(ratio := given.get("mlp_ratio"), float) and ratio.is_integer():
        given["mlp_ratio"] = int(ratio)
    try:
        return component("model", "ptv3", patch=config["enc_patch_size"][0], **given)
    except UserError as error:
        raise UserError(f"{path}: config of its model: {error}") from error


def _problems(config: dict[str, Any]) -> Iterator[str]:
    known = {*REQUIRED, *OPTIONAL, *FIXED, *WITHOUT_EFFECT}
    for key, value in config.items():
        if key not in known:
            yield f"{key} {value!r} is not known"
        elif not _is_plain(value):
            yield f"{key} holds a {type(value).__name__}"
        elif key in FIXED and value != FIXED[key]:
            yield f"{key} {value!r} is not supported, {FIXED[key]!r} is"
        elif key == "stride" and value != (2,) * (len(value) if isinstance(value, tuple) else 1):
            yield f"stride {value!r} is not supported, 2 at every level is"
        elif key == "enc_patch_size" and not (isinstance(value, tuple) and len(set(value)) == 1):
            yield f"enc_patch_size {value!r} is not supported, one size for all levels is"
    yield from (f"{key} is missing" for key in REQUIRED if key not in config)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(not isinstance(x, tuple) and _is_plain(x) for x in value)
    return value is None or isinstance(value, (bool, int, float, str))
