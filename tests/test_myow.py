"""MYOW: its losses, who gets gradients, which views are mined, and what mining is worth with few labels."""

from __future__ import annotations

import copy

import pytest
import torch
from image_checks import resumes_to_the_same_weights
from test_image_objectives import batch, build, judged_run, learnt, rng, train
from torch.nn import functional as F

from pcssl.errors import UserError
from pcssl.evaluation import load_image_model
from pcssl.evaluation.neighbors import NearestNeighborProbe
from pcssl.evaluation.ridge import RidgeProbe
from pcssl.image.bundled import digits
from pcssl.models.heads import MLPHead, head
from pcssl.objectives.myow import MYOWNetwork, PredictionLoss, ViewMiner, myow_weight

OPTIONS = {
    "views": [{"count": 2, "size": 8}, {"size": 8, "scale": [0.8, 1.0]}], "hidden": 32, "out": 16, "mined_hidden": 24, "mined_out": 8,
    "warmup": 0.2, "ramp_end": 0.5,
}  # fmt: skip

prediction_distance = PredictionLoss()


def network(layout="cascaded", k=1, **options):
    torch.manual_seed(0)
    encoder = MLPHead(6, (16,), 12, batch_norm=True)
    mined = head("byol", 8 if layout == "cascaded" else 12, 16, 4)
    heads = head("byol", 12, 16, 8), mined, head("byol", 8, 16, 8), head("byol", 4, 16, 4)
    return MYOWNetwork(encoder, *heads, layout, k, **options).train()


def test_distance_is_that_of_unit_vectors():
    a, b = (torch.randn(20, 7, generator=rng(i)) for i in range(2))
    expected = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean()
    torch.testing.assert_close(prediction_distance(a, b), expected)
    torch.testing.assert_close(prediction_distance(3 * a, b), expected)
    b.requires_grad_()
    assert not prediction_distance(a, b).requires_grad


