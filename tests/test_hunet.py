"""HUNet against the released model's outputs, and what must hold of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pcssl.config import component
from pcssl.errors import UserError
from pcssl.models import HUNet, HUNetConfig
from pcssl.models.checkpoints.msm import hunet_config_from_released, released_state
from pcssl.models.hunet import RMSNorm
from pcssl.ops import KernelMap, kernel_offsets
from pcssl.sparse import Geometry, SparseTensor

DATA = Path(__file__).parent / "data"
SMALL = HUNetConfig(
    channels=(8, 16, 16), decoder_channels=(8, 16, 16), blocks=(1, 1, 1), decoder_blocks=(1, 1, 1),
    attention=(0, 1, 1), decoder_attention=(0, 1, 1), heads=(1, 2, 2), decoder_heads=(1, 2, 2), window=8, drop_path=0.0,
)


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "msm_hunet_tiny.npz") as file:
        return {k: file[k] for k in file.files}


@pytest.fixture(scope="module")
def released(golden):
    model = HUNet(hunet_config_from_released(json.loads(str(golden["config_json"])))).eval()
    model.load_state_dict({k[6:]: torch.from_numpy(v) for k, v in golden.items() if k.startswith("state/")})
    return model


def golden_input(golden):
    batch = np.searchsorted(golden["offset"], np.arange(len(golden["grid_coord"])), side="right")
    coords = torch.from_numpy(np.column_stack([batch, golden["grid_coord"]])).int()
    return SparseTensor.from_coords(torch.from_numpy(golden["feat"]), coords)


# The golden file deviates from its own weights in three places, each explained by one row that one
# gather of one layer read wrong (as a data race would): (layer, kernel offset, output voxel, input
# voxel it should have read, the one it read). With these three reads repeated, every other number of
# the file follows; the test would find a fourth. Voxels are [batch, x, y, z].
MISREAD = (
    ("resnet_dec.1.0.conv1", (-1, -1, 0), (0, 3, 2, 2), (0, 2, 1, 2), (0, 1, 3, 0)),
    ("resnet_dec.3.0.conv1", (0, -1, -1), (0, 0, 10, 1), (0, 0, 9, 0), (1, 0, 17, 10)),
    ("up.3.1", (0, 1, 0), (0, 0, 21, 0), (0, 0, 10, 0), (1, 0, 6, 4)),
)


class MisreadMap:
    """Stands for a geometry's map in one layer, with one input row replaced."""

    def __init__(self, layer, entry):
        self.layer, self.entry, self.original = layer, entry, layer._apply_map

    def __call__(self, features, kernel_map):
        offset, out, right, wrong = self.rows
        table = kernel_map.table.clone()
        assert table[offset, out] == right
        table[offset, out] = wrong
        return self.original(features, KernelMap(table, kernel_map.num_in))

    def locate(self, source: Geometry, target: Geometry):
        _, offset, out, right, wrong = self.entry
        offsets = kernel_offsets(self.layer.kernel)
        out = target.find(torch.tensor([out]))[0]
        self.rows = (offsets.index(offset), out, *source.find(torch.tensor([right, wrong])))


@pytest.fixture
def misreading(released, golden, monkeypatch):
    x = golden_input(golden)
    geometries = [x.geometry]
    for _ in range(4):
        geometries.append(geometries[-1].coarser()[0])
    for entry, (source, target) in zip(MISREAD, ((3, 3), (1, 1), (1, 0))):
        layer = released.get_submodule(entry[0])
        misread = MisreadMap(layer, entry)
        misread.locate(geometries[source], geometries[target])
        monkeypatch.setattr(layer, "_apply_map", misread)
    return x


def relative(a, b):
    return float((a - b).norm() / b.norm())


def test_equals_released_model_at_every_level(released, golden, misreading):
    with torch.no_grad():
        levels = released(misreading)
    for i, level in enumerate(levels):
        rows = level.geometry.find(torch.from_numpy(golden[f"level{i}/indices"]))
        assert (rows >= 0).all() and len(rows) == len(level.geometry)
        assert relative(level.features[rows], torch.from_numpy(golden[f"level{i}/features"])) < 1e-4


def test_equals_released_multi_resolution_features(released, golden, misreading):
    with torch.no_grad():
        levels = released(misreading)
    points = misreading.coords.repeat_interleave(2, 0)
    features = torch.cat(
        [x.geometry.interpolate(x.features, points[:, 1:] + 0.5, points[:, 0], "msm") for x in levels], 1
    )
    assert relative(features, torch.from_numpy(golden["multires"])) < 1e-4


def test_only_the_three_misread_rows_differ_without_repeating_them(released, golden):
    """Levels 4 and 2, computed from the file's own coarser level, have no misread row between them."""
    x = golden_input(golden)
    with torch.no_grad():
        levels = released(x)
    deepest = levels[4]
    rows = deepest.geometry.find(torch.from_numpy(golden["level4/indices"]))
    assert relative(deepest.features[rows], torch.from_numpy(golden["level4/features"])) < 1e-4
    for i in range(4):
        rows = levels[i].geometry.find(torch.from_numpy(golden[f"level{i}/indices"]))
        second = torch.from_numpy(golden[f"level{i}/indices"][:, 0]) == 1  # the misread outputs are in scene 0
        reference = torch.from_numpy(golden[f"level{i}/features"])
        assert relative(levels[i].features[rows][second], reference[second]) < 1e-4


