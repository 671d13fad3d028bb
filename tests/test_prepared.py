"""The prepared layout: what this toolkit writes, and what users of Pointcept already have."""

import os
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pcssl import cli
from pcssl.data.prepared import PreparedDataset
from pcssl.errors import UserError


def write_scene(folder, n=30, **arrays):
    """arrays: file stem -> array, or None to leave a standard one out."""
    rng = np.random.default_rng(n)
    standard = {
        "coord": rng.uniform(0, 3, (n, 3)).astype(np.float32),
        "color": rng.integers(0, 256, (n, 3)).astype(np.uint8),
        "normal": np.tile(np.float32([0, 0, 1]), (n, 1)),
        "segment20": rng.integers(-1, 20, n),
        "segment200": rng.integers(-1, 200, n),
        "instance": rng.integers(-1, 9, n),
    }
    folder.mkdir(parents=True)
    written = {name: array for name, array in (standard | arrays).items() if array is not None}
    for name, array in written.items():
        np.save(folder / f"{name}.npy", array)
    return written


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
@pytest.mark.parametrize("column", [False, True])
def test_every_array_arrives_as_the_contract_says(tmp_path, dtype, column):
    ids = np.arange(-1, 29).astype(dtype)
    stored = ids[:, None] if column else ids
    written = write_scene(tmp_path / "train" / "a", segment20=stored, segment200=stored, instance=stored)
    data = PreparedDataset(tmp_path, "train")
    assert len(data) == 1 and data.names == ["a"]
    scene = data[0].check()
    assert scene.name == "a" and scene.filled == ()
    assert sorted(scene.labels) == ["segment20", "segment200"]
    for values in (*scene.labels.values(), scene.instance):
        assert values.tolist() == ids.tolist()
    assert torch.equal(scene.coord, torch.from_numpy(written["coord"]))
    assert torch.equal(scene.color, torch.from_numpy(written["color"]))
    assert torch.equal(scene.normal, torch.from_numpy(written["normal"]))


def test_a_scene_is_a_copy_of_its_files(tmp_path):
    written = write_scene(tmp_path / "train" / "a")
    data = PreparedDataset(tmp_path, "train")
    scene = data[0]
    for array in (scene.coord, scene.color, scene.normal, scene.instance, scene.labels["segment20"]):
        array += 1
    assert torch.equal(data[0].coord, torch.from_numpy(written["coord"]))
    assert torch.equal(data[0].color, torch.from_numpy(written["color"]))


def test_float_colors_and_double_coordinates(tmp_path):
    color = np.random.default_rng(0).integers(0, 256, (30, 3))
    write_scene(tmp_path / "train" / "a", color=color.astype(np.float32), coord=np.random.rand(30, 3))
    write_scene(tmp_path / "train" / "b", color=color / 255)
    for scene in PreparedDataset(tmp_path, "train"):
        assert scene.color.tolist() == color.tolist() and scene.coord.dtype == torch.float32


