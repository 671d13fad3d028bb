"""Features, probes and scores against references."""

from __future__ import annotations

import itertools
import math
import sys
import threading
import weakref
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_hunet import SMALL
from test_msm import room

from pcssl.clusters import KMeans, match_clusters
from pcssl.config import component
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.evaluation import (
    LinearProbe,
    NearestNeighborProbe,
    PointFeatures,
    PretrainedModel,
    ProbeConfig,
    confusion_matrix,
    load_model,
    point_inputs,
    probe,
    scores,
)
from pcssl.evaluation.cache import EVEN, BackboneFeatures, FeatureCache, Sample, data_keys, half, weights_key
from pcssl.evaluation.features import sample_points
from pcssl.evaluation.instances import InstanceProbe
from pcssl.evaluation.lists import FewLists
from pcssl.evaluation.lovasz import lovasz_softmax
from pcssl.evaluation.probe import FittedHead, PlannedHead, _together, few_labels
from pcssl.models import HUNet
from pcssl.sparse import available_engines, use_engine
from pcssl.sparse.engine import _engines
from pcssl.training import save_checkpoint


def test_scores_by_hand():
    label = torch.tensor([0, 0, 0, 1, 1, -1])
    prediction = torch.tensor([0, 0, 1, 1, 3, 0])
    found = scores(confusion_matrix(prediction, label, 4))
    assert found.iou[0] == pytest.approx(2 / 3) and found.iou[1] == pytest.approx(1 / 3)
    assert math.isnan(found.iou[2]) and found.iou[3] == 0  # 2 neither occurs nor is predicted, 3 is predicted
    assert found.miou == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert found.macc == pytest.approx((2 / 3 + 1 / 2) / 2) and found.oacc == pytest.approx(3 / 5)


def test_confusion_matrix_counts_rows_as_labels():
    matrix = confusion_matrix(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 0]), 2)
    assert matrix.tolist() == [[1, 2], [0, 0]]


