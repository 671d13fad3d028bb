"""Training with labels: what is learnt, fine-tuning, and the ceilings of a probe."""

import shutil
import signal

import pytest
import torch
from test_evaluation import Source
from test_msm import room
from test_training import config, weights

from pcssl.data.settings import DataConfig
from pcssl.data.transforms import AugmentConfig
from pcssl.errors import UserError
from pcssl.evaluation import PointFeatures, ProbeConfig, load_model, probe
from pcssl.evaluation.ceilings import load_supervised, train_with_labels
from pcssl.objectives.supervised import SupervisedConfig, SupervisedSampler
from pcssl.training import load_checkpoint, pretrain
from pcssl.training.trainer import Progress

LABELLED = {"name": "supervised", "classes": 3}


@pytest.fixture(scope="module")
def scenes():
    found = Source().scenes("train")
    for i, scene in enumerate(found):
        scene.name = f"room{i}"
    return found


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, scenes):
    return pretrain(config(tmp_path_factory.mktemp("msm"), optimizer={"epochs": 1, "warmup_epochs": 0}), scenes)


def test_labels_are_learnt(tmp_path, scenes):
    upright = {"augment": {"rotate_z": 0.0, "tilt": 0.0, "flip": 0.0}}  # the labels are directions
    settings = config(tmp_path, data=upright, objective=LABELLED, optimizer={"epochs": 40, "lr": 0.01}, checkpoint_every=1000)
    trained = load_supervised(pretrain(settings, scenes))
    scene = Source().scenes("val")[0]
    hit = trained.predict(trained.model.extract(scene).features) == scene.labels["segment20"]
    assert float(hit.float().mean()) > 0.9


def sample(scene, seed=0, **options):
    still = AugmentConfig(
        scale=(1.0, 1.0), rotate_z=0.0, tilt=0.0, flip=0.0, jitter=0.0, elastic_probability=0.0,
    )  # fmt: skip
    sampler = SupervisedSampler(SupervisedConfig(classes=3, **options), DataConfig(None, voxel_size=0.2, augment=still))
    return sampler(scene, torch.Generator().manual_seed(seed))