def test_where_a_scan_far_from_zero_lies_is_kept(tmp_path):
    """Through the command, a folder and its pack; nothing is written for a scan at zero."""
    place = np.random.default_rng(0).uniform(0, 3, (40, 3))
    far = np.array([431_000.5, 5_412_000.25, 310.0])
    (tmp_path / "scans").mkdir()
    for name, coord in (("far", place + far), ("near", place)):
        np.savez(tmp_path / "scans" / f"{name}.npz", coord=coord, normal=np.tile([0.0, 0, 1], (40, 1)))
    command = ["prepare", "folder", "--raw", str(tmp_path / "scans"), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert cli.main(command) == 0
    assert cli.main(["prepare", "pack", str(tmp_path / "out"), "--out", str(tmp_path / "packed")]) == 0
    assert not (tmp_path / "out" / "train" / "near" / "origin.npy").exists()
    for root in ("out", "packed"):
        scenes = PreparedDataset(tmp_path / root, "train")
        assert scenes.names == ["far", "near"]
        assert scenes[1].origin == (0, 0, 0) and any(scenes[0].origin)
        found = scenes[0].coord.double() + torch.tensor(scenes[0].origin, dtype=torch.float64)
        np.testing.assert_allclose(found.numpy(), place + far, atol=2e-4)


def test_coordinates_far_from_zero_beside_an_origin(tmp_path):
    coord = np.random.default_rng(0).uniform(0, 3, (30, 3)) + [50_000, 0, 0]
    write_scene(tmp_path / "train" / "a", coord=coord, origin=np.array([1e6, 2e6, 0.5]))
    with pytest.warns(UserWarning, match="far from zero"):
        scene = PreparedDataset(tmp_path, "train")[0]
    found = scene.coord.double() + torch.tensor(scene.origin, dtype=torch.float64)
    np.testing.assert_allclose(found.numpy(), coord + [1e6, 2e6, 0.5], atol=2e-3)


def test_missing_arrays_are_made_up_and_named(tmp_path):
    missing = dict.fromkeys(("color", "normal", "segment20", "segment200", "instance"))
    write_scene(tmp_path / "train" / "a", **missing)
    scene = PreparedDataset(tmp_path, "train")[0]
    assert scene.filled == ("color", "normal") and (scene.color == 127).all()
    torch.testing.assert_close(scene.normal.norm(dim=1), torch.ones(30))
    assert scene.labels == {} and scene.instance is None


def test_other_segment_files_are_labels_too(tmp_path):
    write_scene(tmp_path / "Area_1" / "office_1", segment20=None, segment200=None, segment=np.zeros(30, np.int64))
    assert list(PreparedDataset(tmp_path, "Area_1")[0].labels) == ["segment"]


def test_splits_are_joined_in_order(tmp_path):
    for name in ("train/b", "train/a", "val/c", "train/d.tmp-12", "test/e"):
        write_scene(tmp_path / name)
    (tmp_path / "train" / "notes.txt").write_text("")
    assert PreparedDataset(tmp_path, "val+train").names == ["c", "a", "b"]
    data = PreparedDataset(str(tmp_path), "train")
    assert data[-1].name == "b"
    with pytest.raises(IndexError):
        data[2]


def test_in_a_loader_with_workers(tmp_path):
    for name in "abcd":
        write_scene(tmp_path / "train" / name)
    loader = DataLoader(PreparedDataset(tmp_path, "train"), batch_size=None, num_workers=2)
    assert [scene.name for scene in loader] == list("abcd")


def test_invalid_points_are_dropped(tmp_path):
    coord = np.random.rand(30, 3)
    coord[4] = np.nan
    write_scene(tmp_path / "train" / "a", coord=coord, instance=np.arange(30))
    with pytest.warns(UserWarning, match="dropped 1 of 30"):
        scene = PreparedDataset(tmp_path, "train")[0]
    assert 4 not in scene.instance and len(scene) == 29


def test_a_whole_scene_gives_no_warning(tmp_path):
    write_scene(tmp_path / "train" / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PreparedDataset(tmp_path, "train")[0]


def test_no_root_names_the_command(tmp_path):
    with pytest.raises(UserError, match="no such folder; make it with `pcssl prepare`"):
        PreparedDataset(tmp_path / "none", "train")


@pytest.mark.parametrize("split", ["val", "train+val", "", "train+"])
def test_no_such_split_lists_those_present(tmp_path, split):
    for name in ("train/a", "test/b"):
        write_scene(tmp_path / name)
    (tmp_path / "raw" / "scans" / "c").mkdir(parents=True)
    with pytest.raises(UserError, match="it has test, train") as caught:
        PreparedDataset(tmp_path, split)
    assert "raw" not in str(caught.value).split("it has")[1]


def test_empty_root_and_empty_split(tmp_path):
    with pytest.raises(UserError, match="it has none"):
        PreparedDataset(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="train: no scenes in it"):
        PreparedDataset(tmp_path, "train")


def test_a_folder_without_coordinates_is_a_scene_that_cannot_be_read(tmp_path):
    write_scene(tmp_path / "train" / "a")
    write_scene(tmp_path / "train" / "b", coord=None)
    (tmp_path / "train" / "c").mkdir()
    data = PreparedDataset(tmp_path, "train")
    assert data.names == ["a", "b", "c"] and data[0].name == "a"
    for index in (1, 2):
        with pytest.raises(UserError, match=f"{data.names[index]}: no coord"):
            data[index]


@pytest.mark.parametrize("columns", [1, 3])
def test_of_three_candidates_the_first_is_the_label(tmp_path, columns):
    ids = np.arange(90).reshape(30, 3)[:, :columns]  # ScanNet++ as Pointcept writes it
    write_scene(tmp_path / "train" / "a", segment20=ids, instance=ids.astype(np.int16))
    scene = PreparedDataset(tmp_path, "train")[0]
    assert scene.labels["segment20"].tolist() == scene.instance.tolist() == ids[:, 0].tolist()


@pytest.mark.parametrize(
    "name, array, message",
    [
        ("color", np.zeros((29, 3), np.uint8), "30 points"),
        ("color", np.zeros((30, 4), np.uint8), r"\(30, 4\)"),
        ("color", np.full((30, 3), 300.0), "colours"),
        ("normal", np.zeros((31, 3)), "30 points"),
        ("instance", np.zeros(12, np.int64), "30 points"),
        ("segment20", np.zeros(31, np.int64), "30 points"),
        ("segment20", np.zeros(30), "one integer a point"),
        ("segment20", np.zeros((30, 2), np.int64), "one integer a point"),
        ("coord", np.zeros((30, 2)), r"\(30, 2\)"),
        ("coord", np.float32(3), "array of numbers"),
        ("coord", np.zeros((0, 3)), "0 points|no points"),
        ("coord", np.array(["x"]), "array of numbers"),
        ("origin", np.zeros(2), "three numbers"),
        ("origin", np.array([0, np.nan, 0]), "three numbers"),
    ],
)
def test_unusable_arrays_name_scene_and_file(tmp_path, name, array, message):
    write_scene(tmp_path / "train" / "room_7", **{name: array})
    with pytest.raises(UserError, match=message) as caught:
        PreparedDataset(tmp_path, "train")[0]
    assert "room_7" in str(caught.value) and "\n" not in str(caught.value)
    if message != "0 points|no points":
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["coord", "color", "segment20"])
@pytest.mark.parametrize("keep", [0, 60, 200])
def test_truncated_files(tmp_path, name, keep):
    write_scene(tmp_path / "train" / "a")
    path = tmp_path / "train" / "a" / f"{name}.npy"
    os.truncate(path, keep)
    with pytest.raises(UserError, match=f"{name}.npy: not a npy file, or damaged") as caught:
        PreparedDataset(tmp_path, "train")[0]
    assert "\n" not in str(caught.value)
