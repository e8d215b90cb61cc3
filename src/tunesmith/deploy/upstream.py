"""Another server that speaks the chat API, passed through byte by byte; knows nothing about who asks or what is logged.

The client is aiohttp: httpx takes ten times the processor time for each request.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from tunesmith.core.types import Answer, Prompt, Sampling
from tunesmith.models.base import OnAnswer
from tunesmith.models.openai_api import OpenAIModel


class Upstream:
    """The model `model` of the server at `base_url` (ending in /v1). As a `Model` it asks through the SDK; `send` passes a body through."""

    def __init__(self, model: str, *, base_url: str, api_key: str = "none", timeout_s: float = 600.0) -> None:
        self.name, self.base_url = model, base_url.rstrip("/")
        self._api_key, self._timeout_s = api_key, timeout_s
        self._session: aiohttp.ClientSession | None = None

    @property
    def digest(self) -> str:
        """Of the address and the model's name: what stands behind them cannot be seen."""
        return hashlib.blake2b(f"{self.base_url} {self.name}".encode(), digest_size=16).hexdigest()

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`."""
        return OpenAIModel(self.name, base_url=self.base_url, api_key=self._api_key).answer(prompts, sampling, on_answer)

    @asynccontextmanager
    async def send(self, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """POST a chat completion's body as it is; the answer's headers have come when the block begins."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=self._timeout_s), auto_decompress=True
            )
        headers = {"content-type": "application/json", "authorization": f"Bearer {self._api_key}"}
        async with self._session.post(f"{self.base_url}/chat/completions", data=body, headers=headers) as answer:
            yield answer

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
