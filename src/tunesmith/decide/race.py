"""Arms side by side, shard by shard: who need not be asked any more, and when the decision stands; knows nothing about what an arm is.

After each shard the evidence (`evidence.py`, true however often one looks) answers two questions: which arm is within the margin of the
best, for all rows like these; and what will the whole test set say. An arm is dropped that cannot be the cheapest that suffices, or that
all rows together would not show to suffice. A third question needs no guard, for it claims nothing: can the rows that are left settle it?
If hardly, the race ends open: "cannot tell" after half of the rows is what all of them would have said.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, UsageError, nearest
from tunesmith.core.stats import paired_difference
from tunesmith.core.stats.clustered import centred, mean_spread
from tunesmith.core.stats.distributions import z_cdf, z_quantile
from tunesmith.core.stats.intervals import far_row
from tunesmith.core.stats.records import Floats, cluster_codes, share
from tunesmith.core.types import Record
from tunesmith.decide.evidence import RaceEvidence

Why = Literal["worse", "dearer and not better", "cannot be shown", "withdrawn"]
_HARDLY = 0.25  # a chance that is not worth the rows that are left
_EVEN = 0.5
_FEW = 20  # units, before which a spread is not trusted to say that the rest cannot settle it


class Dropped(Record, frozen=True):
    """Why an arm is asked no more, after how many rows, and against which arm. `difference` is its mean minus that arm's on these rows."""

    why: Why
    against: str
    rows: int
    difference: float
    reason: str


class RaceOutcome(Record, frozen=True):
    """What the race says now. `sure`: `chosen` was shown to be within the margin of every arm (but those withdrawn). `undecided` are the
    cheaper arms that are neither shown to be within the margin nor to be worse than the chosen one by more."""

    chosen: str
    sure: bool
    undecided: tuple[str, ...]
    reason: str


