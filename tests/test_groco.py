"""GroCo: the sorting network against explicit matrices and exact sorting, the group loss, and photos told apart."""

from __future__ import annotations

import math

import pytest
import torch
from test_image_objectives import batch, build, held_out_scores, judged_run, rng, train
from torch.nn import functional as F

from pcssl.config import component
from pcssl.evaluation.images import features_of
from pcssl.evaluation.neighbors import NearestNeighborProbe
from pcssl.image.views import ViewConfig, draw, make_views
from pcssl.models.heads import head
from pcssl.objectives.contrast import NTXent
from pcssl.objectives.groco import GroupOrderingLoss, OddEvenSort
from pcssl.objectives.image import Embedder
from pcssl.training import load_checkpoint

SMALL = {"views": [{"count": 2, "size": 8}, {"count": 2, "size": 4}], "hidden": 16, "out": 8, "negatives": 4}


# ---------------------------------------------------------------- the sorting network


def sorted_by_matrices(x, steepness):
    """One row (n,): a matrix a layer, its exchanges with the Cauchy distribution's probabilities."""
    count = len(x)
    values, permutation = x.clone(), torch.eye(count, dtype=x.dtype)
    for layer in range(count):
        matrix = torch.eye(count, dtype=x.dtype)
        for i in range(layer % 2, count - 1, 2):
            stay = math.atan(steepness * float(values[i + 1] - values[i])) / math.pi + 0.5
            matrix[i, i] = matrix[i + 1, i + 1] = stay
            matrix[i, i + 1] = matrix[i + 1, i] = 1 - stay
        values, permutation = matrix @ values, matrix @ permutation
    return values, permutation


@pytest.mark.parametrize("count", [2, 5, 11])
@pytest.mark.parametrize("steepness", [1.0, 20.0])
def test_sorting_is_that_of_explicit_matrices(count, steepness):
    x = torch.randn(4, count, generator=rng(), dtype=torch.float64)
    values, permutation = OddEvenSort(steepness)(x)
    for row in range(4):
        expected = sorted_by_matrices(x[row], steepness)
        torch.testing.assert_close(values[row], expected[0], atol=1e-14, rtol=0)
        torch.testing.assert_close(permutation[row], expected[1], atol=1e-14, rtol=0)
    ones = torch.ones(4, count, dtype=torch.float64)
    torch.testing.assert_close(permutation.sum(1), ones)
    torch.testing.assert_close(permutation.sum(2), ones)
    torch.testing.assert_close((permutation @ x[:, :, None])[:, :, 0], values)
    torch.testing.assert_close(values.sum(1), x.sum(1))


def test_sorting_is_diffsorts():
    diffsort = pytest.importorskip("diffsort")
    x = torch.randn(6, 11, generator=rng(), dtype=torch.float64)
    net = diffsort.DiffSortNet("odd_even", 11, distribution="cauchy", steepness=1.0)
    net.sorting_network = [[m.double() for m in layer] for layer in net.sorting_network]
    values, permutation = net(x)
    mine = OddEvenSort(1.0)(x)
    torch.testing.assert_close(mine[0], values, atol=1e-12, rtol=0)
    torch.testing.assert_close(mine[1], permutation.transpose(1, 2), atol=1e-12, rtol=0)


def test_steep_sorting_is_sorting():
    x = torch.randn(5, 11, generator=rng(), dtype=torch.float64)
    values, permutation = OddEvenSort(1e9)(x)
    torch.testing.assert_close(values, x.sort(1).values, atol=1e-6, rtol=0)
    torch.testing.assert_close(permutation, F.one_hot(x.argsort(1), 11).double(), atol=1e-6, rtol=0)


