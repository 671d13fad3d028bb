"""Image backbones: `forward(images (B, C, H, W)) -> list[ImageTokens]`, finest level first. Importing this registers them."""

from pcssl.image.backbones.halonet import HaloAttention, HaloNet, HaloNetConfig
from pcssl.image.backbones.module import ModuleBackbone, ModuleConfig
from pcssl.image.backbones.resnet import ResNet, ResNetConfig
from pcssl.image.backbones.vit import ViT, ViTConfig

__all__ = [
    "HaloAttention",
    "HaloNet",
    "HaloNetConfig",
    "ModuleBackbone",
    "ModuleConfig",
    "ResNet",
    "ResNetConfig",
    "ViT",
    "ViTConfig",
]
