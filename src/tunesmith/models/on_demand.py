"""A deployed adapter that need not be in memory: whoever asks it has it loaded, and who was not asked for longest makes room. Knows nothing
about names, and nothing about who asks."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Answer, Prompt, Sampling
from tunesmith.models.base import OnAnswer
from tunesmith.models.local import LocalModel
from tunesmith.models.weights import Weights

if TYPE_CHECKING:
    from tunesmith.models.decode_check import DecodeChoice
    from tunesmith.models.local_batch import LocalBatch

_log = logging.getLogger("tunesmith.models")


class OnDemand:
    """The adapter of a folder on a base that is in memory. Its digest is the one that it was deployed with, and once loaded its own."""

    abilities = LocalModel.abilities

    def __init__(self, weights: Weights, base: LocalModel, name: str, adapter: Path, ref: ModelRef) -> None:
        self.name, self.ref = name, ref
        self._weights, self._base, self._adapter, self._digest = weights, base, adapter, ref.digest

    def loaded(self) -> LocalModel:
        """The model in memory, loaded now where it is not; who holds it keeps it there. Raises as loading does."""
        return self._weights.present(self)

    def load(self) -> LocalModel:
        """Load it. Raises NotFound, UsageError."""
        model = self._base.with_adapter(self._adapter, self.name, self.ref)
        if self._digest and self._digest != model.digest:
            _log.warning("'%s' computes otherwise than when it was deployed: other files, precision or template", self.name)
        self._digest = model.digest
        return model

    @property
    def in_memory(self) -> bool:
        """Whether asking it loads nothing."""
        return self._weights.holds(self)

    @property
    def route(self) -> DecodeChoice | None:
        """How it is computed, and why so, where it is in memory."""
        return self.loaded().route if self.in_memory else None

    @property
    def digest(self) -> str:
        """See `Model`."""
        return self._digest or self.loaded().digest

    @property
    def batch_key(self) -> Hashable:
        """See `Batching`: the base's."""
        return self._base.batch_key

    @property
    def vocabulary(self) -> int:
        """See `Batching`."""
        return self._base.vocabulary

    @property
    def context(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self._base.context

    def encode(self, asked: Prompt | str) -> list[int]:
        """See `Batching`."""
        return self._base.encode(asked)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Batching`."""
        return self._base.decode(ids)

    def batch(self) -> LocalBatch:
        """See `Batching`."""
        return self._base.batch()

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`."""
        return self.loaded().answer(prompts, sampling, on_answer)

    def nll(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, int]]:
        """See `Scoring`."""
        return self.loaded().nll(rows)

    def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[dict[str, Any]]:
        """See `Scoring`."""
        return self.loaded().prompt_logprobs(ids, top)
