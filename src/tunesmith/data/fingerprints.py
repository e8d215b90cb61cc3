"""What the rules about the whole set and the split know of each row: numbers and short keys in flat arrays, never the row; knows nothing
about what they are compared for.

A row costs about a hundred bytes and eight for each of its shingles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from tunesmith.core.map_rows import Executor, here, map_rows
from tunesmith.core.origins import Origins
from tunesmith.core.row_kinds import label_of, prompt_of
from tunesmith.core.rows import Row
from tunesmith.core.types import Labelled
from tunesmith.data.shingle import Shingles, shingles
from tunesmith.data.text import claim_key, claim_of, comparison_text, normalised, prompt_key, question_of

Array = np.ndarray[Any, Any]
_ARRAYS = ("ids", "prompt", "claim", "question", "group", "label")


class Names:
    """Texts by number, each once; None is -1."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.texts: list[str] = []

    def number(self, text: str | None) -> int:
        """The number of a text, which is new if it is."""
        if text is None:
            return -1
        number = self._numbers.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number


@dataclass
class Fingerprints:
    """n rows as numbers.

    origins, ids   where they came from, and their ids as bytes
    prompt         128 bits of all that is asked (0: nothing)
    about, claim   of what a row makes a claim about (0: nothing), and 64 bits of what it claims
    question       64 bits of the normalised question (0: empty)
    group, label   numbers of `groups` and `labels` (-1: none)
    sets           the shingles of the comparison texts (None: not made)
    """

    origins: Origins
    ids: Array
    prompt: Array
    about: Array
    claim: Array
    question: Array
    group: Array
    label: Array
    sets: Shingles | None = None
    groups: Names = field(default_factory=Names)
    labels: Names = field(default_factory=Names)

    def __len__(self) -> int:
        return len(self.ids)

    def taken(self, which: Array) -> Fingerprints:
        """Those of the rows at these ascending places. The shingles move within their own array: these fingerprints are used up."""
        stays = np.zeros(len(self), dtype=bool)
        stays[which] = True
        arrays = {name: getattr(self, name)[which] for name in _ARRAYS}
        arrays["about"] = arrays["prompt"] if self.about is self.prompt else self.about[which]
        sets = None if self.sets is None else self.sets.compacted(stays)
        origins = Origins(self.origins[i] for i in which.tolist()) if len(which) < len(self) else self.origins
        return Fingerprints(origins=origins, **arrays, sets=sets, groups=self.groups, labels=self.labels)


def fingerprints(rows: Sequence[Row], *, sets: bool = True, executor: Executor = here) -> Fingerprints:
    """The fingerprints of rows, a piece at a time."""
    gathered = Gathered(len(rows), sets)
    for piece in map_rows(Look(sets, len(rows) >= COMPILED_ROWS), rows, executor):
        gathered.add(piece)
    return gathered.done()


COMPILED_ROWS = 5_000  # from here on loading the compiled shingling pays


@dataclass(frozen=True)
class Look:
    """What is seen of a piece of rows; `sets`: with their shingles, by the compiled way or not."""

    sets: bool
    compiled: bool

    def __call__(self, rows: Iterable[Row]) -> Seen:
        seen = Seen()
        texts = []
        for row in rows:
            seen.origins.append(row.origin)
            seen.ids.append(row.id.encode())
            asks = bool(prompt_of(row))  # plain text asks nothing
            prompt = prompt_key(row) if asks else bytes(16)
            seen.prompt.append(prompt)
            seen.about.append((claim_key(row) or bytes(16)) if isinstance(row, Labelled) else prompt)
            seen.claim.append(_short(claim_of(row)))
            question = normalised(question_of(row))
            seen.question.append(_short(question) if question else bytes(8))
            seen.groups.append(row.group)
            seen.labels.append(label_of(row))
            if self.sets:
                texts.append(comparison_text(row))
        seen.sets = shingles(texts, compiled=self.compiled) if self.sets else None
        return seen


