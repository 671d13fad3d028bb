"""Reports, comparisons and what makes scores incomparable."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from pcssl.cli import main
from pcssl.commands.probe import leakage
from pcssl.evaluation.report import cautions, differences, markdown, ratios, table
from pcssl.visualization import bar_chart


def score(miou, iou=(0.5, None)):
    number = {"mean": miou, "std": 0.01, "runs": [miou]}
    return {"miou": number, "macc": number, "oacc": number, "iou": list(iou), "confusion": [[1, 0], [0, 0]]}


@pytest.fixture
def found():
    return {
        "protocol": {"train_split": "train", "val_split": "val", "train_points": 2000, "seeds": 3, "epochs": 30},
        "data": {
            "root": "data/rooms", "label": "segment20", "classes": ["wall", "floor"], "train_scenes": 48,
            "val_scenes": 12, "fingerprint": "abc",
        },
        "warnings": ["the checkpoint was trained on 2 of them"],
        "checkpoint": {"path": "runs/a/checkpoint.pt", "split": "train"},
        "results": {
            "trained": {"linear": score(0.4), "1-nn": score(0.3), "linear/20 points a scene": score(0.35), "linear/level 0 alone": score(0.2)},
            "random weights": {"linear": score(0.2)},
            "supervised": {"supervised": score(0.5)},
        },
    }  # fmt: skip


def test_a_report_shows_every_source_and_head(found):
    page = markdown(found)
    for part in ("| trained | 40.0 +- 1.0 | 30.0 +- 1.0 | - |", "20 points a scene | 35.0", "level 0 alone | 20.0", "**the checkpoint was trained on 2"):
        assert part in page
    assert "linear / supervised: 0.80" in page and "| floor | - | - | - |" in page
    head, trained, _, supervised = table(found["results"]).splitlines()
    assert head.split()[-3:] == ["linear", "1-nn", "supervised"] and "40.0 +- 1.0" in trained and "50.0 +- 1.0" in supervised
    assert table({"trained": {}, "random weights": {}}).splitlines()[1].strip() == "trained"  # instances alone
    assert ratios(found["results"])["best nearest neighbour / linear"] == pytest.approx(0.75)
    assert ratios({"trained": {}, "supervised": found["results"]["supervised"]}) == {}  # labelled training alone


@pytest.mark.parametrize(
    "section,key,value,named",
    [
        ("protocol", "train_points", 100, "sampled points"), ("protocol", "val_split", "test", "scored split"),
        ("data", "label", "segment200", "label"), ("data", "fingerprint", "other", "scenes"),
    ],
)  # fmt: skip
def test_what_makes_scores_incomparable(found, section, key, value, named):
    other = copy.deepcopy(found)
    assert differences(found, other) == []
    other[section][key] = value
    (line,) = differences(found, other)
    assert named in line


def test_compare_prints_gaps_and_refuses_other_protocols(found, tmp_path, capsys):
    other = copy.deepcopy(found)
    other["results"]["trained"]["linear"] = score(0.45)
    paths = []
    for name, content in (("a", found), ("b", other)):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "results.json")
        paths[-1].write_text(json.dumps(content))
    assert main(["compare", *map(str, paths)]) == 0
    printed = capsys.readouterr().out
    assert "trained, linear" in printed and "+5.0" in printed
    other["protocol"]["train_points"] = 5
    paths[1].write_text(json.dumps(other))
    assert main(["compare", *map(str, paths)]) == 2
    assert "2000 against 5" in capsys.readouterr().err
    assert main(["compare", *map(str, paths), "--anyway"]) == 0
    captured = capsys.readouterr()
    assert "+5.0" in captured.out and "not comparable" in captured.err


def test_compare_of_instances_and_of_nothing_in_common(found, tmp_path, capsys):
    ap = {"mean": 0.2, "std": 0.0, "runs": [0.2]}
    found["instances"] = {"trained": {"classes": {}, "ap": ap, "ap50": ap, "ap25": ap}}
    other = copy.deepcopy(found)
    other["instances"]["trained"]["ap50"]["mean"] = 0.3
    images = {"protocol": {}, "data": {}, "results": {"trained": {"1-nn": {"accuracy": ap}}}}
    paths = [tmp_path / name for name in ("a.json", "b.json", "images.json")]
    for path, content in zip(paths, (found, other, images)):
        path.write_text(json.dumps(content))
    assert main(["compare", str(paths[0]), str(paths[1])]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "instances AP50" in line]
    assert line.endswith("+10.0")
    assert main(["compare", str(paths[0]), str(paths[2]), "--anyway"]) == 0
    assert "no score is in both" in capsys.readouterr().out
    found["protocol"]["instance_radius"] = 0.1
    assert differences(found, other) == ["radius of instances: 0.1 against None"]
    del other["instances"]
    assert differences(found, other) == []


def test_compare_tells_what_does_not_stop_it(found, tmp_path, capsys):
    """Other seeds, other budgets of labelled training, warnings of either result; results without later settings."""
    other = copy.deepcopy(found)
    other["protocol"] |= {"seeds": 1, "lovasz": False, "only_levels": None}
    found["labelled_training"], other["labelled_training"] = ({"steps": steps, "lr": 0.01} for steps in (100, 500))
    del found["warnings"]
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, content in zip(paths, (found, other)):
        path.write_text(json.dumps(content))
    assert main(["compare", *map(str, paths)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: means over 3 against 1 seeds",
        "warning: networks were trained with labels under other budgets: steps 100 against 500",
        "warning: second result: the checkpoint was trained on 2 of them",
    ]
    assert cautions(found, found) == []
    for key, value, named in (("lovasz", True, "Lovász"), ("only_levels", [0], "levels that features are read from")):
        (line,) = differences(found, {**other, "protocol": other["protocol"] | {key: value}})
        assert named in line


def test_a_report_says_what_was_not_measured_and_shows_pictures(found):
    page = markdown(found, ["features.png", "classes.png", "levels.png"])
    for name in ("features", "classes", "levels"):
        assert f"](pictures/{name}.png)" in page
    assert "Not measured" not in page and "pictures/" not in markdown(found)
    alone = {**found, "results": {"trained": found["results"]["trained"]}}
    assert "Not measured: the floors" in markdown(alone) and "Not measured: the ceiling" in markdown(alone)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense", '{"protocol": 3, "data": {}, "results": {}}'])
def test_compare_of_something_else(tmp_path, capsys, text):
    (tmp_path / "x.json").write_text(text)
    assert main(["compare", str(tmp_path / "x.json"), str(tmp_path / "x.json")]) == 2
    assert "x.json: not a results.json" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "none.json"), str(tmp_path / "x.json")]) == 2
    assert "no results at" in capsys.readouterr().err


class Scenes:
    def __init__(self, *names):
        self.names = list(names)

    def __len__(self):
        return len(self.names)


def test_leakage_is_told():
    seen = {"scene_names": ["a", "b", "c"]}
    assert leakage(seen, Scenes("d", "e"), "val") == []
    (line,) = leakage(seen, Scenes("c", "d", "a"), "val")
    assert "2 of the 3 scenes of 'val'" in line and "(a, c)" in line
    (line,) = leakage({}, Scenes("a"), "val")
    assert "cannot be ruled out" in line


def test_bars_are_as_long_as_their_values():
    image = bar_chart(["a", "b"], {"x": [10.0, 20.0], "y": [None, 5.0]}, "title")
    assert isinstance(image, Image.Image)
    rows = (np.asarray(image) == (66, 106, 168)).all(2).sum(1)
    short, long = sorted({int(r) for r in rows if r > 20})[:2]
    assert long == pytest.approx(2 * short, abs=3)
    assert bar_chart(["a"], {"x": [None]}, "nothing known").width == 900


def test_single_values_are_ticks_where_bars_of_their_length_end():
    def ends(color, **options):
        image = np.asarray(bar_chart(["a"], {"x": [20.0]}, "", **options))[66:]  # below the legend
        return np.flatnonzero((image == color).all(2).sum(0) > 12)

    bar, (left, right) = ends((66, 106, 168), single=[[10.0, 40.0]]), np.split(ends((0, 0, 0), single=[[10.0, 40.0]]), 2)
    begin, length = bar[0], bar[-1] - bar[0]
    assert abs(left.mean() - begin - length / 2) < 2 and abs(right.mean() - begin - 2 * length) < 2
    assert not ends((0, 0, 0)).size
