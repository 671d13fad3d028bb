"""The data-efficient benchmark's own lists, for probes with few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcssl.data.limited import official_points, official_scenes
from pcssl.data.scene import Scene
from pcssl.errors import UserError


@dataclass(frozen=True)
class FewLists:
    """Title of a probe -> names of the scenes that keep their labels, or scene -> points (n,) int64 that do."""

    scenes: dict[str, set[str]]
    points: dict[str, dict[str, np.ndarray]]

    @classmethod
    def read(cls, folder: Path, parts: Sequence[float], counts: Sequence[int]) -> FewLists:
        """Those of folder/scenes/P.txt and folder/points/pointsK that are there, P percent and K points a scene.

        UserError when there is none, or one that cannot be read.
        """
        scenes = {scenes_title(part): folder / "scenes" / f"{100 * part:g}.txt" for part in parts}
        points = {points_title(count): folder / "points" / f"points{count}" for count in counts}
        found = cls(
            {title: official_scenes(path) for title, path in scenes.items() if path.exists()},
            {title: official_points(path) for title, path in points.items() if path.exists()},
        )
        if not found.scenes and not found.points:
            raise UserError(f"probe.few_lists: {folder} has none of the benchmark's lists, for example {next(iter((scenes | points).values()), folder)}")
        return found

    @property
    def key(self) -> str:
        """Changes with what the lists hold."""
        scenes = {title: sorted(names) for title, names in self.scenes.items()}
        return repr((scenes, {title: {name: p.tolist() for name, p in sorted(some.items())} for title, some in self.points.items()}))

    def chosen(self, title: str, names: Sequence[str]) -> Tensor:
        """Numbers of the scenes of a list; UserError when one of them is not among these names."""
        if missing := sorted(self.scenes[title] - set(names)):
            raise UserError(f"the benchmark's list for {title} has {len(missing)} scenes that are not there ({', '.join(missing[:3])})")
        return torch.tensor([i for i, name in enumerate(names) if name in self.scenes[title]], dtype=torch.int64)

    def rows(self, scene: Scene, label: Tensor) -> tuple[Tensor, Tensor]:
        """Points of a scene that any list of points names and that have a label (n,), and in which lists: bits of (n,) int64."""
        lists = torch.zeros(len(scene), dtype=torch.int64)
        for bit, (title, some) in enumerate(self.points.items()):
            points = torch.from_numpy(some.get(scene.name, np.zeros(0, np.int64)))
            if len(points) and not 0 <= int(points.min()) <= int(points.max()) < len(scene):
                raise UserError(f"the benchmark's list for {title} names point {int(points.max())} of {scene.name}, which has {len(scene)}")
            lists[points] |= 1 << bit
        found = torch.nonzero((lists > 0) & (label >= 0))[:, 0]
        return found, lists[found]


def scenes_title(part: float) -> str:
    return f"{100 * part:g} % of scenes"


def points_title(count: int) -> str:
    return f"{count} points a scene"
