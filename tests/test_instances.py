"""Instances: the benchmark's average precision on hand-made cases, grouping, the heads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components as scipy_components
from scipy.spatial import cKDTree

from pcssl.evaluation.instances import (
    CROWD,
    AveragePrecision,
    InstanceProbe,
    Proposals,
    clusters,
    connected_components,
    instance_offsets,
    suppress,
)
from pcssl.sparse import current_engine

CLASSES = ["wall", "floor", "chair", "table"]


def scene(*instances, void=0):
    """Labels and instance numbers of a row of points: (class, points) each, then points without label."""
    label, instance = [], []
    for i, (kind, count) in enumerate(instances):
        label += [kind] * count
        instance += [i] * count
    return torch.tensor(label + [-1] * void), torch.tensor(instance + [-1] * void)


def proposals(total, *found):
    """(class, score, first point, last point) each."""
    mask = torch.zeros(len(found), total, dtype=torch.bool)
    for row, (_, _, first, last) in zip(mask, found):
        row[first:last] = True
    return Proposals(torch.tensor([f[0] for f in found], dtype=torch.int64), torch.tensor([f[1] for f in found]), mask)


def precision(truth, found):
    ap = AveragePrecision(CLASSES)
    ap.add(found, *truth)
    return ap.scores()


def test_perfect_predictions():
    truth = scene((2, 200), (2, 300), (3, 150))
    found = precision(truth, proposals(650, (2, 0.9, 0, 200), (2, 0.8, 200, 500), (3, 0.7, 500, 650)))
    assert (found["ap"], found["ap50"], found["ap25"]) == pytest.approx((1, 1, 1))
    assert set(found["classes"]) == {"chair", "table"}


def test_no_predictions():
    found = precision(scene((2, 200)), proposals(200))
    assert found["ap"] == found["ap50"] == found["ap25"] == 0


def test_an_overlap_of_sixty_percent():
    """0.6 is above 0.5 and 0.55, not above 0.6: two of the nine thresholds."""
    found = precision(scene((2, 1000)), proposals(1000, (2, 0.9, 0, 600)))
    assert found["ap50"] == 1 and found["ap"] == pytest.approx(2 / 9)


def test_half_of_the_instances_found():
    """Recall 1/2 at precision 1: by the benchmark's steps the area is (1/2 + 1/2) / 2."""
    found = precision(scene((2, 200), (2, 200)), proposals(400, (2, 0.9, 0, 200)))
    assert found["ap50"] == pytest.approx(0.5)


def test_a_wrong_prediction_counts_by_its_score():
    right, wrong = (2, 0.9, 0, 200), (2, 0.5, 200, 400)
    truth = scene((2, 200), (3, 400))
    low = precision(truth, proposals(600, right, wrong))["classes"]["chair"]["ap50"]
    high = precision(truth, proposals(600, right, (2, 0.95, 200, 400)))["classes"]["chair"]["ap50"]
    # Points of the curve (recall, precision): low (1, .5) (1, 1) (0, 1); high (1, .5) (0, 0) (0, 1).
    assert low == pytest.approx(1.0)
    assert high == pytest.approx(0.5 * 0.5)


def test_a_second_prediction_of_the_same_instance_is_wrong():
    truth = scene((2, 1000))
    found = precision(truth, proposals(1000, (2, 0.9, 0, 1000), (2, 0.8, 0, 900)))
    alone = precision(truth, proposals(1000, (2, 0.9, 0, 1000)))
    assert alone["ap50"] == 1 and found["ap50"] == pytest.approx(1.0)  # the lower score comes after full recall
    swapped = precision(truth, proposals(1000, (2, 0.9, 0, 900), (2, 0.8, 0, 1000)))
    assert swapped["ap50"] == pytest.approx(1.0)


def test_a_prediction_of_two_instances_finds_one():
    """Both halves have an IoU of 0.5 with it: neither counts at 0.5, and at 0.25 one is found and one missed."""
    found = precision(scene((2, 200), (2, 200)), proposals(400, (2, 0.9, 0, 400)))
    assert found["ap50"] == 0 and found["ap25"] == pytest.approx(0.5)


