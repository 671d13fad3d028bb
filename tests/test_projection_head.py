"""Projection heads: the linear case in closed form, the fixed head, probes of layers, and digits that views lose."""

from __future__ import annotations

import json
import math

import pytest
import torch
from image_checks import SHORT, restored, resumes_to_the_same_weights
from test_image_objectives import batch, build, judged_run, learnt, rng, train

from pcssl.cli import main
from pcssl.config import component
from pcssl.evaluation.images import features_of
from pcssl.evaluation.layers import head_layers, principal, probe_layers, weight_inequality
from pcssl.evaluation.ridge import RidgeProbe
from pcssl.image.views import ViewConfig, draw, make_views
from pcssl.models.heads import Prototypes, head
from pcssl.objectives.contrast import NTXent
from pcssl.objectives.image import Embedder
from pcssl.objectives.projection_head import (
    FixedReweightHead,
    SpectralLoss,
    feature_weights,
    projection,
    spectral_solution,
)
from pcssl.registry import create

SMALL = {"views": [{"count": 2, "size": 8}], "hidden": 32, "out": 16}


def moments(seed=0, count=5):
    """Orthogonal features (columns) of strengths mu, that views share to the part a, in noise: E[x x^T], E[x x+^T]."""
    features = torch.linalg.qr(torch.randn(count, count, generator=rng(seed), dtype=torch.float64))[0]
    mu = torch.linspace(0.8, 1.2, count, dtype=torch.float64)[torch.randperm(count, generator=rng(seed + 1))]
    a = torch.linspace(0.4, 1.0, count, dtype=torch.float64)
    noise = 0.3
    moment = features * (mu**2 + noise**2) @ features.T
    return features, moment, features * (a * mu**2) @ features.T, a.sqrt() * mu / (mu**2 + noise**2), mu, a


def spectral(weight, moment, positive):
    return -2 * torch.trace(weight @ positive @ weight.T) + (weight @ moment @ weight.T).square().sum()


# ---------------------------------------------------------------- closed form


def test_spectral_loss_is_that_of_the_moments_of_the_batch():
    a, b = (torch.randn(9, 6, generator=rng(i), dtype=torch.float64) for i in (0, 1))
    weight = torch.randn(4, 6, generator=rng(2), dtype=torch.float64)
    x = torch.cat([a, b])
    positive = (a.T @ b + b.T @ a) / 18
    torch.testing.assert_close(SpectralLoss()(a @ weight.T, b @ weight.T), spectral(weight, x.T @ x / 18, positive))
    z, pairs = x @ weight.T, 0.0
    for i in range(18):
        for j in range(18):
            pairs += float(z[i] @ z[j]) ** 2 / 18**2
    expected = -2 * float((z[:9] * z[9:]).sum(1).mean()) + pairs
    assert float(SpectralLoss()(z[:9], z[9:])) == pytest.approx(expected, rel=1e-12)


def test_the_solution_is_a_minimum():
    _, moment, positive, *_ = moments()
    weight = spectral_solution(moment, positive).requires_grad_()
    (slope,) = torch.autograd.grad(spectral(weight, moment, positive), weight)
    weight = weight.detach()
    best = spectral(weight, moment, positive)
    assert float(slope.abs().max()) < 1e-12
    inverse = torch.linalg.inv(moment)
    torch.testing.assert_close(weight.T @ weight, inverse @ positive @ inverse)
    for i in range(200):
        moved = weight + 10 ** (-(i % 4)) * torch.randn(5, 5, generator=rng(i), dtype=torch.float64)
        assert float(spectral(moved, moment, positive)) > float(best)


def test_features_weigh_as_the_formula_says():
    features, moment, positive, weights, *_ = moments()
    torch.testing.assert_close(feature_weights(spectral_solution(moment, positive), features), weights)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_narrow_embedding_holds_the_strongest_features_and_nothing_of_the_others(rank):
    features, moment, positive, weights, mu, a = moments()
    order = (a * mu**2 / (mu**2 + 0.09)).argsort(descending=True)
    found = feature_weights(spectral_solution(moment, positive, rank), features)
    torch.testing.assert_close(found[order[:rank]], weights[order[:rank]])
    assert float(found[order[rank:]].max()) < 1e-8
    with pytest.raises(ValueError, match="positive definite"):
        spectral_solution(torch.zeros(2, 2), torch.eye(2))


