"""Simulates decisions between arms whose true scores are known and writes docs/decide-statistics.md; knows nothing about models or data.

`python -m benchmarks.simulate_decide [--runs 1000] [--out docs/decide-statistics.md]`; prints `ratio decide_within_margin X` and
`ratio decide_rows_saved X`. At 1,000 decisions a share near .95 has a standard error of .007.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from tunesmith.core.stats.sequential import lower_bounds
from tunesmith.decide.curve import fit_curve
from tunesmith.decide.race import Race, asking_order
from tunesmith.decide.records import MeasuredArm
from tunesmith.decide.verdict import decide

Floats = NDArray[np.float64]
SHARDS = 40  # looks
FAMILIES = ("ladder", "equal", "just beyond")


@dataclass(frozen=True)
class Task:
    """Arms from cheap to dear with their true scores, and the answers on one test set in the order in which rows are asked."""

    family: str
    margin: float
    kind: str
    alike: float
    truths: Floats
    costs: Floats
    scores: Floats
    clusters: tuple[str, ...] | None

    @property
    def rows(self) -> int:
        return int(self.scores.shape[1])

    @property
    def arms(self) -> int:
        return self.truths.size

    @property
    def sufficing(self) -> NDArray[np.bool_]:
        """Which arms are truly within the margin of the best."""
        return self.truths >= self.truths.max() - self.margin - 1e-12


@dataclass(frozen=True)
class Choice:
    """What a rule chose, the row-answers that it asked for, and whether it said that it is sure; `worse`: whom it called too bad."""

    arm: int
    asked: int
    sure: bool
    worse: frozenset[int] = frozenset()


def ladder(arms: int, margin: float, rng: np.random.Generator) -> Floats:
    """Each arm against the next cheaper one: the same (35 %), up to two margins apart (25 %), 3 to 15 points (25 %), 15 to 30 (15 %);
    one in five of these downwards."""
    at = [rng.uniform(0.25, 0.7)]
    for _ in range(arms - 1):
        kind = rng.random()
        step = (
            0.0
            if kind < 0.35
            else rng.uniform(0, 2 * margin)
            if kind < 0.6
            else rng.uniform(*((0.03, 0.15) if kind < 0.85 else (0.15, 0.3)))
        )
        at.append(float(np.clip(at[-1] + step * (-1 if rng.random() < 0.2 else 1), 0.05, 0.97)))
    return np.array(at)


def draw_truths(family: str, arms: int, margin: float, rng: np.random.Generator) -> Floats:
    if family == "ladder":
        return ladder(arms, margin, rng)
    level = np.full(arms, rng.uniform(0.4, 0.85))
    if family == "just beyond":  # all cheaper arms are worse than the dearest by 1 to 1.5 margins
        level[:-1] -= margin * rng.uniform(1.001, 1.5, arms - 1)
    return level


def draw(family: str, rng: np.random.Generator) -> Task:
    arms, rows = int(rng.integers(3, 9)), int(rng.choice([300, 1000, 2000]))
    margin, kind, alike = float(rng.choice([0.03, 0.05])), str(rng.choice(["right/wrong", "scores"])), float(rng.choice([0.4, 0.6, 0.8]))
    truths = draw_truths(family, arms, margin, rng)
    clusters, of = None, np.arange(rows)
    if rng.random() < 0.25:  # near-duplicates: groups of one to five rows that share half of what makes them hard
        names = np.repeat(np.arange(rows), rng.integers(1, 6, rows))[:rows]
        order = asking_order(rows, names.tolist(), int(rng.integers(1 << 30)))
        of = names[order]
        clusters = tuple(map(str, of))
    own, shared = rng.normal(size=(arms + 1, rows)), rng.normal(size=(arms + 1, rows))[:, of]
    part = own if clusters is None else np.sqrt(0.5) * own + np.sqrt(0.5) * shared
    latent = np.sqrt(alike) * part[-1] + np.sqrt(1 - alike) * part[:-1]
    spread = 1.5
    at = ndtri(truths)[:, None]
    scores = (latent < at).astype(float) if kind == "right/wrong" else ndtr(at * np.sqrt(1 + spread**2) + spread * latent)
    costs = np.cumprod(np.concatenate([[1.0], rng.uniform(1.1, 3.0, arms - 1)]))
    return Task(family, margin, kind, alike, truths, costs, scores, clusters)


def raced(task: Task) -> Choice:
    """Shards, dropped arms, early end; then the verdict over what was asked."""
    names = [f"arm{i}" for i in range(task.arms)]
    race, asked = Race(names, task.margin, rows=task.rows, clusters=task.clusters), 0
    for rows in race.shards(max(5, task.rows // SHARDS)):
        if race.decided:
            break
        asked += len(race.open) * len(rows)
        race.add({name: task.scores[names.index(name), rows.start : rows.stop] for name in race.open})
    counts = [race.dropped[name].rows if name in race.dropped else race.asked for name in names]
    decision = decide(measured(task, counts), task.margin, race=race)
    worse = frozenset(i for i, arm in enumerate(decision.arms) if arm.standing == "worse")
    return Choice(names.index(str(decision.chosen)), asked, decision.sure, worse)


def whole(task: Task) -> Choice:
    """The same rule after all rows were asked of all arms."""
    decision = decide(measured(task, [task.rows] * task.arms), task.margin)
    worse = frozenset(i for i, arm in enumerate(decision.arms) if arm.standing == "worse")
    return Choice(int(str(decision.chosen)[3:]), task.scores.size, decision.sure, worse)


def measured(task: Task, counts: Sequence[int]) -> list[MeasuredArm]:
    return [
        MeasuredArm(
            name=f"arm{i}",
            kind="prompt",
            simpler_rank=i,
            scores=tuple(task.scores[i, :n].tolist()),
            clusters=None if task.clusters is None else task.clusters[:n],
        )
        for i, n in enumerate(counts)
    ]


def points(task: Task) -> Choice:
    """All rows, no interval: the cheapest arm whose score is within the margin of the best score."""
    means = task.scores.mean(axis=1)
    good = means >= means.max() - task.margin
    return Choice(int(np.argmax(good)), task.scores.size, True, frozenset(np.flatnonzero(~good).tolist()))


def naive(task: Task) -> Choice:
    """An interval for each arm, mean ± 1.96 standard errors, unpaired and uncorrected: after each shard an arm whose interval lies below
    the leader's is stopped; the end is when one is left, or the rows; then the cheapest that is left and within the margin by its score."""
    left, asked = list(range(task.arms)), 0
    size = max(5, task.rows // SHARDS)
    means = np.zeros(task.arms)
    for stop in [*range(size, task.rows, size), task.rows]:
        asked += len(left) * (stop - (asked_rows(stop, size)))
        part = task.scores[left, :stop]
        middle, half = part.mean(axis=1), 1.96 * part.std(axis=1) / np.sqrt(stop)
        means[left] = middle
        lead = int(middle.argmax())
        left = [arm for arm, m, h in zip(left, middle, half, strict=True) if m + h >= middle[lead] - half[lead]]
        if len(left) == 1:
            break
    best = max(means[arm] for arm in left)
    chosen = next(arm for arm in left if means[arm] >= best - task.margin)
    return Choice(chosen, asked, True, frozenset(range(task.arms)) - frozenset(left))


def asked_rows(stop: int, size: int) -> int:
    """Where the shard that ends at `stop` begins."""
    return (stop - 1) // size * size


def overlap(task: Task) -> Choice:
    """All rows; the cheapest arm whose own 95 % interval reaches into that of the best ("not significantly worse")."""
    means, half = task.scores.mean(axis=1), 1.96 * task.scores.std(axis=1) / np.sqrt(task.rows)
    lead = int(means.argmax())
    good = means + half >= means[lead] - half[lead]
    return Choice(int(np.argmax(good)), task.scores.size, True, frozenset(np.flatnonzero(~good).tolist()))


RULES: dict[str, Callable[[Task], Choice]] = {
    "race and verdict (`tunesmith decide`)": raced,
    "verdict, all rows of all arms": whole,
    "one interval an arm, stopped when below the leader's": naive,
    "all rows, cheapest whose interval overlaps the best's": overlap,
    "all rows, cheapest within the margin by its score": points,
}


@dataclass(frozen=True)
class Tally:
    """Choices of one rule on many tasks."""

    tasks: Sequence[Task]
    choices: Sequence[Choice]

    def where(self, keep: Callable[[Task], bool]) -> Tally:
        both = [(task, choice) for task, choice in zip(self.tasks, self.choices, strict=True) if keep(task)]
        return Tally([task for task, _ in both], [choice for _, choice in both])

    def _mean(self, values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    @property
    def _pairs(self) -> list[tuple[Task, Choice]]:
        return list(zip(self.tasks, self.choices, strict=True))

    @property
    def within(self) -> float:
        """The share of decisions whose arm is truly within the margin of the best."""
        return self._mean(bool(t.sufficing[c.arm]) for t, c in self._pairs)

    @property
    def saved(self) -> float:
        return self._mean(1 - c.asked / t.scores.size for t, c in self._pairs)

    @property
    def sure(self) -> float:
        return self._mean(c.sure for c in self.choices)

    @property
    def sure_and_wrong(self) -> float:
        """Of all decisions: said to be sure, and not within the margin."""
        return self._mean(c.sure and not t.sufficing[c.arm] for t, c in self._pairs)

    @property
    def wrongly_worse(self) -> float:
        """The share of decisions in which a cheaper arm was called worse by more than the margin though it truly suffices."""
        return self._mean(any(t.sufficing[i] for i in c.worse if i < c.arm) for t, c in self._pairs)

    @property
    def cheapest(self) -> float:
        """The share of decisions whose arm is the cheapest that truly suffices."""
        return self._mean(c.arm == int(np.argmax(t.sufficing)) for t, c in self._pairs)

    @property
    def price(self) -> float:
        """The geometric mean of the price of the chosen arm over that of the cheapest that truly suffices, where the chosen one does."""
        logs = [np.log(t.costs[c.arm] / t.costs[int(np.argmax(t.sufficing))]) for t, c in self._pairs if t.sufficing[c.arm]]
        return float(np.exp(np.mean(logs)))

    def cells(self) -> list[float]:
        return [self.within, self.saved, self.sure, self.sure_and_wrong, self.wrongly_worse, self.cheapest, self.price]


HEAD = (
    "within the margin",
    "rows saved",
    "says it is sure",
    "sure and wrong",
    "calls a sufficing cheaper arm worse",
    "cheapest that suffices",
    "price over it",
)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = [[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(head), ["---"] * len(head), *cells])


def decisions(runs: int, rng: np.random.Generator) -> str:
    """The tables of simulated decisions."""
    families = rng.choice(FAMILIES, size=runs, p=[0.8, 0.1, 0.1])
    tasks = [draw(str(family), rng) for family in families]
    tallies = {name: Tally(tasks, [rule(task) for task in tasks]) for name, rule in RULES.items()}
    ours, plain = tallies["race and verdict (`tunesmith decide`)"], tallies["one interval an arm, stopped when below the leader's"]
    parts = [table(["rule", *HEAD], [[name, *tally.cells()] for name, tally in tallies.items()])]
    cells: list[tuple[str, Callable[[Task], bool]]] = [
        *((f"{family}", lambda t, f=family: t.family == f) for family in FAMILIES),
        *((f"{rows} rows", lambda t, n=rows: t.rows == n) for rows in (300, 1000, 2000)),
        *((f"margin {margin}", lambda t, m=margin: t.margin == m) for margin in (0.03, 0.05)),
        *((f"{low} to {high} arms", lambda t, a=low, b=high: a <= t.arms <= b) for low, high in ((3, 4), (5, 6), (7, 8))),
        *((kind, lambda t, k=kind: t.kind == k) for kind in ("right/wrong", "scores")),
        *((f"rows alike {alike}", lambda t, a=alike: t.alike == a) for alike in (0.4, 0.6, 0.8)),
        ("rows in groups", lambda t: t.clusters is not None),
        ("rows that stand alone", lambda t: t.clusters is None),
    ]
    rows = []
    for name, keep in cells:
        mine, theirs = ours.where(keep), plain.where(keep)
        rows.append([name, len(mine.tasks), mine.within, mine.saved, mine.sure, mine.sure_and_wrong, theirs.within, theirs.saved])
    head = ["decisions with", "how many", *HEAD[:4], "one interval an arm: within", "its rows saved"]
    HEADLINE.update(decide_within_margin=ours.within, decide_rows_saved=ours.saved)
    return "\n\n".join([*parts, table(head, rows)])


def sequences(runs: int, rng: np.random.Generator) -> str:
    """How often a true mean is ever left out, looked at after each row; and how wide the bounds are."""
    streams, n = max(20, runs // 5), 1000
    draws: dict[str, Callable[[], Floats]] = {
        "difference of right/wrong, 20 % of rows differ": lambda: rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=n),
        "difference of right/wrong, 2 % of rows differ": lambda: rng.choice([-1.0, 0.0, 1.0], p=[0.005, 0.98, 0.015], size=n),
        "difference of scores": lambda: rng.beta(2, 2, n) - rng.beta(2, 2, n),
    }
    truths = (0.0, 0.01, 0.0)
    rows = []
    for (name, one), truth in zip(draws.items(), truths, strict=True):
        values = np.stack([one() for _ in range(streams)])
        counts = np.arange(1, n + 1)
        means = values.cumsum(axis=1) / counts
        half = 1.96 * np.sqrt(np.maximum((values**2).cumsum(axis=1) / counts - means**2, 0) / counts)
        ever = float((np.abs(means - truth) > half)[:, 29:].any(axis=1).mean())
        low, high = lower_bounds(values, 0.025, (-1, 1)), -lower_bounds(-values, 0.025, (-1, 1))
        test = np.stack([rng.permutation(np.concatenate([row, one()])) for row in values])
        seen = test[:, :n]
        under, over = (
            lower_bounds(seen, 0.025, (-1, 1), population=2 * n),
            -lower_bounds(-seen, 0.025, (-1, 1), population=2 * n),
        )
        middle = test.mean(axis=1)
        rows.append(
            [name, ever, float(((low > truth) | (high < truth)).mean()), float(((under > middle + 1e-9) | (over < middle - 1e-9)).mean()),
             float(2 * half[:, -1].mean()), float((high - low).mean()), float((over - under).mean())]
        )  # fmt: skip
    head = [
        "values",
        "mean ± 1.96 SE: ever wrong",
        "bets: ever wrong",
        "whole of 2,000: ever wrong",
        "width at 1,000: ± 1.96 SE",
        "bets",
        "of 2,000 rows",
    ]
    return table(head, rows)


SHAPES: dict[str, Callable[[Floats], Floats]] = {
    "power law": lambda d: 0.15 + 1.2 * d**-0.35,
    "power law, steep": lambda d: 0.05 + 6 * d**-0.6,
    "rectified law": lambda d: 0.12 + 0.6 * 300**0.9 / (300**0.9 + d**0.9),
    "flat, then a late drop": lambda d: 0.1 + 0.7 * 900**1.2 / (900**1.2 + d**1.2),
    "exponential, soon at its plateau": lambda d: 0.2 + 0.4 * np.exp(-d / 250),
    "logistic over log rows": lambda d: 0.15 + 0.5 / (1 + (d / 600) ** 1.5),
    "a line over log rows": lambda d: 0.75 - 0.08 * np.log(d / 20),
    "data that does nothing": lambda d: 0.35 + 0 * d,
}
WHOLE = 1600  # rows
SETTINGS: dict[str, tuple[tuple[float, ...], int, float]] = {
    "to 100 % from 6, 12, 25, 50 %": ((1 / 16, 1 / 8, 1 / 4, 1 / 2), 3, 1.0),
    "to 100 % from 3, 6, 12, 25 %": ((1 / 32, 1 / 16, 1 / 8, 1 / 4), 3, 1.0),
    "to 200 % from 25, 50, 100 %": ((1 / 4, 1 / 2, 1.0), 3, 2.0),
    "to 1,000 % from 25, 50, 100 %": ((1 / 4, 1 / 2, 1.0), 3, 10.0),
}


def curves(runs: int, rng: np.random.Generator) -> str:
    """How often the 90 % band contains the score at a size that was not trained on, three runs each, and how wide it is."""
    rows: list[list[object]] = []
    totals = []
    for name, error in SHAPES.items():
        cells = []
        for shares, seeds, at in SETTINGS.values():
            hits, widths, unclear = [], [], []
            for _ in range(max(10, runs // 20)):
                noise, sizes = rng.uniform(0.005, 0.02), np.repeat(np.array(shares) * WHOLE, seeds)
                curve = fit_curve(sizes.tolist(), np.clip(1 - error(sizes) + noise * rng.normal(size=sizes.size), 0, 1).tolist())
                truth = float(np.clip(1 - error(np.array([at * WHOLE]))[0], 0, 1) + noise * rng.normal() / np.sqrt(seeds))
                band = curve.predict(at * WHOLE, runs=seeds)
                hits.append(band.low <= truth <= band.high)
                widths.append(band.high - band.low)
                unclear.append(curve.law == "cannot tell")
            totals.append(hits)
            cells.append(f"{np.mean(hits):.2f} ({np.mean(widths):.2f})")
        rows.append([name, *cells])
    means = [f"{np.mean(totals[i :: len(SETTINGS)]):.2f}" for i in range(len(SETTINGS))]
    return table(["error over rows", *SETTINGS], [*rows, ["all", *means]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("docs/decide-statistics.md"))
    parser.add_argument("--only", nargs="*", default=[], help="titles of sections to simulate again; the others stay as they are")
    arguments = parser.parse_args()
    before, parts = arguments.out.read_text("utf-8") if arguments.only else "", []
    for seed, (simulate, title, text) in enumerate(SECTIONS):
        started = time.process_time()
        if arguments.only and title not in arguments.only:
            parts.append(f"## {title}\n{before.partition(f'## {title}')[2].partition('## ')[0].strip()}\n".replace("\n", "\n\n", 1))
            continue
        body = simulate(arguments.runs, np.random.default_rng(100 + seed))
        few, streams = max(10, arguments.runs // 20), max(20, arguments.runs // 5)
        said = text.format(runs=f"{arguments.runs:,}", few=few, streams=streams)
        parts.append(f"## {title}\n\n{said}\n\n{body}\n")
        print(parts[-1], f"({time.process_time() - started:.0f} CPU-seconds)", sep="\n", flush=True)
    head = f"""# The statistics of a decision, and what they do

Written by `python -m benchmarks.simulate_decide --runs {arguments.runs}` (sections can be simulated alone: `--only`). What is promised, and
how it is kept, stands in `decide/evidence.py`, `decide/race.py` and `core/stats/sequential.py`.

"""
    arguments.out.write_text(head + "\n".join(parts), encoding="utf-8")
    for name, value in HEADLINE.items():
        print(f"ratio {name} {value:.3f}")


HEADLINE: dict[str, float] = {}
SECTIONS: tuple[tuple[Callable[[int, np.random.Generator], str], str, str], ...] = (
    (
        decisions,
        "Decisions between arms whose truth is known",
        """{runs} decisions. Each has 3 to 8 arms from cheap to dear, a test set of 300, 1,000 or 2,000 rows, a margin of 3 or 5 points,
right/wrong answers or scores between 0 and 1, arms that are right on the same rows to a correlation (of what makes a row hard) of .4, .6
or .8; in a quarter of them rows come in groups of one to five that share half of what makes them hard. Prices grow by a factor of 1.1 to 3
from arm to arm. The true scores:

- *ladder* (80 %): each arm against the next cheaper one is the same (35 %), up to two margins apart (25 %), 3 to 15 points (25 %) or 15
  to 30 points apart (15 %), one in five of these downwards.
- *equal* (10 %): all arms are the same.
- *just beyond* (10 %): every cheaper arm is worse than the dearest by 1 to 1.5 margins, where a wrong choice is easiest.

"Within the margin": the chosen arm's true score is at most the margin below the best true one. "Rows saved": 1 − answers asked for over
arms × rows, with forty looks. A rule without "cannot tell" says that it is sure each time. "Price over it": the chosen arm's price over
that of the cheapest arm that truly suffices (geometric mean, of right choices): being careful has a price, and this is it.""",
    ),
    (
        sequences,
        "Bounds that hold however often one looks",
        """Share of {streams} streams whose true mean was left out at some moment, looked at after each of 1,000 rows (the usual
interval: from the 30th on), at a level of 95 %. In the columns of 2,000 the rows are drawn without replacement from a test set of 2,000,
whose own mean is meant.""",
    ),
    (
        curves,
        "What more data would bring",
        """Curves of eight shapes, four of which follow neither law; scores of three runs a size with a noise of .5 to 2 points; {few}
curves a cell. Share of 90 % bands that contain the mean score of three runs at a size that was not trained on, and their mean width.""",
    ),
)


if __name__ == "__main__":
    main()
