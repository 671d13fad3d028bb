"""Prepared scenes in other forms: Pointcept's older .pth files, nested folders, packed shards."""

import json
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from test_prepared import write_scene
from torch.utils.data import DataLoader

from pcssl.cli import main
from pcssl.data.prepared import PreparedDataset
from pcssl.data.storage import load_pth, pack
from pcssl.errors import UserError


def assert_same(a, b):
    assert a.names == b.names and len(a) == len(b)
    for one, other in zip(a, b):
        assert one.name == other.name and one.filled == other.filled and one.labels.keys() == other.labels.keys()
        for x, y in zip(tensors(one), tensors(other)):
            assert x.dtype == y.dtype and torch.equal(x, y)


def tensors(scene):
    return [scene.coord, scene.color, scene.normal, scene.instance, *(scene.labels[k] for k in sorted(scene.labels))]


def save_pth(path, arrays, **names):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**{names.get(key, key): array for key, array in arrays.items()}, "scene_id": path.stem}, path)


OLD_NAMES = {"segment20": "semantic_gt20", "segment200": "semantic_gt200", "instance": "instance_gt"}


def test_pth_files_hold_what_the_folders_hold(tmp_path):
    for name in ("b", "a"):
        written = write_scene(tmp_path / "folders" / "train" / name)
        # As the old scripts did: float colours in 0..255, float64 coordinates, labels of several types.
        old = written | {"color": written["color"].astype(np.float64), "segment20": written["segment20"].astype(float)}
        save_pth(tmp_path / "pth" / "train" / f"{name}.pth", old, **OLD_NAMES)
    assert_same(PreparedDataset(tmp_path / "folders", "train"), PreparedDataset(tmp_path / "pth", "train"))


def test_pth_of_tensors_with_a_column_of_labels(tmp_path):
    arrays = {"coord": torch.rand(9, 3), "semantic_gt": torch.arange(9)[:, None], "instance_gt": np.arange(9)[:, None]}
    save_pth(tmp_path / "Area_1" / "office_1.pth", arrays)
    scene = PreparedDataset(tmp_path, "Area_1")[0]
    assert torch.equal(scene.coord, arrays["coord"]) and scene.filled == ("color", "normal")
    assert scene.labels["segment"].tolist() == scene.instance.tolist() == list(range(9))


def test_pth_files_of_numpy_1(tmp_path):
    coord = np.random.rand(5, 3)
    torch.save({"coord": coord, "semantic_gt": np.arange(5)}, tmp_path / "new.pth")
    (tmp_path / "train").mkdir()
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "train" / "a.pth", "w") as old:
        for name in new.namelist():  # numpy 2 renamed the module
            old.writestr(name, new.read(name).replace(b"numpy._core.", b"numpy.core."))
    scene = PreparedDataset(tmp_path, "train")[0]
    np.testing.assert_array_equal(scene.coord, coord.astype(np.float32))
    assert scene.labels["segment"].tolist() == list(range(5))


@pytest.mark.parametrize("form", ["npy", "pth"])
def test_rooms_in_a_folder_a_house(tmp_path, form):
    for name in ("house1/room0", "house1/room1", "house2/room0"):
        folder = tmp_path / "folders" / "train" / name
        written = write_scene(folder)
        save_pth(tmp_path / "pth" / "train" / f"{name}.pth", written)
    data = PreparedDataset(tmp_path / ("folders" if form == "npy" else "pth"), "train")
    assert data.names == ["house1_room0", "house1_room1", "house2_room0"]
    assert len(data[2]) == 30


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["zip", "plain", "array"])
def test_code_in_a_file_is_not_run(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    content = {"coord": np.array([Attack()], dtype=object) if how == "array" else Attack()}
    path = tmp_path / "train" / "a.pth"
    path.parent.mkdir()
    if how == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"a\.pth: not a torch file of plain arrays") as caught:
        PreparedDataset(tmp_path, "train")[0]
    assert not (tmp_path / "attacked").exists() and "\n" not in str(caught.value)


