"""PLY and NPZ, and what is the same in every format: the frame, what is dropped or made up, what is refused."""

import os
import re
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from pcssl.data.formats import read_scene, write_ply
from pcssl.data.scene import Scene
from pcssl.errors import UserError


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def points(n=50, seed=0):
    return np.random.default_rng(seed).uniform(0, 3, (n, 3))


def save_ply(path, columns, faces=None, text=False, order="<"):
    """columns: name -> (N,) array."""
    n = len(next(iter(columns.values())))
    table = np.empty(n, dtype=[(name, np.asarray(c).dtype) for name, c in columns.items()])
    for name, column in columns.items():
        table[name] = column
    elements = [PlyElement.describe(table, "vertex")]
    if faces is not None:
        listed = np.empty(len(faces), dtype=[("vertex_indices", object)])
        listed["vertex_indices"] = [np.array(f, dtype=np.int32) for f in faces]
        elements.append(PlyElement.describe(listed, "face"))
    PlyData(elements, text=text, byte_order="=" if text else order).write(str(path))
    return path


def xyz(coord, dtype="f4"):
    return {name: coord[:, i].astype(dtype) for i, name in enumerate("xyz")}


def error_of(path, **options):
    """The message, after checking that it is one line that names the file."""
    with pytest.raises(UserError) as caught:
        read_scene(path, **options)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("text, order", [(True, "<"), (False, "<"), (False, ">")], ids=["ascii", "little", "big"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
def test_ply_coordinates(tmp_path, text, order, dtype):
    coord = np.round(points() * 4).astype(dtype)
    scene = read_scene(save_ply(tmp_path / "a.PLY", xyz(coord, dtype), text=text, order=order))
    assert scene.coord.tolist() == coord.tolist()
    assert scene.name == "a"
    assert scene.filled == ("color", "normal")
    assert (scene.color == 127).all()
    torch.testing.assert_close(scene.normal.norm(dim=1), torch.ones(50))


@pytest.mark.parametrize(
    "names", ["red green blue", "r g b", "diffuse_red diffuse_green diffuse_blue", "Red Green Blue"]
)
@pytest.mark.parametrize("kind", ["uchar", "unit float", "float to 255", "double", "ushort"])
def test_ply_colors(tmp_path, names, kind):
    color = np.random.default_rng(0).integers(0, 256, (50, 3))
    stored = {
        "uchar": color.astype("u1"),
        "unit float": (color / 255).astype("f4"),
        "float to 255": color.astype("f4"),
        "double": color / 255,
        "ushort": (color * 257).astype("u2"),
    }[kind]
    columns = xyz(points()) | {name: stored[:, i] for i, name in enumerate(names.split())}
    scene = read_scene(save_ply(tmp_path / "a.ply", columns))
    assert scene.color.tolist() == color.tolist()
    assert "color" not in scene.filled


def test_stored_normals_win_over_faces_and_are_made_unit(tmp_path):
    coord = points()
    columns = xyz(coord) | {"nx": np.full(50, 5.0), "ny": np.zeros(50), "nz": np.zeros(50)}
    columns["nx"][0], columns["nx"][1] = 0, np.nan
    scene = read_scene(save_ply(tmp_path / "a.ply", columns, faces=[[0, 1, 2]]))
    assert (scene.normal[2:] == torch.tensor([1.0, 0, 0])).all()
    assert "normal" not in scene.filled
    torch.testing.assert_close(scene.normal[:2].norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("text", [True, False])
def test_normals_from_triangles_and_polygons(tmp_path, text):
    coord = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1.0]])
    for faces in ([[0, 1, 2], [0, 2, 3]], [[0, 1, 2, 3]], [[0, 1, 2, 3], [0, 3, 4]]):
        scene = read_scene(save_ply(tmp_path / "a.ply", xyz(coord), faces=faces, text=text))
        assert "normal" not in scene.filled
        assert scene.normal[1:3].tolist() == [[0, 0, 1], [0, 0, 1]]


def test_without_normals_nothing_is_made(tmp_path):
    scene = read_scene(save_ply(tmp_path / "a.ply", xyz(points())), normals=False)
    assert scene.normal is None and scene.filled == ("color",)


