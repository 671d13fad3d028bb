"""Point Transformer V3 against the outputs of Sonata's released encoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pcssl.models import PTv3, PTv3Config
from pcssl.sparse import Geometry, SparseTensor

DATA = Path(__file__).parent / "data"
SMALL = PTv3Config(in_channels=6, channels=(8, 16, 16), blocks=(1, 2, 1), heads=(1, 2, 2), patch=16, drop_path=0.0)

# The released code shuffles its curves anew at every pooling, in evaluation, too. These are the curves of
# each level's blocks in the golden run: the only ones of all permutations with which the level agrees.
GOLDEN_CURVES = (
    ["xyz_z-order"], ["yxz_hilbert"], ["yxz_z-order"], ["xyz_hilbert", "xyz_z-order"], ["xyz_z-order"],
)  # fmt: skip


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "sonata_ptv3_tiny.npz") as file:
        return {k: file[k] for k in file.files}


def config_from_released(released) -> PTv3Config:
    (patch,) = set(released["enc_patch_size"])
    return PTv3Config(
        in_channels=released["in_channels"], channels=tuple(released["enc_channels"]),
        blocks=tuple(released["enc_depths"]), heads=tuple(released["enc_num_head"]), patch=patch,
        shrink_patches=not released["enable_flash"], mlp_ratio=released["mlp_ratio"],
        drop_path=released["drop_path"], mask_token=released["mask_token"],
    )  # fmt: skip


def test_levels_agree_with_the_released_encoder(golden, monkeypatch):
    model = PTv3(config_from_released(json.loads(str(golden["config_json"])))).eval()
    model.load_state_dict({k[6:]: torch.from_numpy(v) for k, v in golden.items() if k.startswith("state/")})
    curves = iter(GOLDEN_CURVES)
    monkeypatch.setattr(model, "_curves", lambda: next(curves))
    batch = np.searchsorted(golden["offset"], np.arange(len(golden["grid_coord"])), side="right")
    coords = torch.from_numpy(np.column_stack([batch, golden["grid_coord"]])).int()
    with torch.no_grad():
        levels = model(SparseTensor.from_coords(torch.from_numpy(golden["feat"]), coords))
    for i, level in enumerate(levels):
        voxels = np.column_stack([golden[f"level{i}/batch"], golden[f"level{i}/grid_coord"]])
        rows = level.geometry.find(torch.from_numpy(voxels).int())
        assert len(rows) == len(level.geometry) and (rows >= 0).all()
        want = torch.from_numpy(golden[f"level{i}/features"])
        assert (level.features[rows] - want).abs().max() < 1e-5 * want.abs().max()


def test_names_and_shapes_are_those_of_the_released_base_model():
    manifest = json.loads((DATA / "sonata_base_manifest.json").read_text())
    with torch.device("meta"):
        model = PTv3(config_from_released(manifest["config"]))
    assert {name: list(x.shape) for name, x in model.state_dict().items()} == manifest["tensors"]
    assert sum(p.numel() for p in model.parameters()) == manifest["parameters"]


def scene(count=60, seed=0, scenes=1):
    g = torch.Generator().manual_seed(seed)
    axes = torch.unique(torch.randint(0, 12, (count, 3), generator=g), dim=0)
    coords = torch.cat([torch.randint(0, scenes, (len(axes), 1), generator=g), axes], 1).int()
    return SparseTensor.from_coords(torch.randn(len(axes), 6, generator=g), coords)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_reach_every_parameter(training):
    model = PTv3(SMALL).train(training)
    levels = model(scene(scenes=2))
    assert [level.features.shape[1] for level in levels] == list(model.channels)
    assert [level.stride for level in levels] == list(model.strides)
    sum(level.features.square().sum() for level in levels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_scene_does_not_depend_on_its_batch():
    model = PTv3(SMALL).eval()
    small, large = scene(20), scene(80, seed=1)
    moved = large.coords.clone()
    moved[:, 0] = 1
    both = SparseTensor.from_coords(
        torch.cat([small.features, large.features]), torch.cat([small.coords, moved])
    )
    with torch.no_grad():
        alone, together = model(small), model(both)
    for a, b in zip(alone, together):
        torch.testing.assert_close(b.features[b.batch == 0], a.features, atol=1e-5, rtol=1e-4)


def test_nothing_in_nothing_out():
    empty = SparseTensor(torch.zeros(0, 6), Geometry(torch.zeros(0, 4, dtype=torch.int32)))
    assert [len(level.geometry) for level in PTv3(SMALL).eval()(empty)] == [0, 0, 0]


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="attention heads"):
        PTv3Config(channels=(10, 20), blocks=(1, 1), heads=(3, 2))