@pytest.mark.parametrize("depth", [2, 3])
def test_gradient_descent_leaves_each_layer_its_root_of_the_weights(depth):
    """From a balanced start, layers 1..k of L hold w ** (k / L); the higher, the more unequal."""
    features, moment, positive, weights, *_ = moments()
    g = rng(7)
    layers = [0.3 * torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64))[0] for _ in range(depth)]

    def product(some):
        out = torch.eye(5, dtype=torch.float64)
        for layer in some:
            out = layer @ out
        return out

    for _ in range(2000):
        whole = product(layers)
        slope = -4 * whole @ positive + 4 * whole @ moment @ whole.T @ whole @ moment
        steps = [product(layers[k + 1 :]).T @ slope @ product(layers[:k]).T for k in range(depth)]
        layers = [layer - 0.05 * step for layer, step in zip(layers, steps)]
    best = spectral(spectral_solution(moment, positive), moment, positive)
    assert float(spectral(product(layers), moment, positive) - best) < 1e-10
    for below, above in zip(layers, layers[1:]):  # a balanced start stays balanced
        torch.testing.assert_close(below @ below.T, above.T @ above, atol=1e-8, rtol=0)
    # Layers 1..k to the power they have in a product of equals: w ** (k / L).
    held = [feature_weights(product(layers[:k]), features) for k in range(1, depth + 1)]
    for k, found in enumerate(held, 1):
        torch.testing.assert_close(found, weights ** (k / depth), atol=1e-8, rtol=0)
    ratios = [float(found.max() / found.min()) for found in held]
    assert ratios == sorted(ratios) and weight_inequality(held[0]) < weight_inequality(held[-1])


# ---------------------------------------------------------------- the fixed head


def test_the_fixed_head_is_a_product_without_parameters():
    fixed, x = FixedReweightHead(6, 1.5), torch.randn(4, 6, generator=rng())
    torch.testing.assert_close(fixed(x), x * 1.5 ** -torch.arange(6.0))
    assert not list(fixed.parameters()) and list(fixed.state_dict()) == ["weight"]
    assert torch.equal(FixedReweightHead(6, 1.0)(x), x)
    assert fixed(x.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="at least 1"):
        FixedReweightHead(6, 0.9)


def test_the_fixed_head_warns_of_units_that_learn_nothing(recwarn):
    FixedReweightHead(64, 1.05)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"leaves 1764 of 2048 units .* try 1.0034"):
        FixedReweightHead(2048, 1.05)


