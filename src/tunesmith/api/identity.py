"""Looks at what is served, while it is served: probes of one token go through the application's own routes, variant by variant, and their
answers are compared with those of the exact weights when they were deployed. Knows nothing about how that is compared.

A request with the header `x-tunesmith-probe` (of an operator, as these are) is in no count, log, quota or conversation.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
from msgspec.structs import replace

from tunesmith.api.exchange import PROBE_HEADER, VARIANT_HEADER
from tunesmith.api.http import away
from tunesmith.api.state import State
from tunesmith.core import wire
from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import SourceUnavailable, TunesmithError
from tunesmith.core.identity import IdentityCheck, IdentityReference, Sample
from tunesmith.core.types import Message
from tunesmith.deploy.identity import AGAIN, TOP, names_answers, sample_of, second_level
from tunesmith.flow.identity import Asking, looked, looked_again, precision_of, unknown
from tunesmith.store.identities import Identities

_log = logging.getLogger("tunesmith.api")
_TICK_S = 1.0
_AT_ONCE, _TIMEOUT_S = 1, 60.0  # alone, as half of each reference was asked
_Place = tuple[str, int, str]


def probe(alias: str, variant: str, made: IdentityReference, messages: tuple[Message, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """(body, headers) of one probe of a variant, for POST /v1/chat/completions."""
    body: dict[str, Any] = {"model": alias, "messages": [wire.message_body(message) for message in messages], "max_tokens": 1}
    more = {"logprobs": True, "top_logprobs": TOP} if made.logprobs else {}
    return body | {"temperature": 0} | more, {VARIANT_HEADER: variant, PROBE_HEADER: "1", "content-type": "application/json"}


def answered(status: int, content: bytes, *, with_logprobs: bool) -> dict[str, float]:
    """The sample of a probe's response. Raises SourceUnavailable for one that is no answer."""
    try:
        choice = msgspec.json.decode(content)["choices"][0] if status == 200 else {}
        message, logprobs = choice["message"], choice.get("logprobs") or {}
        return sample_of(logprobs.get("content") or (), message.get("content") or "", with_logprobs=with_logprobs)
    except (msgspec.DecodeError, LookupError, TypeError) as error:
        words = content[:200].decode("utf-8", "replace")
        raise SourceUnavailable(f"a probe was answered {status}: {words}") from error


@dataclass
class IdentityWatch:
    """What looks at the variants of `state` for as long as the server runs: at each as soon as it answers, then every `every_s` seconds (at
    those of other servers every `elsewhere_s`; 0: never). `inside` is the application behind its door."""

    state: State
    inside: Any
    every_s: float
    elsewhere_s: float
    _looked: dict[_Place, float] = field(default_factory=dict)
    _told: dict[_Place, str] = field(default_factory=dict)

    async def work(self) -> None:
        """Look, one variant at a time."""
        while True:
            for deployment, variant in list(self._due()):
                try:
                    await self.look(deployment, variant)
                except Exception:  # noqa: BLE001 - the task must live as long as the server
                    _log.exception("'%s' could not be looked at; it is tried again", deployment.alias)
            await asyncio.sleep(_TICK_S)

    def _due(self) -> Iterator[tuple[Deployment, Variant]]:
        """The variants at which nobody has looked for long enough."""
        now = time.monotonic()
        for deployment in self.state.router.deployments():
            for variant in deployment.variants:
                every_s = self.every_s if variant.model is not None else self.elsewhere_s
                last = self._looked.get((deployment.alias, deployment.version, variant.name))
                if every_s and (last is None or now - last >= every_s) and self.state.router.resident(deployment.alias, variant.name):
                    yield deployment, variant

    async def look(self, deployment: Deployment, variant: Variant) -> IdentityCheck | None:
        """Look at a variant now, and keep, count and say what was found; None where its exact weights were never asked."""
        store, place = self.state.store, (deployment.alias, deployment.version, variant.name)
        self._looked[place] = time.monotonic()
        made = await away(Identities(store).reference, names_answers(variant)) if store is not None else None
        if made is None or store is None:
            return None
        check = unknown(deployment, variant, "served")
        precision = await away(precision_of, self.state.router.target(deployment.alias, wanted=variant.name).model)
        try:
            answers = await self._answers(deployment.alias, variant.name, made, 1)
            check = await away(looked, made, answers, check, precision)
            if check.verdict != "same":
                level = second_level(self.every_s if variant.model is not None else self.elsewhere_s, len(self._looked))
                answers = await self._answers(deployment.alias, variant.name, made, AGAIN)
                check = await away(looked_again, made, answers, check, precision, level)
        except TunesmithError as error:
            check = replace(check, verdict="unknown", why=error.what)
        check = await away(Identities(store).put, check)
        self.state.metrics.identity.note(check)
        self._tell(place, check)
        return check

    async def _answers(self, alias: str, variant: str, made: IdentityReference, times: int) -> list[list[Sample]]:
        turn, transport = asyncio.Semaphore(_AT_ONCE), httpx.ASGITransport(app=self.inside)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=None) as client:

            async def one(messages: tuple[Message, ...]) -> dict[str, float]:
                body, headers = probe(alias, variant, made, messages)
                async with turn:
                    answer = await client.post("/v1/chat/completions", content=msgspec.json.encode(body), headers=headers)
                return answered(answer.status_code, answer.content, with_logprobs=made.logprobs)

            samples = await asyncio.gather(*(one(messages) for messages in made.probes for _ in range(times)))
        return [list(samples[at : at + times]) for at in range(0, len(samples), times)]

    def _tell(self, place: _Place, check: IdentityCheck) -> None:
        """Say in the log what has changed since the last look."""
        if self._told.get(place, "same") != check.verdict:
            say = {"differs": _log.error, "unknown": _log.warning, "same": _log.warning}[check.verdict]
            say("IDENTITY: '%s' (version %s), variant '%s': %s", *place, check.text())
        self._told[place] = check.verdict


def through(url: str, api_key: str) -> Callable[[str, str, IdentityReference], Asking]:
    """How a variant is asked its probes over HTTP, by a client with an operator's key."""

    def asking(alias: str, variant: str, made: IdentityReference) -> Asking:
        def ask(times: int) -> list[list[Sample]]:
            with httpx.Client(timeout=_TIMEOUT_S, headers={"authorization": f"Bearer {api_key}"}) as client:
                return [[one(client, messages) for _ in range(times)] for messages in made.probes]

        def one(client: httpx.Client, messages: tuple[Message, ...]) -> dict[str, float]:
            body, headers = probe(alias, variant, made, messages)
            try:
                answer = client.post(f"{url.rstrip('/')}/chat/completions", content=msgspec.json.encode(body), headers=headers)
            except httpx.HTTPError as error:
                raise SourceUnavailable(f"the server does not answer: {error}", where=url) from error
            return answered(answer.status_code, answer.content, with_logprobs=made.logprobs)

        return ask

    return asking
