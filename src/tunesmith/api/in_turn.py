"""A request asked of the variant that it is assigned, and of the next ones where that fails; knows nothing about what is asked.

What clients are told of a failure does not say which variant of several it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from tunesmith.api.errors import APIError, as_api_error, noted
from tunesmith.api.exchange import ClientLeft
from tunesmith.core.errors import ContextExceeded, UsageError
from tunesmith.core.types import Answer
from tunesmith.deploy.answered import Exchange
from tunesmith.deploy.engine import Stream, Unloaded
from tunesmith.deploy.router import Target

T = TypeVar("T")
_log = logging.getLogger("tunesmith.api")
_BUSY = 429


async def in_turn(exchange: Exchange, target: Target, ask: Callable[[Target], Awaitable[T]]) -> T:
    """What `ask` gives of the assigned variant, or of the first in its chain that does not fail and takes no longer than it may; of its
    reserve, where its weights cannot be loaded. The request stays the assigned variant's; the exchange notes who answered in its place.

    Raises what the last one fails with. A request that is refused as wrong is refused at once: the next variant would refuse it too.
    """
    if not target.several:
        return await ask(target)
    chain = [target, *target.instead]
    for who in chain:
        try:
            answer = await asyncio.wait_for(ask(who), who.variant.timeout_s)
        except ClientLeft:
            raise
        except Exception as error:
            if isinstance(error, Unloaded) and who is target:
                chain += [other for other in target.reserve if other.variant not in [each.variant for each in chain]]
            if who is chain[-1] or not _passing(error):
                raise unnamed(error, exchange.alias) from error
            _log.warning("variant '%s' of '%s' did not answer, the next one is asked: %r", who.variant.name, exchange.alias, error)
            continue
        if who is not target:
            exchange.fallback, exchange.model_digest = who.variant, who.model.digest
        return answer
    raise AssertionError(chain)


async def begun(streams: Sequence[Stream], *, whole: bool) -> list[Answer]:
    """The whole answers, or nothing once the first words of every stream are there. A failure, and whoever stops waiting, stops all."""
    try:
        if whole:
            return list(await asyncio.gather(*(stream.whole() for stream in streams)))
        await asyncio.gather(*(stream.begun() for stream in streams))
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return []


def _passing(error: Exception) -> bool:
    """Whether another variant may well answer where this one failed."""
    status = as_api_error(error).status
    return status >= 500 or status == _BUSY


def unnamed(error: Exception, alias: str) -> Exception:
    """The failure in words that every variant of the alias would have."""
    if isinstance(error, ContextExceeded):
        return error
    if as_api_error(error).status >= 500:
        noted(error)
        return APIError(503, f"The model '{alias}' did not answer", code="model_not_answering")
    if isinstance(error, UsageError):
        noted(error)
        return APIError(400, f"The model '{alias}' does not take this request", code="unsupported_value")
    return error
