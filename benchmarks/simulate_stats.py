"""Simulates the project's statistics against what they promise and writes docs/statistics.md; knows nothing about models or data.

`python -m benchmarks.simulate_stats [--runs 2000] [--out docs/statistics.md] [--only TITLE …]`; prints `ratio worst_coverage X`. Every
cell calls the public functions `runs` times on fresh random data; at 2,000 runs a share near .05 has a standard error of .005, one near
.8 of .009.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.core import stats
from tunesmith.core.errors import DataError
from tunesmith.core.stats.bootstrap import percentiles, resampled_sums

Floats = NDArray[np.float64]
SHAPES = {
    "5 × 20": [20] * 5,
    "20 × 10": [10] * 20,
    "200 × 5": [5] * 200,
    "100 × 1, 30 × 2, 10 × 5, 2 × 20": [1] * 100 + [2] * 30 + [5] * 10 + [20] * 2,
    "100 × 1, 4 × 25": [1] * 100 + [25] * 4,
    "60 × 1, 3 × 30": [1] * 60 + [30] * 3,
    "40 × 1, 1 × 60": [1] * 40 + [60],
    "64, 32, 16, 8, 4, 2, 4 × 1": [64, 32, 16, 8, 4, 2, 1, 1, 1, 1],
}
JUDGES = {"kappa .85": (0.95, 0.90), "lenient": (0.97, 0.60), "weak": (0.75, 0.65), "perfect": (1.0, 1.0), "useless": (0.5, 0.5)}


def share(hits: Iterable[bool]) -> float:
    return float(np.mean(list(hits)))


def covers(interval: stats.Interval | stats.Difference, truth: float) -> bool:
    return interval.low <= truth <= interval.high


COVERED: list[float] = []


def noted(value: float) -> float:
    """A coverage that counts for the worst cell."""
    COVERED.append(value)
    return value


def held(trial: Callable[[], bool], runs: int) -> float:
    """The share of trials that hold; where it is near the limit, of five times as many."""
    hits = [trial() for _ in range(runs)]
    if np.mean(hits) < 0.945:
        hits += [trial() for _ in range(4 * runs)]
    return noted(share(hits))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rates(runs: int, rng: np.random.Generator) -> str:
    from scipy.stats import binom

    truths, sizes = (0.5, 0.8, 0.95, 0.99), (10, 20, 30, 50, 100, 300, 1000)
    covered: list[list[float]] = []
    for n in sizes:
        found = [stats.rate_interval([1.0] * k + [0.0] * (n - k)) for k in range(n + 1)]
        inside = [np.array([covers(interval, p) for interval in found]) for p in truths]
        covered.append([noted(float(binom.pmf(np.arange(n + 1), n, p) @ held)) for p, held in zip(truths, inside, strict=True)])
    rows = [[n, *cells] for n, cells in zip(sizes, covered, strict=True)]
    mean, worst = float(np.mean(covered)), float(np.min(covered))
    return table(["n", *(f"rate {p}" for p in truths)], rows) + f"\n\nMean {mean:.3f} (aim .94 to .965), worst cell {worst:.3f} (aim .93)."


def clusters(runs: int, rng: np.random.Generator) -> str:
    from scipy.special import ndtr

    rows = []
    for name, sizes in SHAPES.items():
        codes = np.repeat(np.arange(len(sizes)), sizes)
        cells: list[float] = []
        for icc in (0.0, 0.3, 0.9):
            called = []
            for _ in range(runs):
                values = rng.normal(size=len(sizes))[codes] * np.sqrt(icc) + rng.normal(size=codes.size) * np.sqrt(1 - icc)
                scores = ndtr(values)  # on the scale from 0 to 1
                called.append(stats.paired_difference(np.full(codes.size, 0.5), scores, codes).p_value < 0.05)
            cells.append(share(called))
        rows.append([name, *cells])
    return table(["clusters × rows", "correlation 0", "0.3", "0.9"], rows)


def clustered_rates(runs: int, rng: np.random.Generator) -> str:
    rows = []
    for count, size in ((5, 20), (20, 10), (50, 4), (200, 5)):
        codes, cells = np.repeat(np.arange(count), size), list[float]()
        for p in (0.5, 0.8, 0.95, 0.99):
            # Beta-binomial clusters with correlation .3.
            def trial(p: float = p, codes: NDArray[np.intp] = codes, count: int = count) -> bool:
                own = rng.beta(p * 7 / 3, (1 - p) * 7 / 3, count)
                return covers(stats.rate_interval((rng.random(codes.size) < own[codes]).astype(float), codes), p)

            cells.append(held(trial, runs))
        rows.append([f"{count} × {size}", *cells])
    return table(["clusters × rows", *(f"rate {p}" for p in (0.5, 0.8, 0.95, 0.99))], rows)


def pairs(n: int, won: float, lost: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """0/1 scores of two models: B alone is right with probability `won`, A alone with `lost`."""
    kind = rng.choice(4, size=n, p=[won, lost, 0.7 - lost, 0.3 - won])
    return np.isin(kind, (1, 2)).astype(float), np.isin(kind, (0, 2)).astype(float)


def paired(runs: int, rng: np.random.Generator) -> str:
    rows: list[list[object]] = []
    for n, discordance, gap in ((1000, 0.13, 0.03), (1000, 0.04, 0.03), (300, 0.2, 0.05), (100, 0.1, 0.05)):
        same = share(stats.paired_difference(*pairs(n, discordance / 2, discordance / 2, rng)).p_value < 0.05 for _ in range(runs))
        found = [stats.paired_difference(*pairs(n, (discordance + gap) / 2, (discordance - gap) / 2, rng)) for _ in range(runs)]
        power, covered = share(d.p_value < 0.05 for d in found), noted(share(covers(d, gap) for d in found))
        rows.append([f"right/wrong, {discordance:.0%} of rows discordant, true {gap:+.2f}", n, same, power, covered])
    for n in (20, 200):
        # On a scale from 0 to 1, so that 20 rows are not refused; the differences' standard deviation is 0.1.
        a, truth = rng.uniform(0.35, 0.6, size=(runs, n)), 0.02
        b = a + rng.uniform(-1, 1, size=(runs, n)) * 0.1 * np.sqrt(3)
        same = share(stats.paired_difference(x, y).p_value < 0.05 for x, y in zip(a, b, strict=True))
        found = [stats.paired_difference(x, y + truth) for x, y in zip(a, b, strict=True)]
        power, covered = share(d.p_value < 0.05 for d in found), noted(share(covers(d, truth) for d in found))
        rows.append([f"scores on a scale, true {truth / 0.1:+.2f} sd", n, same, power, covered])
    return table(["scores", "n", "called different when equal", "power", "coverage"], rows)


def gates(runs: int, rng: np.random.Generator) -> str:
    rows: list[list[object]] = []
    for what, change, discordance, margin, n in (
        ("unchanged, planned n", 0.0, 0.1, 0.02, None),
        ("unchanged, planned n", 0.0, 0.1, 0.05, None),
        ("unchanged, planned n", 0.0, 0.2, 0.03, None),
        ("unchanged, too few rows", 0.0, 0.2, 0.03, 100),
        ("planted: twice the tolerance below, planned n", -0.06, 0.2, 0.03, None),
        ("planted: at the tolerance, planned n", -0.03, 0.2, 0.03, None),
        ("improved by the tolerance, planned n", 0.03, 0.2, 0.03, None),
        ("planted, too few rows", -0.06, 0.2, 0.03, 100),
    ):
        size = n or stats.sample_size_non_inferiority(margin, discordance)
        won, lost = (discordance + change) / 2, (discordance - change) / 2
        said = [stats.non_inferiority(stats.paired_difference(*pairs(size, won, lost, rng)), margin).decision for _ in range(runs)]
        rows.append([what, discordance, margin, size, *(share(s == answer for s in said) for answer in ("pass", "block", "cannot tell"))])
    return table(["candidate", "discordance", "tolerance", "rows", "pass", "block", "cannot tell"], rows)


def planner(runs: int, rng: np.random.Generator) -> str:
    rows: list[list[object]] = []
    for gap in (0.02, 0.03, 0.05, 0.10):
        n = stats.sample_size_paired_rates(gap, 0.2)
        found = (stats.paired_difference(*pairs(n, 0.1 + gap / 2, 0.1 - gap / 2, rng)).p_value < 0.05 for _ in range(runs))
        rows.append([f"paired rates, {gap:+.2f} at discordance .2", n, share(found)])
    for d in (0.2, 0.5):
        n = stats.sample_size_means(d, paired=True)
        found = (stats.paired_difference(np.full(n, 0.5), 0.5 + 0.08 * rng.normal(d, 1, n)).p_value < 0.05 for _ in range(runs))
        rows.append([f"paired scores, d_z {d}", n, share(found)])
    return table(["question", "planned n", "share that decides (aim .80 ± .03)"], rows)


def judges(runs: int, rng: np.random.Generator) -> str:
    rows: list[list[object]] = []
    for name, (sensitivity, specificity) in JUDGES.items():
        for truth in (0.7, 0.9):
            cells = []
            for _ in range(runs):
                right = rng.random(1100) < truth
                said = np.where(right, rng.random(1100) < sensitivity, rng.random(1100) >= specificity).astype(float)
                human = right[:100].astype(float)
                corrected = stats.ppi_mean(human, said[:100], said[100:])
                strata = (
                    stats.post_stratified_mean(human, said[:100].tolist(), said[100:].tolist()) if 1 < said[:100].sum() < 99 else corrected
                )
                cells.append(
                    [(covers(i, truth), i.high - i.low) for i in (stats.rate_interval(human), stats.rate_interval(said), corrected, strata)]
                )
            means = np.mean(cells, axis=0)
            noted(float(means[2, 0]))
            noted(float(means[3, 0]))
            rows.append([name, truth, *(f"{covered:.3f} ({width:.3f})" for covered, width in means)])
    return table(["judge", "true rate", "100 labels alone", "judge alone", "PPI++", "post-stratified"], rows)


def entities(n: int, size: int, recall: float, rng: np.random.Generator) -> list[Floats]:
    """[n, 3] counts of two equal models whose rows (in clusters of `size`) share a difficulty."""
    hard = np.repeat(rng.normal(size=n // size), size)
    there, tables = 1 + rng.poisson(0.7, n), []
    for _ in range(2):
        odds = np.log(recall / (1 - recall)) * 1.25 + hard * 0.7 + rng.normal(size=n) * 0.5
        found = rng.binomial(there, 1 / (1 + np.exp(-odds)))
        tables.append(np.column_stack([found, rng.binomial(there - found, 0.5) + rng.poisson(0.02, n), there - found]).astype(float))
    return tables


def pooled(runs: int, rng: np.random.Generator) -> str:
    rows: list[list[object]] = []
    for recall in (0.15, 0.5, 0.85, 0.97):
        truth = float(stats.row_f1(entities(400_000, 1, recall, rng)[0].sum(axis=0)))
        for n, size in ((40, 1), (100, 1), (300, 5)):
            codes, ours, theirs = np.repeat(np.arange(n // size), size), [], []
            for _ in range(runs):
                a, b = entities(n, size, recall, rng)
                one, two = stats.pooled_f1_interval(a, codes), stats.paired_pooled_f1(a, b, codes)
                ours.append((covers(one, truth), two.p_value < 0.05))
                units = np.hstack([a, b]).reshape(n // size, size, 6).sum(axis=1)
                sums = resampled_sums(units, 1000, seed=len(theirs))
                low, high = percentiles(stats.row_f1(sums[:, :3]), 0.95)
                under, over = percentiles(stats.row_f1(sums[:, 3:]) - stats.row_f1(sums[:, :3]), 0.95)
                theirs.append((low <= truth <= high, not under <= 0 <= over))
            noted(float(np.mean(ours, axis=0)[0]))
            rows.append([f"{truth:.2f}", f"{n // size} × {size}", *(float(x) for x in (*np.mean(ours, axis=0), *np.mean(theirs, axis=0)))])
    return table(
        ["true F1", "clusters × rows", "coverage", "called different when equal", "coverage, bootstrap", "called different, bootstrap"],
        rows,
    )


def many(runs: int, rng: np.random.Generator) -> str:
    raw, holm, bh = [], [], []
    for _ in range(runs):
        p = [stats.paired_difference(np.full(50, 0.5), 0.5 + 0.08 * x).p_value for x in rng.normal(size=(40, 50))]
        raw.append(min(p) < 0.05)
        holm.append(stats.holm(p).min() < 0.05)
        bh.append(stats.benjamini_hochberg(p).min() < 0.05)
    return table(
        ["", "uncorrected", "Holm", "Benjamini–Hochberg"], [["at least one false win in 40 looks", share(raw), share(holm), share(bh)]]
    )


def winners(runs: int, rng: np.random.Generator) -> str:
    rows: list[list[object]] = []
    for k, n in ((10, 100), (10, 300), (30, 300)):
        gains, dev, test = [], [], []
        for _ in range(runs):
            chosen = rng.binomial(n, 0.7, k).max()
            fresh = rng.binomial(n, 0.7)
            gains.append(chosen / n - 0.7)
            dev.append(covers(stats.wilson(int(chosen), n), 0.7))
            test.append(covers(stats.wilson(int(fresh), n), 0.7))
        rows.append([k, n, f"{100 * np.mean(gains):+.1f}", share(dev), share(test)])
    return table(
        ["equal models", "rows", "winner's value, points too high", "coverage on the rows it was chosen on", "on sealed rows"], rows
    )


def noisy_runs(runs: int, rng: np.random.Generator) -> str:
    rows: list[list[object]] = []
    for seeds, spread in ((3, 0.0), (3, 0.02), (5, 0.02), (5, 0.05)):
        plain, noisy = [], []
        for _ in range(runs):
            hard = rng.uniform(0.4, 1.0, 500)
            a, b = ([(rng.random(500) < np.clip(hard + rng.normal(0, spread), 0, 1)).astype(float) for _ in range(seeds)] for _ in range(2))
            found = stats.paired_difference(np.mean(a, axis=0), np.mean(b, axis=0))
            plain.append(found.p_value < 0.05)
            noisy.append(stats.with_run_noise(found, [x.mean() for x in a], [x.mean() for x in b]).p_value < 0.05)
        rows.append([seeds, f"{100 * spread:.0f} points", share(plain), share(noisy)])
    return table(["runs a side", "spread between runs", "called different when equal, rows only", "with the noise of the runs"], rows)


KAPPAS = (0.0, 0.4, 0.81, 0.95, 0.98)


def agreements(runs: int, rng: np.random.Generator) -> str:
    """Two raters: the shares of the categories and kappa give the table. Several: each unit has a truth, each rater sees it with a
    probability and otherwise draws from the shares; then kappa and nominal alpha are that probability squared."""
    rows: list[list[object]] = []
    for shares in ((0.5, 0.5), (0.8, 0.2), (0.97, 0.03), (0.4, 0.3, 0.3)):
        for n in (20, 50, 200):
            cells = [held(lambda k=kappa: _two(shares, n, k, rng), runs // 4) for kappa in KAPPAS]  # type: ignore[misc] # noqa: B023
            rows.append([f"Cohen, shares {', '.join(f'{x:g}' for x in shares)}", n, *cells])
    for name, measure in (("Fleiss, 3 raters", stats.fleiss_kappa), ("Krippendorff, 3 raters, some missing", _some_missing)):
        for n in (10, 20, 50):
            cells = [held(lambda k=kappa: _three(measure, n, k, rng), runs // 4) for kappa in KAPPAS]  # type: ignore[misc] # noqa: B023
            rows.append([f"{name}, shares 0.6, 0.3, 0.1", n, *cells])
    return table(["raters", "units", *(f"κ {k:g}" for k in KAPPAS)], rows)


def _two(shares: Sequence[float], n: int, kappa: float, rng: np.random.Generator) -> bool:
    joint = (1 - kappa) * np.outer(shares, shares) + kappa * np.diag(shares)
    while True:  # over tables in which kappa is defined
        counts = rng.multinomial(n, joint.ravel())
        a, b = np.divmod(np.repeat(np.arange(counts.size), counts), len(shares))
        if np.unique(np.concatenate([a, b])).size > 1:
            return covers(stats.cohen_kappa(a.tolist(), b.tolist()), kappa)


def _three(measure: Callable[[list[list[int]]], stats.Interval], n: int, kappa: float, rng: np.random.Generator) -> bool:
    while True:
        truth = rng.choice(3, size=n, p=(0.6, 0.3, 0.1))
        seen = np.where(rng.random((n, 3)) < kappa**0.5, truth[:, None], rng.choice(3, size=(n, 3), p=(0.6, 0.3, 0.1)))
        try:
            return covers(measure(seen.tolist()), kappa)
        except DataError:  # one category in all ratings: undefined
            continue


def _some_missing(ratings: list[list[int]]) -> stats.Interval:
    """Krippendorff's alpha where every fifth unit lacks the last rater."""
    return stats.krippendorff_alpha([[*row[:2], None if i % 5 == 0 else row[2]] for i, row in enumerate(ratings)])


