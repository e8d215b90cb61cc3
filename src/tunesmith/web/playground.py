"""Asking two models the same, side by side: answers with the probability of each token, sources, times, and whose weights answered."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import project_of
from tunesmith.api.state import state_of
from tunesmith.core.errors import NotFound, UsageError
from tunesmith.web.page import page

_LONGEST = 4096
_STEPS = ((0.9, "p0"), (0.5, "p1"), (0.1, "p2"))  # from which probability on a token has which mark


async def show(request: Request) -> Response:
    """GET /playground, and the answers to POST /playground."""
    names = [name for name, _ in state_of(request).router.listed()]
    form = {key: str(value) for key, value in (await request.form()).items()} if request.method == "POST" else {}
    asked = {**_first(names), **dict(request.query_params), **form}
    columns = []
    if request.method == "POST":
        if not asked["prompt"].strip():
            raise UsageError("nothing was asked", allowed="a question")
        wanted = list(dict.fromkeys(name for name in (asked["a"], asked["b"]) if name))
        columns = await asyncio.gather(*(_column(request, name, asked) for name in wanted))
    same = len(columns) > 1 and len({column["digest"] for column in columns if column["digest"]}) == 1 and all(c["digest"] for c in columns)
    return page(request, "playground", names=names, asked=asked, columns=columns, same=same)


def _first(names: list[str]) -> dict[str, str]:
    """What the form shows at first: the base and the newest other name."""
    models = {"a": names[0] if names else "", "b": names[-1] if len(names) > 1 else ""}
    return {**models, "prompt": "", "system": "", "max_tokens": "200", "temperature": "0"}


async def _column(request: Request, name: str, asked: dict[str, str]) -> dict[str, Any]:
    """One model's answer, asked as any client would, so that it is in the log."""
    state, project = state_of(request), project_of(request)
    system = [{"role": "system", "content": asked["system"]}] if asked["system"].strip() else []
    body: dict[str, Any] = {
        "model": name,
        "messages": [*system, {"role": "user", "content": asked["prompt"]}],
        "max_tokens": _whole(asked["max_tokens"]),
        "temperature": _number(asked["temperature"]),
        "logprobs": True,
        "top_logprobs": 3,
    }
    try:
        target = await state.target(name, project)
    except NotFound as error:
        return _failed(name, str(error))
    begun, answer = time.perf_counter(), await _ask(state.inside, project, body)
    if answer.status_code == 400:  # some models tell no probabilities
        answer = await _ask(state.inside, project, {key: value for key, value in body.items() if "logprobs" not in key})
    taken, told = time.perf_counter() - begun, answer.json()
    if answer.status_code != 200:
        return _failed(name, str(told.get("error", {}).get("message", f"status {answer.status_code}")), target)
    choice = told["choices"][0]
    return {
        "name": name,
        "variant": target.variant.name if not target.several else "one of several variants",
        "digest": "" if target.several else target.model.digest[:16],
        "text": choice["message"].get("content") or "",
        "tokens": [_token(token) for token in (choice.get("logprobs") or {}).get("content") or []],
        "seconds": taken,
        "usage": told.get("usage") or {},
        "ended": choice.get("finish_reason") or "",
        "sources": told.get("sources") or choice["message"].get("sources") or [],
        "error": "",
        "id": told.get("id", ""),
    }


def _failed(name: str, error: str, target: Any = None) -> dict[str, Any]:
    digest = "" if target is None or target.several else target.model.digest[:16]
    empty: dict[str, Any] = {"variant": "", "text": "", "tokens": [], "seconds": 0.0, "usage": {}, "ended": "", "sources": [], "id": ""}
    return {"name": name, "digest": digest, "error": error, **empty}


async def _ask(inside: Any, project: str, body: dict[str, Any]) -> httpx.Response:
    if inside is None:
        raise UsageError("this server keeps no store, and asks itself nothing", remedy="tunesmith serve")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=inside(project)), base_url="http://inside", timeout=600) as client:
        return await client.post("/v1/chat/completions", json=body)


def _token(told: dict[str, Any]) -> dict[str, Any]:
    """A token with its probability, the mark for it, and what else could have stood there."""
    probability = _probability(told)
    others = "; ".join(f"{_shown(other['token'])} {_probability(other):.0%}" for other in told.get("top_logprobs", []))
    mark = next((name for least, name in _STEPS if probability >= least), "p3")
    return {"text": told["token"], "share": probability, "mark": mark, "others": others}


def _probability(token: dict[str, Any]) -> float:
    return math.exp(min(0.0, float(token["logprob"])))


def _shown(text: str) -> str:
    return text.replace("\n", "⏎").replace(" ", "␣") or "(nothing)"


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _LONGEST):
        raise UsageError(f"{text[:40]!r} tokens", where="max_tokens", allowed=f"1 to {_LONGEST}")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise UsageError(f"a temperature of {text[:40]!r}", where="temperature", allowed="0 to 2") from error
    if not 0 <= value <= 2:
        raise UsageError(f"a temperature of {value}", where="temperature", allowed="0 to 2")
    return value
