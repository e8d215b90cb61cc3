"""What is wrong with a plain tree that should become a record: the place of each mistake, what is allowed there and what was probably
meant. Knows nothing about files, nor where a place comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

import msgspec

from tunesmith.core.errors import ConfigError, nearest

_WRONG = re.compile(r"^Invalid enum value '(?P<value>.*)'$")
_AT = re.compile(r" - at `(?P<path>[^`]*)`$")
Path_ = tuple[str | int, ...]


def type_of(record: type) -> Any:
    """The keys and types of a record, read once: its annotations take longer to read than a file."""
    return _types(record)


_types = cache(msgspec.inspect.type_info)


def explained(error: Exception, record: type, places: Mapping[Path_, str]) -> ConfigError:
    """What msgspec or a record refused, with its place, what is allowed there, and the nearest word that is."""
    if isinstance(error, ConfigError):
        where = _where(tuple(error.where.split(".")) if error.where else (), places)
        return ConfigError(error.what, where=where, allowed=error.allowed, remedy=error.remedy)
    message = str(error)
    at = _AT.search(message)
    message, path = (message[: at.start()], _path(at["path"])) if at else (message, ())
    info = _at(type_of(record), path)
    wrong = _WRONG.search(message)
    words = [value for kind in kinds(info) for value in getattr(kind, "values", ())]
    return ConfigError(message, where=_where(path, places), allowed=_allowed(info), remedy=nearest(wrong["value"], words) if wrong else "")


def place_of(error: Exception) -> Path_:
    """The path of the key that msgspec or a record refused; empty where it names none."""
    if isinstance(error, ConfigError):
        return tuple(error.where.split(".")) if error.where else ()
    at = _AT.search(str(error))
    return _path(at["path"]) if at else ()


def unknown_keys(tree: Mapping[str, Any], record: type, places: Mapping[Path_, str]) -> ConfigError | None:
    """One error about every key that no record knows, each with the nearest that is known; None when all are known."""
    unknown = list(_unknown(tree, type_of(record), ()))
    if not unknown:
        return None
    if len(unknown) == 1:
        path, info = unknown[0]
        key = str(path[-1])
        return ConfigError(f"unknown key '{key}'", where=_where(path, places), allowed=", ".join(_names(info)), remedy=_meant(key, info))
    lines = [f"  {_where(path, places)}: {_meant(str(path[-1]), info) or 'allowed: ' + ', '.join(_names(info))}" for path, info in unknown]
    return ConfigError("\n".join([f"{len(unknown)} unknown keys", *lines]), where=places.get((), _where(unknown[0][0], places)))


def _meant(key: str, info: Any) -> str:
    """`did you mean 'x'?` for the nearest key, at this place or, when it is very near, below it; an empty string when none is near."""
    paths = {path.rpartition(".")[2]: path for path in _below(info, depth=2)}
    close = get_close_matches(key, paths, n=1, cutoff=0.8)
    return f"did you mean '{paths[close[0]]}'?" if close else nearest(key, _names(info))


def _below(info: Any, depth: int) -> Iterator[str]:
    """The keys of a record and of those inside it, the nearest last."""
    names = _names(info)
    if depth:
        for name in names:
            yield from (f"{name}.{path}" for path in _below(inside(info, name), depth - 1))
    yield from names


def _where(path: Path_, places: Mapping[Path_, str]) -> str:
    """`file:line: key`, as far as they are known; the option of the command line says it all."""
    key = ".".join(str(part) for part in path)
    place = next((places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in places), "")
    return place if place.startswith("--") else ": ".join(filter(None, (place, key)))


def _path(text: str) -> Path_:
    parts: list[str | int] = []
    for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", text):
        parts.append(name or (int(index) if index.isdigit() else index))
    return tuple(parts)


def _unknown(value: Any, info: Any, path: Path_) -> Iterator[tuple[Path_, Any]]:
    """The path of every key that no record knows, with the type of the mapping that it stands in."""
    if isinstance(value, Mapping):
        known = _names(info)
        strict = all(isinstance(kind, msgspec.inspect.StructType) and kind.forbid_unknown_fields for kind in _records(info))
        for key, child in value.items():
            if known and strict and key not in known:
                yield (*path, key), info
            else:
                yield from _unknown(child, inside(info, key), (*path, key))
    elif isinstance(value, list | tuple):
        for i, child in enumerate(value):
            yield from _unknown(child, inside(info, i), (*path, i))


def _records(info: Any) -> list[Any]:
    """The types that a mapping may become."""
    return [kind for kind in kinds(info) if isinstance(kind, msgspec.inspect.StructType | msgspec.inspect.DictType)]


def _names(info: Any) -> list[str]:
    """The keys of a record, with the one that tells its kind where it has such."""
    records = [kind for kind in kinds(info) if isinstance(kind, msgspec.inspect.StructType)]
    return [*(field.encode_name for kind in records for field in kind.fields), *{kind.tag_field for kind in records if kind.tag_field}]


def kinds(info: Any) -> Sequence[Any]:
    """The types of a union; a type that is none by itself."""
    return info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)


def _at(info: Any, path: Path_) -> Any:
    """The type at `path`, or None."""
    for part in path:
        info = inside(info, part)
    return info


def inside(info: Any, part: str | int) -> Any:
    """The type of the key or item `part` of a type, or None."""
    for kind in kinds(info):
        if isinstance(kind, msgspec.inspect.StructType):
            for field in kind.fields:
                if field.encode_name == part:
                    return field.type
        elif isinstance(kind, msgspec.inspect.DictType):
            return kind.value_type
        elif isinstance(kind, (msgspec.inspect.ListType, msgspec.inspect.VarTupleType)):
            return kind.item_type
    return None


_WORDS: dict[Any, str] = {
    msgspec.inspect.IntType: "a whole number",
    msgspec.inspect.FloatType: "a number",
    msgspec.inspect.BoolType: "true or false",
    msgspec.inspect.StrType: "text",
    msgspec.inspect.NoneType: "null",
    msgspec.inspect.ListType: "a list",
    msgspec.inspect.VarTupleType: "a list",
    msgspec.inspect.DictType: "a mapping",
}


def _allowed(info: Any) -> str:
    """What may stand there, in words."""
    allowed: list[str] = []
    for kind in kinds(info):
        if isinstance(kind, msgspec.inspect.LiteralType):
            allowed += map(str, kind.values)
        elif isinstance(kind, msgspec.inspect.StructType):
            allowed.append(f"a mapping with {', '.join(field.encode_name for field in kind.fields)}")
        elif type(kind) in _WORDS:
            allowed.append(_WORDS[type(kind)])
    return ", ".join(allowed)
