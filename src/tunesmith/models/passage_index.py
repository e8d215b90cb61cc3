"""Passages looked up by their words (BM25), by their meaning (vectors of an encoder), or by both; knows nothing about where they come from.

BM25 is Lucene's variant with exact scores (bm25s, Lù 2024) over the words of any script. Vectors are compared with all passages, which is
exact. Both are joined by reciprocal rank (Cormack et al. 2009): a passage has 1 / (60 + rank) of each list that it is in; one without any
word of the question is in no list of BM25.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tunesmith.core.digests import RunningDigest
from tunesmith.core.errors import DataError, StoreError, UsageError
from tunesmith.core.load import need
from tunesmith.core.passages import How, Passage
from tunesmith.core.seal import check_folder, seal
from tunesmith.core.types import Record
from tunesmith.core.words import words
from tunesmith.models.base import Encoding

WAYS: tuple[How, ...] = ("words", "vectors", "fused")
Floats = npt.NDArray[np.float32]
K1, B = 1.5, 0.75  # Lucene's way to weigh words, with the usual parameters
_SMOOTHING = 60
_AT_ONCE = 256  # passages that are encoded between two reports
_ASKED_AT_ONCE = 64  # questions that are compared with all passages in one product: 25 MB for a hundred thousand
_PASSAGES, _VECTORS, _WORDS, _INDEX = "passages.jsonl", "vectors.npy", "words", "index.json"


class Hit(Record, frozen=True):
    """A passage that was found, and its score (of BM25, a cosine, or a sum of reciprocal ranks): higher is better."""

    passage: Passage
    score: float


class IndexFacts(Record, frozen=True):
    """What an index is: its digest, how many passages it has of how many documents, and the encoder (empty: words alone).

    `longer` counts the passages that are longer than the encoder reads, whose ends are found by their words only.
    """

    digest: str
    passages: int
    sources: int
    encoder: str = ""
    encoder_digest: str = ""
    k1: float = K1
    b: float = B
    longer: int = 0


@dataclass
class PassageIndex:
    """Passages, ready to be looked up. `encoder` makes vectors of questions; it is None where there are none of the passages."""

    passages: list[Passage]
    facts: IndexFacts
    bm25: Any
    vectors: Floats | None = None
    encoder: Encoding | None = None

    @classmethod
    def build(
        cls,
        passages: Sequence[Passage],
        encoder: Encoding | None = None,
        *,
        k1: float = K1,
        b: float = B,
        tell: Callable[[int, int], None] | None = None,
    ) -> PassageIndex:
        """The index of passages; with an encoder by vectors too. `tell(done, total)` counts what is encoded. Raises DataError for none."""
        if not passages:
            raise DataError("no passage to look up", remedy="give documents that have text, or rows")
        vectors, longer = (None, 0) if encoder is None else _encoded(passages, encoder, tell)
        facts = IndexFacts(
            digest=digest_of(passages, encoder, k1, b),
            passages=len(passages),
            sources=len({passage.source for passage in passages}),
            encoder="" if encoder is None else encoder.name,
            encoder_digest="" if encoder is None else encoder.digest,
            k1=k1,
            b=b,
            longer=longer,
        )
        return cls(list(passages), facts, _bm25(passages, k1, b), vectors, encoder)

    @property
    def digest(self) -> str:
        """Of the passages, the encoder and BM25's parameters: of all that decides what is found."""
        return self.facts.digest

    @property
    def ways(self) -> tuple[How, ...]:
        """How it can be asked."""
        return WAYS if self.vectors is not None else ("words",)

    def save(self, folder: Path) -> None:
        """Write it into a folder that is there, and seal that."""
        lines = b"\n".join(msgspec.json.encode(passage) for passage in self.passages)
        (folder / _PASSAGES).write_bytes(lines + b"\n")
        if self.vectors is not None:
            np.save(folder / _VECTORS, self.vectors)
        if self.bm25 is not None:
            self.bm25.save(folder / _WORDS, show_progress=False)
        (folder / _INDEX).write_bytes(msgspec.json.encode(self.facts))
        seal(folder)

    @classmethod
    def load(cls, folder: Path, encoder: Callable[[str], Encoding]) -> PassageIndex:
        """What was saved; `encoder` gives the encoder of a name, where the index has vectors.

        Raises StoreError for a folder that is damaged, or whose encoder is another than the one that it was made with.
        """
        facts = facts_of(folder)
        check_folder(folder)
        lines = (folder / _PASSAGES).read_bytes().splitlines()
        passages = [msgspec.json.decode(line, type=Passage) for line in lines]
        model = encoder(facts.encoder) if facts.encoder else None
        if model is not None and model.digest != facts.encoder_digest:
            what = f"the encoder '{facts.encoder}' is not the one that the index was made with"
            raise StoreError(what, where=str(folder), remedy="make the index again: tunesmith data documents")
        has_words = (folder / _WORDS).is_dir()
        bm25 = need("bm25s", extra="documents").BM25.load(folder / _WORDS, show_progress=False) if has_words else None
        return cls(passages, facts, bm25, np.load(folder / _VECTORS, mmap_mode="r") if facts.encoder else None, model)

    def search(self, queries: Sequence[str], k: int, how: How = "fused") -> list[list[Hit]]:
        """The best `k` passages of each question, best first; equal ones in the passages' order. Fewer where fewer have any of its words.

        Raises UsageError for a way that the index does not have.
        """
        if how not in self.ways or k < 1:
            raise UsageError(f"{k} passages by '{how}'", where="k, how", allowed=f"k from 1, how {', '.join(self.ways)}")
        parts = (queries[start : start + _ASKED_AT_ONCE] for start in range(0, len(queries), _ASKED_AT_ONCE))
        return [hits for part in parts for hits in self._search(part, k, how)]

    def _search(self, queries: Sequence[str], k: int, how: How) -> list[list[Hit]]:
        close = self._close(queries) if how != "words" else None
        results = []
        for i, query in enumerate(queries):
            worded = self._worded(query) if how != "vectors" else None
            scores = _fused(worded, None if close is None else close[i])
            best = _best(scores, k, least=-np.inf if how == "vectors" else 0.0)
            results.append([Hit(passage=self.passages[j], score=float(scores[j])) for j in best])
        return results

    def _worded(self, query: str) -> Floats:
        if self.bm25 is None:
            return np.zeros(len(self.passages), dtype=np.float32)
        return np.asarray(self.bm25.get_scores(list(words(query))), dtype=np.float32)

    def _close(self, queries: Sequence[str]) -> Floats:
        """Cosines [queries, passages]. A question that is longer than the encoder reads is the mean of its parts."""
        assert self.encoder is not None
        assert self.vectors is not None
        parts = [_windows(self.encoder, query) for query in queries]
        vectors = self.encoder([window for windows in parts for window in windows])
        starts = np.cumsum([0, *map(len, parts)])[:-1]
        means = np.add.reduceat(vectors, starts, axis=0)
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return np.asarray(means @ np.asarray(self.vectors).T, dtype=np.float32)


