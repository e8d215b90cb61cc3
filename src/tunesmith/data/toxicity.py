"""Rows with offensive words, by a scorer that can be replaced; knows nothing about what is offensive beyond a short list of words.

A word list sees words, not meaning: it misses insults in polite words and flags quotations. Where that matters, name a scorer of your own:
a function from a list of texts to a list of numbers from 0 (harmless) to 1, such as a classifier's probability.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from tunesmith.core.errors import ConfigError
from tunesmith.core.load import resolve
from tunesmith.core.rows import Row
from tunesmith.core.types import Record
from tunesmith.data.row_rules import RowChange, Rule
from tunesmith.data.text import texts_of

Scorer = Callable[[Sequence[str]], Sequence[float]]


class Toxicity(Record, frozen=True):
    """Rows of which a text scores ≥ `threshold` are dropped, or kept (the scorer is not asked then). `scorer`: `module:function`."""

    action: Literal["drop", "keep"] = "keep"
    threshold: float = 0.5
    scorer: str = "tunesmith.data.toxicity:profanity"


def toxicity(settings: Toxicity) -> Rule:
    """The rule. Raises ConfigError for a threshold outside (0, 1], a scorer that is not there, or one that gives no numbers from 0 to 1."""
    if not 0 < settings.threshold <= 1:
        raise ConfigError(f"a score of {settings.threshold}", where="clean.toxicity", allowed="above 0 and up to 1")
    scorer: Any = resolve(settings.scorer, where="clean.toxicity.scorer")

    def rule(rows: Sequence[Row]) -> Iterator[RowChange]:
        texts = [(i, text) for i, row in enumerate(rows) for text in texts_of(row)]
        worst: dict[int, tuple[float, str]] = {}
        for (i, text), score in zip(texts, _scores(scorer, settings.scorer, [text for _, text in texts]), strict=True):
            worst[i] = max(worst.get(i, (0.0, "")), (score, text))
        for i, (score, text) in worst.items():
            if score >= settings.threshold:
                yield RowChange(i, "dropped", f"a text scores {score:.2f}, allowed is less than {settings.threshold}: {text[:60]!r}")

    return rule


def _scores(scorer: Scorer, name: str, texts: Sequence[str]) -> list[float]:
    scores = [float(score) for score in scorer(texts)]
    if len(scores) != len(texts) or not all(0 <= score <= 1 for score in scores):
        raise ConfigError(f"the scorer {name} gave {len(scores)} scores for {len(texts)} texts", allowed="one number from 0 to 1 a text")
    return scores


# Stems of common obscenities and insults; a word is listed when it begins with one, or is one that is marked with a final $.
_STEMS = (
    *("fuck", "motherfuck", "shit", "bullshit", "asshole", "arsehole", "bitch", "bastard$", "cunt", "dickhead", "wank", "bollocks$"),
    *("whore", "slut", "piss$", "pissed$", "prick$", "twat$", "douchebag", "jackass", "dumbass", "scheiß", "scheiss", "arschloch", "fick"),
    *("wichser", "hurensohn", "miststück", "merde$", "putain$", "connard", "salope", "enculé", "mierda", "pendejo", "gilipollas", "cabrón"),
    *("puta$", "hijoputa", "cazzo$", "stronzo", "vaffanculo", "kurwa", "блять", "сука$", "хуй"),
)
_WORDS = re.compile(r"\b(?:" + "|".join(stem.replace("$", r"\b") for stem in _STEMS) + ")")
_DISGUISED = re.compile(r"(?<!\w)(?=\S*[^\W\d_])[\w@$!]+")  # words with at least one letter: numbers and prices stay
_LOOKALIKES = str.maketrans({"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "@": "a", "$": "s", "!": "i"})


def profanity(texts: Sequence[str]) -> list[float]:
    """1 − 2⁻ⁿ of each text for n listed words; digits and signs that stand for letters (`sh1t`) are read as letters."""
    return [1 - 0.5 ** len(_WORDS.findall(_plain(text))) for text in texts]


def _plain(text: str) -> str:
    lowered = unicodedata.normalize("NFC", text).casefold()
    return _DISGUISED.sub(lambda match: match.group().translate(_LOOKALIKES), lowered)
