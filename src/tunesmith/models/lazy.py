"""A local model that is loaded with its first question, and the digests that are remembered so that kept answers are found without it.
Knows nothing about words and deployments."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.core.atomic import write_atomic
from tunesmith.core.digests import files_digest
from tunesmith.core.errors import UsageError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Answer, Prompt, Sampling, digest
from tunesmith.models.base import Model, OnAnswer


@dataclass
class LazyModel:
    """Loaded by `load` when the first answer is needed. `remembered` is the file of its digest: the same files on the same machine under
    the same versions compute alike."""

    name: str
    ref: ModelRef
    load: Callable[[], Model]
    remembered: Path | None
    _known: str | None = field(init=False, default=None)
    _model: Model | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.remembered is not None and self.remembered.is_file():
            self._known = self.remembered.read_text("utf-8")

    def loaded(self) -> Model:
        """The model in memory."""
        if self._model is None:
            self._model = self.load()
            if self.remembered is not None and self._model.digest != self._known:
                write_atomic(self.remembered, self._model.digest)
        return self._model

    @property
    def remembered_digest(self) -> str | None:
        """The digest, where it is known without loading anything."""
        return self._known

    @property
    def digest(self) -> str:
        """The loaded model's own digest, or the one that was remembered for the same files, machine and versions."""
        return self._known or self.loaded().digest

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`. Raises UsageError when the weights turn out to be others than those remembered."""
        model = self.loaded()
        if self._known is not None and model.digest != self._known:
            self._known = None
            raise UsageError(f"'{self.name}' computes otherwise than before on this machine", remedy="run again: it is remembered anew")
        return model.answer(prompts, sampling, on_answer)

    def likelihoods(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """See `LocalModel.likelihoods`."""
        model: Any = self.loaded()
        answers: Iterator[Answer] = model.likelihoods(prompts)
        return answers


def computing(base: str, adapter: Path | None) -> str:
    """What names a base (by its digest), an adapter's files, the machine and the libraries that compute, without loading anything."""
    files = [path for path in sorted(adapter.iterdir()) if path.suffix in (".json", ".safetensors")] if adapter else []
    versions: list[Any] = [platform.node(), platform.machine(), importlib.metadata.version("tunesmith")]
    versions += [importlib.metadata.version(name) for name in ("torch", "transformers") if importlib.util.find_spec(name)]
    return digest(base, files_digest(files), versions)
