"""Preparation of ScanNet's raw layout: labels, splits, broken scenes, resume, dead workers, Ctrl-C."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from pcssl.commands import prepare as command
from pcssl.data import preparation
from pcssl.data.layouts import scannet
from pcssl.data.layouts.files import read_lists
from pcssl.data.preparation import RawScene
from pcssl.data.scannet_classes import (
    SCANNET20_COLORS,
    SCANNET20_IDS,
    SCANNET20_NAMES,
    SCANNET200_COLORS,
    SCANNET200_GROUPS,
    SCANNET200_IDS,
    SCANNET200_NAMES,
)
from pcssl.errors import UserError

ROOT = Path(__file__).parents[1]

# 6 vertices in 4 segments: 7 and 9 are a chair, 100000 is a wall, 5 is annotated by nobody.
SEGMENT_OF_VERTEX = [7, 7, 9, 100000, 100000, 5]
GROUPS = [
    {"id": 0, "objectId": 0, "segments": [9, 7, 12345], "label": "office chair"},
    {"id": 3, "objectId": 3, "segments": [100000], "label": "wall"},
]
TSV = (
    "id\traw_category\tcategory\tcount\tnyu40id\tnyuClass\n"
    "1\twall\twall\t8277\t1\twall\n"
    "10\toffice chair\toffice chair\t595\t5\tchair\n"
    "13\tunused\tunused\t1\t\t\n"
    "2\toffice chair\tsecond line\t1\t40\t\n"
)


def write_mesh(path, coord=None, name="vertex", extra=None):
    coord = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1]]) if coord is None else coord
    columns = [(c, "f4") for c in "xyz"] + [(c, "u1") for c in ("red", "green", "blue", "alpha")]
    table = np.zeros(len(coord), dtype=columns + [(k, v.dtype) for k, v in (extra or {}).items()])
    for i, c in enumerate("xyz"):
        table[c] = coord[:, i]
    table["red"], table["alpha"] = np.arange(len(coord)), 255
    for key, values in (extra or {}).items():
        table[key] = values
    face = np.array([([0, 1, 2],), ([1, 3, 2],)], dtype=[("vertex_indices", "i4", (3,))])
    PlyData([PlyElement.describe(table, name), PlyElement.describe(face, "face")]).write(str(path))


def write_scene(raw, name, *, labels="segments", aggregation="{}.aggregation.json", info=None):
    folder = raw / name
    folder.mkdir(parents=True)
    write_mesh(folder / f"{name}_vh_clean_2.ply")
    if labels == "segments":
        (folder / aggregation.format(name)).write_text(json.dumps({"sceneId": name, "segGroups": GROUPS}))
        segments = {"sceneId": name, "segIndices": SEGMENT_OF_VERTEX}
        (folder / f"{name}_vh_clean_2.0.010000.segs.json").write_text(json.dumps(segments))
    if labels == "vertices":
        label = np.array([1, 5, 40, 0, 39, 13], dtype="u2")
        write_mesh(folder / f"{name}_vh_clean_2.labels.ply", extra={"label": label})
    if info is not None:
        (folder / f"{name}.txt").write_text(info)
    return folder


def write_lists(folder, **names):
    folder.mkdir(parents=True, exist_ok=True)
    for split, scenes in names.items():
        (folder / f"scannetv2_{split}.txt").write_text("\n".join(scenes) + "\n")


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / scannet.LABEL_MAP).write_text(TSV)
    return raw


def files(out):
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())


def load(folder):
    return {p.stem: np.load(p) for p in folder.glob("*.npy")}


def prepare(raw, out, splits=None, labels_tsv=None, **options):
    source = scannet.find_scannet(raw, splits, labels_tsv)
    return preparation.prepare(source, out, **({"workers": 0, "progress": False} | options))


def test_class_tables():
    assert len(SCANNET20_IDS) == len(SCANNET20_NAMES) == len(SCANNET20_COLORS) == 20
    assert len(set(SCANNET200_IDS)) == len(set(SCANNET200_NAMES)) == 200 == len(SCANNET200_IDS)
    assert dict(zip(SCANNET20_IDS, SCANNET20_NAMES))[39] == "otherfurniture"
    assert dict(zip(SCANNET200_IDS, SCANNET200_NAMES))[1191] == "mattress"
    assert list(SCANNET200_IDS) == sorted(SCANNET200_IDS)
    assert len(set(SCANNET200_COLORS)) == 200
    groups = {name: len(classes) for name, classes in SCANNET200_GROUPS.items()}
    assert groups == {"head": 66, "common": 68, "tail": 66}
    assert sorted(i for classes in SCANNET200_GROUPS.values() for i in classes) == list(range(200))
    colors = dict(zip(SCANNET200_NAMES, SCANNET200_COLORS))
    for name, color in zip(SCANNET20_NAMES, SCANNET20_COLORS):
        assert colors.get(name, color) == color  # the classes of both benchmarks have one colour


def test_official_lists_are_whole_and_disjoint():
    split_of = read_lists(ROOT / "pcssl" / "data" / "splits", scannet.LISTS)
    counts = {split: sum(s == split for s in split_of.values()) for split in ("train", "val", "test")}
    assert counts == {"train": 1201, "val": 312, "test": 100}
    assert {int(name[5:9]) for name in split_of} == set(range(807))
    assert split_of["scene0011_00"] == "val" and split_of["scene0191_00"] == "train"


@pytest.mark.parametrize("parent", [".", "scans"])
@pytest.mark.parametrize("aggregation", ["{}.aggregation.json", "{}_vh_clean.aggregation.json"])
def test_labels_from_segments(raw, tmp_path, parent, aggregation):
    write_scene(raw / parent, "scene0000_00", aggregation=aggregation)
    summary = prepare(raw, tmp_path / "out")
    assert summary.prepared == ["scene0000_00"] and not summary.failed and not summary.unlabelled
    got = load(tmp_path / "out" / "train" / "scene0000_00")
    chair20, chair200 = SCANNET20_NAMES.index("chair"), SCANNET200_NAMES.index("office chair")
    assert got["segment20"].tolist() == [chair20] * 3 + [0, 0, -1]
    assert got["segment200"].tolist() == [chair200] * 3 + [0, 0, -1]
    assert got["instance"].tolist() == [0, 0, 0, 3, 3, -1]
    assert got["color"].tolist() == [[i, 0, 0] for i in range(6)]
    assert got["normal"][:4].tolist() == [[0, 0, 1]] * 4
    dtypes = {name: array.dtype.name for name, array in got.items()}
    assert dtypes == {
        "coord": "float32", "color": "uint8", "normal": "float32",
        "segment20": "int64", "segment200": "int64", "instance": "int64",
    }  # fmt: skip


def test_labels_from_vertices_give_the_20_classes_only(raw, tmp_path):
    write_scene(raw, "scene0000_00", labels="vertices")
    (raw / scannet.LABEL_MAP).unlink()  # not needed for these
    prepare(raw, tmp_path / "out")
    got = load(tmp_path / "out" / "train" / "scene0000_00")
    assert sorted(got) == ["color", "coord", "normal", "segment20"]
    assert got["segment20"].tolist() == [0, 4, -1, -1, 19, -1]


def test_no_labels(raw, tmp_path):
    write_scene(raw / "scans_test", "scene0707_00", labels=None)
    summary = prepare(raw, tmp_path / "out")
    assert summary.unlabelled == ["scene0707_00"]
    assert sorted(load(tmp_path / "out" / "test" / "scene0707_00")) == ["color", "coord", "normal"]


def test_axis_alignment_turns_coordinates_and_normals(raw, tmp_path):
    # A quarter turn about x, which takes z to -y, then a shift.
    info = "numDepthFrames = 5\naxisAlignment = 1 0 0 10 0 0 -1 20 0 1 0 30 0 0 0 1 \nsceneType = Lounge\n"
    write_scene(raw, "scene0000_00", info=info)
    prepare(raw, tmp_path / "out")
    got = load(tmp_path / "out" / "train" / "scene0000_00")
    assert got["coord"][[0, 2, 4]].tolist() == [[10, 20, 30], [10, 20, 31], [10, 19, 30]]
    assert got["normal"][0].tolist() == [0, -1, 0]


def test_info_without_alignment_changes_nothing(raw, tmp_path):
    write_scene(raw, "scene0000_00", info="sceneType = Lounge\n")
    prepare(raw, tmp_path / "out")
    assert load(tmp_path / "out" / "train" / "scene0000_00")["coord"][1].tolist() == [1, 0, 0]


def test_an_invalid_vertex_is_dropped_from_labels_too(raw, tmp_path):
    folder = write_scene(raw, "scene0000_00")
    coord = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [np.nan, 1, 0], [0, 0, 1], [1, 0, 1]])
    write_mesh(folder / "scene0000_00_vh_clean_2.ply", coord)
    summary = prepare(raw, tmp_path / "out")
    assert "dropped 1 of 6" in summary.notes[0]
    got = load(tmp_path / "out" / "train" / "scene0000_00")
    assert got["instance"].tolist() == [0, 0, 0, 3, -1] and len(got["coord"]) == 5


def test_lists_decide_the_split(raw, tmp_path):
    for name in ("a", "b", "c", "d"):
        write_scene(raw, name)
    write_lists(raw / "meta_data", train=["a"], val=["b", "not_downloaded"])
    summary = prepare(raw, tmp_path / "out")
    assert sorted(p.parent.name + "/" + p.name for p in (tmp_path / "out").glob("*/*")) == ["train/a", "val/b"]
    assert summary.unlisted == ["c", "d"] and "left out 2 scenes" in summary.notes[0]
    write_lists(tmp_path / "mine", test=["d"])
    prepare(raw, tmp_path / "out2", splits=tmp_path / "mine")
    assert [p.name for p in (tmp_path / "out2").glob("*/*")] == ["d"]


def test_without_lists_own_scans_go_to_train_with_a_note(raw, tmp_path):
    write_scene(raw, "kitchen", labels=None)
    summary = prepare(raw, tmp_path / "out")
    assert (tmp_path / "out" / "train" / "kitchen").is_dir() and "all scenes go to train" in summary.notes[0]


@pytest.mark.parametrize(
    "lists, message",
    [
        ({"train": ["x"]}, "none of the 1 scenes"),
        ({"train": ["a"], "val": ["a"]}, "also in the train list"),
        ({}, "no scannetv2_train.txt"),
    ],
)
def test_unusable_lists(raw, tmp_path, lists, message):
    write_scene(raw, "a")
    write_lists(tmp_path / "lists", **lists)
    with pytest.raises(UserError, match=message):
        prepare(raw, tmp_path / "out", splits=tmp_path / "lists")
    assert not (tmp_path / "out").exists()


def test_unusable_raw_folder(raw, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="no scenes found; expected"):
        prepare(raw, tmp_path / "out")
    folder = write_scene(raw, "kitchen")
    with pytest.raises(UserError, match="give the folder above"):
        prepare(folder, tmp_path / "out")
    with pytest.raises(UserError, match="workers"):
        prepare(raw, tmp_path / "out", workers=-1)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no scannetv2-labels"),
        ("id\traw_category\n", "no column nyu40id"),
        (TSV.replace("8277\t1", "8277\tx"), "line 2"),
    ],
)
def test_unusable_label_map(raw, tmp_path, content, message):
    write_scene(raw, "a")
    (raw / scannet.LABEL_MAP).unlink()
    if content is not None:
        (raw / scannet.LABEL_MAP).write_text(content)
    with pytest.raises(UserError, match=message):
        prepare(raw, tmp_path / "out")
    (tmp_path / "map.tsv").write_text(TSV)
    assert prepare(raw, tmp_path / "out", labels_tsv=tmp_path / "map.tsv").prepared == ["a"]
    with pytest.raises(UserError, match="none.tsv"):
        prepare(raw, tmp_path / "out", labels_tsv=tmp_path / "none.tsv")


MESH, AGGREGATION, SEGMENTS, INFO = "a_vh_clean_2.ply", "a.aggregation.json", "a_vh_clean_2.0.010000.segs.json", "a.txt"


@pytest.mark.parametrize(
    "file, content, message",
    [
        (MESH, None, "no such file"),
        (MESH, "ply\n", "cut short"),
        (AGGREGATION, None, "aggregation.json that goes with this segs.json is missing"),
        (AGGREGATION, '{"segGroups": [{"id"', "not JSON"),
        (AGGREGATION, '{"groups": []}', "segGroups"),
        (AGGREGATION, '{"segGroups": [{"id": 1, "label": "wall"}]}', "segments"),
        (AGGREGATION, "[]", "segGroups"),
        (SEGMENTS, None, "segs.json that goes with this aggregation.json is missing"),
        (SEGMENTS, '{"segIndices": [1, 2]}', "labels 2 vertices, the mesh has 6"),
        (SEGMENTS, '{"segIndices": ["x"]}', "segIndices"),
        (INFO, "axisAlignment = 1 0 0\n", "not 16 numbers"),
        (INFO, "axisAlignment = " + "x " * 16, "not 16 numbers"),
    ],
)
def test_a_broken_scene_is_reported_and_the_others_prepared(raw, tmp_path, capsys, file, content, message):
    folder = write_scene(raw, "a")
    write_scene(raw, "b")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    summary = prepare(raw, tmp_path / "out", progress=True)
    ((name, reason),) = summary.failed
    assert name == "a" and message in reason and str(folder) in reason and "\n" not in reason
    assert f"failed: a: {reason}\n" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out" / "train") == ["b"]


def test_complete_scenes_are_skipped_unless_told(raw, tmp_path):
    for name in ("a", "b"):
        write_scene(raw, name)
    out = tmp_path / "out"
    (out / "train" / "a.tmp-1").mkdir(parents=True)  # left by a run that was killed
    (out / "train" / "b").mkdir()  # empty: by another tool that was stopped
    assert prepare(raw, out).prepared == ["a", "b"]
    assert sorted(os.listdir(out / "train")) == ["a", "b"]
    before = (out / "train" / "a" / "coord.npy").stat()
    summary = prepare(raw, out)
    assert summary.skipped == ["a", "b"] and not summary.prepared
    assert (out / "train" / "a" / "coord.npy").stat() == before
    assert prepare(raw, out, overwrite=True).prepared == ["a", "b"]


def test_a_failed_write_leaves_nothing_behind(raw, tmp_path, monkeypatch):
    write_scene(raw, "a")
    out = tmp_path / "out"
    prepare(raw, out)
    before = {name: (out / name).read_bytes() for name in files(out)}
    save = np.save

    def full_disk(path, array):
        if "normal" in str(path):
            raise OSError(28, "No space left on device", str(path))
        save(path, array)

    monkeypatch.setattr(np, "save", full_disk)
    for target in (out, tmp_path / "out2"):
        with pytest.raises(OSError, match="No space"):  # no use in trying the other scenes
            prepare(raw, target, overwrite=True)
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    assert files(tmp_path / "out2") == ["manifest.jsonl"] and not (tmp_path / "out2" / "manifest.jsonl").read_text()


def test_workers_give_the_same_files(raw, tmp_path):
    for i in range(5):
        write_scene(raw, f"room{i}")
    (raw / "room3" / "room3_vh_clean_2.ply").write_text("ply\n")
    alone, together = prepare(raw, tmp_path / "one"), prepare(raw, tmp_path / "two", workers=2)
    assert sorted(together.prepared) == alone.prepared == ["room0", "room1", "room2", "room4"]
    assert together.failed == alone.failed
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def die_on_bad(job):
    if job.scene.name == "bad":
        job.target.with_name(f"bad.tmp-{os.getpid()}").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
    return preparation._Outcome()


def test_a_worker_that_dies_costs_only_its_scene(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_attempt", die_on_bad)
    scenes = [RawScene(name, "train", (tmp_path / name,), None) for name in ("bad", "a")]
    jobs = [preparation._Job(scene, "", "", tmp_path, tmp_path / scene.name, again=False) for scene in scenes]
    run = preparation._in_pool(jobs, workers=2, keep=lambda outcome: outcome)
    outcome = {job.scene.name: result.error for job, result in run}
    assert outcome.keys() == {"bad", "a"}
    assert outcome["a"] is None and "died" in outcome["bad"]
    assert os.listdir(tmp_path) == []


SLOW = """
import sys, time
import numpy as np
from pcssl.data.layouts.scannet import find_scannet
from pcssl.data.preparation import prepare
save = np.save
def slow(path, array):
    save(path, array)
    print(path, flush=True)
    time.sleep(0.15)
