"""POST /v1/fine_tuning/alpha/graders/run and /validate; knows nothing about how a grader grades."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away, project_of
from tunesmith.api.state import State, state_of
from tunesmith.core import wire
from tunesmith.core.types import Answer, Prompt, Record, Sampling
from tunesmith.evaluate import graders
from tunesmith.flow.jobs.request import grader_of

# Every key that OpenAI's response must have, and what it is when nothing went wrong.
_KINDS = (
    "formula_parse", "sample_parse", "truncated_observation", "unresponsive_reward", "invalid_variable", "other", "python_grader_server",
    "python_grader_runtime", "model_grader_server", "model_grader_refusal", "model_grader_parse",
)  # fmt: skip
_DETAILS = ("python_grader_server_error_type", "python_grader_runtime_error_details", "model_grader_server_error_details")
_NO_ERRORS: dict[str, bool | None] = {**{f"{kind}_error": False for kind in _KINDS}, **dict.fromkeys(_DETAILS)}


class _Run(Record, frozen=True):
    grader: dict[str, Any]
    model_sample: str
    item: dict[str, Any] = {}


class _Validate(Record, frozen=True):
    grader: dict[str, Any]


async def run(request: Request) -> Response:
    """Grade one sample. What goes wrong while grading is told in `metadata.errors`, with reward 0."""
    state = state_of(request)
    asked = wire.convert(wire.decode_object(await request.body()), _Run)
    grader = await away(grader_of, asked.grader, "grader", python=state.python_graders)
    grade = await asyncio.to_thread(graders.run, grader, asked.model_sample, asked.item, _asker(state, project_of(request)))
    body = {
        "reward": grade.reward,
        "metadata": {
            "name": grader.name,
            "type": asked.grader["type"],
            "errors": {**_NO_ERRORS, **grade.errors},
            "execution_time": grade.seconds,
            "scores": grade.sub_rewards or {grader.name: grade.reward},
            "token_usage": sum(grade.tokens.values()) if grade.tokens else None,
            "sampled_model_name": next(iter(grade.tokens), None),
        },
        "sub_rewards": grade.sub_rewards,
        "model_grader_token_usage_per_model": grade.tokens,
    }
    return Response(msgspec.json.encode(body), media_type="application/json")


async def validate(request: Request) -> Response:
    """The grader as it came, when it is one."""
    asked = wire.convert(wire.decode_object(await request.body()), _Validate)
    await away(grader_of, asked.grader, "grader", python=state_of(request).python_graders)
    return Response(msgspec.json.encode({"grader": asked.grader}), media_type="application/json")


def _asker(state: State, project: str) -> Callable[[str, Prompt, Sampling], Answer]:
    """Asks a served model from a grader's thread, in the batch of everyone else."""
    loop = asyncio.get_running_loop()

    async def answered(name: str, prompt: Prompt, sampling: Sampling) -> Answer:
        (stream,) = await state.answering.ask(await state.find(name, project), prompt, sampling)
        return await stream.whole()

    def ask(name: str, prompt: Prompt, sampling: Sampling) -> Answer:
        return asyncio.run_coroutine_threadsafe(answered(name, prompt, sampling), loop).result()

    return ask
