"""A model as a variant of a deployment has it answer: under its instruction, after its shots. Knows nothing about which variant answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tunesmith.core.deployment import Variant
from tunesmith.core.types import Answer, Prompt, Sampling, digest
from tunesmith.models.base import Model, OnAnswer


@dataclass
class AsDeployed:
    """The model under the variant's instruction and shots, all in its digest. How answers are drawn is the caller's."""

    model: Model
    variant: Variant

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def digest(self) -> str:
        """Of the model, the instruction and the shots."""
        return digest(self.model.digest, self.variant.instruction, *([self.variant.shots] if self.variant.shots else []))

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`."""
        under = [msgspec.structs.replace(prompt, messages=self.variant.instructed(prompt.messages)) for prompt in prompts]
        return self.model.answer(under, sampling, on_answer)
