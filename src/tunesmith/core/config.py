"""YAML → frozen records, with the line of every mistake; knows nothing about what the records mean.

The YAML file, the command line (`--train.epochs 2`) and the stored run are the same record. An unknown key is an error that names the
file, the line, the key and the nearest known key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from tunesmith.core.errors import ConfigError, nearest

T = TypeVar("T")
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]+)`")
_AT = re.compile(r" - at `(?P<path>[^`]*)`$")
Path_ = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `1e-4` is a number and `no` a word (PyYAML's 1.1 has it the other way round)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def load(path: Path, record: type[T], overrides: Sequence[str] = ()) -> T:
    """The record that the YAML file describes, with `--a.b value` overrides applied.

    Raises ConfigError with file, line, key, what is allowed, and the nearest known key.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no file '{path}'", remedy="tunesmith init writes one, with comments") from error
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read '{path}': {error}", allowed="a YAML file in UTF-8") from error
    try:
        tree, lines = _parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(
            f"not valid YAML: {getattr(error, 'problem', error)}", where=f"{path}:{mark.line + 1}" if mark else str(path)
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError("not a mapping of keys to values", where=str(path), remedy="tunesmith init writes a file to start from")
    for key, value in parse_overrides(overrides):
        _set(tree, key, value)
    return convert(tree, record, file=path, lines=lines)


def convert(tree: Mapping[str, Any], record: type[T], *, file: Path | None = None, lines: Mapping[Path_, int] | None = None) -> T:
    """A plain tree as a typed record; every mistake is a ConfigError with its place."""
    try:
        return msgspec.convert(tree, record)
    except (msgspec.ValidationError, ConfigError) as error:
        raise _explain(error, record, file, lines or {}) from error


def schema(record: type) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a record."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(record)}


def parse_overrides(words: Sequence[str]) -> list[tuple[tuple[str, ...], Any]]:
    """`["--train.epochs", "2", "--split.seed=3"]` as [(("train", "epochs"), 2), (("split", "seed"), 3)]; values are read as YAML."""
    pairs: list[tuple[tuple[str, ...], Any]] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(f"unexpected '{word}'", allowed="--key.subkey value, with the keys of tunesmith.yaml")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not left:
                raise ConfigError(f"'{word}' has no value", allowed=f"{word} VALUE")
            value = left.pop(0)
        try:
            pairs.append((tuple(key.replace("-", "_").split(".")), yaml.load(value, _Loader)))
        except yaml.YAMLError as error:
            raise ConfigError(f"value '{value}' does not parse", where=word) from error
    return pairs


def _set(tree: dict[str, Any], key: tuple[str, ...], value: Any) -> None:
    node = tree
    for part in key[:-1]:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"'{'.'.join(key)}' reaches into '{part}', which is a {type(child).__name__}", where="--" + ".".join(key))
        node = child
    node[key[-1]] = value


def _parse(text: str) -> tuple[Any, dict[Path_, int]]:
    """The tree, and the line of each key path. A repeated key is an error, since one of the two values would vanish."""
    node = yaml.compose(text, Loader=_Loader)
    lines: dict[Path_, int] = {}

    def walk(node: yaml.Node, path: Path_) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"key '{key.value}' stands twice", problem_mark=key.start_mark)
                seen.add(key.value)
                lines[(*path, key.value)] = key.start_mark.line + 1
                walk(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                lines[(*path, i)] = value.start_mark.line + 1
                walk(value, (*path, i))

    if node is None:
        return {}, {}
    walk(node, ())
    return yaml.load(text, _Loader), lines


def _explain(error: Exception, record: type, file: Path | None, lines: Mapping[Path_, int]) -> ConfigError:
    said = str(error) if isinstance(error, msgspec.ValidationError) else str(getattr(error, "what", error))
    at = _AT.search(said)
    path = _path(at["path"]) if at else ()
    message = said[: at.start()] if at else said
    unknown = _UNKNOWN.search(message)
    allowed, remedy = getattr(error, "allowed", ""), getattr(error, "remedy", "")
    if unknown:
        path = (*path, unknown["key"])
        known = _fields(record, path[:-1])
        message, allowed, remedy = f"unknown key '{unknown['key']}'", ", ".join(known), nearest(unknown["key"], known)
    place = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    key = ".".join(str(part) for part in path)
    where = f"{file}:{place}" if file and place else str(file or "")
    return ConfigError(message, where=": ".join(part for part in (where, key) if part), allowed=allowed, remedy=remedy)


def _path(text: str) -> Path_:
    parts: list[str | int] = []
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", text):
        parts.append(name or (int(index) if index.isdigit() else index))
    return tuple(parts)


def _fields(record: Any, path: Path_) -> list[str]:
    """The keys that are known at `path` below `record`."""
    info = msgspec.inspect.type_info(record)
    for part in path:
        found = _inside(info, part)
        if found is None:
            return []
        info = found
    return _names(info)


def _names(info: Any) -> list[str]:
    if isinstance(info, msgspec.inspect.UnionType):
        return sorted({name for kind in info.types for name in _names(kind)})
    return [field.encode_name for field in getattr(info, "fields", ())]


def _inside(info: Any, part: str | int) -> Any:
    if isinstance(info, msgspec.inspect.UnionType):
        return next((found for kind in info.types if (found := _inside(kind, part)) is not None), None)
    if isinstance(info, msgspec.inspect.StructType):
        return next((field.type for field in info.fields if field.encode_name == part), None)
    if isinstance(info, msgspec.inspect.DictType):
        return info.value_type
    if isinstance(info, (msgspec.inspect.ListType, msgspec.inspect.VarTupleType)):
        return info.item_type
    return None
