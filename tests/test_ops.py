"""Operators on sparse voxels: each one against a slow, obvious version of itself."""

import itertools
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch.nn import functional as F

from pcssl.ops import (
    CURVES,
    KEY_RANGE,
    KernelMap,
    curve_codes,
    displace,
    interpolate,
    kernel_offsets,
    lookup,
    nearest,
    neighbor_table,
    pack_keys,
    radius_neighbors,
    scatter_sum,
    segment_reduce,
    sparse_conv,
    unpack_keys,
    voxelize,
)
from pcssl.ops.bounds import bounds
from pcssl.ops.interpolate import MODES
from pcssl.ops.keys import MAX_BATCH, shifted_keys

LOW, HIGH = KEY_RANGE


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_voxels(seed=0, scenes=2, low=-4, high=4, density=0.3):
    """Occupied cells of [low, high) ** 3 in every scene, in random order."""
    size = high - low
    g = rng(seed)
    coords = torch.nonzero(torch.rand(scenes, size, size, size, generator=g) < density)
    coords[:, 1:] += low
    return coords[torch.randperm(len(coords), generator=g)].int()


def sorted_with_order(coords):
    return torch.sort(pack_keys(coords))


def row_of(coords):
    return {tuple(voxel): row for row, voxel in enumerate(coords.tolist())}


# Keys


