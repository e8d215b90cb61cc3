"""Compiled kernels: shingling a batch of text, and the exact set-similarity join; imported only where numba pays.

The join is PPJoin (Xiao, Wang, Lin, Yu: Efficient similarity joins for near-duplicate detection, 2008): two sets with Jaccard ≥ t
share one of the first n − ⌈t·n⌉ + 1 elements under any common order; positional filter; then true overlaps by merging. The order puts
rare elements first, by a table of counts without a dictionary: hash collisions in the table change only the speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit

Array = Any  # numpy arrays; numba gives their types at the first call
F = TypeVar("F", bound=Callable[..., Any])
# cached on disk, so that only the first process on a machine pays for compiling
_compiled: Callable[[F], F] = njit(cache=True)
_inlined: Callable[[F], F] = njit(cache=True, inline="always")

_M1, _M2, _GOLD = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_LETTER, _ALONE, _END = 1, 2, 3
_RARE = np.uint64(56)  # the top byte of a key is the bucket of its count; 0 means that it occurs once


@_inlined
def _mix(x: Any) -> Any:
    x = x + _GOLD
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@_compiled
def _shingle(points: Array, table: Array, size: int, out: Array, counts: Array, words: Array) -> int:
    """Fill `out` with the sorted sets of each text and `counts` with their sizes; returns how many hashes there are."""
    total = text = n_words = place = 0
    word, open_word = np.uint64(0), False
    for c in points:
        kind = table[c] if c < len(table) else _ALONE
        if open_word and kind != _LETTER:
            words[n_words] = _mix(word)
            n_words += 1
            open_word = False
        if kind == _LETTER:
            if not open_word:
                word, place, open_word = np.uint64(0), 0, True
            word += _mix(np.uint64(c) | (np.uint64(place) << _S32))
            place += 1
        elif kind == _ALONE:
            words[n_words] = _mix(_mix(np.uint64(c)))
            n_words += 1
        elif kind == _END:
            begin = total
            n_shingles = max(n_words - size + 1, 1) if n_words else 0
            for i in range(n_shingles):
                value = np.uint64(0)
                for j in range(i, min(i + size, n_words)):
                    value = _mix(value ^ words[j])
                out[total] = value
                total += 1
            _sort(out, begin, total)
            total = _distinct(out, begin, total)
            counts[text] = total - begin
            text += 1
            n_words = 0
    return total


@_compiled
def _sort(values: Array, begin: int, end: int) -> None:
    if end - begin > 48:
        values[begin:end] = np.sort(values[begin:end])
        return
    for i in range(begin + 1, end):
        value, j = values[i], i
        while j > begin and values[j - 1] > value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value


@_compiled
def _distinct(values: Array, begin: int, end: int) -> int:
    kept = begin
    for i in range(begin, end):
        if i == begin or values[i] != values[kept - 1]:
            values[kept] = values[i]
            kept += 1
    return kept


def shingle_batch(points: Array, table: Array, size: int) -> tuple[Array, Array]:
    """As `shingle._shingle_numpy`: hashes of every text's set, sorted within the text, and how many each has."""
    n_texts = int(np.count_nonzero(points == ord("\n")))
    out = np.empty(len(points), dtype=np.uint64)
    counts = np.empty(n_texts, dtype=np.int64)
    total = _shingle(points, table, size, out, counts, np.empty(len(points), dtype=np.uint64))
    return out[:total].copy(), counts


@_compiled
def ordered_keys(hashes: Array, starts: Array, order: Array, bits: int) -> tuple[Array, Array]:
    """Sets of the rows in `order`, each element as a key (bucket of its count, 56 bits of hash), ascending: rare elements first."""
    table = np.zeros(1 << bits, dtype=np.uint16)  # small enough for the cache; counts stop at the top
    shift = np.uint64(64 - bits)
    total = 0
    for row in order:
        total += starts[row + 1] - starts[row]
        for j in range(starts[row], starts[row + 1]):
            slot = hashes[j] >> shift
            if table[slot] < 65535:
                table[slot] += 1
    keys = np.empty(total, dtype=np.uint64)
    begins = np.zeros(len(order) + 1, dtype=np.int64)
    at = 0
    for i, row in enumerate(order):
        for j in range(starts[row], starts[row + 1]):
            keys[at] = (_bucket(table[hashes[j] >> shift]) << _RARE) | (hashes[j] >> np.uint64(8))
            at += 1
        begins[i + 1] = at
        _sort(keys, begins[i], at)
    return keys, begins


@_inlined
def _bucket(count: Any) -> Any:
    """Quarter octaves of a count: 1 → 0, 2 → 1, … below 128; grows with the count."""
    count = np.int64(count)
    if count < 2:
        return np.uint64(0)
    octave = 0
    while (count >> (octave + 1)) > 0:
        octave += 1
    quarter = ((count << 2) >> octave) & 3
    return np.uint64(4 * octave + quarter - 3)


