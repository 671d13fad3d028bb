"""Random changes of a scene, and the voxels a backbone takes of it."""

import math
from dataclasses import fields, replace

import pytest
import torch

from pcssl.data.scene import Scene
from pcssl.data.transforms import (
    AugmentConfig,
    augment,
    auto_contrast,
    center,
    chance,
    color_jitter,
    elastic,
    jitter,
    linear,
    random_flip,
    random_rotation,
    random_scale,
    uniform,
)
from pcssl.data.views import IN_CHANNELS, Points, voxel_view

STILL = AugmentConfig(
    scale=(1.0, 1.0),
    rotate_z=0.0,
    tilt=0.0,
    flip=0.0,
    jitter=0.0,
    elastic_probability=0.0,
    color_jitter_probability=0.0,
    auto_contrast_probability=0.0,
    color_translation_probability=0.0,
    color_noise_probability=0.0,
)
SURE = replace(
    AugmentConfig(),
    elastic_probability=1.0,
    color_jitter_probability=1.0,
    auto_contrast_probability=1.0,
    color_translation_probability=1.0,
    color_noise_probability=1.0,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(count=500, seed=0, size=(4.0, 3.0, 2.5)):
    g = rng(seed)
    coord = torch.rand(count, 3, generator=g) * torch.tensor(size) - 1
    normal = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    return Points(coord, coord, torch.rand(count, 3, generator=g) * 255, normal)


def plane(count=200, seed=1):
    """Points of one slanted plane and its normal."""
    g = rng(seed)
    frame = torch.linalg.qr(torch.randn(3, 3, generator=g))[0]
    coord = (torch.rand(count, 2, generator=g) * 4 - 2) @ frame[:2] + 1
    return Points(coord, coord, torch.zeros(count, 3), frame[2].expand(count, 3))


def sphere(count=300, seed=2):
    normal = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng(seed)), dim=1)
    return Points(normal * 2, normal * 2, torch.zeros(count, 3), normal)


def assert_equal_points(a, b):
    for field in fields(Points):
        assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name


# Random numbers


def test_chance_and_uniform_follow_their_numbers():
    g = rng()
    assert not any(chance(0.0, g) for _ in range(100)) and all(chance(1.0, g) for _ in range(100))
    draws = torch.tensor([uniform(-2, 5, g) for _ in range(500)])
    assert -2 <= float(draws.min()) < -1.9 and 4.9 < float(draws.max()) <= 5
    assert abs(sum(chance(0.3, g) for _ in range(1000)) - 300) < 90


# Geometry


def test_centre_puts_the_box_on_the_floor():
    points = center(cloud())
    low, high = points.coord.amin(0), points.coord.amax(0)
    torch.testing.assert_close((low + high)[:2], torch.zeros(2), atol=1e-5, rtol=0)
    assert float(low[2]) == 0
    moved = points.coord - cloud().coord
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), atol=1e-5, rtol=0)


@pytest.mark.parametrize("z, tilt", [(180.0, 0.0), (30.0, 5.0), (0.0, 90.0)])
def test_a_rotation_is_one_and_keeps_its_limits(z, tilt):
    g, turned = rng(), []
    for _ in range(50):
        matrix = random_rotation(z, tilt, g)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(3), atol=1e-6, rtol=0)
        assert float(torch.linalg.det(matrix)) > 0
        # Tilts about x and y by at most `tilt` each keep the cosine to z above the square.
        assert float(matrix[2, 2]) >= math.cos(math.radians(tilt)) ** 2 - 1e-6
        turned.append(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])))
    if tilt == 0:
        assert min(turned) < -0.8 * z and max(turned) > 0.8 * z
    elif z == 30:
        assert all(abs(angle) <= z + 1 for angle in turned)


def test_a_rotation_turns_the_whole_circle_evenly():
    g = rng()
    angles = torch.tensor([math.atan2(m[1, 0], m[0, 0]) for m in (random_rotation(180.0, 0.0, g) for _ in range(400))])
    counts = torch.histc(angles, 4, -math.pi, math.pi)
    assert (counts - 100).abs().max() < 40


