"""The serving stage: base and tuned model behind a real port, asked by the unchanged openai SDK, logged, and read back by monitoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.core.errors import TunesmithError
from tunesmith.core.load import need
from tunesmith.core.types import Example
from tunesmith.flow.runner import Output
from tunesmith.models.base import Model
from tunesmith.store.store import Store

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext

# Puts models behind a port and gives the base URL; handed in, because the HTTP layer stands above the flows.
Server = Callable[[Mapping[str, Model], Store], AbstractContextManager[str]]


def ask(context: ProjectContext, server: Server, work: Path) -> Output:
    """Serve both models, ask held-out rows of both, and return what was said and what monitoring saw of it."""
    from tunesmith.monitor.status import status

    openai = need("openai", extra="openai")
    started = time.time()
    tokens, asked = context.sampling().max_tokens, _chosen(context.questions("test"), context.project.deploy.questions)
    said: dict[str, list[dict[str, Any]]] = {}
    for names in _together(context):
        with server({name: load() for name, load in names.items()}, context.store) as url:
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
            said |= {name: [_answer(client, row, name, tokens) for row in asked] for name in names}
    answers = [
        {"asked": row.prompt[-1].text, "reference": row.answer, "answers": [each[i] for each in said.values()]}
        for i, row in enumerate(asked)
    ]
    seen = status(context.store, since=started)
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


def _answer(client: Any, row: Example, model: str, max_tokens: int) -> dict[str, Any]:
    started = time.monotonic()
    messages = [msgspec.to_builtins(message) for message in row.prompt]
    try:
        completion = client.chat.completions.create(model=model, messages=messages, max_tokens=max_tokens, temperature=0)
    except need("openai", extra="openai").OpenAIError as error:
        raise TunesmithError(
            f"the served model '{model}' did not answer: {error}", remedy="free space on the disk, then run again"
        ) from error
    return {
        "model": model,
        "text": completion.choices[0].message.content,
        "tokens": completion.usage.completion_tokens,
        "seconds": time.monotonic() - started,
    }
