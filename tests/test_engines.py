"""Every engine that is here against the plain-torch reference in float64: same layers, same state, same numbers."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_native import random_coords, room_coords

from pcssl import ops
from pcssl.cli import main
from pcssl.data import read_scene
from pcssl.errors import UserError
from pcssl.models.hunet import HUNet, HUNetConfig
from pcssl.ops.keys import KEY_RANGE
from pcssl.sparse import (
    Geometry,
    SparseConv,
    SparseConvTranspose,
    SparseTensor,
    SubmanifoldConv,
    current_engine,
    use_engine,
)
from pcssl.sparse import engine as engines

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["native", "reference", pytest.param("spconv", marks=pytest.mark.spconv)])
def engine(request):
    """The name of an engine, which runs the operators meanwhile."""
    if request.param != "reference" and (why := engines.why_missing(request.param)):
        pytest.skip(f"{request.param}: {why}; {engines.REMEDIES[request.param]}")
    with use_engine(request.param):
        yield request.param


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return request.param


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Within the tolerance of the largest magnitude."""
    assert got.shape == want.shape
    scale = max(float(want.abs().max()), 1e-30) if want.numel() else 1.0
    torch.testing.assert_close(got.double() / scale, want / scale, rtol=0, atol=tolerance)


# Layers. The weights' and features' values do not depend on engine, dtype and device.


LAYERS = {"submanifold": SubmanifoldConv, "strided": SparseConv, "transposed": SparseConvTranspose}
COORDS = {
    "random": lambda: random_coords(700, 9, low=-4),
    "few": lambda: random_coords(150, 5),
    "empty scene": lambda: random_coords(300, 6) * torch.tensor([2, 1, 1, 1], dtype=torch.int32),
    "nothing": lambda: random_coords(10, 4)[:0],
    "one voxel": lambda: random_coords(10, 4)[:1],
    "low edge": lambda: random_coords(300, 6, low=KEY_RANGE[0]),
    "high edge": lambda: random_coords(300, 6, low=KEY_RANGE[1] - 5),
    "room": room_coords,
}
MAPS = [
    *(("submanifold", kernel, dilation) for kernel in (1, 2, 3, 5) for dilation in (1, 2)),
    *((kind, kernel, dilation) for kind in ("strided", "transposed") for kernel, dilation in ((2, 1), (3, 1), (3, 2))),
]
EDGES = [("submanifold", 2, 1), ("submanifold", 3, 2), *((k, n, 1) for k in ("strided", "transposed") for n in (2, 3))]


