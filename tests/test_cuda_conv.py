"""The GPU's convolution, in the emulator and on a GPU, against the plain-torch reference in float64."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import emulated
import pytest
import torch
from torch import Tensor

from pcssl import ops
from pcssl.data.rooms import generate_room
from pcssl.ops.sparse_conv import KernelMap
from pcssl.sparse import Geometry, SparseConv, SubmanifoldConv, implicit_gemm, native, use_engine
from pcssl.sparse.tensor import SparseTensor

H100 = (227 << 10, 228 << 10, 132)  # shared memory of a block and of a multiprocessor in bytes, multiprocessors
LARGE_TILES = (227 << 10, 228 << 10, 1)  # one multiprocessor: any problem fills it, so tiles are the largest
SMALL_MEMORY = (99 << 10, 100 << 10, 128)  # architectures 86, 89 and 120

EXACT = 1e-5  # what float32 sums may be off, relative to the largest number of a result

# How features are kept and multiplied: dtype, whether TF32 is on, what one rounding of a result may be off.
PRODUCTS = {
    "exact": (torch.float32, False, 0.0),
    "tf32": (torch.float32, True, 0.0),
    "bf16": (torch.bfloat16, False, 2**-8),
    "fp16": (torch.float16, False, 2**-11),
}


@dataclass
class Place:
    """Where the operators run. error: as EXACT, of sums on the tensor cores."""

    device: str
    operators: object
    error: float

    def conv(self, features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None = None) -> Tensor:
        return implicit_gemm.sparse_conv(features, weight, kernel_map, bias, self.operators)


@functools.cache
def emulator_place() -> Place:
    return Place("cpu", emulated.library(), EXACT)


@functools.cache
def symbols() -> ctypes.CDLL:
    emulator_place()
    return ctypes.CDLL(str(emulated.BINARY))


@pytest.fixture
def emulator():
    place = emulator_place()
    yield place
    symbols().pcssl_emulator_device(*H100)
    symbols().pcssl_emulator_seed(7)


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    if native.LIBRARY is None or not torch._C._dispatch_has_kernel_for_dispatch_key("pcssl::implicit_gemm", "CUDA"):
        pytest.skip("the CUDA kernels are not built: install nvcc and pcssl again")
    # The tensor cores cut off bits where they add, the emulator rounds.
    return Place("cuda", torch.ops.pcssl, 2e-5)


@pytest.fixture(params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def precision():
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def random_geometry(count: int, extent: int, device: str = "cpu", low: int = 0) -> Geometry:
    """Distinct voxels of two scenes in random order."""
    g = torch.Generator().manual_seed(count)
    axes = torch.randint(low, low + extent, (count, 3), generator=g)
    coords = torch.unique(torch.cat([torch.randint(0, 2, (count, 1), generator=g), axes], 1), dim=0).int()
    return Geometry(coords[torch.randperm(len(coords), generator=g)].to(device))


def room_geometry(voxel_size: float, device: str = "cpu") -> Geometry:
    return Geometry(ops.voxelize(torch.from_numpy(generate_room(0, 0).vertices), voxel_size).coords.to(device))


def rounded(x: Tensor, product: str) -> Tensor:
    """As the product sees x, in float64: the nearest number, ties to even, in TF32 away from zero."""
    if product == "tf32":
        return ((x.float().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()
    return x.to(PRODUCTS[product][0]).double()


def gradients(conv, features: Tensor, weight: Tensor, kernel_map: KernelMap, bias: Tensor | None, grad: Tensor):
    inputs = [x.detach().requires_grad_() for x in (features, weight, bias) if x is not None]
    out = conv(inputs[0], inputs[1], kernel_map, *inputs[2:])
    out.backward(grad)
    return [out.detach(), *(x.grad for x in inputs)]


def close(got: Tensor, want: Tensor, error: float, rounding: float) -> None:
    assert got.shape == want.shape and bool(got.isfinite().all())
    scale = float(want.abs().max()) if want.numel() else 1.0
    torch.testing.assert_close(got.double().cpu(), want, rtol=rounding, atol=error * max(scale, 1e-30))


def compare(
    place: Place, kernel_map: KernelMap, c_in: int, c_out: int, product: str = "bf16", bias: bool = True
) -> None:
    """Result and all gradients, of the same numbers in the same rounding."""
    dtype, tf32, rounding = PRODUCTS[product]
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    g = torch.Generator().manual_seed(1000 * c_in + c_out)
    offsets = kernel_map.table.shape[0]
    features = torch.randn(kernel_map.num_in, c_in, generator=g).to(dtype)
    # The layout that layers have: (out, K, in), seen as (K, in, out).
    weight = torch.randn(c_out, offsets, c_in, generator=g).permute(1, 2, 0)
    grad = torch.randn(kernel_map.num_out, c_out, generator=g).to(dtype)
    start = torch.linspace(-1, 1, c_out) if bias else None
    got = gradients(
        place.conv, *(x.to(place.device) for x in (features, weight)), kernel_map,
        start if start is None else start.to(place.device), grad.to(place.device),
    )  # fmt: skip
    assert [x.dtype for x in got] == [dtype, dtype] + [torch.float32] * (len(got) - 2)

    plain = KernelMap(kernel_map.table.cpu(), kernel_map.num_in)
    # Only products round: the bias and its gradient see the numbers as they are.
    want = gradients(
        ops.sparse_conv, rounded(features, product), rounded(weight, product), plain, None, rounded(grad, product)
    )
    if bias:
        want[0] = want[0] + start.double()
        want.append(grad.double().sum(0))
    error = EXACT if product == "exact" else place.error
    for x, y, off in zip(got, want, (rounding, rounding, 0.0, 0.0)):
        close(x, y, error, off)


def all_maps(geometry: Geometry, kernel: int, dilation: int) -> list[KernelMap]:
    down = geometry.down_map(kernel, dilation)
    return [geometry.submanifold_map(kernel, dilation), down, down.transposed]


# Agreement with the reference


CHANNELS = [(1, 1), (3, 8), (17, 32), (32, 32), (64, 96), (100, 64), (130, 70)]


@pytest.mark.parametrize("c_in,c_out", CHANNELS)
def test_channels(place, c_in, c_out):
    compare(place, random_geometry(100, 5, place.device).submanifold_map(3), c_in, c_out)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("c_in,c_out", [(5, 3), (24, 40)])
def test_products(place, product, c_in, c_out):
    compare(place, random_geometry(150, 5, place.device).submanifold_map(3), c_in, c_out, product)


@pytest.mark.slow
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("c_in,c_out", [*CHANNELS, (256, 256), (512, 24), (24, 512)])
def test_channels_of_all_products(place, product, c_in, c_out):
    geometry = random_geometry(300, 7, place.device)
    compare(place, geometry.submanifold_map(3), c_in, c_out, product)
    compare(place, geometry.down_map(2), c_in, c_out, product)


@pytest.mark.parametrize("kernel,dilation", [(1, 1), (2, 1), (3, 1), (3, 2), (5, 1), (2, 2)])
def test_kernels(place, kernel, dilation):
    for kernel_map in all_maps(random_geometry(150, 6, place.device, low=-3), kernel, dilation):
        compare(place, kernel_map, 8, 16, bias=False)


@pytest.mark.slow
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("kernel,dilation", [(1, 1), (2, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
def test_kernels_of_all_products(place, kernel, dilation, product):
    for kernel_map in all_maps(random_geometry(1000, 9, place.device), kernel, dilation):
        compare(place, kernel_map, 12, 40, product)


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_and_one_voxel(place, rows):
    geometry = Geometry(random_geometry(50, 4).coords[:rows].to(place.device))
    for kernel_map in all_maps(geometry, 3, 1):
        compare(place, kernel_map, 5, 7)


def test_a_table_without_pairs(place):
    table = torch.full((8, 40), -1, dtype=torch.int32, device=place.device)
    compare(place, KernelMap(table, 30), 6, 4)
    compare(place, KernelMap(table, 0), 6, 4)


def test_many_rows(place):
    """Several runs of the weight's gradient, whose sums are added, and rings of pairs that go round."""
    geometry = random_geometry(7000, 16, place.device)
    compare(place, geometry.down_map(2).transposed, 8, 8)
    compare(place, geometry.submanifold_map(1), 8, 8)


