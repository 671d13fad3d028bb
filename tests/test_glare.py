"""GLARE and its adapters: what is frozen stays, what starts at zero changes nothing, regions find their like."""

from __future__ import annotations

import copy

import pytest
import torch
from test_image_objectives import batch, build, judged_run, rng, train
from torch import nn

from pcssl.config import component
from pcssl.errors import UserError
from pcssl.evaluation import ImageProbeConfig, load_image_model, probe_images
from pcssl.image.adapters import AdaptedViT, UniAdapter, inject_adapters, remove_adapters
from pcssl.image.backbones import ViT, ViTConfig
from pcssl.image.backbones.vit import patchify
from pcssl.objectives.glare import GLARELoss, PatchBlur, attention_guided_regions, cross_view_region, region_means
from pcssl.objectives.teacher import Teacher
from pcssl.training import load_checkpoint

VIT = {"in_channels": 1, "patch": 2, "grid": 4, "dim": 32, "depth": 2, "heads": 4, "cls_token": False}
SMALL = {
    "model": {"name": "adapted_vit", "bottleneck": 8}, "views": [{"count": 2, "size": 8}], "head": "dino_bn", "hidden": 32,
    "bottleneck": 16, "prototypes": 24, "window": 2, "regions": 3, "heads_first": 0.0,
}  # fmt: skip


def objective(**options):
    """GLARE on a ViT whose adapters do something."""
    options = {**SMALL, **options}
    model = {**VIT, **options.pop("model")}
    torch.manual_seed(0)
    backbone = component("model", model.pop("name"), **model).build()
    for name, p in backbone.named_parameters():
        if name.endswith("adapter.up.weight"):
            nn.init.normal_(p, std=0.1)
    from pcssl.image import ImageData

    data = ImageData(component("dataset", "digits"), channels=1)
    return component("objective", "glare", **options).build(backbone, data, 100)


def vit(**options) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(**{**VIT, **options})).eval()


# ---------------------------------------------------------------- adapters


def test_a_new_adapter_changes_no_bit_and_taken_out_nothing_is_left():
    net, images = vit(), torch.rand(3, 1, 8, 8, generator=rng())
    before, keys = net(images)[0].features, set(net.state_dict())
    trainable = inject_adapters(net, bottleneck=8)
    assert torch.equal(net(images)[0].features, before)
    assert {id(p) for p in net.parameters() if p.requires_grad} == {id(p) for p in trainable}
    with torch.no_grad():
        for p in trainable:
            p.add_(0.1)
    assert not torch.allclose(net(images)[0].features, before)
    with pytest.raises(ValueError, match="has adapters already"):
        inject_adapters(net)
    remove_adapters(net)
    assert torch.equal(net(images)[0].features, before) and set(net.state_dict()) == keys


def test_a_network_in_training_drops_paths_with_adapters_as_without():
    net, images = vit(drop_path=0.9), torch.rand(8, 1, 8, 8, generator=rng())
    sure = net(images)[0].features
    net.train()
    for change in (inject_adapters, remove_adapters):
        change(net)
        assert all(block.training for block in net.blocks) and not torch.equal(net(images)[0].features, sure)
    net.eval()
    for change in (inject_adapters, remove_adapters):
        change(net)
        assert not any(block.training for block in net.blocks) and torch.equal(net(images)[0].features, sure)


@pytest.mark.parametrize("learn_scale", [False, True])
def test_the_number_of_trained_parameters_is_the_closed_form(learn_scale):
    trainable = inject_adapters(vit(), 8, 0.5, learn_scale)
    assert sum(p.numel() for p in trainable) == 2 * (8 * (2 * 32 + 1) + 3 * 32 + learn_scale)


