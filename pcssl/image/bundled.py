"""Real photos that come inside the wheels of scikit-image and scikit-learn: no download, and known to everybody."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcssl.errors import UserError
from pcssl.image.picture import read_picture

# The name in skimage.data -> the file in its folder.
_FILES = {
    "astronaut": "astronaut.png", "brick": "brick.png", "camera": "camera.png", "cell": "cell.png",
    "chelsea": "chelsea.png", "coffee": "coffee.png", "coins": "coins.png", "grass": "grass.png",
    "gravel": "gravel.png", "horse": "horse.png", "hubble_deep_field": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png", "moon": "moon.png", "motorcycle": "motorcycle_left.png", "page": "page.png",
    "retina": "retina.jpg", "rocket": "rocket.jpg", "text": "text.png",
}  # fmt: skip
_SKLEARN = {"china": "china.jpg", "flower": "flower.jpg"}
PHOTOS = (*_FILES, *_SKLEARN)


def photo(name: str) -> Tensor:
    """(1 or 3, H, W) uint8 pixels of one of `PHOTOS`. UserError where its package is not installed."""
    return read_picture(bundled_file(name)).pixels


def bundled_file(name: str) -> Path:
    """The file of one of `PHOTOS`, or a file of scikit-image's data folder by its own name ("motorcycle_disp.npz")."""
    if name in _SKLEARN:
        return _folder("sklearn", "scikit-learn") / "datasets" / "images" / _SKLEARN[name]
    path = _folder("skimage", "scikit-image") / "data" / _FILES.get(name, name)
    if not path.is_file():
        raise UserError(f"scikit-image has no {path.name} in {path.parent}; known photos: {', '.join(PHOTOS)}")
    return path


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1797 handwritten digits: (1797, 1, 8, 8) uint8 (16 levels) and (1797,) int64 labels."""
    folder = _folder("sklearn", "scikit-learn")
    table = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.int64)
    return torch.from_numpy(table[:, :-1] * 255 // 16).to(torch.uint8).view(-1, 1, 8, 8), torch.from_numpy(table[:, -1])


def _folder(module: str, package: str) -> Path:
    found = find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the bundled images lie in {package}, which is not installed; pip install 'pcssl[image]'")
    return Path(found.submodule_search_locations[0])
