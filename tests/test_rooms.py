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

from pcssl.data.rooms import appliances, arrange, clutter, generate_room, generate_rooms, layout, scan
from pcssl.data.rooms.generate import _assemble, room_kinds
from pcssl.data.rooms.labels import BENCHMARK_20, CATEGORIES
from pcssl.data.rooms.materials import Palette
from pcssl.data.rooms.piece import Kit
from pcssl.data.rooms.shell import shell
from pcssl.data.rooms.storage import wardrobe
from pcssl.data.rooms.write import COLUMNS
from pcssl.errors import UserError

SCENES = 2
SEED = 172  # its first scans are a bathroom and a bedroom: small, so quick


@pytest.fixture(scope="module")
def rooms():
    return [generate_room(SEED, index) for index in range(SCENES)]


@pytest.fixture(scope="module")
def flats():
    """Furnished but not scanned: a block, which holds every type of room, on a coarse grid."""
    found = []
    for index in range(len(arrange.BLOCK)):
        rng = np.random.default_rng([3, index])
        found.append(arrange.furnished_flat(Kit(rng, Palette(rng), 0.3), arrange.BLOCK[index]))
    return found


@pytest.fixture(scope="module")
def block():
    """A block of scans."""
    return [generate_room(0, index) for index in range(len(arrange.BLOCK))]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("rooms") / "raw"
    generate_rooms(path, scenes=SCENES, val=1, seed=SEED, progress=False)
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


def test_workers_and_threads_do_not_change_a_byte(raw, tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")  # for the workers, which are new processes
    other = tmp_path / "raw"
    generate_rooms(other, scenes=SCENES, val=1, seed=SEED, workers=2, progress=False)
    files = sorted(p.relative_to(raw) for p in raw.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert filecmp.cmpfiles(raw, other, files, shallow=False)[0] == files


def test_resume_writes_only_what_is_missing(raw, tmp_path, capsys):
    path = tmp_path / "raw"
    shutil.copytree(raw, path)
    lost, kept = (path / "scans" / f"scene000{i}_00" for i in (1, 0))
    (kept / "mark").write_text("untouched")
    os.rename(lost, path / "scans" / ".partial_scene0001_00")
    generate_rooms(path, scenes=SCENES, val=1, seed=SEED)
    assert (kept / "mark").exists()
    assert filecmp.dircmp(lost, raw / "scans" / lost.name).diff_files == []
    assert sorted(os.listdir(path / "scans")) == sorted(os.listdir(raw / "scans"))
    assert "rooms 2/2" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"seed": SEED + 1}, {"scenes": 4}, {"val": 2}])
def test_another_collection_is_refused(raw, change):
    with pytest.raises(UserError, match=f"{next(iter(change))} is .* use another folder"):
        generate_rooms(raw, **({"scenes": SCENES, "val": 1, "seed": SEED} | change))


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


def check_scan(room):
    n = len(room.vertices)
    assert 35_000 < n < 290_000
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
    assert 0 < (room.nyu40 == 0).mean() < 0.3
    edges = room.vertices[room.faces]
    spacing = np.linalg.norm(edges[:, 0] - edges[:, 1], axis=1)
    assert 0.015 < np.mean(spacing) < 0.04
    pairs = np.unique(room.segment.astype(np.int64) * 10_000 + room.instance)
    assert len(pairs) == len(np.unique(room.segment)), "a segment reaches over two instances"


def test_scans_are_sound(rooms):
    for room in rooms:
        check_scan(room)
    assert not np.array_equal(rooms[0].vertices[:100], rooms[1].vertices[:100])


def test_every_block_holds_every_type_and_flats_of_up_to_four_rooms():
    for block in range(3):
        start = block * len(arrange.BLOCK)
        kinds = [room_kinds(7, start + i) for i in range(len(arrange.BLOCK))]
        assert sorted(kinds) == sorted(arrange.BLOCK)
        assert {kind for scan_kinds in kinds for kind in scan_kinds} == set(arrange.ROOM_TYPES)
        assert {len(scan_kinds) for scan_kinds in kinds} == {1, 2, 3, 4}


