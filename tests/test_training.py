"""The training loop: resuming, stopping, checkpoints, what goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_msm import objective, room

from pcssl.commands.train import TrainConfig
from pcssl.config import from_dict, load_config
from pcssl.errors import UserError
from pcssl.objectives.msm import MSMBatch
from pcssl.schedules import cosine, warmup_cosine
from pcssl.training import load_checkpoint, pretrain, save_checkpoint
from pcssl.training.bad_scenes import BadScenes
from pcssl.training.batches import BatchesByCount, BatchesByVoxels, StepBatches, count_voxels, iterate
from pcssl.training.trainer import Stopped, make_optimizer, pick_device

ROOT = Path(__file__).parents[1]
MODEL = {
    "name": "hunet", "channels": [8, 16], "decoder_channels": [8, 16], "blocks": [1, 1], "decoder_blocks": [1, 1],
    "attention": [0, 1], "decoder_attention": [0, 1], "heads": [1, 2], "decoder_heads": [1, 2], "window": 8,
}


class Rooms(list):
    names = [f"room{i}" for i in range(5)]


@pytest.fixture(scope="module")
def scenes():
    return Rooms(room(i, 600) for i in range(5))


def config(output, **sections):
    content = {
        "output": str(output),
        "data": {"dataset": {"name": "folder", "root": "none"}, "voxel_size": 0.2, "batch_size": 2, "workers": 0},
        "model": MODEL,
        "objective": {"name": "msm", "momentum": [0.9, 1.0]},
        "optimizer": {"epochs": 3, "warmup_epochs": 1},
        "device": "cpu",
        "log_every": 1,
        "checkpoint_every": 3,
    }
    for key, value in sections.items():
        merged = isinstance(value, dict) and value.get("name") in (None, content[key].get("name"))
        content[key] = {**content[key], **value} if merged else value
    return from_dict(content, TrainConfig, "test")


def weights(path):
    return load_checkpoint(path)["objective"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_writes_checkpoint_config_and_tensorboard(tmp_path, scenes, capsys):
    path = pretrain(config(tmp_path / "run"), scenes)
    content = load_checkpoint(path)
    assert content["step"] == content["total_steps"] == 6
    assert content["card"]["scenes"] == 5 and content["card"]["split"] == "train"
    assert from_dict(content["config"], TrainConfig) == config(tmp_path / "run")
    assert load_config(tmp_path / "run" / "config.yaml", TrainConfig) == config(tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert not list((tmp_path / "run").glob(".*tmp*"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(lines) == 6 and "loss" in lines[0] and "ETA" in lines[0] and "voxels/s" in lines[0]


def test_tensorboard_holds_the_loss_of_every_level(tmp_path, scenes):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(config(tmp_path), scenes)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    for name in ("loss", "loss/level0", "loss/level1", "std/level0", "matched/level1", "momentum", "lr", "gradient_norm"):
        assert name in names
    assert [e.step for e in events.Scalars("loss")] == list(range(6))


def test_a_resumed_run_ends_with_the_same_weights(tmp_path, scenes, monkeypatch):
    whole = pretrain(config(tmp_path / "whole"), scenes)
    monkeypatch.setattr("pcssl.training.trainer.save_checkpoint", StopAfter(3))
    with pytest.raises(KeyboardInterrupt):
        pretrain(config(tmp_path / "parts"), scenes)
    monkeypatch.undo()
    parts = tmp_path / "parts" / "checkpoint.pt"
    assert load_checkpoint(parts)["step"] == 3 and not same(weights(parts), weights(whole))
    torch.manual_seed(999)  # whatever the process did before
    assert pretrain(config(tmp_path / "parts"), scenes, resume=True) == parts
    assert same(weights(parts), weights(whole))


class StopAfter:
    """Saves, then ends the run as a kill would."""

    def __init__(self, step):
        self.step = step

    def __call__(self, path, content):
        save_checkpoint(path, content)
        if content["step"] >= self.step:
            raise KeyboardInterrupt


def test_the_number_of_workers_changes_nothing(tmp_path, scenes):
    a = pretrain(config(tmp_path / "a", optimizer={"epochs": 1}), scenes)
    b = pretrain(config(tmp_path / "b", optimizer={"epochs": 1}, data={"workers": 2}), scenes)
    assert same(weights(a), weights(b))


def test_another_seed_is_another_run(tmp_path, scenes):
    a = pretrain(config(tmp_path / "a", optimizer={"epochs": 1}), scenes)
    b = pretrain(config(tmp_path / "b", optimizer={"epochs": 1}, seed=1), scenes)
    assert not same(weights(a), weights(b))


def test_an_existing_run_is_not_overwritten(tmp_path, scenes):
    path = pretrain(config(tmp_path, optimizer={"epochs": 1}), scenes)
    before = path.read_bytes()
    with pytest.raises(UserError, match="--resume"):
        pretrain(config(tmp_path, optimizer={"epochs": 1}), scenes)
    with pytest.raises(UserError, match="objective differ"):
        pretrain(config(tmp_path, optimizer={"epochs": 1}, objective={"mask_ratio": 0.5}), scenes, resume=True)
    assert path.read_bytes() == before


def test_a_complete_run_is_left_as_it_is(tmp_path, scenes, capsys):
    path = pretrain(config(tmp_path, optimizer={"epochs": 1}), scenes)
    before = path.stat().st_mtime_ns
    assert pretrain(config(tmp_path, optimizer={"epochs": 1}), scenes, resume=True) == path
    assert path.stat().st_mtime_ns == before and "complete" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_scenes(tmp_path, scenes):
    path = pretrain(config(tmp_path), scenes)
    before = path.read_bytes()
    fewer = Rooms(scenes[:3])
    fewer.names = Rooms.names[:3]
    with pytest.raises(UserError, match=r"other scenes than are there now \(5 then, 3 now\)"):
        pretrain(config(tmp_path), fewer, resume=True)
    assert path.read_bytes() == before


def test_a_checkpoint_names_what_the_one_before_it_has_seen(tmp_path, scenes):
    """Else what a first run has seen would be hidden from the warnings of leakage."""
    first = pretrain(config(tmp_path / "a", optimizer={"epochs": 1}), scenes)
    later = Rooms([room(8, 300), scenes[0]])
    later.names = ["late", "room0"]
    settings = config(tmp_path / "b", optimizer={"epochs": 1}, init=str(first))
    card = load_checkpoint(pretrain(settings, later))["card"]
    assert card["scene_names"] == ["late", "room0", "room1", "room2", "room3", "room4"] and card["scenes"] == 2
    assert pretrain(settings, later, resume=True).exists()
    unknown = pretrain(config(tmp_path / "c", optimizer={"epochs": 1}), list(scenes))
    card = load_checkpoint(pretrain(config(tmp_path / "d", optimizer={"epochs": 1}, init=str(unknown)), later))["card"]
    assert card["scene_names"] is None


def test_a_stop_in_the_last_step_stops_what_comes_after_it_too(tmp_path, scenes):
    settings = config(tmp_path, optimizer={"epochs": 1}, monitor_every=1.0)

    def interrupted(backbone, step):
        signal.raise_signal(signal.SIGINT)
        return {}

    with pytest.raises(Stopped, match="is complete"):
        pretrain(settings, scenes, monitor=interrupted)
    assert pretrain(settings, scenes, resume=True).with_name("model.safetensors").exists()


def test_steps_without_a_finite_loss_are_skipped_and_then_stop_the_run(tmp_path, scenes, monkeypatch):
    from pcssl.objectives.msm import MSM

    good, calls = MSM.forward, []

    def sometimes(self, batch, step):
        calls.append(step)
        out = good(self, batch, step)
        return {**out, "loss": out["loss"] * torch.nan} if step == 1 else out

    monkeypatch.setattr(MSM, "forward", sometimes)
    content = load_checkpoint(pretrain(config(tmp_path / "one"), scenes))
    assert calls == list(range(6)) and all(torch.isfinite(v).all() for v in content["objective"].values())
    monkeypatch.setattr(MSM, "forward", lambda self, b, s: {"loss": good(self, b, s)["loss"] * torch.inf})
    with pytest.raises(UserError, match="20 steps in a row"):
        pretrain(config(tmp_path / "all", optimizer={"epochs": 30}), scenes)
    kept = sorted((tmp_path / "all" / "bad_steps").glob("*.pt"))
    assert len(kept) == 5
    monkeypatch.setattr(MSM, "forward", good)
    content = load_checkpoint(kept[0])
    batch = MSMBatch(**content["batch"])
    assert content["step"] == 0 and batch.num_voxels > 0 and torch.isfinite(objective()(batch, 0)["loss"])
    assert len(list((tmp_path / "one" / "bad_steps").glob("step_1.pt"))) == 1


@pytest.mark.parametrize("method", [{"name": "msm"}, {"name": "scene_distillation", "hidden": 16, "bottleneck": 8, "prototypes": 8}])
def test_a_batch_that_is_not_finite_leaves_nothing_behind(tmp_path, scenes, monkeypatch, method):
    """Neither in the weights nor in what a method keeps of a step, also on a step that takes health metrics."""
    build, made = StepBatches.__getitem__, []

    def sometimes(self, step):
        batch, bad = build(self, step)
        made.append(step)
        return (replace(batch, features=batch.features * torch.nan) if step == 2 else batch), bad

    monkeypatch.setattr(StepBatches, "__getitem__", sometimes)
    content = load_checkpoint(pretrain(config(tmp_path, objective=method), scenes))
    assert made == list(range(6)) and len(list((tmp_path / "bad_steps").glob("*.pt"))) == 1
    # Statistics of BatchNorms serve heads that only training uses.
    kept = {k: v for k, v in content["objective"].items() if "running_" not in k}
    assert all(torch.isfinite(v).all() for v in kept.values())


def test_a_scene_that_cannot_be_used_is_named(tmp_path, scenes):
    bad = Rooms([*scenes[:4], room(4, 600)])
    bad[4].normal = None
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"scene 4 \(room4\).*needs color and normal"):
            pretrain(config(tmp_path / str(workers), data={"workers": workers}), bad)


def test_one_scene_fills_a_batch(tmp_path, scenes):
    pretrain(config(tmp_path, data={"batch_size": 3}, optimizer={"epochs": 1}), Rooms(scenes[:1]))


def test_an_epoch_takes_every_scene_once():
    batches = BatchesByCount(10, 3, epochs=2, seed=7)
    assert batches.per_epoch == 3 and batches.total == 6
    epochs = [[i for s in range(e * 3, e * 3 + 3) for i in batches.indices(s)] for e in range(2)]
    assert all(len(set(e)) == 9 for e in epochs) and epochs[0] != epochs[1]
    assert len(BatchesByCount(2, 3, epochs=1, seed=7).indices(0)) == 3


def test_batches_by_voxels_fill_their_budget_with_every_scene_once():
    voxels = [50, 900, 300, 1500, 20, 480, 520, 700, 10, 260]
    batches = BatchesByVoxels(voxels, 1000, epochs=3, seed=7)
    steps = [batches.indices(step) for step in range(batches.total)]
    assert sorted(i for indices in steps for i in indices) == sorted([*range(10)] * 3)
    for indices in steps:
        assert len(indices) == 1 or sum(voxels[i] for i in indices) <= 1000
    seen, epochs = [], []
    for indices in steps:
        seen += indices
        if len(seen) == 10:
            epochs.append(tuple(seen))
            seen = []
    assert not seen and len(set(epochs)) == 3
    assert batches.per_epoch == batches.total / 3 < 10


def test_training_by_voxel_budget(tmp_path, scenes):
    path = pretrain(config(tmp_path, data={"max_voxels": 1200}, optimizer={"epochs": 2}), scenes)
    voxels = count_voxels(scenes, 0.2)
    assert load_checkpoint(path)["step"] == BatchesByVoxels(voxels, 1200, 2, 0).total


@pytest.mark.parametrize("data", [{"crop": 2.0}, {"crop": [2.0, 1.5, 3.0]}, {"mix": 1.0}])
def test_training_on_parts_and_mixtures(tmp_path, scenes, data):
    changed = pretrain(config(tmp_path / "a", data=data, optimizer={"epochs": 1}), scenes)
    plain = pretrain(config(tmp_path / "b", optimizer={"epochs": 1}), scenes)
    assert not same(weights(changed), weights(plain))


def test_batches_start_anywhere(scenes):
    msm = objective()
    plan = BatchesByCount(len(scenes), 2, epochs=3, seed=0)
    batches = StepBatches(scenes, msm.sampler(), msm.collate, plan.indices, seed=0)
    late = dict(iterate(batches, range(3, 5), 0, False, BadScenes(5, 0)))
    full = dict(iterate(batches, range(5), 1, False, BadScenes(5, 0)))
    assert list(late) == [3, 4] and torch.equal(late[4].features, full[4].features)


def test_weight_decay_spares_norms_gammas_biases_and_tokens():
    msm = objective()
    optimizer = make_optimizer(msm, config("x").optimizer)
    free = {id(p) for p in optimizer.param_groups[1]["params"]}
    assert optimizer.param_groups[1]["weight_decay"] == 0 and optimizer.param_groups[0]["weight_decay"] == 0.05
    for name, p in msm.named_parameters():
        if p.requires_grad:
            spared = any(word in name for word in ("norm", "gamma", "bias", "tokens", "scale")) or p.ndim == 1
            assert (id(p) in free) == spared, name


def test_schedules():
    assert cosine(0, 10, 1.0, 3.0) == 1.0 and cosine(10, 10, 1.0, 3.0) == 3.0 and cosine(5, 10, 1.0, 3.0) == 2.0
    lr = [warmup_cosine(s, 5, 20, 1.0) for s in range(20)]
    assert lr[:6] == sorted(lr[:6]) and 0 < lr[0] < 0.2 and lr[5] == 1.0 and lr[5:] == sorted(lr[5:], reverse=True)
    assert lr[-1] < 0.02


# ---------------------------------------------------------------- what goes wrong around it


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    before = path.read_bytes()
    code = f"""
