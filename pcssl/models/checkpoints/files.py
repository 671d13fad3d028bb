"""Files of tensors: torch's and safetensors'. Nothing in them is executed."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pcssl.errors import UserError

SUFFIXES = (".pt", ".pth", ".safetensors")


def read_file(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The mapping that a file holds, tensors and plain values; UserError if it cannot be read.

    Of NAME.safetensors: {"state_dict": its tensors, "metadata": text by name, "config": what a config.json
    beside it holds, if there is one}.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    return _read_safetensors(path, device) if path.suffix == ".safetensors" else _read_torch(path, device)


def _read_torch(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        held = f"it holds a Python object ({found[1]})" if found else "it is damaged, or holds Python objects"
        raise UserError(f"cannot read checkpoint {path}: {held}, which are never executed") from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot read checkpoint {path}: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


def _read_safetensors(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        with safe_open(path, "pt", str(device)) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            content = {"state_dict": state, "metadata": file.metadata() or {}}
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read model {path}: it is cut short or damaged ({error}); copy it again") from error
    config = path.with_name("config.json")
    if config.is_file():
        try:
            content["config"] = json.loads(config.read_text())
        except ValueError as error:
            raise UserError(f"cannot read {config}, which stands beside {path.name}: {error}") from error
    return content
