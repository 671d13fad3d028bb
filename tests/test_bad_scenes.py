"""Bad data among good: left out and counted in training, an error in evaluation."""

import os

import numpy as np
import pytest
import torch
from test_msm import room
from test_training import config, weights

from pcssl.data.crops import SceneChange
from pcssl.data.preparation import save_scene
from pcssl.data.prepared import PreparedDataset
from pcssl.errors import UserError
from pcssl.evaluation import ProbeConfig, load_model, probe
from pcssl.registry import create
from pcssl.training import pretrain
from pcssl.training.bad_scenes import BadScene, BadScenes
from pcssl.training.batches import BatchesByCount, StepBatches, count_voxels, iterate


def truncate(folder):
    os.truncate(folder / "color.npy", 200)


def empty(folder):
    np.save(folder / "coord.npy", np.zeros((0, 3)))


def not_finite(folder):
    np.save(folder / "coord.npy", np.full((len(np.load(folder / "coord.npy")), 3), np.nan))


def without_files(folder):
    for path in folder.iterdir():
        path.unlink()


DAMAGE = {"room1": truncate, "room3": empty, "room4": not_finite, "room6": without_files}
REASONS = {"room1": "not a npy file, or damaged", "room3": "points", "room4": "NaN", "room6": "no coord"}


@pytest.fixture
def root(tmp_path):
    for i in range(8):
        save_scene(room(i, 400), tmp_path / "data" / "train" / f"room{i}")
    return tmp_path / "data"


def damage(root, *names):
    for name in names:
        DAMAGE[name](root / "train" / name)
    return PreparedDataset(root, "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_leaves_bad_scenes_out_and_counts_them(root, tmp_path, capfd, workers):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scenes = damage(root, *DAMAGE)
    pretrain(config(tmp_path / "run", data={"max_bad": 0.5, "workers": workers}), scenes)
    said = capfd.readouterr().err
    for name, reason in REASONS.items():
        (line,) = [line for line in said.splitlines() if line.startswith("left out") and f"({name})" in line]
        assert reason in line and str(root) in line
    assert said.count("of 8 training scenes left out") == 3 and "epoch 3: 4 of 8 training scenes left out" in said
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert events.Scalars("bad_scenes")[-1].value == 4


def test_too_many_stop_the_run_before_it_learns_anything(root, tmp_path):
    scenes = damage(root, *DAMAGE)
    run = tmp_path / "run"
    with pytest.raises(UserError, match="4 of 8 training scenes cannot be used, data.max_bad=0.4 allows 3") as caught:
        pretrain(config(run, data={"max_bad": 0.4}, checkpoint_every=1), scenes)
    for name, reason in REASONS.items():
        assert f"({name}): " in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="1 of 8"):  # by default one of twenty may be bad
        pretrain(config(tmp_path / "run2"), scenes)
    assert not (tmp_path / "run2" / "checkpoint.pt").exists()


def test_nothing_but_bad_scenes(root, tmp_path):
    for i in range(8):
        not_finite(root / "train" / f"room{i}")
    for workers in (0, 1):
        with pytest.raises(UserError, match="8 of 8 training scenes cannot be used.*; and 3 more"):
            pretrain(
                config(tmp_path / str(workers), data={"max_bad": 1.0, "workers": workers}),
                PreparedDataset(root, "train"),
            )


def test_good_scenes_train_as_without_the_limit(root, tmp_path):
    scenes = PreparedDataset(root, "train")
    one, two = (weights(pretrain(config(tmp_path / str(f), data={"max_bad": f}), scenes)) for f in (0.0, 0.5))
    assert all(torch.equal(one[key], two[key]) for key in one)


def batches(scenes, allowed, mix=0.0):
    def sample(scene, rng):
        return scene.name, int(torch.randint(99, (), generator=rng))

    plan = BatchesByCount(len(scenes), 3, epochs=10, seed=0)
    return StepBatches(scenes, sample, list, plan.indices, 0, SceneChange(None, mix), allowed)


def test_a_bad_partner_of_a_mixed_scene_is_the_bad_one(root):
    bad = BadScenes(8, 0.25)
    scenes = damage(root, "room1", "room3")
    found = dict(iterate(batches(scenes, 2, mix=1.0), range(20), 0, False, bad))
    assert len(bad) == 2 and sorted(bad._found) == [1, 3]
    parts = [part for batch in found.values() for name, _ in batch for part in name.split("+")]
    assert len(parts) == 120 and not {"room1", "room3"} & set(parts)


def test_a_bad_scene_has_no_voxels(root):
    counts = count_voxels(damage(root, "room1"), 0.2)
    assert counts[1] == 0 and min(counts[:1] + counts[2:]) > 0


def test_who_stands_in_follows_from_seed_and_step(root):
    scenes = damage(root, "room1", "room3")
    first = dict(iterate(batches(scenes, 2), range(20), 0, False, BadScenes(8, 0.25)))
    second = dict(iterate(batches(scenes, 2), range(20), 2, False, BadScenes(8, 0.25)))
    late = dict(iterate(batches(scenes, 2), range(13, 20), 0, False, BadScenes(8, 0.25)))
    assert first == second and all(first[step] == late[step] for step in late)
    used = [name for batch in first.values() for name, _ in batch]
    assert len(used) == 60 and set(used) == {f"room{i}" for i in (0, 2, 4, 5, 6, 7)}


def test_scenes_are_counted_once():
    bad = BadScenes(10, 0.2)
    for _ in range(3):
        bad.add([BadScene(4, "a", "x"), BadScene(7, "b", "y")])
    assert len(bad) == 2 and str(bad) == "2 of 10 training scenes left out as unusable (data.max_bad allows 2)"
    with pytest.raises(UserError, match=r"3 of 10 .*: scene 4 \(a\): x; scene 7 \(b\): y; scene 1 \(c\): z\."):
        bad.add([BadScene(1, "c", "z")])


def test_evaluation_stops_at_a_bad_scene(root, tmp_path):
    path = pretrain(config(tmp_path / "run", optimizer={"epochs": 1}), PreparedDataset(root, "train"))
    for i in range(8, 10):
        scene = room(i, 400)
        scene.labels["segment20"] = torch.zeros(len(scene), dtype=torch.int32)
        save_scene(scene, root / "val" / f"room{i}")
    truncate(root / "val" / "room9")
    data = create("dataset", "folder", root=str(root), label="segment20", classes=["floor", "wall"])
    with pytest.raises(UserError, match="room9.*damaged"):
        probe(load_model(path), data, ProbeConfig(train_split="val", seeds=1, epochs=1))
