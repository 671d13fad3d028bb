"""Typed, strict configs: dataclasses are the schema, YAML files fill them.

    @dataclass
    class TrainConfig:
        model: Annotated[Any, Component("model")]
        lr: Annotated[float, Range(0, low_open=True)] = 1e-3
        imports: tuple[str, ...] = ()

    config = load_config("configs/msm.yaml", TrainConfig, ["lr=3e-4", "model.depth=4"])
    model = config.model.build()

In a file, `base: other.yaml` names the file that it extends, relative to itself. Mappings are
merged, the extending file wins; lists and scalars replace. A component (`{name: hunet,
depth: 4}`) whose name changes starts from scratch: the options of the other name belong to
another schema. `imports: [my_module]` lists modules to import first, for components of your
own; a schema that has the field `imports` keeps them, so that a saved config can be loaded again.

A schema may be a union of dataclasses (`TrainConfig | ImageTrainConfig`), which their field `kind` tells apart:
each has one of its own, `kind: Literal["images"] = "images"`, and the first is taken where a file has none.

Annotations: bool, int, float, str, Path, Any, Literal, X | Y, X | None, list[X], tuple[X, ...],
tuple[X, Y], dict[str, X], dataclasses, Annotated with `Range` or `Component`.

Whatever is wrong is a `ConfigError`, one line: the file and line (or "command line"), the
dotted key, what is allowed.
"""

from __future__ import annotations

import importlib
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from pcssl.errors import UserError
from pcssl.registry import did_you_mean, lookup

COMMAND_LINE = "command line"

Schema = TypeVar("Schema")


class ConfigError(UserError):
    """A config that cannot be used: where, which key, what is allowed."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[float, Range(0, 1, high_open=True)]`: [0, 1)."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low is None or (value > self.low if self.low_open else value >= self.low)
        below = self.high is None or (value < self.high if self.high_open else value <= self.high)
        return above and below

    def __str__(self) -> str:
        low = "" if self.low is None else f"{'>' if self.low_open else '>='} {self.low}"
        high = "" if self.high is None else f"{'<' if self.high_open else '<='} {self.high}"
        return " and ".join(filter(None, (low, high)))


@dataclass(frozen=True)
class Component:
    """Marks a key that holds a registered part: `Annotated[Any, Component("model")]`.

    In YAML it is a mapping `{name: hunet, ...options}`; its value is a `ComponentConfig`.
    """

    kind: str


@dataclass(frozen=True)
class ComponentConfig:
    """A registered part and its checked options (an instance of the config it registered)."""

    kind: str
    name: str
    options: Any

    def build(self, *args: Any) -> Any:
        """`factory(options, *args)`."""
        return lookup(self.kind, self.name).factory(self.options, *args)


# ---------------------------------------------------------------- public functions


def load_config(path: str | Path, schema: type[Schema], overrides: Iterable[str] = ()) -> Schema:
    """Read a YAML file and the files it extends, apply `key.sub=value` overrides, check, build.

    Override values are YAML: `lr=1e-3`, `voxels=[2, 4]`, `resume=null`.
    Raises ConfigError, see the module's docstring.
    """
    layers = _read_chain(Path(path))
    layers.append(_read_overrides(overrides))
    return _load(layers, schema)


def from_dict(mapping: Mapping[str, Any], schema: type[Schema], source: str = "checkpoint") -> Schema:
    """Build from a plain mapping, as `to_dict` gives; `source` stands for the file in errors."""
    return _load([_from_plain(mapping, source)], schema)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars, with every key."""
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected a config dataclass instance, got {config!r}")
    return _to_plain(config)


def dump_yaml(config: Any) -> str:
    """The config as YAML with every key; `load_config` makes an equal config of it."""
    return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def component(kind: str, name: str, /, **options: Any) -> ComponentConfig:
    """A component with these options, checked; the rest have their defaults."""
    where = f"{kind} {name!r}"
    entry = lookup(kind, name)
    return ComponentConfig(kind, name, _build_dataclass(entry.config, _from_plain(options, where), ""))


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Node:
    """A YAML value and where it was written. value: dict[str, _Node], list[_Node] or a scalar."""

    value: Any
    where: str


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # a list used twice is written twice: the file is for people


