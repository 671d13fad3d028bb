"""From the vertices that were seen to a mesh as fusion and annotation leave it."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pcssl.data.rooms.materials import smooth_noise
from pcssl.data.rooms.piece import Kit

SCRAP = 12  # vertices: smaller parts of the mesh are dropped


def surviving_faces(faces: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Faces (F, 3) of a mesh of `count` vertices whose corners are all in `index`, as positions in it."""
    where = np.full(count, -1, np.int64)
    where[index] = np.arange(len(index))
    faces = where[faces]
    return faces[(faces >= 0).all(1)]


def rounded(points: np.ndarray, normals: np.ndarray, kit: Kit) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) with corners and thin parts blurred, as a grid of signed distances blurs them.

    In each small cube whose surfaces face different ways, vertices move towards their mean.
    Also returned: (N,) how different they face there, in [0, 1].
    """
    points, rough = points.copy(), np.zeros(len(points))
    for size in (0.07, 0.06, 0.05):
        cell = np.floor((points + kit.rng.uniform(0, 1, 3)) / size).astype(np.int64)
        cell -= cell.min(0)
        sides = cell.max(0) + 1
        key = (cell[:, 0] * sides[1] + cell[:, 1]) * sides[2] + cell[:, 2]
        count = np.maximum(np.bincount(key), 1)

        def mean(values: np.ndarray, key: np.ndarray = key, count: np.ndarray = count) -> np.ndarray:
            return np.stack([(np.bincount(key, column) / count)[key] for column in values.T], 1)

        differ = 1 - np.sqrt((mean(normals) ** 2).sum(1))
        points += np.clip(1.1 * differ, 0, 0.5)[:, None] * (mean(points) - points)
        rough = np.maximum(rough, differ)
    return points, rough


def thinned(points: np.ndarray, faces: np.ndarray, share: np.ndarray, kit: Kit) -> np.ndarray:
    """Faces (F, 3) after edge collapses that take about `share` (N,) of the vertices.

    Mesh simplification leaves regions of different density; here it goes by smooth noise too.
    """
    uneven = 1 + 0.8 * smooth_noise(points, 0.6, kit.rng.uniform(0, 6, 6))
    goes = kit.rng.uniform(0, 1, len(points)) < share * uneven
    target = np.arange(len(points))
    for a, b in ((0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)):
        one, other = faces[:, a], faces[:, b]
        ok = goes[one] & ~goes[other]
        target[one[ok]] = other[ok]
    faces = target[faces]
    return faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])]


def blended(values: np.ndarray, faces: np.ndarray, times: int) -> np.ndarray:
    """Values (N,) averaged over the edges of the mesh, again and again."""
    one, other = faces.T.ravel(), faces[:, [1, 2, 0]].T.ravel()
    count = 1 + np.bincount(one, minlength=len(values))
    for _ in range(times):
        values = (values + np.bincount(one, values[other], len(values))) / count
    return values


def cleaned(points: np.ndarray, normals: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Faces (F, 3) without those that have turned over or stand on end, and without loose scraps of a few vertices."""
    corners = np.ascontiguousarray(points.T)[:, faces.T]  # axis, corner, face
    u, v = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    normal = [u[i - 2] * v[i - 1] - u[i - 1] * v[i - 2] for i in range(3)]
    least = 0.35 * np.sqrt(sum(axis**2 for axis in normal))
    upright = np.ones(len(faces), bool)
    for corner in range(3):
        upright &= sum(normal[i] * normals[faces[:, corner], i] for i in range(3)) > least
    faces = faces[upright]
    ends = faces[:, :2].T.ravel(), faces[:, 1:].T.ravel()
    graph = coo_matrix((np.ones(len(ends[0]), np.int8), ends), (len(points), len(points)))
    part = connected_components(graph, directed=False)[1]
    return faces[np.bincount(part)[part[faces[:, 0]]] >= SCRAP]


def segments(points: np.ndarray, normals: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Over-segments (N,) int32: patches of one object that face one way, at most about 0.7 m wide."""
    facing = np.argmax(np.abs(normals), axis=1) * 2 + (normals.sum(1) > 0)
    cell = np.floor(points / 0.7).astype(np.int64)
    cell -= cell.min(0)
    key = ((owner * 8 + facing) * 128 + cell[:, 0]) * 128 + cell[:, 1]
    return np.unique(key * 128 + cell[:, 2], return_inverse=True)[1].reshape(-1).astype(np.int32)


def forgotten(segment: np.ndarray, kit: Kit) -> np.ndarray:
    """(N,) bool: small segments that no annotator marked."""
    size = np.bincount(segment)
    return ((kit.rng.uniform(0, 1, len(size)) < 0.05) & (size < 150))[segment]