@pytest.mark.slow
def test_a_room(place):
    geometry = room_geometry(0.1, place.device)
    compare(place, geometry.submanifold_map(3), 32, 32)
    for kernel_map in all_maps(geometry, 2, 1)[1:]:
        compare(place, kernel_map, 32, 48)


@pytest.mark.gpu
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("c", [32, 96, 384])
def test_a_large_room(gpu, product, c):
    compare(gpu, room_geometry(0.03, gpu.device).submanifold_map(3), c, c, product)


@pytest.mark.parametrize("product", ["exact", "tf32", "bf16"])
@pytest.mark.parametrize("device,c", [(LARGE_TILES, 64), (LARGE_TILES, 96), (LARGE_TILES, 128), (SMALL_MEMORY, 33)])
def test_tiles(emulator, device, c, product):
    """Every size of tile, and no two rows of a matrix load in one bank of shared memory."""
    symbols().pcssl_emulator_device(*device)
    turns, conflicts = ctypes.c_int64(), ctypes.c_int64()
    symbols().pcssl_emulator_matrix_loads(ctypes.byref(turns), ctypes.byref(conflicts))
    compare(emulator, random_geometry(160, 6).down_map(2), 16, c, product)
    symbols().pcssl_emulator_matrix_loads(ctypes.byref(turns), ctypes.byref(conflicts))
    assert (turns.value > 0) == (product != "exact") and conflicts.value == 0


