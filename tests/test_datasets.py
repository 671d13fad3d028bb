"""What a dataset tells a probe: colours, groups of classes, limits."""

import dataclasses
import json
import math
import threading
import time

import pytest
from test_msm import room
from test_training import config

from pcssl.commands.probe import group_scores, probe_and_report
from pcssl.data.datasets import RoomsConfig, rooms
from pcssl.data.limited import Limit
from pcssl.data.manifest import alone
from pcssl.data.preparation import save_scene
from pcssl.evaluation import ProbeConfig
from pcssl.registry import create
from pcssl.training import pretrain


def test_groups_of_classes_have_scores_of_their_own():
    found = group_scores(
        {"trained": {"linear": {"iou": [0.5, None, 0.1, 0.3]}}}, {"head": (0, 1), "common": (2, 3), "tail": (1,)}
    )
    assert found["head"]["trained"]["linear"] == 0.5 and found["common"]["trained"]["linear"] == pytest.approx(0.2)
    assert math.isnan(found["tail"]["trained"]["linear"])  # none of its classes is there


def test_a_probe_reports_groups_and_limit(tmp_path, capsys):
    for i, split in enumerate(("train", "train", "val")):
        scene = room(i, 400)
        scene.labels["segment20"] = (2 - scene.normal.argmax(1)).int()
        scene.instance = scene.labels["segment20"].clone()
        save_scene(scene, tmp_path / "data" / split / f"room{i}")
    source = create("dataset", "folder", root=str(tmp_path / "data"), label="segment20", classes=["a", "b", "c"])
    source = dataclasses.replace(source, groups={"head": (0, 1), "tail": (2,)}, limit=Limit.parse("points-50", None, 3))
    assert sum(int((scene.labels["segment20"] >= 0).sum()) for scene in source.scenes("train")) == 100
    checkpoint = pretrain(config(tmp_path / "run", optimizer={"epochs": 1}), source.scenes("train"))
    protocol = ProbeConfig(seeds=1, train_points=100, epochs=2, neighbors=(1,))
    probe_and_report(checkpoint, source, protocol, tmp_path, "cpu", pictures=1)
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["groups"]) == {"head", "tail"} and "not the benchmark's" in found["limit"]
    assert (tmp_path / "pictures" / "features.png").exists() and "head  " in capsys.readouterr().out
    alone = dataclasses.replace(protocol, heads=("instances",), instance_radius=0.3)
    probe_and_report(checkpoint, source, alone, tmp_path, "cpu", pictures=0)  # nothing to say of groups
    assert "| trained | " in capsys.readouterr().out


def test_scannet_has_two_benchmarks(tmp_path):
    few = create("dataset", "scannet", root=str(tmp_path))
    many = create("dataset", "scannet", root=str(tmp_path), label="segment200")
    assert (few.label, len(few.classes), len(few.colors), few.groups) == ("segment20", 20, 20, {})
    assert (many.label, len(many.classes), len(many.colors), list(many.groups)) == (
        "segment200",
        200,
        200,
        ["head", "common", "tail"],
    )


def test_two_runs_that_begin_at_once_make_the_rooms_once(tmp_path, capfd):
    made = []
    run = threading.Thread(target=lambda: made.append(rooms(RoomsConfig(root=str(tmp_path), scenes=2, val=1))), daemon=True)
    with alone(tmp_path):
        run.start()
        said = ""
        while run.is_alive() and "waiting" not in said:
            time.sleep(0.01)
            said += capfd.readouterr().err
        assert f"{tmp_path}: another run is preparing here; waiting for it" in said
        assert not (tmp_path / "raw").exists()
    run.join()
    assert len(made[0].scenes("train")) == len(made[0].scenes("val")) == 1