def test_large_model_has_the_released_names_and_shapes():
    manifest = json.loads((DATA / "msm_hunet_large_manifest.json").read_text())
    with torch.device("meta"):
        model = HUNet(HUNetConfig())
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == manifest["tensors"]
    assert sum(p.numel() for p in model.parameters()) == manifest["parameters"] == 67_610_272
    assert hunet_config_from_released(manifest["config"]) == HUNetConfig()


def test_released_state_finds_the_student():
    x = torch.zeros(2)
    for key in ("state_dict", "model"):
        assert released_state({key: {"module.student.a.b": x, "module.teacher.a.b": x}}) == {"a.b": x}
    assert released_state({"state_dict": {"a": x}}) is None


def random_input(seed=0, scenes=2, extent=12, count=150):
    rng = torch.Generator().manual_seed(seed)
    coords = torch.cat(
        [torch.cat([torch.full((count, 1), b), torch.randint(0, extent, (count, 3), generator=rng)], 1) for b in range(scenes)]
    ).unique(dim=0)
    return SparseTensor.from_coords(torch.randn(len(coords), 6, generator=rng), coords.int())


def test_levels_have_the_promised_channels_and_strides():
    model = HUNet(SMALL).eval()
    levels = model(random_input())
    assert [x.features.shape[1] for x in levels] == list(model.channels)
    assert [x.stride for x in levels] == list(model.strides) == [1, 2, 4]


def test_eval_is_repeatable_and_training_shuffles_curves():
    torch.manual_seed(0)
    model, x = HUNet(SMALL), random_input()
    model.eval()
    assert torch.equal(model(x)[0].features, model(x)[0].features)
    model.train()
    outputs = {float(model(x)[0].features.detach().sum()) for _ in range(8)}
    assert len(outputs) > 1


def test_scenes_of_a_batch_do_not_see_each_other():
    model, x = HUNet(SMALL).eval(), random_input()
    first = x.batch == 0
    alone = model(SparseTensor.from_coords(x.features[first], x.coords[first]))
    together = model(x)
    for a, b in zip(alone, together):
        rows = b.geometry.find(a.coords)
        assert torch.allclose(a.features, b.features[rows], atol=1e-5)


def test_row_order_does_not_matter():
    model, x = HUNet(SMALL).eval(), random_input()
    order = torch.randperm(len(x.coords), generator=torch.Generator().manual_seed(1))
    shuffled = model(SparseTensor.from_coords(x.features[order], x.coords[order]))
    for a, b in zip(model(x), shuffled):
        assert torch.allclose(a.features, b.features[b.geometry.find(a.coords)], atol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_scene_of_one_or_two_voxels_works(count):
    coords = torch.tensor([[0, 0, 0, 0], [0, 5, 5, 5]])[:count].int()
    levels = HUNet(SMALL)(SparseTensor.from_coords(torch.randn(count, 6), coords))
    assert all(torch.isfinite(x.features).all() for x in levels)


def test_drop_path_leaves_out_whole_scenes_and_keeps_the_mean():
    from pcssl.models.hunet import Residual

    torch.manual_seed(0)
    block = Residual(4, drop=0.5).train()
    batch = torch.arange(2000).repeat_interleave(3)
    out = block(torch.zeros(6000, 4), torch.ones(6000, 4), batch).view(2000, -1)
    assert ((out == 0).all(1) | torch.isclose(out, torch.tensor(0.2)).all(1)).all()
    assert abs(float(out.detach().mean()) - 0.1) < 0.01


def test_bad_sizes_are_refused():
    with pytest.raises(UserError, match="decoder_channels must list 3 levels"):
        component("model", "hunet", channels=[8, 16, 32], decoder_channels=[8, 16])
    with pytest.raises(UserError, match="30 channels cannot be split over 4"):
        component("model", "hunet", channels=[8, 16, 32, 64, 30], heads=[1, 1, 1, 1, 4])


def test_rms_norm_and_its_gradients_are_those_of_the_formula():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    norm = RMSNorm(5).double()
    with torch.no_grad():
        norm.norm.scale.copy_(torch.randn(5, generator=rng, dtype=torch.float64))
    grad = torch.randn(7, 5, generator=rng, dtype=torch.float64)
    expected = x / (x.square().mean(1, keepdim=True).sqrt() + 1e-4) * norm.norm.scale
    wanted = torch.autograd.grad(expected, (x, norm.norm.scale), grad)
    out = norm(x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad(out, (x, norm.norm.scale), grad), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_of_zeros_and_of_no_rows_is_finite(dtype):
    norm = RMSNorm(4)
    x = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == dtype and x.grad.isfinite().all() and norm.norm.scale.grad.isfinite().all()
    assert norm(x[:0]).shape == (0, 4)
