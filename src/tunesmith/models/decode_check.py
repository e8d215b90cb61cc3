"""The check of decoders: does one write and score what transformers' own full pass without a cache says? Rows of random ids through both,
whole and token by token. Knows nothing about which models there are, nor why one differs.

The rows begin alike, so that shared prefixes are seen; they are read in one batch, with and without an adapter; some are longer than the
lengths at which a configuration says that something changes (windows, chunks, positions), as far as such rows can be afforded.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.core.atomic import write_atomic
from tunesmith.core.digests import files_digest
from tunesmith.core.types import Record, digest
from tunesmith.models.trial import RAISED, Tried, shown
from tunesmith.nets.plain_decoder import PlainEngine, tensor_shapes
from tunesmith.nets.sequences import DecodeRequest, SequenceDecoder
from tunesmith.store.layout import user_folder

_log = logging.getLogger("tunesmith.models")
ABOUT = {
    "batched": "batched: many sequences a pass, our attention over our own cache",
    "cached": "cached: one sequence a pass, transformers' own attention and cache",
    "reread": "reread: one sequence a pass, read again from its first token for each new one",
}
# Relative deviation of log-probabilities (against at least 1 nat). In float32 the largest of a row: right decoders are within 2e-5, wrong
# ones from 8e-3 on. In shorter types the mean of a row, measured by what rounding makes of embeddings that are moved by their last bit.
_FLOAT32, _SHORTER = 1e-4, 1e-2
_NOISE_FACTOR, _NOISE_MOST = 4.0, 10.0

_SHARED = 24  # tokens with which all rows but the shortest begin
_LAST = 48  # places of a long row that are compared
_STEPS = 3
_SHORT = 3  # rows of any length that a model must take
# Keys of a configuration that name a length at which something changes.
_LENGTHS = re.compile(r"window|chunk|original_max_position|block_size")
_SECONDS = 30.0  # for all passes over long rows, as a short one lets expect
_PASSES = 8  # over a long row, for all routes together

Floats = npt.NDArray[np.float64]
Rows = Sequence[tuple[Sequence[int], Sequence[int]]]


class Probe(NamedTuple):
    """A row of ids, of which the last `steps` are decoded one by one."""

    ids: list[int]
    steps: int

    @property
    def scored(self) -> list[int]:
        """The ids that are scored: its last ones, never the first."""
        return self.ids[1:][-_LAST:]

    @property
    def mask(self) -> list[int]:
        """1 for the ids that are scored."""
        return [int(i >= len(self.ids) - len(self.scored)) for i in range(len(self.ids))]


class DecodeChoice(Record, frozen=True):
    """The route that answers, and all that were tried for it. Rows of more than `limit` tokens are answered on the route `beyond`."""

    route: str
    tried: tuple[Tried, ...] = ()
    limit: int | None = None
    beyond: str = ""

    @property
    def fastest(self) -> bool:
        """Whether every row is answered on the fastest route."""
        return self.route == "batched" and not self.beyond

    def why(self) -> str:
        """Why this route, in words."""
        seen = "; ".join(trial.sentence() for trial in self.tried)
        further = f"; beyond {self.limit} tokens {ABOUT[self.beyond]}" if self.beyond else ""
        return ABOUT[self.route] + further + (f" ({seen})" if seen else "")


class Way(NamedTuple):
    """A way to decode: the route's name, a fresh decoder, and what scores rows (None: scoring is transformers' own)."""

    route: str
    decoder: Callable[[], SequenceDecoder]
    logps: Callable[[Rows, str | None], list[list[float]]] | None = None


class _Forced:
    """Lets a sequence take the given ids only, and notes how likely each was and how likely the likeliest."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids, self.seen = list(ids), list[Floats]()

    def masked(self, logits: Tensor, stop_ids: frozenset[int]) -> Tensor:
        wanted = self._ids[len(self.seen)]
        self.seen.append(_noted(logits[None], [wanted]))
        return torch.full_like(logits, float("-inf")).index_fill_(0, torch.tensor([wanted], device=logits.device), 0.0)

    def take(self, token: int) -> None:
        pass


def _noted(logits: Tensor, wanted: Sequence[int]) -> Floats:
    """How likely the wanted ids are, and how likely the likeliest: [places, 2] from logits [places, V]."""
    total = torch.logsumexp(logits.double(), -1)
    own = logits.gather(1, torch.tensor(wanted, device=logits.device)[:, None])[:, 0]
    chances: Floats = (torch.stack([own, logits.max(-1).values], 1).double() - total[:, None]).cpu().numpy()
    return chances


