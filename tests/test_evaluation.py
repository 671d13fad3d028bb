"""Features, probes and scores against references."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_hunet import SMALL
from test_msm import room

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
from pcssl.evaluation.features import collect, sample_points
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


def test_nearest_neighbour_equals_brute_force_in_float64():
    rng = torch.Generator().manual_seed(0)
    base, query = torch.randn(300, 12, generator=rng), torch.randn(200, 12, generator=rng)
    labels = torch.randint(0, 5, (300,), generator=rng)
    one, many = NearestNeighborProbe.fit(base, labels, 5)(query, (1, 20))
    b, q = base.double() - base.double().mean(0), query.double() - base.double().mean(0)
    similarity = (q / q.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T
    assert torch.equal(one, labels[similarity.argmax(1)])
    for i in range(200):
        top = similarity[i].topk(20)
        votes = torch.zeros(5, dtype=torch.float64).index_add_(0, labels[top.indices], (top.values / 0.07).exp())
        assert int(many[i]) == int(votes.argmax())


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


def test_linear_probe_is_as_good_as_scipy_logistic_regression():
    import numpy as np
    from scipy.optimize import minimize

    rng = torch.Generator().manual_seed(1)
    centres = torch.randn(4, 6, generator=rng)
    y = torch.randint(0, 4, (2000,), generator=rng)
    x = centres[y] + torch.randn(2000, 6, generator=rng)
    mine = LinearProbe.fit(x, y, 4, epochs=80, batch_size=256, weight_decay=0.0)
    z = np.column_stack([((x - x.mean(0)) / x.std(0)).numpy(), np.ones(2000)]).astype(np.float64)

    def loss(flat):
        logits = z @ flat.reshape(7, 4)
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        gradient = p.copy()
        gradient[np.arange(2000), y.numpy()] -= 1
        return -np.log(p[np.arange(2000), y.numpy()]).mean(), (z.T @ gradient / 2000).ravel()

    best = minimize(loss, np.zeros(28), jac=True).x.reshape(7, 4)
    theirs = torch.from_numpy((z @ best).argmax(1))
    accuracy = [float((p == y).float().mean()) for p in (mine(x), theirs)]
    assert abs(accuracy[0] - accuracy[1]) < 0.01


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


def test_collect_takes_the_rows_it_says(model):
    scene = room(n=500)
    scene.labels["segment20"] = (torch.arange(500) % 3).int()
    features, labels = collect(PointFeatures(model.backbone, 0.1), [scene], "segment20", 60, seed=0)
    assert features.shape == (60, 40) and torch.bincount(labels).tolist() == [20, 20, 20]
    every, all_labels = collect(PointFeatures(model.backbone, 0.1), [scene], "segment20", 500, seed=0)
    assert torch.equal(every, model.extract(scene).features) and torch.equal(all_labels, scene.labels["segment20"].long())


class Source:
    """Rooms whose label is the surface a point lies on: normals tell it all, colour nothing."""

    root, label, classes = "memory", "segment20", ("floor", "y wall", "x wall")

    def scenes(self, split):
        found = [room(i, 400) for i in ((0, 1, 2) if split == "train" else (3,))]
        for scene in found:
            scene.labels["segment20"] = (2 - scene.normal.argmax(1)).int()
        return found


def test_probe_scores_all_sources_and_repeats(model):
    settings = ProbeConfig(train_points=200, epochs=20, seeds=2, neighbors=(1, 5))
    lines = []
    found = probe(model, Source(), settings, report=lines.append)
    results = found["results"]
    assert list(results) == ["trained", "random weights", "input features"] and len(lines) == 6
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