def test_labels_in_ply(tmp_path):
    label = np.arange(50) - 1
    columns = xyz(points()) | {
        "label": label.astype("i2"),
        "segment20": label.astype("i4"),
        "instance": label.astype("i4"),
    }
    scene = read_scene(save_ply(tmp_path / "a.ply", columns))
    assert sorted(scene.labels) == ["label", "segment20"]
    for values in (*scene.labels.values(), scene.instance):
        assert values.dtype == torch.int32 and values.tolist() == label.tolist()


@pytest.mark.parametrize(
    "coord_key, color_key, normal_key",
    [("coord", "color", "normal"), ("XYZ", "colors", "normals"), ("points", "rgb", "Normal")],
)
def test_npz(tmp_path, coord_key, color_key, normal_key):
    coord, color = points(), np.random.default_rng(0).integers(0, 256, (50, 3))
    normal = np.tile([0.0, 2.0, 0.0], (50, 1))
    np.savez(
        tmp_path / "a.npz",
        **{coord_key: coord, color_key: color, normal_key: normal},
        segment20=np.arange(50),
        instance=np.arange(50),
        other=np.arange(3),
    )
    scene = read_scene(tmp_path / "a.npz")
    np.testing.assert_allclose(scene.coord, coord, atol=1e-6)
    assert scene.color.tolist() == color.tolist()
    assert (scene.normal[:, 1] == 1).all()
    assert list(scene.labels) == ["segment20"] and scene.instance.tolist() == list(range(50))
    assert scene.filled == ()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_handful_of_points(tmp_path, n):
    scene = read_scene(save_ply(tmp_path / "a.ply", xyz(points(n))))
    assert len(scene) == n
    torch.testing.assert_close(scene.normal.norm(dim=1), torch.ones(n))


