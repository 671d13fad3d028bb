"""One generated scan from (seed, index), and folders full of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcssl.data.rooms import scan
from pcssl.data.rooms.arrange import BLOCK, furnished_room
from pcssl.data.rooms.labels import CATEGORIES
from pcssl.data.rooms.layout import Placed, shell
from pcssl.data.rooms.materials import Palette
from pcssl.data.rooms.piece import Kit, rotate_z
from pcssl.data.rooms.shapes import Mesh


@dataclass
class RoomScan:
    """A generated scan: a mesh with labels, in the rotated frame of its recording.

    vertices: (N, 3) float32 metres, z up.
    colors: (N, 3) uint8.
    faces: (F, 3) int32, counter-clockwise seen from the side that was scanned.
    nyu40: (N,) uint16, 0 where nothing was annotated.
    instance: (N,) int32, 0, 1, ... an object each; -1 where nothing was annotated.
    segment: (N,) int32 over-segments; no segment reaches over two objects.
    categories: the raw category of each instance.
    axis_alignment: (4, 4) float64; takes vertices to the frame in which walls lie along the axes
        and the floor is z = 0.
    kind: the type of room.
    """

    vertices: np.ndarray
    colors: np.ndarray
    faces: np.ndarray
    nyu40: np.ndarray
    instance: np.ndarray
    segment: np.ndarray
    categories: list[str]
    axis_alignment: np.ndarray
    kind: str


def room_kind(seed: int, index: int) -> str:
    """Every block of scenes holds all room types, so that small splits hold all classes."""
    block = np.random.default_rng([seed, index // len(BLOCK), 1])
    return BLOCK[block.permutation(len(BLOCK))[index % len(BLOCK)]]


def generate_room(seed: int, index: int) -> RoomScan:
    """The scan number `index` of the collection `seed`; depends on nothing else."""
    rng = np.random.default_rng([seed, index, 0])
    kind = room_kind(seed, index)
    kit = Kit(rng, Palette(rng), 0.03)
    room = furnished_room(kit, kind)
    placed = shell(room) + room.placed
    mesh, colors, owner = _assemble(placed)
    normals = scan.vertex_normals(mesh)
    seen = scan.observe(mesh, normals, scan.cameras(room, kit), kit)
    points = scan.depth_noise(mesh.vertices[seen.index], seen, kit.step, kit)
    colors = scan.shade(colors[seen.index], normals[seen.index], mesh.vertices[seen.index], kit)
    faces, used = _surviving_faces(mesh, seen.index)
    return _as_scan(points[used], colors[used], faces, owner[seen.index][used],
                    normals[seen.index][used], placed, kit, kind)  # fmt: skip


def _assemble(placed: list[Placed]) -> tuple[Mesh, np.ndarray, np.ndarray]:
    """All pieces in one mesh, colours (N, 3) and the number of each vertex's piece (N,)."""
    meshes = [item.mesh() for item in placed]
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes])
    faces = np.concatenate([m.faces + s for m, s in zip(meshes, starts)])
    owner = np.repeat(np.arange(len(meshes)), [len(m.vertices) for m in meshes])
    colors = np.concatenate([c for item in placed for c in item.piece.colors])
    return Mesh(np.concatenate([m.vertices for m in meshes]), faces), colors, owner


def _surviving_faces(mesh: Mesh, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Faces whose three vertices are all seen, and which of the seen vertices they use."""
    where = np.full(len(mesh.vertices), -1)
    where[index] = np.arange(len(index))
    faces = where[mesh.faces]
    faces = faces[(faces >= 0).all(1)]
    used, faces = np.unique(faces, return_inverse=True)
    return faces.reshape(-1, 3).astype(np.int32), used


def _as_scan(points: np.ndarray, colors: np.ndarray, faces: np.ndarray, owner: np.ndarray,
             normals: np.ndarray, placed: list[Placed], kit: Kit, kind: str) -> RoomScan:  # fmt: skip
    """Number the instances and put the scan into a frame turned and shifted at random."""
    names = [item.piece.category for item in placed]
    alive = [i for i in np.unique(owner) if names[i] is not None]
    number = np.full(len(placed), -1, np.int32)
    number[alive] = np.arange(len(alive))
    nyu40 = np.array([0 if name is None else CATEGORIES[name].nyu40 for name in names], np.uint16)
    turn, shift = kit.uniform(0, 2 * np.pi), kit.rng.uniform(-3, 3, 3) * (1, 1, 0.02)
    vertices = (rotate_z(points, turn) + shift).astype(np.float32)
    return RoomScan(
        vertices, colors, faces, nyu40[owner], number[owner], _segments(points, normals, owner, placed),
        [names[i] for i in alive], _undo(turn, shift), kind,
    )  # fmt: skip


def _undo(turn: float, shift: np.ndarray) -> np.ndarray:
    """(4, 4) inverse of turning about z and then shifting."""
    matrix = np.eye(4)
    c, s = np.cos(turn), np.sin(turn)
    matrix[:2, :2] = [[c, s], [-s, c]]
    matrix[:3, 3] = -(matrix[:3, :3] * shift).sum(1)
    return matrix


def _segments(points: np.ndarray, normals: np.ndarray, owner: np.ndarray, placed: list[Placed]) -> np.ndarray:
    """Over-segments (N,): patches of one object that face one way, at most about 0.7 m wide."""
    facing = np.argmax(np.abs(normals), axis=1) * 2 + (normals.sum(1) > 0)
    cell = np.floor(points / 0.7).astype(np.int64) + 64
    key = ((owner * 8 + facing) * 128 + cell[:, 0]) * 128 + cell[:, 1]
    return np.unique(key * 128 + cell[:, 2], return_inverse=True)[1].reshape(-1).astype(np.int32)
