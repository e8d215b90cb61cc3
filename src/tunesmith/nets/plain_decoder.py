"""Decoding by transformers alone: each sequence in a pass of its own, with the model's own cache, or read again from its first token where
there is none that can be trusted. Slow, and right for whatever transformers can compute. Adapters are peft's own.

Knows nothing about text, chats or servers; it is driven as `Decoder` is.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Collection, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.core.digests import files_digest
from tunesmith.core.errors import NotFound, UsageError
from tunesmith.nets.decoder import context_of
from tunesmith.nets.sequences import SequenceDecoder, Token, TokenSequence

# What models call the cache that they return, and take.
_CACHES = ("past_key_values", "cache_params", "state")
# What of peft's settings cannot be served: it changes the base for everybody, or needs more than token ids.
_REFUSED = ("layer_replication", "alora_invocation_tokens", "arrow_config", "use_qalora", "use_bdlora")
# How an adapter may begin without a change to the base's own weights.
_LEAVE_THE_BASE = (True, False, "gaussian", "orthogonal", "eva")


def twin(model: Any) -> Any:
    """Another tree of modules over the same weights: what is put around or into one is not in the other."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


class PeftAdapters:
    """Adapters as peft computes them, each around a twin of the base, so that none can touch the base or another."""

    def __init__(self, base: Any, lock: threading.Lock) -> None:
        self._base, self._lock = base, lock
        self.loaded: dict[str, str] = {}  # name → digest
        self._trees: dict[str | None, Any] = {None: base}

    def load(self, name: str, folder: Path) -> str:
        """Add the adapter of a `peft` folder; returns the digest of its files. Raises NotFound, or UsageError for what peft refuses."""
        digest = adapter_digest(folder)
        if name not in self.loaded:
            config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
            _refuse(config, folder)
            shapes = tensor_shapes(folder)
            # Some ways to begin, and some files, change the base's own weights: those are another's too.
            apart = config.get("init_lora_weights", True) not in _LEAVE_THE_BASE or any("base_layer" in tensor for tensor in shapes)
            try:
                with self._lock:
                    base = copy.deepcopy(self._base) if apart else twin(self._base)
            except (RuntimeError, TypeError) as error:
                what = f"the base cannot be copied, as an adapter of this kind needs it: {error}"
                raise UsageError(what, where=str(folder), remedy="merge the adapter into its base") from error
            self._trees[name] = _adapted(base, folder, shapes)
            self.loaded[name] = digest
        return digest

    def lend(self, name: str, tree: Any) -> None:
        """Take a model that has the adapter in it already."""
        self.loaded[name], self._trees[name] = "", tree

    def trees(self) -> list[Any]:
        """The base and every model with an adapter in it."""
        return list(self._trees.values())

    def unload(self, name: str) -> None:
        """Forget an adapter; nothing happens when there is none of that name."""
        if self.loaded.pop(name, None) is not None:
            del self._trees[name]

    def tree(self, name: str | None) -> Any:
        """The model under that adapter (None: the base alone)."""
        return self._trees[name]


def adapter_digest(folder: Path) -> str:
    """The digest of an adapter's files. Raises NotFound where one is missing."""
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    for file in files:
        if not file.is_file():
            raise NotFound(f"no {file.name}", where=str(folder), allowed="a folder that peft's save_pretrained wrote")
    return files_digest(files)