# What goes in and what comes out


def test_strided_and_unaligned_inputs(place):
    kernel_map = random_geometry(80, 4, place.device).submanifold_map(3)
    n = kernel_map.num_in
    weight = torch.randn(8, 16, 27).permute(2, 1, 0).to(place.device)
    columns = torch.randn(16, n, device=place.device).t()
    unaligned = torch.randn(n * 16 + 1, device=place.device)[1:].view(n, 16)
    for features in (columns, unaligned):
        got = place.conv(features, weight, kernel_map)
        want = ops.sparse_conv(features.double().cpu(), weight.double().cpu(), KernelMap(kernel_map.table.cpu(), n))
        close(got, want, EXACT, 0)


def test_autocast_decides_the_dtype(place):
    kernel_map = random_geometry(80, 4, place.device).submanifold_map(3)
    features = torch.randn(kernel_map.num_in, 8, device=place.device, requires_grad=True)
    weight = torch.randn(27, 8, 16, device=place.device, requires_grad=True)
    bias = torch.randn(16, device=place.device, requires_grad=True)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(place.device, dtype):
            got = place.conv(features, weight, kernel_map, bias)
        assert got.dtype == dtype
        assert torch.equal(got, place.conv(features.to(dtype), weight, kernel_map, bias))
        got.float().sum().backward()
        assert features.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32
    low = weight.detach().half().requires_grad_()
    place.conv(features, low, kernel_map).sum().backward()
    assert low.grad.dtype == torch.float16
    wide = features.detach().double()
    assert torch.equal(place.conv(wide, weight, kernel_map), ops.sparse_conv(wide, weight, kernel_map))


def test_the_weight_gradient_does_not_round_its_sums(place):
    # 257 times 256 is no bfloat16, and more than float16 has.
    for dtype in (torch.bfloat16, torch.float16):
        table = torch.arange(257, dtype=torch.int32, device=place.device)[None]
        weight = torch.zeros(1, 1, 1, device=place.device, requires_grad=True)
        out = place.conv(torch.full((257, 1), 16, dtype=dtype, device=place.device), weight, KernelMap(table, 257))
        out.backward(torch.full_like(out, 16))
        assert float(weight.grad) == 257 * 256


def test_tf32_is_as_torch_says(place):
    kernel_map = random_geometry(60, 4, place.device).submanifold_map(3)
    features = torch.randn(kernel_map.num_in, 8, device=place.device)
    weight = torch.randn(27, 8, 16, device=place.device)
    results = []
    for setting in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = setting
        results.append(place.conv(features, weight, kernel_map))
    torch.set_float32_matmul_precision("high")
    results.append(place.conv(features, weight, kernel_map))
    torch.set_float32_matmul_precision("highest")
    results.append(place.conv(features, weight, kernel_map))
    assert not torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2]) and torch.equal(results[0], results[3])