def run(coords, kind, kernel, dilation, channels, dtype, device="cpu"):
    """Output and the gradients of input, weight and bias."""
    g = torch.Generator().manual_seed(0)
    fine = Geometry(coords.to(device))
    layer = LAYERS[kind](*channels, kernel, dilation).to(device, dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    geometry = fine.coarser()[0] if kind == "transposed" else fine
    x = SparseTensor(torch.randn(len(geometry), channels[0], generator=g).to(device, dtype).requires_grad_(), geometry)
    out = (layer(x, fine) if kind == "transposed" else layer(x)).features
    out.backward(torch.randn(out.shape, generator=g).to(out))
    return [t.cpu() for t in (out.detach(), x.features.grad, layer.weight.grad, layer.bias.grad)]


@functools.cache
def expected(name, *layer):
    with use_engine("reference"):
        return run(COORDS[name](), *layer, torch.float64)


def compare(device, name, *layer):
    for got, want in zip(run(COORDS[name](), *layer, torch.float32, device), expected(name, *layer)):
        close(got, want)


@pytest.mark.parametrize("kind,kernel,dilation", MAPS)
@pytest.mark.parametrize("name", ["random", "room"])
def test_layers_on_every_map(engine, device, name, kind, kernel, dilation):
    compare(device, name, kind, kernel, dilation, (5, 7))


@pytest.mark.parametrize("kind,kernel,dilation", EDGES)
@pytest.mark.parametrize("name", ["empty scene", "nothing", "one voxel", "low edge", "high edge"])
def test_layers_at_the_edges(engine, device, name, kind, kernel, dilation):
    compare(device, name, kind, kernel, dilation, (5, 7))


@pytest.mark.parametrize("kind,kernel", [("submanifold", 3), ("strided", 2), ("transposed", 2)])
@pytest.mark.parametrize("channels", [(1, 1), (1, 32), (3, 8), (8, 3), (17, 32), (64, 100), (130, 70), (512, 512)])
def test_layers_of_every_width(engine, device, channels, kind, kernel):
    compare(device, "few", kind, kernel, 1, channels)


def test_layers_on_a_real_scan(engine, device, real_scans):
    scene = read_scene(real_scans / "holo0000_00" / "holo0000_00_vh_clean_2.ply")
    coords = ops.voxelize(scene.coord, 0.06).coords
    for kind, kernel in (("submanifold", 3), ("submanifold", 5), ("strided", 2), ("transposed", 2)):
        with use_engine("reference"):
            wanted = run(coords, kind, kernel, 1, (6, 16), torch.float64)
        for got, want in zip(run(coords, kind, kernel, 1, (6, 16), torch.float32, device), wanted):
            close(got, want)


def test_a_map_is_walked_in_both_directions_without_a_geometry(engine):
    # Symmetric, but its middle offset is no identity: rows 0 and 1 read each other.
    middle = [1, 0, 2, -1]
    table = torch.tensor([[-1, 2, -1, 0], middle, [3, -1, 1, -1]], dtype=torch.int32)
    kernel_map = ops.KernelMap(table, 4, symmetric=True)
    assert torch.equal(kernel_map.transposed.table, ops.KernelMap(table, 4).transposed.table)
    g = torch.Generator().manual_seed(0)
    features, weight = torch.randn(4, 3, generator=g), torch.randn(3, 3, 2, generator=g)
    results = []
    for conv, dtype in ((current_engine().sparse_conv, torch.float32), (ops.sparse_conv, torch.float64)):
        inputs = [x.to(dtype).detach().requires_grad_() for x in (features, weight)]
        out = conv(*inputs, kernel_map)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), inputs)])
    for got, want in zip(*results):
        close(got, want)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_segments(engine, device, reduce):
    g = torch.Generator().manual_seed(0)
    values = torch.randn(600, 5, generator=g).mul(2).round() + 0.25  # some maxima are shared
    inner = torch.randint(0, 601, (99,), generator=g).sort()[0]
    offsets = torch.cat([inner.new_zeros(2), inner, inner.new_full((2,), 600)])
    grad = torch.randn(len(offsets) - 1, 5, generator=g)
    results = []
    for function, dtype in ((current_engine().segment_reduce, torch.float32), (ops.segment_reduce, torch.float64)):
        x = values.to(device, dtype, copy=True).requires_grad_()
        out = function(x, offsets.to(device), reduce)
        out.backward(grad.to(out))
        results.append((out.detach().cpu(), x.grad.cpu()))
    for got, want in zip(*results):
        close(got, want)
    with pytest.raises(ValueError, match="rise from 0"):
        current_engine().segment_reduce(values, offsets[:-2], reduce)


def test_a_state_dict_is_the_same_network_on_every_engine(engine, device):
    config = HUNetConfig(
        channels=(8, 12, 16), decoder_channels=(8, 12, 16), blocks=(1, 1, 1), decoder_blocks=(1, 1, 1),
        attention=(0, 0, 1), decoder_attention=(0, 0, 1), heads=(2, 2, 2), decoder_heads=(2, 2, 2), window=16,
    )  # fmt: skip
    torch.manual_seed(0)
    state = HUNet(config).state_dict()
    coords, features = COORDS["random"](), torch.randn(len(COORDS["random"]()), 6)
    results = []
    for name, dtype, where in ((engine, torch.float32, device), ("reference", torch.float64, "cpu")):
        model = HUNet(config).to(where, dtype).eval()
        model.load_state_dict(state)
        with use_engine(name):
            levels = model(SparseTensor.from_coords(features.to(where, dtype), coords.to(where)))
        sum(level.features.square().mean() for level in levels).backward()
        results.append([*(level.features.detach().cpu() for level in levels), *(p.grad.cpu() for p in model.parameters())])
    for got, want in zip(*results):
        close(got, want, 1e-4)  # many layers


def test_autocast(engine):
    layer, x = SubmanifoldConv(4, 6, 3), SparseTensor.from_coords(torch.randn(len(COORDS["few"]()), 4), COORDS["few"]())
    with torch.autocast("cpu", torch.bfloat16):
        if engine == "spconv":
            with pytest.raises(UserError, match="no bfloat16 on cpu; set precision=fp32"):
                layer(x)
            return
        out = layer(x).features
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.gpu
def test_autocast_in_half_precision(engine):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    x = SparseTensor.from_coords(torch.randn(len(COORDS["random"]()), 16).cuda(), COORDS["random"]().cuda())
    layer = SubmanifoldConv(16, 16, 3).cuda()
    with torch.autocast("cuda", torch.float16):
        out = layer(x).features
    assert out.dtype == torch.float16
    out.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), layer(x).features, atol=1e-2, rtol=1e-2)