def test_all_classes_are_placed(flats):
    names = {item.piece.category for flat in flats for room in flat for item in shell(room) + room.placed} - {None}
    placed = {CATEGORIES[name].nyu40 for name in names}
    assert set(BENCHMARK_20) <= placed
    assert len(names) > 60


def test_things_outside_the_benchmark_are_many():
    outside = {name for name, category in CATEGORIES.items() if category.nyu40 not in (*BENCHMARK_20, 0)}
    other = {name for name, category in CATEGORIES.items() if category.nyu40 == 39}
    assert len(other) >= 20 and len(outside) >= 30
    rng = np.random.default_rng(0)
    kit = Kit(rng, Palette(rng), 0.03)
    builders = [value for module in (clutter, appliances) for name, value in vars(module).items()
                if callable(value) and getattr(value, "__module__", "") == module.__name__ and name[0] != "_"]  # fmt: skip
    builders.remove(clutter.ceiling_lamp)  # which also needs the height of the room
    varied = []
    for make in builders:
        sizes = []
        for _ in range(3):
            group = make(kit)
            vertices = np.concatenate([mesh.vertices for piece in group.pieces for mesh in piece.meshes])
            assert np.isfinite(vertices).all() and vertices[:, 2].min() > -0.03
            # It stays within the box that was reserved for it.
            half = np.array(group.size[:2]) / 2
            assert (np.abs(vertices[:, :2]) < half + 0.1).all(), make.__name__
            assert vertices[:, 2].max() < group.size[2] + 0.1, make.__name__
            sizes.append(np.ptp(vertices, axis=0))
        varied.append(not np.allclose(sizes[0], sizes[1]) or not np.allclose(sizes[1], sizes[2]))
    assert len(builders) > 40 and np.mean(varied) > 0.8, "sizes are continuous"


def test_nothing_intersects_and_doors_are_free(monkeypatch):
    stood: dict[int, list] = {}
    put = layout.Room.put

    def recorded(room, group, x, y, z, angle):
        stood.setdefault(id(room), []).append(layout.solids(group, x, y, z, angle))
        put(room, group, x, y, z, angle)

    monkeypatch.setattr(layout.Room, "put", recorded)
    for index, kinds in enumerate(arrange.BLOCK[:11:2]):
        rng = np.random.default_rng([11, index])
        flat = arrange.furnished_flat(Kit(rng, Palette(rng), 0.3), kinds)
        for room in flat:
            groups = stood[id(room)]
            assert len(groups) > 1
            for i, one in enumerate(groups):
                for block in one:
                    assert room.inside(block.base.corners()).all() and block.z1 < room.height
                    assert not any(block.overlaps(door) for door in room.clear), "something stands before a door"
                    for other in groups[i + 1 :]:
                        assert not any(block.overlaps(another) for another in other)
        joined = sum(bool(room.clear) for room in flat)
        assert len(flat) == 1 or joined == len(flat), "a room without a door"
        bounds = [room.bounds for room in flat]
        for i, a in enumerate(bounds):
            for j in range(i):
                b = bounds[j]
                apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
                assert apart or flat[i].notch or flat[j].notch
        stood.clear()


def test_footprints_overlap_as_rectangles_do():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41)), -1).reshape(-1, 2)
    for _ in range(200):
        values = rng.uniform(0.1, 1.2, 8)
        one = layout.Footprint(0.0, 0.0, values[0], *values[1:3])
        two = layout.Footprint(values[3] - 0.5, values[4] * 1.5, values[5] * 3, *values[6:8])
        inside = grid * (two.half_w, two.half_d)
        c, s = np.cos(two.angle), np.sin(two.angle)
        points = np.stack([two.x + c * inside[:, 0] - s * inside[:, 1], two.y + s * inside[:, 0] + c * inside[:, 1]], 1)
        covered = one.contains(points).any()
        if covered:
            assert one.overlaps(two) and two.overlaps(one)
        elif one.overlaps(two):  # then they meet in less than a cell of the grid
            assert one.grown(0.08).contains(points).any()


