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

from tunesmith.api.http import away
from tunesmith.deploy.serve_config import Webhook
from tunesmith.store.deliveries import Deliveries
from tunesmith.store.store import Store

_log = logging.getLogger("tunesmith.api")
_POLL_S, _TIMEOUT_S = 0.5, 10.0


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
    deliveries = Deliveries(store)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as session:
        while True:
            try:
                for row in await away(deliveries.due):
                    sent = all([await _send(session, hook, row) for hook in webhooks if not hook.events or row["type"] in hook.events])
                    await away(deliveries.mark, row, sent)
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
