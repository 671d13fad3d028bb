"""Image datasets that a config can name: bundled photos, and folders of your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from pcssl.config import Range
from pcssl.errors import UserError
from pcssl.image.bundled import PHOTOS, digits, photo
from pcssl.image.picture import Picture, read_picture
from pcssl.registry import register

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


@dataclass(frozen=True)
class ImageSource:
    """What a registered image dataset builds. splits: name -> its images, made when asked for.

    name: for messages. classes: names of the labels, none = there are no labels.
    """

    name: str
    splits: dict[str, Callable[[], Sequence[Picture]]]
    classes: tuple[str, ...] = ()

    def images(self, split: str) -> Sequence[Picture]:
        """The images of one split, or of several joined by "+"."""
        parts = [self._split(part) for part in split.split("+")]
        return parts[0] if len(parts) == 1 else Joined(parts)

    def _split(self, name: str) -> Sequence[Picture]:
        if name not in self.splits:
            raise UserError(f"{self.name} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]()


class TensorImages(Sequence):
    """Images of one size in memory. pixels: (N, C, H, W). labels: (N,) int64. names: the same image always has the same."""

    def __init__(self, pixels: Tensor, labels: Tensor, names: list[str]):
        self.pixels, self.labels, self.names = pixels, labels, names

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Picture:
        return Picture(self.pixels[index], int(self.labels[index]), index, self.names[index])


class FileImages(Sequence):
    """Images that are read when asked for. labels: a class each, -1 = none."""

    def __init__(self, files: list[Path], labels: list[int]):
        self.files, self.labels = files, labels
        self.names = [str(file) for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Picture:
        return read_picture(self.files[index], self.labels[index], index)


class Joined(Sequence):
    """Several splits, one after the other."""

    def __init__(self, parts: list[Sequence[Picture]]):
        self.parts = parts
        self.names = [name for part in parts for name in part.names]
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Picture:
        part = int(np.searchsorted(self._ends, index, side="right"))
        found = self.parts[part][index - int(self._ends[part]) + len(self.parts[part])]
        return Picture(found.pixels, found.label, index, found.name)


# ---------------------------------------------------------------- bundled


@dataclass(frozen=True)
class DigitsConfig:
    """scikit-learn's 8 x 8 digits, 10 classes. val: of the 1797, a random draw. seed: of the draw."""

    val: Annotated[int, Range(1, 1796)] = 500
    seed: Annotated[int, Range(0)] = 0


@register("dataset", "digits", config=DigitsConfig)
def digits_(config: DigitsConfig) -> ImageSource:
    pixels, labels = digits()
    order = torch.from_numpy(np.random.default_rng(config.seed).permutation(len(pixels)))
    rows = {"train": order[config.val :], "val": order[: config.val]}
    splits = {
        name: partial(TensorImages, pixels[at], labels[at], [f"digit {i}" for i in at.tolist()]) for name, at in rows.items()
    }
    return ImageSource("digits", splits, tuple("0123456789"))


@dataclass(frozen=True)
class PatchesConfig:
    """Square patches of 20 bundled photos; the label is the photo. size: px. shrink: the photos first, so many times.

    train, val: patches a photo, from its left three quarters and its right quarter, which share no pixel.
    """

    size: Annotated[int, Range(4)] = 24
    shrink: Annotated[int, Range(1, 8)] = 2
    train: Annotated[int, Range(1)] = 60
    val: Annotated[int, Range(1)] = 25
    seed: Annotated[int, Range(0)] = 0


@register("dataset", "patches", config=PatchesConfig)
def patches(config: PatchesConfig) -> ImageSource:
    return ImageSource("patches", {name: partial(_cut, config, name) for name in ("train", "val")}, PHOTOS)


def _cut(config: PatchesConfig, split: str) -> TensorImages:
    count = getattr(config, split)
    rng = np.random.default_rng([config.seed, split == "val"])
    cut = []
    for name in PHOTOS:
        part = _part(photo(name), split, config.shrink)
        room = np.array(part.shape[1:]) - config.size
        if (room < 0).any():
            raise UserError(f"patches of {config.size} px do not fit photo {name!r} shrunk {config.shrink} times; lower size or shrink")
        for y, x in rng.integers(room + 1, size=(count, 2)).tolist():
            cut.append(part[:, y : y + config.size, x : x + config.size])
    names = [f"{photo} {split} {i}" for photo in PHOTOS for i in range(count)]
    return TensorImages(torch.stack(cut), torch.arange(len(PHOTOS)).repeat_interleave(count), names)