@pytest.mark.parametrize("whiten", [False, True])
def test_nearest_neighbour_equals_brute_force_in_float64(whiten):
    rng = torch.Generator().manual_seed(0)
    mixed = torch.randn(12, 12, generator=rng)
    base, query = torch.randn(300, 12, generator=rng) @ mixed, torch.randn(200, 12, generator=rng) @ mixed
    labels = torch.randint(0, 5, (300,), generator=rng)
    one, many = NearestNeighborProbe.fit(base, labels, 5, whiten=whiten)(query, (1, 20))
    mean, std = base.double().mean(0), base.double().std(0, correction=0)
    b, q = base.double() - mean, query.double() - mean
    if whiten:
        values, axes = torch.linalg.eigh((b / std).T @ (b / std) / len(b))
        b, q = (x / std @ axes / (values + 0.1).sqrt() for x in (b, q))
    similarity = (q / q.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T
    assert torch.equal(one, labels[similarity.argmax(1)])
    for i in range(200):
        top = similarity[i].topk(20)
        votes = torch.zeros(5, dtype=torch.float64).index_add_(0, labels[top.indices], (top.values / 0.07).exp())
        assert int(many[i]) == int(votes.argmax())


def test_nearest_neighbours_do_not_change_with_the_scale_of_a_level():
    rng = torch.Generator().manual_seed(0)
    base, query = torch.randn(300, 12, generator=rng), torch.randn(200, 12, generator=rng)
    labels = torch.randint(0, 5, (300,), generator=rng)
    scale = torch.tensor([100.0] * 6 + [0.01] * 6)
    one, many = NearestNeighborProbe.fit(base, labels, 5, whiten=True)(query, (1, 20))
    again = NearestNeighborProbe.fit(base * scale, labels, 5, whiten=True)(query * scale, (1, 20))
    assert (one == again[0]).float().mean() > 0.99 and (many == again[1]).float().mean() > 0.98


def test_similarities_held_at_once_are_bounded(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    base, query, labels = torch.randn(300, 4, generator=rng), torch.randn(200, 4, generator=rng), torch.arange(300) % 5
    fitted, blocks = NearestNeighborProbe.fit(base, labels, 5), []
    whole = fitted(query, (1, 20))
    monkeypatch.setattr("pcssl.evaluation.neighbors.PAIRS", 10_000)
    spied = replace(fitted, prepare=lambda x: blocks.append(len(x)) or fitted.prepare(x))
    assert all(torch.equal(a, b) for a, b in zip(spied(query, (1, 20)), whole))
    assert sum(blocks) == 200 and max(blocks) * 300 <= 10_000


def test_nearest_neighbour_with_a_tiny_database():
    found = NearestNeighborProbe.fit(torch.eye(3), torch.tensor([2, 0, 1]), 3)(torch.eye(3), (1, 20))
    assert found[0].tolist() == [2, 0, 1] and len(found[1]) == 3


def test_linear_probe_solves_a_linear_problem():
    rng = torch.Generator().manual_seed(0)
    direction = torch.randn(8, 3, generator=rng)
    x = torch.randn(3000, 8, generator=rng) * torch.logspace(-2, 2, 8) + 5  # needs standardising
    y = (((x - 5) / torch.logspace(-2, 2, 8)) @ direction).argmax(1)
    fitted = LinearProbe.fit(x, y, 3, epochs=60, batch_size=256)
    assert float((fitted(x) == y).float().mean()) > 0.97
    assert torch.equal(LinearProbe.fit(x, y, 3, epochs=2)(x), LinearProbe.fit(x, y, 3, epochs=2)(x))


def test_linear_probe_is_as_good_as_scikit_learns_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = torch.Generator().manual_seed(1)
    centres = torch.randn(4, 6, generator=rng)
    y = torch.randint(0, 4, (4000,), generator=rng)
    x = centres[y] + torch.randn(4000, 6, generator=rng)
    mine = LinearProbe.fit(x[:2000], y[:2000], 4, epochs=80, batch_size=256, weight_decay=0.0)
    theirs = linear_model.LogisticRegression(C=1e6, max_iter=1000).fit(x[:2000].numpy(), y[:2000].numpy())
    for rows in (slice(2000), slice(2000, None)):
        known = y[rows].numpy()
        accuracy = (mine(x[rows]).numpy() == known).mean()
        assert 0.5 < accuracy < 0.95 and accuracy == pytest.approx(theirs.score(x[rows].numpy(), known), abs=0.01)


def one_minus_iou(predicted, label, weight, classes):
    """Mean over the classes that occur."""
    found = []
    for k in range(classes):
        mine, wanted = predicted == k, label == k
        if wanted.any():
            found.append(1 - float(weight[mine & wanted].sum() / weight[mine | wanted].sum()))
    return sum(found) / len(found)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_lovasz_loss_of_hard_predictions_is_one_minus_the_iou(weighted):
    g = torch.Generator().manual_seed(0)
    label, predicted = (torch.randint(0, 4, (60,), generator=g) for _ in range(2))
    label[label == 3] = 2  # class 3 is predicted, but does not occur
    weight = torch.rand(60, generator=g).double() + 0.1 if weighted else torch.ones(60).double()
    hard = torch.nn.functional.one_hot(predicted, 4).double()
    found = float(lovasz_softmax(hard, label, weight if weighted else None))
    assert found == pytest.approx(one_minus_iou(predicted, label, weight, 4)) and found > 0.3
    assert float(lovasz_softmax(torch.nn.functional.one_hot(label, 4).double(), label, weight)) == pytest.approx(0)
    assert float(lovasz_softmax(hard[:0], label[:0])) == 0


def test_the_lovasz_loss_is_convex_and_weights_count_points():
    """Between two hard predictions the extension is at most the chord; a weight is so many equal rows."""
    g = torch.Generator().manual_seed(1)
    label, a, b = (torch.randint(0, 3, (50,), generator=g) for _ in range(3))
    a, b = (torch.nn.functional.one_hot(x, 3).double() for x in (a, b))
    ends = [float(lovasz_softmax(x, label)) for x in (a, b)]
    for part in (0.2, 0.5, 0.9):
        between = float(lovasz_softmax(part * a + (1 - part) * b, label))
        assert between <= part * ends[0] + (1 - part) * ends[1] + 1e-9
    soft = torch.rand(50, 3, generator=g).double().softmax(1)
    times = torch.randint(1, 5, (50,), generator=g)
    repeated = lovasz_softmax(soft.repeat_interleave(times, 0), label.repeat_interleave(times))
    assert float(repeated) == pytest.approx(float(lovasz_softmax(soft, label, times.double())))


def test_a_linear_probe_with_the_lovasz_loss_has_a_better_iou_of_a_rare_class():
    g = torch.Generator().manual_seed(0)
    label = (torch.rand(8000, generator=g) < 0.05).long()
    x = torch.randn(8000, 2, generator=g) + label[:, None] * 1.2
    plain, lovasz = (LinearProbe.fit(x, label, 2, epochs=60, batch_size=1000, lovasz=on) for on in (False, True))
    miou = [scores(confusion_matrix(fitted(x), label, 2)).iou[1] for fitted in (plain, lovasz)]
    assert miou[1] > 1.2 * miou[0] > 0


def test_a_linear_probe_is_the_same_from_disk(monkeypatch):
    x, y = torch.randn(900, 8), torch.randint(0, 3, (900,))
    rows, columns = torch.arange(0, 900, 2), torch.tensor([1, 2, 5])
    settings = {"rows": rows, "columns": columns, "epochs": 2, "min_steps": 20, "batch_size": 100, "lovasz": True, "weights": torch.rand(900) + 0.5}
    kept = LinearProbe.fit(x, y, 3, **settings)
    monkeypatch.setattr("pcssl.evaluation.linear.IN_MEMORY", 0)
    streamed = LinearProbe.fit(x, y, 3, **settings)
    torch.testing.assert_close(kept.layer.weight, streamed.layer.weight, atol=1e-5, rtol=1e-4)
    alone = LinearProbe.fit(
        x[rows][:, columns], y[rows], 3, epochs=2, min_steps=20, batch_size=100, lovasz=True, weights=settings["weights"][rows]
    )
    torch.testing.assert_close(kept.layer.weight, alone.layer.weight, atol=1e-5, rtol=1e-4)


def test_samples_are_class_aware():
    label = torch.tensor([0] * 900 + [1] * 60 + [2] * 5 + [-1] * 50)
    rows = sample_points(label, 100, torch.Generator().manual_seed(0))
    assert len(rows.unique()) == 100 and (rows.diff() > 0).all()
    count = torch.bincount(label[rows], minlength=3)
    assert count[2] == 5 and abs(int(count[0]) - int(count[1])) <= 1
    assert len(sample_points(label, 5000, torch.Generator())) == 965
    assert len(sample_points(torch.full((4,), -1), 10, torch.Generator())) == 0


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(7)
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(SMALL).items()}
    return PretrainedModel(HUNet(SMALL).eval(), component("model", "hunet", **options), 0.1, {})


def test_features_are_there_for_every_point_and_change_with_levels(model):
    scene = room()
    tokens = model.extract(scene)
    assert tokens.features.shape == (len(scene), 8 + 16 + 16) and torch.isfinite(tokens.features).all()
    assert torch.equal(model.extract(scene, (0, 2)).features, tokens.features[:, [*range(8), *range(24, 40)]])


def test_features_do_not_depend_on_where_the_scene_lies_by_whole_voxels(model):
    """Also below zero: the released arithmetic needs indices from 0 on, and gets them."""
    scene = room()
    moved = Scene(scene.coord - torch.tensor([12.8, 6.4, 3.2]), scene.color, scene.normal)
    a, b = model.extract(scene).features, model.extract(moved).features
    assert float((a - b).abs().median()) < 1e-4  # points within rounding of a voxel border may change voxel


def test_features_are_the_same_in_chunks(model, monkeypatch):
    scene = room()
    whole = model.extract(scene).features
    monkeypatch.setattr("pcssl.evaluation.features.CHUNK", 1000)
    assert torch.equal(model.extract(scene).features, whole)


def test_extraction_runs_on_the_engine_the_caller_chose(model, monkeypatch):
    """Also while a second extraction begins before the first has ended."""
    used = []
    for name in available_engines():
        engine = _engines[name]

        def spy(*args, engine=engine):
            used.append(engine.name)
            return engine.interpolate(*args)

        monkeypatch.setitem(_engines, name, replace(engine, interpolate=spy))
    with use_engine("reference"):
        first = PointFeatures(model.backbone, 0.1).chunks(room())
        next(first)
        model.extract(room(1))
    assert set(used) == {"reference"}


def test_extraction_leaves_the_training_mode_alone(model):
    model.backbone.train()
    list(PointFeatures(model.backbone, 0.1).chunks(room()))
    assert model.backbone.training
    model.backbone.eval()


def test_a_single_point_has_features(model):
    scene = Scene(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.uint8), torch.tensor([[0.0, 0, 1]]))
    assert torch.isfinite(model.extract(scene).features).all()


