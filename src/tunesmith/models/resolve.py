"""What a word on the command line means as a model that answers; knows nothing about rows and metrics.

echo, echo:PREFIX           the model without weights
URL#MODEL                   any endpoint that speaks OpenAI's API; openai:MODEL is OpenAI itself
ALIAS                       what the project's store has deployed under that name
BASE+ADAPTER                an adapter's folder on a base
FOLDER                      a model's folder, or an adapter's folder on the base that it names itself
NAME                        a base of the catalogue, or a repository of the hub

Weights are loaded when the first answer is needed: what is kept already is read without them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.atomic import write_atomic
from tunesmith.core.errors import NotFound, UsageError, nearest
from tunesmith.core.types import Answer, Prompt, Sampling, digest
from tunesmith.models import trust
from tunesmith.models.base import Model, OnAnswer
from tunesmith.models.catalog import Catalog
from tunesmith.store.deployments import Deployments
from tunesmith.store.store import Store

if TYPE_CHECKING:
    from tunesmith.models.local import LocalModel


@dataclass
class Local:
    """A local model that is loaded with its first question; its digest is remembered, so that kept answers are found without weights."""

    name: str
    known: str | None
    load: Callable[[], Model]
    keep: Callable[[str], None]
    _model: Model | None = field(init=False, default=None)

    def _loaded(self) -> Model:
        if self._model is None:
            self._model = self.load()
            self.keep(self._model.digest)
        return self._model

    @property
    def digest(self) -> str:
        """The loaded model's own digest, or the one that was remembered for the same files, machine and versions."""
        return self.known or self._loaded().digest

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`. Raises UsageError when the weights turn out to be others than those remembered."""
        model = self._loaded()
        if self.known is not None and model.digest != self.known:
            self.known = None
            raise UsageError(f"'{self.name}' computes otherwise than before on this machine", remedy="run again: it is remembered anew")
        return model.answer(prompts, sampling, on_answer)


@dataclass
class Around:
    """A model behind which another answers, with the other's name and digest: what is put around it changes no answer."""

    model: Model

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def digest(self) -> str:
        """The model's."""
        return self.model.digest


@dataclass
class Paced(Around):
    """A model that is asked at most `per_minute` questions a minute: `batch` at a time, then a pause."""

    per_minute: float
    batch: int = 8

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`."""
        answers: list[Answer] = []
        for start in range(0, len(prompts), self.batch):
            part, began = prompts[start : start + self.batch], time.monotonic()
            tell = (lambda i, answer, start=start: on_answer(start + i, answer)) if on_answer else None
            answers += self.model.answer(part, sampling, tell)
            if start + self.batch < len(prompts):
                time.sleep(max(0.0, len(part) * 60 / self.per_minute - (time.monotonic() - began)))
        return answers


@dataclass
class Metered(Around):
    """A model whose new answers are counted, so that what this run paid is told apart from what is kept."""

    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`."""
        answers = self.model.answer(prompts, sampling, on_answer)
        self.asked += len(answers)
        self.prompt_tokens += sum(answer.prompt_tokens for answer in answers)
        self.completion_tokens += sum(answer.completion_tokens for answer in answers)
        return answers


@dataclass
class Models:
    """Words → models, over a store (for aliases and remembered digests) and a catalogue; adapters on one base share its weights."""

    store: Store
    catalog: Catalog
    concurrency: int = 8
    rate: float | None = None
    _bases: dict[Path, LocalModel] = field(init=False, default_factory=dict)

    def resolve(self, word: str) -> Model:
        """The model that the word names. Raises NotFound with what a word can be."""
        if word == "echo" or word.startswith("echo:"):
            from tunesmith.models.echo import EchoModel

            return EchoModel(word, prefix=word.partition(":")[2])
        if word.startswith("openai:"):
            return self._endpoint(None, word.removeprefix("openai:"), word)
        if "://" in word:
            url, _, model = word.partition("#")
            if not model:
                raise UsageError(f"'{word}' names no model", allowed="URL#MODEL, such as http://127.0.0.1:8000/v1#credit-entities")
            return self._endpoint(url, model, word)
        return self._local(word)

    def _endpoint(self, url: str | None, model: str, word: str) -> Model:
        from tunesmith.models.openai_api import OpenAIModel

        # A local server often wants no key, and the SDK wants a word.
        key = "none" if url is not None and "openai.com" not in url and not os.environ.get("OPENAI_API_KEY") else None
        asked = OpenAIModel(model, base_url=url, api_key=key, name=word, concurrency=self.concurrency)
        return asked if self.rate is None else Paced(asked, self.rate, self.concurrency)

    def _local(self, word: str) -> Model:
        deployed = Deployments(self.store).in_force()
        base, plus, adapter = word.rpartition("+")
        folder = Path(word).expanduser()
        if word in deployed and (model := deployed[word].variants[0].model) is not None:
            return self._lazy(word, self.catalog.model(model.base), self.store.folder / model.adapter if model.adapter else None)
        if plus and Path(adapter).expanduser().is_dir():
            return self._lazy(word, self.catalog.model(base), Path(adapter).expanduser())
        if (folder / "adapter_config.json").is_file():
            named = json.loads((folder / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path") or ""
            return self._lazy(word, self.catalog.model(str(named)), folder)
        try:
            return self._lazy(word, self.catalog.model(word), None)
        except NotFound as error:
            known = [*deployed, *self.catalog.listing.models, "echo"]
            allowed = f"a deployed alias ({', '.join(deployed) or 'none'}), {error.allowed}, BASE+ADAPTER, URL#MODEL, openai:MODEL, echo"
            raise NotFound(f"no model '{word}'", allowed=allowed, remedy=nearest(word, known)) from error

    def _lazy(self, word: str, base: Path, adapter: Path | None) -> Model:
        kept = self.store.folder / "evaluations" / "digests" / f"{self._files(base, adapter)}.txt"
        known = kept.read_text("utf-8") if kept.is_file() else None

        def keep(found: str) -> None:
            if found != known:
                write_atomic(kept, found)

        return Local(word, known, lambda: self._load(word, base, adapter), keep)

    def _files(self, base: Path, adapter: Path | None) -> str:
        """What names the files, the machine and the library that compute, without loading anything."""
        weights = []
        for path in sorted(adapter.iterdir()) if adapter else []:
            if path.suffix in (".json", ".safetensors"):
                with path.open("rb") as file:
                    weights.append((path.name, hashlib.file_digest(file, "blake2b").hexdigest()))
        versions: list[Any] = [platform.node(), platform.machine(), importlib.metadata.version("tunesmith")]
        versions += [importlib.metadata.version(name) for name in ("torch", "transformers") if importlib.util.find_spec(name)]
        return digest(self.catalog.digest(base), weights, versions)

    def _load(self, word: str, base: Path, adapter: Path | None) -> Model:
        from tunesmith.models.local import LocalModel

        if base not in self._bases:
            # An alias and an adapter name their base by its folder; a person allows its code by its name.
            self.catalog.recall(trust.allowed())
            self._bases[base] = LocalModel(base, name=base.name)
        return self._bases[base].with_adapter(adapter, word)
