"""What every image backbone asks of its input."""

from __future__ import annotations

import torch
from torch import Tensor


def check_images(images: Tensor, channels: int, multiple: int = 1, weight: Tensor | None = None) -> None:
    """ValueError unless images are (B, channels, H, W) floats with H and W multiples of `multiple`.

    weight: of the layer that gets them; without autocast they must be of its type.
    """
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(
            f"expected images (B, {channels}, H, W), got {tuple(images.shape)}; "
            "model.in_channels and data.channels must be the same"
        )
    if not images.is_floating_point():
        raise ValueError(f"expected floating-point images, got {images.dtype}")
    if weight is not None and images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
        raise ValueError(f"expected images of the weights' type, {weight.dtype}, got {images.dtype}")
    height, width = images.shape[2:]
    if not height or not width or height % multiple or width % multiple:
        raise ValueError(f"images of {height} x {width} px cannot be cut into patches of {multiple} px; choose a multiple")