def test_hidden_surfaces_are_removed():
    rng = np.random.default_rng(0)
    kit = Kit(rng, Palette(rng), 0.025)
    room = layout.Room(kit, "bedroom", (0.0, 4.0, 0.0, 3.5), 2.5)
    wall = room.walls[0]
    spot = room.against_wall(wardrobe(kit), [wall])
    spot_w, spot_d, spot_h = spot.group.size
    placed = shell(room) + room.placed
    mesh, paint, owner = _assemble(placed)
    normals = scan.vertex_normals(mesh)
    seen = scan.observe(mesh.vertices, normals, np.ones(len(owner)), scan.camera_path(room, kit), kit)
    kept = np.zeros(len(owner), bool)
    kept[seen.index] = True
    points = mesh.vertices
    shade = (np.abs(points[:, 0] - spot.x) < spot_w / 2 - 0.15) & (points[:, 2] < spot_h - 0.2)
    behind = (owner == 0) & shade
    front = (owner == len(placed) - 1) & (points[:, 1] > spot.y + spot_d / 2 - 0.1) & (points[:, 2] > 0.3)
    underside = (owner == len(placed) - 1) & (normals[:, 2] < -0.9)
    assert behind.sum() > 300 and kept[behind].mean() < 0.01
    assert underside.sum() > 100 and kept[underside].mean() < 0.02
    assert kept[front & (normals[:, 1] > 0.8)].mean() > 0.4
    assert kept[(owner == 0) & ~shade & (points[:, 2] < 1.5)].mean() > 0.4


def test_faces_point_into_the_room(rooms):
    for room in rooms:
        points = aligned(room)
        normal = face_normals(points, room.faces)
        label = np.where((room.nyu40[room.faces] == room.nyu40[room.faces[:, :1]]).all(1), room.nyu40[room.faces[:, 0]], 0)
        assert (normal[label == 2, 2] > 0).mean() > 0.97
        assert (normal[label == 22, 2] > 0).sum() <= 0.03 * (label == 22).sum(), "ceilings face down"


@pytest.mark.slow
def test_a_block_of_scans_is_like_scannet(block):
    for room in block:
        check_scan(room)
    nyu40 = np.concatenate([room.nyu40 for room in block])
    assert set(BENCHMARK_20) <= set(np.unique(nyu40))
    share = {label: (nyu40 == label).sum() / np.isin(nyu40, BENCHMARK_20).sum() for label in BENCHMARK_20}
    assert 0.25 < share[1] < 0.45 and 0.14 < share[2] < 0.32
    assert all(share[label] > 0.0005 for label in BENCHMARK_20)
    assert 0.005 < (nyu40 == 0).mean() < 0.12
    assert 80_000 < np.median([len(room.vertices) for room in block]) < 200_000


@pytest.mark.slow
def test_colour_alone_does_not_tell_the_class(block):
    def sample(some):
        rng, colors, labels = np.random.default_rng(0), [], []
        for room in some:
            for label in np.intersect1d(np.unique(room.nyu40), BENCHMARK_20):
                rows = rng.choice(np.flatnonzero(room.nyu40 == label), 100)
                colors.append(room.colors[rows])
                labels.append(np.full(100, label))
        return np.concatenate(colors).astype(float), np.concatenate(labels)

    known, names = sample(block[:6])
    asked, truth = sample(block[6:])
    guess = names[cKDTree(known).query(asked)[1]]
    recall = [np.mean(guess[truth == label] == label) for label in np.unique(truth)]
    assert np.mean(recall) < 0.15, "chance is 0.05"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process group")
def test_interrupt_stops_all_workers(tmp_path):
    path = tmp_path / "raw"
    code = (
        "from pcssl.data.rooms import generate_rooms\n"
        f"if __name__ == '__main__':\n    generate_rooms({str(path)!r}, scenes=400, val=0, seed={SEED}, workers=2, progress=False)\n"
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
