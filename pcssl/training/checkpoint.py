"""Checkpoints to go on from: one file, written whole or not at all, read without running code from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pcssl.atomic import replacing
from pcssl.errors import UserError
from pcssl.models.checkpoints import read_file
from pcssl.models.checkpoints.run import FORMAT


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain Python values) under a temporary name, then rename.

    An older file at `path` stays as it is when writing fails; UserError says so.
    """
    try:
        with replacing(path) as temporary:
            torch.save({"format": FORMAT, **content}, temporary)
    except (OSError, RuntimeError) as error:
        # torch turns a failed write into a RuntimeError of its own.
        kept = f"; {path} still holds the one before" if path.exists() else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(
            f"cannot write checkpoint {path}: {reason}{kept}. Free some space, then continue with --resume"
        ) from error


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint; UserError if it is missing, damaged or not one of ours."""
    content = read_file(path, device)
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of a pcssl run (its keys: {', '.join(map(str, list(content)[:5]))})")
    return content