@pytest.mark.parametrize("faces", [None, [[0, 1, 2], [3, 4, 5], [4, 5, 6]]])
def test_invalid_points_are_dropped_from_everything(tmp_path, faces):
    coord = points()
    coord[0, 0], coord[3, 2] = np.nan, np.inf
    columns = xyz(coord) | {name: np.arange(50, dtype="u1") for name in ("red", "green", "blue")}
    columns["label"] = np.arange(50, dtype="i4")
    path = save_ply(tmp_path / "a.ply", columns, faces=faces)
    with pytest.warns(UserWarning, match="dropped 2 of 50 points"):
        scene = read_scene(path)
    kept = [i for i in range(50) if i not in (0, 3)]
    assert scene.labels["label"].tolist() == kept and scene.color[:, 0].tolist() == kept
    assert scene.coord.isfinite().all() and scene.normal.isfinite().all()
    if faces:  # the face that is left touches the old vertices 4, 5, 6
        a, b, c = coord[4], coord[5], coord[6]
        expected = np.cross(b - a, c - a)
        expected = torch.tensor(expected / np.linalg.norm(expected)).float()
        torch.testing.assert_close(scene.normal[[2, 3, 4]], expected.expand(3, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("factor, flag, unit", [(1000, "--unit mm", "mm"), (300, "--unit cm", 1 / 300), (0.001, "--unit km", "km")])
def test_an_implausible_width_names_the_flag(tmp_path, factor, flag, unit):
    path = save_ply(tmp_path / "a.ply", xyz(points() * factor))
    with pytest.warns(UserWarning, match=flag):
        wide = read_scene(path)
    np.testing.assert_allclose(wide.coord, points() * factor, rtol=1e-5)  # said, not changed
    np.testing.assert_allclose(read_scene(path, unit=unit).coord, points(), rtol=1e-5)
    read_scene(path, unit="m")  # asked for, so no warning


def test_stray_points_do_not_make_a_scene_wide(tmp_path):
    coord = points(1000)
    coord[::400] = 3000
    assert len(read_scene(save_ply(tmp_path / "a.ply", xyz(coord)))) == 1000


@pytest.mark.parametrize("unit, metres", [("m", 1), ("cm", 0.01), ("ft", 0.3048), ("in", 0.0254), ("0.5", 0.5), (2, 2)])
def test_units(tmp_path, unit, metres):
    scene = read_scene(save_ply(tmp_path / "a.ply", xyz(points())), unit=unit)
    np.testing.assert_allclose(scene.coord, points() * metres, rtol=1e-5)


def hall(n=3000):
    """Floor, ceiling and four slanting walls of 8 x 6 x 2.5 m, z up, with more points on the floor; and normals."""
    rng = np.random.default_rng(0)
    coord = rng.uniform((0, 0, 0), (8, 6, 2.5), (n, 3))
    normal = np.zeros((n, 3))
    coord[: n // 3, 2], normal[: n // 3, 2] = 0, 1
    coord[n // 3 : n // 2, 2], normal[n // 3 : n // 2, 2] = 2.5, -1
    normal[n // 2 :, 0] = 1
    c, s = np.cos(0.5), np.sin(0.5)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return coord @ turn.T, normal @ turn.T


# up axis -> where its file has the scene's x, y, z: the definition of the axis, not the code's matrices
FRAMES = {
    "z": lambda x, y, z: (x, y, z),
    "y": lambda x, y, z: (x, z, -y),
    "-y": lambda x, y, z: (x, -z, y),
    "x": lambda x, y, z: (z, y, -x),
    "-x": lambda x, y, z: (-z, y, x),
    "-z": lambda x, y, z: (x, -y, -z),
}


@pytest.mark.parametrize("up", FRAMES)
def test_up_axes(tmp_path, up):
    coord, normal = hall()
    stored = [np.stack(FRAMES[up](*part.T), axis=1) for part in (coord, normal)]
    columns = xyz(stored[0], "f8") | {f"n{a}": stored[1][:, i] for i, a in enumerate("xyz")}
    path = save_ply(tmp_path / "a.ply", columns)
    scene = read_scene(path, up=up)
    np.testing.assert_allclose(scene.coord, coord, atol=1e-6)
    np.testing.assert_allclose(scene.normal, normal, atol=1e-6)
    if up.strip("-") == "z":  # upside down looks as good
        read_scene(path)
    else:
        with pytest.warns(UserWarning, match=f"--up {up[-1]} "):
            unturned = read_scene(path)
        np.testing.assert_allclose(unturned.coord, stored[0], atol=1e-6)  # said, not changed
        read_scene(path, up="z")  # asked for, so no warning


def test_a_cameras_frame_is_noticed(tmp_path):
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 4, 500)
    coord = np.stack([rng.uniform(-0.6, 0.6, 500) * depth, rng.uniform(-0.4, 0.4, 500) * depth, depth], axis=1)
    path = save_ply(tmp_path / "a.ply", xyz(coord))
    with pytest.warns(UserWarning, match="--up=-y"):
        read_scene(path)
    scene = read_scene(path, up="-y")
    np.testing.assert_allclose(scene.coord, np.stack([coord[:, 0], depth, -coord[:, 1]], axis=1), atol=1e-5)


def test_intensity_is_a_grey(tmp_path):
    columns = xyz(points(101)) | {"scalar_Intensity": np.arange(101, dtype="f4") * 40}
    scene = read_scene(save_ply(tmp_path / "a.ply", columns))
    assert scene.filled == ("color", "normal")
    assert (scene.color[:, :1] == scene.color).all() and (scene.color[1:, 0] >= scene.color[:-1, 0]).all()
    assert scene.color[[0, 50, 100], 0].tolist() == [0, 128, 255]
    columns["scalar_Intensity"][:] = 7
    assert (read_scene(save_ply(tmp_path / "b.ply", columns)).color == 127).all()


def test_labels_as_whole_floats(tmp_path):
    columns = xyz(points(3)) | {
        "scalar_Label": np.array([1, np.nan, 3], "f4"),
        "class": np.array([1, 2, 3], "f8"),
        "label_score": np.array([0.5, 1, 1], "f4"),
    }
    labels = read_scene(save_ply(tmp_path / "a.ply", columns)).labels
    assert {name: values.tolist() for name, values in labels.items()} == {"label": [1, -1, 3], "class": [1, 2, 3]}


def test_missing_folder_and_unknown(tmp_path):
    assert "no such file" in error_of(tmp_path / "none.ply")
    assert ".ply, .npz" in error_of(tmp_path)
    (tmp_path / "folder.ply").mkdir()
    assert "is a folder" in error_of(tmp_path / "folder.ply")
    (tmp_path / "a.e57").write_text("0 0 0")
    assert "known: .ply, .npz, .pcd, .las" in error_of(tmp_path / "a.e57")


@pytest.mark.parametrize("suffix, library", [("las", "laspy"), ("laz", "lazrs"), ("obj", "trimesh")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, suffix, library):
    monkeypatch.setitem(sys.modules, library, None)
    path = tmp_path / f"a.{suffix}"
    path.write_text("")
    assert "pip install '" in error_of(path)


def test_nothing_usable(tmp_path):
    assert "no points" in error_of(save_ply(tmp_path / "a.ply", xyz(points(0).reshape(0, 3))))
    assert "all 4 points" in error_of(save_ply(tmp_path / "b.ply", xyz(np.full((4, 3), np.nan))))


def test_ply_without_coordinates(tmp_path):
    path = save_ply(tmp_path / "a.ply", {"x": np.zeros(3), "depth": np.zeros(3)})
    assert "x, depth" in error_of(path)
    table = np.zeros(3, dtype=[("a", "f4")])
    PlyData([PlyElement.describe(table, "edge")]).write(str(tmp_path / "b.ply"))
    assert "edge" in error_of(tmp_path / "b.ply")


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.05, 0.5, 0.8, 0.97])
def test_truncated_ply(tmp_path, text, part):
    faces = [[i, i + 1, i + 2] for i in range(40)]
    path = save_ply(tmp_path / "a.ply", xyz(points()), faces=faces, text=text)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "cut short" in error_of(path)


def test_ply_that_is_none(tmp_path):
    for content in (b"hello\n", b"ply\nformat binary_little_endian 1.0\nelement vertex minus\n", bytes(range(256)) * 9):
        (tmp_path / "a.ply").write_bytes(content)
        assert "not a PLY file" in error_of(tmp_path / "a.ply")


@pytest.mark.parametrize("corner", [50, -1])
def test_faces_beyond_the_vertices(tmp_path, corner):
    path = save_ply(tmp_path / "a.ply", xyz(points()), faces=[[0, 1, 2], [0, 1, corner]])
    assert f"vertex {corner}" in error_of(path)


def test_bad_npz(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK nonsense")
    assert "not an npz" in error_of(path)
    np.savez(path, location=points(), color=points())
    assert "location, color" in error_of(path)
    np.savez(path, coord=points(), color=np.zeros((49, 3), np.uint8))
    assert "'color' is (49, 3) but 'coord' has 50" in error_of(path)
    np.savez(path, coord=points(), segment20=np.zeros(51, np.int64))
    assert "'segment20'" in error_of(path)
    np.savez(path, coord=np.zeros((50, 6)))
    assert "(50, 6)" in error_of(path)
    np.savez(path, coord=np.array(["a", "b"]))
    assert "not numbers" in error_of(path)
    np.savez(path, coord=np.array([None, 1]))
    assert "not an npz archive of plain arrays" in error_of(path)
    np.savez(path, coord=points(), color=np.full((50, 3), -1.0))
    assert "colours from -1" in error_of(path)
    np.savez(path, coord=points(), label=np.full(50, 2**40))
    assert "'label'" in error_of(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "damaged" in error_of(path)


def test_georeferenced_coordinates_keep_their_millimetres(tmp_path):
    coord = points() + [450_321.123, 5_400_987.456, 120]
    with pytest.warns(UserWarning, match="450000 5401000 0 is subtracted"):
        scene = read_scene(save_ply(tmp_path / "a.ply", xyz(coord, "f8")))
    assert scene.origin == (450_000.0, 5_401_000.0, 0.0) and scene[:3].origin == scene.origin
    np.testing.assert_allclose(scene.coord.double() + torch.tensor(scene.origin), coord, atol=1e-4, rtol=0)
    write_ply(tmp_path / "b.ply", scene)
    with pytest.warns(UserWarning, match="is subtracted"):
        back = read_scene(tmp_path / "b.ply")
    assert torch.equal(back.coord, scene.coord) and back.origin == scene.origin
    near = read_scene(save_ply(tmp_path / "c.ply", xyz(points() + 5000, "f8")))
    assert near.origin == (0.0, 0.0, 0.0) and near.coord.min() > 4999


def test_stray_points_that_float32_cannot_hold_are_refused(tmp_path):
    coord = points(1000)
    coord[7, 1] = 1e9
    assert "float32" in error_of(save_ply(tmp_path / "a.ply", xyz(coord, "f8")))


@pytest.mark.parametrize("unit", [0, -1, float("nan"), float("inf"), "mile", "", None])
def test_bad_unit(tmp_path, unit):
    with pytest.raises(UserError, match="unit is"):
        read_scene(save_ply(tmp_path / "a.ply", xyz(points())), unit=unit)


def test_bad_options(tmp_path):
    path = save_ply(tmp_path / "a.ply", xyz(points()))
    with pytest.raises(UserError, match="up is 'w'.*-y"):
        read_scene(path, up="w")
    with pytest.raises(UserError, match="samples is -1"):
        read_scene(path, samples=-1)
    assert "no faces" in error_of(path, samples=10)
    assert "--columns is for text" in error_of(path, columns="xyz")


@pytest.mark.parametrize("rows", [10**9, 10**12, 10**19])
@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("element", ["vertex", "face"])
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path, rows, text, element):
    path = save_ply(tmp_path / "a.ply", xyz(points()), faces=[[0, 1, 2]] * 5, text=text)
    head, end, body = path.read_bytes().partition(b"end_header")
    path.write_bytes(re.sub(rb"element %b \d+" % element.encode(), b"element %b %d" % (element.encode(), rows), head) + end + body)
    tracemalloc.start()
    try:
        assert "cut short" in error_of(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def full_scene(n=50):
    g = torch.Generator().manual_seed(0)
    return Scene(
        coord=torch.rand(n, 3, generator=g),
        color=torch.randint(0, 256, (n, 3), generator=g, dtype=torch.uint8),
        normal=torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1),
        labels={"segment20": torch.arange(n, dtype=torch.int32) - 1},
        instance=torch.arange(n, dtype=torch.int32),
        name="room",
    )


def test_write_and_read_back(tmp_path):
    scene = full_scene()
    write_ply(tmp_path / "new" / "room.ply", scene, faces=torch.tensor([[0, 1, 2]]))
    back = read_scene(tmp_path / "new" / "room.ply")
    assert torch.equal(back.coord, scene.coord) and torch.equal(back.color, scene.color)
    torch.testing.assert_close(back.normal, scene.normal)
    assert torch.equal(back.labels["segment20"], scene.labels["segment20"])
    assert torch.equal(back.instance, scene.instance)
    assert back.filled == () and back.name == "room"
    ply = PlyData.read(str(tmp_path / "new" / "room.ply"))
    assert ply.byte_order == "<" and not ply.text
    assert ply["face"].data["vertex_indices"][0].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path / "new") == ["room.ply"]


def test_write_only_what_there_is(tmp_path):
    write_ply(tmp_path / "a.ply", Scene(coord=torch.rand(3, 3)))
    assert PlyData.read(str(tmp_path / "a.ply"))["vertex"].data.dtype.names == ("x", "y", "z")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.ply"
    path.write_text("old")

    def full_disk(self, stream):
        Path(stream).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PlyData, "write", full_disk)
    with pytest.raises(UserError, match="No space left"):
        write_ply(path, full_scene())
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.ply"]


def test_real_scans(real_scans):
    lounge = read_scene(real_scans / "holo0000_00" / "holo0000_00_vh_clean_2.ply")
    assert len(lounge) == 99_183 and lounge.filled == ()
    floor = lounge.coord[:, 2].abs() < 0.02
    assert floor.sum() > 1000 and lounge.normal[floor, 2].median() > 0.95
    for name, count in (("map", 73_925), ("revisit", 86_135)):
        ceiling = read_scene(real_scans / "scans" / f"ceiling_470_{name}.ply")
        assert len(ceiling) == count and ceiling.filled == ("normal",)
        top = ceiling.coord[:, 2] > ceiling.coord[:, 2].quantile(0.95)
        assert ceiling.normal[top, 2].median() < -0.9
    wall = read_scene(real_scans / "scans" / "wall_patch.ply")
    assert len(wall) == 64_365 and wall.filled == ()
