"""Views: where their places lie in the image, what each change does, and that a seed fixes them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pcssl.image.picture import luma
from pcssl.image.views import (
    CROP_VIEWS,
    DINO_VIEWS,
    DRAWS,
    MOCO_VIEWS,
    ViewConfig,
    colored,
    crop_map,
    draw,
    gaussian_blur,
    make_views,
    sample,
    to_source,
    turn_hue,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def ramp(height, width):
    """An image whose two channels are the x and y of the pixel's centre (a third is 0)."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)])


@pytest.mark.parametrize("kind", [ViewConfig(size=12, scale=(0.1, 0.6)), ViewConfig(size=12, scale=(0.9, 1.0), flip=1.0)])
@pytest.mark.parametrize("shape", [(40, 64), (9, 7), (100, 31)])
def test_a_place_of_a_view_maps_to_where_its_pixels_come_from(kind, shape):
    images = [ramp(*shape) / 128] * 16
    draws = torch.stack([draw([kind], rng(i)) for i in range(16)])
    views, maps = make_views(images, draws, [kind])
    y, x = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(12) + 0.5, indexing="ij")
    places = torch.stack([x, y], 2).reshape(-1, 2).repeat(16, 1)
    source = to_source(places, torch.arange(16).repeat_interleave(144), maps[0]).view(16, 12, 12, 2)
    read = ((views[0] + 1) / 2 * 128)[:, :2].permute(0, 2, 3, 1)
    # Within half a pixel of the border the nearest pixel is repeated.
    limit = torch.tensor([shape[1], shape[0]])
    inside = ((source >= 1.5) & (source <= limit - 1.5)).all(3)
    reach = maps[0][:, :, :2].abs().sum(2).amax(1).clamp(min=1) / 2
    inside &= ((source > reach[:, None, None, None] + 0.5) & (source < limit - reach[:, None, None, None] - 0.5)).all(3)
    assert inside.sum() > 100
    torch.testing.assert_close(read[inside], source[inside], atol=1e-3, rtol=0)