def test_no_rotation_is_the_identity():
    assert torch.equal(random_rotation(0.0, 0.0, rng()), torch.eye(3))


@pytest.mark.parametrize("probability, expected", [(0.0, {(1, 1)}), (1.0, {(-1, -1)}), (0.5, {(1, 1), (1, -1), (-1, 1), (-1, -1)})])
def test_a_flip_mirrors_x_and_y_alone(probability, expected):
    g, seen = rng(), set()
    for _ in range(60):
        matrix = random_flip(probability, g)
        assert torch.equal(matrix, torch.diag(matrix.diag())) and float(matrix[2, 2]) == 1
        seen.add(tuple(matrix.diag()[:2].int().tolist()))
    assert seen == expected


@pytest.mark.parametrize("seed", range(4))
def test_normals_stay_normal_to_their_plane(seed):
    g = rng(seed)
    matrix = random_scale((0.5, 2.0), g) * random_rotation(180.0, 60.0, g) @ random_flip(0.5, g)
    before = plane()
    after = linear(before, matrix)
    assert not torch.allclose(after.normal, before.normal, atol=0.01)
    edges = after.coord[1:] - after.coord[:1]
    torch.testing.assert_close(edges @ after.normal[0], torch.zeros(len(edges)), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.normal.norm(dim=1), torch.ones(200))


@pytest.mark.parametrize("flip", [(1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0)])
def test_normals_of_a_sphere_keep_pointing_outwards(flip):
    matrix = 1.5 * random_rotation(180.0, 30.0, rng(3)) @ torch.diag(torch.tensor([*flip, 1.0]))
    after = linear(sphere(), matrix)
    torch.testing.assert_close(after.normal, after.coord / 3, atol=1e-5, rtol=0)


def test_linear_scales_and_mirrors_places():
    points = cloud()
    torch.testing.assert_close(linear(points, 2 * torch.eye(3)).coord, points.coord * 2)
    mirrored = linear(points, torch.diag(torch.tensor([-1.0, 1.0, 1.0]))).coord
    torch.testing.assert_close(mirrored, points.coord * torch.tensor([-1.0, 1.0, 1.0]))
    # A quarter turn about z takes x to y.
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(linear(points, quarter).coord[:, 1], points.coord[:, 0])


def test_scale_stays_within_its_range():
    g = rng()
    factors = [random_scale((0.9, 1.1), g) for _ in range(200)]
    assert 0.9 <= min(factors) < 0.91 and 1.09 < max(factors) <= 1.1


def test_jitter_is_noise_up_to_its_clip():
    points = cloud(20000)
    moved = jitter(points, 0.005, 0.01, rng()).coord - points.coord
    assert float(moved.abs().max()) <= 0.01 + 1e-6
    assert float(jitter(points, 0.005, 1.0, rng()).coord.sub(points.coord).std()) == pytest.approx(0.005, rel=0.05)
    assert torch.equal(jitter(points, 0.0, 0.01, rng()).coord, points.coord)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_elastic_distortion_is_linear_between_grid_points(axis):
    size = torch.tensor([4.0, 1.5, 2.5])
    granularity, magnitude, steps = 0.5, 0.4, 20
    count = int(size[axis] / granularity) * steps
    line = size * 0.4
    line = line.repeat(count + 1, 1)
    line[:, axis] = torch.linspace(0, float(size[axis]), count + 1)
    coord = torch.cat([torch.zeros(1, 3), size[None], line])  # two corners fix the box
    points = Points(coord, coord, torch.zeros_like(coord), torch.ones_like(coord))
    moved = (elastic(points, granularity, magnitude, rng()).coord - coord)[2:]
    assert float(moved.abs().max()) < magnitude
    bends = moved.diff(dim=0).diff(dim=0).abs().amax(1)
    corner = (torch.arange(1, count) % steps) == 0
    assert float(bends[~corner].max()) < 1e-5 < 1e-4 < float(bends[corner].max())


