"""Backbones. Importing this package registers them."""

from pcssl.models.hunet import HUNet, HUNetConfig

__all__ = ["HUNet", "HUNetConfig"]
