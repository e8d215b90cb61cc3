"""Compiled kernels: shingling a batch of text, and the exact set-similarity join; imported only where numba pays.

The join is PPJoin (Xiao, Wang, Lin, Yu: Efficient similarity joins for near-duplicate detection, 2008): two sets with Jaccard ≥ t
share one of the first n − ⌈t·n⌉ + 1 elements under any common order. The order puts rare elements first, by a table of counts without a
dictionary: hash collisions in the table change only the speed. Rows of one template share even those elements; what keeps them cheap is
the bitmap filter (Sandes, Teodoro, Melo: Bitmap filter: speeding up exact set similarity joins with bitwise operations, 2020): the
parities of a set's elements in 128 bits differ in no more bits than the sets differ in elements. What is left is counted by merging.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

Array = Any  # numpy arrays; numba gives their types at the first call
F = TypeVar("F", bound=Callable[..., Any])
# cached on disk, so that only the first process on a machine pays for compiling
_compiled: Callable[[F], F] = njit(cache=True)
_inlined: Callable[[F], F] = njit(cache=True, inline="always")

_M1, _M2, _GOLD = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)
_S27, _S30, _S31, _S32 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_LETTER, _ALONE, _END = 1, 2, 3
_S16, _S48, _S57, _S6 = np.uint64(16), np.uint64(48), np.uint64(57), np.uint64(6)
_LOW6, _LOW32 = np.uint64(63), np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)


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
    place = begin
    for i in range(begin, end):
        if i == begin or values[i] != values[place - 1]:
            values[place] = values[i]
            place += 1
    return place


def shingle_batch(points: Array, table: Array, size: int) -> tuple[Array, Array]:
    """As `shingle._shingle_numpy`: hashes of every text's set, sorted within the text, and how many each has."""
    n_texts = int(np.count_nonzero(points == ord("\n")))
    out = np.empty(len(points), dtype=np.uint64)
    counts = np.empty(n_texts, dtype=np.int64)
    total = _shingle(points, table, size, out, counts, np.empty(len(points), dtype=np.uint64))
    return out[:total].copy(), counts


@_compiled
def first_equal(hashes: Array, starts: Array, rows: Array) -> Array:
    """For each of the rows the first of them (by its number among them) whose set is equal; equal fingerprints are compared element by
    element."""
    n = len(rows)
    bits = 4
    while (1 << bits) < 2 * n:
        bits += 1
    mask = np.uint64((1 << bits) - 1)
    slots = np.full(1 << bits, -1, dtype=np.int32)
    first = np.empty(n, dtype=np.int32)
    for i in range(n):
        row = rows[i]
        fingerprint = np.uint64(starts[row + 1] - starts[row])
        for k in range(starts[row], starts[row + 1]):
            fingerprint = _mix(fingerprint ^ hashes[k])
        at = np.int64(fingerprint & mask)
        while slots[at] >= 0 and not _equal(hashes, starts, rows[slots[at]], row):
            at = np.int64(np.uint64(at + 1) & mask)
        if slots[at] < 0:
            slots[at] = i
        first[i] = slots[at]
    return first


@_inlined
def _equal(hashes: Array, starts: Array, i: int, j: int) -> bool:
    a, b, size = starts[i], starts[j], starts[i + 1] - starts[i]
    if starts[j + 1] - b != size:
        return False
    same = 0
    while same < size and hashes[a + same] == hashes[b + same]:
        same += 1
    return bool(same == size)


@_compiled
def lowest_linked(left: Array, right: Array, n: int) -> Array:
    """For each of n rows the lowest that it is linked to by pairs, in any number of steps: union by the lower root."""
    root = np.arange(n, dtype=np.int32)
    for k in range(len(left)):
        a, b = left[k], right[k]
        while root[a] != a:
            root[a] = root[root[a]]
            a = root[a]
        while root[b] != b:
            root[b] = root[root[b]]
            b = root[b]
        if a < b:
            root[b] = a
        else:
            root[a] = b
    for i in range(n):
        root[i] = root[root[i]]  # lower rows are settled by now
    return root


@_inlined
def _ceil(x: float) -> int:
    """Ceiling that forgives rounding: 0.8 · 15 is 12, whatever its last bit says."""
    return int(np.ceil(x - 1e-9))


