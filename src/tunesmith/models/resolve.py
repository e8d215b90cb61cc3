"""What a word means as a model: first which one (`ModelRef`), then one that answers. The same for serving, evaluation, judges, graders,
jobs and `base:`; knows nothing about rows and metrics.

echo, echo:PREFIX           the model without weights
FILE.gguf                   a GGUF file, answered by llama.cpp in a process of its own (`models/engines.py`)
URL#MODEL                   any endpoint that speaks OpenAI's API; openai:MODEL is OpenAI itself
ALIAS, ALIAS@VERSION        what the project's store has deployed under that name, now or in that version
ALIAS:VARIANT               one of several variants of it; ALIAS@VERSION:VARIANT
run, run:tuned              what the project's last run trained, whether or not it was deployed
ft:…                        what a fine-tuning job made, or one of its checkpoints
BASE+ADAPTER                an adapter's folder on a base
FOLDER                      a model's folder, or an adapter's folder on the base that it names itself
NAME                        a base of the catalogue, or a repository of the hub
MODEL?INDEX                 any of these, with the passages of an index before each question (`models/retrieval.py`)

Weights are loaded when the first answer is needed: what is kept already is read without them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import NotFound, UsageError, nearest
from tunesmith.core.model_ref import ModelRef, adapter_base, artifact_ref, base_place, folder_at, is_adapter
from tunesmith.core.passages import Retrieval
from tunesmith.models import trust
from tunesmith.models.around import Paced
from tunesmith.models.base import Model
from tunesmith.models.catalog import Catalog
from tunesmith.models.deployed import AsDeployed
from tunesmith.models.engine_settings import EngineSettings, is_gguf
from tunesmith.models.lazy import LazyModel, computing
from tunesmith.models.on_demand import OnDemand
from tunesmith.models.retrieval import LoadedIndexes, asked_with
from tunesmith.models.weights import Weights
from tunesmith.store.deployments import Deployments
from tunesmith.store.permissions import TunedModels
from tunesmith.store.store import Store

if TYPE_CHECKING:
    from tunesmith.models.local import LocalModel

TUNED_WORD = "run:tuned"
RUN = ("run", TUNED_WORD)


def is_remote(word: str) -> bool:
    """Whether a word names a model that answers elsewhere (in another process, too), or none with weights."""
    return word.startswith(("echo:", "openai:")) or word == "echo" or "://" in word or is_gguf(word)


@dataclass
class Models:
    """Words → models, over a catalogue and a store (None: no aliases, no fine-tuned models, no remembered digests).

    `home` is the folder in which a project's relative folders lie, `run` gives what its last run trained, `project` is whose fine-tuned
    models `ft:` means (None: the one that the name says). `upstreams` are the servers that deployments name; `absent` says of a word that
    names nothing why it does not (empty: nobody knows). At most `concurrency` requests at once go to an endpoint, and `rate` a minute.
    """

    store: Store | None
    catalog: Catalog
    concurrency: int = 8
    rate: float | None = None
    home: Path | None = None
    run: Callable[[], ModelRef] | None = None
    project: str | None = None
    upstreams: Mapping[str, Callable[[], Model]] = field(default_factory=dict)
    absent: Callable[[str], str] = field(default=lambda _: "")
    weights: Weights = field(default_factory=Weights)
    indexes: LoadedIndexes = field(default_factory=LoadedIndexes)

    def resolve(self, word: str) -> Model:
        """The model that the word names, loaded with its first question. Raises NotFound with what a word can be."""
        plain, retrieval = asked_with(word)
        variant = None if is_remote(plain) else self.variant(plain)
        model = self._of(variant, plain) if variant is not None else self._unnamed(plain)
        own = None if variant is None else variant.retrieval
        if retrieval is not None and own is not None:
            raise UsageError(f"'{plain}' looks passages up already, in the index {own.index[:12]}", allowed=f"{plain} alone")
        looked_up = retrieval or own
        model = model if looked_up is None else self.grounded(model, looked_up)
        return AsDeployed(model, variant) if variant is not None and variant.prompted else model

    def grounded(self, model: Model, retrieval: Retrieval) -> Model:
        """The model with what it looks up. Raises NotFound for an index that is not there."""
        return self.indexes.grounded(model, retrieval, self.store, self.catalog)

    def _unnamed(self, word: str) -> Model:
        """The model of a word that no deployment has."""
        return self._remote(word) if is_remote(word) else self.lazy(self.ref(word), word)

    def _of(self, variant: Variant, word: str) -> Model:
        """The model of a variant, without its instruction and what it looks up."""
        if variant.model is not None:
            return self.lazy(variant.model, word)
        if variant.upstream is None or variant.upstream not in self.upstreams:
            what = f"'{word}' is answered by the upstream '{variant.upstream}', which serve.upstreams does not have"
            raise NotFound(what, allowed=", ".join(self.upstreams) or "none")
        return self.upstreams[variant.upstream]()

    def drawn(self, word: str) -> Mapping[str, float]:
        """How answers of the word are drawn where nobody says it: the sampling of an alias' variant; empty for any other word."""
        word, _ = asked_with(word)
        variant = None if is_remote(word) else self.variant(word)
        return {} if variant is None else variant.sampling

    def ref(self, word: str) -> ModelRef:
        """Which model here the word names; nothing is loaded or fetched. Raises NotFound with what a word can be, UsageError for a word
        that names one elsewhere."""
        if asked_with(word)[1] is not None:
            raise UsageError(
                f"'{word}' is a model with something to look up, not one with weights of its own", allowed=f"{asked_with(word)[0]} alone"
            )
        if is_remote(word):
            raise UsageError(f"'{word}' has no weights here", allowed="a base, an alias, run, ft:…, BASE+ADAPTER, a folder")
        variant = self.variant(word)
        if variant is not None:
            if variant.model is None:
                raise UsageError(f"'{word}' is answered by the upstream '{variant.upstream}' and has no weights here")
            return variant.model
        if word in RUN:
            if self.run is None:
                raise UsageError(
                    f"'{word}' is what a project's last run trained, and there is no project file here", allowed="--config FILE"
                )
            return self.run()
        if word.startswith("ft:"):
            return self._fine_tuned(word)
        base, plus, adapter = word.rpartition("+")
        if plus and (folder := self._folder(adapter)) is not None:
            return self._artifact(self._under(base, word), folder)
        if (folder := self._folder(word)) is not None and is_adapter(folder):
            return self._artifact(self._under(adapter_base(folder), word), folder)
        return self._base(word)

    def _under(self, base: str, word: str) -> str:
        """The word for the whole weights under an adapter. Raises UsageError for an adapter: its own change would be lost."""
        ref = self.ref(base)
        if ref.adapter is not None:
            raise UsageError(
                f"'{base}', on which '{word}' puts an adapter, is an adapter itself",
                allowed="whole weights: a base, or a model all of whose weights were trained",
                remedy=f"{ref.base}+ADAPTER, where it was trained on that base alone",
            )
        return ref.as_base

    def load(self, ref: ModelRef, name: str) -> LocalModel:
        """The model in memory, as `name`; the weights of a base are shared. Raises NotFound, SourceUnavailable, UsageError."""
        base, adapter = self.folders(ref)
        return self.weights.model(name, base, adapter, ref)

    def served(self, ref: ModelRef, name: str) -> Model:
        """The model as a server has it: an adapter is loaded when it is asked, all else now. Raises as `load`."""
        base, adapter = self.folders(ref)
        if adapter is None:
            return self.weights.model(name, base, None, ref)
        return OnDemand(self.weights, self.weights.base(base), name, adapter, ref)

    def lazy(self, ref: ModelRef, name: str) -> LazyModel:
        """The model, loaded with its first question. Raises NotFound and SourceUnavailable now."""
        base, adapter = self.folders(ref)
        remembered = None
        if self.store is not None:
            key = computing(self.catalog.digest(base), adapter)
            remembered = self.store.layout.model_digests / f"{key}.txt"
        return LazyModel(name, ref, partial(self.load, ref, name), remembered)

    def folders(self, ref: ModelRef) -> tuple[Path, Path | None]:
        """(folder of whole weights, folder of the adapter on them or None); a base that is not there yet is fetched. Raises NotFound."""
        # An alias and an adapter name their base by its folder; a person allows its code by its name.
        self.catalog.recall(trust.allowed())
        if ref.weights is not None:
            return self._there(ref.weights, ref), None
        base = ref.base
        folder = self._there(base, ref) if base.startswith((".", "/")) else None
        adapter = None if ref.adapter is None else self._there(ref.adapter, ref)
        return folder or self.catalog.model(base), adapter

    def whole(self, word: str) -> Path:
        """The folder of the whole weights that the word names. Raises UsageError for an adapter."""
        folder, adapter = self.folders(self.ref(word))
        if adapter is not None:
            raise UsageError(
                f"'{word}' is an adapter", allowed="whole weights", remedy="a base, or a model all of whose weights were trained"
            )
        return folder

    def _there(self, place: str, ref: ModelRef) -> Path:
        folder = folder_at(place, self._store_folder)
        if not folder.is_dir():
            made = f", which {ref.made_by} made," if ref.made_by else ""
            raise NotFound(
                f"the model{made} is no longer there",
                where=str(folder),
                allowed=f"a folder (written down as {place})",
                remedy="put the folder back, or train and deploy again",
            )
        return folder

    @property
    def _store_folder(self) -> Path:
        return self.store.folder if self.store is not None else Path.cwd()

    def _remote(self, word: str) -> Model:
        if word == "echo" or word.startswith("echo:"):
            from tunesmith.models.echo import EchoModel

            return EchoModel(word, prefix=word.partition(":")[2])
        if word.startswith("openai:"):
            return self._endpoint(None, word.removeprefix("openai:"), word)
        if is_gguf(word):
            return self._llama_cpp(word)
        url, _, model = word.partition("#")
        if not model:
            raise UsageError(f"'{word}' names no model", allowed="URL#MODEL, such as http://127.0.0.1:8000/v1#credit-entities")
        return self._endpoint(url, model, word)

    def _llama_cpp(self, word: str) -> Model:
        from tunesmith.models.engines import llama_cpp

        path = Path(word).expanduser()
        at = path if path.is_absolute() or self.home is None or path.is_file() else self.home / path
        logs = self.store.folder if self.store is not None else Path(tempfile.mkdtemp(prefix="tunesmith-"))
        return llama_cpp(at, word, logs / "engine-gguf.log", EngineSettings(at_once=self.concurrency))

    def _endpoint(self, url: str | None, model: str, word: str) -> Model:
        from tunesmith.models.openai_api import OpenAIModel

        # A local server often wants no key, and the SDK wants a word.
        key = "none" if url is not None and "openai.com" not in url and not os.environ.get("OPENAI_API_KEY") else None
        asked = OpenAIModel(model, base_url=url, api_key=key, name=word, concurrency=self.concurrency)
        return asked if self.rate is None else Paced(asked, self.rate, self.concurrency)

    def variant(self, word: str) -> Variant | None:
        """The variant that a word for an alias names; None for any other word. Raises UsageError for an alias of several variants without
        the name of one, NotFound for a name that none has."""
        deployment = self._deployment(word)
        if deployment is not None:
            if len(deployment.variants) == 1:
                return deployment.variants[0]
            words = ", ".join(f"{word}:{variant.name}" for variant in deployment.variants)
            what = f"'{word}' has {len(deployment.variants)} variants (strategy {deployment.strategy}), and a model is one of them"
            raise UsageError(what, allowed=words)
        alias, colon, name = word.rpartition(":")
        if not colon or word in RUN or (deployment := self._deployment(alias)) is None:
            return None
        if (variant := deployment.variant(name)) is None:
            names = [f"{alias}:{each.name}" for each in deployment.variants]
            raise NotFound(f"'{alias}' has no variant '{name}'", allowed=", ".join(names), remedy=nearest(word, names))
        return variant

    def _deployment(self, word: str) -> Deployment | None:
        if self.store is None:
            return None
        deployments = Deployments(self.store)
        if (in_force := deployments.in_force().get(word)) is not None:
            return in_force
        alias, at, version = word.rpartition("@")
        if not at or not version.isdecimal():
            return None
        history = {deployment.version: deployment for deployment in deployments.history(alias)}
        if int(version) not in history:
            known = ", ".join(f"{alias}@{number}" for number in history) or f"'{alias}' was never deployed"
            raise NotFound(f"no deployment '{word}'", allowed=known)
        return history[int(version)]

    def _fine_tuned(self, name: str) -> ModelRef:
        """What a job made. Raises NotFound where no job of the project (or of the one in the name) made it."""
        parts = name.split(":")
        project = self.project or (parts[2] if len(parts) > 2 else "")
        row = TunedModels(self.store).find(name, project) if self.store is not None else None
        if row is None:
            remedy = f"openai:{name} asks OpenAI for its model of that name"
            raise NotFound(f"no fine-tuned model '{name}'", allowed="what a fine-tuning job of this store made", remedy=remedy)
        place = row["weights"] or row["adapter"]  # an older row has whole weights as an adapter, too
        return self._artifact(row["base"], folder_at(place, self._store_folder), f"job:{row['job']}")

    def _artifact(self, base: str, folder: Path, made_by: str = "") -> ModelRef:
        return artifact_ref(base, folder, self._store_folder, made_by=made_by)

    def _base(self, word: str) -> ModelRef:
        """A base by its name or folder. Raises NotFound with what a word can be."""
        if word in self.catalog.listing.models:
            return ModelRef(base=word)
        if (folder := self._folder(word)) is not None:
            trust.asked_as(word, folder)
            return ModelRef(base=base_place(folder, self._store_folder, self.home))
        if self.catalog.is_repository(word):
            return ModelRef(base=word)
        aliases = list(Deployments(self.store).in_force()) if self.store is not None else []
        names = sorted(self.catalog.listing.models)
        allowed = (
            f"a deployed alias ({', '.join(aliases) or 'none'}), a catalogue name ({', '.join(names)}), a folder with model.safetensors or "
            "an adapter, a hub id like 'org/name', run, ft:…, BASE+ADAPTER, URL#MODEL, openai:MODEL, echo"
        )
        remedy = self.absent(word) or nearest(word, [*aliases, *names, "run", "echo"])
        raise NotFound(f"no model '{word}'", allowed=allowed, remedy=remedy)

    def _folder(self, word: str) -> Path | None:
        """The folder that a word names: in the project's folder, else where the command runs."""
        path = Path(word).expanduser()
        places = [path] if self.home is None or path.is_absolute() else [self.home / path, path]
        return next((place for place in places if word and place.is_dir()), None)
