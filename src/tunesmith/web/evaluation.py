"""Pages about what was measured: the boards, the project's run, two runs beside each other, row by row; the decision and the studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from tunesmith.api.http import away
from tunesmith.core.errors import NotFound, TunesmithError, UsageError
from tunesmith.flow.datasets import findings as in_rows
from tunesmith.flow.datasets.table import every_version
from tunesmith.flow.evaluation.ask import Ask
from tunesmith.flow.evaluation.beside import as_lines, beside, named
from tunesmith.flow.evaluation.findings import findings_html
from tunesmith.flow.evaluation.report import failures_part, leaderboard
from tunesmith.flow.evaluation.results import finished_arms, kept_evaluations
from tunesmith.flow.evaluation.run import Bench, run_eval
from tunesmith.web.door import allowed
from tunesmith.web.errands import Outcome
from tunesmith.web.page import caller_of, page, pages_of, report
from tunesmith.web.waiting import errand
from tunesmith.web.words import known_words

_ROWS = 20


async def show(request: Request) -> Response:
    """GET /evaluation."""
    place = pages_of(request).place

    def look() -> tuple[list[Any], list[str], Any, str]:
        at = place.bench()
        boards = leaderboard(kept_evaluations(at.folder))
        try:
            return boards, finished_arms(at.context) if _had_a_run(at) and at.context is not None else [], _run_report(at), ""
        except TunesmithError as error:  # the project's rows or its base are gone: what was measured by itself is there all the same
            return boards, [], None, str(error)

    boards, arms, made, fault = await away(look)
    words = [(entry["id"], f"{entry['model']}, {entry['variant']}, on {board['data']}") for board in boards for entry in board["entries"]]
    words += [(f"run:{arm}", f"{arm}, of the project's run") for arm in arms]
    versions = await away(lambda: every_version(place.context()))
    return page(
        request,
        "evaluation",
        boards=boards,
        arms=arms,
        words=words,
        run=made,
        fault=fault,
        models=await away(known_words, request),
        rows_of=[f"{version.id}:{part}" for version in versions[:20] for part in version.counts],
        may=allowed(caller_of(request), "POST", "/evaluation"),
    )


async def measured(request: Request) -> Response:
    """POST /evaluation: ask a model the rows of a word and keep what it answers and scores."""
    form, place = await request.form(), pages_of(request).place
    given = {name: str(form.get(name, "")).strip() for name in ("model", "data", "metrics", "limit")}
    if not given["model"] or not given["data"]:
        raise UsageError("no model, or no data", allowed="a word for a model and one for rows, such as latest:test")
    limit = int(given["limit"]) if given["limit"].isascii() and given["limit"].isdigit() and len(given["limit"]) < 9 else None
    ask = Ask(data=given["data"], metrics=tuple(given["metrics"].split()), limit=limit)

    def work() -> Outcome:
        made = run_eval([given["model"]], ask, place.bench())
        return Outcome(f"/evaluation/of/{made[0].id}" if len(made) == 1 else "/evaluation", f"'{given['model']}' was measured.")

    return await errand(request, f"Measuring {given['model']} on {given['data']}", work)


async def run(request: Request) -> Response:
    """GET /evaluation/run: the report of the project's run."""
    place = pages_of(request).place
    made = await away(lambda: _run_report(place.bench()))
    if made is None:
        raise NotFound("the project has no finished run", remedy="tunesmith run")
    parts = {"findings_part": findings_html(made["findings"]), "rows_part": in_rows.section(made["data_findings"])}
    return report(request, "run_report", r=made, **parts)


def _run_report(at: Bench) -> Any:
    """What the last run's report says; None before there is one."""
    if at.context is None or not _had_a_run(at) or (done := at.context.runner.peek("report")) is None:
        return None
    return _json(done.folder / "report.json")


def _had_a_run(at: Bench) -> bool:
    return at.context is not None and at.context.view is not None and at.context.view.run is not None


async def compare(request: Request) -> Response:
    """GET /evaluation/compare?a=&b=."""
    query, place = request.query_params, pages_of(request).place
    a, b = query.get("a", ""), query.get("b", "")
    if not a or not b:
        return RedirectResponse("/evaluation", 303)
    found = await away(lambda: beside(a, b, place.bench()))
    rows = {side: f"/evaluation/rows?{urlencode({'a': a, 'b': b, 'side': side})}" for side in ("lost", "won")}
    shown: dict[str, Any] = {"c": found.part, "gate": as_lines(found.gate), "failures": found.failures}
    return page(request, "compare", rows=rows, swap=f"?{urlencode({'a': b, 'b': a})}", **shown)


async def rows(request: Request) -> Response:
    """GET /evaluation/rows?a=&b=&side=&at=: row by row."""
    query, place = request.query_params, pages_of(request).place
    a, b, text = query.get("a", ""), query.get("b", ""), query.get("at", "0")
    side: Any = "won" if query.get("side") == "won" else "lost"
    start = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0
    found = await away(lambda: beside(a, b, place.bench()))
    every = found.rows(side)

    def link(**more: Any) -> str:
        return f"/evaluation/rows?{urlencode({'a': a, 'b': b, 'side': side, **more})}"

    tabs = [{"name": each, "href": link(side=each), "here": each == side, "count": found.part[each]["count"]} for each in ("lost", "won")]
    return page(
        request,
        "compare_rows",
        c=found.part,
        side=side,
        sides=tabs,
        rows=every[start : start + _ROWS],
        start=start,
        total=len(every),
        before=link(at=max(0, start - _ROWS)) if start else None,
        after=link(at=start + _ROWS) if start + _ROWS < len(every) else None,
        up=f"/evaluation/compare?{urlencode({'a': a, 'b': b})}",
    )


async def one(request: Request) -> Response:
    """GET /evaluation/of/WORD: one evaluation: its values, its failures in groups, its confusion."""
    word, place = request.path_params["word"], pages_of(request).place

    def look() -> tuple[Any, Any]:
        found = named(word, place.bench())
        return found, failures_part(found, [])

    found, failed = await away(look)
    whole = found.whole
    return page(
        request,
        "evaluated",
        name=found.name,
        word=word,
        record=found.record,
        values=[(metric.name, metric.better, whole.values.get(metric.name)) for metric in found.metrics],
        drawn=_drawn(found),
        failures=failed,
        rows=len(whole.rows),
    )


def _drawn(found: Any) -> list[tuple[str, float, float, float]]:
    intervals = found.record.intervals if found.record is not None else {}
    return [(name, each.estimate, each.low, each.high) for name, each in intervals.items() if each is not None]


async def decision(request: Request) -> Response:
    """GET /decision: what `tunesmith decide` found."""
    place = pages_of(request).place

    def look() -> tuple[Any, list[str]]:
        at = place.context()
        folder = at.folder / at.project.report
        return _json(folder / "decision.json"), sorted(path.stem for path in folder.glob("tune-*.json"))

    made, studies = await away(look)
    if made is None:
        return page(request, "decision_none", studies=studies)
    return report(request, "decision", r=made)


async def study(request: Request) -> Response:
    """GET /decision/STUDY: the page of a search for a better plan."""
    place, name = pages_of(request).place, request.path_params["study"]

    def look() -> Any:
        at = place.context()
        known = {path.stem: path for path in (at.folder / at.project.report).glob("tune-*.json")}
        if name not in known:
            raise NotFound(f"no study '{name}'", allowed=", ".join(known) or "none", remedy="tunesmith tune start")
        return _json(known[name])

    return report(request, "tune_report", r=await away(look))


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None
