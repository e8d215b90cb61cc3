"""A model in memory that answers by the fastest route which says what transformers says: for the base, for each adapter, for each length.

Knows nothing about text, chats or servers.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from tunesmith.core.errors import UsageError
from tunesmith.models.decode_check import DecodeChoice, Rows, Way, choose, place, read
from tunesmith.models.packing import pack_for_decoding
from tunesmith.models.trial import RAISED, Tried, shown
from tunesmith.nets import prefix
from tunesmith.nets.cached_attention import NAME, packed_attention
from tunesmith.nets.decoder import Decoder, Engine, context_of
from tunesmith.nets.plain_decoder import PlainDecoder, PlainEngine, adapter_digest, twin
from tunesmith.nets.sequences import DecodeRequest, Held, SequenceDecoder, Token, refuse

_log = logging.getLogger("tunesmith.models")


def turn_of(model: Any) -> int | None:
    """The length beyond which all positions of a row are encoded otherwise, the earlier ones too (long-rope); None where there is none."""
    config = model.config.get_text_config()
    settings = getattr(config, "rope_parameters", None) or {}
    kinds = [settings, *(value for value in settings.values() if isinstance(value, dict))]
    turns = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    return min((int(turn) for turn in turns if turn and turn < context_of(model)), default=None)


class RoutedEngine:
    """A model of transformers with adapters by name. `model` is transformers' own, `base` the folder that it came from.

    Two trees of modules over the same weights: one as transformers made it, one with our attention, where that computes the same.
    """

    def __init__(self, model: Any, base: Path) -> None:
        self.model, self.base = model, base
        self.device: torch.device = model.device
        self.context = context_of(model)
        self.lock = threading.Lock()
        self.plain = PlainEngine(model, self.lock, turn=turn_of(model))
        self.fast, raised = self._fast()
        self.adapters = RoutedAdapters(self)
        self.choices: dict[str | None, DecodeChoice] = {None: self._chosen(None, None, raised)}
        if self.choices[None].route != "batched":
            self.fast = None

    def _fast(self) -> tuple[Engine | None, Tried | None]:
        """The model under our attention; or what it raises."""
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, packed_attention)
        try:
            tree = twin(self.model)
            tree.set_attn_implementation(NAME)
            _log.info("%s decodes with its weights %s", self.base.name, pack_for_decoding(tree))
            return Engine(tree, self.lock), None
        except RAISED as error:
            return None, Tried(route="batched", raised=shown(error))

    def _chosen(self, name: str | None, folder: Path | None, raised: Tried | None = None) -> DecodeChoice:
        """The route of the base or of an adapter, which the plain engine has loaded, and the fast one unless it `raised`.

        Raises UsageError where transformers itself cannot compute it.
        """
        file = place(self.base, folder, self.model, "" if raised is None else raised.raised)
        try:
            choice = choose(lambda cut: self._rehearsed(name, tries_fast=raised is None, cut=cut), name, file, limit=self.plain.turn)
        except RAISED as error:
            what = "base" if folder is None else "adapter"
            raise UsageError(f"transformers itself cannot compute this {what}: {shown(error)}", where=str(folder or self.base)) from error
        if raised is not None:
            choice = replace(choice, tried=(raised, *choice.tried))
        if "reread" in (choice.route, choice.beyond):
            self.plain.reread.add(name)
        _log.info("%s%s answers %s", self.base.name, "" if folder is None else f"+{folder.name}", choice.why())
        return choice

    def _rehearsed(self, name: str | None, *, tries_fast: bool, cut: bool) -> tuple[PlainEngine, list[Way]]:
        """Engines for the check alone, while others answer; `cut` to as few layers as show every kind."""
        plain, fast = self.plain, self.fast if tries_fast else None
        try:
            plain, fast = plain.rehearsal(name), None if fast is None else fast.rehearsal()
        except RAISED:  # a model that cannot be copied is checked as it is
            cut = False
        trees = [*plain.adapters.trees(), *([] if fast is None else [fast.model])]
        sizes = [prefix.needed(tree) for tree in trees] if cut else [0]
        if all(sizes):
            for tree in trees:
                prefix.cut(tree, max(sizes))
        ways = [Way("cached", lambda: PlainDecoder(plain))]
        if fast is not None:
            ways.insert(0, Way("batched", lambda: Decoder(fast, chunk=32), fast.logps))
        return plain, ways

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter where it is computed rightly: under our attention, else by peft. Raises UsageError where neither takes it."""
        refused, fast = None, self.fast
        if fast is not None:
            try:
                fast.adapters.load(name, folder)
            except RAISED as error:
                refused = Tried(route="batched", raised=shown(error))
        try:
            remembered = read(place(self.base, folder, self.model)) if fast is not None and refused is None else None
            if remembered is None or remembered.route != "batched" or remembered.beyond:
                self._load_by_peft(name, folder, refused)
            self.choices[name] = self._chosen(name, folder, refused)
        except BaseException:
            self.unload_adapter(name)
            raise
        choice = self.choices[name]
        if choice.route == "batched" and not choice.beyond:
            self.plain.adapters.unload(name)
        elif fast is not None and choice.route != "batched":
            fast.adapters.unload(name)

    def _load_by_peft(self, name: str, folder: Path, refused: Tried | None) -> None:
        """Load an adapter that may have been `refused` under our attention. Raises UsageError with both reasons."""
        try:
            self.plain.adapters.load(name, folder)
        except UsageError as error:
            if refused is None:
                raise
            raise UsageError(f"the adapter fits this base neither here ({refused.raised}) nor in peft ({error})") from error

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; nothing happens when there is none of that name."""
        self.choices.pop(name, None)
        self.plain.reread.discard(name)
        self.plain.adapters.unload(name)
        if self.fast is not None:
            self.fast.adapters.unload(name)

    def fits(self, adapter: str | None, length: int) -> Engine | None:
        """The fast engine, where it answers a row of that many tokens."""
        choice = self.choices[adapter]
        return self.fast if choice.route == "batched" and (choice.limit is None or length <= choice.limit) else None

    def decoder(self, *, max_rows: int = 64, **options: Any) -> RoutedDecoder:
        """A fresh decoder; `options` are those of `Decoder`."""
        return RoutedDecoder(self, max_rows, options)

    def prompt_logits(self, ids: Sequence[int], adapter: str | None) -> Iterator[torch.Tensor]:
        """See `Reading.prompt_logits`."""
        return (self.fits(adapter, len(ids)) or self.plain).prompt_logits(ids, adapter)

    def logps(self, rows: Rows, adapter: str | None) -> list[list[float]]:
        """See `Scoring.logps`."""
        slow = [i for i, (ids, _) in enumerate(rows) if self.fits(adapter, len(ids)) is None]
        fast = sorted({*range(len(rows))} - {*slow})
        results: dict[int, list[float]] = dict(zip(slow, self.plain.logps([rows[i] for i in slow], adapter), strict=True))
        if self.fast is not None and fast:
            results |= zip(fast, self.fast.logps([rows[i] for i in fast], adapter), strict=True)
        return [results[i] for i in range(len(rows))]


class RoutedAdapters:
    """The adapters of a `RoutedEngine`: `loaded` has each name's digest."""

    def __init__(self, engine: RoutedEngine) -> None:
        self._engine, self._lock = engine, threading.Lock()
        self.loaded: dict[str, str] = {}

    def load(self, name: str, folder: Path) -> str:
        """Add the adapter of a `peft` folder under `name`; returns the digest of its files. A name that is taken must be the same adapter.

        Raises NotFound for a folder without an adapter, UsageError for one that cannot be put on this base.
        """
        digest = adapter_digest(folder)
        with self._lock:
            if self.loaded.get(name, digest) != digest:
                raise UsageError(
                    f"another adapter is loaded as '{name}'", where=str(folder), remedy="load it under another name, or unload the first"
                )
            if name not in self.loaded:
                self._engine.load_adapter(name, folder)
                self.loaded[name] = digest
        return digest

    def unload(self, name: str) -> None:
        """Forget an adapter; nothing happens when there is none of that name."""
        if self.loaded.pop(name, None) is not None:
            self._engine.unload_adapter(name)