def test_elastic_distortion_is_smooth_and_bounded():
    points = cloud(3000)
    near = replace(points, coord=points.coord + torch.randn(3000, 3, generator=rng(5)) * 0.002)
    both = Points(*(torch.cat([getattr(points, f.name), getattr(near, f.name)]) for f in fields(Points)))
    moved = elastic(both, 0.2, 0.4, rng()).coord - both.coord
    assert 0.05 < float(moved.abs().max()) < 0.4
    # Neighbours 5 mm apart move together to a millimetre or two, far apart ones do not.
    together = (moved[:3000] - moved[3000:]).norm(dim=1)
    assert float(together.max()) < 0.02 and float(together.mean()) < 0.1 * float(moved.norm(dim=1).mean())
    assert torch.equal(elastic(points, 0.2, 0.0, rng()).coord, points.coord)


def test_elastic_distortion_leaves_normals():
    assert torch.equal(elastic(cloud(), 0.2, 0.4, rng()).normal, cloud().normal)


def test_elastic_distortion_of_one_point():
    one = cloud(1)
    assert elastic(one, 0.2, 0.4, rng()).coord.isfinite().all()


def test_elastic_distortion_refuses_a_scene_in_millimetres():
    points = cloud()
    with pytest.raises(ValueError, match="metres"):
        elastic(replace(points, coord=points.coord * 1000), 0.2, 0.4, rng())


# Colour


def test_color_jitter_without_strength_is_the_identity():
    color = cloud().color
    torch.testing.assert_close(color_jitter(color, 0, 0, 0, 0, rng()), color, atol=1e-2, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_color_jitter_keeps_grey_grey_and_stays_in_range(seed):
    grey = torch.rand(50, 1, generator=rng(1)).expand(50, 3) * 255
    turned = color_jitter(grey, 0, 0, 1.0, 0.5, rng(seed))
    torch.testing.assert_close(turned, grey, atol=1e-2, rtol=0)
    wild = color_jitter(cloud().color, 1.0, 1.0, 1.0, 0.5, rng(seed))
    assert 0 <= float(wild.min()) and float(wild.max()) <= 255


@pytest.mark.parametrize("seed", range(3))
def test_hue_keeps_brightness(seed):
    muted = cloud().color * 0.2 + 100
    luma = torch.tensor([0.299, 0.587, 0.114])
    turned = color_jitter(muted, 0, 0, 0, 0.5, rng(seed))
    assert (turned - muted).abs().max() > 5
    torch.testing.assert_close(turned @ luma, muted @ luma, atol=1e-2, rtol=0)


def test_saturation_scales_the_distance_from_grey():
    muted = cloud().color * 0.2 + 100
    luma = torch.tensor([0.299, 0.587, 0.114])
    vivid = color_jitter(muted, 0, 0, 0.5, 0, rng(1))
    before, after = muted - (muted @ luma)[:, None], vivid - (vivid @ luma)[:, None]
    gain = float((before * after).sum() / before.square().sum())
    assert 0.5 <= gain <= 1.5 and abs(gain - 1) > 0.05
    torch.testing.assert_close(after, before * gain, atol=0.05, rtol=0)
    torch.testing.assert_close(vivid @ luma, muted @ luma, atol=1e-2, rtol=0)


def test_brightness_scales_and_contrast_spreads():
    muted = cloud().color * 0.2 + 60
    ratio = color_jitter(muted, 0.4, 0, 0, 0, rng(1)) / muted
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), atol=1e-3, rtol=0)
    assert 0.6 <= float(ratio[0, 0]) <= 1.4 and abs(float(ratio[0, 0]) - 1) > 0.01
    spread = color_jitter(muted, 0, 0.4, 0, 0, rng())
    factor = spread.diff(dim=0) / muted.diff(dim=0)
    assert 0.6 <= float(factor.median()) <= 1.4 and abs(float(factor.median()) - 1) > 0.01
    torch.testing.assert_close(factor, factor.median().expand_as(factor), atol=0.05, rtol=0)
    torch.testing.assert_close(spread.mean(), muted.mean(), atol=1.0, rtol=0)


def test_auto_contrast_stretches_each_channel():
    color = cloud().color * torch.tensor([0.5, 0.2, 0.1]) + 50
    stretched = auto_contrast(color, 1.0)
    torch.testing.assert_close(stretched.amin(0), torch.zeros(3))
    torch.testing.assert_close(stretched.amax(0), torch.full((3,), 255.0))
    assert torch.equal(auto_contrast(color, 0.0), color)
    torch.testing.assert_close(auto_contrast(color, 0.25), 0.75 * color + 0.25 * stretched)