for _class in (_Loader, _Dumper):
    # YAML 1.1 reads 1e-3 as text: it wants 1.0e-3. Everybody else means a number.
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _read_chain(path: Path) -> list[_Node]:
    """The layers of a file, the file that extends nothing first."""
    layers: list[_Node] = []
    seen: list[Path] = []
    referrer = ""
    while True:
        if path.resolve() in seen:
            chain = " -> ".join(str(p) for p in (*seen[seen.index(path.resolve()) :], path.resolve()))
            raise ConfigError(f"{referrer}base: files extend each other in a circle: {chain}")
        seen.append(path.resolve())
        node = _parse(_read_file(path, referrer), str(path))
        if node.value is None:
            node = _Node({}, node.where)  # an empty file
        if not isinstance(node.value, dict):
            raise ConfigError(f"{node.where}: expected `key: value` lines, got {_show(node)}")
        base = node.value.pop("base", None)
        layers.insert(0, node)
        if base is None:
            return layers
        if not isinstance(base.value, str):
            raise ConfigError(f"{base.where}: base: expected the name of a file, got {_show(base)}")
        path, referrer = path.parent / base.value, f"{base.where}: "


def _read_file(path: Path, referrer: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        if not folder.is_dir():
            raise ConfigError(f"{referrer}no such file: {path} (nor is there a folder {folder})") from None
        files = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
        listed = f"; {folder} has: {', '.join(files[:20])}" if files else ""
        raise ConfigError(f"{referrer}no such file: {path}{did_you_mean(path.name, files)}{listed}") from None
    except OSError as error:
        raise ConfigError(f"{referrer}cannot read {path}: {error.strerror}") from None


def _parse(text: str | bytes, source: str) -> _Node:
    """One YAML document as nodes. `source` is a file (lines are added to it) or COMMAND_LINE."""
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            return _Node(None if root is None else _from_yaml(root, loader, source, ()).value, source)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark and source != COMMAND_LINE else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise ConfigError(f"{source}{line}: not valid YAML: {problem}") from None


def _from_yaml(node: yaml.Node, loader: _Loader, source: str, parents: tuple[yaml.Node, ...]) -> _Node:
    where = source if source == COMMAND_LINE else f"{source}:{node.start_mark.line + 1}"
    if node in parents:
        raise ConfigError(f"{where}: an alias refers to the value it stands in")
    parents = (*parents, node)
    if isinstance(node, yaml.SequenceNode):
        return _Node([_from_yaml(item, loader, source, parents) for item in node.value], where)
    if isinstance(node, yaml.MappingNode):
        return _Node(_mapping_from_yaml(node, loader, source, parents), where)
    try:
        return _Node(loader.construct_object(node), where)
    except ValueError:  # looks like a date or a number and is none
        raise ConfigError(f"{where}: {node.value} is not a valid value; quote it if it is text") from None


def _mapping_from_yaml(
    mapping: yaml.MappingNode, loader: _Loader, source: str, parents: tuple[yaml.Node, ...]
) -> dict[str, _Node]:
    result: dict[str, _Node] = {}
    for key, value in mapping.value:
        where = source if source == COMMAND_LINE else f"{source}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{where}: a key must be a word")
        # As written: YAML 1.1 would read the keys `on` and `1` as True and 1.
        name = key.value
        if name in result:
            raise ConfigError(f"{where}: key {name!r} is given twice (first: {result[name].where})")
        # The key's line: a block mapping starts one line below it.
        result[name] = _Node(_from_yaml(value, loader, source, parents).value, where)
    return result


def _read_overrides(overrides: Iterable[str]) -> _Node:
    """All overrides as one layer, so that their order does not matter between different keys."""
    layer = _Node({}, COMMAND_LINE)
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"{COMMAND_LINE}: {override!r}: expected key=value or key.sub=value")
        try:
            node = _parse(text, COMMAND_LINE)
        except ConfigError as error:
            raise ConfigError(f"{error} in {override!r}; quote the value if it is text") from None
        for part in reversed(parts):
            node = _Node({part: node}, COMMAND_LINE)
        layer = _merge(layer, node, None)
    return layer


