"""The words of a text in any script; knows nothing about what is counted with them.

Words are runs of letters, digits and marks, lower-cased; in scripts written without spaces each character is a word. On ASCII these are
rouge-score's words.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_ASCII = re.compile(r"[a-z0-9]+")
# Thai and Lao, Myanmar, Khmer, kana, Han: first and last code points of the scripts without spaces between words (Hangul has them).
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)


@lru_cache(maxsize=4096)
def words(text: str) -> tuple[str, ...]:
    """The words of a text in any script."""
    lowered = text.lower()
    if lowered.isascii():
        return tuple(_ASCII.findall(lowered))
    return tuple("".join(map(_place, unicodedata.normalize("NFC", lowered))).split())


@lru_cache(maxsize=65536)
def _place(character: str) -> str:
    if unicodedata.category(character)[0] not in "LNM":
        return " "
    code = ord(character)
    alone = any(first <= code <= last for first, last in _UNSPACED) and unicodedata.category(character)[0] != "M"
    return f" {character}" if alone else character
