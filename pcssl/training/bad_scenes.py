"""Bad data among good: scenes that cannot be used are left out and counted, up to a limit."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from pcssl.errors import UserError

SHOWN = 5


@dataclass(frozen=True)
class BadScene:
    """A scene that gave no training sample, and why."""

    index: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.index} ({self.name}): {self.reason}"


class BadScenes:
    """The bad scenes of a run. Each is logged once, with its reason.

    scenes: how many the dataset has. fraction: of them may be bad, but never all. item: what to call one.
    """

    def __init__(self, scenes: int, fraction: float, item: str = "scene") -> None:
        self.scenes, self.fraction, self.item = scenes, fraction, item
        self.allowed = min(int(fraction * scenes + 1e-9), scenes - 1)
        self._found: dict[int, BadScene] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, found: Iterable[BadScene]) -> None:
        """Count them; UserError once there are more than allowed."""
        for scene in found:
            if scene.index not in self._found:
                self._found[scene.index] = scene
                start = "\r\x1b[K" if sys.stderr.isatty() else ""  # over the line of progress
                print(f"{start}left out {self.item} {scene}", file=sys.stderr, flush=True)
        if len(self) > self.allowed:
            first = list(self._found.values())[:SHOWN]
            more = f"; and {len(self) - SHOWN} more" if len(self) > SHOWN else ""
            raise UserError(
                f"{len(self)} of {self.scenes} training {self.item}s cannot be used, data.max_bad={self.fraction:g} allows "
                f"{self.allowed}: {'; '.join(f'{self.item} {bad}' for bad in first)}{more}. Mend them or take them out, or allow more"
            )

    def __str__(self) -> str:
        return f"{len(self)} of {self.scenes} training {self.item}s left out as unusable (data.max_bad allows {self.allowed})"
