"""How a template writes calls of tools, learned from calls that it was asked to write; knows no family and no model.

Five ways are in use: a JSON object that holds name and arguments; a name with a JSON object behind it; a name with one element for each
argument; a call as Python writes it; a name with an object whose keys are bare. What stands around the pieces is taken from the probe. A
syntax that does not read its own probes back is none.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from tunesmith.core.json_text import json_value

_FAILURES = 32  # what is no JSON is not tried at every brace
_decode = json.JSONDecoder().raw_decode
Schemas = dict[str, dict[str, Any]]  # of the arguments of each tool, by its name


class Call(NamedTuple):
    """One call: the tool's name and its arguments."""

    name: str
    arguments: dict[str, Any]


Write = Callable[[Sequence[Call]], str | None]


class Syntax(Protocol):
    """One way to write calls."""

    @property
    def begins(self) -> str:
        """The mark that begins calls; empty where an answer that calls is nothing but calls."""
        ...

    def read(self, text: str, tools: Schemas) -> tuple[list[Call], str]:
        """The calls in a text, and its words without them. No calls: the text is words."""
        ...


_ONE = Call("find_town", {"area": "Ghent St", "days": 7, "east": "Lake", "fast": True})
_OTHER = Call("count_birds", {"area": "Delta"})
_HARD = Call("find_town", {"area": 'a "quoted" b\nnext, {x}', "days": -2})
_SCHEMA = {"properties": {"area": {"type": "string"}, "days": {"type": "integer"}, "east": {"type": "string"}, "fast": {"type": "boolean"}}}
_TOOLS: Schemas = {"find_town": _SCHEMA, "count_birds": _SCHEMA}


def learned(write: Write) -> Syntax | None:
    """The syntax in which `write` writes calls; None when no way that is known here reads them back."""
    text = write([_ONE])
    if text is None:
        return None
    for way in (_json_objects, _named_json, _python_calls, _bare_objects, _elements):
        syntax = way(text, write)
        if syntax is not None and all(_reads_back(syntax, write, calls) for calls in ([_ONE], [_OTHER], [_HARD], [_ONE, _OTHER])):
            return syntax
    return None


def _reads_back(syntax: Syntax, write: Write, calls: list[Call]) -> bool:
    text = write(calls)
    several = text is not None and all(call.name in text for call in calls)
    return text is None or (len(calls) > 1 and not several) or syntax.read(text, _TOOLS) == (calls, "")


def _at_brace(text: str, start: int = 0) -> list[tuple[int, int, Any]]:
    """(begin, end, value) of each JSON object in the text, outermost first."""
    values, at, failed = list[tuple[int, int, Any]](), text.find("{", start), 0
    while at >= 0 and failed < _FAILURES:
        try:
            value, end = _decode(text, at)
        except (ValueError, RecursionError):
            end, failed = at + 1, failed + 1
        else:
            values.append((at, end, value))
        at = text.find("{", end)
    return values


def plain_name(name: str, tools: Schemas) -> str:
    """A name as the tools have it: some models write `functions.NAME`."""
    return name if name in tools or "." not in name or name.split(".", 1)[1] not in tools else name.split(".", 1)[1]


# --- a JSON object that holds name and arguments -----------------------------------------------------------------------------------------


class JsonObjects(NamedTuple):
    """`mark` stands before the first object (or the list of them); without one the whole answer must be calls."""

    mark: str

    @property
    def begins(self) -> str:
        """See `Syntax`."""
        return self.mark

    def read(self, text: str, tools: Schemas) -> tuple[list[Call], str]:
        """See `Syntax`."""
        at = text.find(self.mark) if self.mark else 0
        rest = text[at + len(self.mark) :] if at >= 0 else ""
        if at < 0 or (not self.mark and not rest.lstrip().startswith(("{", "["))):
            return [], text
        calls = []
        for _, _, value in _at_brace(rest):
            call = _held(value, tools)
            if call is None:
                return [], text
            calls.append(call)
        return (calls, text[:at].strip()) if calls else ([], text)


CALLED = "<tool_call>"


def json_calls(text: str, tools: Schemas) -> tuple[list[Call], str]:
    """Calls as JSON objects in <tool_call>…</tool_call>, in which answers that must call a tool are held whatever the template."""
    return JsonObjects(CALLED).read(text, tools)


