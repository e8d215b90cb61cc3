"""`tunesmith report`: what the store's evaluations say, as one HTML file that opens offline, JSON, and Markdown for a pull request."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from tunesmith._version import __version__
from tunesmith.core.atomic import write_atomic
from tunesmith.core.counted import counted
from tunesmith.core.errors import NotFound
from tunesmith.core.types import Example
from tunesmith.evaluate.failures import collect_next, confusion, failure_groups
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.openings import openings
from tunesmith.flow.context import TUNED
from tunesmith.flow.evaluation.compare import Compared, Weigh, compare_results
from tunesmith.flow.evaluation.metrics import build
from tunesmith.flow.evaluation.results import KeptEvaluation, Result, finished_arms, kept_evaluations, result
from tunesmith.flow.evaluation.run import Bench
from tunesmith.flow.failures import write_failures
from tunesmith.pages.render import render

_SHOWN = 5
_SLICES = 12
LABELS = ("accuracy", "balanced_accuracy", "macro_f1", "mcc")


def write_report(words: Sequence[str], at: Bench, out: Path, weigh: Weigh = Weigh()) -> dict[str, Any]:
    """Write report.html, report.json, report.md and failures.jsonl (for `data next`) into `out`; returns what report.json holds.

    The leaderboard has every kept evaluation. With `words`, the first is the baseline that the others are compared with, at a level that
    holds for all of those comparisons together (1 − α/k each); where nothing but the project's run was measured, its arms are shown so.
    Raises NotFound for a word that names no result, and where nothing was measured yet.
    """
    report = collected(words, at, weigh)
    write_atomic(out / "report.json", json.dumps(report, indent=1, default=str))
    write_atomic(out / "report.html", render("evaluation_report", r=report))
    write_atomic(out / "report.md", markdown(report))
    if report["failures"]:
        write_failures(out / "failures.jsonl", report["failures"]["groups"])
    return report


def collected(words: Sequence[str], at: Bench, weigh: Weigh) -> dict[str, Any]:
    """Everything that the report shows, as plain JSON."""
    evaluations = kept_evaluations(at.folder)
    words = words or ([] if evaluations else _arms(at))
    named = [_named(word, at) for word in words]
    if not evaluations and not named:
        remedy = "tunesmith run measures base and tuned model; tunesmith eval MODEL --data FILE any other"
        raise NotFound("nothing was measured yet", where=str(at.folder), remedy=remedy)
    shared = msgspec.structs.replace(weigh, level=1 - (1 - weigh.level) / max(1, len(named) - 1))
    looked = openings(at.log)
    return {
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": __version__,
        "boards": leaderboard(evaluations),
        "comparisons": [comparison_part(named[0], other, compare_results(named[0], other, shared, at)) for other in named[1:]],
        "run_report": _run_report(at),
        "failures": failures_part(named[-1], _taught(words[-1], at)) if named else None,
        "openings": [
            {
                "when": datetime.datetime.fromtimestamp(opening.time).isoformat(timespec="seconds"),
                "data": opening.dataset_digest[:12],
                "who": opening.who,
            }
            for opening in looked
        ],
    }


def _arms(at: Bench) -> list[str]:
    """The finished arms of the project's run as words, where the tuned model is among them."""
    arms = finished_arms(at.context) if at.context is not None else []
    return [f"run:{arm}" for arm in arms] if TUNED in arms else []


def _run_report(at: Bench) -> str | None:
    """Where the project's run has its own report."""
    page = at.context.folder / at.context.project.report / "report.html" if at.context is not None else None
    return str(page) if page is not None and page.is_file() else None


def _named(word: str, at: Bench) -> Result:
    named = result(word, at.folder, at.context)
    if named is None:
        known = ", ".join(f"{evaluation.id} ({evaluation.model} on {evaluation.data})" for evaluation in kept_evaluations(at.folder)[:8])
        raise NotFound(f"'{word}' names no result", allowed=known or "none is kept yet", remedy="tunesmith eval MODEL --data FILE")
    return named


def _taught(word: str, at: Bench) -> list[Example]:
    """The rows that an arm of the project's run was trained on; of other models they are not known."""
    return at.context.questions("train") if at.context is not None and word.startswith("run:") else []


