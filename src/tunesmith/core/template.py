"""Jinja chat templates as models ship them, run in a sandbox; knows nothing about tokens.

Semantics follow the `transformers` documentation of chat templates: an immutable sandbox, `trim_blocks`, `lstrip_blocks`, loop controls,
`raise_exception`, `tojson` without HTML escapes, and the `{% generation %}` block.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from tunesmith.core.errors import DataError
from tunesmith.core.json_text import json_value
from tunesmith.core.template_limits import Bounded, TooMuch
from tunesmith.core.types import Message

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


class ChatTemplate:
    """One compiled template. `source` is its text; `tokens` the special tokens that it may name (`bos_token`, …)."""

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

    def _accepts_system(self) -> bool:
        try:
            rendered = self._raw([{"role": "system", "content": "⟨s⟩"}, {"role": "user", "content": "⟨u⟩"}], None, True)
        except jinja2.TemplateError:
            return False
        return "⟨s⟩" in rendered

    def _raw(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, generation: bool) -> str:
        values = {"messages": messages, "tools": tools or None, "add_generation_prompt": generation, **self.tokens}
        return self._environment.render(self._template, **values)

    def messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template sees them: `developer` read as `system` where the template does not know it, and a system
        message put in front of the first user turn where the template has no system role."""
        rows = [_as_template_row(message) for message in messages]
        if not self._knows_developer:
            rows = [row | {"role": "system"} if row["role"] == "developer" else row for row in rows]
        return _fold_system(rows) if self.folds_system else rows

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), generation: bool = False) -> str:
        """The conversation as text. `generation` adds the header of the assistant's next turn.

        Raises DataError with the template's own words when it refuses the conversation (roles that do not alternate, for one).
        """
        try:
            return self._raw(self.messages(messages), list(tools), generation)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            roles = " → ".join(message.role for message in messages)
            raise DataError(f"the model's chat template refuses this conversation ({roles}): {error}") from error


def _as_template_row(message: Message) -> dict[str, Any]:
    # Never null: templates join it to other text, or write the word None.
    row: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_calls:
        row["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)}}
            for call in message.tool_calls
        ]
    for key in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, key) is not None:
            row[key] = getattr(message, key)
    return row


def _arguments(text: str) -> Any:
    """Templates expect the arguments as an object; text that is no JSON (a model may write such) is passed as it is."""
    try:
        return json_value(text)
    except json.JSONDecodeError:
        return text


def _fold_system(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not rows or rows[0]["role"] != "system":
        return rows
    system, rest = rows[0], rows[1:]
    if rest and rest[0]["role"] == "user":
        return [rest[0] | {"content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [system | {"role": "user"}, *rest]
