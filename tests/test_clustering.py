"""SwAV and MSN: their losses on tensors, what gets gradient, balance against collapse, and what is learnt on digits."""

from __future__ import annotations

import math

import pytest
import torch
from image_checks import every_parameter_learns, pixels, restored, resumes_to_the_same_weights
from test_image_objectives import batch, build, held_out_scores, judged_run, learnt, rng
from torch.nn import functional as F

from pcssl.config import component
from pcssl.evaluation import ImageProbeConfig, load_image_model, probe_images
from pcssl.objectives.clustering import MSNLoss, SwAVLoss, unevenness
from pcssl.objectives.targets import sinkhorn

SWAV = {"views": [{"count": 2, "size": 8}, {"count": 2, "size": 4}], "hidden": 32, "out": 16, "prototypes": 12, "freeze_prototypes": 0}
MSN = {"views": [{"count": 2, "size": 8}, {"count": 2, "size": 4}], "hidden": 32, "out": 16, "prototypes": 12}


def cosines(seed, rows=8, columns=5):
    return torch.rand(rows, columns, generator=rng(seed)) * 2 - 1


def test_swav_loss_is_the_double_loop_over_pairs_of_different_views():
    scores = [cosines(i) for i in range(4)]
    expected = []
    for i in range(2):
        code = sinkhorn(scores[i], 0.03, 10)
        others = [-(code * (scores[v] / 0.1).log_softmax(1)).sum(1).mean() for v in range(4) if v != i]
        expected.append(sum(others) / 3)
    torch.testing.assert_close(SwAVLoss(0.1, 0.03, 10)(scores), sum(expected) / 2)


def test_swav_loss_does_not_mind_the_order_of_the_large_views():
    a, b, c = cosines(0), cosines(1), cosines(2)
    torch.testing.assert_close(SwAVLoss()([a, b, c]), SwAVLoss()([b, a, c]))


def test_swav_loss_of_constant_scores_is_that_of_guessing():
    flat = [torch.full((8, 5), 0.3)] * 3
    assert float(SwAVLoss()(flat)) == pytest.approx(math.log(5), rel=1e-6)


def test_no_gradient_flows_through_the_codes():
    a, b = cosines(0).requires_grad_(), cosines(1).requires_grad_()
    SwAVLoss()([a, b], assigned=1).backward()
    assert a.grad is None or float(a.grad.abs().sum()) == 0
    assert float(b.grad.abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swav_loss_stays_finite_in_low_precision(dtype):
    scores = [(200 * cosines(i)).to(dtype).requires_grad_() for i in range(3)]
    loss = SwAVLoss()(scores)
    loss.backward()
    assert loss.isfinite() and all(s.grad.isfinite().all() for s in scores)


def test_swavs_prototypes_wait_and_are_of_unit_length():
    swav = build("swav", **SWAV | {"freeze_prototypes": 3})
    for step, moves in ((0, False), (2, False), (3, True)):
        swav.zero_grad()
        values = swav(batch(swav), step)
        values["loss"].backward()
        assert (swav.network.head[1].weight.grad is not None) == moves
        assert 1 <= int(values["prototypes_used"]) <= 12
    row = F.normalize(swav.network.head[1].weight[3], dim=0)
    assert float(swav.network.head[1](row[None])[0, 3].detach()) == pytest.approx(1, abs=1e-6)


def test_swav_wants_the_large_views_first():
    with pytest.raises(ValueError, match="views: swav needs two or more, the largest first"):
        build("swav", **SWAV | {"views": [{"size": 4}, {"size": 8}]})


def test_every_parameter_of_swav_learns():
    every_parameter_learns(build("swav", **SWAV))


def test_swav_resumes_to_the_same_weights(tmp_path):
    resumes_to_the_same_weights("swav", tmp_path)


# ---------------------------------------------------------------- MSN


def test_msn_loss_is_that_of_sharpened_probabilities():
    anchors, target = cosines(0, 12).double(), cosines(1, 4).double()
    p, t = (anchors / 0.1).softmax(1), (target / 0.1).softmax(1) ** 4
    t = t / t.sum(1, keepdim=True)
    loss, predicted, uneven = MSNLoss(iterations=0, weight=2.0)(anchors, target)
    expected = torch.stack([-(t * p[4 * v : 4 * v + 4].log()).sum(1).mean() for v in range(3)]).mean()
    assert float(predicted) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(loss, predicted + 2 * uneven)
    # With Sinkhorn: rows and columns of the sharpened probabilities scaled in turn.
    q = t.T
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / 5
        q = q / q.sum(0, keepdim=True) / 4
    expected = -((4 * q.T).repeat(3, 1) * p.log()).sum(1).mean()
    assert float(MSNLoss()(anchors, target)[1]) == pytest.approx(float(expected), rel=1e-5)


def test_unevenness_is_0_for_all_prototypes_alike_and_log_k_at_collapse():
    assert float(unevenness(torch.eye(6))) == pytest.approx(0, abs=1e-6)
    assert float(unevenness(torch.full((3, 6), 1 / 6))) == pytest.approx(0, abs=1e-6)
    assert float(unevenness(F.one_hot(torch.zeros(4, dtype=torch.int64), 6).float())) == pytest.approx(math.log(6))


def test_no_gradient_flows_through_msns_target_and_low_precision_is_finite():
    for dtype in (torch.float32, torch.bfloat16):
        anchors, target = (x.to(dtype).requires_grad_() for x in (200 * cosines(0), 200 * cosines(1)))
        loss = MSNLoss()(anchors, target)[0]
        loss.backward()
        assert target.grad is None and loss.isfinite() and anchors.grad.isfinite().all()


def test_msns_student_sees_what_is_kept_and_the_teacher_the_first_view():
    msn, seen = build("msn", **MSN | {"patch_drop": 0.4}), []
    msn.teacher.network.backbone.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape)))
    images = batch(msn, 6)
    keep = msn.keep(images.views[1])
    assert keep.shape == (6, 9) and all(len(row.unique()) == 9 for row in keep)
    assert not torch.equal(keep[0].sort().values, keep[1].sort().values)
    msn(images, 0)["loss"].backward()
    assert seen == [(6, 1, 8, 8)]
    assert all(p.grad is None for p in msn.teacher.parameters())
    assert msn.prototypes.weight.grad.abs().sum() > 0


