"""Copies of requests for variants whose answers no client sees; knows nothing about how a request is answered.

A copy is asked beside the request, on no account of the client's: it is no interaction, spends nothing of a quota, and whoever waits for
the answer does not wait for it. What is not copied is written down with the reason.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tunesmith.api.http import away
from tunesmith.core.errors import StoreError
from tunesmith.core.types import Prompt, Sampling, ShadowAnswer
from tunesmith.deploy.answered import Exchange
from tunesmith.deploy.engine import Answering
from tunesmith.deploy.router import Target
from tunesmith.models.base import Constraint
from tunesmith.store.shadows import ShadowAnswers

_log = logging.getLogger("tunesmith.api")
_MOST = 64  # copies on their way at once
_LONGEST_S = 600.0
_LONGEST_ERROR = 1000

# How a variant draws what the request leaves open → how its answer is drawn.
Drawn = Callable[[Mapping[str, float]], Sampling]


@dataclass
class Shadows:
    """Where copies are asked, kept and `counted`. `rows` None: they are not kept."""

    answering: Answering
    rows: ShadowAnswers | None
    counted: Callable[[ShadowAnswer], None] = field(default=lambda _: None)
    _asked: defaultdict[tuple[str, str], deque[float]] = field(default_factory=lambda: defaultdict(deque))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def copy(self, exchange: Exchange, target: Target, prompt: Prompt, drawn: Drawn, constraint: Constraint | None = None) -> None:
        """Ask every shadow of the target too; `prompt` is as the client sent it. Of several choices one is asked for."""
        for shadow in target.copies:
            row, skipped = _row(exchange, shadow), self._skipped(exchange.alias, shadow)
            if skipped:
                self._spawn(self._keep(msgspec.structs.replace(row, skipped=skipped)))
                continue
            asked = msgspec.structs.replace(prompt, messages=shadow.instructed(prompt.messages))
            self._spawn(self._ask(row, shadow, asked, drawn(shadow.defaults), constraint))

    def skip(self, exchange: Exchange, target: Target, why: str) -> None:
        """Write down that the request is copied to none of the target's shadows, and why."""
        for shadow in target.copies:
            self._spawn(self._keep(msgspec.structs.replace(_row(exchange, shadow), skipped=why)))

    async def close(self) -> None:
        """End the copies that are on their way: each is written down as not answered."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _skipped(self, alias: str, shadow: Target) -> str:
        """Why this request is not copied, empty where it is; counts it then."""
        now, limit = time.monotonic(), shadow.variant.copies_per_minute
        times = self._asked[alias, shadow.variant.name]
        while times and times[0] <= now - 60:
            times.popleft()
        if limit is not None and len(times) >= limit:
            return f"budget: {limit} copies a minute"
        if len(self._tasks) >= _MOST:
            return f"busy: {_MOST} copies are on their way"
        times.append(now)
        return ""

    async def _ask(self, row: ShadowAnswer, shadow: Target, prompt: Prompt, sampling: Sampling, constraint: Constraint | None) -> None:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(shadow.variant.timeout_s or _LONGEST_S):
                (stream,) = await self.answering.ask(shadow.model, prompt, sampling, constraint=constraint)
                try:
                    answer = await stream.whole()
                finally:
                    stream.cancel()
        except asyncio.CancelledError:  # the server ends, and its loop with it: the row is written before
            if self.rows is not None:
                self.rows.put(msgspec.structs.replace(row, error="the server ended"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever a shadow raises is what is to be known of it, and nobody else's matter
            failed = f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]
            await self._keep(msgspec.structs.replace(row, error=failed, total_s=time.perf_counter() - started))
            return
        await self._keep(
            msgspec.structs.replace(
                row,
                answer=answer.text,
                tool_calls=answer.tool_calls,
                finish_reason=answer.finish_reason,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                total_s=time.perf_counter() - started,
            )
        )

    async def _keep(self, row: ShadowAnswer) -> None:
        self.counted(row)
        if self.rows is None:
            return
        try:
            await away(self.rows.put, row)
        except StoreError as error:
            _log.error("the answer of shadow '%s' of '%s' could not be kept: %s", row.variant, row.alias, error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _row(exchange: Exchange, shadow: Target) -> ShadowAnswer:
    return ShadowAnswer(
        interaction=exchange.id,
        created=time.time(),
        project=exchange.project,
        alias=exchange.alias,
        deployment=shadow.deployment or 0,
        variant=shadow.variant.name,
        model_digest=shadow.model.digest,
    )
