"""`pcssl benchmark`: contestants agree, rows are sane, files are complete, nothing measured is lost."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from functools import partial

import pytest
import torch

from pcssl import cli
from pcssl.benchmarks import OPERATORS, conv, interpolate, measure, memory, samples
from pcssl.benchmarks.case import LeftOut, Settings, engines, peer
from pcssl.benchmarks.samples import Sample, hall, rooms
from pcssl.commands import benchmark
from pcssl.data import Scene, write_ply
from pcssl.errors import UserError
from pcssl.sparse import available_engines

CPU = torch.device("cpu")
TINY = ["--points", "1500", "--voxel-size", "0.05", "--channels", "4", "--repeats", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch):
    """The big products and copies take longer than all the rest."""
    monkeypatch.setattr(benchmark, "ceilings", lambda *_: (1.0, 10.0))
    monkeypatch.setattr(measure, "ceilings", lambda *_: (1.0, 10.0))


def timed(tmp_path, operator: str, *words: str) -> dict:
    out = tmp_path / "numbers.json"
    assert cli.main(["benchmark", operator, *TINY, *words, "--out", str(out)]) == 0
    return json.loads(out.read_text())


def sample(points: torch.Tensor, voxel_size: float = 0.05) -> Sample:
    return Sample("test", points, torch.zeros(len(points), dtype=torch.int64), voxel_size)


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_is_timed_beside_its_peers(operator, tmp_path, capsys):
    rows = timed(tmp_path, operator, "--peers")["rows"]
    shown = capsys.readouterr().out
    assert f"{operator}: {OPERATORS[operator][1]}" in shown
    by = {row["by"] for row in rows}
    assert len(by) > 1 or by == set(available_engines())  # with somebody to compare with, where there is one
    for row in rows:
        assert row["operator"] == operator and row["points"] == 1500 and not row["failed"]
        assert row["ms"] > 0 and row["times"] > 0
        assert row["by"] == "gemm" or row["difference"] is not None  # its numbers were compared
        assert row["by"] in shown
    assert len(shown.splitlines()) >= len(rows)


def test_all_is_every_operator(tmp_path):
    rows = timed(tmp_path, "all")["rows"]
    assert list(dict.fromkeys(row["operator"] for row in rows)) == list(OPERATORS)


def test_the_file_says_what_the_numbers_depend_on(tmp_path):
    content = timed(tmp_path, "conv", "--dtype", "fp32", "bf16")
    machine = content["machine"]
    assert machine["torch"] == torch.__version__ and machine["device"] == "cpu" and machine["cpu"]
    assert {"gpu", "cores", "pcssl", "commit"} <= machine.keys()
    assert datetime.fromisoformat(content["date"]).tzinfo and content["command"]
    assert content["settings"]["channels"] == [4] and content["settings"]["engine"] in available_engines()
    assert [(c["dtype"], c["threads"]) for c in content["ceilings"]] == [("fp32", 1), ("bf16", 1)]
    cases = [row["case"] for row in content["rows"] if row["by"] != "gemm"]
    assert cases == [{"C": 4, "dtype": d, "pass": p} for d in ("fp32", "bf16") for p in ("forward", "forward+backward")]
    assert all(row["threads"] == 1 and row["sample"] == "room 0" and row["voxel_size"] == 0.05 for row in content["rows"])


def test_speeds_follow_from_the_time(monkeypatch):
    """Counted by hand: 3 pairs of two neighbouring voxels' own and one another's = 4 pairs."""
    two = sample(torch.tensor([[0.01, 0.01, 0.01], [0.06, 0.01, 0.01]]))
    forward, backward = conv.cases(two, Settings("reference", channels=(8,)))
    assert forward.flops == 2 * 4 * 8 * 8 and backward.flops == 3 * forward.flops
    table, features, weight = 27 * 2 * 4, 2 * 8 * 4, 27 * 8 * 8 * 4
    assert forward.traffic == 2 * features + weight + table
    assert forward.footprint == 2 * features + table
    ms = {"gemm": 2.0, "reference": 4.0}
    monkeypatch.setattr(measure, "medians", lambda *_: {by: t / torch.get_num_threads() for by, t in ms.items()})
    before = torch.get_num_threads()
    gemm, ours, _, ours2 = measure.measure(forward, [1, 2], 1, CPU, memory=False)
    torch.set_num_threads(before)
    assert (gemm.times, ours.times, ours.of_gemm) == (0.5, 1.0, 0.5)
    assert ours.tflops == pytest.approx(512 / 4e-3 * 1e-12) and ours.of_matmul == ours.tflops
    assert ours.gbs == pytest.approx(forward.traffic / 4e-3 * 1e-9) and ours.of_copy == pytest.approx(ours.gbs / 10)
    assert (ours.threads, ours.scaling, ours2.threads, ours2.scaling) == (1, 1.0, 2, 2.0)


def test_contestants_take_turns_and_the_first_round_is_not_counted(monkeypatch):
    turns = []
    clock = iter([100.0, 100.0, 5.0, 7.0, 1.0, 9.0, 3.0, 8.0])
    monkeypatch.setattr(measure, "stopwatch", lambda device: lambda step: step() or next(clock))
    found = measure.medians({"a": partial(turns.append, "a"), "b": partial(turns.append, "b")}, 3, CPU)
    assert turns == ["a", "b"] * 4 and found == {"a": 3.0, "b": 8.0}


def two_scenes() -> Sample:
    points, batch = rooms(0, 1500, 0.05, limit=2500)
    return Sample("two", points, batch, 0.05)


def test_dense_grids_and_the_sparse_way_give_the_same():
    scene = two_scenes()
    assert scene.scenes >= 2
    for layout in interpolate.LAYOUTS:
        expected = interpolate.dense(scene, 4, layout)()
        for engine in available_engines():
            found = interpolate.sparse(engine, scene, 4, "msm")()
            assert [x.shape[1] for x in found] == [4, 6, 8, 16, 24]
            assert measure.difference(found, expected) < 1e-4
            # Another arithmetic would be noticed.
            assert measure.difference(interpolate.sparse(engine, scene, 4, "zero")(), expected) > 0.1


def test_a_grid_beyond_the_memory_is_left_out(monkeypatch):
    scene = two_scenes()
    extent = scene.geometry.coords[scene.geometry.batch == 0, 1:].amax(0) + 1
    grid = int(extent.prod()) * 4 * 4
    monkeypatch.setattr(interpolate, "available", lambda device: grid)
    with pytest.raises(LeftOut, match="left out: a grid of"):
        interpolate.dense(scene, 4, "CXYZ")


def test_the_longer_hall_has_the_same_voxels():
    short, long = sample(hall(1, 20_000), 0.02), sample(hall(4, 20_000), 0.02)
    assert float(long.points[:, 0].max()) > float(short.points[:, 0].max()) + 25
    for a, b in zip(short.levels, long.levels):
        assert len(b) == pytest.approx(len(a), rel=0.002)


def test_memory_is_that_of_the_step_and_not_of_the_volume():
    assert memory.peak(partial(partial, torch.ones, 1 << 22), CPU) == pytest.approx(1 << 24, rel=0.02)
    short, long = sample(hall(1, 20_000)), sample(hall(4, 20_000))
    ours = [memory.peak(partial(interpolate.sparse, available_engines()[0], s, 8, "msm"), CPU) for s in (short, long)]
    dense = [memory.peak(partial(interpolate.dense, s, 8, "XYZC"), CPU) for s in (short, long)]
    values = 20_000 * sum(int(8 * width) for width in interpolate.WIDTHS) * 4
    assert values <= ours[0] < 2 * values and ours[1] == pytest.approx(ours[0], rel=0.05)
    assert dense[1] > 2 * dense[0]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        memory.peak(partial(divmod, 1, 0), CPU)
    assert memory.peak(partial(partial, torch.ones, 1 << 22), CPU) > 1 << 23  # and goes on


def test_memory_stands_in_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "peak", lambda make, device: 5_000_000)
    rows = timed(tmp_path, "segment", "--memory")["rows"]
    assert all(row["peak"] == 5_000_000 and row["footprint"] > 0 for row in rows)
    assert "peak MB" in (shown := capsys.readouterr().out) and " 5.0 " in shown


def test_rooms_fill_a_batch_to_the_count(tmp_path):
    rows = timed(tmp_path, "conv", "--voxels", "1000")["rows"]
    assert {(row["voxels"], row["sample"]) for row in rows} == {(1000, "rooms from 0")}
    assert rows[0]["scenes"] > 1


def test_scans_take_the_place_of_the_room(tmp_path):
    files = [tmp_path / "a.ply", tmp_path / "b.ply"]
    for i, file in enumerate(files):
        write_ply(file, Scene(torch.rand(300 + i, 3) - 3))
    rows = timed(tmp_path, "voxelize", "--scan", str(files[0]), "--scan", str(files[1]))["rows"]
    assert {(row["sample"], row["points"]) for row in rows} == {("a.ply", 300), ("b.ply", 301)}


def test_one_point_is_enough(tmp_path):
    assert all(row["voxels"] == 1 for row in timed(tmp_path, "all", "--peers", "--points", "1")["rows"])


def test_a_contestant_with_other_numbers_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(conv, "_contestants", lambda *a: {"right": partial(ones, 1.0), "wrong": partial(ones, 1.1)})
    assert cli.main(["benchmark", "conv", *TINY]) == 1
    wrong = next(line for line in capsys.readouterr().out.splitlines() if " wrong " in line)
    assert "its numbers differ by 1.0e-01 of the largest" in wrong


def ones(value: float):
    return lambda: torch.full((3,), value)


def test_a_contestant_that_crashes_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(conv, "_contestants", lambda *a: {"broken": partial(divmod, 1, 0), "sound": partial(ones, 1.0)})
    out = tmp_path / "numbers.json"
    assert cli.main(["benchmark", "conv", *TINY, "--out", str(out)]) == 1
    rows = {row["by"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["broken"]["failed"] and rows["broken"]["note"].startswith("ZeroDivisionError")
    assert rows["broken"]["ms"] is None and rows["sound"]["ms"] > 0


def test_an_engine_without_the_dtype_is_left_out(capsys, monkeypatch):
    def refuse():
        raise UserError("no bfloat16 here")

    monkeypatch.setattr(conv, "_contestants", lambda *a: {"sound": partial(ones, 1.0), "other": refuse})
    assert cli.main(["benchmark", "conv", *TINY]) == 0
    assert "other" in (shown := capsys.readouterr().out) and "no bfloat16 here" in shown


def test_what_differs_beyond_measure_is_still_json(tmp_path, monkeypatch):
    monkeypatch.setattr(conv, "_contestants", lambda *a: {"a": partial(ones, 1.0), "b": partial(ones, float("nan"))})
    out = tmp_path / "numbers.json"
    assert cli.main(["benchmark", "conv", *TINY, "--out", str(out)]) == 1
    row = json.loads(out.read_text(), parse_constant=pytest.fail)["rows"][2]
    assert row["failed"] and row["difference"] is None


def test_an_interrupt_keeps_what_was_measured(tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        yield measure.Row(1, "first", ms=1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure", interrupted)
    out, threads = tmp_path / "numbers.json", torch.get_num_threads()
    assert cli.main(["benchmark", "curves", *TINY, "--out", str(out)]) == 130
    assert [row["by"] for row in json.loads(out.read_text())["rows"]] == ["first"]
    assert " first " in capsys.readouterr().out and torch.get_num_threads() == threads
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.json"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["cnov"], "unknown operator 'cnov' (did you mean 'conv'?)"),
        (["conv", "--engine", "natvie"], "engine 'natvie'"),
        (["conv", "--scan", "missing.ply"], "missing.ply: no such file"),
        (["conv", "--device", "cuda"], "sees no CUDA GPU"),
        (["conv", "--device", "gpu"], "'gpu' is no device"),
        (["conv", "--device", "meta"], "only cpu and cuda"),
        (["conv", "--dtype", "tf32"], "a mode of CUDA GPUs"),
        (["conv", "--voxel-size", "1e-5", "--points", "1500"], "--voxel-size 1e-05: voxel coordinates"),
        (["conv", "--out", "/dev/null/x.json", "--points", "1500"], "--out /dev/null/x.json: cannot be written"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["benchmark", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


def test_a_gpu_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert cli.main(["benchmark", "conv", "--device", "cuda:2"]) == 2
    assert "--device cuda:2: there are 2 GPUs" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--repeats", "0"], ["--voxel-size", "-1"], ["--threads", "two"], ["--voxel-size", "inf"]])
def test_numbers_out_of_range_are_refused(words, capsys):
    assert cli.main(["benchmark", "conv", *words]) == 2
    assert f"argument {words[0]}: " in capsys.readouterr().err


def test_a_missing_peer_is_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    peer.cache_clear()
    rows = timed(tmp_path, "conv", "--peers", "--dtype", "fp32", "fp32")["rows"]
    assert capsys.readouterr().err.count("left out: spconv is not installed (`pip install") == 1
    assert all("spconv layer" not in row["by"] for row in rows)
    peer.cache_clear()


def test_an_engine_without_the_operator_is_called_the_reference():
    assert engines("nearest", Settings("reference", peers=True)).keys() >= {"reference"}
    for operator in ("sparse_conv", "nearest", "voxelize"):
        found = engines(operator, Settings(available_engines()[0], peers=True))
        assert len(set(found)) == len(found) and set(found) <= set(available_engines())


def test_spconv_agrees_on_two_scenes():
    pytest.importorskip("spconv.pytorch")
    settings = Settings("reference", peers=True, channels=(8,))
    for module in (conv, __import__("pcssl.benchmarks.neighbor_map", fromlist=["cases"])):
        for case in module.cases(two_scenes(), settings):
            for row in measure.measure(case, [1], 1, CPU, memory=False):
                assert not row.failed, row


@pytest.mark.gpu
def test_everything_runs_on_a_gpu(tmp_path):
    rows = timed(tmp_path, "all", "--device", "cuda", "--peers", "--memory", "--dtype", "fp32", "tf32", "bf16", "fp16")["rows"]
    assert all(row["ms"] > 0 for row in rows if not row["note"])
    assert not [row for row in rows if row["failed"]]
    assert all(row["peak"] is not None for row in rows if row["by"] != "gemm" and not row["note"])


def test_points_are_the_ones_around_the_middle():
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    found = samples._placed(points, 50)
    assert len(found) == 50 and float(found.amax()) < 0.6 and found.amin(0).tolist() == [0, 0, 0]