def test_auto_contrast_of_one_colour_is_finite():
    color = torch.full((5, 3), 200.0)
    found = auto_contrast(color, 0.5)
    assert found.isfinite().all() and 0 <= float(found.min()) and float(found.max()) <= 255


def test_auto_contrast_stays_in_range():
    for seed in range(50):
        color = cloud(20, seed).color
        for blend in (0.3, 0.7, 1.0):
            found = auto_contrast(color, blend)
            assert 0 <= float(found.min()) and float(found.max()) <= 255 + 1e-4


# All of it


@pytest.mark.parametrize("seed", range(5))
def test_augment_changes_a_scene_and_keeps_what_it_is(seed):
    points, kept = cloud(), cloud()
    after = augment(points, SURE, rng(seed))
    assert_equal_points(points, kept)
    assert torch.equal(after.origin, points.origin)
    for value in (after.coord, after.color, after.normal):
        assert value.shape == (500, 3) and value.dtype == torch.float32 and value.isfinite().all()
    torch.testing.assert_close(after.normal.norm(dim=1), torch.ones(500))
    assert 0 <= float(after.color.min()) and float(after.color.max()) <= 255
    assert (after.coord - points.coord).abs().max() > 0.1
    assert (after.color - points.color).abs().max() > 1
    assert (after.normal - points.normal).abs().max() > 0.01


def test_a_seed_fixes_an_augmentation():
    torch.manual_seed(1)
    first = augment(cloud(), SURE, rng(7))
    torch.manual_seed(2)
    assert_equal_points(first, augment(cloud(), SURE, rng(7)))
    other = augment(cloud(), SURE, rng(8))
    assert not torch.equal(first.coord, other.coord) and not torch.equal(first.color, other.color)


def test_augmentation_takes_nothing_from_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    augment(cloud(), SURE, rng())
    assert torch.equal(torch.rand(4), expected)


def test_a_still_config_only_centres():
    after = augment(cloud(), STILL, rng())
    expected = center(cloud())
    torch.testing.assert_close(after.coord, expected.coord)
    torch.testing.assert_close(after.normal, expected.normal)
    assert torch.equal(after.color, expected.color)


def test_rotation_scale_and_flip_keep_the_shape():
    config = replace(STILL, scale=(0.5, 2.0), rotate_z=180.0, tilt=20.0, flip=0.5)
    before, after = plane(), augment(plane(), config, rng(4))
    ratio = torch.pdist(after.coord) / torch.pdist(before.coord).clamp(min=1e-3)
    factor = float(ratio.median())
    assert 0.5 <= factor <= 2.0 and abs(factor - 1) > 0.01
    far = torch.pdist(before.coord) > 0.1
    torch.testing.assert_close(ratio[far], torch.full_like(ratio[far], factor), atol=1e-3, rtol=0)
    edges = after.coord[1:] - after.coord[:1]
    assert float((edges @ after.normal[0]).abs().max()) < 1e-4


def test_color_translation_moves_all_points_alike():
    config = replace(STILL, color_translation_probability=1.0, color_translation=0.1)
    points = cloud()
    points = replace(points, color=points.color * 0.5 + 60)
    moved = augment(points, config, rng()).color - points.color
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), atol=1e-3, rtol=0)
    assert 0.1 < float(moved.abs().max()) <= 25.5


# Voxels


def members(view):
    return [torch.nonzero(view.inverse == row)[:, 0] for row in range(len(view.index))]


