"""Rates by group on tables made by hand, retrieval against a double loop, corruptions that do what they say."""

from __future__ import annotations

import json
import re

import pytest
import torch
from image_checks import SHORT
from test_image_objectives import ROOT, train
from torch.nn import functional as F

from pcssl.analysis.robustness import (
    CORRUPTIONS,
    GroupRates,
    blur,
    corruption_sweep,
    fade,
    hit_rate,
    label_association,
    noise,
    rates,
    retrieval_precision,
    rotate,
    shift,
)
from pcssl.cli import main
from pcssl.evaluation import NearestNeighborProbe, load_image_model
from pcssl.evaluation.images import features_of
from pcssl.registry import create

GROUPS = ["old", "young", "old", "old", "young", "young"]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rates_of_a_small_table():
    found = rates(torch.tensor([1, 0, 1, 0, 0, 0]).bool(), GROUPS)
    assert found.overall == pytest.approx(1 / 3) and found.groups == {"old": pytest.approx(2 / 3), "young": 0}
    assert found.gap == pytest.approx(2 / 3) and found.disparate
    assert not GroupRates(0.5, {"old": 0.4, "young": 0.59}).disparate
    assert found.summary() == {"overall": found.overall, "groups": found.groups, "gap": found.gap, "disparate": True}
    with pytest.raises(ValueError, match="groups: 6 for 5 samples"):
        rates(torch.ones(5), GROUPS)


def test_hits_among_the_first_predictions():
    top = torch.tensor([[1, 2], [3, 1], [0, 4], [2, 2], [5, 1], [0, 3]])
    found = hit_rate(top, torch.tensor([2, 1, 1, 0, 5, 1]), GROUPS)
    assert found == GroupRates(0.5, {"old": pytest.approx(1 / 3), "young": pytest.approx(2 / 3)})
    shuffled = hit_rate(top, torch.tensor([2, 1, 1, 0, 5, 1]), GROUPS[::-1])
    assert shuffled.overall == found.overall  # whatever the groups are


def test_labels_of_a_kind_with_enough_confidence():
    top = torch.tensor([[7, 2], [3, 8], [0, 4], [7, 8], [5, 1], [0, 3]])
    sure = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5], [0.3, 0.1], [1.0, 0.0], [0.6, 0.4]])
    found = label_association(top, sure, {"crime": [7, 8], "animal": [0]}, GROUPS, (0.0, 0.25, 0.5))
    assert found["crime"][0.0] == GroupRates(0.5, {"old": pytest.approx(2 / 3), "young": pytest.approx(1 / 3)})
    assert found["crime"][0.25].groups == {"old": pytest.approx(2 / 3), "young": 0}
    assert found["animal"][0.0].overall == found["animal"][0.5].overall == pytest.approx(1 / 3)  # 0.5 is enough


def test_retrieval_is_the_double_loop():
    queries, database = torch.randn(6, 5, generator=rng()), torch.randn(20, 5, generator=rng(1))
    attribute, known = torch.arange(6) % 3, torch.arange(20) % 3
    found = retrieval_precision(3 * queries, database, attribute, known, GROUPS, (1, 4))
    for k in (1, 4):
        expected = []
        for q, a in zip(queries, attribute):
            order = F.cosine_similarity(q[None], database).argsort(descending=True)[:k]
            expected.append(float((known[order] == a).float().mean()))
        assert found[k].overall == pytest.approx(sum(expected) / 6)
        assert found[k].groups["young"] == pytest.approx(sum(e for e, g in zip(expected, GROUPS) if g == "young") / 3)
    with pytest.raises(ValueError, match="ks: 50 is more than the 20"):
        retrieval_precision(queries, database, attribute, known, GROUPS)


def test_perfect_features_serve_all_groups_alike():
    attribute, known = torch.arange(6) % 3, torch.arange(30) % 3
    found = retrieval_precision(torch.eye(3)[attribute], torch.eye(3)[known], attribute, known, GROUPS, (1, 10))
    assert all(r.overall == 1 and r.gap == 0 for r in found.values())