def test_sampled_features_are_those_of_their_points(model, tmp_path):
    scenes = [room(i, n=500) for i in range(2)]
    for scene in scenes:
        scene.labels["segment20"] = (torch.arange(500) % 4).int() - 1
    cache = FeatureCache(tmp_path, BackboneFeatures(PointFeatures(model.backbone, 0.1)), "a", "b", 60)
    sample = cache.sample(scenes, "segment20", lambda done, total: None)
    aware, even = sample.rows(), sample.rows(aware=False)
    assert len(aware) == 2 * 60 and len(even) == 2 * EVEN and sample.features.dtype == torch.float16
    assert torch.bincount(sample.labels[aware]).tolist() == [40, 40, 40]
    for i, scene in enumerate(scenes):
        every = model.extract(scene).features
        mine = sample.scene == i
        place = torch.cdist(sample.coord[mine], scene.coord).argmin(1)
        torch.testing.assert_close(sample.features[mine].float(), every[place], atol=2e-3, rtol=2e-3)
        assert torch.equal(sample.labels[mine], scene.labels["segment20"][place].long())
        assert sample.even[even][sample.scene[even] == i].tolist() == list(range(EVEN))


def test_the_weights_of_a_sample_add_up_to_the_points_it_stands_for(model, tmp_path):
    scene = room(0, n=500)
    scene.labels["segment20"] = torch.cat([torch.full((400,), 1), torch.full((70,), 0), torch.full((30,), -1)]).int()
    cache = FeatureCache(tmp_path, BackboneFeatures(PointFeatures(model.backbone, 0.1)), "a", "b", 60)
    sample = cache.sample([scene], "segment20", lambda done, total: None)
    aware, even = sample.rows(), sample.rows(aware=False)
    assert torch.bincount(sample.labels[aware]).tolist() == [30, 30]
    for label, points in ((0, 70), (1, 400)):
        assert float(sample.weight[aware][sample.labels[aware] == label].sum()) == pytest.approx(points, rel=1e-5)
    assert float(sample.weight[even].sum()) == pytest.approx(470, rel=1e-5)


@pytest.mark.parametrize("count, margin", [(500, 0.05), (10_000, 0.01)])
def test_a_draw_from_a_sample_is_as_likely_as_the_points_stand_for(count, margin):
    """However many rows are asked for: there are as many light as heavy ones, but the heavy ones stand for four times the points."""
    weight = torch.tensor([1.0, 4.0]).repeat(5000)
    nothing = torch.zeros(10_000)
    sample = Sample(nothing[:, None], nothing.long(), nothing[:, None], nothing[:, None], nothing.long(), nothing.long(), weight)
    rows = torch.arange(10_000)
    kept = sample.draw(rows, count, 3)
    assert len(kept) == len(kept.unique()) == min(count, 6250) and torch.equal(kept, sample.draw(rows, count, 3))
    assert float((weight[kept] == 4).float().mean()) == pytest.approx(0.8, abs=margin)
    even = rows[weight == 4][:300]
    assert torch.equal(sample.draw(even, 500, 0).sort().values, even)
    assert len(sample.draw(even[:0], 500, 0)) == 0


def test_a_draw_bears_a_few_rows_that_stand_for_very_many_points():
    weight = torch.ones(10_000)
    weight[:5] = 200.0
    nothing = torch.zeros(10_000)
    sample = Sample(nothing[:, None], nothing.long(), nothing[:, None], nothing[:, None], nothing.long(), nothing.long(), weight)
    kept = sample.draw(torch.arange(10_000), 3000, 0)
    assert set(range(5)) <= set(kept.tolist()) and len(kept) == pytest.approx(3000, rel=0.1)


def test_a_weight_counts_as_so_many_equal_points():
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300,), generator=rng)
    x = torch.randn(300, 4, generator=rng) + labels[:, None] * torch.tensor([0.3, 0.0, -0.2, 0.1])
    times = torch.randint(1, 6, (300,), generator=rng)
    settings = {"epochs": 300, "batch_size": 10_000, "min_steps": 300}
    repeated = LinearProbe.fit(x.repeat_interleave(times, 0), labels.repeat_interleave(times), 3, **settings)
    weighted = LinearProbe.fit(x, labels, 3, weights=times.float(), **settings)
    plain = LinearProbe.fit(x, labels, 3, **settings)
    same = (repeated(x) == weighted(x)).float().mean()
    assert same > 0.98 and same > (repeated(x) == plain(x)).float().mean()


