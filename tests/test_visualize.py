"""`pcssl visualize`: what colours mean, and that pictures, window and browser show the same state."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from test_msm import STILL, objective, room
from test_visualization import plane

import pcssl
from pcssl.cli import main
from pcssl.data import Scene, write_ply
from pcssl.data.scannet_classes import SCANNET20_COLORS
from pcssl.errors import UserError
from pcssl.sparse import Geometry, SparseTensor
from pcssl.visualization import window as window_module
from pcssl.visualization.browser import Browser, check_port, legend_html
from pcssl.visualization.colors import HEAT, OUTSIDE, Classes, Scale, error_colors, faded, heat, similarity
from pcssl.visualization.figure import draw_figure, legend_image
from pcssl.visualization.masked import load_objective, mask_scene
from pcssl.visualization.state import Subject, ViewState, first_hit
from pcssl.visualization.window import Window, check_display

CLASSES = Classes(("floor", "wall", "top"), ((10, 200, 10), (10, 10, 200), (200, 10, 10)))


def scene_of(*planes, name="scene"):
    coord, color, normal = (torch.from_numpy(np.concatenate(x)) for x in zip(*planes))
    return Scene(coord.float(), color, normal.float(), name=name)


def table_room(name="table"):
    """3 x 2 m of floor, a wall, and a table top in the middle, each with features of its own and a bit of noise."""
    parts = [
        plane((0, 3), (0, 2), 0.0, (90, 90, 90), step=0.05),
        plane((0, 3), 2.0, (0, 2), (150, 150, 150), (0, -1, 0), step=0.05),
        plane((1, 2), (0.5, 1.5), 0.7, (200, 150, 90), step=0.05),
    ]
    scene = scene_of(*parts, name=name)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([len(p[0]) for p in parts]))
    rng = torch.Generator().manual_seed(len(name))
    features = torch.eye(8)[labels] * 3 + 0.1 * torch.randn(len(scene), 8, generator=rng) + 5
    return Subject(scene, features, labels, labels.clone())


# ---------------------------------------------------------------- colours


def test_similarity_is_the_cosine_about_the_mean():
    features = torch.tensor([[3.0, 1.0], [1.0, 3.0], [5.0, 1.0], [1.0, 1.0]])
    found = similarity(features, features[0], torch.tensor([1.0, 1.0]))
    assert found.tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0])


def test_heat_runs_through_its_colours_and_stops_at_the_ends():
    found = heat(torch.linspace(-1, 2, 301), Scale("x", 0.0, 1.0))
    assert tuple(found[0].tolist()) == HEAT[0] == tuple(found[100].tolist()) and tuple(found[-1].tolist()) == HEAT[-1]
    assert (found[100:201].sum(1).diff() <= 0).all(), "darker with every step"
    assert tuple(found[150].tolist()) == HEAT[len(HEAT) // 2]


def test_errors_are_counted_where_there_are_labels():
    colors, legend = error_colors(torch.tensor([0, 1, 2, 2, -1]), torch.tensor([0, 1, 2, 0, 0]))
    assert [name for name, _ in legend.entries] == ["right 75 %", "wrong 25 %", "no label"]
    assert [tuple(c) for c in colors.tolist()] == [legend.entries[i][1] for i in (0, 0, 0, 1, 2)]


def test_a_legend_has_the_classes_that_occur_in_scannets_colours():
    classes = Classes.called("segment20", 0)
    labels = torch.cat([torch.full((500,), 1), torch.full((499,), 5), torch.tensor([3])])
    assert classes.legend(labels).entries == (("floor", SCANNET20_COLORS[1]), ("sofa", SCANNET20_COLORS[5]))
    assert classes.legend(torch.tensor([-1])).entries[0][0] == "no label"
    assert tuple(classes.paint(torch.tensor([5]))[0].tolist()) == SCANNET20_COLORS[5]


def test_faded_colours_keep_what_is_asked():
    colors = torch.tensor([[255, 0, 0], [255, 0, 0]], dtype=torch.uint8)
    kept, pale = faded(colors, torch.tensor([True, False])).tolist()
    assert kept == [255, 0, 0] and min(pale) > 150


# ---------------------------------------------------------------- the state


def test_modes_are_what_is_known():
    full = table_room()
    assert ViewState([Subject(full.scene)]).modes == ("input",)
    assert ViewState([Subject(full.scene, full.features)]).modes == ("input", "pca", "similarity", "clusters")
    both = ViewState([full, table_room("two")], CLASSES)
    assert both.modes == ("input", "pca", "similarity", "clusters", "labels", "predictions", "errors")
    assert ViewState([full, Subject(full.scene)]).modes == ("input",), "of all scenes"
    seen = [both.mode]
    for _ in both.modes:
        both.step()
        seen.append(both.mode)
    assert set(seen) == set(both.modes) and seen[0] == seen[-1] == "pca"
    both.step(-1)
    assert both.mode == "input"


@pytest.mark.parametrize("mode, message", [("pca", "needs features"), ("masks", "Masked"), ("colour", "no mode 'colour'")])
def test_a_mode_that_cannot_be_says_why(mode, message):
    with pytest.raises(UserError, match=message):
        ViewState([Subject(table_room().scene)]).use(mode)


def test_colours_mean_the_same_in_all_scenes():
    a, b = table_room(), table_room("other")
    b.scene, b.features, b.labels, b.predictions = (x[torch.arange(len(b.scene) - 1, -1, -1)] for x in vars(b).values() if x is not None)
    state = ViewState([a, b], CLASSES, clusters=3)
    for mode in ("pca", "clusters", "labels"):
        first, second = state.colors(mode)
        for label in range(3):
            mine, theirs = first[a.labels == label].double().mean(0), second[b.labels == label].double().mean(0)
            assert (mine - theirs).abs().max() < 8, mode
    clusters = [tuple(c.tolist()) for c in state.colors("clusters")[0].unique(dim=0)]
    assert len(clusters) == 3, "the three surfaces, each a cluster"


def test_a_query_finds_what_is_like_it_in_every_scene():
    a, b = table_room(), table_room("other")
    state = ViewState([a, b])
    state.ask_place((1.5, 1.0, 0.7), scene=1)
    assert int(b.labels[state.query.row]) == 2
    dark = [colors.double().mean(1) < 120 for colors in state.colors("similarity")]
    for found, subject in zip(dark, (a, b)):
        assert found[subject.labels == 2].double().mean() > 0.9 and not found[subject.labels != 2].any()


def test_a_query_beyond_the_scene_is_refused():
    state = ViewState([table_room()])
    count = len(state.subjects[0].scene)
    for row in (-1, count):
        with pytest.raises(UserError, match=f"table has points 0 to {count - 1}"):
            state.ask_row(row)
    with pytest.raises(UserError, match=r"nearest point of table is 7\.\d\d m away"):
        state.ask_place((10, 1, 0))
    state.ask_place((1.49, 1.02, 0.75))
    assert state.subjects[0].scene.coord[state.query.row].tolist() == pytest.approx([1.5, 1.0, 0.7])


def test_a_ray_meets_the_front_and_not_what_is_behind_it():
    state = ViewState([table_room(), table_room("other")])
    top = state.places[torch.cat([s.labels for s in state.subjects]).numpy() == 2][-1]  # of the second scene
    assert state.ask_ray(top + (0.0, 0.0, 4.0), (0, 0, -1)) and state.mode == "similarity"
    assert state.query.scene == 1 and int(state.subjects[1].labels[state.query.row]) == 2
    assert np.array_equal(state.query_place, top)
    assert state.ask_ray(top - (0.0, 0.0, 4.0), (0, 0, 1)) and int(state.subjects[1].labels[state.query.row]) == 0
    before = state.query
    assert not state.ask_ray(top + (0.0, 0.0, 4.0), (0, 0, 1)) and state.query == before, "it looks away"


def test_a_hidden_ceiling_is_not_in_the_way():
    ceiling = plane((0, 3), (0, 2), 2.5, (80, 80, 80), (0, 0, -1), step=0.05)
    floor, wall = plane((0, 3), (0, 2), 0.0, (90, 90, 90), step=0.05), plane((0, 3), 2.0, (0, 2.5), (9, 9, 9), (0, -1, 0), step=0.05)
    scene = scene_of(floor, wall, ceiling)
    state = ViewState([Subject(scene)])
    eye = np.array([0.0, 0.0, 9.0])
    for state.ceiling, height in ((False, 0.0), (True, 2.5)):
        assert state.ask_ray(eye, (0, 0, -1)) and float(scene.coord[state.query.row, 2]) == height
    assert not ViewState([Subject(scene)]).shown[-len(ceiling[0]) :].any()


@pytest.mark.parametrize("points", [1, 3])
def test_scenes_of_a_few_points(points):
    subject = table_room()
    rows = torch.arange(points)
    few = Subject(subject.scene[rows], subject.features[rows], subject.labels[rows], subject.predictions[rows])
    state = ViewState([few], CLASSES)
    assert all(len(state.colors(mode)[0]) == points for mode in state.modes)
    assert state.ask_ray(state.places[0] + (0, 0, 1), (0, 0, -1)) and state.query.row == 0
    assert first_hit(state.places, np.zeros(points, bool), state.places[0] + (0, 0, 1), np.array([0, 0, -1.0]), 1.0) is None


# ---------------------------------------------------------------- masks, student, targets


def test_masks_are_those_of_the_objective():
    """Without augmentation and crop, half of the cells hidden: the points tell it, level by level."""
    msm = objective(STILL, mask_ratio=0.5, crop=(1.0, 1.0))
    scene = room(0, 3000)
    found = mask_scene(msm, scene, seed=3)
    sample = msm.sampler()(scene, torch.Generator().manual_seed(3))
    voxel = sample.views[0].inverse
    assert found.crop.all()
    # A point at the rim of its voxel may be nearer to its neighbour's middle.
    assert (found.hidden == sample.hidden[0][voxel]).double().mean() > 0.9
    same = found.hidden == sample.hidden[0][voxel]
    assert (found.color[0][same].double() - scene.color[same].double()).abs().mean() < 60, "the mean colour of a voxel"
    assert [len(targets) for targets in found.targets] == [3000] * 3
    assert [targets.shape[1] for targets in found.targets] == list(msm.student.channels)
    assert all(targets.isfinite().all() for targets in found.targets)
    assert (found.asked[0] == found.hidden).double().mean() > 0.99 and 0.2 < found.asked[1].double().mean() < 0.8
    state = ViewState([Subject(scene, masked=found)])
    assert state.modes == ("input", "views0", "views1", "masks", "student", "targets0", "targets1", "targets2")
    shown = state.colors("student")[0]
    assert torch.equal(shown[~found.hidden], found.color[0][~found.hidden])
    assert len(shown[found.hidden].unique(dim=0)) == 1, "nothing of what is hidden"


def test_where_nothing_is_hidden_the_student_is_asked_everywhere_in_its_crop():
    found = mask_scene(objective(STILL, mask_ratio=0.0, crop=(0.5, 0.5)), room(0, 3000), seed=3)
    assert not found.hidden.any() and torch.equal(found.asked[0], found.crop)
    state = ViewState([Subject(room(0, 3000), masked=found)])
    assert [name for name, _ in state.legend("masks").entries] == ["student sees", "outside its crop"]
    assert [name for name, _ in state.legend("student").entries] == ["outside its crop"]
    hiding = ViewState([Subject(room(0, 3000), masked=mask_scene(objective(STILL, crop=(0.5, 0.5)), room(0, 3000)))])
    assert [name for name, _ in hiding.legend("masks").entries] == ["student sees", "hidden", "outside its crop"]


def test_views_show_what_each_takes_of_the_scene():
    scene = room(0, 3000)
    msm = objective(STILL, max_voxels=200)
    found = mask_scene(msm, scene, seed=3)
    sample = msm.sampler()(scene, torch.Generator().manual_seed(3))
    state = ViewState([Subject(scene, masked=found)])
    for i, view in enumerate(sample.views):
        shown = state.colors(f"views{i}")[0]
        near = (scene.coord[:, None] - view.origin).norm(dim=2).amin(1) < 1.5 * msm.data.voxel_size
        assert 0.05 < near.double().mean() < 0.95
        assert torch.equal(shown[~found.taken[i]].unique(dim=0), torch.tensor([OUTSIDE], dtype=torch.uint8))
        assert found.taken[i][near].all() and not (found.crop & ~found.taken[0]).any()
        assert (shown[near].double() - scene.color[near].double()).abs().mean() < 60, "the mean colour of a voxel"
        assert [name for name, _ in state.legend(f"views{i}").entries] == ["not in the view"]
    whole = ViewState([Subject(scene, masked=mask_scene(objective(STILL), scene))])
    assert whole.legend("views0") is None


def test_targets_are_the_teachers_features_on_the_other_view():
    msm = objective(STILL)
    scene = room(1, 800)
    found = mask_scene(msm, scene, seed=1)
    sample = msm.sampler()(scene, torch.Generator().manual_seed(1))
    batch = msm.collate([sample])
    second = sample.views[1]
    levels = msm.teacher(SparseTensor(batch.features, Geometry(batch.coords)))
    own = levels[0].features[levels[0].batch == 1][second.inverse]
    assert (found.targets[0] - own).abs().amax(1).lt(1e-5).double().mean() > 0.9
    assert not torch.equal(mask_scene(msm, scene, seed=2).hidden, found.hidden)


# ---------------------------------------------------------------- pictures


def colors_in(image):
    return {color for _, color in image.convert("RGB").getcolors(1_000_000)}


def test_a_figure_has_columns_legends_and_the_query():
    state = ViewState([table_room(), table_room("other")], CLASSES)
    one = draw_figure(state, ["input"], width=160)
    three = draw_figure(state, ["input", "labels", "predictions"], width=160, views=("oblique", "top"))
    assert one.width == three.width == 160 and len(colors_in(one)) > 20
    assert set(CLASSES.colors) <= colors_in(three), "the swatches are of the classes' own colours"
    state.ask_place((1.5, 1.0, 0.7))
    plain = np.asarray(draw_figure(ViewState([table_room()]), ["pca"], width=160), int)
    assert plain[0].min() == 255 and plain[:, 0].min() == 255, "white around"
    wrapped = draw_figure(state, ["input", "pca", "similarity"], width=160, columns=2)
    assert wrapped.width == 160 and wrapped.height > draw_figure(state, ["input", "pca"], width=160, columns=2).height


def test_the_ring_is_where_the_query_is():
    state = ViewState([table_room()])
    pictures = []
    for place in ((0.2, 0.2, 0.0), (2.8, 1.8, 0.0)):
        state.ask_place(place)
        scene = state.subjects[0].scene
        grey = torch.full((len(scene), 3), 128, dtype=torch.uint8)
        mark = scene.coord[state.query.row].numpy()
        picture = np.asarray(pcssl.visualization.render_points(scene.coord, grey, view="top", size=(300, 200), normal=scene.normal, mark=mark), int)
        pictures.append(np.argwhere((picture < 20).all(2)).mean(0))
    (low_y, low_x), (high_y, high_x) = pictures
    assert low_x < 60 and low_y > 140 and high_x > 240 and high_y < 60


def test_legends_in_words_pages_and_pictures():
    swatches = CLASSES.legend(torch.tensor([0, 1, 2]))
    assert window_module.legend_words(swatches) == "floor, wall, top"
    page = legend_html("labels", swatches)
    assert "wall" in page and "rgb(10, 10, 200)" in page and "0.5" in legend_html("x", Scale("x", 0.5, 1.0))
    font = ImageFont.load_default(12)
    wide, narrow = (legend_image(swatches, width, font) for width in (400, 60))
    assert wide.height < narrow.height and narrow.width <= 60
    bar = np.asarray(legend_image(Scale("x", 0, 1), 200, font), int)
    for end in (HEAT[0], HEAT[-1]):
        assert np.abs(bar - end).max(2).min() < 8


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared scenes, their data file, and a checkpoint."""
    base = tmp_path_factory.mktemp("visualize")
    for i in range(3):
        scene = room(i, 700)
        target = base / "data" / ("train" if i < 2 else "val") / f"room{i}"
        target.mkdir(parents=True)
        arrays = {"coord": scene.coord, "color": scene.color, "normal": scene.normal, "segment20": 2 - scene.normal.argmax(1)}
        for name, values in arrays.items():
            np.save(target / f"{name}.npy", values.numpy())
    dataset = f"{{name: folder, root: {base / 'data'}, label: segment20, classes: [floor, y wall, x wall]}}"
    (base / "tiny.yaml").write_text(
        f"""
output: {base / "out"}
data: {{dataset: {dataset}, voxel_size: 0.2, batch_size: 2, workers: 0}}
model: {{name: hunet, channels: [8, 16], decoder_channels: [8, 16], blocks: [1, 1], decoder_blocks: [1, 1],
  attention: [0, 1], decoder_attention: [0, 1], heads: [1, 2], decoder_heads: [1, 2], window: 8}}
objective: {{name: msm}}
optimizer: {{epochs: 1, warmup_epochs: 0}}
device: cpu
probe: {{after_training: false}}
"""
    )
    (base / "data.yaml").write_text(f"dataset: {dataset}\nprobe: {{train_points: 100, epochs: 5}}\n")
    assert main(["train", str(base / "tiny.yaml")]) == 0
    write_ply(base / "scan.ply", room(7, 500))
    assert main(["extract", str(base / "scan.ply"), "--model", str(base / "out/checkpoint.pt"), "--out", str(base / "f.npz")]) == 0
    return base


