"""Block masks hide whole cells, the right number of them in every scene; crops keep the nearest."""

import pytest
import torch

from pcssl.data.masks import block_mask, crop_around, nearest_crop


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_voxels(seed=0, scenes=3, count=400, span=20, dimensions=3):
    g = rng(seed)
    index = torch.randint(-span, span, (count, dimensions), generator=g)
    return index, torch.randint(scenes, (count,), generator=g)


def cells_of(index, batch, cell):
    """{scene: {cell: rows}}"""
    cells = {}
    for row, (b, place) in enumerate(zip(batch.tolist(), index.tolist())):
        cells.setdefault(b, {}).setdefault(tuple(x // cell for x in place), []).append(row)
    return cells


def hidden_cells(mask, index, batch, cell):
    """Per scene (hidden, all) cells; fails where a cell is hidden in part."""
    found = {}
    for scene, cells in cells_of(index, batch, cell).items():
        states = [{bool(mask[row]) for row in rows} for rows in cells.values()]
        assert all(len(state) == 1 for state in states)
        found[scene] = (sum(state == {True} for state in states), len(cells))
    return found


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("cell", [1, 4, 7])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.73, 0.9])
def test_a_share_of_the_cells_of_every_scene_is_hidden_whole(dimensions, cell, ratio):
    index, batch = random_voxels(dimensions=dimensions)
    mask = block_mask(index, batch, cell, ratio, rng())
    assert mask.dtype == torch.bool and mask.shape == (400,)
    for hidden, cells in hidden_cells(mask, index, batch, cell).values():
        assert abs(hidden - ratio * cells) <= 0.5 or hidden in (1, cells - 1)


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.99, 1.0])
def test_one_cell_stays_visible_and_one_is_hidden(ratio):
    # Scenes of 2, 3 and 40 cells.
    batch = torch.tensor([0] * 2 + [1] * 3 + [2] * 40)
    index = torch.cat([torch.arange(n) for n in (2, 3, 40)])[:, None] * 5
    mask = block_mask(index, batch, 5, ratio, rng())
    for hidden, cells in hidden_cells(mask, index, batch, 5).values():
        assert hidden == min(max(round(ratio * cells), 1), cells - 1)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_a_scene_of_one_cell_stays_visible(ratio):
    index, batch = torch.tensor([[0, 1], [1, 0], [0, 0]]), torch.tensor([4, 4, 4])
    assert not block_mask(index, batch, 2, ratio, rng()).any()


def test_ratio_zero_hides_nothing():
    assert not block_mask(*random_voxels(), 4, 0.0, rng()).any()


def test_nothing_to_hide():
    mask = block_mask(torch.zeros(0, 3).long(), torch.zeros(0).long(), 4, 0.5)
    assert mask.shape == (0,) and mask.dtype == torch.bool


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_is_a_share(ratio):
    with pytest.raises(ValueError, match="ratio"):
        block_mask(*random_voxels(), 4, ratio)


def test_cells_begin_at_multiples_of_their_edge():
    # -1 and 0 are in different cells of edge 4: one of two cells is hidden.
    index = torch.tensor([[-4], [-1], [0], [3]])
    for seed in range(5):
        mask = block_mask(index, torch.zeros(4).long(), 4, 0.5, rng(seed)).tolist()
        assert mask in ([True, True, False, False], [False, False, True, True])


@pytest.mark.parametrize("height", [0, -7, 30])
@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_a_flat_cloud_is_masked_like_its_picture(height, ratio):
    index, batch = random_voxels(dimensions=2)
    flat = torch.cat([index, torch.full((len(index), 1), height)], 1)
    assert torch.equal(block_mask(index, batch, 4, ratio, rng(3)), block_mask(flat, batch, 4, ratio, rng(3)))


def test_a_seed_fixes_the_mask():
    index, batch = random_voxels()
    a, b, c = (block_mask(index, batch, 4, 0.5, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_every_cell_is_hidden_equally_often():
    index = torch.tensor([[x, y] for x in range(3) for y in range(2)] * 2)
    batch = torch.tensor([0] * 6 + [1] * 6)
    g = rng(4)
    share = torch.stack([block_mask(index, batch, 1, 0.5, g) for _ in range(600)]).float().mean(0)
    # Six standard deviations of a share of 600 draws.
    assert ((share - 0.5).abs() < 6 * 0.5 / 600**0.5).all()


def test_masks_of_the_scenes_of_a_batch_differ():
    one = torch.arange(64)[:, None]
    index, batch = torch.cat([one, one]), torch.arange(2).repeat_interleave(64)
    first, second = block_mask(index, batch, 1, 0.5, rng()).view(2, 64)
    assert int(first.sum()) == int(second.sum()) == 32 and not torch.equal(first, second)


def test_rows_of_scenes_may_be_mixed():
    index, batch = random_voxels()
    shuffle = torch.randperm(400, generator=rng(5))
    mask = block_mask(index, batch, 4, 0.5, rng(6))
    assert torch.equal(block_mask(index[shuffle], batch[shuffle], 4, 0.5, rng(6)), mask[shuffle])


# Crops


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("count", [1, 30, 99])
def test_a_crop_keeps_the_nearest_points(dimensions, count):
    coord = torch.rand(100, dimensions, generator=rng())
    centre = torch.full((dimensions,), 0.3)
    keep = crop_around(coord, centre, count)
    distance = (coord - centre).norm(dim=1)
    assert keep.dtype == torch.bool and int(keep.sum()) == count
    assert distance[keep].max() <= distance[~keep].min()


def test_a_random_crop_is_around_one_of_its_points():
    coord = torch.rand(100, 3, generator=rng())
    keep = nearest_crop(coord, 20, rng(1))
    assert any(torch.equal(keep, crop_around(coord, centre, 20)) for centre in coord[keep])
    assert torch.equal(keep, nearest_crop(coord, 20, rng(1)))
    assert any(not torch.equal(keep, nearest_crop(coord, 20, rng(seed))) for seed in range(2, 6))


@pytest.mark.parametrize("count", [10, 11, 1000])
def test_a_crop_larger_than_the_scene_is_the_scene(count):
    coord = torch.rand(10, 3, generator=rng())
    assert nearest_crop(coord, count, rng()).all() and crop_around(coord, coord[0], count).all()


def test_a_crop_of_nothing():
    coord = torch.zeros(0, 3)
    assert nearest_crop(coord, 5).shape == (0,) and crop_around(coord, torch.zeros(3), 5).shape == (0,)