class Race:
    """Feed it the scores of the next rows of the arms in `open`, until it is `decided`.

    `arms` go from the cheapest to the dearest; scores lie within `bounds`, higher is better. `clusters` names the group of each row of the
    test set in the order in which rows are asked (random, groups whole: `asking_order`), `rows` counts them where there are no groups. With
    neither there is no end in sight: nothing is said about a whole, and only what is shown for all rows like these counts.
    """

    def __init__(
        self,
        arms: Sequence[str],
        margin: float,
        alpha: float = 0.05,
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        rows: int | None = None,
        clusters: Sequence[Hashable] | None = None,
    ) -> None:
        self.arms, self.margin, self.alpha = list(arms), _checked(arms, margin), share(alpha, "alpha")
        self.rows = len(clusters) if clusters is not None else rows
        self._codes = _whole_groups(clusters)
        sizes = None if self._codes is None else np.bincount(self._codes)
        units, largest = (self.rows, 1) if sizes is None else (sizes.size, int(sizes.max()))
        span = bounds[1] - bounds[0]
        self._evidence = RaceEvidence(len(self.arms), margin, self.alpha, span, units=units, largest=largest)
        self._units, self._span, self._least = units, span, bounds[0]
        self._spread = np.zeros((len(self.arms), len(self.arms)))  # the standard error that a difference will have over the whole test set
        self._scores: list[Floats] = [np.zeros(0) for _ in arms]
        self.dropped: dict[str, Dropped] = {}
        self._futile = False

    @property
    def open(self) -> list[str]:
        """The arms that the next rows are to be asked of, cheapest first; none when it is decided."""
        return [] if self.decided else self._left()

    @property
    def asked(self) -> int:
        """How many rows the arms that are still in were asked."""
        return max(scores.size for scores in self._scores)

    @property
    def decided(self) -> bool:
        """Whether more rows change nothing, or there are none, or they would hardly settle it."""
        return self._futile or len(self._left()) == 1 or self._suffices() is not None or self.asked == self.rows

    def shards(self, size: int) -> list[range]:
        """The test set in pieces of about `size` rows that leave groups whole."""
        if self.rows is None or size < 1:
            raise UsageError(f"shards of {size} of {self.rows} rows", allowed="a race that knows its rows, 1 row or more a shard")
        cuts = list(range(0, self.rows, size))
        if self._codes is not None:
            starts = np.flatnonzero(np.diff(self._codes, prepend=-1))
            cuts = sorted({int(starts[np.searchsorted(starts, cut, "right") - 1]) for cut in cuts})
        return [range(a, b) for a, b in zip(cuts, [*cuts[1:], self.rows], strict=True)]

    def add(self, scores: Mapping[str, Sequence[float]]) -> None:
        """The scores of the same next rows for each arm of `open`. Raises UsageError for other arms, DataError for other lengths, missing
        scores or ones beyond the bounds, and for a group that is cut."""
        names = self.open
        if not names:
            raise UsageError("rows for a race that is decided", allowed="none: see its outcome")
        if set(scores) != set(names):
            raise UsageError(f"scores of {sorted(scores)}", allowed=f"one row of scores for each arm that is still in: {', '.join(names)}")
        counts = {len(row) for row in scores.values()}
        if len(counts) != 1:
            raise DataError(f"{sorted(counts)} scores of the same rows", allowed="as many for each arm")
        start, stop = self.asked, self.asked + counts.pop()
        if self.rows is not None and stop > self.rows:
            raise DataError(f"{stop} rows", allowed=f"{self.rows}, which the test set has")
        which = [self.arms.index(name) for name in names]
        self._bet(which, np.array([scores[name] for name in names], dtype=np.float64) - self._least, start, stop)
        for i, name in zip(which, names, strict=True):
            self._scores[i] = np.concatenate([self._scores[i], np.asarray(scores[name], dtype=np.float64) - self._least])
        self._look()

    def withdraw(self, arm: str, reason: str) -> None:
        """Take an arm out for a reason that is not its score (it broke, it is too slow): nothing is compared with it any more."""
        if arm not in self._left() or len(self._left()) == 1:
            raise UsageError(f"withdraw '{arm}'", allowed=f"an arm that is still in, and not the last: {', '.join(self._left())}")
        rows = self._scores[self.arms.index(arm)].size
        self.dropped[arm] = Dropped(why="withdrawn", against=arm, rows=rows, difference=0.0, reason=reason)
        self._evidence, start = self._evidence.anew(), 0
        within = [i for i, name in enumerate(self.arms) if self._why(name) != "withdrawn"]
        for stop in sorted({self._scores[i].size for i in within} - {0}):  # what was said because of this arm is forgotten
            which = [i for i in within if self._scores[i].size >= stop]
            if len(which) > 1:
                self._bet(which, np.stack([self._scores[i][start:stop] for i in which]), start, stop)
            start = stop

    def outcome(self) -> RaceOutcome:
        """What stands now; sound at any moment, also when somebody else ends the race (a budget)."""
        means = {name: self._mean(self.arms.index(name)) for name in self._left()}
        chosen = self._suffices() or max(self._left(), key=lambda name: (means[name], -self.arms.index(name)))
        i = self.arms.index(chosen)
        sure = all(self._within(i, j) for j, name in enumerate(self.arms) if self._why(name) != "withdrawn")
        undecided = tuple(name for name in self.arms[:i] if self._why(name) in (None, "cannot be shown") and not self._worse(name, i))
        if sure:
            reason = f"{chosen} is within {self.margin:g} of every arm"
        else:
            rest = ", and there are no more" if self.asked == self.rows else ""
            reason = f"{chosen} has the best score, but {self.asked} rows do not show that it is within {self.margin:g} of every arm{rest}"
        return RaceOutcome(chosen=chosen, sure=sure, undecided=undecided, reason=reason)

    def _why(self, name: str) -> Why | None:
        return self.dropped[name].why if name in self.dropped else None

    def _worse(self, name: str, j: int) -> bool:
        """Whether the rows that an arm was asked show that it is worse than another by more than the margin."""
        scores = self._scores[self.arms.index(name)]
        n = scores.size
        codes = None if self._codes is None else self._codes[:n]
        if n < 2 or (codes is not None and codes[0] == codes[-1]):
            return False
        level = 1 - self.alpha / max(1, len(self.arms) - 1)
        return paired_difference(self._scores[j][:n], scores, codes, level, self._span).high < -self.margin

    def _within(self, i: int, j: int) -> bool:
        """Whether it was shown that an arm is within the margin of another, or need not be: the other is not the best."""
        return i == j or bool(self._evidence.shown[i, j] or self._evidence.not_best[j])

    def _left(self) -> list[str]:
        return [name for name in self.arms if name not in self.dropped]

    def _mean(self, i: int) -> float:
        return float(self._scores[i].mean()) if self._scores[i].size else 0.0

    def _suffices(self) -> str | None:
        """The cheapest arm that is left, where it was shown to be within the margin of all that are left."""
        left = [self.arms.index(name) for name in self._left()]
        first = left[0]
        return self.arms[first] if len(left) > 1 and all(self._within(first, j) for j in left[1:]) else None

    def _bet(self, which: list[int], scores: Floats, start: int, stop: int) -> None:
        sizes: Floats = np.ones(stop - start)
        if self._codes is not None:
            codes = self._codes[start:stop]
            if stop < len(self._codes) and self._codes[stop] == codes[-1]:
                raise DataError(f"the group of row {stop} is cut", allowed="whole groups of rows: Race.shards")
            sizes = np.bincount(codes - codes[0]).astype(np.float64)
            scores = np.stack([np.bincount(codes - codes[0], weights=row) for row in scores])
        means = np.zeros(len(self.arms))
        means[which] = (np.array([self._scores[i][:start].sum() for i in which]) + scores.sum(axis=1)) / stop
        self._evidence.add(which, scores, sizes, means)

    def _look(self) -> None:
        """Drop who cannot be the decision, and see whether the rest can be settled."""
        self._measure_spread()
        if self.asked == self.rows:
            self._close()
        for name in self._left():
            if len(self._left()) > 1 and (fate := self._fate(self.arms.index(name))) is not None:
                self.dropped[name] = fate
        self._futile = not self.decided and self._hardly()

    def _fate(self, i: int) -> Dropped | None:
        """The reason to drop an arm: the cheapest one that is left is within the margin of it, and likely to suffice; a cheaper one is
        ahead, so it cannot be the cheapest that suffices; it is worse; all rows together would not show that it suffices. Not while the
        rows that are left may yet show that it is not the best, or that the leader is within the margin of it."""
        left = [self.arms.index(name) for name in self._left()]
        first, leader = left[0], self._leader([j for j in left if j != i])
        evidence, margin = self._evidence, f"{self.margin:g}"
        if i != first and evidence.shown[first, i] and self._chance(first, self._leader(left)) >= _EVEN:
            return self._drop(i, first, "dearer and not better", f"is dearer than {self.arms[first]}, which is within {margin} of it")
        if not self._within(leader, i) and self._chance(leader, i) > _HARDLY:
            return None
        if evidence.not_better[i] and i != first:
            cheaper = self._leader([j for j in left if j < i])
            return self._drop(i, cheaper, "dearer and not better", f"is dearer and not better than {self.arms[cheaper]}")
        if evidence.behind[i] >= self.margin:
            return self._drop(i, leader, "worse", f"is worse than {self.arms[leader]} by more than {margin}")
        if self.rows is not None and evidence.behind[i] >= max(0.0, self.margin - self._reach() * self._spread[i, leader]):
            words = f"would not be shown to be within {margin} of {self.arms[leader]} by all {self.rows} rows"
            return self._drop(i, leader, "cannot be shown", words)
        return None

    def _leader(self, arms: Sequence[int]) -> int:
        return max(arms, key=lambda j: (self._mean(j), -j))

    def _drop(self, i: int, j: int, why: Why, words: str) -> Dropped:
        n = self._scores[i].size
        gap = self._mean(i) - float(self._scores[j][:n].mean())
        return Dropped(why=why, against=self.arms[j], rows=n, difference=gap, reason=f"{self.arms[i]} {words}")

    def _reach(self) -> float:
        """Standard errors that the last look's interval reaches to one side."""
        return z_quantile(1 - self._evidence.tail)

    @property
    def _seen(self) -> int:
        """How many units the arms that are in were asked."""
        return self.asked if self._codes is None or not self.asked else int(self._codes[self.asked - 1]) + 1

    def _measure_spread(self) -> None:
        """The standard error that the difference of each pair that is still in will have over the whole test set."""
        left = [self.arms.index(name) for name in self._left()]
        codes = None if self._codes is None else self._codes[: self.asked]
        if self._units is None or self._seen < 2:
            return
        for a, i in enumerate(left):
            for j in left[a + 1 :]:
                _, residuals = centred(self._scores[i] - self._scores[j])
                variance = mean_spread(residuals, codes).variance + self._span**2 * far_row(1.0, self._seen)
                self._spread[i, j] = self._spread[j, i] = sqrt(variance * self._seen / self._units)

    def _chance(self, i: int, j: int) -> float:
        """How likely it is, as far as the rows so far say, that all rows together will show that `i` is within the margin of `j`."""
        if self._within(i, j):
            return 1.0
        if self._units is None or self._seen in (0, self._units) or self._spread[i, j] == 0:
            return 0.0
        gap = self._mean(i) - self._mean(j)
        edge = gap + self.margin - self._reach() * self._spread[i, j]
        return z_cdf(edge / (self._spread[i, j] * self._still()))

    def _still(self) -> float:
        """How far the rows that are left can move a difference, in standard errors over the whole test set."""
        return sqrt(self._units / self._seen - 1) if self._units else 0.0

    def _close(self) -> None:
        """All rows are in: the paired interval of fixed size decides who is within the margin."""
        left = [self.arms.index(name) for name in self._left()]
        clusters = None if self._codes is None else self._codes
        level = 1 - 2 * self._evidence.tail
        for i in left:
            for j in left:
                if i != j and not self._within(i, j):
                    found = paired_difference(self._scores[j], self._scores[i], clusters, level, self._span)
                    self._evidence.shown[i, j] = found.low > -self.margin

    def _hardly(self) -> bool:
        """Whether the rows that are left would hardly show that a cheap arm suffices, or put another arm in front."""
        if self._units is None or self._seen < _FEW:
            return False
        left = [self.arms.index(name) for name in self._left()]
        means = {i: self._mean(i) for i in left}
        leader = self._leader(left)
        for i in left:
            others = [j for j in left if j != i]
            if i <= leader and min((self._chance(i, j) for j in others if not self._within(i, j)), default=0.0) > _HARDLY:
                return False
            behind = means[leader] - means[i] + self.margin / 2
            if i != leader and z_cdf(-behind / (self._still() * self._spread[i, leader])) > _HARDLY:
                return False
        return True


