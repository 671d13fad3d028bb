"""Which pcssl this is, for results and messages."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path


def pcssl_version() -> str:
    try:
        return importlib.metadata.version("pcssl")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


def commit() -> str | None:
    """The git commit of a source checkout, with "+" when files differ from it; None elsewhere."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=12"],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None
