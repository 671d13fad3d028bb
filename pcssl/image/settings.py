"""The `data:` section of a run on images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pcssl.data.settings import SampleConfig


@dataclass(frozen=True)
class ImageData(SampleConfig):
    """Images, besides what `SampleConfig` says.

    channels: of what the backbone gets; other images are made grey, or grey ones repeated.
    """

    channels: Literal[1, 3] = 3

    item: ClassVar[str] = "image"

    def card(self) -> dict[str, Any]:
        return {"inputs": f"{self.channels} channels, 2 x - 1 of values in 0..1"}
