"""Few scenes, few labelled points: the benchmark's lists and our own."""

import numpy as np
import pytest
import torch
from test_prepared import write_scene

from pcssl.data.limited import Limit, LimitedScenes
from pcssl.data.scene import Scene
from pcssl.errors import UserError
from pcssl.registry import create


@pytest.fixture
def root(tmp_path):
    for i in range(40):
        write_scene(tmp_path / "data" / "train" / f"scene{i:04d}_00", n=60)
    for i in range(2):
        write_scene(tmp_path / "data" / "val" / f"scene{i:04d}_00", n=60)
    return tmp_path / "data"


def train(root, **options):
    return create("dataset", "scannet", root=str(root), **options).scenes("train")


def test_own_scenes_are_a_share_nested_and_seeded(root, capsys):
    shares = {p: train(root, limit=f"scenes-{p}").names for p in (1, 5, 10, 20, 100)}
    assert {p: len(names) for p, names in shares.items()} == {1: 1, 5: 2, 10: 4, 20: 8, 100: 40}
    for small, large in ((1, 5), (5, 10), (10, 20), (20, 100)):
        assert set(shares[small]) < set(shares[large])
    assert shares[20] == sorted(shares[20]) == train(root, limit="scenes-20").names
    assert shares[20] != train(root, limit="scenes-20", limit_seed=1).names
    assert "not the benchmark's" in capsys.readouterr().err


def test_the_counts_are_the_benchmarks():
    class Names(list):
        names = [f"scene{i:04d}_00" for i in range(1201)]

    counts = [len(LimitedScenes(Names(Names.names), Limit("scenes", p), "segment20")) for p in (1, 5, 10, 20)]
    assert counts == [12, 60, 120, 240]


def test_own_points_are_labelled_nested_and_the_same_every_time(root):
    kept = {}
    for count in (5, 20, 50, 200):
        scene = train(root, limit=f"points-{count}")[3]
        kept[count] = set(torch.nonzero(scene.labels["segment20"] >= 0)[:, 0].tolist())
        again = train(root, limit=f"points-{count}")[3]
        assert torch.equal(again.labels["segment20"], scene.labels["segment20"])
    whole = train(root)[3].labels["segment20"]
    assert [len(kept[c]) for c in (5, 20, 50)] == [5, 20, 50] and kept[5] < kept[20] < kept[50] < kept[200]
    assert kept[200] == set(torch.nonzero(whole >= 0)[:, 0].tolist())  # no more than there are
    scene = train(root, limit="points-5")[3]
    assert (scene.labels["segment20"][sorted(kept[5])] == whole[sorted(kept[5])]).all()
    dark = scene.labels["segment20"] < 0
    assert (scene.labels["segment200"][dark] == -1).all() and (scene.instance[dark] == -1).all()
    assert kept[5] != set(
        torch.nonzero(train(root, limit="points-5", limit_seed=1)[3].labels["segment20"] >= 0)[:, 0].tolist()
    )


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, list])
def test_the_benchmarks_points(root, tmp_path, kind):
    points = {f"scene{i:04d}_00": kind([3, 1, i]) for i in range(4, 40)}
    torch.save(points, tmp_path / "points20")
    data = train(root, limit="points-20", limit_file=str(tmp_path / "points20"))
    assert len(data) == 36 and data.names[0] == "scene0004_00"
    whole = train(root)[10].labels["segment20"]
    expected = torch.full((60,), -1, dtype=torch.int32)
    expected[[1, 3, 10]] = whole[[1, 3, 10]]
    assert torch.equal(data[6].labels["segment20"], expected)


def test_the_benchmarks_scenes(root, tmp_path):
    (tmp_path / "1.txt").write_text("scene0007_00\nscene0002_00\n")
    data = train(root, limit="scenes-1", limit_file=str(tmp_path / "1.txt"))
    assert data.names == ["scene0002_00", "scene0007_00"] and data[1].name == "scene0007_00"
    assert (data[1].labels["segment20"] >= 0).sum() > 20


def test_only_training_is_limited(root):
    source = create("dataset", "scannet", root=str(root), limit="points-5")
    assert (source.scenes("val")[0].labels["segment20"] >= 0).sum() > 20


def test_lists_that_do_not_fit(root, tmp_path):
    for text in ("points", "points-0", "scenes-101", "rooms-3", "points-20x"):
        with pytest.raises(UserError, match="limit is"):
            train(root, limit=text)
    path = tmp_path / "list"
    path.write_text("scene0002_00\nscene0999_00\n")
    with pytest.raises(UserError, match=r"lists 1 scenes that are not there \(scene0999_00\)"):
        train(root, limit="scenes-1", limit_file=str(path))
    with pytest.raises(UserError, match="not a torch file"):
        train(root, limit="points-20", limit_file=str(path))
    with pytest.raises(UserError, match="cannot be read"):
        train(root, limit="scenes-1", limit_file=str(tmp_path / "none"))
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="not a dict of scenes"):
        train(root, limit="points-20", limit_file=str(path))
    torch.save({"other": [1]}, path)
    with pytest.raises(UserError, match="points of none of the 40"):
        train(root, limit="points-20", limit_file=str(path))
    torch.save({"scene0002_00": [60]}, path)
    with pytest.raises(UserError, match="point 60 of scene0002_00, which has 60"):
        train(root, limit="points-20", limit_file=str(path))[0]


def test_a_scene_without_the_label(tmp_path):
    class One(list):
        names = ["a"]

    data = LimitedScenes(One([Scene(torch.zeros(3, 3), name="a")]), Limit("points", 2), "segment20")
    with pytest.raises(UserError, match="scene a has no segment20"):
        data[0]