Draw = Callable[[int, np.random.Generator], Floats]
ENDS: dict[str, tuple[Draw, float]] = {
    "5 % of rows anywhere, the others 1": (lambda n, rng: np.where(rng.random(n) < 0.05, rng.random(n), 1.0), 0.975),
    "1 % of rows 0, the others .9 to 1": (lambda n, rng: np.where(rng.random(n) < 0.01, 0.0, rng.uniform(0.9, 1, n)), 0.9405),
    "beta(5, .2)": (lambda n, rng: rng.beta(5, 0.2, n), 5 / 5.2),
    "1, ½ or 0 at .9, .05, .05": (lambda n, rng: rng.choice([1.0, 0.5, 0.0], p=[0.9, 0.05, 0.05], size=n), 0.925),
    "even from 0 to 1": (lambda n, rng: rng.random(n), 0.5),
}


def ends(runs: int, rng: np.random.Generator) -> str:
    rows: list[list[object]] = []
    for name, (draw, truth) in ENDS.items():
        for what, sizes in (("rows", (10, 20, 50, 100, 300)), ("clusters of 10", (5, 8, 10, 20, 50))):
            each = 1 if what == "rows" else 10
            codes = [np.repeat(np.arange(n), each) for n in sizes]
            cells = [
                held(lambda c=c, n=n: covers(stats.mean_interval(np.repeat(draw(n, rng), each), c), truth), runs)  # type: ignore[misc] # noqa: B023
                for c, n in zip(codes, sizes, strict=True)
            ]
            rows.append([name, what, *(f"{cell:.3f} ({n})" for cell, n in zip(cells, sizes, strict=True))])
    return table(["scores", "of what", *["coverage (how many)"] * 5], rows)


