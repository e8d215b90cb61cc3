"""Metrics of an answer's text against its reference by equality, containment, pattern and length; knows nothing about word overlap.

All are means over rows. A row may have several right answers: `meta["references"]`, a list, goes before the reference.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np

from tunesmith.core.errors import ConfigError, DataError, UsageError
from tunesmith.core.search import Pattern
from tunesmith.core.types import Answer, Example
from tunesmith.evaluate.metrics.base import Measured, Metric, measured, register


def references(example: Example) -> tuple[str, ...]:
    """Every right answer of a row: `meta["references"]` when it is there, else the one reference."""
    several = example.meta.get("references")
    return tuple(str(each) for each in several) if several else (example.answer,)


@lru_cache(maxsize=65536)
def normalize(text: str) -> str:
    """SQuAD's normal form in any script (arXiv 1606.05250): NFKC, case folded, no punctuation, no English articles, single spaces.

    A text that is nothing but articles ("A", the answer to a multiple-choice question) or punctuation keeps them: no answer is not it.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = " ".join("".join(c for c in folded if not unicodedata.category(c).startswith("P")).split())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split()) or bare or folded


@measured("exact_match")
def exact_match(example: Example, answer: Answer) -> float:
    """1 when the answer is a reference, character by character, outer white space apart. Range 0 to 1, higher is better, mean."""
    text = answer.text.strip()
    return float(any(text == right.strip() for right in references(example)))


@measured("normalized_match")
def normalized_match(example: Example, answer: Answer) -> float:
    """1 when answer and a reference have the same normal form. Range 0 to 1, higher is better, mean.

    The normal form (SQuAD's, in any script) has no case, no punctuation (so no brackets), no English articles, and single spaces;
    a text of nothing but articles or punctuation keeps them.
    """
    text = normalize(answer.text)
    return float(any(text == normalize(right) for right in references(example)))


@register("includes")
def includes(ignore_case: bool = False) -> Metric:
    """1 when a reference occurs in the answer (OpenAI evals' Includes). Range 0 to 1, higher is better, mean."""

    def rate(example: Example, answer: Answer) -> float:
        fold: Callable[[str], str] = str.casefold if ignore_case else str
        text = fold(answer.text)
        return float(any(fold(right.strip()) in text for right in references(example)))

    return Metric(name="includes", rate=rate)


@measured("starts_with")
def starts_with(example: Example, answer: Answer) -> float:
    """1 when the answer begins with a reference (OpenAI evals' Match). Range 0 to 1, higher is better, mean."""
    text = answer.text.lstrip()
    return float(any(text.startswith(right.strip()) for right in references(example)))


@measured("fuzzy_match")
def fuzzy_match(example: Example, answer: Answer) -> float:
    """1 when the normal form of the answer or of a reference holds the other. Range 0 to 1, higher is better, mean.

    OpenAI evals' FuzzyMatch.
    """
    text = normalize(answer.text)
    forms = [normalize(right) for right in references(example)]
    return float(any(text == right or bool(text and right and (text in right or right in text)) for right in forms))


@register("regex")
def regex(pattern: str | None = None, full: bool = False) -> Metric:
    """1 when the pattern is found in the answer (`full`: is the whole answer); without a pattern the row's reference is one.

    Range 0 to 1, higher is better, mean. Raises ConfigError when the pattern does not compile; a row's own bad pattern is missing, and so
    is a row on which the pattern searches for longer than two seconds.
    """
    try:
        fixed = Pattern(pattern) if pattern is not None else None
    except UsageError as error:
        raise ConfigError(error.what, where="metric 'regex'", allowed=error.allowed) from error

    def rate(example: Example, answer: Answer) -> float | Measured:
        try:
            wanted = fixed or Pattern(example.answer)
            return float(bool(wanted.fullmatch(answer.text.strip()) if full else wanted.search(answer.text)))
        except (UsageError, DataError) as error:
            return Measured(None, detail=error.what if fixed else f"the reference is no pattern: {error.what}")

    return Metric(name="regex", rate=rate)


@register("length")
def length(unit: Literal["words", "characters", "tokens"] = "words") -> Metric:
    """The answer's length in words, characters or generated tokens. Range 0 and up, neither direction is better, mean."""
    count: dict[str, Callable[[Answer], int]] = {
        "words": lambda answer: len(answer.text.split()),
        "characters": lambda answer: len(answer.text),
        "tokens": lambda answer: answer.completion_tokens,
    }
    if unit not in count:
        raise ConfigError(f"unit '{unit}'", where="metric 'length'", allowed=", ".join(count))
    return Metric(name="length", rate=lambda _, answer: float(count[unit](answer)), high=np.inf, better="neither", unit=unit)