def test_damaged_pth_files(tmp_path):
    save_pth(tmp_path / "train" / "a.pth", {"coord": np.zeros((3, 3))})
    os.truncate(tmp_path / "train" / "a.pth", 300)
    (tmp_path / "train" / "b.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "train" / "c.pth")
    torch.save(OrderedDict(color=np.zeros((3, 3))), tmp_path / "train" / "d.pth")
    data = PreparedDataset(tmp_path, "train")
    for index, message in enumerate(("not a torch file", "not a torch file", "no dict of arrays", "no coord")):
        with pytest.raises(UserError, match=f"{data.names[index]}.pth: .*{message}"):
            data[index]
    with pytest.raises(UserError, match="no such file"):
        load_pth(tmp_path / "none")


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "folders"
    for i, name in enumerate(("train/c", "train/a", "train/b", "val/x", "test/y")):
        missing = dict.fromkeys(("segment20", "segment200", "instance")) if i == 4 else {}
        write_scene(root / name, n=20 + i, **missing)
    write_scene(root / "train" / "double", coord=np.random.rand(30, 3), color=np.random.rand(30, 3), instance=None)
    (root / "manifest.jsonl").write_text("kept\n")
    return root


@pytest.mark.parametrize("shard_bytes", [1, 8000, 1 << 30])
def test_a_pack_has_the_same_scenes_in_the_same_order(folders, tmp_path, shard_bytes):
    progress = list(pack(folders, tmp_path / "packed", shard_bytes=shard_bytes))
    assert [p for p in progress if p[0] == "train"] == [("train", i, 4) for i in (1, 2, 3, 4)]
    shards = len(list((tmp_path / "packed").glob("train-*.tar")))
    assert shards == {1: 4, 8000: 2, 1 << 30: 1}[shard_bytes]
    for split in ("train", "val", "test", "val+train"):
        assert_missing_alike(PreparedDataset(folders, split), PreparedDataset(tmp_path / "packed", split))
    assert (tmp_path / "packed" / "manifest.jsonl").read_text() == "kept\n"


def assert_missing_alike(a, b):
    assert a.names == b.names
    for one, other in zip(a, b):
        assert (one.instance is None) == (other.instance is None) and one.labels.keys() == other.labels.keys()
        for x, y in zip(tensors(one), tensors(other)):
            assert x is y is None or (x.dtype == y.dtype and torch.equal(x, y))


def test_a_pack_in_a_loader_with_workers(folders, tmp_path):
    list(pack(folders, tmp_path / "packed", shard_bytes=8000))
    data = PreparedDataset(tmp_path / "packed", "train")
    loader = DataLoader(data, batch_size=None, num_workers=2, sampler=[3, 0, 2, 1, 1])
    for index, scene in zip([3, 0, 2, 1, 1], loader):
        assert scene.name == data.names[index] and torch.equal(scene.coord, data[index].coord)


def test_shards_are_tar_files_of_the_folders(folders, tmp_path):
    list(pack(folders, tmp_path / "packed", shard_bytes=8000))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    for tar in (tmp_path / "packed").glob("*.tar"):
        subprocess.run(["tar", "xf", str(tar), "-C", str(unpacked)], check=True)
    before = {p.relative_to(folders): p.read_bytes() for p in folders.rglob("*.npy")}
    assert {p.relative_to(unpacked): p.read_bytes() for p in unpacked.rglob("*.npy")} == before


def test_packing_is_repeatable_and_all_or_nothing(folders, tmp_path):
    list(pack(folders, tmp_path / "one"))
    list(pack(folders, tmp_path / "two"))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    with pytest.raises(UserError, match="is there already"):
        list(pack(folders, tmp_path / "one"))
    os.truncate(folders / "val" / "x" / "coord.npy", 100)
    with pytest.raises(UserError, match="coord.npy: not a npy file"):
        list(pack(folders, tmp_path / "three"))
    assert sorted(os.listdir(tmp_path)) == ["folders", "one", "two"]


def test_a_damaged_pack_is_named(folders, tmp_path):
    packed = tmp_path / "packed"
    list(pack(folders, packed))
    index = packed / "train.pack.json"
    good = index.read_text()
    for content, message in (("{", "not the index"), (json.dumps(json.loads(good) | {"version": 9}), "version 9")):
        index.write_text(content)
        with pytest.raises(UserError, match=message):
            PreparedDataset(packed, "train")
    index.write_text(good)
    data = PreparedDataset(packed, "train")
    with open(packed / "train-00000.tar", "r+b") as file:
        file.write(bytes(2000))
    with pytest.raises(UserError, match="train-00000.tar: a: cannot be read"):
        data[0]
    os.truncate(packed / "train-00000.tar", 5000)
    with pytest.raises(UserError, match="is missing, or not of its"):
        PreparedDataset(packed, "train")


def test_pack_command(folders, tmp_path, capsys):
    out = tmp_path / "packed"
    assert main(["prepare", "pack", str(folders), "--out", str(out)]) == 0
    assert "train: 4/4 scenes packed" in capsys.readouterr().err
    assert main(["prepare", "pack", str(tmp_path / "packed2"), "--out", str(out)]) == 2
    assert main(["prepare", "pack", str(folders), "--out", str(out), "--shard-mb", "0"]) == 2