def _short(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


@dataclass
class Seen:
    """What was seen of one piece."""

    origins: list[str] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    prompt: list[bytes] = field(default_factory=list)
    about: list[bytes] = field(default_factory=list)
    claim: list[bytes] = field(default_factory=list)
    question: list[bytes] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    sets: Shingles | None = None


class Gathered:
    """Pieces put together, in at most as much memory as the whole takes."""

    def __init__(self, most: int, sets: bool) -> None:
        self._n = 0
        self._keys: dict[str, Array] = {"prompt": np.zeros((most, 2), np.uint64)}
        self._about: Array | None = None  # of most sets it is the prompt
        self._keys |= {name: np.zeros(most, np.uint64) for name in ("claim", "question")}
        self._codes: dict[str, Array] = {name: np.full(most, -1, np.int32) for name in ("group", "label")}
        self._ids: list[Array] = []
        self._origins, self._groups, self._labels = Origins(), Names(), Names()
        self._sets = _Grown(most) if sets else None

    def add(self, seen: Seen) -> None:
        """The next piece."""
        end = self._n + len(seen.ids)
        for name, array in self._keys.items():
            array[self._n : end] = np.frombuffer(b"".join(getattr(seen, name)), np.uint64).reshape(array[self._n : end].shape)
        if self._about is None and seen.about != seen.prompt:
            self._about = self._keys["prompt"].copy()
        if self._about is not None:
            self._about[self._n : end] = np.frombuffer(b"".join(seen.about), np.uint64).reshape(-1, 2)
        self._codes["group"][self._n : end] = [self._groups.number(name) for name in seen.groups]
        self._codes["label"][self._n : end] = [self._labels.number(name) for name in seen.labels]
        self._ids.append(np.array(seen.ids, dtype=np.bytes_))
        for origin in seen.origins:
            self._origins.append(origin)
        if self._sets is not None and seen.sets is not None:
            self._sets.add(seen.sets)
        self._n = end

    def done(self) -> Fingerprints:
        """All pieces as one."""
        arrays = {name: array[: self._n] for name, array in (self._keys | self._codes).items()}
        return Fingerprints(
            origins=self._origins,
            ids=np.concatenate(self._ids) if self._ids else np.zeros(0, np.bytes_),
            **arrays,
            about=arrays["prompt"] if self._about is None else self._about[: self._n],
            sets=self._sets.done() if self._sets is not None else None,
            groups=self._groups,
            labels=self._labels,
        )


class _Grown:
    """Shingles in one array that grows where it lies."""

    def __init__(self, most: int) -> None:
        self._hashes = np.zeros(1 << 16, np.uint64)
        self._starts = np.zeros(most + 1, np.int64)
        self._texts = self._used = 0

    def add(self, sets: Shingles) -> None:
        needed = self._used + len(sets.hashes)
        if needed > len(self._hashes):
            self._hashes.resize(needed + needed // 20, refcheck=False)  # a large block is moved by its pages, not copied
        self._hashes[self._used : needed] = sets.hashes
        self._starts[self._texts + 1 : self._texts + 1 + len(sets)] = self._used + sets.starts[1:]
        self._texts, self._used = self._texts + len(sets), needed

    def done(self) -> Shingles:
        return Shingles(self._hashes[: self._used], self._starts[: self._texts + 1])


def distinct_places(keys: Array) -> Array:
    """For each key (bytes, or two words of 64 bits) the first place that has the same key."""
    order = np.argsort(keys, kind="stable") if keys.ndim == 1 else np.lexsort((keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1] if keys.ndim == 1 else (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(keys), dtype=np.int64)
    first[order] = order[new][np.cumsum(new) - 1] if len(keys) else order
    return first


def chunks(n: int, size: int) -> Iterator[tuple[int, int]]:
    """Beginnings and ends of pieces of n."""
    return ((start, min(n, start + size)) for start in range(0, n, size))
