"""Registering parts by name, and what is said about unknown ones."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import pytest

from pcssl import registry
from pcssl.config import ConfigError, Range
from pcssl.errors import UserError
from pcssl.registry import create, did_you_mean, lookup, names, register


@dataclass
class BallConfig:
    radius: Annotated[float, Range(0, low_open=True)] = 1.0
    tags: tuple[str, ...] = ()


class Ball:
    def __init__(self, config: BallConfig, *args):
        self.config, self.args = config, args


@pytest.fixture(autouse=True)
def shapes(monkeypatch):
    """A registry with one kind, "shape", that has a ball and a bell."""
    monkeypatch.setattr(registry, "_entries", {})
    monkeypatch.setattr(registry, "_imported", set())
    monkeypatch.setattr(registry, "MODULES", {})
    register("shape", "ball", config=BallConfig)(Ball)

    @register("shape", "bell", config=BallConfig)
    def bell(config, *args):
        return ("bell", config, args)


def test_names_are_sorted_and_lookup_finds_what_was_registered():
    assert names("shape") == ["ball", "bell"]
    entry = lookup("shape", "ball")
    assert entry.factory is Ball and entry.config is BallConfig


def test_register_returns_the_class_itself():
    assert register("shape", "other", config=BallConfig)(Ball) is Ball


def test_create_checks_options_and_passes_arguments():
    ball = create("shape", "ball", 7, "x", radius=2, tags=["a"])
    assert ball.config == BallConfig(2.0, ("a",)) and ball.args == (7, "x")
    assert create("shape", "bell")[1] == BallConfig()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"radus": 2}, ["radus", "did you mean 'radius'", "tags"]),
        ({"radius": "big"}, ["radius", "a number > 0", "'big'"]),
        ({"radius": 0}, ["radius", "> 0", "got 0"]),
    ],
)
def test_create_refuses_bad_options(options, said):
    with pytest.raises(ConfigError) as error:
        create("shape", "ball", **options)
    assert all(word in str(error.value) for word in [*said, "shape 'ball'"])


def test_unknown_name_lists_near_matches_and_all_names():
    with pytest.raises(UserError) as error:
        lookup("shape", "bal")
    assert str(error.value).startswith("unknown shape 'bal' (did you mean 'ball'?)")
    assert str(error.value).endswith("known: ball, bell")


def test_unknown_name_without_a_near_match_does_not_guess():
    with pytest.raises(UserError, match="unknown shape 'zzz'; known: ball, bell"):
        lookup("shape", "zzz")


def test_unknown_kind():
    with pytest.raises(UserError, match=r"unknown kind 'shap' \(did you mean 'shape'\?\); known: shape"):
        lookup("shap", "ball")


def test_taken_name_is_refused_but_a_reload_is_not():
    with pytest.raises(ValueError, match="already registered by .*Ball"):
        register("shape", "ball", config=BallConfig)(BallConfig)
    again = type("Ball", (Ball,), {"__module__": Ball.__module__, "__qualname__": "Ball"})
    register("shape", "ball", config=BallConfig)(again)
    assert lookup("shape", "ball").factory is again


def test_config_must_be_a_dataclass_without_name():
    with pytest.raises(TypeError, match="must be a dataclass"):
        register("shape", "x", config=dict)

    @dataclass
    class Named:
        name: str = ""

    with pytest.raises(TypeError, match="cannot be called 'name'"):
        register("shape", "x", config=Named)


def test_modules_of_a_kind_are_imported_at_the_first_question(tmp_path, monkeypatch):
    (tmp_path / "lazy_shapes.py").write_text(
        "from pcssl.registry import register\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class C: pass\n"
        "register('late', 'cube', config=C)(C)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "MODULES", {"late": ["lazy_shapes"]})
    names("shape")
    assert "lazy_shapes" not in sys.modules
    assert names("late") == ["cube"]
    monkeypatch.delitem(sys.modules, "lazy_shapes")


def test_failed_import_is_tried_again(tmp_path, monkeypatch):
    (tmp_path / "broken_shapes.py").write_text("raise RuntimeError('first')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "MODULES", {"late": ["broken_shapes"]})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="first"):
            names("late")


def test_did_you_mean():
    assert did_you_mean("lr", ["depth"]) == ""
    assert did_you_mean("dept", ["depth", "width"]) == " (did you mean 'depth'?)"