def test_who_is_in_which_group_does_not_change_the_overall_rates():
    queries, database = torch.randn(6, 5, generator=rng()), torch.randn(20, 5, generator=rng(1))
    attribute, known, top = torch.arange(6) % 3, torch.arange(20) % 3, torch.randint(9, (6, 2), generator=rng(2))

    def every(groups):
        found = retrieval_precision(queries, database, attribute, known, groups, (1, 4)) | label_association(top, top / 9, {"odd": [1, 3, 5]}, groups)["odd"]
        return [rate.overall for rate in found.values()], [rate.groups for rate in found.values()]

    (overall, by_group), (again, by_other) = every(GROUPS), every(["old"] * 3 + ["young"] * 3)
    assert overall == pytest.approx(again) and by_group != by_other


def test_corruptions_do_what_they_say():
    x = torch.rand(3, 1, 8, 8, generator=rng())
    torch.testing.assert_close(rotate(x, 90), torch.rot90(x, 1, (2, 3)), atol=1e-5, rtol=1e-5)
    assert torch.equal(shift(x)[..., 1:], x[..., :-1]) and not shift(x)[..., 0].any()
    torch.testing.assert_close(fade(x, 0.0), torch.full_like(x, 0.5))
    assert torch.equal(noise(x), noise(x)) and not torch.equal(noise(x), noise(x, seed=1))
    assert float(blur(x).std()) < float(x.std()) and torch.allclose(blur(torch.ones_like(x)), torch.ones_like(x))
    for change in CORRUPTIONS.values():
        out = change(x)
        assert out.shape == x.shape and 0 <= float(out.min()) and float(out.max()) <= 1 and not torch.equal(out, x)


def test_a_sweep_scores_clean_and_corrupted_images():
    x = torch.zeros(4, 1, 8, 8)
    x[:2, :, :, 0] = 1  # bright first column, which a shift moves away
    found = corruption_sweep(lambda v: (v[:, 0, 0, 0] > 0.5).long(), x, torch.tensor([1, 1, 0, 0]), {"shift": shift})
    assert found == {"clean": 1.0, "shift": 0.5}


def test_the_probe_command_reports_corruptions_and_classes(tmp_path, capsys):
    path = train("swav", tmp_path / "swav", *SHORT)
    options = ["probe.robustness=true", "probe.seeds=1", "probe.neighbors=[5]", "dataset.val=1600"]
    assert main(["probe", "--checkpoint", str(path), "--data", "configs/image/data/digits.yaml", "--out", str(tmp_path), *options]) == 0
    every = json.loads((tmp_path / "results.json").read_text())
    found, scored = every["robustness"], every["results"]
    assert all(list(rates) == ["clean", *CORRUPTIONS, "precision at 5"] for rates in found.values())
    for source in ("trained", "pixels"):
        assert found[source]["clean"]["overall"] == pytest.approx(scored[source]["5-nn"]["accuracy"]["mean"])
    # The same by hand.
    model, data = load_image_model(path), create("dataset", "digits", val=1600)
    (x, y), (query, known) = (features_of(lambda v: v, data.images(split), 8, 1) for split in ("train", "val"))
    nearest = NearestNeighborProbe.fit(model.embed(x), y, 10)
    by_hand = corruption_sweep(lambda v: nearest(model.embed(v), (5,))[0], query, known, {"rotate": rotate, "blur": blur})
    assert all(found["trained"][name]["overall"] == pytest.approx(score, abs=2e-3) for name, score in by_hand.items())
    right = nearest(model.embed(query), (5,))[0] == known
    assert found["trained"]["clean"]["groups"]["7"] == pytest.approx(float(right[known == 7].float().mean()), abs=1e-2)
    page = (tmp_path / "report.md").read_text()
    assert "## Classes: trained" in page and f"| 7 | {100 * found['trained']['clean']['groups']['7']:.1f} |" in page
    assert f"(gap {100 * found['pixels']['noise']['gap']:.1f})" in capsys.readouterr().out


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"## Robustness and groups\n.*?```python\n(.*?)```", (ROOT / "docs" / "image.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    train("swav", "runs/image/swav", *SHORT)
    exec(compile(example, "docs/image.md, Robustness and groups", "exec"), {})
    assert "precision at 50" in capsys.readouterr().out
