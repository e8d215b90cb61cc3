"""Webhooks on their way out: signed as OpenAI signs them (Standard Webhooks), tried again for three days. Knows nothing about their cause.

What is to be sent lies in the store since the change that it tells of, so each is sent at least once; receivers know repeats by the id.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec
import sqlalchemy as sa

from tunesmith.api.http import away
from tunesmith.deploy.serve_config import Webhook
from tunesmith.store.store import Store
from tunesmith.store.tables import deliveries

_log = logging.getLogger("tunesmith.api")
_POLL_S, _TIMEOUT_S, _LONGEST_S, _GIVE_UP_S, _MOST = 0.5, 10.0, 3600.0, 3 * 86_400.0, 100


def signed(secret: str, number: str, now: int, body: bytes) -> dict[str, str]:
    """The headers of one delivery: HMAC-SHA256 over `id.timestamp.body`."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.new(key, b".".join([number.encode(), str(now).encode(), body]), hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(mac).decode()}"
    return {"webhook-id": number, "webhook-timestamp": str(now), "webhook-signature": signature, "content-type": "application/json"}


def event_of(row: Any) -> bytes:
    """The body of a delivery."""
    event = {"id": row["id"], "object": "event", "created_at": int(row["created"]), "type": row["type"], "data": {"id": row["object"]}}
    return msgspec.json.encode(event)


async def work(store: Store, webhooks: Sequence[Webhook]) -> None:
    """Send what is due for as long as the server runs."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as session:
        while True:
            try:
                for row in await away(_due, store):
                    sent = all([await _send(session, hook, row) for hook in webhooks if not hook.events or row["type"] in hook.events])
                    await away(_mark, store, row, sent)
            except Exception:  # noqa: BLE001 - the task must live as long as the server
                _log.exception("webhooks could not be sent; they are tried again")
            await asyncio.sleep(_POLL_S)


async def _send(session: aiohttp.ClientSession, hook: Webhook, row: Any) -> bool:
    body = event_of(row)
    headers = signed(hook.secret, row["id"], int(time.time()), body)
    try:
        async with session.post(hook.url, data=body, headers=headers, allow_redirects=False) as answer:
            return 200 <= answer.status < 300
    except (aiohttp.ClientError, TimeoutError):
        return False


def _due(store: Store) -> list[Any]:
    query = sa.select(deliveries).where(deliveries.c.done.is_(None), deliveries.c.due <= time.time()).order_by(deliveries.c.seq)
    with store.reading() as connection:
        return list(connection.execute(query.limit(_MOST)).mappings())


def _mark(store: Store, row: Any, sent: bool) -> None:
    now = time.time()
    over = sent or now - row["created"] > _GIVE_UP_S
    values = {"done": now if over else None, "tries": row["tries"] + 1, "due": now + min(_LONGEST_S, 2.0 ** row["tries"])}
    with store.writing() as connection:
        connection.execute(sa.update(deliveries).where(deliveries.c.id == row["id"]).values(**values))
