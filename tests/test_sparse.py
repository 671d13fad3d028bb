"""Geometries and convolutions: a sparse convolution equals the dense one on the same data."""

import pytest
import torch
from torch.nn import functional as F

from pcssl.errors import UserError
from pcssl.ops import CURVES, KEY_RANGE, curve_codes
from pcssl.sparse import (
    Geometry,
    SparseConv,
    SparseConvTranspose,
    SparseTensor,
    SubmanifoldConv,
    available_engines,
    current_engine,
    use_engine,
)
from pcssl.sparse.engine import Engine, best_engine

LOW, SIZE, SCENES = -4, 9, 2  # an odd number of cells: the last pair of a stride is cut
C_IN, C_OUT = 3, 5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_coords(seed=0, density=0.3, scenes=SCENES):
    """Occupied cells of every scene in random order, negative ones among them."""
    g = rng(seed)
    coords = torch.nonzero(torch.rand(scenes, SIZE, SIZE, SIZE, generator=g) < density)
    coords[:, 1:] += LOW
    return coords[torch.randperm(len(coords), generator=g)].int()


def double(layer):
    """The layer in float64 with weights and bias that do not depend on the global seed."""
    layer = layer.double()
    g = rng(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return layer


def random_input(geometry, channels=C_IN):
    features = torch.randn(len(geometry), channels, generator=rng(2), dtype=torch.float64)
    return SparseTensor(features.requires_grad_(), geometry)


def index_of(coords, low):
    batch, axes = coords[:, 0].long(), coords[:, 1:].long() - low
    return batch, *axes.unbind(1)


def to_dense(x, low, size):
    """(scenes, C, size, size, size), zeros where there is no voxel; differentiable."""
    grid = x.features.new_zeros(SCENES, size, size, size, x.features.shape[1])
    return grid.index_put(index_of(x.coords, low), x.features).permute(0, 4, 1, 2, 3)


def from_dense(grid, coords, low):
    return grid.permute(0, 2, 3, 4, 1)[index_of(coords, low)]


def assert_same_with_gradients(found, expected, inputs):
    torch.testing.assert_close(found, expected)
    grad = torch.randn(found.shape, generator=rng(3), dtype=found.dtype)
    for a, b in zip(torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad)):
        assert float(b.abs().max()) > 0.1
        torch.testing.assert_close(a, b)


