"""Jinja chat templates as models ship them, run in a sandbox; knows nothing about tokens.

Semantics follow the `transformers` documentation of chat templates: an immutable sandbox, `trim_blocks`, `lstrip_blocks`, loop controls,
`raise_exception`, `tojson` without HTML escapes, and the `{% generation %}` block.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from typing import Any, Literal, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import msgspec

from tunesmith.core.errors import DataError
from tunesmith.core.json_text import json_value
from tunesmith.core.template_limits import Bounded, TooMuch
from tunesmith.core.thinking import parted
from tunesmith.core.types import Function, Message, ToolCall

# A base without a template of its own gets this one, and it is stored with the model. Plain words, because such a base has no
# special tokens for turns; each turn of the assistant ends with the tokenizer's own end of text.
FALLBACK = """\
{{ bos_token }}
{%- if tools %}
{{- '### Tools:\\n' + (tools | tojson) + '\\n\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '### Assistant:\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
{%- endfor %}
{{- eos_token + '\\n\\n' }}
{%- else %}
{{- '### ' + (message.role | capitalize) + ':\\n' + (message.content or '') + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '### Assistant:\\n' }}
{%- endif %}
"""

# Templates that print today's date would differ between training and serving; they all print this day instead.
PINNED_DATE = "26 Jul 2024"


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words in some templates; rendering passes it through."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class CallForm(NamedTuple):
    """How a template wants to be given calls of tools: what stands for content that is none, arguments as an object or as JSON text, ids as
    they are or as the nine characters that some insist on."""

    empty: str | None
    arguments: Literal["object", "text"]
    short_ids: bool

    @property
    def left_out(self) -> bool:
        """Whether content that is none is no key at all."""
        return self.empty == _ABSENT


_ABSENT = "\0"
_FORMS = [CallForm(empty, how, short) for short, how, empty in product((False, True), ("object", "text"), ("", None, _ABSENT))]  # type: ignore[arg-type]
_NOTHING = re.compile(r"\b(?:None|null|undefined)\b")
# What templates are asked with, to see how they write it.
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "find_town",
        "description": "Where it is",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}, "days": {"type": "integer"}}, "required": ["town"]},
    },
}
PROBE_CALL = ToolCall(id="call_0", function=Function(name="find_town", arguments='{"town": "Ghent", "days": 7}'))
_ASK = Message(role="user", content="⟨u⟩")


class ChatTemplate:
    """One compiled template. `source` is its text; `tokens` the special tokens that it may name (`bos_token`, …).

    What it writes of calls and thoughts is asked of itself once: templates differ in how they want them, and none says so.
    """

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        self.source, self.tokens = source, tokens
        environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: PINNED_DATE
        try:
            self._environment, self._template = environment, environment.bounded(source)
            environment.attempt(self._template, messages=[{"role": "user", "content": "⟨u⟩"}], add_generation_prompt=True, **tokens)
        except TooMuch as error:
            raise DataError(f"the chat template cannot be used: {error}", where="chat template") from error
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"the chat template does not parse: {error.message}", where=f"chat template, line {error.lineno}") from error
        self.folds_system = not self._accepts_system()
        self._knows_developer = "developer" in source
        self._reasoning_keys = [key for key in ("reasoning_content", "reasoning", "thinking") if key in source]

    def _accepts_system(self) -> bool:
        rows = [{"role": "system", "content": "⟨s⟩"}, {"role": "user", "content": "⟨u⟩"}]
        rendered = self._attempt(rows, (), True) or self._attempt(rows, [PROBE_TOOL], True)  # some are for tools alone
        return rendered is not None and "⟨s⟩" in rendered

    def _attempt(self, rows: list[dict[str, Any]], tools: Sequence[dict[str, Any]], generation: bool) -> str | None:
        """What the template makes of the rows; None when it refuses them."""
        try:
            return self._raw(rows, tools, generation)
        except TooMuch as error:
            raise DataError(f"the chat template cannot be used: {error}", where="chat template") from error
        except Exception:  # noqa: BLE001 - a template is a program of others and fails in any way
            return None

    def _raw(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, generation: bool) -> str:
        values = {"messages": messages, "tools": tools or None, "add_generation_prompt": generation, **self.tokens}
        return self._environment.render(self._template, **values)

    @cached_property
    def call_form(self) -> CallForm | None:
        """How the template is given calls so that it shows name and arguments, and no word for nothing; None when it shows none."""
        return self.call_forms[0]

    @cached_property
    def call_forms(self) -> tuple[CallForm | None, CallForm | None]:
        """For a call without words, and for one with words before it."""
        return self._form(None), self._form("⟨w⟩") or self._form(None)

    def _form(self, words: str | None) -> CallForm | None:
        fitting = [(len(tail), place, form) for place, form in enumerate(_FORMS) if (tail := self._shown(form, words)) is not None]
        return min(fitting)[2] if fitting else None

    def _shown(self, form: CallForm, words: str | None) -> str | None:
        """What the template writes of the probe's call in that form; None when the call does not stand in it as it should."""
        call = Message(role="assistant", content=words, tool_calls=(PROBE_CALL,))
        answered = (_ASK, call, Message(role="tool", content="⟨t⟩", tool_call_id=PROBE_CALL.id))
        rows = self._rows(answered, form)
        once, after = self._attempt(rows[:2], [PROBE_TOOL], False), self._attempt(rows, [PROBE_TOOL], True)
        if once is None or after is None or "⟨t⟩" not in after:
            return None
        tail = once.rpartition("⟨u⟩")[2]
        whole = "find_town" in tail and "Ghent" in tail and "town" in tail.replace("find_town", "") and (words is None or words in tail)
        return None if not whole or _NOTHING.search(tail) or '\\"' in tail else tail

    @cached_property
    def takes_reasoning(self) -> bool:
        """Whether the template writes the thoughts of the last turn when they are given apart from its words."""
        thought = Message(role="assistant", content="⟨a⟩", reasoning_content="⟨r⟩")
        return bool(self._reasoning_keys) and "⟨r⟩" in (self._attempt(self._rows((_ASK, thought), None), (), False) or "")

    def messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template sees them: `developer` read as `system` where the template does not know it, a system message put in
        front of the first user turn where the template has no system role, calls in the form that it shows them in, and thoughts apart
        from the words where it takes them so."""
        called = any(message.tool_calls for message in messages)
        given = [self._thought_apart(message) for message in messages]
        rows = self._rows(given, self.call_form if called else None)
        if called and (with_words := self.call_forms[1]) != self.call_form:
            other = self._rows(given, with_words)
            rows = [
                other[i] if message.tool_calls and message.text else row for i, (message, row) in enumerate(zip(given, rows, strict=True))
            ]
        if not self._knows_developer:
            rows = [row | {"role": "system"} if row["role"] == "developer" else row for row in rows]
        return _fold_system(rows) if self.folds_system else rows

    def _thought_apart(self, message: Message) -> Message:
        if message.role != "assistant" or message.reasoning_content is not None or "</" not in message.text or not self.takes_reasoning:
            return message
        thought = parted(message.text)
        if not thought.reasoning or not message.text.lstrip().startswith("<think>"):
            return message
        words = thought.rest or (None if message.tool_calls else "")
        return msgspec.structs.replace(message, content=words, reasoning_content=thought.reasoning)

    def _rows(self, messages: Sequence[Message], form: CallForm | None) -> list[dict[str, Any]]:
        form = form or _FORMS[0]
        calls = [call for message in messages for call in message.tool_calls]
        ids = {call.id: f"{i:09d}" for i, call in enumerate(calls)} if form.short_ids else {}
        names = {call.id: call.function.name for call in calls}
        return [self._row(message, form, ids, names) for message in messages]

    def _row(self, message: Message, form: CallForm, ids: dict[str, str], names: dict[str, str]) -> dict[str, Any]:
        row: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.tool_calls:
            row["tool_calls"] = [
                {
                    "id": ids.get(call.id, call.id),
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments, form)},
                }
                for call in message.tool_calls
            ]
            if not message.text:
                row["content"] = form.empty
                if form.left_out:
                    del row["content"]
        if message.reasoning_content:
            row |= dict.fromkeys(self._reasoning_keys, message.reasoning_content)
        if message.tool_call_id is not None:
            row["tool_call_id"] = ids.get(message.tool_call_id, message.tool_call_id)
        name = message.name or (names.get(message.tool_call_id or "") if message.role == "tool" else None)
        return row if name is None else row | {"name": name}

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), generation: bool = False) -> str:
        """The conversation as text. `generation` adds the header of the assistant's next turn.

        Raises DataError with the template's own words when it refuses the conversation (roles that do not alternate, for one).
        """
        try:
            return self._raw(self.messages(messages), list(tools), generation)
        except Exception as error:
            roles = " → ".join(message.role for message in messages)
            raise DataError(f"the model's chat template refuses this conversation ({roles}): {error}") from error


def _arguments(text: str, form: CallForm) -> Any:
    """The arguments as an object, or as JSON text; text that is no JSON (a model may write such) is passed as it is."""
    try:
        value = json_value(text)
    except json.JSONDecodeError:
        return text
    return value if form.arguments == "object" else json.dumps(value, ensure_ascii=False)


def _fold_system(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not rows or rows[0]["role"] != "system":
        return rows
    system, rest = rows[0], rows[1:]
    if rest and rest[0]["role"] == "user":
        return [rest[0] | {"content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [system | {"role": "user"}, *rest]
