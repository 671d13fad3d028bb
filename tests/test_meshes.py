"""Meshes: points drawn from faces against areas and colours that are known; every defect named."""

import json
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from pcssl.data.formats import mesh as mesh_format
from pcssl.data.formats import read_scene, write_ply
from pcssl.data.scene import Scene
from pcssl.errors import UserError

trimesh = pytest.importorskip("trimesh", reason="meshes need trimesh")

FORMATS = [".obj", ".stl", ".off", ".glb"]


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("default", module="trimesh")
        yield


def box(size=(0.6, 0.4, 0.3)):
    return trimesh.creation.box(size)


def save(path, mesh):
    """Write a mesh whose z is up; GLB gets y up, as its specification wants."""
    if path.suffix == ".glb":
        mesh = mesh.copy()
        mesh.apply_transform([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    mesh.export(str(path))
    return path


def refused(path, **options):
    with pytest.raises(UserError) as caught:
        read_scene(path, **options)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("suffix", FORMATS)
def test_points_lie_evenly_on_the_faces(tmp_path, suffix):
    scene = read_scene(save(tmp_path / f"a{suffix}", box()))
    half = torch.tensor([0.3, 0.2, 0.15])
    areas = 2 * 5000 * torch.tensor([0.4 * 0.3, 0.6 * 0.3, 0.6 * 0.4])
    assert abs(len(scene) - areas.sum()) <= 1
    away = (scene.coord.abs() - half).abs()
    torch.testing.assert_close(away.amin(1), torch.zeros(len(scene)), atol=1e-6, rtol=0)
    assert (scene.coord.abs() <= half + 1e-6).all()
    on = torch.bincount(away.argmin(1), minlength=3)
    assert (on - areas).abs().max() <= 4  # each of four triangles up or down
    axis = away.argmin(1, keepdim=True)
    outward = torch.zeros(len(scene), 3).scatter(1, axis, scene.coord.gather(1, axis).sign())
    torch.testing.assert_close(scene.normal, outward, atol=1e-5, rtol=0)
    assert scene.filled == ("color",)
    top = scene.coord[scene.coord[:, 2] > 0.149]
    assert top[:, :2].mean(0).abs().max() < 0.02
    torch.testing.assert_close(top[:, :2].std(0), torch.tensor([0.6, 0.4]) / 12**0.5, rtol=0.05, atol=0)


@pytest.mark.parametrize("suffix", FORMATS)
def test_vertices_or_a_number_of_points(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", box())
    corners = read_scene(path, samples=0)
    expected = {(x, y, z) for x in (-3, 3) for y in (-2, 2) for z in (-1.5, 1.5)}
    assert {tuple(c) for c in (corners.coord * 10).round(decimals=3).tolist()} == expected and len(corners) == 8
    assert "normal" not in corners.filled and (corners.normal * corners.coord).sum(1).min() > 0
    for count in (1, 777):
        assert len(read_scene(path, samples=count)) == count


def test_the_same_seed_draws_the_same(tmp_path):
    path = save(tmp_path / "a.obj", box())
    first, again, other = (read_scene(path, seed=seed).coord for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_normals_of_the_smallest_faces_are_theirs(tmp_path):
    fine = trimesh.creation.box((0.5, 0.5, 0.5)).subdivide_to_size(0.02)
    fine.apply_scale(0.01)  # triangles of 0.02 mm2 at most
    scene = read_scene(save(tmp_path / "a.obj", fine), unit="m", samples=500)
    axis = scene.coord.abs().argmax(1, keepdim=True)
    outward = torch.zeros(500, 3).scatter(1, axis, scene.coord.gather(1, axis).sign())
    torch.testing.assert_close(scene.normal, outward, atol=1e-4, rtol=0)


def test_density_is_in_metres_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(mesh_format, "MOST_POINTS", 20_000)
    path = save(tmp_path / "a.stl", box((600, 400, 300)))
    scene = read_scene(path, unit="mm")
    assert abs(len(scene) - 5400) <= 1 and scene.coord.abs().max() <= 0.3001
    with pytest.warns(UserWarning) as said:
        assert len(read_scene(path)) == 20_000
    assert "check --unit" in str(said[0].message) and "--unit cm" in str(said[1].message)


def test_ply_gives_vertices_unless_asked(tmp_path):
    mesh = box()
    corners = torch.tensor(mesh.vertices).float()
    colors = torch.zeros(8, 3, dtype=torch.uint8)
    colors[:, 0] = (corners[:, 2] > 0) * 200  # the height above the floor, between the corners
    labels = {"label": torch.arange(8, dtype=torch.int32)}
    write_ply(tmp_path / "a.ply", Scene(corners, colors, labels=labels), faces=mesh.faces)
    assert len(read_scene(tmp_path / "a.ply")) == 8
    scene = read_scene(tmp_path / "a.ply", samples=500)
    assert len(scene) == 500
    torch.testing.assert_close(scene.color[:, 0].float(), (scene.coord[:, 2] / 0.3 + 0.5) * 200, atol=0.51, rtol=0)
    nearest = torch.cdist(scene.coord, corners)
    assert ((nearest.gather(1, scene.labels["label"][:, None].long())[:, 0] - nearest.amin(1)) < 0.3).all()


def test_vertex_and_face_colors(tmp_path):
    mesh = box()
    mesh.visual.vertex_colors = np.where(mesh.vertices[:, 2:] > 0, (200, 0, 0, 255), (0, 0, 0, 255)).astype("u1")
    for suffix in (".obj", ".glb"):
        scene = read_scene(save(tmp_path / f"a{suffix}", mesh))
        torch.testing.assert_close(scene.color[:, 0].float(), (scene.coord[:, 2] / 0.3 + 0.5) * 200, atol=1.01, rtol=0)
        assert "color" not in scene.filled and (scene.color[:, 1:] == 0).all()


def quad(tmp_path, picture, uv):
    """A vertical square of 1 m with a texture, as OBJ: (0, 0, 0) has uv[0], then round the square."""
    if picture:
        pixels = np.zeros((100, 100, 3), "u1")
        pixels[:50, :, 0], pixels[:, 50:, 1] = 255, 255  # red above, green to the right
        Image.fromarray(pixels).save(tmp_path / "p.png")
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 0.2 0.4 0.6\n" + "map_Kd p.png\n" * picture)
    lines = ["mtllib a.mtl", "usemtl m", "v 0 0 0", "v 1 0 0", "v 1 0 1", "v 0 0 1"]
    lines += [f"vt {u} {v}" for u, v in uv] + ["f 1/1 2/2 3/3", "f 1/1 3/3 4/4"]
    (tmp_path / "a.obj").write_text("\n".join(lines) + "\n")
    return tmp_path / "a.obj"


@pytest.mark.parametrize("shift", [0, 3, -2], ids=["inside", "beyond", "before"])
@pytest.mark.parametrize("as_glb", [False, True])
def test_texture(tmp_path, shift, as_glb):
    path = quad(tmp_path, True, [(shift + u, shift + v) for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))])
    if as_glb:
        mesh = trimesh.load_mesh(str(path), process=False)
        path = save(tmp_path / "b.glb", mesh)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a lone wall is as wide as it is high
        scene = read_scene(path, samples=4000)
    inside = ((scene.coord[:, [0, 2]] - 0.5).abs() > 0.02).all(1)
    above, right = scene.coord[:, 2] > 0.5, scene.coord[:, 0] > 0.5
    expected = torch.stack([above * 255, right * 255, torch.zeros(4000)], 1).to(torch.uint8)
    assert torch.equal(scene.color[inside], expected[inside])


def test_material_without_a_picture(tmp_path):
    scene = read_scene(quad(tmp_path, False, [(0, 0)] * 4), samples=10, up="z")
    assert scene.color.tolist() == [[51, 102, 153]] * 10


def test_a_scene_of_several_meshes_each_in_its_place(tmp_path):
    red, plain = box((1, 1, 1)), box((1, 1, 1))
    red.visual.face_colors = (255, 0, 0, 255)
    scene = trimesh.Scene([plain])
    mirror = trimesh.transformations.reflection_matrix([0, 0, 0], [1, 0, 0])
    scene.add_geometry(red, transform=trimesh.transformations.translation_matrix([5, 0, 0]) @ mirror)
    scene.export(str(tmp_path / "a.glb"))
    read = read_scene(tmp_path / "a.glb", up="y", samples=3000)
    second = read.coord[:, 0] > 2
    assert abs(int(second.sum()) - 1500) <= 12
    assert (read.color[second] == torch.tensor([255, 0, 0])).all() and (read.color[~second] == 127).all()
    from_middle = read.coord - torch.where(second[:, None], torch.tensor([5.0, 0, 0]), torch.zeros(3))
    assert (from_middle * read.normal).sum(1).min() > 0.49  # outwards, in the mirrored one too


def test_glb_is_y_up_by_its_specification(tmp_path):
    box((1, 2, 3)).export(str(tmp_path / "a.glb"))
    for up, size in (("auto", [1, 3, 2]), ("y", [1, 3, 2]), ("z", [1, 2, 3])):
        coord = read_scene(tmp_path / "a.glb", up=up, samples=0).coord
        assert (coord.amax(0) - coord.amin(0)).tolist() == size


def test_points_in_a_glb(tmp_path):
    cloud = trimesh.PointCloud(np.random.default_rng(0).uniform(0, 1, (50, 3)), np.full((50, 4), 9, "u1"))
    trimesh.Scene([cloud]).export(str(tmp_path / "a.glb"))
    assert "--samples 0 takes its 50 vertices" in refused(tmp_path / "a.glb")
    scene = read_scene(tmp_path / "a.glb", samples=0)
    assert len(scene) == 50 and (scene.color == 9).all() and scene.filled == ("normal",)
    trimesh.Scene([cloud, box()]).export(str(tmp_path / "b.glb"))
    with pytest.warns(UserWarning, match="left out the points"):
        assert len(read_scene(tmp_path / "b.glb", samples=100)) == 100
    assert len(read_scene(tmp_path / "b.glb", samples=0)) == 58


@pytest.mark.parametrize("text_stl", [False, True])
def test_stl_as_text_and_not(tmp_path, text_stl):
    content = box().export(file_type="stl_ascii" if text_stl else "stl")
    (tmp_path / "a.stl").write_bytes(content.encode() if text_stl else content)
    assert abs(len(read_scene(tmp_path / "a.stl")) - 5400) <= 1


def test_polygons_and_other_encodings(tmp_path):
    corners = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
    obj = "# Tür\n" + "".join("v {} {} {}\n".format(*c) for c in corners) + "f 1 2 3 4\n"
    off = "OFF # Tür\n4 1 0\n" + "".join("{} {} {}\n".format(*c) for c in corners) + "4 0 1 2 3\n"
    for name, text in (("a.obj", obj), ("a.off", off)):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        scene = read_scene(tmp_path / name, up="z")
        assert abs(len(scene) - 5000) <= 1 and (scene.normal == torch.tensor([0, 0, 1.0])).all()


def test_faces_without_area_or_with_holes(tmp_path):
    flat = "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"
    (tmp_path / "a.obj").write_text(flat)
    assert "no area" in refused(tmp_path / "a.obj")
    (tmp_path / "b.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv nan 0 0\nf 1 2 3\nf 2 3 4\n")
    scene = read_scene(tmp_path / "b.obj", up="z")
    assert abs(len(scene) - 2500) <= 1 and (scene.normal[:, 2] == 1).all()


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_faces(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    gltf = json.dumps({"asset": {"version": "2.0"}}).encode().ljust(32)
    content = {
        ".obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\n",
        ".off": b"OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n",
        ".stl": bytes(84),
        ".glb": struct.pack("<4sIIII", b"glTF", 2, 20 + len(gltf), len(gltf), 0x4E4F534A) + gltf,
    }[suffix]
    path.write_bytes(content)
    message = refused(path)
    assert ("--samples 0 takes its 3" if suffix in (".obj", ".off") else "no vertices") in message or "glTF" in message


@pytest.mark.parametrize("suffix, parts", [(".stl", (0, 0.1, 0.5, 0.98)), (".off", (0, 0.05, 0.5, 0.9)), (".glb", (0, 0.2, 0.5, 0.98))])
def test_truncated(tmp_path, suffix, parts):
    path = save(tmp_path / f"a{suffix}", box())
    content = path.read_bytes()
    for part in parts:
        path.write_bytes(content[: int(len(content) * part)])
        assert "cut short" in refused(path)


def test_a_missing_part(tmp_path):
    (tmp_path / "a.gltf").write_text('{"asset": {"version": "2.0"}, "buffers": [{"uri": "b.bin", "byteLength": 9}]}')
    assert "refers to b.bin" in refused(tmp_path / "a.gltf")


def test_truncated_texts(tmp_path):
    text = box().export(file_type="stl_ascii")
    (tmp_path / "a.stl").write_text(text[: len(text) // 2])
    assert "endsolid" in refused(tmp_path / "a.stl")
    text = box().export(file_type="obj")
    (tmp_path / "a.obj").write_text(text[: text.index("f ")])
    assert "no faces" in refused(tmp_path / "a.obj")


@pytest.mark.parametrize("suffix", FORMATS)
def test_other_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for content in (b"hello\n", bytes(range(256)) * 9):
        path.write_bytes(content)
        message = refused(path)
        assert "cut short or damaged" in message or "no vertices" in message
        assert "charset" not in message


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n"),
        ("a.obj", "v 0 0 0\nv 1 0 x\nv 0 1 0\nf 1 2 3\n"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 x\n0 1 0\n3 0 1 2\n"),
        ("a.off", "OFF\nmany 1 0\n0 0 0\n"),
    ],
)
def test_bad_rows(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert "damaged" in refused(tmp_path / name)


@pytest.mark.parametrize("count", [10**9, 10**12])
@pytest.mark.parametrize("kind", ["off vertices", "off faces", "stl"])
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path, count, kind):
    path = tmp_path / f"a.{kind.split()[0]}"
    if kind == "stl":
        path.write_bytes(bytes(80) + struct.pack("<I", min(count, 2**32 - 1)) + bytes(100))
    else:
        counts = f"{count} 1" if kind == "off vertices" else f"3 {count}"
        path.write_text(f"OFF\n{counts} 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    tracemalloc.start()
    try:
        assert "cut short" in refused(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