def _held(value: Any, tools: Schemas) -> Call | None:
    """The call that a JSON object holds, whatever its keys are called."""
    if isinstance(value.get("function"), dict):
        value = value["function"]
    if len(value) == 1:
        ((name, arguments),) = value.items()
        return Call(name, arguments) if name in tools and isinstance(arguments, dict) else None
    name = next((value[key] for key in ("name", "tool_name", "function", "tool") if isinstance(value.get(key), str)), None)
    arguments = next((value[key] for key in ("arguments", "parameters", "args", "input") if key in value), {})
    if isinstance(arguments, str):
        try:
            arguments = json_value(arguments)
        except json.JSONDecodeError:
            return None
    return Call(plain_name(name, tools), arguments) if name and isinstance(arguments, dict) else None


def _json_objects(text: str, write: Write) -> Syntax | None:
    for begin, _, value in _at_brace(text):
        if _held(value, _TOOLS) == _ONE:
            mark = text[:begin].rstrip()
            return JsonObjects(mark.removesuffix("[").strip() if not mark.endswith("]") else mark.strip())
    return None


# --- a name, and a JSON object behind it -------------------------------------------------------------------------------------------------


class NamedJson(NamedTuple):
    """`first` stands before the first call, `item` before each name, `middle` between name and object."""

    first: str
    item: re.Pattern[str]

    @property
    def begins(self) -> str:
        """See `Syntax`."""
        return _fixed(self.first)

    def read(self, text: str, tools: Schemas) -> tuple[list[Call], str]:
        """See `Syntax`."""
        calls, at, begin = list[Call](), 0, -1
        while match := self.item.search(text, at):
            try:
                value, at = _decode(text, match.end())
            except (ValueError, RecursionError):
                return [], text
            if not isinstance(value, dict):
                return [], text
            begin = match.start() if begin < 0 else begin
            calls.append(Call(plain_name(match["name"], tools), value))
        return (calls, _words_before(text, begin, self.first)) if calls else ([], text)


def _words_before(text: str, begin: int, first: str) -> str:
    """What was said before the first call, without the mark that opens a section of calls."""
    opened = re.search(_loose(first), text) if first else None
    return text[: opened.start() if opened and opened.start() <= begin else begin].strip()


def _fixed(first: str) -> str:
    """The beginning of a mark that is always the same: without numbers and ids."""
    return re.split(r"\s|\w*\d\w*", first)[0]


def _loose(text: str) -> str:
    """A pattern for what stands between pieces: white space is free, numbers and ids may be others."""
    pieces = re.split(r"(\s+|\w*\d\w*)", text)
    loose = "".join(r"\s*" if piece.isspace() else r"[\w-]+" if i % 2 and piece else re.escape(piece) for i, piece in enumerate(pieces))
    return loose.replace(_ONE.name, r"[\w.:/-]+")  # some write the name twice


def _name_place(text: str) -> int:
    """Where the name stands that the arguments belong to: the last one before the first of them."""
    return text.rfind(_ONE.name, 0, max(text.find("area"), 0))


def _before_name(text: str, write: Write) -> tuple[str, str] | None:
    """What stands before the first call as a whole; and a pattern for what stands before each name, which is the end that it shares with
    what stands before a second one."""
    if (place := _name_place(text)) < 0:
        return None
    first = text[:place]
    both = write([_ONE, _OTHER])
    if both is None or _ONE.name not in both or _OTHER.name not in both:
        return first, _loose(first.lstrip()) if first.strip() else r"\A\s*"
    between = both[_name_place(both) : both.rindex(_OTHER.name)]
    shared = _whole_marks(_common_end(first, between)).lstrip()
    if shared.strip():
        return first, _loose(shared)
    later = between.rpartition("}")[2]  # the prompt itself begins the first call
    return first, rf"(?:\A\s*|{_loose(later)})" if later.strip() else r"\A\s*"


def _whole_marks(text: str) -> str:
    """The text from the beginning of its first whole mark on: the end that two texts share may begin within one."""
    cut = re.match(r"[^<\[]*[>\]]", text)
    return text[cut.end() :] if cut and text[cut.end() :].strip() else text


def _common_end(first: str, other: str) -> str:
    length = 0
    for a, b in zip(reversed(first), reversed(other), strict=False):
        if a != b:
            break
        length += 1
    return first[len(first) - length :]


def _common_start(first: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(len(first), len(other)))
    return first[:length]


