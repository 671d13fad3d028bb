"""Objects under construction: parts with a texture, gathered under one category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pcssl.data.rooms import shapes
from pcssl.data.rooms.materials import Material, Palette
from pcssl.data.rooms.shapes import Mesh


@dataclass
class Kit:
    """What every builder draws from: randomness, the scene's palette, the vertex spacing."""

    rng: np.random.Generator
    palette: Palette
    step: float  # metres

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, share: float) -> bool:
        return bool(self.rng.uniform() < share)

    def integer(self, low: int, high: int) -> int:
        """Inclusive at both ends."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, options: Sequence):
        return options[int(self.rng.integers(len(options)))]

    def material(self, role: str) -> Material:
        """A material for one of `materials.ROLES`."""
        return self.palette.material(self.rng, role)

    def density(self) -> float:
        """A spacing that differs a little from part to part, as in real scans; few values, so that grids recur."""
        return self.step * self.pick((0.9, 1.0, 1.1))


class Piece:
    """One labelled instance. Local frame: x right, y towards the room (the front), z up."""

    def __init__(self, category: str | None, kit: Kit) -> None:
        self.category = category  # None: never annotated
        self.kit = kit
        self.meshes: list[Mesh] = []
        self.colors: list[np.ndarray] = []  # (N, 4) each, see Material.paint

    def add(self, mesh: Mesh, material: Material, at: Sequence[float] = (0, 0, 0), turn: float = 0.0) -> None:
        """Add a part, turned about its own z axis and then moved to `at`."""
        self.colors.append(material.paint(mesh.vertices))
        moved = rotate_z(mesh.vertices, turn) + np.asarray(at, float)
        self.meshes.append(Mesh(moved, mesh.faces))

    def box(self, size: Sequence[float], at: Sequence[float], material: Material, turn: float = 0.0) -> None:
        """A box; `at` is the centre of its underside."""
        self.add(shapes.box(size, self.kit.density()), material, at, turn)

    def cushion(
        self, size: Sequence[float], at: Sequence[float], material: Material, radius: float = 0.06, turn: float = 0.0
    ) -> None:
        """A box with rounded edges; `at` is the centre of its underside."""
        self.add(shapes.rounded_box(size, radius, self.kit.density()), material, at, turn)

    def pillow(self, size: Sequence[float], at: Sequence[float], material: Material, turn: float = 0.0) -> None:
        self.add(shapes.pillow(size, self.kit.density()), material, at, turn)

    def tube(self, start: Sequence[float], end: Sequence[float], radius: float, material: Material) -> None:
        self.add(shapes.tube(start, end, radius, self.kit.density()), material)

    def pipe(self, points: Sequence[Sequence[float]], radius: float, material: Material) -> None:
        """A bent tube through all `points`."""
        for start, end in zip(points[:-1], points[1:]):
            self.tube(start, end, radius, material)

    def loft(
        self, rings: Sequence[Sequence[float]], material: Material, at: Sequence[float] = (0, 0, 0),
        power: float = 2.0, turn: float = 0.0,
    ) -> None:  # fmt: skip
        self.add(shapes.loft(rings, self.kit.density(), power), material, at, turn)

    def two_sided(self, mesh: Mesh, material: Material, at: Sequence[float] = (0, 0, 0), turn: float = 0.0) -> None:
        """A thin sheet that is seen from both sides."""
        self.add(mesh, material, at, turn)
        self.add(shapes.flipped(mesh), material, at, turn)


def moved(pieces: list[Piece], by: Sequence[float], turn: float = 0.0) -> list[Piece]:
    """The same pieces, turned about z and then shifted by `by`."""
    for piece in pieces:
        piece.meshes = [mesh._replace(vertices=rotate_z(mesh.vertices, turn) + by) for mesh in piece.meshes]
    return pieces


def pushed_back(pieces: list[Piece], extra: float) -> list[Piece]:
    """Pieces built about their body's centre, moved so that the body touches the wall.

    Handles or a curtain stand out by `extra` in front and belong to the centred footprint.
    """
    return moved(pieces, (0, -extra / 2, 0))


class Top(NamedTuple):
    """A free horizontal rectangle on which things can stand, in the group's frame."""

    x0: float
    x1: float
    y0: float
    y1: float
    z: float
    room: float = 9.0  # metres free above it


class Block(NamedTuple):
    """A solid box of a group, in the group's frame."""

    x0: float
    x1: float
    y0: float
    y1: float
    z0: float
    z1: float


@dataclass
class Group:
    """Pieces that are placed together. The footprint is centred at the origin, its back at -depth/2.

    blocks: the solid boxes that nothing may intersect; the whole of `size` if none are given.
    """

    size: tuple[float, float, float]  # width, depth, height
    pieces: list[Piece]
    tops: list[Top] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def __post_init__(self) -> None:
        w, d, h = self.size
        self.blocks = self.blocks or [Block(-w / 2, w / 2, -d / 2, d / 2, 0.0, h)]


def rotate_z(points: np.ndarray, angle: float) -> np.ndarray:
    """Points (N, 3) turned about the z axis (written out: the same bits on any BLAS)."""
    if angle == 0.0:
        return points
    c, s = math.cos(angle), math.sin(angle)
    x, y = points[:, 0], points[:, 1]
    return np.stack([c * x - s * y, s * x + c * y, points[:, 2]], 1)
