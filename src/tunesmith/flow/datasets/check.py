"""Is this enough data and the right data: the data room's check with token lengths, as terminal text and as one HTML file that opens
offline. Computes no advice of its own."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tunesmith.core.atomic import write_atomic
from tunesmith.core.counted import counted
from tunesmith.core.errors import NotFound, TunesmithError
from tunesmith.core.row_kinds import turns_of
from tunesmith.core.rows import Row
from tunesmith.data.check import GUIDANCE, check, held_out_power
from tunesmith.data.text import texts_of
from tunesmith.flow.datasets.tokens import lengths, training_cost
from tunesmith.flow.datasets.versions import Datasets, shown
from tunesmith.flow.rows import Rows
from tunesmith.pages import plots
from tunesmith.pages.render import render

_SIZES = (25, 50, 100, 200, 400, 800, 1600, 3200)


def checked(datasets: Datasets, data: Rows, *, base: str = "", max_length: int | None = None, wanted: Sequence[Row] = ()) -> dict[str, Any]:
    """Everything the report shows: advice, numbers, tokens (where the base can be had), what a test can show, topics, price.

    Raises NotFound for a base that does not exist.
    """
    base = base or datasets.settings.base
    counts: list[int] | None = None
    tokens: dict[str, Any] = {}
    if base:
        datasets.progress.say(f"counting the tokens of {counted(len(data.rows), 'row')} for {base}")
        try:
            counts, tokens = lengths(data.rows, base, datasets.tokens_of)
        except NotFound:
            raise
        except TunesmithError as error:  # the check is worth having without a tokenizer; the report says what is missing
            tokens = {"base": base, "error": str(error)}
    datasets.progress.say("looking at the rows")
    held_out = datasets.settings.split.test
    result = check(data.rows, tokens=counts, max_length=max_length, held_out=held_out, wanted=wanted)
    return {
        "data": data.name,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "usable": result.usable,
        **msgspec.to_builtins(result),
        "tokens": tokens | (_counted(counts, base) if counts else {}),
        "fates": data.fates.counts(),
        "rules": data.fates.rules(),
    }


def _counted(counts: list[int], base: str) -> dict[str, Any]:
    spread = {"median": float(np.median(counts)), "longest": max(counts), "total": sum(counts)}
    return {"lengths": counts, "spread": spread, "price": training_cost(counts, base)}


def short(origin: str) -> str:
    """The end of an origin, by which commands find the row too: `file:line`."""
    return origin.rpartition("/")[2]


def text_of(result: dict[str, Any]) -> str:
    """The result for a terminal: what to do, most valuable first, then what is fine."""
    marks = {"stop": "STOP", "fix": "fix", "consider": "think", "fine": "ok"}
    lines = [f"{counted(result['numbers']['rows'], 'row')} of {result['data']}: {'usable' if result['usable'] else 'not usable yet'}"]
    for advice in result["advice"]:
        lines.append(f"  {marks[advice['level']]:<6}{advice['found']}")
        if advice.get("do"):
            lines.append(f"        → {advice['do']}")
        if advice.get("rows"):
            lines.append(f"          {', '.join(map(short, advice['rows']))}")
    tokens = result["tokens"]
    if "error" in tokens:
        lines.append(f"  tokens were not counted: {tokens['error'].splitlines()[0]}")
    price = tokens.get("price")
    if price:
        lines.append(
            f"  training {price['model']} on all rows, {counted(price['epochs'], 'epoch')}: {price['tokens']:,} tokens, about "
            f"${price['usd']:.2f} (prices of {price['as_of']})"
        )
    return "\n".join(lines)


def write_html(result: dict[str, Any], rows: Sequence[Row], path: Path) -> None:
    """The report as one file without outside parts."""
    examples = {row.origin: shown(row) for row in rows if any(row.origin in advice.get("rows", ()) for advice in result["advice"])}
    drawn = {"plots": _plots(result, rows), "bars": _bars(result), "examples": examples, "typical": _typical(result, rows)}
    write_atomic(path, render("data_check", r=result, guidance=GUIDANCE, **drawn))


def _typical(result: dict[str, Any], rows: Sequence[Row]) -> list[tuple[str, dict[str, Any]]]:
    """The shortest row, one of middle length and the longest."""
    sizes = result["tokens"].get("lengths") or [sum(map(len, texts_of(row))) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: sizes[i])
    names = ("the shortest", "of middle length", "the longest")
    places = dict.fromkeys((order[0], order[len(order) // 2], order[-1])) if order else {}
    return [(name, shown(rows[i])) for name, i in zip(names, places, strict=False)]


def _bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Labels, common answers and topics: each a title, a note and (name, what is told, width in per cent)."""
    total = max(result["numbers"]["rows"], 1)
    labels = list(result["numbers"]["labels"].items())[:25]
    topics = [(" · ".join(topic["words"][:4]) or "(no common words)", topic["share"] * total) for topic in result.get("topics", ())]
    lists: list[tuple[str, str, list[tuple[str, float]]]] = [
        ("Labels", f"{counted(len(result['numbers']['labels']), 'label')}; the most common 25 are shown.", labels),
        ("Most common answers", "A model that always gives the first one is the baseline to beat.", result["numbers"]["answers"]),
        ("What it is about", "Groups of rows that share words, named by the words that mark them.", topics[:12]),
    ]
    groups = []
    for title, note, counts in lists:
        most = max((n for _, n in counts), default=0) or 1
        bars = [{"name": name, "told": f"{n / total:.0%}", "rows": f"{n:,.0f}", "width": 100 * n / most} for name, n in counts]
        groups += [{"title": title, "note": note, "bars": bars}] if bars else []
    return groups


def _plots(result: dict[str, Any], rows: Sequence[Row]) -> list[dict[str, str]]:
    """Lengths, turns, and what test sets of several sizes can show, as SVG with a title and a note."""
    counts, base = result["tokens"].get("lengths"), result["tokens"].get("base")
    unit = f"tokens a row, as {base} sees it" if counts else "characters a row"
    sizes = counts or [sum(map(len, texts_of(row))) for row in rows]
    drawings = [("Length", plots.histogram(unit, sizes, ""), f"{unit.capitalize()}. The last bar holds the longest 1 %.")]
    turns = [len(turns_of(row)) for row in rows]
    if len(set(turns)) > 1:
        drawings.append(
            ("Turns", plots.histogram("turns a row", turns, "", bins=min(24, max(turns))), "Turns a row, system prompt included.")
        )
    powers, across = [held_out_power(n) for n in _SIZES], [float(n) for n in _SIZES]
    keys = {"± near 50 %": "half_width_at_50", "± near 90 %": "half_width_at_90", "smallest difference": "smallest_difference"}
    series = [(name, across, [power[key] for power in powers]) for name, key in keys.items()]
    test = result["test"]
    note = (
        f"Yours would have {test['rows']:.0f} rows: ±{test['half_width_at_50']:.1f} points near one half; differences of two models are "
        f"seen from {test['smallest_difference']:.1f} points. ±2 points take {test['rows_for_2_points']:,.0f} rows."
    )
    drawings.append(("What a test set can show", plots.lines("test size", series, "rows held out", "points"), note))
    return [{"title": title, "svg": svg, "note": remark} for title, svg, remark in drawings]