def test_labels_stand_at_their_points(scenes):
    scene = scenes[0]
    scene.labels["segment20"][::7] = -1
    found = sample(scene, points=100)
    assert len(found.label) == 100 and (found.label >= 0).all()
    low = scene.coord.amin(0)
    middle = (low + scene.coord.amax(0)) / 2
    centred = scene.coord - torch.stack([middle[0], middle[1], low[2]])
    place = found.place * 0.2 + found.view.shift
    away, row = torch.cdist(place, centred, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert float(away.max()) < 1e-4 and torch.equal(scene.labels["segment20"][row].long(), found.label)


def test_a_cut_view_keeps_only_its_own_points(scenes):
    found = sample(scenes[0], max_voxels=50)
    assert len(found.view.index) == 50 and 0 < len(found.label) < len(scenes[0])
    cells = {tuple(c) for c in found.view.index.tolist()}
    assert all(tuple(c) in cells for c in found.place.floor().int().tolist())


@pytest.mark.parametrize("options,message", [({"label": "other"}, "no label 'other'"), ({}, "label 5 is not below")])
def test_labels_that_do_not_fit(scenes, options, message):
    scene = room(0, 100)
    scene.labels["segment20"] = torch.full((100,), 5, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        sample(scene, **options)


def test_finetuning_starts_from_the_checkpoint(tmp_path, scenes, pretrained):
    frozen = {**LABELLED, "backbone_lr": 0.0}
    settings = config(tmp_path, objective=frozen, optimizer={"epochs": 2}, init=str(pretrained))
    path = pretrain(settings, scenes)
    before, after = load_model(pretrained).backbone.state_dict(), load_model(path).backbone.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    head = weights(path)["head.1.weight"]
    assert not torch.equal(head, weights(pretrain(config(tmp_path / "b", objective=LABELLED, optimizer={"epochs": 2}), scenes))["head.1.weight"])


def test_a_run_from_weights_that_do_not_fit(tmp_path, scenes, pretrained):
    settings = config(tmp_path, objective=LABELLED, init=str(pretrained), model={"channels": [8, 24], "decoder_channels": [8, 24]})
    with pytest.raises(UserError, match="does not fit HUNet"):
        pretrain(settings, scenes)


def test_probe_reports_the_ceilings_and_keeps_their_runs(tmp_path, pretrained):
    settings = ProbeConfig(heads=("linear", "supervised", "finetune"), train_points=100, epochs=2, seeds=2, floors=False, views=2)
    arguments = {"cache": tmp_path, "report": lambda line: None}
    found = probe(load_model(pretrained), Source(), settings, checkpoint=pretrained, **arguments)["results"]
    assert set(found) == {"trained", "supervised", "finetune"}
    assert len(found["supervised"]["supervised"]["miou"]["runs"]) == 2
    assert set(found["finetune"]) == {"finetune", "finetune, 2 views"}
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("supervised-*/checkpoint.pt")}
    assert len(times) == 2
    again = probe(load_model(pretrained), Source(), settings, checkpoint=pretrained, **arguments)["results"]
    assert again == found and times == {p: p.stat().st_mtime_ns for p in times}
    with pytest.raises(UserError, match="need the checkpoint"):
        probe(load_model(pretrained), Source(), settings, report=lambda line: None)


def test_a_kept_fine_tuning_is_of_the_weights_not_of_their_path(tmp_path, scenes, monkeypatch):
    """The checkpoint may have moved since: a complete run is taken, a stopped one goes on."""
    two_steps = pretrain(config(tmp_path / "run", optimizer={"epochs": 2}), scenes)
    shutil.copy(two_steps, tmp_path / "two.pt")
    add = Progress.add
    monkeypatch.setattr(Progress, "add", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train_with_labels(two_steps, "finetune", scenes, "segment20", 3, tmp_path / "kept", 0)
    monkeypatch.setattr(Progress, "add", add)
    train_with_labels(tmp_path / "two.pt", "finetune", scenes, "segment20", 3, tmp_path / "kept", 0)
    done = tmp_path / "kept" / "checkpoint.pt"
    before = done.stat().st_mtime_ns
    assert load_checkpoint(done)["step"] == 2
    train_with_labels(two_steps, "finetune", scenes, "segment20", 3, tmp_path / "kept", 0)
    assert done.stat().st_mtime_ns == before


def test_the_ceiling_has_the_budget_of_the_checkpoint(tmp_path, scenes, pretrained):
    train_with_labels(pretrained, "supervised", scenes, "segment20", 3, tmp_path, 0)
    mine, theirs = load_checkpoint(tmp_path / "checkpoint.pt"), load_checkpoint(pretrained)
    assert mine["total_steps"] == theirs["total_steps"] == mine["step"]
    assert mine["config"]["data"] == theirs["config"]["data"] and mine["config"]["model"] == theirs["config"]["model"]


def test_other_scenes_than_the_checkpoints_take_as_many_steps(tmp_path, scenes):
    """Three times as many scenes before: three times as many epochs now."""
    settings = config(tmp_path / "many", optimizer={"epochs": 2, "warmup_epochs": 1}, data={"batch_size": 3})
    many = pretrain(settings, scenes * 3)
    train_with_labels(many, "supervised", scenes, "segment20", 3, tmp_path / "few", 0)
    content = load_checkpoint(tmp_path / "few" / "checkpoint.pt")
    assert content["total_steps"] == load_checkpoint(many)["total_steps"] == 6
    assert content["config"]["optimizer"]["epochs"] == 6 and content["config"]["optimizer"]["warmup_epochs"] == 3


def test_ctrl_c_in_training_with_labels_ends_the_probe(tmp_path, scenes, monkeypatch):
    two_steps = pretrain(config(tmp_path / "run", optimizer={"epochs": 2}), scenes)
    monkeypatch.setattr(Progress, "add", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train_with_labels(two_steps, "supervised", scenes, "segment20", 3, tmp_path, 0)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 1


def test_heads_that_need_a_run_refuse_weights_alone_before_anything_else(tmp_path, pretrained, monkeypatch):
    monkeypatch.setattr(PointFeatures, "encode", lambda *_: pytest.fail("the backbone ran first"))
    settings = ProbeConfig(heads=("linear", "supervised"))
    with pytest.raises(UserError, match="is not a checkpoint of a pcssl run"):
        probe(load_model(pretrained), Source(), settings, checkpoint=pretrained.with_name("model.safetensors"), report=lambda line: None)


def test_a_checkpoint_without_a_head(pretrained):
    with pytest.raises(UserError, match="no head"):
        load_supervised(pretrained)
