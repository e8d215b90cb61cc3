"""Responses of another server: when a request is passed to it as it came, and what is read and kept of its answer. Knows nothing about how
bytes are passed.

The other server keeps its responses by its own rule. Here each has a row, so that only its own project can retrieve it, delete it and go
on from it. What that server cannot know (a response of ours, a variant's own prompt) and what it lacks (the whole endpoint) is answered
here: the model is asked by chat completions then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from tunesmith.api.errors import APIError
from tunesmith.api.http import away
from tunesmith.api.responses import previous_missing
from tunesmith.api.state import State
from tunesmith.core.response_items import CallItem, Item, MessageItem, ReferenceItem, given_items, kept_items, turns
from tunesmith.core.response_object import holder_of, listed_items
from tunesmith.core.types import Function, Message, ToolCall
from tunesmith.core.wire import BadRequest
from tunesmith.deploy.answered import Exchange, Outcome
from tunesmith.deploy.router import Target
from tunesmith.models.base import passing
from tunesmith.store.paging import Missing, Row
from tunesmith.store.responses import Responses

PATH = "/v1/responses"
# What begins the last event of a stream; in no string of an event can it stand, since quotes are escaped there.
ENDS = tuple(f'"type":{space}"response.{word}"'.encode() for word in ("completed", "incomplete", "failed") for space in ("", " "))
_BELIEVED_S = 600.0
_FINISHED = {"max_output_tokens": "length", "content_filter": "content_filter"}
_UNIQUE = 24  # characters of an id that can be taken for random
_Tree = Mapping[str, msgspec.Raw]


class _Details(msgspec.Struct, frozen=True):
    reason: str = ""


class _Failure(msgspec.Struct, frozen=True):
    message: str = ""


class _Usage(msgspec.Struct, frozen=True):
    input_tokens: int = 0
    output_tokens: int = 0


class _Response(msgspec.Struct, frozen=True):
    id: str = ""
    status: str = "completed"
    output: list[Any] = []
    usage: _Usage | None = None
    incomplete_details: _Details | None = None
    error: _Failure | None = None


class _Event(msgspec.Struct, frozen=True):
    response: msgspec.Raw = msgspec.Raw()


class _Absent(msgspec.Struct, frozen=True):
    code: Any = None
    param: Any = None


class _Told(msgspec.Struct, frozen=True):
    error: _Absent = _Absent()


_absent = msgspec.json.Decoder(_Told)
_response, _event = msgspec.json.Decoder(_Response), msgspec.json.Decoder(_Event)


def _plain(tree: _Tree, key: str) -> Any:
    return msgspec.json.decode(tree[key]) if key in tree else None


# --- before ------------------------------------------------------------------------------------------------------------------------------


async def note_prompt(state: State, exchange: Exchange, tree: _Tree) -> None:
    """The prompt, as the log has it: the request's own items, after what led to them where that is kept here."""
    exchange.ask(await away(_messages, state, exchange.project, tree))


def _messages(state: State, project: str, tree: _Tree) -> tuple[Message, ...]:
    """The messages, as far as they are any."""
    instructions, previous, before = _plain(tree, "instructions"), _plain(tree, "previous_response_id"), list[Item]()
    try:
        if isinstance(previous, str) and state.store is not None:
            chain = Responses(state.store).chain(previous, project)
            before = [item for row in chain for item in kept_items([*row["items"], *row["response"]["output"]])]
        own = [item for item in given_items(_plain(tree, "input")) if not isinstance(item, ReferenceItem)]
        messages = turns([*before, *own])
    except (BadRequest, Missing):
        return ()
    return (Message(role="system", content=instructions), *messages) if isinstance(instructions, str) and instructions else messages


async def passes(state: State, exchange: Exchange, tree: _Tree, target: Target) -> bool:
    """Whether a request is passed as it came. Raises BadRequest for what a gateway cannot follow, APIError for a `previous_response_id`
    that is not the project's."""
    for key, refused in (("background", _plain(tree, "background") is True), ("conversation", _plain(tree, "conversation") is not None)):
        if refused:
            message = f"'{key}' is not served: what the other server goes on with by itself would be nobody's here"
            raise BadRequest(message, param=key, code="unsupported_parameter")
    if target.variant.prompted or state.chats_only.get(target.model.digest, 0.0) >= time.monotonic():
        return False
    if state.store is None:
        return True
    previous = _plain(tree, "previous_response_id")
    held = await away(_held, Responses(state.store), exchange.project, previous, _plain(tree, "input"))
    return all(alias == exchange.alias for alias in held)


