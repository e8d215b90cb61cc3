"""A real, deterministic model without weights, for tests and dry runs; knows nothing about language.

Its rule: it says the last user message again, at most `max_tokens` words, and stops before a stop string. With tools, it calls the first
one when the message begins with `call `, passing the rest of the message as arguments.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from tunesmith.core.types import Answer, Function, Message, Prompt, Sampling, ToolCall
from tunesmith.models.base import OnAnswer

_WORD = re.compile(r"\s*\S+")


class EchoModel:
    """The model. A token is a word with the white space before it; `prefix` is put before what it says."""

    digest = "echo-1"

    def __init__(self, name: str = "echo", prefix: str = "") -> None:
        self.name, self.prefix = name, prefix
        self.digest = f"{type(self).digest}:{prefix}"

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`."""
        answers = []
        for i, prompt in enumerate(prompts):
            answers.append(self._one(prompt, sampling))
            if on_answer is not None:
                on_answer(i, answers[-1])
        return answers

    def _one(self, prompt: Prompt, sampling: Sampling) -> Answer:
        started = time.perf_counter()
        asked = next((message for message in reversed(prompt.messages) if message.role == "user"), Message(role="user", content=""))
        count = sum(len(_WORD.findall(message.text)) for message in prompt.messages)
        if prompt.tools and asked.text.startswith("call "):
            function = Function(name=str(prompt.tools[0]["function"]["name"]), arguments=asked.text[len("call ") :])
            calls = (ToolCall(id="call_0", function=function),)
            return Answer(
                text="", finish_reason="tool_calls", tool_calls=calls, prompt_tokens=count, completion_tokens=1, first_token_s=0.0
            )
        words = _WORD.findall(self.prefix + asked.text)
        answer = "".join(words[: sampling.max_tokens])
        stops = [at for word in sampling.stop if (at := answer.find(word)) >= 0]
        text = answer[: min(stops)] if stops else answer
        seconds = time.perf_counter() - started
        return Answer(
            text=text,
            finish_reason="length" if len(words) > sampling.max_tokens and not stops else "stop",
            prompt_tokens=count,
            completion_tokens=len(_WORD.findall(text)),
            first_token_s=seconds,
            total_s=seconds,
        )