def asking_order(rows: int, clusters: Sequence[Hashable] | None = None, seed: int = 0) -> list[int]:
    """The rows of a test set in random order with groups whole, as a race needs them."""
    codes = cluster_codes(clusters, rows)
    rng = np.random.default_rng(seed)
    if codes is None:
        return [int(i) for i in rng.permutation(rows)]
    place = rng.permutation(int(codes.max()) + 1)
    return [int(i) for i in np.argsort(place[codes], kind="stable")]


def _checked(arms: Sequence[str], margin: float) -> float:
    twice = sorted({name for name in arms if list(arms).count(name) > 1})
    if twice or len(arms) < 2:
        raise UsageError(
            f"the arms {list(arms)}", allowed="two or more with distinct names", remedy=nearest(twice[0], arms) if twice else ""
        )
    if not margin > 0:
        raise UsageError(f"a margin of {margin:g}", allowed="more than 0, in the metric's unit")
    return float(margin)


def _whole_groups(clusters: Sequence[Hashable] | None) -> NDArray[np.intp] | None:
    codes = None if clusters is None else cluster_codes(clusters, len(clusters))
    if codes is not None and np.any(np.diff(codes) < 0):
        raise UsageError("rows of one group do not stand together", remedy="ask the rows in the order of asking_order")
    return codes
