"""Whether texts have moved from a fixed reference, in one window or little by little: what moved, which rows and which topics. Knows
nothing about models, files or the log.

The reference is cut in two by a fixed draw. On its first half everything is fitted (topics, known words); the second half is what windows
are compared with: what is fitted on the rows that it is compared with finds nothing new in them, and something in every window.

A window is tested by embeddings (MMD), how unlike the reference its texts are, topics, length, language, format and unknown words,
Holm-corrected, so that a quiet window is an alarm with probability `alpha` at most. Beside that runs a martingale over all windows
(`core/stats/martingale.py`), which finds a change that no single window shows.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError
from tunesmith.core.stats import holm
from tunesmith.core.stats.martingale import ReferenceMartingale
from tunesmith.core.stats.records import Floats
from tunesmith.core.stats.two_sample import mmd_test, names_test, numbers_test
from tunesmith.core.text_vectors import TextIndex, clusters
from tunesmith.core.types import Record
from tunesmith.core.words import words

Vectors = Callable[[Sequence[str]], Floats]
"""Texts → unit vectors [n, d]; the same text gives the same vector."""
LEAST = 100  # rows that a reference needs
_EMBEDDED = 400  # rows of the reference that windows are compared with by MMD, whose cost grows with their square
_LANDMARKS = 256  # texts whose likeness makes a vector where there is no encoder
_NEAREST = 5
_TAILS = (0.02, 0.05, 0.1, 0.25)
_TOPICS = 8
_TOP = 20  # rows of a window that are named
_FENCE = re.compile(r"^\s*(```|~~~)", re.M)
_ITEMS = re.compile(r"^\s*([-*•]|\d{1,2}[.)])\s", re.M)


class Moved(Record, frozen=True):
    """What one look at a window says of one property: p-value, corrected over all properties, and its value before and now for people."""

    name: str
    p: float
    p_adjusted: float
    before: str
    now: str


class Topic(Record, frozen=True):
    """A topic of the reference with its share of the reference and of the window; `words` tell it from the others."""

    words: tuple[str, ...]
    before: float
    now: float


class WindowDrift(Record, frozen=True):
    """One window against the reference. `alarm`: some property has moved in this window; `lasting`: the evidence over all windows so far is
    beyond its limit. `evidence` is that of the martingale, as a factor; `level` is how far the nearer of both has come on the way to an
    alarm (1: there), on a logarithmic scale. `rows` are places in the window, the least alike first."""

    n: int
    alarm: bool
    lasting: bool
    evidence: float
    properties: tuple[Moved, ...]
    topics: tuple[Topic, ...]
    rows: tuple[int, ...]
    events: tuple[str, ...]
    level: float = 0.0


class DriftReference:
    """The fixed reference of one stream of texts. `vectors` embeds (None: by the words that a text shares with some of the reference);
    `language` names a text's language (None: its script)."""

    def __init__(
        self,
        texts: Sequence[str],
        vectors: Vectors | None = None,
        language: Callable[[str], str] | None = None,
        *,
        alpha: float = 0.005,
        seed: int = 0,
    ) -> None:
        if len(texts) < LEAST:
            raise DataError(
                f"a reference of {len(texts)} texts", allowed=f"{LEAST} or more", remedy="take a longer time, or the training rows"
            )
        order = np.random.default_rng(seed).permutation(len(texts))
        fitted, held = np.sort(order[: len(texts) // 2]), np.sort(order[len(texts) // 2 :])
        self._fit_texts = [texts[i] for i in fitted]
        self._vectors, self._by_words = vectors or landmark_vectors(self._fit_texts), vectors is None
        self._language, self.alpha, self._seed = language or script, alpha, seed
        self._fit = self._vectors(self._fit_texts)
        self._known = {word for text in self._fit_texts for word in words(text)}
        self._label = clusters(self._fit, _TOPICS, seed)
        sums = np.stack([self._fit[self._label == c].sum(axis=0) for c in range(int(self._label.max()) + 1)])
        self._centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        self._held = self._described([texts[i] for i in held])
        self._rules = self._limits(self._held)
        self._martingale = ReferenceMartingale(self._events(self._held).sum(axis=0), len(held), delta=alpha)
        self.windows = 0

    def look(self, texts: Sequence[str]) -> WindowDrift:
        """The next window, in the order in which windows came: tests it, and adds it to the evidence. Raises DataError for fewer than 2."""
        now, held = self._described(texts), self._held
        self.windows += 1
        seed = self._seed + self.windows
        p = {
            "embeddings": mmd_test(held.vectors[:_EMBEDDED], now.vectors, seed=seed),
            "novelty": numbers_test(held.novelty, now.novelty, seed=seed),
            "topics": names_test(held.topics, now.topics, seed=seed),
            "length": numbers_test(held.length, now.length, seed=seed),
            "language": names_test(held.language, now.language, seed=seed),
            "format": names_test(held.format, now.format, seed=seed),
            "vocabulary": numbers_test(held.unknown, now.unknown, seed=seed),
        }
        adjusted = dict(zip(p, map(float, holm(list(p.values()))), strict=True))
        events = self._events(now)
        alone = self._martingale.add(events.sum(axis=0), len(texts))
        log_evidence = self._martingale.log_evidence
        limit = -math.log(self.alpha)
        shown = [self._rules[i][0] for i in np.argsort(-alone)[:3] if alone[i] >= limit]
        properties = [Moved(name=name, p=p[name], p_adjusted=adjusted[name], **_shown(name, held, now)) for name in p]
        return WindowDrift(
            n=len(texts), alarm=min(adjusted.values()) <= self.alpha, lasting=log_evidence >= limit,
            evidence=math.exp(min(log_evidence, 500.0)), properties=tuple(properties), topics=self._topics(now),
            rows=tuple(int(i) for i in np.argsort(-now.novelty, kind="stable")[:_TOP]), events=tuple(shown),
            level=max(0.0, -math.log(min(adjusted.values())), log_evidence) / limit,
        )  # fmt: skip

    def _described(self, texts: Sequence[str]) -> _Described:
        vectors = self._vectors(texts)
        # Of landmarks' vectors only the direction is left: two texts that share hardly a word with any of them may still be alike.
        likeness = self._index.similar(texts) if self._by_words else vectors @ self._fit.T
        nearest = np.partition(likeness, -min(_NEAREST, likeness.shape[1]), axis=1)[:, -_NEAREST:]
        bags = [words(text) for text in texts]
        unknown = [sum(word not in self._known for word in bag) / max(len(bag), 1) for bag in bags]
        return _Described(
            vectors=vectors,
            novelty=1 - nearest.mean(axis=1),
            topics=[str(c) for c in (vectors @ self._centres.T).argmax(axis=1)],
            length=np.log1p([len(text) for text in texts]),
            language=[self._language(text) for text in texts],
            format=[form(text) for text in texts],
            unknown=np.array(unknown),
        )

    def _limits(self, held: _Described) -> list[tuple[str, Callable[[_Described], NDArray[np.bool_]]]]:
        """The events whose frequency is bet on: being among the least alike, the longest, the shortest, …; each topic, language, format."""
        rules: list[tuple[str, Callable[[_Described], NDArray[np.bool_]]]] = []
        for tail in _TAILS:
            rules.append((f"among the {tail:.0%} least alike", _above("novelty", np.quantile(held.novelty, 1 - tail))))
            rules.append((f"among the {tail:.0%} with most unknown words", _above("unknown", np.quantile(held.unknown, 1 - tail))))
        for tail in (0.05, 0.25):
            rules.append((f"among the {tail:.0%} longest", _above("length", np.quantile(held.length, 1 - tail))))
            rules.append((f"among the {tail:.0%} shortest", _below("length", np.quantile(held.length, tail))))
        for name in ("topics", "language", "format"):
            usual = [value for value, _ in Counter(getattr(held, name)).most_common(_TOPICS)]
            rules += [(f"{name[:-1] if name == 'topics' else name} {value}", _equal(name, value)) for value in usual]
            rules.append((f"another {name[:-1] if name == 'topics' else name}", _other(name, frozenset(usual))))
        return rules

    def _events(self, of: _Described) -> NDArray[np.bool_]:
        return np.stack([happens(of) for _, happens in self._rules], axis=1)

    @cached_property
    def _index(self) -> TextIndex:
        return TextIndex(self._fit_texts)

    def _topics(self, now: _Described) -> tuple[Topic, ...]:
        before, after = Counter(self._held.topics), Counter(now.topics)
        n, m = len(self._held.topics), len(now.topics)
        moved = sorted(before.keys() | after.keys(), key=lambda c: -abs(after[c] / m - before[c] / n))[:3]
        return tuple(Topic(words=tuple(self._index.telling(self._label == int(c))), before=before[c] / n, now=after[c] / m) for c in moved)


class _Described:
    """What is known of each text of a sample, in their order."""

    def __init__(
        self,
        *,
        vectors: Floats,
        novelty: Floats,
        topics: list[str],
        length: Floats,
        language: list[str],
        format: list[str],
        unknown: Floats,
    ) -> None:
        self.vectors, self.novelty, self.topics, self.length = vectors, novelty, topics, length
        self.language, self.format, self.unknown = language, format, unknown


def landmark_vectors(texts: Sequence[str]) -> Vectors:
    """Vectors without a model: the tf-idf cosines of a text with up to 256 texts of the reference, scaled to length 1."""
    index = TextIndex(texts[:_LANDMARKS])

    def vectors(asked: Sequence[str]) -> Floats:
        likeness = index.similar(asked)
        return np.asarray(likeness / np.maximum(np.linalg.norm(likeness, axis=1, keepdims=True), 1e-12))

    return vectors


def script(text: str) -> str:
    """The script that most letters of a text are of, as Unicode names it (`LATIN`, `CYRILLIC`, `CJK`); `none` where it has none."""
    letters = [c for c in text[:400] if c.isalpha()]
    names = Counter("LATIN" if c.isascii() else unicodedata.name(c, "other").split()[0] for c in letters)
    return names.most_common(1)[0][0] if names else "none"


def form(text: str) -> str:
    """What a text looks like: json, code, table, list, paragraphs, question or line."""
    bare = text.strip()
    if bare[:1] in ("{", "["):
        try:
            json.loads(bare)
            return "json"
        except ValueError:
            return "code" if bare[:1] == "{" else "line"
    if _FENCE.search(bare):
        return "code"
    if bare.count("|") >= 4 and "\n" in bare:
        return "table"
    if len(_ITEMS.findall(bare)) >= 2:
        return "list"
    if "\n\n" in bare:
        return "paragraphs"
    return "question" if bare.endswith(("?", "？", "؟")) else "line"


def _above(name: str, limit: Any) -> Callable[[_Described], NDArray[np.bool_]]:
    return lambda of: np.asarray(getattr(of, name) > limit)


def _below(name: str, limit: Any) -> Callable[[_Described], NDArray[np.bool_]]:
    return lambda of: np.asarray(getattr(of, name) < limit)


def _equal(name: str, value: str) -> Callable[[_Described], NDArray[np.bool_]]:
    return lambda of: np.array([each == value for each in getattr(of, name)])


def _other(name: str, usual: frozenset[str]) -> Callable[[_Described], NDArray[np.bool_]]:
    return lambda of: np.array([each not in usual for each in getattr(of, name)])


def _shown(name: str, before: _Described, now: _Described) -> dict[str, str]:
    """A property's value before and now, for people."""

    def value(of: _Described) -> str:
        if name in ("embeddings", "novelty"):
            return f"{1 - float(of.novelty.mean()):.2f} alike"
        if name == "length":
            return f"{np.expm1(np.median(of.length)):.0f} characters"
        if name == "vocabulary":
            return f"{of.unknown.mean():.1%} unknown"
        counts = Counter(getattr(of, name))
        usual, times = counts.most_common(1)[0]
        return f"{usual} {times / sum(counts.values()):.0%}"

    return {"before": value(before), "now": value(now)}
