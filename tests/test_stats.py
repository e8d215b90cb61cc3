"""Every statistic against an independent source: published numbers, scipy, statsmodels, or its definition worked out another way."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import pytest
from scipy import linalg, optimize
from scipy import stats as sps

from tunesmith.core import stats
from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats.clustered import degrees_of_freedom
from tunesmith.core.stats.pooled import row_f1

close = pytest.approx


def near(value: float, rel: float = 1e-6, abs: float = 1e-9) -> object:
    return pytest.approx(value, rel=rel, abs=abs)


def bounds(interval: stats.Interval | stats.Difference) -> tuple[float, float]:
    return interval.low, interval.high


# Rates


def test_published_rates() -> None:
    assert bounds(stats.wilson(8, 10)) == (close(0.490162, abs=1e-6), close(0.943318, abs=1e-6))
    assert bounds(stats.wilson(0, 10)) == (0.0, close(0.277533, abs=1e-6))
    assert stats.clopper_pearson(0, 30).high == close(0.115703, abs=1e-6)
    assert stats.clopper_pearson(0, 30).low == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (3, 7), (50, 100), (99, 100), (100, 100), (1, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_rates_agree_with_statsmodels(k: int, n: int, level: float) -> None:
    from statsmodels.stats.proportion import proportion_confint

    for ours, method in ((stats.wilson, "wilson"), (stats.clopper_pearson, "beta")):
        low, high = proportion_confint(k, n, alpha=1 - level, method=method)
        assert bounds(ours(k, n, level)) == (near(max(0.0, low)), near(min(1.0, high)))
    low, high = proportion_confint(k, n, alpha=1 - level, method="jeffreys")
    assert bounds(stats.jeffreys(k, n, level)) == (near(low) if k else 0.0, near(high) if k < n else 1.0)


def test_newcombe_agrees_with_statsmodels() -> None:
    from statsmodels.stats.proportion import confint_proportions_2indep

    low, high = confint_proportions_2indep(63, 90, 40, 80, method="newcomb", compare="diff")
    ours = stats.newcombe(40, 80, 63, 90)
    assert (ours.estimate, *bounds(ours), ours.n) == (near(63 / 90 - 0.5), near(low), near(high), 170)


# Means and clusters


def on_scale(values: np.ndarray) -> np.ndarray:
    """The values between 0 and 1, by a straight line."""
    return (values - values.min()) / (values.max() - values.min())


def test_mean_of_many_values_without_an_end_is_students_t() -> None:
    values = np.random.default_rng(0).normal(3, 2, 12_000)
    low, high = sps.t.interval(0.9, 11_999, values.mean(), sps.sem(values))
    assert bounds(stats.mean_interval(values, level=0.9)) == (close(low, rel=1e-4), close(high, rel=1e-4))


@pytest.mark.parametrize("grouped", [False, True])
def test_mean_of_values_without_an_end_is_the_hull_of_t_and_bootstrap_t(grouped: bool) -> None:
    values = np.exp(np.random.default_rng(2).normal(size=40))
    each, groups = 2 if grouped else 1, np.repeat(np.arange(40), 2) if grouped else None
    se = np.sqrt(sps.sem(values) ** 2 + np.abs(values - values.mean()).max() ** 2 / (40 * 42))  # one more as far out as the farthest
    low, high = sps.t.interval(0.95, 39, values.mean(), se)
    rng = np.random.default_rng(1)
    drawn = values[rng.integers(0, 40, (40_000, 40))]
    studentized = (drawn.mean(axis=1) - values.mean()) / sps.sem(drawn, axis=1)
    far = values.mean() - np.quantile(studentized, 0.025) * se
    assert far > high * 1.1
    ours = stats.mean_interval(np.repeat(values, each), groups)
    assert bounds(ours) == (near(low), close(far, rel=0.06))
    paired = stats.paired_difference(np.zeros(40 * each), np.repeat(values, each), groups)
    assert bounds(paired) == (near(ours.low), near(ours.high))
    assert stats.paired_difference(np.repeat(values, each), np.zeros(40 * each), groups).p_value == paired.p_value < 0.05


def test_few_values_without_an_end_are_refused() -> None:
    seconds = np.exp(np.random.default_rng(2).normal(size=34))
    for call in (
        lambda: stats.mean_interval(seconds),
        lambda: stats.mean_interval(np.repeat(seconds, 9), np.repeat(np.arange(34), 9)),
        lambda: stats.mean_interval(np.exp(np.arange(100.0) / 30), [0] * 60 + list(range(1, 41))),
        lambda: stats.paired_difference(seconds, seconds[::-1]),
    ):
        with pytest.raises(DataError, match=r"no end: .* independent ones are too few, 35 are the least"):
            call()
    with pytest.raises(DataError, match="all but a few of 40"):
        stats.mean_interval([5.0] * 39 + [9.0])


@pytest.mark.slow
def test_equal_clusters_are_cr1_with_t() -> None:
    import statsmodels.api as sm

    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(12), 7)
    values, other = on_scale(rng.normal(size=12)[groups] + rng.normal(size=84)), on_scale(rng.normal(size=84))
    fit = sm.OLS(values, np.ones(84)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    ours = stats.paired_difference(np.zeros(84), values, groups)
    assert bounds(ours) == (near(fit.conf_int()[0, 0]), near(fit.conf_int()[0, 1]))
    assert (ours.n, ours.clusters) == (84, 12)
    fit = sm.OLS(other - values, np.ones(84)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    paired = stats.paired_difference(values, other, groups)
    assert (*bounds(paired), paired.p_value) == (near(fit.conf_int()[0, 0]), near(fit.conf_int()[0, 1]), near(fit.pvalues[0]))
    assert (paired.se, paired.df) == (near(fit.bse[0]), 11.0)


def unequal() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes = np.array([9, 1, 1, 4, 2, 1, 1, 6, 1, 3])
    return sizes, np.repeat(np.arange(10), sizes), on_scale(np.random.default_rng(2).normal(size=29))


def test_unequal_clusters_have_the_cr2_variance() -> None:
    import statsmodels.api as sm

    sizes, groups, values = unequal()
    means = np.bincount(groups, weights=values) / sizes
    fit = sm.WLS(means, np.ones(10), weights=sizes).fit(cov_type="HC2")  # HC2 of cluster means weighted by size is CR2 of the rows
    ours = stats.paired_difference(np.zeros(29), values, groups)
    assert ours.se == near(fit.bse[0])
    assert (ours.high - ours.low) / 2 / sps.t.ppf(0.975, degrees_of_freedom(sizes.astype(float))) == near(fit.bse[0])


def test_degrees_of_freedom_from_the_definition() -> None:
    """Bell and McCaffrey's, with full matrices over rows, for uncorrelated and for fully correlated rows."""
    sizes, groups, _ = unequal()
    n = 29
    hat = np.full((n, n), 1 / n)
    df = []
    for working in (np.eye(n), (groups[:, None] == groups[None, :]).astype(float)):
        columns = []
        for g in range(10):
            mine = np.flatnonzero(groups == g)
            adjust = linalg.fractional_matrix_power(np.eye(mine.size) - hat[np.ix_(mine, mine)], -0.5)
            columns.append((np.eye(n) - hat)[:, mine] @ adjust @ np.ones(mine.size) / n)
        G = np.column_stack(columns)
        eigenvalues = linalg.eigvalsh(G.T @ working @ G)
        df.append(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
    assert degrees_of_freedom(sizes.astype(float)) == near(np.sqrt(df[0] * df[1]))


def test_design_effect_and_icc() -> None:
    groups = np.repeat(np.arange(30), 5)
    values = np.random.default_rng(3).normal(size=30)[groups] + np.random.default_rng(4).normal(size=150)
    between, within = sps.f_oneway(*(values[groups == g] for g in range(30))).statistic, 1.0  # F = MSB / MSW
    assert stats.icc(values, groups) == near((between - within) / (between + 4 * within))
    alone = values.var(ddof=1) / 150
    means = values.reshape(30, 5).mean(axis=1)
    assert stats.design_effect(values, groups) == near(means.var(ddof=1) / 30 / alone)
    assert stats.design_effect(values, None) == near(1.0)


def test_clustered_rate_stays_inside_and_counts_clusters_when_all_agree() -> None:
    assert bounds(stats.rate_interval([1] * 40, [i // 4 for i in range(40)])) == (close(0.661, abs=1e-3), 1.0)
    mixed = stats.rate_interval([1, 1, 1, 0, 1, 1], list("aabbcc"))
    assert 0 <= mixed.low < mixed.estimate < mixed.high <= 1


def test_lopsided_clusters_are_wider_than_the_usual_correction() -> None:
    import statsmodels.api as sm

    groups = np.r_[np.zeros(60), np.arange(1, 41)]
    values = on_scale(np.random.default_rng(5).normal(size=100))
    usual = sm.OLS(values, np.ones(100)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True).conf_int()[0]
    ours = stats.paired_difference(np.zeros(100), values, groups)
    assert ours.high - ours.low > 1.5 * (usual[1] - usual[0])


# Pairs


def test_published_mcnemar() -> None:
    assert stats.mcnemar(150, 86, "chi2") == close(3.0993e-5, rel=1e-4)
    assert stats.mcnemar(25, 10, "exact") == close(0.0166738, abs=1e-7)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 3), (4, 9), (25, 10), (86, 150)])
def test_mcnemar_agrees(wins: int, losses: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar

    table = [[5, wins], [losses, 5]]
    if wins + losses:
        assert stats.mcnemar(wins, losses, "exact") == near(sm_mcnemar(table, exact=True).pvalue)
        assert stats.mcnemar(wins, losses, "chi2") == near(sm_mcnemar(table, exact=False, correction=False).pvalue)
    seen = sps.binom(wins + losses, 0.5)
    worse = 2 * seen.cdf(min(wins, losses) - 1) + seen.pmf(min(wins, losses))
    assert stats.mcnemar(wins, losses) == near(min(1.0, worse) if wins + losses else 1.0)


def score_statistic(wins: int, losses: int, n: int, delta: float) -> float:
    """Tango's statistic, the nuisance probability found by maximising the likelihood numerically."""

    def minus_log_likelihood(lost: float) -> float:
        won, same = lost + delta, 1 - 2 * lost - delta
        return -sum(k * np.log(max(p, 1e-300)) for k, p in ((wins, won), (losses, lost), (n - wins - losses, same)) if k)

    limits = (max(0.0, -delta), (1 - delta) / 2)
    lost = optimize.minimize_scalar(minus_log_likelihood, bounds=limits, method="bounded", options={"xatol": 1e-13}).x
    return (wins - losses - n * delta) / np.sqrt(n * (2 * lost + delta * (1 - delta)))


@pytest.mark.parametrize(("wins", "losses", "n"), [(1, 7, 21), (12, 5, 60), (30, 31, 400), (9, 2, 11), (40, 10, 1000)])
def test_tango_inverts_the_score_test(wins: int, losses: int, n: int) -> None:
    interval = stats.tango(wins, losses, n)
    assert score_statistic(wins, losses, n, interval.low) == close(1.959964, abs=2e-5)
    assert score_statistic(wins, losses, n, interval.high) == close(-1.959964, abs=2e-5)


def test_published_tango() -> None:
    """Fagerland, Lydersen and Laake 2014, airway hyper-responsiveness: -0.517 to -0.026."""
    assert bounds(stats.tango(1, 7, 21)) == (close(-0.517, abs=5e-4), close(-0.026, abs=5e-4))


def test_no_discordant_row_still_has_width() -> None:
    z2 = sps.norm.ppf(0.975) ** 2
    assert bounds(stats.tango(0, 0, 50)) == (near(-z2 / (50 + z2)), near(z2 / (50 + z2)))
    same = stats.paired_difference([0.5] * 50, [0.5] * 50)
    assert (*bounds(same), same.p_value) == (near(-z2 / (50 + z2)), near(z2 / (50 + z2)), 1.0)


def test_paired_t_agrees_with_scipy() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.uniform(0.2, 0.8, 40), rng.uniform(0, 0.2, 40)
    b = a + b * rng.choice([1, 1, -1], 40)
    theirs, ours = sps.ttest_rel(b, a), stats.paired_difference(a, b)
    assert ours.p_value == near(theirs.pvalue)
    assert bounds(ours) == (near(theirs.confidence_interval().low), near(theirs.confidence_interval().high))
    assert ours.effect_size == near(theirs.statistic / np.sqrt(40))
    assert (ours.wins, ours.losses, ours.ties) == (int((b > a).sum()), int((b < a).sum()), 0)


def test_permutation_is_exact_when_small_and_close_when_not() -> None:
    rng = np.random.default_rng(7)
    a = rng.normal(size=11)
    b = a + rng.normal(0.6, 1, 11)
    theirs = sps.permutation_test((b - a,), lambda d: d.mean(), permutation_type="samples", n_resamples=np.inf, vectorized=False)
    assert stats.permutation_test(a, b) == near(theirs.pvalue)
    a, b = rng.normal(size=300), rng.normal(0.15, 1, 300)
    assert stats.permutation_test(a, b) == close(sps.ttest_rel(a, b).pvalue, abs=0.02)
    groups = np.repeat(np.arange(8), 5)
    a, b = rng.normal(size=40), rng.normal(size=40)
    sums = np.bincount(groups, weights=b - a)
    theirs = sps.permutation_test((sums,), lambda d: d.mean(), permutation_type="samples", n_resamples=np.inf, vectorized=False)
    assert stats.permutation_test(a, b, groups) == near(theirs.pvalue)


# Pooled statistics


def entity_counts(n: int, recall: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    there = 1 + rng.poisson(1, n)
    found = rng.binomial(there, recall)
    return np.column_stack([found, rng.poisson(0.3, n), there - found])


def test_pooled_f1_has_the_variance_of_a_ratio() -> None:
    import statsmodels.api as sm

    counts = entity_counts(80, 0.7, 0)
    tp, fp, fn = counts.sum(axis=0)
    ours = stats.pooled_f1_interval(counts)
    assert ours.estimate == near(2 * tp / (2 * tp + fp + fn))
    size = 2 * counts[:, 0] + counts[:, 1] + counts[:, 2]
    fit = sm.WLS(row_f1(counts.astype(float)), np.ones(80), weights=size).fit(cov_type="HC2")
    assert ours.estimate == near(fit.params[0])
    t = sps.t.ppf(0.975, degrees_of_freedom(size.astype(float)))
    effective = ours.estimate * (1 - ours.estimate) / fit.bse[0] ** 2
    root = np.roots([1 + t**2 / effective, -2 * ours.estimate - t**2 / effective, ours.estimate**2])  # Wilson: |p − x| = t√(x(1−x)/n)
    low, high = sorted(root.tolist())
    assert bounds(ours) == (near(low), near(high))


def test_pooled_mean_is_the_paired_t() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.random(30), rng.random(30)
    ones = np.ones(30)

    def mean(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    pooled = stats.paired_pooled(np.column_stack([a, ones]), np.column_stack([b, ones]), mean)
    plain = stats.paired_difference(a, b)
    assert (pooled.estimate, *bounds(pooled), pooled.p_value) == (near(plain.estimate), *map(near, bounds(plain)), near(plain.p_value))
    single = stats.pooled_interval(np.column_stack([a, ones]), mean, bounds=None)
    assert bounds(single) == tuple(map(near, sps.t.interval(0.95, 29, a.mean(), sps.sem(a))))


@pytest.mark.slow
def test_paired_f1_agrees_with_the_bootstrap() -> None:
    a, b = entity_counts(400, 0.6, 1), entity_counts(400, 0.7, 2)
    ours = stats.paired_pooled_f1(a, b)

    def gap(x: np.ndarray, y: np.ndarray) -> float:
        return float(row_f1(y.sum(axis=0).astype(float)) - row_f1(x.sum(axis=0).astype(float)))

    drawn = stats.bootstrap(gap, [a, b], resamples=4000)
    assert ours.estimate == near(drawn.estimate)
    assert bounds(ours) == (close(drawn.low, abs=0.004), close(drawn.high, abs=0.004))
    two_sided = 2 * sps.norm.sf(ours.estimate / ((drawn.high - drawn.low) / (2 * sps.norm.ppf(0.975))))
    assert ours.p_value == close(two_sided, abs=0.002)


def test_f1_of_nothing_and_of_perfection() -> None:
    with pytest.raises(DataError, match="undefined"):
        stats.pooled_f1_interval(np.zeros((5, 3)))
    with pytest.raises(DataError, match="at least 2"):
        stats.pooled_f1_interval([[1, 0, 0], [0, 0, 0]])
    perfect = stats.pooled_f1_interval([[2, 0, 0]] * 30)
    assert bounds(perfect) == (near(stats.wilson(30, 30).low, rel=0.05), 1.0)
    never = stats.pooled_f1_interval([[0, 1, 2]] * 30)
    assert never.estimate == never.low == 0.0
    assert never.high > 0.1
    same = stats.paired_pooled_f1([[2, 0, 0]] * 30, [[2, 0, 0]] * 30)
    assert same.p_value == 1.0
    assert same.low < -0.1
    with pytest.raises(UsageError, match="none below 0"):
        stats.pooled_f1_interval([[1, -1, 0], [1, 0, 0]])


# Bootstrap


@pytest.mark.slow
def test_bootstrap_agrees_with_scipy() -> None:
    rng = np.random.default_rng(9)
    for values in (rng.random(300) < 0.3, rng.exponential(size=200)):
        theirs = sps.bootstrap((values.astype(float),), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
        ours = stats.bootstrap_mean(values, resamples=20_000)
        width = theirs.high - theirs.low
        assert bounds(ours) == (close(theirs.low, abs=0.03 * width), close(theirs.high, abs=0.03 * width))
        assert ours == stats.bootstrap_mean(values, resamples=20_000)


def test_bootstrap_of_any_statistic_and_of_clusters() -> None:
    rng = np.random.default_rng(10)
    groups = np.repeat(np.arange(60), 4)
    values = rng.normal(size=60)[groups] + rng.normal(size=240)
    general = stats.bootstrap(lambda x: float(x.mean()), [values], groups, resamples=4000)
    fast = stats.bootstrap_mean(values, groups, resamples=4000)
    analytic = stats.mean_interval(values, groups)
    for ours in (general, fast):
        assert bounds(ours) == (close(analytic.low, abs=0.05), close(analytic.high, abs=0.05))
    with pytest.raises(DataError, match="undefined in"):
        stats.bootstrap(lambda x: float("nan") if x[0] > 0 else 0.0, [values], resamples=200)


# Many tests, agreement, power


def test_adjusted_p_values_agree_with_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(11).random(25) ** 3
    assert stats.holm(p) == near(multipletests(p, method="holm")[1])
    assert stats.benjamini_hochberg(p) == near(multipletests(p, method="fdr_bh")[1])
    assert stats.holm([]).size == 0


def test_published_kappa_and_alpha() -> None:
    a, b = [0] * 25 + [1] * 25, [0] * 20 + [1] * 5 + [0] * 10 + [1] * 15
    assert stats.cohen_kappa(a, b).estimate == near(0.4)
    rows = ("*  *  *  *  *  3  4  1  2  1  1  3  3  *  3", "1  *  2  1  3  3  4  3  *  *  *  *  *  *  *")
    rows += ("*  *  2  1  3  4  4  *  2  1  1  3  3  *  4",)
    ratings = list(zip(*([None if x == "*" else int(x) for x in row.split()] for row in rows), strict=True))
    for metric, value in (("nominal", 0.691358), ("interval", 0.810845), ("ordinal", 0.806721)):
        assert stats.krippendorff_alpha(ratings, metric).estimate == close(value, abs=1e-6)


def test_alpha_agrees_with_the_krippendorff_package() -> None:
    """Krippendorff's four-rater example; values computed with the package krippendorff 0.9.0."""
    nan = float("nan")
    raters = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    ]
    for metric, value in (("nominal", 0.743421052631579), ("ordinal", 0.8153875037548814), ("interval", 0.8491071428571428)):
        assert stats.krippendorff_alpha(np.array(raters).T, metric).estimate == near(value)


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_cohen_agrees_with_statsmodels(weights: str) -> None:
    from statsmodels.stats.inter_rater import cohens_kappa

    rng = np.random.default_rng(12)
    a = rng.integers(0, 4, 90)
    b = np.where(rng.random(90) < 0.6, a, rng.integers(0, 4, 90))
    table = np.zeros((4, 4))
    np.add.at(table, (a, b), 1)
    theirs = cohens_kappa(table, wt=None if weights == "none" else weights)
    ours = stats.cohen_kappa(a.tolist(), b.tolist(), weights=weights)
    assert ours.estimate == near(theirs.kappa)  # the large-sample interval is near ours where there are many rows
    assert bounds(ours) == (pytest.approx(theirs.kappa_low, abs=0.03), pytest.approx(theirs.kappa_upp, abs=0.03))


@pytest.mark.parametrize("n", [4, 20, 100])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.6, 0.3, 0.1)])
def test_perfect_agreement_of_few_units_is_no_certainty(n: int, shares: tuple[float, ...]) -> None:
    counts = [max(1, round(share * n)) for share in shares]
    ratings = [i for i, count in enumerate(counts) for _ in range(count)]
    both = [[rating, rating] for rating in ratings]
    for found in (stats.cohen_kappa(ratings, ratings), stats.fleiss_kappa(both), stats.krippendorff_alpha(both)):
        assert (found.estimate, found.high) == (pytest.approx(1.0), 1.0)
        assert -1 <= found.low < 1 - 1.5 / len(ratings)


def test_scores_near_the_end_of_their_scale_stay_within_it_and_cover() -> None:
    rng, held = np.random.default_rng(5), []
    for _ in range(400):
        values = np.where(rng.random(100) < 0.97, 1.0, rng.random(100))
        found = stats.mean_interval(values)
        assert 0 <= found.low <= found.estimate <= found.high <= 1
        held.append(found.low <= 0.985 <= found.high)
    assert np.mean(held) > 0.93  # ± t standard errors: .87
    assert bounds(stats.mean_interval([20.0, 100.0, 100.0], span=100.0))[1] <= 100


@pytest.mark.parametrize("far", [0.6, 0.99])
def test_differences_on_a_scale_stay_within_it(far: float) -> None:
    two = stats.paired_difference([0.0, 0.01], [far, 1.0])
    assert (two.low >= -1, two.high) == (True, min(1.0, two.high))
    f1 = stats.paired_pooled_f1([[0, 3, 3], [1, 5, 0], [0, 1, 1]], [[3, 0, 0], [5, 0, 0], [0, 1, 1]])
    assert (f1.low, f1.high) == (max(-1.0, f1.low), min(1.0, f1.high))
    few = stats.paired_difference([1.0] * 9 + [0.5], [1.0] * 10)
    assert few.high - few.low > 0.2  # nine ties and one gain say little of the next ten


@pytest.mark.parametrize(("wins", "losses", "n"), [(1, 1, 30), (0, 0, 25), (2, 1, 12), (3, 5, 40)])
@pytest.mark.parametrize("rule", [stats.GateRule(margin=0.05, superior=False), stats.GateRule(margin=0.1), stats.GateRule()])
def test_the_power_that_a_gate_says_is_how_often_it_passes(wins: int, losses: int, n: int, rule: stats.GateRule) -> None:
    a, b = [1.0] * losses + [0.0] * (n - losses), [0.0] * losses + [1.0] * wins + [0.0] * (n - losses - wins)
    said = stats.decide(stats.paired_difference(a, b), rule).power
    truth = rule.edge + rule.margin
    differ = max((wins + losses) / n, abs(truth))
    won, lost, passes = (differ + truth) / 2, (differ - truth) / 2, 0.0
    for w in range(n + 1):
        for x in range(n + 1 - w):
            chance = sps.multinomial.pmf([w, x, n - w - x], n, [won, lost, 1 - won - lost])
            if chance > 1e-9 and stats.tango(w, x, n).low > rule.edge:
                passes += chance
    assert said == pytest.approx(passes, abs=1e-6)


def test_few_right_or_wrong_rows_show_less_than_the_normal_formula_says() -> None:
    found = stats.paired_difference([0.0] * 20, [0.0] * 19 + [1.0])
    least = stats.smallest_detectable(found)
    assert stats.power_edge(20, 0.0, least, difference=least) >= 0.8
    assert stats.power_edge(20, 0.0, least - 0.01, difference=least - 0.01) < 0.8


def test_fleiss_agrees_with_statsmodels_and_its_jackknife_with_a_loop() -> None:
    from statsmodels.stats.inter_rater import fleiss_kappa

    rng = np.random.default_rng(13)
    truth = rng.integers(0, 3, 40)
    ratings = np.where(rng.random((40, 4)) < 0.7, truth[:, None], rng.integers(0, 3, (40, 4)))
    counts = np.stack([(ratings == c).sum(axis=1) for c in range(3)], axis=1)
    ours = stats.fleiss_kappa(ratings)
    assert ours.estimate == near(fleiss_kappa(counts))
    left = np.array([fleiss_kappa(np.delete(counts, i, axis=0)) for i in range(40)])
    half = sps.t.ppf(0.975, 39) * np.sqrt(39 / 40 * ((left - left.mean()) ** 2).sum())
    assert bounds(ours) == (pytest.approx(ours.estimate - half, abs=0.03), pytest.approx(ours.estimate + half, abs=0.03))


def test_agreement_that_cannot_be_measured() -> None:
    with pytest.raises(DataError, match="undefined"):
        stats.cohen_kappa(["yes"] * 5, ["yes"] * 5)
    with pytest.raises(DataError, match="krippendorff_alpha"):
        stats.fleiss_kappa([["a", None], ["a", "b"]])
    perfect = stats.cohen_kappa(list("ababab"), list("ababab"))
    assert perfect.estimate == perfect.high == 1.0
    assert perfect.low < 0.5
    with pytest.raises(UsageError, match="not numbers"):
        stats.krippendorff_alpha([["a", "b"], ["a", "a"]], "interval")


def test_published_sample_sizes() -> None:
    assert [stats.sample_size_means(d) for d in (0.2, 0.5, 0.8)] == [394, 64, 26]
    assert stats.sample_size_proportions(0.20, 0.25) == 1091
    assert stats.sample_size_proportions(0.20, 0.25, pooled=True) == 1094
    assert stats.sample_size_paired_scores(0.03, 1 / 9) == 969
    assert [stats.sample_size_paired_rates(d, 0.2) for d in (0.02, 0.03, 0.05, 0.10)] == [3917, 1737, 621, 150]


@pytest.mark.slow
def test_a_gate_is_planned_by_counting() -> None:
    """The power is Tango's own, pair by pair; the plan starts at the published formula's rows and adds what they lack."""
    for n, margin, discordance, change in ((40, 0.1, 0.2, 0.0), (25, 0.2, 0.3, -0.05)):
        won, lost = (discordance + change) / 2, (discordance - change) / 2
        chance = sps.multinomial(n, [won, lost, 1 - discordance]).pmf
        pairs = ((w, x) for w in range(n + 1) for x in range(n + 1 - w))
        exact = sum(chance([w, x, n - w - x]) for w, x in pairs if stats.tango(w, x, n).low > -margin)
        assert stats.power_non_inferiority(n, margin, discordance, difference=change) == pytest.approx(exact, abs=1e-12)
    published = {(0.02, 0.1): 1963, (0.03, 0.1): 873, (0.05, 0.1): 314, (0.02, 0.2): 3925, (0.03, 0.2): 1745, (0.05, 0.2): 628}
    for (margin, discordance), rows in published.items():
        n = stats.sample_size_non_inferiority(margin, discordance)
        assert rows <= n <= 1.09 * rows
        assert 0.8 <= stats.power_non_inferiority(n, margin, discordance) < 0.81
    assert stats.power_non_inferiority(314, 0.05, 0.1) == pytest.approx(0.763, abs=5e-4)


@pytest.mark.parametrize(("d", "n"), [(0.1, 20), (0.5, 64), (0.8, 5), (1.5, 8), (0.05, 3000)])
def test_power_agrees_with_statsmodels(d: float, n: int) -> None:
    from statsmodels.stats.power import TTestIndPower, TTestPower

    assert stats.power_means(d, n) == near(TTestIndPower().power(d, n, 0.05))
    assert stats.power_means(-d, n, alpha=0.01, paired=True) == near(TTestPower().power(d, n, 0.01))


@pytest.mark.parametrize("d", [0.03, 0.15, 0.4, 0.9, 2.0])
def test_sample_sizes_agree_with_statsmodels(d: float) -> None:
    from statsmodels.stats.power import NormalIndPower, TTestIndPower, TTestPower
    from statsmodels.stats.proportion import proportion_effectsize

    assert stats.sample_size_means(d, power=0.9) == np.ceil(TTestIndPower().solve_power(d, power=0.9, alpha=0.05))
    assert stats.sample_size_means(d, paired=True) == max(2, np.ceil(TTestPower().solve_power(d, power=0.8, alpha=0.05)))
    h = proportion_effectsize(0.3 + d / 10, 0.3)
    by_angle = NormalIndPower().solve_power(h, power=0.8, alpha=0.05)
    assert stats.sample_size_proportions(0.3, 0.3 + d / 10) == close(by_angle, rel=0.02)


def test_smallest_detectable_undoes_the_sample_size() -> None:
    for gap, discordance in ((0.02, 0.2), (0.05, 0.1), (0.1, 0.3)):
        n = stats.sample_size_paired_rates(gap, discordance)
        assert stats.smallest_detectable_rates(n, discordance) == close(gap, rel=2 / n)
    a = np.random.default_rng(14).normal(size=50)
    difference = stats.paired_difference(a, a + np.random.default_rng(15).normal(size=50))
    d = stats.smallest_detectable(difference) / (difference.se * np.sqrt(50))
    assert stats.power_means(d, 50, paired=True) == close(0.8, abs=0.005)


# Gate, judge, ranking


def test_gate_has_three_answers() -> None:
    right = np.r_[np.ones(800), np.zeros(200)]
    planned = stats.paired_difference(right, np.r_[np.ones(790), np.zeros(200), np.ones(10)])
    assert stats.non_inferiority(planned, 0.02).decision == "pass"
    assert stats.non_inferiority(planned, 0.005).decision == "cannot tell"
    assert stats.non_inferiority(planned, 0.005).rows_needed > 1000
    worse = stats.paired_difference(right, np.r_[np.ones(700), np.zeros(300)])
    assert stats.non_inferiority(worse, 0.02).decision == "block"
    assert "0.02" in stats.non_inferiority(worse, 0.02).sentence
    with pytest.raises(UsageError, match="margin of 0"):
        stats.non_inferiority(planned, 0)


def judged() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    i, j = np.arange(120), np.arange(900)
    labels = np.sin(i) + i / 60
    return labels, labels + 0.3 * np.cos(5 * i), np.sin(j / 7.0) + ((j * 17) % 120) / 60


def test_ppi_agrees_with_ppi_python() -> None:
    """Values computed with ppi-python 0.2.3, which divides by n and uses z where t(n − 1) is used here."""
    ours = stats.ppi_mean(*judged())
    assert ours.estimate == near(1.004038745723)
    narrower = (1.069186429574 - 0.938891061871) / 2 / sps.norm.ppf(0.975)
    assert (ours.high - ours.low) / 2 / sps.t.ppf(0.975, 119) == close(narrower, rel=0.005)
    i, j = np.arange(120), np.arange(900)
    right = ((i * 7) % 10 < 7).astype(float)
    said, others = np.where((i * 11) % 13 < 11, right, 1 - right), ((j * 3) % 11 < 7).astype(float)
    rate = stats.ppi_mean(right, said, others)
    assert rate.estimate == near(0.706472951306)
    assert bounds(rate) == (close(0.642007739408, abs=0.005), close(0.770938163204, abs=0.005))


def test_judge_that_says_nothing_leaves_the_labels() -> None:
    labels = [1, 0, 1, 1, 0, 1, 1, 1, 0, 1] * 10
    ours = stats.ppi_mean(labels, [0.5] * 100, [0.5] * 500)
    assert ours.estimate == near(0.7)
    assert bounds(ours) == tuple(close(x, abs=0.005) for x in bounds(stats.wilson(70, 100)))


def test_post_stratified_is_the_weighted_mean_of_strata() -> None:
    labels, said = [1] * 40 + [0] * 10 + [1] * 5 + [0] * 45, ["win"] * 50 + ["loss"] * 50
    ours = stats.post_stratified_mean(labels, said, ["win"] * 300 + ["loss"] * 100)
    assert ours.estimate == near(0.7 * 0.8 + 0.3 * 0.1)
    assert ours.high - ours.low < stats.wilson(45, 100).high - stats.wilson(45, 100).low
    with pytest.raises(DataError, match="'tie'"):
        stats.post_stratified_mean(labels, said, ["win"] * 300 + ["tie"] * 100)


def test_published_bradley_terry() -> None:
    """Baseball 1987, American League East (Agresti)."""
    import statsmodels.api as sm

    names = ["Mil", "Det", "Tor", "NY", "Bos", "Cle", "Bal"]
    wins = [[0, 7, 9, 7, 7, 9, 11], [6, 0, 7, 5, 11, 9, 9], [4, 6, 0, 7, 7, 8, 12], [6, 8, 6, 0, 6, 7, 10]]
    wins += [[6, 2, 6, 7, 0, 7, 12], [4, 4, 5, 6, 6, 0, 6], [2, 4, 1, 3, 1, 7, 0]]
    strengths = stats.bradley_terry(wins, names, reference="Bal")
    assert [strengths[name].estimate for name in names] == [close(x, abs=5e-4) for x in (1.581, 1.436, 1.294, 1.248, 1.108, 0.684, 0)]
    assert strengths["Mil"].n == 78
    rows = [(i, j, wins[i][j]) for i in range(7) for j in range(7) if i != j]
    design = np.zeros((len(rows), 7))
    for row, (i, j, _) in enumerate(rows):
        design[row, i], design[row, j] = 1, -1
    games = np.array([[wins[i][j], wins[j][i]] for i, j, _ in rows])
    fit = sm.GLM(games, design[:, :6], family=sm.families.Binomial()).fit(tol=1e-14)
    # Each pair stands twice in the design, once from either side, so its errors are too small by √2.
    for i, name in enumerate(names[:6]):
        assert strengths[name].estimate == near(fit.params[i])
        half = sps.norm.ppf(0.975) * fit.bse[i] * np.sqrt(2)
        assert bounds(strengths[name]) == (near(fit.params[i] - half), near(fit.params[i] + half))


def test_bradley_terry_refuses_an_infinite_strength() -> None:
    with pytest.raises(DataError, match="'loser'"):
        stats.bradley_terry([[0, 3], [0, 0]], ["winner", "loser"])


# What must not happen


def test_nothing_to_measure_is_an_error_with_its_number() -> None:
    for call in (lambda: stats.mean_interval([]), lambda: stats.wilson(0, 0), lambda: stats.paired_difference([], [])):
        with pytest.raises(DataError, match="0"):
            call()
    with pytest.raises(DataError, match="1 independent"):
        stats.mean_interval([0.5])
    with pytest.raises(DataError, match="1 independent"):
        stats.mean_interval([0.5, 0.7], ["same", "same"])
    with pytest.raises(UsageError, match="3 rows and b has 2"):
        stats.paired_difference([1, 0, 1], [1, 0])
    with pytest.raises(UsageError, match=r"level is 1\.5"):
        stats.wilson(1, 2, 1.5)
    assert stats.wilson(1, 1).low == close(0.2065, abs=1e-4)


def test_importing_is_light() -> None:
    code = "import sys, tunesmith.core.stats; print([m for m in ('scipy', 'torch', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_superiority_and_the_power_of_a_gate() -> None:
    better = stats.paired_difference(np.zeros(400), np.r_[np.ones(60), np.zeros(340)])
    assert [stats.superiority(better, margin).decision for margin in (0.05, 0.15, 0.3)] == ["pass", "cannot tell", "block"]
    with pytest.raises(UsageError):
        stats.superiority(better, -0.1)
    # The gate says its power by the normal approximation, the plan counts.
    n = stats.sample_size_non_inferiority(0.02, 0.1)
    equal = stats.paired_difference(np.r_[np.ones(n // 20), np.zeros(n - n // 20)], np.r_[np.zeros(n - n // 20), np.ones(n // 20)])
    gate = stats.non_inferiority(equal, 0.02)
    assert gate.power == pytest.approx(0.8, abs=0.02)
    assert gate.rows_needed == pytest.approx(n, rel=0.03)


@pytest.mark.parametrize(("estimate", "low", "high"), [(0.03, 0.01, 0.05), (0.0, -0.02, 0.02), (-0.03, -0.05, -0.01), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("margin", [0.0, 0.005, 0.02, 0.5])
def test_one_gate_decides_superiority_and_non_inferiority_by_the_same_rule(estimate, low, high, margin) -> None:
    difference = stats.Difference(estimate=estimate, low=low, high=high, p_value=0.5, method="m", n=100, se=(high - low) / 4)
    turned = msgspec.structs.replace(difference, estimate=-estimate, low=-high, high=-low)
    for superior in (True, False):
        if not (superior or margin):
            continue
        rule = stats.GateRule(margin=margin, superior=superior)
        edge = margin if superior else -margin
        expected = "pass" if low > edge else "block" if high <= edge else "cannot tell"
        gate = stats.decide(difference, rule)
        assert gate.decision == expected
        assert gate.sentence.partition(": ")[2].startswith(gate.reason)
        assert stats.decide(turned, rule, better="lower").decision == expected
        assert (gate.rows_needed is None) == (margin == 0)
        assert 0 <= gate.power <= 1
        assert ("plan about" in gate.sentence) == (expected == "cannot tell" and margin > 0)
        with pytest.raises(UsageError, match="direction"):
            stats.decide(difference, rule, better="neither")
    assert stats.decide(None, stats.GateRule()).decision == "cannot tell"


@pytest.mark.slow
def test_an_equal_model_passes_a_test_of_any_gain_one_time_in_forty() -> None:
    rng = np.random.default_rng(3)
    passed = sum(
        stats.superiority(stats.paired_difference(rng.normal(size=60), rng.normal(size=60))).decision == "pass" for _ in range(2000)
    )
    a = rng.normal(size=60)
    gate = stats.superiority(stats.paired_difference(a, a + rng.normal(size=60)))
    assert gate.power == pytest.approx(0.025, abs=0.003)
    assert passed / 2000 == pytest.approx(0.025, abs=0.01)


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("superior", [True, False])
def test_a_margin_that_is_none_is_refused_with_the_way_out(margin, superior) -> None:
    with pytest.raises(UsageError, match=r"superior: (true|false) with margin"):
        stats.GateRule(margin=margin, superior=superior)


def test_the_noise_of_runs_is_added_as_welch_does() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(size=50)
    plain = stats.paired_difference(a, b)
    assert stats.with_run_noise(plain, [0.5], [0.6]) == plain
    assert stats.with_run_noise(plain, [0.5, 0.5], [0.6, 0.6, 0.6]) == plain
    # Without noise over rows it is Welch's t test of the runs' values.
    runs_a, runs_b = [0.50, 0.53, 0.49], [0.60, 0.55, 0.58, 0.61]
    still = msgspec.structs.replace(plain, estimate=float(np.mean(runs_b) - np.mean(runs_a)), se=1e-12, df=49.0)
    noisy = stats.with_run_noise(still, runs_a, runs_b)
    welch = sps.ttest_ind(runs_b, runs_a, equal_var=False)
    assert noisy.p_value == pytest.approx(welch.pvalue, abs=1e-9)
    interval = welch.confidence_interval()
    assert (noisy.low, noisy.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert stats.run_noise(runs_a) == pytest.approx(np.std(runs_a, ddof=1))
    assert stats.run_noise([0.5]) is None
