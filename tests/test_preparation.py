"""The manifest of a preparation: what is done again and what not, shares, splits, damage, locks."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_scannet import TSV, files, prepare, write_lists, write_mesh, write_scene

from pcssl.cli import main
from pcssl.data.layouts import scannet
from pcssl.data.manifest import Entry, Manifest, Shard, hash_files
from pcssl.data.prepared import PreparedDataset
from pcssl.data.storage import pack
from pcssl.errors import UserError

ROOT = Path(__file__).parents[1]
MANIFEST = "manifest.jsonl"


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / scannet.LABEL_MAP).write_text(TSV)
    for i in range(4):
        write_scene(raw, f"room{i}")
    return raw


def entries(out, name=MANIFEST):
    return [Entry.from_json(line) for line in (out / name).read_text().splitlines()]


def tree(out):
    """Every file's content and time but the manifest's."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*.npy")}


def test_an_entry_says_what_the_scene_is_made_from_and_holds(raw, tmp_path):
    out = tmp_path / "out"
    write_scene(raw / "scans_test", "test0", labels=None)
    write_lists(raw, train=["room0", "room1"], val=["room2", "room3"], test=["test0"])
    prepare(raw, out)
    found = entries(out)
    assert [e.key for e in found] == ["test/test0", "train/room0", "train/room1", "val/room2", "val/room3"]
    entry = found[1]
    assert (entry.dataset, entry.raw, entry.points) == ("scannet", str(raw), 6)
    assert entry.labels["segment20"] == {"-1": 1, "0": 2, "4": 3} and found[0].labels == {}
    assert {f.path for f in entry.source} == {
        "room0/room0_vh_clean_2.ply", "room0/room0.aggregation.json", "room0/room0_vh_clean_2.0.010000.segs.json",
        scannet.LABEL_MAP,
    }  # fmt: skip
    for file in entry.source:
        status = (raw / file.path).stat()
        assert (file.size, file.mtime) == (status.st_size, status.st_mtime_ns)
        assert file.sha256 == hash_files([raw / file.path])
    folder = out / "train" / "room0"
    assert entry.files == {p.name: p.stat().st_size for p in folder.glob("*.npy")} and len(entry.files) == 6
    assert entry.sha256 == hash_files(sorted(folder.glob("*.npy")))


def test_a_second_run_does_nothing(raw, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out)
    before, manifest = tree(out), (out / MANIFEST).read_text()
    summary = prepare(raw, out, verify=True)
    assert len(summary.skipped) == 4 and not summary.prepared and not summary.changed
    assert tree(out) == before and (out / MANIFEST).read_text() == manifest


def test_only_what_changed_is_prepared_again(raw, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out)
    before = tree(out)
    write_mesh(raw / "room1" / "room1_vh_clean_2.ply", np.eye(6, 3))
    (raw / "room2" / "room2.txt").write_text("axisAlignment = " + " ".join(map(str, 2 * np.eye(4).ravel())) + "\n")
    os.utime(raw / "room3" / "room3_vh_clean_2.ply")  # another time, the same content
    write_scene(raw, "room9")
    summary = prepare(raw, out)
    assert (sorted(summary.prepared), summary.changed) == (["room1", "room2", "room9"], ["room1", "room2"])
    assert summary.skipped == ["room0", "room3"] and "3 scenes prepared, 2 of them anew, 2 already there" in str(
        summary
    )
    assert {p.parent.name for p, now in tree(out).items() if before.get(p) != now} == {"room1", "room2", "room9"}
    assert prepare(raw, out).prepared == []
    (raw / scannet.LABEL_MAP).write_text(TSV.replace("5\tchair", "7\tchair"))
    assert len(prepare(raw, out).changed) == 5
    assert (np.load(out / "train" / "room0" / "segment20.npy") == 6).sum() == 3


def test_a_missing_or_truncated_prepared_file_is_made_again(raw, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out)
    before = {p: content for p, (content, _) in tree(out).items()}
    (out / "train" / "room0" / "color.npy").unlink()
    os.truncate(out / "train" / "room1" / "coord.npy", 100)
    assert prepare(raw, out).changed == ["room0", "room1"]
    path = out / "train" / "room2" / "coord.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # the same size
    assert prepare(raw, out).changed == [] and prepare(raw, out, verify=True).changed == ["room2"]
    assert {p: content for p, (content, _) in tree(out).items()} == before


