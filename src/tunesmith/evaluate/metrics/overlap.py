"""How much of a reference's words an answer shares: token F1, ROUGE, word and character error rates; in any script.

Words are runs of letters, digits and marks, lower-cased; in scripts written without spaces each character is a word. On ASCII these are
rouge-score's words, so its values come out; on other scripts rouge-score drops every character and answers 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np

from tunesmith.core.errors import ConfigError
from tunesmith.core.load import need
from tunesmith.core.types import Answer, Example
from tunesmith.core.words import words
from tunesmith.evaluate.metrics.base import Measured, Metric, f1_pool, measured, ratio_pool, register
from tunesmith.evaluate.metrics.text import normalize, references


def _f1(shared: float, answered: int, wanted: int) -> float:
    return 2 * shared / (answered + wanted) if shared else 0.0


@measured("token_f1")
def token_f1(example: Example, answer: Answer) -> float:
    """F1 of the multisets of words in normal form, the best over references (SQuAD, arXiv 1606.05250).

    Range 0 to 1, higher is better, mean; 1 when both are empty. A word said twice counts twice; case, punctuation and English articles do
    not count.
    """
    answered = Counter(normalize(answer.text).split())

    def against(right: str) -> float:
        wanted = Counter(normalize(right).split())
        return _f1((answered & wanted).total(), answered.total(), wanted.total()) if answered or wanted else 1.0

    return max(map(against, references(example)))


def rouge_n(wanted: Sequence[str], answered: Sequence[str], n: int) -> tuple[int, int, int]:
    """Shared, wanted and said n-grams (Lin 2004): precision is shared/said, recall is shared/wanted."""
    first, second = _ngrams(wanted, n), _ngrams(answered, n)
    shared = sum(count if count <= second[gram] else second[gram] for gram, count in first.items() if gram in second)
    return shared, max(0, len(wanted) - n + 1), max(0, len(answered) - n + 1)


def _ngrams(tokens: Sequence[str], n: int) -> Counter[Any]:
    return Counter(tokens) if n == 1 else Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


@lru_cache(maxsize=1)
def _lcs() -> Callable[[Sequence[str], Sequence[str]], int]:
    similarity: Callable[[Sequence[str], Sequence[str]], int] = need("rapidfuzz.distance", extra="eval").LCSseq.similarity
    return similarity


def rouge_l(wanted: Sequence[str], answered: Sequence[str]) -> tuple[int, int, int]:
    """Length of the longest common subsequence, words wanted, words said (Lin 2004)."""
    return _lcs()(wanted, answered), len(wanted), len(answered)


Measure = Literal["f1", "precision", "recall"]


def _rouge(name: str, count: Callable[[Sequence[str], Sequence[str]], tuple[int, int, int]], measure: Measure) -> Metric:
    """A ROUGE metric: the best value over the references. Range 0 to 1, higher is better, mean; 0 when nothing is said or wanted."""
    if measure not in ("f1", "precision", "recall"):
        raise ConfigError(f"measure '{measure}'", where=f"metric '{name}'", allowed="f1, precision, recall")

    def rate(example: Example, answer: Answer) -> float:
        answered = words(answer.text)

        def against(right: str) -> float:
            shared, of_wanted, of_answered = count(words(right), answered)
            if measure == "f1":
                return _f1(shared, of_answered, of_wanted)
            return shared / max(1, of_answered if measure == "precision" else of_wanted)

        return max(map(against, references(example)))

    return Metric(name=name, rate=rate)


@register("rouge1")
def rouge1(measure: Measure = "f1") -> Metric:
    """Shared words (Lin 2004). Range 0 to 1, higher is better, mean.

    Equal to rouge-score without stemming on ASCII. A word counts as often as answer and reference both have it; case and punctuation do not
    count, articles do.
    """
    return _rouge("rouge1", partial(rouge_n, n=1), measure)


@register("rouge2")
def rouge2(measure: Measure = "f1") -> Metric:
    """Shared pairs of neighbouring words (Lin 2004). As `rouge1` in all else."""
    return _rouge("rouge2", partial(rouge_n, n=2), measure)


@register("rougeL")
def rouge_longest(measure: Measure = "f1") -> Metric:
    """The longest common subsequence of words, of the whole text (Lin 2004). As `rouge1` in all else."""
    return _rouge("rougeL", rouge_l, measure)


def _error_rate(wanted: Sequence[str], answered: Sequence[str]) -> Measured:
    edits = float(need("rapidfuzz.distance", extra="eval").Levenshtein.distance(wanted, answered))
    if not wanted:
        return Measured(None if edits else 0.0, (edits, 0.0), "the reference is empty")
    return Measured(edits / len(wanted), (edits, float(len(wanted))))


@measured("wer", kind="pooled", pool=ratio_pool, better="lower", high=np.inf)
def wer(example: Example, answer: Answer) -> Measured:
    """Word error rate: edits (Levenshtein) over the reference's words, each summed. Range 0 and up, lower is better, pooled.

    Case and punctuation count, amounts of white space do not.
    """
    return _error_rate(example.answer.split(), answer.text.split())


@measured("cer", kind="pooled", pool=ratio_pool, better="lower", high=np.inf)
def cer(example: Example, answer: Answer) -> Measured:
    """Character error rate: edits over the reference's characters, each summed. Range 0 and up, lower is better, pooled."""
    return _error_rate(" ".join(example.answer.split()), " ".join(answer.text.split()))


@register("multilabel_f1")
def multilabel_f1(separator: str = ",") -> Metric:
    """Micro F1 of label sets written with a separator. Range 0 to 1, higher is better, pooled: (true pos., false pos., false neg.).

    A label that is said twice counts once; labels are compared in normal form (no case, punctuation or English articles), brackets around
    the list are left out.
    """

    def labels(text: str) -> frozenset[str]:
        return frozenset(label for part in text.strip("[] \n").split(separator) if (label := normalize(part)))

    def rate(example: Example, answer: Answer) -> Measured:
        wanted, answered = labels(example.answer), labels(answer.text)
        right = len(wanted & answered)
        value = _f1(right, len(answered), len(wanted)) if wanted or answered else 1.0
        return Measured(value, (float(right), float(len(answered) - right), float(len(wanted) - right)))

    return Metric(name="multilabel_f1", rate=rate, kind="pooled", pool=f1_pool)