_NAME = r"(?P<name>[\w.:/-]+?)"


def _named_json(text: str, write: Write) -> Syntax | None:
    name = _name_place(text)
    begin = next((begin for begin, _, value in _at_brace(text) if value == _ONE.arguments), -1)
    if not 0 <= name < begin or (before := _before_name(text, write)) is None:
        return None
    first, item = before
    # Models also write the header's parts in another order than their template.
    middle = rf"(?:{_loose(text[name + len(_ONE.name) : begin])}|(?=[\s<])[^{{}}]{{0,60}}?)"
    return NamedJson(first.strip(), re.compile(f"{item}{_NAME}{middle}(?=\\{{)", re.DOTALL))


# --- a call as Python writes it ----------------------------------------------------------------------------------------------------------


class PythonCalls(NamedTuple):
    """`mark` stands before the list of calls."""

    mark: str

    @property
    def begins(self) -> str:
        """See `Syntax`."""
        return self.mark

    def read(self, text: str, tools: Schemas) -> tuple[list[Call], str]:
        """See `Syntax`."""
        at = text.find(self.mark) if self.mark else 0
        begin = text.find("[", at + len(self.mark)) if at >= 0 else -1
        if begin < 0 or text[at + len(self.mark) : begin].strip():
            return [], text
        ends = [end for end in range(len(text), begin, -1) if text[end - 1] == "]"]
        for end in ends[:_FAILURES]:
            if calls := _python_list(text[begin:end]):
                return calls, text[:at].strip()
        return [], text


def _python_list(source: str) -> list[Call]:
    try:
        source = source.replace("\n", "\\n")  # within texts, which templates write as they are
        tree = ast.parse(re.sub(r"=(true|false)(?=[,)])", lambda match: f"={match[1].title()}", source))
        nodes = tree.body[0].value.elts  # type: ignore[attr-defined]
        return [Call(ast.unparse(node.func), {word.arg: ast.literal_eval(word.value) for word in node.keywords}) for node in nodes]
    except (SyntaxError, ValueError, AttributeError, IndexError, RecursionError, MemoryError):
        return []


def _python_calls(text: str, write: Write) -> Syntax | None:
    begin = text.find(f"[{_ONE.name}(")
    return PythonCalls(text[:begin].strip()) if begin >= 0 else None


# --- a name, and an object whose keys are bare -------------------------------------------------------------------------------------------


class BareObjects(NamedTuple):
    """`quote` stands around texts; keys have none."""

    first: str
    item: re.Pattern[str]
    quote: str

    @property
    def begins(self) -> str:
        """See `Syntax`."""
        return _fixed(self.first)

    def read(self, text: str, tools: Schemas) -> tuple[list[Call], str]:
        """See `Syntax`."""
        calls, begin, at = list[Call](), -1, 0
        while match := self.item.search(text, at):
            try:
                value, at = _decode(_strict(text[match.end() :], self.quote), 0)[0], match.end()
            except (ValueError, RecursionError):
                return [], text
            begin = match.start() if begin < 0 else begin
            calls.append(Call(plain_name(match["name"], tools), value))
        return (calls, _words_before(text, begin, self.first)) if calls else ([], text)


def _strict(text: str, quote: str) -> str:
    """The object with which the text begins as JSON: texts and keys in double quotes."""
    pieces = text.split(quote)
    out = []
    for i, piece in enumerate(pieces):
        if i % 2:
            out.append(json.dumps(piece))
        else:
            out.append(re.sub(r"([{,]\s*)([\w.-]+)(\s*:)", r'\1"\2"\3', piece))
    return "".join(out)


def _bare_objects(text: str, write: Write) -> Syntax | None:
    match = re.search(re.escape(_ONE.name) + r"\{area:(?P<quote>[^\w\s]\S*?)Ghent St(?P=quote),", text)
    if match is None or (before := _before_name(text, write)) is None:
        return None
    first, item = before
    return BareObjects(first.strip(), re.compile(item + _NAME + r"(?=\{)"), match["quote"])


# --- a name, and an element for each argument --------------------------------------------------------------------------------------------


