"""Language models from a folder on this machine, with or without a LoRA adapter; knows nothing about where the folders come from.

Weights are read from safetensors only; code of a model's folder runs only where a person allowed it by name (`models/trust.py`).
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from tunesmith.core.chat import Renderer
from tunesmith.core.digests import files_digest
from tunesmith.core.errors import ContextExceeded, NotFound, UsageError
from tunesmith.core.load import need
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.seal import check_folder
from tunesmith.core.types import Answer, Message, Prompt, Sampling, digest
from tunesmith.models.base import Abilities, OnAnswer
from tunesmith.models.likelihood import likelihoods
from tunesmith.models.local_answer import Reply, spell
from tunesmith.models.trust import refuse_code

if TYPE_CHECKING:
    from tunesmith.models.decode_check import DecodeChoice
    from tunesmith.models.local_batch import LocalBatch
    from tunesmith.models.routed import RoutedDecoder, RoutedEngine
    from tunesmith.nets.sequences import DecodeRequest

# A text of so many characters a token is more than most models' contexts hold; a text that is cut there has some tokens more or less.
_CHARACTERS, _CUT = 8, 64
_HEADS = 64  # rendered system messages that are remembered


class LocalModel:
    """A base (a folder with `config.json`, safetensors and a tokenizer) and perhaps a LoRA adapter (a folder that peft wrote).

    `dtype` auto is bfloat16 where the processor multiplies it, else float32. `device` auto is the GPU when there is one.
    `max_rows` is how many answers are written at once. Siblings made by `with_adapter` share the base's weights. `ref` is what the model is
    written down as.
    """

    abilities = Abilities(batches=True, schema=True, grammar=True, scores=True)

    def __init__(
        self,
        base: Path | str,
        adapter: Path | str | None = None,
        *,
        name: str,
        dtype: str = "auto",
        device: str = "auto",
        max_rows: int = 64,
    ) -> None:
        self.name, self.base, self.max_rows = name, Path(base), max_rows
        self.renderer = Renderer.load(self.base)
        self._loaded = load_engine(self.base, dtype, device)
        self._put_on(adapter)
        self.ref = self._ref_of(adapter)
        self._heads: dict[str, list[int]] = {}

    def _put_on(self, folder: Path | str | None) -> None:
        """Load the adapter; its key in the engine names folder and content, so a new version is another adapter."""
        self.adapter: str | None = None
        if folder is not None:
            path = check_folder(Path(folder).resolve())
            self.adapter = f"{path}@{_stamp(path)}"
            with self._loaded.changing:
                self._loaded.holders.add(self)
                self.engine.adapters.load(self.adapter, path)

    def unload_unheld(self) -> None:
        """Let go of the adapters on these weights that no model in memory has any longer. A row that is being answered has its model."""
        with self._loaded.changing:
            held = {model.adapter for model in self._loaded.holders}
            for key in self.engine.adapters.loaded.keys() - held:
                self.engine.adapters.unload(key)

    def _ref_of(self, adapter: Path | str | None) -> ModelRef:
        """What a model that came from folders is written down as."""
        return ModelRef(base=str(self.base.resolve()), adapter=None if adapter is None else str(Path(adapter).resolve()))

    @property
    def engine(self) -> RoutedEngine:
        """The weights, ready for a decoder."""
        return self._loaded.engine

    def with_adapter(self, adapter: Path | str | None, name: str, ref: ModelRef | None = None) -> LocalModel:
        """The same base under another adapter (None: the base alone), sharing the weights."""
        other = copy(self)  # shallow: the renderer and the weights are the same objects
        other.__dict__.pop("digest", None)
        other.name, other.ref = name, ref or self._ref_of(adapter)
        other._put_on(adapter)
        return other

    @cached_property
    def digest(self) -> str:
        """Of the weights, the renderer, the adapter and the precision."""
        adapter = self.engine.adapters.loaded[self.adapter] if self.adapter else None
        return digest(self._loaded.digest, self.renderer.digest, adapter, self._loaded.dtype)

    @property
    def precision(self) -> str:
        """The type that the weights are held in, `bfloat16` for one."""
        return self._loaded.dtype

    @property
    def batch_key(self) -> Hashable:
        """See `Batching`: models on the same weights in memory."""
        return id(self.engine)

    @property
    def vocabulary(self) -> int:
        """See `Batching`."""
        return self.renderer.vocabulary

    def encode(self, asked: Prompt | str) -> list[int]:
        """See `Batching`. An empty text becomes the token that ends an answer: something must be continued. A text that is too long for the
        context is refused when that is certain: whatever its tokens are, or by those of its beginning."""
        text = self.renderer.text(asked) if isinstance(asked, Prompt) else asked
        if len(text) > self.context * self.renderer.longest_token:
            raise ContextExceeded(None, self.context)
        begin = self.context * _CHARACTERS
        if len(text) > 2 * begin and len(self.renderer.encode(text[:begin])) > self.context + _CUT:
            raise ContextExceeded(None, self.context)
        return self.renderer.encode(text) or [min(self.renderer.stop_ids)]

    @property
    def context(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.engine.context

    def decode(self, ids: Sequence[int]) -> str:
        """See `Batching`."""
        return self.renderer.decode(ids)

    def batch(self) -> LocalBatch:
        """See `Batching`."""
        from tunesmith.models.local_batch import LocalBatch

        return LocalBatch(self.engine, self.base, self.renderer.stop_ids, max_rows=self.max_rows)

    @property
    def route(self) -> DecodeChoice:
        """How this model is computed, and why so."""
        return self.engine.choices[self.adapter]

    def decoder(self) -> RoutedDecoder:
        """A fresh decoder over this model's weights; requests name their adapter."""
        return self.engine.decoder(max_rows=self.max_rows)

    def request(self, prompt: Prompt, ids: Sequence[int], sampling: Sampling, *, share: int = 0, choice: int = 0) -> DecodeRequest:
        """The decoder's request for a prompt and its rendered ids; `choice` tells the n answers to one prompt apart."""
        from tunesmith.nets.sequences import DecodeRequest

        if prompt.response_schema is not None:
            raise UsageError("a local model cannot be held to a JSON Schema", remedy="ask for it in words, without response_schema")
        return DecodeRequest(
            ids=ids,
            max_tokens=sampling.max_tokens,
            stop_ids=self.renderer.stop_ids,
            adapter=self.adapter,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=row_seed(sampling.seed, ids, choice) if sampling.temperature > 0 else 0,
            top_logprobs=sampling.top_logprobs,
            share=share,
        )

    def head(self, prompt: Prompt, ids: Sequence[int]) -> int:
        """How many of the prompt's first `ids` come from its tools and leading system messages, which other prompts may share."""
        leading = tuple(takewhile(lambda message: message.role in ("system", "developer"), prompt.messages))
        if not leading and not prompt.tools:
            return 0
        key = digest(leading, prompt.tools)
        if key not in self._heads:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            self._heads[key] = self.renderer.prompt(Prompt(messages=(*leading, Message(role="user", content="\u2203")), tools=prompt.tools))
        return common([self._heads[key], ids])

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`. What all prompts begin with is read once; the longest are started first.

        A seed gives each prompt its own draws, which do not depend on the other prompts. Times count from the call. Raises UsageError for
        a prompt that fills the model's context.
        """
        rendered = [self.renderer.prompt(prompt) for prompt in prompts]
        share = common(rendered) if len(rendered) > 1 else 0
        decoder, started = self.decoder(), time.perf_counter()
        rows: dict[int, tuple[int, Reply]] = {}
        for i in sorted(range(len(prompts)), key=lambda i: -len(rendered[i])):
            number = decoder.add(self.request(prompts[i], rendered[i], sampling, share=share))
            rows[number] = (i, Reply(self.renderer, prompts[i], sampling, prompt_tokens=len(rendered[i]), started=started))
        answers: dict[int, Answer] = {}
        while decoder.busy:
            for token in decoder.step():
                i, reply = rows[token.sequence]
                if i in answers:
                    continue  # a second token of the same step, after a stop string
                reply.take(token)
                if reply.stopped_early:
                    decoder.cancel(token.sequence)
                if reply.done:
                    answers[i] = reply.answer()
                    if on_answer is not None:
                        on_answer(i, answers[i])
        return [answers[i] for i in range(len(prompts))]

    def likelihoods(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """What the last turn of each conversation costs (see `models.likelihood`)."""
        return likelihoods(self, prompts)

    def nll(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, int]]:
        """(summed negative log-likelihood in nats, scored tokens) of each row of (ids, mask); the ids with mask 1, never the first id."""
        from tunesmith.nets.sequences import score

        return score(self.engine, rows, self.adapter)

    def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[dict[str, Any]]:
        """See `Scoring`."""
        from tunesmith.nets.prompt_scores import prompt_log_probabilities

        first = {"token": self.renderer.word(ids[0]), "logprob": None, "bytes": self.renderer.bytes_of(ids[0]), "top_logprobs": []}
        return [first, *(spell(token, self.renderer) for token in prompt_log_probabilities(self.engine, ids, self.adapter, top))]


@dataclass(slots=True, eq=False)
class _Loaded:
    """A base in memory; `holders` are the models that have an adapter on it."""

    engine: RoutedEngine
    dtype: str
    files: list[Path]
    holders: WeakSet[LocalModel] = field(default_factory=WeakSet)
    changing: threading.Lock = field(default_factory=threading.Lock)  # an adapter is loaded or let go
    _digest: str = ""

    @property
    def digest(self) -> str:
        """Of the configuration and the weights' files, read once."""
        if not self._digest:
            self._digest = files_digest(self.files)
        return self._digest


def load_engine(base: Path, dtype: str, device: str) -> _Loaded:
    """The model of a folder, on the fastest route that computes what transformers does. Raises NotFound and UsageError with what the folder
    lacks or asks for."""
    config_file, weights = base / "config.json", sorted(base.glob("*.safetensors"))
    if not config_file.is_file() or not weights:
        missing = "config.json" if not config_file.is_file() else "*.safetensors"
        raise NotFound(f"no {missing}", where=str(base), allowed="a folder with config.json and safetensors", remedy="tunesmith models")
    check_folder(base)
    refuse_code(json.loads(config_file.read_text("utf-8")), config_file)
    torch, transformers = need("torch", extra="local"), need("transformers", extra="local")
    from tunesmith.models.load_causal import load_causal
    from tunesmith.models.routed import RoutedEngine

    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    kind = dtype if dtype != "auto" else _best_dtype(torch, place)
    quiet = transformers.utils.logging
    quiet.disable_progress_bar()
    try:
        model = load_causal(base, dtype=getattr(torch, kind))
    except (OSError, ValueError, RuntimeError, ImportError, need("safetensors", extra="local").SafetensorError) as error:
        raise UsageError(f"the model cannot be loaded: {error}", where=str(base), remedy="fetch or save it again") from error
    quiet.enable_progress_bar()
    engine = RoutedEngine(model.to(place).eval().requires_grad_(False), base)
    return _Loaded(engine, kind, [config_file, *weights, *sorted(base.glob("*.py"))])


def _best_dtype(torch: Any, device: str) -> str:
    if device != "cpu":
        return "bfloat16"
    capabilities = torch.cpu.get_capabilities()
    return (
        "bfloat16"
        if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile") or capabilities.get("bf16")
        else "float32"
    )


def _stamp(folder: Path) -> str:
    """Short digest of an adapter's weights and settings, so that a changed folder is another adapter."""
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    return files_digest(files)[:12] if all(file.is_file() for file in files) else "missing"


def row_seed(seed: int | None, ids: Sequence[int], choice: int) -> int:
    """The stream of draws of one answer: of the seed, the prompt and which of its n answers it is. No seed: a new stream each time."""
    if seed is None:
        return secrets.randbits(64)
    return int.from_bytes(hashlib.blake2b(repr((seed, choice, list(ids))).encode(), digest_size=8).digest(), "little")


def common(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all the rows begin with alike."""
    first, last = min(map(list, rows)), max(map(list, rows))
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
