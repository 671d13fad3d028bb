"""Training with few scenes or few labelled points, as ScanNet's data-efficient benchmark asks for.

The benchmark's own lists are given as files. Where there is none, a list is drawn here from a seed: nested
(10 % of the scenes hold the 5 %), the same on every machine, and by its name not the benchmark's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from pcssl.data.scene import Scene
from pcssl.data.storage import load_pth
from pcssl.errors import UserError

_FORM = re.compile(r"(scenes|points)-(\d+)")


@dataclass(frozen=True)
class Limit:
    """kind: "scenes", amount percent of them; or "points", amount labelled points a scene.

    official: the benchmark's file for it (a text file of scenes; a torch file scene -> points), None for our own.
    """

    kind: str
    amount: int
    official: Path | None = None
    seed: int = 0

    @classmethod
    def parse(cls, text: str, official: str | None, seed: int) -> Limit:
        """From "scenes-10" or "points-20"; UserError for anything else."""
        form = _FORM.fullmatch(text)
        amount = int(form[2]) if form else 0
        if amount < 1 or (form[1] == "scenes" and amount > 100):
            raise UserError(
                f"limit is {text!r}; give scenes-P (percent of the training scenes) or points-K, e.g. points-20"
            )
        return cls(form[1], amount, None if official is None else Path(official), seed)

    def __str__(self) -> str:
        whose = f"from {self.official}" if self.official else f"pcssl's own list, seed {self.seed}, not the benchmark's"
        return f"{self.kind}-{self.amount} ({whose})"


class LimitedScenes(Dataset):
    """Some of a dataset's scenes, or all of them with few labels; names: those of the scenes, in order.

    scenes: with `names`. label: the field whose points are drawn, for lists of our own.
    UserError for an official list that does not fit the scenes.
    """

    def __init__(self, scenes: Sequence[Scene], limit: Limit, label: str) -> None:
        self._scenes, self.limit, self.label = scenes, limit, label
        self._points = None
        self._rows = list(range(len(scenes)))
        if limit.kind == "scenes":
            chosen = official_scenes(limit.official) if limit.official else _own_scenes(scenes.names, limit)
            self._rows = [row for row in self._rows if scenes.names[row] in chosen]
            if len(self._rows) < len(chosen):
                missing = sorted(chosen - set(scenes.names))
                raise UserError(
                    f"{limit.official}: lists {len(missing)} scenes that are not there ({', '.join(missing[:3])})"
                )
        elif limit.official:
            self._points = official_points(limit.official)
            self._rows = [row for row in self._rows if scenes.names[row] in self._points]
            if not self._rows:
                raise UserError(f"{limit.official}: lists points of none of the {len(scenes)} scenes")
        self.names = [scenes.names[row] for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Scene:
        scene = self._scenes[self._rows[index]]
        if self.limit.kind == "points":
            keep = torch.zeros(len(scene), dtype=torch.bool)
            keep[torch.from_numpy(self._points_of(scene))] = True
            scene.labels = {name: torch.where(keep, label, -1) for name, label in scene.labels.items()}
            scene.instance = None if scene.instance is None else torch.where(keep, scene.instance, -1)
        return scene

    def _points_of(self, scene: Scene) -> np.ndarray:
        if self._points is not None:
            points = self._points[scene.name]
            if len(points) and (points.min() < 0 or points.max() >= len(scene)):
                raise UserError(
                    f"{self.limit.official}: names point {points.max()} of {scene.name}, which has {len(scene)}"
                )
            return points
        if self.label not in scene.labels:
            raise UserError(
                f"scene {scene.name} has no {self.label}, of which {self.limit} keeps some; prepare it with labels"
            )
        labelled = np.flatnonzero(scene.labels[self.label].numpy() >= 0)
        order = np.random.default_rng([self.limit.seed, _hash(scene.name)]).permutation(len(labelled))
        return labelled[order[: self.limit.amount]]


def _own_scenes(names: Sequence[str], limit: Limit) -> set[str]:
    """The share of the scenes whose names hash lowest: 12, 60, 120, 240 of ScanNet's 1201, as in the benchmark."""
    order = sorted(names, key=lambda name: _hash(f"{limit.seed}/{name}"))
    return set(order[: max(1, len(names) * limit.amount // 100)])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def official_scenes(path: Path) -> set[str]:
    """The names in one of the benchmark's lists of scenes; UserError for anything else."""
    try:
        return set(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of scenes ({error})") from error


def official_points(path: Path) -> dict[str, np.ndarray]:
    """Scene -> int64 indices of its labelled points, from one of the benchmark's files; UserError for anything else."""
    content = load_pth(path)
    try:
        return {str(name): np.asarray(points, dtype=np.int64).reshape(-1) for name, points in content.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a dict of scenes and their points ({error}); get the benchmark's file") from error