def test_the_nearest_is_mined():
    y, pool = torch.randn(30, 8, generator=rng()), torch.randn(50, 8, generator=rng(1))
    away = torch.cdist(F.normalize(y, dim=1), F.normalize(pool, dim=1), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(ViewMiner()(y, pool), away.argmin(1))
    near = away.argsort(1)[:, :4]
    found = torch.stack([ViewMiner(4)(y, pool) for _ in range(60)], 1)
    assert (found[:, :, None] == near[:, None]).any(2).all() and all(len(row.unique()) == 4 for row in found)


def test_all_of_a_pool_are_as_likely():
    torch.manual_seed(0)
    found = ViewMiner(5)(torch.randn(1, 3).expand(20_000, -1), torch.randn(5, 3))
    share = torch.bincount(found, minlength=5) / 20_000
    assert float((share - 0.2).abs().max()) < 0.02


def test_the_excluded_are_never_mined():
    y = torch.randn(16, 8, generator=rng())
    same = torch.eye(16, dtype=torch.bool)
    assert torch.equal(ViewMiner()(y, y), torch.arange(16))
    for k in (1, 3, 16, 100):
        assert not any((ViewMiner(k)(y, y, same) == torch.arange(16)).any() for _ in range(20))
    one_left = ~same
    assert torch.equal(ViewMiner(7)(y, y, one_left), torch.arange(16))
    with pytest.raises(ValueError, match="nothing but excluded"):
        ViewMiner()(y, y, torch.ones(16, 16, dtype=torch.bool))


def test_without_weight_it_is_byol():
    """Loss and gradients against BYOL written out; the mined term draws no random number."""
    net, (a, b) = network(), (torch.randn(10, 6, generator=rng(i)) for i in range(2))
    online, target, q = net.online, copy.deepcopy(net.online), net.predictor
    loss = 0
    for x, other in ((a, b), (b, a)):
        p, z = F.normalize(q(online.projector(online.encoder(x))), dim=1), F.normalize(target.projector(target.encoder(other)), dim=1)
        loss = loss + (p - z.detach()).square().sum(1).mean() / 2
    mine = net.augmented_loss(a, b)
    torch.testing.assert_close(mine, loss)
    parameters = [p for m in (online.encoder, online.projector, q) for p in m.parameters()]
    for g, h in zip(torch.autograd.grad(mine, parameters), torch.autograd.grad(loss, parameters)):
        torch.testing.assert_close(g, h)
    before = torch.get_rng_state()
    method = build("myow", **OPTIONS)
    views = batch(method)
    torch.set_rng_state(before)
    assert "loss/mined" not in method(views, 0) and torch.equal(torch.get_rng_state(), before)


def test_one_sided_the_second_view_is_only_predicted():
    both, one, (a, b) = network(), network(symmetric=False), (torch.randn(10, 6, generator=rng(i)).requires_grad_() for i in range(2))
    target = copy.deepcopy(one.online)
    wanted = prediction_distance(one.predictor(one.online.projector(one.online.encoder(a))), target.projector(target.encoder(b)))
    loss = one.augmented_loss(a, b)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(both.augmented_loss(a, b), (loss + one.augmented_loss(b, a)) / 2)
    loss.backward()
    assert a.grad is not None and b.grad is None


@pytest.mark.parametrize("symmetric, passes", [(True, 2), (False, 1)])
def test_the_config_says_whether_both_ways(symmetric, passes):
    method, seen = build("myow", symmetric=symmetric, **OPTIONS), []
    method.network.online.encoder.register_forward_hook(lambda *_: seen.append(1))
    method(batch(method), 0)
    assert len(seen) == passes


def test_the_target_begins_as_a_copy_or_with_an_encoder_drawn_anew():
    online = network().online
    torch.manual_seed(7)
    fresh = MLPHead(6, (16,), 12, batch_norm=True)
    with torch.no_grad():
        for p in online.parameters():
            p.add_(1)  # as weights that were loaded: also those of norms are not what they begin with
    parts = online.encoder, online.projector, online.mined_projector, head("byol", 8, 16, 8), head("byol", 4, 16, 4)
    before = copy.deepcopy(online.state_dict())
    for target_init, encoder in (("copy", online.encoder), ("reset", fresh)):
        torch.manual_seed(7)
        net = MYOWNetwork(*parts, target_init=target_init)
        expected = before | {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
        assert all(torch.equal(v, expected[k]) for k, v in net.target.network.state_dict().items())
        assert all(torch.equal(v, before[k]) for k, v in net.online.state_dict().items())
        assert not any(p.requires_grad for p in net.target.parameters())
    with pytest.raises(ValueError, match="target_init: 'random' is none of copy, reset"):
        MYOWNetwork(*parts, target_init="random")


def test_a_run_may_begin_with_a_target_drawn_anew():
    copied, drawn = build("myow", **OPTIONS), build("myow", target_init="reset", **OPTIONS)
    assert torch.equal(copied.backbone().patch_embed.weight, drawn.backbone().patch_embed.weight)
    weights = [m.network.target.network.encoder.backbone.patch_embed.weight for m in (copied, drawn)]
    assert torch.equal(weights[0], copied.backbone().patch_embed.weight) and float((weights[0] - weights[1]).abs().min()) > 0


@pytest.mark.parametrize("layout", ["cascaded", "parallel"])
def test_the_mined_loss_teaches_the_online_branch_and_the_second_predictor(layout):
    net = network(layout)
    loss, rows = net.mined_loss(torch.randn(10, 6), torch.randn(20, 6))
    loss.backward()
    learns = {name for name, p in net.named_parameters() if p.grad is not None}
    assert rows.shape == (10,) and all(p.grad is None for p in [*net.target.parameters(), *net.predictor.parameters()])
    expected = [net.online.encoder, net.online.mined_projector, net.mined_predictor] + ([net.online.projector] if layout == "cascaded" else [])
    assert learns == {name for name, p in net.named_parameters() if any(p is q for m in expected for q in m.parameters())}


def test_the_target_of_a_mined_view_is_its_stored_representation():
    net, x, pool = network(), torch.randn(10, 6), torch.randn(20, 6)
    target = copy.deepcopy(net.target.network)
    loss, rows = net.mined_loss(x, pool)
    y = net.online.encoder(x)
    assert torch.equal(rows, ViewMiner()(y, target.encoder(pool)))
    wanted = target.mined_projector(target.projector(target.encoder(pool)[rows]))
    found = net.mined_predictor(net.online.mined_projector(net.online.projector(y)))
    torch.testing.assert_close(loss, prediction_distance(found, wanted))


def test_the_target_follows_with_its_momentum():
    net = network()
    with torch.no_grad():
        for p in net.online.parameters():
            p.add_(torch.randn_like(p))
    before = [p.clone() for p in net.target.parameters()]
    net.target.update(net.online, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, net.target.parameters()))
    net.target.update(net.online, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(net.online.parameters(), net.target.parameters()))


def test_the_weight_of_the_mined_term():
    weights = [myow_weight(step, 20, 50, 0.8) for step in range(100)]
    assert set(weights[:20]) == {0.0} and set(weights[50:]) == {0.8} and weights == sorted(weights)
    assert weights[35] == pytest.approx(0.4)
    assert myow_weight(5, 5, 5, 0.8) == 0.8 and myow_weight(4, 5, 5, 0.8) == 0


@pytest.mark.parametrize("step", [0, 35, 99])
def test_the_terms_weights_sum_to_one(step):
    method = build("myow", **OPTIONS)
    out = method(batch(method), step)
    w = myow_weight(step, 20, 50, 1.0)
    expected = (out["loss/augmented"] + w * out.get("loss/mined", torch.zeros(()))) / (1 + w)
    torch.testing.assert_close(out["loss"].detach(), expected)
    assert ("mined_same_label" in out) == (step > 20)


def test_weights_that_sum_to_one_are_a_ratio():
    method = build("myow", weight=0.25 / 0.75, **OPTIONS)
    out = method(batch(method), 99)
    torch.testing.assert_close(out["loss"].detach(), 0.75 * out["loss/augmented"] + 0.25 * out["loss/mined"])


def test_autocast_rounds_neither_the_losses_nor_the_choice_of_neighbours():
    """In bfloat16 cosines near 1 are steps of 0.004."""
    y = 1 + 0.05 * torch.randn(50, 16, generator=rng())
    same = torch.eye(50, dtype=torch.bool)
    a, b = (torch.randn(20, 16, generator=rng(i)).bfloat16() for i in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        rows, distance = ViewMiner()(y, y, same), prediction_distance(a, b)
    assert torch.equal(rows, ViewMiner()(y, y, same)) and distance.dtype == torch.float32
    torch.testing.assert_close(distance, prediction_distance(a.float(), b.float()))
    method = build("myow", **OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(batch(method), 99)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


def test_an_image_is_not_mined_for_itself():
    """Two places of the batch hold the same image: neither is the other's neighbour."""
    method = build("myow", **OPTIONS)
    views = batch(method, 3)
    twice = type(views)([v[[0, 1, 2, 0]] for v in views.views], views.maps, views.index[[0, 1, 2, 0]], torch.tensor([0, 1, 1, 0]))
    for _ in range(5):
        assert float(method(twice, 99)["mined_same_label"]) <= 0.5
    alone = type(views)([v[[0, 0]] for v in views.views], views.maps, views.index[[0, 0]], views.label[[0, 0]])
    assert torch.isfinite(method(alone, 99)["loss"]) and "loss/mined" not in method(alone, 99)


@pytest.mark.parametrize("options, message", [({"views": [{"count": 2, "size": 8}]}, "needs three"), ({"ramp_end": 0.1}, "before warmup")])
def test_options_that_do_not_fit(options, message):
    with pytest.raises((ValueError, UserError), match=message):
        build("myow", **{**OPTIONS, **options})


def test_every_part_learns_and_the_target_does_not():
    method = build("myow", **OPTIONS)
    method.watched = True
    out = method(batch(method), 99)
    out["loss"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad) and "rank/target" in out
    assert any(m is method.backbone() for m in method.modules())


def few_label_accuracy(seed, weight, split):
    """1-NN and ridge on 50 labels (mean of ten draws) after 60 epochs on digits, and the share of mined pairs with one label."""
    pixels, labels = digits()
    order = torch.randperm(len(pixels), generator=rng(split))
    x, labels = pixels[order].flatten(1).float(), labels[order]
    x = (x - x[:1200].mean(0)) / x[:1200].std(0).clamp(min=1e-3)
    torch.manual_seed(seed)
    heads = (head("byol", 64, 128, 32), head("byol", 32, 64, 16), head("byol", 32, 128, 32), head("byol", 16, 64, 16))
    net = MYOWNetwork(MLPHead(64, (128, 128), 64), *heads, k=3).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)

    def view(rows):
        dropped = torch.rand(len(rows), 64) < 0.2 * torch.rand(len(rows), 1)
        return x[rows].masked_fill(dropped, 0) + 0.2 * torch.randn(len(rows), 64)

    same_label = []
    for epoch in range(60):
        w = myow_weight(epoch, 5, 15, weight)
        for rows in torch.randperm(1200).split(256):
            loss = net.augmented_loss(view(rows), view(rows))
            if w > 0:
                pool = torch.randperm(1200)[:512]
                mined, at = net.mined_loss(view(rows), view(pool), rows[:, None] == pool)
                same_label.append((labels[rows] == labels[pool[at]]).float().mean())
                loss = (loss + w * mined) / (1 + w)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            net.target.update(net.online, 0.98)
    with torch.no_grad():
        features = net.online.encoder.eval()(x)
    found = []
    for draw in range(10):
        known = torch.randperm(1200, generator=rng(draw))[:50]
        probes = [p.fit(features[known], labels[known], 10) for p in (NearestNeighborProbe, RidgeProbe)]
        guesses = probes[0](features[1200:])[0], probes[1](features[1200:])
        found.append([float((g == labels[1200:]).float().mean()) for g in guesses])
    return torch.tensor(found).mean(0), [float(torch.stack(part).mean()) for part in (same_label[:20], same_label[-20:]) if part]


@pytest.mark.slow
def test_mining_helps_with_few_labels(over_seeds):
    def measure(seed):
        byol, (myow, (first, last)) = few_label_accuracy(seed, 0.0, seed + 1)[0], few_label_accuracy(seed, 0.5, seed + 1)
        found = {f"{probe}, {run}": v for run, x in (("byol", byol), ("myow", myow)) for probe, v in zip(("1-nn", "ridge"), x.tolist())}
        return found | {"mined pairs of one label, first": first, "mined pairs of one label, last": last}

    found = over_seeds(measure)
    assert (found["mined pairs of one label, last"] > found["mined pairs of one label, first"]).all()
    assert (found["1-nn, myow"] - found["1-nn, byol"]).mean() > 0  # aim 0.008
    assert (found["ridge, myow"] - found["ridge, byol"]).mean() >= 0.008


@pytest.mark.slow
def test_the_shipped_config_beats_random_weights(over_seeds, tmp_path):
    found = over_seeds(lambda seed: learnt(judged_run("myow", tmp_path, seed)))
    assert found["gain"].mean() >= 0.1


def test_the_shipped_config_resumes_to_the_same_weights(tmp_path):
    resumes_to_the_same_weights("myow", tmp_path)


def test_the_shipped_config_trains(tmp_path):
    path = train("myow", tmp_path, "data.batch_size=16", "data.dataset.val=1733", "optimizer.epochs=2")
    assert load_image_model(path).embed(torch.rand(3, 1, 8, 8)).shape == (3, 64)
