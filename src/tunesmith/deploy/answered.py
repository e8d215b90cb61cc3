"""The one place where a request ends: it is priced, counted and written to the log, whatever it asked for and however it ended. Knows
nothing about HTTP, and nothing about what was asked.

An endpoint opens an `Exchange` when it knows which model a request names, tells it what it learns, and ends it once. A request that
names no model is counted only. One that reached no model (its name is unknown, or too many wait here) leaves a row without its prompt, so
that refusing costs little of the disk; what another server refused has its prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from tunesmith.core.deployment import Variant
from tunesmith.core.random_ids import random_hex
from tunesmith.core.types import CLIENT_LEFT, Answer, Interaction, Message, Record, Sources, ToolCall
from tunesmith.deploy.conversations import Conversations, History
from tunesmith.deploy.serve_config import TokenPrice
from tunesmith.store.interactions import InteractionLog

_NOT_ASKED = frozenset({404, 429})
_LONGEST_ERROR = 1000
# (alias, who answers) → the price of its tokens, None where nobody knows it.
PriceOf = Callable[[str, Variant], TokenPrice | None]


class Counter(Protocol):
    """What counts requests for whoever watches the server."""

    def answered(self, row: Interaction) -> None:
        """Count a request that was answered."""

    def assigned(self, row: Interaction) -> None:
        """Count a request of a deployment for the variant that it was assigned, however it ended."""

    def ended(self, row: Interaction) -> None:
        """Count a request that came to a model, however it ended."""

    def failed(self, status: int, project: str | None = None) -> None:
        """Count one that ended with an error, whose it was as far as that is known."""


class Sender(Protocol):
    """What tells another place of requests."""

    def ended(self, row: Interaction) -> None:
        """Tell of a request that came to a model, however it ended; does not wait for anything."""

    def close(self) -> None:
        """Send what waits."""


class Outcome(Record, frozen=True):
    """How a request ended. Of several choices the words are the first one's, the tokens all of them; `counted` says whether the tokens are
    known, `reached` whether the request came to a model or to another server. `first_token_s` None: not before the end."""

    text: str = ""
    finish_reason: str = "stop"
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = True
    first_token_s: float | None = None
    status: int = 200
    error: str = ""
    reached: bool = True
    sources: Sources | None = None


def outcome_of(answers: Sequence[Answer], prompt_tokens: int | None = None) -> Outcome:
    """What models answered as an outcome; `prompt_tokens` where there were several prompts (else the first answer's)."""
    first = answers[0]
    return Outcome(
        text=first.text,
        finish_reason=first.finish_reason,
        tool_calls=first.tool_calls,
        prompt_tokens=first.prompt_tokens if prompt_tokens is None else prompt_tokens,
        completion_tokens=sum(answer.completion_tokens for answer in answers),
        first_token_s=min((answer.first_token_s for answer in answers if answer.first_token_s is not None), default=None),
        sources=first.sources,
    )


def refused(status: int, error: str) -> Outcome:
    """A request that this server ended with an error."""
    return Outcome(finish_reason="error", status=status, error=error, counted=False, reached=status not in _NOT_ASKED)


def client_left(answers: Sequence[Answer] = ()) -> Outcome:
    """A request whose client did not wait for its end; `answers` are those that were whole by then."""
    partly = outcome_of(answers) if answers else Outcome()
    return msgspec.structs.replace(partly, counted=False, finish_reason="cancelled", status=CLIENT_LEFT, error="the client left")


@dataclass(slots=True)
class Exchange:
    """One request on its way: what is known of it until it ends. `alias` is the name that it asks for, empty where it names none; the
    `variant` that answers, its model and its deployment are known once the name is resolved; `fallback` is who answered in its place.
    `continued` says that the conversation may have begun before. A `probe` is asked to see who answers, and leaves no trace."""

    answered: Answered
    prefix: str
    endpoint: str
    alias: str
    project: str
    user_key: str | None = None
    conversation: str | None = None
    messages: tuple[Message, ...] = ()
    variant: Variant | None = None
    model_digest: str = ""
    deployment: int | None = None
    propensity: float | None = None
    strategy: str = ""
    experiment: str | None = None
    fallback: Variant | None = None
    continued: bool = False
    first_s: float | None = None
    started: float = field(default_factory=time.perf_counter)
    created: float = field(default_factory=time.time)
    ended: bool = False
    probe: bool = False
    own_id: str = ""
    _history: History | None = None

    @property
    def id(self) -> str:
        """The answer's id: its own where it brought one, else made when it is first asked for: the time in milliseconds, so that the log's
        index grows at its end, and 96 random bits."""
        self.own_id = self.own_id or f"{self.prefix}{int(self.created * 1000):012x}{random_hex(12)}"
        return self.own_id

    def ask(self, messages: tuple[Message, ...]) -> None:
        """Note the prompt of a conversation, and which one it goes on with unless the client has named it."""
        self.messages = messages
        self.continued = not self.probe
        if self.conversation is None and not self.probe:
            self._history = History(self.project, self.user_key, messages)
            self.continued = self.answered.conversations.knows(self._history)
            self.conversation = self.answered.conversations.of(self._history)

    @property
    def key(self) -> str:
        """What stays the same while one variant should answer: the user, else the conversation, else this request."""
        return self.user_key or self.conversation or self.id

    def first_token(self) -> None:
        """The first words are there."""
        self.first_s = self.first_s or time.perf_counter() - self.started

    async def end(self, outcome: Outcome) -> None:
        """Price, count and log the request; returns when its row is on disk. Only the first end counts.

        Raises StoreError when the row could not be written.
        """
        if self.ended:
            return
        self.ended = True
        if self.probe:
            return
        if self._history is not None and self.conversation is not None and outcome.status < 400:
            self.answered.conversations.remember(self.conversation, self._history, outcome.text, outcome.tool_calls)
        await self.answered.write(self._row(outcome), loggable=bool(self.alias))

    def _row(self, outcome: Outcome) -> Interaction:
        total_s = time.perf_counter() - self.started
        first_s = outcome.first_token_s if outcome.first_token_s is not None else self.first_s
        return Interaction(
            id=self.id,
            created=self.created,
            alias=self.alias,
            variant=self.variant.name if self.variant is not None else "",
            messages=self.messages if self.variant is not None and outcome.reached else (),
            answer=outcome.text,
            finish_reason=outcome.finish_reason,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            first_token_s=total_s if first_s is None else first_s,
            total_s=total_s,
            status=outcome.status,
            error=outcome.error[:_LONGEST_ERROR],
            conversation=self.conversation,
            tool_calls=outcome.tool_calls,
            project=self.project,
            endpoint=self.endpoint,
            deployment=self.deployment,
            model_digest=self.model_digest,
            user_key=self.user_key,
            cost_usd=self._cost(outcome),
            experiment=self.experiment,
            propensity=self.propensity,
            sources=outcome.sources,
            strategy=self.strategy,
            fallback=self.fallback.name if self.fallback is not None else None,
        )

    def _cost(self, outcome: Outcome) -> float | None:
        who = self.fallback or self.variant
        price = self.answered.price_of(self.alias, who) if who is not None else None
        if price is None or (not outcome.counted and (price.input or price.output)):
            return None
        return (outcome.prompt_tokens * price.input + outcome.completion_tokens * price.output) / 1e6


class Answered:
    """Where exchanges end. `log` None keeps no log, `sender` None tells nobody else."""

    def __init__(self, log: InteractionLog | None, counter: Counter, price_of: PriceOf, sender: Sender | None = None) -> None:
        self._log, self._counter, self.price_of, self._sender = log, counter, price_of, sender
        self.conversations = Conversations()

    def open(self, endpoint: str, prefix: str, alias: str, project: str) -> Exchange:
        """A request that has just come to an endpoint; its id begins with `prefix`."""
        return Exchange(self, prefix, endpoint, alias, project)

    async def write(self, row: Interaction, *, loggable: bool) -> None:
        """Count a request, and keep its row where it names a model. The log has the row before this waits, so it is written even if who
        waits is cancelled."""
        if row.status < 400:
            self._counter.answered(row)
        else:
            self._counter.failed(row.status, row.project)
        if row.variant:  # the name was known: what clients make up is no label
            self._counter.ended(row)
            if self._sender is not None:
                self._sender.ended(row)
        if row.deployment is not None:
            self._counter.assigned(row)
        if self._log is not None and loggable:
            await self._log.write(row)

    def close(self) -> None:
        """Write what waits."""
        if self._log is not None:
            self._log.close()
        if self._sender is not None:
            self._sender.close()
