"""Generated rooms: the layout on disk, determinism, and what makes them worth training on."""

import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData
from scipy.spatial import cKDTree

from pcssl.data.rooms import arrange, generate_room, generate_rooms, layout, scan
from pcssl.data.rooms.furniture import wardrobe
from pcssl.data.rooms.generate import _assemble, room_kind
from pcssl.data.rooms.labels import BENCHMARK_20, CATEGORIES
from pcssl.data.rooms.materials import Palette
from pcssl.data.rooms.piece import Kit
from pcssl.data.rooms.write import COLUMNS
from pcssl.errors import UserError

SCENES = 3


@pytest.fixture(scope="module")
def rooms():
    """One block of scenes, which holds every type of room."""
    return [generate_room(0, index) for index in range(len(arrange.BLOCK))]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("rooms") / "raw"
    generate_rooms(path, scenes=SCENES, val=1, seed=5, progress=False)
    return path


def scene_files(raw: Path, name: str) -> dict:
    folder = raw / "scans" / name
    read = {
        "mesh": PlyData.read(folder / f"{name}_vh_clean_2.ply"),
        "labels": PlyData.read(folder / f"{name}_vh_clean_2.labels.ply"),
        "segments": json.loads((folder / f"{name}_vh_clean_2.0.010000.segs.json").read_text()),
        "aggregation": json.loads((folder / f"{name}.aggregation.json").read_text()),
        "info": (folder / f"{name}.txt").read_text(),
    }
    assert len(os.listdir(folder)) == len(read)
    return read


def aligned(room) -> np.ndarray:
    return room.vertices @ room.axis_alignment[:3, :3].T + room.axis_alignment[:3, 3]


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


def test_layout_on_disk(raw):
    names = sorted(os.listdir(raw / "scans"))
    assert names == [f"scene{i:04d}_00" for i in range(SCENES)]
    assert (raw / "scannetv2_train.txt").read_text().split() == names[:-1]
    assert (raw / "scannetv2_val.txt").read_text().split() == names[-1:]
    rows = [line.split("\t") for line in (raw / "scannetv2-labels.combined.tsv").read_text().splitlines()]
    assert tuple(rows[0]) == COLUMNS and all(len(row) == len(COLUMNS) for row in rows)
    assert {row[1]: (int(row[0]), int(row[4])) for row in rows[1:]} == CATEGORIES


def test_files_of_a_scene_agree(raw):
    files = scene_files(raw, "scene0001_00")
    mesh, labels = files["mesh"], files["labels"]
    kinds = [(p.name, p.val_dtype) for p in mesh["vertex"].properties]
    colors = [(c, "u1") for c in ("red", "green", "blue", "alpha")]
    assert kinds == [("x", "f4"), ("y", "f4"), ("z", "f4")] + colors
    assert labels["vertex"].properties[-1].val_dtype == "u2" and not mesh.text
    for name in ("x", "y", "z", "red", "green", "blue"):
        assert np.array_equal(mesh["vertex"][name], labels["vertex"][name])
    segments = np.array(files["segments"]["segIndices"])
    label = np.asarray(labels["vertex"]["label"])
    assert len(segments) == len(label) == mesh["vertex"].count
    expected, seen = np.zeros(len(label), int), []
    for group in files["aggregation"]["segGroups"]:
        expected[np.isin(segments, group["segments"])] = CATEGORIES[group["label"]].nyu40
        seen += group["segments"]
    assert len(seen) == len(set(seen)), "a segment is in two groups"
    assert np.array_equal(label, expected)