def test_an_adapter_is_its_formula_beside_the_mlp():
    adapter, x = UniAdapter(6, 4, 0.3), torch.randn(2, 5, 6, generator=rng())
    assert torch.equal(adapter(x), torch.zeros_like(x))
    nn.init.normal_(adapter.up.weight)
    normed = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(adapter(x), 0.3 * (normed @ adapter.down.weight.T).relu() @ adapter.up.weight.T)
    net = vit()
    nn.init.normal_(net.blocks[0].norm2.weight)  # the adapter has a norm of its own
    block, tokens = copy.deepcopy(net.blocks[0]), torch.randn(2, 16, 32, generator=rng())
    inject_adapters(net, 8)
    nn.init.normal_(net.blocks[0].adapter.up.weight)
    h = tokens + block.attention(block.norm1(tokens))
    torch.testing.assert_close(net.blocks[0](tokens), h + block.mlp(block.norm2(h)) + net.blocks[0].adapter(h))


def test_a_teacher_may_share_what_is_frozen():
    student = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    student[0].requires_grad_(False)
    teacher = Teacher(student, share_frozen=True)
    assert teacher.network[0].weight is student[0].weight and teacher.network[1].weight is not student[1].weight
    frozen, own = student[0].weight.clone(), teacher.network[1].weight.clone()
    with torch.no_grad():
        student[1].weight.add_(1)
    teacher.update(student, 1.0)
    assert torch.equal(teacher.network[1].weight, own)
    teacher.update(student, 0.25)
    torch.testing.assert_close(teacher.network[1].weight, own + 0.75)
    assert torch.equal(student[0].weight, frozen)
    assert Teacher(student).network[0].weight is not student[0].weight


# ---------------------------------------------------------------- blur


def test_blur_changes_the_chosen_patches_alone_and_no_flat_one():
    images = torch.rand(4, 3, 16, 24, generator=rng())
    images[:, :, :4, :4] = 0.3
    out, hidden = PatchBlur(0.5, (0.5, 2.0))(images, 4)
    assert hidden.shape == (4, 24) and hidden.sum(1).tolist() == [12] * 4
    moved = (patchify(out, 4) - patchify(images, 4)).abs().amax(2)
    flat = torch.zeros(24, dtype=torch.bool)
    flat[0] = True
    assert float(moved[~hidden].max()) == 0 and float(moved[:, 0].max()) < 1e-6
    assert float(moved[hidden & ~flat].min()) > 1e-3
    whole = PatchBlur(1.0, (50.0, 60.0))(images, 4)[0]
    spread = [float(patchify(x, 4).unflatten(2, (3, 16)).std(3).mean()) for x in (whole, images)]
    assert spread[0] < spread[1] / 2
    assert torch.equal(PatchBlur(0.0)(images, 4)[0], images)


# ---------------------------------------------------------------- regions


@pytest.mark.parametrize("grid", [(4, 4), (5, 9), (3, 3)])
def test_windows_lie_in_the_grid(grid):
    rows, columns = grid
    attention = torch.rand(3, 2, rows * columns, generator=rng())
    regions = attention_guided_regions(attention, grid, 50, 3, mass=1.0)
    y, x = regions // columns, regions % columns
    assert regions.shape == (3, 50, 9) and int(y.min()) >= 0 and int(y.max()) < rows
    assert bool(((y.amax(2) - y.amin(2)) == 2).all()) and bool(((x.amax(2) - x.amin(2)) == 2).all())
    assert all(len(set(r.tolist())) == 9 for r in regions.flatten(0, 1))
    with pytest.raises(ValueError, match="do not fit a grid"):
        attention_guided_regions(attention, grid, 4, window=10)


def test_regions_follow_the_attention():
    attention = torch.full((1, 2, 36), 0.2 / 33)
    attention[:, :, [7, 22, 28]] = torch.tensor([0.5, 0.2, 0.1])
    middles = attention_guided_regions(attention, (6, 6), 4000, 1, mass=0.6).flatten()
    assert set(middles.tolist()) == {7, 22}  # .5 + .2 hold .6 of it
    assert float((middles == 7).float().mean()) == pytest.approx(5 / 7, abs=0.03)


