"""What more data would bring: curves of several shapes whose truth is known, the rows that a target needs, and "cannot tell"."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.core.errors import DataError, UsageError
from tunesmith.decide.curve import fit_curve

SHAPES = {
    "power": lambda d: 0.15 + 1.2 * d**-0.35,
    "rectified": lambda d: 0.12 + 0.6 * 300**0.9 / (300**0.9 + d**0.9),
    "late drop": lambda d: 0.1 + 0.7 * 900**1.2 / (900**1.2 + d**1.2),
    "plateau": lambda d: 0.2 + 0.4 * np.exp(-d / 250),
    "logistic": lambda d: 0.15 + 0.5 / (1 + (d / 600) ** 1.5),
    "nothing": lambda d: 0.35 + 0 * d,
}


def measured(error, sizes, seed, noise=0.012):
    rng = np.random.default_rng(seed)
    at = np.repeat(np.array(sizes, dtype=float), 3)
    return at.tolist(), np.clip(1 - error(at) + noise * rng.normal(size=at.size), 0, 1).tolist(), rng


@pytest.mark.slow
def test_the_score_at_all_the_data_lies_in_the_band_from_up_to_half_of_it() -> None:
    """Six shapes, four of which follow neither law, eight noisy curves each: the 90 % band holds at least .85 of the scores; it is narrow
    enough to say something."""
    inside, widths = [], []
    for error in SHAPES.values():
        for seed in range(8):
            sizes, scores, rng = measured(error, (100, 200, 400, 800), seed)
            band = fit_curve(sizes, scores).predict(1600, runs=3)
            truth = 1 - float(error(np.array([1600.0]))[0]) + 0.012 * rng.normal() / 3**0.5
            inside.append(band.low <= truth <= band.high)
            widths.append(band.high - band.low)
    assert np.mean(inside) >= 0.85
    assert np.mean(widths) < 0.2


def test_the_laws_are_told_apart_where_the_data_does() -> None:
    """Nothing until 800 rows and then a drop: the rectified law. The chance that one law foretold the largest size decides."""
    sizes, scores, _ = measured(lambda d: 0.1 + 0.7 * 2000**2 / (2000**2 + d**2), (125, 250, 500, 1000, 2000), 1)
    curve = fit_curve(sizes, scores)
    assert curve.law == "rectified"
    assert curve.predict(4000).value > curve.predict(2000).value + 0.05
    assert curve.predict(10_000, level=0.5).low >= curve.predict(10_000, level=0.9).low


def test_more_data_and_more_noise_mean_wider_bands() -> None:
    sizes, scores, _ = measured(SHAPES["power"], (100, 200, 400, 800), 3)
    curve = fit_curve(sizes, scores)
    width = [
        band.high - band.low for band in (curve.predict(800, runs=None), curve.predict(1600, runs=None), curve.predict(8000, runs=None))
    ]
    assert width == sorted(width)
    single, mean = curve.predict(1600), curve.predict(1600, runs=None)
    assert single.high - single.low > mean.high - mean.low
    assert 0.0 <= mean.low <= mean.value <= mean.high <= 1.0


def test_rows_for_a_target() -> None:
    """.15 + 1.2 / D^.35 is an error of .2176 at 4,000 rows; a score that no data brings has no number."""
    sizes, scores, _ = measured(SHAPES["power"], (100, 200, 400, 800, 1600), 5, noise=0.004)
    curve = fit_curve(sizes, scores)
    there = curve.rows_for(1 - float(SHAPES["power"](np.array([1000.0]))[0]))
    assert there.rows == pytest.approx(1000, rel=0.3)
    assert there.chance > 0.95
    far = curve.rows_for(1 - float(SHAPES["power"](np.array([4000.0]))[0]))
    assert far.low is not None
    assert far.low < 4000
    assert far.high is None or far.high > 4000
    never = curve.rows_for(0.999)
    assert (never.rows, never.high) == (None, None)
    assert never.chance < 0.5


def test_the_untrained_model_may_be_a_point_and_the_result_is_always_the_same() -> None:
    sizes, scores, _ = measured(SHAPES["rectified"], (100, 200, 400), 2)
    curve = fit_curve([0, *sizes], [0.28, *scores])
    assert curve.predict(800) == fit_curve([0, *sizes], [0.28, *scores]).predict(800)


def test_what_is_no_curve_is_refused() -> None:
    with pytest.raises(DataError, match=r"2 size\(s\)"):
        fit_curve([0, 100, 200, 200], [0.1, 0.5, 0.6, 0.6])
    with pytest.raises(DataError, match=r"scores from 0\.5 to 60"):
        fit_curve([100, 200, 400], [0.5, 60, 0.6])
    with pytest.raises(UsageError, match="3 sizes and 2 scores"):
        fit_curve([100, 200, 400], [0.5, 0.6])
    curve = fit_curve([100, 200, 400], [0.5, 0.6, 0.65])
    with pytest.raises(UsageError, match="more than 0 rows"):
        curve.predict(0)
    with pytest.raises(UsageError, match="target of 65"):
        curve.rows_for(65)
