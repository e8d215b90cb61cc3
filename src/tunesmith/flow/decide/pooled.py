"""The decision by a metric that is pooled over rows (micro F1, BLEU, error rates), whose value is not the mean of what single rows are
worth: an arm that answers nothing is right on every row where there is nothing to say, and worth nothing. Asks nobody.

Such values are compared as everywhere else (`evaluate/compare.py`). No statement about them holds at every look, so no arm leaves early:
all are asked the same rows until these or the budget end.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from tunesmith.core.errors import DataError
from tunesmith.core.stats import Difference, Interval
from tunesmith.core.types import Score
from tunesmith.decide.records import MeasuredArm
from tunesmith.evaluate.compare import compare, estimate
from tunesmith.evaluate.metrics import Metric
from tunesmith.flow.decide.racing import Raced


class PooledDecision:
    """What the decision asks of a pooled metric: an arm's value and the difference of two, from 0 to 1 of which 1 is the best."""

    def __init__(self, metric: Metric, raced: Raced) -> None:
        self.metric, self.raced = metric, raced
        self._span = metric.high - metric.low
        self._sign = 1.0 if metric.better == "higher" else -1.0

    def scores(self, name: str) -> Sequence[Score]:
        """An arm's scores."""
        return self.raced.evaluations[name].scores(self.metric.name)

    def score(self, arm: MeasuredArm, level: float) -> Interval:
        """The pooled value of an arm's rows; where these are too few for an interval, the whole scale."""
        scores = self.scores(arm.name)
        interval = estimate(self.metric, scores, self._clusters(scores), level)
        if interval is None:
            value = self.metric.value(scores)
            value = self.metric.low if value is None and self._sign > 0 else self.metric.high if value is None else value
            interval = Interval(
                estimate=value, low=self.metric.low, high=self.metric.high, method="too few rows", n=len(scores), level=level
            )
        ends = [self._share(end) for end in (interval.low, interval.high)]
        return replace(interval, estimate=self._share(interval.estimate), low=min(ends), high=max(ends))

    def compare(self, a: MeasuredArm, b: MeasuredArm, level: float) -> Difference:
        """B minus A over the rows that both were asked; where these are too few for an interval, anything."""
        n = min(len(a.scores), len(b.scores))
        before, after = self.scores(a.name)[:n], self.scores(b.name)[:n]
        try:
            found = compare(before, after, metrics=[self.metric], clusters=self._clusters(before), level=level).metrics[0].difference
        except DataError:
            found = None
        if found is None:
            gap = self.score(b, level).estimate - self.score(a, level).estimate
            return Difference(estimate=gap, low=-1.0, high=1.0, p_value=1.0, method="too few rows", n=n, se=1.0, level=level)
        scale = self._sign / self._span
        low, high = sorted((found.low * scale, found.high * scale))
        return replace(found, estimate=found.estimate * scale, low=low, high=high, se=found.se / self._span)

    def _share(self, value: float) -> float:
        share = (value - self.metric.low) / self._span
        return share if self._sign > 0 else 1.0 - share

    def _clusters(self, scores: Sequence[Score]) -> dict[str, str]:
        return {score.example_id: self.raced.clusters[score.example_id] for score in scores}
