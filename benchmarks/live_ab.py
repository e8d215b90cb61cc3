"""Simulates experiments whose truth is known, with the functions that `tunesmith ab` uses, and writes the tables of docs/experiments.md.

`python -m benchmarks.live_ab [PART …] [--runs 2000]`; parts: looking, stored, power, harm, ratio, pairs. At 2,000 runs a share near .05 has
a standard error of .005, one near .9 of .007.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ROOT, machine, ratio, table
from tunesmith.core.deployment import Deployment, Enrolment, Variant
from tunesmith.core.experiment import ExperimentPlan, metric_of
from tunesmith.core.stats.group_sequential import bounds, drift_for
from tunesmith.deploy import experiment as ab
from tunesmith.deploy.looking import SeenArms, look
from tunesmith.deploy.strategy import AskedState, choose

NAMES = ("ab_false_verdicts", "ab_anytime_power", "days_at_50_a_day")
PAGE = ROOT / "docs" / "experiments.md"
CHUNK = 100
Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]


def rate(p: float) -> Draw:
    """0 or 1."""
    return lambda rng, shape: (rng.random(shape) < p).astype(np.float64)


@dataclass(frozen=True)
class Kind:
    """A kind of metric: how its values are drawn, and how they are compared."""

    name: str
    draw: Draw
    unit_scale: bool = False
    exact: bool = False


KINDS = (
    Kind("outcome, rate .10", rate(0.1), unit_scale=True),
    Kind("latency, log-normal, σ = 1", lambda rng, shape: np.exp(rng.normal(size=shape))),
    Kind("score, beta(5, .5)", lambda rng, shape: rng.beta(5, 0.5, size=shape), unit_scale=True),
    Kind("errors, rate .005, exact", rate(0.005), exact=True),
)


def sums(y: Floats, treated: NDArray[np.bool_], x: Floats | None, step: int, m: Floats | None = None) -> tuple[Floats, Floats]:
    """Both arms' sums (`ab.SUMS`) after each `step` users; rows are experiments, columns users in the order in which they came."""
    many = np.ones_like(y) if m is None else m
    known = np.zeros_like(y) if x is None else x
    parts = []
    for mine in (~treated, treated):
        there = mine.astype(np.float64)
        own, value, other = many * there, y * there, known * there
        columns = (there, own, value, other, own * own, own * value, own * other, value * value, value * other, other * other, value != 0)
        parts.append(np.stack([column.reshape(len(y), -1, step).sum(axis=2).cumsum(axis=1) for column in columns], axis=-1))
    return parts[0], parts[1]


def spoken(low: Floats, high: Floats) -> NDArray[np.int8]:
    """The codes of what is said at each look."""
    return ab.verdict(low, high)


def looking(runs: int) -> tuple[str, float]:
    """Two equal arms of 5,000 users each, looked at 20, 100 and 1,000 times: how often anything is said, also by a test that knows nothing
    of looks."""
    users, rows, worst = 10_000, [], 0.0
    for kind in KINDS:
        said, naive = np.zeros(3), np.zeros(3)
        horizon = 0.0
        for chunk in range(0, runs, CHUNK):
            rng = np.random.default_rng([1, KINDS.index(kind), chunk])
            shape = (min(CHUNK, runs - chunk), users)
            a, b = sums(kind.draw(rng, shape), rng.random(shape) < 0.5, None, 10)
            seen = ab.effect(a, b, unit_scale=kind.unit_scale)
            code = ab.event_verdict(a, b, 0.05, 0.5) if kind.exact else spoken(*ab.anytime(seen, 0.05))
            plain = _naive(a, b)
            for i, every in enumerate((50, 10, 1)):
                said[i] += (code[:, every - 1 :: every] != ab.UNKNOWN).any(axis=1).sum()
                naive[i] += plain[:, every - 1 :: every].any(axis=1).sum()
            z = np.abs(seen.estimate / seen.se)[:, 49::50]
            horizon += (z > np.array(bounds([(i + 1) / 20 for i in range(20)]))).any(axis=1).sum()
        worst = max(worst, float(said.max() / runs))
        to_horizon = "–" if kind.exact else f"{horizon / runs:.3f}"
        rows.append([kind.name, *(f"{each / runs:.3f}" for each in said), to_horizon, *(f"{each / runs:.3f}" for each in naive)])
    head = ["metric", "20 looks", "100 looks", "1,000 looks", "with a horizon, 20 looks"]
    return table([*head, *(f"naive z, {each}" for each in ("20", "100", "1,000"))], rows), worst