@intrinsic  # type: ignore[untyped-decorator]
def _ones(typing: Any, x: Any) -> Any:
    """How many bits of a number are set, by the machine's own instruction."""
    return types.int64(types.uint64), lambda context, builder, signature, args: builder.ctpop(args[0])


@_compiled
def prefixes(hashes: Array, starts: Array, order: Array, threshold: float, bits: int) -> tuple[Array, Array, Array]:
    """The rarest elements of the rows in `order`, as many as must be probed, as keys (count, 48 bits of hash), ascending.

    Returns the keys, where each row's begin (n + 1), and how many of its elements come before them: those that occur once, which no
    other row can share.
    """
    counts = np.zeros(1 << bits, dtype=np.uint16)  # they stop at the top
    shift = np.uint64(64 - bits)
    total = longest = 0
    for row in order:
        n = starts[row + 1] - starts[row]
        longest = max(longest, n)
        total += n - _ceil(threshold * n) + 1
        for k in range(starts[row], starts[row + 1]):
            slot = hashes[k] >> shift
            if counts[slot] < 65535:
                counts[slot] += 1
    keys, begins = np.empty(total, dtype=np.uint64), np.zeros(len(order) + 1, dtype=np.int64)
    alone, own = np.zeros(len(order), dtype=np.int32), np.empty(longest, dtype=np.uint64)
    at = 0
    for i, row in enumerate(order):
        n = starts[row + 1] - starts[row]
        wanted, shared = n - _ceil(threshold * n) + 1 if n else 0, 0
        for k in range(starts[row], starts[row + 1]):
            count = counts[hashes[k] >> shift]
            if count > 1:
                own[shared] = (np.uint64(count) << _S48) | (hashes[k] >> _S16)
                shared += 1
        alone[i] = n - shared
        wanted = max(wanted - alone[i], 0)
        _smallest_first(own, shared, wanted)
        for k in range(wanted):
            keys[at + k] = own[k]
        at += wanted
        begins[i + 1] = at
    return keys[:at].copy(), begins, alone


@_inlined
def _smallest_first(values: Array, n: int, wanted: int) -> None:
    """The `wanted` smallest of the first n values to the front, ascending."""
    if wanted > 48:
        values[:n] = np.sort(values[:n])
        return
    for i in range(1, n):
        value, j = values[i], min(i, wanted)
        if i > j and (j == 0 or values[j - 1] <= value):
            continue  # not among them; what it would push out is not needed either
        while j > 0 and values[j - 1] > value:
            if j < wanted:
                values[j] = values[j - 1]
            j -= 1
        values[j] = value


@_compiled
def parities(hashes: Array, starts: Array, order: Array) -> tuple[Array, Array]:
    """128 bits for each row in `order`, as two halves: each element turns the bit that its hash names."""
    low, high = np.zeros(len(order), dtype=np.uint64), np.zeros(len(order), dtype=np.uint64)
    for i, row in enumerate(order):
        for k in range(starts[row], starts[row + 1]):
            bit = (hashes[k] * _GOLD) >> _S57
            if bit >> _S6:
                high[i] ^= _ONE << (bit & _LOW6)
            else:
                low[i] ^= _ONE << (bit & _LOW6)
    return low, high


@_compiled
def lists(
    keys: Array, begins: Array, alone: Array, sizes: Array, sides: Array, cross: bool, threshold: float
) -> tuple[Array, Array, Array]:
    """Which posting list each key is in (with `cross` its lists of side 0 and 1 are l and l + 1; -1: nobody indexes it), how many of a
    row's keys are indexed, and where each list begins."""
    indexed, total = np.zeros(len(sizes), dtype=np.int32), 0
    for i in range(len(sizes)):
        # rows come by ascending size, so the shorter prefix of PPJoin is enough to be found by larger ones
        indexed[i] = max(sizes[i] - _ceil(2 * threshold / (1 + threshold) * sizes[i]) + 1 - alone[i], 0) if sizes[i] else 0
        total += indexed[i]
    held, at = np.empty(total, dtype=np.uint64), 0
    for i in range(len(sizes)):
        for k in range(begins[i], begins[i] + indexed[i]):
            held[at] = keys[k]
            at += 1
    held = np.sort(held)
    held = held[: _distinct(held, 0, total)]  # a table of slots would take five times the memory
    step = 2 if cross else 1
    lengths = np.zeros(step * len(held) + 1, dtype=np.int32)
    list_of = np.empty(len(keys), dtype=np.int32)
    for i in range(len(sizes)):
        for k in range(begins[i], begins[i + 1]):
            at = _find(held, keys[k])
            list_of[k] = step * at if at >= 0 else -1
            if k < begins[i] + indexed[i]:
                lengths[list_of[k] + (sides[i] if cross else 0) + 1] += 1
    return list_of, indexed, np.cumsum(lengths)


