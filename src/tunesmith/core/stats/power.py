"""How many rows a question needs, and what a given test set can see; knows nothing about metrics.

All sizes are for two-sided tests at `alpha` and count rows that stand alone: in clusters, multiply by the design effect.
"""

from __future__ import annotations

from math import ceil, sqrt

import numpy as np

from tunesmith.core.errors import UsageError
from tunesmith.core.stats.distributions import nct_cdf, t_quantile, z_quantile
from tunesmith.core.stats.paired import TANGO
from tunesmith.core.stats.records import Difference, share

_FEW = 300  # rows, up to which the normal approximation is off by more than a tenth where the rates are near their ends
_EXACT_UP_TO = 100_000  # rows; beyond, the normal approximation is exact to three figures


def _z_sum(power: float, alpha: float) -> float:
    return z_quantile(1 - share(alpha, "alpha") / 2) + z_quantile(share(power, "power"))


def _positive(value: float, what: str) -> float:
    if not value > 0:
        raise UsageError(f"{what} is {value}", allowed="more than 0")
    return value


def power_means(effect_size: float, n: int, *, alpha: float = 0.05, paired: bool = False) -> float:
    """Power of the t test for Cohen's d (paired: d_z) with `n` rows a group (paired: `n` pairs), from the non-central t."""
    if n < 2:
        raise UsageError(f"{n} rows a group", allowed="at least 2")
    df, shift = (n - 1, abs(effect_size) * sqrt(n)) if paired else (2 * n - 2, abs(effect_size) * sqrt(n / 2))
    edge = t_quantile(1 - share(alpha, "alpha") / 2, df)
    return 1 - nct_cdf(edge, df, shift) + nct_cdf(-edge, df, shift)


def sample_size_means(effect_size: float, *, power: float = 0.8, alpha: float = 0.05, paired: bool = False) -> int:
    """Rows a group (paired: pairs) for the t test to see Cohen's d (d_z): the smallest whole number that has the power."""
    size = _positive(abs(effect_size), "the effect size")
    n = max(2, ceil((1 if paired else 2) * (_z_sum(power, alpha) / size) ** 2))
    # The normal approximation asks for a few rows too few, never too many.
    while power_means(effect_size, n, alpha=alpha, paired=paired) < power:
        n += 1
    return n


def sample_size_proportions(rate_a: float, rate_b: float, *, power: float = 0.8, alpha: float = 0.05, pooled: bool = False) -> int:
    """Rows a group to see two independent rates apart; `pooled` uses their common variance for the test's threshold."""
    gap = _positive(abs(share(rate_b, "rate_b") - share(rate_a, "rate_a")), "the difference of the rates")
    spread = rate_a * (1 - rate_a) + rate_b * (1 - rate_b)
    if not pooled:
        return ceil(_z_sum(power, alpha) ** 2 * spread / gap**2)
    middle = (rate_a + rate_b) / 2
    z_alpha, z_power = z_quantile(1 - share(alpha, "alpha") / 2), z_quantile(share(power, "power"))
    return ceil((z_alpha * sqrt(2 * middle * (1 - middle)) + z_power * sqrt(spread)) ** 2 / gap**2)