def test_a_region_finds_where_it_was_shifted_to():
    tokens = torch.eye(16)[None]  # one direction a patch
    shifted = tokens.roll(3, 1)  # patch j of the other view is patch j - 3 of this one
    regions = torch.arange(16).view(1, 16, 1)
    found, weights = cross_view_region(region_means(tokens, regions), shifted, 0.01)
    assert torch.equal(weights.argmax(2)[0], (torch.arange(16) + 3) % 16)
    torch.testing.assert_close(weights.sum(2), torch.ones(1, 16))
    torch.testing.assert_close(found, tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(cross_view_region(5 * region_means(tokens, regions), shifted, 0.1)[1], cross_view_region(tokens, shifted, 0.1)[1])


def test_region_means_are_those_of_a_loop():
    tokens, regions = torch.randn(2, 9, 4, generator=rng()), torch.randint(9, (2, 3, 4), generator=rng(1))
    expected = torch.stack([torch.stack([tokens[b, regions[b, r]].mean(0) for r in range(3)]) for b in range(2)])
    torch.testing.assert_close(region_means(tokens, regions), expected)


# ---------------------------------------------------------------- loss and objective


def test_glare_loss_of_equal_networks_is_the_entropy_of_the_teacher():
    images, rows = torch.randn(4, 7, generator=rng()), torch.randn(9, 7, generator=rng(1))

    def entropy(s):
        p = (s / 0.1).softmax(1)
        return -(p * p.log()).sum(1).mean()

    values = GLARELoss(7, (1.0, 2.0, 3.0))(([images] * 2, [images] * 2), (rows, rows), (rows[:5], rows[:5]), 0.1)
    torch.testing.assert_close(values["loss/global"], entropy(images))
    torch.testing.assert_close(values["loss/local"], entropy(rows))
    torch.testing.assert_close(values["loss/regional"], entropy(rows[:5]))
    torch.testing.assert_close(values["loss"], entropy(images) + 2 * entropy(rows) + 3 * entropy(rows[:5]))


def test_glare_moves_centres_when_training():
    loss, rows = GLARELoss(7), torch.randn(9, 7, generator=rng())
    loss(([rows] * 2, [rows] * 2), (rows, rows), (rows, rows), 0.1)
    torch.testing.assert_close(loss.centres["local"].mean, 0.1 * rows.mean(0))
    at_rest = loss.centres["regional"].mean.clone()
    loss.eval()(([rows] * 2, [rows] * 2), (rows, rows), (rows, rows), 0.1)
    assert torch.equal(loss.centres["regional"].mean, at_rest)


@pytest.mark.parametrize("cls_token", [False, True])
def test_glare_trains_adapters_and_heads_and_leaves_the_rest_as_it_was(cls_token):
    glare = objective(model={**SMALL["model"], "cls_token": cls_token})
    frozen = {n: p.clone() for n, p in glare.student.named_parameters() if not p.requires_grad}
    assert frozen and all("adapter" not in n and not n.startswith("heads") for n in frozen)
    optimizer = torch.optim.AdamW([p for p in glare.parameters() if p.requires_grad], lr=1e-2)
    glare.watched = True
    for step in range(3):
        values = glare(batch(glare), step)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        glare.after_step(step)
    learnt = [n for n, p in glare.student.named_parameters() if p.grad is not None and torch.isfinite(p.grad).all()]
    assert set(learnt) == {n for n, p in glare.student.named_parameters() if p.requires_grad}
    assert all(p.grad is None for p in glare.teacher.network.parameters())
    now = dict(glare.student.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())
    theirs = dict(glare.teacher.network.named_parameters())
    assert all(theirs[n] is now[n] for n in frozen) and all(theirs[n] is not now[n] for n in learnt)
    assert {"loss/global", "loss/local", "loss/regional", "std/teacher", "rank/teacher"} <= values.keys()


def test_adapters_wait_for_the_heads():
    glare = objective(heads_first=0.1)
    for step, moves in ((9, False), (10, True)):
        glare.zero_grad()
        glare(batch(glare), step)["loss"].backward()
        grads = [p.grad for n, p in glare.student.backbone.named_parameters() if "adapter" in n]
        assert all((g is not None) == moves for g in grads)


def test_glare_says_what_it_cannot_use():
    with pytest.raises(ValueError, match="needs the model adapted_vit"):
        build("glare", views=[{"count": 2, "size": 8}])
    with pytest.raises(ValueError, match="two of one size"):
        objective(views=[{"size": 8}, {"size": 4}])
    with pytest.raises(ValueError, match="does not fit the 4 patches"):
        objective(window=5)


def test_a_run_starts_from_a_plain_vits_checkpoint_and_is_probed(tmp_path):
    short = ["data.batch_size=16", "data.dataset.val=1733", "optimizer.epochs=1", "probe.after_training=false"]
    base = train("dino", tmp_path / "base", *short)
    glare = train("glare", tmp_path / "glare", *short, f"init={base}", "objective.heads_first=0")
    kept, after = (load_checkpoint(p) for p in (base, glare))
    kept = {k.removeprefix(kept["backbone_prefix"]): v for k, v in kept["objective"].items() if k.startswith(kept["backbone_prefix"])}
    after = {k.removeprefix(after["backbone_prefix"]): v for k, v in after["objective"].items() if k.startswith(after["backbone_prefix"])}
    assert all(torch.equal(after[k], v) for k, v in kept.items())
    assert any(bool(v.any()) for k, v in after.items() if k.endswith("adapter.up.weight"))
    model = load_image_model(glare)
    assert isinstance(model.backbone, AdaptedViT)
    assert model.embed(torch.rand(2, 1, 8, 8)).shape == (2, 64)
    with pytest.raises(UserError, match="wrong shape"):
        train("glare", tmp_path / "other", *short, f"init={base}", "model.dim=32")


def test_digits_on_photos_are_the_digits_and_dark():
    pytest.importorskip("skimage")
    plain, dark = (component("dataset", name).build().images("val") for name in ("digits", "digits_on_photos"))
    assert [plain[i].label for i in range(50)] == [dark[i].label for i in range(50)] and len(plain) == len(dark)
    a, b = (torch.stack([p.values(1) for p in data]).flatten() for data in (plain, dark))
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) < -0.7
    again = component("dataset", "digits_on_photos").build().images("val")
    assert torch.equal(again.pixels, dark.pixels)
    with pytest.raises(UserError, match="photos: lawn"):
        component("dataset", "digits_on_photos", photos=["lawn"])


# ---------------------------------------------------------------- a new domain


@pytest.mark.slow
def test_adapters_learn_the_new_domain_and_do_not_forget_the_old(over_seeds, tmp_path):
    pytest.importorskip("skimage")
    found = over_seeds(lambda seed: before_and_after(seed, tmp_path))
    gain = found["digits_on_photos, after"] - found["digits_on_photos, before"]
    assert gain.mean() >= 0.03 and (gain > 0).all()  # aim 0.03 on each
    assert (found["digits, after"] >= found["digits, before"] - 0.02).all()


def before_and_after(seed, folder) -> dict[str, float]:
    """10-NN accuracy in both domains after DINO's run on digits, and after GLARE's on digits on photos."""
    base = judged_run("dino", folder / "base", seed)
    adapted = judged_run("glare", folder / "glare", seed, f"init={base}")
    score = {}
    for name in ("digits", "digits_on_photos"):
        data = component("dataset", name, seed=seed + 1).build()
        for stage, path in (("before", base), ("after", adapted)):
            found = probe_images(load_image_model(path), data, ImageProbeConfig(heads=("nn",), floors=False))
            score[f"{name}, {stage}"] = found["results"]["trained"]["10-nn"]["accuracy"]["mean"]
    return score