def facts_of(folder: Path) -> IndexFacts:
    """What the index in a folder is, without loading it. Raises StoreError for a folder that holds none."""
    try:
        return msgspec.json.decode((folder / _INDEX).read_bytes(), type=IndexFacts)
    except (OSError, msgspec.MsgspecError) as error:
        raise StoreError(f"no index of passages: {error}", where=str(folder), remedy="tunesmith data documents makes one") from error


def _fused(worded: Floats | None, close: Floats | None) -> npt.NDArray[np.floating[Any]]:
    """The scores of one way, or the sum of both ways' reciprocal ranks."""
    if worded is None or close is None:
        return close if worded is None and close is not None else worded if worded is not None else np.zeros(0)
    return _reciprocal(worded, worded > 0) + _reciprocal(close, np.ones(len(close), dtype=bool))


def _reciprocal(scores: Floats, ranked: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    order = np.argsort(-scores, kind="stable")
    order = order[ranked[order]]
    shares = np.zeros(len(scores))
    shares[order] = 1.0 / (_SMOOTHING + 1 + np.arange(len(order)))
    return shares


def _best(scores: npt.NDArray[np.floating[Any]], k: int, least: float) -> list[int]:
    order = np.argsort(-scores, kind="stable")[:k]
    return [int(i) for i in order if scores[i] > least]


def _encoded(passages: Sequence[Passage], encoder: Encoding, tell: Callable[[int, int], None] | None) -> tuple[Floats, int]:
    """Unit vectors [passages, dimensions], and how many of the passages are longer than the encoder reads."""
    vectors = np.zeros((len(passages), encoder.size), dtype=np.float32)
    longer = 0
    for start in range(0, len(passages), _AT_ONCE):
        rows = [encoder.ids(passage.indexed) for passage in passages[start : start + _AT_ONCE]]
        longer += sum(len(row) > encoder.max_tokens for row in rows)
        vectors[start : start + len(rows)] = encoder(rows)
        if tell is not None:
            tell(start + len(rows), len(passages))
    return vectors, longer


def _windows(encoder: Encoding, query: str) -> list[list[int]]:
    """The token ids of a question in as many parts as the encoder must read, each between its marks."""
    ids, marks = encoder.ids(query), encoder.ids("")
    if len(ids) <= encoder.max_tokens or len(marks) != 2:
        return [ids]
    room, inner = encoder.max_tokens - 2, ids[1:-1]
    return [[marks[0], *inner[at : at + room], marks[1]] for at in range(0, len(inner), room)]


def _bm25(passages: Sequence[Passage], k1: float, b: float) -> Any:
    """BM25 over the passages' words; None where they have none."""
    bags = [list(words(passage.indexed)) for passage in passages]
    if not any(bags):
        return None
    bm25 = need("bm25s", extra="documents").BM25(k1=k1, b=b, method="lucene")
    bm25.index(bags, show_progress=False)
    return bm25


def digest_of(passages: Sequence[Passage], encoder: Encoding | None, k1: float = K1, b: float = B) -> str:
    """What an index of these passages under this encoder is called, whoever makes it."""
    total = RunningDigest()
    total.add(["passages", k1, b, "" if encoder is None else encoder.digest])
    for passage in passages:
        total.add(passage)
    return total.hexdigest()