def _held(kept: Responses, project: str, previous: Any, given: Any) -> list[str | None]:
    """Who has what a request goes on from or refers to (None: this server alone). Raises APIError for a previous response that is gone."""
    held = list[str | None]()
    if isinstance(previous, str):
        try:
            held.append(kept.find(previous, project)["elsewhere"])
        except Missing as error:
            raise previous_missing(previous) from error
    for item in given if isinstance(given, list) else ():
        holder = holder_of(str(item["id"])) if isinstance(item, dict) and item.keys() <= {"type", "id"} and "id" in item else None
        with contextlib.suppress(Missing):
            held += [kept.find(holder, project)["elsewhere"]] if holder is not None else []
    return held


def lacking(status: int, whole: bytes) -> bool:
    """Whether an answer says that the server has no such endpoint, and not that it misses a model or an item."""
    if status not in (404, 405, 501):
        return False
    try:
        error = _absent.decode(whole).error
    except msgspec.DecodeError:
        return True
    return error.param is None and error.code != "model_not_found"


def note_absent(state: State, target: Target) -> None:
    """The other server has no such endpoint: for some time it is asked by chat completions at once."""
    state.chats_only[target.model.digest] = time.monotonic() + _BELIEVED_S


# --- after -------------------------------------------------------------------------------------------------------------------------------


def _object(whole: bytes) -> bytes:
    """The response of an answer's bytes: the answer itself, or what the last event of its stream has; empty where there is none."""
    if whole.lstrip().startswith(b"{"):
        return whole
    for line in reversed(whole.split(b"\n")):
        if line.startswith(b"data:") and b'"response"' in line:
            try:
                return bytes(_event.decode(line[5:].strip()).response)
            except msgspec.DecodeError:
                continue
    return b""


def answer(whole: bytes) -> tuple[str, Outcome]:
    """(the response's own id, its outcome), of one JSON object or of the events of a stream; of what cannot be read, nothing."""
    try:
        made = _response.decode(_object(whole))
    except msgspec.DecodeError:
        return "", Outcome(counted=False)
    words, calls = list[str](), list[ToolCall]()
    for raw in made.output:
        try:
            (item,) = kept_items([raw])
        except (BadRequest, ValueError):
            continue  # of a tool that the other server runs
        if isinstance(item, CallItem):
            calls.append(ToolCall(id=item.call_id, function=Function(name=item.name, arguments=item.arguments)))
        elif isinstance(item, MessageItem):
            words += [message.text for message in turns([item])]
    reason = made.incomplete_details.reason if made.incomplete_details is not None else ""
    finish = "error" if made.status == "failed" else _FINISHED.get(reason, "tool_calls" if calls else "stop")
    used = made.usage
    counted = used is not None and all(0 <= tokens < 1 << 31 for tokens in (used.input_tokens, used.output_tokens))
    outcome = Outcome(
        text="".join(words),
        finish_reason=finish,
        tool_calls=tuple(calls),
        prompt_tokens=used.input_tokens if used is not None and counted else 0,
        completion_tokens=used.output_tokens if used is not None and counted else 0,
        counted=counted,
        error=made.error.message if made.error is not None else "",
    )
    return made.id, outcome


def keeping(state: State, exchange: Exchange, tree: _Tree) -> Callable[[bytes], Awaitable[None]] | None:
    """What keeps the answer of a request, with its items; None where none is to be kept."""
    store = state.store
    if store is None or _plain(tree, "store") is False:
        return None
    given = _plain(tree, "input")

    async def keep(whole: bytes) -> None:
        try:
            body = msgspec.json.decode(_object(whole))
        except msgspec.DecodeError:
            return
        number = body.get("id") if isinstance(body, dict) else None
        if isinstance(number, str) and len(number) >= _UNIQUE and isinstance(body.get("output"), list):
            own = {"model": exchange.alias, **body}
            items, project = _items(given, number), exchange.project
            await away(Responses(store).put, own, items, project=project, created=exchange.created, elsewhere=exchange.alias)

    return keep


def _items(given: Any, number: str) -> list[Any]:
    """The items of a request; as they came where some are of tools that the other server runs."""
    try:
        return listed_items([item for item in given_items(given) if not isinstance(item, ReferenceItem)], number)
    except BadRequest:
        return given if isinstance(given, list) else []


async def forget(state: State, row: Row) -> None:
    """Have another server delete a response of its own. Raises APIError when it does not; one that has it no longer is fine."""
    target = state.passed_to(row["elsewhere"]) if row["elsewhere"] else None
    upstream = passing(target.model) if target is not None else None
    if upstream is None:
        return
    try:
        status = await upstream.delete(f"/responses/{row['id']}")
    except OSError as error:
        raise APIError(502, f"The server behind '{row['elsewhere']}' did not answer: {error}", code="upstream_unreachable") from error
    if status >= 400 and status != 404:
        raise APIError(
            502, f"The server behind '{row['elsewhere']}' did not delete '{row['id']}': status {status}", code="upstream_refused"
        )
