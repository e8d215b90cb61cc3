"""One value of a YAML text changed where it stands, so that comments, order and layout stay; knows nothing about what the keys mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

from tunesmith.core.errors import ConfigError


def with_value(text: str, key: tuple[str, ...], value: Any) -> str:
    """The text with `value` at a key, which need not be there; a key's parents that are missing come with it. Raises ConfigError for what
    is no mapping of keys, also on the way, and where another key would change with it (a value that an anchor shares)."""
    changed = _edited(text, key, value)
    if not _reads(changed, _wanted(yaml.safe_load(text), key, value)):
        what = f"'{'.'.join(key)}' cannot be changed alone where it stands: its value is shared by an anchor, or the key stands there twice"
        raise ConfigError(what, allowed="a value of its own", remedy="write the value out in the file")
    return changed


def _reads(text: str, wanted: Any) -> bool:
    """Whether a text means what is wanted."""
    try:
        return bool(yaml.safe_load(text) == wanted)
    except yaml.YAMLError:
        return False


def _wanted(tree: Any, key: tuple[str, ...], value: Any) -> Any:
    """The tree with the value at the key."""
    if not key:
        return value
    plain = dict(tree) if isinstance(tree, Mapping) else {}
    return {**plain, key[0]: _wanted(plain.get(key[0]), key[1:], value)}


def _edited(text: str, key: tuple[str, ...], value: Any) -> str:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("not a mapping of keys to values")
    for depth, part in enumerate(key):
        there = next((child for name, child in node.value if name.value == part), None)
        if there is None:
            return _added(text, node, part, _nested(key[depth + 1 :], value))
        if depth == len(key) - 1:
            return text[: there.start_mark.index] + _space(text, there) + _flow(value) + text[_end(there) :]
        if not isinstance(there, yaml.MappingNode):
            if there.value:
                raise ConfigError(f"'{'.'.join(key[: depth + 1])}' is no mapping of keys", where=f"line {there.start_mark.line + 1}")
            return text[: there.start_mark.index] + " " + _flow(_nested(key[depth + 1 :], value)) + text[_end(there) :]
        node = there
    raise ConfigError("no key", allowed="a key of tunesmith.yaml")


def _added(text: str, node: yaml.MappingNode, name: str, value: Any) -> str:
    """The text with a further key in a mapping: on a line of its own after its last one, or inside its braces."""
    entry = f"{name}: {_flow(value)}"
    if node.flow_style:
        close = node.end_mark.index - 1
        return text[:close].rstrip() + (", " if node.value else "") + entry + text[close:]
    column = node.value[0][0].start_mark.column
    line = text.find("\n", _end(node))
    at = len(text) if line < 0 else line
    return f"{text[:at]}\n{' ' * column}{entry}{text[at:]}"


def _end(node: yaml.Node) -> int:
    """Where what is written of a node ends; a block collection's own mark lies behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(node, yaml.MappingNode) else last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        written = node.start_mark.buffer or ""
        return node.start_mark.index + len(written[node.start_mark.index : node.end_mark.index].rstrip())
    return int(node.end_mark.index)


def _space(text: str, node: yaml.Node) -> str:
    """A space where a value that was empty stands right behind its colon."""
    return " " if node.start_mark.index and text[node.start_mark.index - 1] == ":" else ""


def _nested(key: tuple[str, ...], value: Any) -> Any:
    for part in reversed(key):
        value = {part: value}
    return value


def _flow(value: Any) -> str:
    plain = dict(value) if isinstance(value, Mapping) else value
    return (
        yaml.safe_dump(plain, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False).removesuffix("\n...\n").strip()
    )
