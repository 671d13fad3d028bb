"""The compiled operators against the plain-torch reference in float64."""

import functools
import itertools

import pytest
import torch
from scipy.spatial import cKDTree

from pcssl import ops
from pcssl.data.rooms import generate_room
from pcssl.ops.keys import KEY_RANGE
from pcssl.ops.sparse_conv import KernelMap
from pcssl.sparse import Geometry, available_engines, native, use_engine

pytestmark = pytest.mark.skipif(
    native.LIBRARY is None, reason="the compiled operators are not built: install a C++ compiler and pcssl again"
)
TOLERANCE = 1e-5


def usable_cpus() -> list[str]:
    if native.LIBRARY is None:
        return []
    before, found = native.current_cpu(), []
    for name in native.CPUS:
        try:
            native.use_cpu(name)
            found.append(name)
        except ValueError:
            pass
    native.use_cpu(before)
    return found


@pytest.fixture(params=usable_cpus())
def cpu(request):
    before = native.current_cpu()
    native.use_cpu(request.param)
    yield request.param
    native.use_cpu(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random_coords(count: int, extent: int, scenes: int = 2, low: int = 0, seed: int = 0) -> torch.Tensor:
    """Distinct voxels in random order."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.randint(low, low + extent, (count, 3), generator=g)
    batch = torch.randint(0, scenes, (count, 1), generator=g)
    coords = torch.unique(torch.cat([batch, axes], 1), dim=0).int()
    return coords[torch.randperm(len(coords), generator=g)]


@functools.cache
def room_coords(index: int = 0, voxel_size: float = 0.06) -> torch.Tensor:
    return ops.voxelize(torch.from_numpy(generate_room(0, index).vertices), voxel_size).coords


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape
    scale = max(float(want.abs().max()), 1e-30) if want.numel() else 1.0
    torch.testing.assert_close(got.double() / scale, want.double() / scale, rtol=0, atol=TOLERANCE)


def compare_conv(kernel_map: KernelMap, c_in: int, c_out: int, bias: bool = True) -> None:
    """Forward and all gradients, native in float32 and reference in float64."""
    g = torch.Generator().manual_seed(c_in * 1000 + c_out)
    k = kernel_map.table.shape[0]
    # The layout that layers have: (out, K, in), seen as (K, in, out).
    weight = torch.randn(c_out, k, c_in, generator=g).permute(1, 2, 0)
    features = torch.randn(kernel_map.num_in, c_in, generator=g)
    grad = torch.randn(kernel_map.num_out, c_out, generator=g)
    results = []
    for function, dtype in ((native.sparse_conv, torch.float32), (ops.sparse_conv, torch.float64)):
        inputs = [x.to(dtype).detach().requires_grad_() for x in (features, weight)]
        if bias:
            inputs.append(torch.linspace(-1, 1, c_out, dtype=dtype, requires_grad=True))
        out = function(inputs[0], inputs[1], kernel_map, *inputs[2:])
        out.backward(grad.to(dtype))
        results.append([out.detach(), *(x.grad for x in inputs)])
    for got, want in zip(*results):
        close(got, want)


# Neighbour tables


TABLES = list(itertools.product((1, 2, 3, 4, 5), (1, 2)))


@pytest.mark.parametrize("kernel,dilation", TABLES)
@pytest.mark.parametrize("low", [0, -13, KEY_RANGE[0], KEY_RANGE[1] - 11])
def test_neighbor_table(kernel, dilation, low):
    coords = random_coords(1500, 12, low=low)
    keys, order = torch.sort(ops.pack_keys(coords))
    halved = coords.clone()
    halved[:, 1:] = torch.div(coords[:, 1:], 2, rounding_mode="floor")
    halved = torch.unique(halved, dim=0)
    shuffled = halved[torch.randperm(len(halved))]
    for out, stride in ((coords, 1), (coords[::3], 1), (coords[:1], 1), (coords[:0], 1), (halved, 2), (shuffled, 2)):
        got = native.neighbor_table(out, keys, order, kernel, stride, dilation)
        assert torch.equal(got, ops.neighbor_table(out, keys, order, kernel, stride, dilation))
    empty = native.neighbor_table(coords, keys[:0], order[:0], kernel, 1, dilation)
    assert torch.equal(empty, torch.full((kernel**3, len(coords)), -1, dtype=torch.int32))


def test_neighbor_table_of_a_room_with_threads(threads):
    coords = room_coords()
    keys, order = torch.sort(ops.pack_keys(coords))
    want = ops.neighbor_table(coords, keys, order, 3)
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(native.neighbor_table(coords, keys, order, 3), want)


@pytest.mark.parametrize("bad,message", [([4096, 0, 0, 0], "batch index"), ([0, 0, 70000, 0], "voxel coordinates")])
def test_coordinates_out_of_range(bad, message):
    coords = torch.tensor([bad], dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        native.neighbor_table(coords, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 3)


def test_strided_coordinates_out_of_range():
    coords = torch.tensor([[0, 40000, 0, 0]], dtype=torch.int32)
    with pytest.raises(ValueError, match="voxel coordinates"):
        native.neighbor_table(coords, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 2, 2)


# Convolution


CHANNELS = [(1, 1), (1, 32), (3, 8), (8, 3), (17, 32), (32, 17), (32, 32), (64, 100), (100, 64), (130, 70)]


@pytest.mark.parametrize("c_in,c_out", CHANNELS)
def test_conv_channels(cpu, c_in, c_out):
    compare_conv(Geometry(random_coords(900, 9)).submanifold_map(3), c_in, c_out)


def test_conv_512_channels(cpu):
    compare_conv(Geometry(random_coords(120, 5)).submanifold_map(3), 512, 512)


@pytest.mark.parametrize("kernel,dilation", [(1, 1), (2, 1), (3, 1), (5, 1), (1, 2), (2, 2), (3, 2), (5, 2)])
def test_conv_kernels(kernel, dilation):
    geometry = Geometry(random_coords(1000, 9, low=-4))
    submanifold, down = geometry.submanifold_map(kernel, dilation), geometry.down_map(kernel, dilation)
    for kernel_map in (submanifold, submanifold.transposed, down, down.transposed):
        compare_conv(kernel_map, 17, 24)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_conv_threads_give_the_same_bits(threads, count):
    geometry = Geometry(room_coords())
    features, weight = torch.randn(len(geometry), 33), torch.randn(27, 33, 40)
    grad = torch.randn(len(geometry), 40)
    run = functools.partial(all_gradients, features, weight, geometry.submanifold_map(3), grad)
    threads(count)
    first = run()
    assert all(torch.equal(a, b) for a, b in zip(first, run()))
    threads(1)
    single = run()
    # Rows are summed by one thread each; only the weight's partial sums depend on the number of threads.
    assert torch.equal(first[0], single[0]) and torch.equal(first[1], single[1])
    close(first[2], single[2])


def all_gradients(features, weight, kernel_map, grad):
    features, weight = features.clone().requires_grad_(), weight.clone().requires_grad_()
    out = native.sparse_conv(features, weight, kernel_map)
    out.backward(grad)
    return out.detach(), features.grad, weight.grad


@pytest.mark.parametrize("count", [1, 2, 7])
def test_conv_on_a_room(threads, count):
    threads(count)
    geometry = Geometry(room_coords())
    compare_conv(geometry.submanifold_map(3), 16, 24, bias=False)
    compare_conv(geometry.down_map(2), 16, 24)
    compare_conv(geometry.down_map(2).transposed, 24, 16)


@pytest.mark.parametrize("rows", [0, 1])
def test_conv_of_nothing_and_of_one_voxel(cpu, rows):
    geometry = Geometry(random_coords(50, 4)[:rows])
    compare_conv(geometry.submanifold_map(3), 5, 7)
    compare_conv(geometry.down_map(2), 5, 7)
    compare_conv(geometry.down_map(2).transposed, 7, 5)


def test_conv_where_no_pair_is_there():
    compare_conv(KernelMap(torch.full((8, 40), -1, dtype=torch.int32), 30), 6, 4)


def test_conv_takes_strided_inputs():
    kernel_map = Geometry(random_coords(300, 6)).submanifold_map(3)
    features = torch.randn(8, kernel_map.num_in).t()
    weight = torch.randn(4, 8, 27).permute(2, 1, 0)
    close(native.sparse_conv(features, weight, kernel_map), ops.sparse_conv(features.double(), weight.double(), kernel_map))


def test_conv_falls_back_to_the_reference():
    kernel_map = Geometry(random_coords(300, 6)).submanifold_map(3)
    features, weight = torch.randn(kernel_map.num_in, 4).double(), torch.randn(27, 4, 4).double()
    assert torch.equal(native.sparse_conv(features, weight, kernel_map), ops.sparse_conv(features, weight, kernel_map))


HALVES = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # how far rounding moves a number


def close_after_rounding(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    """Within what rounding the result alone does, besides float32's own error."""
    assert got.dtype == dtype and got.shape == want.shape
    atol = TOLERANCE * float(want.abs().max())
    torch.testing.assert_close(got.double(), want, rtol=HALVES.get(dtype, 0), atol=atol)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias", [False, True])
def test_conv_in_half_precision_rounds_only_its_results(dtype, bias):
    kernel_map = Geometry(room_coords()).down_map(3)
    inputs = [torch.randn(kernel_map.num_in, 12), 0.1 * torch.randn(27, 12, 20), torch.randn(20)][: 2 + bias]
    inputs, grad = [x.to(dtype) for x in inputs], torch.randn(kernel_map.num_out, 20).to(dtype)
    results = []
    for function, kind in ((native.sparse_conv, dtype), (ops.sparse_conv, torch.float64)):
        x = [x.to(kind).detach().requires_grad_() for x in inputs]
        out = function(*x[:2], kernel_map, *x[2:])
        out.backward(grad.to(kind))
        results.append([out.detach(), *(x.grad for x in x)])
    for got, want in zip(*results):
        close_after_rounding(got, want, dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_conv_under_autocast(dtype):
    kernel_map = Geometry(room_coords()).submanifold_map(3)
    features, weight = torch.randn(kernel_map.num_in, 8), torch.randn(27, 8, 10)
    inputs = [x.requires_grad_() for x in (features, weight)]
    with torch.autocast("cpu", dtype=dtype):
        out = native.sparse_conv(*inputs, kernel_map)
    grad = torch.randn_like(out)
    out.backward(grad)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    want = ops.sparse_conv(*exact, kernel_map)
    want.backward(grad.double())
    close_after_rounding(out.detach(), want.detach(), dtype)
    for got, x in zip(inputs, exact):
        close_after_rounding(got.grad, x.grad, torch.float32)


def test_conv_adds_up_the_weight_gradient_in_float32():
    # 257 rows of ones: a number that bfloat16 does not have, and 256 + 1 is 256 there.
    weight = torch.ones(1, 1, 1, requires_grad=True)
    identity = KernelMap(torch.arange(257).int()[None], 257)
    features = torch.ones(257, 1, dtype=torch.bfloat16)
    native.sparse_conv(features, weight, identity).sum().backward()
    assert float(weight.grad) == 257


def test_conv_addresses_more_than_2_to_the_31_elements():
    # Memory that nobody writes takes no room: only the rows that the table names are there.
    rows = 2**25 + 8
    features = torch.empty(rows, 64)
    last = torch.tensor([0, rows // 2, rows - 2, rows - 1], dtype=torch.int32)
    features[last.long()] = torch.randn(4, 64)
    small = features[last.long()].double()
    weight, grad = torch.randn(1, 64, 3, requires_grad=True), torch.randn(4, 3)
    for function in (native.sparse_conv, ops.sparse_conv):
        weight.grad = None
        out = function(features, weight, KernelMap(last[None], rows))
        out.backward(grad)
        close(out.detach(), small @ weight.detach()[0].double())
        close(weight.grad[0], small.t() @ grad.double())


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("c_in, c_out", [(3, 32), (64, 64), (256, 512)])
def test_conv_needs_little_memory_besides_its_tensors(threads, count, c_in, c_out):
    # 8 MB a thread and one copy of the weight, its channels rounded up to whole vectors.
    threads(count)
    geometry = Geometry(torch.cartesian_prod(torch.arange(1), *[torch.arange(8)] * 3).int())
    for kernel_map in (geometry.submanifold_map(3), geometry.down_map(2)):
        features, grad = torch.randn(kernel_map.num_in, c_in), torch.randn(kernel_map.num_out, c_out)
        weight = torch.randn(kernel_map.table.shape[0], c_in, c_out)
        allowed = count * (8 << 20) + 4 * len(weight) * (c_in + 31) * (c_out + 31)
        native.scratch_peak()
        native.sparse_conv(features, weight, kernel_map)
        assert 4 * weight.numel() <= native.scratch_peak() <= allowed
        torch.ops.pcssl.sparse_conv_weight_grad(features, grad, kernel_map.table)
        assert 4 * weight.numel() <= native.scratch_peak() <= allowed


@pytest.mark.slow
def test_conv_writes_more_than_2_to_the_31_elements():
    rows = 2**25 + 8  # 8.6 GB for the result, and as much for the gradient
    table = torch.full((1, rows), -1, dtype=torch.int32)
    table[0, -1] = 0
    features, weight = torch.ones(1, 2, requires_grad=True), torch.randn(1, 2, 64)
    out = native.sparse_conv(features, weight, KernelMap(table, 1))
    assert not out[:8].any() and not out[rows // 2 : rows // 2 + 8].any()
    close(out[-1].detach(), weight[0].sum(0))
    # The way back: 2 ** 31 elements of features, of which one row has a gradient.
    back = KernelMap(torch.tensor([[rows - 1]], dtype=torch.int32), rows)
    del out
    features = torch.empty(rows, 64, requires_grad=True)
    native.sparse_conv(features, weight.transpose(1, 2), back).sum().backward()
    close(features.grad[-1], weight[0].sum(0))
    assert not features.grad[rows - 9 : -1].any()


def test_conv_refuses_what_does_not_fit():
    kernel_map = Geometry(random_coords(300, 6)).submanifold_map(3)
    features, weight = torch.randn(kernel_map.num_in, 4), torch.randn(27, 4, 6)
    with pytest.raises(ValueError, match="features are"):
        native.sparse_conv(features[1:], weight, kernel_map)
    with pytest.raises(ValueError, match="kernel offsets"):
        native.sparse_conv(features, weight[:8], kernel_map)
    with pytest.raises(ValueError, match="bias is"):
        native.sparse_conv(features, weight, kernel_map, torch.zeros(4))
    wrong = kernel_map.table + 5
    with pytest.raises(RuntimeError, match="names rows"):
        torch.ops.pcssl.sparse_conv(features, weight, None, wrong, None, False)
    with pytest.raises(RuntimeError, match="names rows"):
        torch.ops.pcssl.sparse_conv_weight_grad(features, features, wrong)


def test_conv_second_derivative_says_so():
    kernel_map = Geometry(random_coords(50, 4)).submanifold_map(1)
    features = torch.randn(kernel_map.num_in, 2, requires_grad=True)
    weight = torch.randn(1, 2, 2, requires_grad=True)
    first = torch.autograd.grad(native.sparse_conv(features, weight, kernel_map).square().sum(), weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        first[0].sum().backward()


def test_opcheck_conv():
    kernel_map = Geometry(random_coords(200, 5)).submanifold_map(3)
    down = Geometry(random_coords(200, 5)).down_map(2)
    features = torch.randn(kernel_map.num_in, 4, requires_grad=True)
    weight = torch.randn(6, 27, 4, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    torch.library.opcheck(
        torch.ops.pcssl.sparse_conv, (features, weight.permute(1, 2, 0), bias, kernel_map.table, None, False)
    )
    narrow = torch.randn(8, 4, 6, requires_grad=True)
    args = (torch.randn(down.num_in, 4, requires_grad=True), narrow, None, down.table, down.transposed.table, False)
    torch.library.opcheck(torch.ops.pcssl.sparse_conv, args)
    args = (features.detach(), torch.randn(kernel_map.num_out, 6), kernel_map.table)
    torch.library.opcheck(torch.ops.pcssl.sparse_conv_weight_grad, args)


def test_opcheck_neighbor_table():
    coords = random_coords(200, 5)
    keys, order = torch.sort(ops.pack_keys(coords))
    torch.library.opcheck(torch.ops.pcssl.neighbor_table, (coords, keys, order, 3, 1, 1))
    torch.library.opcheck(torch.ops.pcssl.bounds, (coords,))


# Voxels, curves, segments


def same_voxels(points: torch.Tensor, voxel_size: float, batch: torch.Tensor | None = None) -> None:
    got, want = native.voxelize(points, voxel_size, batch), ops.voxelize(points, voxel_size, batch)
    assert all(torch.equal(getattr(got, f), getattr(want, f)) for f in ("coords", "inverse", "counts"))


@pytest.mark.parametrize("voxel_size", [0.02, 0.1, 1 / 3])
def test_voxelize(cpu, voxel_size):
    g = torch.Generator().manual_seed(0)
    points, batch = torch.randn(5000, 3, generator=g) * 2, torch.randint(0, 5, (5000,), generator=g)
    # Some points lie on the faces of voxels, where rounding decides.
    points[:500] = (points[:500] / voxel_size).round() * voxel_size
    for scene in (batch, batch.int(), batch[:1].expand(5000), None):
        same_voxels(points, voxel_size, scene)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 129])
def test_voxelize_a_few_points(cpu, count):
    same_voxels(10 * torch.randn(count, 3), 0.3)


@pytest.mark.parametrize("extent", [1, 30, 500, 60000])
def test_voxelize_many_points(threads, extent):
    # Near and far apart: keys that are numbered without sorting, and sorted ones of up to 32 bits and of more.
    g = torch.Generator().manual_seed(0)
    points = (torch.rand(150_000, 3, generator=g) - 0.5) * extent
    batch = torch.randint(0, 3, (150_000,), generator=g)
    for count in (1, 3):
        threads(count)
        same_voxels(points, 0.5, batch)


def test_voxelize_edges():
    points = torch.tensor([[65535.5, -65536, 0], [65535.2, -65536, 0.5]])
    assert native.voxelize(points, 1).coords.tolist() == [[0, 65535, -65536, 0]]
    corners = torch.tensor(list(itertools.product((-65536.0, 65535.5), repeat=3)))
    same_voxels(corners.repeat(2, 1), 1, torch.tensor([0] * 8 + [4095] * 8))
    assert len(native.voxelize(points[:0], 1).coords) == 0
    for bad, message in (([float("nan")] * 3, "NaN"), ([0.0, 65536, 0], "outside"), ([1e30, 0, 0], "outside")):
        with pytest.raises(ValueError, match=message):
            native.voxelize(torch.tensor([bad, [0, 0, 0]]), 1)
    with pytest.raises(ValueError, match="batch index"):
        native.voxelize(points, 1, torch.tensor([0, 4096]))
    with pytest.raises(ValueError, match="positive"):
        native.voxelize(points, 0)


@pytest.mark.parametrize("curve", ops.CURVES)
@pytest.mark.parametrize("depth", [1, 7, 16])
def test_curve_codes(curve, depth):
    coords = random_coords(3001, min(1 << depth, 50000), scenes=9)
    assert torch.equal(native.curve_codes(coords, curve, depth), ops.curve_codes(coords, curve, depth))
    assert len(native.curve_codes(coords[:0], curve, depth)) == 0
    with pytest.raises(ValueError, match="curve coordinates"):
        native.curve_codes(coords - coords.amax(0), curve, depth)


def test_curve_codes_refuses_unknown_curves():
    with pytest.raises(ValueError, match="unknown curve"):
        native.curve_codes(random_coords(10, 4), "xyz_peano")


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 8, 13, 16, 32, 41, 200])
def test_segment_reduce(cpu, threads, reduce, channels):
    g = torch.Generator().manual_seed(0)
    # Rounded, so that some maxima are shared; not to 0, with which torch's own gradient shares a maximum of 0.
    values = torch.randn(900, channels, generator=g).mul(2).round() + 0.25
    inner = torch.randint(0, 901, (300,), generator=g).sort()[0]
    offsets = torch.cat([inner.new_zeros(2), inner, inner.new_full((2,), 900)])
    grad = torch.randn(len(offsets) - 1, channels, generator=g)
    want = reduce_with_gradient(ops, values.double(), offsets, reduce, grad)
    for count in (1, 3):
        threads(count)
        for got, exact in zip(reduce_with_gradient(native, values, offsets, reduce, grad), want):
            close(got, exact)
    assert native.segment_reduce(values[:0], offsets[:1], reduce).shape == (0, channels)


def reduce_with_gradient(engine, values, offsets, reduce, grad):
    x = values.clone().requires_grad_()
    out = engine.segment_reduce(x, offsets, reduce)
    out.backward(grad.to(x.dtype))
    return out.detach(), x.grad


@pytest.mark.parametrize("channels", [3, 40])
def test_the_maximum_of_what_is_not_a_number_is_not_a_number(cpu, channels):
    values = torch.zeros(5, channels)
    values[1, 0] = values[4, 2] = float("nan")
    got = native.segment_reduce(values, torch.tensor([0, 3, 5]), "max")
    assert torch.nonzero(got.isnan()).tolist() == [[0, 0], [1, 2]]


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_the_gradient_of_segments_larger_than_the_caches(cpu, threads, reduce):
    threads(2)
    offsets = torch.arange(0, 140_001, 2).clamp(max=70_001)  # empty ones in the end
    values = torch.randn(70_001, 64).requires_grad_()
    grad = torch.randn(len(offsets) - 1, 64)
    got, want = (
        torch.autograd.grad(engine.segment_reduce(values, offsets, reduce), values, grad)[0] for engine in (native, ops)
    )
    close(got, want)


def test_segments_of_no_channels():
    assert native.segment_reduce(torch.zeros(4, 0), torch.tensor([0, 1, 4])).shape == (2, 0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_segments_in_half_precision(dtype, reduce):
    values, offsets, grad = torch.randn(600, 7).to(dtype), torch.arange(0, 601, 30), torch.randn(20, 7).to(dtype)
    want = reduce_with_gradient(ops, values.double(), offsets, reduce, grad)
    for got, exact in zip(reduce_with_gradient(native, values, offsets, reduce, grad), want):
        close_after_rounding(got, exact, dtype)


def test_sums_and_means_of_segments_do_not_keep_their_values():
    values, offsets = torch.randn(100, 4, requires_grad=True), torch.arange(0, 101, 10)
    for reduce, kept in (("sum", False), ("mean", False), ("max", True)):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x) or x, lambda x: x):
            native.segment_reduce(values, offsets, reduce)
        assert any(x.untyped_storage().data_ptr() == values.untyped_storage().data_ptr() for x in saved) == kept


@pytest.mark.slow
def test_segments_of_more_than_2_to_the_31_elements():
    values = torch.empty(2**25 + 8, 64)  # not written, so it takes no room and reads as zeros
    values[-8:] = 1
    offsets = torch.arange(0, len(values) + 1, 8)
    for reduce, sum_of_ones in (("sum", 8), ("mean", 1), ("max", 1)):
        out = native.segment_reduce(values, offsets, reduce)
        assert (out[-1] == sum_of_ones).all() and float(out.sum()) == 64 * sum_of_ones


def test_segment_reduce_refuses():
    values = torch.zeros(4, 2)
    for offsets, message in (([0, 3], "rise from 0"), ([0, 3, 2, 4], "must not fall"), ([1, 4], "rise from 0")):
        with pytest.raises(ValueError, match=message):
            native.segment_reduce(values, torch.tensor(offsets))


# Points near other points


def two_views(seed=0, count=400, scenes=3):
    g = torch.Generator().manual_seed(seed)
    queries, points = (torch.rand(n, 3, generator=g) * 2 - 1 for n in (count, count + 50))
    # Copies: points at distance 0, and points that are equally near.
    points = torch.cat([points, queries[:50], queries[:50], points[:50]])
    batches = (torch.randint(scenes, (len(x),), generator=g) for x in (queries, points))
    return queries, next(batches), points, next(batches)


def all_equal(got, want) -> bool:
    return len(got) == len(want) and all(torch.equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize("radius", [0.01, 0.1, 0.4, 5.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_point_neighbors(threads, radius, count):
    threads(count)
    views = two_views()
    (got, distance), (want, exact) = (engine.nearest(*views, radius) for engine in (native, ops))
    assert torch.equal(got, want)
    torch.testing.assert_close(distance, exact)
    for k in (None, 1, 3):
        assert all_equal(native.radius_neighbors(*views, radius, k), ops.radius_neighbors(*views, radius, k))


def test_point_neighbors_of_two_views_of_a_room():
    points = torch.from_numpy(generate_room(0, 1).vertices)
    views = [native.voxelize(part, 0.08).mean(part) for part in (points[::2], points[1::2] + 0.01)]
    batch = [torch.zeros(len(view), dtype=torch.int32) for view in views]
    inputs = views[0], batch[0], views[1], batch[1], 0.16
    assert torch.equal(native.nearest(*inputs)[0], ops.nearest(*inputs)[0])
    found, all_of_them = native.radius_neighbors(*inputs)
    assert all_equal((found, all_of_them), ops.radius_neighbors(*inputs))
    counts = cKDTree(views[1].double().numpy()).query_ball_point(views[0].double().numpy(), 0.16, return_length=True)
    assert (torch.from_numpy(counts) != found.diff()).sum() <= 2  # at the radius itself rounding decides


def test_equally_near_points_are_in_the_order_of_their_rows():
    grid = torch.cartesian_prod(*[torch.arange(-2.0, 3)] * 3)
    grid = grid[torch.randperm(125)]
    zero = torch.zeros(125, dtype=torch.int64)
    for radius in (1.0, 2.0, 3.0):  # with points at the radius, which belong to it
        views = grid, zero, grid, zero, radius
        assert all_equal(native.radius_neighbors(*views), ops.radius_neighbors(*views))
        assert torch.equal(native.nearest(*views)[0], torch.arange(125))


def test_point_neighbors_at_the_edge_of_the_range():
    # Corners of the range: a step further would be another column, scene or number.
    edge = 65535.4 * 1.01
    corners = torch.tensor(list(itertools.product((-edge, edge), repeat=3)))
    points = torch.cat([corners, corners * 0.99999])
    batch = torch.tensor([0, 4095]).repeat_interleave(8).repeat(2)
    views = points.repeat(2, 1), batch, points.repeat(2, 1), batch, 1.0
    assert all_equal(native.radius_neighbors(*views), ops.radius_neighbors(*views))


def test_point_neighbors_among_nothing():
    queries, query_batch, points, point_batch = two_views()
    for q, p in ((0, 3), (3, 0), (0, 0)):
        views = queries[:q], query_batch[:q], points[:p], point_batch[:p], 0.1
        assert all_equal(native.nearest(*views), ops.nearest(*views))
        assert all_equal(native.radius_neighbors(*views), ops.radius_neighbors(*views))


# Interpolation


@pytest.mark.parametrize("mode", ["exact", "zero", "nearest", "msm"])
@pytest.mark.parametrize("low", [0, -9, KEY_RANGE[0], KEY_RANGE[1] - 8])
def test_interpolate(cpu, mode, low):
    coords = random_coords(700, 9, low=low)
    keys, order = torch.sort(ops.pack_keys(coords))
    g = torch.Generator().manual_seed(0)
    points, batch = low + torch.rand(900, 3, generator=g) * 12 - 1.5, torch.randint(0, 3, (900,), generator=g)
    # Within the edge of the range the reference looks at the nearest cell that has a key.
    points = points.clamp(KEY_RANGE[0] + 0.5, KEY_RANGE[1] + 0.5)
    features, grad = torch.randn(len(coords), 19, generator=g), torch.randn(900, 19, generator=g)
    results = []
    for function, dtype in ((native.interpolate, torch.float32), (ops.interpolate, torch.float64)):
        x = features.to(dtype).detach().requires_grad_()
        # Points stay float32: positions near 65,536 are rounded alike on both sides.
        out = function(x, coords, keys, order, points, batch, mode)
        out.backward(grad.to(dtype))
        results.append((out.detach(), x.grad))
    for got, want in zip(*results):
        close(got, want)


def test_interpolate_edges():
    coords = random_coords(50, 4, scenes=1)
    keys, order = torch.sort(ops.pack_keys(coords))
    features = torch.randn(len(coords), 3)
    far = torch.tensor([[1e9, 0, 0], [-1e9, 0, 0], [float("nan")] * 3, [1e30, 1e30, 1e30]])
    out = native.interpolate(features, coords, keys, order, far, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(out, torch.zeros(4, 3))
    none = torch.zeros(0, dtype=torch.int64)
    assert native.interpolate(features, coords, keys, order, far[:0], none).shape == (0, 3)
    assert torch.equal(
        native.interpolate(features[:0], coords[:0], keys[:0], order[:0], far, torch.zeros(4, dtype=torch.int64)),
        torch.zeros(4, 3),
    )
    with pytest.raises(ValueError, match="batch index"):
        native.interpolate(features, coords, keys, order, far, torch.full((4,), -1))
    with pytest.raises(ValueError, match="mode must be"):
        native.interpolate(features, coords, keys, order, far, torch.zeros(4, dtype=torch.int64), "cubic")


def test_interpolate_threads_give_the_same_bits(threads):
    geometry = Geometry(room_coords())
    points = geometry.coords[:, 1:] + torch.rand(len(geometry), 3)
    features, results = torch.randn(len(geometry), 33), []
    for count in (1, 2, 5):
        threads(count)
        x = features.clone().requires_grad_()
        with use_engine("native"):
            out = geometry.interpolate(x, points, geometry.batch.long())
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0]))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mode", ["exact", "zero", "nearest", "msm"])
def test_interpolate_in_half_precision(dtype, mode):
    coords = random_coords(300, 7)
    keys, order = torch.sort(ops.pack_keys(coords))
    points, batch = torch.rand(200, 3) * 7, torch.randint(0, 2, (200,))
    features, grad, results = torch.randn(len(coords), 5).to(dtype), torch.randn(200, 5).to(dtype), []
    for function, kind in ((native.interpolate, dtype), (ops.interpolate, torch.float64)):
        x = features.to(kind).detach().requires_grad_()
        out = function(x, coords, keys, order, points, batch, mode)
        out.backward(grad.to(kind))
        results.append((out.detach(), x.grad))
    for got, want in zip(*results):
        close_after_rounding(got, want, dtype)


def test_opcheck_others():
    native_ops, coords = torch.ops.pcssl, random_coords(200, 5)
    keys, order = torch.sort(ops.pack_keys(coords))
    points, batch = torch.rand(50, 3) * 5, torch.zeros(50, dtype=torch.int64)
    check = torch.library.opcheck
    check(native_ops.voxel_keys, (points, 0.5, batch))
    check(native_ops.voxel_keys, (points, 0.5, batch[:1].expand(50)))
    check(native_ops.unique_voxels, (keys,))
    check(native_ops.nearest, (points, batch, points + 0.1, batch, 0.5))
    check(native_ops.radius_neighbors, (points, batch, points + 0.1, batch, 0.5, 4))
    check(native_ops.curve_codes, (coords, True, True, 16))
    values, offsets = torch.randn(10, 3, requires_grad=True), torch.tensor([0, 4, 4, 10])
    for reduction in range(3):
        check(native_ops.segment_reduce, (values, offsets, reduction))
    check(native_ops.corner_weights, (points, batch, keys, order, 0))
    rows, weights = native_ops.corner_weights(points, batch, keys, order, 0)
    check(native_ops.weighted_rows, (torch.randn(len(coords), 3, requires_grad=True), rows, weights))
    check(native_ops.weighted_rows_grad, (torch.randn(50, 3), rows, weights, len(coords), False))


# The engine


def test_native_is_the_engine_that_auto_takes():
    from pcssl.sparse import current_engine
    from pcssl.sparse.engine import best_engine

    assert "native" in available_engines() and best_engine() == "native"
    assert current_engine().name == "native"


def test_unknown_instruction_set():
    with pytest.raises(ValueError, match="cannot be used here"):
        native.use_cpu("mmx")


def test_models_agree_with_the_reference():
    from pcssl.models.hunet import HUNet, HUNetConfig
    from pcssl.sparse import SparseTensor

    config = HUNetConfig(
        channels=(8, 12, 16), decoder_channels=(8, 12, 16), blocks=(1, 1, 1), decoder_blocks=(1, 1, 1),
        attention=(0, 0, 1), decoder_attention=(0, 0, 1), heads=(2, 2, 2), decoder_heads=(2, 2, 2), window=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = HUNet(config).eval()
    coords, features = room_coords(), torch.randn(len(room_coords()), 6)
    with torch.no_grad():
        with use_engine("native"):
            got = [level.features for level in model(SparseTensor.from_coords(features, coords))]
        with use_engine("reference"):
            want = [level.features for level in model(SparseTensor.from_coords(features, coords))]
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# Displacement


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_displace(count, threads):
    threads(2)
    g = torch.Generator().manual_seed(count)
    points, field, low = torch.rand(count, 3, generator=g) * 3 - 1, torch.randn(4, 2, 5, 3, generator=g), torch.rand(3)
    got = native.displace(points, field, low, 0.3)
    torch.testing.assert_close(got, ops.displace(points, field, low, 0.3), atol=1e-5, rtol=1e-5)
    torch.library.opcheck(torch.ops.pcssl.displace, (points, field, low, 0.3))


# Sums of rows that share an index


@pytest.mark.parametrize("channels", [0, 1, 3, 4, 9, 10])
def test_scatter_sum(channels):
    g = torch.Generator().manual_seed(channels)
    values, index = torch.randn(500, channels, generator=g), torch.randint(70, (500,), generator=g)
    assert torch.equal(native.scatter_sum(values, index, 80), ops.scatter_sum(values, index, 80))  # in the same order
    torch.library.opcheck(torch.ops.pcssl.scatter_sum, (values, index, 80))
    learnt = values.clone().requires_grad_()
    native.scatter_sum(learnt, index, 80).square().sum().backward()
    torch.testing.assert_close(learnt.grad, 2 * ops.scatter_sum(values, index, 80)[index])


@pytest.mark.parametrize("index", [[0, 5], [-1, 0], [2**40, 0]])
def test_scatter_sum_refuses_an_index_out_of_range(index):
    with pytest.raises(RuntimeError, match="index must be within 0 and 4"):
        native.scatter_sum(torch.ones(2, 3), torch.tensor(index), 5)
