"""Random parts of a scene, and two scenes as one. Labels and instances follow their points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pcssl.data.scene import Scene


@dataclass(frozen=True)
class SceneChange:
    """crop: radius of a sphere or (x, y, z) of a box, metres; None for whole scenes.
    mix: probability that another scene is put into the same place.
    """

    crop: float | tuple[float, float, float] | None = None
    mix: float = 0.0

    def __call__(self, scenes: Sequence[Scene], index: int, rng: torch.Generator) -> Scene:
        scene = self._part(scenes[index], rng)
        if self.mix > 0 and float(torch.rand((), generator=rng)) < self.mix:
            other = int(torch.randint(len(scenes), (1,), generator=rng))
            scene = mix_scenes(scene, self._part(scenes[other], rng))
        return scene

    def _part(self, scene: Scene, rng: torch.Generator) -> Scene:
        if self.crop is None:
            return scene
        return sphere_crop(scene, self.crop, rng) if isinstance(self.crop, float) else cuboid_crop(scene, self.crop, rng)


def sphere_crop(scene: Scene, radius: float, rng: torch.Generator) -> Scene:
    """The points within `radius` metres of a random point."""
    away = scene.coord - _some_point(scene, rng)
    return scene[away.square().sum(1) <= radius**2]


def cuboid_crop(scene: Scene, size: tuple[float, float, float], rng: torch.Generator) -> Scene:
    """The points in an upright box of `size` (x, y, z) metres around a random point."""
    away = (scene.coord - _some_point(scene, rng)).abs()
    return scene[(away <= torch.tensor(size) / 2).all(1)]


def _some_point(scene: Scene, rng: torch.Generator) -> Tensor:
    return scene.coord[int(torch.randint(len(scene), (1,), generator=rng))]


def mix_scenes(a: Scene, b: Scene) -> Scene:
    """Both scenes in one place, their floors and middles together (Nekrasov et al., "Mix3D", 3DV 2021).

    Labels that only one of them has are -1 on the other's points; instances of `b` count on from those of `a`.
    Colours or normals that one of them lacks are left out.
    """

    def placed(scene: Scene) -> Tensor:
        low, high = scene.coord.amin(0), scene.coord.amax(0)
        middle = (low + high) / 2
        return scene.coord - torch.stack([middle[0], middle[1], low[2]])

    def both(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        return None if x is None or y is None else torch.cat([x, y])

    def label(scene: Scene, name: str) -> Tensor:
        return scene.labels.get(name, torch.full((len(scene),), -1, dtype=torch.int32))

    instance = None
    if a.instance is not None and b.instance is not None:
        start = int(a.instance.max()) + 1 if len(a) else 0
        instance = torch.cat([a.instance, torch.where(b.instance >= 0, b.instance + start, -1).int()])
    return Scene(
        coord=torch.cat([placed(a), placed(b)]),
        color=both(a.color, b.color),
        normal=both(a.normal, b.normal),
        labels={name: torch.cat([label(a, name), label(b, name)]) for name in a.labels.keys() | b.labels.keys()},
        instance=instance,
        name=f"{a.name}+{b.name}",
        filled=tuple(sorted({*a.filled, *b.filled})),
    )
