"""What stands for a variant whose weights cannot be loaded, so that the other variants of its name go on. Knows nothing about why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Answer, Prompt, Sampling
from tunesmith.deploy.engine import Unloaded
from tunesmith.models.base import Abilities, OnAnswer


@dataclass(frozen=True)
class Unloadable:
    """Refuses every question at once, with why the weights could not be loaded. It says that it can be held to any form of answer, so that
    no request is refused for its form before."""

    name: str
    digest: str
    why: str
    ref: ModelRef | None = None
    abilities = Abilities(schema=True, grammar=True)
    in_memory = False

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`. Raises Unloaded."""
        raise Unloaded(f"The model '{self.name}' could not be loaded: {self.why}", remedy="see the server's first lines")
