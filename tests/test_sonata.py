"""Files in the format of the released Sonata, Concerto and Utonia weights, and features from them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_checkpoints import hub  # noqa: F401
from test_evaluation import Source
from test_msm import room

from pcssl.cli import main
from pcssl.data import write_ply
from pcssl.data.inputs import INPUTS
from pcssl.data.views import Points, voxel_view
from pcssl.errors import UserError
from pcssl.evaluation import ProbeConfig, load_model, probe
from pcssl.models import PTv3, PTv3Config
from pcssl.models.checkpoints.known import KNOWN, card_license
from pcssl.models.ptv3 import Attention
from pcssl.ops import pack_keys
from pcssl.ops.keys import KEY_RANGE
from pcssl.sparse import Geometry, SparseTensor, use_engine

DATA = Path(__file__).parent / "data"

# The keys and types of the released files, small.
CONFIG = {
    "in_channels": 9, "order": ("z", "z-trans", "hilbert", "hilbert-trans"), "stride": (2, 2), "enc_depths": (1, 2, 1),
    "enc_channels": (12, 24, 48), "enc_num_head": (1, 2, 4), "enc_patch_size": (64, 64, 64), "mlp_ratio": 4,
    "qkv_bias": True, "qk_scale": None, "attn_drop": 0.0, "proj_drop": 0.0, "drop_path": 0.3, "shuffle_orders": True,
    "pre_norm": True, "enable_rpe": False, "enable_flash": True, "upcast_attention": False, "upcast_softmax": False,
    "traceable": True, "enc_mode": True, "mask_token": True,
}  # fmt: skip
OURS = {"channels": (12, 24, 48), "blocks": (1, 2, 1), "heads": (1, 2, 4), "patch": 64, "mask_token": True}
ROPE = {"rope_base": 10, "shift_coords": None, "jitter_coords": 1.1, "rescale_coords": 1.2}


def encoder(**options) -> PTv3:
    torch.manual_seed(0)
    return PTv3(PTv3Config(**OURS, **options)).eval()


def release(path: Path, model: PTv3 | None = None, state=(), drop=(), **config) -> Path:
    """Write a file as they are released, some of it changed."""
    tensors = {**(model or encoder()).state_dict(), **dict(state)}
    kept = {k: v for k, v in (CONFIG | config).items() if k not in drop}
    torch.save({"config": kept, "state_dict": {k: v for k, v in tensors.items() if k not in drop}}, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_model(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("rope", [False, True])
def test_what_is_written_is_read(tmp_path, rope):
    model = encoder(**{"rope_base": 10.0} if rope else {})
    found = load_model(release(tmp_path / "x.pth", model, **(ROPE if rope else {})))
    assert found.backbone.config == model.config and found.voxel_size == 0.02
    coords = torch.unique(torch.randint(0, 9, (200, 3)), dim=0)
    x = SparseTensor.from_coords(torch.randn(len(coords), 9), torch.nn.functional.pad(coords, (1, 0)).int())
    with torch.no_grad():
        for ours, theirs in zip(found.backbone(x), model(x), strict=True):
            assert torch.equal(ours.features, theirs.features)


def test_safetensors_with_the_config_beside_them_are_read(tmp_path):
    model = encoder()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = load_model(tmp_path).backbone
    assert found.config == model.config
    assert all(torch.equal(x, found.state_dict()[k]) for k, x in model.state_dict().items())


def test_tensors_of_the_released_code_are_read(tmp_path):
    with np.load(DATA / "sonata_ptv3_tiny.npz") as file:
        state = {k[6:]: torch.from_numpy(file[k]) for k in file.files if k.startswith("state/")}
        config = json.loads(str(file["config_json"]))
    torch.save({"config": config, "state_dict": state}, tmp_path / "x.pth")
    found = load_model(tmp_path / "x.pth").backbone.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


# Tensors and parameters that are published of the released files, and the channels of a probe on all levels.
PUBLISHED = {
    "sonata": (((48, 96, 192, 384, 512), (3, 3, 3, 12, 3), (3, 6, 12, 24, 32), {}), 453, 108.46, 1232),
    "sonata_small": (((32, 64, 128, 256, 512), (2, 2, 2, 6, 2), (2, 4, 8, 16, 32), {}), 273, 38.65, 992),
    "concerto_large": (((64, 128, 256, 512, 768), (3, 3, 3, 12, 3), (4, 8, 16, 32, 48), {}), None, 207.67, 1728),
    "utonia": (((54, 108, 216, 432, 576), (3, 3, 3, 12, 3), (3, 6, 12, 24, 32), ROPE), None, 137.25, 1386),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_released_models(name, tmp_path):
    from pcssl.models.checkpoints import sonata

    (channels, depths, heads, more), tensors, millions, width = PUBLISHED[name]
    config = CONFIG | {"enc_channels": channels, "enc_depths": depths, "enc_num_head": heads, "stride": (2,) * 4}
    config |= {"enc_patch_size": (1024,) * 5, **more}
    content = {"config": config, "state_dict": {sonata.STEM: torch.zeros(())}}
    assert sonata.matches(content, tmp_path) and name in KNOWN
    with torch.device("meta"):
        model = sonata.read(content, tmp_path).model.build()
    assert tensors is None or len(model.state_dict()) == tensors
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert sum(model.channels) == width


@pytest.mark.parametrize(
    "change, said",
    [
        ({"order": ("z", "z-trans")}, "order ('z', 'z-trans') is not supported"),
        ({"in_channels": 6}, "in_channels 6 is not supported, 9 is"),
        ({"stride": (2, 4)}, "stride (2, 4)"),
        ({"stride": 3}, "stride 3"),
        ({"enc_patch_size": (64, 64, 32)}, "enc_patch_size (64, 64, 32)"),
        ({"enc_mode": False}, "enc_mode False"),
        ({"layer_scale": 1e-5}, "layer_scale 1e-05"),
        ({"enable_rpe": True, "pre_norm": False}, "pre_norm False is not supported, True is; enable_rpe True"),
        ({"group_size": 4}, "group_size 4 is not known"),
        ({"enc_depths": torch.ones(3)}, "enc_depths holds a Tensor"),
        ({"enc_channels": "wide"}, "channels"),
        ({"enc_num_head": (1, 5, 4)}, "24 channels cannot be split over 5"),
        ({"enc_num_head": (1, 2, 4, 8)}, "the same number of levels"),
        ({"rope_base": 10, "enc_num_head": (3, 3, 3)}, "rope_base needs heads of 6"),
        ({"drop": ("enc_mode", "order")}, "order is missing; enc_mode is missing"),
    ],
)
def test_what_the_encoder_does_not_have_is_refused_by_name(tmp_path, change, said):
    assert said in refusal(release(tmp_path / "x.pth", **change))


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    bias, weight = "enc.enc0.block0.attn.proj.bias", "enc.enc1.down.proj.weight"
    message = refusal(release(tmp_path / "x.pth", state={"extra": torch.ones(1), weight: torch.ones(3, 3)}, drop=(bias,)))
    assert f"missing: {bias}" in message and "unexpected: extra" in message
    assert f"wrong shape: {weight} (3, 3) instead of (24, 12)" in message
    assert "extra of its state_dict are no tensors" in refusal(release(tmp_path / "y.pth", state={"extra": 3}))


def test_other_files_of_these_releases_are_refused_with_what_they_are(tmp_path):
    path = tmp_path / "x.pth"
    head = {"backbone_out_channels": 84, "num_classes": 20}
    torch.save({"config": head, "state_dict": {"seg_head.weight": torch.ones(20, 84)}}, path)
    assert "linear probe's head" in refusal(path)
    state = {f"module.student.backbone.{k}": v for k, v in encoder().state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, path)
    assert "of a training run" in refusal(path)
    torch.save({"state_dict": encoder().state_dict()}, path)
    assert "no `config`" in refusal(path)
    torch.save({"state_dict": {0: torch.ones(1)}}, path)
    assert "neither a pcssl checkpoint nor released" in refusal(path)


class Settings(dict):
    """A config of a type that is not read."""


@pytest.mark.parametrize("value, name", [(Settings(a=1), "Settings"), (np.float64(0.3), "numpy")])
def test_a_config_that_is_a_python_object_is_refused_with_its_type(tmp_path, value, name):
    message = refusal(release(tmp_path / "x.pth", drop_path=value))
    assert name in message and "never executed" in message


def test_names_are_found_on_the_hub_and_their_licence_is_said_once(hub, capsys):  # noqa: F811
    folder = hub.root / "facebook" / "sonata"
    folder.mkdir(parents=True)
    release(folder / "sonata.pth")
    release(folder / "sonata_small.pth")
    model = load_model("sonata_small")
    assert model.card["license"] == "CC-BY-NC-4.0" and "Wu et al." in model.card["paper"]
    assert hub.downloaded == ["sonata_small.pth"] and "licence CC-BY-NC-4.0" in capsys.readouterr().err
    assert load_model("hf://facebook/sonata/sonata.pth").card["license"] == "CC-BY-NC-4.0"
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags: [points]\n---\n# Sonata\n")
    assert load_model("facebook/sonata").card["license"] == "cc-by-nc-4.0"
    assert hub.downloaded[2:] == ["sonata.pth", "README.md"]  # of several files the one called like the repository
    assert load_model("facebook/sonata").card["license"] == "cc-by-nc-4.0"
    assert capsys.readouterr().err.splitlines()[1:] == ["facebook/sonata: the weights have the licence cc-by-nc-4.0"]
    assert load_model(folder / "sonata.pth").card["license"] == "cc-by-nc-4.0"


def test_an_exported_model_is_the_same(tmp_path, capsys):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    path = release(tmp_path / "x.pth")
    assert main(["export", str(path), "--out", str(tmp_path / "out")]) == 0
    found, want = load_model(tmp_path / "out"), load_model(path)
    assert (found.inputs, found.mode, found.voxel_size, found.card) == (want.inputs, want.mode, 0.02, want.card)
    scene = room(n=100)
    assert torch.equal(found.extract(scene).features, want.extract(scene).features)


def test_a_file_without_a_card_says_no_licence(tmp_path, capsys):
    assert "license" not in load_model(release(tmp_path / "sonata.pth")).card
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text, license",
    [
        ("---\nlicense: other\nlicense_name: house-rules\n---\n", "house-rules"),
        ("# Title\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\ntags: x\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_cards(tmp_path, text, license):
    (tmp_path / "README.md").write_text(text)
    assert card_license(tmp_path / "README.md") == license
    assert card_license(tmp_path / "none.md") is None


def up_cast(levels: list[SparseTensor], times: int) -> torch.Tensor:
    """As the released code: the last level's features joined to those of the finer one, `times` times, then copied down."""
    features = levels[-1].features
    for step, level in enumerate(reversed(levels[:-1])):
        coarse, parent = level.geometry.coarser()
        assert torch.equal(pack_keys(coarse.coords), pack_keys(levels[-1 - step].coords))
        features = torch.cat([level.features, features[parent]], 1) if step < times else features[parent]
    return features


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_features_of_points_are_those_of_the_released_up_cast(tmp_path, engine):
    found = load_model(release(tmp_path / "x.pth"))
    scene = room(n=1500)
    scene.coord = (scene.coord / 0.01).round() * 0.01  # many points on the borders of voxels
    with use_engine(engine), torch.no_grad():
        view = voxel_view(Points.from_scene(scene), 0.02)
        low, high = scene.coord.amin(0), scene.coord.amax(0)
        zero = torch.tensor([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        inputs = torch.cat([view.origin - zero, (view.features[:, :3] + 1) / 2, view.features[:, 3:]], 1)
        coords = torch.nn.functional.pad(view.index, (1, 0))
        levels = found.backbone(SparseTensor.from_coords(inputs, coords))
        all_levels, two = found.extract(scene).features, found.extract(scene, levels=(1, 2)).features
    assert all_levels.shape[1] == 12 + 24 + 48
    torch.testing.assert_close(all_levels, up_cast(levels, 2)[view.inverse], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(two, up_cast(levels, 1)[view.inverse], atol=1e-5, rtol=1e-4)


def test_a_probe_on_released_weights(tmp_path):
    settings = ProbeConfig(heads=("linear",), train_points=100, epochs=1, seeds=1, floors=False)
    found = probe(load_model(release(tmp_path / "x.pth")), Source(), settings, report=lambda line: None)["results"]
    assert found["trained"]["linear"]["miou"]["mean"] > 0.9  # labels that the normals tell


def test_the_command_writes_features_with_released_weights(tmp_path, capsys):
    write_ply(tmp_path / "room.ply", room(n=500))
    arguments = ["extract", str(tmp_path / "room.ply"), "--model", str(release(tmp_path / "x.pth")), "--device", "cpu"]
    assert main([*arguments, "--levels", "1,2", "--out", str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as file:
        assert file["features"].shape == (500, 24 + 48) and np.isfinite(file["features"]).all()


def test_places_without_a_voxel_read_as_nothing():
    level = SparseTensor.from_coords(torch.ones(2, 3), torch.tensor([[0, 1, 1, 1], [0, KEY_RANGE[1], 1, 1]]))
    points = torch.tensor([[1.0, 1.5, 1.9], [2.0, 1.5, 1.5], [1e9, 1.5, 1.5], [-1e9, 0.0, 0.0]])
    found = level.geometry.interpolate(level.features, points, torch.zeros(4, dtype=torch.int64), "voxel")
    assert found[:, 0].tolist() == [1, 0, 0, 0]


def test_inputs_are_those_of_the_released_transforms():
    scene = room(n=800)
    view = voxel_view(Points.from_scene(scene), 0.02)
    zero = torch.tensor([1.0, 2.0, 3.0])
    sonata, utonia = (INPUTS[name](view, zero) for name in ("coord_color_normal", "half_coord_color_normal"))
    i = int(view.inverse.bincount().argmin())  # a voxel of one point, whose mean is that point
    (row,) = torch.nonzero(view.inverse == i)[:, 0].tolist()
    want = torch.cat([scene.coord[row] - zero, scene.color[row] / 255, scene.normal[row]])
    torch.testing.assert_close(sonata[i], want)
    torch.testing.assert_close(utonia, sonata * torch.tensor([0.5] * 3 + [1.0] * 6))


def test_turned_attention_is_that_of_complex_numbers():
    torch.manual_seed(0)
    attention = Attention(24, 2, 10.0).double()
    coords = torch.nn.functional.pad(torch.unique(torch.randint(0, 5, (40, 3)), dim=0), (1, 0)).int()
    n, place = len(coords), torch.randn(len(coords), 3, dtype=torch.float64)
    x = torch.randn(n, 24, dtype=torch.float64)
    q, k, v = attention.qkv(x).view(n, 3, 2, 12).unbind(1)

    def turned(channels):  # 12 channels of a head: for each axis two real parts, then two imaginary ones
        pairs = channels.reshape(n, 2, 3, 2, 2)
        frequency = 10.0 ** (-torch.arange(2, dtype=torch.float64) / 2)
        return torch.complex(pairs[..., 0, :], pairs[..., 1, :]) * torch.exp(1j * place[:, None, :, None] * frequency)

    score = torch.einsum("ihac,jhac->hij", turned(q), turned(k).conj()).real / 12**0.5
    want = attention.proj(torch.einsum("hij,jhc->ihc", score.softmax(-1), v).reshape(n, 24))
    geometry = Geometry(coords)
    torch.testing.assert_close(attention(x, geometry, place, "xyz_z-order", 64, 3), want, atol=1e-6, rtol=1e-6)
    moved = attention(x, geometry, place + 7, "xyz_z-order", 64, 3)
    torch.testing.assert_close(moved, want, atol=1e-6, rtol=1e-6)


def test_turned_levels_see_the_mean_place_of_their_voxels(monkeypatch):
    model, seen = encoder(rope_base=10.0), []
    for stage in model.enc.values():
        stage["block0"].attn.register_forward_hook(lambda module, args, out: seen.append(args[2]))
    coords = torch.nn.functional.pad(torch.unique(torch.randint(0, 8, (150, 3)), dim=0), (1, 0)).int()
    x = SparseTensor.from_coords(torch.randn(len(coords), 9), coords)
    with torch.no_grad():
        levels = model(x)
    want = x.features[:, :3]
    for level, place in zip(levels, seen, strict=True):
        torch.testing.assert_close(place, want)
        coarse, parent = level.geometry.coarser()
        sums = torch.zeros(len(coarse), 3).index_add_(0, parent, want)
        want = sums / torch.bincount(parent)[:, None]