def leaderboard(evaluations: Sequence[KeptEvaluation]) -> list[dict[str, Any]]:
    """One board for each data set and first metric, the best first; with a picture of every metric."""
    boards: dict[tuple[str, str], list[KeptEvaluation]] = {}
    for evaluation in evaluations:
        boards.setdefault((evaluation.dataset_digest, evaluation.metrics[0]), []).append(evaluation)
    return [_board(first, rows) for (_, first), rows in boards.items()]


def _board(first: str, rows: Sequence[KeptEvaluation]) -> dict[str, Any]:
    made = build(first, rows[0].options.get(first, {}))
    sign = 1 if made.better == "lower" else -1
    ranked = sorted(rows, key=lambda entry: (entry.values[first] is None, sign * (entry.values[first] or 0.0)))
    names = list(dict.fromkeys(name for entry in ranked for name in entry.metrics))
    several = len({(entry.model, entry.variant) for entry in rows})
    return {
        "data": rows[0].data,
        "rows": rows[0].rows,
        "metric": first,
        "better": made.better,
        "metrics": names,
        "entries": [_entry(entry, names) for entry in ranked],
        "plots": [{"metric": name, "rows": drawn} for name in names if (drawn := _drawn(name, ranked))],
        "note": f"The best of {several} on the same rows looks better than it is: confirm it on rows that took no part in the choice."
        if several > 2
        else "",
    }


def _entry(evaluation: KeptEvaluation, names: Sequence[str]) -> dict[str, Any]:
    return {
        "id": evaluation.id,
        "model": evaluation.model,
        "variant": evaluation.variant,
        "cells": [_cell(evaluation.values.get(name), evaluation.intervals.get(name)) for name in names],
        "values": evaluation.values,
        "intervals": msgspec.to_builtins(evaluation.intervals),
        "noise": evaluation.noise,
        "seeds": list(evaluation.seeds),
        "missing": sum(evaluation.missing.values()),
        "failed": evaluation.failed,
        "tokens": evaluation.prompt_tokens + evaluation.completion_tokens,
        "seconds": evaluation.seconds,
        "usd": evaluation.usd,
        "opening": evaluation.opening,
        "created": datetime.datetime.fromtimestamp(evaluation.created).isoformat(timespec="minutes"),
    }


def _cell(value: float | None, interval: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g} [{interval.low:.3g}, {interval.high:.3g}]" if interval else f"{value:.4g}"


def _drawn(name: str, ranked: Sequence[KeptEvaluation]) -> list[tuple[str, float, float, float]]:
    """The rows of a metric's plot: label, estimate, low, high."""
    return [
        (f"{entry.model} {entry.variant if entry.variant != 'zero-shot' else ''}"[-28:], interval.estimate, interval.low, interval.high)
        for entry in ranked[:12]
        if (interval := entry.intervals.get(name)) is not None
    ]


def comparison_part(a: Result, b: Result, compared: Compared) -> dict[str, Any]:
    """One comparison for the report: a line a metric, the telling slices, rows lost and won side by side."""
    body = replace(compared, slices=[], changed=[]).summary()
    tested = [line for line in compared.slices if line.difference is not None]
    gains = compared.comparison.metrics[0]
    won = [changed for changed in compared.changed[::-1] if changed.example_id in set(gains.won)]
    lost = [changed for changed in compared.changed if changed.example_id in set(gains.lost)]
    return {
        "a": a.name,
        "b": b.name,
        "level": compared.comparison.level,
        "metrics": body["comparison"]["metrics"],
        "differences": [
            (measured.metric, d.estimate, d.low, d.high) for measured in compared.comparison.metrics if (d := measured.difference)
        ],
        "slices": msgspec.to_builtins(tested[:_SLICES]),
        "slices_tested": len(tested),
        "slices_small": len(compared.slices) - len(tested),
        "lost": {"count": len(lost), "shown": msgspec.to_builtins(lost[:_SHOWN])},
        "won": {"count": len(won), "shown": msgspec.to_builtins(won[:_SHOWN])},
        "judged": body["judged"],
        "notes": list(compared.notes),
    }


