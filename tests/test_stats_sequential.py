"""Bounds that hold however often one looks: coverage at every moment, exactness at the end of a population, plain loops as oracle."""

from __future__ import annotations

from itertools import pairwise
from math import log

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats.sequential import (
    HOPES,
    Bets,
    lower_bounds,
    mean_sequence,
    rate_at_least,
    rate_at_most,
    rate_evidence,
    rate_sequence,
)

PAIRED = {
    "right/wrong, no difference": lambda rng, n: rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=n),
    "right/wrong, rare": lambda rng, n: rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.979, 0.001], size=n),
    "scores": lambda rng, n: rng.beta(2, 2, n) - rng.beta(2, 2, n),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAIRED)
def test_a_true_claim_is_refuted_at_some_moment_no_more_often_than_said(kind: str) -> None:
    """Looked at after every value, 150 values, 100 streams: each stream's own claim (its true mean) is true."""
    rng = np.random.default_rng(3)
    values = np.stack([PAIRED[kind](rng, 150) for _ in range(100)])
    truth = {"right/wrong, no difference": 0.0, "right/wrong, rare": -0.019, "scores": 0.0}[kind]
    low = lower_bounds(values, 0.1, (-1, 1))
    high = -lower_bounds(-values, 0.1, (-1, 1))
    assert np.mean(low > truth) <= 0.14
    assert np.mean(high < truth) <= 0.14
    assert np.mean(high - low) < 0.5


@pytest.mark.slow
def test_rows_of_a_test_set_are_drawn_without_replacement() -> None:
    """In random order, looked at after every row: refuted at some moment at most as often as said; narrower; exact at the last row."""
    rng = np.random.default_rng(5)
    whole = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.75, 0.15], size=200)
    orders = np.stack([rng.permutation(whole) for _ in range(120)])
    low = lower_bounds(orders[:, :150], 0.1, (-1, 1), population=200)
    assert np.mean(low > whole.mean() + 1e-9) <= 0.14
    assert np.mean(low) > np.mean(lower_bounds(orders[:, :150], 0.1, (-1, 1))) + 0.04
    last = mean_sequence(orders[0], bounds=(-1, 1), population=200)
    assert (last.low, last.high) == pytest.approx((whole.mean(), whole.mean()), abs=1e-6)


def test_bets_are_what_a_plain_loop_says() -> None:
    """Each piece is bet on with the best share for the gap and the spread before it, never more than .95 of the stake."""
    rng = np.random.default_rng(1)
    values, nulls, pieces = rng.uniform(-1, 1, (2, 30)), np.array([-0.3, 0.0]), (0, 7, 8, 30)
    for population in (None, 90):
        bets = Bets(2, nulls, (-1, 1), population=population)
        for start, stop in pairwise(pieces):
            bets.add(values[:, start:stop])
        for stream in range(2):
            for j, null in enumerate(nulls):
                stakes = np.full(HOPES.size, 1 / HOPES.size)
                for t, x in enumerate(values[stream]):
                    before = values[stream, : max(start for start in pieces if start <= t)]
                    n, mean = before.size, before.mean() if before.size else 0.0
                    spread = (((before - mean) ** 2).sum() + 10 * 0.06 * 4) / (n + 10)
                    gap = np.maximum((n * (mean - null) + 50 * HOPES * 2) / (n + 50), 0) * (1 if population is None else 90 / (90 - n))
                    then = null if population is None else (90 * null - values[stream, :t].sum()) / (90 - t)
                    stakes *= 1 + np.minimum(gap / (spread + gap**2), 0.95 / (then + 1)) * (x - then)
                assert bets.log_wealth[stream, j] == pytest.approx(log(stakes.sum()), abs=1e-9)


