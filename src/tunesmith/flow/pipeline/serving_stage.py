"""The serving stage: base and tuned model behind a real port, asked by the unchanged openai SDK, logged, and read back by monitoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from tunesmith.core.errors import TunesmithError
from tunesmith.core.load import need
from tunesmith.core.types import Example, Message
from tunesmith.flow.runner import Output
from tunesmith.flow.temporary_server import Server
from tunesmith.models.base import Model
from tunesmith.store.store import Store

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext

_BEGINNING = 200  # characters of a document that are shown to be continued


def ask(context: ProjectContext, server: Server, work: Path) -> Output:
    """Serve both models, ask held-out rows of both, and return what was said and what monitoring saw of it. The log is the stage's own:
    nobody's questions are in it, and rows of the test part come into none from which people train."""
    from tunesmith.monitor.status import status

    openai = need("openai", extra="openai")
    tokens, asked = context.sampling().max_tokens, _chosen(context.questions("test"), context.project.deploy.questions)
    questions = [_beginning(row) if context.documents else ServedQuestion(row.prompt, row.prompt[-1].text, row.answer) for row in asked]
    served: dict[str, list[dict[str, Any]]] = {}
    with TemporaryDirectory(dir=work) as folder, closing(Store.open(folder)) as log:
        for names in _together(context):
            with server({name: load() for name, load in names.items()}, log) as url:
                client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
                served |= {name: [_answer(client, question, name, tokens) for question in questions] for name in names}
        seen = status(log)
    answers = [
        {"asked": question.asked, "reference": question.reference, "answers": [each[i] for each in served.values()]}
        for i, question in enumerate(questions)
    ]
    return {"questions": answers, "monitoring": seen}


def _chosen(rows: Sequence[Example], count: int) -> list[Example]:
    """Spread over the held-out rows, those with the longer answers first: they show more than the usual one."""
    return sorted(rows, key=lambda row: (-len(row.answer), row.id))[:: max(1, len(rows) // (3 * max(count, 1)))][:count]


def _together(context: ProjectContext) -> list[dict[str, Callable[[], Model]]]:
    """What is served at a time: base and adapter share their weights, whole weights are served after the base, so that one model is in
    memory."""
    base: dict[str, Callable[[], Model]] = {context.project.base: lambda: context.model}
    tuned: dict[str, Callable[[], Model]] = {context.project.deploy.alias: context.tuned_model}
    return [base | tuned] if context.tuned.adapter is not None else [base, tuned]


class ServedQuestion(NamedTuple):
    """What is asked of a served model: a conversation, or without one the text to go on with; and what was written there."""

    messages: tuple[Message, ...]
    asked: str
    reference: str


def _beginning(row: Example) -> ServedQuestion:
    """A document's first words, which a model goes on with."""
    begin = row.answer[: min(_BEGINNING, len(row.answer) // 2)].rpartition(" ")[0] or row.answer[:1]
    return ServedQuestion((), begin, row.answer[len(begin) :][: 4 * _BEGINNING])


def _answer(client: Any, question: ServedQuestion, model: str, max_tokens: int) -> dict[str, Any]:
    started = time.monotonic()
    fixed = {"model": model, "max_tokens": max_tokens, "temperature": 0}
    try:
        if question.messages:
            messages = [msgspec.to_builtins(message) for message in question.messages]
            completion = client.chat.completions.create(messages=messages, **fixed)
            text = completion.choices[0].message.content
        else:
            completion = client.completions.create(prompt=question.asked, **fixed)
            text = completion.choices[0].text
    except need("openai", extra="openai").OpenAIError as error:
        raise TunesmithError(
            f"the served model '{model}' did not answer: {error}", remedy="free space on the disk, then run again"
        ) from error
    return {"model": model, "text": text, "tokens": completion.usage.completion_tokens, "seconds": time.monotonic() - started}