def edge_voxels():
    axis = (LOW, LOW + 1, -1, 0, 1, HIGH)
    return torch.tensor(list(itertools.product((0, 1, MAX_BATCH), axis, axis, axis)), dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_keys_come_back_as_their_voxels(dtype):
    coords = torch.cat([random_voxels(low=-20, high=20, density=0.01), edge_voxels()])
    keys = pack_keys(coords.to(dtype))
    assert keys.dtype == torch.int64 and int(keys.min()) >= 0
    back = unpack_keys(keys)
    assert back.dtype == torch.int32 and torch.equal(back, coords)


def test_keys_sort_like_batch_x_y_z():
    coords = torch.cat([random_voxels(1), edge_voxels()]).unique(dim=0)
    coords = coords[torch.randperm(len(coords), generator=rng(2))]
    in_key_order = coords[pack_keys(coords).argsort()].tolist()
    assert in_key_order == sorted(coords.tolist())


@pytest.mark.parametrize(
    "voxel, message",
    [
        ([-1, 0, 0, 0], "batch index -1"),
        ([MAX_BATCH + 1, 0, 0, 0], "batch index"),
        ([0, HIGH + 1, 0, 0], "voxel coordinates"),
        ([0, 0, LOW - 1, 0], "voxel coordinates"),
        ([0, 0, 0, HIGH + 1], "voxel coordinates"),
    ],
)
def test_keys_refuse_what_does_not_fit(voxel, message):
    with pytest.raises(ValueError, match=message):
        pack_keys(torch.tensor([[0, 0, 0, 0], voxel]))


@pytest.mark.parametrize("coords", [torch.zeros(3, 4), torch.zeros(3, 3).int(), torch.zeros(4).int()])
def test_keys_refuse_other_shapes_and_floats(coords):
    with pytest.raises(ValueError, match="integers"):
        pack_keys(coords)


def test_no_voxels_have_no_keys():
    keys = pack_keys(torch.zeros(0, 4, dtype=torch.int32))
    assert keys.shape == (0,) and keys.dtype == torch.int64
    assert unpack_keys(keys).shape == (0, 4)


def test_lookup_finds_positions_and_nothing_else():
    keys = torch.tensor([2, 5, 9])
    queries = torch.tensor([[9, 2, 5], [0, 4, 10]])
    assert lookup(keys, queries).tolist() == [[2, 0, 1], [-1, -1, -1]]
    assert lookup(keys, torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert lookup(keys[:0], queries).tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize("coords", [random_voxels(3), edge_voxels()], ids=["inside", "edge"])
def test_shifted_keys_are_the_keys_of_shifted_voxels(coords):
    offsets = kernel_offsets(3, dilation=2)
    shifts = list(shifted_keys(coords, pack_keys(coords), offsets))
    assert len(shifts) == len(offsets)
    for offset, keys in zip(offsets, shifts):
        moved = coords.clone()
        moved[:, 1:] += torch.tensor(offset, dtype=torch.int32)
        fits = ((moved[:, 1:] >= LOW) & (moved[:, 1:] <= HIGH)).all(1)
        assert torch.equal(keys[fits], pack_keys(moved[fits]))
        assert (keys[~fits] == -1).all()


def test_shifted_keys_of_nothing():
    coords = torch.zeros(0, 4, dtype=torch.int32)
    assert [len(keys) for keys in shifted_keys(coords, pack_keys(coords), kernel_offsets(2))] == [0] * 8


# Voxels


def test_voxelize_groups_points_like_a_dictionary():
    g = rng(4)
    points, batch = torch.rand(500, 3, generator=g) * 4 - 2, torch.randint(3, (500,), generator=g)
    size = 0.7
    groups = {}
    for i, (b, p) in enumerate(zip(batch.tolist(), np.floor(points.numpy() / np.float32(size)).astype(int).tolist())):
        groups.setdefault((b, *p), []).append(i)
    assert min(min(voxel) for voxel in groups) < 0

    voxels = voxelize(points, size, batch)
    assert voxels.coords.dtype == torch.int32
    assert [tuple(v) for v in voxels.coords.tolist()] == sorted(groups)
    assert voxels.counts.tolist() == [len(groups[v]) for v in sorted(groups)]
    for row, voxel in enumerate(sorted(groups)):
        assert torch.nonzero(voxels.inverse == row)[:, 0].tolist() == groups[voxel]

    values = torch.randn(500, 2, generator=g)
    means = torch.stack([values[groups[v]].mean(0) for v in sorted(groups)])
    torch.testing.assert_close(voxels.mean(values), means)


def test_a_voxel_starts_at_its_lower_side():
    points = torch.tensor([[0.0, 0.49, 0.5], [-0.01, -0.5, -0.51]])
    assert voxelize(points, 0.5).coords[:, 1:].tolist() == [[-1, -1, -2], [0, 0, 1]]


def test_the_mean_of_bytes_does_not_overflow():
    voxels = voxelize(torch.zeros(300, 3), 1.0)
    mean = voxels.mean(torch.full((300, 3), 200, dtype=torch.uint8))
    assert mean.is_floating_point() and mean.tolist() == [[200.0] * 3]


def test_no_points_make_no_voxels():
    voxels = voxelize(torch.zeros(0, 3), 0.1)
    assert voxels.coords.shape == (0, 4) and voxels.inverse.shape == (0,) and voxels.counts.shape == (0,)
    assert voxels.mean(torch.zeros(0, 5)).shape == (0, 5)


@pytest.mark.parametrize("size", [0.0, -0.02, float("nan")])
def test_voxelize_needs_a_positive_size(size):
    with pytest.raises(ValueError, match="voxel_size"):
        voxelize(torch.zeros(1, 3), size)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_voxelize_refuses_points_that_are_not_finite(value):
    with pytest.raises(ValueError, match="NaN or infinite"):
        voxelize(torch.tensor([[0.0, 0.0, 0.0], [0.0, value, 0.0]]), 0.1)


@pytest.mark.parametrize("far", [HIGH + 1.0, LOW - 1.0, 1e30, -3e38])
def test_voxelize_refuses_points_too_far_out(far):
    with pytest.raises(ValueError, match="outside"):
        voxelize(torch.tensor([[0.0, 0.0, far]]), 1.0)


# Neighbour tables


def test_kernel_offsets_are_centred_when_odd_and_forward_when_even():
    assert kernel_offsets(1) == [(0, 0, 0)]
    assert kernel_offsets(2) == list(itertools.product((0, 1), repeat=3))
    assert kernel_offsets(3, dilation=2) == list(itertools.product((-2, 0, 2), repeat=3))
    assert kernel_offsets(5)[0] == (-2, -2, -2) and kernel_offsets(5)[1] == (-2, -2, -1)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_neighbor_table_names_the_voxel_at_every_offset(kernel, stride, dilation):
    coords = random_voxels(5, density=0.4)
    out = coords if stride == 1 else random_voxels(6, low=-3, high=3, density=0.5)
    rows = row_of(coords)
    expected = [
        [rows.get((b, stride * x + i, stride * y + j, stride * z + k), -1) for b, x, y, z in out.tolist()]
        for i, j, k in kernel_offsets(kernel, dilation)
    ]
    table = neighbor_table(out, *sorted_with_order(coords), kernel, stride, dilation)
    assert table.dtype == torch.int32 and table.shape == (kernel**3, len(out))
    assert table.tolist() == expected


def test_scenes_of_a_batch_are_not_neighbors():
    coords = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.int32)
    table = neighbor_table(coords, *sorted_with_order(coords), 3)
    assert [row.tolist() for row in table if (row >= 0).any()] == [[0, 1]]


@pytest.mark.parametrize(
    "voxels",
    [
        [[0, 0, 0, HIGH], [0, 0, 1, LOW]],
        [[0, 0, HIGH, 0], [0, 1, LOW, 0]],
        [[0, HIGH, 0, 0], [1, LOW, 0, 0]],
    ],
)
def test_the_range_does_not_wrap_around(voxels):
    coords = torch.tensor(voxels, dtype=torch.int32)
    table = neighbor_table(coords, *sorted_with_order(coords), 3)
    assert table[13].tolist() == [0, 1]
    assert (table[[k for k in range(27) if k != 13]] == -1).all()


def test_neighbor_table_of_nothing():
    coords = random_voxels(7)
    none = coords[:0]
    assert neighbor_table(none, *sorted_with_order(coords), 3).shape == (27, 0)
    assert (neighbor_table(coords, *sorted_with_order(none), 3) == -1).all()


# Sparse convolution as a function of its map


def random_map(outputs=7, inputs=9, offsets=4, seed=8):
    """Any input for any offset and output, as long as no offset reads an input twice."""
    g = rng(seed)
    table = torch.stack([torch.randperm(inputs, generator=g)[:outputs] for _ in range(offsets)]).int()
    return KernelMap(table.masked_fill(torch.rand(table.shape, generator=g) < 0.3, -1), inputs)


def conv_by_loops(features, weight, kernel_map, bias=None):
    rows = []
    for i in range(kernel_map.num_out):
        row = features.new_zeros(weight.shape[2]) if bias is None else bias
        for k, source in enumerate(kernel_map.table[:, i].tolist()):
            row = row if source < 0 else row + features[source] @ weight[k]
        rows.append(row)
    return torch.stack(rows)


def conv_inputs(kernel_map, c_in=3, c_out=5, dtype=torch.float64, seed=9):
    g = rng(seed)
    shapes = (kernel_map.num_in, c_in), (kernel_map.table.shape[0], c_in, c_out), (c_out,)
    return [torch.randn(shape, generator=g, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("with_bias", [True, False])
def test_sparse_conv_sums_over_its_map(with_bias):
    kernel_map = random_map()
    features, weight, bias = conv_inputs(kernel_map)
    bias = bias if with_bias else None
    out = sparse_conv(features, weight, kernel_map, bias)
    torch.testing.assert_close(out, conv_by_loops(features, weight, kernel_map, bias))


def test_sparse_conv_gradients():
    kernel_map = random_map()
    inputs = conv_inputs(kernel_map, c_in=2, c_out=3)
    assert torch.autograd.gradcheck(lambda f, w, b: sparse_conv(f, w, kernel_map, b), inputs)


@pytest.mark.parametrize("frozen", [0, 1])
def test_sparse_conv_with_one_frozen_input(frozen):
    kernel_map = random_map()
    inputs = conv_inputs(kernel_map)
    inputs[frozen].requires_grad_(False)
    grads = []
    for conv in (sparse_conv, conv_by_loops):
        out = conv(*inputs[:2], kernel_map, inputs[2])
        grads.append(torch.autograd.grad(out.square().sum(), [x for x in inputs if x.requires_grad]))
    torch.testing.assert_close(*grads)


def test_sparse_conv_refuses_wrong_shapes():
    kernel_map = random_map()
    features, weight, _ = conv_inputs(kernel_map)
    for wrong in (features[:-1], features[:, :-1]):
        with pytest.raises(ValueError, match="features are"):
            sparse_conv(wrong, weight, kernel_map)
    with pytest.raises(ValueError, match="kernel offsets"):
        sparse_conv(features, weight[:-1], kernel_map)


def test_sparse_conv_in_bfloat16_stays_near_float32():
    kernel_map = random_map(60, 80, 27)
    inputs = conv_inputs(kernel_map, 16, 8, dtype=torch.float32)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = sparse_conv(*inputs[:2], kernel_map, inputs[2])
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        grads = torch.autograd.grad(out.float().square().mean(), inputs)
        assert all(grad.dtype == torch.float32 for grad in grads)
        results.append((out.float(), *grads))
    # bfloat16 rounds to 1 part in 256.
    for exact, rounded in zip(*results):
        assert ((exact - rounded).norm() < 0.02 * exact.norm()).item()
        assert not torch.equal(exact, rounded)


def test_sparse_conv_adds_many_offsets_in_float32():
    # 256 + 1 is 256 in bfloat16: a sum kept in that type would never leave 256.
    table = torch.zeros(33, 1, dtype=torch.int32)
    weight = torch.ones(33, 1, 1)
    weight[0] = 256
    with torch.autocast("cpu", torch.bfloat16):
        out = sparse_conv(torch.ones(1, 1), weight, KernelMap(table, 1))
    assert float(out) == 288


def test_sparse_conv_keeps_the_weight_gradient_in_float32():
    # 257 rows of ones: a number that bfloat16 does not have.
    weight = torch.ones(1, 1, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = sparse_conv(torch.ones(257, 1), weight, KernelMap(torch.arange(257).int()[None], 257))
    out.backward(torch.ones_like(out))
    assert float(weight.grad) == 257


def test_transposed_map_has_the_same_pairs_the_other_way():
    kernel_map = random_map()
    back = kernel_map.transposed
    assert (back.num_in, back.num_out) == (kernel_map.num_out, kernel_map.num_in)
    for (out, into), (back_out, back_into) in zip(kernel_map.pairs, back.pairs):
        assert set(zip(out.tolist(), into.tolist())) == set(zip(back_into.tolist(), back_out.tolist()))
    assert back.transposed is kernel_map
    assert torch.equal(KernelMap(back.table, back.num_in).transposed.table, kernel_map.table)


def test_maps_and_their_transposes_do_not_keep_each_other():
    kernel_map = random_map()
    back, seen = kernel_map.transposed, weakref.ref(kernel_map)
    del kernel_map
    assert seen() is None and back.transposed.num_out == back.num_in


# Interpolation


def interpolate_by_loops(features, coords, points, batch, mode):
    """Weights of the eight voxels around p - 0.5, one point at a time."""
    rows, out = row_of(coords), torch.zeros(len(points), features.shape[1], dtype=features.dtype)
    for i, (p, b) in enumerate(zip((points - 0.5).numpy(), batch.tolist())):
        low = np.floor(p).astype(int)
        near = []
        for corner in itertools.product((0, 1), repeat=3):
            row = rows.get((b, *(low + corner).tolist()))
            if row is not None:
                distance = np.abs(p - (low + corner))
                near.append((float((distance**2).sum()), float((1 - distance).prod()), row))
        if mode == "nearest":
            near = [(0, 1.0, min(near)[2])] if near else []
        total = sum(w for _, w, _ in near) if mode == "exact" else 1.0
        for _, weight, row in near:
            out[i] += weight / total * features[row]
    return out


def level(seed=10, channels=3, dtype=torch.float64, **kwargs):
    coords = random_voxels(seed, **kwargs)
    return torch.randn(len(coords), channels, generator=rng(seed), dtype=dtype), coords


def read(features, coords, points, batch, mode):
    return interpolate(features, coords, *sorted_with_order(coords), points, batch, mode)


def random_points(count, low, high, scenes=2, seed=11, dtype=torch.float64):
    g = rng(seed)
    points = torch.rand(count, 3, generator=g, dtype=dtype) * (high - low) + low
    return points, torch.randint(scenes, (count,), generator=g)


def full_box(low, high, scenes=1):
    axis = torch.arange(low, high)
    return torch.cartesian_prod(torch.arange(scenes), axis, axis, axis).int()


@pytest.mark.parametrize("mode", ["exact", "zero", "nearest"])
@pytest.mark.parametrize("density", [0.1, 0.6])
def test_interpolation_is_the_sum_over_eight_voxels(mode, density):
    features, coords = level(density=density)
    points, batch = random_points(400, -6, 6)
    expected = interpolate_by_loops(features, coords, points, batch, mode)
    empty = (expected == 0).all(1)
    assert empty.any() and not empty.all()
    torch.testing.assert_close(read(features, coords, points, batch, mode), expected)


@pytest.mark.parametrize("mode", ["exact", "zero"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_a_linear_field_is_reproduced_between_voxels(mode, dtype, tolerance):
    coords = full_box(-3, 3)
    slope = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], dtype=dtype).T
    features = (coords[:, 1:].to(dtype) + 0.5) @ slope + 7
    points, batch = random_points(300, -2.5, 2.5, scenes=1, dtype=dtype)
    torch.testing.assert_close(
        read(features, coords, points, batch, mode), points @ slope + 7, atol=tolerance, rtol=0
    )


@pytest.mark.parametrize("mode", ["exact", "zero", "nearest"])
def test_the_centre_of_a_voxel_has_its_value(mode):
    features, coords = level()
    centres = coords[:, 1:].double() + 0.5
    torch.testing.assert_close(read(features, coords, centres, coords[:, 0], mode), features)


def dense_grid(features, coords, low, shape):
    """(1, C, *shape) grid of one scene, zeros where empty."""
    grid = features.new_zeros(*shape, features.shape[1])
    index = coords[:, 1:].long() - low
    return grid.index_put(tuple(index.unbind(1)), features).permute(3, 0, 1, 2)[None]


def sample(grid, place):
    """Trilinear values of (1, C, X, Y, Z) at places (P, 3) in -1..1 from first to last index."""
    values = F.grid_sample(grid, place.flip(1)[None, :, None, None], align_corners=True, padding_mode="zeros")
    return values[0, :, :, 0, 0].T


def test_zero_mode_reads_a_dense_grid_with_zeros():
    features, coords = level(scenes=1)
    points, batch = random_points(300, -6, 6, scenes=1)
    grid = dense_grid(features, coords, -4, (8, 8, 8))
    expected = sample(grid, (points - 0.5 + 4) / 7 * 2 - 1)
    torch.testing.assert_close(read(features, coords, points, batch, "zero"), expected)


def test_exact_mode_equals_the_dense_grid_where_all_eight_are_occupied():
    features, coords = level(density=0.8, scenes=1)
    points, batch = random_points(400, -3.5, 3.5, scenes=1)
    ones = sample(dense_grid(torch.ones(len(coords), 1).double(), coords, -4, (8, 8, 8)), (points + 3.5) / 7 * 2 - 1)
    inside = (ones[:, 0] - 1).abs() < 1e-9
    assert 10 < int(inside.sum()) < 390
    expected = sample(dense_grid(features, coords, -4, (8, 8, 8)), (points + 3.5) / 7 * 2 - 1)
    found = read(features, coords, points, batch, "exact")
    torch.testing.assert_close(found[inside], expected[inside])
    assert (found[~inside] - expected[~inside]).abs().max() > 0.1


def test_exact_mode_reads_a_linear_field_exactly():
    _, coords = level(density=1.0, scenes=1)
    slope, start = (torch.randn(*size, generator=rng(3), dtype=torch.float64) for size in ((3, 5), (5,)))
    features = (coords[:, 1:].double() + 0.5) @ slope + start  # at the middles of the voxels
    points, batch = random_points(300, -3.5, 3.5, scenes=1)
    torch.testing.assert_close(read(features, coords, points, batch, "exact"), points @ slope + start)


def test_exact_weights_sum_to_one_beside_empty_voxels():
    _, coords = level(density=0.1)
    points, batch = random_points(500, -5, 5)
    found = read(torch.ones(len(coords), 1).double(), coords, points, batch, "exact")
    near = found[:, 0] > 0
    assert 10 < int(near.sum()) < 490
    torch.testing.assert_close(found[near], torch.ones_like(found[near]))


@pytest.mark.parametrize("off", [1e-3, 1e-5])
def test_exact_weights_sum_to_one_however_small_they_are(off):
    # Just off the centre of an empty voxel, the diagonal neighbour is the only one occupied.
    coords = torch.tensor([[0, 1, 1, 1]], dtype=torch.int32)
    point = torch.full((1, 3), 0.5 + off, dtype=torch.float64)
    found = read(torch.ones(1, 1).double(), coords, point, torch.tensor([0]), "exact")
    torch.testing.assert_close(found, torch.ones_like(found))


def test_nearest_mode_may_take_another_than_the_own_voxel_only_if_that_is_empty():
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 3, 0, 0]], dtype=torch.int32)
    features = torch.tensor([[1.0], [2.0], [3.0]])
    x = torch.tensor([0.1, 0.9, 1.1, 1.9, 2.4, 2.6, 5.0])
    points = torch.stack([x, torch.full_like(x, 0.4), torch.full_like(x, 0.4)], 1)
    found = read(features, coords, points, torch.zeros(7).long(), "nearest")
    assert found[:, 0].tolist() == [1, 1, 2, 2, 2, 3, 0]


def test_msm_mode_is_the_dense_grid_of_the_released_code():
    shapes = [(9, 4, 6), (3, 7, 2), (1, 5, 1)]
    coords, features, points, batch, expected = [], [], [], [], []
    g = rng(12)
    for scene, shape in enumerate(shapes):
        occupied = torch.rand(shape, generator=g) < 0.4
        occupied[tuple(s - 1 for s in shape)] = True
        index = torch.nonzero(occupied)
        voxels = torch.cat([torch.full((len(index), 1), scene), index], 1).int()
        values = torch.randn(len(index), 3, generator=g, dtype=torch.float64)
        extent = torch.tensor(shape)
        place = (torch.rand(150, 3, generator=g, dtype=torch.float64) * 1.4 - 0.2) * extent
        coords.append(voxels)
        features.append(values)
        points.append(place)
        batch.append(torch.full((150,), scene))
        expected.append(sample(dense_grid(values, voxels, 0, shape), place / extent * 2 - 1))
    coords, features, points, batch = (torch.cat(x) for x in (coords, features, points, batch))
    shuffle = torch.randperm(len(coords), generator=g)
    found = read(features[shuffle], coords[shuffle], points, batch, "msm")
    torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_around_a_point_reads_zero(mode):
    features, coords = level(low=0, high=3)
    points, batch = random_points(20, 50, 60)
    assert (read(features, coords, points, batch, mode) == 0).all()
    assert (read(features, coords, points, batch + 2, mode) == 0).all()
    none = read(features[:0], coords[:0], points, batch, mode)
    assert none.shape == (20, 3) and (none == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_no_points_read_nothing(mode):
    features, coords = level(low=0)
    found = read(features, coords, torch.zeros(0, 3).double(), torch.zeros(0).long(), mode)
    assert found.shape == (0, 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_far_outside_the_key_range_read_zero(mode, dtype):
    features, coords = level(dtype=dtype)
    points = torch.tensor(list(itertools.product((-1e30, -1e6, 0.0, 1e6, 1e30), repeat=3)), dtype=dtype)
    points = points[(points != 0).any(1)]
    found = read(features, coords, points, torch.zeros(len(points)).long(), mode)
    assert (found == 0).all()


@pytest.mark.parametrize("mode", ["exact", "zero", "nearest"])
@pytest.mark.parametrize("edge", [LOW, HIGH])
def test_the_edge_of_the_key_range_reads_like_any_other_place(mode, edge):
    inward = 1 if edge == LOW else -1
    coords = torch.tensor([[0, edge, 0, 0], [0, edge + inward, 0, 0]], dtype=torch.int32)
    features = torch.tensor([[1.0], [5.0]]).double()
    x = edge + torch.tensor([-1000.0, -1.3, -0.3, 0.2, 0.4, 0.8, 1.3, 2.3, 1000.0]).double()
    points = torch.stack([x, torch.full_like(x, 0.6), torch.full_like(x, 0.6)], 1)
    batch = torch.zeros(len(x)).long()
    moved = coords - torch.tensor([0, edge, 0, 0], dtype=torch.int32)
    expected = read(features, moved, points - torch.tensor([edge, 0, 0]), batch, mode)
    torch.testing.assert_close(read(features, coords, points, batch, mode), expected)


@pytest.mark.parametrize("mode", MODES)
def test_interpolation_gradients(mode):
    features, coords = level(low=0, high=3, density=0.5, channels=2)
    points, batch = random_points(15, -0.5, 3.5)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: read(f, coords, points, batch, mode), (features,))


def test_interpolation_keeps_the_type_of_the_features():
    features, coords = level(dtype=torch.float32)
    points, batch = random_points(50, -4, 4, dtype=torch.float32)
    full = read(features, coords, points, batch, "exact")
    half = read(features.bfloat16(), coords, points, batch, "exact")
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0.02)


def test_an_unknown_interpolation_is_refused():
    features, coords = level()
    with pytest.raises(ValueError, match="cubic"):
        read(features, coords, torch.zeros(1, 3).double(), torch.zeros(1).long(), "cubic")


# Curves


@pytest.mark.parametrize("curve", CURVES)
def test_curve_codes_are_those_of_the_released_models(curve):
    expected = np.load(Path(__file__).parent / "data" / "curves.npz")
    coords = torch.tensor(np.c_[expected["batch"], expected["coord"]])
    codes = curve_codes(coords, curve)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, torch.tensor(expected[curve.removesuffix("-order")]))


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_curve_visits_every_cell_once(curve, depth):
    codes = curve_codes(full_box(0, 2**depth, scenes=2), curve, depth)
    assert codes.sort()[0].tolist() == list(range(2 * 8**depth))


