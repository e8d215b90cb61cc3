"""What the rows so far say of arms side by side, at any moment: bets on pairs and on whoever leads; knows nothing about when to stop.

Arms are numbers, 0 the cheapest. Three kinds of statement, each true at every moment together but for its share of α:

- `shown[i, j]`, about all rows like these: `i` is not worse than `j` by the margin or more. α/3 by bets; α/3 more by one interval of fixed
  size once the test set is through (`close`). A wrong one matters only against the truly best arm, so each is divided by the other arms.
- `not_best[i]`, about all rows like these: some arm is better. α/3. The bet is on whoever led before the piece, so many arms cost nothing.
- `behind[i]` and `not_better[i]`, about the mean over the test set, drawn without replacement: some arm is ahead of `i` by more than so
  much; some cheaper arm is ahead of it. α of their own.
"""

from __future__ import annotations

from math import inf, log

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.stats import Bets
from tunesmith.core.stats.records import Floats
from tunesmith.core.stats.sequential import HOPES

STEPS: Floats = np.array([0, 0.25, 0.5, 0.75, 1])
"""How far behind, in margins, an arm may be said to be on the whole test set."""


class RaceEvidence:
    """Fed with the scores of the next units (rows, or groups of rows) of the arms that are in."""

    def __init__(self, arms: int, margin: float, alpha: float, span: float, *, units: int | None = None, largest: int = 1) -> None:
        self.margin, self.alpha, self._arms, self._span, self._units, self._largest = margin, alpha, arms, span, units, largest
        pairs = [(i, j) for i in range(arms) for j in range(arms) if i != j]
        self._stream = np.full((arms, arms), -1)
        for stream, pair in enumerate(pairs):
            self._stream[pair] = stream
        self._all = Bets(len(pairs), [-margin, 0.0], (-span, span), largest=largest)
        self._whole = Bets(len(pairs), margin * STEPS, (-span, span), population=units, largest=largest)
        self._best = np.zeros((arms, HOPES.size))
        self._lead = np.zeros((arms, STEPS.size, HOPES.size))
        self._cheaper = np.zeros((arms, HOPES.size))
        self._means: Floats | None = None
        self.shown: NDArray[np.bool_] = np.zeros((arms, arms), dtype=bool)
        self.not_best: NDArray[np.bool_] = np.zeros(arms, dtype=bool)
        self.not_better: NDArray[np.bool_] = np.zeros(arms, dtype=bool)
        self.behind: Floats = np.full(arms, -inf)

    def anew(self) -> RaceEvidence:
        """The same without any rows."""
        return RaceEvidence(self._arms, self.margin, self.alpha, self._span, units=self._units, largest=self._largest)

    @property
    def _others(self) -> int:
        return max(1, self._arms - 1)

    @property
    def tail(self) -> float:
        """The error that each side of the last look's intervals may have."""
        return self.alpha / 3 / self._others

    def add(self, which: list[int], totals: Floats, sizes: Floats, means: Floats) -> None:
        """The next units of the arms `which`: their summed scores (arms × units), the rows in each unit, and the mean of each arm over all
        rows up to now, by which the next bets are placed."""
        place = {arm: row for row, arm in enumerate(which)}
        pairs = [(i, j) for i in which for j in which if i != j]
        streams = np.array([self._stream[pair] for pair in pairs], dtype=np.intp)
        rows = np.stack([totals[place[i]] - totals[place[j]] for i, j in pairs])
        gained = np.zeros((self._stream.size, 2, HOPES.size))
        gained_whole = np.zeros((self._stream.size, STEPS.size, HOPES.size))
        gained[streams] = self._all.add(rows, sizes, streams)
        gained_whole[streams] = self._whole.add(rows, sizes, streams)
        for i in which:
            rivals = [self._stream[j, i] for j in self._bet_on([j for j in which if j != i])]
            self._best[i] += _shared(gained[rivals, 1])
            self._lead[i] += _shared(gained_whole[rivals])
            if cheaper := [self._stream[j, i] for j in self._bet_on([j for j in which if j < i])]:
                self._cheaper[i] += _shared(gained_whole[cheaper, 0])
        self._means = means
        self._conclude(pairs, streams)

    def _bet_on(self, rivals: list[int]) -> list[int]:
        """Whoever led before this piece; all alike before the first."""
        if self._means is None or not rivals:
            return rivals
        means = self._means
        return [max(rivals, key=lambda j: float(means[j]))]

    def _conclude(self, pairs: list[tuple[int, int]], streams: NDArray[np.intp]) -> None:
        limit = log(3 * self._others / self.alpha)
        for (i, j), wealth, certain in zip(pairs, self._all.log_wealth[streams, 0], self._whole.log_wealth[streams] == inf, strict=True):
            self.shown[i, j] |= wealth >= limit
            if certain.any():  # no order of the rows that are left can change it
                self.behind[j] = max(self.behind[j], self.margin * STEPS[certain].max())
                self.not_better[j] |= i < j
        self.not_best |= _wealth(self._best) >= log(3 / self.alpha)
        self.not_better |= _wealth(self._cheaper) >= log(1 / self.alpha)
        led = np.where(_wealth(self._lead) >= log(1 / self.alpha), self.margin * STEPS, -inf)
        self.behind = np.maximum(self.behind, led.max(axis=1))


def _shared(gains: Floats) -> Floats:
    """What a stake gains that is spread alike over the first axis, as a logarithm."""
    shared: Floats = np.logaddexp.reduce(gains, axis=0) - log(len(gains))
    return shared


def _wealth(logs: Floats) -> Floats:
    wealth: Floats = np.logaddexp.reduce(logs, axis=-1) - log(HOPES.size)
    return wealth
