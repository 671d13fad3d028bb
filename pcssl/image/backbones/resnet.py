"""Residual networks.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. Names and shapes of the tensors are those of
torchvision's resnet18 .. resnet152 (stride in the 3 x 3 convolution), so that such weights load; there is no classifier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from pcssl.config import Range
from pcssl.image.backbones.checks import check_images
from pcssl.image.tokens import ImageTokens
from pcssl.registry import register

Count = Annotated[int, Range(1)]


@dataclass(frozen=True)
class ResNetConfig:
    """The defaults are ResNet-18; ResNet-50 is blocks=[3, 4, 6, 3] with bottleneck=true.

    widths, blocks: of each level. stem: "large" is 7 x 7 with stride 2 and a max-pool, for photos; "small" is
    3 x 3 with stride 1, for images of a few dozen pixels.
    """

    in_channels: Count = 3
    widths: tuple[Count, ...] = (64, 128, 256, 512)
    blocks: tuple[Count, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    stem: Literal["large", "small"] = "large"

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"widths and blocks: {len(self.widths)} and {len(self.blocks)} levels")


def conv(inside: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, out, kernel, stride, kernel // 2, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inside: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv(inside, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inside, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inside: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv(inside, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inside, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def shortcut(inside: int, out: int, stride: int) -> nn.Sequential | None:
    return None if inside == out and stride == 1 else nn.Sequential(conv(inside, out, 1, stride), nn.BatchNorm2d(out))


@register("model", "resnet", config=ResNetConfig)
class ResNet(nn.Module):
    """A level after every stage."""

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.config = config
        kind, width = (Bottleneck if config.bottleneck else BasicBlock), config.widths[0]
        large = config.stem == "large"
        self.conv1 = conv(config.in_channels, width, 7, 2) if large else conv(config.in_channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        inside = width
        for i, (width, count) in enumerate(zip(config.widths, config.blocks)):
            stage = []
            for j in range(count):
                stage.append(kind(inside, width, stride=2 if i > 0 and j == 0 else 1))
                inside = width * kind.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.channels = tuple(width * kind.expansion for width in config.widths)
        self.strides = tuple((4 if large else 1) * 2**i for i in range(len(config.widths)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[ImageTokens]:
        """images: (B, C, H, W) of any size."""
        check_images(images, self.config.in_channels, weight=self.conv1.weight)
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        levels = []
        for i, stride in enumerate(self.strides):
            x = getattr(self, f"layer{i + 1}")(x)
            levels.append(ImageTokens.from_map(x, stride))
        return levels