np.save = slow
prepare(find_scannet(sys.argv[1]), sys.argv[2], workers=0)
"""


def test_a_killed_run_leaves_complete_folders_only_and_goes_on(raw, tmp_path):
    for i in range(3):
        write_scene(raw, f"room{i}")
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SLOW, str(raw), str(out)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for _ in range(8):  # the first scene's 6 arrays and 2 of the second's
        process.stdout.readline()
    process.kill()
    process.communicate(timeout=20)
    assert sorted(os.listdir(out / "train")) == ["room0", f"room1.tmp-{process.pid}"]
    assert len(load(out / "train" / "room0")) == 6
    assert prepare(raw, out).prepared == ["room1", "room2"]
    assert sorted(os.listdir(out / "train")) == ["room0", "room1", "room2"]


def test_ctrl_c_lets_the_pool_finish_what_it_began(raw, tmp_path):
    for i in range(40):
        write_scene(raw, f"room{i:02}")
    out = tmp_path / "out"
    code = (
        "import sys; from pcssl.data.layouts.scannet import *; from pcssl.data.preparation import *; "
        "prepare(find_scannet(sys.argv[1]), sys.argv[2], workers=1)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(raw), str(out)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    until = time.monotonic() + 20
    while not (out / "train" / "room00").exists() and time.monotonic() < until:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the workers too
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0 and b"KeyboardInterrupt" in errors and b"BrokenProcessPool" not in errors
    names = os.listdir(out / "train")
    assert 0 < len(names) < 40 and not any(".tmp-" in name for name in names)
    assert all(len(load(out / "train" / name)) == 6 for name in names)
    summary = prepare(raw, out)
    assert sorted(summary.skipped) == sorted(names) and len(summary.prepared) == 40 - len(names)


def run_command(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_command(raw, tmp_path, capsys):
    write_scene(raw, "a")
    out = tmp_path / "out"
    assert run_command("scannet", "--raw", raw, "--out", out, "--workers", 0) == 0
    assert "1 scenes prepared" in capsys.readouterr().out
    (write_scene(raw, "b") / "b.aggregation.json").write_text("{")
    assert run_command("scannet", "--raw", raw, "--out", out, "--workers", 0) == 1
    said = capsys.readouterr()
    assert "0 scenes prepared, 1 already there, 1 failed" in said.out and "failed: b: " in said.err
    with pytest.raises(UserError):
        run_command("scannet", "--raw", tmp_path / "none", "--out", out)
    with pytest.raises(UserError, match="--workers"):
        run_command("scannet", "--raw", raw, "--out", out, "--workers", -1)


def test_rooms_command_hands_its_options_on(raw, tmp_path, monkeypatch):
    rooms = pytest.importorskip("pcssl.data.rooms")
    asked = {}

    def generate(raw_dir, **options):
        asked.update(options, raw_dir=raw_dir)
        write_scene(raw_dir, "scene0000_00")
        (raw_dir / scannet.LABEL_MAP).write_text(TSV)

    monkeypatch.setattr(rooms, "generate_rooms", generate)
    out = tmp_path / "out"
    assert run_command("rooms", "--scenes", 3, "--val", 1, "--seed", 5, "--out", out, "--workers", 0) == 0
    assert asked == {"raw_dir": out / "raw", "scenes": 3, "val": 1, "seed": 5, "workers": 1, "progress": True}
    assert (out / "train" / "scene0000_00" / "segment200.npy").exists()


def test_real_lounge(real_scans, tmp_path):
    summary = prepare(real_scans, tmp_path)
    assert summary.prepared == summary.unlabelled == ["holo0000_00"]
    got = load(tmp_path / "train" / "holo0000_00")
    assert {name: a.shape for name, a in got.items()} == dict.fromkeys(("coord", "color", "normal"), (99_183, 3))
    np.testing.assert_allclose(np.linalg.norm(got["normal"], axis=1), 1, atol=1e-5)
