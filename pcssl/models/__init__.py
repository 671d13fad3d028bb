"""Backbones. Importing this package registers them."""

from pcssl.models.hunet import HUNet, HUNetConfig
from pcssl.models.ptv3 import PTv3, PTv3Config

__all__ = ["HUNet", "HUNetConfig", "PTv3", "PTv3Config"]
