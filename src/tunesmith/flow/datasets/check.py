"""Is this enough data and the right data: the data room's check with token lengths, as terminal text and as one HTML file that opens
offline. Computes no advice of its own."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from tunesmith.core.errors import TunesmithError
from tunesmith.core.rows import Row
from tunesmith.core.store import write_whole
from tunesmith.data.check import check, held_out_power
from tunesmith.flow import plots
from tunesmith.flow.datasets.tokens import lengths, training_cost
from tunesmith.flow.datasets.versions import Data, Datasets, shown

_SIZES = (25, 50, 100, 200, 400, 800, 1600, 3200)


def checked(datasets: Datasets, data: Data, *, base: str = "", max_length: int | None = None, wanted: Sequence[Row] = ()) -> dict[str, Any]:
    """Everything the report shows: advice, numbers, tokens (where the base can be had), what a test can show, topics, price."""
    base = base or datasets.settings.base
    counts: list[int] | None = None
    tokens: dict[str, Any] = {}
    if base:
        datasets.progress.say(f"counting the tokens of {len(data.rows)} rows for {base}")
        try:
            counts, tokens = lengths(data.rows, base, datasets.catalog)
        except TunesmithError as error:  # the check is worth having without a tokenizer; the report says what is missing
            tokens = {"base": base, "error": str(error)}
    datasets.progress.say("looking at the rows")
    held_out = datasets.settings.split.test
    found = check(data.rows, tokens=counts, max_length=max_length, held_out=held_out, wanted=wanted)
    return {
        "data": data.name,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "usable": found.usable,
        **msgspec.to_builtins(found),
        "tokens": tokens | ({"lengths": counts, "price": training_cost(counts, base)} if counts is not None else {}),
        "fates": data.fates.counts(),
        "rules": data.fates.rules(),
    }


def text_of(result: dict[str, Any]) -> str:
    """The result for a terminal: what to do, most valuable first, then what is fine."""
    marks = {"stop": "STOP", "fix": "fix", "consider": "think", "fine": "ok"}
    lines = [f"{result['numbers']['rows']} rows of {result['data']}: {'usable' if result['usable'] else 'not usable yet'}"]
    for one in result["advice"]:
        lines.append(f"  {marks[one['level']]:<6}{one['found']}")
        if one.get("do"):
            lines.append(f"        → {one['do']}")
        if one.get("rows"):
            lines.append(f"          {', '.join(one['rows'])}")
    tokens = result["tokens"]
    if "error" in tokens:
        lines.append(f"  tokens were not counted: {tokens['error'].splitlines()[0]}")
    price = tokens.get("price")
    if price:
        lines.append(
            f"  training {price['model']} on all rows, {price['epochs']} epochs: {price['tokens']:,} tokens, about "
            f"${price['usd']:.2f} (prices of {price['as_of']})"
        )
    return "\n".join(lines)


def write_html(result: dict[str, Any], rows: Sequence[Row], path: Path) -> None:
    """The report as one file without outside parts."""
    examples = {row.origin: shown(row) for row in rows if any(row.origin in one.get("rows", ()) for one in result["advice"])}
    source = resources.files("tunesmith.flow.datasets").joinpath("check.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    write_whole(path, environment.from_string(source).render(r=result, plots=_plots(result, rows), examples=examples))


def _plots(result: dict[str, Any], rows: Sequence[Row]) -> list[dict[str, str]]:
    found = []

    def add(title: str, svg: str, note: str = "") -> None:
        found.append({"title": title, "svg": svg, "note": note})

    counts = result["tokens"].get("lengths")
    if counts:
        base = result["tokens"]["base"]
        add("Length", plots.histogram("tokens a row", counts, f"tokens a row, as {base} sees it"), "The last bin holds the longest 1 %.")
    else:
        characters = [sum(len(turn.text) for turn in row.messages) for row in rows]
        add("Length", plots.histogram("characters a row", characters, "characters a row"), "The last bin holds the longest 1 %.")
    labels = result["numbers"]["labels"]
    if labels:
        add("Labels", plots.bars("labels", list(labels.items())[:25], "rows"), f"{len(labels)} labels; the most common 25 are shown.")
    answers = [(text[:24], float(n)) for text, n in result["numbers"]["answers"]]
    if answers:
        add("Most common answers", plots.bars("answers", answers, "rows"))
    topics = [(" ".join(one["words"][:3])[:24] or "(no common words)", 100 * one["share"]) for one in result.get("topics", ())]
    if topics:
        add("What it is about", plots.bars("topics", topics[:20], "% of the rows"), "Groups by shared vocabulary, named by their words.")
    turns = [len(row.messages) for row in rows]
    if len(set(turns)) > 1:
        add("Turns", plots.histogram("turns a row", turns, "turns a row", bins=min(24, max(turns))))
    powers = [held_out_power(n) for n in _SIZES]
    series = [
        ("± at 50 %", [float(n) for n in _SIZES], [one["half_width_at_50"] for one in powers]),
        ("± at 90 %", [float(n) for n in _SIZES], [one["half_width_at_90"] for one in powers]),
        ("smallest difference", [float(n) for n in _SIZES], [one["smallest_difference"] for one in powers]),
    ]
    test = result["test"]
    note = (
        f"Yours would have {test['rows']:.0f} rows: ±{test['half_width_at_50']:.1f} points near one half; differences of two models are "
        f"seen from {test['smallest_difference']:.1f} points. ±2 points take {test['rows_for_2_points']:.0f} rows."
    )
    add("What a test set can show", plots.lines("test size", series, "rows held out", "points"), note)
    return found