@_inlined
def _ceil(x: float) -> int:
    """Ceiling that forgives rounding: 0.8 · 15 is 12, whatever its last bit says."""
    return int(np.ceil(x - 1e-9))


@_inlined
def _find(slots: Array, key: Any, mask: Any) -> Any:
    """The slot of a key in an open-addressing table, its own or the first free one (0 is free)."""
    at = np.int64(_mix(key) & mask)
    while slots[at] != 0 and slots[at] != key:
        at = np.int64(np.uint64(at + 1) & mask)
    return at


@_inlined
def _overlap(keys: Array, i: int, i_end: int, j: int, j_end: int, missing: int) -> int:
    """Common elements of two ascending runs, or -1 as soon as `missing` cannot be reached."""
    common = 0
    while i < i_end and j < j_end:
        if common + min(i_end - i, j_end - j) < missing:
            return -1
        if keys[i] == keys[j]:
            common, i, j = common + 1, i + 1, j + 1
        elif keys[i] < keys[j]:
            i += 1
        else:
            j += 1
    return common


@_compiled
def count_entries(begins: Array, keys: Array, threshold: float, cross: bool) -> int:
    """How many elements the join indexes: those of the prefixes that occur more than once."""
    total = 0
    for i in range(len(begins) - 1):
        n = begins[i + 1] - begins[i]
        for p in range(_prefix(n, threshold, cross)):
            total += (keys[begins[i] + p] >> _RARE) != 0
    return total


@_inlined
def _prefix(n: int, threshold: float, cross: bool) -> int:
    """Elements of a set to index. Rows come by ascending size, so the shorter prefix of PPJoin is enough."""
    if n == 0:
        return 0
    return int(n - _ceil(2 * threshold / (1 + threshold) * n) + 1)


@_compiled
def join(keys: Array, begins: Array, sides: Array, cross: bool, threshold: float, n_entries: int) -> tuple[Array, Array, Array]:
    """All pairs (i, j, Jaccard) with Jaccard ≥ threshold of rows that come by ascending size, j before i.

    With `cross` only pairs of different `sides` (0 or 1). Rows without elements are in no pair.
    """
    bits = 4
    while (1 << bits) < 2 * n_entries:
        bits += 1
    mask = np.uint64((1 << bits) - 1)
    slots = np.zeros(1 << bits, dtype=np.uint64)
    heads = np.full((2, 1 << bits), -1, dtype=np.int32)
    entry_row, entry_place = np.empty(n_entries, dtype=np.int32), np.empty(n_entries, dtype=np.int32)
    entry_next = np.empty(n_entries, dtype=np.int32)
    seen = np.full(len(begins) - 1, -1, dtype=np.int32)
    left, right, jaccard = np.empty(1024, dtype=np.int64), np.empty(1024, dtype=np.int64), np.empty(1024, dtype=np.float64)
    used = found = 0
    for i in range(len(begins) - 1):
        begin, end = begins[i], begins[i + 1]
        n = end - begin
        if n == 0:
            continue
        smallest, mine = _ceil(threshold * n), sides[i]
        other = 1 - mine if cross else mine
        for p in range(n - smallest + 1):
            if (keys[begin + p] >> _RARE) == 0:
                continue
            entry = heads[other, _find(slots, keys[begin + p], mask)]
            while entry >= 0:
                j = entry_row[entry]
                m = begins[j + 1] - begins[j]
                if m < smallest:
                    break  # entries come newest first, so by descending size
                if seen[j] != i:
                    seen[j] = i
                    needed = _ceil(threshold / (1 + threshold) * (n + m))
                    q = entry_place[entry]
                    if min(n - p, m - q) >= needed:
                        common = 1 + _overlap(keys, begin + p + 1, end, begins[j] + q + 1, begins[j + 1], needed - 1)
                        if common >= needed:
                            if found == len(left):
                                left, right = np.concatenate((left, left)), np.concatenate((right, right))
                                jaccard = np.concatenate((jaccard, jaccard))
                            left[found], right[found], jaccard[found] = i, j, common / (n + m - common)
                            found += 1
                entry = entry_next[entry]
        for p in range(_prefix(n, threshold, cross)):
            if (keys[begin + p] >> _RARE) == 0:
                continue
            slot = _find(slots, keys[begin + p], mask)
            slots[slot] = keys[begin + p]
            entry_row[used], entry_place[used], entry_next[used] = i, p, heads[mine, slot]
            heads[mine, slot] = used
            used += 1
    return left[:found].copy(), right[:found].copy(), jaccard[:found].copy()
