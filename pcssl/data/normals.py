"""Normals for points that come without: from the faces of a mesh, or from neighbouring points."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

_CHUNK = 65536  # points solved at a time: about 30 MB of neighbours and covariances at k = 16
_FLAT = 0.05  # thickness over width below which a scene counts as one flat patch


def normals_from_faces(coord: Tensor, face: Tensor) -> Tensor:
    """Area-weighted vertex normals of a triangle mesh.

    coord: (N, 3) float32, metres. face: (F, 3) integer, rows of coord.
    Returns (N, 3) float32 unit vectors on the side from which the corners run counter-clockwise.
    A vertex without a face of some area gets the estimate from its neighbours instead.
    """
    xyz = coord.double()
    face = face.long()
    a, b, c = (xyz[face[:, i]] for i in range(3))
    doubled_area = torch.linalg.cross(b - a, c - a)
    normal = torch.zeros_like(xyz)
    for i in range(3):
        normal.index_add_(0, face[:, i], doubled_area)
    length = normal.norm(dim=1, keepdim=True)
    lonely = (length[:, 0] < 1e-20).nonzero()[:, 0]
    normal = (normal / length.clamp_min(1e-20)).float()
    if len(lonely):
        normal[lonely] = _estimate(coord, lonely, k=16)
    return normal


def estimate_normals(coord: Tensor, k: int = 16) -> Tensor:
    """The direction in which the k nearest points vary least, one unit vector a point.

    coord: (N, 3) float32, metres, finite. Returns (N, 3) float32.
    The side is the one that faces the middle of the scene's bounding box, where an indoor
    scanner stood: floors look up, ceilings down, walls inwards. A scene that is one flat patch
    has its middle in the patch; it is seen from above, or when upright from the positive side
    of the axis across it. Where neighbours span no plane (all on one spot, or fewer than 3
    points) the normal is (0, 0, 1).
    """
    return _estimate(coord, torch.arange(len(coord)), k)


def _estimate(coord: Tensor, rows: Tensor, k: int) -> Tensor:
    """`estimate_normals` for some rows (M,) int64: (M, 3) float32."""
    # Repeated points say nothing about the surface, and thousands on one spot (a depth camera's
    # empty pixels) would make each search of the tree look at all of them.
    xyz, place = _distinct(coord.double().numpy())
    query, back = np.unique(place[rows.numpy()], return_inverse=True)
    normal = np.tile([0.0, 0.0, 1.0], (len(query), 1))
    if len(xyz) >= 3:
        tree = cKDTree(xyz)
        viewpoint = _viewpoint(xyz)
        for start in range(0, len(query), _CHUNK):
            at = xyz[query[start : start + _CHUNK]]
            # As many threads as torch may use, so that a loader's workers stay on one core each.
            _, near = tree.query(at, k=min(k, len(xyz)), workers=torch.get_num_threads())
            found = _flattest_direction(xyz[near])
            away = ((viewpoint - at) * found).sum(1, keepdims=True) < 0
            normal[start : start + _CHUNK] = np.where(away, -found, found)
    return torch.from_numpy(normal[back.reshape(-1)]).float()


def _distinct(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different points (M, 3), and for each input point its row among them (N,)."""
    spots = np.ascontiguousarray(xyz + 0.0).view([("", xyz.dtype)] * 3)  # + 0.0: -0 becomes 0
    order = np.lexsort((xyz[:, 2], xyz[:, 1], xyz[:, 0]))
    ordered = spots[order, 0]
    first = np.ones(len(xyz), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    place = np.empty(len(xyz), dtype=np.int64)
    place[order] = np.cumsum(first) - 1
    return xyz[order[first]], place


def _flattest_direction(near: np.ndarray) -> np.ndarray:
    """(M, k, 3) neighbours -> (M, 3) unit eigenvectors of the smallest spread."""
    near = torch.from_numpy(near - near.mean(1, keepdims=True))
    _, vectors = torch.linalg.eigh(near.transpose(1, 2) @ near)
    return vectors[:, :, 0].numpy()


def _viewpoint(xyz: np.ndarray) -> np.ndarray:
    """(3,) the point that normals face."""
    low, high = xyz.min(0), xyz.max(0)
    variance, axes = np.linalg.eigh(np.cov(xyz.T))
    middle = (low + high) / 2
    if variance[0] > _FLAT**2 * variance[1]:
        return middle
    across = axes[:, 0]
    # Up unless the patch is upright to within about 10 degrees, where "up" would be a coin toss.
    side = across[2] if abs(across[2]) > 0.17 else across[np.abs(across).argmax()]
    return middle + np.copysign(np.linalg.norm(high - low), side) * across