@pytest.mark.parametrize("void,counted", [(300, True), (700, False)])
def test_predictions_on_unlabelled_points_are_ignored(void, counted):
    truth = scene((2, 200), (3, 1000 - void), void=void)
    found = precision(truth, proposals(1200, (2, 0.5, 0, 200), (2, 0.9, 200, 1200)))["classes"]["chair"]["ap50"]
    assert (found < 1) == counted


def test_small_instances_neither_count_nor_harm():
    truth = scene((2, 200), (2, 60), (2, 60), (3, 200))
    assert precision(truth, proposals(520, (2, 0.5, 0, 200)))["classes"]["chair"]["ap50"] == 1
    # Most of this prediction lies on the two small ones, neither of which it meets by half.
    ignored = precision(truth, proposals(520, (2, 0.5, 0, 200), (2, 0.9, 180, 320)))
    assert ignored["classes"]["chair"]["ap50"] == 1
    counted = precision(truth, proposals(520, (2, 0.5, 0, 200), (2, 0.9, 240, 420)))
    assert counted["classes"]["chair"]["ap50"] < 1


def test_small_predictions_are_left_out():
    assert precision(scene((2, 200)), proposals(200, (2, 0.9, 0, 99)))["ap25"] == 0
    assert precision(scene((2, 200), (3, 300)), proposals(500, (2, 0.9, 0, 200), (2, 1.0, 200, 250)))["classes"]["chair"]["ap50"] == 1


def test_scenes_add_up():
    ap = AveragePrecision(CLASSES)
    ap.add(proposals(200, (2, 0.9, 0, 200)), *scene((2, 200)))
    ap.add(proposals(200), *scene((2, 200)))
    assert ap.scores()["ap50"] == pytest.approx(0.5)


def benchmark_precision(scenes, overlap, kind):
    """ScanNet's evaluate_semantic_instance.py, step by step: one class, one threshold, predictions in the order given."""
    true, score, missed, any_truth = [], [], 0, False
    for found, label, instance in scenes:
        void = ~((label >= 2) & (instance >= 0))
        truths = [(label == kind) & (instance == i) for i in instance[(label == kind) & (instance >= 0)].unique()]
        predictions = [(m, float(s)) for m, s, k in zip(found.mask, found.score, found.label) if int(k) == kind and int(m.sum()) >= 100]
        iou = [[float((m & t).sum()) / float((m | t).sum()) for t in truths] for m, _ in predictions]
        large = [int(t.sum()) >= 100 for t in truths]
        any_truth |= any(large)
        visited = set()
        for t in range(len(truths)):
            if not large[t]:
                continue
            best = None
            for p in range(len(predictions)):
                if p in visited or iou[p][t] <= overlap:
                    continue
                confidence = predictions[p][1]
                if best is None:
                    best = confidence
                    visited.add(p)
                else:  # the lower one is a false positive
                    true.append(0)
                    score.append(min(best, confidence))
                    best = max(best, confidence)
            if best is None:
                missed += 1
            else:
                true.append(1)
                score.append(best)
        for p, (mask, confidence) in enumerate(predictions):
            if any(iou[p][t] > overlap for t in range(len(truths))):
                continue
            ignored = int((mask & void).sum()) + sum(int((mask & t).sum()) for t, big in zip(truths, large) if not big)
            if ignored / int(mask.sum()) <= overlap:
                true.append(0)
                score.append(confidence)
    if not any_truth:
        return None
    if not score:
        return 0.0
    order = np.argsort(score, kind="stable")
    score, true = np.array(score)[order], np.array(true)[order]
    below = np.append(np.cumsum(true), 0)
    starts = np.unique(score, return_index=True)[1]
    precision, recall = np.zeros(len(starts) + 1), np.zeros(len(starts) + 1)
    for i, start in enumerate(starts):
        lost = below[start - 1]
        hits = true.sum() - lost
        precision[i] = hits / (len(score) - start)
        recall[i] = hits / (hits + lost + missed) if hits + lost + missed else 0
    precision[-1] = 1
    return float(precision @ np.convolve(np.append(np.append(recall[0], recall), 0), [-0.5, 0, 0.5], "valid"))


