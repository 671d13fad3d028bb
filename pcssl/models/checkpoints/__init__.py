"""Weights from files: our own, and those that others have released.

A format of others is a module with a NAME for messages and two functions, listed in `READERS`:

    matches(content, path) -> bool      does the file hold these weights? A look at names, no more
    read(content, path) -> Weights      everything needed to build the backbone and use it

content: the mapping that the file holds, see `read_file`. path: the file, for messages.
`read` raises UserError, one line with the path, for a file of its kind that it cannot use.
"""

from pathlib import Path

from pcssl.errors import UserError
from pcssl.models.checkpoints import exported, msm, run, sonata
from pcssl.models.checkpoints.exported import write_model
from pcssl.models.checkpoints.files import read_file
from pcssl.models.checkpoints.hub import find_file
from pcssl.models.checkpoints.known import with_licence
from pcssl.models.checkpoints.state import load_state
from pcssl.models.checkpoints.weights import ImageWeights, Weights

READERS = (sonata, msm)

__all__ = ["READERS", "ImageWeights", "Weights", "find_file", "load_state", "read_file", "read_weights", "write_model"]


def read_weights(name: str | Path) -> Weights | ImageWeights:
    """The weights of a model, see `find_file`; UserError if it cannot be read or no reader knows it."""
    path = find_file(name)
    content = read_file(path)
    for reader in (exported, run, *READERS):
        if reader.matches(content, path):
            return with_licence(reader.read(content, path), str(name), path)
    known = " or ".join(reader.NAME for reader in READERS)
    keys = ", ".join(map(str, list(content)[:5]))
    raise UserError(f"{path} is neither a pcssl checkpoint nor released {known} weights (its keys: {keys})")