def test_cached_scenes_give_the_features_of_all_points(model, tmp_path):
    scene, source = room(5), BackboneFeatures(PointFeatures(model.backbone, 0.1))
    cache = FeatureCache(tmp_path, source, "a", "b", 60)
    for _ in range(2):
        found = torch.cat([values for _, values in cache.chunks(scene, 0)])
        torch.testing.assert_close(found, model.extract(scene).features, atol=2e-3, rtol=2e-3)
        source.features = None if _ else SimpleNamespace(mode="exact")  # the second time nothing is encoded


def test_a_second_head_does_not_run_the_backbone(model, tmp_path, monkeypatch):
    settings = {"train_points": 100, "epochs": 2, "seeds": 1}
    first = probe(model, Source(), ProbeConfig(**settings), cache=tmp_path, report=lambda line: None)

    def fail(*args):
        raise AssertionError("the backbone ran again")

    monkeypatch.setattr(PointFeatures, "encode", fail)
    again = probe(model, Source(), ProbeConfig(heads=("nn", "clusters", "linear"), **settings), cache=tmp_path, report=lambda line: None)
    for head, score in first["results"]["trained"].items():
        assert again["results"]["trained"][head] == score
    assert 0 < again["results"]["trained"]["clusters"]["miou"]["mean"] <= 1


def test_other_weights_and_other_labels_are_cached_apart(model):
    state = model.backbone.state_dict()
    key = weights_key(model.backbone, 0.1, "exact")
    assert key == weights_key(model.backbone, 0.1, "exact") != weights_key(model.backbone, 0.2, "exact")
    assert key != weights_key(model.with_random_weights(3).backbone, 0.1, "exact")
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.backbone.state_dict().values()))
    scenes = Source().scenes("train")
    before = data_keys(scenes, "segment20", 3)
    scenes[1].labels["segment20"][0] = 2 - scenes[1].labels["segment20"][0]
    assert all(a != b for other in (scenes, scenes[:2]) for a, b in zip(before, data_keys(other, "segment20", 3)))


def test_what_no_weight_and_no_label_tells_is_cached_apart():
    """A narrower window has the same weights, a scene prepared again the same points and labels."""
    torch.manual_seed(0)
    narrow = HUNet(SMALL).eval()
    wide = HUNet(replace(SMALL, window=64)).eval()
    wide.load_state_dict(narrow.state_dict())
    assert not torch.equal(PointFeatures(narrow, 0.1)(room()), PointFeatures(wide, 0.1)(room()))
    assert weights_key(narrow, 0.1) != weights_key(wide, 0.1)
    scenes = Source().scenes("train")
    before = data_keys(scenes, "segment20", 3)
    for name, change in (("normal", -scenes[1].normal), ("color", 255 - scenes[1].color), ("instance", scenes[1].labels["segment20"])):
        changed = [scenes[0], replace(scenes[1], **{name: change}), scenes[2]]
        after = data_keys(changed, "segment20", 3)
        assert after[0] == before[0] and after[1] != before[1], name


def test_every_scene_needs_labels_that_fit(model):
    class Other(Source):
        def scenes(self, split):
            found = super().scenes(split)
            if split == "train":
                found[2].labels = self.kept(found[2].labels["segment20"])
            return found

    for kept, message in (
        (lambda label: {}, "scene room2 has no segment20"),
        (lambda label: {"segment20": label + 1}, "scene room2: segment20 is up to 3, but the dataset names 3 classes"),
        (lambda label: {"segment20": label - 100}, "scene room2: segment20 is -100 somewhere; points without a label have -1"),
    ):
        source = Other()
        source.kept = kept
        with pytest.raises(UserError, match=message):
            probe(model, source, ProbeConfig(seeds=1), report=lambda line: None)


def test_a_split_without_any_label_is_refused(model):
    class Unlabelled(Source):
        def scenes(self, split):
            found = super().scenes(split)
            for scene in found if split == "val" else ():
                scene.labels["segment20"].fill_(-1)
            return found

    with pytest.raises(UserError, match="no point of these 1 scenes"):
        probe(model, Unlabelled(), ProbeConfig(seeds=1), report=lambda line: None)


def test_weights_of_any_shape_have_a_key():
    bare = torch.nn.BatchNorm1d(2)  # counts its batches in a scalar
    before = weights_key(bare)
    bare.num_batches_tracked += 1
    assert weights_key(bare) != before


def test_two_probes_may_begin_on_the_same_cache(model, tmp_path):
    scenes, ran, found = Source().scenes("train"), [], []

    class Counts(BackboneFeatures):
        def sample(self, scene, rows):
            ran.append(scene.name)
            return super().sample(scene, rows)

    def begin():
        cache = FeatureCache(tmp_path, Counts(PointFeatures(model.backbone, 0.1)), "a", "b", 60)
        found.append(cache.sample(scenes, "segment20", lambda done, total: None).features)

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ran) == 3 and torch.equal(*found)


def test_an_unreadable_score_is_scored_again(model, tmp_path):
    def run():
        config = ProbeConfig(heads=("linear",), train_points=100, epochs=2, seeds=1, floors=False)
        return probe(model, Source(), config, cache=tmp_path, report=lambda line: None)

    before = run()
    kept = list(tmp_path.glob("*/scores/*.json"))
    kept[0].write_text("")
    assert run() == before and kept[0].read_text()


def test_an_interrupted_sample_goes_on_where_it_stopped(model, tmp_path):
    scenes = Source().scenes("train")

    class Stops(BackboneFeatures):
        left = 2

        def sample(self, scene, rows):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().sample(scene, rows)

    source = Stops(PointFeatures(model.backbone, 0.1))
    cache = FeatureCache(tmp_path, source, "a", "b", 60)
    with pytest.raises(KeyboardInterrupt):
        cache.sample(scenes, "segment20", lambda done, total: None)
    source.left = 1
    resumed = cache.sample(scenes, "segment20", lambda done, total: None)
    whole = FeatureCache(tmp_path / "other", BackboneFeatures(source.features), "a", "b", 60).sample(
        scenes, "segment20", lambda done, total: None
    )
    assert torch.equal(resumed.features, whole.features) and torch.equal(resumed.scene, whole.scene)
    assert not (cache.folder / "parts").exists()


