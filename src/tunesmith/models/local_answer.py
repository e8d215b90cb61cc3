"""One answer of the local decoder as it grows: tokens in, words out; knows nothing about who asked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from tunesmith.core.call_syntax import CALLED
from tunesmith.core.chat import Renderer
from tunesmith.core.types import Answer, Message, Prompt, Sampling, ToolCall
from tunesmith.models.detokenize import Words
from tunesmith.models.held_calls import cut_call

if TYPE_CHECKING:
    from tunesmith.nets.sequences import Token

# A chat's answer; one that is held to a form from its first token on, so without thoughts; a text that is continued.
Way = Literal["chat", "held", "plain"]


class Reply:
    """Collects the tokens of one row. After each `take`, `done` says whether the answer is whole; then `answer` is what was said.

    A row that ended by a stop string (`stopped_early`) is still being decoded: the caller cancels it. Times count from `started`.
    `thoughts` is what the last `take` added to them.
    """

    def __init__(
        self, renderer: Renderer, prompt: Prompt, sampling: Sampling, *, prompt_tokens: int, started: float, way: Way = "chat"
    ) -> None:
        self._renderer, self._prompt, self._prompt_tokens, self._started = renderer, prompt, prompt_tokens, started
        self._words = Words(renderer.decode if way == "plain" else renderer.raw, sampling.stop)
        self._inside, self._way = way == "chat" and renderer.reader.begins_inside, way
        self._given = self._thought = ""
        self.thoughts = ""
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
        """Add a token; returns the words that are certain now, without thoughts, calls of tools and what may become such."""
        self.tokens += 1
        if self.tokens == 1:
            self.first_token_s = time.perf_counter() - self._started
        self._finish = token.finish
        if token.finish == "stop":
            self._end = None if token.logprob is None else spell(token.logprob, self._renderer)
        else:
            if token.logprob is not None:
                self.logprobs.append(spell(token.logprob, self._renderer))
            self._words.push(token.id)
        if token.finish:
            self._words.end()
        return self._new()

    def _new(self) -> str:
        """What became certain since the last call."""
        if self.done:
            answer = self.answer()
            words, thoughts = answer.text, answer.reasoning_content
        elif self._way == "plain":
            words, thoughts = self._words.text, ""
        else:
            part = self._renderer.reader.partial(self._words.text, self._prompt.tools, inside=self._inside)
            words, thoughts = part.words, part.reasoning
        given = self._given if words.startswith(self._given) else self._given.lstrip()
        new = words[len(given) :] if words.startswith(given) else ""
        self.thoughts = thoughts[len(self._thought) :] if thoughts.startswith(self._thought) else ""
        self._given += new
        self._thought += self.thoughts
        return new

    def answer(self) -> Answer:
        """What was said: thoughts apart, and calls of tools taken out when there were tools. A call that was cut is no words either: it is
        given as far as it came."""
        full = self._finish == "length" and not self._words.stopped
        message, partly, cut = self._read(full or self._words.stopped)
        return Answer(
            text=message.text,
            reasoning_content=message.reasoning_content or "",
            finish_reason="length"
            if full and (cut or not message.tool_calls)
            else "tool_calls"
            if message.tool_calls and not cut
            else "stop",
            tool_calls=(*message.tool_calls, *partly),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.tokens,
            first_token_s=self.first_token_s,
            total_s=time.perf_counter() - self._started,
            logprobs=tuple(self.logprobs),
            end_logprob=self._end,
        )

    def _read(self, ended_early: bool) -> tuple[Message, tuple[ToolCall, ...], bool]:
        """The message; the call in which it was cut, as far as it came; whether it was cut in one."""
        text, tools = self._words.text, self._prompt.tools
        if self._way == "plain":
            return Message(role="assistant", content=text), (), False
        reader = self._renderer.reader
        cut = cut_call(text, (CALLED,)) if tools and ended_early else None
        text, partly = cut or (text, ())
        message = self._renderer.parse(text, tools, inside=self._inside)
        if tools and ended_early and not message.tool_calls and any(mark in text for mark in reader.call_marks):
            words = reader.partial(text, tools, inside=self._inside).words
            return msgspec.structs.replace(message, content=words), partly, True
        return message, partly, cut is not None


def spell(logprob: dict[str, Any], renderer: Renderer) -> dict[str, Any]:
    """A decoder's log-probabilities in the API's words: `token`, `logprob` (nats), `bytes`, `top_logprobs`."""

    def entry(number: int, value: float) -> dict[str, Any]:
        return {"token": renderer.word(number), "logprob": max(value, -9999.0), "bytes": renderer.bytes_of(number)}

    return {**entry(logprob["id"], logprob["logprob"]), "top_logprobs": [entry(*pair) for pair in logprob["top"]]}
