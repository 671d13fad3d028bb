"""Readers of weights that others have released.

A format is a module with a NAME for messages and two functions, listed in `READERS`:

    matches(content, path) -> bool      does the file hold these weights? A look at names, no more
    read(content, path) -> Weights      everything needed to build the backbone and use it

content: the mapping that the file holds, tensors and plain values. path: the file, for messages.
`read` raises UserError, one line with the path, for a file of its kind that it cannot use.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcssl.errors import UserError
from pcssl.models.checkpoints import msm, sonata
from pcssl.models.checkpoints.weights import Weights

READERS = (sonata, msm)

__all__ = ["READERS", "Weights", "read_released"]


def read_released(content: Mapping[str, Any], path: Path) -> Weights:
    """The weights of the first reader that knows them; UserError if none does."""
    for reader in READERS:
        if reader.matches(content, path):
            return reader.read(content, path)
    known = " or ".join(reader.NAME for reader in READERS)
    keys = ", ".join(map(str, list(content)[:5]))
    raise UserError(f"{path} is neither a pcssl checkpoint nor released {known} weights (its keys: {keys})")