@_inlined
def _find(values: Array, value: Any) -> int:
    """Where in ascending values one is, or -1."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low if low < len(values) and values[low] == value else -1


@_inlined
def _overlap(hashes: Array, i: int, i_end: int, j: int, j_end: int, needed: int) -> int:
    """Common elements of two ascending runs, or -1 as soon as `needed` cannot be reached."""
    common = 0
    while i < i_end and j < j_end:
        if common + min(i_end - i, j_end - j) < needed:
            return -1
        if hashes[i] == hashes[j]:
            common, i, j = common + 1, i + 1, j + 1
        elif hashes[i] < hashes[j]:
            i += 1
        else:
            j += 1
    return common


@_compiled
def join(hashes: Array, starts: Array, order: Array, sides: Array, cross: bool, threshold: float, bits: int) -> tuple[Array, Array, Array]:
    """All pairs (row, row, Jaccard) with Jaccard ≥ threshold of the rows in `order`, which come by ascending size. Each row's hashes
    ascend. With `cross` only pairs of different `sides` (0 or 1, one for each place in `order`). Rows without elements are in no pair."""
    sizes = starts[order + 1] - starts[order]
    keys, begins, alone = prefixes(hashes, starts, order, threshold, bits)
    low, high = parities(hashes, starts, order)
    list_of, indexed, first = lists(keys, begins, alone, sizes, sides, cross, threshold)
    keys = np.empty(0, dtype=np.uint64)  # their memory is wanted for the entries
    spans = np.empty((len(first) - 1, 2), dtype=np.int64)  # of each list its entries that are not yet too small, and where it ends by now
    spans[:, 0] = spans[:, 1] = first[:-1]
    entries = np.empty((first[-1], 2), dtype=np.uint64)  # half of the parities, which settles nearly all, then size and place in `order`
    seen = np.full(len(order), -1, dtype=np.int32)
    left, right, jaccard = np.empty(1024, dtype=np.int32), np.empty(1024, dtype=np.int32), np.empty(1024, dtype=np.float64)
    pairs, share = 0, threshold / (1 + threshold)
    # of sets with so many elements together at most so many may differ
    most = np.floor((1 - threshold) / (1 + threshold) * np.arange(2 * sizes.max() + 1) + 1e-6).astype(np.int64)
    for i in range(len(order)):
        n, a, mine_low, mine_high = sizes[i], order[i], low[i], high[i]
        smallest, mine, other = _ceil(threshold * n), sides[i] if cross else 0, 1 - sides[i] if cross else 0
        for k in range(begins[i], begins[i + 1]):
            if list_of[k] < 0:
                continue
            at = list_of[k] + other
            while spans[at, 0] < spans[at, 1] and entries[spans[at, 0], 1] >> _S32 < smallest:
                spans[at, 0] += 1  # too small for this row, so for all that come later
            for e in range(spans[at, 0], spans[at, 1]):
                m = np.int64(entries[e, 1] >> _S32)
                differ = _ones(mine_low ^ entries[e, 0])
                if differ > most[n + m]:
                    continue
                j = np.int64(entries[e, 1] & _LOW32)
                if seen[j] == i or differ + _ones(mine_high ^ high[j]) > most[n + m]:
                    continue
                seen[j] = i
                b, needed = order[j], _ceil(share * (n + m))
                common = _overlap(hashes, starts[a], starts[a + 1], starts[b], starts[b + 1], needed)
                if common < needed:
                    continue
                if pairs == len(left):
                    left, right = np.concatenate((left, left)), np.concatenate((right, right))
                    jaccard = np.concatenate((jaccard, jaccard))
                left[pairs], right[pairs], jaccard[pairs] = a, b, common / (n + m - common)
                pairs += 1
        for k in range(begins[i], begins[i] + indexed[i]):
            at = list_of[k] + mine
            e = spans[at, 1]
            entries[e, 0], entries[e, 1] = mine_low, (np.uint64(n) << _S32) | np.uint64(i)
            spans[at, 1] += 1
    return left[:pairs].copy(), right[:pairs].copy(), jaccard[:pairs].copy()
