"""Features of scenes of any size: tiles against the whole, memory, plain arrays, files that are whole or not there."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData
from test_hunet import SMALL
from test_msm import room

import pcssl
from pcssl.cli import main
from pcssl.config import component
from pcssl.data import Scene, write_ply
from pcssl.errors import UserError
from pcssl.evaluation import PretrainedModel, memory, pretrained
from pcssl.evaluation.extraction import TiledFeatures
from pcssl.evaluation.features import Frame
from pcssl.evaluation.memory import Memory, parse_bytes
from pcssl.evaluation.tiles import Axis, Columns
from pcssl.models.checkpoints import Weights, state, write_model

ROOT = Path(__file__).parents[1]
measured = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured in /proc")
PLAIN = {"channels": [8, 16], "decoder_channels": [8, 16], "blocks": [1, 1], "decoder_blocks": [1, 1],
         "attention": [0, 0], "decoder_attention": [0, 0], "heads": [1, 1], "decoder_heads": [1, 1]}  # fmt: skip
# Voxels that a feature of PLAIN depends on: two convolutions of +-1 twice on each level, of 1 and 2 voxels,
# and what a coarse cell and the reading between centres add.
REACH = 4 * 1 + 4 * 2 + 2 * 2


def make(options=None, voxel_size=0.1, seed=3) -> PretrainedModel:
    torch.manual_seed(seed)
    config = component("model", "hunet", **(options or PLAIN))
    return PretrainedModel(config.build().eval(), config, voxel_size, {})


def attention() -> PretrainedModel:
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(SMALL).items()}
    return make(options)


def hall(width=16.0, depth=9.0, n=16_000, seed=0) -> Scene:
    """A wavy floor with boxes, and two walls, at some place far from 0 in every direction."""
    rng = torch.Generator().manual_seed(seed)
    xy = torch.rand(n, 2, generator=rng) * torch.tensor([width, depth])
    z = 0.3 * torch.sin(xy[:, 0]) + ((xy / 2).floor().sum(1) % 2) * 0.5
    wall = torch.rand(n, generator=rng) < 0.2
    z[wall] = 2 * torch.rand(int(wall.sum()), generator=rng)
    xy[wall, 1] = 0
    normal = torch.nn.functional.normalize(torch.randn(n, 3, generator=rng), dim=1)
    color = torch.randint(0, 256, (n, 3), generator=rng).to(torch.uint8)
    return Scene(torch.cat([xy, z[:, None]], 1) + torch.tensor([-3.3, 7.7, 1.05]), color, normal, name="hall")


def columns_of(scene, model) -> Columns:
    frame = Frame.of(scene.coord, model.voxel_size)
    return Columns(scene.coord, frame.shift, model.voxel_size, model.backbone.strides[-1])


def tiled(model, scene, edge, monkeypatch, levels="all"):
    """Features of a scene cut into tiles of at most `edge` columns."""
    monkeypatch.setattr(TiledFeatures, "_edge", lambda *_: edge)
    return model.extract(scene, levels).features


# ---------------------------------------------------------------- tiles


@pytest.mark.parametrize("length, edge", [(10, 10), (10, 20), (11, 10), (100, 16), (37, 4), (9, 4), (1000, 33)])
def test_the_tiles_of_an_axis_cover_it_and_their_weights_sum_to_one(length, edge):
    axis = Axis.cover(length, edge)
    assert axis.edge <= edge and (axis.count - 1) * axis.step + axis.edge >= length
    assert axis.overlap <= axis.step
    place = torch.linspace(0, length, 5001)[:-1]
    weights = [axis.weight(k, place) for k in range(axis.count)]
    torch.testing.assert_close(sum(weights), torch.ones_like(place))
    for k, weight in enumerate(weights):
        outside = (place < k * axis.step) | (place >= k * axis.step + axis.edge)
        assert not weight[outside].any()
        # Falls to zero at the tile's border: no jump.
        assert float(weight.diff().abs().max()) <= length / 5000 / max(axis.overlap, 1) + 1e-5


def test_columns_count_the_voxels_and_points_of_tiles(monkeypatch):
    monkeypatch.setattr("pcssl.evaluation.tiles._CHUNK", 999)
    model, scene = make(), hall()
    columns = columns_of(scene, model)
    found = list(columns.tiles(20))
    assert len(found) > 10 and sum(len(t.rows) for t in found) == columns.total(20) > len(scene)
    total = torch.zeros(len(scene)).index_add_(0, torch.cat([t.rows for t in found]), torch.cat([t.weight for t in found]))
    torch.testing.assert_close(total, torch.ones(len(scene)))
    voxels = []
    for tile in found:
        index = torch.floor((scene.coord[tile.rows] - columns.shift) / 0.1).long() - tile.corner
        assert index.min() >= 0 and index[:, :2].max() < 20 * 2 and not (tile.corner % 2).any()
        voxels.append(len(index.unique(dim=0)))
    assert columns.largest(20) == (max(voxels), max(len(t.rows) for t in found))
    assert int(columns.voxels.sum()) == len(torch.floor((scene.coord - columns.shift) / 0.1).unique(dim=0))


def test_tiles_give_what_the_whole_gives_beyond_the_reach_of_a_convolution(monkeypatch):
    model, scene = make(), hall()
    whole = model.extract(scene).features
    columns = columns_of(scene, model)
    edge = 2 * REACH  # in columns of two voxels: overlaps of REACH voxels
    assert len(list(columns.tiles(edge))) > 2
    found = tiled(model, scene, edge, monkeypatch)
    place = (scene.coord[:, :2] - columns.shift[:2]) / 0.2
    inner = torch.ones(len(scene), dtype=torch.bool)
    for i, axis in enumerate(columns.axes(edge)):
        for k in range(1, axis.count):  # the overlaps, where tiles whose border is near have a part
            inner &= (place[:, i] < k * axis.step) | (place[:, i] >= k * axis.step + axis.overlap)
    assert 0.3 < inner.float().mean() < 0.9
    # Places are rounded otherwise, to 1e-5 voxels.
    torch.testing.assert_close(found[inner], whole[inner], atol=1e-4, rtol=0)
    assert float((found - whole)[~inner].abs().max()) > 0.01  # or the test would see nothing


def test_a_convolution_s_features_on_tiles_are_close_to_the_whole_everywhere(monkeypatch):
    model, scene = make(), hall()
    whole = model.extract(scene).features
    found = tiled(model, scene, 16, monkeypatch)
    error = (found - whole).norm(dim=1) / whole.norm(dim=1)
    assert error.mean() < 0.01 and error.max() < 0.2


def all_or_nothing(axis, k, place):
    """Weights of tiles that are not blended: 1 up to the middle of the overlap."""
    low, high = k * axis.step + axis.overlap / 2, (k + 1) * axis.step + axis.overlap / 2
    return ((place >= low * (k > 0)) & ((place < high) | (k == axis.count - 1))).float()


def test_attention_s_features_do_not_jump_at_the_borders_of_tiles(monkeypatch):
    """Against the same tiles without blending, which do."""
    model, scene, edge = attention(), hall(), 10
    columns = columns_of(scene, model)
    axis, width = columns.axes(edge)[0], 0.1 * columns.stride
    lines = [k * axis.step + d for k in range(1, axis.count) for d in (0, axis.overlap / 2, axis.overlap)]
    # Pairs of points a hair's breadth to the left and right of where a tile begins, the other ends, and between.
    place = (scene.coord[:, 0] - columns.shift[0]) / width
    near = [(((place - line).abs() < 0.3).nonzero()[:, 0], columns.shift[0] + line * width) for line in lines]
    rows = torch.cat([found for found, _ in near])
    pairs = scene.coord[rows].clone()
    pairs[:, 0] = torch.cat([x.expand(len(found)) for found, x in near])
    hair = torch.tensor([1e-3 * width, 0, 0])
    coord = torch.cat([scene.coord, pairs - hair, pairs + hair])
    color, normal = (torch.cat([x, x[rows], x[rows]]) for x in (scene.color, scene.normal))
    scene, before = replace(scene, coord=coord, color=color, normal=normal), len(scene)

    def jump(features):
        left, right = features[before:].chunk(2)
        return float((left - right).norm(dim=1).mean() / features.norm(dim=1).mean())

    whole, blended = model.extract(scene).features, tiled(model, scene, edge, monkeypatch)
    monkeypatch.setattr(Axis, "weight", all_or_nothing)
    hard = tiled(model, scene, edge, monkeypatch)
    error = (blended - whole).norm(dim=1) / whole.norm(dim=1)
    assert 0.001 < error.mean() < 0.1
    assert jump(blended) < jump(whole) + 0.002
    assert jump(hard) > jump(whole) + 0.01


def test_tiles_share_the_place_that_coordinates_are_relative_to(monkeypatch):
    scene, seen = hall(), []
    model = make()
    monkeypatch.setitem(pretrained.INPUTS, "color_normal", lambda view, zero: seen.append(zero) or view.features)
    tiled(model, scene, 20, monkeypatch)
    low, high = scene.coord.amin(0), scene.coord.amax(0)
    expected = torch.stack([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    assert len(seen) > 4 and all(torch.equal(zero, expected) for zero in seen)


# ---------------------------------------------------------------- memory


def test_amounts_of_memory():
    assert [parse_bytes(x) for x in ("4GB", "500 mb", "1.5GiB", "2k", 10_000, "7")] == [4e9, 5e8, 1610612736, 2000, 10_000, 7]
    for text in ("4 apples", "-1GB", "GB", "", "1e3"):
        with pytest.raises(UserError, match="write it like 4GB"):
            parse_bytes(text)


@measured
def test_the_peak_of_a_function_is_seen():
    _, peak = Memory(torch.device("cpu")).peak(lambda: [torch.ones(5_000_000) for _ in range(3)] and None)
    assert 50e6 < peak < 90e6


@measured
def test_a_bound_too_small_for_any_tile_is_said_with_what_it_takes():
    with pytest.raises(UserError, match=r"hall: 50 MB of memory is too little.* are in use before, it takes .*[MG]B"):
        make().extract(hall(), max_memory="50MB")


def peak_of(*command) -> tuple[float, str]:
    """Most megabytes that a process of `pcssl` has had in memory, and what it printed."""
    process = subprocess.Popen([sys.executable, "-m", "pcssl", *map(str, command)], cwd=ROOT, env=environment(), stdout=subprocess.PIPE)
    said = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 1e3, said


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@measured
@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_the_bound_of_memory_holds(tmp_path, suffix):
    """Of the whole process, reading and writing included, on a scan that takes 700 MB as a whole."""
    model = make({**PLAIN, "decoder_channels": [64, 96], "channels": [32, 96]})
    write_model(tmp_path / "model.safetensors", Weights(model.model, model.backbone.state_dict(), 0.1))
    write_ply(tmp_path / "few.ply", hall(n=500))
    write_ply(tmp_path / "hall.ply", hall(100, 40, 400_000))
    rest = ("--model", tmp_path, "--device", "cpu", "--format", suffix)
    least, _ = peak_of("extract", tmp_path / "few.ply", *rest, "--out", tmp_path / "few")
    peak = {}
    for more in (250, 400, 4000):
        bound = least + more
        peak[more], _ = peak_of("extract", tmp_path / "hall.ply", *rest, "--out", tmp_path / str(more), "--max-memory", f"{bound:.0f}MB")
        assert peak[more] < bound
        if suffix == "npy":
            assert np.load(tmp_path / str(more) / "hall.npy", mmap_mode="r").shape == (400_000, 160)
    assert peak[4000] > least + 500


def test_where_memory_cannot_be_measured_scenes_are_taken_whole_and_a_bound_is_refused(monkeypatch):
    monkeypatch.setattr("pcssl.evaluation.memory._STATM", Path("/nowhere"))
    assert make().extract(hall(n=500)).features.shape == (500, 24)
    with pytest.raises(UserError, match="a limit of memory needs Linux or a CUDA GPU"):
        make().extract(hall(n=500), max_memory="4GB")


# ---------------------------------------------------------------- as a library


def test_plain_arrays_give_what_a_scene_gives():
    model, scene = make(), hall(n=2000)
    expected = model.extract(scene).features
    arrays = {"color": scene.color.numpy(), "normal": scene.normal.numpy()}
    found = model.extract(scene.coord.numpy().astype(np.float64), **arrays).features
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    color = scene.color.float() / 255
    torch.testing.assert_close(model.extract(scene.coord, color=color, normal=scene.normal).features, expected, atol=1e-6, rtol=1e-5)


def test_points_without_colour_and_normals_are_completed_with_a_warning():
    model, scene = make(), hall(n=2000)
    with pytest.warns(UserWarning) as said:
        found = model.extract(scene.coord).features
    assert ["no color" in str(w.message) for w in said] == [True, False] and "no normal; it is estimated" in str(said[1].message)
    grey = replace(scene, color=torch.full_like(scene.color, 127), normal=pcssl.data.normals.estimate_normals(scene.coord))
    assert torch.equal(found, model.extract(grey).features)
    with pytest.warns(UserWarning, match="hall has no color"):
        assert torch.equal(found, model.extract(Scene(scene.coord, name="hall")).features)


def test_levels_are_chosen_in_any_order_and_refused_if_unknown():
    model, scene = make(), hall(n=500)
    every = model.extract(scene).features
    assert torch.equal(model.extract(scene, [1, 0]).features, every[:, [*range(8, 24), *range(8)]])
    for levels in ([2], [-1], [], [0, 0], "some"):
        with pytest.raises(ValueError, match="the model has levels 0 to 1"):
            model.extract(scene, levels)


def test_bad_arrays_are_refused():
    model, coord = make(), hall(n=100).coord
    for given, message in (
        ({"scene": torch.cat([coord, torch.full((1, 3), torch.nan)])}, "not finite"),
        ({"scene": coord[:, :2]}, r"save it as \(N, 3\)"),
        ({"scene": coord, "color": np.zeros((99, 3), np.uint8)}, "'color' is"),
        ({"scene": coord, "color": np.full((100, 3), 300.0)}, "colours from"),
        ({"scene": hall(n=10), "color": np.zeros((10, 3), np.uint8)}, "belong to points without a scene"),
    ):
        with pytest.raises(ValueError, match=message):
            model.extract(**given)


@pytest.mark.parametrize("module", [pretrained, memory, state])
def test_the_examples_in_docstrings_run(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_the_package_is_typed():
    assert (Path(pcssl.__file__).parent / "py.typed").is_file()


# ---------------------------------------------------------------- as a command


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    model = make()
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_model(path, Weights(model.model, model.backbone.state_dict(), 0.1))
    return path


def extract(model_file, *more):
    return main(["extract", *map(str, more), "--model", str(model_file), "--device", "cpu"])


@pytest.fixture
def scans(tmp_path):
    for i in range(3):
        write_ply(tmp_path / "scans" / f"room{i}.ply", room(i, 300))
    return tmp_path / "scans"


def test_a_bounded_extraction_writes_the_same_files_as_parts_give(model_file, tmp_path, monkeypatch):
    scene = hall()
    write_ply(tmp_path / "hall.ply", scene)
    monkeypatch.setattr(TiledFeatures, "_edge", lambda *_: 20)
    monkeypatch.setattr("pcssl.evaluation.extraction.PART_BYTES", 100_000)
    expected = pcssl.load_model(model_file).extract(pcssl.read_scene(tmp_path / "hall.ply")).features.numpy()
    assert extract(model_file, tmp_path / "hall.ply", "--out", tmp_path / "npy", "--format", "npy") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "npy" / "hall.npy"), expected)
    assert extract(model_file, tmp_path / "hall.ply", "--out", tmp_path / "hall.npz", "--half") == 0
    with np.load(tmp_path / "hall.npz") as file:
        assert file["features"].dtype == np.float16
        np.testing.assert_allclose(file["features"], expected, atol=2e-3, rtol=2e-3)
        np.testing.assert_array_equal(file["coord"], scene.coord.numpy())
    assert not list(tmp_path.glob("**/.*"))


def test_ply_has_the_points_in_colours_that_are_the_same_for_all_scans(model_file, scans, tmp_path):
    out = tmp_path / "out"
    assert extract(model_file, scans, "--out", out, "--format", "ply") == 0
    vertex = PlyData.read(str(out / "room1.ply"))["vertex"]
    assert len(vertex) == 300 and len(np.unique(np.stack([vertex[c] for c in ("red", "green", "blue")], 1), axis=0)) > 100
    np.testing.assert_array_equal(vertex["x"], room(1, 300).coord[:, 0].numpy())
    before = (out / "room2.ply").read_bytes()
    (out / "room2.ply").unlink()
    assert extract(model_file, scans, "--out", out, "--format", "ply") == 0
    assert (out / "room2.ply").read_bytes() == before


def test_what_is_done_is_skipped_and_what_changed_is_not(model_file, scans, tmp_path, capsys):
    out = tmp_path / "out"
    assert extract(model_file, scans, "--out", out) == 0
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("*.npz")}
    assert extract(model_file, scans, "--out", out) == 0
    assert "skipped      3 of 3 scans" in capsys.readouterr().out
    write_ply(scans / "room0.ply", room(7, 299))  # another scan
    cut = (out / "room1.npz").read_bytes()[:-10]  # not whole
    (out / "room1.npz").write_bytes(cut)
    assert extract(model_file, scans, "--out", out) == 0
    changed = {p.name for p in out.glob("*.npz") if p.stat().st_mtime_ns != times[p.name]}
    assert changed == {"room0.npz", "room1.npz"} and "skipped      1 of 3" in capsys.readouterr().out
    with np.load(out / "room1.npz") as file:
        assert len(file["features"]) == 300
    assert extract(model_file, scans, "--out", out, "--levels", "0") == 2
    assert "other settings (levels)" in capsys.readouterr().err
    assert extract(model_file, scans, "--out", out, "--levels", "0", "--overwrite") == 0
    with np.load(out / "room2.npz") as file:
        assert file["features"].shape[1] == 8
    (out / "index.json").write_text("{")
    assert extract(model_file, scans, "--out", out) == 2
    assert "index.json is damaged" in capsys.readouterr().err


def test_an_extraction_that_is_stopped_goes_on(model_file, scans, tmp_path, monkeypatch):
    out, count = tmp_path / "out", iter(range(10))
    parts = PretrainedModel.parts

    def stops(self, *given, **more):
        if next(count) == 1:
            raise KeyboardInterrupt
        return parts(self, *given, **more)

    monkeypatch.setattr(PretrainedModel, "parts", stops)
    assert extract(model_file, scans, "--out", out) == 130
    assert sorted(p.name for p in out.iterdir()) == ["index.json", "room0.npz"]
    assert extract(model_file, scans, "--out", out) == 0
    assert next(count) == 4 and len(json.loads((out / "index.json").read_text())["done"]) == 3


@measured
def test_bad_options_of_extraction_get_one_line(model_file, scans, tmp_path, capsys):
    one = scans / "room0.ply"
    for arguments, message in (
        ([one, "--out", "out", "--levels", "2"], "--levels: levels [2]: the model has levels 0 to 1"),
        ([one, "--out", "out", "--max-memory", "lots"], "'lots' is not an amount of memory"),
        ([one, "--out", tmp_path / "a", "--max-memory", "50MB"], "room0: 50 MB of memory is too little"),
        ([one, "--out", "f.npz", "--format", "npy"], "its suffix is the format"),
        ([one, "--out", "f.txt"], "must end in .npz or .npy or .ply"),
        ([scans, "--out", "f.npy"], "several scans need a folder"),
    ):
        assert extract(model_file, *arguments) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1 and message in errors[0]
    assert not Path("out").exists() and not list((tmp_path / "a").glob(".*"))


def test_a_disk_without_room_is_said_before_anything_is_computed(model_file, scans, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert extract(model_file, scans / "room0.ply", "--out", tmp_path / "out") == 2
    assert "no room for" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())