def _naive(a: Floats, b: Floats) -> NDArray[np.bool_]:
    """A two-sample z test at each look, from 50 users an arm on."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means = [s[..., 2] / s[..., 0] for s in (a, b)]
        variance = sum((s[..., 7] / s[..., 0] - mean**2) / s[..., 0] for s, mean in zip((a, b), means, strict=True))
        z = np.abs(means[1] - means[0]) / np.sqrt(variance)
    return (z > 1.959964) & (np.minimum(a[..., 0], b[..., 0]) >= 50)


def drawn(experiment: str, users: int) -> NDArray[np.bool_]:
    """Which of the users the product's own strategy draws for the treatment."""
    variants = tuple(Variant(name=name, upstream=name, weight=0.5) for name in "ab")
    enrolment = Enrolment(experiment=experiment, layer="bench", low=0.0, high=1.0)
    made, nobody = Deployment(alias="bot", version=1, strategy="split", variants=variants, enrolment=enrolment), AskedState()
    return np.array([choose(f"user-{i}", made, nobody).variant.name == "b" for i in range(users)])


def stored(runs: int) -> str:
    """Equal arms through the whole product: drawn by its strategy, written to its log, added up by its database, judged by its look.

    All are read back at the end; every twentieth is looked at 10 times on the way.
    """
    from tunesmith.store.experiments import Experiments
    from tunesmith.store.store import Store

    users, looks, metrics = 200, 10, (metric_of("outcome:solved"), metric_of("latency"), metric_of("errors"))
    plan = ExperimentPlan(control="a", treatment="b", metrics=metrics)
    said, found, differing, began = 0, 0, 0, time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder))
        kept = Experiments(store)
        for run in range(runs):
            rng = np.random.default_rng([2, run])
            made = kept.open("bot", plan, layer=f"l{run}", share=1.0, reason="", by="")
            treated = drawn(made.id, users)
            values = {"outcome:solved": rate(0.1), "latency": lambda r, s: np.exp(r.normal(size=s)), "errors": rate(0.02)}
            y = {name: draw(rng, (1, users)) for name, draw in values.items()}
            pieces = looks if run % 20 == 0 else 1
            for piece in range(pieces):
                here = range(piece * users // pieces, (piece + 1) * users // pieces)
                _write(store, made.id, run, here, treated, y)
                arms = _read(kept, made, metrics)
                seen = look(made.id, plan, kept_units(arms), arms, kept.said(made.id), float(piece))
                kept.add(made.id, seen.fresh)
                found += sum(each.metric == "sample ratio" for each in seen.fresh)
            step = users
            for name in y:
                expected = [part[0, -1] for part in sums(y[name], treated[None, :], None, step)]
                got = (arms[name].control, arms[name].treatment)
                differing += not all(np.allclose(one, other) for one, other in zip(expected, got, strict=True))
            said += bool([each for each in kept.said(made.id) if each.metric != "sample ratio"])
            kept.close(made.id, "")
        store.close()
    rows = [[runs, users, f"{said / runs:.4f}", f"{found / runs:.4f}", differing, f"{time.process_time() - began:.0f}"]]
    return table(
        ["experiments", "users", "said anything of three metrics", "sample ratio called broken", "sums that differ", "CPU-s"], rows
    )


def kept_units(arms: dict[str, SeenArms]) -> tuple[int, int]:
    """The units of both arms."""
    one = arms["errors"]
    return int(one.control[0]), int(one.treatment[0])


def _read(kept: Any, made: Any, metrics: tuple[Any, ...]) -> dict[str, SeenArms]:
    by: dict[tuple[str, str], Any] = {(each.metric, each.variant): each for each in kept.sums(made, metrics)}
    return {
        metric.name: SeenArms(
            control=by[metric.name, "a"].values, treatment=by[metric.name, "b"].values, unit_scale=by[metric.name, "a"].unit_scale
        )
        for metric in metrics
    }


def _write(store: Any, experiment: str, run: int, here: range, treated: NDArray[np.bool_], y: dict[str, Floats]) -> None:
    """A piece of the log and of the feedback, in one transaction."""
    from sqlalchemy import insert

    from tunesmith.store.tables import feedback, interactions

    common = {"created": float(run), "alias": "bot", "finish_reason": "stop", "prompt_tokens": 9, "completion_tokens": 9, "messages": "[]"}
    common |= {"answer": "x", "tool_calls": "[]", "error": "", "experiment": experiment, "first_token_s": 0.1, "propensity": 0.5}
    rows = [
        {**common, "id": f"{run}-{i}", "user_key": f"user-{i}", "variant": "b" if treated[i] else "a", "total_s": float(y["latency"][0, i]),
         "status": 500 if y["errors"][0, i] else 200}
        for i in here
    ]  # fmt: skip
    said = [
        {"id": f"f{run}-{i}", "interaction": f"{run}-{i}", "created": 1.0, "kind": "outcome", "name": "solved", "by": "",
         "number": float(y["outcome:solved"][0, i])}
        for i in here
    ]  # fmt: skip
    with store.writing() as connection:
        connection.execute(insert(interactions), rows)
        connection.execute(insert(feedback), said)


def correlated(rng: np.random.Generator, shape: tuple[int, int], lift: float) -> tuple[Floats, NDArray[np.bool_], Floats]:
    """(success, treated, the baseline's score of the same prompt): rate .10, and .10 + `lift` of the treatment; correlation about .7 within
    the arms."""
    treated = rng.random(shape) < 0.5
    luck = rng.random(shape)
    y = (luck < 0.1 + lift * treated).astype(np.float64)
    again = rng.random(shape) < 0.74  # answered anew, the baseline is right on the same prompts so often
    x = np.where(again, luck < 0.1, rng.random(shape) < 0.1).astype(np.float64)
    return y, treated, x


def power(runs: int) -> tuple[str, float]:
    """.10 → .12: how often it is found, with and without the covariate."""
    side, horizon = 5_000, 5_400
    found: dict[tuple[bool, str], list[Floats]] = {}
    alike = []
    for chunk in range(0, runs, CHUNK):
        rng = np.random.default_rng([3, chunk])
        y, treated, x = correlated(rng, (min(CHUNK, runs - chunk), 2 * side), 0.02)
        alike.append([np.corrcoef(y[arm], x[arm])[0, 1] for arm in (treated, ~treated)])
        for adjusted in (False, True):
            a, b = sums(y, treated, x, 100)
            seen = ab.effect(a, b, unit_scale=True, adjusted=adjusted)
            found.setdefault((adjusted, "holds always, 5,000 a side"), []).append(_first(ab.anytime(seen, 0.05)[0] > 0, 50))
            a, b = sums(y[:, :horizon], treated[:, :horizon], x[:, :horizon], horizon // 20)
            seen = ab.effect(a, b, unit_scale=True, adjusted=adjusted)
            beyond = seen.estimate / seen.se > np.array(bounds([(i + 1) / 20 for i in range(20)]))
            found.setdefault((adjusted, "horizon of 2,700 a side, 20 looks"), []).append(_first(beyond, horizon // 40))
    rows = []
    for (adjusted, design), parts in sorted(found.items(), key=lambda each: (each[0][1], each[0][0])):
        at = np.concatenate(parts)
        most = side if "always" in design else horizon // 2
        mean = float(np.where(np.isfinite(at), at, most).mean())
        rows.append([design, "the baseline's score" if adjusted else "none", f"{np.isfinite(at).mean():.3f}", f"{mean:,.0f}"])
    best = float(np.isfinite(np.concatenate(found[True, "holds always, 5,000 a side"])).mean())
    within = np.mean(alike, axis=0)
    note = f"Correlation of score and covariate {within[1]:.2f} in the control, {within[0]:.2f} in the treatment."
    return table(["design", "covariate", "found", "mean users a side at the end"], rows) + "\n\n" + note, best


def _first(hits: NDArray[np.bool_], step: float) -> Floats:
    """Users a side at the first look that says something (infinite: none does)."""
    return np.where(hits.any(axis=1), (hits.argmax(axis=1) + 1) * step, np.inf)


def harm(runs: int) -> str:
    """A treatment that is worse by half a standard deviation, 1,000 users together, looked at after each ten."""
    rows = []
    for kind in KINDS[:3]:
        worse, other = 0, 0
        for chunk in range(0, runs, CHUNK):
            rng = np.random.default_rng([4, chunk])
            shape = (min(CHUNK, runs - chunk), 1_000)
            treated = rng.random(shape) < 0.5
            if kind.name.startswith("outcome"):  # half a standard deviation is 15 points
                y = (rng.random(shape) < np.where(treated, 0.25, 0.1)).astype(np.float64)
            else:
                y = kind.draw(rng, shape)
                sd = np.std(kind.draw(np.random.default_rng(9), (1, 100_000)))
                y = y + 0.5 * sd * treated
            a, b = sums(y, treated, None, 10)
            seen = ab.effect(a, b, unit_scale=kind.name.startswith("outcome"))
            code = ab.verdict(*ab.anytime(seen, 0.05), better="lower")
            worse += (code == ab.WORSE).any(axis=1).sum()
            other += (code == ab.BETTER).any(axis=1).sum()
        rows.append([kind.name, f"{worse / runs:.3f}", f"{other / runs:.4f}"])
    return table(["metric, higher is worse", "said to be worse", "said to be better"], rows)


def ratios(runs: int) -> str:
    """Users drawn as they should be, and 48 to 52; looked at after each hundred of 10,000."""
    n = np.arange(100, 10_001, 100)
    rows = []
    for share in (0.5, 0.52):
        rng = np.random.default_rng([5, int(share * 100)])
        there = rng.binomial(100, share, size=(runs, n.size)).cumsum(axis=1)
        square = (2 * there - n) ** 2 / n > 3.841459
        broken = ab.mismatched(ab.ratio_mismatch(n - there, there, 0.5))
        at = np.where(broken.any(axis=1), n[broken.argmax(axis=1)], np.inf)
        median = f"{np.median(at):,.0f}" if np.isfinite(np.median(at)) else "–"
        rows.append([f"{1 - share:.0%} to {share:.0%}", f"{broken.any(axis=1).mean():.4f}", median, f"{square.any(axis=1).mean():.3f}"])
    return table(["drawn", "found", "median users when found", "χ², p < .05 at each look"], rows)


def pairs(runs: int) -> tuple[str, float]:
    """50 conversations a day, each answered by both; discordance 20 %, a difference of 10 points and none. The judge errs on 6.5 % of the
    answers (kappa .85), a person rates 25 pairs a day, drawn at random."""
    a_day, rows, headline = 50, [], 0.0
    for name, labels, judged in (
        ("every pair rated", 50, False),
        ("judge, corrected by 25 ratings a day", 25, True),
        ("25 ratings a day alone", 25, False),
    ):
        horizon = _pairs_horizon(judged=judged, labels=labels, a_day=a_day)
        days = {gap: _pair_days(runs, gap, labels, judged, horizon, a_day) for gap in (0.1, 0.0)}
        wrong = np.isfinite(days[0.0][0]).mean(), np.isfinite(days[0.0][1]).mean()
        medians = [float(np.median(each)) for each in days[0.1]]
        early = np.isfinite(days[0.1][0]).mean()
        always = f"{medians[1]:.0f}" if np.isfinite(medians[1]) else "–"
        rows.append([name, horizon, f"{medians[0]:.0f}", f"{early:.2f}", always, f"{wrong[0]:.3f}", f"{wrong[1]:.3f}"])
        headline = medians[0] if judged else headline
    head = ["what is known of a pair", "horizon, pairs", "median days", "decided by the horizon", "median days, holds always"]
    return table([*head, "equal: false, horizon", "equal: false, always (30 days)"], rows), headline


def _pairs_horizon(*, judged: bool, labels: int, a_day: int) -> int:
    """Pairs until a difference of 10 points is found in nine of ten cases, by the plan's formula."""
    whole = 0.2 - 0.1**2
    wrong = 0.0645
    cover, spread = whole * (1 - 2 * wrong), whole * (1 - 2 * wrong) ** 2 + 2 * wrong * (1 - wrong)
    explained = cover**2 / spread if judged else 0.0
    variance = (whole - explained) * a_day / labels + explained
    return int(np.ceil(drift_for(0.9, 20) ** 2 * variance / 0.1**2 / a_day) * a_day)


def _pair_days(runs: int, gap: float, labels: int, judged: bool, horizon: int, a_day: int) -> tuple[Floats, Floats]:
    """Days until something is said, with the horizon and by intervals that hold always (30 days at most); infinite: nothing is."""
    days, shape = 30, (runs, 30 * a_day)
    rng = np.random.default_rng([6, int(gap * 100), labels, judged])
    truth = rng.choice([1.0, 0.0, -1.0], p=[0.1 + gap / 2, 0.8, 0.1 - gap / 2], size=shape)
    shown = np.where(truth == 0, rng.random(shape) < 0.7, truth < 0)
    copied = np.where(truth == 0, shown, truth > 0)
    errs = [rng.random(shape) < 0.0645 for _ in range(2)]
    opinion = (copied ^ errs[1]).astype(np.float64) - (shown ^ errs[0]) if judged else np.zeros(shape)
    rated = np.broadcast_to(np.arange(a_day) < labels, (runs, days, a_day)).reshape(shape)
    others, known = sums(truth, rated, opinion, a_day)
    seen = ab.paired(known, others if judged else np.zeros_like(others))
    low, high = ab.anytime(seen, 0.05, ab.PAIRS_TUNING)
    always = _first(spoken(low, high) != ab.UNKNOWN, 1)
    last = horizon // a_day
    edges = np.array(bounds([(i + 1) / last for i in range(last)]))
    at_horizon = _first(np.abs(seen.estimate / seen.se)[:, :last] > edges, 1)
    return at_horizon, always


def write(parts: dict[str, str]) -> None:
    """Put each part between its marks."""
    page = PAGE.read_text("utf-8")
    for part, text in parts.items():
        begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
        head, tail = page.partition(begin)[0], page.partition(end)[2]
        page = f"{head}{begin}\n{text}\n{end}{tail}"
    PAGE.write_text(page, "utf-8")


PARTS: dict[str, Callable[[int], str | tuple[str, float]]] = {
    "looking": looking, "stored": stored, "power": power, "harm": harm, "ratio": ratios, "pairs": pairs,
}  # fmt: skip
HEADLINE_OF = {"looking": "ab_false_verdicts", "power": "ab_anytime_power", "pairs": "days_at_50_a_day"}


def simulate(names: list[str] | None = None, runs: int = 2000) -> None:
    """Simulate parts (all) and write their tables."""
    texts = {}
    for name in names or PARTS:
        began = time.process_time()
        result = PARTS[name](runs)
        text, value = (result, None) if isinstance(result, str) else result
        where = f"`python -m benchmarks.live_ab {name} --runs {runs}`, {machine()}."
        texts[name] = f"{text}\n\n{where}" + (f" `{ratio(HEADLINE_OF[name], value)}`" if value is not None else "")
        print(f"{name}: {time.process_time() - began:.0f} CPU-s\n{text}\n", flush=True)
    write(texts)


def main() -> None:
    """Simulate all parts."""
    simulate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--runs", type=int, default=2000)
    asked = parser.parse_args()
    simulate(asked.parts, asked.runs)
