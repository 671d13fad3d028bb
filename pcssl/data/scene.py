"""`Scene`: what every reader returns and every writer takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Scene:
    """The points of one scan, on the CPU as readers return it.

    coord: (N, 3) float32, metres, z up.
    color: (N, 3) uint8, or None.
    normal: (N, 3) float32 unit vectors, or None.
    labels: name -> (N,) int32, -1 where a point has no label (e.g. "segment20").
    instance: (N,) int32, -1 where a point belongs to no instance, or None.
    name: for messages and file names.
    filled: fields that the source did not have and that a reader made up:
        "color" (uniform grey, or the intensity as grey), "normal" (estimated from the neighbourhood).
    origin: metres, what a reader subtracted from a scan far from zero: coord + origin is where it lies.
    """

    coord: Tensor
    color: Tensor | None = None
    normal: Tensor | None = None
    labels: dict[str, Tensor] = field(default_factory=dict)
    instance: Tensor | None = None
    name: str = ""
    filled: tuple[str, ...] = ()
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __len__(self) -> int:
        return self.coord.shape[0]

    def __getitem__(self, rows: Tensor) -> Scene:
        """The same scene with only these rows: (M,) int64 indices or an (N,) bool mask."""

        return self._each(lambda x: x[rows])

    def to(self, device: torch.device) -> Scene:
        """The same scene with its tensors on another device."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Scene:
        """The same scene in memory that a GPU can copy from by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Scene:
        def maybe(x: Tensor | None) -> Tensor | None:
            return None if x is None else change(x)

        return replace(
            self,
            coord=change(self.coord),
            color=maybe(self.color),
            normal=maybe(self.normal),
            labels={name: change(label) for name, label in self.labels.items()},
            instance=maybe(self.instance),
        )

    def check(self) -> Scene:
        """Raise ValueError unless shapes and dtypes are as documented; return self."""
        n = len(self)
        expected = {
            "coord": (self.coord, (n, 3), torch.float32),
            "color": (self.color, (n, 3), torch.uint8),
            "normal": (self.normal, (n, 3), torch.float32),
            "instance": (self.instance, (n,), torch.int32),
        }
        expected |= {f"labels[{k!r}]": (v, (n,), torch.int32) for k, v in self.labels.items()}
        for what, (x, shape, dtype) in expected.items():
            if x is not None and (tuple(x.shape) != shape or x.dtype != dtype):
                raise ValueError(
                    f"scene {self.name!r}: {what} is {tuple(x.shape)} {x.dtype}, expected {shape} {dtype}"
                )
        return self