def test_trained_features_follow_the_fixed_heads_order():
    """A linear layer below a fixed head, on features of equal strength: what gets a small weight is made large."""
    torch.manual_seed(0)
    layer, fixed, g = torch.nn.Linear(6, 6, bias=False), FixedReweightHead(6, 1.6), rng()
    torch.nn.init.orthogonal_(layer.weight, 0.3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for _ in range(300):
        x = torch.randn(64, 6, generator=g)
        a, b = (fixed(layer(x + 0.3 * torch.randn(64, 6, generator=g))) for _ in range(2))
        optimizer.zero_grad()
        SpectralLoss()(a, b).backward()
        optimizer.step()
    rows = layer.weight.detach().norm(dim=1)
    product = rows * fixed.weight
    torch.testing.assert_close(product / product.mean(), torch.ones(6), rtol=0.15, atol=0)


# ---------------------------------------------------------------- probes of layers


def test_inequality_of_weights():
    assert weight_inequality(torch.full((8,), 3.0)) == pytest.approx(0, abs=1e-12)
    assert weight_inequality(torch.tensor([0.0, 2.0, 0.0, 0.0])) == pytest.approx(math.log(4))


def test_principal_axes_keep_distances():
    x, q = torch.randn(40, 6, generator=rng()) * torch.arange(1, 7.0), torch.randn(9, 6, generator=rng(1))
    a, b, spread = principal(x, q, 6)
    torch.testing.assert_close(torch.cdist(a, b), torch.cdist(x, q), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a.std(0, correction=0), spread.float(), atol=1e-4, rtol=1e-4)
    assert bool((spread.diff() <= 0).all()) and principal(x, q, 2)[0].shape == (40, 2)


def test_probes_of_layers_see_weights_that_standardised_ones_cannot():
    """The classes lie in one direction, which one layer holds strongly and the other hardly."""
    g = rng()
    labels = torch.arange(80) % 4
    x = torch.randn(80, 30, generator=g)
    x[:, 0] = labels + 0.2 * torch.randn(80, generator=g)
    strong, weak = torch.ones(30), torch.ones(30)
    strong[0], weak[0] = 3.0, 0.05
    known = {"strong": x[:40] * strong, "weak": (x[:40] * weak)}
    query = {"strong": x[40:] * strong, "weak": x[40:] * weak}
    found = probe_layers(known, labels[:40], query, labels[40:], 4)
    for probe in ("ridge", "10-nn"):
        assert found["strong"][probe] >= found["weak"][probe] + 0.2
    assert found["strong"]["inequality"] > 0 and found["weak"]["rank"] > found["strong"]["rank"]
    same = [RidgeProbe.fit(known[name], labels[:40], 4)(query[name]) for name in known]
    assert torch.equal(*same)
    with_wide = probe_layers(known | {"narrow": x[:40, :3]}, labels[:40], query | {"narrow": x[40:, :3]}, labels[40:], 4)
    assert with_wide["strong"]["ridge"] != found["strong"]["ridge"] or with_wide["strong"]["10-nn"] != found["strong"]["10-nn"]


def test_layers_of_a_head_are_what_enters_its_linear_layers_and_what_leaves_it():
    x = torch.randn(5, 8, generator=rng())
    mlp = torch.nn.Sequential(*head("dino_bn", 8, 16, 4)).eval()
    found = head_layers(mlp, x)
    assert list(found) == ["pre", "hidden 1", "hidden 2", "post"] and torch.equal(found["pre"], x)
    assert torch.equal(found["hidden 1"], mlp[:3](x)) and torch.equal(found["hidden 2"], mlp[:6](x)) and torch.equal(found["post"], mlp(x))
    on_prototypes = head_layers(torch.nn.Sequential(mlp, Prototypes(4, 100)), x)
    assert all(torch.equal(v, on_prototypes[k]) for k, v in found.items())
    assert list(head_layers(FixedReweightHead(8), x)) == list(head_layers(torch.nn.Linear(8, 4), x)) == ["pre", "post"]


def test_the_probe_command_scores_the_layers_of_a_checkpoints_head(tmp_path, capsys):
    out = ["--data", "configs/image/data/digits.yaml", "--out", str(tmp_path), "probe.layers=true", "probe.floors=false", "dataset.val=1600"]
    path = train("simclr", tmp_path / "simclr", *SHORT)
    assert main(["probe", "--checkpoint", str(path), *out]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["layers"]
    assert list(found) == ["pre", "hidden 1", "post"]
    assert all(0 < layer[name] <= 1 for layer in found.values() for name in ("ridge", "10-nn"))
    row = f"| post | {100 * found['post']['ridge']:.1f} |"
    assert row in capsys.readouterr().out and row in (tmp_path / "report.md").read_text()
    # Below the head stands what is called the model's features.
    network, digits = restored(path).network, create("dataset", "digits", val=1600)
    sets = [features_of(lambda v: network.embed(2 * v - 1).detach(), digits.images(split), 8, 1) for split in ("train", "val")]
    known, query = ({"pre": x, "post": network.head(x).detach()} for x, _ in sets)
    assert probe_layers(known, sets[0][1], query, sets[1][1], 10)["post"] == pytest.approx(found["post"])
    assert main(["probe", "--checkpoint", str(train("mae", tmp_path / "mae", *SHORT)), *out]) == 2
    assert "mae has no head on whole images" in capsys.readouterr().err


# ---------------------------------------------------------------- the objective


@pytest.mark.parametrize("loss", [NTXent(0.5), SpectralLoss()])
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_are_exact_on_bfloat16(loss, autocast):
    a, b = (torch.randn(12, 6, generator=rng(i)).bfloat16().requires_grad_() for i in (0, 1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = loss(a, b)
    found.backward()
    assert found.dtype == torch.float32 and a.grad.isfinite().all() and b.grad.isfinite().all()
    torch.testing.assert_close(found, loss(a.detach().float(), b.detach().float()), rtol=1e-6, atol=0)


def test_simclr_resumes_to_the_same_weights(tmp_path):
    resumes_to_the_same_weights("simclr", tmp_path)


@pytest.mark.parametrize("kind", ["none", "linear", "mlp", "fixed"])
@pytest.mark.parametrize("loss", ["nt_xent", "spectral"])
def test_every_head_trains(kind, loss):
    simclr = build("simclr", **SMALL, head=kind, loss=loss)
    simclr.watched = True
    values = simclr(batch(simclr), 0)
    values["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in simclr.parameters())
    assert {"std/pre", "std/post", "rank/pre", "rank/post"} <= values.keys()
    assert simclr.network.head(torch.zeros(2, 32)).shape == (2, 32 if kind in ("none", "fixed") else 16)


def test_simclr_needs_two_views():
    with pytest.raises(ValueError, match="needs two"):
        build("simclr", **{**SMALL, "views": [{"count": 3, "size": 8}]})


# ---------------------------------------------------------------- digits that the views lose


def study(kind, seed, split, kappa=1.2, epochs=25):
    """Layers of a network whose views show the digit or, half of the time, only the photo behind it."""
    from pcssl.image.bundled import PHOTOS, digits
    from pcssl.image.datasets import blended, photo_pieces

    pixels, labels = digits()
    strokes = torch.nn.functional.interpolate(pixels.float() / 255, 16, mode="bilinear", antialias=True)
    ground = photo_pieces(PHOTOS, len(strokes), 16, [split])
    whole = blended(strokes, ground, 0.8, dark=False)
    order = torch.randperm(len(labels), generator=rng(split))
    train_rows, val_rows = order[:1200], order[1200:]
    torch.manual_seed(seed)
    net = component("model", "resnet", in_channels=1, widths=[16, 32, 64], blocks=[1, 1, 1], stem="small").build()
    network, loss, g = Embedder(net, projection(kind, 64, 64, 64, kappa)), NTXent(0.5), rng(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    kinds = [ViewConfig(count=1, size=16, scale=(0.5, 1.0), flip=0, jitter=(0.4, 0.4, 0.0, 0.0))]
    for _ in range(epochs):
        for rows in train_rows[torch.randperm(1200, generator=g)].view(6, 200):
            pair = []
            for _ in range(2):
                lost = torch.rand(200, 1, 1, 1, generator=g) < 0.5
                images = torch.where(lost, ground[rows], whole[rows])
                pair += make_views(list(images), torch.stack([draw(kinds, g) for _ in rows]), kinds)[0]
            optimizer.zero_grad()
            loss(*network(*pair)[1].chunk(2)).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        sets = [network(2 * whole[rows] - 1) for rows in (train_rows, val_rows)]
    known, query = (dict(zip(("pre", "post"), x)) for x in sets)
    return probe_layers(known, labels[train_rows], query, labels[val_rows], 10)


@pytest.mark.slow
def test_what_views_lose_is_still_there_below_the_head(over_seeds):
    pytest.importorskip("skimage")

    def measure(seed):
        runs = {kind: study(kind, seed, seed + 1) for kind in ("none", "mlp", "fixed")}
        scores = {f"{kind}, {layer}": run[layer]["ridge"] for kind, run in runs.items() for layer in run}
        # Of the 64 singular values; `rank` is that of their squares, by which the MLP's layers are alike.
        ranks = {f"rank, {kind}, {layer}": 64 * math.exp(-run[layer]["inequality"]) for kind, run in runs.items() for layer in run}
        return scores | ranks

    found = over_seeds(measure)
    for kind in ("mlp", "fixed"):
        assert (found[f"rank, {kind}, pre"] > found[f"rank, {kind}, post"]).all()
    found = {name: value.mean() for name, value in found.items()}
    assert found["mlp, pre"] >= found["none, pre"] + 0.04
    assert found["mlp, pre"] >= found["mlp, post"] + 0.12  # aim 0.15
    assert found["fixed, pre"] >= found["none, pre"] + 0.04


@pytest.mark.slow
def test_simclrs_run_beats_random_weights(over_seeds, tmp_path):
    found = over_seeds(lambda seed: learnt(judged_run("simclr", tmp_path, seed)))
    assert found["gain"].mean() >= 0.2