def test_axis_alignment_in_the_file_undoes_the_rotation(raw):
    files = scene_files(raw, "scene0000_00")
    numbers = re.search(r"^axisAlignment = (.*)$", files["info"], re.M).group(1).split()
    matrix = np.array(numbers, float).reshape(4, 4)
    vertex = files["labels"]["vertex"]
    points = np.stack([vertex["x"], vertex["y"], vertex["z"]], 1) @ matrix[:3, :3].T + matrix[:3, 3]
    label = np.asarray(vertex["label"])
    assert np.abs(np.median(points[label == 2, 2])) < 0.01
    faces = np.stack(files["labels"]["face"]["vertex_indices"])
    wall = face_normals(points, faces[(label[faces] == 1).all(1)])
    assert np.quantile(np.abs(wall[:, :2]).max(1), 0.2) > 0.9


def test_workers_do_not_change_a_byte(raw, tmp_path):
    other = tmp_path / "raw"
    generate_rooms(other, scenes=SCENES, val=1, seed=5, workers=2, progress=False)
    files = sorted(p.relative_to(raw) for p in raw.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert filecmp.cmpfiles(raw, other, files, shallow=False)[0] == files


def test_resume_writes_only_what_is_missing(raw, tmp_path, capsys):
    path = tmp_path / "raw"
    shutil.copytree(raw, path)
    lost, kept = (path / "scans" / f"scene000{i}_00" for i in (1, 0))
    (kept / "mark").write_text("untouched")
    os.rename(lost, path / "scans" / ".partial_scene0001_00")
    generate_rooms(path, scenes=SCENES, val=1, seed=5)
    assert (kept / "mark").exists()
    assert filecmp.dircmp(lost, raw / "scans" / lost.name).diff_files == []
    assert sorted(os.listdir(path / "scans")) == sorted(os.listdir(raw / "scans"))
    assert "rooms 3/3" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"seed": 6}, {"scenes": 4}, {"val": 2}])
def test_another_collection_is_refused(raw, change):
    with pytest.raises(UserError, match=f"{next(iter(change))} is .* use another folder"):
        generate_rooms(raw, **({"scenes": SCENES, "val": 1, "seed": 5} | change))


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "scans").mkdir()
    with pytest.raises(UserError, match="not generated rooms"):
        generate_rooms(tmp_path, scenes=1, val=0)
    assert os.listdir(tmp_path) == ["scans"]


@pytest.mark.parametrize("wrong", [{"scenes": 0}, {"val": 3}, {"workers": 0}, {"seed": -1}])
def test_bad_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(UserError):
        generate_rooms(tmp_path / "raw", **({"scenes": 2, "val": 1} | wrong))
    assert not (tmp_path / "raw").exists()


def test_scans_are_sound(rooms):
    for room in rooms:
        n = len(room.vertices)
        assert 20_000 < n < 150_000
        assert room.vertices.dtype == np.float32 and np.isfinite(room.vertices).all()
        assert room.colors.dtype == np.uint8 and room.colors.shape == (n, 3)
        assert room.faces.min() == 0 and room.faces.max() == n - 1
        assert len(np.unique(room.faces)) == n
        assert (np.diff(np.sort(room.faces, axis=1), axis=1) > 0).all()
        assert np.ptp(aligned(room)[:, 2]) < 3.1
        assert set(np.unique(room.instance)) - {-1} == set(range(len(room.categories)))
        for number, category in enumerate(room.categories):
            assert (room.nyu40[room.instance == number] == CATEGORIES[category].nyu40).all()
        assert (room.nyu40[room.instance < 0] == 0).all()


def test_all_classes_occur(rooms):
    found = set(np.concatenate([np.unique(room.nyu40) for room in rooms]))
    assert set(BENCHMARK_20) <= found
    assert found - set(BENCHMARK_20) - {0}, "nothing to ignore"


def test_every_block_holds_every_type():
    for block in range(3):
        start = block * len(arrange.BLOCK)
        kinds = [room_kind(7, start + i) for i in range(len(arrange.BLOCK))]
        assert sorted(kinds) == sorted(arrange.BLOCK)