class DecodeCheck:
    """Ways to decode against `plain`, over probes whose log-probabilities are computed once, for the base and `adapter`."""

    def __init__(self, plain: PlainEngine, adapter: str | None, *, limit: int | None = None) -> None:
        self.plain, self.names = plain, [None] if adapter is None else [None, adapter]
        self._limit = limit
        self.rows, self._whole = self._computed(probes(plain))
        short = list(zip(self.rows, self._whole[None], strict=True))[:_SHORT]
        self._exact = plain.model.dtype == torch.float32
        least = _FLOAT32 if self._exact else _SHORTER
        with moved(plain.model, plain.model.dtype):
            noise = max(self._deviation(self._noted(row, None), whole) for row, whole in short)
        self.bound = max(least, min(_NOISE_FACTOR * noise, _NOISE_MOST * least))
        # What comes after a token may change what is said of it: positions that are encoded by a row's length, for one.
        by_length = plain.turn is not None or self._followed(*short[-2]) > self.bound
        self._stepped = {
            name: [
                self._by_step(row, name) if by_length else whole[-row.steps :]
                for row, whole in zip(self.rows, self._whole[name], strict=True)
            ]
            for name in self.names
        }

    def _computed(self, rows: Sequence[Probe]) -> tuple[list[Probe], dict[str | None, list[Floats]]]:
        """The rows with what transformers' own pass says of them, without longer ones that it raises on: what it cannot compute itself
        (rows beyond a chunk, for one) tells routes not apart. What it raises on the short rows is raised."""
        kept = list[Probe]()
        whole: dict[str | None, list[Floats]] = {name: [] for name in self.names}
        for row in rows:
            try:
                noted = {name: self._noted(row, name) for name in self.names}
            except RAISED as error:
                if len(kept) < _SHORT:
                    raise
                _log.warning("transformers itself computes no row of %d tokens with this model: %s", len(row.ids), shown(error))
                continue
            kept.append(row)
            for name, places in noted.items():
                whole[name].append(places)
        return kept, whole

    def _noted(self, row: Probe, name: str | None) -> Floats:
        """What one pass over the row says of its last ids: [places, 2] (see `_noted`)."""
        return _noted(self.plain.logits(row.ids, name, last=len(row.scored) + 1)[:-1], row.scored)

    def _by_step(self, row: Probe, name: str | None) -> Floats:
        """What a pass over the ids before each step says of it."""
        places = range(len(row.ids) - row.steps, len(row.ids))
        return np.concatenate([_noted(self.plain.logits(row.ids[:at], name, last=1), [row.ids[at]]) for at in places])

    def _followed(self, row: Probe, whole: Floats) -> float:
        """How far transformers' pass is from itself when other tokens follow a row."""
        after = (row.ids[::-1] * 2)[:7]
        logits = self.plain.logits([*row.ids, *after], None, last=len(row.scored) + 1 + len(after))
        return self._deviation(_noted(logits[: len(row.scored)], row.scored), whole)

    def _deviation(self, own: Floats, expected: Floats) -> float:
        """The relative difference of a row, against at least 1 nat: the largest, or the mean; infinite where a number is none."""
        if own.shape != expected.shape or not np.isfinite(own).all():
            return float("inf")
        differences = np.abs(own - expected) / np.maximum(1.0, np.abs(expected))
        return float(differences.max(initial=0.0) if self._exact else differences.mean())

    def tried(self, way: Way) -> Tried:
        """How far a way is from transformers' own pass."""
        try:
            deviation = max(self._scored(way), self._decoded(way))
        except RAISED as error:
            return Tried(route=way.route, raised=shown(error))
        return Tried(route=way.route, deviation=deviation, bound=self.bound)

    def _within(self, way: Way) -> list[int]:
        """The rows that this way would be asked."""
        return [i for i, row in enumerate(self.rows) if way.route != "batched" or self._limit is None or len(row.ids) <= self._limit]

    def _scored(self, way: Way) -> float:
        if way.logps is None:
            return 0.0
        worst, some = 0.0, self._within(way)
        for name in self.names:
            scored = way.logps([(self.rows[i].ids, self.rows[i].mask) for i in some], name)
            worst = max(worst, *(self._deviation(np.array(own), self._whole[name][i][:, 0]) for i, own in zip(some, scored, strict=True)))
        return worst

    def _decoded(self, way: Way) -> float:
        decoder, open_ = way.decoder(), []
        for name in self.names:
            for i in self._within(way):
                ids, steps = self.rows[i]
                share = _SHARED if i % 2 else 0
                number = decoder.add(DecodeRequest(ids=ids[:-steps], max_tokens=steps, adapter=name, share=share))
                held = _Forced(ids[-steps:])
                decoder.hold(number, held)
                open_.append((held, self._stepped[name][i]))
        while decoder.busy:
            decoder.step()
        return max(self._deviation(np.concatenate(held.seen), expected) for held, expected in open_)


@contextmanager
def moved(model: Any, kind: torch.dtype) -> Iterator[None]:
    """The model's embeddings moved by about the last bit of `kind`, at random: what rounding does."""
    last, generator = torch.finfo(kind).eps, torch.Generator().manual_seed(0)

    def move(_module: Any, _ids: Any, out: Tensor) -> Tensor:
        return (out.float() * (1 + last * torch.randn(out.shape, generator=generator).to(out.device))).to(out.dtype)

    hook = model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        hook.remove()