# spconv's plans


@pytest.mark.spconv
def test_spconv_keeps_a_plan_as_long_as_its_map():
    pytest.importorskip("spconv")
    from pcssl.sparse import spconv

    geometry = Geometry(COORDS["few"]())
    plan = spconv._plan(geometry.submanifold_map(3))
    assert plan.centred and spconv._plan(geometry.submanifold_map(3)) is plan
    assert not spconv._plan(geometry.submanifold_map(2)).centred
    before = len(spconv._plans)
    del geometry
    assert len(spconv._plans) < before


@pytest.mark.spconv
@pytest.mark.parametrize("kind,kernel", [("submanifold", 3), ("strided", 2), ("transposed", 3)])
def test_spconv_tables_and_masks_of_the_gpu_say_the_same_as_the_pairs(kind, kernel):
    pytest.importorskip("spconv")
    from pcssl.sparse.spconv import _Masked

    fine = Geometry(COORDS["random"]())
    kernel_map = {"submanifold": fine.submanifold_map, "strided": fine.down_map, "transposed": fine.down_map}[kind](kernel)
    kernel_map = kernel_map.transposed if kind == "transposed" else kernel_map
    plan = _Masked.of(kernel_map)
    assert torch.equal(plan.back, ops.KernelMap(kernel_map.table, kernel_map.num_in).transposed.table)
    for table, (mask, order) in ((plan.table, plan.rows), (plan.back, plan.back_rows)):
        assert mask.dtype == order.dtype == torch.int32 and bool((mask.diff(dim=0) >= 0).all())
        assert torch.equal(order.long().sort()[0], torch.arange(table.shape[1]))
        bits = (mask >> torch.arange(len(table), dtype=torch.int32)) & 1
        assert torch.equal(bits.t().bool(), (table >= 0)[:, order.long()])


# The choice


def test_auto_is_native_then_reference_and_never_spconv(monkeypatch):
    known = {name: engines.Engine(name) for name in ("native", "reference", "spconv")}
    monkeypatch.setattr(engines, "_engines", known)
    assert engines.best_engine() == "native"
    with use_engine("auto") as chosen:
        assert chosen.name == "native"
    monkeypatch.delitem(known, "native")
    monkeypatch.setitem(engines._missing, "native", "it is not built")
    assert engines.best_engine() == "reference"


def test_an_engine_that_cannot_run_says_what_to_install(monkeypatch):
    monkeypatch.setattr(engines, "_engines", {"reference": engines.Engine("reference")})
    monkeypatch.setattr(engines, "_missing", {"native": "it is not built", "spconv": "No module named 'spconv'"})
    message = r"'spconv' cannot run here \(No module named 'spconv'\).*pip install spconv-cu12.*available: reference$"
    with pytest.raises(UserError, match=message), use_engine("spconv"):
        pass
    with pytest.raises(UserError, match=r"'native' cannot run here.*C\+\+20 compiler.*pip install"), use_engine("native"):
        pass


@pytest.mark.parametrize("command", [["train", "configs/msm_rooms.yaml"], ["benchmark", "conv"]])
def test_commands_refuse_an_unknown_engine_at_once(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = [f"output={tmp_path / 'run'}"] if command[0] == "train" else []
    assert main([*command, *run, "--engine", "nativ"]) == 2
    errors = capsys.readouterr().err
    assert "unknown engine 'nativ' (did you mean 'native'?); known: auto, native, reference, spconv" in errors
    assert errors.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_library_that_does_not_load_leaves_the_reference_and_is_told_once(tmp_path):
    (tmp_path / "pcssl_native.so").write_text("made for another torch")
    code = f"""
import pcssl
pcssl.__path__.insert(0, {str(tmp_path)!r})
from pcssl.sparse import current_engine
print(current_engine().name, current_engine().name)
from pcssl.cli import main
raise SystemExit(main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("reference reference\n")
    assert done.stderr.count("compiled operators cannot be used") == 1 == done.stderr.count("\n")
    assert "pcssl_native.so" in done.stderr and "C++20 compiler" in done.stderr and "pcssl doctor" in done.stderr
    assert "engine native     cannot run:" in done.stdout and "Could not load" in done.stdout and "auto takes        reference" in done.stdout
