"""What is shown: scenes and what is known of them, the mode, the query. Pictures, window and browser only show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pcssl.clusters import KMeans
from pcssl.data.datasets import distinct_colors
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.visualization.colors import (
    OUTSIDE,
    PALE,
    SEEN,
    Classes,
    Legend,
    Scale,
    Swatches,
    error_colors,
    faded,
    heat,
    mask_colors,
    mask_legend,
    similarity,
)
from pcssl.visualization.masked import MaskedScene
from pcssl.visualization.pca import PCAColors
from pcssl.visualization.render import open_room, point_spacing

ROWS = 20_000  # features that clusters and means are fitted on
REACH = 0.5  # metres from a given place to the nearest point
LAMP = np.array((0.36, 0.48, 0.8), np.float32)  # where the light of windows comes from
GAP = 0.08  # of a scene's width, between scenes side by side


@dataclass
class Subject:
    """A scene and what is known of its points; None for what is not.

    features: (N, D). labels, predictions: (N,) integers, -1 for none. masked: a draw of the objective's masks.
    """

    scene: Scene
    features: Tensor | None = None
    labels: Tensor | None = None
    predictions: Tensor | None = None
    masked: MaskedScene | None = None


@dataclass(frozen=True)
class Query:
    """A point of a scene, both by number."""

    scene: int
    row: int


# mode -> what a subject needs for it, and the words for that
NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "input": ((), ""),
    "pca": (("features",), "features: give --features or --checkpoint"),
    "similarity": (("features",), "features: give --features or --checkpoint"),
    "clusters": (("features",), "features: give --features or --checkpoint"),
    "labels": (("labels",), "labels, which a scan that is a prepared scene's folder or a PLY file can have"),
    "predictions": (("predictions",), "predictions: give --predictions or --probe"),
    "errors": (("labels", "predictions"), "labels in the scan, and predictions: give --predictions or --probe"),
    **dict.fromkeys(("views", "masks", "student", "targets"), (("masked",), "a checkpoint of Masked Scene Modeling: give --checkpoint")),
}

MANY = {"views": "color", "targets": "targets"}  # modes that stand for several, and what of a `MaskedScene` counts them


def split_mode(mode: str) -> tuple[str, int]:
    """("targets", 2) of "targets2": the name in `NEEDS`, and which of several, 0 where there is one."""
    name = mode.rstrip("0123456789")
    return name, int(mode[len(name) :] or 0)


class ViewState:
    """Scenes, a mode, and the point that similarities are taken to.

    Colours mean the same in all scenes: components, clusters and the mean are fitted on all of them, and the
    query may lie in any. clusters: how many.
    """

    def __init__(self, subjects: Sequence[Subject], classes: Classes | None = None, clusters: int = 12):
        self.subjects = list(subjects)
        self.classes = classes
        self.cluster_count = clusters
        self.modes = tuple(mode for name in NEEDS if self._has(name) for mode in self._expanded(name))
        self.mode = "pca" if "pca" in self.modes else "input"
        self.query = Query(0, self._middle(self.subjects[0].scene.coord))
        self.ceiling = False

    def _has(self, name: str) -> bool:
        return all(getattr(subject, need) is not None for subject in self.subjects for need in NEEDS[name][0])

    def _expanded(self, name: str) -> tuple[str, ...]:
        if name not in MANY:
            return (name,)
        return tuple(f"{name}{i}" for i in range(len(getattr(self.subjects[0].masked, MANY[name]))))

    @staticmethod
    def _middle(coord: Tensor) -> int:
        """The point nearest to the middle of the lower half: a piece of furniture more often than not."""
        low, high = coord.amin(0), coord.amax(0)
        return int((coord - low - (high - low) * torch.tensor([0.5, 0.5, 0.25])).square().sum(1).argmin())

    # ------------------------------------------------------------ what a user does

    def check_modes(self, names: Sequence[str]) -> list[str]:
        """These modes, "views" and "targets" as one for every view and level. UserError for an unknown one, or one that lacks something."""
        found = []
        for name in names:
            if name in self.modes:
                found.append(name)
            elif name in NEEDS and self._has(name):
                found += self._expanded(name)
            elif name in NEEDS:
                raise UserError(f"mode {name!r} needs {NEEDS[name][1]}")
            else:
                raise UserError(f"no mode {name!r}; there is {', '.join(self.modes)}")
        return found

    def use(self, mode: str) -> None:
        """Switch to one of `modes`; UserError for another."""
        (self.mode,) = self.check_modes([mode])

    def step(self, by: int = 1) -> None:
        """Switch to the next mode, or to the one before."""
        self.mode = self.modes[(self.modes.index(self.mode) + by) % len(self.modes)]

    def ask_row(self, row: int, scene: int = 0) -> None:
        """Take similarities to a point by its number; UserError beyond the scene."""
        count = len(self.subjects[scene].scene)
        if not 0 <= row < count:
            raise UserError(f"query {row}: {self._name(scene)} has points 0 to {count - 1}")
        self.query = Query(scene, int(row))

    def ask_place(self, place: Sequence[float], scene: int = 0) -> None:
        """Take similarities to the point nearest to a place (x, y, z) in metres; UserError when it is far from all."""
        away = (self.subjects[scene].scene.coord - torch.tensor(place, dtype=torch.float)).square().sum(1)
        row = int(away.argmin())
        if not float(away[row]) <= REACH**2:
            where, at = (" ".join(f"{v:.2f}" for v in p) for p in (place, self.subjects[scene].scene.coord[row].tolist()))
            raise UserError(
                f"query {where}: the nearest point of {self._name(scene)} is {float(away[row]) ** 0.5:.2f} m away, at {at}"
            )
        self.query = Query(scene, row)

    def ask_ray(self, origin: Sequence[float], direction: Sequence[float]) -> bool:
        """Take similarities to the first point that a ray in the common space meets; False when it meets none.

        This is a click: the ray goes from the eye through the pixel. The mode becomes "similarity" if there is one.
        """
        row = first_hit(self.places, self.shown, np.asarray(origin, float), np.asarray(direction, float), self.spacing)
        if row is None:
            return False
        scene = int(np.searchsorted(self._starts, row, side="right")) - 1
        self.query = Query(scene, row - int(self._starts[scene]))
        if "similarity" in self.modes:
            self.mode = "similarity"
        return True

    def _name(self, scene: int) -> str:
        return self.subjects[scene].scene.name or f"scene {scene}"

    # ------------------------------------------------------------ colours

    def colors(self, mode: str | None = None) -> list[Tensor]:
        """(N, 3) uint8 a scene, in a mode (default: the present one)."""
        name, i = split_mode(mode or self.mode)
        if name == "targets":
            return self._target_colors(i)
        if name == "views":
            return [self._view(subject.masked, i) for subject in self.subjects]
        return [getattr(self, f"_{name}")(subject) for subject in self.subjects]

    def legend(self, mode: str | None = None) -> Legend:
        """What the colours of a mode mean."""
        mode = mode or self.mode
        if mode in ("labels", "predictions"):
            return self.classes.legend(torch.cat([getattr(s, mode) for s in self.subjects]))
        if mode == "errors":
            labels, predictions = (torch.cat([getattr(s, k) for s in self.subjects]) for k in ("labels", "predictions"))
            return error_colors(labels, predictions)[1]
        if mode == "similarity":
            return self._scale
        name, i = split_mode(mode)
        if name == "views":
            whole = all(bool(subject.masked.taken[i].all()) for subject in self.subjects)
            return None if whole else Swatches((("not in the view", OUTSIDE),))
        if mode in ("masks", "student"):
            crop, hidden = (torch.cat([getattr(s.masked, k) for s in self.subjects]) for k in ("crop", "hidden"))
            entries = mask_legend(crop, hidden).entries
            return Swatches(entries if mode == "masks" else tuple(e for e in entries if e[1] != SEEN))
        return None

    def _input(self, subject: Subject) -> Tensor:
        return subject.scene.color

    def _pca(self, subject: Subject) -> Tensor:
        return self._components(subject.features.float())

    def _similarity(self, subject: Subject) -> Tensor:
        return heat(similarity(subject.features, self._asked, self._mean), self._scale)

    def _clusters(self, subject: Subject) -> Tensor:
        palette = torch.tensor(distinct_colors(len(self._kmeans.centres)), dtype=torch.uint8)
        return palette[self._kmeans(subject.features)]

    def _labels(self, subject: Subject) -> Tensor:
        return self.classes.paint(subject.labels)

    def _predictions(self, subject: Subject) -> Tensor:
        return self.classes.paint(subject.predictions)

    def _errors(self, subject: Subject) -> Tensor:
        return error_colors(subject.labels, subject.predictions)[0]

    @staticmethod
    def _view(masked: MaskedScene, i: int) -> Tensor:
        return torch.where(masked.taken[i][:, None], masked.color[i], torch.tensor(OUTSIDE, dtype=torch.uint8))

    def _masks(self, subject: Subject) -> Tensor:
        return mask_colors(subject.masked.crop, subject.masked.hidden)

    def _student(self, subject: Subject) -> Tensor:
        seen = subject.masked.crop & ~subject.masked.hidden
        return torch.where(seen[:, None], subject.masked.color[0], self._masks(subject))

    def _target_colors(self, level: int) -> list[Tensor]:
        """Paler where the student is not asked; light grey where the teacher's view has nothing."""
        found = [subject.masked.targets[level] for subject in self.subjects]
        there = [features.isfinite().all(1) for features in found]
        result = [torch.full((len(known), 3), PALE, dtype=torch.uint8) for known in there]
        fitted = PCAColors().fit(some) if (some := [f[k] for f, k in zip(found, there) if k.any()]) else None
        for subject, features, known, colors in zip(self.subjects, found, there, result):
            if known.any():
                colors[known] = faded(fitted(features[known]), subject.masked.asked[level][known])
        return result

    @cached_property
    def _components(self) -> PCAColors:
        return PCAColors().fit([subject.features.float() for subject in self.subjects])

    @cached_property
    def _sample(self) -> Tensor:
        """At most `ROWS` features (M, D) of all scenes, the same number of each."""
        rng, share = torch.Generator().manual_seed(0), max(1, ROWS // len(self.subjects))
        rows = [torch.randperm(len(s.features), generator=rng)[:share] for s in self.subjects]
        return torch.cat([s.features[r].float() for s, r in zip(self.subjects, rows)])

    @cached_property
    def _mean(self) -> Tensor:
        return self._sample.mean(0)

    @cached_property
    def _kmeans(self) -> KMeans:
        return KMeans.fit(self._sample, self.cluster_count)

    @property
    def _asked(self) -> Tensor:
        return self.subjects[self.query.scene].features[self.query.row]

    @property
    def _scale(self) -> Scale:
        """From what half of the points stay below, at least 0, to 1."""
        middle = float(similarity(self._sample, self._asked, self._mean).median())
        return Scale("similarity", round(min(max(middle, 0.0), 0.9), 1), 1.0)

    # ------------------------------------------------------------ the common space

    @cached_property
    def places(self) -> np.ndarray:
        """(M, 3) float32 of the points of all scenes, one after the other, side by side along x; about the origin."""
        parts, at = [], 0.0
        for subject in self.subjects:
            coord = subject.scene.coord.numpy()
            low, high = coord.min(0), coord.max(0)
            parts.append(coord - (low[0] - at, (low[1] + high[1]) / 2, low[2]))
            at += (1 + GAP) * float(high[0] - low[0])
        return (np.concatenate(parts) - (at / 2, 0, 0)).astype(np.float32)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0] + [len(subject.scene) for subject in self.subjects])[:-1]

    @cached_property
    def spacing(self) -> float:
        """Metres between neighbouring points, the widest of the scenes."""
        return max(point_spacing(subject.scene.coord.numpy().astype(float)) for subject in self.subjects)

    @cached_property
    def _opened(self) -> np.ndarray:
        return np.concatenate([open_room(s.scene.coord.numpy(), s.scene.normal.numpy()) for s in self.subjects])

    @property
    def shown(self) -> np.ndarray:
        """(M,) bool: all points, or those below the ceilings."""
        return np.ones(len(self.places), bool) if self.ceiling else self._opened

    @property
    def query_place(self) -> np.ndarray:
        """(3,) of the query in the common space."""
        return self.places[self._starts[self.query.scene] + self.query.row]

    def paint(self) -> np.ndarray:
        """(M, 3) uint8 of `places`, in the present mode, lit so that flat colours show their shapes."""
        return (torch.cat(self.colors()).numpy() * self._light[:, None]).round().astype(np.uint8)

    @cached_property
    def _light(self) -> np.ndarray:
        normal = torch.cat([subject.scene.normal for subject in self.subjects]).numpy()
        return 0.72 + 0.28 * np.abs(normal @ LAMP)


def first_hit(
    places: np.ndarray, shown: np.ndarray, origin: np.ndarray, direction: np.ndarray, spacing: float
) -> int | None:
    """Row of the first shown point (M, 3) that a ray meets; None if it meets none.

    A point is a ball as wide as closes the surface, `spacing` being the distance between neighbours, and at
    least a third of a degree of the view, so that single far points can be hit.
    """
    offset = places - origin
    direction = direction / np.linalg.norm(direction)
    along = offset @ direction
    beside = np.sqrt(np.maximum((offset**2).sum(1) - along**2, 0))
    met = np.flatnonzero(shown & (along > 0) & (beside < np.maximum(1.3 * spacing, 0.005 * along)))
    if not len(met):
        return None
    # Of the front surface, the point nearest to the ray, not the nearest to the eye: that one is at the rim.
    front = met[along[met] < along[met].min() + 3 * spacing]
    return int(front[beside[front].argmin()])
