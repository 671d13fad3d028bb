"""Normals: right on surfaces whose normals are known, unit length on anything."""

import numpy as np
import pytest
import torch

from pcssl.data.normals import estimate_normals, normals_from_faces


def box_room(n=400, seed=0):
    """Points on the six inner sides of a 4 x 5 x 3 m room, and their inward normals."""
    rng = np.random.default_rng(seed)
    size = np.array([4.0, 5.0, 3.0])
    coord, normal = [], []
    for axis in range(3):
        for side in (0.0, 1.0):
            # Away from the edges, where a neighbourhood would bend around the corner.
            points = (rng.uniform(0.15, 0.85, (n, 3))) * size
            points[:, axis] = side * size[axis]
            direction = np.zeros(3)
            direction[axis] = 1 - 2 * side
            coord.append(points)
            normal.append(np.tile(direction, (n, 1)))
    return torch.tensor(np.concatenate(coord)).float(), torch.tensor(np.concatenate(normal)).float()


def test_estimates_point_into_the_room():
    coord, expected = box_room()
    found = estimate_normals(coord)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_estimates_do_not_depend_on_chunks(monkeypatch):
    coord, _ = box_room()
    whole = estimate_normals(coord)
    monkeypatch.setattr("pcssl.data.normals._CHUNK", 7)
    torch.testing.assert_close(estimate_normals(coord), whole)


def test_estimates_follow_a_rotation_and_an_offset():
    coord, expected = box_room()
    angle = torch.tensor(0.7)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
    # The bounding box changes, but a convex room's centre stays inside it.
    found = estimate_normals(coord @ turn.T + torch.tensor([30.0, -20.0, 5.0]))
    torch.testing.assert_close(found, expected @ turn.T, atol=2e-3, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_a_flat_patch_has_one_side(noise):
    rng = np.random.default_rng(1)
    floor = np.c_[rng.uniform(-2, 2, (2000, 2)), rng.normal(0, 1, 2000) * noise]
    assert (estimate_normals(torch.tensor(floor).float())[:, 2] > 0.9).all()
    wall = floor[:, [2, 0, 1]]
    assert (estimate_normals(torch.tensor(wall).float())[:, 0] > 0.9).all()


@pytest.mark.parametrize(
    "coord",
    [
        torch.zeros(0, 3),
        torch.zeros(1, 3),
        torch.rand(2, 3),
        torch.zeros(40, 3),
        torch.arange(60.0)[:, None] * torch.tensor([1.0, 2.0, 0.5]),
        torch.rand(5, 3),
        torch.cat([torch.zeros(30, 3), torch.rand(30, 3)]),
        torch.rand(50, 3) * 1e-6,
    ],
    ids=["none", "one", "two", "one spot", "a line", "five", "half on one spot", "micrometres"],
)
def test_degenerate_points_get_unit_normals(coord):
    normal = estimate_normals(coord)
    assert normal.shape == coord.shape
    torch.testing.assert_close(normal.norm(dim=1), torch.ones(len(coord)))


def test_fewer_than_three_points_look_up():
    assert estimate_normals(torch.rand(2, 3)).tolist() == [[0, 0, 1], [0, 0, 1]]


def test_many_points_on_one_spot_do_not_take_forever():
    coord = torch.zeros(50_000, 3)
    coord[:100] = torch.rand(100, 3)
    assert estimate_normals(coord).isfinite().all()  # quadratic in the repeats: minutes


def test_faces_weigh_by_area():
    # At vertex 0 a triangle of area 2 that looks up, and one of area 1 that looks along x.
    coord = torch.tensor([[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 1, 0], [0, 0, 2.0]])
    face = torch.tensor([[0, 1, 2], [0, 3, 4]])
    normal = normals_from_faces(coord, face)
    torch.testing.assert_close(normal[0], torch.tensor([1.0, 0.0, 2.0]) / 5**0.5)
    torch.testing.assert_close(normal[1], torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(normal[4], torch.tensor([1.0, 0.0, 0.0]))


def test_the_winding_decides_the_side():
    coord = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0.0]])
    assert normals_from_faces(coord, torch.tensor([[0, 2, 1]]))[:, 2].tolist() == [-1, -1, -1]


def test_vertices_without_a_face_are_estimated():
    rng = np.random.default_rng(2)
    coord = torch.tensor(np.c_[rng.uniform(0, 1, (50, 2)), np.zeros(50)]).float()
    face = torch.tensor([[0, 1, 2], [3, 3, 4]])  # the second has no area
    normal = normals_from_faces(coord, face)
    assert (normal[3:, 2] == 1).all()
    torch.testing.assert_close(normal.norm(dim=1), torch.ones(50))