def test_a_voxel_has_the_means_of_its_points():
    points = replace(cloud(800), origin=cloud(800, seed=9).coord)
    view = voxel_view(points, 0.4)
    assert view.features.shape == (len(view.index), IN_CHANNELS) and view.index.dtype == torch.int32
    assert 100 < len(view.index) < 700
    rows = members(view)
    assert sorted(torch.cat(rows).tolist()) == list(range(800)) and min(map(len, rows)) > 0
    for voxel, row in enumerate(rows):
        torch.testing.assert_close(view.features[voxel, :3], points.color[row].mean(0) / 127.5 - 1, atol=1e-5, rtol=0)
        normal = points.normal[row].mean(0)
        torch.testing.assert_close(view.features[voxel, 3:], normal / normal.norm(), atol=1e-4, rtol=0)
        torch.testing.assert_close(view.origin[voxel], points.origin[row].mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(view.features[:, 3:].norm(dim=1), torch.ones(len(view.index)))
    assert -1 <= float(view.features.min()) and float(view.features.max()) <= 1


@pytest.mark.parametrize("offset", [None, [0, 0, 0], [3, 0, 7]])
def test_the_shift_takes_voxels_back_to_their_points(offset):
    points = cloud()
    view = voxel_view(points, 0.1, None if offset is None else torch.tensor(offset))
    assert view.index.amin(0).tolist() == (offset or [0, 0, 0])
    assert len(view.index.unique(dim=0)) == len(view.index)
    low = view.index[view.inverse] * 0.1 + view.shift
    assert (points.coord >= low - 1e-5).all() and (points.coord <= low + 0.1 + 1e-5).all()


def test_an_offset_moves_the_voxels_and_changes_nothing_else():
    plain, moved = voxel_view(cloud(), 0.1), voxel_view(cloud(), 0.1, torch.tensor([5, 6, 7]))
    assert torch.equal(moved.index, plain.index + torch.tensor([5, 6, 7], dtype=torch.int32))
    assert torch.equal(moved.inverse, plain.inverse) and torch.equal(moved.features, plain.features)


@pytest.mark.parametrize("offset", [[0, 0, 0], [5, 6, 7]])
@pytest.mark.parametrize("size", [0.02, 0.05, 0.1])
def test_indices_begin_at_the_offset_on_points_of_a_grid(size, offset):
    # Coordinates that were rounded to the voxel size lie on the sides of voxels.
    lowest = []
    for step in range(-400, 400):
        coord = (torch.tensor([[0.0, 0.0, 0.0], [7.0, 3.0, 1.0]], dtype=torch.float64) + step).mul(size).float()
        view = voxel_view(Points(coord, coord, torch.zeros(2, 3), torch.ones(2, 3)), size, torch.tensor(offset))
        lowest.append(tuple(view.index.amin(0).tolist()))
    assert set(lowest) == {tuple(offset)}


def test_a_view_does_not_depend_on_where_the_scene_is():
    points = cloud()
    far = replace(points, coord=points.coord + 16)
    a, b = voxel_view(points, 0.25), voxel_view(far, 0.25)
    assert torch.equal(a.index, b.index)
    torch.testing.assert_close(b.shift - a.shift, torch.full((3,), 16.0))


def test_points_come_from_scenes_with_colour_and_normals():
    points = cloud(10)
    scene = Scene(coord=points.coord, color=points.color.to(torch.uint8), normal=points.normal, name="attic")
    taken = Points.from_scene(scene)
    assert taken.color.dtype == torch.float32 and torch.equal(taken.color, points.color.floor())
    assert torch.equal(taken.coord, scene.coord) and torch.equal(taken.origin, scene.coord)
    for missing in ("color", "normal"):
        with pytest.raises(ValueError, match="attic"):
            Points.from_scene(replace(scene, **{missing: None}))


def test_rows_of_points_stay_together():
    points, rows = cloud(), torch.tensor([7, 3, 3])
    part = points[rows]
    for field in fields(Points):
        assert torch.equal(getattr(part, field.name), getattr(points, field.name)[rows])


# Views without an input


@pytest.mark.parametrize("name,value", [("drop_color", 127.5), ("drop_normal", 0.0)])
def test_dropped_inputs_become_features_of_zero(name, value):
    config = AugmentConfig(**{name: 1.0})
    after = augment(cloud(200), config, rng())
    assert torch.equal(getattr(after, name[5:]), torch.full((200, 3), value))
    features = voxel_view(after, 0.1).features
    dropped = features[:, :3] if name == "drop_color" else features[:, 3:]
    kept = features[:, 3:] if name == "drop_color" else features[:, :3]
    assert (dropped == 0).all() and (kept != 0).any()