def test_the_whole_image_comes_back():
    kind = ViewConfig(size=20, scale=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0)
    image = torch.rand(3, 20, 20, generator=rng())
    views, maps = make_views([image], draw([kind], rng())[None], [kind])
    torch.testing.assert_close(views[0][0], 2 * image - 1, atol=1e-5, rtol=0)
    torch.testing.assert_close(maps[0][0], torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    flipped = make_views([image], draw([kind], rng())[None], [ViewConfig(size=20, scale=(1.0, 1.0), aspect=(1.0, 1.0), flip=1.0)])
    torch.testing.assert_close(flipped[0][0][0], (2 * image - 1).flip(2), atol=1e-5, rtol=0)


def test_shrinking_averages_pixels():
    kind = ViewConfig(size=5, scale=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0)
    image = torch.rand(1, 40, 40, generator=rng())
    view = make_views([image], draw([kind], rng())[None], [kind])[0][0]
    torch.testing.assert_close(view, 2 * F.avg_pool2d(image[None], 8) - 1, atol=1e-5, rtol=0)


def test_crops_have_the_area_and_shape_asked_for():
    kind = ViewConfig(size=10, scale=(0.2, 0.5), aspect=(0.5, 2.0))
    affine = crop_map(torch.tensor([[100, 100]]).expand(500, 2), torch.rand(500, DRAWS, generator=rng()), kind)
    width, height = affine[:, 0, 0].abs() * 10, affine[:, 1, 1] * 10
    assert 0.19 < float((width * height).min()) / 1e4 and float((width * height).max()) / 1e4 <= 0.5001
    assert 0.5 <= float((width / height).min()) < 0.6 and 1.7 < float((width / height).max()) <= 2.001
    left = affine[:, 0, 2] + torch.where(affine[:, 0, 0] < 0, -width, 0)
    assert float(left.min()) >= -1e-3 and float((left + width).max()) <= 100.001
    assert 0.4 < float((affine[:, 0, 0] < 0).float().mean()) < 0.6


def test_a_view_depends_on_its_own_image_and_draws_alone():
    images = [torch.rand(3, 30, 40, generator=rng(1)), torch.rand(3, 64, 16, generator=rng(2)), torch.rand(3, 30, 40, generator=rng(3))]
    kinds = [ViewConfig(size=16, scale=(0.1, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), grey=0.3, blur=0.5, sigma=(1.0, 1.0), solarize=0.3), ViewConfig(count=2, size=8)]
    draws = torch.stack([draw(kinds, rng(i)) for i in range(3)])
    views, maps = make_views(images, draws, kinds)
    assert [tuple(v.shape) for v in views] == [(3, 3, 16, 16), (3, 3, 8, 8), (3, 3, 8, 8)]
    for i in range(3):
        alone, own = make_views(images[i : i + 1], draws[i : i + 1], kinds)
        for a, b in zip(views + maps, alone + own):
            torch.testing.assert_close(a[i], b[0], atol=1e-5, rtol=0)
    assert all(float(v.min()) >= -1 and float(v.max()) <= 1 for v in views)


def test_nothing_is_changed_without_strength():
    x, u = torch.rand(4, 3, 8, 8), torch.rand(4, DRAWS)
    assert torch.equal(colored(x, u, ViewConfig(jitter=(0, 0, 0, 0))), x)
    torch.testing.assert_close(turn_hue(x, torch.zeros(4)), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(turn_hue(x, torch.ones(4)), x, atol=1e-4, rtol=0)
    middle = torch.full((4, DRAWS), 0.5)  # factors of 1, no turn
    torch.testing.assert_close(colored(x, middle, ViewConfig(jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=1.0)), x, atol=1e-5, rtol=0)


def test_what_colour_changes_keep():
    x, u = 0.3 + 0.4 * torch.rand(8, 3, 8, 8, generator=rng()), torch.rand(8, DRAWS, generator=rng())
    turned = turn_hue(x, 0.1 * (2 * u[:, 0] - 1))
    torch.testing.assert_close(luma(turned), luma(x), atol=1e-3, rtol=0)
    assert float((turned - x).abs().max()) > 0.05
    grey = colored(x, u, ViewConfig(grey=1.0))
    torch.testing.assert_close(grey, luma(x).expand_as(x))
    assert torch.equal(colored(x, u, ViewConfig(solarize=1.0)), torch.where(x >= 0.5, 1 - x, x))
    contrast = colored(x, u, ViewConfig(jitter=(0, 0.4, 0, 0), jitter_p=1.0))
    torch.testing.assert_close(luma(contrast).mean((1, 2, 3)), luma(x).mean((1, 2, 3)), atol=1e-5, rtol=0)


def test_blur_is_the_gaussian():
    sigma = torch.tensor([0.5, 1.7])
    x = torch.zeros(2, 1, 25, 25)
    x[:, :, 12, 12] = 1
    out = gaussian_blur(x, sigma)
    torch.testing.assert_close(out.sum((1, 2, 3)), torch.ones(2))
    at = torch.arange(25) - 12
    for i, s in enumerate(sigma.tolist()):
        line = torch.exp(-0.5 * (at / s) ** 2) * (at.abs() <= math.ceil(3 * 1.7))
        torch.testing.assert_close(out[i, 0], torch.outer(line, line) / line.sum() ** 2, atol=1e-6, rtol=0)
    flat = torch.full((1, 3, 7, 7), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, torch.tensor([2.0])), flat)


def test_grey_images_have_no_colour_to_change():
    x, u = torch.rand(4, 1, 8, 8), torch.rand(4, DRAWS)
    assert colored(x, u, ViewConfig(jitter=(0.4, 0.4, 0.4, 0.4), grey=1.0)).shape == x.shape


def test_one_pixel_and_one_image():
    for shape in [(1, 1), (1, 50), (50, 1)]:
        views, _ = make_views([torch.rand(3, *shape)], draw(DINO_VIEWS, rng())[None], DINO_VIEWS)
        assert len(views) == 10 and all(torch.isfinite(v).all() for v in views)


def test_published_sets_of_views():
    assert [(k.count, k.size) for k in DINO_VIEWS] == [(1, 224), (1, 224), (8, 96)]
    assert sum(k.count for k in MOCO_VIEWS) == 2 and len(CROP_VIEWS) == 1


@pytest.mark.parametrize("options", [{"scale": (0.9, 0.2)}, {"scale": (0.5, 1.5)}, {"aspect": (2.0, 1.0)}, {"sigma": (2.0, 1.0)}])
def test_ranges_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ViewConfig(**options)


def test_sampling_is_a_mean_over_the_image_not_a_point():
    stripes = torch.zeros(1, 64, 64)
    stripes[:, :, ::2] = 1
    read = sample([stripes], torch.tensor([[[16.0, 0, 0], [0, 16, 0]]]), 4)
    torch.testing.assert_close(read, torch.full((1, 1, 4, 4), 0.5))
