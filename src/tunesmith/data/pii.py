"""Personal data and secrets that patterns find whole: where they are, and how they are taken out; knows nothing about names and addresses.

Persons and postal addresses need a language model and are not looked for here.

Many texts are searched as one: a find for each anchor ('@', 'sk-', 'eyJ' …) over the joined text costs far less than a pattern a row.
"""

from __future__ import annotations

import hashlib
import hmac
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from tunesmith.core.errors import ConfigError, nearest
from tunesmith.core.types import Record
from tunesmith.data.pii_patterns import PersonalSpan, search

KINDS = ("email", "phone", "card", "iban", "ip", "date_of_birth", "ssn", "api_key", "jwt", "private_key", "password")
BATCH_CHARS = 400_000
_END = "\x00"


class PersonalData(Record, frozen=True):
    """What is done about personal data and secrets.

    `action`: 'report' counts them, 'redact' writes `<EMAIL>`, 'pseudonymise' writes `<EMAIL_3fa9c1>` (the same value has the same name
    everywhere, by a hash with `salt`; keep the salt secret), 'drop' takes the row out, 'keep' does not look.
    """

    action: Literal["report", "redact", "pseudonymise", "drop", "keep"] = "report"
    kinds: tuple[str, ...] = KINDS
    salt: str = "tunesmith"


def find(text: str, kinds: Sequence[str] = KINDS) -> list[PersonalSpan]:
    """What is in one text, by place; spans do not overlap."""
    return find_all([text], kinds)[0]


def find_all(texts: Sequence[str], kinds: Sequence[str] = KINDS) -> list[list[PersonalSpan]]:
    """What is in each text, by place. Raises ConfigError for an unknown kind."""
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"no kind of personal data is called '{kind}'", allowed=", ".join(KINDS), remedy=nearest(kind, KINDS))
    by_text: list[list[PersonalSpan]] = [[] for _ in texts]
    wanted = frozenset(kinds)
    plain = [text.isascii() for text in texts]
    # apart: one letter beyond ASCII makes a joined text two to four times as wide, and every search in it slower
    for alike in (True, False):
        which = [i for i, ascii_only in enumerate(plain) if ascii_only is alike]
        for first, starts, joined in _batches([texts[i] for i in which]):
            end = 0
            for span in search(joined):
                if span.start >= end:
                    end = span.end
                    if span.kind in wanted:
                        at = bisect_right(starts, span.start) - 1
                        by_text[which[first + at]].append(PersonalSpan(span.kind, span.start - starts[at], span.end - starts[at]))
    return by_text


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, list[int], str]]:
    """Index of the first text, where each text starts in the joined one, and the joined text."""
    first, starts, length = 0, [0], 0
    for i, text in enumerate(texts):
        length += len(text) + 1
        if length >= BATCH_CHARS or i == len(texts) - 1:
            yield first, starts, _END.join(texts[first : i + 1]) + _END
            first, starts, length = i + 1, [0], 0
        else:
            starts.append(length)


# --- taking it out -------------------------------------------------------------------------------------------------------------------


def replace(text: str, spans: Sequence[PersonalSpan], *, salt: str | None = None) -> str:
    """The text with each span as `<KIND>`, or with a `salt` as `<KIND_xxxxxx>`: six hex digits of HMAC-SHA-256 over the value, written
    without spaces and in lower case, so that one value has one name in every row, file and run."""
    parts, at = [], 0
    for span in spans:
        name = span.kind.upper()
        if salt is not None:
            value = "".join(text[span.start : span.end].lower().split())
            name += "_" + hmac.new(salt.encode(), f"{span.kind}:{value}".encode(), hashlib.sha256).hexdigest()[:6]
        parts += [text[at : span.start], f"<{name}>"]
        at = span.end
    return "".join([*parts, text[at:]])


def count(by_row: Sequence[Sequence[PersonalSpan]]) -> dict[str, int]:
    """How many rows have each kind, most first."""
    return dict(Counter(kind for spans in by_row for kind in {span.kind for span in spans}).most_common())
