"""One answer of the local decoder as it grows: tokens in, words out; knows nothing about who asked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tunesmith.core.chat import CALL_MARKS, Renderer
from tunesmith.core.types import Answer, Prompt, Sampling
from tunesmith.models.detokenize import Words
from tunesmith.models.held_calls import SpokenWords, cut_call

if TYPE_CHECKING:
    from tunesmith.nets.sequences import Token


class Reply:
    """Collects the tokens of one row. After each `take`, `done` says whether the answer is whole; then `answer` is what was said.

    A row that ended by a stop string (`stopped_early`) is still being decoded: the caller cancels it. Times count from `started`.
    """

    def __init__(self, renderer: Renderer, prompt: Prompt, sampling: Sampling, *, prompt_tokens: int, started: float) -> None:
        self._renderer, self._prompt, self._prompt_tokens, self._started = renderer, prompt, prompt_tokens, started
        self._words = Words(renderer.decode, sampling.stop)
        self._spoken = SpokenWords(CALL_MARKS) if prompt.tools else None
        self._finish: str | None = None
        self.tokens = 0
        self.first_token_s = 0.0
        self.logprobs: list[dict[str, Any]] = []
        self._end: dict[str, Any] | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more will be said."""
        return self._words.stopped or self._finish is not None

    @property
    def stopped_early(self) -> bool:
        """Whether it is done although the decoder does not know."""
        return self._words.stopped and self._finish is None

    def take(self, token: Token) -> str:
        """Add a token; returns the words that are certain now, and that are no call of a tool."""
        new = self._taken(token)
        return new if self._spoken is None else self._spoken.push(new)

    def _taken(self, token: Token) -> str:
        self.tokens += 1
        if self.tokens == 1:
            self.first_token_s = time.perf_counter() - self._started
        self._finish = token.finish
        if token.finish == "stop":
            self._end = None if token.logprob is None else spell(token.logprob, self._renderer)
            return self._words.end()
        if token.logprob is not None:
            self.logprobs.append(spell(token.logprob, self._renderer))
        new = self._words.push(token.id)
        return new + self._words.end() if token.finish else new

    def answer(self) -> Answer:
        """What was said, with the tool calls taken out when there were tools. A call that was cut is no words either: it is given as far as
        it came."""
        text, full = self._words.text, self._finish == "length" and not self._words.stopped
        cut = cut_call(text, CALL_MARKS) if self._prompt.tools and (full or self._words.stopped) else None
        text, partly = cut or (text, ())
        said = self._renderer.parse(text) if self._prompt.tools else None
        calls = said.tool_calls if said else ()
        return Answer(
            text=said.text if said and calls else text,
            finish_reason="length" if full and (cut or not calls) else "tool_calls" if calls and not cut else "stop",
            tool_calls=(*calls, *partly),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.tokens,
            first_token_s=self.first_token_s,
            total_s=time.perf_counter() - self._started,
            logprobs=tuple(self.logprobs),
            end_logprob=self._end,
        )

    def rest(self, answer: Answer) -> str:
        """The words of the whole answer that `take` has not given."""
        return "" if self._spoken is None else self._spoken.rest(answer.text)


def spell(logprob: dict[str, Any], renderer: Renderer) -> dict[str, Any]:
    """A decoder's log-probabilities in the API's words: `token`, `logprob` (nats), `bytes`, `top_logprobs`."""

    def entry(number: int, value: float) -> dict[str, Any]:
        return {"token": renderer.word(number), "logprob": max(value, -9999.0), "bytes": renderer.bytes_of(number)}

    return {**entry(logprob["id"], logprob["logprob"]), "top_logprobs": [entry(*pair) for pair in logprob["top"]]}