Rehearsal = Callable[[bool], tuple[PlainEngine, list[Way]]]


def choose(rehearsed: Rehearsal, adapter: str | None, file: Path, *, limit: int | None = None) -> DecodeChoice:
    """The first way that passes, else `reread`; remembered in `file`. What transformers itself raises is raised.

    `rehearsed` gives transformers' own engine and the ways to try, cut to as few layers as show every kind of layer (True), or whole.
    """
    choice = read(file)
    if choice is None:
        try:
            choice = _chosen(*rehearsed(True), adapter, limit)
        except RAISED:
            choice = None
        if choice is None or choice.route == "reread":  # a model that is cut may be none that can be computed
            choice = _chosen(*rehearsed(False), adapter, limit)
        write_atomic(file, msgspec.json.encode(choice))
    return choice


def _chosen(plain: PlainEngine, ways: Sequence[Way], adapter: str | None, limit: int | None) -> DecodeChoice:
    check = DecodeCheck(plain, adapter, limit=limit)
    tried, passed = list[Tried](), list[str]()
    for way in ways:
        tried.append(check.tried(way))
        _log.debug("%s", tried[-1].sentence())
        passed += [way.route] if tried[-1].passed else []
        if passed and (passed[0] != "batched" or limit is None or len(passed) == 2):
            break
    passed.append("reread")
    limited = limit is not None and passed[0] == "batched"
    return DecodeChoice(route=passed[0], tried=tuple(tried), limit=limit if limited else None, beyond=passed[1] if limited else "")


def read(file: Path) -> DecodeChoice | None:
    """The choice in a file; None where there is none that can be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=DecodeChoice)
    except (OSError, msgspec.DecodeError):
        return None


def place(base: Path, adapter: Path | None, model: Any, purpose: str = "") -> Path:
    """The file that remembers a choice: named by the base's configuration, the adapter's settings and shapes, versions and our own code."""
    config, (code, versions) = (base / "config.json").read_bytes().hex(), _programs()
    machine = [torch.backends.cpu.get_cpu_capability(), model.device.type, str(model.dtype)]
    named = digest(config, None if adapter is None else _settings(adapter), code, versions, machine, purpose)
    return user_folder() / "routes" / f"decode-{named}.json"


@functools.cache
def _programs() -> tuple[str, list[str]]:
    """What computes in this process: our own code, and the versions of the libraries."""
    code = files_digest([*sorted((Path(__file__).parents[1] / "nets").glob("*.py")), Path(__file__)])
    return code, [importlib.metadata.version(name) for name in ("torch", "transformers")]


def _settings(adapter: Path) -> list[Any]:
    """What of an adapter decides how it is computed: its settings, and the names and shapes of its tensors."""
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    for key in ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"):
        config.pop(key, None)
    lists = {
        key: sorted(value) for key, value in config.items() if isinstance(value, list) and all(isinstance(item, str) for item in value)
    }
    return [config | lists, tensor_shapes(adapter)]


def probes(plain: PlainEngine) -> list[Probe]:
    """Three short rows, two of which begin alike, and two for each length at which the configuration says that something changes."""
    config, rng, context = plain.model.config.get_text_config(), np.random.default_rng(0), plain.context
    vocabulary = int(plain.model.get_input_embeddings().weight.shape[0])
    sizes = [(5, 2), (_SHARED + 13, _STEPS), (_SHARED + 29, _STEPS)]
    lengths = [length for length in _lengths(config.to_dict()) if _STEPS < length <= context - 25]
    if lengths:
        longest = _affordable(plain, rng.integers(0, vocabulary, min(64, context)).tolist())
        sizes += [size for length in lengths if length + 25 <= longest for size in ((length + 3, 6), (length + 25, _STEPS))]
    shared = rng.integers(0, vocabulary, _SHARED).tolist()
    rows = []
    for size, steps in sorted(set(sizes)):
        size = min(size, context)
        own = rng.integers(0, vocabulary, size).tolist()
        rows.append(Probe([*shared, *own[_SHARED:]] if size > _SHARED else own, min(steps, size - 1)))
    return rows


def _lengths(config: dict[str, Any]) -> list[int]:
    """The lengths at which a configuration says that something changes, the two shortest and the longest."""
    lengths = sorted(set(_numbers(config)))
    return sorted({*lengths[:2], *lengths[-1:]})


def _numbers(config: dict[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1 and _LENGTHS.search(key):
            yield value


def _affordable(plain: PlainEngine, row: list[int]) -> float:
    """How long a row may be for all passes over it to stay within the budget, when time grows as the square of its length at most."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        plain.logits(row, None, last=1)
        seconds.append(time.perf_counter() - start)
    passes = _SECONDS / (_PASSES * min(seconds))
    return len(row) * min(passes, max(16.0, passes**0.75))