def test_sorting_has_the_right_gradients():
    x = torch.randn(2, 5, generator=rng(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(OddEvenSort(2.0), x)


# ---------------------------------------------------------------- the loss


def test_probabilities_to_land_above_sum_to_the_number_of_positives():
    x = torch.randn(7, 12, generator=rng(), dtype=torch.float64)
    above = OddEvenSort(1.0)(x)[1][:, 9:].sum(1)
    torch.testing.assert_close(above.sum(1), torch.full((7,), 3.0, dtype=torch.float64))
    # The paper's two cross-entropies, of above and of below, are one.
    wanted = (torch.arange(12) >= 9).double().expand(7, -1)
    both = (F.binary_cross_entropy(above, wanted) + F.binary_cross_entropy(1 - above, 1 - wanted)) / 2
    torch.testing.assert_close(both, F.binary_cross_entropy(above, wanted))


@pytest.mark.parametrize("stop_grad", [False, True])
def test_group_loss_is_the_slow_loop(stop_grad):
    views = [torch.randn(6, 5, generator=rng(v), dtype=torch.float64) for v in range(4)]
    loss, expected = GroupOrderingLoss(3, 2.0, stop_grad), []
    for v, view in enumerate(views):
        for i in range(6):
            cosine = lambda other: float(F.cosine_similarity(view[i], other, dim=0))  # noqa: B023, E731
            positive = sorted(cosine(views[p][i]) for p in range(2) if p != v)
            negative = sorted(cosine(view[j]) for j in range(6) if j != i)[-3:]
            scores = torch.tensor(negative + positive, dtype=torch.float64)
            above = sorted_by_matrices(scores, 2.0)[1][3:].sum(0)
            wanted = torch.tensor([0.0] * 3 + [1.0] * len(positive), dtype=torch.float64)
            expected.append((v, F.binary_cross_entropy(above, wanted)))
    expected = torch.stack([torch.stack([e for v, e in expected if v == view]).mean() for view in range(4)]).mean()
    torch.testing.assert_close(loss(views, 2), expected)


def test_order_within_a_group_does_not_matter():
    positive, negative = torch.randn(5, 3, generator=rng()), torch.randn(5, 6, generator=rng(1))
    loss = GroupOrderingLoss()
    expected = loss.ordering(positive, negative)
    torch.testing.assert_close(loss.ordering(positive[:, [2, 0, 1]], negative[:, torch.randperm(6, generator=rng(2))]), expected)


def test_loss_falls_with_the_positives_similarity_to_its_floor():
    negative = torch.linspace(-0.5, 0.5, 10, dtype=torch.float64)[None]
    loss = GroupOrderingLoss()
    values = [float(loss.ordering(torch.tensor([[s]], dtype=torch.float64), negative)) for s in torch.linspace(-1, 1, 21).tolist()]
    assert all(b < a for a, b in zip(values, values[1:]))
    best = float(loss.ordering(torch.ones(1, 1).double(), -torch.ones(1, 10).double()))
    assert best == pytest.approx(0.147, abs=1e-3) and best < values[-1]  # cosines end at 1: not 0 at steepness 1


@pytest.mark.parametrize("steepness", [1.0, 5.0])
def test_no_positive_is_pushed_away(steepness):
    positive = (2 * torch.rand(2000, 1, generator=rng(), dtype=torch.float64) - 1).requires_grad_()
    negative = 2 * torch.rand(2000, 10, generator=rng(1), dtype=torch.float64) - 1
    GroupOrderingLoss(10, steepness).ordering(positive, negative).backward()
    assert float(positive.grad.max()) <= 0


def test_steepness_weighs_the_hardest_negative():
    negative = (2 * torch.rand(2000, 10, generator=rng(1), dtype=torch.float64) - 1).requires_grad_()
    positive = 2 * torch.rand(2000, 1, generator=rng(), dtype=torch.float64) - 1
    shares = []
    for steepness in (1.0, 5.0, 20.0):
        (grad,) = torch.autograd.grad(GroupOrderingLoss(10, steepness).ordering(positive, negative), negative)
        hardest = grad.abs().gather(1, negative.argmax(1, keepdim=True))[:, 0]
        shares.append(float((hardest / grad.abs().sum(1)).mean()))
    assert shares[0] < shares[1] < shares[2] and shares[0] < 0.25 < 0.5 < shares[2]


def test_gradient_reaches_the_anchor_alone():
    """With two views the gradient of each one is that of its own term, with all it is compared with held still."""
    views = [torch.randn(6, 5, generator=rng(i), dtype=torch.float64, requires_grad=True) for i in (0, 1)]
    both = torch.autograd.grad(GroupOrderingLoss(3)(views), views)
    free = torch.autograd.grad(GroupOrderingLoss(3, stop_grad=False)(views), views)
    fixed = [F.normalize(z.detach(), dim=1) for z in views]
    for i, view in enumerate(views):
        anchor = F.normalize(view, dim=1)
        positive = (anchor * fixed[1 - i]).sum(1, keepdim=True)
        negative = torch.stack([torch.cat([row[:j], row[j + 1 :]]) for j, row in enumerate(anchor @ fixed[i].T)]).topk(3).values
        (own,) = torch.autograd.grad(GroupOrderingLoss(3).ordering(positive, negative) / 2, view)
        torch.testing.assert_close(both[i], own)
        assert not torch.allclose(free[i], own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_loss_stays_finite_in_low_precision(dtype):
    views = [(100 * torch.randn(12, 6, generator=rng(i))).to(dtype).requires_grad_() for i in (0, 1)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = GroupOrderingLoss(4, 1e6)([*views, views[0]])
    loss.backward()
    assert loss.dtype == torch.float32 and all(torch.isfinite(v.grad).all() for v in views)


def test_groco_says_what_it_cannot_use():
    with pytest.raises(ValueError, match="10 negatives need a batch of 11"):
        GroupOrderingLoss()([torch.randn(10, 4), torch.randn(10, 4)])
    with pytest.raises(ValueError, match="two or more large ones"):
        GroupOrderingLoss(2)([torch.randn(10, 4), torch.randn(10, 4)], large=1)
    with pytest.raises(ValueError, match="two or more of the largest size"):
        build("groco", **{**SMALL, "views": [{"size": 8}, {"count": 3, "size": 4}]})
    with pytest.raises(ValueError, match="data.batch_size=31 or more"):
        build("groco", **{**SMALL, "negatives": 30})


def test_every_parameter_of_groco_learns():
    groco = build("groco", **SMALL)
    groco.watched = True
    values = groco(batch(groco), 0)
    values["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in groco.parameters())
    assert {"std/student", "rank/student"} <= values.keys() and groco.backbone() is groco.network.backbone


def test_nt_xent_is_the_slow_loop():
    a, b = (torch.randn(5, 4, generator=rng(i)) for i in (0, 1))
    z, losses = torch.cat([a, b]), []
    for i in range(10):
        similar = torch.stack([F.cosine_similarity(z[i], z[j], dim=0) / 0.5 for j in range(10)]).exp()
        losses.append(-(similar[(i + 5) % 10] / (similar.sum() - similar[i])).log())
    torch.testing.assert_close(NTXent(0.5)(a, b), torch.stack(losses).mean())


def test_the_shipped_config_trains(tmp_path):
    pytest.importorskip("skimage")
    short = ["data.dataset.train=2", "data.dataset.val=1", "data.batch_size=20", "optimizer.epochs=1"]
    assert load_checkpoint(train("groco", tmp_path, *short))["step"] == 2


# ---------------------------------------------------------------- photos


def nearest(backbone, data, channels):
    """1-NN accuracy on the photos' other parts."""
    from pcssl.evaluation.images import embed

    (x, y), (query, known) = (features_of(lambda v: embed(backbone, v), data.images(s), 24, channels) for s in ("train", "val"))
    return float((NearestNeighborProbe.fit(x, y, 20)(query)[0] == known).float().mean())


def contrast(loss, seed, split, channels=1, epochs=40):
    """A small ResNet on patches of 20 photos, grey because colours tell photos apart without training: 1-NN before and
    after training with a loss on two views."""
    data = component("dataset", "patches", train=55, val=25, seed=split).build()
    images = [p.values(channels) for p in data.images("train")]
    torch.manual_seed(seed)
    net = component("model", "resnet", in_channels=channels, widths=[16, 32, 64], blocks=[1, 1, 1], stem="small").build()
    network, g = Embedder(net, head("mocov3", 64, 64, 64)), rng(seed)
    before = nearest(net, data, channels)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    kinds = [ViewConfig(count=2, size=16, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2)]
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=g)[:1024].view(4, 256):
            views, _ = make_views([images[i] for i in rows], torch.stack([draw(kinds, g) for _ in rows]), kinds)
            optimizer.zero_grad()
            loss(*network(*views)[1].chunk(2)).backward()
            optimizer.step()
    return before, nearest(net, data, channels)


@pytest.mark.slow
def test_groco_tells_photos_apart_as_well_as_nt_xent(over_seeds):
    pytest.importorskip("skimage")
    group = GroupOrderingLoss()

    def measure(seed):
        before, contrasted = contrast(NTXent(0.5), seed, seed + 1)
        return {"random weights": before, "nt-xent": contrasted, "groco": contrast(lambda *views: group(views), seed, seed + 1)[1]}

    found = over_seeds(measure)
    assert (found["groco"] - found["nt-xent"]).mean() >= -0.01
    assert (found["groco"] - found["random weights"]).mean() >= 0.1


@pytest.mark.slow
def test_grocos_run_beats_random_weights(over_seeds, tmp_path):
    pytest.importorskip("skimage")

    def measure(seed):
        found = held_out_scores(judged_run("groco", tmp_path, seed), size=24)
        return {source: found[source]["1-nn"] for source in ("trained", "random weights")}

    found = over_seeds(measure)
    assert (found["trained"] - found["random weights"]).mean() >= 0.05  # aim 0.1; colours tell much without training
