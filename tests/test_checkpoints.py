"""Files of weights: what is read, what is refused and how, and that nothing in them is executed."""

from __future__ import annotations

import itertools
import json
import os
import struct
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_msm import room
from test_training import Rooms, config, scenes  # noqa: F401

import pcssl
from pcssl.cli import main
from pcssl.errors import UserError
from pcssl.models.checkpoints import read_weights, write_model
from pcssl.models.checkpoints.state import grouped
from pcssl.training import load_checkpoint, pretrain, save_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory, scenes):  # noqa: F811
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    pretrain(config(folder), scenes)
    return folder


def header(path: Path) -> dict[str, str]:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))["__metadata__"]


def rewritten(path: Path, target: Path, **metadata: str) -> Path:
    """A copy with other metadata."""
    save_file(load_file(path), target, header(path) | metadata)
    return target


# ---------------------------------------------------------------- our own files


def test_training_writes_a_model_that_gives_the_same_features(run):
    model, checkpoint = (pcssl.load_model(run / name) for name in ("model.safetensors", "checkpoint.pt"))
    scene = room(8, 500)
    assert torch.equal(model.extract(scene).features, checkpoint.extract(scene).features)
    assert torch.equal(pcssl.load_model(run).extract(scene).features, model.extract(scene).features)
    assert model.voxel_size == 0.2 and model.card == checkpoint.card
    card = model.card
    assert card["method"] == "msm" and card["dataset"] == "folder" and card["split"] == "train"
    assert card["scene_names"] == Rooms.names and card["channels"] == [8, 16] and card["strides"] == [1, 2]
    assert card["license"] == "not stated" and card["date"].startswith("20") and card["version"] and "normal" in card["inputs"]
    assert read_weights(run).config == load_checkpoint(run / "checkpoint.pt")["config"]
    assert (run / "model.safetensors").stat().st_mode == (run / "config.yaml").stat().st_mode
    assert (run / "model.safetensors").stat().st_size < (run / "checkpoint.pt").stat().st_size / 2


def test_a_finished_run_without_its_model_writes_it_again(run, scenes, tmp_path):  # noqa: F811
    content = load_checkpoint(run / "checkpoint.pt")
    content["config"]["output"] = str(tmp_path)
    del content["format"]
    save_checkpoint(tmp_path / "checkpoint.pt", content)
    pretrain(config(tmp_path), scenes, resume=True)
    assert (tmp_path / "model.safetensors").is_file()


def test_a_model_that_does_not_say_its_kind_is_of_scenes(run, tmp_path):
    known = header(run / "model.safetensors")
    assert known.pop("kind") == "scenes"
    save_file(load_file(run / "model.safetensors"), tmp_path / "model.safetensors", known)
    assert pcssl.load_model(tmp_path).voxel_size == 0.2


def test_export_adds_a_licence_and_shows_the_card(run, tmp_path, capsys):
    checkpoint = str(run / "checkpoint.pt")
    assert main(["export", checkpoint, "--out", str(tmp_path / "m"), "--license", "CC-BY-4.0"]) == 0
    assert main(["export", str(tmp_path / "m")]) == 0
    assert "license: CC-BY-4.0" in capsys.readouterr().out
    assert pcssl.load_model(tmp_path / "m").card["license"] == "CC-BY-4.0"
    for arguments, message in (
        ([str(tmp_path / "m"), "--out", str(tmp_path / "m")], "the model itself"),
        ([checkpoint, "--license", "MIT"], "needs --out"),
        ([str(tmp_path)], "is a folder without model.safetensors or checkpoint.pt"),
    ):
        assert main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_released_weights_can_be_exported(tmp_path):
    weights = read_weights_of_released(tmp_path)
    write_model(tmp_path / "m.safetensors", weights)
    again = read_weights(tmp_path / "m.safetensors")
    assert replace(again, state={}) == replace(weights, state={}) and again.mode == "msm"
    assert all(torch.equal(again.state[k], x) for k, x in weights.state.items())


def read_weights_of_released(folder):
    torch.save({"model": {"module.student.a": torch.ones(2, 3).t()}}, folder / "released.pth")
    return read_weights(folder / "released.pth")


