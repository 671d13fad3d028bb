"""Local attention equals full attention under the mask |i - j| <= window // 2 along the curve."""

import pytest
import torch

from pcssl.ops import CURVES, curve_codes
from pcssl.sparse import Geometry, local_attention, patch_attention

HEADS, D = 2, 4


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def scenes_of(sizes, seed=0, low=-8):
    """A batch of scenes with so many voxels each, rows of all scenes mixed."""
    g = rng(seed)
    coords = []
    for scene, size in enumerate(sizes):
        cells = torch.randperm(16**3, generator=g)[:size]
        axes = torch.stack([cells // 256, cells // 16 % 16, cells % 16], 1) + low
        coords.append(torch.cat([torch.full((size, 1), scene), axes], 1))
    coords = torch.cat(coords)
    return coords[torch.randperm(len(coords), generator=g)].int()


def inputs_for(count, seed=1):
    g = rng(seed)
    return [torch.randn(count, HEADS, D, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def masked_softmax(q, k, v, coords, curve, window):
    moved = coords.clone()
    moved[:, 1:] -= moved[:, 1:].amin(0).clamp(max=0)
    place = torch.empty(len(coords), dtype=torch.long)
    place[curve_codes(moved, curve).argsort()] = torch.arange(len(coords))
    seen = (place[:, None] - place[None]).abs() <= window // 2
    seen &= coords[:, :1] == coords[:, 0]
    scores = torch.einsum("ihd,jhd->hij", q, k) / D**0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(2)
    return torch.einsum("hij,jhd->ihd", weights, v)


def assert_same_with_gradients(coords, curve, window):
    q, k, v = inputs_for(len(coords))
    found = local_attention(q, k, v, Geometry(coords), curve, window)
    expected = masked_softmax(q, k, v, coords, curve, window)
    assert found.shape == q.shape and found.isfinite().all()
    torch.testing.assert_close(found, expected)
    grad = torch.randn(found.shape, generator=rng(2), dtype=found.dtype)
    for a, b in zip(torch.autograd.grad(found, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad)):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("window", [2, 3, 7, 8, 16, 33, 500])
@pytest.mark.parametrize("sizes", [(40, 1, 17, 64, 3), (1,), (1, 1, 1), (8, 16, 24), (5,), (90,)], ids=str)
def test_attention_is_a_softmax_over_the_band_of_the_scene(sizes, window):
    assert_same_with_gradients(scenes_of(sizes), "xyz_hilbert", window)


@pytest.mark.parametrize("curve", CURVES)
def test_attention_follows_its_curve(curve):
    assert_same_with_gradients(scenes_of((50, 21)), curve, 10)


def test_curves_see_different_neighbours():
    coords = scenes_of((60,))
    geometry, inputs = Geometry(coords), inputs_for(60)
    outputs = [local_attention(*inputs, geometry, curve, 6) for curve in CURVES]
    for i, a in enumerate(outputs):
        for b in outputs[i + 1 :]:
            assert not torch.allclose(a, b)


@pytest.mark.parametrize("window", [4, 30])
def test_the_window_at_which_a_scene_is_seen_whole(window):
    # Half a window of 30 spans the 16 voxels; half of 4 does not.
    coords = scenes_of((16,))
    q, k, v = inputs_for(16)
    found = local_attention(q, k, v, Geometry(coords), "xyz_hilbert", window)
    full = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1)
    assert torch.allclose(found, full) == (window == 30)


def test_missing_scenes_do_not_matter():
    coords = scenes_of((20, 9))
    inputs = inputs_for(29)
    later = coords.clone()
    later[:, 0] = later[:, 0] * 5 + 3
    a, b = (local_attention(*inputs, Geometry(c), "yxz_hilbert", 8) for c in (coords, later))
    torch.testing.assert_close(a, b)


def test_windows_are_shared_by_calls_on_one_geometry():
    geometry = Geometry(scenes_of((30, 12)))
    small, large = inputs_for(42, seed=3), inputs_for(42, seed=4)
    first = local_attention(*small, geometry, "xyz_hilbert", 6)
    kept = geometry.cached(("windows", "xyz_hilbert", 6), lambda: pytest.fail("the windows were not kept"))
    local_attention(*large, geometry, "xyz_hilbert", 6)
    local_attention(*large, geometry, "xyz_hilbert", 20)
    torch.testing.assert_close(local_attention(*small, geometry, "xyz_hilbert", 6), first)
    assert kept is geometry.cached(("windows", "xyz_hilbert", 6), lambda: None)


def test_dropout_removes_links():
    geometry, inputs = Geometry(scenes_of((30,))), inputs_for(30)
    kept = local_attention(*inputs, geometry, "xyz_hilbert", 6, dropout=0.0)
    dropped = local_attention(*inputs, geometry, "xyz_hilbert", 6, dropout=0.5)
    assert not torch.allclose(kept, dropped)


def test_bfloat16_stays_near_float32():
    geometry = Geometry(scenes_of((40, 13)))
    inputs = [x.detach().float() for x in inputs_for(53)]
    exact = local_attention(*inputs, geometry, "xyz_hilbert", 12)
    rounded = local_attention(*(x.bfloat16() for x in inputs), geometry, "xyz_hilbert", 12)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.02)


def test_no_voxels_attend_to_nothing():
    geometry = Geometry(torch.zeros(0, 4).int())
    assert local_attention(*inputs_for(0), geometry, "xyz_hilbert", 8).shape == (0, HEADS, D)


@pytest.mark.parametrize("window", [1, 0, -4])
def test_a_window_holds_two_at_least(window):
    with pytest.raises(ValueError, match="window"):
        local_attention(*inputs_for(5), Geometry(scenes_of((5,))), "xyz_hilbert", window)


def patches_of(coords, curve, patch, depth=16):
    """The voxels that each voxel sees, patch by patch and scene by scene."""
    codes, seen = curve_codes(coords, curve, depth), {}
    for scene in coords[:, 0].unique():
        rows = torch.nonzero(coords[:, 0] == scene)[:, 0]
        rows = rows[codes[rows].argsort()].tolist()
        for start in range(0, len(rows), patch):
            members = rows[start : start + patch]
            # The last patch is filled up with the same places of the one before.
            filled = members + (rows[start - patch + len(members) : start] if start else [])
            seen.update((row, filled) for row in members)
    return seen


@pytest.mark.parametrize("patch", [1, 4, 16, 23, 64, 1000])
@pytest.mark.parametrize("sizes", [(40, 1, 17, 64, 3), (1,), (16, 32), (90,)], ids=str)
def test_patches_see_themselves_alone(sizes, patch):
    coords = scenes_of(sizes, low=0)
    q, k, v = inputs_for(len(coords))
    found = patch_attention(q, k, v, Geometry(coords), "yxz_hilbert", patch, depth=4)
    expected = torch.empty_like(v)
    for row, rows in patches_of(coords, "yxz_hilbert", patch, depth=4).items():
        weights = (torch.einsum("hd,khd->hk", q[row], k[rows]) / D**0.5).softmax(1)
        expected[row] = torch.einsum("hk,khd->hd", weights, v[rows])
    torch.testing.assert_close(found, expected)
    grad = torch.randn(found.shape, generator=rng(2), dtype=found.dtype)
    for a, b in zip(torch.autograd.grad(found, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad)):
        torch.testing.assert_close(a, b)


def test_patches_of_nothing():
    empty = torch.zeros(0, HEADS, D)
    assert patch_attention(empty, empty, empty, Geometry(torch.zeros(0, 4, dtype=torch.int32)), "xyz_hilbert", 8).shape == (0, HEADS, D)


def test_patch_must_be_positive():
    q, k, v = inputs_for(5)
    with pytest.raises(ValueError, match="patch must be"):
        patch_attention(q, k, v, Geometry(scenes_of((5,))), "xyz_hilbert", 0)