class RoutedDecoder:
    """Answers requests by a `RoutedEngine`, each on its route; driven as a `SequenceDecoder` is."""

    def __init__(self, engine: RoutedEngine, max_rows: int, options: dict[str, Any]) -> None:
        self.engine = engine
        numbers = itertools.count()
        self._plain = PlainDecoder(engine.plain, max_rows=max_rows, numbers=numbers)
        self._fast = None if engine.fast is None else Decoder(engine.fast, max_rows=max_rows, numbers=numbers, **options)
        self._decoders: list[SequenceDecoder] = [self._plain] if self._fast is None else [self._fast, self._plain]

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return any(decoder.busy for decoder in self._decoders)

    @property
    def load(self) -> tuple[int, int]:
        """(sequences that are prefilled or decoded, sequences waiting)."""
        loads = [decoder.load for decoder in self._decoders]
        return sum(open_ for open_, _ in loads), sum(waiting for _, waiting in loads)

    @property
    def cache_use(self) -> float:
        """The share of a cache that is in use, the largest."""
        return max(decoder.cache_use for decoder in self._decoders)

    def add(self, request: DecodeRequest) -> int:
        """See `SequenceDecoder.add`."""
        refuse(request, self.engine.context, self.engine.adapters.loaded)
        fast = self._fast if self.engine.fits(request.adapter, len(request.ids)) is not None else None
        return (fast or self._plain).add(request)

    def hold(self, number: int, held: Held) -> None:
        """See `SequenceDecoder.hold`."""
        for decoder in self._decoders:
            decoder.hold(number, held)

    def cancel(self, number: int) -> None:
        """See `SequenceDecoder.cancel`."""
        for decoder in self._decoders:
            decoder.cancel(number)

    def step(self) -> list[Token]:
        """One step of every route; a sequence that outgrew its own goes on on the next."""
        tokens: list[Token] = []
        if self._fast is not None and self._fast.busy:
            tokens += self._fast.step()
            for sequence in self._fast.leave(lambda other: self.engine.fits(other.request.adapter, other.length) is None):
                self._plain.take(sequence)
        return tokens + (self._plain.step() if self._plain.busy else [])
