"""Pictures, datasets and what a run makes of bad ones; one code for images and planar point clouds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from test_image_objectives import MODEL, TINY
from torch.nn import functional as F

from pcssl.commands.train import ImageTrainConfig, TrainConfig
from pcssl.config import ConfigError, from_dict, load_config
from pcssl.data.masks import block_mask, boxes_mask, random_boxes
from pcssl.errors import UserError
from pcssl.image import ImageTokens, Picture, read_picture
from pcssl.image.bundled import PHOTOS, digits
from pcssl.image.datasets import Joined
from pcssl.image.picture import luma, resized
from pcssl.image.tokens import grid_places
from pcssl.registry import create
from pcssl.sparse import Geometry
from pcssl.tokens import Tokens, neighbors, pool
from pcssl.training import load_checkpoint, pretrain


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def folder(root, classes=("cat", "dog"), count=3, split="train"):
    """Small random PNGs of different sizes."""
    for c, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng([c, i]).integers(0, 256, (20 + i, 30 + c, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def config(output, root, **sections):
    content = {
        "kind": "images", "output": str(output), "device": "cpu", "log_every": 1,
        "data": {"dataset": {"name": "image_folder", "root": str(root)}, "channels": 1, "batch_size": 4, "workers": 0},
        "model": {"name": "vit", **MODEL}, "objective": {"name": "mae", **TINY["mae"]},
        "optimizer": {"epochs": 2, "warmup_epochs": 0},
    }  # fmt: skip
    for key, value in sections.items():
        content[key] = {**content[key], **value}
    return from_dict(content, TrainConfig | ImageTrainConfig, "test")


def images_of(c):
    return c.data.dataset.build().images(c.data.split)


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("mode, channels, dtype", [
    ("L", 1, torch.uint8), ("RGB", 3, torch.uint8), ("RGBA", 3, torch.uint8), ("P", 3, torch.uint8), ("1", 1, torch.uint8),
    ("LA", 1, torch.uint8), ("I;16", 1, torch.uint16), ("F", 1, torch.float32), ("CMYK", 3, torch.uint8),
])
def test_any_kind_of_image_is_read(tmp_path, mode, channels, dtype):
    path = tmp_path / ("x.tif" if mode in ("F", "CMYK") else "x.png")
    if mode == "I;16":
        Image.fromarray(np.full((5, 7), 65535, dtype=np.uint16)).save(path)
    else:
        Image.new("L", (7, 5), 255).convert("RGB" if mode == "P" else "L").convert(mode).save(path)
    pixels = read_picture(path).pixels
    assert pixels.shape == (channels, 5, 7) and pixels.dtype == dtype
    if mode != "F":
        for wanted in (1, 3):
            values = read_picture(path).values(wanted)
            assert values.shape == (wanted, 5, 7) and values.dtype == torch.float32
            torch.testing.assert_close(values, torch.ones(wanted, 5, 7))


def test_a_turned_photo_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    assert read_picture(tmp_path / "x.jpg").pixels.shape == (3, 40, 20)


def test_channels_are_made_to_fit():
    colour = torch.randint(256, (3, 4, 6), generator=rng()).to(torch.uint8)
    torch.testing.assert_close(Picture(colour).values(1), luma(colour / 255))
    grey = Picture(colour[:1])
    assert torch.equal(grey.values(3), (colour[:1] / 255).expand(3, -1, -1))
    assert torch.equal(Picture(torch.ones(1, 2, 2, dtype=torch.bool)).values(1), torch.ones(1, 2, 2))


@pytest.mark.parametrize("pixels, message", [
    (torch.zeros(2, 4, 4), "1 or 3"), (torch.zeros(4, 4), "1 or 3"), (torch.zeros(3, 0, 4), "1 or 3"),
    (torch.full((1, 2, 2), 1.5), "within 0..1"), (torch.full((1, 2, 2), torch.nan), "finite"),
    (torch.zeros(1, 2, 2, dtype=torch.int32), "int32"),
])
def test_pixels_are_checked(pixels, message):
    with pytest.raises(ValueError, match=message):
        Picture(pixels).values(1)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n cut"])
def test_what_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UserError, match="x.png"):
        read_picture(tmp_path / "x.png")
    with pytest.raises(UserError, match="none.png"):
        read_picture(tmp_path / "none.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "gif"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"cannot read image .*x.{suffix}"):
        read_picture(path)


def test_resizing_averages_what_it_shrinks():
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 1.0
    assert float((resized(checks[None], 8) - 0.5).abs().max()) < 1e-3
    assert resized(torch.rand(3, 5, 9), 20).shape == (3, 20, 20)


# ---------------------------------------------------------------- datasets


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    known = load_digits()
    pixels, labels = digits()
    assert torch.equal(labels, torch.from_numpy(known.target).long())
    assert torch.equal((pixels[:, 0].float() * 16 / 255).round(), torch.from_numpy(known.images).float())


def test_splits_of_digits_share_nothing():
    source = create("dataset", "digits", val=400)
    train, val = source.images("train"), source.images("val")
    assert len(train) == 1397 and len(val) == 400 and source.classes == tuple("0123456789")
    assert sorted(train.pixels.flatten(1).tolist() + val.pixels.flatten(1).tolist()) == sorted(digits()[0].flatten(1).tolist())
    both = source.images("train+val")
    assert isinstance(both, Joined) and len(both) == 1797 and len(set(both.names)) == 1797
    for i in (0, 1396, 1397, 1796):
        part, at = (train, i) if i < 1397 else (val, i - 1397)
        assert torch.equal(both[i].pixels, part[at].pixels) and both[i].label == part[at].label and both[i].index == i
    with pytest.raises(UserError, match="no split 'test'"):
        source.images("test")


def test_patches_are_cut_from_different_halves_of_photos():
    pytest.importorskip("skimage", reason="the bundled photos are in scikit-image")
    source = create("dataset", "patches", size=16, train=6, val=4)
    train, val = source.images("train"), source.images("val")
    assert len(PHOTOS) == 20 == len(source.classes) and (len(train), len(val)) == (120, 80)
    assert train[7].pixels.shape == (3, 16, 16) and train[7].label == 1 and val[79].label == 19
    assert torch.equal(create("dataset", "patches", size=16, train=6, val=4).images("train").pixels, train.pixels)
    with pytest.raises(UserError, match="lower size"):
        create("dataset", "patches", size=200).images("train")


def test_bundled_photos_say_which_package_they_need(monkeypatch):
    import pcssl.image.bundled as bundled

    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"scikit-image.*pcssl\[image\]"):
        bundled.photo("coffee")


def test_a_folder_of_your_own(tmp_path):
    folder(tmp_path), folder(tmp_path, split="val", count=1)
    source = create("dataset", "image_folder", root=str(tmp_path))
    train = source.images("train")
    assert source.classes == ("cat", "dog") and len(train) == 6 and len(source.images("val")) == 2
    assert [p.label for p in train] == [0, 0, 0, 1, 1, 1] and train[4].pixels.shape == (3, 21, 31)
    flat = create("dataset", "image_folder", root=str(tmp_path / "train" / "cat"))
    assert flat.classes == () and [p.label for p in flat.images("train")] == [-1] * 3


def test_classes_of_a_folder_are_those_of_train_or_of_the_split_that_has_some(tmp_path):
    folder(tmp_path, classes=("cat", "dog")), folder(tmp_path, classes=("ant", "dog"), count=1, split="test")
    source = create("dataset", "image_folder", root=str(tmp_path))
    assert source.classes == ("cat", "dog") and [p.label for p in source.images("test")] == [-1, 1]
    for image in (tmp_path / "train").glob("*/*.png"):
        image.rename(tmp_path / "train" / f"{image.parent.name}{image.name}")
    source = create("dataset", "image_folder", root=str(tmp_path))
    assert source.classes == ("ant", "dog") and {p.label for p in source.images("train")} == {-1}
    assert [p.label for p in source.images("test")] == [0, 1]


def test_digits_that_are_larger_than_the_photos():
    pytest.importorskip("skimage", reason="the bundled photos are in scikit-image")
    with pytest.raises(UserError, match="pieces of 300 px do not fit photo 'grass', halved 256 x 256 px; lower size"):
        create("dataset", "digits_on_photos", size=300).images("val")


def test_folders_without_images(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        create("dataset", "image_folder", root=str(tmp_path / "none"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no images in"):
        create("dataset", "image_folder", root=str(tmp_path)).images("train")


# ---------------------------------------------------------------- runs on bad data


def test_one_bad_file_in_many_is_left_out_and_named(tmp_path, capsys):
    root = folder(tmp_path / "data", count=10)
    bad = root / "train" / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:100])
    path = pretrain(c := config(tmp_path / "run", root), images_of(c))
    assert load_checkpoint(path)["step"] == 10
    errors = capsys.readouterr().err
    assert errors.count("left out image 3 (") == 1 and str(bad) in errors and "images/s" in errors
    for i in range(4, 8):
        (root / "train" / "cat" / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"of 20 training images cannot be used, data.max_bad=0.05 allows 1: image \d"):
        pretrain(c := config(tmp_path / "again", root), images_of(c))


def test_a_single_image_is_enough(tmp_path):
    root = folder(tmp_path / "data", classes=("one",), count=1)
    assert load_checkpoint(pretrain(c := config(tmp_path / "run", root), images_of(c)))["step"] == 2


def test_the_number_of_workers_changes_nothing(tmp_path):
    root = folder(tmp_path / "data")
    a, b = (
        load_checkpoint(pretrain(c := config(tmp_path / str(w), root, data={"workers": w}), images_of(c)))["objective"]
        for w in (0, 2)
    )
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_batch_without_a_finite_loss_is_kept_for_replay(tmp_path, monkeypatch):
    from pcssl.objectives.masked_image import MAE

    good = MAE.forward
    monkeypatch.setattr(MAE, "forward", lambda self, b, s: {"loss": good(self, b, s)["loss"] * (torch.nan if s == 0 else 1)})
    root = folder(tmp_path / "data")
    pretrain(c := config(tmp_path / "run", root), images_of(c))
    kept = load_checkpoint(tmp_path / "run" / "bad_steps" / "step_0.pt")["batch"]
    assert kept["views"][0].shape == (4, 1, 8, 8) and kept["index"].shape == (4,)


# ---------------------------------------------------------------- configs


def test_the_kind_of_a_config_chooses_its_schema(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("kind: images\noutput: x\ndata: {dataset: {name: digits}}\nmodel: {name: vit}\nobjective: {name: mae}\n")
    found = load_config(file, TrainConfig | ImageTrainConfig)
    assert type(found) is ImageTrainConfig and found.data.channels == 3
    child = tmp_path / "y.yaml"
    child.write_text("base: x.yaml\ndata: {voxel_size: 0.1}\n")
    with pytest.raises(ConfigError, match=r"y.yaml:2: data.voxel_size: unknown key; allowed here: .*channels"):
        load_config(child, TrainConfig | ImageTrainConfig)
    with pytest.raises(ConfigError, match="command line: kind: expected one of: 'scenes', 'images', got 'image'"):
        load_config(file, TrainConfig | ImageTrainConfig, ["kind=image"])
    with pytest.raises(ConfigError, match="allowed here: .*voxel_size"):
        load_config(file, TrainConfig | ImageTrainConfig, ["kind=scenes", "data.channels=1"])


def test_the_default_kind_is_scenes():
    content = {"output": "x", "data": {"dataset": {"name": "folder", "root": "y"}}, "model": {"name": "hunet"}, "objective": {"name": "msm"}}
    assert type(from_dict(content, TrainConfig | ImageTrainConfig)) is TrainConfig


# ---------------------------------------------------------------- one code in 2D and 3D


@pytest.fixture
def image_and_cloud():
    """The patches of two images, and the same as planar clouds in metres of voxels."""
    coord, batch = grid_places((6, 9), 1, 2)
    features = torch.randn(len(coord), 4, generator=rng())
    flat = torch.cat([coord, torch.full((len(coord), 1), 0.5)], 1)
    return Tokens(features, coord, batch), Tokens(features, flat, batch)


def test_masks_of_an_image_are_those_of_its_planar_cloud(image_and_cloud):
    for seed in range(3):
        for cell, ratio in ((1, 0.75), (3, 0.4)):
            a, b = (block_mask(t.coord.floor().long(), t.batch, cell, ratio, rng(seed)) for t in image_and_cloud)
            assert torch.equal(a, b) and a.any()
        a, b = (random_boxes(t.coord.floor().long(), t.batch, (0.1, 0.5), 2.0, rng(seed)) for t in image_and_cloud)
        assert torch.equal(a, b) and 0 < int(a.sum()) < len(a)
        a, b = (boxes_mask(t.coord.floor().long(), t.batch, 0.4, generator=rng(seed)) for t in image_and_cloud)
        assert torch.equal(a, b) and a.any()


def test_a_plane_beside_a_room_gets_boxes_of_an_image():
    """The share of a thin scene is that of its own directions, also in a batch with thick ones."""
    room = torch.cartesian_prod(torch.arange(30), torch.arange(30), torch.arange(8))
    plane = torch.cartesian_prod(torch.arange(30), torch.arange(30), torch.tensor([4]))
    index, batch = torch.cat([room, plane]), torch.cat([torch.zeros(len(room)), torch.ones(len(plane))]).long()
    shares = [float(random_boxes(index, batch, (0.25, 0.25), 1.0, rng(seed))[len(room) :].float().mean()) for seed in range(20)]
    assert min(shares) == max(shares) == pytest.approx(0.25)
    one = torch.tensor([[3, 4, 5]]).expand(7, -1)
    assert random_boxes(one, torch.zeros(7).long(), (0.1, 0.2)).all()


@pytest.mark.parametrize("radius, count", [(1.1, 5), (1.5, 9), (2.1, 13)])
def test_neighbours_of_an_image_are_those_of_its_planar_cloud(image_and_cloud, radius, count):
    found = [neighbors(t, radius) for t in image_and_cloud]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    offsets, index = found[0]
    image = image_and_cloud[0]
    assert int(offsets.diff().max()) == count
    rows = torch.repeat_interleave(torch.arange(len(image)), offsets.diff())
    near = torch.zeros(len(image), len(image), dtype=torch.bool)
    near[rows, index] = True
    same = image.batch[:, None] == image.batch[None]
    assert torch.equal(near, same & (torch.cdist(image.coord, image.coord) <= radius))


def test_pooling_an_image_is_that_of_its_planar_cloud(image_and_cloud):
    (small, parent), (flat, other) = (pool(t, 3) for t in image_and_cloud)
    assert torch.equal(parent, other) and torch.equal(small.features, flat.features) and torch.equal(small.batch, flat.batch)
    assert torch.equal(small.coord, flat.coord[:, :2])
    # Cells come in the order of x, then y.
    grid = image_and_cloud[0].features.view(2, 6, 9, 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(small.features, F.avg_pool2d(grid, 3).permute(0, 3, 2, 1).flatten(0, 2))


def test_pooling_by_two_is_that_of_sparse_levels():
    coord, batch = grid_places((8, 8), 1, 2)
    features = torch.randn(len(coord), 4, generator=rng())
    geometry = Geometry(torch.cat([batch[:, None], coord.floor().long(), torch.zeros(len(coord), 1).long()], 1).int())
    coarse = geometry.pool(features, "mean")
    small, parent = pool(Tokens(features, coord, batch), 2)
    assert torch.equal(parent, geometry.coarser()[1])
    torch.testing.assert_close(small.features, coarse.features)
    level = ImageTokens.from_map(torch.randn(2, 5, 4, 6, generator=rng()), 8)
    torch.testing.assert_close(pool(level, 32 * 8)[0].features, level.pooled)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_random_box_is_a_box_of_the_share_asked_for(dimensions):
    sides = [40, 30, 20][:dimensions]
    index = torch.cartesian_prod(*(torch.arange(n) - 7 for n in sides)).view(-1, dimensions)
    index, batch = index.repeat(3, 1), torch.arange(3).repeat_interleave(len(index))
    reached, shares = torch.zeros(len(index), dtype=torch.bool), []
    for seed in range(40):
        inside = random_boxes(index, batch, (0.1, 0.3), 2.0, rng(seed))
        for b in range(3):
            rows = index[batch == b][inside[batch == b]]
            assert len(rows) == int((rows.amax(0) - rows.amin(0) + 1).prod())
            shares.append(len(rows) / (batch == b).sum())
        reached |= inside
    assert 0.07 < min(shares) < 0.15 and 0.25 < max(shares) < 0.34
    ends = [(index[:, d] == low) for d in range(dimensions) for low in (-7, sides[d] - 8)]
    assert all(bool(reached[end].any()) for end in ends)  # the last row and column too


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75, 1.0])
def test_boxes_hide_exactly_the_number_asked_for(ratio):
    index, batch = torch.cartesian_prod(torch.arange(14), torch.arange(14)), torch.zeros(196).long()
    index, batch = torch.cat([index, index[:60]]), torch.cat([batch, batch[:60] + 5])
    mask = boxes_mask(index, batch, ratio, generator=rng())
    assert [int(mask[batch == b].sum()) for b in (0, 5)] == [round(196 * ratio), round(60 * ratio)]
    assert torch.equal(mask, boxes_mask(index, batch, ratio, generator=rng()))
    if 0 < ratio < 1:  # in lumps: more pairs of neighbours share their fate than by chance
        grid = mask[:196].view(14, 14)
        assert float((grid[:, 1:] == grid[:, :-1]).float().mean()) > ratio**2 + (1 - ratio) ** 2 + 0.1


def test_cells_are_rounded_or_rounded_up():
    index, batch = torch.arange(50)[:, None], torch.arange(50) // 10
    for ratio, near, up in ((0.62, 6, 7), (0.6, 6, 6), (0.01, 1, 1), (0.99, 9, 9)):
        for rounded_up, count in ((False, near), (True, up)):
            mask = block_mask(index, batch, 1, ratio, rng(), up=rounded_up)
            assert torch.bincount(batch[mask]).tolist() == [count] * 5


def test_box_options_are_checked():
    for share, aspect in (((0.0, 0.5), 1.0), ((0.5, 0.2), 1.0), ((0.2, 0.5), 0.5)):
        with pytest.raises(ValueError, match="share"):
            random_boxes(torch.zeros(4, 2).long(), torch.zeros(4).long(), share, aspect)
