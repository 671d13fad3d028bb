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
    """The commit of the checkout that pcssl runs from, with "-dirty" if files differ from it; None elsewhere."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # the repository around may be another project's
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
