"""Any endpoint that speaks OpenAI's chat completions, through the `openai` SDK; knows nothing about what runs behind it."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import copy
from typing import Any

from tunesmith.core import wire
from tunesmith.core.errors import SourceUnavailable, UsageError
from tunesmith.core.load import need
from tunesmith.core.types import Answer, Prompt, Sampling, digest
from tunesmith.models.base import Abilities, OnAnswer
from tunesmith.models.endpoint_answer import NoAnswer, answer_of

_log = logging.getLogger("tunesmith.models")
# What is left out where a model refuses it: models that reason refuse to be told how to draw, older servers know one name of the limit.
_LEFT_OUT = ("temperature", "top_p", "seed", "max_completion_tokens")
_NOT_TAKEN = re.compile(
    r"not\W+supp|unsupp|unknown|unrecog|unexpect|extra|forbid|not\W+permit|not\W+allow|deprecat|cannot|n't\W+supp", re.I
)
_OTHER_NAME = {"max_completion_tokens": "max_tokens"}
_SOON_S = 20.0
_PAUSES_S = (0.5, 1.0)  # before an endpoint that answered with a passing error is asked again


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
        self._errors, self._concurrency, self._retries = openai, concurrency, retries
        self._refused: set[str] = set()
        self.model, self.name = model, name or model
        self.digest = digest("openai-api", str(self._client.base_url), model)

    def once(self) -> OpenAIModel:
        """The same model, asked without trying again and without waiting long: who asks can do without an answer."""
        other = copy(self)
        other._client, other._retries = self._client.with_options(max_retries=0, timeout=_SOON_S), 0
        return other

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
        body, where = wire.request_body(self.model, prompt, sampling), str(self._client.base_url)
        pauses = list(_PAUSES_S[: self._retries])
        while True:
            started = time.perf_counter()
            try:
                return answer_of(self._asked(body), seconds=time.perf_counter() - started, where=where)
            except NoAnswer as error:
                if not error.passing or not pauses:
                    raise
                time.sleep(pauses.pop(0))

    def _asked(self, body: dict[str, Any]) -> bytes:
        """The bytes of an answer. A sampling parameter that the model refuses is left out from then on, and that is said."""
        where = str(self._client.base_url)
        while True:
            sent = self._adapted(body)
            try:
                return bytes(self._client.chat.completions.with_raw_response.create(**sent).content)
            except (
                self._errors.APIConnectionError,
                self._errors.AuthenticationError,
                self._errors.RateLimitError,
                self._errors.InternalServerError,
            ) as error:
                raise SourceUnavailable(f"'{self.model}' does not answer: {error}", where=where) from error
            except self._errors.APIStatusError as error:
                key = _refused_key(error.body, sent) if error.status_code in (400, 422) else None
                if key is None:
                    raise UsageError(f"'{self.model}' refuses the request: {error}", where=where) from error
                self._without(key, error)

    def _without(self, key: str, error: Exception) -> None:
        if key not in self._refused:
            self._refused.add(key)
            other = _OTHER_NAME.get(key)
            instead = f"the limit of its answers is sent as '{other}'" if other else "its answers are drawn by its own default"
            _log.warning("'%s' refuses '%s', so %s: %s", self.model, key, instead, str(error)[:200])

    def _adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body without what the model has refused before; the limit of the answer under its other name."""
        sent = {key: value for key, value in body.items() if key not in self._refused}
        for key, other in _OTHER_NAME.items():
            if key in self._refused and other not in self._refused and key in body:
                sent[other] = body[key]
        return sent


def _refused_key(body: Any, sent: Mapping[str, Any]) -> str | None:
    """Which of the parameters that can be left out or sent by another name the body of an error refuses; None for any other refusal, of a
    value among them."""
    words = json.dumps(body, ensure_ascii=False, default=str)
    if not _NOT_TAKEN.search(words):
        return None
    by_name = [key for key in _LEFT_OUT if key in sent and isinstance(body, dict) and body.get("param") == key]
    return next(iter(by_name or [key for key in _LEFT_OUT if key in sent and re.search(rf"\b{key}\b", words)]), None)
