"""Checkpoints: one file, written whole or not at all, read without running code from it."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from pcssl.errors import UserError

FORMAT = "pcssl-checkpoint-1"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain Python values) under a temporary name, then rename.

    An older file at `path` stays as it is when writing fails; UserError says so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch turns a failed write into a RuntimeError of its own.
        kept = f"; {path} still holds the one before" if path.exists() else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(
            f"cannot write checkpoint {path}: {reason}{kept}. Free some space, then continue with --resume"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint; UserError if it is missing, damaged or not one of ours."""
    content = read_torch_file(path, device)
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is not a pcssl checkpoint (its keys: {', '.join(map(str, list(content)[:5]))})")
    return content


def backbone_state(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of the network that a checkpoint of ours offers for evaluation."""
    prefix = content["backbone_prefix"]
    return {k[len(prefix) :]: v for k, v in content["objective"].items() if k.startswith(prefix)}


def read_torch_file(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A torch file that holds a mapping of tensors and plain values; nothing in it is executed."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
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


def load_state(module: torch.nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Strict load; UserError names every missing, unexpected or mis-shaped tensor."""
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own.keys() & state.keys()
        if state[k].shape != own[k].shape
    ]
    problems = [
        f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", sorted(shapes)))
        if names
    ]
    if problems:
        raise UserError(f"{source} does not fit {type(module).__name__}; {'; '.join(problems)}")
    module.load_state_dict(state)