@pytest.mark.parametrize("curve", ["xyz_hilbert", "yxz_hilbert"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_hilbert_curve_goes_one_step_at_a_time(curve, depth):
    coords = full_box(0, 2**depth)
    along = coords[curve_codes(coords, curve, depth).argsort(), 1:]
    assert (along.diff(dim=0).abs().sum(1) == 1).all()


def test_z_order_interleaves_bits():
    coords = torch.tensor([[3, 0b10, 0b01, 0b11]])
    assert int(curve_codes(coords, "xyz_z-order", depth=2)) == 3 << 6 | 0b101_011
    assert int(curve_codes(coords, "yxz_z-order", depth=2)) == 3 << 6 | 0b011_101


@pytest.mark.parametrize(
    "coords, curve, depth, message",
    [
        ([[0, 0, 0, 0]], "zyx_hilbert", 16, "unknown curve"),
        ([[0, 0, 0, 0]], "xyz_hilbert", 0, "depth"),
        ([[0, 0, 0, 0]], "xyz_hilbert", 17, "depth"),
        ([[0, 0, -1, 0]], "xyz_hilbert", 16, "0..65535"),
        ([[0, 0, 0, 65536]], "xyz_z-order", 16, "0..65535"),
        ([[0, 8, 0, 0]], "yxz_z-order", 3, "0..7"),
    ],
)
def test_curve_codes_refuse_what_is_not_on_the_curve(coords, curve, depth, message):
    with pytest.raises(ValueError, match=message):
        curve_codes(torch.tensor(coords), curve, depth)


@pytest.mark.parametrize("curve", CURVES)
def test_no_voxels_have_no_codes(curve):
    assert curve_codes(torch.zeros(0, 4).int(), curve).shape == (0,)


# Nearest points


@pytest.mark.parametrize("radius", [0.05, 0.2, 3.0])
def test_nearest_agrees_with_a_tree(radius):
    g = rng(13)
    points, queries = (torch.rand(n, 3, generator=g, dtype=torch.float64) * 2 - 1 for n in (300, 200))
    point_batch, query_batch = torch.randint(3, (300,), generator=g), torch.randint(4, (200,), generator=g)
    index, distance = nearest(queries, query_batch, points, point_batch, radius)
    for scene in range(4):
        rows, mine = torch.nonzero(point_batch == scene)[:, 0], query_batch == scene
        if not len(rows):
            assert (index[mine] == -1).all() and distance[mine].isinf().all()
            continue
        # The tree leaves out a point at exactly the bound; there is none in random data.
        expected, at = cKDTree(points[rows].numpy()).query(queries[mine].numpy(), distance_upper_bound=radius)
        none = np.isinf(expected)
        torch.testing.assert_close(distance[mine], torch.tensor(expected))
        assert (index[mine].numpy()[none] == -1).all()
        assert (index[mine].numpy()[~none] == rows.numpy()[at[~none]]).all()


def test_of_equally_near_points_the_first_is_taken():
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    centre, zero = torch.zeros(1, 3), torch.zeros(1).long()
    for seed in range(5):
        shuffled = corners[torch.randperm(8, generator=rng(seed))]
        index, distance = nearest(centre, zero, torch.cat([shuffled, shuffled]), torch.zeros(16).long(), 2.0)
        assert index.tolist() == [0]
        torch.testing.assert_close(distance, torch.tensor([3.0]).sqrt())


def test_a_point_at_the_radius_is_within_it():
    points, zero = torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(1).long()
    assert nearest(torch.zeros(1, 3), zero, points, zero, 1.0)[0].tolist() == [0]
    assert nearest(-points, zero, points, zero, 2.0)[0].tolist() == [0]
    assert nearest(-points, zero, points, zero, 1.99)[0].tolist() == [-1]


def test_a_point_of_another_scene_is_not_near():
    point, zero = torch.zeros(1, 3), torch.zeros(1).long()
    index, distance = nearest(point, zero + 1, point, zero, 1.0)
    assert index.tolist() == [-1] and distance.tolist() == [float("inf")]


@pytest.mark.parametrize("queries, points", [(0, 3), (3, 0), (0, 0)])
def test_nearest_among_nothing(queries, points):
    index, distance = nearest(
        torch.zeros(queries, 3), torch.zeros(queries).long(), torch.zeros(points, 3), torch.zeros(points).long(), 1.0
    )
    assert index.tolist() == [-1] * queries and distance.tolist() == [float("inf")] * queries
    assert index.dtype == torch.int64


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_nearest_needs_a_positive_radius(radius):
    point, zero = torch.zeros(1, 3), torch.zeros(1).long()
    with pytest.raises(ValueError, match="radius"):
        nearest(point, zero, point, zero, radius)


@pytest.mark.parametrize("radius", [0.05, 0.3, 3.0])
@pytest.mark.parametrize("k", [None, 1, 4])
def test_radius_neighbors_agree_with_a_tree(radius, k):
    g = rng(16)
    points, queries = (torch.rand(n, 3, generator=g, dtype=torch.float64) * 2 - 1 for n in (300, 80))
    point_batch, query_batch = torch.randint(3, (300,), generator=g), torch.randint(4, (80,), generator=g)
    offsets, indices = radius_neighbors(queries, query_batch, points, point_batch, radius, k)
    assert offsets.dtype == indices.dtype == torch.int64
    assert offsets.shape == (81,) and int(offsets[0]) == 0 and int(offsets[-1]) == len(indices)
    for q, (query, scene) in enumerate(zip(queries, query_batch)):
        rows = torch.nonzero(point_batch == scene)[:, 0]
        near = cKDTree(points[rows].numpy()).query_ball_point(query.numpy(), radius) if len(rows) else []
        near = rows[torch.tensor(near, dtype=torch.int64)]
        expected = near[(points[near] - query).norm(dim=1).argsort()][:k]
        assert indices[offsets[q] : offsets[q + 1]].tolist() == expected.tolist()


def test_points_are_near_however_they_are_rounded():
    # Far from the origin a point can be rounded into the cell beyond the next one.
    start = torch.arange(-60000.0, 60000.0, 1.7)
    queries = torch.stack([start, torch.zeros_like(start), torch.zeros_like(start)], 1)
    points, zero = queries + torch.tensor([1.0, 0, 0]), torch.zeros(len(start)).long()
    exact = (points.double() - queries.double()).norm(dim=1) <= 1
    offsets, _ = radius_neighbors(queries, zero, points, zero, 1.0)
    assert (offsets.diff()[exact] >= 1).all()


@pytest.mark.parametrize("k", [0, -1])
def test_radius_neighbors_need_a_positive_number(k):
    point, zero = torch.zeros(1, 3), torch.zeros(1).long()
    with pytest.raises(ValueError, match="k must be positive"):
        radius_neighbors(point, zero, point, zero, 1.0, k)


# Segments


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("offsets", [[0, 3, 3, 4, 9, 9], [0, 0, 9], [0, 9], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
def test_segments_reduce_like_loops(reduce, offsets):
    # All below zero, so that a maximum with a hidden zero would show.
    values = torch.randn(9, 4, generator=rng(14)) - 5
    parts = [values[a:b] for a, b in zip(offsets, offsets[1:])]
    by_hand = {"sum": lambda x: x.sum(0), "mean": lambda x: x.mean(0), "max": lambda x: x.amax(0)}[reduce]
    expected = torch.stack([by_hand(part) if len(part) else torch.zeros(4) for part in parts])
    torch.testing.assert_close(segment_reduce(values, torch.tensor(offsets), reduce), expected)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_segments_of_nothing(reduce):
    assert segment_reduce(torch.zeros(0, 2), torch.tensor([0]), reduce).shape == (0, 2)
    assert segment_reduce(torch.zeros(0, 2), torch.tensor([0, 0, 0]), reduce).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_segment_gradients(reduce):
    values = torch.randn(7, 2, generator=rng(15), dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0, 2, 2, 6, 7])
    assert torch.autograd.gradcheck(lambda x: segment_reduce(x, offsets, reduce), (values,))


@pytest.mark.parametrize(
    "offsets, reduce, message",
    [
        ([0, 5], "median", "median"),
        ([0, 4], "sum", "rise from 0 to 5"),
        ([1, 5], "sum", "rise from 0 to 5"),
        ([], "sum", "rise from 0 to 5"),
        ([[0, 5]], "sum", "offsets must be"),
        ([0, 4, 2, 5], "sum", "fall"),
    ],
)
def test_segments_refuse_what_is_not_a_partition(offsets, reduce, message):
    with pytest.raises(ValueError, match=message):
        segment_reduce(torch.zeros(5, 2), torch.tensor(offsets, dtype=torch.int64), reduce)


# Displacement


def test_displace_reads_a_linear_field_exactly():
    g = torch.Generator().manual_seed(0)
    low, spacing, slope = torch.tensor([-1.0, 2.0, 0.5]), 0.25, torch.randn(3, 3, generator=g)
    place = torch.stack(torch.meshgrid(*[torch.arange(n) for n in (5, 4, 3)], indexing="ij"), -1) * spacing
    points = low + torch.rand(500, 3, generator=g) * torch.tensor([4, 3, 2]) * spacing
    moved = displace(points, place @ slope, low, spacing)
    torch.testing.assert_close(moved, points + (points - low) @ slope, atol=1e-5, rtol=1e-5)


def test_displace_beyond_the_field_takes_its_border():
    field = torch.arange(24.0).view(2, 2, 2, 3)
    points = torch.tensor([[-9.0, -9.0, -9.0], [9.0, 9.0, 9.0]])
    torch.testing.assert_close(displace(points, field, torch.zeros(3), 1.0) - points, field.view(-1, 3)[[0, -1]])


def test_displace_needs_two_cells_an_axis():
    with pytest.raises(ValueError, match="at least two"):
        displace(torch.zeros(1, 3), torch.zeros(1, 2, 2, 3), torch.zeros(3), 1.0)


# Sums of rows that share an index; the extent of rows


def test_scatter_sum_adds_up_as_a_loop_does():
    values, index = torch.tensor([[1.0, 2], [3, 4], [5, 6]]), torch.tensor([2, 0, 2])
    assert scatter_sum(values, index, 4).tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
    with pytest.raises(ValueError, match="index"):
        scatter_sum(values, index[:2], 4)
    with pytest.raises(TypeError, match="index must be int64"):
        scatter_sum(values, index.int(), 4)


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_bounds_are_the_lowest_and_highest_of_every_column(rows, dtype):
    x = (torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows)) * 100).to(dtype)
    for values in (x, x[:, 1:], x.flip(0)):
        low, high = bounds(values)
        assert torch.equal(low, values.amin(0)) and torch.equal(high, values.amax(0))


def test_the_gradient_of_a_maximum_of_zero_goes_to_its_row():
    values = torch.tensor([[0.0, -1.0], [-2.0, -1.0]]).requires_grad_()
    segment_reduce(values, torch.tensor([0, 0, 2]), "max").sum().backward()
    assert values.grad.tolist() == [[1.0, 0.5], [0.0, 0.5]]