@pytest.mark.parametrize("seed", range(12))
def test_average_precision_equals_the_benchmarks_script(seed):
    """Rows of points cut into instances, small and large, unlabelled parts between, and proposals that meet them by chance."""
    g = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=g))

    scenes, ap = [], AveragePrecision(CLASSES)
    for _ in range(3):
        truth = scene(*[(draw(0, 4), draw(40, 300)) for _ in range(8)], void=draw(0, 400))
        total, found, at = len(truth[0]), [], 0
        for _ in range(25):
            at = draw(0, total - 60)
            found.append((draw(2, 4), draw(1, 20) / 20, at, min(total, at + draw(60, 320))))
        for i in truth[1].unique()[1:].tolist():  # near to the truth
            rows = torch.nonzero(truth[1] == i)[:, 0]
            found.append((int(truth[0][rows[0]]), draw(1, 20) / 20, int(rows[0]), int(rows[-1]) + draw(-20, 30)))
        found = proposals(total, *sorted((f for f in found if f[0] >= 2), key=lambda f: -f[1]))
        ap.add(found, *truth)
        scenes.append((found, *truth))
    scored = ap.scores()["classes"]
    for kind in (2, 3):
        expected = {o: benchmark_precision(scenes, o, kind) for o in (*np.arange(0.5, 0.95, 0.05), 0.25)}
        if expected[0.25] is None:
            assert CLASSES[kind] not in scored
            continue
        assert scored[CLASSES[kind]]["ap25"] == pytest.approx(expected[0.25]) and expected[0.25] > 0
        assert scored[CLASSES[kind]]["ap50"] == pytest.approx(expected[0.5])
        assert scored[CLASSES[kind]]["ap"] == pytest.approx(np.mean([v for o, v in expected.items() if o != 0.25]))


# Grouping


def graph(coord, radius):
    pairs = cKDTree(coord.numpy()).query_pairs(radius, output_type="ndarray")
    both = csr_matrix(([1] * len(pairs), (pairs[:, 0], pairs[:, 1])), shape=(len(coord),) * 2)
    return both + both.T


@pytest.mark.parametrize("radius", [0.02, 0.06, 0.1, 2.0])
def test_connected_components_equal_scipys(radius):
    coord = torch.rand(800, 3, generator=torch.Generator().manual_seed(0))
    links = graph(coord, radius).tocsr()
    found = connected_components(torch.from_numpy(links.indptr).long(), torch.from_numpy(links.indices).long())
    count, expected = scipy_components(links, directed=False)
    assert len(found.unique()) == count
    assert len(torch.unique(torch.stack([found, torch.from_numpy(expected).long()]), dim=1).T) == count


def test_a_long_chain_is_one_component():
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(1))
    place = torch.empty(5000, 3).zero_()
    place[order, 0] = torch.arange(5000.0)
    links = graph(place, 1.1).tocsr()
    found = connected_components(torch.from_numpy(links.indptr).long(), torch.from_numpy(links.indices).long())
    assert (found == 0).all()


def test_clusters_are_groups_that_touch():
    g = torch.Generator().manual_seed(0)
    blobs = [torch.rand(n, 3, generator=g) * 0.2 + i for i, n in enumerate((300, 200, 40))]
    coord = torch.cat(blobs)
    found = clusters(coord, 0.08, 50)
    assert sorted(len(part) for part in found) == [200, 300]
    assert all(float(coord[part].amax() - coord[part].amin()) < 0.3 for part in found)
    assert clusters(coord[:10], 0.08, 50) == []