# Convolutions against dense ones. The weight (out, k, k, k, in) becomes conv3d's (out, in, k, k, k).


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_submanifold_conv_is_the_dense_one_at_the_input_voxels(kernel, dilation, bias):
    x = random_input(Geometry(random_coords()))
    layer = double(SubmanifoldConv(C_IN, C_OUT, kernel, dilation, bias))
    weight = layer.weight.permute(0, 4, 1, 2, 3)
    dense = F.conv3d(to_dense(x, LOW, SIZE), weight, layer.bias, padding=dilation * (kernel // 2), dilation=dilation)
    out = layer(x)
    assert out.geometry is x.geometry
    expected = from_dense(dense, x.coords, LOW)
    assert_same_with_gradients(out.features, expected, [x.features, *layer.parameters()])


@pytest.mark.parametrize("dilation", [1, 2])
def test_an_even_submanifold_kernel_reaches_forward(dilation):
    x = random_input(Geometry(random_coords()))
    layer = double(SubmanifoldConv(C_IN, C_OUT, 2, dilation))
    padded = F.pad(to_dense(x, LOW, SIZE), (0, dilation) * 3)
    dense = F.conv3d(padded, layer.weight.permute(0, 4, 1, 2, 3), layer.bias, dilation=dilation)
    assert_same_with_gradients(layer(x).features, from_dense(dense, x.coords, LOW), [x.features, *layer.parameters()])


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_strided_conv_is_the_dense_one_at_the_occupied_cells(kernel, bias):
    x = random_input(Geometry(random_coords(density=0.1)))
    layer = double(SparseConv(C_IN, C_OUT, kernel, bias=bias))
    # Output cell o reads from 2 o on for kernel 2, around 2 o for kernel 3.
    grid = to_dense(x, LOW, SIZE + 1)
    dense = F.conv3d(grid, layer.weight.permute(0, 4, 1, 2, 3), layer.bias, stride=2, padding=kernel // 2 if kernel % 2 else 0)
    out = layer(x)
    assert out.stride == 2
    assert {tuple(v) for v in out.coords.tolist()} == {(b, i // 2, j // 2, k // 2) for b, i, j, k in x.coords.tolist()}
    expected = from_dense(dense, out.coords, LOW // 2)
    assert_same_with_gradients(out.features, expected, [x.features, *layer.parameters()])


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_conv_is_the_dense_one_at_the_target_voxels(kernel, bias):
    fine = Geometry(random_coords(density=0.2))
    x = random_input(fine.coarser()[0])
    layer = double(SparseConvTranspose(C_IN, C_OUT, kernel, bias=bias))
    dense = F.conv_transpose3d(
        to_dense(x, LOW // 2, SIZE // 2 + 1),
        layer.weight.permute(4, 0, 1, 2, 3),
        layer.bias,
        stride=2,
        padding=kernel // 2 if kernel % 2 else 0,
        output_padding=kernel % 2,
    )
    out = layer(x, fine)
    assert out.geometry is fine
    assert_same_with_gradients(out.features, from_dense(dense, fine.coords, LOW), [x.features, *layer.parameters()])


def test_convolution_does_not_mix_scenes():
    coords = random_coords()
    x = random_input(Geometry(coords))
    first = coords[:, 0] == 0
    for layer in (double(SubmanifoldConv(C_IN, C_OUT, 3)), double(SparseConv(C_IN, C_OUT, 3))):
        alone = layer(SparseTensor(x.features[first], Geometry(coords[first])))
        both = layer(x)
        torch.testing.assert_close(both.features[both.geometry.find(alone.coords)], alone.features)


@pytest.mark.parametrize("layer", [SubmanifoldConv(2, 3, 3), SparseConv(2, 3, 2), SparseConv(2, 3, 3)])
def test_convolution_gradients(layer):
    geometry = Geometry(random_coords(density=0.03, scenes=1))
    features = torch.randn(len(geometry), 2, generator=rng(4), dtype=torch.float64, requires_grad=True)
    layer = double(layer)
    names = ("weight", "bias")

    def run(features, *parameters):
        x = SparseTensor(features, geometry)
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,)).features

    assert torch.autograd.gradcheck(run, (features, layer.weight, layer.bias))


def test_convolutions_of_no_voxels():
    empty = Geometry(torch.zeros(0, 4).int())
    x = SparseTensor(torch.zeros(0, C_IN, requires_grad=True), empty)
    down = SparseConv(C_IN, C_OUT, 2)
    for y in (SubmanifoldConv(C_IN, C_OUT, 3)(x), down(x), SparseConvTranspose(C_OUT, C_OUT, 2)(down(x), empty)):
        assert y.features.shape == (0, C_OUT)
        y.features.sum().backward()
    assert x.features.grad.shape == (0, C_IN) and not down.weight.grad.any()


@pytest.mark.parametrize("voxel", [[0, 0, 0, 0], [0, -1, 3, -2], [5, KEY_RANGE[0], KEY_RANGE[1], 0]])
def test_convolutions_of_one_voxel(voxel):
    x = random_input(Geometry(torch.tensor([voxel], dtype=torch.int32)))
    submanifold, down = double(SubmanifoldConv(C_IN, C_OUT, 3)), double(SparseConv(C_IN, C_OUT, 2))
    up = double(SparseConvTranspose(C_IN, C_OUT, 2))
    i, j, k = (axis % 2 for axis in voxel[1:])
    coarse = x.geometry.coarser()[0]
    found = submanifold(x), down(x), up(SparseTensor(x.features, coarse), x.geometry)
    weights = submanifold.weight[:, 1, 1, 1], down.weight[:, i, j, k], up.weight[:, i, j, k]
    for y, layer, weight in zip(found, (submanifold, down, up), weights):
        torch.testing.assert_close(y.features, x.features @ weight.T + layer.bias)


def test_a_layer_refuses_other_channels():
    x = random_input(Geometry(random_coords()), channels=C_IN + 1)
    with pytest.raises(ValueError, match="features are"):
        double(SubmanifoldConv(C_IN, C_OUT, 3))(x)


def test_layers_in_bfloat16_stay_near_float32():
    x = random_input(Geometry(random_coords()))
    x = x.replace(x.features.detach().float())
    layer = double(SubmanifoldConv(C_IN, C_OUT, 3)).float()
    exact = layer(x).features
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x).features
    assert rounded.dtype == torch.bfloat16 and exact.dtype == torch.float32
    assert ((rounded.float() - exact).norm() < 0.01 * exact.norm()).item()


def test_transposed_conv_refuses_a_geometry_that_is_not_its_own():
    coords = random_coords()
    fine = Geometry(coords)
    x = random_input(fine.coarser()[0])
    layer = double(SparseConvTranspose(C_IN, C_OUT, 2))
    layer(x, fine)
    for foreign in (Geometry(coords), x.geometry):
        with pytest.raises(ValueError, match="coarser level"):
            layer(x, foreign)


def test_new_weights_have_the_range_of_dense_layers():
    torch.manual_seed(0)
    layer = SubmanifoldConv(4, 8, 3)
    bound = (4 * 27) ** -0.5
    assert layer.weight.shape == (8, 3, 3, 3, 4)
    for parameter in layer.parameters():
        assert 0.5 * bound < float(parameter.detach().abs().max()) <= bound
    assert SubmanifoldConv(4, 8, 3, bias=False).bias is None


# Geometries


def test_duplicate_voxels_are_refused():
    coords = random_coords()
    with pytest.raises(ValueError, match="duplicate"):
        Geometry(torch.cat([coords, coords[5:6]]))
    # The same place in another scene is another voxel.
    assert len(Geometry(torch.tensor([[0, 1, 2, 3], [1, 1, 2, 3]]))) == 2


def test_find_gives_the_rows_of_voxels():
    coords = random_coords()
    geometry = Geometry(coords)
    shuffle = torch.randperm(len(coords), generator=rng(5))
    assert torch.equal(geometry.find(coords[shuffle]), shuffle)
    absent = coords.clone()
    absent[:, 0] += SCENES
    assert (geometry.find(absent) == -1).all()
    assert geometry.find(coords[:0]).shape == (0,)
    assert (Geometry(coords[:0]).find(coords) == -1).all()


def test_a_voxel_lies_in_its_parent():
    coords = random_coords()
    geometry = Geometry(coords)
    coarse, parent = geometry.coarser()
    assert int(coords.min()) < 0 and coarse.stride == 2
    assert coarse.coords[parent].tolist() == [[b, x // 2, y // 2, z // 2] for b, x, y, z in coords.tolist()]
    assert parent.unique().tolist() == list(range(len(coarse)))
    again, grandparent = coarse.coarser()
    assert again.stride == 4
    assert again.coords[grandparent[parent], 1:].tolist() == (coords[:, 1:].double() / 4).floor().int().tolist()


def test_a_geometry_of_nothing_has_levels_and_orders():
    empty = Geometry(torch.zeros(0, 4).int())
    coarse, parent = empty.coarser()
    assert len(coarse) == 0 and parent.shape == (0,)
    assert empty.curve_order("xyz_hilbert").shape == (0,) and empty.scene_sizes().shape == (0,)


def test_maps_are_made_once_and_shared():
    geometry = Geometry(random_coords())
    coarse = geometry.coarser()[0]
    assert geometry.coarser()[0] is coarse
    assert geometry.submanifold_map(3) is geometry.submanifold_map(3)
    assert geometry.submanifold_map(3) is not geometry.submanifold_map(3, dilation=2)
    assert geometry.down_map(2) is geometry.down_map(2) and geometry.down_map(2) is not geometry.down_map(3)
    assert geometry.down_map(2).transposed is geometry.down_map(2).transposed
    assert geometry.curve_order("xyz_hilbert") is geometry.curve_order("xyz_hilbert")
    x = random_input(geometry)
    assert SparseConv(C_IN, C_OUT, 2).double()(x).geometry is coarse
    assert x.replace(x.features * 2).geometry is geometry


def test_a_map_is_computed_by_its_first_reader_only():
    geometry, calls = Geometry(random_coords()), []
    for _ in range(3):
        assert geometry.cached(("mine",), lambda: calls.append(1) or "made") == "made"
    assert calls == [1]


@pytest.mark.parametrize("curve", CURVES)
def test_a_curve_runs_through_one_scene_after_the_other(curve):
    geometry = Geometry(random_coords(scenes=3))
    order = geometry.curve_order(curve)
    assert order.sort()[0].tolist() == list(range(len(geometry)))
    along = geometry.coords[order].clone()
    assert (along[:, 0].diff() >= 0).all()
    along[:, 1:] -= LOW
    codes = curve_codes(along, curve)
    assert (codes.diff() > 0).all()


def test_a_curve_starts_at_zero_unless_a_scene_reaches_below():
    coords = random_coords()
    coords[:, 1:] += 100 - LOW
    geometry = Geometry(coords)
    assert torch.equal(geometry.curve_order("xyz_hilbert"), curve_codes(coords, "xyz_hilbert").argsort())


def test_scene_sizes_leave_out_empty_scenes():
    coords = torch.tensor([[7, 0, 0, 0], [2, 0, 0, 0], [7, 0, 0, 1], [7, -5, 0, 0], [4, 0, 0, 0]])
    assert Geometry(coords).scene_sizes().tolist() == [1, 1, 3]


def test_points_are_read_in_units_of_the_finest_level():
    axis = torch.arange(-4, 4)
    coarse = Geometry(torch.cartesian_prod(torch.tensor([0]), axis, axis, axis).int(), stride=4)
    slope = torch.tensor([[1.0], [-2.0], [0.5]]).double()
    centres = (coarse.coords[:, 1:].double() + 0.5) * 4
    points = torch.rand(50, 3, generator=rng(6), dtype=torch.float64) * 24 - 12
    found = coarse.interpolate(centres @ slope, points, torch.zeros(50).long())
    torch.testing.assert_close(found, points @ slope)


# Sparse tensors


@pytest.mark.parametrize("shape", [(3, 8), (5, 8), (4,), (4, 8, 1)])
def test_features_must_fit_their_geometry(shape):
    geometry = Geometry(torch.arange(16).reshape(4, 4))
    assert SparseTensor(torch.zeros(4, 8), geometry).stride == 1
    with pytest.raises(ValueError, match="4 voxels"):
        SparseTensor(torch.zeros(shape), geometry)


def test_a_sparse_tensor_keeps_the_order_of_its_voxels():
    coords = random_coords()
    features = torch.arange(len(coords)).float()[:, None]
    x = SparseTensor.from_coords(features, coords, stride=2)
    assert torch.equal(x.coords, coords) and torch.equal(x.batch, coords[:, 0]) and x.stride == 2
    assert torch.equal(x.features[x.geometry.find(coords)], features)


# Engines


def test_layers_run_on_the_engine_of_the_moment():
    from pcssl.sparse import engine as engines

    calls, reference = [], current_engine()

    def sparse_conv(*args):
        calls.append(1)
        return reference.sparse_conv(*args)

    engines.add_engine(Engine("counting", sparse_conv, reference.neighbor_table, reference.interpolate))
    try:
        x, layer = random_input(Geometry(random_coords())), double(SubmanifoldConv(C_IN, C_OUT, 3))
        with pytest.raises(RuntimeError), use_engine("counting"):
            layer(x)
            raise RuntimeError
        assert current_engine() is reference
        layer(x)
        assert calls == [1]
    finally:
        del engines._engines["counting"]


def test_an_engine_that_is_not_there_is_refused():
    assert "reference" in available_engines() and best_engine() in available_engines()
    with pytest.raises(UserError, match="reference"), use_engine("abacus"):
        pass


def test_order_does_not_matter_to_a_geometry():
    coords = random_coords()
    sorted_once = Geometry(Geometry(coords).coords[Geometry(coords).order])
    mixed = coords[torch.randperm(len(coords), generator=torch.Generator().manual_seed(1))]
    shuffled = Geometry(mixed)
    assert torch.equal(shuffled.sorted_keys, sorted_once.sorted_keys)
    assert torch.equal(sorted_once.order, torch.arange(len(coords)))
    assert torch.equal(shuffled.coords[shuffled.order], sorted_once.coords)
    coarse = shuffled.coarser()[0]
    assert torch.equal(coarse.sorted_keys, Geometry(coarse.coords).sorted_keys)
    assert torch.equal(coarse.coords, sorted_once.coarser()[0].coords)
