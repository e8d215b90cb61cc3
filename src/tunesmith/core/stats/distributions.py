"""The quantiles and tail areas that the tests need, as plain floats; scipy is imported on first use, so that importing stays fast."""

from __future__ import annotations

from statistics import NormalDist

_normal = NormalDist()


def z_quantile(p: float) -> float:
    """Quantile of the standard normal."""
    return _normal.inv_cdf(p)


def z_cdf(z: float) -> float:
    """Distribution function of the standard normal."""
    return _normal.cdf(z)


def z_for(level: float) -> float:
    """Half-width in standard errors of a two-sided normal interval: 1.95996 at 0.95."""
    return _normal.inv_cdf(0.5 + level / 2)


def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's t with `df` degrees of freedom."""
    from scipy import special

    return float(special.stdtrit(df, p))


def t_for(level: float, df: float) -> float:
    """Half-width in standard errors of a two-sided t interval."""
    return t_quantile(0.5 + level / 2, df)


def t_p_value(t: float, df: float) -> float:
    """Two-sided p-value of a t statistic."""
    from scipy import special

    return float(2 * special.stdtr(df, -abs(t)))


def nct_cdf(t: float, df: float, shift: float) -> float:
    """Distribution function of the non-central t."""
    from scipy import special

    return float(special.nctdtr(df, shift, t))


def beta_quantile(p: float, a: float, b: float) -> float:
    """Quantile of the beta distribution."""
    from scipy import special

    return float(special.betaincinv(a, b, p))


def poisson_least(count: float, level: float) -> float:
    """The one-sided lower bound of a Poisson mean of which `count` were seen."""
    from scipy import special

    return float(special.gammaincinv(count, 1 - level))


def binomial_cdf(k: int, n: int, p: float = 0.5) -> float:
    """Probability of at most `k` successes in `n` trials; 0 for k < 0."""
    from scipy import special

    return float(special.bdtr(k, n, p)) if k >= 0 else 0.0


def chi2_tail(x: float, df: int) -> float:
    """Upper tail of χ²."""
    from scipy import special

    return float(special.chdtrc(df, x))