def test_features_beyond_float16_are_refused():
    with pytest.raises(UserError, match="'a'.*float16"):
        half(torch.tensor([1e6]), "a")
    with pytest.raises(UserError, match="diverged"):
        half(torch.tensor([math.nan]), "a")


def test_the_cached_probe_agrees_with_the_full_one(model):
    """The full one: fitted on all points, in float32, from the backbone directly."""
    found = probe(model, Source(), ProbeConfig(heads=("linear",), train_points=100, seeds=3, floors=False), report=lambda line: None)
    train, val = Source().scenes("train"), Source().scenes("val")
    features = torch.cat([model.extract(scene).features for scene in train])
    labels = torch.cat([scene.labels["segment20"].long() for scene in train])
    full = LinearProbe.fit(features, labels, 3)
    matrix = confusion_matrix(full(model.extract(val[0]).features), val[0].labels["segment20"], 3)
    assert found["results"]["trained"]["linear"]["miou"]["mean"] == pytest.approx(scores(matrix).miou, abs=0.05)


def test_few_labels_are_few():
    sample = Sample(
        torch.zeros(10 * 260, 1), torch.zeros(2600, dtype=torch.int64), torch.zeros(2600, 3), torch.zeros(2600, 3),
        torch.arange(2600) // 260, torch.where(torch.arange(2600) % 260 < 60, -1, torch.arange(2600) % 260 - 60), torch.ones(2600),
    )  # fmt: skip
    draws = [dict(few_labels(sample, ProbeConfig(), seed)) for seed in range(3)]
    for rows in draws:
        assert len(rows["1 % of scenes"]) == 60 and len(rows["20 % of scenes"]) == 120
        assert [len(rows[f"{n} points a scene"]) for n in (20, 50, 100, 200)] == [200, 500, 1000, 2000]
        assert len(sample.scene[rows["20 points a scene"]].unique()) == 10
    assert len({tuple(rows["20 % of scenes"].tolist()) for rows in draws}) == 3
    assert len({tuple(rows["20 points a scene"].tolist()) for rows in draws}) == 3
    for a, b in itertools.combinations(draws, 2):
        both = torch.isin(a["100 points a scene"], b["100 points a scene"]).float().mean()
        assert 0.3 < float(both) < 0.7
    # A scene of 60 points gives what it has, whatever the seed.
    small = replace(sample, even=torch.where(sample.even >= 60, -1, sample.even))
    for seed in range(3):
        rows = dict(few_labels(small, ProbeConfig(), seed))
        assert len(rows["50 points a scene"]) == 500 and len(rows["100 points a scene"]) == 600


def test_the_benchmarks_lists_take_the_place_of_draws(model, tmp_path):
    """Scenes and points that the files name, and only labelled ones of them; what has no file is drawn."""
    lists = tmp_path / "lists"
    (lists / "scenes").mkdir(parents=True)
    (lists / "points").mkdir()
    (lists / "scenes" / "20.txt").write_text("room2\n")
    named = {"room0": [5, 7, 399], "room1": [0], "room2": [11, 5]}
    torch.save({name: np.array(points) for name, points in named.items()}, lists / "points" / "points20")
    torch.save({name: np.array(points[:1]) for name, points in named.items()}, lists / "points" / "points50")

    class Data(Source):
        def scenes(self, split):
            found = super().scenes(split)
            found[0].labels["segment20"][7] = -1
            return found

    train = Data().scenes("train")
    found = FewLists.read(lists, (0.1, 0.2), (20, 50, 100))
    cache = FeatureCache(tmp_path / "cache", BackboneFeatures(model.point_features()), "a", "b", 60, found)
    for _ in range(2):  # computed, and read again
        sample = cache.sample(train, "segment20", lambda done, total: None)
        config = ProbeConfig(few_scenes=(0.1, 0.2), few_points=(20, 50, 100))
        few = dict(few_labels(sample, config, 0))
        assert list(few) == ["10 % of scenes", "20 % of scenes, listed", "20 points a scene, listed", "50 points a scene, listed", "100 points a scene"]
        assert set(sample.scene[few["20 % of scenes, listed"]].tolist()) == {2} and len(few["20 % of scenes, listed"]) == 60
        expected = [(i, train[i].coord[p].tolist()) for i, p in ((0, 5), (0, 399), (1, 0), (2, 5), (2, 11))]
        rows = few["20 points a scene, listed"]
        assert list(zip(sample.scene[rows].tolist(), sample.coord[rows].tolist())) == expected
        assert sample.scene[few["50 points a scene, listed"]].tolist() == [0, 1, 2]
        for i, row in enumerate(rows.tolist()):
            assert int(sample.labels[row]) == int(train[expected[i][0]].labels["segment20"][[5, 399, 0, 5, 11][i]])
        assert len(sample.rows()) == 180 and len(sample.rows(aware=False)) == 3 * EVEN  # as without lists

    settings = ProbeConfig(heads=("few",), few_scenes=(0.2,), few_points=(20,), train_points=100, epochs=2, seeds=1, floors=False)
    scored = probe(model, Data(), replace(settings, few_lists=str(lists)), cache=tmp_path, report=lambda line: None)["results"]["trained"]
    drawn = probe(model, Data(), settings, cache=tmp_path, report=lambda line: None)["results"]["trained"]
    assert set(scored) == {f"{title}, listed" for title in drawn} and scored["linear/20 % of scenes, listed"]["miou"]["mean"] > 0