def changes(runs: int, rng: np.random.Generator) -> str:
    rows: list[list[object]] = []
    for name, (draw, _) in list(ENDS.items())[:-1]:
        cells: list[float] = []
        for n in (20, 50, 100, 300):

            def trial(n: int = n, draw: Draw = draw) -> bool:
                a = draw(n, rng)
                b = np.where(rng.random(n) < 0.2, draw(n, rng), a)  # every fifth row is answered anew
                return covers(stats.paired_difference(a, b), 0.0)

            cells.append(held(trial, runs))
        rows.append([name, *cells])
    return table(["scores", *(f"{n} rows" for n in (20, 50, 100, 300))], rows)


ENDLESS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda n, rng: rng.normal(3, 1, n), 3.0),
    "exponential": (lambda n, rng: rng.exponential(1.0, n), 1.0),
    "gamma(½)": (lambda n, rng: rng.gamma(0.5, 1.0, n), 0.5),
    "log-normal, σ = ½": (lambda n, rng: np.exp(0.5 * rng.normal(size=n)), float(np.exp(0.125))),
    "log-normal, σ = 1": (lambda n, rng: np.exp(rng.normal(size=n)), float(np.exp(0.5))),
    "one in ten takes ten times as long": (lambda n, rng: rng.gamma(4.0, 1.0, n) * np.where(rng.random(n) < 0.1, 10.0, 1.0), 7.6),
}
UNITS = (34, 35, 50, 75, 100, 300)