def _from_plain(value: Any, where: str) -> _Node:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{where}: a key must be text, got {key!r}")
        return _Node({k: _from_plain(v, where) for k, v in value.items()}, where)
    if isinstance(value, (list, tuple)):
        return _Node([_from_plain(v, where) for v in value], where)
    return _Node(value, where)


def _to_plain(value: Any) -> Any:
    if isinstance(value, ComponentConfig):
        return {"name": value.name, **_to_plain(value.options)}
    if is_dataclass(value):
        return {f.name: _to_plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, dict):
        return {k: _to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


# ---------------------------------------------------------------- merging


def _load(layers: list[_Node], schema: type[Schema]) -> Schema:
    schema = _one_schema(layers, schema)
    imports = [layer.value["imports"] for layer in layers if "imports" in layer.value]
    if imports:
        _import_modules(imports[-1])  # first: the schema of a component comes from its module
    merged = layers[0]
    for layer in layers[1:]:
        merged = _merge(merged, layer, schema)
    if "imports" not in _hints(schema):
        merged.value.pop("imports", None)
    return _build_dataclass(schema, merged, "")


def _one_schema(layers: list[_Node], schema: Any) -> type:
    """The member of a union whose `kind` the files name."""
    members = _members(schema)
    kind = next((layer.value["kind"] for layer in reversed(layers) if "kind" in layer.value), None)
    if len(members) == 1 or kind is None:
        return members[0]
    kinds = {f.default: member for member in members for f in fields(member) if f.name == "kind"}
    if kind.value not in list(kinds):
        raise _wrong(Literal[tuple(kinds)], kind, "kind")
    return kinds[kind.value]


def _import_modules(node: _Node) -> None:
    for module in _build(list[str], node, "imports", None):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and (module == error.name or module.startswith(f"{error.name}.")):
                raise ConfigError(
                    f"{node.where}: imports: no module {module!r}; is its folder in PYTHONPATH?"
                ) from None
            raise


def _merge(base: _Node, child: _Node, hint: Any) -> _Node:
    """`child` over `base`. hint: the annotation of the key, to know the components; None if unknown."""
    if not (isinstance(base.value, dict) and isinstance(child.value, dict)):
        return child
    part = _find_component(hint)
    if part and "name" in base.value and "name" in child.value:
        if base.value["name"].value != child.value["name"].value:
            return child
    merged = dict(base.value)
    hints = _entry_hints(hint, child.value.get("name", base.value.get("name")))
    for key, node in child.value.items():
        merged[key] = _merge(merged[key], node, hints(key)) if key in merged else node
    # A missing key is the file's fault, not the command line's.
    return _Node(merged, base.where if child.where == COMMAND_LINE else child.where)


def _entry_hints(hint: Any, name: _Node | None) -> Callable[[str], Any]:
    """key -> annotation of the entries of a mapping with this annotation."""
    for member in _members(hint):
        part = _find_component(member)
        if part:
            try:
                return _hints(lookup(part.kind, str(name.value) if name else "").config).get
            except UserError:
                return lambda key: None  # said when it is built
        if isinstance(member, type) and is_dataclass(member):
            return _hints(member).get
        if get_origin(member) is dict:
            value = get_args(member)[1]
            return lambda key: value
    return lambda key: None


# ---------------------------------------------------------------- building


@cache
def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema, include_extras=True)


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; of anything else, itself."""
    if get_origin(hint) is Annotated and _find_component(hint) is None:
        hint = hint.__origin__
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _find_component(hint: Any) -> Component | None:
    """The Component of `Annotated[Any, Component(...)]`, or of that `| None`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(filter(None, map(_find_component, get_args(hint))), None)
    return next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Component)), None)