def sample_size_paired_scores(
    difference: float, between: float, *, noise_a: float = 0.0, noise_b: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Questions to see a mean paired difference (Miller 2024, arXiv 2411.00640).

    `between` is the variance over questions of the difference of the two models' expected scores; `noise_a` and `noise_b` the variance of
    one question's score around its expectation, divided by the number of samples a question.
    """
    variance = _positive(between + noise_a + noise_b, "the variance of the difference")
    return ceil(_z_sum(power, alpha) ** 2 * variance / _positive(abs(difference), "the difference") ** 2)


def sample_size_paired_rates(difference: float, discordance: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Rows to see a difference of two paired rates when a share `discordance` of rows is right for one model only."""
    gap = _positive(abs(difference), "the difference")
    if not gap <= discordance <= 1:
        raise UsageError(f"discordance {discordance} with a difference of {difference}", allowed="from the difference to 1")
    return ceil(_z_sum(power, alpha) ** 2 * max(discordance - gap**2, 0.0) / gap**2)


def sample_size_non_inferiority(
    margin: float, discordance: float, *, difference: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Rows for a gate with tolerance `margin` to pass a model whose true difference is `difference` (0: truly equal) with this power.

    The usual normal approximation, (z_{1−α/2} + z_power)² (discordance − difference²) / (margin + difference)², is only the start: with few
    discordant rows the gate's score interval is wider than it says (at margin .05 and discordance .1 its 314 rows have power .763), so
    rows are added until `power_non_inferiority`, which is exact, reaches the power.
    """
    room = _positive(_positive(margin, "the margin") + difference, "margin + difference")
    if not abs(difference) <= discordance <= 1:
        raise UsageError(f"discordance {discordance} with a difference of {difference}", allowed="from the difference to 1")
    n = max(2, ceil(_z_sum(power, alpha) ** 2 * (discordance - difference**2) / room**2))
    while n < _EXACT_UP_TO and power_non_inferiority(n, margin, discordance, difference=difference, alpha=alpha) < power:
        n += max(1, n // 200)
    return n


def power_non_inferiority(n: int, margin: float, discordance: float, *, difference: float = 0.0, alpha: float = 0.05) -> float:
    """The exact chance that Tango's interval over `n` paired right/wrong rows lies above −margin (see `power_edge`)."""
    return power_edge(n, -margin, discordance, difference=difference, alpha=alpha)


def power_edge(n: int, edge: float, discordance: float, *, difference: float, alpha: float = 0.05) -> float:
    """The exact chance that Tango's interval over `n` paired right/wrong rows lies above `edge`: summed over all counts of wins and
    losses, whose probabilities are multinomial. The bound lies above the edge where the score statistic there exceeds z (Tango 1998).
    """
    from scipy import special

    if n < 1:
        raise UsageError(f"{n} rows", allowed="at least 1")
    won, lost = (discordance + difference) / 2, (discordance - difference) / 2
    least, most = _likely(n, lost)
    losses = np.arange(least, most + 1, dtype=np.float64)[:, None]
    wins = np.arange(*_likely(n, won), dtype=np.float64)[None, :]
    ties = n - wins - losses
    with np.errstate(invalid="ignore"):
        log = special.gammaln(n + 1) - special.gammaln(wins + 1) - special.gammaln(losses + 1) - special.gammaln(ties + 1)
        log += special.xlogy(wins, won) + special.xlogy(losses, lost) + special.xlogy(ties, 1 - won - lost)
    linear = -wins - losses + (2 * n - wins + losses) * edge
    loss_rate = (np.sqrt(np.maximum(linear**2 + 8 * n * losses * edge * (1 - edge), 0.0)) - linear) / (4 * n)
    variance = n * (2 * loss_rate + edge * (1 - edge))
    passes = (ties >= 0) & (wins - losses - n * edge > z_quantile(1 - share(alpha, "alpha") / 2) * np.sqrt(np.maximum(variance, 0.0)))
    return float(np.exp(log[passes]).sum())


def _likely(n: int, rate: float) -> tuple[int, int]:
    """Counts outside of which a binomial has less than 1e-15 of its probability."""
    reach = 8.5 * sqrt(n * rate * (1 - rate)) + 40
    return max(0, int(n * rate - reach)), min(n, int(n * rate + reach)) + 1


def smallest_detectable_rates(n: int, discordance: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference of two paired rates that `n` rows see with this power: the inverse of `sample_size_paired_rates`."""
    if n < 1:
        raise UsageError(f"{n} rows", allowed="at least 1")
    k = _z_sum(power, alpha) ** 2
    return sqrt(k * _positive(discordance, "the discordance") / (n + k))


def smallest_detectable(difference: Difference, *, power: float = 0.8) -> float:
    """The smallest true difference that the same rows would show with this power, from the standard error that was measured.

    (t_{1−α/2} + t_power) · se with its degrees of freedom (Bloom 1995); α is 1 − the interval's level. For few right/wrong rows, where
    that says too little, by the exact power of Tango's interval; 1 where not even that would be seen.
    """
    if difference.df is not None:
        edge, reach = t_quantile(0.5 + difference.level / 2, difference.df), t_quantile(share(power, "power"), difference.df)
        return (edge + reach) * difference.se
    usual = _z_sum(power, 1 - difference.level) * difference.se
    if difference.method != TANGO or difference.n > _FEW:
        return usual
    differ, low, high = (difference.wins + difference.losses) / difference.n, 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        seen = power_edge(difference.n, 0.0, max(differ, middle), difference=middle, alpha=1 - difference.level) >= power
        low, high = (low, middle) if seen else (middle, high)
    return high
