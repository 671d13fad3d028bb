"""Raw layouts of public datasets, on tiny folders made in the same form."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData, PlyElement

from pcssl.cli import main
from pcssl.commands.probe import leakage
from pcssl.data.datasets import distinct_colors
from pcssl.data.layouts import arkitscenes, matterport3d, s3dis, scannetpp, structured3d
from pcssl.data.layouts.files import read_lists
from pcssl.data.preparation import prepare
from pcssl.data.prepared import PreparedDataset
from pcssl.errors import UserError
from pcssl.registry import create, names


def write_mesh(path, coord, face=((0, 1, 2),), color=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.zeros(len(coord), [(c, "f4") for c in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")])
    for i, c in enumerate("xyz"):
        table[c] = np.asarray(coord)[:, i]
    table["red"] = color
    faces = np.array([(f,) for f in face], dtype=[("vertex_indices", "i4", (3,))])
    PlyData([PlyElement.describe(table, "vertex"), PlyElement.describe(faces, "face")]).write(str(path))


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


GRID = np.array([[x, y, z] for x in (0, 1, 2) for y in (0, 1) for z in (0, 1)], dtype=float)  # 12 points


def prepared(find, raw, out):
    summary = prepare(find(raw), out, workers=0, progress=False)
    assert not summary.failed, summary.failed
    return summary


# ---- S3DIS


def write_object(raw, area, room, name, points):
    folder = raw / area / room / "Annotations"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text("".join(f"{x} {y} {z} {r} {g} {b}\n" for x, y, z, r, g, b in points))


@pytest.fixture
def s3dis_raw(tmp_path):
    raw = tmp_path / "Stanford3dDataset_v1.2"
    for i in range(1, 7):
        write_object(raw, f"Area_{i}", "office_1", "chair_1", [(0, 0, 0, 1, 2, 3), (0.5, 0, i, 4, 5, 6)])
        write_object(raw, f"Area_{i}", "office_1", "stairs_1", [(1, 1, 0, 7, 8, 9)])
        write_object(raw, f"Area_{i}", "office_1", "wall_2", [(2, 0, 1.5, 255, 0, 0), (2, 1, 1, 0, 0, 0)])
        (raw / f"Area_{i}" / f"Area_{i}_alignmentAngle.txt").write_text("office_1 90\n")
        (raw / f"Area_{i}" / "office_1" / "office_1.txt").write_text("not read")
    return raw


def test_s3dis(s3dis_raw, tmp_path):
    prepared(s3dis.find_s3dis, s3dis_raw, tmp_path / "out")
    data = create("dataset", "s3dis", root=str(tmp_path / "out"))
    (scene,) = data.scenes("val")
    assert scene.coord.tolist() == [[0, 0, 0], [0.5, 0, 5], [1, 1, 0], [2, 0, 1.5], [2, 1, 1]]
    assert scene.color[:2].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert [data.classes[i] for i in scene.labels["segment"]] == ["chair", "chair", "clutter", "wall", "wall"]
    assert scene.instance.tolist() == [0, 0, 1, 2, 2] and len(data.classes) == len(data.colors) == 13


def test_s3dis_folds(s3dis_raw, tmp_path):
    prepared(s3dis.find_s3dis, s3dis_raw, tmp_path / "out")
    for area in range(1, 7):
        data = create("dataset", "s3dis", root=str(tmp_path / "out"), test_area=area)
        train, (val,) = data.scenes("train"), data.scenes("val")
        assert val.coord[1, 2] == area
        assert sorted(float(scene.coord[1, 2]) for scene in train) == [a for a in range(1, 7) if a != area]
        assert len(data.scenes("Area_2+Area_3")) == 2 and len(data.scenes("train+val")) == 6
        # All six are called office_1: a probe is not to take one for another.
        assert leakage({"scene_names": data.scenes("train").names}, data.scenes("val"), "val") == []
        assert data.scenes("Area_2")[0].name == "Area_2_office_1"


def test_s3dis_broken_bytes_are_mended(s3dis_raw, tmp_path):
    # As published: Area_5/hallway_6, Area_5/office_19 and Area_3/hallway_2.
    path = s3dis_raw / "Area_1" / "office_1" / "Annotations" / "wall_2.txt"
    path.write_bytes(b"22.350 6.692 3.048 185\x00187 180\n-18.0 -9.1\x160 1.0 103.0\x100000 90.0 80.000000\n")
    summary = prepared(s3dis.find_s3dis, s3dis_raw, tmp_path / "out")
    assert any("wall_2.txt: mended 3 bytes" in note for note in summary.notes)
    (scene,) = PreparedDataset(tmp_path / "out", "Area_1")
    np.testing.assert_allclose(scene.coord[-2:], [[22.35, 6.692, 3.048], [-18, -9.16, 1]], rtol=1e-6)
    assert scene.color[-2:].tolist() == [[185, 187, 180], [103, 90, 80]]


@pytest.mark.parametrize(
    "text, line",
    [("1 2 3 4 5 6\n1 2 3 4 5\n", 2), ("1 2 3 4 5\n", 1), ("1 2 3 4 5 6\n\n1 2 x 4 5 6\n", 3), ("# 1 2 3 4 5\n", 1)],
)
def test_s3dis_other_broken_lines_are_named(s3dis_raw, tmp_path, text, line):
    path = s3dis_raw / "Area_1" / "office_1" / "Annotations" / "wall_2.txt"
    path.write_text(text)
    summary = prepare(s3dis.find_s3dis(s3dis_raw), tmp_path / "out", workers=0, progress=False)
    ((name, reason),) = summary.failed
    assert name == "office_1" and f"wall_2.txt: line {line}: not six numbers" in reason


def test_s3dis_what_is_missing_is_said(s3dis_raw, tmp_path):
    shutil.rmtree(s3dis_raw / "Area_4")
    (s3dis_raw / "Area_1" / "lobby_1" / "Annotations").mkdir(parents=True)
    write_object(s3dis_raw, "Area_2", "office_1", "empty_1", [])
    source = s3dis.find_s3dis(s3dis_raw)
    assert (
        len(source.scenes) == 5
        and any("lobby_1" in n for n in source.notes)
        and any("Area_4" in n for n in source.notes)
    )
    prepared(s3dis.find_s3dis, s3dis_raw, tmp_path / "out")
    for folder, message in ((tmp_path / "none", "no such folder"), (s3dis_raw / "Area_1", "no rooms found")):
        with pytest.raises(UserError, match=message):
            s3dis.find_s3dis(folder)


# ---- ScanNet++


@pytest.fixture
def scannetpp_raw(tmp_path):
    raw = tmp_path / "scannetpp"
    for folder in ("splits", "metadata/semantic_benchmark"):
        (raw / folder).mkdir(parents=True)
    for file, scenes in (("nvs_sem_train", "aaa\nabsent\n"), ("nvs_sem_val", "bbb\n"), ("sem_test", "ccc\n")):
        (raw / "splits" / f"{file}.txt").write_text(scenes)
    benchmark = raw / "metadata" / "semantic_benchmark"
    (benchmark / "top100.txt").write_text("wall\nbook\noffice chair\n")
    (benchmark / "map_benchmark.csv").write_text(
        "class,count,semantic_map_to,instance_map_to\nwall,9,,\nbooks,8,book,book\noffice chair,3,,\nREMOVE,2,None,None\n"
    )
    for name in ("aaa", "bbb", "ccc", "unlisted"):
        scans = raw / "data" / name / "scans"
        write_mesh(scans / "mesh_aligned_0.05.ply", GRID)
        if name != "ccc":
            write_json(scans / "segments.json", {"segIndices": [1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5]})
            groups = [
                {"objectId": 7, "label": "wall", "segments": [1, 2, 3]},
                {"objectId": 8, "label": "books", "segments": [2]},  # lies within the wall
                {"objectId": 9, "label": "REMOVE", "segments": [3]},  # no class: does not hide the wall
                {"objectId": 10, "label": "office chair", "segments": [4]},
                {"objectId": 11, "label": "book", "segments": [4]},  # as large as the chair: the first stays
            ]
            write_json(scans / "segments_anno.json", {"segGroups": groups})
    return raw


def test_scannetpp(scannetpp_raw, tmp_path):
    summary = prepared(scannetpp.find_scannetpp, scannetpp_raw, tmp_path / "out")
    assert summary.unlisted == ["unlisted"] and summary.unlabelled == ["ccc"] and "1 listed scenes" in summary.notes[0]
    data = create("dataset", "scannetpp", root=str(tmp_path / "out"))
    assert data.classes == ("wall", "book", "office chair") and len(set(data.colors)) == 3
    (scene,) = data.scenes("train")
    assert scene.labels["segment"].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 2, 2, -1, -1]
    assert scene.instance.tolist() == [7, 7, 7, 8, 8, 8, 7, 7, 10, 10, -1, -1]
    assert [s.name for s in data.scenes("val+test")] == ["bbb", "ccc"]


def test_scannetpp_errors(scannetpp_raw, tmp_path):
    scans = scannetpp_raw / "data" / "aaa" / "scans"
    write_json(scans / "segments.json", {"segIndices": [1, 2]})
    (scannetpp_raw / "data" / "bbb" / "scans" / "segments_anno.json").unlink()
    (scannetpp_raw / "data" / "ccc" / "scans" / "segments_anno.json").write_text('{"segGroups": [{}]}')
    failed = dict(prepare(scannetpp.find_scannetpp(scannetpp_raw), tmp_path / "out", workers=0, progress=False).failed)
    assert "labels 2 vertices, the mesh has 12" in failed["aaa"] and "no such file" in failed["bbb"]
    assert "segments.json: no such file" in failed["ccc"]
    (tmp_path / "out" / "top100.txt").unlink()
    with pytest.raises(UserError, match="top100.txt"):
        create("dataset", "scannetpp", root=str(tmp_path / "out"))
    (scannetpp_raw / "metadata" / "semantic_benchmark" / "map_benchmark.csv").write_text("name\n")
    with pytest.raises(UserError, match="no column class, semantic_map_to"):
        scannetpp.find_scannetpp(scannetpp_raw)
    with pytest.raises(UserError, match="splits/nvs_sem_train.txt"):
        scannetpp.find_scannetpp(tmp_path / "out")


# ---- Matterport3D

CATEGORY_TSV = "index\traw_category\tcategory\tnyu40id\n1\twall\twall\t1\n3\tceiling\tceiling\t22\n9\tremove\tremove\t0\n4\todd\todd\t\n"


@pytest.fixture
def matterport_raw(tmp_path):
    raw = tmp_path / "matterport"
    # One house as a zip unpacks it, one below its own name once more.
    for folder in ("17DRP5sb8fy", "2azQ1b91cZZ/2azQ1b91cZZ", "not_a_house"):
        stem = raw / folder / "region_segmentations" / "region0"
        face = [(0, 1, 2), (0, 1, 3), (0, 2, 3), (4, 5, 6), (4, 6, 7), (8, 9, 10)]
        write_mesh(stem.with_suffix(".ply"), GRID, face)
        write_json(stem.with_suffix(".fsegs.json"), {"segIndices": [10, 10, 11, 12, 12, 13]})
        groups = [
            {"id": 5, "label": "wall", "segments": [10]},
            {"id": 6, "label": "ceiling", "segments": [11]},
            {"id": 7, "label": "remove", "segments": [12]},
        ]
        write_json(stem.with_suffix(".semseg.json"), {"segGroups": groups})
    (raw / "category_mapping.tsv").write_text(CATEGORY_TSV)
    return raw


def test_matterport3d(matterport_raw, tmp_path):
    summary = prepared(matterport3d.find_matterport3d, matterport_raw, tmp_path / "out")
    assert summary.unlisted == ["not_a_house_region0"]
    data = create("dataset", "matterport3d", root=str(tmp_path / "out"))
    (scene,), (val,) = data.scenes("train"), data.scenes("val")
    assert (scene.name, val.name) == ("17DRP5sb8fy_region0", "2azQ1b91cZZ_region0")
    # 0 and 1 have two faces of wall and at most one of ceiling; 2 and 3 one of each: the lower class.
    assert scene.labels["segment21"].tolist() == [0, 0, 0, 0] + [-1] * 8
    assert scene.instance.tolist() == [0, 0, 0, 0, 2, 2, 2, 2, -1, -1, -1, -1]
    assert data.classes[20] == "ceiling" and len(data.colors) == 21


def test_majority_against_counting():
    rng = np.random.default_rng(0)
    face, label = rng.integers(0, 40, (200, 3)), rng.integers(-1, 5, 200)
    found = matterport3d.majority(face, label, 45)
    for vertex in range(45):
        counts = [sum((face[label == value] == vertex).sum(1)) for value in range(-1, 5)]
        assert found[vertex] == (int(np.argmax(counts)) - 1 if max(counts) else -1)


def test_matterport3d_errors(matterport_raw, tmp_path):
    stem = matterport_raw / "17DRP5sb8fy" / "region_segmentations" / "region0"
    write_json(stem.with_suffix(".fsegs.json"), {"segIndices": [1]})
    (matterport_raw / "2azQ1b91cZZ/2azQ1b91cZZ/region_segmentations/region0.semseg.json").write_text("{}")
    failed = dict(
        prepare(matterport3d.find_matterport3d(matterport_raw), tmp_path / "out", workers=0, progress=False).failed
    )
    assert "labels 1 faces, the mesh has 6" in failed["17DRP5sb8fy_region0"]
    assert "not Matterport3D's segments" in failed["2azQ1b91cZZ_region0"]
    with pytest.raises(UserError, match="none.tsv: no such file"):
        matterport3d.find_matterport3d(matterport_raw, tmp_path / "none.tsv")
    with pytest.raises(UserError, match="no regions found"):
        matterport3d.find_matterport3d(tmp_path / "out")


def test_matterport3d_lists():
    lists = read_lists(matterport3d.Path(matterport3d.__file__).parents[1] / "splits", matterport3d._LISTS)
    assert {s: list(lists.values()).count(s) for s in ("train", "val", "test")} == {"train": 61, "val": 11, "test": 18}


# ---- ARKitScenes


def box(label, centroid, lengths, turn=0.0):
    axes = [np.cos(turn), np.sin(turn), 0, -np.sin(turn), np.cos(turn), 0, 0, 0, 1]
    return {
        "label": label,
        "segments": {"obbAligned": {"centroid": centroid, "axesLengths": lengths, "normalizedAxes": axes}},
    }


@pytest.mark.parametrize("top", ["3dod", "."])
def test_arkitscenes(tmp_path, top):
    raw = tmp_path / "arkit"
    scan = raw / top / "Training" / "41254925"
    points = [(0, 0, 0), (0.9, 0.9, 0), (0, 0, 0.4), (5, 5, 5), (1.3, 0, 0)]
    write_mesh(scan / "41254925_3dod_mesh.ply", np.array(points))
    boxes = [
        box("chair", [0, 0, 0.4], [0.2, 0.2, 0.2]),
        box("tv monitor", [0, 0, 0], [3, 0.4, 1], np.pi / 4),
        box("vase", [5, 5, 5], [1, 1, 1]),
    ]
    write_json(scan / "41254925_3dod_annotation.json", {"data": boxes, "skipped": False})
    write_mesh(raw / top / "Validation" / "41069021" / "41069021_3dod_mesh.ply", GRID)
    summary = prepared(arkitscenes.find_arkitscenes, raw, tmp_path / "out")
    assert summary.unlabelled == ["41069021"]
    data = create("dataset", "arkitscenes", root=str(tmp_path / "out"))
    (scene,) = data.scenes("train")
    monitor, chair = data.classes.index("tv_monitor"), data.classes.index("chair")
    assert scene.labels["segment"].tolist() == [monitor, monitor, chair, -1, -1]  # the box is turned by 45 degrees
    assert scene.instance.tolist() == [1, 1, 0, 2, -1] and len(data.scenes("val")) == 1


def test_arkitscenes_errors(tmp_path):
    raw = tmp_path / "arkit"
    write_mesh(raw / "Training" / "1" / "1_3dod_mesh.ply", GRID)
    write_json(raw / "Training" / "1" / "1_3dod_annotation.json", {"data": [{"label": "chair"}]})
    (raw / "Validation" / "2").mkdir(parents=True)
    failed = dict(prepare(arkitscenes.find_arkitscenes(raw), tmp_path / "out", workers=0, progress=False).failed)
    assert "not ARKitScenes' boxes" in failed["1"] and "2_3dod_mesh.ply: no such file" in failed["2"]
    with pytest.raises(UserError, match="no scans found"):
        arkitscenes.find_arkitscenes(tmp_path)


# ---- Structured3D


def write_panorama(folder, depth, label, camera=(1000, 2000, 1500)):
    (folder / "full").mkdir(parents=True)
    (folder / "camera_xyz.txt").write_text(" ".join(map(str, camera)) + "\n")
    Image.fromarray(depth.astype(np.uint16)).save(folder / "full" / "depth.png")
    Image.fromarray(label.astype(np.uint8)).save(folder / "full" / "semantic.png")
    color = np.zeros((*depth.shape, 3), np.uint8)
    color[..., 1] = np.arange(depth.shape[1])
    Image.fromarray(color).save(folder / "full" / "rgb_rawlight.png")


def box_depth(height, width, half):
    """Millimetres from the middle of a box room to its walls."""
    look = np.abs(structured3d.directions(height, width))
    return 1000 * (np.asarray(half) / np.maximum(look, 1e-9)).min(-1)


@pytest.mark.parametrize("top", ["Structured3D", "."])
def test_structured3d(tmp_path, top):
    raw = tmp_path / "s3d"
    half = (2.0, 1.0, 1.5)
    depth, label = box_depth(32, 64, half), np.full((32, 64), 1)
    depth[16, 32], depth[16, 33], label[0] = 0, 65535, 22
    label[1], label[2] = 39, 20  # otherfurniture, and the floor mat that is no class
    for scene in ("scene_00000", "scene_03000", "scene_03250"):
        write_panorama(raw / top / scene / "2D_rendering" / "485142" / "panorama", depth, label)
    prepared(structured3d.find_structured3d, raw, tmp_path / "out")
    data = create("dataset", "structured3d", root=str(tmp_path / "out"))
    (scene,) = data.scenes("train")
    assert [s.name for s in data.scenes("val+test")] == ["scene_03000_room_485142", "scene_03250_room_485142"]
    assert len(scene) == 32 * 64 - 2 and len(data.classes) == 25
    inside = (scene.coord - torch.tensor([1, 2, 1.5])).abs() / torch.tensor(half)
    assert torch.allclose(inside.amax(1), torch.ones(len(scene)), atol=2e-3)  # depth is in whole millimetres
    names = [data.classes[i] if i >= 0 else None for i in scene.labels["segment"][::64].tolist()]
    assert names[:4] == ["ceiling", "otherfurniture", None, "wall"]


def test_a_panorama_looks_along_minus_y_and_is_not_mirrored():
    look = structured3d.directions(512, 1024)
    np.testing.assert_allclose(np.linalg.norm(look, axis=-1), 1)
    front, right, up = look[256, 512], look[256, 768], look[0, 512]
    np.testing.assert_allclose([front, right, up], [[0, -1, 0], [-1, 0, 0], [0, 0, 1]], atol=0.01)
    np.testing.assert_allclose(np.cross(front, up), right, atol=0.01)  # what is right of a viewer


def test_structured3d_errors(tmp_path):
    raw = tmp_path / "s3d"
    for i in range(3):
        write_panorama(
            raw / f"scene_0000{i}" / "2D_rendering" / "1" / "panorama", box_depth(8, 16, (1, 1, 1)), np.ones((8, 16))
        )
    folders = [raw / f"scene_0000{i}" / "2D_rendering" / "1" / "panorama" for i in range(3)]
    (folders[0] / "full" / "depth.png").write_bytes(b"PNG")
    (folders[1] / "camera_xyz.txt").write_text("1 2")
    Image.fromarray(np.ones((4, 4), np.uint8)).save(folders[2] / "full" / "semantic.png")
    failed = dict(prepare(structured3d.find_structured3d(raw), tmp_path / "out", workers=0, progress=False).failed)
    reasons = [failed[f"scene_0000{i}_room_1"] for i in range(3)]
    assert "cannot be read as an image" in reasons[0] and "three numbers" in reasons[1] and "do not fit" in reasons[2]
    with pytest.raises(UserError, match="no panoramas found"):
        structured3d.find_structured3d(folders[0])


# ---- own scans


def test_own_scans(tmp_path, capsys):
    raw, out = tmp_path / "scans", tmp_path / "out"
    write_mesh(raw / "a.ply", GRID * 1000)
    np.savez(raw / "b.npz", coord=GRID * 1000, label=np.arange(12))
    (raw / "notes.md").write_text("")
    words = ["prepare", "folder", "--raw", str(raw), "--out", str(out), "--workers", "0"]
    assert main([*words, "--unit", "mm"]) == 0
    said = capsys.readouterr()
    assert "2 scenes prepared" in said.out and "all scans go to train" in said.err
    scenes = create("dataset", "folder", root=str(out), label="segment_label").scenes("train")
    assert [s.name for s in scenes] == ["a", "b"] and scenes[0].coord.max() == 2
    assert scenes[1].labels["segment_label"].tolist() == list(range(12))
    assert main(words) == 0 and "2 of them anew" in capsys.readouterr().out  # another unit


def test_own_scans_with_splits(tmp_path):
    raw, out = tmp_path / "scans", tmp_path / "out"
    for split in ("train", "val"):
        write_mesh(raw / split / "room.ply", GRID)
    words = ["prepare", "folder", "--raw", str(raw), "--out", str(out), "--workers", "0"]
    assert main(words) == 0
    assert sorted(p.parent.name for p in out.glob("*/*")) == ["train", "val"]
    np.savez(raw / "val" / "room.npz", coord=GRID)
    assert main(words) == 2
    assert main([*words[:3], str(out / "train" / "room"), *words[4:]]) == 2


# ---- all of them


@pytest.mark.parametrize("name", ["scannet", "s3dis", "scannetpp", "structured3d", "matterport3d", "arkitscenes"])
def test_a_dataset_that_is_not_there_says_how_to_get_it(name, tmp_path):
    assert name in names("dataset")
    with pytest.raises(UserError, match="To get it") as caught:
        create("dataset", name, root=str(tmp_path / "none"))
    assert f"tools/prepare.py {name} --raw FOLDER" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["s3dis", "scannetpp", "structured3d", "matterport3d", "arkitscenes", "scannet", "folder"]
)
def test_every_layout_has_a_command(name, capsys):
    assert main(["prepare", name, "--help"]) == 0
    said = capsys.readouterr().out
    assert "--shard" in said and "--raw" in said


def test_colours_differ():
    for count in (1, 17, 25, 100):
        colors = np.array(distinct_colors(count))
        assert len(np.unique(colors, axis=0)) == count and colors.min() >= 0 and colors.max() <= 255