def _refuse(config: dict[str, Any], folder: Path) -> None:
    where, remedy = str(folder / "adapter_config.json"), "merge the adapter into its base"
    if config.get("peft_type") != "LORA":
        raise UsageError(f"peft_type is {config.get('peft_type')!r}", where=where, allowed="LORA", remedy=remedy)
    if config.get("bias", "none") != "none":
        raise UsageError(f"bias is {config['bias']!r}", where=where, allowed="none", remedy=remedy)
    for key in _REFUSED:
        if config.get(key):
            raise UsageError(f"{key} is {config[key]!r}", where=where, allowed="off", remedy=remedy)


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of an adapter's tensors by their names. Raises UsageError for a file that cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
            return {name: list(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise UsageError(f"the adapter cannot be read: {error}", where=str(folder), remedy="save it again, or train again") from error


def _adapted(base: Any, folder: Path, there: Collection[str]) -> Any:
    """The base with the adapter in it. Raises UsageError where peft cannot put it there, or the file has other tensors than it wants."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError

    where = str(folder)
    try:
        model = PeftModel.from_pretrained(base, str(folder)).eval().requires_grad_(False)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"the adapter cannot be read: {error}", where=where, remedy="save it again, or train again") from error
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, AssertionError) as error:
        raise UsageError(f"peft cannot load the adapter: {error}", where=where, remedy="use the base it was trained on") from error
    here = get_peft_model_state_dict(model, save_embedding_layers=False)
    lacks = sorted(here.keys() - set(there))
    if lacks:
        raise UsageError(f"the adapter has no '{lacks[0]}'", where=where, allowed=f"the {len(here)} tensors that its settings name")
    unknown = sorted(name for name in there if name not in here and "base_layer" not in name)
    if unknown:
        raise UsageError(f"the adapter changes '{unknown[0]}', which this base does not have", remedy="use the base it was trained on")
    return model.get_base_model()


class PlainEngine:
    """A model of transformers and peft's adapters with one lock. `reread` has the adapters (None: the base) whose cache is not to be used.

    `turn` is the length up to which positions are encoded in one way and beyond it in another, so that a cache from before is of no use.
    """

    def __init__(self, model: Any, lock: threading.Lock | None = None, *, turn: int | None = None) -> None:
        self.model, self.turn = model, turn
        self.reread: set[str | None] = set()
        self.lock = lock or threading.Lock()
        self.adapters = PeftAdapters(model, self.lock)
        self.device: torch.device = model.device
        self.context = context_of(model)
        self._keeps = "logits_to_keep" in signature(model.forward).parameters

    @property
    def names(self) -> Collection[str]:
        """See `Computing`."""
        return self.adapters.loaded

    def rehearsal(self, adapter: str | None) -> PlainEngine:
        """An engine of its own over the same weights, with the base and that adapter: what is done to it is not done to this one."""
        with self.lock:
            other = PlainEngine(twin(self.model), turn=self.turn)
            if adapter is not None:
                other.adapters.lend(adapter, twin(self.adapters.tree(adapter)))
        return other

    @torch.inference_mode()
    def next_logits(self, sequence: TokenSequence) -> Tensor:
        """Logits float32 [V] of the token that follows a sequence; its cache moves on."""
        ids = sequence.ids()
        if sequence.request.adapter in self.reread:
            return self.logits(ids, sequence.request.adapter, last=1)[0]
        if self.turn is not None and len(ids) == self.turn + 1:
            sequence.past = None
        more: dict[str, Any] = {"logits_to_keep": 1} if self._keeps else {}
        if sequence.past is not None:
            ids, more = ids[-1:], more | {sequence.past[0]: sequence.past[1]}
        with self.lock:
            out = self.adapters.tree(sequence.request.adapter)(input_ids=self._tensor(ids), use_cache=True, **more)
        name = next((name for name in _CACHES if getattr(out, name, None) is not None), None)
        if name is None:
            raise RuntimeError(f"{type(self.model).__name__} returns no cache")
        sequence.past = (name, getattr(out, name))
        last: Tensor = out.logits[0, -1].float()
        return last

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], adapter: str | None, *, last: int) -> Tensor:
        """Logits float32 [last, V] of a row's last places, read alone and without a cache."""
        more: dict[str, Any] = {"logits_to_keep": last} if self._keeps else {}
        with self.lock:
            logits: Tensor = self.adapters.tree(adapter)(input_ids=self._tensor(ids), use_cache=False, **more).logits[0, -last:]
        return logits.float()

    def prompt_logits(self, ids: Sequence[int], adapter: str | None) -> Iterator[Tensor]:
        """See `Reading.prompt_logits`."""
        if len(ids) > 1:
            yield self.logits(ids, adapter, last=len(ids))[:-1]

    def logps(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: str | None) -> list[list[float]]:
        """See `Scoring.logps`; row by row."""
        results: list[list[float]] = []
        for ids, mask in rows:
            places = [i for i in range(1, len(ids)) if mask[i]]
            if not places:
                results.append([])
                continue
            first = places[0] - 1
            logits = self.logits(ids, adapter, last=len(ids) - first)
            at = torch.tensor([i - 1 - first for i in places], device=logits.device)
            wanted = torch.tensor([ids[i] for i in places], device=logits.device)
            losses = torch.nn.functional.cross_entropy(logits[at], wanted, reduction="none")
            results.append([-loss for loss in losses.tolist()])
        return results

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=self.device)


class PlainDecoder(SequenceDecoder):
    """Answers requests one sequence after the other in each step; one new sequence begins a step.

    `cache_bytes` is how much the caches of all sequences may take; the first is begun whatever it takes.
    """

    def __init__(
        self, engine: PlainEngine, *, max_rows: int = 64, cache_bytes: int = 2 << 30, numbers: Iterator[int] | None = None
    ) -> None:
        super().__init__(engine, max_rows=max_rows, numbers=numbers)
        self.engine, self.cache_bytes = engine, cache_bytes

    @property
    def cache_use(self) -> float:
        """See `SequenceDecoder`."""
        return sum(map(_bytes, self._decoding)) / self.cache_bytes

    def step(self) -> list[Token]:
        """One token more of every sequence that is being answered."""
        if self._waiting and len(self._decoding) < self.max_rows and self._fits(self._waiting[0]):
            self._decoding.append(self._waiting.popleft())
        sequences = list(self._decoding)
        return self._sample(sequences, torch.stack([self.engine.next_logits(sequence) for sequence in sequences])) if sequences else []

    def _fits(self, sequence: TokenSequence) -> bool:
        """Whether one more sequence stays within the memory if it takes as much a token as the others do."""
        used, tokens = sum(map(_bytes, self._decoding)), sum(other.length for other in self._decoding)
        return not tokens or used * (tokens + sequence.length) / tokens <= self.cache_bytes

    def _retire(self, sequence: TokenSequence) -> None:
        sequence.past = None
        self._decoding.remove(sequence)


def _bytes(sequence: TokenSequence) -> int:
    """What a sequence's cache holds: the tensors that can be reached from it."""
    total, seen, open_ = 0, set(), [sequence.past]
    while open_:
        thing = open_.pop()
        if thing is None or id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            total += thing.nbytes
        elif isinstance(thing, list | tuple):
            open_ += thing
        elif isinstance(thing, dict):
            open_ += thing.values()
        elif type(thing).__module__.startswith("transformers.cache_utils"):
            open_ += vars(thing).values()
    return total
