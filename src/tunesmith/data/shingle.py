"""Texts → sets of 64-bit shingle hashes in any script, as one flat array; knows nothing about what the sets are compared for.

A shingle is `size` adjacent words. Words are runs of letters, digits and marks; each character of a script that is written without
spaces (Han, kana, Thai, Lao, Khmer, Burmese …) and each symbol or emoji is a word of its own; punctuation separates. A text with fewer
than `size` words has one shingle, all its words; a text without words has one, itself; an empty text has none. Texts are normalised
first (`text.normalised`).

The hash of a word is the sum over its characters of mix(character, place), so that numpy and numba give the same numbers.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tunesmith.core.counted import counted
from tunesmith.core.errors import ConfigError
from tunesmith.data.text import folded, normalised

BATCH_CHARS = 1_000_000
BATCH_TEXTS = 50_000
SEPARATE, LETTER, ALONE, END = 0, 1, 2, 3
_TABLE_SIZE = 0x20000  # beyond: rare ideographs, which stand alone
_ALONE = (
    *((0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3040, 0x30FF), (0x31F0, 0x31FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)),
)


class Shingles(NamedTuple):
    """Sets of hashes of n texts: those of text i are `hashes[starts[i]:starts[i + 1]]`, each once. uint64, int64 (n + 1)."""

    hashes: np.ndarray[Any, np.dtype[np.uint64]]
    starts: np.ndarray[Any, np.dtype[np.int64]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def compacted(self, which: np.ndarray[Any, np.dtype[np.bool_]]) -> Shingles:
        """The sets of the texts that `which` (n) says, in their order, moved to the front of the same array: these sets are used up."""
        sizes = np.diff(self.starts)
        end = 0
        for first in range(0, len(which), BATCH_TEXTS):  # not all at once: that would hold most of them twice
            part = slice(first, first + BATCH_TEXTS)
            low, high = self.starts[first], self.starts[min(first + BATCH_TEXTS, len(which))]
            chosen = self.hashes[low:high][np.repeat(which[part], sizes[part])]
            self.hashes[end : end + len(chosen)] = chosen
            end += len(chosen)
        return Shingles(self.hashes[:end], np.concatenate([[0], np.cumsum(sizes[which])]))


def joined(several: Sequence[Shingles]) -> Shingles:
    """The sets of several lists of texts as those of one."""
    sizes = np.concatenate([np.diff(sets.starts) for sets in several])
    return Shingles(np.concatenate([sets.hashes for sets in several]), np.concatenate([[0], np.cumsum(sizes)]))


@cache
def character_classes() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The class of each code point below 0x20000: SEPARATE, LETTER or ALONE; the line feed ends a text."""
    kinds = {"L": LETTER, "N": LETTER, "M": LETTER, "S": ALONE}
    table = np.array([kinds.get(unicodedata.category(chr(point))[0], SEPARATE) for point in range(_TABLE_SIZE)], dtype=np.uint8)
    for first, last in _ALONE:
        block = table[first : last + 1]
        block[block == LETTER] = ALONE
    table[ord("\n")] = END
    return table


