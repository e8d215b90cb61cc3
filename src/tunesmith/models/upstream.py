"""Another server that speaks the API, passed through byte by byte; knows nothing about who asks or what is logged."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

from tunesmith.core.types import Answer, Prompt, Sampling
from tunesmith.models.base import Abilities, OnAnswer
from tunesmith.models.connection import Connections, Incoming
from tunesmith.models.openai_api import OpenAIModel


class Upstream:
    """The model `model` of the server at `base_url` (ending in /v1). As a `Model` it asks through the SDK; `send` passes a body through."""

    abilities = Abilities(schema=True, passes=True)

    def __init__(self, model: str, *, base_url: str, api_key: str = "none", timeout_s: float = 600.0) -> None:
        self.name, self.base_url = model, base_url.rstrip("/")
        self._api_key = api_key
        self._connections = Connections(self.base_url, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._heads: dict[str, bytes] = {}
        self._asked: OpenAIModel | None = None

    @property
    def digest(self) -> str:
        """Of the address and the model's name: what stands behind them cannot be seen."""
        return hashlib.blake2b(f"{self.base_url} {self.name}".encode(), digest_size=16).hexdigest()

    @property
    def waits_at(self) -> Hashable:
        """See `Passing`."""
        return self.base_url

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`. Nothing is tried twice: whoever asks this server tries again, or another variant answers."""
        if self._asked is None:
            key, timeout_s = self._api_key, self._timeout_s
            self._asked = OpenAIModel(self.name, base_url=self.base_url, api_key=key, retries=0, timeout_s=timeout_s)
        return self._asked.answer(prompts, sampling, on_answer)

    async def send(self, path: str, body: bytes) -> Incoming:
        """POST a body as it is to `path` below /v1; the answer's headers have come. Raises OSError when there is no answer."""
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._connections.head(path, self._headers)
        return await self._connections.send(head, body)

    async def delete(self, path: str) -> int:
        """DELETE `path` below /v1; the status of the answer. Raises OSError when there is none."""
        answer = await self._connections.send(self._connections.head(path, self._headers, "DELETE"), b"")
        try:
            await answer.read()
        finally:
            answer.close()
        return answer.status

    @property
    def _headers(self) -> dict[str, str]:
        return {"content-type": "application/json", "authorization": f"Bearer {self._api_key}"}

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()
