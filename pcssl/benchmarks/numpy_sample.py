"""A training sample of Masked Scene Modeling in numpy and scipy, as most public code for point clouds makes it.

Voxels by argsort and unique of FNV hashes, the elastic distortion by scipy's convolutions and its
RegularGridInterpolator, crops by argsort of distances, matches by scipy's cKDTree. Random numbers are those of
`pcssl.data.transforms`, drawn by torch, which is faster at it than numpy: so the results are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import cKDTree

from pcssl.data.transforms import YIQ, AugmentConfig, chance, random_flip, random_rotation, random_scale, uniform
from pcssl.data.views import Points

Array = np.ndarray


@dataclass
class Cloud:
    """coord, origin, color, normal: (N, 3) float32, as in `pcssl.data.views.Points`."""

    coord: Array
    origin: Array
    color: Array
    normal: Array

    @classmethod
    def from_points(cls, points: Points) -> Cloud:
        return cls(*(x.numpy() for x in (points.coord, points.origin, points.color, points.normal)))


@dataclass
class View:
    """index (M, 3) int64, features (M, 6), origin (M, 3), inverse (N,), as in `pcssl.data.views.VoxelView`."""

    index: Array
    features: Array
    origin: Array
    inverse: Array


def randn(rng: torch.Generator, *shape: int) -> Array:
    return torch.randn(*shape, generator=rng).numpy()


def augment(cloud: Cloud, c: AugmentConfig, rng: torch.Generator) -> Cloud:
    low, high = cloud.coord.min(0), cloud.coord.max(0)
    coord = cloud.coord - np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], np.float32)
    scale, turn, flip = random_scale(c.scale, rng), random_rotation(c.rotate_z, c.tilt, rng), random_flip(c.flip, rng)
    coord, normal = coord * np.float32(scale), cloud.normal
    for matrix in (flip.numpy(), turn.numpy()):
        coord, normal = coord @ matrix.T, normal @ matrix.T
    coord = coord + np.clip(c.jitter * randn(rng, *coord.shape), -c.jitter_clip, c.jitter_clip)
    if chance(c.elastic_probability, rng):
        for granularity, magnitude in c.elastic:
            coord = elastic(coord, granularity, magnitude, rng)
    color = cloud.color
    if chance(c.color_jitter_probability, rng):
        color = color_jitter(color, c, rng)
    if chance(c.auto_contrast_probability, rng):
        color = auto_contrast(color, uniform(0, 1, rng))
    if chance(c.color_translation_probability, rng):
        color = np.clip(color + (torch.rand(3, generator=rng).numpy() * 2 - 1) * 255 * c.color_translation, 0, 255)
    if chance(c.color_noise_probability, rng):
        color = np.clip(color + randn(rng, *color.shape) * 255 * c.color_noise, 0, 255)
    chance(c.drop_color, rng), chance(c.drop_normal, rng)
    return Cloud(coord, cloud.origin, color, normal)


def elastic(coord: Array, granularity: float, magnitude: float, rng: torch.Generator) -> Array:
    low = coord.min(0)
    size = ((coord - low).max(0) // granularity).astype(int) + 3
    noise = randn(rng, *size.tolist(), 3)
    blur = np.full(3, 1 / 3, np.float32)
    for axis in (0, 1, 2) * 2:
        shape = [1] * 4
        shape[axis] = 3
        noise = ndimage.convolve(noise, blur.reshape(shape), mode="constant", cval=0)
    axes = [low[a] + granularity * np.arange(size[a]) for a in range(3)]
    field = RegularGridInterpolator(axes, noise, bounds_error=False, fill_value=0)
    return (coord + magnitude * field(coord)).astype(np.float32)


def color_jitter(color: Array, c: AugmentConfig, rng: torch.Generator) -> Array:
    def factor(strength: float) -> float:
        return uniform(max(0.0, 1 - strength), 1 + strength, rng)

    yiq = YIQ.numpy()
    color = np.clip(color * factor(c.brightness), 0, 255)
    grey = (color @ yiq[0]).mean()
    color = np.clip((color - grey) * factor(c.contrast) + grey, 0, 255)
    turn, gain = 2 * np.pi * uniform(-c.hue, c.hue, rng), factor(c.saturation)
    cos, sin = gain * np.cos(turn), gain * np.sin(turn)
    spin = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], np.float32)
    return np.clip(color @ (np.linalg.inv(yiq) @ spin @ yiq).T, 0, 255)


def auto_contrast(color: Array, blend: float) -> Array:
    low, high = color.min(0), color.max(0)
    stretched = np.where(high > low, (color - low) * (255 / np.maximum(high - low, 1e-6)), color)
    return np.clip((1 - blend) * color + blend * stretched, 0, 255).astype(np.float32)


def fnv_hash(index: Array) -> Array:
    """(N, d) integers -> (N,) uint64, FNV-1."""
    key = np.full(len(index), 14695981039346656037, np.uint64)
    for column in index.astype(np.uint64).T:
        key *= np.uint64(1099511628211)
        key ^= column
    return key


@dataclass
class Groups:
    """Rows in the order of their cells, where cells begin in it, and the cell of every row."""

    order: Array
    starts: Array
    counts: Array
    inverse: Array

    @classmethod
    def of(cls, index: Array) -> Groups:
        key = fnv_hash(index)
        order = np.argsort(key)
        _, inverse, counts = np.unique(key[order], return_inverse=True, return_counts=True)
        of_row = np.empty_like(inverse)
        of_row[order] = inverse
        return cls(order, np.cumsum(counts) - counts, counts, of_row)

    def sum(self, values: Array) -> Array:
        return np.add.reduceat(values[self.order], self.starts)

    def first(self, values: Array) -> Array:
        return values[self.order[self.starts]]


def voxelize(cloud: Cloud, voxel_size: float, offset: Array) -> View:
    size = np.float32(voxel_size)
    low = cloud.coord.min(0)
    shift = np.minimum(np.floor(low / size) * size, low)
    index = np.floor((cloud.coord - shift) / size).astype(np.int64)
    groups = Groups.of(index)
    values = np.concatenate([cloud.color / np.float32(127.5) - 1, cloud.normal, cloud.origin], 1)
    mean = groups.sum(values) / groups.counts[:, None].astype(np.float32)
    length = np.linalg.norm(mean[:, 3:6], axis=1, keepdims=True)
    features = np.concatenate([mean[:, :3], mean[:, 3:6] / np.maximum(length, 1e-12)], 1)
    return View(groups.first(index) + offset, features, mean[:, 6:], groups.inverse)


def nearest_crop(place: Array, count: int, rng: torch.Generator) -> Array:
    if count >= len(place):
        return np.ones(len(place), bool)
    centre = place[int(torch.randint(len(place), (1,), generator=rng))]
    keep = np.zeros(len(place), bool)
    # Stable: of equally near ones the first, as ours.
    keep[np.argsort(np.sum(np.square(place - centre), 1), kind="stable")[:count]] = True
    return keep


def cut(view: View, centre: Array, count: int) -> View:
    if len(view.index) <= count:
        return view
    near = np.argsort(np.sum(np.square(view.origin - centre), 1), kind="stable")[:count]
    keep = np.sort(near)
    return replace(view, index=view.index[keep], features=view.features[keep], origin=view.origin[keep])


def block_mask(index: Array, cell: int, ratio: float, rng: torch.Generator) -> Array:
    place = index // cell
    place = place - place.min(0)
    size = place.max(0) + 1
    cells, of_row = np.unique((place[:, 0] * size[1] + place[:, 1]) * size[2] + place[:, 2], return_inverse=True)
    draw = torch.rand(len(cells), generator=rng).numpy()
    hide = min(max(round(len(cells) * ratio), 1), len(cells) - 1)
    hidden = np.zeros(len(cells), bool)
    hidden[np.argsort(draw)[:hide]] = True
    return hidden[of_row]


@dataclass
class Level:
    """The voxels of one level of a crop or of a whole view: origin is a mean over finest voxels, `seen` has a visible one."""

    index: Array
    total: Array
    count: Array
    seen: Array

    @property
    def origin(self) -> Array:
        return self.total / self.count[:, None]

    def coarser(self) -> Level:
        index = self.index // 2
        groups = Groups.of(index)
        seen = np.zeros(len(groups.counts), bool)
        seen[groups.inverse[self.seen]] = True
        return Level(groups.first(index), groups.sum(self.total), groups.sum(self.count), seen)


def levels(view: View, keep: Array, seen: Array, count: int) -> list[Level]:
    index, origin = view.index[keep], view.origin[keep]
    found = [Level(index, origin, np.ones(len(index), np.float32), seen[keep])]
    while len(found) < count:
        found.append(found[-1].coarser())
    return found


def match(views: list[View], masks: list[tuple[Array, Array]], voxel_size: float, count: int) -> list[Array]:
    """Of every level, distances (inf: none) from the hidden voxels of both views to what is there in the other."""
    everything = [np.ones(len(view.index), bool) for view in views]
    whole = [levels(view, true, true, count) for view, true in zip(views, everything)]
    crop = [levels(view, keep, ~hidden, count) for view, (keep, hidden) in zip(views, masks)]
    found = []
    for level in range(count):
        distances = []
        for a, b in ((0, 1), (1, 0)):
            asked = crop[a][level].origin[~crop[a][level].seen]
            tree = cKDTree(whole[b][level].origin)
            distances.append(
                tree.query(asked, distance_upper_bound=voxel_size * 2**level, workers=torch.get_num_threads())[0]
            )
        found.append(np.concatenate(distances))
    return found
