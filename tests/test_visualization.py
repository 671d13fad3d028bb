"""Pictures: what is in front hides what is behind, and a colour means the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pcssl.errors import UserError
from pcssl.visualization.pca import PCAColors
from pcssl.visualization.render import MARGIN, contact_sheet, label_colors, render_points, save_png

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plane(x, y, z, color, normal=(0, 0, 1), step=0.02):
    """Points on a grid over the ranges x, y, z (one of them a single number)."""
    axes = [np.arange(*v, step) if isinstance(v, tuple) else np.array([v]) for v in (x, y, z)]
    coord = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)
    n = len(coord)
    return coord, np.tile(np.uint8(color), (n, 1)), np.tile(np.float32(normal), (n, 1))


def join(*parts):
    return tuple(np.concatenate(x) for x in zip(*parts))


def hue(pixel):
    """Which of red, green, blue a pixel shows; None on white."""
    pixel = np.asarray(pixel, int)
    return None if pixel.min() > 200 else ("red", "green", "blue")[int(pixel.argmax())]


def share(image, color):
    """Part of the picture that shows a pure colour, however dark."""
    pixels = np.asarray(image, int).reshape(-1, 3)
    channel = int(np.argmax(color))
    others = np.delete(pixels, channel, axis=1).max(axis=1)
    return float(np.mean((pixels[:, channel] > 60) & (others < 30)))


# ---------------------------------------------------------------- the renderer


@pytest.mark.parametrize("upper_last", [True, False])
@pytest.mark.parametrize("view", ["top", "oblique"])
def test_the_nearer_surface_wins_in_any_order(view, upper_last):
    lower = plane((0, 1), (0, 1), 0.0, RED)
    upper = plane((0.3, 0.7), (0.3, 0.7), 0.3, GREEN)
    coord, color, normal = join(*((lower, upper) if upper_last else (upper, lower)))
    image = render_points(coord, color, view=view, normal=normal, size=(200, 200))
    assert share(image, GREEN) > 0.05 and share(image, RED) > 0.2
    if view == "top":
        assert hue(image.getpixel((100, 100))) == "green" and hue(image.getpixel((25, 25))) == "red"


def test_nothing_shines_through():
    lower = plane((0, 1), (0, 1), 0.0, RED)
    upper = plane((0, 1), (0, 1), 0.3, GREEN)
    coord, color, normal = join(lower, upper)
    image = render_points(coord, color, view="top", normal=normal, size=(200, 200))
    assert share(image, RED) == 0 and share(image, GREEN) > 0.7


def test_background_is_white_and_the_scene_fills_the_picture():
    coord, color, normal = plane((0, 1), (0, 1), 0.0, RED)
    pixels = np.asarray(render_points(coord, color, view="top", normal=normal, size=(300, 200)))
    assert pixels.shape == (200, 300, 3)
    assert (pixels[:, :40] == 255).all() and (pixels[:, -40:] == 255).all()
    rows = np.flatnonzero((pixels < 255).any(axis=(1, 2)))
    assert 0 < rows[0] <= 200 * MARGIN and 200 * (1 - MARGIN) - 1 <= rows[-1] < 199
    assert (pixels[20:180, 70:230, 0] > 150).all() and (pixels[20:180, 70:230, 1] == 0).all()  # no holes


def test_points_land_where_they_should():
    """Four corners of a 2 m x 1 m field from above: x to the right, y up."""
    coord = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0], [2, 1, 0]], np.float32)
    color = np.array([RED, GREEN, BLUE, (255, 255, 0)], np.uint8)
    image = render_points(coord, color, view="top", size=(400, 400), point_size=0.1)
    scale = 400 * (1 - 2 * MARGIN) / 2
    for xyz, rgb in zip(coord, color):
        at = (int(200 + (xyz[0] - 1) * scale), int(200 - (xyz[1] - 0.5) * scale))
        pixel = np.asarray(image.getpixel(at))
        assert ((pixel > 100) == (rgb > 0)).all(), (at, pixel)
    assert image.getpixel((200, 200)) == (255, 255, 255)


def test_point_size_is_a_diameter_in_metres():
    coord = np.array([[0, 0, 0], [1, 0, 0]], np.float32)
    color = np.full((2, 3), 0, np.uint8)
    for diameter in (0.1, 0.3):
        image = render_points(coord, color, view="top", size=(500, 300), point_size=diameter)
        column = np.asarray(image)[:, int(500 * MARGIN), 0]
        assert (column < 128).sum() == pytest.approx(diameter * 500 * (1 - 2 * MARGIN), abs=3)


@pytest.mark.parametrize("count", [2_000, 50_000])
def test_surfaces_look_closed_at_any_density(count):
    coord = np.random.default_rng(0).random((count, 3)).astype(np.float32) * (3, 3, 0)
    image = render_points(coord, np.full((count, 3), 0, np.uint8), view="top", size=(200, 200))
    assert (np.asarray(image)[20:180, 20:180] < 128).mean() > 0.98  # random points are the hard case


def room(ceiling=True):
    """4 m x 3 m x 2.5 m: red floor, blue walls, green table, grey ceiling; normals point into the room."""
    parts = [
        plane((0, 4), (0, 3), 0.0, RED),
        plane((0, 4), 0.0, (0, 2.5), BLUE, (0, 1, 0)),
        plane((0, 4), 3.0, (0, 2.5), BLUE, (0, -1, 0)),
        plane(0.0, (0, 3), (0, 2.5), BLUE, (1, 0, 0)),
        plane(4.0, (0, 3), (0, 2.5), BLUE, (-1, 0, 0)),
        plane((1.5, 2.5), (1, 2), 0.8, GREEN),
    ]
    return join(*parts, plane((0, 4), (0, 3), 2.5, (90, 90, 90), (0, 0, -1))) if ceiling else join(*parts)


@pytest.mark.parametrize("with_normals", [True, False])
@pytest.mark.parametrize("view", ["top", "oblique"])
def test_one_sees_into_a_room(view, with_normals):
    coord, color, normal = room()
    image = render_points(coord, color, view=view, size=(300, 240), normal=normal if with_normals else None)
    pixels = np.asarray(image, int)
    grey = (np.ptp(pixels, axis=2) < 8) & (pixels.max(axis=2) < 120)
    assert grey.mean() < 0.01, "the ceiling is in the way"
    floor, table = share(image, RED), share(image, GREEN)
    assert table > 0.02 and floor > 0.2
    if view == "oblique":
        assert share(image, BLUE) > 0.1, "the far walls are gone too"


def test_a_room_without_ceiling_keeps_its_walls():
    coord, color, normal = room(ceiling=False)
    image = render_points(coord, color, size=(300, 240), normal=normal)
    assert share(image, BLUE) > 0.1 and share(image, RED) > 0.2


def test_small_things_are_not_opened():
    """A table top is no ceiling, and the side of a box facing away is no wall."""
    coord, color, normal = join(plane((0, 1), (0, 1), 0.0, RED), plane((0, 1), (0, 1), 0.8, GREEN))
    image = render_points(coord, color, view="top", normal=normal, size=(100, 100))
    assert share(image, GREEN) > 0.7


def test_the_view_turns_with_the_room():
    """The same room, turned, gives nearly the same picture."""
    coord, color, normal = room()
    angle = np.radians(25)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    a = render_points(coord, color, size=(150, 120), normal=normal)
    b = render_points(coord @ turn.T, color, size=(150, 120), normal=normal @ turn.T)
    assert np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() < 6


def test_tensors_and_odd_scenes():
    coord, color, normal = (torch.from_numpy(x) for x in plane((0, 1), (0, 1), 0.0, RED))
    assert render_points(coord, color, normal=normal, size=(60, 40)).size == (60, 40)
    assert render_points(coord[:1], color[:1], size=(60, 40)).getextrema() != ((255, 255),) * 3
    same = torch.zeros(50, 3)
    assert render_points(same, torch.zeros(50, 3, dtype=torch.uint8), size=(60, 40)).size == (60, 40)
    assert render_points(same[:0], color[:0], size=(60, 40)).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"color": np.zeros((4, 3), np.uint8)}, "color is"),
        ({"color": np.zeros((5, 3), np.float32)}, "expected uint8"),
        ({"normal": np.zeros((5, 2))}, "normal is"),
        ({"coord": np.full((5, 3), np.nan)}, "5 of 5 coordinates"),
        ({"view": "side"}, "'oblique' or 'top'"),
    ],
)
def test_bad_input_is_refused(change, said):
    good = {"coord": np.random.rand(5, 3), "color": np.zeros((5, 3), np.uint8), "size": (20, 20)}
    with pytest.raises(ValueError, match=said):
        render_points(**(good | change))


# ---------------------------------------------------------------- labels, sheets, files


def test_label_colors():
    palette = np.array([RED, GREEN], np.uint8)
    colors = label_colors(torch.tensor([1, -1, 0, -100]), palette)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [list(GREEN), [160] * 3, list(RED), [160] * 3]
    assert label_colors(np.zeros(0, np.int64), palette).shape == (0, 3)
    with pytest.raises(ValueError, match="label 2 has no colour: the palette has 2"):
        label_colors(np.array([0, 2]), palette)


def test_contact_sheet_places_and_titles():
    red, green = Image.new("RGB", (80, 60), RED), Image.new("RGB", (80, 60), GREEN)
    sheet = contact_sheet([[red, green], [green, None]], ["first", "second"], ["a", "b"])
    pixels = np.asarray(sheet, int)
    is_red, is_green = (((pixels == c).all(axis=2)) for c in (RED, GREEN))
    assert is_red.sum() == 80 * 60 and is_green.sum() == 2 * 80 * 60  # nothing covered, nothing scaled
    rows, columns = np.nonzero(is_red)
    assert is_green[rows.min() : rows.max(), columns.max() + 1 :].any()  # to the right
    assert is_green[rows.max() + 1 :, columns.min() : columns.max()].any()  # below
    assert (pixels[: rows.min()] < 128).any() and (pixels[rows.min() :, : columns.min()] < 128).any()  # the titles


def test_contact_sheet_wants_a_title_each():
    image = Image.new("RGB", (8, 6))
    for images, rows, columns in (([[image]], ["a", "b"], ["c"]), ([[image, image]], ["a"], ["c"])):
        with pytest.raises(ValueError, match="titles"):
            contact_sheet(images, rows, columns)


def test_contact_sheet_makes_room_for_long_titles():
    sheet = contact_sheet([[Image.new("RGB", (20, 20), RED)]], ["a long title of a row"], ["a long title of a column"])
    ink = (np.asarray(sheet, int).max(axis=2) < 128).any(axis=0)
    assert sheet.width > 200 and not ink[0] and not ink[-1]  # no title is cut


def test_save_png_leaves_no_half_file(tmp_path):
    path = tmp_path / "new" / "a.png"
    save_png(path, Image.new("RGB", (4, 3), RED))
    assert Image.open(path).getpixel((0, 0)) == RED
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]

    class Broken:
        def save(self, where, format):
            where.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError):
        save_png(path, Broken())
    assert Image.open(path).size == (4, 3)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


# ---------------------------------------------------------------- colours from features


def rotated(n=2000, dims=12, seed=0):
    """Features (n, dims) whose three independent factors (n, 3), of falling variance, are rotated and shifted."""
    generator = torch.Generator().manual_seed(seed)
    factors = (torch.rand(n, 3, generator=generator) - 0.5) * torch.tensor([9.0, 3.0, 1.0])
    basis = torch.linalg.qr(torch.randn(dims, dims, generator=generator))[0][:3]
    return factors, factors @ basis + 5


def test_pca_recovers_the_factors_in_order():
    factors, features = rotated()
    rgb = PCAColors().fit(features)(features)
    assert rgb.shape == (2000, 3) and rgb.dtype == torch.uint8
    correlation = torch.corrcoef(torch.cat([factors, rgb.float()], dim=1).T)[:3, 3:].abs()
    assert (correlation.diag() > 0.98).all()
    assert (correlation - torch.diag(correlation.diag()) < 0.1).all()


def test_pca_uses_the_whole_range_in_spite_of_outliers():
    _, features = rotated()
    features[:5] += 1000 * torch.nn.functional.normalize(features[:5] - 5, dim=1)
    rgb = PCAColors().fit(features)(features)[5:].float()
    assert (rgb.quantile(0.1, dim=0) < 64).all() and (rgb.quantile(0.9, dim=0) > 192).all()


def test_pca_is_deterministic():
    _, features = rotated(n=500)
    first = PCAColors().fit(features, rows=100)(features)
    assert torch.equal(first, PCAColors().fit(features, rows=100)(features))
    assert not torch.equal(first, PCAColors().fit(features, rows=100, seed=1)(features))


def test_pca_sign_does_not_depend_on_the_order_of_the_points():
    _, features = rotated()
    a, b = PCAColors().fit(features)(features), PCAColors().fit(features.flip(0))(features)
    assert (a.int() - b.int()).abs().max() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_pca_signs_are_fixed(seed):
    axes = PCAColors().fit(rotated(seed=seed)[1]).axes
    assert (axes.max(dim=0).values >= -axes.min(dim=0).values).all()  # the largest entry is positive


def test_pca_colors_mean_the_same_across_scenes():
    _, features = rotated()
    low, high = features[features[:, 0] < 5], features[features[:, 0] >= 5]
    colors = PCAColors().fit([low, high])
    assert torch.equal(torch.cat([colors(low), colors(high)]), colors(torch.cat([low, high])))
    alone = PCAColors().fit(low)
    assert not torch.equal(alone(low), colors(low))  # which is what fitting together is for


def test_pca_gives_each_scene_the_same_say():
    """One scene of 10 points and one of 10,000: the direction between them is seen in both."""
    few, many = torch.randn(10, 4) * 0.01 + torch.tensor([1.0, 0, 0, 0]), torch.randn(10_000, 4) * 0.01
    colors = PCAColors().fit([few, many], rows=20)
    red = [colors(x)[:, 0].float().median() for x in (few, many)]
    assert abs(red[0] - red[1]) > 200


@pytest.mark.parametrize("dims", [1, 2])
def test_pca_of_few_channels(dims):
    features = torch.rand(100, dims)
    rgb = PCAColors().fit(features)(features)
    assert (rgb[:, dims:] == 128).all() and (rgb[:, :dims].float().std(dim=0) > 30).all()


@pytest.mark.parametrize("value", [0.0, 1000.1])
def test_pca_of_constant_features_is_grey(value):
    features = torch.full((50, 8), value)
    assert (PCAColors().fit(features)(features) == 128).all()
    noisy = features + 1e-7 * value * torch.randn(50, 8)  # rounding is not a signal
    assert (PCAColors().fit(noisy)(noisy) == 128).all()
    assert (PCAColors().fit(features[:1])(features) == 128).all()


def test_pca_of_half_precision():
    _, features = rotated()
    assert PCAColors().fit(features.half())(features.bfloat16()).shape == (2000, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pca_refuses_nan(bad):
    features = torch.rand(10, 4)
    colors = PCAColors().fit(features)
    features[3, 1] = features[7, 0] = bad
    for call in (colors, colors.fit):
        with pytest.raises(UserError, match="2 of 10 feature rows hold NaN"):
            call(features)


def test_pca_misuse():
    with pytest.raises(RuntimeError, match="fit"):
        PCAColors()(torch.rand(3, 4))
    with pytest.raises(ValueError, match="fitted on 4 channels, got 5"):
        PCAColors().fit(torch.rand(9, 4))(torch.rand(3, 5))
    for nothing in ([], torch.rand(0, 4)):
        with pytest.raises(ValueError, match="nothing to fit"):
            PCAColors().fit(nothing)
    with pytest.raises(ValueError, match=r"must be \(N, D\)"):
        PCAColors().fit(torch.rand(4))
