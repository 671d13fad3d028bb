"""Health of features: statistics, verdicts, what training logs."""

import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_commands import folder  # noqa: F401
from test_evaluation import Source
from test_hunet import SMALL
from test_msm import room
from test_training import config, same, weights

from pcssl.cli import main
from pcssl.errors import UserError
from pcssl.evaluation import PointFeatures
from pcssl.evaluation.health import level_health, verdict
from pcssl.evaluation.monitor import SmallProbe
from pcssl.models import HUNet
from pcssl.sparse import SparseTensor
from pcssl.statistics import effective_rank, linear_r2
from pcssl.training import pretrain


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_effective_rank_counts_directions():
    assert float(effective_rank(torch.ones(100, 8))) == 1
    assert float(effective_rank(normal(200, 1) @ torch.ones(1, 8))) == pytest.approx(1, abs=1e-3)
    assert float(effective_rank(normal(20_000, 8))) == pytest.approx(8, abs=0.05)
    assert float(effective_rank(normal(20_000, 3) @ torch.eye(3, 8))) == pytest.approx(3, abs=0.02)
    share = torch.tensor([4.0, 1.0]) / 5
    stretched = normal(100_000, 2) * torch.tensor([2.0, 1.0])
    assert float(effective_rank(stretched)) == pytest.approx(math.exp(-(share * share.log()).sum()), abs=0.01)
    assert float(effective_rank(torch.zeros(1, 4))) == 1


def test_linear_r2_is_what_a_line_explains():
    x = normal(4000, 5)
    assert float(linear_r2(x, x @ normal(5, 2, seed=1) + 3)) == pytest.approx(1, abs=1e-3)
    assert float(linear_r2(x, normal(4000, 2, seed=2))) < 0.01
    half = x[:, :1] + normal(4000, 1, seed=3)
    assert float(linear_r2(x, half)) == pytest.approx(0.5, abs=0.05)
    assert float(linear_r2(x, torch.ones(4000, 1))) == 0 and float(linear_r2(x[:3], x[:3])) == 0


class Fake(torch.nn.Module):
    """A backbone of one level whose features are a function of its input."""

    channels, strides = (6,), (1,)

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: SparseTensor):
        return [x.replace(self.function(x))]


def mixed(x):
    return torch.sin(10 * x.features @ normal(6, 6)) + 0.3 * normal(len(x.features), 6, seed=5)


@pytest.mark.parametrize(
    "function,word",
    [
        (lambda x: torch.ones(len(x.features), 6), "constant"),
        (lambda x: torch.ones(len(x.features), 6) + 0.01 * normal(len(x.features), 6), "collapsed"),
        (lambda x: x.features[:, [3, 4, 5, 3, 4, 5]] + 0.1, "merely geometric"),
        (mixed, "no level is collapsed"),
        (lambda x: mixed(x) * math.nan, "diverged"),
    ],
)
def test_verdicts(function, word):
    (line,) = verdict(level_health(PointFeatures(Fake(function), 0.1), Source().scenes("train")))
    assert word in line


def test_a_level_that_only_tells_scenes_apart():
    calls = iter(range(100))

    def by_scene(x):
        return 3 * normal(1, 6, seed=next(calls)) + 0.02 * mixed(x)

    (line,) = verdict(level_health(PointFeatures(Fake(by_scene), 0.1), [room(i, 300) for i in range(10)]))
    assert "tells scenes apart" in line


def logged(path):
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_training_logs_health_and_a_small_probe(tmp_path):
    scenes = Source().scenes("train")
    probe = SmallProbe(scenes, Source().scenes("val"), "segment20", 3, 0.2, points=100)
    settings = {"optimizer": {"epochs": 4}, "log_every": 2, "monitor_every": 2}
    watched = pretrain(config(tmp_path / "a", **settings), scenes, monitor=probe)
    plain = pretrain(config(tmp_path / "b", **settings), scenes)
    assert same(weights(watched), weights(plain)), "watching changed the training"
    found = logged(tmp_path / "a")
    for name in ("rank/level1", "rank_student/level0", "height_r2/level0", "normal_r2/level1", "cosine/level0"):
        assert len(found[name]) == 2 and all(math.isfinite(v) for v in found[name])
    assert 1 <= found["rank/level1"][0] <= 16
    assert len(found["probe/linear"]) == len(found["probe/1-nn"]) == 2
    assert "probe/linear" not in logged(tmp_path / "b")


def test_small_probe_tells_good_features_from_none():
    probe = SmallProbe(Source().scenes("train"), Source().scenes("val"), "segment20", 3, 0.1, points=200)
    state = torch.get_rng_state()
    good = probe(Fake(lambda x: x.features), 0)
    none = probe(Fake(lambda x: normal(len(x.features), 6)), 0)
    assert good["probe/linear"] > 0.9 and good["probe/1-nn"] > 0.9 and none["probe/linear"] < 0.6
    assert torch.equal(state, torch.get_rng_state())


def test_a_small_probe_without_labels_is_refused():
    for change, message in ((lambda x: {}, "has no segment20"), (lambda x: {"segment20": torch.full_like(x["segment20"], -1)}, "no point of")):
        val = Source().scenes("val")
        for scene in val:
            scene.labels = change(scene.labels)
        with pytest.raises(UserError, match=message):
            SmallProbe(Source().scenes("train"), val, "segment20", 3, 0.1)


def test_too_few_points_give_no_verdict():
    good = PointFeatures(Fake(mixed), 0.1)
    with pytest.raises(UserError, match="1 points together, too few"):
        level_health(good, [room(0, 100)[torch.tensor([3])]])
    assert "no level" in verdict(level_health(good, [room(0, 250)]))[0]


def test_health_command(folder, tmp_path, capsys):  # noqa: F811
    arguments = ["health", str(folder / "out" / "checkpoint.pt"), "--data", str(folder / "data.yaml"), "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "health.json")]) == 0
    printed = capsys.readouterr().out
    assert "verdict:" in printed and "random weights" in printed
    found = json.loads((tmp_path / "health.json").read_text())
    assert len(found["levels"]) == 2 and found["levels"][1]["channels"] == 16


def test_health_of_a_real_network_is_finite():
    torch.manual_seed(0)
    levels = level_health(PointFeatures(HUNet(SMALL).eval(), 0.1), Source().scenes("val"))
    assert len(levels) == 3 and all(math.isfinite(v) for level in levels for v in level.values())


def test_a_network_without_colour_or_normals_cannot_tell_them():
    scenes = Source().scenes("train")
    whole, blind = (level_health(PointFeatures(Fake(lambda x: x.features), 0.1), scenes, without)[0] for without in ((), ("color", "normal")))
    assert whole["color"] > 0.8 and whole["normal"] > 0.8  # means over voxels, not the points themselves
    assert blind["color"] < 0.1 and blind["normal"] < 0.1
