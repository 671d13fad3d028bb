"""Configs: what is read, what is refused and how that is said, and that a dump loads back equal."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml

from pcssl import registry
from pcssl.config import (
    Component,
    ComponentConfig,
    ConfigError,
    Range,
    component,
    dump_yaml,
    from_dict,
    load_config,
    to_dict,
)
from pcssl.errors import UserError


@dataclass
class HeadConfig:
    width: int = 8
    depth: int = 1


@dataclass
class NetConfig:
    channels: tuple[int, ...] = (8, 16)
    drop: Annotated[float, Range(0, 1, high_open=True)] = 0.0
    head: Annotated[Any, Component("head")] | None = None


@dataclass
class OtherConfig:
    width: int
    channels: tuple[int, ...] = ()


@dataclass
class OptimizerConfig:
    lr: Annotated[float, Range(0, low_open=True)]
    betas: tuple[float, float] = (0.9, 0.95)
    steps: int = 100
    warmup: int = 0

    def __post_init__(self):
        if self.warmup > self.steps:
            raise ValueError(f"warmup ({self.warmup}) is longer than the training ({self.steps} steps)")


@dataclass
class Config:
    optimizer: OptimizerConfig
    model: Annotated[Any, Component("net")] = field(default_factory=lambda: component("net", "unet", drop=0.5))
    mode: Literal["fast", "exact"] = "fast"
    amp: bool = False
    out: str = "runs"
    data: Path = Path("data")
    seed: int | None = None
    scale: Annotated[float | None, Range(0.5, 2)] = None
    sizes: list[float] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    heads: dict[str, HeadConfig] = field(default_factory=dict)
    tail: HeadConfig = field(default_factory=lambda: HeadConfig(width=64, depth=2))
    voxel: float | Literal["auto"] | list[float] = "auto"
    tag: int | str = 0
    note: float | str = ""
    imports: tuple[str, ...] = ()


MINIMAL = "optimizer: {lr: 0.1}\n"


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    """Two nets with different options, and a head that a net can hold."""
    monkeypatch.setattr(registry, "_entries", {})
    monkeypatch.setattr(registry, "_imported", set())
    monkeypatch.setattr(registry, "MODULES", {"net": [], "head": []})
    registry.register("net", "unet", config=NetConfig)(lambda config, *args: ("unet", config, args))
    registry.register("net", "unet2", config=NetConfig)(lambda config: ("unet2", config))
    registry.register("net", "other", config=OtherConfig)(lambda config, *args: ("other", config, args))
    registry.register("head", "mlp", config=HeadConfig)(lambda config: config)
    registry.register("head", "wide", config=HeadConfig)(lambda config, _=0: config)


@pytest.fixture
def write(tmp_path):
    def write(text, name="a.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.fixture
def load(write):
    return lambda text, *overrides: load_config(write(text), Config, overrides)


def refusal(call, *args, **kwargs) -> str:
    """The message of the ConfigError that the call raises, which must be one line."""
    with pytest.raises(ConfigError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("amp: true", "amp", True),
        ("amp: on", "amp", True),
        ("out: a b", "out", "a b"),
        ("out: '3'", "out", "3"),
        ("data: x/y", "data", Path("x/y")),
        ("seed: 3", "seed", 3),
        ("seed: null", "seed", None),
        ("seed:", "seed", None),
        ("scale: 1", "scale", 1.0),
        ("scale: null", "scale", None),
        ("mode: exact", "mode", "exact"),
        ("sizes: [1, 2.5, 1e-3, '1e2']", "sizes", [1.0, 2.5, 0.001, 100.0]),
        ("weights: {on: 1, 7: 2}", "weights", {"on": 1.0, "7": 2.0}),
        ("heads: {a: {width: 3}}", "heads", {"a": HeadConfig(width=3)}),
        ("voxel: auto", "voxel", "auto"),
        ("voxel: 2", "voxel", 2.0),
        ("voxel: [1, 2]", "voxel", [1.0, 2.0]),
        ("tag: '7'", "tag", "7"),
        ("tag: 7", "tag", 7),
        ("note: '7'", "note", "7"),
        ("note: 7", "note", 7.0),
    ],
)
def test_values(load, line, key, value):
    got = getattr(load(MINIMAL + line), key)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "'1e-3'", "0.001", ".1e-2", "+1e-3"])
def test_floats_in_every_spelling(load, text):
    lr = load(f"optimizer: {{lr: {text}}}").optimizer.lr
    assert lr == 0.001 and type(lr) is float


def test_integers_become_floats_where_a_float_is_due(load):
    assert type(load("optimizer: {lr: 1}").optimizer.lr) is float


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        ("amp: 1", "amp", "expected true or false, got 1"),
        ("amp: 'true'", "amp", "expected true or false, got 'true'"),
        ("seed: true", "seed", "expected an integer or null, got true"),
        ("seed: 1.0", "seed", "expected an integer or null, got 1.0"),
        ("seed: '1'", "seed", "expected an integer or null, got '1'"),
        ("sizes: [1, true]", "sizes[1]", "expected a number, got true"),
        ("sizes: [.nan]", "sizes[0]", "expected a number, got nan"),
        ("sizes: [nan]", "sizes[0]", "expected a number, got 'nan'"),
        ("sizes: 3", "sizes", "expected a list, each a number, got 3"),
        ("out: 3", "out", "expected text, got 3 (quote it if it is text)"),
        ("out: no", "out", "expected text, got false (quote it if it is text)"),
        ("out: [a]", "out", "expected text, got a list of 1"),
        ("out: null", "out", "expected text, got null (nothing)"),
        ("mode: exat", "mode", "expected one of: 'fast', 'exact', got 'exat' (did you mean 'exact'?)"),
        ("scale: 0.4", "scale", "expected a number or null, >= 0.5 and <= 2, got 0.4"),
        ("scale: .inf", "scale", "expected a number or null, >= 0.5 and <= 2, got inf"),
        ("weights: [1]", "weights", "expected a mapping, each a number, got a list of 1"),
        ("weights: {a: b}", "weights.a", "expected a number, got 'b'"),
        ("heads: {a: {width: x}}", "heads.a.width", "expected an integer, got 'x'"),
        ("tail: 3", "tail", "expected a mapping with the keys width, depth, got 3"),
        ("voxel: [1, x]", "voxel[1]", "expected a number, got 'x'"),
        ("voxel: aut", "voxel", "got 'aut'"),
        ("model: unet", "model", "expected a net: a mapping with `name` and its options, got 'unet'"),
        ("model: null", "model", "expected a net"),
    ],
)
def test_wrong_types_and_ranges(load, line, key, said):
    message = refusal(load, MINIMAL + line)
    assert f"a.yaml:2: {key}: " in message and said in message


@pytest.mark.parametrize("betas", ["[0.9]", "[0.9, 0.9, 0.9]", "[]"])
def test_tuples_of_fixed_length(load, betas):
    assert "optimizer.betas: expected a list of 2 (a number, a number)" in refusal(
        load, f"optimizer: {{lr: 1, betas: {betas}}}"
    )


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        (Range(0, 1), [0, 0.5, 1], [-1e-9, 1.001, float("inf")]),
        (Range(0, 1, low_open=True, high_open=True), [0.5], [0, 1]),
        (Range(low=2), [2, 1e9], [1.9]),
        (Range(high=2), [-1e9, 2], [2.1]),
        (Range(), [0], []),
    ],
)
def test_range(bounds, inside, outside):
    assert all(x in bounds for x in inside) and not any(x in bounds for x in outside)
    assert float("nan") not in Range(0, 1)


# ---------------------------------------------------------------- keys


def test_unknown_key_names_file_line_key_nearest_and_allowed(load):
    message = refusal(load, "optimizer:\n  lr: 1\n  stesp: 3\n")
    assert "a.yaml:3: optimizer.stesp: unknown key (did you mean 'steps'?)" in message
    assert message.endswith("allowed here: lr, betas, steps, warmup")


def test_missing_key(load):
    assert refusal(load, "mode: fast").endswith("a.yaml: optimizer: missing; expected a mapping with the keys "
                                                "lr, betas, steps, warmup")
    assert refusal(load, "\noptimizer: {steps: 3}").endswith("a.yaml:2: optimizer.lr: missing; expected a number > 0")


def test_missing_key_is_not_blamed_on_an_override(load):
    assert "a.yaml:1: optimizer.lr: missing" in refusal(load, "optimizer: {steps: 3}", "optimizer.steps=4")


def test_post_init_errors_become_config_errors(load):
    message = refusal(load, "optimizer: {lr: 1, warmup: 200}")
    assert message.endswith("a.yaml:1: optimizer: warmup (200) is longer than the training (100 steps)")
    assert refusal(load, MINIMAL, "optimizer.warmup=200").startswith("command line: optimizer: warmup (200)")


def test_config_error_is_a_user_error():
    assert issubclass(ConfigError, UserError)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2\nb: 3\n", "a.yaml:2: not valid YAML"),
        ("a: 1\n\tb: 2\n", "a.yaml:2: not valid YAML"),
        ("- a\n- b\n", "a.yaml: expected `key: value` lines, got a list of 2"),
        ("just words", "a.yaml: expected `key: value` lines, got 'just words'"),
        ("amp: true\nout: x\namp: false\n", "a.yaml:3: key 'amp' is given twice (first: "),
        ("optimizer:\n  lr: 1\n  lr: 2\n", "a.yaml:3: key 'lr' is given twice"),
        ("[a, b]: 3\n", "a.yaml:1: a key must be a word"),
        ("x: &a [*a]\n", "a.yaml:1: an alias refers to the value it stands in"),
        ("out: 2024-13-45\n", "a.yaml:1: 2024-13-45 is not a valid value"),
        ("out: !!python/object:os.system x\n", "not valid YAML"),
    ],
)
def test_bad_files(load, text, said):
    assert said in refusal(load, text)


def test_not_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: \xff\xfe\x00")
    assert "a.yaml" in refusal(load_config, tmp_path / "a.yaml", Config)


def test_empty_file_gives_the_defaults(write):
    assert load_config(write(""), HeadConfig) == HeadConfig()
    assert load_config(write("# nothing\n"), HeadConfig) == HeadConfig()


def test_missing_file_lists_near_names(write, tmp_path):
    write("", "pretrain.yaml")
    message = refusal(load_config, tmp_path / "pretrian.yaml", Config)
    assert "did you mean 'pretrain.yaml'" in message
    assert "nor is there a folder" in refusal(load_config, tmp_path / "no" / "a.yaml", Config)
    assert "cannot read" in refusal(load_config, tmp_path, Config)


def test_base_chain_relative_to_each_file(write):
    write("optimizer: {lr: 1, steps: 5}\nsizes: [1, 2]\nout: root\n", "root.yaml")
    write("base: ../root.yaml\noptimizer: {steps: 6}\nout: middle\n", "sub/middle.yaml")
    config = load_config(write("base: sub/middle.yaml\nsizes: [3]\n"), Config)
    assert config.optimizer == OptimizerConfig(lr=1.0, steps=6)  # mappings merge
    assert config.sizes == [3.0]  # lists replace
    assert config.out == "middle"


def test_base_errors_say_which_file(write):
    write("optimizer: {lr: 1}\nmodd: fast\n", "root.yaml")
    child = write("base: root.yaml\nout: x\n")
    assert "root.yaml:2: modd: unknown key" in refusal(load_config, child, Config)
    write(MINIMAL, "root.yaml")
    assert "a.yaml:2: out: expected text" in refusal(load_config, write("base: root.yaml\nout: 3\n"), Config)
    assert "a.yaml:1: no such file" in refusal(load_config, write("base: rot.yaml\n"), Config)
    assert "did you mean 'root.yaml'" in refusal(load_config, write("base: rot.yaml\n"), Config)
    assert "a.yaml:1: base: expected the name of a file" in refusal(load_config, write("base: [x]\n"), Config)


def test_base_cycles_are_refused(write):
    write("base: a.yaml\n", "b.yaml")
    message = refusal(load_config, write("base: b.yaml\n"), Config)
    assert "b.yaml:1: base: files extend each other in a circle: " in message
    assert message.count("a.yaml") == 2


def test_null_replaces_a_section_of_the_base(write):
    write(MINIMAL + "model: {name: unet, head: {name: mlp}}\n", "root.yaml")
    config = load_config(write("base: root.yaml\nmodel: {head: null}\n"), Config)
    assert config.model.options.head is None


# ---------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("optimizer.lr=1e-3", lambda c: c.optimizer.lr, 0.001),
        ("sizes=[1,2]", lambda c: c.sizes, [1.0, 2.0]),
        ("amp=true", lambda c: c.amp, True),
        ("seed=null", lambda c: c.seed, None),
        ("seed=", lambda c: c.seed, None),
        ("seed=#", lambda c: c.seed, None),
        ("out=a=b", lambda c: c.out, "a=b"),
        ("out='3'", lambda c: c.out, "3"),
        ("weights={a: 1}", lambda c: c.weights, {"a": 1.0}),
        ("weights.a=1", lambda c: c.weights, {"a": 1.0}),
        ("model.drop=0.25", lambda c: c.model.options.drop, 0.25),
    ],
)
def test_overrides(load, override, get, value):
    assert get(load(MINIMAL + "seed: 4\n", override)) == value


def test_the_last_override_of_a_key_wins(load):
    assert load(MINIMAL, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "command line: 'seed': expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("optimzer.lr=3", "command line: optimzer: unknown key (did you mean 'optimizer'?)"),
        ("optimizer.l=3", "command line: optimizer.l: unknown key"),
        ("optimizer.lr=-1", "command line: optimizer.lr: expected a number > 0, got -1"),
        ("sizes=[1,", "in 'sizes=[1,'"),
        ("out=@x", "quote the value"),
        ("out.x=3", "command line: out: expected text, got a mapping (x)"),
    ],
)
def test_bad_overrides(load, override, said):
    message = refusal(load, MINIMAL, override)
    assert message.startswith("command line: ") and said in message


# ---------------------------------------------------------------- components


def test_component_builds_its_part(load):
    model = load(MINIMAL + "model: {name: unet, channels: [4]}\n").model
    assert model == ComponentConfig("net", "unet", NetConfig(channels=(4,), drop=0.5))
    assert model.build(1, 2) == ("unet", model.options, (1, 2))


def test_component_options_follow_the_rules(load):
    text = MINIMAL + "model:\n  name: unet\n  chanels: [4]\n"
    assert "a.yaml:4: model.chanels: unknown key (did you mean 'channels'?)" in refusal(load, text)
    text = MINIMAL + "model: {name: unet, head: {name: mlp, width: x}}\n"
    assert "a.yaml:2: model.head.width: expected an integer, got 'x'" in refusal(load, text)
    assert "command line: model.drop: expected a number >= 0 and < 1, got 1" in refusal(load, MINIMAL, "model.drop=1")


def test_component_names(load):
    message = refusal(load, MINIMAL + "model:\n  name: unett\n")
    assert "a.yaml:3: model.name: unknown net 'unett' (did you mean 'unet' or 'unet2'?)" in message
    assert message.endswith("known: other, unet, unet2")
    assert "model.name: expected text, got 3" in refusal(load, MINIMAL + "model: {name: 3}")
    message = refusal(load, MINIMAL + "model: {head: {width: 3}}")
    assert "model.head.name: missing; expected the name of a registered head" in message


def test_component_without_name_changes_the_default_one(load):
    options = load(MINIMAL + "model: {channels: [4]}\n").model.options
    assert options == NetConfig(channels=(4,), drop=0.5)  # 0.5 is the schema's default component's


def test_another_component_has_nothing_of_the_default_one(load):
    assert load(MINIMAL + "model: {name: unet2}\n").model.options == NetConfig(drop=0.0)


def test_a_new_name_drops_the_options_of_the_old(write):
    write(MINIMAL + "model: {name: unet, channels: [4], drop: 0.1}\n", "root.yaml")
    child = write("base: root.yaml\nmodel: {name: other, width: 3}\n")
    assert load_config(child, Config).model.options == OtherConfig(width=3)
    assert "model.width: unknown key" in refusal(load_config, child, Config, ["model.name=unet", "model.width=5"])


def test_the_same_name_merges(write):
    write(MINIMAL + "model: {name: unet, channels: [4], drop: 0.1}\n", "root.yaml")
    child = write("base: root.yaml\nmodel: {name: unet, drop: 0.2}\n")
    assert load_config(child, Config).model.options == NetConfig(channels=(4,), drop=0.2)


def test_overrides_that_change_the_name_come_in_any_order(write):
    path = write(MINIMAL + "model: {name: unet, channels: [4]}\n")
    for overrides in (["model.width=5", "model.name=other"], ["model.name=other", "model.width=5"]):
        assert load_config(path, Config, overrides).model.options == OtherConfig(width=5)


def test_a_new_name_inside_a_component_drops_too(write):
    write(MINIMAL + "model: {name: unet, head: {name: mlp, width: 3}, drop: 0.1}\n", "root.yaml")
    child = write("base: root.yaml\nmodel: {head: {name: wide, depth: 4}}\n")
    options = load_config(child, Config).model.options
    assert options.head.options == HeadConfig(depth=4) and options.drop == 0.1


def test_imports_are_loaded_before_checking(write, tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from dataclasses import dataclass\n"
        "from pcssl.registry import register\n"
        "@dataclass\n"
        "class Mine:\n"
        "    size: int = 1\n"
        "register('net', 'mine', config=Mine)(lambda config: config.size)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = MINIMAL + "imports: [my_nets]\nmodel: {name: mine, size: 3}\n"
    config = load_config(write(text), Config)
    assert config.model.build() == 3
    assert config.imports == ("my_nets",)  # kept, so that the dump can be loaded elsewhere
    monkeypatch.delitem(__import__("sys").modules, "my_nets")


def test_imports_in_a_schema_without_that_field(write):
    assert load_config(write("imports: [json]\nwidth: 3\n"), HeadConfig) == HeadConfig(width=3)


def test_bad_imports(load):
    assert "a.yaml:2: imports: no module 'no_such'" in refusal(load, MINIMAL + "imports: [no_such]")
    assert "imports: no module 'json.no'" in refusal(load, MINIMAL + "imports: [json.no]")
    assert "imports: expected a list" in refusal(load, MINIMAL + "imports: json")


# ---------------------------------------------------------------- defaults of sections


def test_a_section_given_in_part_keeps_the_rest_of_its_default(load):
    assert load(MINIMAL + "tail: {depth: 5}\n").tail == HeadConfig(width=64, depth=5)


def test_sections_inside_dicts_have_the_defaults_of_their_class(load):
    assert load(MINIMAL + "heads: {a: {depth: 5}}\n").heads["a"] == HeadConfig(width=8, depth=5)


# ---------------------------------------------------------------- back to plain data


def random_config(rng: random.Random) -> Config:
    def number():
        return rng.choice([rng.uniform(1e-9, 1e9), 10.0 ** rng.randint(-300, 300), float(rng.randint(1, 9))])

    words = ["", "a", "1e-3", "1e5", "null", "on", "3", "x: y", "é", "a\nb", " a ", "#", "2024-01-01", "'", "~", "*a"]
    head = component("head", rng.choice(["mlp", "wide"]), depth=rng.randint(-5, 5))
    net = component("net", "unet", channels=[rng.randint(0, 9) for _ in range(rng.randint(0, 3))],
                    drop=rng.random() * 0.99, head=rng.choice([None, head]))
    return Config(
        optimizer=OptimizerConfig(lr=number(), betas=(number(), -number()), steps=rng.randint(0, 10**20)),
        model=rng.choice([net, component("net", "other", width=rng.randint(0, 9))]),
        mode=rng.choice(["fast", "exact"]),
        amp=rng.random() < 0.5,
        out=rng.choice(words),
        data=Path(rng.choice(words)),
        seed=rng.choice([None, 0, -3]),
        scale=rng.choice([None, 0.5, 2.0]),
        sizes=[number() for _ in range(rng.randint(0, 3))],
        weights={w: number() for w in rng.sample(words, 3)},
        heads={w: HeadConfig(width=rng.randint(0, 9)) for w in rng.sample(words, 2)},
        tail=HeadConfig(rng.randint(0, 9), rng.randint(0, 9)),
        voxel=rng.choice(["auto", number(), [number()]]),
        tag=rng.choice([*words, 3]),
        note=rng.choice([*words, number()]),
        imports=(),
    )


@pytest.mark.parametrize("seed", range(50))
def test_round_trips(write, seed):
    config = random_config(random.Random(seed))
    assert from_dict(to_dict(config), Config) == config
    assert load_config(write(dump_yaml(config)), Config) == config
    assert yaml.safe_load(yaml.safe_dump(to_dict(config))) == to_dict(config)  # plain data only


def test_infinite_bounds_round_trip(write):
    config = from_dict({"optimizer": {"lr": float("inf")}}, Config)
    assert load_config(write(dump_yaml(config)), Config) == config


def test_to_dict_has_every_key_and_only_plain_values():
    plain = to_dict(from_dict({"optimizer": {"lr": 1}}, Config))
    assert plain["model"] == {"name": "unet", "channels": [8, 16], "drop": 0.5, "head": None}
    assert plain["optimizer"]["betas"] == [0.9, 0.95] and plain["data"] == "data"
    assert list(plain) == list(Config.__dataclass_fields__)


def test_to_dict_wants_an_instance():
    with pytest.raises(TypeError, match="dataclass instance"):
        to_dict(Config)


def test_from_dict_names_its_source():
    assert refusal(from_dict, {"optimizer": {"lr": 0}}, Config).startswith("checkpoint: optimizer.lr: expected")
    assert refusal(from_dict, {"x": 1}, Config, source="old.pt").startswith("old.pt: x: unknown key")
    assert "a key must be text" in refusal(from_dict, {1: 2}, Config)


def test_from_dict_leaves_the_mapping_alone():
    mapping = {"optimizer": {"lr": 1}, "imports": ["json"]}
    from_dict(mapping, Config)
    assert mapping == {"optimizer": {"lr": 1}, "imports": ["json"]}


def test_component_takes_objects_too():
    head = component("head", "mlp", width=3)
    assert component("net", "unet", head=head).options.head is head
    assert from_dict({"optimizer": OptimizerConfig(1.0), "tail": HeadConfig(3)}, Config).tail == HeadConfig(3)


def test_unsupported_annotations_are_programming_errors():
    @dataclass
    class Odd:
        x: complex = 0j

    with pytest.raises(TypeError, match="cannot hold"):
        from_dict({"x": 1}, Odd)