def test_what_msn_cannot_use():
    with pytest.raises(ValueError, match="one for the teacher"):
        build("msn", **MSN | {"views": [{"size": 8}, {"size": 4}]})
    with pytest.raises(ValueError, match="needs the model vit"):
        resnet = component("model", "resnet", in_channels=1, widths=[8], blocks=[1]).build()
        component("objective", "msn", **MSN).build(resnet, build("msn", **MSN).data, 10)


def test_every_parameter_of_msn_learns():
    every_parameter_learns(build("msn", **MSN))


def test_msn_resumes_to_the_same_weights(tmp_path):
    resumes_to_the_same_weights("msn", tmp_path)


# ---------------------------------------------------------------- on digits

# As digits.yaml. Views of one brightness: from others, so small a ViT learns little but their brightness in so few steps.
ON_VIT = (
    "model={name: vit, in_channels: 1, patch: 2, grid: 4, dim: 64, depth: 2, heads: 4, cls_token: false}", "optimizer.epochs=15",
    "objective.views=[{count: 2, size: 8, scale: [0.5, 1.0], flip: 0}, {count: 2, size: 6, scale: [0.3, 0.6], flip: 0}]",
)  # fmt: skip


def corrupted(path) -> dict[str, float]:
    """5-NN accuracy of a checkpoint's features, and of the pixels, on held-out digits as they are and corrupted; of each digit."""
    config = ImageProbeConfig(neighbors=(5,), heads=("nn",), seeds=1, robustness=True)
    rates = probe_images(load_image_model(path), restored(path).data.dataset.build(), config)["robustness"]
    found = {f"{what}, {source}": rate["overall"] for source, all in rates.items() for what, rate in all.items()}
    return found | {f"digit {digit}": rate for digit, rate in rates["trained"]["clean"]["groups"].items()}


@pytest.mark.slow
def test_swav_with_100_labels_beats_random_weights_and_bears_shifts(over_seeds, tmp_path):
    def measure(seed):
        path = judged_run("swav", tmp_path, seed)
        few = held_out_scores(path, heads=("few",), few=(10,))
        return {source: few[source]["ridge/10 a class"] for source in ("trained", "random weights")} | corrupted(path)

    def gain(change):
        return (found[f"{change}, trained"] - found[f"{change}, pixels"]).mean()

    found = over_seeds(measure)
    assert (found["trained"] - found["random weights"]).mean() >= 0.1
    assert gain("shift") >= 0.1
    assert gain("rotate") >= -0.15  # aim 0.1: the views do not turn
    assert gain("fade") >= -0.1  # contrast, which they vary, it bears


@pytest.mark.slow
def test_swav_on_a_vit_beats_random_weights_on_digits(over_seeds, tmp_path):
    found = over_seeds(lambda seed: learnt(judged_run("swav", tmp_path, seed, *ON_VIT)))
    assert found["gain"].mean() >= 0.2


@pytest.mark.slow
def test_swav_without_balanced_codes_collapses(over_seeds, tmp_path):
    def measure(seed):
        swav = restored(judged_run("swav", tmp_path, seed, "objective.iterations=0"))
        with torch.no_grad():
            return {"prototypes": swav.network(pixels(swav, "val"))[1].argmax(1).unique().numel()}

    assert (over_seeds(measure)["prototypes"] <= 2).all()


@pytest.mark.slow
def test_msn_beats_random_weights_on_digits(over_seeds, tmp_path):
    found = over_seeds(lambda seed: learnt(judged_run("msn", tmp_path, seed)))
    assert found["gain"].mean() >= 0.12
