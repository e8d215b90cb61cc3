"""What every model can do, whoever runs it; knows nothing about weights, servers or keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from tunesmith.core.types import Answer, Prompt, Sampling

OnAnswer = Callable[[int, Answer], None]


@runtime_checkable
class Model(Protocol):
    """Anything that answers.

    `name` is what people call it; `digest` changes whenever its answers could (weights, template, precision, prompt).
    """

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """One answer for each prompt, in the order of the prompts.

        `on_answer(index, answer)` is called as each one is finished, in any order, so that a caller can keep it at once.
        """
        ...
