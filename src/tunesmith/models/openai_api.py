"""Any endpoint that speaks OpenAI's chat completions, through the `openai` SDK; knows nothing about what runs behind it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tunesmith.core import wire
from tunesmith.core.errors import SourceUnavailable, UsageError
from tunesmith.core.load import need
from tunesmith.core.types import Answer, Prompt, Sampling, digest
from tunesmith.models.base import Abilities, OnAnswer


class OpenAIModel:
    """The model `model` at `base_url` (None: OpenAI itself, or OPENAI_BASE_URL), with `api_key` (None: OPENAI_API_KEY).

    At most `concurrency` requests at a time; each is tried `retries` times more after a lost connection, a time-out (`timeout_s`), 408,
    409, 429 or a server's error, with the SDK's growing pauses. `digest` names endpoint and model, since weights elsewhere cannot be read.
    """

    abilities = Abilities(schema=True)

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        name: str = "",
        concurrency: int = 8,
        retries: int = 5,
        timeout_s: float = 120.0,
    ) -> None:
        openai = need("openai", extra="openai")
        try:
            self._client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=retries, timeout=timeout_s)
        except openai.OpenAIError as error:
            raise UsageError(
                f"no client for '{model}': {error}", remedy="set OPENAI_API_KEY, or give a key (--api-key where the command has it)"
            ) from error
        self._errors, self._concurrency = openai, concurrency
        self.model, self.name = model, name or model
        self.digest = digest("openai-api", str(self._client.base_url), model)

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`. Raises SourceUnavailable when the endpoint cannot be used, UsageError when it refuses a request."""
        answers: dict[int, Answer] = {}
        with ThreadPoolExecutor(self._concurrency) as pool:
            asked = {pool.submit(self._one, prompt, sampling): i for i, prompt in enumerate(prompts)}
            try:
                for future in as_completed(asked):
                    answers[asked[future]] = future.result()
                    if on_answer is not None:
                        on_answer(asked[future], answers[asked[future]])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [answers[i] for i in range(len(prompts))]

    def _one(self, prompt: Prompt, sampling: Sampling) -> Answer:
        body, started, first = wire.request_body(self.model, prompt, sampling), time.perf_counter(), 0.0
        try:
            completion = self._client.chat.completions.create(**body)
        except (
            self._errors.APIConnectionError,
            self._errors.AuthenticationError,
            self._errors.RateLimitError,
            self._errors.InternalServerError,
        ) as error:
            raise SourceUnavailable(f"'{self.model}' does not answer: {error}", where=str(self._client.base_url)) from error
        except self._errors.APIStatusError as error:
            raise UsageError(f"'{self.model}' refuses the request: {error}", where=str(self._client.base_url)) from error
        first = time.perf_counter() - started
        return wire.answer_of(completion.model_dump(), first_token_s=first, total_s=first)