def _part(pixels: Tensor, split: str, shrink: int) -> Tensor:
    """Left or right part of a photo: (3, h, w) uint8."""
    border = pixels.shape[2] * 3 // 4
    pixels = pixels[:, :, :border] if split == "train" else pixels[:, :, border:]
    small = torch.nn.functional.avg_pool2d(pixels.float(), shrink).round().to(torch.uint8)
    return small.expand(3, -1, -1)


@dataclass(frozen=True)
class DigitsOnPhotosConfig:
    """The digits on random pieces of photos, 10 classes. size: px, the digits are enlarged to it.

    photos: of `PHOTOS`, grey. dark: black strokes on a photo made bright; else white ones. strength: 0..1, how much they
    cover. val: as in digits, the same ones; pieces of both come from anywhere.
    """

    size: Annotated[int, Range(8)] = 8
    photos: tuple[str, ...] = ("grass", "gravel")
    dark: bool = True
    strength: Annotated[float, Range(0, 1)] = 0.8
    val: Annotated[int, Range(1, 1796)] = 500
    seed: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.photos if name not in PHOTOS]
        if unknown or not self.photos:
            raise ValueError(f"photos: {', '.join(unknown) or 'none'}; known: {', '.join(PHOTOS)}")


@register("dataset", "digits_on_photos", config=DigitsOnPhotosConfig)
def digits_on_photos(config: DigitsOnPhotosConfig) -> ImageSource:
    plain = digits_(DigitsConfig(config.val, config.seed))
    splits = {name: partial(_on_photos, plain.images(name), config, name) for name in plain.splits}
    return ImageSource("digits_on_photos", splits, plain.classes)


def _on_photos(plain: TensorImages, config: DigitsOnPhotosConfig, split: str) -> TensorImages:
    strokes = torch.nn.functional.interpolate(plain.pixels.float() / 255, config.size, mode="bilinear", antialias=True)
    ground = photo_pieces(config.photos, len(strokes), config.size, [config.seed, split == "val"])
    return TensorImages(blended(strokes, ground, config.strength, config.dark), plain.labels, plain.names)


def photo_pieces(names: Sequence[str], count: int, size: int, seed: Sequence[int]) -> Tensor:
    """(count, 1, size, size) grey values in 0..1 of random places of photos halved in size."""
    rng, pieces = np.random.default_rng(seed), []
    photos = [torch.nn.functional.avg_pool2d(Picture(photo(name)).values(1), 2) for name in names]
    for name, pixels in zip(names, photos):
        if size > min(pixels.shape[1:]):
            raise UserError(f"pieces of {size} px do not fit photo {name!r}, halved {pixels.shape[1]} x {pixels.shape[2]} px; lower size")
    for which in rng.integers(len(photos), size=count).tolist():
        y, x = (int(rng.integers(n - size + 1)) for n in photos[which].shape[1:])
        pieces.append(photos[which][:, y : y + size, x : x + size])
    return torch.stack(pieces)


def blended(strokes: Tensor, ground: Tensor, strength: float, dark: bool) -> Tensor:
    """Strokes (N, 1, h, w) painted on grounds alike, all in 0..1: black on a ground made bright, or white."""
    return (0.5 + 0.5 * ground) * (1 - strength * strokes) if dark else torch.lerp(ground, torch.ones(1), strength * strokes)


# ---------------------------------------------------------------- your own


@dataclass(frozen=True)
class ImageFolderConfig:
    """root: root/SPLIT/CLASS/*.png, root/SPLIT/*.png, or just images below root, which then are the split train."""

    root: str


@register("dataset", "image_folder", config=ImageFolderConfig)
def image_folder(config: ImageFolderConfig) -> ImageSource:
    root = Path(config.root)
    if not root.is_dir():
        raise UserError(f"no folder {root}; set data.dataset.root to a folder of images")
    folders = {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and p.name in ("train", "val", "test")}
    folders = folders or {"train": root}
    names = {name: _class_names(folder) for name, folder in folders.items()}
    classes = names.get("train") or next((found for found in names.values() if found), ())
    return ImageSource(str(root), {n: partial(_listed, f, classes) for n, f in folders.items()}, classes)


def _class_names(folder: Path) -> tuple[str, ...]:
    """The folders directly below, if there are images in them and none beside them."""
    below = [p for p in sorted(folder.iterdir()) if p.is_dir() and any(_images_below(p))]
    beside = any(p.suffix.lower() in SUFFIXES for p in folder.iterdir() if p.is_file())
    return () if beside else tuple(p.name for p in below)


def _images_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _listed(folder: Path, classes: tuple[str, ...]) -> FileImages:
    files = _images_below(folder)
    if not files:
        raise UserError(f"no images in {folder}; known endings: {', '.join(SUFFIXES)}")
    number = {name: i for i, name in enumerate(classes)}
    return FileImages(files, [number.get(p.relative_to(folder).parts[0], -1) for p in files])
