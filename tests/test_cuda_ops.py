"""The CUDA operators against the plain-torch reference in float64: on a GPU, and in the emulator everywhere."""

import functools
import itertools
import subprocess
import sys

import emulated
import pytest
import torch

from pcssl import ops
from pcssl.data.rooms import generate_room
from pcssl.ops.keys import KEY_RANGE
from pcssl.sparse import Geometry, engine, native, use_engine

TOLERANCE = 1e-5
HALVES = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # and their relative rounding


class Target:
    """Operators, and where the tensors lie that they take."""

    def __init__(self, namespace: str, device: str):
        self.namespace, self.device = namespace, device
        self.python = native.Operators(namespace, gpu=True)
        self.operators = self.python.operators

    def run(self, function, *args):
        """What the function, or the one of that name, gives for these inputs there; results on the CPU."""
        function = getattr(self.python, function) if isinstance(function, str) else function
        moved = [x.to(self.device) if isinstance(x, torch.Tensor) else x for x in args]
        result = function(*moved)
        return result.cpu() if isinstance(result, torch.Tensor) else tuple(x.cpu() for x in result)


@pytest.fixture(scope="session")
def emulator():
    emulated.library()
    return Target("pcssl_emulated", "cpu")


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def target(request):
    if request.param == "emulated":
        return request.getfixturevalue("emulator")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU that torch can use")
    if native.LIBRARY is None or not native.runs_on(torch.cuda.get_device_capability(), native.cuda_architectures()):
        pytest.skip("the operators are not built for this GPU: install nvcc and pcssl again")
    return Target("pcssl", "cuda")