def test_what_does_not_fit_is_refused(place):
    kernel_map = random_geometry(60, 4, place.device).submanifold_map(3)
    features = torch.randn(kernel_map.num_in, 4, device=place.device)
    weight = torch.randn(27, 4, 6, device=place.device)
    with pytest.raises(ValueError, match="features are"):
        place.conv(features[1:], weight, kernel_map)
    with pytest.raises(ValueError, match="kernel offsets"):
        place.conv(features, weight[:8], kernel_map)
    other = implicit_gemm.plan(random_geometry(400, 6, place.device).submanifold_map(3), place.operators)
    with pytest.raises(RuntimeError, match="plan is of other rows"):
        table, rows, masks = implicit_gemm.plan(kernel_map, place.operators)
        place.operators.implicit_gemm(features, weight, None, [table, other[1], other[2]], [], False, False)
    with pytest.raises(RuntimeError, match="grad has"):
        place.operators.implicit_gemm_weight_grad(features, features[1:], kernel_map.table, False)


def test_second_derivative_says_so(place):
    kernel_map = random_geometry(50, 4, place.device).submanifold_map(1)
    features = torch.randn(kernel_map.num_in, 2, device=place.device, requires_grad=True)
    weight = torch.randn(1, 2, 2, device=place.device, requires_grad=True)
    out = place.conv(features, weight, kernel_map)
    first = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        first[0].sum().backward()


# The plan