def test_a_changed_source_of_the_same_size_and_time_needs_verify(raw, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out)
    path = raw / "room0" / "room0.aggregation.json"
    time_ = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("wall", "Wall"))
    os.utime(path, ns=(time_, time_))
    assert prepare(raw, out).changed == [] and prepare(raw, out, verify=True).changed == ["room0"]


def test_another_recipe_is_another_result(raw, tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare(raw, out)
    assert not prepare(raw, out).prepared
    source = scannet.find_scannet(raw)
    source.recipe = "scannet 2"
    monkeypatch.setattr(scannet, "find_scannet", lambda *_: source)
    assert len(prepare(raw, out).changed) == 4


def test_scenes_that_left_the_source_are_reported_and_kept(raw, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out)
    (raw / "room3").rename(tmp_path / "elsewhere")
    summary = prepare(raw, out)
    assert summary.gone == ["train/room3"] and "1 no more in the source" in str(summary)
    assert any("train/room3" in note for note in summary.notes) and (out / "train" / "room3").is_dir()
    assert "room3" in PreparedDataset(out, "train").names


def test_a_scene_whose_split_changes_moves(raw, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out)
    write_lists(raw, train=["room0", "room1", "room2"], val=["room3"])
    summary = prepare(raw, out)
    assert summary.moved == ["room3"] and not summary.prepared and not summary.gone
    assert files(out / "val") == [
        f"room3/{n}.npy" for n in ("color", "coord", "instance", "normal", "segment20", "segment200")
    ]
    assert not (out / "train" / "room3").exists()
    assert [e.key for e in entries(out)] == ["train/room0", "train/room1", "train/room2", "val/room3"]


def test_two_raw_folders_can_go_into_one(raw, tmp_path):
    out, second = tmp_path / "out", tmp_path / "second"
    second.mkdir()
    write_scene(second, "kitchen", labels=None)
    prepare(raw, out)
    summary = prepare(second, out)
    assert summary.prepared == ["kitchen"] and not summary.gone
    assert len(entries(out)) == 5 and len(prepare(raw, out).skipped) == 4


def test_a_raw_folder_that_moved_is_the_same(raw, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out)
    raw.rename(tmp_path / "moved")
    summary = prepare(tmp_path / "moved", out)
    assert len(summary.skipped) == 4 and not summary.gone
    assert {e.raw for e in entries(out)} == {str(tmp_path / "moved")}


def test_folders_of_something_else_are_not_overwritten(raw, tmp_path):
    theirs = tmp_path / "out" / "train" / "room0"
    theirs.mkdir(parents=True)
    np.save(theirs / "coord.npy", np.zeros((1, 3)))
    with pytest.raises(UserError, match="no manifest.jsonl"):
        prepare(raw, tmp_path / "out")
    assert files(tmp_path / "out") == ["train/room0/coord.npy"] and len(np.load(theirs / "coord.npy")) == 1
    assert len(prepare(raw, tmp_path / "out", overwrite=True).prepared) == 4


def test_packed_shards_are_not_prepared_into(raw, tmp_path):
    prepare(raw, tmp_path / "out")
    list(pack(tmp_path / "out", tmp_path / "packed"))
    with pytest.raises(UserError, match="holds packed shards"):
        prepare(raw, tmp_path / "packed")


def test_a_scene_that_got_worse_stays_as_it_was(raw, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out)
    before, manifest = tree(out), (out / MANIFEST).read_text()
    (raw / "room1" / "room1_vh_clean_2.ply").write_text("ply\n")
    summary = prepare(raw, out)
    assert [name for name, _ in summary.failed] == ["room1"] and not summary.changed
    assert tree(out) == before and (out / MANIFEST).read_text() == manifest


@pytest.mark.parametrize("tail", ['{"dataset": "scan', "null\n", '{"name": 3}\n', "\x00\x00\n"])
def test_damaged_lines_cost_their_scenes_only(raw, tmp_path, tail):
    out = tmp_path / "out"
    prepare(raw, out)
    lines = (out / MANIFEST).read_text().splitlines(keepends=True)
    (out / MANIFEST).write_text("".join(lines[:3]) + tail)
    summary = prepare(raw, out)
    assert summary.prepared == ["room3"] and "1 damaged lines" in summary.notes[-1]
    assert (out / MANIFEST).read_text().splitlines(keepends=True) == lines


def test_shares_make_the_whole_and_their_manifests_merge(raw, tmp_path):
    for i in range(4, 12):
        write_scene(raw, f"room{i}")
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    prepare(raw, whole)
    done = []
    for i in (2, 1, 3):
        summary = prepare(raw, shared, shard=Shard(i, 3))
        assert len(summary.prepared) + len(summary.elsewhere) == 12 and not summary.gone
        assert [e.name for e in entries(shared, f"manifest.{i}-of-3.jsonl")] == sorted(summary.prepared)
        done += summary.prepared
    assert sorted(done) == sorted(f"room{i}" for i in range(12))
    assert prepare(raw, shared, shard=Shard(2, 3)).prepared == []
    summary = prepare(raw, shared)
    assert len(summary.skipped) == 12 and files(shared) == files(whole)
    assert (shared / MANIFEST).read_text() == (whole / MANIFEST).read_text()
    for path in whole.rglob("*.npy"):
        assert path.read_bytes() == (shared / path.relative_to(whole)).read_bytes()


def test_the_share_of_a_scene_does_not_depend_on_the_others():
    names = [f"scene{i:04d}_00" for i in range(800)]
    shares = [[name for name in names if Shard(i, 4).takes(name)] for i in (1, 2, 3, 4)]
    assert sorted(sum(shares, [])) == names and all(150 < len(share) < 250 for share in shares)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_bad_shares(text):
    with pytest.raises(UserError, match="--shard"):
        Shard.parse(text)


def test_two_runs_at_once_are_refused(raw, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out)
    with open(out / MANIFEST, "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is preparing here"):
            prepare(raw, out)
        assert prepare(raw, out, shard=Shard(1, 2)).failed == []  # a share has a manifest of its own


def test_a_killed_run_has_all_finished_scenes_in_its_manifest(raw, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, time\nimport pcssl.data.preparation as p\nfrom pcssl.data.layouts.scannet import find_scannet\n"
        "step = p._Report.step\np._Report.step = lambda self: (step(self), print(flush=True), time.sleep(0.2))\n"
        "p.prepare(find_scannet(sys.argv[1]), sys.argv[2], workers=0)"
    )
    command = [sys.executable, "-c", code, str(raw), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.readline()
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=20)
    assert [e.name for e in entries(out)] == ["room0", "room1"]
    summary = prepare(raw, out)
    assert summary.skipped == ["room0", "room1"] and summary.prepared == ["room2", "room3"]


def test_leaving_a_manifest_by_an_error_keeps_what_was_added(raw, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out)
    entry = entries(out)[0]
    (out / MANIFEST).unlink()
    with pytest.raises(KeyboardInterrupt):
        with Manifest(out) as manifest:
            manifest.add(entry)
            raise KeyboardInterrupt
    assert entries(out) == [entry] and sorted(os.listdir(out)) == ["manifest.jsonl", "train"]


def test_the_options_of_the_command(raw, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["prepare", "scannet", "--raw", str(raw), "--out", str(out), "--workers", "0"]
    assert main([*words, "--shard", "1/1"]) == 0 and "4 scenes prepared" in capsys.readouterr().out
    assert main(words) == 0 and "0 scenes prepared, 4 already there" in capsys.readouterr().out
    path = out / "train" / "room2" / "coord.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main([*words, "--verify"]) == 0 and "1 scenes prepared, 1 of them anew" in capsys.readouterr().out
    assert main([*words, "--shard", "2/1"]) == 2 and "--shard" in capsys.readouterr().err
    json.loads((out / MANIFEST).read_text().splitlines()[0])
