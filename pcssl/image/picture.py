"""`Picture`: one image, as datasets hand it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pcssl.errors import UserError

LUMA = (0.299, 0.587, 0.114)
_WHOLE = {torch.uint8: 255.0, torch.uint16: 65535.0}


@dataclass(frozen=True)
class Picture:
    """pixels: (C, H, W), C = 1 or 3; uint8, uint16 or bool, or float within 0..1.
    label: class, -1 = none. index: number in its dataset. name: for messages.
    """

    pixels: Tensor
    label: int = -1
    index: int = -1
    name: str = ""

    def values(self, channels: int) -> Tensor:
        """(channels, H, W) float32 in 0..1. ValueError for pixels that are not as documented."""
        x = self.pixels
        if x.ndim != 3 or x.shape[0] not in (1, 3) or 0 in x.shape:
            raise ValueError(f"pixels are {tuple(x.shape)}; expected (1 or 3, height, width)")
        if x.dtype in _WHOLE:
            x = x.float() / _WHOLE[x.dtype]
        elif x.dtype == torch.bool or x.is_floating_point():
            x = x.float()
            if not (bool(torch.isfinite(x).all()) and float(x.amin()) >= 0 and float(x.amax()) <= 1):
                raise ValueError("floating-point pixels must be finite and within 0..1")
        else:
            raise ValueError(f"pixels are {x.dtype}; expected uint8, uint16, bool or floating point")
        if x.shape[0] == channels:
            return x
        return x.expand(channels, -1, -1) if channels == 3 else luma(x)


def luma(x: Tensor) -> Tensor:
    """(..., 3, H, W) -> (..., 1, H, W), the weights of ITU-R BT.601."""
    return (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(-3, keepdim=True)


def read_picture(path: str | Path, label: int = -1, index: int = -1) -> Picture:
    """Any image that Pillow reads, turned upright; transparency is dropped. UserError if it cannot be read."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I") or image.mode == "F":
                values = _deep(np.asarray(image), path)
            else:
                values = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read image {path}: {error}") from error
    pixels = torch.from_numpy(np.array(values[None] if values.ndim == 2 else values.transpose(2, 0, 1)))
    return Picture(pixels, label, index, str(path))


def _deep(values: np.ndarray, path: str | Path) -> np.ndarray:
    """16-bit grey levels, which Pillow may hold as 32-bit integers; floats as they are."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values {values.min()}..{values.max()} do not fit 16 bits")
    return values.astype(np.uint16)


def resized(values: Tensor, size: int) -> Tensor:
    """(C, H, W) -> (C, size, size), smoothed where it shrinks; the whole image, whatever its shape."""
    if tuple(values.shape[1:]) == (size, size):
        return values
    shape = (size, size)
    return torch.nn.functional.interpolate(values[None], shape, mode="bilinear", antialias=True, align_corners=False)[0]