def test_lists_that_do_not_fit(model, tmp_path):
    def run():
        config = ProbeConfig(heads=("few",), few_scenes=(0.2,), few_points=(20,), few_lists=str(tmp_path), train_points=50, epochs=1, seeds=1, floors=False)
        return probe(model, Source(), config, report=lambda line: None)

    with pytest.raises(UserError, match="none of the benchmark's lists, for example .*scenes/20.txt"):
        run()
    for folder in ("scenes", "points"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scenes" / "20.txt").write_text("room2 scene9")
    with pytest.raises(UserError, match=r"1 scenes that are not there \(scene9\)"):
        run()
    (tmp_path / "scenes" / "20.txt").unlink()
    torch.save({"room1": [400]}, tmp_path / "points" / "points20")
    with pytest.raises(UserError, match="names point 400 of room1, which has 400"):
        run()


def test_clusters_of_well_separated_features():
    g = torch.Generator().manual_seed(0)
    label = torch.arange(3000) % 5
    features = torch.randn(5, 16, generator=g)[label] * 20 + torch.randn(3000, 16, generator=g)
    cluster = KMeans.fit(features, 5, seed=1)(features)
    counts = torch.bincount(label * 5 + cluster, minlength=25).view(5, 5)
    match = match_clusters(counts)
    assert torch.equal(match[cluster], label) and match.sort().values.tolist() == [0, 1, 2, 3, 4]


def test_clusters_of_fewer_points_than_clusters():
    assert len(KMeans.fit(torch.ones(3, 2), 5)(torch.ones(4, 2))) == 4


def test_matching_is_the_best_of_all():
    counts = torch.randint(0, 50, (4, 4), generator=torch.Generator().manual_seed(2))
    match = match_clusters(counts)
    best = max(sum(int(counts[p[c], c]) for c in range(4)) for p in itertools.permutations(range(4)))
    assert sum(int(counts[match[c], c]) for c in range(4)) == best


def test_instances_of_all_sources(model):
    settings = ProbeConfig(heads=("linear", "instances"), train_points=200, seeds=2, epochs=2, instance_radius=0.3)
    found = probe(model, WithInstances(), settings, report=lambda line: None)["instances"]
    assert set(found) == {"trained", "random weights", "input features"} and set(found["trained"]["classes"]) == {"chair", "table"}
    # A wall is one instance, and its normal is an input.
    assert found["input features"]["ap50"]["mean"] > 0.9
    with pytest.raises(UserError, match="no instances"):
        probe(model, Source(), settings)


def test_one_scene_without_instances_is_named(model):
    class Some(WithInstances):
        def scenes(self, split):
            found = super().scenes(split)
            found[-1].instance = None
            return found

    with pytest.raises(UserError, match="scene room2 has no instances"):
        probe(model, Some(), ProbeConfig(heads=("instances",), seeds=1))


def test_kept_instances_are_of_the_names_of_the_classes(model, tmp_path):
    """Walls and floors are no instances: other names, other scores, of the same features and labels."""

    class Named(WithInstances):
        classes = ("floor", "wall", "table")

    def classes(data):
        settings = ProbeConfig(heads=("instances",), train_points=100, seeds=1, epochs=2, instance_radius=0.3, floors=False)
        return set(probe(model, data, settings, cache=tmp_path, report=lambda line: None)["instances"]["trained"]["classes"])

    assert classes(WithInstances()) == {"chair", "table"} and classes(Named()) == {"table"}


def test_heads_that_are_scored_are_not_fitted_again(model, tmp_path, monkeypatch, capsys):
    """A stopped run goes on after its last group of heads; another number of epochs is scored anew."""
    monkeypatch.setattr(sys.modules["pcssl.evaluation.probe"], "UNSCORED", 0)
    fitted, limit = [], 3

    def count(kind):
        fit = kind.fit

        def counted(*args, **kwargs):
            if len(fitted) == limit:
                raise KeyboardInterrupt
            fitted.append(kind)
            return fit(*args, **kwargs)

        monkeypatch.setattr(kind, "fit", counted)

    for kind in (LinearProbe, NearestNeighborProbe, KMeans, InstanceProbe):
        count(kind)

    monkeypatch.setattr(sys.modules["pcssl.evaluation.probe"], "LINE_EVERY", 0)

    def run(folder, predictions=None, **changes):
        fitted.clear()
        settings = {"heads": ("linear", "nn", "clusters", "instances"), "train_points": 100, "epochs": 2, "seeds": 2, "levels": True}
        config = ProbeConfig(**settings | changes)
        return probe(model, WithInstances(), config, cache=tmp_path / folder, report=lambda line: None, predictions=predictions)

    with pytest.raises(KeyboardInterrupt):
        run("a")
    limit = None
    whole, total = run("b"), len(fitted)
    assert run("a") == whole and total - 3 <= len(fitted) < total
    assert "probe: trained: fitting heads 1/" in capsys.readouterr().err
    assert run("a") == whole and not fitted
    shown = {0: None}
    assert run("a", shown) == whole and shown[0] is not None and fitted == [LinearProbe]
    run("a", epochs=3)
    assert len(fitted) == total


def test_views_of_a_scene_are_averaged(model, tmp_path):
    """The column beside the single pass, against probabilities averaged here."""
    data, config = Source(), ProbeConfig(heads=("linear",), train_points=100, epochs=20, seeds=1, views=3)
    found = probe(model, data, config, cache=tmp_path, report=lambda line: None)["results"]
    assert all(list(heads) == ["linear", "linear, 3 views"] for heads in found.values())
    one = probe(model, data, replace(config, views=1), report=lambda line: None)["results"]
    assert one["trained"]["linear"] == found["trained"]["linear"]

    train, (scene,) = data.scenes("train"), data.scenes("val")
    source, keys = BackboneFeatures(model.point_features()), [data_keys(x, data.label, 3)[1] for x in (train, [scene])]
    sample = FeatureCache(tmp_path, source, *keys, 100).sample(train, data.label, print)
    head = LinearProbe.fit(sample.features, sample.labels, 3, rows=sample.rows(), weights=sample.weight, epochs=20)
    mean = 0
    for angle in (0, 2 * math.pi / 3, 4 * math.pi / 3):
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
        turned = replace(scene, coord=scene.coord @ turn.T, normal=scene.normal @ turn.T)
        mean = mean + head.probability(model.extract(turned).features)
    counts = confusion_matrix(mean.argmax(1), scene.labels["segment20"], 3)
    kept = torch.tensor(found["trained"]["linear, 3 views"]["confusion"])
    assert int((counts - kept).abs().sum()) <= 2 * 4  # the first view comes in float16 from the cache
    assert int((kept - torch.tensor(found["trained"]["linear"]["confusion"])).abs().sum()) > 0


def test_each_level_alone_and_left_out(model):
    settings = ProbeConfig(heads=("linear",), train_points=100, epochs=2, seeds=1, levels=True)
    found = probe(model, Source(), settings, report=lambda line: None)["results"]
    names = {f"linear/level {i} alone" for i in range(3)} | {f"linear/without level {i}" for i in range(3)}
    assert set(found["trained"]) == {"linear"} | names and set(found["random weights"]) == {"linear"}


def test_some_levels_only(model, tmp_path):
    """The last layer alone is level 0 of the study, and every head takes it; the floors have the same levels."""
    settings = {"train_points": 100, "epochs": 2, "seeds": 1}
    study = probe(model, Source(), ProbeConfig(heads=("linear",), levels=True, **settings), report=lambda line: None)["results"]
    config = ProbeConfig(heads=("linear", "nn", "clusters"), only_levels=(0,), views=2, **settings)
    last = probe(model, Source(), config, cache=tmp_path, report=lambda line: None)["results"]
    assert last["trained"]["linear"] == study["trained"]["linear/level 0 alone"] != study["trained"]["linear"]
    assert last["random weights"]["linear"] != study["random weights"]["linear"]
    assert last["input features"]["linear"] == study["input features"]["linear"]
    again = probe(model, Source(), replace(config, only_levels=(0, 1, 2)), cache=tmp_path, report=lambda line: None)["results"]
    assert again["trained"]["linear"] == study["trained"]["linear"]
    for options, message in (({"only_levels": (3,)}, "levels 0 to 2"), ({"only_levels": ()}, "levels 0 to 2")):
        with pytest.raises(UserError, match=f"probe.only_levels.*{message}"):
            probe(model, Source(), ProbeConfig(**options), report=lambda line: None)
    with pytest.raises(ValueError, match="leave only_levels out"):
        ProbeConfig(levels=True, only_levels=(0,))


def test_all_points_as_the_sample(model, tmp_path):
    config = ProbeConfig(heads=("linear",), train_points="all", epochs=2, seeds=1, floors=False)
    found = probe(model, Source(), config, cache=tmp_path, report=lambda line: None)
    sample = FeatureCache(tmp_path, BackboneFeatures(model.point_features()), *_keys(Source()), None).sample([], "", None)
    assert len(sample.rows()) == sum(len(scene) for scene in Source().scenes("train")) and (sample.weight[sample.rows()] == 1).all()
    assert found["protocol"]["train_points"] == "all"


def _keys(data):
    return (data_keys(data.scenes(split), data.label, len(data.classes))[1] for split in ("train", "val"))


def test_kept_scores_are_of_the_loss(model, tmp_path):
    def linear(lovasz):
        config = ProbeConfig(heads=("linear",), train_points=100, epochs=5, seeds=1, floors=False, lovasz=lovasz)
        return probe(model, Source(), config, cache=tmp_path, report=lambda line: None)["results"]["trained"]["linear"]

    assert linear(False) != linear(True) != linear(False)


def test_a_full_disk_ends_with_an_error_and_the_next_call_goes_on(model, tmp_path):
    """A limit on the size of files stands for the full disk: the sample is cut off, nothing of it is taken for whole."""
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    scenes, source = Source().scenes("train"), BackboneFeatures(PointFeatures(model.backbone, 0.1))
    cache = FeatureCache(tmp_path, source, "a", "b", 60)
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[0][1]))  # a part is smaller, all together are not
        with pytest.raises(OSError, match="features.npy"):
            cache.sample(scenes, "segment20", lambda done, total: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert sorted(path.name for path in cache.folder.iterdir() if path.name != ".lock") == ["parts", "scenes"]
    assert len(list((cache.folder / "parts").iterdir())) == 3
    source.features = None  # the parts are there
    resumed = cache.sample(scenes, "segment20", lambda done, total: None)
    assert len(resumed.rows()) == 180 and torch.isfinite(resumed.features).all()


def test_metrics_equal_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    g = torch.Generator().manual_seed(0)
    label, predicted = torch.randint(-1, 6, (5000,), generator=g), torch.randint(0, 6, (5000,), generator=g)
    found, known = scores(confusion_matrix(predicted, label, 6)), label >= 0
    iou = sklearn.jaccard_score(label[known], predicted[known], average=None)
    assert found.iou == pytest.approx(iou.tolist()) and found.miou == pytest.approx(iou.mean())
    assert found.oacc == pytest.approx(sklearn.accuracy_score(label[known], predicted[known]))
    assert found.macc == pytest.approx(sklearn.balanced_accuracy_score(label[known], predicted[known]))


class Source:
    """Rooms whose label is the surface a point lies on: normals tell it all, colour nothing."""

    root, label, classes = "memory", "segment20", ("floor", "y wall", "x wall")

    def scenes(self, split):
        found = [room(i, 400) for i in ((0, 1, 2) if split == "train" else (3,))]
        for scene in found:
            scene.labels["segment20"] = (2 - scene.normal.argmax(1)).int()
        return found


class WithInstances(Source):
    """Each surface is one instance."""

    classes = ("floor", "chair", "table")

    def scenes(self, split):
        found = super().scenes(split)
        for scene in found:
            scene.instance = scene.labels["segment20"].clone()
        return found


def test_probe_scores_all_sources_and_repeats(model):
    settings = ProbeConfig(train_points=200, epochs=20, seeds=2, neighbors=(1, 5))
    lines = []
    found = probe(model, Source(), settings, report=lines.append)
    results = found["results"]
    assert list(results) == ["trained", "random weights", "input features"] and len(lines) == 3
    assert list(results["trained"]) == ["linear", "1-nn", "5-nn"]
    assert results["input features"]["linear"]["miou"]["mean"] > 0.95
    assert len(results["trained"]["linear"]["iou"]) == 3
    again = probe(model, Source(), settings, report=lines.append)
    assert again == found


def test_random_weights_differ_by_seed_and_leave_the_generator_alone(model):
    state = torch.get_rng_state()
    a, b = model.with_random_weights(0), model.with_random_weights(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(a.backbone.init_transform[0].weight, b.backbone.init_transform[0].weight)
    assert not torch.equal(a.backbone.init_transform[0].weight, model.backbone.init_transform[0].weight)


def test_probe_needs_labels(model):
    source = Source()
    source.label = "segment200"
    with pytest.raises(UserError, match="no segment200"):
        probe(model, source, ProbeConfig(seeds=1))
    source.label = None
    with pytest.raises(UserError, match="names no label"):
        probe(model, source, ProbeConfig(seeds=1))


def test_input_features_are_colour_normal_and_height():
    scene = Scene(torch.tensor([[0.0, 0, 5], [0, 0, 6.5]]), torch.tensor([[0, 255, 127], [255, 0, 0]]).to(torch.uint8), torch.tensor([[0.0, 0, 1], [1, 0, 0]]))
    assert point_inputs(scene)[1].tolist() == pytest.approx([1, -1, -1, 1, 0, 0, 1.5])


# ---------------------------------------------------------------- checkpoints of others


def test_released_weights_load_as_they_are(tmp_path):
    model = component("model", "hunet").build()
    state = {f"module.student.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": {**state, "module.teacher.x": torch.zeros(1)}, "epoch": 3}, tmp_path / "released.pth")
    loaded = load_model(tmp_path / "released.pth")
    assert loaded.voxel_size == 0.02 and loaded.mode == "msm"
    assert torch.equal(loaded.backbone.up[0][1].weight, model.up[0][1].weight)


def test_checkpoints_of_another_model_are_refused(tmp_path):
    torch.save({"state_dict": {"encoder.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="neither a pcssl checkpoint nor released"):
        load_model(tmp_path / "other.pth")
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(SMALL).items()}
    content = {
        "step": 1, "total_steps": 1, "card": {}, "backbone_prefix": "student.",
        "config": {"model": {"name": "hunet", **options}, "data": {"voxel_size": 0.1}},
        "objective": {f"student.{k}": v for k, v in HUNet(SMALL).state_dict().items()},
    }
    save_checkpoint(tmp_path / "good.pt", content)
    assert load_model(tmp_path / "good.pt").voxel_size == 0.1
    del content["objective"]["student.init_transform.0.bias"]
    content["objective"]["student.skip.0.gamma"] = torch.zeros(1, 3)
    content["objective"]["student.extra"] = torch.zeros(1)
    save_checkpoint(tmp_path / "bad.pt", content)
    with pytest.raises(UserError) as error:
        load_model(tmp_path / "bad.pt")
    for part in ("missing: init_transform.0.bias", "unexpected: extra", "wrong shape: skip.0.gamma (1, 3) instead of (1, 16)"):
        assert part in str(error.value)
    content["config"]["model"]["colour"] = 3
    save_checkpoint(tmp_path / "option.pt", content)
    with pytest.raises(UserError, match="option.pt: cannot build its model.*colour"):
        load_model(tmp_path / "option.pt")
    content["config"]["model"]["name"] = "pointnet"
    save_checkpoint(tmp_path / "unknown.pt", content)
    with pytest.raises(UserError, match="unknown.pt.*pointnet"):
        load_model(tmp_path / "unknown.pt")


def test_heads_are_scored_in_groups_that_fit_in_memory(model, monkeypatch):
    """With next to no memory every head comes alone, and scores stay the same; the linear head's classes come back."""
    data, config = Source(), ProbeConfig(heads=("linear", "nn", "few"), train_points=100, epochs=2, seeds=2, floors=False)
    shown: dict = {0: None, 9: None}
    together = probe(model, data, config, report=print, predictions=shown)["results"]
    monkeypatch.setattr(sys.modules["pcssl.evaluation.probe"], "HELD", 1)
    alive = weakref.WeakSet()

    def planned(name, size):
        def fit():
            head = FittedHead((name,), 0, lambda x: [x])
            alive.add(head)
            return head

        return PlannedHead((name,), 0, fit, size)

    groups = []
    for heads in _together([planned("a", 1), planned("b", 0), planned("c", 5), planned("d", 5)], lambda done, total: None):
        assert len(alive) == len(heads)  # those of the group before are gone
        groups.append([head.names[0] for head in heads])
        del heads
    assert groups == [["a", "b"], ["c"], ["d"]]
    assert probe(model, data, config, report=print)["results"] == together
    scene = data.scenes("val")[0]
    assert shown[0].shape == (len(scene),) and len(shown[0].unique()) > 1 and shown[9] is None


@pytest.mark.gpu
def test_a_gpu_scores_as_the_cpu_does(model):
    """Every head of the protocol, grouping included."""
    heads = ("linear", "nn", "few", "clusters", "instances")
    config = ProbeConfig(heads=heads, train_points=200, seeds=1, epochs=20, instance_radius=0.3, views=2)
    on_cpu = probe(model, WithInstances(), config, report=print)
    on_gpu = probe(replace(model, backbone=deepcopy(model.backbone).cuda()), WithInstances(), config, report=print)
    for source, scored in on_cpu["results"].items():
        for head, score in scored.items():
            assert on_gpu["results"][source][head]["miou"]["mean"] == pytest.approx(score["miou"]["mean"], abs=0.03), (source, head)
    for source, score in on_cpu["instances"].items():
        assert on_gpu["instances"][source]["ap50"]["mean"] == pytest.approx(score["ap50"]["mean"], abs=0.05), source