def test_a_failed_write_leaves_the_model_that_was_there(run, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"earlier")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pcssl.atomic.os.fsync", full)
    with pytest.raises(UserError, match="cannot write model.*No space left"):
        write_model(path, read_weights(run))
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["evil.pt", "evil.pth", "evil.safetensors", "model.safetensors"])
def test_no_file_of_weights_runs_code(tmp_path, name):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"format": "pcssl-checkpoint-1", "x": Evil()}, tmp_path / name)
    with pytest.raises(UserError, match="cannot read"):
        pcssl.load_model(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kept", [0, 5, 200, -100])
def test_a_model_cut_short_is_refused(run, tmp_path, kept):
    path = tmp_path / "model.safetensors"
    path.write_bytes((run / "model.safetensors").read_bytes()[:kept])
    with pytest.raises(UserError, match="cannot read model.*cut short or damaged") as error:
        pcssl.load_model(path)
    assert "\n" not in str(error.value)


def test_models_of_other_versions_are_refused_with_the_version(run, tmp_path):
    path, target = run / "model.safetensors", tmp_path / "m.safetensors"
    card = json.dumps({"version": "9.9"})
    section = json.loads(header(path)["model"])
    reading = json.loads(header(path)["reading"])
    for metadata, message in (
        ({"format": "pcssl-model-2"}, "format pcssl-model-2.*update pcssl"),
        ({"kind": "sounds"}, "a model of sounds, this pcssl knows scenes, images; update pcssl"),
        ({"model": json.dumps(section | {"colour": 3}), "card": card}, "cannot build its model.*colour.*written by pcssl 9.9"),
        ({"model": json.dumps(section | {"name": "hunet3"})}, "cannot build its model.*hunet3"),
        ({"reading": json.dumps(reading | {"gamma": 3}), "card": card}, "gamma.*written by pcssl 9.9"),
        ({"reading": json.dumps(reading | {"voxel_size": -1})}, "m.safetensors: voxel_size: expected a number > 0"),
        ({"reading": json.dumps(reading | {"inputs": "smell"})}, "inputs 'smell'"),
        ({"model": "{"}, "header is damaged"),
    ):
        with pytest.raises(UserError, match=message):
            pcssl.load_model(rewritten(path, target, **metadata))
    content = load_checkpoint(run / "checkpoint.pt")
    del content["backbone_prefix"], content["format"]
    save_checkpoint(tmp_path / "old.pt", content)
    with pytest.raises(UserError, match="old.pt holds no 'backbone_prefix'.*another version"):
        pcssl.load_model(tmp_path / "old.pt")


def test_safetensors_of_other_models_are_refused(tmp_path):
    save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"channels": [3]}')
    with pytest.raises(UserError, match="neither a pcssl checkpoint.*its keys: .*config"):
        pcssl.load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json"):
        pcssl.load_model(tmp_path)


def test_every_tensor_that_does_not_fit_is_named(run, tmp_path):
    weights = read_weights(run)
    state = {f"x.{k}" if k.startswith("up.") else k: v[..., None] if k.startswith("resnet") else v for k, v in weights.state.items()}
    write_model(tmp_path / "model.safetensors", replace(weights, state=state))
    with pytest.raises(UserError) as error:
        pcssl.load_model(tmp_path)
    said = str(error.value)
    assert "missing: up.0.0.norm.scale, up.0.1" in said
    assert "\n" not in said
    assert "wrong shape: resnet_dec.1.0.skip_path.gamma, resnet_enc.0.0.skip_path.gamma (1, 8, 1) instead of (1, 8);" in said
    named = expanded(said.split("unexpected: ")[1].split("; wrong")[0])
    assert named == {k for k in state if k.startswith("x.")}


def expanded(text):
    """Every name that a text of braces stands for."""
    groups = [[part.strip("{}").split(",") for part in group.split(".")] for group in text.split(", ")]
    names = [".".join(parts) for group in groups for parts in itertools.product(*group)]
    assert len(names) == len(set(names))
    return set(names)


def test_names_are_grouped_without_loss():
    assert grouped([]) == "" and grouped(["a.b"]) == "a.b"
    assert grouped(["up.0.w", "up.1.w", "up.10.w", "up.0.b", "up.1.b", "up.10.b"]) == "up.{0,1,10}.{b,w}"
    assert grouped(["a.0.w", "a.1.w", "a.0.b", "c"]) == "a.0.{b,w}, a.1.w, c"
    everything = {".".join(p) for p in itertools.product("abc", "0123", "xy", "wb")} | {"a.b", "c.0"}
    for drop in range(0, 48, 7):
        names = set(sorted(everything)[drop:]) - {"b.2.x.w"}
        assert expanded(grouped(names)) == names


