"""What every image backbone asks of its input."""

from __future__ import annotations

from torch import Tensor


def check_images(images: Tensor, channels: int, multiple: int = 1) -> None:
    """ValueError unless images are (B, channels, H, W) floats with H and W multiples of `multiple`."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(
            f"expected images (B, {channels}, H, W), got {tuple(images.shape)}; "
            "model.in_channels and data.channels must be the same"
        )
    if not images.is_floating_point():
        raise ValueError(f"expected floating-point images, got {images.dtype}")
    height, width = images.shape[2:]
    if not height or not width or height % multiple or width % multiple:
        raise ValueError(f"images of {height} x {width} px cannot be cut into patches of {multiple} px; choose a multiple")