def failures_part(of: Result, train: Sequence[Example]) -> dict[str, Any] | None:
    """The failures of one result in named groups with the training rows nearest to them, and, for a label metric, the confusion. None
    where the rows are not at hand."""
    first, whole = of.metrics[0], of.whole
    if [row.example_id for row in whole.rows] != [row.id for row in of.examples]:
        return None
    labelled = next((m for m in of.metrics if m.name in LABELS), None)
    return {
        "model": of.name,
        "metric": first.name,
        "groups": failing(of.examples, of, first, train),
        "confusion": msgspec.to_builtins(confusion(of.runs[0].scores(labelled.name))) if labelled else None,
    }


def failing(examples: Sequence[Any], of: Result, metric: Metric, train: Sequence[Any]) -> list[dict[str, Any]]:
    """Groups of failed rows: name, size, share, an example, how near training rows are, and the share of new rows that should go there.

    Failed: below the metric's best value; for a metric without one, the worst quarter. A metric that is better when lower has no groups.
    """
    if metric.better != "higher":
        return []
    scores = of.whole.scores(metric.name)
    values = sorted(score.value for score in scores if score.value is not None)
    if not values:
        return []
    best = metric.high if metric.high != float("inf") else values[len(values) // 4]
    groups = failure_groups(examples, scores, train=train, below=best)
    weights = {group.name: weight for group, weight in collect_next(groups)} if groups else {}
    rows, taught = {row.id: row for row in examples}, {row.id: row for row in train}
    answers = {row.example_id: row.answer.text for row in of.runs[0].rows}
    return [
        {
            "name": group.name,
            "rows": len(group.example_ids),
            "share": group.share,
            "support": group.support,
            "interval": _share(len(group.example_ids), group.share),
            "collect": weights[group.name],
            "ids": list(group.example_ids),
            "questions": [rows[row_id].prompt[-1].text for row_id in group.example_ids],
            "example": {
                "asked": rows[group.example_ids[0]].prompt[-1].text,
                "reference": rows[group.example_ids[0]].answer,
                "said": answers[group.example_ids[0]],
                "nearest": [
                    {
                        "similarity": near.similarity,
                        "asked": taught[near.example_id].prompt[-1].text,
                        "answer": taught[near.example_id].answer,
                    }
                    for near in (group.nearest[0][:2] if group.nearest else ())
                ],
            },
        }
        for group in groups
    ]


def _share(rows: int, share: float) -> list[float]:
    from tunesmith.core.stats import wilson

    interval = wilson(rows, round(rows / share))
    return [interval.low, interval.high]


def markdown(report: dict[str, Any]) -> str:
    """The report in few lines, for a pull request."""
    lines = ["## Evaluation", ""]
    for comparison in report["comparisons"]:
        lines += [f"### {comparison['b']} against {comparison['a']}", "", *[f"- {m['sentence']}" for m in comparison["metrics"]], ""]
        worse = [s for s in comparison["slices"] if s["p_adjusted"] is not None and s["p_adjusted"] < 0.05]
        lines += [
            f"- slice {s['dimension']} = {s['name']} ({counted(s['n'], 'row')}), {s['metric']}: {s['difference']['estimate']:+.3g} "
            f"[{s['difference']['low']:+.3g}, {s['difference']['high']:+.3g}], p = {s['p_adjusted']:.2g} (Holm)"
            for s in worse
        ]
        lines += (
            [f"- {comparison['slices_tested']} slices tested, {len(worse)} differ after correction", ""]
            if comparison["slices_tested"]
            else []
        )
    for board in report["boards"]:
        lines += [f"### {board['data']} ({counted(board['rows'], 'row')})", "", "| model | prompt | " + " | ".join(board["metrics"]) + " |"]
        lines += ["| --- " * (2 + len(board["metrics"])) + "|"]
        lines += [f"| {_plain(e['model'])} | {_plain(e['variant'])} | " + " | ".join(e["cells"]) + " |" for e in board["entries"]]
        lines += ["", board["note"], ""] if board["note"] else [""]
    if report["openings"]:
        lines.append(f"Sealed rows were opened {len(report['openings'])} time(s).")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
