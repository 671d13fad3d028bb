"""Transitive invariance: the graph against matrix products, the loss by hand, and what the third kind of pair is worth."""

from __future__ import annotations

import pytest
import torch
from image_checks import resumes_to_the_same_weights
from test_image_objectives import batch, build, judged_run, learnt, rng, train
from torch.nn import functional as F

from pcssl.errors import UserError
from pcssl.evaluation import load_image_model
from pcssl.evaluation.images import few_rows
from pcssl.image.bundled import digits
from pcssl.objectives.transitive import (
    INTER,
    INTRA,
    ONE_MOVED,
    TRANSITIVE,
    TYPES,
    RankingLoss,
    TransitiveGraph,
    mutual_knn_edges,
    track_edges,
)  # fmt: skip

OPTIONS = {"views": [{"size": 8, "scale": [1, 1]}, {"count": 2, "size": 8}], "hidden": 32, "out": 16, "pairs": 32, "neighbors": 2}


def matrix(edges, nodes):
    out = torch.zeros(nodes, nodes)
    out[edges[:, 0], edges[:, 1]] = 1
    return (out + out.T > 0).double()


@pytest.mark.parametrize("seed", range(10))
def test_the_closure_is_a_matrix_product(seed):
    g, nodes = rng(seed), 5 + 4 * seed
    intra, inter = (torch.randint(nodes - 2, (n, 2), generator=g) for n in (nodes // 2, nodes // 3))  # two stay alone
    intra, inter = (e[e[:, 0] != e[:, 1]] for e in (intra, inter))
    graph = TransitiveGraph(intra, inter, nodes)
    a, e, one = matrix(intra, nodes), matrix(inter, nodes), torch.eye(nodes).double()
    reached = (one + a) @ e @ (one + a) + a
    expected = torch.nonzero((reached > 0).triu(1))
    assert torch.equal(graph.pairs, expected)
    assert (graph.pairs < nodes - 2).all()
    ways = [a, e, a @ e + e @ a, a @ e @ a]
    first = torch.stack([w[expected[:, 0], expected[:, 1]] > 0 for w in ways], 1).double().argmax(1)
    assert torch.equal(graph.types, first)


def test_two_tracks_and_one_neighbour():
    """A = 0, B = 1; A' = 2, 4; B' = 3, 5."""
    graph = TransitiveGraph(track_edges(2, 3), torch.tensor([[1, 0]]), 6)
    found = {t: {tuple(p) for p in graph.pairs[graph.types == t].tolist()} for t in range(4)}
    assert found == {
        INTRA: {(0, 2), (1, 3), (0, 4), (1, 5)}, INTER: {(0, 1)}, ONE_MOVED: {(0, 3), (0, 5), (1, 2), (1, 4)},
        TRANSITIVE: {(2, 3), (2, 5), (3, 4), (4, 5)},
    }  # fmt: skip


def test_samples_are_pairs_of_the_asked_types_and_every_type_as_often():
    graph = TransitiveGraph(track_edges(2, 3), torch.tensor([[1, 0]]), 6)
    types = {tuple(p): int(t) for p, t in zip(graph.pairs.tolist(), graph.types)}
    drawn = graph.sample(400, generator=rng())
    counts = torch.bincount(torch.tensor([types[tuple(sorted(p))] for p in drawn.tolist()]))
    assert counts.tolist() == [100] * 4 and 100 < int((drawn[:, 0] < drawn[:, 1]).sum()) < 300
    assert {types[tuple(sorted(p))] for p in graph.sample(50, [INTRA, TRANSITIVE]).tolist()} == {INTRA, TRANSITIVE}
    assert torch.equal(graph.sample(50, generator=rng(1)), graph.sample(50, generator=rng(1)))
    assert TransitiveGraph(track_edges(2, 1), torch.empty(0, 2, dtype=torch.int64), 2).sample(5).shape == (0, 2)


@pytest.mark.parametrize("one_component", [False, True])
def test_who_is_related_to_a_pair(one_component):
    """A path of matrix products leads there; where it leads everywhere, those paired with a member."""
    g = rng()
    intra, inter = (torch.randint(30, (n, 2), generator=g) for n in (10, 8))
    if one_component:
        inter = torch.stack([torch.arange(29), torch.arange(1, 30)], 1)
    graph = TransitiveGraph(intra, inter, 30)
    pairs = graph.sample(40, generator=g)
    positive = matrix(graph.pairs, 30)
    connected = torch.matrix_power(torch.eye(30).double() + positive, 30) > 0
    assert torch.equal(graph.component[:, None] == graph.component, connected) and bool(connected.all()) == one_component
    expected = connected[pairs[:, 0]] if not one_component else (positive[pairs[:, 0]] + positive[pairs[:, 1]] > 0)
    assert torch.equal(graph.related(pairs), expected[:, pairs.T.flatten()]) and 0 < int(graph.related(pairs).sum()) < 40 * 80


def test_mutual_neighbours():
    x, groups = torch.randn(40, 6, generator=rng()), torch.arange(40) // 4
    away = 1 - F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    for k in (1, 3, 50):
        for known in (None, groups):
            away_k = away.clone().fill_diagonal_(torch.inf)
            if known is not None:
                away_k[known[:, None] == known] = torch.inf
            near = [set(row[row_away < torch.inf].tolist()) for row, row_away in zip(*_nearest(away_k, k))]
            expected = [[i, j] for i in range(40) for j in range(i + 1, 40) if j in near[i] and i in near[j]]
            assert mutual_knn_edges(x, k, known).tolist() == expected


def _nearest(away, k):
    value, row = away.sort(1)
    return row[:, :k], value[:, :k]


def test_no_loss_where_every_negative_is_far():
    a = torch.eye(4)
    assert float(RankingLoss(0.5)(a, a, torch.arange(4))) == 0  # D+ = 0, D- = 1


def test_three_pairs_by_hand():
    """Angles in the plane; with as many negatives as candidates all violations count."""
    angle = torch.tensor([[0.0, 0.3], [0.5, 0.6], [2.5, 2.6]], dtype=torch.float64)
    a, b = (torch.stack([x.cos(), x.sin()], 1) for x in angle.T)
    total = 0.0
    for p in range(3):
        near = torch.cos(angle[p, 0] - angle[p, 1])
        for n in [x for q in range(3) if q != p for x in angle[q]]:
            total += sum(max(0.0, float(torch.cos(m - n) - near + 0.5)) for m in angle[p])
    loss = RankingLoss(0.5, negatives=6)
    assert float(loss(a, b, torch.arange(3), 1.0)) == pytest.approx(total / (2 * 6 * 3), rel=1e-5)
    assert float(loss(a, b, torch.arange(3), 0.0)) == pytest.approx(total / (2 * 6 * 3), rel=1e-5)
    assert float(loss(a, b, torch.zeros(3), 0.5)) == 0


@pytest.mark.parametrize("columns", [1, 2])
def test_negatives_never_share_an_id(columns, monkeypatch):
    """Every violation that is left to choose from is between pairs without a common id."""
    seen = []
    monkeypatch.setattr(RankingLoss, "choose", lambda self, hinge, ratio: seen.append(hinge > 0) or hinge > 0)
    a, b = (torch.randn(30, 4, generator=rng(i)) for i in range(2))
    ids = torch.randint(6, (30, columns), generator=rng(2))
    RankingLoss(3.0)(a, b, ids)  # a margin that all pairs violate
    shared = torch.tensor([[bool(set(p) & set(q)) for q in ids.tolist()] for p in ids.tolist()])
    assert torch.equal(seen[0], ~shared.repeat(1, 2)) and 0 < int(shared.sum()) < shared.numel()


def test_members_related_to_a_pair_count_as_if_they_were_not_there():
    a, b = (torch.randn(6, 4, generator=rng(i)) for i in range(2))
    loss, ids, related = RankingLoss(3.0, negatives=12), torch.arange(6), torch.rand(6, 12, generator=rng(2)) < 0.4
    single = [loss(a, b, ids, related=torch.ones(6, 12).bool().index_put_(tuple(at), torch.tensor(False))) for at in torch.nonzero(~related)]
    torch.testing.assert_close(loss(a, b, ids, related=related), sum(single))
    a.requires_grad_()
    nothing_left = loss(a, b, ids, related=torch.ones(6, 12).bool())
    nothing_left.backward()
    assert float(nothing_left.detach()) == 0 and (a.grad == 0).all()


def test_the_hardest_are_chosen_and_only_violators():
    hinge = torch.rand(20, 50, generator=rng()) * (torch.rand(20, 50, generator=rng(1)) < 0.5)
    hard = RankingLoss(negatives=4).choose(hinge, 1.0)
    assert torch.equal(hard, torch.zeros_like(hard).scatter_(1, hinge.topk(4).indices, True))
    half = RankingLoss(negatives=4).choose(hinge, 0.5)
    assert (half.sum(1) == 4).all() and ((half & hard).sum(1) >= 2).all() and not (half & (hinge == 0)).any()
    drawn = torch.stack([RankingLoss(negatives=4).choose(hinge, 0.0) for _ in range(200)]).any(0)
    assert torch.equal(drawn, hinge > 0)
    hinge[:, 3:] = 0
    for ratio in (0.0, 0.5, 1.0):
        assert torch.equal(RankingLoss(negatives=4).choose(hinge, ratio), hinge > 0)


def test_no_gradient_from_negatives_that_do_not_violate():
    angle = torch.tensor([0.0, 0.1, 0.05, 0.2, 3.0, 3.1], dtype=torch.float64, requires_grad=True)
    z = torch.stack([angle.cos(), angle.sin()], 1)
    loss = RankingLoss(0.5, 6)(z[::2], z[1::2], torch.arange(3))  # the third pair is opposite of the others
    (grad,) = torch.autograd.grad(loss, angle)
    assert (grad[:4] != 0).all() and (grad[4:] == 0).all()


def test_autocast_rounds_neither_the_loss_nor_the_neighbours():
    """In bfloat16 cosines near 1 are steps of 0.004: digits would have the wrong neighbours."""
    pixels = digits()[0][:200].flatten(1).float() / 255
    a, b = (torch.randn(16, 8, generator=rng(i)).bfloat16() for i in range(2))
    loss, low = RankingLoss(0.5, negatives=32), a.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        edges, found = mutual_knn_edges(pixels, 2), loss(low, b, torch.arange(16))
    found.backward()
    assert torch.equal(edges, mutual_knn_edges(pixels, 2)) and found.dtype == torch.float32
    torch.testing.assert_close(found.detach(), loss(a.float(), b.float(), torch.arange(16)))
    assert low.grad.isfinite().all() and (low.grad != 0).any()
    method = build("transitive", **OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        found = method(batch(method, 24), 99)["loss"]
    found.backward()
    assert found.dtype == torch.float32 and all(p.grad.isfinite().all() for p in method.network.parameters())


@pytest.mark.parametrize("step", [0, 99])  # random negatives, and half of them hard
def test_what_the_graph_connects_is_never_a_negative(step, monkeypatch):
    graphs, sampled, chosen = [], [], []
    sample, choose = TransitiveGraph.sample, RankingLoss.choose
    monkeypatch.setattr(TransitiveGraph, "sample", lambda self, *a: graphs.append(self) or sampled.append(sample(self, *a)) or sampled[-1])
    monkeypatch.setattr(RankingLoss, "choose", lambda *a: chosen.append(choose(*a)) or chosen[-1])
    method = build("transitive", **{**OPTIONS, "pairs": 200})
    method(batch(method, 24), step)
    connected = torch.matrix_power(torch.eye(72).double() + matrix(graphs[0].pairs, 72), 72) > 0
    at, negative = torch.nonzero(chosen[0]).T
    assert len(at) > 100 and not connected[sampled[0][at, 0], sampled[0].T.flatten()[negative]].any()


@pytest.mark.parametrize("edges", ["pixels", "start"])
def test_a_batch_learns_and_the_reference_stays(edges):
    method = build("transitive", edges=edges, **OPTIONS).train()
    method.watched = True
    images = batch(method, 24)
    before = method.reference(images.views[0])
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    out = method(images, 0)
    out["loss"].backward()
    assert all(p.grad is not None for p in method.network.parameters())
    optimizer.step()
    assert float(out["loss"].detach()) > 0 and {"inter_edges", "inter_same_label", "std/student", "rank/student"} <= set(out)
    torch.testing.assert_close(method.reference(images.views[0]), before)


def test_hard_negatives_come_after_the_first_part(monkeypatch):
    seen = []
    choose = RankingLoss.choose
    monkeypatch.setattr(RankingLoss, "choose", lambda self, hinge, ratio: seen.append(ratio) or choose(self, hinge, ratio))
    method = build("transitive", **OPTIONS)
    images = batch(method)
    for step in (0, 33, 34, 99):
        method(images, step)
    assert seen == [0.0, 0.0, 0.5, 0.5]


def test_a_batch_without_edges_gives_a_valid_step():
    method = build("transitive", **{**OPTIONS, "types": ["inter"]})
    out = method(batch(method, 1), 0)
    out["loss"].backward()
    assert float(out["loss"].detach()) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"views": [{"size": 8}]}, "a plain one"),
        ({"types": []}, "name one or more"),
        ({"neighbors": 6}, "neighbors: 6 in batches of 12 images .* at most 5"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises((ValueError, UserError), match=message):
        build("transitive", **{**OPTIONS, **options})


def turned(images, degrees):
    """(N, 1, H, W) turned in the plane about the middle."""
    t = torch.deg2rad(torch.tensor(float(degrees)))
    affine = torch.stack([t.cos(), -t.sin(), 0 * t, t.sin(), t.cos(), 0 * t]).view(1, 2, 3).expand(len(images), 2, 3)
    return F.grid_sample(images, F.affine_grid(affine, images.shape, False), align_corners=False)


def few_shot_accuracy(types, seed, split, steps=300):
    """1-NN with two upright digits a class and queries at 0, 50 and -50 degrees; a small network trained on pairs of these types."""
    pixels, labels = digits()
    order = torch.randperm(len(pixels), generator=rng(split))
    pixels, labels = pixels[order].float() / 255, labels[order]
    views = torch.cat([turned(pixels[:1000], d) for d in (0, -60, -30, 30, 60)])
    graph = TransitiveGraph(track_edges(1000, 5), mutual_knn_edges(pixels[:1000].flatten(1), 5), 5000)
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 64),
    )  # fmt: skip
    loss, optimizer = RankingLoss(), torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(steps if types else 0):
        pairs = graph.sample(128, types)
        z = network(views[pairs.T.flatten()])
        optimizer.zero_grad()
        loss(*z.chunk(2), pairs % 1000, 0.0 if step < steps // 3 else 0.5, graph.related(pairs)).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        upright, *moved = (F.normalize(network(turned(pixels[1000:], d)), dim=1) for d in (0, 50, -50))
    found = []
    for draw in range(5):
        known = few_rows(labels[1000:], 2, draw)
        rest = torch.ones(len(upright), dtype=torch.bool).index_fill(0, known, False)
        for query in (upright, *moved):
            found.append(labels[1000:][known][(query[rest] @ upright[known].T).argmax(1)] == labels[1000:][rest])
    return float(torch.cat(found).float().mean())


@pytest.mark.slow
def test_transitive_pairs_are_worth_more_than_both_kinds_of_edges(over_seeds):
    kinds = {"random weights": (), "intra": (INTRA,), "inter": (INTER,), "both": (INTRA, INTER), "transitive": TYPES}
    found = over_seeds(lambda seed: {name: few_shot_accuracy(types, seed, seed + 1) for name, types in kinds.items()})
    assert (found["transitive"] - found["both"]).mean() >= 0.02
    assert (found["transitive"] - found["intra"]).mean() >= 0.06


@pytest.mark.slow
def test_the_shipped_config_beats_random_weights(over_seeds, tmp_path):
    found = over_seeds(lambda seed: learnt(judged_run("transitive", tmp_path, seed)))
    assert found["gain"].mean() >= 0.3


def test_the_shipped_config_resumes_to_the_same_weights(tmp_path):
    resumes_to_the_same_weights("transitive", tmp_path)


def test_the_shipped_config_trains(tmp_path):
    path = train("transitive", tmp_path, "data.batch_size=16", "data.dataset.val=1733", "optimizer.epochs=2")
    assert load_image_model(path).embed(torch.rand(3, 1, 8, 8)).shape == (3, 64)
