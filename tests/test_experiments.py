"""Plans of runs: what is run, skipped and continued, and the table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from test_commands import folder  # noqa: F401

from pcssl.cli import main
from pcssl.commands.experiments import Plan, Run, check_orders, collect, table
from pcssl.commands.train import TrainConfig
from pcssl.config import load_config, to_dict

ROOT = Path(__file__).parents[1]


@pytest.fixture
def plan(folder, tmp_path):  # noqa: F811
    (tmp_path / "variant.yaml").write_text(f"base: {folder / 'tiny.yaml'}\nobjective: {{mask_ratio: 0.2}}\n")
    (tmp_path / "full.yaml").write_text(f"base: {folder / 'tiny.yaml'}\n")
    path = tmp_path / "plan.yaml"
    path.write_text(
        f"""
title: tiny
output: {tmp_path / "runs"}
results: {tmp_path / "results"}
seeds: [0, 1]
runs:
  - {{name: full, config: full.yaml, what: all of it, paper: 66.8}}
  - {{name: variant, config: variant.yaml}}
orders: [[variant, full]]
overrides: ["probe.pictures=0", "optimizer.epochs=1", "optimizer.warmup_epochs=0", "probe.floors=false"]
"""
    )
    return path


def test_runs_are_made_once_and_tabulated(plan, tmp_path, capsys):
    assert main(["experiments", str(plan), "--only", "full", "--seeds", "0"]) == 0
    (path,) = (tmp_path / "results").glob("*.json")
    found = json.loads(path.read_text())
    assert found["run"] == "full" and found["seed"] == 0 and 0 < found["results"]["trained"]["linear"]["miou"] <= 1
    assert path.stat().st_size < 10_000
    before = path.stat().st_mtime_ns
    assert main(["experiments", str(plan), "--seeds", "0"]) == 0
    assert path.stat().st_mtime_ns == before and (tmp_path / "results" / "variant_seed0.json").exists()
    page = (tmp_path / "results" / "README.md").read_text()
    assert "| full | all of it |" in page and "66.8" in page and "variant < full:" in page
    with Image.open(tmp_path / "results" / "scores.png") as image:
        assert image.width == 900
    capsys.readouterr()
    assert main(["experiments", str(plan), "--dry-run"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["full seed 1", "variant seed 1"]


def test_runs_at_a_time_share_the_cores(plan, tmp_path, capsys, monkeypatch):
    seen, real = [], subprocess.run
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: (seen.append(kwargs["env"]), real(*args, **kwargs))[1])
    assert main(["experiments", str(plan), "--seeds", "0", "--jobs", "2"]) == 0
    assert {p.stem for p in (tmp_path / "results").glob("*.json")} == {"full_seed0", "variant_seed0"}
    assert [env["OMP_NUM_THREADS"] for env in seen] == ["3", "3"]
    assert "| variant |" in capsys.readouterr().out
    assert main(["experiments", str(plan), "--jobs", "0"]) == 2


def test_ctrl_c_stops_all_runs_and_the_same_command_goes_on(plan, tmp_path):
    plan.write_text(plan.read_text().replace("optimizer.epochs=1", "optimizer.epochs=400"))
    command = [sys.executable, "-m", "pcssl", "experiments", str(plan), "--seeds", "0", "--jobs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    logs = [tmp_path / "runs" / name / "seed0" / "log.txt" for name in ("full", "variant")]
    while process.poll() is None and not all(log.exists() and "step " in log.read_text() for log in logs):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130 and "the same command goes on" in told
    assert all("stopped; saved" in log.read_text() for log in logs) and not list((tmp_path / "results").glob("*.json"))


def test_a_run_that_fails_is_named(plan, tmp_path, capsys):
    (tmp_path / "variant.yaml").write_text(f"base: full.yaml\ndata: {{dataset: {{root: {tmp_path / 'nothing'}}}}}\n")
    assert main(["experiments", str(plan), "--only", "variant", "--seeds", "0"]) == 2
    assert "variant seed 0 (status 2, see" in capsys.readouterr().err
    assert "nothing" in (tmp_path / "runs" / "variant" / "seed0" / "log.txt").read_text()
    (tmp_path / "variant.yaml").write_text("nonsense: 1\n")
    assert main(["experiments", str(plan), "--only", "full", "--seeds", "0"]) == 2  # before anything has run
    assert "nonsense" in capsys.readouterr().err and not (tmp_path / "runs" / "full").exists()


def test_results_of_other_settings_are_refused(plan, tmp_path, capsys):
    assert main(["experiments", str(plan), "--only", "full", "--seeds", "0"]) == 0
    with open(tmp_path / "full.yaml", "a") as file:
        file.write("objective: {mask_ratio: 0.3}\nlog_every: 7\n")
    capsys.readouterr()
    assert main(["experiments", str(plan)]) == 2
    assert "full_seed0.json: made with other settings" in capsys.readouterr().err
    assert main(["experiments", str(plan), "--report"]) == 0
    assert "than the configs have now: full_seed0." in capsys.readouterr().out
    (tmp_path / "full.yaml").write_text((tmp_path / "full.yaml").read_text().replace("objective: {mask_ratio: 0.3}\n", ""))
    assert main(["experiments", str(plan), "--dry-run"]) == 0  # how often it logs changes no score
    path = tmp_path / "results" / "full_seed0.json"
    before_an_option_came = json.loads(path.read_text())
    del before_an_option_came["settings"]["objective"]["crop"]
    path.write_text(json.dumps(before_an_option_came))
    assert main(["experiments", str(plan), "--dry-run"]) == 0
    assert "full seed 0" not in capsys.readouterr().out


def test_unknown_runs_are_refused(plan, capsys):
    assert main(["experiments", str(plan), "--only", "ful"]) == 2
    assert "no run called ful" in capsys.readouterr().err


def test_orders_are_checked_in_means_and_seeds():
    runs = tuple(Run(n, n) for n in "abc")
    plan = Plan("o", "r", runs, orders=(("a", "b"), ("b", "c")))
    scores = {"a": [1.0, 5.0], "b": [2.0, 6.0], "c": [3.0, 1.0]}
    found = {name: {"linear": dict(enumerate(values))} for name, values in scores.items()}
    (lines,) = check_orders(plan, found)
    assert "a < b: holds by +1.0, in 2 of 2 seeds" in lines and "b < c: DOES NOT HOLD by -2.0, in 1 of 2" in lines
    assert "| a |  | 3.0 (1.0, 5.0) | 2 |" in table(plan, found)


def test_orders_compare_the_same_seeds(tmp_path):
    """Some are done of one run, others of the other, and the tenth is not before the second."""
    done = {("a", 0): 0.1, ("a", 2): 0.3, ("b", 1): 0.2, ("b", 2): 0.25, ("b", 10): 0.9}
    for (name, seed), miou in done.items():
        content = {"seed": seed, "results": {"trained": {"linear": {"miou": miou}}}}
        (tmp_path / f"{name}_seed{seed}.json").write_text(json.dumps(content))
    plan = Plan("o", str(tmp_path), tuple(Run(n, n) for n in "abc"), orders=(("a", "b", "c"),))
    found = collect(plan)
    assert list(found["b"]["linear"]) == [1, 2, 10]
    (lines,) = check_orders(plan, found)
    assert lines == "- a < b: DOES NOT HOLD by -5.0, in 0 of 1 seeds"


def test_plans_without_a_linear_probe_or_without_any(plan, tmp_path, capsys):
    text = plan.read_text()
    plan.write_text(text.replace("overrides: [", 'overrides: ["probe.heads=[nn]", '))
    assert main(["experiments", str(plan), "--only", "full", "--seeds", "0"]) == 0
    assert "| full | all of it |" in capsys.readouterr().out and not (tmp_path / "results" / "scores.png").exists()
    (tmp_path / "results" / "full_seed0.json").unlink()
    plan.write_text(text.replace("overrides: [", 'overrides: ["probe.after_training=false", '))
    assert main(["experiments", str(plan), "--only", "full", "--seeds", "1"]) == 2
    assert "full seed 1 has no results.json" in capsys.readouterr().err


def flat(value, prefix=""):
    if isinstance(value, dict):
        return {k: v for key, x in value.items() for k, v in flat(x, f"{prefix}{key}.").items()}
    return {prefix: value}


def test_ablations_differ_from_their_base_in_one_line():
    plan = load_config(ROOT / "configs" / "plans" / "ablations.yaml", Plan, [])
    files = (ROOT / "configs" / "ablations").glob("*.yaml")
    settings = {p.stem: flat(to_dict(load_config(p, TrainConfig, []))) for p in files}
    assert settings.keys() == {r.name for r in plan.runs}
    for r in plan.runs[1:]:
        text = (ROOT / "configs" / "plans" / r.config).read_text()
        base, change = [line for line in text.splitlines() if not line.startswith("#")]
        base = base.removeprefix("base: ").removesuffix(".yaml")
        assert base == {"layer_no_mask": "layer_targets", "no_mask_small": "no_mask"}.get(r.name, "full")
        different = {key for key, value in settings[base].items() if value != settings[r.name][key]}
        assert 1 <= len(different) <= 2, (r.name, different, change)