class Elements(NamedTuple):
    """`item` finds a call's name, `key` an argument's key and whether its value is text, `closing` what ends its value (with the key
    where it is repeated)."""

    first: str
    item: re.Pattern[str]
    key: re.Pattern[str]
    closing: str

    @property
    def begins(self) -> str:
        """See `Syntax`."""
        return _fixed(self.first)

    def read(self, text: str, tools: Schemas) -> tuple[list[Call], str]:
        """See `Syntax`."""
        heads = list(self.item.finditer(text))
        if not heads:
            return [], text
        calls = []
        for head, end in pairwise([*heads, None]):
            name = plain_name(head["name"], tools)  # type: ignore[index]
            body = text[head.end() : end.start() if end else len(text)]  # type: ignore[union-attr]
            calls.append(Call(name, self._arguments(body, tools.get(name, {}))))
        return calls, _words_before(text, heads[0].start(), self.first)

    def _arguments(self, body: str, schema: dict[str, Any]) -> dict[str, Any]:
        arguments, at = {}, 0
        while match := self.key.search(body, at):
            closing = self.closing.replace(_KEY, match["key"])
            end = body.find(closing, match.end())
            end = len(body) if end < 0 else end
            text, written = body[match.end() : end], match.groupdict()
            stated = "text" if written.get("text") is not None else "other" if written.get("other") is not None else ""
            arguments[match["key"]] = _value(text, (schema.get("properties") or {}).get(match["key"], {}), stated)
            at = end + len(closing)
        return arguments


_KEY = "\0key\0"


def _value(text: str, schema: Any, stated: str) -> Any:
    """A value that stands without quotes: text where the syntax or the tool's schema says so, else JSON where it is some."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    cdata = re.fullmatch(r"\s*<!\[CDATA\[(.*)\]\]>\s*", text, re.DOTALL)
    text = cdata[1] if cdata else text
    bare = text[1:-1] if text.startswith("\n") and text.endswith("\n") and len(text) > 1 else text
    if stated == "text" or (not stated and kind == "string"):
        return bare
    try:
        return json_value(bare.strip())
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(bare.strip(), bare)


def _elements(text: str, write: Write) -> Syntax | None:
    """Learned from a call whose arguments are a text, a number, a text and a truth."""
    head = _name_place(text)
    places = _places(text, head) if head >= 0 else None
    if places is None or (before := _before_name(text, write)) is None:
        return None
    (first_key, first_value, first_end), (number_key, number_value, number_end), (third_key, _, _) = places
    behind_text, behind_number = text[first_end:number_key], text[number_end:third_key]
    to_text, to_number = text[first_key + 4 : first_value], text[number_key + 4 : number_value]
    opening = _common_end(_common_end(text[head:first_key], behind_text), behind_number)
    closing = _common_start(behind_text.replace("area", _KEY), behind_number.replace("days", _KEY)).strip()
    opening = opening.strip() or opening
    closing = _first_mark(closing, opening)
    if not opening.strip() or not closing:
        return None
    middle = _tight(to_text) if to_text == to_number else f"(?:(?P<text>{_tight(to_text)})|(?P<other>{_tight(to_number)}))"
    first, item = before
    behind = re.escape(_following(text[head + len(_ONE.name) : first_key], opening))
    key = re.compile(re.escape(opening) + r"(?P<key>[\w.-]+)" + middle, re.DOTALL)
    return Elements(first.strip(), re.compile(f"{item}{_NAME}(?={behind})"), key, closing)


def _tight(text: str) -> str:
    """A pattern for what stands between key and value; a value's own line break is not part of it."""
    return re.escape(text.rstrip("\n"))


def _following(behind: str, opening: str) -> str:
    """What stands right behind a name: its end, or the first argument's beginning."""
    return behind[: behind.find(opening)] or opening


def _first_mark(closing: str, opening: str) -> str:
    """Of what stands behind a value, the part that closes it: up to where the next argument may begin."""
    at = closing.find(opening)
    closing = closing[:at].strip() if at > 0 else closing
    mark = re.match(r"(?:[^<>]*<[^<>]*>)|(?:\S+)", closing)
    return mark.group() if mark else closing


def _places(text: str, start: int) -> list[tuple[int, int, int]] | None:
    """(key's place, value's place, value's end) of the probe's first three arguments, in their order."""
    places, at = [], start + len(_ONE.name)
    for key, value in (("area", "Ghent St"), ("days", "7"), ("east", "Lake")):
        begin = text.find(key, at)
        first = text.find(value, begin + len(key))
        if begin < 0 or first < 0:
            return None
        at = first + len(value)
        places.append((begin, first, at))
    return places
