"""The commands as a user types them: train, probe and extract on tiny data, and bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_msm import room

import pcssl
from pcssl.cli import main
from pcssl.commands.probe import default_out
from pcssl.data import Scene, write_ply

ROOT = Path(__file__).parents[1]
CLASSES = "[floor, y wall, x wall]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared scenes, a config, and a trained checkpoint."""
    base = tmp_path_factory.mktemp("run")
    for i in range(6):
        scene = room(i, 700)
        target = base / "data" / ("train" if i < 4 else "val") / f"room{i}"
        target.mkdir(parents=True)
        np.save(target / "coord.npy", scene.coord.numpy())
        np.save(target / "color.npy", scene.color.numpy())
        np.save(target / "normal.npy", scene.normal.numpy())
        np.save(target / "segment20.npy", (2 - scene.normal.argmax(1)).numpy())
    dataset = f"{{name: folder, root: {base / 'data'}, label: segment20, classes: {CLASSES}}}"
    (base / "tiny.yaml").write_text(
        f"""
output: {base / "out"}
data: {{dataset: {dataset}, voxel_size: 0.2, batch_size: 2, workers: 0}}
model: {{name: hunet, channels: [8, 16], decoder_channels: [8, 16], blocks: [1, 1], decoder_blocks: [1, 1],
  attention: [0, 1], decoder_attention: [0, 1], heads: [1, 2], decoder_heads: [1, 2], window: 8}}
objective: {{name: msm}}
optimizer: {{epochs: 2, warmup_epochs: 1}}
device: cpu
probe: {{after_training: true, seeds: 1, train_points: 100, epochs: 5, pictures: 1}}
"""
    )
    (base / "data.yaml").write_text(f"dataset: {dataset}\nprobe: {{seeds: 1, train_points: 100, epochs: 5}}\n")
    assert main(["train", str(base / "tiny.yaml")]) == 0
    return base


def test_train_probes_and_draws(folder):
    found = json.loads((folder / "out" / "results.json").read_text())
    assert set(found["results"]) == {"trained", "random weights", "input features"}
    assert found["data"]["classes"] == ["floor", "y wall", "x wall"] and found["protocol"]["train_points"] == 100
    assert found["checkpoint"]["scenes"] == 4 and found["checkpoint"]["split"] == "train"
    with Image.open(folder / "out" / "pictures" / "features.png") as image:
        assert len(image.convert("RGB").resize((200, 60)).getcolors(100_000)) > 20


def test_probe_alone_gives_the_same_scores(folder, tmp_path, capsys):
    arguments = ["probe", "--checkpoint", str(folder / "out" / "checkpoint.pt"), "--data", str(folder / "data.yaml")]
    assert main([*arguments, "--out", str(tmp_path), "--pictures", "0", "--device", "cpu"]) == 0
    mine, other = (json.loads((p / "results.json").read_text())["results"] for p in (tmp_path, folder / "out"))
    assert mine == other
    assert "random weights" in capsys.readouterr().out and not (tmp_path / "pictures").exists()


