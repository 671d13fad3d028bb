"""One generated scan from (seed, index), and folders full of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcssl.data.rooms import fuse, scan
from pcssl.data.rooms.arrange import BLOCK, furnished_flat
from pcssl.data.rooms.labels import CATEGORIES
from pcssl.data.rooms.layout import Placed, Room
from pcssl.data.rooms.materials import Palette
from pcssl.data.rooms.piece import Kit, rotate_z
from pcssl.data.rooms.shapes import Mesh
from pcssl.data.rooms.shell import shell

SPACING = 0.0195  # metres between neighbouring vertices, about ScanNet's


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
    kind: the types of its rooms, joined by " + ".
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


def room_kinds(seed: int, index: int) -> tuple[str, ...]:
    """Every block of scans holds all room types, so that small splits hold all classes."""
    block = np.random.default_rng([seed, index // len(BLOCK), 1])
    return BLOCK[block.permutation(len(BLOCK))[index % len(BLOCK)]]


def generate_room(seed: int, index: int) -> RoomScan:
    """The scan number `index` of the collection `seed`, a flat of one to four rooms; depends on nothing else."""
    rng = np.random.default_rng([seed, index, 0])
    kinds = room_kinds(seed, index)
    kit = Kit(rng, Palette(rng), SPACING)
    rooms = furnished_flat(kit, kinds)
    placed, scans = [], []
    for room in rooms:
        pieces = shell(room) + room.placed
        scans.append(_scanned(pieces, len(placed), room, kit))
        placed += pieces
    return _as_scan(scans, placed, rooms, kit)


def _assemble(placed: list[Placed]) -> tuple[Mesh, np.ndarray, np.ndarray]:
    """All pieces in one mesh, colours and returns (N, 4) and the number of each vertex's piece (N,)."""
    meshes = [item.mesh() for item in placed]
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes])
    faces = np.concatenate([m.faces + s for m, s in zip(meshes, starts)])
    owner = np.repeat(np.arange(len(meshes)), [len(m.vertices) for m in meshes])
    paint = np.concatenate([c for item in placed for c in item.piece.colors])
    return Mesh(np.concatenate([m.vertices for m in meshes]), faces), paint, owner


def _scanned(placed: list[Placed], first: int, room: Room, kit: Kit) -> tuple[np.ndarray, ...]:
    """One room as it was scanned: points, normals, colours and pieces (counted from `first`) of its
    vertices, and faces."""
    mesh, paint, owner = _assemble(placed)
    normals = scan.vertex_normals(mesh)
    seen = scan.observe(mesh.vertices, normals, paint[:, 3], scan.camera_path(room, kit), kit)
    at, faces = seen.index, fuse.surviving_faces(mesh.faces, seen.index, len(mesh.vertices))
    points, normals, owner = mesh.vertices[at], normals[at], owner[at]
    colors = scan.shade(paint[at, :3], normals, points, kit)
    # What was seen badly is measured coarsely.
    faces = fuse.thinned(points, faces, np.clip(0.25 - 0.06 * seen.quality, 0.02, 0.25), kit)
    points, rough = fuse.rounded(points, normals, kit)
    points = scan.depth_noise(points, normals, faces, rough, seen, kit)
    used, faces = np.unique(fuse.cleaned(points, normals, faces), return_inverse=True)
    return points[used], normals[used], colors[used], first + owner[used], faces.reshape(-1, 3)


def _as_scan(scans: list[tuple], placed: list[Placed], rooms: list[Room], kit: Kit) -> RoomScan:
    """Join the rooms, number the instances and put all into a frame turned and shifted at random."""
    points, normals, colors = (np.concatenate(part) for part in list(zip(*scans))[:3])
    vertices = np.cumsum([0] + [len(one[0]) for one in scans])
    owner = np.concatenate([one[3] for one in scans])
    faces = np.concatenate([one[4] + start for one, start in zip(scans, vertices)]).astype(np.int32)
    segment = fuse.segments(points, normals, owner)
    names = [item.piece.category for item in placed]
    known = np.array([name is not None for name in names])[owner] & ~fuse.forgotten(segment, kit)
    alive = np.unique(owner[known])
    number = np.full(len(placed), -1, np.int32)
    number[alive] = np.arange(len(alive))
    nyu40 = np.array([0 if name is None else CATEGORIES[name].nyu40 for name in names], np.uint16)
    turn, shift = kit.uniform(0, 2 * np.pi), kit.rng.uniform(-3, 3, 3) * (1, 1, 0.02)
    return RoomScan(
        (rotate_z(points, turn) + shift).astype(np.float32), colors, faces,
        np.where(known, nyu40[owner], 0).astype(np.uint16), np.where(known, number[owner], -1).astype(np.int32),
        segment, [names[i] for i in alive], _undo(turn, shift), " + ".join(room.kind for room in rooms),
    )  # fmt: skip


def _undo(turn: float, shift: np.ndarray) -> np.ndarray:
    """(4, 4) inverse of turning about z and then shifting."""
    matrix = np.eye(4)
    c, s = np.cos(turn), np.sin(turn)
    matrix[:2, :2] = [[c, s], [-s, c]]
    matrix[:3, 3] = -(matrix[:3, :3] * shift).sum(1)
    return matrix