def test_faces_point_into_the_room(rooms):
    for room in rooms[:4]:
        points = aligned(room)
        normal = face_normals(points, room.faces)
        label = np.where((room.nyu40[room.faces] == room.nyu40[room.faces[:, :1]]).all(1), room.nyu40[room.faces[:, 0]], 0)
        assert (normal[label == 2, 2] > 0).mean() > 0.97
        at, facing = points[room.faces[label == 1, 0], :2], normal[label == 1, :2]
        # Walls on the outline of the plan look towards its middle.
        on_outline = (np.abs(np.abs(at) - np.abs(at).max(0)) < 0.06).any(1)
        assert (-(facing * at).sum(1)[on_outline] > 0).mean() > 0.9


def test_things_stand_apart_and_inside():
    for index in range(8):
        rng = np.random.default_rng(index)
        kit = Kit(rng, Palette(rng), 0.2)
        room = arrange.furnished_room(kit, arrange.BLOCK[index])
        assert len(room.placed) > 5
        for i, one in enumerate(room.solid):
            assert room.inside(one.corners()).all()
            assert not any(one.overlaps(other) for other in room.solid[i + 1 :])


def test_hidden_surfaces_are_removed():
    rng = np.random.default_rng(0)
    kit = Kit(rng, Palette(rng), 0.03)
    room = layout.Room(kit, 4.0, 3.5, 2.5, None)
    wall = room.walls[0]
    spot = room.against_wall(wardrobe(kit), [wall])
    spot_w, spot_d, spot_h = spot.group.size
    placed = layout.shell(room) + room.placed
    mesh, _, owner = _assemble(placed)
    normals = scan.vertex_normals(mesh)
    seen = scan.observe(mesh, normals, scan.cameras(room, kit), kit)
    kept = np.zeros(len(owner), bool)
    kept[seen.index] = True
    points = mesh.vertices
    shade = (np.abs(points[:, 0] - spot.x) < spot_w / 2 - 0.15) & (points[:, 2] < spot_h - 0.2)
    behind = (owner == 0) & shade
    front = (owner == len(placed) - 1) & (points[:, 1] > spot.y + spot_d / 2 - 0.08) & (points[:, 2] > 0.3)
    underside = (owner == len(placed) - 1) & (normals[:, 2] < -0.9)
    assert behind.sum() > 300 and kept[behind].mean() < 0.01
    assert underside.sum() > 100 and not kept[underside].any()
    assert kept[front].mean() > 0.4
    assert kept[(owner == 0) & ~shade & (points[:, 2] < 2)].mean() > 0.5


def test_colour_alone_does_not_tell_the_class(rooms):
    def sample(some):
        rng, colors, labels = np.random.default_rng(0), [], []
        for room in some:
            for label in np.intersect1d(np.unique(room.nyu40), BENCHMARK_20):
                rows = rng.choice(np.flatnonzero(room.nyu40 == label), 100)
                colors.append(room.colors[rows])
                labels.append(np.full(100, label))
        return np.concatenate(colors).astype(float), np.concatenate(labels)

    known, names = sample(rooms[:6])
    asked, truth = sample(rooms[6:])
    guess = names[cKDTree(known).query(asked)[1]]
    recall = [np.mean(guess[truth == label] == label) for label in np.unique(truth)]
    assert np.mean(recall) < 0.12, "chance is 0.05"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process group")
def test_interrupt_stops_all_workers(tmp_path):
    path = tmp_path / "raw"
    code = (
        "from pcssl.data.rooms import generate_rooms\n"
        f"if __name__ == '__main__':\n    generate_rooms({str(path)!r}, scenes=400, val=0, workers=2, progress=False)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, str(script)], start_new_session=True, stderr=subprocess.PIPE, env=environment
    )
    deadline = time.monotonic() + 60
    while not list(path.glob("scans/scene*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    # The pipe closes only when the last worker that inherited it has gone.
    assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]
    for folder in path.glob("scans/scene*"):
        assert len(os.listdir(folder)) == 5