def test_probe_of_a_runs_folder_trains_with_labels_too(folder, tmp_path, capsys):
    """And prints what the terminal is to show of it, though the trained features have no such head."""
    arguments = ["probe", "--checkpoint", str(folder / "out"), "--data", str(folder / "data.yaml"), "--heads", "supervised"]
    assert main([*arguments, "probe.floors=false", "--out", str(tmp_path), "--pictures", "0", "--device", "cpu"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("supervised "))
    found = json.loads((tmp_path / "results.json").read_text())
    assert f"{100 * found['results']['supervised']['supervised']['miou']['mean']:.1f} +-" in row
    assert found["labelled_training"]["steps"] == 4


def test_pictures_are_those_of_the_last_call(folder, tmp_path, capsys):
    arguments = ["probe", "--checkpoint", str(folder / "out"), "--data", str(folder / "data.yaml"), "--out", str(tmp_path)]
    settings = ["probe.floors=false", "--device", "cpu"]
    assert main([*arguments, *settings, "--heads", "linear", "--levels", "--pictures", "1"]) == 0
    assert (tmp_path / "pictures" / "levels.png").exists()
    assert main([*arguments, *settings, "--heads", "clusters", "--pictures", "1"]) == 0
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["features.png"]
    assert "clusters" in capsys.readouterr().out


def test_probe_says_where_it_cannot_write_before_it_works(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["probe", "--checkpoint", str(folder / "out"), "--data", str(folder / "data.yaml")]
    assert main([*arguments, "--out", str(tmp_path / "file" / "x")]) == 2
    assert "cannot write results to" in capsys.readouterr().err


def test_probe_warns_of_heads_that_are_scored_where_they_are_fitted(folder, tmp_path, capsys):
    arguments = ["probe", "--checkpoint", str(folder / "out"), "--data", str(folder / "data.yaml"), "--out", str(tmp_path)]
    settings = ["--heads", "nn", "probe.floors=false", "--pictures", "0", "--device", "cpu"]
    assert main([*arguments, *settings, "probe.train_split=train+val"]) == 0
    assert "heads are fitted on scenes that they are scored on, those of val" in capsys.readouterr().err
    assert "those of val" in (tmp_path / "report.md").read_text()
    assert main([*arguments, *settings]) == 0
    assert "warning" not in capsys.readouterr().err
    for options, message in ((["--pictures", "-1"], "--pictures -1"), (["probe.heads=[]"], "heads: name one at least")):
        assert main([*arguments, *options]) == 2
        assert message in capsys.readouterr().err
    assert main(["health", str(folder / "out"), "--data", str(folder / "data.yaml"), "--scenes", "0"]) == 2
    assert "--scenes 0" in capsys.readouterr().err


def test_a_probe_of_scenes_that_training_saw_warns_everywhere(folder, tmp_path, capsys):
    arguments = ["probe", "--checkpoint", str(folder / "out"), "--data", str(folder / "data.yaml"), "--out", str(tmp_path)]
    settings = ["--heads", "nn", "probe.floors=false", "--pictures", "0", "--device", "cpu"]
    assert main([*arguments, *settings, "probe.train_split=val", "probe.val_split=train"]) == 0
    warning = "the checkpoint was trained on 4 of the 4 scenes of 'train' that it is scored on (room0, room1, room2, ...)"
    assert warning in capsys.readouterr().err and warning in (tmp_path / "report.md").read_text()
    found = json.loads((tmp_path / "results.json").read_text())
    assert warning in found["warnings"][0] and found["checkpoint"]["split"] == "train"
    assert "split train" in (tmp_path / "report.md").read_text()


def test_results_hold_what_is_needed_to_make_them_again(folder, tmp_path):
    settings = ["--heads", "nn", "probe.floors=false", "probe.val_points=50", "--device", "cpu", "--pictures", "1"]
    assert main(["probe", "--checkpoint", str(folder / "out"), "--data", str(folder / "data.yaml"), "--out", str(tmp_path), *settings]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["config"]["dataset"]["root"] == str(folder / "data") and found["config"]["probe"]["val_points"] == 50
    assert {"pcssl", "commit", "torch", "numpy", "python", "engine"} <= set(found["machine"])
    assert len(found["data"]["fingerprint"]) == 32 and found["protocol"]["seeds"] == 1
    assert "](pictures/features.png)" in (tmp_path / "report.md").read_text()
    trained = json.loads((folder / "out" / "results.json").read_text())
    assert trained["config"]["optimizer"]["epochs"] == 2  # a probe after training has the config of the run


def test_a_missing_checkpoint_leaves_nothing_behind(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["probe", "--checkpoint", "none.pt", "--data", str(folder / "data.yaml")]) == 2
    assert "none.pt" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_commands_run_on_the_engine_they_are_told(folder, tmp_path, monkeypatch):
    from pcssl.sparse import conv, current_engine

    used = set()
    monkeypatch.setattr(conv, "current_engine", lambda: used.add(current_engine().name) or current_engine())
    run = ["train", str(folder / "tiny.yaml"), f"output={tmp_path}", "optimizer.epochs=1", "optimizer.warmup_epochs=0"]
    assert main([*run, "probe.pictures=0", "--engine", "reference"]) == 0
    assert "engine: reference" in (tmp_path / "config.yaml").read_text()
    options = ["--engine", "reference", "--device", "cpu"]
    checkpoint = ["--checkpoint", str(tmp_path / "checkpoint.pt"), *options]
    assert main(["probe", *checkpoint, "--data", str(folder / "data.yaml"), "--out", str(tmp_path), "--pictures", "0"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["machine"]["engine"] == "reference"
    write_ply(tmp_path / "scan.ply", room(9, 300))
    assert main(["extract", str(tmp_path / "scan.ply"), "--model", str(tmp_path), *options, "--out", str(tmp_path / "f.npz")]) == 0
    assert used == {"reference"}


def extract(folder, scans, *more, out=None):
    scans = scans if isinstance(scans, list) else [scans]
    out = out or folder / "features.npz"
    options = ["--model", folder / "out" / "checkpoint.pt", "--out", out, "--device", "cpu"]
    return main(["extract", *map(str, [*scans, *options, *more])])


def test_extract_gives_a_feature_per_point_and_a_picture(folder, tmp_path, capsys):
    scene = room(9, 500)
    write_ply(tmp_path / "scan.ply", scene)
    assert extract(folder, tmp_path / "scan.ply", "--picture", tmp_path / "p" / "pca.png", out=tmp_path / "f.npz") == 0
    with np.load(tmp_path / "f.npz") as file:
        assert file["features"].shape == (500, 24) and file["features"].dtype == np.float32
        assert np.array_equal(file["coord"], scene.coord.numpy())
        model = pcssl.load_model(folder / "out" / "checkpoint.pt")
        expected = model.extract(pcssl.read_scene(tmp_path / "scan.ply")).features.numpy()
        assert np.array_equal(file["features"], expected)
    with Image.open(tmp_path / "p" / "pca.png") as image:
        assert image.width > image.height
    assert "warning" not in capsys.readouterr().err
    assert extract(folder, tmp_path / "scan.ply", "--levels", "1", "--half", out=tmp_path / "g.npz") == 0
    with np.load(tmp_path / "g.npz") as file:
        assert file["features"].shape == (500, 16) and file["features"].dtype == np.float16


def test_a_scan_without_colour_and_normals_is_extracted_with_a_warning(folder, tmp_path, capsys):
    np.savez(tmp_path / "bare.npz", coord=room(3, 400).coord.numpy())
    assert extract(folder, tmp_path / "bare.npz", out=tmp_path / "f.npz") == 0
    errors = capsys.readouterr().err
    assert "has no color; it is a uniform grey" in errors and "has no normal; it is estimated" in errors


@pytest.mark.parametrize("points", [1, 5])
def test_scans_of_a_few_points(folder, tmp_path, points):
    scene = room(0, 400)[torch.arange(points)]
    np.savez(tmp_path / "few.npz", coord=scene.coord.numpy(), color=scene.color.numpy())
    assert extract(folder, tmp_path / "few.npz", "--picture", tmp_path / "few.png", out=tmp_path / "f.npz") == 0
    with np.load(tmp_path / "f.npz") as file:
        assert file["features"].shape == (points, 24) and np.isfinite(file["features"]).all()


def test_points_that_are_not_finite_are_left_out_with_a_warning(folder, tmp_path, capsys):
    coord = room(0, 400).coord.numpy()
    coord[3] = np.nan
    coord[7, 1] = np.inf
    np.savez(tmp_path / "nan.npz", coord=coord)
    assert extract(folder, tmp_path / "nan.npz", out=tmp_path / "f.npz") == 0
    assert "warning" in capsys.readouterr().err
    with np.load(tmp_path / "f.npz") as file:
        assert len(file["features"]) == 398


def test_millimetres_are_noticed_and_rescaled(folder, tmp_path, capsys):
    scene = room(0, 400)
    write_ply(tmp_path / "mm.ply", Scene(scene.coord * 1000, scene.color, scene.normal))
    extract(folder, tmp_path / "mm.ply", out=tmp_path / "f.npz")
    assert "--unit mm" in capsys.readouterr().err
    assert extract(folder, tmp_path / "mm.ply", "--unit", "mm", out=tmp_path / "f.npz") == 0
    assert "--unit" not in capsys.readouterr().err
    write_ply(tmp_path / "m.ply", scene)
    extract(folder, tmp_path / "m.ply", out=tmp_path / "g.npz")
    with np.load(tmp_path / "f.npz") as a, np.load(tmp_path / "g.npz") as b:
        assert np.median(np.abs(a["features"] - b["features"])) < 1e-3


def test_several_scans_and_a_folder_at_once(folder, tmp_path, capsys):
    scans = tmp_path / "scans"
    write_ply(scans / "a.ply", room(0, 300))
    np.savetxt(scans / "b.xyz", room(1, 200).coord.numpy())
    (scans / "notes.md").write_text("no scan")
    write_ply(tmp_path / "far.ply", replace(room(2, 100), origin=(450_000.0, 0.0, 0.0)))
    (scans / "c.pcd").write_text("hello")
    out = tmp_path / "out"
    assert extract(folder, [scans, tmp_path / "far.ply"], "--picture", tmp_path / "pictures", out=out) == 1
    said = capsys.readouterr().err
    assert "c.pcd: not a PCD file" in said and "1 of 4 scans failed" in said
    assert sorted(p.name for p in out.iterdir()) == ["a.npz", "b.npz", "far.npz", "index.json"]
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["a.png", "b.png", "far.png"]
    for name, points, origin in (("a", 300, 0), ("b", 200, 0), ("far", 100, 450_000)):
        with np.load(out / f"{name}.npz") as file:
            assert file["features"].shape == (points, 24) and file["origin"].tolist() == [origin, 0, 0]
    alone = tmp_path / "alone.npz"
    assert extract(folder, scans / "a.ply", out=alone) == 0
    with np.load(alone) as one, np.load(out / "a.npz") as of_several:
        assert np.array_equal(one["features"], of_several["features"])
    capsys.readouterr()
    write_ply(tmp_path / "a.ply", room(0, 300))
    (tmp_path / "none").mkdir()
    for given, options, message in (
        ([scans], ["--picture", "p.png"], "give a folder, as --out is one"),
        ([scans, tmp_path / "a.ply"], [], "would both write a;"),
        ([tmp_path / "none"], [], "no scans in it"),
    ):
        assert extract(folder, given, *options, out=out) == 2
        assert message in capsys.readouterr().err
    assert extract(folder, scans, out=tmp_path / "f.npz") == 2


def test_reading_options_reach_the_reader(folder, tmp_path):
    scene = room(0, 400)
    turned = scene.coord[:, [0, 2, 1]] * torch.tensor([100, -100, 100])  # centimetres, y down
    table = torch.cat([torch.zeros(400, 1), turned, scene.color.float()], 1).numpy()
    np.savetxt(tmp_path / "a.txt", table)
    options = ["--unit", "cm", "--up=-y", "--columns=-,x,y,z,r,g,b"]
    assert extract(folder, tmp_path / "a.txt", *options, out=tmp_path / "f.npz") == 0
    write_ply(tmp_path / "b.ply", scene, faces=torch.tensor([[0, 1, 2], [3, 4, 5]]))
    assert extract(folder, tmp_path / "b.ply", "--samples", 50, out=tmp_path / "g.npz") == 0
    with np.load(tmp_path / "f.npz") as table, np.load(tmp_path / "g.npz") as mesh:
        np.testing.assert_allclose(table["coord"], scene.coord.numpy(), atol=1e-5)
        assert mesh["coord"].shape == (50, 3)


def bad_file(tmp_path, kind):
    path = tmp_path / "scan.ply"
    if kind == "missing":
        return path
    write_ply(path, room(0, 300))
    whole = path.read_bytes()
    if kind == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "no x":
        path.write_bytes(whole.replace(b"float x", b"float q", 1))
    elif kind == "text":
        path.write_text("hello\n")
    elif kind == "empty":
        path.write_text("ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\nend_header\n")
    return path


@pytest.mark.parametrize("kind", ["missing", "cut", "no x", "text", "empty"])
def test_bad_scans_get_one_line_and_leave_earlier_files(folder, tmp_path, capsys, kind):
    out = tmp_path / "f.npz"
    out.write_bytes(b"earlier")
    assert extract(folder, bad_file(tmp_path, kind), out=out) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("pcssl extract: error:") and "scan.ply" in errors[0]
    assert out.read_bytes() == b"earlier" and not list(tmp_path.glob(".*"))


def test_bad_options_and_checkpoints(folder, tmp_path, capsys):
    write_ply(tmp_path / "scan.ply", room(0, 300))
    checkpoint = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(3)}, checkpoint)
    for arguments, message in (
        (["--model", str(tmp_path / "none.pt"), "--out", "f.npz"], "no checkpoint at"),
        (["--model", str(checkpoint), "--out", "f.npz"], "neither a pcssl checkpoint"),
        (["--model", str(folder / "out" / "checkpoint.pt"), "--out", "f.txt"], "must end in .npz or .npy or .ply"),
        (["--model", str(folder / "out" / "checkpoint.pt"), "--out", "f.npz", "--levels", "2"], "levels 0 to 1"),
    ):
        assert main(["extract", str(tmp_path / "scan.ply"), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_unknown_keys_are_refused_with_the_nearest(folder, capsys):
    assert main(["train", str(folder / "tiny.yaml"), "optimizer.epoch=3"]) == 2
    errors = capsys.readouterr().err.strip()
    assert "optimizer.epoch" in errors and "epochs" in errors and "\n" not in errors
    assert main(["train", str(folder / "tiny.yaml"), "objective.mask_ratio=1.5"]) == 2
    assert "mask_ratio" in capsys.readouterr().err


def test_main_entry_without_scannet_says_how_to_get_it(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train.py"), str(ROOT / "configs" / "msm_scannet.yaml")],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for part in ("terms of use", "tools/prepare.py scannet --raw", "configs/msm_rooms.yaml"):
        assert part in done.stderr


def test_all_configs_are_valid():
    from pcssl.commands.probe import ProbeJob
    from pcssl.commands.train import TrainConfig
    from pcssl.config import load_config

    for path in sorted((ROOT / "configs").glob("*.yaml")):
        load_config(path, TrainConfig)
    for path in sorted((ROOT / "configs" / "data").glob("*.yaml")):
        load_config(path, ProbeJob)


def test_main_config_is_the_papers_run():
    from pcssl.commands.train import TrainConfig
    from pcssl.config import load_config

    c = load_config(ROOT / "configs" / "msm_scannet.yaml", TrainConfig)
    o = c.optimizer
    assert (o.lr, o.betas, o.weight_decay, o.epochs, o.warmup_epochs) == (0.0015, (0.9, 0.95), 0.05, 1800, 60)
    assert (c.data.batch_size, c.data.voxel_size, c.objective.options.mask_ratio) == (12, 0.02, 0.4)
    assert c.objective.options.momentum == (0.996, 1.0) and c.objective.options.max_voxels == 240_000
    assert c.model.options.drop_path == 0.4 and c.model.options.channels == (32, 64, 128, 256, 384)


def test_the_library_in_three_lines(folder, tmp_path):
    write_ply(tmp_path / "scan.ply", room(1, 300))
    scene = pcssl.read_scene(tmp_path / "scan.ply")
    model = pcssl.load_model(folder / "out" / "checkpoint.pt")
    assert model.extract(scene).features.shape == (300, 24)


def test_real_scan_from_raw_layout_to_features(folder, real_scans, tmp_path):
    """The lounge scan: prepared like ScanNet, pre-trained on, and a feature for each of its points."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "holo0000_00").symlink_to(real_scans / "holo0000_00")
    assert main(["prepare", "scannet", "--raw", str(raw), "--out", str(tmp_path / "data"), "--workers", "0"]) == 0
    run = [
        "train", str(folder / "tiny.yaml"), f"output={tmp_path / 'run'}", f"data.dataset={{name: folder, root: {tmp_path / 'data'}}}",
        "data.voxel_size=0.1", "data.batch_size=1", "optimizer.epochs=2", "probe.after_training=false",
    ]
    assert main(run) == 0
    scan = real_scans / "holo0000_00" / "holo0000_00_vh_clean_2.ply"
    arguments = ["--model", str(tmp_path / "run"), "--out", str(tmp_path / "f.npz"), "--device", "cpu"]
    assert main(["extract", str(scan), *arguments, "--picture", str(tmp_path / "pca.png")]) == 0
    with np.load(tmp_path / "f.npz") as file:
        assert file["features"].shape == (99_183, 24) and np.isfinite(file["features"]).all()


def test_results_of_a_probe_lie_beside_the_file_or_below_runs(tmp_path):
    (tmp_path / "checkpoint.pt").touch()
    assert default_out(str(tmp_path / "checkpoint.pt")) == tmp_path == default_out(str(tmp_path))
    assert default_out("sonata") == Path("runs/sonata") == default_out("hf://owner/name/sonata.pth")