# ---------------------------------------------------------------- the Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for huggingface_hub: repositories are folders under the returned one."""
    errors = types.ModuleType("huggingface_hub.errors")
    errors.EntryNotFoundError = type("EntryNotFoundError", (Exception,), {})
    errors.RemoteEntryNotFoundError = type("RemoteEntryNotFoundError", (errors.EntryNotFoundError,), {})
    errors.RepositoryNotFoundError = type("RepositoryNotFoundError", (OSError,), {})
    module = types.ModuleType("huggingface_hub")
    module.errors, root = errors, tmp_path / "hub"

    def list_repo_files(repository):
        if repository == "no/network":
            raise ConnectionError("Name or service not known\nmore lines")
        if not (root / repository).is_dir():
            raise errors.RepositoryNotFoundError("404 Client Error.\nmore lines")
        return sorted(p.relative_to(root / repository).as_posix() for p in (root / repository).rglob("*.*"))

    def hf_hub_download(repository, file):
        if repository == "no/network":
            raise errors.EntryNotFoundError("not in the cache")
        if file not in list_repo_files(repository):
            raise errors.RemoteEntryNotFoundError("404 Client Error.\nmore lines")
        module.downloaded.append(file)
        return str(root / repository / file)

    module.list_repo_files, module.hf_hub_download, module.downloaded = list_repo_files, hf_hub_download, []
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    root.mkdir()
    module.root = root
    return module


def test_models_come_from_the_hub(hub, run, tmp_path):
    model = hub.root / "lab" / "rooms"
    write_model(model / "model.safetensors", read_weights(run))
    (model / "old.pth").write_bytes(b"")
    assert pcssl.load_model("lab/rooms").voxel_size == 0.2
    assert pcssl.load_model("hf://lab/rooms").card["method"] == "msm"
    other = hub.root / "lab" / "msm" / "weights"
    other.mkdir(parents=True)
    torch.save({"state_dict": {"module.student.a": torch.ones(1)}}, other / "msm.pth")
    (other / "README.md").write_text("")
    assert read_weights("lab/msm").mode == "msm"
    torch.save({}, other / "second.pth")
    assert read_weights("lab/msm").mode == "msm"  # called like the repository
    torch.save({}, other.parent / "msm.pt")
    with pytest.raises(UserError, match="several: msm.pt, weights/msm.pth, weights/second.pth; name one, hf://lab/msm/FILE"):
        read_weights("lab/msm")
    assert read_weights("hf://lab/msm/weights/msm.pth").mode == "msm"


def test_the_config_beside_a_safetensors_file_is_fetched(hub):
    (hub.root / "a" / "b" / "small").mkdir(parents=True)
    save_file({"x": torch.zeros(1)}, hub.root / "a" / "b" / "small" / "b.safetensors")
    (hub.root / "a" / "b" / "small" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="its keys: state_dict, metadata, config"):
        read_weights("a/b")
    assert hub.downloaded == ["small/b.safetensors", "small/config.json"]


def test_what_the_hub_does_not_have_is_said_in_one_line(hub):
    (hub.root / "lab" / "empty").mkdir(parents=True)
    for name, message in (
        ("lab/none", "no model 'lab/none'"),
        ("lab/empty", "has no model.safetensors, and of other files of weights none"),
        ("hf://lab/empty/a.pth", "no file 'a.pth' in lab/empty"),
        ("no/network", "cannot get no/network.*Name or service not known"),
        ("hf://lab", "write it as hf://owner/name"),
        ("runs/none/checkpoint.pt", "no checkpoint at runs/none/checkpoint.pt"),
        ("runs/checkpoint.pt", "no checkpoint at"),
        ("none", "no checkpoint at none"),
    ):
        with pytest.raises(UserError, match=message) as error:
            pcssl.load_model(name)
        assert "\n" not in str(error.value)


def test_without_the_hub_s_package_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"no file or folder lab/rooms.*pip install 'pcssl\[hub\]'"):
        pcssl.load_model("lab/rooms")