@pytest.mark.parametrize("spread", [0.001, 0.1, 1.0])
def test_clusters_of_a_crowd_are_the_components_of_all_pairs(monkeypatch, spread):
    """When few points of a cell look for neighbours, points far apart stay apart and those together stay together."""
    monkeypatch.setattr("pcssl.evaluation.instances.CROWD", 4)
    g = torch.Generator().manual_seed(0)
    coord = torch.cat([torch.randn(400, 3, generator=g) * spread * 0.05 + place for place in (0.0, 3.0, 6.0)])
    found = clusters(coord, 0.1, 1)
    count, label = scipy_components(graph(coord, 0.1), directed=False)
    assert sorted(map(len, found)) == sorted(torch.bincount(torch.from_numpy(label)).tolist()) if spread < 1 else len(found) >= count
    assert all(len(set(label[part.numpy()])) == 1 for part in found)


def test_the_pairs_of_a_crowd_are_bounded(monkeypatch):
    engine, asked = current_engine(), []
    spied = replace(engine, radius_neighbors=lambda x, *rest: asked.append(len(x)) or engine.radius_neighbors(x, *rest))
    monkeypatch.setattr("pcssl.evaluation.instances.current_engine", lambda: spied)
    (found,) = clusters(torch.randn(50_000, 3, generator=torch.Generator().manual_seed(0)) * 1e-4, 0.1, 100)
    assert len(found) == 50_000 and sum(asked) <= 8 * CROWD


def test_suppression_keeps_the_best_of_those_that_overlap():
    mask = proposals(100, (2, 0, 0, 50), (2, 0, 5, 50), (2, 0, 40, 100)).mask
    assert suppress(mask, torch.tensor([0.5, 0.9, 0.7]), 0.3).tolist() == [1, 2]
    assert suppress(mask[:0], torch.zeros(0), 0.3).tolist() == []


def test_offsets_lead_to_the_middle():
    coord = torch.tensor([[0.0, 0, 0], [2, 0, 0], [5, 5, 5], [1, 1, 1]])
    found = instance_offsets(coord, torch.tensor([3, 3, -1, 9]))
    assert found[0].tolist() == [1, 0, 0] and found[1].tolist() == [-1, 0, 0] and found[3].tolist() == [0, 0, 0]
    assert found[2].isnan().all()


def test_heads_on_features_that_know_everything():
    """Two chairs that touch, apart only through their offsets, a table and a floor."""
    g = torch.Generator().manual_seed(0)
    parts, kinds = [], (2, 2, 3, 1)
    for i, low in enumerate(((0, 0, 0.1), (0.5, 0, 0.1), (3, 0, 0.1), (0, 2, 0))):
        size = torch.tensor([0.5, 0.5, 0.5]) if i < 3 else torch.tensor([4.0, 4.0, 0.0])
        parts.append(torch.rand(1500, 3, generator=g) * size + torch.tensor(low))
    coord = torch.cat(parts)
    instance = torch.arange(4).repeat_interleave(1500)
    label = torch.tensor(kinds).repeat_interleave(1500)
    offset = instance_offsets(coord, instance)
    features = torch.cat([torch.nn.functional.one_hot(label, 4).float(), offset, torch.randn(6000, 5, generator=g)], 1)
    probe = InstanceProbe.fit(features, label, offset, CLASSES, rows=torch.arange(0, 6000, 2), radius=0.08)
    ap = AveragePrecision(CLASSES)
    ap.add(probe.group(coord, *probe.points(features)), label, instance)
    found = ap.scores()
    assert found["ap50"] > 0.95 and found["ap"] > 0.8
    blind = InstanceProbe.fit(features[:, 4:], label, offset, CLASSES, rows=torch.arange(0, 6000, 2), radius=0.08)
    ap = AveragePrecision(CLASSES)
    ap.add(blind.group(coord, *blind.points(features[:, 4:])), label, instance)
    assert ap.scores()["ap50"] <= 0.5


def test_a_scene_without_things():
    features = torch.eye(4)[torch.zeros(200, dtype=torch.long)]
    probe = InstanceProbe.fit(torch.eye(4).repeat(10, 1), torch.arange(4).repeat(10), torch.zeros(40, 3), CLASSES, rows=torch.arange(40), radius=0.1)
    found = probe.group(torch.rand(200, 3), *probe.points(features))
    assert found.mask.shape == (0, 200) and found.label.shape == (0,)