@pytest.mark.parametrize("population", [None, 400])
def test_a_true_null_is_seldom_bet_away(population: int | None) -> None:
    """300 streams of 300 values in pieces of 10, the null true to the point: given up at some look at most as often as said."""
    rng = np.random.default_rng(11)
    whole = rng.choice([-1.0, 0.0, 1.0], p=[0.15, 0.75, 0.1], size=400)
    rows = np.stack([rng.permutation(whole) for _ in range(300)])
    if population is None:
        rows = rng.choice(whole, size=(300, 400))
    bets, most = Bets(300, [whole.mean()], (-1, 1), population=population), np.full(300, -np.inf)
    for start in range(0, 300, 10):
        bets.add(rows[:, start : start + 10])
        most = np.maximum(most, bets.log_wealth[:, 0])
    assert np.mean(most >= log(10)) <= 0.13


@pytest.mark.slow
def test_clusters_are_one_bet_each() -> None:
    """Rows that say the same ten times are worth no more than once; unequal clusters keep the level."""
    rng = np.random.default_rng(2)
    alone = rng.choice([-1.0, 1.0], size=60)
    tenfold = mean_sequence(np.repeat(alone, 10), bounds=(-1, 1), clusters=np.repeat(np.arange(60), 10))
    once = mean_sequence(alone, bounds=(-1, 1))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high), abs=1e-6)
    assert (tenfold.n, tenfold.clusters) == (600, 60)
    sizes = np.array([1, 1, 1, 1, 2, 2, 4, 8] * 12)
    wrong = 0
    for _ in range(40):
        units = rng.choice([-1.0, 1.0], size=sizes.size)
        found = mean_sequence(np.repeat(units, sizes), 0.9, (-1, 1), clusters=np.repeat(np.arange(sizes.size), sizes))
        wrong += not found.low <= 0 <= found.high
    assert wrong <= 7


@pytest.mark.slow
def test_rates_hold_at_every_n() -> None:
    """The chance that the bound is ever wrong, over all n up to 300, from 600 streams looked at after each."""
    rng = np.random.default_rng(7)
    for rate, prior in ((0.3, (0.5, 0.5)), (0.02, (0.5, 10.0))):
        streams = np.cumsum(rng.random((600, 300)) < rate, axis=1)
        n = np.arange(1, 301)
        seen, inverse = np.unique(np.stack([streams.ravel(), np.tile(n, 600)]), axis=1, return_inverse=True)
        evidence = np.array([rate_evidence(int(s), int(m), rate, prior) for s, m in seen.T])[inverse].reshape(600, 300)
        assert np.mean(evidence.max(axis=1) >= log(20)) <= 0.065
    assert rate_evidence(12, 60, 0.02, (0.5, 10.0)) > log(100)


def test_rate_bounds_contain_the_exact_interval_of_one_look_and_are_not_far_from_it() -> None:
    for successes, n in ((0, 50), (3, 50), (25, 50), (50, 50), (2, 1000)):
        found = rate_sequence(successes, n)
        exact = scipy_stats.binomtest(successes, n).proportion_ci(method="exact")
        assert found.low <= exact.low + 1e-9
        assert exact.high <= found.high + 1e-9
        assert found.high - found.low < 2 * (exact.high - exact.low)
        assert rate_at_least(successes, n, 0.025) <= exact.low + 1e-9
        assert rate_at_most(successes, n) == pytest.approx(1 - rate_at_least(n - successes, n))


def test_what_cannot_be_bet_on_is_refused() -> None:
    with pytest.raises(DataError, match=r"beyond the scale, the first is 1\.5"):
        mean_sequence([0.5, 1.5])
    with pytest.raises(DataError, match="missing or infinite"):
        lower_bounds([[0.5, float("nan")]], 0.05)
    with pytest.raises(DataError, match="3 units"):
        Bets(1, [0.5], population=2).add([[1, 0, 1]])
    with pytest.raises(UsageError, match="bounds"):
        mean_sequence([0.5], bounds=(1, 0))
    with pytest.raises(UsageError, match="5 of 3"):
        rate_sequence(5, 3)
