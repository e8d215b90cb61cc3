"""The page of a study: history, importance, plans, quality against cost. Knows no formula."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunesmith._version import __version__
from tunesmith.core.atomic import write_atomic
from tunesmith.flow.tuning.finals import read_verdict
from tunesmith.flow.tuning.summary import summary
from tunesmith.pages.render import render
from tunesmith.tune.search import Search
from tunesmith.tune.space import Varied

_GROUPS = ("the best third", "the middle third", "the last third")
_STATES = ("finished", "paused", "pruned")


def write_report(search: Search, folder: Path, out: Path) -> Path:
    """Write `tune-STUDY.html` and its numbers as JSON into `out`; where the page lies."""
    found, verdict = summary(search, folder), read_verdict(folder)
    rows, valued = found["trials"], [row for row in found["trials"] if row["value"] is not None]
    facts = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(),
        "version": __version__,
        "sentence": verdict.sentence if verdict else "There is no verdict yet; the default plan stands.",
        "recommended": verdict.recommended if verdict else "default",
        "difference": None,
        "history": [(state, [(row["number"], row["value"], "") for row in valued if row["state"] == state]) for state in _STATES],
        "importance": sorted(search.importance().items(), key=lambda pair: -pair[1]),
        **_plans(search, valued, higher=found["better"] == "higher"),
        "costs": _costs(found),
    }
    if verdict is not None and verdict.difference is not None:
        difference = verdict.difference
        facts["difference"] = (f"trial {verdict.trial} minus the default", difference.estimate, difference.low, difference.high)
    page = out / f"tune-{search.name}.html"
    write_atomic(page, str(render("tune_report", r={**found, **facts, "trials": rows})))
    write_atomic(page.with_suffix(".json"), msgspec.json.format(msgspec.json.encode({**found, **facts})))
    return page


def _costs(found: Mapping[str, Any]) -> list[tuple[str, list[tuple[float, float, str]]]]:
    """Whole trainings: those that nothing beats in both quality and cost, and the others."""
    whole = [row for row in found["trials"] if row["state"] == "finished" and row["value"] is not None]
    front = [(row["tokens"], row["value"], str(row["number"])) for row in whole if row["number"] in found["front"]]
    others = [(row["tokens"], row["value"], str(row["number"])) for row in whole if row["number"] not in found["front"]]
    return [("nothing is better and cheaper", front), ("others", others)] if whole else []


def _plans(search: Search, rows: Sequence[Mapping[str, Any]], *, higher: bool) -> dict[str, Any]:
    """The axes of the space with every trial as a line from axis to axis, the best third in the first colour."""
    space = search.facts.space
    rows = [row for row in sorted(rows, key=lambda row: -row["value"] if higher else row["value"]) if len(row["params"]) == len(space)]
    axes = [(each.key, *_ends(each)) for each in space]
    places = [[_place(each, row["params"][each.key]) for each in space] for row in rows]
    third = -(-len(places) // len(_GROUPS)) or 1
    lines = [(name, places[i * third : (i + 1) * third]) for i, name in enumerate(_GROUPS)]
    return {"axes": axes, "lines": lines if places else []}


def _ends(each: Varied) -> tuple[str, str]:
    if each.axis.choices:
        return str(each.labels[0]), str(each.labels[-1])
    return f"{each.axis.low:g}", f"{each.axis.high:g}"


def _place(each: Varied, value: Any) -> float:
    """Where a value stands between the ends of its axis, 0 to 1."""
    if each.axis.choices:
        return each.labels.index(value) / max(1, len(each.labels) - 1)
    low, high = float(each.axis.low or 0), float(each.axis.high or 0)
    if each.axis.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (float(value) - low) / (high - low)
