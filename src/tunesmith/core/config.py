"""YAML → frozen records, with the line of every mistake; knows nothing about what the records mean.

The YAML file, the command line (`--train.epochs 2`) and the stored run are the same record. Unknown keys are one error that names the
file, the line and the nearest known key of each.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec.inspect import FloatType, StrType

from tunesmith.core.errors import ConfigError
from tunesmith.core.explain import Path_, explained, inside, kinds, place_of, type_of, unknown_keys

T = TypeVar("T")


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
_PERCENT = re.compile(r"(\d+\.?\d*|\.\d+)%")


def percent(text: str) -> float:
    """`5%` as 0.05: the float that is nearest to what is written. Raises decimal.InvalidOperation for what is none."""
    return float(Decimal(text.removesuffix("%")) / 100)


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
    places = {(): str(path)} | {key: f"{path}:{line}" for key, line in lines.items()}
    for key, value in parse_overrides(overrides):
        _set(tree, key, value)
        for n in range(1, len(key) + 1):
            places.setdefault(key[:n], "--" + ".".join(key))
        places[key] = "--" + ".".join(key)
    return convert(tree, record, places=places)


def convert(tree: Mapping[str, Any], record: type[T], *, places: Mapping[Path_, str] | None = None) -> T:
    """A plain tree as a typed record, `5%` being 0.05 where a number is expected; every mistake is a ConfigError with its place, which
    `places` knows by the path of the key."""
    if (unknown := unknown_keys(tree, record, places or {})) is not None:
        raise unknown
    plain = _numbers(tree, type_of(record))
    try:
        return msgspec.convert(plain, record)
    except (msgspec.ValidationError, ConfigError) as error:
        raise _together([explained(each, record, places or {}) for each in _every(error, plain, record)], places or {}) from error


_MOST = 20  # wrong values that are told at once


def _every(error: Exception, tree: Any, record: type[T]) -> list[Exception]:
    """The error, and those that stand behind it: a value that is wrong is left out, until what is left fits or nothing more can be
    left out."""
    errors, tree, path = [error], copy.deepcopy(tree), place_of(error)
    while len(errors) < _MOST and _left_out(tree, path):
        try:
            msgspec.convert(tree, record)
        except (msgspec.ValidationError, ConfigError) as another:
            if "missing required field" in str(another):  # it is the one that was left out
                break
            errors.append(another)
            path = place_of(another)
        else:
            break
    return errors


def _left_out(tree: Any, path: Path_) -> bool:
    """Take the value at `path` out of the tree; False where there is none."""
    try:
        for part in path[:-1]:
            tree = tree[part]
        if path and path[-1] != "...":
            del tree[path[-1]]
            return True
    except (KeyError, IndexError, TypeError):
        pass
    return False


def _together(errors: Sequence[ConfigError], places: Mapping[Path_, str]) -> ConfigError:
    """Several mistakes as one error, a line each; one alone as it is."""
    if len(errors) == 1:
        return errors[0]
    lines = []
    for error in errors:
        allowed = f"; allowed: {error.allowed}" if error.allowed else ""
        lines.append(f"  {error.where}: {error.what}{allowed}" + (f"; {error.remedy}" if error.remedy else ""))
    return ConfigError("\n".join([f"{len(errors)} values are wrong", *lines]), where=places.get((), errors[0].where))


def _numbers(value: Any, info: Any) -> Any:
    """The tree with each percentage that stands where a number but no text may stand as that number."""
    if isinstance(value, Mapping):
        return {key: _numbers(child, inside(info, key)) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(child, inside(info, i)) for i, child in enumerate(value)]
    types = {type(kind) for kind in kinds(info)}
    if isinstance(value, str) and _PERCENT.fullmatch(value) and FloatType in types and StrType not in types:
        return percent(value)
    return value


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
            value = value_of(word, left)
        try:
            pairs.append((tuple(key.replace("-", "_").split(".")), yaml.load(value, _Loader)))
        except yaml.YAMLError as error:
            raise ConfigError(f"value '{value}' does not parse", where=word) from error
    return pairs


def value_of(word: str, left: list[str]) -> str:
    """The value of an option, taken from the words after it. Raises ConfigError where there is none, or the next is an option."""
    if not left or left[0].startswith("--"):
        raise ConfigError(f"'{word}' has no value", allowed=f"{word} VALUE (one that begins with two dashes: {word}=VALUE)")
    return left.pop(0)


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
