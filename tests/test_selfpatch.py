"""SelfPatch: neighbours, positives and their aggregation against slow loops; what it does to real textures."""

from __future__ import annotations

import math

import pytest
import torch
from test_image_objectives import batch, build, judged_run, learnt, rng, train
from torch import nn
from torch.nn import functional as F

from pcssl.image.backbones import ViT, ViTConfig
from pcssl.image.backbones.vit import patchify
from pcssl.image.views import ViewConfig, draw, make_views
from pcssl.models.heads import Prototypes, head
from pcssl.objectives.selfpatch import (
    ClassAttentionBlock,
    PatchAggregation,
    PatchNetwork,
    SelfPatchLoss,
    neighbor_index,
    positive_patches,
)
from pcssl.objectives.teacher import Teacher
from pcssl.training import load_checkpoint

SMALL = {
    "views": [{"count": 2, "size": 8}, {"count": 2, "size": 4}], "head": "dino_bn", "hidden": 32, "bottleneck": 16,
    "prototypes": 24, "patch_prototypes": 12, "heads": 4, "depth": 1,
}  # fmt: skip


# ---------------------------------------------------------------- neighbours and positives


@pytest.mark.parametrize("grid", [(6, 6), (14, 14), (2, 5), (7, 3)])
def test_neighbours_are_the_ring_around_a_patch_and_never_itself(grid):
    rows, columns = grid
    index = neighbor_index(rows, columns)
    assert index.shape == (rows * columns, 8)
    at = torch.arange(rows * columns)[:, None]
    away = torch.maximum((index // columns - at // columns).abs(), (index % columns - at % columns).abs())
    assert bool((away == 1).all())
    inner = [i for i in range(rows * columns) if 0 < i // columns < rows - 1 and 0 < i % columns < columns - 1]
    assert all(len(set(index[i].tolist())) == 8 for i in inner)


def test_neighbours_of_a_torus_are_the_authors_table():
    """Their loop: offsets -1..1 of row and column, modulo the grid, the middle left out."""
    side, expected = 6, []
    for i in range(side * side):
        row, column = divmod(i, side)
        ring = [((row + a) % side) * side + (column + b) % side for a in (-1, 0, 1) for b in (-1, 0, 1)]
        expected.append([j for j in ring if j != i])
    assert neighbor_index(side, side, wrap=True).tolist() == expected
    mirrored = neighbor_index(side, side)
    inner = torch.arange(36).view(6, 6)[1:-1, 1:-1].flatten()
    assert torch.equal(mirrored[inner], torch.tensor(expected)[inner])
    assert mirrored[0].tolist() == [7, 6, 7, 1, 1, 7, 6, 7]  # -1 -> 1


def test_neighbourhoods_that_a_grid_has_not_are_refused():
    with pytest.raises(ValueError, match="1 x 4 patches has no neighbourhood"):
        neighbor_index(1, 4)
    with pytest.raises(ValueError, match="must be odd"):
        neighbor_index(4, 4, size=2)
    assert neighbor_index(3, 3, size=5).shape == (9, 24)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_positives_are_those_of_a_slow_double_loop(k):
    tokens, index = torch.randn(2, 12, 5, generator=rng()), neighbor_index(3, 4)
    found = positive_patches(tokens, index, k)
    for b in range(2):
        for i in range(12):
            cosines = [float(F.cosine_similarity(tokens[b, i], tokens[b, j], dim=0)) for j in index[i].tolist()]
            mine = [float(F.cosine_similarity(tokens[b, i], tokens[b, j], dim=0)) for j in found[b, i].tolist()]
            assert mine == pytest.approx(sorted(cosines, reverse=True)[:k], abs=1e-6)
            assert set(found[b, i].tolist()) <= set(index[i].tolist())
    if k == 8:
        assert torch.equal(found.sort(2).values, index.sort(1).values.expand(2, -1, -1))


def test_positives_do_not_mind_the_scale_of_tokens():
    tokens, index = torch.randn(3, 36, 7, generator=rng()), neighbor_index(6, 6)
    scale = torch.rand(3, 36, 1, generator=rng(1)) + 0.1
    assert torch.equal(positive_patches(tokens * scale, index), positive_patches(tokens, index))


def test_positives_stay_on_their_side_of_a_planted_border():
    left, right = torch.randn(2, 6, generator=rng())
    column = torch.arange(64) % 8
    tokens = torch.where((column < 4)[:, None], left, right)[None]
    tokens = tokens * torch.linspace(1, 2, 64)[:, None]
    found = positive_patches(tokens, neighbor_index(8, 8), 4)[0]
    assert torch.equal(column[found] < 4, (column < 4)[:, None].expand(-1, 4))  # 5 of 8 are on the own side at least


# ---------------------------------------------------------------- aggregation


def slow_block(block: ClassAttentionBlock, query: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """One query (D,) and its set (n, D), a head at a time."""
    u = block.norm1(torch.cat([query[None], tokens]))
    q, (k, v) = block.query(u[0]), block.key_value(u).chunk(2, 1)
    size = len(query) // block.heads
    heads = []
    for h in range(block.heads):
        part = slice(h * size, (h + 1) * size)
        weight = (k[:, part] @ q[part] / math.sqrt(size)).softmax(0)
        heads.append(weight @ v[:, part])
    query = query + block.proj(torch.cat(heads))
    return query + block.mlp(block.norm2(query))


def test_aggregation_is_that_of_a_slow_double_loop():
    torch.manual_seed(0)
    aggregation = PatchAggregation(8, heads=2, depth=2).double()
    tokens = torch.randn(2, 12, 8, generator=rng(), dtype=torch.float64)
    sets = positive_patches(tokens, neighbor_index(3, 4), 4)
    image, patches = aggregation(tokens, sets)

    def slow(some):
        query = aggregation.query
        for block in aggregation.blocks:
            query = slow_block(block, query, some)
        return aggregation.norm(query)

    for b in range(2):
        torch.testing.assert_close(image[b], slow(tokens[b]), atol=1e-10, rtol=0)
        for i in range(12):
            torch.testing.assert_close(patches[b, i], slow(tokens[b, sets[b, i]]), atol=1e-10, rtol=0)
    torch.testing.assert_close(aggregation(tokens)[1], aggregation.norm(tokens))
    torch.testing.assert_close(aggregation(tokens)[0], image)


def test_aggregation_knows_no_order_and_makes_equals_of_equals():
    torch.manual_seed(0)
    aggregation, tokens = PatchAggregation(8, heads=2), torch.randn(1, 16, 8, generator=rng())
    sets = positive_patches(tokens, neighbor_index(4, 4), 4)
    order = torch.randperm(4, generator=rng(1))
    torch.testing.assert_close(aggregation(tokens, sets[:, :, order])[1], aggregation(tokens, sets)[1])
    same = tokens[:, :1].expand(-1, 16, -1)
    patches = aggregation(same, positive_patches(same, neighbor_index(4, 4), 8))[1]
    torch.testing.assert_close(patches, patches[:, :1].expand(-1, 16, -1))


# ---------------------------------------------------------------- loss


def test_loss_of_equal_networks_is_the_entropy_of_the_softmax():
    scores, patches = torch.randn(6, 10, generator=rng()), torch.randn(6, 4, 7, generator=rng(1))

    def entropy(s):
        p = (s / 0.1).softmax(-1)
        return -(p * p.log()).sum(-1).mean()

    values = SelfPatchLoss(10, 7, 0.1)([scores] * 2, [scores] * 2, [patches] * 2, [patches] * 2, 0.1)
    torch.testing.assert_close(values["loss/image"], entropy(scores))
    torch.testing.assert_close(values["loss/patch"], entropy(patches))
    torch.testing.assert_close(values["loss"], entropy(scores) + 0.1 * entropy(patches))


def test_patch_loss_is_the_loop_over_views_with_a_centre_over_all_patches():
    student = [torch.randn(3, n, 7, generator=rng(n)) for n in (9, 9, 4)]
    teacher = [torch.randn(3, n, 7, generator=rng(10 + n)) for n in (9, 9, 4)]
    image = [torch.randn(3, 5, generator=rng(i)) for i in range(3)]
    loss = SelfPatchLoss(5, 7)
    loss.patch_centre.mean += 0.3 * torch.randn(7, generator=rng(5))
    centre = loss.patch_centre.mean.clone()
    found = loss(image, image[:2], student, teacher, 0.04)["loss/patch"]
    expected = [
        -(((t - centre) / 0.04).softmax(2) * (s / 0.1).log_softmax(2)).sum(2).mean() for s, t in zip(student, teacher)
    ]
    torch.testing.assert_close(found, torch.stack(expected).mean())
    torch.testing.assert_close(loss.patch_centre.mean, 0.9 * centre + 0.1 * torch.cat([t.flatten(0, 1) for t in teacher]).mean(0))


# ---------------------------------------------------------------- the objective


def test_selfpatch_trains_the_student_alone():
    objective = build("selfpatch", **SMALL, freeze_last=0.0)
    objective.watched = True
    values = objective(batch(objective), 0)
    values["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.student.parameters())
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert {"loss/image", "loss/patch", "std/teacher", "rank/teacher"} <= values.keys()
    assert any(m is objective.backbone() for m in objective.modules())
    before = objective.teacher.network.aggregation.query.clone()
    with torch.no_grad():
        objective.student.aggregation.query.add_(1)
    torch.testing.assert_close(objective.teacher.network.aggregation.query, before)
    momentum = objective.after_step(0)["momentum"]
    torch.testing.assert_close(objective.teacher.network.aggregation.query, before + (1 - momentum))


def test_selfpatchs_prototypes_wait():
    objective = build("selfpatch", **SMALL, freeze_last=0.1)
    objective(batch(objective), 9)["loss"].backward()
    student = objective.student
    assert student.image_head[1].weight.grad is None and student.patch_head[1].weight.grad is None


def test_selfpatch_of_views_of_any_sizes_is_that_of_one_at_a_time():
    objective = build("selfpatch", **SMALL, model={"final_norm": False}).eval()
    views = [torch.rand(3, 1, s, s, generator=rng(i)) for i, s in enumerate((8, 4, 8, 12))]
    for local in (False, True):
        embedding, images, patches = objective.student(views, local)
        for i, view in enumerate(views):
            alone = objective.student([view], local)
            torch.testing.assert_close(embedding[3 * i : 3 * i + 3], alone[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(images[i], alone[1][0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(patches[i], alone[2][0], atol=1e-5, rtol=1e-4)


def test_selfpatch_says_what_it_cannot_use():
    with pytest.raises(ValueError, match="cls_token=false"):
        build("selfpatch", model={"cls_token": True}, **SMALL)
    with pytest.raises(ValueError, match="1 x 1 patches"):
        build("selfpatch", **{**SMALL, "views": [{"count": 2, "size": 8}, {"size": 2}]})
    with pytest.raises(ValueError, match="cannot be divided into 5"):
        build("selfpatch", **{**SMALL, "heads": 5})


def test_the_shipped_config_trains(tmp_path):
    short = ["data.batch_size=16", "data.dataset.val=1765", "optimizer.epochs=1"]
    assert load_checkpoint(train("selfpatch", tmp_path, *short))["step"] == 2


# ---------------------------------------------------------------- on real textures


def mosaics(count, part, seed):
    """(count, 3, 48, 48) images in 0..1 of two to four textures in random rectangles, and (count, 64) which texture
    most of each 6 px patch is. part: half of the photos to cut from; "train" and "val" share no pixel."""
    pytest.importorskip("skimage")
    from pcssl.image.bundled import photo

    g, images, labels = rng(seed), torch.empty(count, 3, 48, 48), torch.empty(count, 48, 48, dtype=torch.int64)
    textures = []
    for name in ("brick", "grass", "gravel", "coffee", "immunohistochemistry", "chelsea"):
        small = F.avg_pool2d(photo(name).float() / 255, 4).expand(3, -1, -1)
        half = small.shape[2] // 2
        textures.append(small[:, :, :half] if part == "train" else small[:, :, half:])
    for i in range(count):
        for piece, kind in enumerate(torch.randperm(6, generator=g)[: 2 + i % 3].tolist()):
            source = textures[kind]
            y, x = (int(torch.randint(n - 47, (1,), generator=g)) for n in source.shape[1:])
            top, left = torch.randint(6, 36, (2,), generator=g).tolist() if piece else (0, 0)
            where = (slice(top, None), slice(left, None)) if piece % 2 == 0 or piece == 0 else (slice(top, None), slice(None, left + 6))
            images[i][:, where[0], where[1]] = source[:, y : y + 48, x : x + 48][:, where[0], where[1]]
            labels[i][where] = kind
    share = F.avg_pool2d(F.one_hot(labels, 6).permute(0, 3, 1, 2).float(), 6)
    return images, share.argmax(1).flatten(1)


def purity(tokens, label, k):
    """Share of neighbours of the own texture, of patches at a border: of all 8, and of the k positives."""
    index = neighbor_index(8, 8)
    ring = label[:, index] == label[:, :, None]
    chosen = label.gather(1, positive_patches(tokens, index, k).flatten(1)).view(len(label), 64, k) == label[:, :, None]
    border = ~ring.all(2)
    return float(ring[border].float().mean()), float(chosen[border].float().mean())


def test_positives_pick_the_own_texture_at_borders():
    images, label = mosaics(60, "train", 0)
    torch.manual_seed(0)
    vit = ViT(ViTConfig(patch=6, grid=8, dim=48, depth=2, heads=4, cls_token=False, final_norm=False)).eval()
    with torch.no_grad():
        base, random = purity(vit(2 * images - 1)[0].dense, label, 4)
    patches = patchify(images, 6).unflatten(2, (3, 36))
    steps = patchify(images.diff(dim=3, prepend=images[..., :1]).abs(), 6).unflatten(2, (3, 36))
    described = torch.cat([patches.mean(3), patches.std(3), steps.mean(3)], 2)
    described = (described - described.mean((0, 1))) / described.std((0, 1))
    assert random >= base + 0.1 and purity(described, label, 4)[1] >= base + 0.12


def coherence(tokens, label):
    """Mean cosine, all tokens centred, of neighbours of one texture."""
    unit = F.normalize(tokens - tokens.mean((0, 1)), dim=2)
    index = neighbor_index(8, 8)
    cosine = (unit[:, :, None] * unit[:, index]).sum(3)
    return float(cosine[label[:, index] == label[:, :, None]].mean())


def patch_miou(known, label, query, expected):
    from pcssl.evaluation.ridge import RidgeProbe

    found = RidgeProbe.fit(known.flatten(0, 1), label.flatten(), 6)(query.flatten(0, 1)).view_as(expected)
    both = [((found == c) & (expected == c)).sum() / ((found == c) | (expected == c)).sum() for c in range(6)]
    return float(torch.stack(both).mean())


def mosaic_run(weight, seed, split, steps=150):
    """Tokens after DINO with the patches' loss: coherence, and mIoU of a probe, on unseen halves of the photos."""
    known, query = mosaics(120, "train", 2 * split + 1), mosaics(60, "val", 2 * split + 2)
    torch.manual_seed(seed)
    vit = ViT(ViTConfig(patch=6, grid=8, dim=48, depth=2, heads=4, cls_token=False, final_norm=False))
    heads = [nn.Sequential(head("dino_bn", 48, 96, 32), Prototypes(32, n)) for n in (128, 128)]
    student = PatchNetwork(vit, PatchAggregation(48, 4), *heads)
    teacher, loss = Teacher(student, batch_statistics=True), SelfPatchLoss(128, 128, weight)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    kinds, g = [ViewConfig(count=2, size=48, scale=(0.4, 1.0)), ViewConfig(count=2, size=24, scale=(0.1, 0.4))], rng(seed)
    teacher.train()
    for _ in range(steps):
        rows = torch.randint(len(known[0]), (16,), generator=g)
        views, _ = make_views(list(known[0][rows]), torch.stack([draw(kinds, g) for _ in rows]), kinds)
        _, target, target_patches = teacher(views, True)
        _, scores, patches = student(views, False)
        values = loss(scores, target[:2], patches, target_patches, 0.04)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        teacher.update(student, 0.99)
    network = teacher.network.eval()
    with torch.no_grad():
        tokens = [network.aggregation.norm(network.backbone(2 * images - 1)[0].dense) for images in (known[0], query[0])]
    return coherence(tokens[1], query[1]), patch_miou(tokens[0], known[1], tokens[1], query[1])


@pytest.mark.slow
def test_patches_of_one_texture_grow_alike_and_a_probe_loses_nothing(over_seeds):
    def measure(seed):
        runs = {f"weight {weight:g}": mosaic_run(weight, seed, seed + 1) for weight in (0.0, 1.0)}
        return {f"{what}, {run}": found[i] for run, found in runs.items() for i, what in enumerate(("cosine", "mIoU"))}

    found = over_seeds(measure)
    assert (found["cosine, weight 1"] - found["cosine, weight 0"]).mean() >= 0.05
    assert abs(found["mIoU, weight 1"] - found["mIoU, weight 0"]).mean() <= 0.015


@pytest.mark.slow
def test_selfpatchs_run_learns_digits(over_seeds, tmp_path):
    found = over_seeds(lambda seed: learnt(judged_run("selfpatch", tmp_path, seed)))
    assert found["gain"].mean() >= 0.2
