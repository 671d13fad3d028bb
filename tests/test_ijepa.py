"""I-JEPA: blocks that never meet, what sees what, the teacher's part, and features of digits that do not collapse."""

from __future__ import annotations

import pytest
import torch
from image_checks import every_parameter_learns, pixels, restored, resumes_to_the_same_weights
from test_image_objectives import batch, build, judged_run, learnt, rng
from torch.nn import functional as F

from pcssl.config import component
from pcssl.data.masks import random_boxes
from pcssl.image.backbones.vit import patchify
from pcssl.image.tokens import grid_places
from pcssl.objectives.ijepa import LatentLoss, draw_blocks, take

IJEPA = {"views": [{"size": 8}], "targets": 2, "width": 16, "depth": 1, "heads": 2}


def test_boxes_of_one_size():
    coord, image = grid_places((9, 9), 1, 20)
    torch.manual_seed(0)
    alike = random_boxes(coord.long(), image, (0.1, 0.5), 2.0, one_size=True).view(20, 9, 9)
    assert len(alike.flatten(1).sum(1).unique()) == 1 and len(alike.any(1).sum(1).unique()) == 1
    assert len(alike.float().flatten(1).argmax(1).unique()) > 3  # in different places
    other = random_boxes(coord.long(), image, (0.1, 0.5), 2.0).view(20, -1)
    assert len(other.sum(1).unique()) > 3


@pytest.mark.parametrize("grid", [(14, 14), (12, 16)])
def test_context_and_targets_never_meet_and_are_of_the_papers_sizes(grid):
    torch.manual_seed(0)
    for _ in range(10):
        keep, places = draw_blocks(grid, 6)
        n = grid[0] * grid[1]
        for row, blocks in zip(keep, places):
            assert not set(row.tolist()) & set(blocks.flatten().tolist())
            assert len(row.unique()) == len(row)
            for block in blocks:  # a full rectangle
                y, x = block // grid[1], block % grid[1]
                assert len(block.unique()) == len(block) == (y.max() - y.min() + 1) * (x.max() - x.min() + 1)
        assert 0.11 <= places.shape[2] / n <= 0.25 and keep.shape[1] >= 0.2 * n


def test_blocks_reach_the_borders_and_too_many_are_refused():
    torch.manual_seed(0)
    seen = torch.cat([draw_blocks((6, 6), 32)[1].flatten() for _ in range(4)])
    assert seen.unique().numel() == 36
    with pytest.raises(ValueError, match="leave no context; ask for fewer"):
        draw_blocks((3, 3), 2, target=(1.0, 1.0))
    with pytest.raises(ValueError, match="leave no context"):
        build("ijepa", **IJEPA | {"target": [1.0, 1.0], "aspect": 1.0})


def test_latent_loss_is_smooth_l1_to_normalised_features():
    target, places = 3 * torch.randn(2, 9, 8, generator=rng()), torch.randint(9, (2, 3, 4), generator=rng(1))
    right = take(F.layer_norm(target, (8,)), places)
    assert torch.equal(right[1, 2, 3], F.layer_norm(target[1, places[1, 2, 3]], (8,)))
    assert float(LatentLoss()(right, target, places)) == 0
    assert float(LatentLoss()(right + 0.5, target, places)) == pytest.approx(0.125, rel=1e-5)
    assert float(LatentLoss()(right + 3, target, places)) == pytest.approx(2.5, rel=1e-5)
    torch.testing.assert_close(LatentLoss()(right, 5 * target + 2, places), torch.zeros(()), atol=1e-6, rtol=0)


def test_latent_loss_trains_the_prediction_alone_and_is_finite_in_low_precision():
    places = torch.randint(9, (2, 3, 4), generator=rng(1))
    for dtype in (torch.float32, torch.bfloat16):
        target = (100 * torch.randn(2, 9, 8, generator=rng())).to(dtype).requires_grad_()
        prediction = torch.randn(2, 3, 4, 8, generator=rng(2)).to(dtype).requires_grad_()
        loss = LatentLoss()(prediction, target, places)
        loss.backward()
        assert loss.isfinite() and target.grad is None and prediction.grad.isfinite().all()


def test_the_prediction_knows_the_context_alone_and_every_block_for_itself():
    ijepa = build("ijepa", **IJEPA)
    images = torch.rand(3, 1, 8, 8, generator=rng()).requires_grad_()
    keep, places = draw_blocks((4, 4), 3, targets=2)
    out = ijepa.predict(images, keep, places)
    assert out.shape == (*places.shape, 32)
    out.square().sum().backward()
    seen = torch.zeros(3, 16, dtype=torch.bool).scatter(1, keep, True)
    assert torch.equal(patchify(images.grad, 2).abs().sum(2) > 0, seen)
    torch.testing.assert_close(ijepa.predict(images, keep, places[:, 1:]), out[:, 1:], atol=1e-5, rtol=1e-4)


def test_the_teacher_of_ijepa_gets_no_gradient_and_follows_along_a_line():
    ijepa = build("ijepa", **IJEPA)
    ijepa(batch(ijepa), 0)["loss"].backward()
    assert all(p.grad is None for p in ijepa.teacher.parameters())
    assert [ijepa.after_step(step)["momentum"] for step in (0, 50, 100)] == pytest.approx([0.996, 0.998, 1.0])


def test_models_that_ijepa_cannot_use():
    with pytest.raises(ValueError, match="model.cls_token=false"):
        build("ijepa", model={"cls_token": True}, **IJEPA)
    ijepa = build("ijepa", **IJEPA)
    resnet = component("model", "resnet", in_channels=1, widths=[8], blocks=[1]).build()
    with pytest.raises(ValueError, match="needs the model vit"):
        component("objective", "ijepa", **IJEPA).build(resnet, ijepa.data, 10)


def test_every_parameter_of_ijepa_learns():
    every_parameter_learns(build("ijepa", **IJEPA))


def test_ijepa_resumes_to_the_same_weights(tmp_path):
    resumes_to_the_same_weights("ijepa", tmp_path)


@pytest.mark.slow
def test_ijepa_keeps_the_digits_apart_and_does_not_collapse(over_seeds, tmp_path):
    def measure(seed):
        path = judged_run("ijepa", tmp_path, seed)
        ijepa = restored(path)
        with torch.no_grad():
            target = F.layer_norm(ijepa.teacher(pixels(ijepa, "val"))[0].dense, (64,))
        # How much the targets differ between images, place by place (at random weights 0.21), and at all.
        return learnt(path) | {"spread": float(target.std(0).mean()), "spread of all": float(target.flatten(0, 1).std(0).mean())}

    found = over_seeds(measure)
    assert found["10-nn"].mean() >= 0.57 and found["ridge"].mean() >= 0.93
    assert found["spread"].mean() > 0.1
