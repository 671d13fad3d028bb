"""Ridge regression against a direct solution; the image probe's sources, numbers and files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_image_data import config, folder, images_of
from test_image_objectives import train

from pcssl.cli import main
from pcssl.errors import UserError
from pcssl.evaluation import ImageProbeConfig, RidgeProbe, load_image_model, load_model, probe_images
from pcssl.evaluation.images import accuracies, features_of, few_rows
from pcssl.evaluation.report import differences
from pcssl.image import Picture
from pcssl.models.checkpoints import Weights, read_weights, write_model
from pcssl.registry import create
from pcssl.training import pretrain


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(count, seed=0, classes=4, spread=1.0):
    centres = torch.randn(classes, 6, generator=rng(9))
    y = torch.arange(count) % classes
    return centres[y] * 2 + spread * torch.randn(count, 6, generator=rng(seed)), y


def test_ridge_is_the_normal_equations_and_its_penalty_the_best_left_one_out():
    x, y = blobs(60, spread=2.0)
    penalties = (1e-3, 1e-1, 1.0)
    found = RidgeProbe.fit(x, y, 4, penalties)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    z = torch.cat([z, torch.ones(60, 1)], 1)
    target = torch.nn.functional.one_hot(y, 4).double()

    def solve(rows, penalty):
        # The intercept is free; the penalty keeps the scale of all rows, also with one left out.
        free = torch.diag(torch.tensor([1.0] * 6 + [0.0], dtype=torch.float64)) * penalty * 60
        return torch.linalg.solve(z[rows].T @ z[rows] + free, z[rows].T @ target[rows])

    errors = []
    for penalty in penalties:
        errors.append(sum(
            float((z[i] @ solve([j for j in range(60) if j != i], penalty) - target[i]).square().sum()) for i in range(60)
        ))  # fmt: skip
    assert found.penalty == penalties[errors.index(min(errors))]
    whole = solve(list(range(60)), found.penalty)
    torch.testing.assert_close(found.weight, whole[:6].float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.bias, whole[6].float(), atol=1e-5, rtol=1e-4)
    assert torch.equal(found(x), (z @ whole).argmax(1))


def test_ridge_with_more_features_than_rows_and_constant_ones():
    x = torch.cat([torch.randn(8, 40, generator=rng()), torch.ones(8, 3)], 1)
    y = torch.arange(8) % 2
    assert torch.equal(RidgeProbe.fit(x, y, 2)(x), y)
    with pytest.raises(ValueError, match="at least one"):
        RidgeProbe.fit(x[:0], y[:0], 2)


def test_heads_find_classes_that_are_there():
    x, y = blobs(200)
    query, known = blobs(80, seed=1)
    found = accuracies(x, y, query, known, 4, ImageProbeConfig(heads=("ridge", "nn", "few"), few=(1, 5)), seed=0)
    assert set(found) == {"ridge", "1-nn", "10-nn", *(f"{h}/{n} a class" for h in ("ridge", "1-nn", "10-nn") for n in (1, 5))}
    assert min(found[h] for h in ("ridge", "10-nn")) > 0.9 > 0.6 > 0
    noise = accuracies(x, y[torch.randperm(200, generator=rng())], query, known, 4, ImageProbeConfig(), seed=0)
    assert max(noise.values()) < 0.5


def test_few_labels_are_as_many_of_every_class():
    y = torch.tensor([0] * 10 + [1] * 3 + [4] * 20)
    rows = few_rows(y, 5, seed=0)
    assert torch.bincount(y[rows]).tolist() == [5, 3, 0, 0, 5] and not torch.equal(rows, few_rows(y, 5, seed=1))


class Pictures(list):
    names = [f"p{i}" for i in range(9)]


def test_bad_and_unlabelled_images_are_left_out(capsys):
    images = Pictures(Picture(torch.full((1, 4, 4), i / 10), label=i % 3) for i in range(9))
    images[4] = Picture(torch.full((1, 4, 4), torch.nan), label=1)
    images[8] = Picture(torch.zeros(1, 4, 4), label=-1)
    x, y = features_of(lambda v: v.mean((2, 3)), images, 2, 1)
    assert y.tolist() == [0, 1, 2, 0, 2, 0, 1] and torch.allclose(x[:, 0] * 10, torch.tensor([0.0, 1, 2, 3, 5, 6, 7]))
    assert "left out image 4 (p4)" in capsys.readouterr().err
    assert features_of(lambda v: v.mean((2, 3)), images, 2, 1, most=3)[1].tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="none of the images"):
        features_of(lambda v: v, Pictures(images[8:]), 2, 1)


def test_a_bad_file_is_named_once_in_a_probe(run, tmp_path, capsys):
    bad = folder(tmp_path / "data", count=6) / "train" / "dog" / "2.png"
    bad.write_bytes(bad.read_bytes()[:100])
    data = create("dataset", "image_folder", root=str(tmp_path / "data"))
    found = probe_images(load_image_model(run), data, ImageProbeConfig(val_split="train", neighbors=(1,), seeds=2, robustness=True))
    assert found["results"]["pixels"]["1-nn"]["accuracy"]["mean"] == 1 and list(found["results"]) == ["trained", "random weights", "pixels"]
    assert capsys.readouterr().err.count("left out image") == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return train("mae", out / "mae", "data.batch_size=32", "data.dataset.val=1669", "optimizer.epochs=1")


def test_a_model_is_probed_beside_its_floors(run):
    model = load_image_model(run)
    assert (model.channels, model.size, model.card["step"]) == (1, 8, 4) and not model.backbone.training
    found = probe_images(model, create("dataset", "digits", val=1400), ImageProbeConfig(seeds=2))
    assert list(found["results"]) == ["trained", "random weights", "pixels"]
    assert found["data"]["train_images"] == 397 and found["protocol"]["size"] == 8
    score = found["results"]["random weights"]["ridge"]["accuracy"]
    assert len(score["runs"]) == 2 and score["runs"][0] != score["runs"][1]
    assert found["results"]["pixels"]["1-nn"]["accuracy"]["mean"] > 0.9  # what the digits are known for
    assert model.with_random_weights(1).embed(torch.zeros(2, 1, 8, 8)).shape == (2, 64)


def test_the_probe_command_writes_results(run, tmp_path, capsys):
    file = tmp_path / "digits.yaml"
    file.write_text("kind: images\ndataset: {name: digits, val: 1600}\nprobe: {seeds: 1}\n")
    assert main(["probe", "--checkpoint", str(run), "--data", str(file), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["results"]["trained"]["10-nn"]["accuracy"]["mean"] > 0.2 and found["checkpoint"]["dataset"] == "digits"
    assert found["warnings"] == []
    shown = capsys.readouterr().out
    assert "accuracy, %" in shown and "random weights" in shown
    assert main(["compare", str(tmp_path / "results.json"), str(tmp_path / "results.json")]) == 0
    assert "+0.0" in capsys.readouterr().out
    assert main(["probe", "--checkpoint", str(run), "--data", str(file), "--out", str(tmp_path), "dataset.val=1700"]) == 0
    assert "trained on 31 of the 1700 images" in capsys.readouterr().err


def test_results_on_other_images_do_not_compare(run, tmp_path, capsys):
    """Another draw of the digits, or the same files elsewhere."""
    model, config = load_image_model(run), ImageProbeConfig(floors=False, heads=("ridge",))
    scored = [probe_images(model, create("dataset", "digits", val=1400, seed=seed), config) for seed in (0, 0, 1)]
    for name in ("here", "there"):
        root = folder(tmp_path / name, classes=("cat", "dog"), count=4)
        scored.append(probe_images(model, create("dataset", "image_folder", root=str(root)), replace(config, val_split="train")))
    same, other, files, moved = (differences(scored[i], scored[j]) for i, j in ((0, 1), (0, 2), (3, 0), (3, 4)))
    assert same == moved == [] and other == ["scenes or images, or their labels, differ"] and len(files) >= 2


def test_scene_and_image_checkpoints_are_told_apart(run, tmp_path, capsys):
    with pytest.raises(UserError, match="trained on images"):
        load_model(run)
    scenes = tmp_path / "scenes.yaml"
    scenes.write_text("dataset: {name: folder, root: none}\n")
    assert main(["probe", "--checkpoint", str(run), "--data", str(scenes)]) == 2
    assert "trained on images" in capsys.readouterr().err
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("kind: images\ndataset: {name: folder, root: none}\n")
    assert main(["probe", "--checkpoint", str(run), "--data", str(wrong)]) == 2
    assert "name a dataset of images" in capsys.readouterr().err


def test_training_writes_a_model_that_gives_the_same_features(run, tmp_path, capsys):
    x, names = torch.rand(3, 1, 8, 8), ("", "model.safetensors", "checkpoint.pt")
    models = [load_image_model(run.parent / name) for name in names]
    assert all(torch.equal(model.embed(x), models[0].embed(x)) for model in models)
    for model in models:
        assert (model.channels, model.size, model.card) == (1, 8, models[0].card)
    assert models[0].card["method"] == "mae" and models[0].card["inputs"].startswith("1 channels") and models[0].card["scenes"] == 128
    assert (run.parent / "model.safetensors").stat().st_size < run.stat().st_size / 2
    assert main(["export", str(run), "--out", str(tmp_path), "--license", "CC-BY-4.0"]) == 0
    assert main(["export", str(tmp_path)]) == 0 and "license: CC-BY-4.0" in capsys.readouterr().out
    assert torch.equal(load_image_model(tmp_path).embed(x), models[0].embed(x))


def test_a_model_of_scenes_is_no_model_of_images(run, tmp_path):
    weights = read_weights(run)
    write_model(tmp_path / "model.safetensors", Weights(weights.model, weights.state, voxel_size=0.1))
    with pytest.raises(UserError, match="was not trained on images; pcssl.load_model reads it"):
        load_image_model(tmp_path)
    with pytest.raises(UserError, match="was trained on images.*load_image_model reads it"):
        load_model(run.with_name("model.safetensors"))
    with pytest.raises(UserError, match="holds the backbone alone; for probe.layers name the checkpoint.pt"):
        load_image_model(run.with_name("model.safetensors"), with_head=True)


def test_a_probe_needs_labels(run, tmp_path):
    root = folder(tmp_path / "data", classes=("",), count=2)
    with pytest.raises(UserError, match="no labels"):
        probe_images(load_image_model(run), create("dataset", "image_folder", root=str(root)), ImageProbeConfig())


def test_the_train_command_probes_while_and_after_training(tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    overrides = ["data.batch_size=32", "data.dataset.val=1669", "optimizer.epochs=2", "monitor_every=1", "probe.during_training=true",
                 "probe.seeds=1", f"output={out}", "device=cpu", "log_every=2"]  # fmt: skip
    assert main(["train", "configs/image/mae.yaml", *overrides]) == 0
    assert "pixels" in capsys.readouterr().out and (out / "results.json").is_file()
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    assert {"loss", "std/visible", "rank/visible", "images_per_second", "probe/ridge", "probe/10-nn", "lr"} <= set(names)
    assert [e.step for e in events.Scalars("probe/ridge")] == [4, 8]


def test_kinds_that_do_not_fit_are_said_in_a_line(tmp_path, capsys):
    base = [f"output={tmp_path}", "device=cpu"]
    for overrides, message in [
        (["objective.name=msm"], "msm needs a backbone with encode"),
        (["data.dataset={name: folder, root: x}"], "folder holds scenes, but the config says kind: images"),
        (["data.channels=3"], "model.in_channels and data.channels must be the same"),
        (["model.patch=3"], "patches of 3 px"),
    ]:
        assert main(["train", "configs/image/mae.yaml", *base, *overrides]) == 2
        errors = capsys.readouterr().err
        assert message in errors and "Traceback" not in errors and len(errors.strip().splitlines()) == 1


def test_watching_a_run_does_not_change_it(tmp_path):
    root = folder(tmp_path / "data")
    from pcssl.evaluation.images import SmallImageProbe
    from pcssl.training import load_checkpoint

    weights = []
    for name, watch in (("a", False), ("b", True)):
        c = config(tmp_path / name, root, data={"split": "train"})
        probe = ImageProbeConfig(train_split="train", val_split="train")
        monitor = SmallImageProbe(c.data.dataset.build(), probe, 8, 1) if watch else None
        object.__setattr__(c, "monitor_every", 1.0)
        weights.append(load_checkpoint(pretrain(c, images_of(c), monitor=monitor))["objective"])
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
