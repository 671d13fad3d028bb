"""DINO, iBOT and SwAV on scenes: what must hold beside what the losses' own tests say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from test_hunet import SMALL
from test_msm import STILL, batch_of, data_config, room

from pcssl.config import component
from pcssl.image import ImageData
from pcssl.models import HUNet
from pcssl.objectives.msm import level_means
from pcssl.objectives.scene_distillation import SceneDistillation, SceneDistillationConfig, classes_in_use
from pcssl.sparse import Geometry, SparseTensor

ROOT = Path(__file__).parents[1]
SIZES = {"hidden": 32, "bottleneck": 16, "prototypes": 24, "parts": 256}
SWAV = {"targets": "sinkhorn", "momentum": (0.0, 0.0), "mask_ratio": 0.0, "teacher_temperature": 0.05}
KINDS = pytest.mark.parametrize("options", [{}, {"mask_ratio": 0.0}, SWAV], ids=["ibot", "dino", "swav"])


def objective(augment=None, total=100, **options):
    torch.manual_seed(0)
    config = SceneDistillationConfig(**{**SIZES, **options})
    return SceneDistillation(config, HUNet(SMALL), data_config(augment), total)


@KINDS
def test_gradient_flows_to_the_student_only(options):
    method = objective(**options).train()
    out = method(batch_of(method), 0)
    out["loss"].backward()
    taught = [*method.teacher.parameters(), *method.teacher_heads.parameters()]
    assert taught and all(p.grad is None and not p.requires_grad for p in taught)
    learning = {n: p for n, p in method.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learning.values())
    assert sum(float(p.grad.abs().sum()) > 0 for p in learning.values()) >= len(learning) - 1
    assert not any(m.training for m in method.teacher.modules())


def test_the_loss_is_that_of_the_image_methods_at_the_pairs():
    """Against the sum over pairs, written out; the same module moves the centre."""
    method = objective(student_temperature=0.2)
    scores, wanted = torch.randn(50, 24), torch.randn(50, 24)
    method.losses[1].centre.mean.normal_()
    target = ((wanted - method.losses[1].centre.mean) / 0.04).softmax(1)
    centre = 0.9 * method.losses[1].centre.mean + 0.1 * wanted.mean(0)
    expected = -(target * (scores / 0.2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(method.loss(1, scores, wanted), expected)
    torch.testing.assert_close(method.losses[1].centre.mean, centre)


def test_balanced_targets_use_every_prototype_alike():
    """With scores that all prefer one prototype, the best student still spreads over all of them."""
    method = objective(**SWAV)
    wanted = 0.1 * torch.randn(480, 24, generator=torch.Generator().manual_seed(0))
    wanted[:, 3] += 0.5
    scores = (0.1 * torch.randn(480, 24)).requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        method.loss(0, scores, wanted).backward()
        optimizer.step()
    assert float(classes_in_use(wanted / 0.05)) < 2 and float(classes_in_use(scores.detach() / 0.1)) > 20


@pytest.mark.parametrize("mask_ratio", [0.0, 0.4])
def test_pairs_are_the_same_place_in_the_right_view(mask_ratio):
    method = objective(mask_ratio=mask_ratio, parts=100_000)
    batch = batch_of(method)
    predictions = method.predict(batch)
    marked = torch.cat([batch.origin, batch.hidden[:, None].float()], 1)[batch.crop]
    own = level_means(predictions[0].geometry, marked, len(predictions))
    geometry = Geometry(batch.coords)
    there = level_means(geometry, batch.origin, len(predictions))
    for i, prediction in enumerate(predictions):
        geometry = geometry.coarser()[0] if i else geometry
        rows, match = method.pairs(prediction, own[i], SparseTensor(there[i], geometry), there[i])
        assert len(rows) > 0.9 * len(prediction.features) and len(rows.unique()) == len(rows)
        assert float((own[i][rows, :3] - there[i][match]).norm(dim=1).max()) <= 0.1 * prediction.stride + 1e-6
        hidden = own[i][rows, 3] > 0.5
        assert ((own[i][:, 3] == 0) | (own[i][:, 3] == 1)).all()  # whole cells are hidden, at every level
        assert torch.equal(geometry.batch[match] == prediction.batch[rows], hidden)
        assert torch.equal(geometry.batch[match] // 2, prediction.batch[rows] // 2)  # the same scene
        assert bool(hidden.any()) == (mask_ratio > 0) and not hidden.all()


def test_identical_whole_views_pair_every_voxel_with_itself():
    method = objective(STILL, mask_ratio=0.0, crop=(1.0, 1.0)).eval()
    sample = method.sampler()(room(), torch.Generator().manual_seed(0))
    view = sample.views[0]
    batch = method.collate([type(sample)((view, view), sample.crop[:1] * 2, sample.hidden[:1] * 2)])
    levels = method.predict(batch)
    for level, place in zip(levels, level_means(levels[0].geometry, torch.nn.functional.pad(batch.origin, (0, 1)), 3)):
        rows, match = method.pairs(level, place, level, place)
        half = len(level.features) // 2
        assert len(rows) == min(256, len(level.features)) and torch.equal(match, (rows + half) % len(level.features))
    # The teacher is a copy of the student: both say the same of a place, up to the batch the head normalises over.
    method.teacher_heads.network.eval()
    scores = method.heads[0](levels[0].features)
    torch.testing.assert_close(scores, method.teacher_heads.network[0](method.teacher(levels[0].replace(batch.features))[0].features))


def test_the_student_does_not_see_the_features_of_hidden_voxels():
    method = objective().eval()
    batch = batch_of(method)
    changed = type(batch)(batch.coords, batch.features.clone(), batch.origin, batch.crop, batch.hidden)
    changed.features[batch.hidden | ~batch.crop] += 5
    assert (batch.hidden & batch.crop).any()
    for a, b in zip(method.predict(batch), method.predict(changed)):
        assert torch.equal(a.features, b.features)


def test_the_teacher_is_an_average_with_its_heads():
    method = objective(momentum=(0.9, 0.9))
    taught = [*method.teacher.parameters(), *method.teacher_heads.parameters()]
    before = [p.clone() for p in taught]
    with torch.no_grad():
        for p in [*method.student.parameters(), *method.heads.parameters()]:
            p.add_(1.0)
    method.after_step(0)
    assert all(torch.allclose(new, old + 0.1, atol=1e-6) for old, new in zip(before, taught))


def test_without_momentum_the_teacher_is_the_student():
    method = objective(**SWAV)
    with torch.no_grad():
        for p in [*method.student.parameters(), *method.heads.parameters()]:
            p.add_(torch.randn_like(p))
    method.after_step(0)
    assert all(torch.equal(a, b) for a, b in zip(method.student.parameters(), method.teacher.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(method.heads.parameters(), method.teacher_heads.parameters()))


@KINDS
def test_tiny_scenes_give_a_valid_step(options):
    method = objective(**options)
    for points in (1, 2, 5):
        batch = method.collate([method.sampler()(room(n=points), torch.Generator().manual_seed(0))])
        out = method(batch, 0)
        out["loss"].backward()
        assert torch.isfinite(out["loss"])


@KINDS
def test_a_few_steps_lower_the_loss_without_collapse(options):
    method = objective(total=24, **{"momentum": (0.98, 1.0), **options})
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3)
    batches = [batch_of(method, seed, scenes=1) for seed in range(2)]
    losses = []
    for step in range(24):
        out = method(batches[step % 2], step)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step(step)
        losses.append(float(out["loss"].detach()))
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert all(float(out[f"std/level{i}"]) > 0.2 and float(out[f"classes/level{i}"]) > 6 for i in range(3))


def test_classes_in_use():
    assert float(classes_in_use(torch.zeros(5, 7))) == pytest.approx(7)
    assert float(classes_in_use(100 * torch.eye(4)[[0, 1, 1, 0]])) == pytest.approx(2)
    assert math.isclose(float(classes_in_use(100 * torch.eye(4)[[2, 2]])), 1, abs_tol=1e-5)


def test_watched_steps_add_ranks():
    method = objective()
    method.watched = True
    out = method(batch_of(method), 0)
    assert all(f"{name}/level{i}" in out for i in range(3) for name in ("rank", "height_r2", "normal_r2", "loss", "std"))


def test_the_network_of_probes():
    assert objective().backbone() is not objective(evaluate="teacher").backbone()
    method = objective(evaluate="teacher")
    assert method.backbone() is method.teacher.network


def test_other_backbones():
    torch.manual_seed(0)
    sizes = {"in_channels": 6, "channels": [8, 16], "blocks": [1, 1], "heads": [1, 2], "patch": 16}
    method = component("objective", "scene_distillation", **SIZES).build(component("model", "ptv3", **sizes).build(), data_config(), 10)
    out = method(batch_of(method), 0)
    out["loss"].backward()
    assert float(method.token.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_a_config_differs_from_that_of_msm_in_the_objective_only(name):
    from pcssl.commands.train import TrainConfig
    from pcssl.config import load_config, to_dict

    mine, msm = (to_dict(load_config(ROOT / "configs" / f"{n}_rooms.yaml", TrainConfig)) for n in (name, "msm"))
    assert {k for k in mine if mine[k] != msm[k]} == {"objective", "output"}


@pytest.mark.parametrize("options, message", [({"crop": (0.9, 0.5)}, "crop: 0.9 is above 0.5")])
def test_options_that_contradict(options, message):
    with pytest.raises(ValueError, match=message):
        objective(**options)


def test_images_are_refused():
    data = ImageData(component("dataset", "digits"), channels=1)
    with pytest.raises(ValueError, match="`dino` is the method for images"):
        component("objective", "scene_distillation").build(HUNet(SMALL), data, 10)