def _build(hint: Any, node: _Node, key: str, default: Any) -> Any:
    """The value of `node` as the annotation wants it.

    default: the value the key would have; a section or component given in part takes the rest from it.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _build_union(hint, node, key, default)
    if origin is Annotated:
        return _build_annotated(hint, node, key, default)
    if isinstance(hint, type) and is_dataclass(hint):
        return _build_dataclass(hint, node, key, default)
    if origin in (list, tuple):
        return _build_sequence(hint, node, key)
    if origin is dict:
        return _build_dict(hint, node, key)
    return _build_scalar(hint, node, key)


def _build_dataclass(schema: type[Schema], node: _Node, key: str, default: Any = None) -> Schema:
    if isinstance(node.value, schema):
        return node.value  # given as an object, from Python
    if not isinstance(node.value, dict):
        raise _wrong(schema, node, key)
    known = {f.name: f for f in fields(schema) if f.init}
    for name, child in node.value.items():
        if name not in known:
            raise ConfigError(
                f"{child.where}: {_join(key, name)}: unknown key{did_you_mean(name, known)}"
                f"; allowed here: {', '.join(known) or 'nothing'}"
            )
    values = {}
    for name, field in known.items():
        rest = getattr(default, name) if isinstance(default, schema) else _default(field)
        if name in node.value:
            values[name] = _build(_hints(schema)[name], node.value[name], _join(key, name), rest)
        elif rest is MISSING:
            expected = _describe(_hints(schema)[name])
            raise ConfigError(f"{node.where}: {_join(key, name)}: missing; expected {expected}")
        else:
            values[name] = rest
    try:
        return schema(**values)
    except ValueError as error:
        overridden = any(child.where == COMMAND_LINE for child in node.value.values())
        where = COMMAND_LINE if overridden else node.where
        raise ConfigError(f"{where}: {key}{': ' if key else ''}{error}") from error


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _build_component(part: Component, node: _Node, key: str, default: Any) -> ComponentConfig:
    if isinstance(node.value, ComponentConfig) and node.value.kind == part.kind:
        return node.value  # given as an object, from Python
    if not isinstance(node.value, dict):
        raise _wrong(Annotated[Any, part], node, key)
    options = dict(node.value)
    usual = default if isinstance(default, ComponentConfig) else None
    name = options.pop("name", None) or (_Node(usual.name, node.where) if usual else None)
    if name is None:
        raise ConfigError(f"{node.where}: {_join(key, 'name')}: missing; expected the name of a registered {part.kind}")
    try:
        entry = lookup(part.kind, _build(str, name, _join(key, "name"), None))
    except ConfigError:
        raise
    except UserError as error:
        raise ConfigError(f"{name.where}: {_join(key, 'name')}: {error}") from None
    rest = usual.options if usual and usual.name == name.value else None
    return ComponentConfig(
        part.kind, name.value, _build_dataclass(entry.config, _Node(options, node.where), key, rest)
    )


def _build_union(hint: Any, node: _Node, key: str, default: Any) -> Any:
    members = [m for m in get_args(hint) if _shape(m) in (_shape_of(node), "any")]
    if len(members) == 1 and _shape(members[0]) in ("mapping", "list"):
        return _build(members[0], node, key, default)  # its own message says more
    if isinstance(node.value, str):
        members.sort(key=lambda m: m is float)  # text stays text where text is allowed
    for member in members:
        try:
            return _build(member, node, key, default)
        except ConfigError:
            continue
    raise _wrong(hint, node, key)


def _shape(hint: Any) -> str:
    if hint is Any:
        return "any"
    if hint is type(None):
        return "none"
    if _find_component(hint) or get_origin(hint) is dict or (isinstance(hint, type) and is_dataclass(hint)):
        return "mapping"
    if get_origin(hint) is Annotated:
        return _shape(hint.__origin__)
    return "list" if get_origin(hint) in (list, tuple) else "scalar"


def _shape_of(node: _Node) -> str:
    if node.value is None:
        return "none"
    if isinstance(node.value, dict) or is_dataclass(node.value):
        return "mapping"
    return "list" if isinstance(node.value, list) else "scalar"


def _build_annotated(hint: Any, node: _Node, key: str, default: Any) -> Any:
    part = _find_component(hint)
    if part:
        return _build_component(part, node, key, default)
    try:
        value = _build(hint.__origin__, node, key, default)
    except ConfigError:
        if _shape(hint) != "scalar":
            raise
        raise _wrong(hint, node, key) from None  # with the bounds
    for bounds in hint.__metadata__:
        if isinstance(bounds, Range) and isinstance(value, (list, tuple, dict)):
            raise TypeError(f"{key}: Range is for numbers; annotate the items: list[Annotated[float, {bounds!r}]]")
        if isinstance(bounds, Range) and isinstance(value, (int, float)) and value not in bounds:
            raise _wrong(hint, node, key)
    return value


def _build_sequence(hint: Any, node: _Node, key: str) -> Any:
    items = get_args(hint)
    if not isinstance(node.value, list):
        raise _wrong(hint, node, key)
    if get_origin(hint) is tuple and items[-1] is not Ellipsis:
        if len(items) != len(node.value):
            raise _wrong(hint, node, key)
        hints = list(items)
    else:
        hints = [items[0]] * len(node.value)
    values = [_build(h, n, f"{key}[{i}]", None) for i, (h, n) in enumerate(zip(hints, node.value))]
    return get_origin(hint)(values)


def _build_dict(hint: Any, node: _Node, key: str) -> dict[str, Any]:
    if not isinstance(node.value, dict):
        raise _wrong(hint, node, key)
    return {k: _build(get_args(hint)[1], n, _join(key, k), None) for k, n in node.value.items()}


def _build_scalar(hint: Any, node: _Node, key: str) -> Any:
    value = node.value
    if get_origin(hint) is Literal:
        fits = any(type(value) is type(a) and value == a for a in get_args(hint))
    elif hint is Any:
        return _unwrap(node)
    elif hint is float:
        value = _as_float(value)
        fits = value is not None
    elif hint is Path:
        fits = isinstance(value, (str, Path))
        value = Path(value) if fits else value
    elif hint in (bool, int, str, type(None)):
        fits = type(value) is hint
    else:
        raise TypeError(f"{key}: a config cannot hold {hint!r}; see the annotations listed in pcssl/config.py")
    if not fits:
        raise _wrong(hint, node, key)
    return value


def _as_float(value: Any) -> float | None:
    """A number that is not NaN (which no bound would catch), or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return None if math.isnan(number) else number