def test_plan_sorts_the_rows(place):
    for kernel, rows in ((3, 700), (5, 300), (1, 40), (3, 0)):
        kernel_map = Geometry(random_geometry(900, 9).coords[:rows].to(place.device)).submanifold_map(kernel)
        table, rows_of, masks = (x.cpu() for x in implicit_gemm.plan(kernel_map, place.operators))
        offsets, n = table.shape
        order, padded = rows_of[-1].long(), (n + 127) // 128 * 128
        assert rows_of.shape == (offsets + 1, padded) and torch.equal(order[:n].sort().values, torch.arange(n))
        assert torch.equal(rows_of[:-1, :n], table[:, order[:n]]) and bool((rows_of[:, n:] == -1).all())
        has = (rows_of[:-1] >= 0).view(offsets, padded // 32, 32).any(2)
        bits = torch.stack([masks[:, k // 32] >> (k % 32) & 1 for k in range(offsets)])
        assert torch.equal(bits.bool(), has)


def test_plan_keeps_stretches_of_rows_together(place):
    rows = (1 << 17) + 1000
    table = torch.where(torch.arange(rows) % 3 == 0, -1, 0).int()[None].to(place.device)
    order = implicit_gemm.plan(KernelMap(table, 1), place.operators)[1][-1, :rows].cpu()
    assert int(order[: 1 << 17].max()) < 1 << 17
    absent = (order % 3 == 0).int()
    assert int(absent[: 1 << 17].diff().abs().sum()) == int(absent[1 << 17 :].diff().abs().sum()) == 1


def test_plan_leaves_fewer_products(place):
    """Offsets that the tiles of 128 rows of a scan walk, beside those of rows sorted by their masks as numbers."""
    kernel_map = room_geometry(0.07, place.device).submanifold_map(3)
    table, rows, _ = (x.cpu() for x in implicit_gemm.plan(kernel_map, place.operators))
    masks = ((table >= 0).long() << torch.arange(27)[:, None]).sum(0)
    whole = kernel_map.num_out // 128 * 128
    plain, walked = (
        int((x[:27, :whole] >= 0).view(27, -1, 128).any(2).sum()) for x in (table[:, torch.argsort(masks)], rows)
    )
    assert walked < 0.98 * plain


def test_plans_are_made_once(place):
    geometry = random_geometry(80, 5, place.device)
    kernel_map = geometry.down_map(2)
    weight, features = torch.randn(8, 4, 4, device=place.device), torch.randn(len(geometry), 4, device=place.device)
    out = place.conv(features, weight, kernel_map)
    assert kernel_map._transposed is None  # no gradient is wanted
    plan = kernel_map.plan
    place.conv(features.requires_grad_(), weight, kernel_map)
    back = kernel_map.transposed.plan
    place.conv(out.detach().requires_grad_(), weight, kernel_map.transposed)
    assert kernel_map.plan is plan and kernel_map.transposed.plan is back


# Determinism


def same_bits(place: Place, product: str, prepare) -> None:
    dtype, tf32, _ = PRODUCTS[product]
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    g = torch.Generator().manual_seed(0)
    size = (9000, 17) if place.device == "cpu" else (400_000, 90)
    for down in (False, True):
        geometry = random_geometry(size[0] if down else size[0] // 15, size[1], place.device)
        kernel_map = geometry.down_map(2).transposed if down else geometry.submanifold_map(3)
        features = torch.randn(kernel_map.num_in, 9, generator=g).to(place.device, dtype)
        weight = torch.randn(kernel_map.table.shape[0], 9, 16, generator=g).to(place.device)
        grad = torch.randn(kernel_map.num_out, 16, generator=g).to(place.device, dtype)
        results = []
        for run in range(3):
            prepare(run)
            kernel_map.plan = None
            results.append(gradients(place.conv, features, weight, kernel_map, None, grad))
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.parametrize("product", ["bf16", *(pytest.param(p, marks=pytest.mark.slow) for p in ("tf32", "exact"))])
def test_results_are_the_same_bits_in_every_run(place, product):
    """In the emulator also in every order of threads."""
    same_bits(place, product, lambda run: symbols().pcssl_emulator_seed(run) if place.device == "cpu" else None)


@pytest.mark.gpu
def test_streams(gpu):
    kernel_map = room_geometry(0.05, gpu.device).submanifold_map(3)
    features = torch.randn(kernel_map.num_in, 64, device=gpu.device, dtype=torch.bfloat16)
    weight = torch.randn(27, 64, 64, device=gpu.device)
    want = gpu.conv(features, weight, kernel_map)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # what ran on another stream would be done before the copy below
        late = features * 2
        got = gpu.conv(late, weight, kernel_map)
    torch.cuda.synchronize()
    close(got, 2 * want.double().cpu(), gpu.error, 2**-8)


@pytest.mark.gpu
def test_every_gpu(gpu):
    for index in range(torch.cuda.device_count()):
        compare(Place(f"cuda:{index}", gpu.operators, gpu.error),
                random_geometry(300, 7, f"cuda:{index}").submanifold_map(3), 24, 40)  # fmt: skip


@pytest.mark.gpu
def test_layers_use_the_kernels(gpu):
    geometry = random_geometry(300, 7, gpu.device)
    x = SparseTensor(torch.randn(len(geometry), 6, device=gpu.device), geometry)
    layers = torch.nn.Sequential(SubmanifoldConv(6, 32, 3), SparseConv(32, 48, 2)).to(gpu.device)
    results = {}
    for engine in ("native", "reference"):
        with use_engine(engine), torch.autocast("cuda", torch.bfloat16), torch.no_grad():
            results[engine] = layers(x).features
    assert geometry.submanifold_map(3).plan is not None
    close(results["native"], results["reference"].double().cpu(), 1e-2, 2**-6)


# torch.library


def test_opcheck(place):
    kernel_map = random_geometry(60, 4, place.device).down_map(2)
    features = torch.randn(kernel_map.num_in, 4, device=place.device, requires_grad=True)
    weight = torch.randn(8, 4, 6, device=place.device, requires_grad=True)
    bias = torch.randn(6, device=place.device, requires_grad=True)
    plan, back = (implicit_gemm.plan(m, place.operators) for m in (kernel_map, kernel_map.transposed))
    torch.library.opcheck(place.operators.implicit_gemm, (features, weight, bias, plan, back, False, False))
    grad = torch.randn(kernel_map.num_out, 6, device=place.device)
    args = (features.detach(), grad, kernel_map.table, False)
    torch.library.opcheck(place.operators.implicit_gemm_weight_grad, args)
    torch.library.opcheck(place.operators.conv_keys, (kernel_map.table,))
    order = torch.randperm(kernel_map.num_out, device=place.device)
    torch.library.opcheck(place.operators.conv_rows, (kernel_map.table, order))


def test_compiled(place):
    kernel_map = random_geometry(100, 5, place.device).submanifold_map(3)
    weight = torch.randn(27, 4, 6, device=place.device)
    plan = implicit_gemm.plan(kernel_map, place.operators)

    def step(features: Tensor) -> Tensor:
        return place.operators.implicit_gemm(features.relu(), weight, None, plan, [], False, False).sum(1)

    features = torch.randn(kernel_map.num_in, 4, device=place.device)
    assert torch.equal(torch.compile(step, backend="aot_eager", fullgraph=True)(features), step(features))