def random_coords(count: int, extent: int, scenes: int = 2, low: int = 0, seed: int = 0) -> torch.Tensor:
    """Distinct voxels in random order."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.randint(low, low + extent, (count, 3), generator=g)
    batch = torch.randint(0, scenes, (count, 1), generator=g)
    coords = torch.unique(torch.cat([batch, axes], 1), dim=0).int()
    return coords[torch.randperm(len(coords), generator=g)]


@functools.cache
def room_points(count: int) -> torch.Tensor:
    points = torch.from_numpy(generate_room(0, 0).vertices)
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:count]]


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.shape == want.shape
    scale = max(float(want.abs().max()), 1e-30) if want.numel() else 1.0
    torch.testing.assert_close(got.double() / scale, want.double() / scale, rtol=0, atol=tolerance)


# Voxels


def test_bounds(target):
    coords = random_coords(3000, 50, scenes=9, low=-20)
    for part in (coords, coords[:1], -coords[:257]):
        got = target.run(target.operators.bounds, part)
        assert torch.equal(got, torch.stack(torch.aminmax(part, dim=0)).long())


@pytest.mark.parametrize("voxel_size", [0.02, 0.1, 1 / 3])
def test_voxelize(target, voxel_size):
    g = torch.Generator().manual_seed(0)
    points, batch = torch.randn(1500, 3, generator=g) * 2, torch.randint(0, 5, (1500,), generator=g)
    # Some points lie on the faces of voxels, where rounding decides.
    points[:500] = (points[:500] / voxel_size).round() * voxel_size
    for xyz, scene in ((points, batch), (points, None), (points[:1], None), (room_points(1500), None)):
        want = ops.voxelize(xyz, voxel_size, scene)
        got = target.run(lambda *args: vars(target.python.voxelize(*args)).values(), xyz, voxel_size, scene)
        assert all(torch.equal(a, b) for a, b in zip(got, vars(want).values()))


def test_voxelize_edges(target):
    def voxelize(points, size=1, batch=None):
        return target.run(lambda *args: vars(target.python.voxelize(*args)).values(), points, size, batch)[0]

    points = torch.tensor([[65535.5, -65536, 0], [65535.2, -65536, 0.5]])
    assert voxelize(points).tolist() == [[0, 65535, -65536, 0]]
    assert voxelize(points, batch=torch.tensor([4095, 0])).tolist() == [[0, 65535, -65536, 0], [4095, 65535, -65536, 0]]
    assert len(voxelize(points[:0])) == 0
    for bad, message in (([0, float("nan"), 0], "NaN"), ([0, 65536, 0], "outside"), ([1e30, 0, 0], "outside")):
        with pytest.raises(ValueError, match=message):
            voxelize(torch.tensor([bad, [0, 0, 0]], dtype=torch.float32))
    with pytest.raises(ValueError, match="batch index"):
        voxelize(points, batch=torch.tensor([0, 4096]))
    with pytest.raises(ValueError, match="positive"):
        voxelize(points, 0)


def test_unique_voxels_of_none(target):
    coords, inverse, counts = target.run(target.operators.unique_voxels, torch.zeros(0, dtype=torch.int64))
    assert coords.shape == (0, 4) and inverse.shape == counts.shape == (0,)


# Neighbour tables


@pytest.mark.parametrize("kernel,dilation", list(itertools.product((1, 2, 3, 4, 5), (1, 2))))
def test_neighbor_table(target, kernel, dilation):
    for low in (0, -13, KEY_RANGE[0], KEY_RANGE[1] - 7):
        coords = random_coords(260, 8, low=low)
        keys, order = torch.sort(ops.pack_keys(coords))
        halved = coords.clone()
        halved[:, 1:] = torch.div(coords[:, 1:], 2, rounding_mode="floor")
        halved = torch.unique(halved, dim=0)
        shuffled = halved[torch.randperm(len(halved))]
        for out, stride in ((coords, 1), (coords[::3], 1), (coords[:1], 1), (coords[:0], 1), (shuffled, 2)):
            got = target.run("neighbor_table", out, keys, order, kernel, stride, dilation)
            assert torch.equal(got, ops.neighbor_table(out, keys, order, kernel, stride, dilation))
    empty = target.run("neighbor_table", coords, keys[:0], order[:0], kernel, 1, dilation)
    assert torch.equal(empty, torch.full((kernel**3, len(coords)), -1, dtype=torch.int32))


def test_neighbor_table_of_as_many_other_voxels(target):
    coords = random_coords(300, 7)
    keys, order = torch.sort(ops.pack_keys(coords))
    for out in (coords.roll(1, 0), coords + torch.tensor([0, 1, 0, 0], dtype=torch.int32)):
        assert torch.equal(target.run("neighbor_table", out, keys, order, 3), ops.neighbor_table(out, keys, order, 3))


def test_neighbor_table_of_a_room(target):
    coords = ops.voxelize(room_points(1500), 0.15).coords
    keys, order = torch.sort(ops.pack_keys(coords))
    assert torch.equal(target.run("neighbor_table", coords, keys, order, 3), ops.neighbor_table(coords, keys, order, 3))


# Voxels of which one is at the end of an axis and the next in the order of keys at its start.
ENDS = torch.tensor([[0, 0, 0, KEY_RANGE[1]], [0, 0, 1, KEY_RANGE[0]], [0, 7, KEY_RANGE[1], 3], [0, 8, KEY_RANGE[0], 3],
                     [0, KEY_RANGE[1], 2, 3], [1, KEY_RANGE[0], 2, 3]], dtype=torch.int32)  # fmt: skip


def test_voxels_at_the_ends_of_axes_are_no_neighbours(target):
    keys, order = torch.sort(ops.pack_keys(ENDS))
    for kernel, dilation in ((2, 1), (3, 1), (3, 2)):
        for out in (ENDS, ENDS[::2]):
            got = target.run("neighbor_table", out, keys, order, kernel, 1, dilation)
            assert torch.equal(got, ops.neighbor_table(out, keys, order, kernel, 1, dilation))
            assert int((got >= 0).sum()) == len(out)


def test_outputs_out_of_range_have_the_neighbours_in_range(target):
    coords = torch.tensor([[0, KEY_RANGE[1], 0, 0], [0, 0, 0, KEY_RANGE[0]]], dtype=torch.int32)
    keys, order = torch.sort(ops.pack_keys(coords))
    far = 2**31 - 1
    out = [[0, KEY_RANGE[1] + 1, 0, 0], [0, 0, 0, KEY_RANGE[0] - 1], [4096, 0, 0, 0], [-1, 0, 0, 0], [4095, far, far, far]]
    got = target.run("neighbor_table", torch.tensor(out, dtype=torch.int32), keys, order, 3)
    found = {(tuple(ops.kernel_offsets(3)[k]), i): int(got[k, i]) for k, i in torch.nonzero(got >= 0).tolist()}
    assert found == {((-1, 0, 0), 0): 0, ((0, 0, 1), 1): 1}


# Curves


@pytest.mark.parametrize("curve", ops.CURVES)
@pytest.mark.parametrize("depth", [1, 7, 16])
def test_curve_codes(target, curve, depth):
    coords = random_coords(1001, min(1 << depth, 50000), scenes=9)
    assert torch.equal(target.run("curve_codes", coords, curve, depth), ops.curve_codes(coords, curve, depth))
    assert len(target.run("curve_codes", coords[:0], curve, depth)) == 0
    with pytest.raises(ValueError, match="curve coordinates"):
        target.run("curve_codes", coords - coords.amax(0), curve, depth)


# Segments


def random_offsets(rows: int, segments: int) -> torch.Tensor:
    inner = torch.randint(0, rows + 1, (segments,), generator=torch.Generator().manual_seed(0)).sort()[0]
    return torch.cat([inner.new_zeros(2), inner, inner.new_full((2,), rows)])


def all_segments(function, values, offsets, reduce, grad):
    x = values.detach().requires_grad_()
    out = function(x, offsets, reduce)
    out.backward(grad.to(out.dtype))
    return out.detach(), x.grad


def compare_segments(target, values, offsets, reduce, tolerance=TOLERANCE):
    grad = torch.randn(len(offsets) - 1, values.shape[1], generator=torch.Generator().manual_seed(1)).to(values.dtype)
    got = target.run(lambda *args: all_segments(target.python.segment_reduce, *args), values, offsets, reduce, grad)
    want = all_segments(ops.segment_reduce, values.double(), offsets, reduce, grad.double())
    for a, b in zip(got, want):
        assert a.dtype == values.dtype
        close(a, b, tolerance)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("channels", [1, 5, 32, 70])
@pytest.mark.parametrize("segments", [200, 3])  # a thread a segment, a block a segment
def test_segment_reduce(target, reduce, channels, segments):
    # Rounded, so that some maxima are shared; not to 0, with which torch's own gradient shares a maximum of 0.
    values = torch.randn(700, channels, generator=torch.Generator().manual_seed(0)).mul(2).round() + 0.25
    compare_segments(target, values, random_offsets(700, segments), reduce)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("dtype", HALVES)
def test_segment_reduce_of_halves_sums_in_float32(target, reduce, dtype):
    values = torch.randn(900, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    for segments in (300, 2):
        compare_segments(target, values, random_offsets(900, segments), reduce, 2 * HALVES[dtype])


def test_segment_reduce_edges(target):
    values = torch.tensor([[1.0, float("nan")], [-float("inf"), 2], [-float("inf"), 3]])
    offsets = torch.tensor([0, 1, 1, 3])
    for reduce in ("sum", "mean", "max"):
        want = ops.segment_reduce(values, offsets, reduce)
        torch.testing.assert_close(target.run("segment_reduce", values, offsets, reduce), want, equal_nan=True)
        assert target.run("segment_reduce", values[:0], offsets[:1], reduce).shape == (0, 2)
        assert target.run("segment_reduce", values[:, :0], offsets, reduce).shape == (3, 0)
    # Nothing but rows is read, whatever the offsets are.
    wild = torch.tensor([-(2**40), 1, 2**40, 0])
    assert torch.isfinite(target.run("segment_reduce", torch.ones(3, 2), wild, "sum")).all()
    with pytest.raises(ValueError, match="reduce must be"):
        target.run("segment_reduce", values, offsets, "median")


# Interpolation


def level(low: int = 0, count: int = 300, channels: int = 19):
    """Coords, keys, order and features of voxels; points in and around them with their scenes; a gradient."""
    coords = random_coords(count, 7, low=low)
    g = torch.Generator().manual_seed(0)
    points, batch = low + torch.rand(400, 3, generator=g) * 10 - 1.5, torch.randint(0, 3, (400,), generator=g)
    # Within the edge of the range the reference looks at the nearest cell that has a key.
    points = points.clamp(KEY_RANGE[0] + 0.5, KEY_RANGE[1] + 0.5)
    features = torch.randn(len(coords), channels, generator=g)
    return coords, *torch.sort(ops.pack_keys(coords)), features, points, batch, torch.randn(400, channels, generator=g)


def read_and_back(function, features, coords, keys, order, points, batch, mode, grad):
    x = features.detach().requires_grad_()
    out = function(x, coords, keys, order, points, batch, mode)
    out.backward(grad)
    return out.detach(), x.grad


@pytest.fixture(params=[False, True], ids=["atomic", "deterministic"])
def deterministic(request):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("mode", ["exact", "zero", "nearest", "msm"])
@pytest.mark.parametrize("low", [0, -9, KEY_RANGE[0], KEY_RANGE[1] - 6])
def test_interpolate(target, deterministic, mode, low):
    coords, keys, order, features, points, batch, grad = level(low)
    args = coords, keys, order, points, batch, mode
    got = target.run(lambda *a: read_and_back(target.python.interpolate, *a), features, *args, grad)
    # Points stay float32: positions near 65,536 are rounded alike on both sides.
    want = read_and_back(ops.interpolate, features.double(), *args, grad.double())
    for a, b in zip(got, want):
        close(a, b)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("channels", [1, 40])
def test_interpolate_halves(target, deterministic, dtype, channels):
    coords, keys, order, features, points, batch, grad = level(channels=channels)
    features, grad, args = features.to(dtype), grad.to(dtype), (coords, keys, order, points, batch, "exact")
    got = target.run(lambda *a: read_and_back(target.python.interpolate, *a), features, *args, grad)
    want = read_and_back(ops.interpolate, features.double(), *args, grad.double())
    for a, b in zip(got, want):
        assert a.dtype == dtype
        close(a, b, HALVES[dtype])


def test_interpolate_edges(target):
    coords, keys, order, features, _, _, _ = level()
    zeros = torch.zeros(4, dtype=torch.int64)
    far = torch.tensor([[1e9, 0, 0], [-1e9, 0, 0], [float("nan")] * 3, [1e30, 1e30, 1e30]])
    none = torch.zeros(4, features.shape[1])
    assert torch.equal(target.run("interpolate", features, coords, keys, order, far, zeros), none)
    within = torch.full((4, 3), 3.0)
    for scenes in ([-1, 4096, 2**40, 7], [-(2**40), -2, 9, 8]):
        got = target.run("interpolate", features, coords, keys, order, within, torch.tensor(scenes))
        assert torch.equal(got, none)
    assert target.run("interpolate", features, coords, keys, order, far[:0], zeros[:0]).shape == (0, features.shape[1])
    got = target.run("interpolate", features[:0], coords[:0], keys[:0], order[:0], far, zeros)
    assert torch.equal(got, none)
    keys, order = torch.sort(ops.pack_keys(ENDS))
    args = features[:6], ENDS, keys, order, ENDS[:, 1:] + 0.75, ENDS[:, 0].long(), "zero"
    close(target.run("interpolate", *args), ops.interpolate(*args))
    with pytest.raises(ValueError, match="mode must be"):
        target.run("interpolate", features, coords, keys, order, far, zeros, "cubic")


def test_rows_that_do_not_exist_are_left_out(target):
    rows, weights = torch.tensor([[-1, 5], [1, 2**31 - 1]], dtype=torch.int32), torch.ones(2, 2)
    assert target.run(target.operators.weighted_rows, torch.ones(5, 1), rows, weights).tolist() == [[0], [1]]
    for deterministic in (False, True):
        got = target.run(target.operators.weighted_rows_grad, torch.ones(2, 1), rows, weights, 5, deterministic)
        assert got.T.tolist() == [[0, 1, 0, 0, 0]]


def test_deterministic_gradients_have_the_same_bits(target):
    g = torch.Generator().manual_seed(0)
    rows, weights = torch.randint(0, 20, (500, 8), generator=g).int(), torch.rand(500, 8, generator=g)
    grad = torch.randn(500, 33, generator=g)
    first, second = (target.run(target.operators.weighted_rows_grad, grad, rows, weights, 20, True) for _ in range(2))
    assert torch.equal(first, second)


# Point neighbours


def scenes_of_points(count: int, seed: int, low: float = 0.0):
    g = torch.Generator().manual_seed(seed)
    return low + torch.rand(count, 3, generator=g) * 2, torch.randint(0, 3, (count,), generator=g)


@pytest.mark.parametrize("radius", [0.05, 0.3, 3.0])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_nearest(target, radius, low):
    queries, points = scenes_of_points(400, 0, low), scenes_of_points(500, 1, low)
    got, want = target.run("nearest", *queries, *points, radius), ops.nearest(*queries, *points, radius)
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=0)


def test_nearest_of_equally_near_points(target):
    # On a grid most queries have several nearest points.
    grid = torch.cartesian_prod(*[torch.arange(5.0)] * 3)
    points = torch.cat([grid, grid])[torch.randperm(250, generator=torch.Generator().manual_seed(0))]
    queries, zeros = grid + 0.5, torch.zeros(250, dtype=torch.int64)
    got, want = (f(queries, zeros[:125], points, zeros, 1.0) for f in (target_nearest(target), ops.nearest))
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def target_nearest(target):
    return functools.partial(target.run, "nearest")


def target_near(target):
    return functools.partial(target.run, "radius_neighbors")


def test_distances_to_the_nearest_can_be_learnt(target):
    (queries, batch), points = scenes_of_points(50, 0), scenes_of_points(60, 1)
    queries = queries.to(target.device).requires_grad_()
    target.run("nearest", queries, batch, *points, 3.0)[1].sum().backward()
    torch.testing.assert_close(queries.grad.norm(dim=1).cpu(), torch.ones(50))


def test_nearest_edges(target):
    points, scene = torch.tensor([[0.0, 0, 0], [float("nan"), 0, 0], [1e30, 0, 0]]), torch.zeros(3, dtype=torch.int64)

    def nearest(queries, batch=None, points=points, scene=scene, radius=1.0):
        queries = torch.tensor(queries, dtype=torch.float32).view(-1, 3)
        batch = torch.zeros(len(queries), dtype=torch.int64) if batch is None else torch.tensor(batch)
        return target.run("nearest", queries, batch, points, scene, radius)[0].tolist()

    assert nearest([]) == [] and nearest([[0, 0, 0]], points=points[:0], scene=scene[:0]) == [-1]
    assert nearest([[0, 0, 1], [0, 0, 1.01], [float("nan"), 0, 0]]) == [0, -1, -1]  # at the radius is within it
    # Beyond the range of cells and of scenes.
    assert nearest([[1e30, 0, 0], [1e29, 0, 0], [-1e30, 0, 0]]) == [2, -1, -1]
    assert nearest([[0, 0, 0]] * 3, [-1, 4096, 4095]) == [-1] * 3
    assert nearest([[0, 0, 0]], [4096], scene=scene + 4096) == [-1]
    assert nearest([[0.4, 0, 0]], scene=scene - 1) == [-1]
    with pytest.raises(ValueError, match="radius must be positive"):
        nearest([[0, 0, 0]], radius=0)


def within(queries, query_batch, points, point_batch, radius, k=None):
    """Offsets and indices by looking at all pairs."""
    found = []
    for query, scene in zip(queries, query_batch):
        x, y, z = (query - points).unbind(1)
        squared = (x * x + y * y + z * z).masked_fill(point_batch != scene, float("inf"))
        order = torch.argsort(squared, stable=True)
        found.append(order[squared[order] <= torch.tensor(radius) ** 2][:k])
    counts = torch.tensor([0, *map(len, found)])
    return counts.cumsum(0), torch.cat(found)


@pytest.mark.parametrize("radius,k", [(0.05, None), (0.4, None), (0.4, 3)])
def test_radius_neighbors(target, radius, k):
    queries, points = scenes_of_points(200, 0, -1.0), scenes_of_points(700, 1, -1.0)
    want = within(*queries, *points, radius, k)
    assert all(map(torch.equal, ops.radius_neighbors(*queries, *points, radius, k), want))
    assert all(map(torch.equal, target.run("radius_neighbors", *queries, *points, radius, k), want))


def test_points_at_the_radius_are_not_two_cells_away(target):
    # With cells as wide as the radius, the query is in cell 1 and the point in cell -1.
    query, point, zero = torch.tensor([[0.1, 0, 0]]), torch.tensor([[-1e-12, 0, 0]]), torch.zeros(1, dtype=torch.int64)
    for nearest, near in ((ops.nearest, ops.radius_neighbors), (target_nearest(target), target_near(target))):
        assert nearest(query, zero, point, zero, 0.1)[0].tolist() == [0]
        assert near(query, zero, point, zero, 0.1)[1].tolist() == [0]


def test_radius_neighbors_edges(target):
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    points, zeros = torch.cat([grid, grid]), torch.zeros(128, dtype=torch.int64)
    want = within(grid, zeros[:64], points, zeros, 1.0)
    for function in (ops.radius_neighbors, target_near(target)):
        assert all(map(torch.equal, function(grid, zeros[:64], points, zeros, 1.0), want))
        for queried, count in ((0, 128), (64, 0), (0, 0)):
            offsets, index = function(grid[:queried], zeros[:queried], points[:count], zeros[:count], 1.0)
            assert offsets.tolist() == [0] * (queried + 1) and index.shape == (0,)
        for wrong, message in (((-1.0,), "radius must be positive"), ((1.0, 0), "k must be positive")):
            with pytest.raises(ValueError, match=message):
                function(grid, zeros[:64], points, zeros, *wrong)


# The operators as torch sees them


def test_opcheck(target):
    def check(name, *args):
        moved = [x.to(target.device) if isinstance(x, torch.Tensor) else x for x in args]
        moved = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x for x in moved]
        torch.library.opcheck(getattr(target.operators, name), tuple(moved))

    coords, keys, order, features, points, batch, _ = level(count=60, channels=3)
    points, batch = points[:40], batch[:40]
    check("bounds", coords)
    check("voxel_keys", points, 0.5, batch)
    check("unique_voxels", keys)
    check("neighbor_table", coords, keys, order, 3, 1, 1)
    check("curve_codes", coords, True, True, 16)
    check("corner_weights", points, batch, keys, order, 0)
    values, offsets = torch.randn(10, 3, requires_grad=True), torch.tensor([0, 4, 4, 10])
    for reduction in (1, 2):
        check("segment_reduce", values, offsets, reduction)
    check("segment_reduce_grad", torch.randn(3, 3), values.detach(), torch.randn(3, 3), offsets, 2)
    rows, weights = target.run(target.operators.corner_weights, points, batch, keys, order, 0)
    check("weighted_rows", features.requires_grad_(), rows, weights)
    check("weighted_rows", features.detach().half().requires_grad_(), rows, weights)
    check("weighted_rows_grad", torch.randn(40, 3), rows, weights, len(coords), True)
    check("nearest", points, batch, points, batch, 0.5)
    check("radius_neighbors", points, batch, points, batch, 0.5, 3)


def test_operators_refuse_what_they_cannot_read(target):
    call, on = target.operators, {"device": target.device}
    coords = random_coords(20, 3).to(target.device)
    keys, order = torch.sort(ops.pack_keys(coords))
    values, offsets = torch.ones(4, 2, **on), torch.tensor([0, 4], **on)
    rows, weights = torch.zeros(3, 8, dtype=torch.int32, **on), torch.ones(3, 8, **on)
    points, batch = torch.ones(3, 3, **on), torch.zeros(3, dtype=torch.int64, **on)
    for message, function, *args in (
        ("coords has the wrong dtype", call.bounds, coords.long()),
        ("coords must have 2 axes", call.bounds, coords[0]),
        ("coords must be .N, 4.", call.bounds, coords[:, :3].contiguous()),
        ("coords is not contiguous", call.bounds, torch.cat([coords, coords], 1)[:, :4]),
        ("multiple of 16 bytes", call.bounds, coords.flatten()[1:-3].view(-1, 4)),
        ("N > 0", call.bounds, coords[:0]),
        ("batch .N,.", call.voxel_keys, points, 1.0, batch[:2]),
        ("keys has the wrong dtype", call.unique_voxels, keys.int()),
        ("differ in length", call.neighbor_table, coords, keys, order[1:], 3, 1, 1),
        ("bad kernel", call.neighbor_table, coords, keys, order, 0, 1, 1),
        ("values must be float32, bfloat16 or float16", call.segment_reduce, values.double(), offsets, 0),
        ("unknown reduction", call.segment_reduce, values, offsets, 3),
        ("one entry more", call.segment_reduce, values, offsets[:0], 0),
        ("differ in dtype", call.segment_reduce_grad, values[:1], values.half(), values[:1], offsets, 0),
        ("a row for each segment", call.segment_reduce_grad, values, values, values, offsets, 0),
        ("batch .P,.", call.corner_weights, points, batch[:2], keys, order, 0),
        ("differ in shape", call.weighted_rows, values, rows, weights[:2]),
        ("differ in shape", call.weighted_rows_grad, values, rows, weights, 4, False),
        ("query_batch .Q,.", call.nearest, points, batch[:2], points, batch, 1.0),
        ("radius must be positive", call.nearest, points, batch, points, batch, -1.0),
    ):
        with pytest.raises(RuntimeError, match=message):
            function(*args)


@pytest.mark.gpu
def test_operators_refuse_tensors_on_several_devices():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU that torch can use")
    coords = random_coords(20, 3)
    keys, order = torch.sort(ops.pack_keys(coords))
    with pytest.raises(RuntimeError, match="sorted_keys is not on a GPU"):
        native.neighbor_table(coords.cuda(), keys, order, 3)
    with pytest.raises(RuntimeError, match="features is not on a GPU"):
        rows = torch.zeros(3, 8, dtype=torch.int32).cuda()
        torch.ops.pcssl.weighted_rows(torch.ones(3, 2), rows, torch.ones(3, 8).cuda())


# The engine


def gradients(model, features, coords, points):
    """Levels, what they read at points, and the gradients of the weights."""
    from pcssl.sparse import SparseTensor

    model.zero_grad()
    levels = model(SparseTensor.from_coords(features, coords))
    batch = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    read = torch.cat([x.geometry.interpolate(x.features, points, batch) for x in levels], 1)
    (read.square().mean() + sum(x.features.square().mean() for x in levels)).backward()
    return [read.detach(), *(x.features.detach() for x in levels), *(p.grad for p in model.parameters())]


def test_a_model_and_its_gradients_agree_with_the_reference(target, monkeypatch):
    from pcssl.models.hunet import HUNet, HUNetConfig

    config = HUNetConfig(
        channels=(8, 12, 16), decoder_channels=(8, 12, 16), blocks=(1, 1, 1), decoder_blocks=(1, 1, 1),
        attention=(0, 0, 1), decoder_attention=(0, 0, 1), heads=(2, 2, 2), decoder_heads=(2, 2, 2), window=16,
    )  # fmt: skip
    monkeypatch.setitem(engine._engines, "tested", target.python.engine("tested"))
    torch.manual_seed(0)
    model, points = HUNet(config).to(target.device).eval(), room_points(1500)
    with use_engine("tested") as tested:
        coords = tested.voxelize(points.to(target.device), 0.15).coords
        features = torch.randn(len(coords), 6, device=target.device)
        got = gradients(model, features, coords, points.to(target.device) / 0.15)
    with use_engine("reference"):
        want = gradients(model.cpu(), features.cpu(), coords.cpu(), points / 0.15)
    for a, b in zip(got, want):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_which_gpus_run_what_was_built():
    built = [80, 86, 90, 120]
    assert all(native.runs_on(gpu, built) for gpu in ((8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1), (13, 0)))
    assert not any(native.runs_on(gpu, built) for gpu in ((7, 5), (10, 0), (11, 0)))
    assert native.runs_on((8, 9), [80]) and not native.runs_on((8, 0), [86])
    assert not native.runs_on((9, 0), [])


def test_a_gpu_that_nothing_was_built_for_is_named_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Old GPU")
    monkeypatch.setattr(native, "cuda_architectures", lambda: [80, 86])
    native._built_for_gpu.cache_clear()
    assert not native._built_for_gpu(0) and not native._built_for_gpu(0)
    native._built_for_gpu.cache_clear()
    said = capsys.readouterr().err
    assert said.count("Old GPU") == 1 and "8.0, 8.6" in said and said.count("\n") == 1


def test_a_library_that_does_not_load_leaves_the_reference(tmp_path):
    (tmp_path / "pcssl_native.so").write_text("not a library")
    code = f"""
import pcssl
pcssl.__path__.insert(0, {str(tmp_path)!r})
from pcssl.sparse import available_engines, native
print(native.LIBRARY, available_engines(), native.LOAD_ERROR)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("None ['reference'] ") and "cannot be used" in out and str(tmp_path) in out


@pytest.mark.gpu
def test_the_engine_takes_tensors_on_a_gpu_and_on_the_cpu(target):
    if target.device == "cpu":
        pytest.skip("the emulator is not an engine of its own")
    coords = random_coords(300, 6)
    with use_engine("native"):
        tables = [Geometry(coords.to(device)).submanifold_map(3).table for device in ("cpu", "cuda")]
    assert tables[1].is_cuda and torch.equal(tables[0], tables[1].cpu())