def visualize(*arguments):
    return main(["visualize", *map(str, arguments)])


def test_every_mode_of_a_prepared_scene(folder, tmp_path):
    scene, checkpoint = folder / "data/val/room2", folder / "out/checkpoint.pt"
    modes = "input,pca,similarity,clusters,labels,predictions,errors,views,masks,student,targets"
    out = tmp_path / "new" / "all.png"
    more = ["--probe", folder / "data.yaml", "--query", 5, "--clusters", 3, "--across", 5, "--width", 500]
    assert visualize(scene, "--checkpoint", checkpoint, "--mode", modes, "--out", out, *more) == 0
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width == 500 and len(colors_in(image)) > 100
    assert visualize(scene, folder / "data/train/room0", "--checkpoint", checkpoint, "--out", tmp_path / "two.jpg", "--view", "both", "--width", 200) == 0
    with Image.open(tmp_path / "two.jpg") as image:
        assert image.format == "JPEG"


def test_a_cloud_has_the_colours_of_the_mode(folder, tmp_path):
    scan, out = folder / "scan.ply", tmp_path / "pca.ply"
    assert visualize(scan, "--features", folder / "f.npz", "--mode", "pca", "--out", out) == 0
    written, scene = pcssl.read_scene(out), pcssl.read_scene(scan)
    with np.load(folder / "f.npz") as file:
        expected = ViewState([Subject(scene, torch.from_numpy(file["features"]))]).colors("pca")[0]
    assert torch.equal(written.color, expected) and torch.equal(written.coord, scene.coord)