def endless(runs: int, rng: np.random.Generator) -> str:
    rows: list[list[object]] = []
    for name, (draw, truth) in ENDLESS.items():
        for what, each in (("rows", 1), ("clusters of 5", 5)):
            cells = [_endless(draw, truth, n, each, runs, rng) for n in UNITS]
            rows.append([f"{name}, {what}", *cells])
    for name, (draw, truth) in list(ENDLESS.items())[1:]:

        def gain(n: int, rng: np.random.Generator, draw: Draw = draw) -> Floats:
            return draw(n, rng) * 1.5 - draw(n, rng)  # of B, half as long again

        rows.append([f"{name}, B half as much again as A, rows", *(_endless(gain, truth / 2, n, 1, runs, rng) for n in UNITS)])
    before = len(COVERED)
    rare = [_endless(lambda n, r: r.gamma(4.0, 1.0, n) * np.where(r.random(n) < 0.05, 5.0, 1.0), 4.8, n, 1, runs, rng) for n in UNITS]
    del COVERED[before:]
    rows.append(["not counted: one in twenty five times as large, rows", *rare])
    return table(["values", *(f"{n} independent" for n in UNITS)], rows)


def _endless(draw: Draw, truth: float, n: int, each: int, runs: int, rng: np.random.Generator) -> str:
    """Coverage of one cell as text, with that of ± t in brackets. Paired differences have the same interval of their own mean."""
    from scipy.stats import t

    codes, reach, plain = np.repeat(np.arange(n), each), float(t.ppf(0.975, n - 1)), []

    def trial() -> bool:
        values = draw(n, rng)
        plain.append(abs(values.mean() - truth) <= reach * values.std(ddof=1) / np.sqrt(n))
        rows = np.repeat(values, each)
        return covers(stats.paired_difference(np.zeros(rows.size), rows, codes, span=0.0), truth)

    try:
        return f"{held(trial, runs // 4):.3f} ({share(plain):.3f})"
    except DataError:
        return "refused"