def _unwrap(node: _Node) -> Any:
    if isinstance(node.value, dict):
        return {k: _unwrap(v) for k, v in node.value.items()}
    return [_unwrap(v) for v in node.value] if isinstance(node.value, list) else node.value


# ---------------------------------------------------------------- messages


def _wrong(hint: Any, node: _Node, key: str) -> ConfigError:
    near = ""
    if get_origin(hint) is Literal and isinstance(node.value, str):
        near = did_you_mean(node.value, [a for a in get_args(hint) if isinstance(a, str)])
    elif hint is str and not isinstance(node.value, (dict, list)) and node.value is not None:
        near = " (quote it if it is text)"
    got = f"got {_show(node)}{near}"
    return ConfigError(f"{node.where}: {key or 'the config'}: expected {_describe(hint)}, {got}")


def _describe(hint: Any) -> str:
    """What a key may hold, in words."""
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path"}
    words |= {type(None): "null", Any: "anything"}
    part, origin, items = _find_component(hint), get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(m) for m in items)
    if part:
        return f"a {part.kind}: a mapping with `name` and its options"
    if origin is Annotated:
        bounds = [str(m) for m in hint.__metadata__ if isinstance(m, Range)]
        between = " " if len(_members(hint)) == 1 else ", "
        return between.join([_describe(hint.__origin__), *bounds])
    if origin is Literal:
        return ("one of: " if len(items) > 1 else "") + ", ".join(_show(_Node(a, "")) for a in items)
    if origin is tuple and items[-1] is not Ellipsis:
        return f"a list of {len(items)} ({', '.join(_describe(i) for i in items)})"
    if origin in (list, tuple):
        return f"a list, each {_describe(items[0])}"
    if origin is dict:
        return f"a mapping, each {_describe(items[1])}"
    if isinstance(hint, type) and is_dataclass(hint):
        return f"a mapping with the keys {', '.join(f.name for f in fields(hint) if f.init)}"
    return words.get(hint, str(hint))


def _show(node: _Node) -> str:
    """The value as the user would write it, cut to one short line."""
    value = node.value
    if isinstance(value, dict):
        text = f"a mapping ({', '.join(value) or 'empty'})"
    elif isinstance(value, list):
        text = f"a list of {len(value)}"
    elif value is None or isinstance(value, bool):
        text = {None: "null (nothing)", True: "true", False: "false"}[value]
    else:
        text = repr(value) if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