def test_predictions_of_a_file(folder, tmp_path):
    np.save(tmp_path / "p.npy", np.arange(500) % 3)
    arguments = ["--predictions", tmp_path / "p.npy", "--mode", "predictions", "--out", tmp_path / "p.ply"]
    assert visualize(folder / "scan.ply", *arguments) == 0
    assert pcssl.read_scene(tmp_path / "p.ply").color[1].tolist() == list(SCANNET20_COLORS[1])


BAD = {
    "other points": (["--features", "{other}", "--mode", "pca"], "500 points"),
    "points elsewhere": (["--features", "{moved}", "--mode", "pca"], "lie elsewhere"),
    "no features": (["--mode", "pca"], "give --features or --checkpoint"),
    "not finite": (["--features", "{nan}", "--mode", "pca"], "NaN or infinite"),
    "no such file": (["--features", "{missing}", "--mode", "pca"], "no such file"),
    "damaged file": (["--features", "{scan}", "--mode", "pca"], "cannot be read"),
    "no labels": (["--mode", "labels"], "mode 'labels' needs labels"),
    "unknown label": (["--label", "segment9"], "no labels"),
    "unknown mode": (["--mode", "simlarity"], "did you mean 'similarity'"),
    "row beyond": (["--query", "500"], "points 0 to 499"),
    "place far away": (["--query", "50,0,0"], "m away"),
    "no point": (["--query", "1,2"], "x,y,z"),
    "no place": (["--query", "nan,0,0"], "x,y,z"),
    "predictions": (["--predictions", "{other}"], "no 'predictions'"),
    "probe alone": (["--probe", "x.yaml"], "--probe needs --checkpoint"),
    "several files": (["--features", "{features}", "{other}", "--mode", "pca"], "2 files for 1 scans"),
    "two modes": (["--out", "{ply}", "--mode", "input,input"], "one mode"),
    "width": (["--width", "7"], "--width 7"),
    "ending": (["--out", "x.tif"], "must end in"),
    "both": (["--window", "--browser"], "choose one"),
    "port": (["--browser", "--port", "70000"], "1 to 65535|needs viser"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(folder, tmp_path, capsys, case):
    with np.load(folder / "f.npz") as file:
        features, coord = file["features"], file["coord"]
    np.savez(tmp_path / "other.npz", features=features[:400], coord=coord[:400])
    np.savez(tmp_path / "moved.npz", features=features, coord=coord + 1)
    np.savez(tmp_path / "nan.npz", features=np.full_like(features, np.nan), coord=coord)
    places = {name: tmp_path / f"{name}.npz" for name in ("other", "moved", "nan", "missing")}
    places |= {"features": folder / "f.npz", "scan": folder / "scan.ply", "ply": tmp_path / "x.ply"}
    arguments, message = BAD[case]
    arguments = [argument.format(**places) for argument in arguments]
    assert visualize(folder / "scan.ply", "--out", tmp_path / "x.png", *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]


def test_a_model_without_masks_still_shows_the_rest(folder, tmp_path, capsys):
    content = torch.load(folder / "out/checkpoint.pt", weights_only=True)
    content["config"]["objective"] = {"name": "supervised"}
    torch.save(content, tmp_path / "other.pt")
    scan = folder / "scan.ply"
    assert visualize(scan, "--checkpoint", tmp_path / "other.pt", "--out", tmp_path / "a.png", "--width", 200) == 0
    assert visualize(scan, "--checkpoint", tmp_path / "other.pt", "--out", tmp_path / "a.png", "--mode", "masks") == 2
    assert "only msm hides parts" in capsys.readouterr().err
    assert load_objective(folder / "out/checkpoint.pt").config.mask_ratio == 0.4


# ---------------------------------------------------------------- the window


def test_no_module_imports_a_viewer_before_it_is_used():
    for path in Path(pcssl.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "open3d" in text or "viser" in text else ():
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"open3d", "viser"}, path


@pytest.mark.parametrize(
    "failure, message",
    [
        (ModuleNotFoundError("No module named 'open3d'", name="open3d"), r"pip install 'pcssl\[view\]'"),
        (ModuleNotFoundError("No module named 'dash'", name="dash"), "No module named 'dash'; install it again"),
        (ImportError("libusb-1.0.so.0: cannot open shared object file"), "libusb-1.0.so.0.* apt install libusb-1.0-0 libgl1 libegl1"),
        (OSError("libEGL.so.1: cannot open shared object file"), "libEGL.so.1.* apt install"),
    ],
)
def test_what_open3d_lacks_is_named(monkeypatch, failure, message):
    def fail(name):
        raise failure

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UserError, match=message):
        window_module.load_open3d()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays by name are Linux's")
def test_a_display_that_is_not_there_is_named(monkeypatch):
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(UserError, match="no display"):
        check_display()
    monkeypatch.setenv("DISPLAY", ":987")
    with pytest.raises(UserError, match="display :987 cannot be opened|libX11"):
        check_display()


@pytest.fixture
def window():
    """A window that is drawn to memory, as large as a stamp."""
    try:
        window_module.load_open3d()
    except UserError as error:
        pytest.skip(str(error))
    shown = Window(ViewState([table_room()], CLASSES), visible=False)
    yield shown
    shown.window.destroy_window()


def pixel_of(window, place):
    camera = window.window.get_view_control().convert_to_pinhole_camera_parameters()
    x, y, z = camera.intrinsic.intrinsic_matrix @ (camera.extrinsic @ (*place, 1.0))[:3]
    return x / z, y / z


def test_a_click_in_the_window_moves_the_query(window, capsys):
    state = window.state
    for label in (2, 0, 1):
        rows = np.flatnonzero(state.subjects[0].labels == label)
        row = rows[len(rows) // 2 + 10] if label != 0 else rows[-5]  # of the floor, not below the table
        window.on_move(*pixel_of(window, state.places[row]))
        assert not window.on_button(0, 1) and window.on_button(0, 0)
        assert np.linalg.norm(state.query_place - state.places[row]) < 0.11 and state.mode == "similarity"
        assert int(state.subjects[0].labels[state.query.row]) == label
    assert "similarity" in capsys.readouterr().out
    window.on_move(3, 3)
    assert not window.on_button(0, 1) and not window.on_button(0, 0), "nothing there"


def test_what_is_clicked_is_what_is_seen(window):
    """The pixel of a point shows the point: the camera that clicks are traced with is the one that draws."""
    state = window.state
    window.on_key(str(1 + state.modes.index("labels")))
    picture, painted = window.picture(), state.paint()
    assert picture.shape[:2] == (800, 1280) and (picture[2, 2] == 255).all()
    rows = np.flatnonzero(state.subjects[0].labels == 2)[::37]
    hits = 0
    for row in rows:
        x, y = map(int, pixel_of(window, state.places[row]))
        hits += bool(np.abs(picture[y, x].astype(int) - painted[row]).max() < 12)
    assert hits > 0.9 * len(rows)


def test_keys_and_drags_in_the_window(window):
    state = window.state
    before = window.picture()
    window.on_key("M")
    assert state.mode == "similarity" and (window.picture() != before).any()
    window.on_key("N")
    window.on_key("N")
    assert state.mode == "input"
    window.on_key("C")
    assert state.ceiling
    eye, still = window._ray(0, 0)[0], window.picture()
    window.on_move(600, 400)
    window.on_button(0, 1)
    window.on_move(700, 430)
    assert not window.on_button(0, 0), "a drag is no click"
    assert np.linalg.norm(window._ray(0, 0)[0] - eye) > 0.1 and (window.picture() != still).any()
    eye = window._ray(0, 0)[0]
    window.on_scroll(1)
    assert np.linalg.norm(window._ray(0, 0)[0]) < np.linalg.norm(eye), "nearer"


# ---------------------------------------------------------------- the browser


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: Address already in use; choose another"):
            check_port("127.0.0.1", port)
    with pytest.raises(UserError, match="1 to 65535"):
        check_port("127.0.0.1", 0)


@pytest.fixture
def browser():
    pytest.importorskip("viser", reason="needs viser: pip install 'pcssl[view]'")
    page = Browser(ViewState([table_room()], CLASSES), port=free_port())
    yield page
    page.stop()


def test_the_page_follows_the_state(browser):
    state = browser.state
    top = state.places[state.subjects[0].labels == 2][40]
    browser.click(top + (0.0, 0.0, 3.0), (0.0, 0.0, -1.0))
    assert np.array_equal(state.query_place, top) and state.mode == browser._mode.value == "similarity"
    assert browser._marker.visible and np.allclose(browser._marker.position, top)
    assert np.array_equal(browser._points.colors, state.paint()[state.shown]) and "0." in browser._legend.content
    with pytest.raises(UserError, match="in use"):
        Browser(state, port=browser.server.get_port())


def chromium():
    """A Chromium to drive: $PCSSL_CHROMIUM, one on the path, or playwright's own (None)."""
    found = os.environ.get("PCSSL_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    return sync_api.sync_playwright, found


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    assert condition()


@pytest.mark.slow
def test_a_click_and_keys_in_chromium(browser, tmp_path):
    """The page as a person has it: it draws, a click on the table takes its features, M goes on, the list switches."""
    playwright, executable = chromium()
    state = browser.state
    with playwright() as driver:
        try:
            chrome = driver.chromium.launch(
                executable_path=executable, args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
            )
        except Exception as error:
            pytest.skip(f"no Chromium to drive (set PCSSL_CHROMIUM): {str(error).splitlines()[0]}")
        page = chrome.new_page(viewport={"width": 640, "height": 400})
        page.goto(browser.url)
        wait_for(lambda: drawn(page, tmp_path / "page.png") > 0.02)
        middle = state.places[state.subjects[0].labels == 2].mean(0)
        page.mouse.click(*spot_of(browser, middle))
        wait_for(lambda: state.mode == "similarity")
        assert np.linalg.norm(state.query_place - middle) < 0.1 and int(state.subjects[0].labels[state.query.row]) == 2
        page.keyboard.press("m")
        wait_for(lambda: state.mode == "clusters")
        page.keyboard.press("n")
        wait_for(lambda: state.mode == "similarity")
        page.keyboard.press("c")
        wait_for(lambda: state.ceiling)
        page.get_by_role("combobox", name="mode").click()
        page.get_by_role("option", name="labels").click()
        wait_for(lambda: state.mode == "labels")
        wait_for(lambda: "wall" in page.content())
        assert drawn(page, tmp_path / "labels.png") > 0.02
        chrome.close()


def drawn(page, path):
    """Part of the page, left of its panel and below its notes, that has colour."""
    page.screenshot(path=path)
    pixels = np.asarray(Image.open(path).convert("RGB"), int)[130:, :400]
    return float((np.ptp(pixels, axis=2) > 25).mean())


def spot_of(browser, place):
    """The pixel of a place on the page of the one client."""
    (client,) = browser.server.get_clients().values()
    camera = client.camera
    w, v = camera.wxyz[0], np.asarray(camera.wxyz[1:])
    away = np.asarray(place) - camera.position
    x, y, z = away + 2 * np.cross(-v, np.cross(-v, away) + w * away)  # turned back by the camera's quaternion
    focal = camera.image_height / 2 / np.tan(camera.fov / 2)
    return camera.image_width / 2 + focal * x / z, camera.image_height / 2 + focal * y / z