def calibrations(runs: int, rng: np.random.Generator) -> str:
    from tunesmith.core.types import Score
    from tunesmith.evaluate.compare import estimate
    from tunesmith.evaluate.metrics import metric

    measure, rows = metric("ece"), list[list[object]]()
    for name, rate in (
        ("calibrated", lambda c: c),
        ("right at the square", np.square),
        ("5 points too sure", lambda c: np.maximum(c - 0.05, 0)),
    ):
        cells: list[float] = []
        for n in (30, 100, 500):
            many = rng.beta(5, 1, 400_000)
            bins = np.minimum(14, (many * 15).astype(int))
            truth = float(np.abs(np.bincount(bins, many - rate(many))).sum() / many.size)

            def trial(n: int = n, rate: Callable[[Floats], Floats] = rate, truth: float = truth) -> bool:
                sure = rng.beta(5, 1, n)
                right = rng.random(n) < rate(sure)
                scores = [Score(example_id=str(i), metric="ece", value=0.0, counts=(float(sure[i]), float(right[i]))) for i in range(n)]
                found = estimate(measure, scores)
                return found is not None and found.low <= truth + 1e-9 and truth <= found.high

            cells.append(held(trial, runs // 10))
        rows.append([name, *cells])
    return table(["model", "30 rows", "100 rows", "500 rows"], rows)


SECTIONS = (
    (
        ends,
        "Scores near the end of their scale",
        """Mean of scores between 0 and 1, read as a rate over its effective number of rows, with the variance that one more row (or
cluster) at the far end would add. Without it: .62 to .67 where 1 % of 50 or 100 rows fail, .72 for five clusters of beta(5, .2). In
clusters every row of a cluster has its score.""",
    ),
    (
        endless,
        "Values that have no end",
        """Seconds, tokens, log-probabilities: the hull of t and bootstrap-t with the variance of one more unit as far out as the
farthest, in brackets what ± t alone covers. Fewer than 35 independent rows (or clusters) are refused: five log-normal clusters (σ = 1)
cover .83 by ± t, and nothing in five numbers shows it. The last line is beyond what any interval of the rows can do, and is not counted
among the cells: where one in twenty is five times as large, a sixth of all samples of 35 hold none.""",
    ),
    (
        changes,
        "Differences of scores near the end of their scale",
        "Every fifth row is answered anew, so most do not differ; no true difference. Intervals end at ± the length of the scale.",
    ),
    (
        calibrations,
        "Expected calibration error",
        """Confidences are beta(5, 1). Chance alone makes this number larger than 0; the lower end of its interval allows for what chance
would do to a calibrated model.""",
    ),
    (
        agreements,
        "Agreement of raters",
        """Share of 95 % intervals that contain the true agreement, over tables in which it is defined. The usual large-sample interval of
Cohen's kappa has no width where all ratings agree, and a jackknife over 20 units covers Fleiss' kappa .68.""",
    ),
    (
        rates,
        "Interval of a rate",
        """Modified Wilson (Brown, Cai and DasGupta 2001): exact share of intervals that contain the true rate. It goes up and down with n
and the rate, because counts are whole. Wilson's own covers .904 at n = 10 and rate .99: nine right of ten exclude .99.""",
    ),
    (
        clusters,
        "Rows in clusters, no true difference",
        """Share called different at 5 %. Variance CR2, degrees of freedom the geometric mean of Bell and McCaffrey's for uncorrelated and
for fully correlated rows; with clusters of one size this is CR1 with t(C−1). CR1 with t(C−1) for every shape was tried first: it calls
16 % different at 60 × 1, 3 × 30 with correlation .3, and 45 % at 40 × 1, 1 × 60. With 10,000 runs the two worst cells below are .060.""",
    ),
    (
        clustered_rates,
        "Interval of a rate in clusters",
        """Modified Wilson at the effective number of rows with the t quantile; correlation .3. The variance has that of one more
cluster half of whose rows are at the far end: without it 20 × 10 at rate .95 covers .91.""",
    ),
    (
        paired,
        "Paired comparison",
        """Right/wrong scores: McNemar's mid-p with Tango's interval; other scores: paired t, whose exact size is .05. The exact sizes of
mid-p in the four rows below are .049, .048, .049 and .041.""",
    ),
    (
        gates,
        "The gate",
        """pass: the interval lies above −tolerance; block: below it; cannot tell: neither. With the planned n a truly equal candidate
passes in 80 %: the plan counts exactly. The usual formula's 314 rows at a tolerance of 5 points would pass it in .763.""",
    ),
    (planner, "The planner", "Rows from `sample_size_…`, and how often that many rows decide."),
    (
        judges,
        "Judges",
        """100 rows with human labels and 1,000 more with the judge's only: coverage, mean width in brackets. PPI++ and post-stratified use
the score interval at their effective size. Aim: PPI++ at least .935.""",
    ),
    (
        pooled,
        "Pooled F1",
        """Interval of micro F1 and paired test of two equal models, by leaving out one unit and t, beside the percentile bootstrap of the
same counts (1,000 resamples).""",
    ),
    (many, "Many looks", "Forty independent metrics or slices, all equal."),
    (
        winners,
        "The winner's curse",
        """Equal models with a true rate of .7; the best on its own rows, and the same model on rows that took no part in the choice: what
`tunesmith eval A B C --choose-on validation --data test` reports.""",
    ),
    (
        noisy_runs,
        "Noise from run to run",
        """Two equal recipes, each trained with several seeds; 500 rows. An interval over rows alone takes the luck of a seed for a
difference; `with_run_noise` (`tunesmith compare A1,A2,A3 B1,B2,B3`) does not, and is rather too wide than too narrow.""",
    ),
)


MISSED = """## Aims that are missed

- Clusters of very unequal size with correlation .9 reach 6 % only within simulation error (10,000 runs: .060).
- Values that have no end of which rare ones are several times the others, so rare that samples of this size often hold none: .90 (the last
  line of their table). No interval of the rows that were seen can hold; more rows do.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("docs/statistics.md"))
    parser.add_argument("--only", nargs="*", default=[], help="titles of sections to simulate again; the others stay as they are")
    arguments = parser.parse_args()
    started, parts = time.perf_counter(), []
    before = arguments.out.read_text("utf-8") if arguments.only else ""
    for seed, (simulate, title, text) in enumerate(SECTIONS):
        if arguments.only and title not in arguments.only:
            parts.append(kept(before, title))
            continue
        parts.append(f"## {title}\n\n{text}\n\n{simulate(arguments.runs, np.random.default_rng(seed))}\n")
        print(parts[-1], f"({time.perf_counter() - started:.0f} s)", sep="\n", flush=True)
    error = np.sqrt(0.05 * 0.95 / arguments.runs)
    head = f"""# What the statistics promise, and what they do

Simulated by `python -m benchmarks.simulate_stats --runs {arguments.runs}`: {arguments.runs:,} runs a cell with the functions that every
report uses (`tunesmith.core.stats`). A share near .05 has a standard error of {error:.3f}. Published numbers and other libraries are
matched to 1e-6 in `tests/test_stats.py`. Sections can be simulated alone (`--only`); those of an earlier call, to be told by their
cells of 2,000 runs or more, stay as they were.

"""
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(head + "\n".join([*parts, MISSED]), encoding="utf-8")
    if COVERED:
        print(f"{len(COVERED)} cells, standard error of one near .93: {np.sqrt(0.93 * 0.07 / (5 * arguments.runs)):.4f} to "
              f"{np.sqrt(0.93 * 0.07 / (1.25 * arguments.runs)):.4f}")  # fmt: skip
        print(f"ratio worst_coverage {min(COVERED):.3f}")


def kept(page: str, title: str) -> str:
    """A section of the page as it stands."""
    body = page.partition(f"## {title}\n")[2].partition("\n## ")[0].rstrip("\n")
    return f"## {title}\n{body}\n"


if __name__ == "__main__":
    main()
