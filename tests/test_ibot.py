"""iBOT: its masks, its loss on patches, what student and teacher see, and what is learnt on digits."""

from __future__ import annotations

import math

import pytest
import torch
from image_checks import every_parameter_learns, resumes_to_the_same_weights
from test_image_objectives import batch, build, judged_run, learnt, rng

from pcssl.config import component
from pcssl.errors import UserError
from pcssl.image.backbones.vit import patchify
from pcssl.objectives.distillation import PatchDistillationLoss

IBOT = {
    "views": [{"count": 2, "size": 8}, {"count": 2, "size": 4}], "head": "dino_bn", "hidden": 32, "bottleneck": 16,
    "prototypes": 24, "freeze_last": 0.0,
}  # fmt: skip


def test_patch_loss_is_the_cross_entropy_with_the_centred_teacher():
    student, teacher = (torch.randn(7, 10, generator=rng(i)) for i in (0, 1))
    loss = PatchDistillationLoss(10)
    loss.centre.mean += torch.randn(10, generator=rng(2))
    centre = loss.centre.mean.clone()
    p = ((teacher - centre) / 0.05).softmax(1)
    torch.testing.assert_close(loss(student, teacher, 0.05), -(p * (student / 0.1).log_softmax(1)).sum(1).mean())
    torch.testing.assert_close(loss.centre.mean, 0.9 * centre + 0.1 * teacher.mean(0))
    at_rest = loss.centre.mean.clone()
    loss.eval()(student, teacher, 0.05)
    assert torch.equal(loss.centre.mean, at_rest)
    flat = torch.zeros(7, 10)
    assert float(PatchDistillationLoss(10)(flat, flat, 0.04)) == pytest.approx(math.log(10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patch_loss_stays_finite_in_low_precision(dtype):
    a, b = ((100 * torch.randn(7, 10, generator=rng(i))).to(dtype).requires_grad_() for i in (0, 1))
    loss = PatchDistillationLoss(10)(a, b, 0.04)
    loss.backward()
    assert loss.isfinite() and a.grad.isfinite().all() and b.grad is None


def test_half_of_the_views_hide_the_same_number_of_patches():
    ibot, images, shares = build("ibot", **IBOT), torch.zeros(10, 1, 24, 24), []
    for _ in range(20):
        counts = ibot.mask(images).sum(1)
        assert (counts > 0).sum() == 5 and len(counts[counts > 0].unique()) == 1
        shares.append(int(counts.max()) / 144)
    assert 0.09 <= min(shares) < 0.2 < 0.4 < max(shares) <= 0.51
    tiny = build("ibot", **IBOT | {"masked": 0.0, "mask_ratio": [0.0, 0.0]})
    assert tiny.mask(images).sum() == 1
    with pytest.raises(UserError, match="mask_ratio: .* is no range"):
        build("ibot", **IBOT | {"mask_ratio": [0.5, 0.1]})


def test_the_student_does_not_know_the_hidden_patches_and_the_teacher_does():
    ibot = build("ibot", **IBOT | {"masked": 1.0}).eval()
    images = torch.rand(3, 1, 8, 8, generator=rng()).requires_grad_()
    hidden = ibot.mask(images)
    for show in (False, True):
        embedding, scores, patches = ibot.student([images], hidden, show)
        assert embedding.shape == (3, 32) and scores.shape == (3, 24) and patches.shape == (int(hidden.sum()), 24)
        (gradient,) = torch.autograd.grad(embedding.square().sum() + scores.sum() + patches.square().sum(), images)
        known = patchify(gradient, 2).abs().sum(2) > 0
        assert torch.equal(known, torch.ones_like(hidden) if show else ~hidden)


def test_patches_are_scored_as_the_head_scores_their_features():
    ibot = build("ibot", **IBOT).eval()
    views = [torch.rand(2, 1, s, s, generator=rng(i)) for i, s in enumerate((8, 8, 4))]
    hidden = torch.zeros(4, 16, dtype=torch.bool)
    hidden[1, 3], hidden[2, 7] = True, True
    embedding, scores, patches = ibot.student(views, hidden, True)
    features = ibot.student.backbone(torch.cat(views[:2]))[0].dense
    torch.testing.assert_close(patches, ibot.student.head(torch.stack([features[1, 3], features[2, 7]])), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(embedding, ibot.student.embed(*views), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scores, ibot.student.head(embedding), atol=1e-5, rtol=1e-4)


def test_ibot_is_the_sum_of_its_parts_and_trains_the_student_alone():
    ibot = build("ibot", **IBOT | {"patch_weight": 0.5})
    values = ibot(batch(ibot), 0)
    torch.testing.assert_close(values["loss"].detach(), values["loss/image"] + 0.5 * values["loss/patch"])
    values["loss"].backward()
    assert all(p.grad is None for p in ibot.teacher.parameters())
    assert float(ibot.loss.centre.mean.abs().sum()) > 0 and float(ibot.patch_loss.centre.mean.abs().sum()) > 0


def test_ibot_needs_a_vit():
    resnet = component("model", "resnet", in_channels=1, widths=[8], blocks=[1]).build()
    with pytest.raises(ValueError, match="needs the model vit"):
        component("objective", "ibot", **IBOT).build(resnet, build("ibot", **IBOT).data, 10)


def test_every_parameter_of_ibot_learns():
    every_parameter_learns(build("ibot", **IBOT))


def test_ibot_resumes_to_the_same_weights(tmp_path):
    resumes_to_the_same_weights("ibot", tmp_path)


@pytest.mark.slow
def test_ibot_beats_random_weights_on_digits(over_seeds, tmp_path):
    found = over_seeds(lambda seed: learnt(judged_run("ibot", tmp_path, seed)))
    assert found["gain"].mean() >= 0.2