import resource, signal, sys, torch
from pathlib import Path
from pcssl.training import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(Path({str(path)!r}), {{"step": 2, "x": torch.zeros(1_000_000)}})
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.stdout.startswith("UserError cannot write checkpoint"), done.stdout + done.stderr
    assert "still holds the one before" in done.stdout and len(done.stdout.splitlines()) == 1
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["checkpoint.pt"]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_damaged_checkpoints_are_refused(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="checkpoint.pt"):
        load_checkpoint(path)


def test_a_checkpoint_cut_short_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"x": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="cannot read checkpoint"):
        load_checkpoint(path)


def test_checkpoints_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"format": "pcssl-checkpoint-1", "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="cannot read"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_devices():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="no device"):
        pick_device("quantum")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA GPU"):
            pick_device("cuda")


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path):
    """The real command, stopped by a signal, continued with --resume."""
    data = tmp_path / "data" / "train"
    for i in range(4):
        folder = data / f"scene{i}"
        folder.mkdir(parents=True)
        import numpy as np

        scene = room(i, 600)
        np.save(folder / "coord.npy", scene.coord.numpy())
        np.save(folder / "color.npy", scene.color.numpy())
        np.save(folder / "normal.npy", scene.normal.numpy())
    file = tmp_path / "run.yaml"
    file.write_text(
        f"""
output: {tmp_path / "run"}
data: {{dataset: {{name: folder, root: {tmp_path / "data"}}}, voxel_size: 0.2, batch_size: 2, workers: 1}}
model: {{name: hunet, channels: [8, 16], decoder_channels: [8, 16], blocks: [1, 1], decoder_blocks: [1, 1],
  attention: [0, 0], decoder_attention: [0, 0], heads: [1, 1], decoder_heads: [1, 1]}}
objective: {{name: msm}}
optimizer: {{epochs: 100000, warmup_epochs: 1}}
device: cpu
log_every: 1
"""
    )
    command = [sys.executable, "-m", "pcssl", "train", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    for line in process.stderr:
        if line.startswith("step 3/"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "continue with --resume" in errors
    step = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"]
    assert step >= 3
    again = subprocess.Popen([*command, "--resume"], stderr=subprocess.PIPE, text=True, env=environment())
    first = next(line for line in again.stderr if line.startswith("step "))
    assert first.startswith(f"step {step + 1}/")
    again.send_signal(signal.SIGTERM)
    assert again.wait(timeout=60) == 130
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] > step
    again.stderr.close()
