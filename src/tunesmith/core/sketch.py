"""Quantiles of positive values in bounded memory; knows nothing about what is measured.

DDSketch (Masson, Rim and Lee 2019, arXiv:1908.10693): one count a bucket, and each bucket is a little wider than the one below it. So
every quantile is within a relative error, whatever the values are distributed like, and two sketches add up to the sketch of both.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from itertools import chain

_ACCURACY = 0.01
_GAMMA = (1 + _ACCURACY) / (1 - _ACCURACY)
_LOG = math.log(_GAMMA)
_LEAST = 1e-9


class Sketch:
    """Counts by bucket: quantiles are within 1 %. Values below a nanosecond count as one."""

    __slots__ = ("buckets", "count")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0

    def add(self, value: float) -> None:
        """Count a value."""
        bucket = math.ceil(math.log(value if value > _LEAST else _LEAST) / _LOG)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1

    def merge(self, other: Sketch) -> None:
        """Count what another sketch counted."""
        mine = self.buckets
        for bucket, count in other.buckets.items():
            mine[bucket] = mine.get(bucket, 0) + count
        self.count += other.count

    def quantile(self, q: float) -> float:
        """The value at rank ⌊q (n − 1)⌋, from 0; NaN when nothing was counted."""
        return self.at(math.floor(q * (self.count - 1))) if self.count else math.nan

    def at(self, rank: int) -> float:
        """The value at a rank (from 0) of all that were counted; the largest for a rank beyond them. NaN when nothing was counted."""
        below, bucket = 0, None
        for bucket in sorted(self.buckets):
            below += self.buckets[bucket]
            if below > rank:
                break
        return math.nan if bucket is None else 2 * _GAMMA**bucket / (_GAMMA + 1)

    def packed(self) -> bytes:
        """The buckets and their counts, as `of` reads them: pairs of 32-bit numbers, the least byte first."""
        return struct.pack(f"<{2 * len(self.buckets)}i", *chain.from_iterable(self.buckets.items()))

    @classmethod
    def of(cls, packed: Iterable[bytes]) -> Sketch:
        """One sketch of all that were packed. Counted by numpy: thousands of them take milliseconds."""
        import numpy as np

        pairs = np.frombuffer(b"".join(packed), "<i4").reshape(-1, 2)
        buckets, places = np.unique(pairs[:, 0], return_inverse=True)
        counts = np.bincount(places, weights=pairs[:, 1]).astype(np.int64)
        whole = cls()
        whole.buckets = dict(zip(buckets.tolist(), counts.tolist(), strict=True))
        whole.count = sum(whole.buckets.values())
        return whole