def code_points(texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The texts as code points, case folded and in NFKC, each ended by a line feed (those inside become spaces)."""
    joined = "\n".join([folded(text).replace("\n", " ") for text in texts]) + "\n"
    return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def shingles(texts: Sequence[str], *, size: int = 2, compiled: bool | None = None) -> Shingles:
    """The shingle sets of texts. `compiled` None uses numba when there are many texts; both ways give the same sets.

    Memory: 8 bytes a shingle, and a batch of about a million characters. Raises ConfigError when size is not 1 to 8.
    """
    if not 1 <= size <= 8:
        raise ConfigError(f"a shingle of {counted(size, 'word')}", allowed="1 to 8 words")
    compiled = len(texts) >= 5_000 if compiled is None else compiled
    if compiled:
        from tunesmith.data.join import shingle_batch
    else:
        shingle_batch = _shingle_numpy
    hashes, counts = [], []
    for start, stop in _batches(texts):
        hashed, lengths = shingle_batch(code_points(texts[start:stop]), character_classes(), size)
        hashed, lengths = _wordless(texts[start:stop], hashed, lengths)
        hashes.append(hashed)
        counts.append(lengths)
    starts = np.zeros(len(texts) + 1, dtype=np.int64)
    if counts:
        np.cumsum(np.concatenate(counts), out=starts[1:])
    return Shingles(np.concatenate(hashes) if hashes else np.zeros(0, dtype=np.uint64), starts)


def _wordless(texts: Sequence[str], hashes: Any, counts: Any) -> tuple[Any, Any]:
    """Texts of punctuation alone get one shingle, the whole text, so that equal ones are found."""
    empty = [(i, text) for i in np.flatnonzero(counts == 0).tolist() if (text := normalised(texts[i]))]
    if not empty:
        return hashes, counts
    starts = np.cumsum(counts) - counts
    values = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") for _, text in empty]
    where = [i for i, _ in empty]
    counts[where] = 1
    return np.insert(hashes, starts[where], np.array(values, dtype=np.uint64)), counts


def _batches(texts: Sequence[str]) -> list[tuple[int, int]]:
    batches, start, chars = [], 0, 0
    for i, text in enumerate(texts):
        chars += len(text) + 1
        if chars >= BATCH_CHARS:
            batches.append((start, i + 1))
            start, chars = i + 1, 0
    return [*batches, (start, len(texts))] if start < len(texts) else batches


_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLD = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit numbers."""
    x = x + _GOLD
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


def _shingle_numpy(
    points: np.ndarray[Any, np.dtype[np.uint32]], table: np.ndarray[Any, np.dtype[np.uint8]], size: int
) -> tuple[np.ndarray[Any, np.dtype[np.uint64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Hashes of every text's set, sorted within the text, and how many each has."""
    kinds = np.where(points < _TABLE_SIZE, table[np.minimum(points, _TABLE_SIZE - 1)], ALONE)
    text_of = np.cumsum(kinds == END) - (kinds == END)
    n_texts = int((kinds == END).sum())
    inside = (kinds == LETTER) | (kinds == ALONE)
    before = np.concatenate([[SEPARATE], kinds[:-1]])
    first = inside & ~((kinds == LETTER) & (before == LETTER))
    where = np.flatnonzero(inside)
    begins = np.flatnonzero(first)
    if len(begins) == 0:
        return np.zeros(0, dtype=np.uint64), np.zeros(n_texts, dtype=np.int64)
    word_of = np.cumsum(first)[where] - 1
    place = (where - begins[word_of]).astype(np.uint64)
    with np.errstate(over="ignore"):
        letters = _mix(points[where].astype(np.uint64) | (place << np.uint64(32)))
        words = _mix(np.add.reduceat(letters, np.flatnonzero(first[where])))
    word_text = text_of[begins]
    n_words = np.bincount(word_text, minlength=n_texts)
    return _sets(words, n_words, size)


def _sets(words: np.ndarray[Any, Any], n_words: np.ndarray[Any, Any], size: int) -> tuple[Any, Any]:
    """Sets of shingles from the word hashes of all texts in a row."""
    n_shingles = np.where(n_words == 0, 0, np.maximum(n_words - size + 1, 1))
    offsets = np.concatenate([[0], np.cumsum(n_words)[:-1]])
    text = np.repeat(np.arange(len(n_words)), n_shingles)
    start = np.arange(len(text)) - np.repeat(np.cumsum(n_shingles) - n_shingles, n_shingles) + offsets[text]
    last = offsets[text] + n_words[text]
    value = np.zeros(len(text), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for step in range(size):
            there = start + step < last
            value[there] = _mix(value[there] ^ words[(start + step)[there]])
    order = np.lexsort((value, text))
    text, value = text[order], value[order]
    fresh = np.ones(len(text), dtype=bool)
    fresh[1:] = (text[1:] != text[:-1]) | (value[1:] != value[:-1])
    return value[fresh], np.bincount(text[fresh], minlength=len(n_words))
