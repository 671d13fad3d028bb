"""Parts of scenes and mixtures: which points stay, and that labels follow them."""

import pytest
import torch

from pcssl.data.crops import SceneChange, cuboid_crop, mix_scenes, sphere_crop
from pcssl.data.scene import Scene


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(count=400, seed=0, name="a", **fields):
    g = rng(seed)
    coord = torch.rand(count, 3, generator=g) * torch.tensor([6.0, 4.0, 2.5]) + 10
    number = torch.arange(count, dtype=torch.int32)
    return Scene(
        **{
            "coord": coord, "color": torch.randint(0, 256, (count, 3), dtype=torch.uint8, generator=g),
            "normal": torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1),
            "labels": {"segment20": number % 7}, "instance": number % 5 - 1, "name": name, **fields,
        }
    ).check()  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_a_sphere_holds_all_points_within_its_radius(seed):
    whole = scene()
    part = sphere_crop(whole, 1.0, rng(seed))
    centre = whole.coord[int(torch.randint(len(whole), (1,), generator=rng(seed)))]
    inside = (whole.coord - centre).norm(dim=1) <= 1.0
    assert torch.equal(part.coord, whole.coord[inside]) and 0 < len(part) < len(whole)
    assert torch.equal(part.labels["segment20"], whole.labels["segment20"][inside])
    assert torch.equal(part.instance, whole.instance[inside]) and torch.equal(part.normal, whole.normal[inside])


def test_a_box_is_as_large_as_asked():
    whole = scene(5000)
    part = cuboid_crop(whole, (2.0, 1.0, 0.5), rng(2))
    size = part.coord.amax(0) - part.coord.amin(0)
    assert (size <= torch.tensor([2.0, 1.0, 0.5]) + 1e-5).all() and (size > torch.tensor([0.9, 0.45, 0.2])).all()


def test_a_mixture_puts_floors_and_middles_together():
    a, b = scene(300, 0, "a"), scene(200, 1, "b")
    both = mix_scenes(a, b).check()
    assert len(both) == 500 and both.name == "a+b"
    for part in (both.coord[:300], both.coord[300:]):
        low, high = part.amin(0), part.amax(0)
        torch.testing.assert_close(low[2], torch.tensor(0.0))
        torch.testing.assert_close((low + high)[:2] / 2, torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(both.coord[0] - both.coord[1], a.coord[0] - a.coord[1])
    assert torch.equal(both.labels["segment20"], torch.cat([a.labels["segment20"], b.labels["segment20"]]))
    assert set(both.instance[:300].tolist()) & set(both.instance[300:].tolist()) == {-1}


def test_what_one_scene_of_a_mixture_lacks():
    a, b = scene(30, labels={}, instance=None), scene(20, 1, color=None)
    both = mix_scenes(a, b).check()
    assert both.color is None and both.instance is None and both.normal is not None
    assert both.labels["segment20"].tolist() == [-1] * 30 + b.labels["segment20"].tolist()


def test_changes_follow_from_the_generator_alone():
    scenes = [scene(100, i, str(i)) for i in range(4)]
    change = SceneChange(crop=1.5, mix=0.5)
    first, second = ([change(scenes, i % 4, rng(i)) for i in range(8)] for _ in range(2))
    assert all(torch.equal(a.coord, b.coord) for a, b in zip(first, second))
    assert {"+" in s.name for s in first} == {True, False}
    assert SceneChange()(scenes, 2, rng()) is scenes[2]
