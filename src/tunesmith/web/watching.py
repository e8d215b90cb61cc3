"""What is watched of a name: the charts of its scores, whether its questions and answers have moved, and alerts with their silences."""

from __future__ import annotations

import math
import time
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away
from tunesmith.core.errors import DataError, UsageError
from tunesmith.flow.alerting import Alerting
from tunesmith.flow.log_pages import questions_of
from tunesmith.flow.watching import drift_of, quality_of
from tunesmith.monitor.alerts import span_s
from tunesmith.store.alerts import AlertLog
from tunesmith.store.deployments import Deployments
from tunesmith.web.door import allowed
from tunesmith.web.page import back, caller_of, page, pages_of

_DAY_S = 86_400.0
_REQUESTS, _EVENTS = 8, 30


def _alias(request: Request) -> str:
    return request.query_params.get("alias", "") or pages_of(request).place.project.deploy.alias


async def show(request: Request) -> Response:
    """GET /monitoring/watch[?alias=]: the charts of its scores; drift is looked at beside it."""
    place, alias = pages_of(request).place, _alias(request)

    def look() -> tuple[Any, Any, list[str]]:
        settings = place.context().project.monitor
        return quality_of(alias, place.bench(), settings, score=False), settings, list(Deployments(place.store).in_force())

    seen, settings, names = await away(look)
    known = names if alias in names else [*names, alias]
    return page(
        request,
        "watch",
        alias=alias,
        names=known,
        settings=settings,
        charts=[_chart(name, chart) for name, chart in seen.charts.items()],
        may=allowed(caller_of(request), "POST", "/monitoring/watch/score"),
    )


def _chart(name: str, chart: Any) -> dict[str, Any]:
    """A chart's segments with what is drawn of each: means by day, and how far each day was towards the limit."""
    segments = []
    for segment in chart.segments:
        last = segment.days[-1].start if segment.days else 0.0
        at = [(day.start - last) / _DAY_S for day in segment.days]
        levels = [float("nan") if day.level is None else day.level for day in segment.days]
        segments.append({"seen": segment, "at": at, "means": [day.mean for day in segment.days], "levels": levels})
    return {"name": name, "segments": segments, "breaks": chart.breaks, "alarm": chart.alarm}


async def score(request: Request) -> Response:
    """POST /monitoring/watch/score: score the sampled answers that no instrument has scored."""
    place, alias = pages_of(request).place, str((await request.form()).get("alias", "")) or pages_of(request).place.project.deploy.alias
    seen = await away(lambda: quality_of(alias, place.bench(), place.context().project.monitor))
    return back(f"/monitoring/watch?alias={quote(alias)}", f"{seen.fresh} scores were given.")


async def drift(request: Request) -> Response:
    """GET /monitoring/drift[?alias=&against=]: every window against the reference, and what moved in the newest."""
    place, alias, against = pages_of(request).place, _alias(request), request.query_params.get("against", "")

    def look() -> tuple[Any, dict[str, str], str, Any]:
        settings = place.context().project.monitor
        try:
            seen = drift_of(alias, place.bench(), settings, against=against)
        except DataError as error:
            return None, {}, str(error), settings
        requests = [number for each in seen.newest for number in each.requests[:_REQUESTS]]
        return seen, questions_of(place.store, requests), "", settings

    seen, questions, fault, settings = await away(look)
    return page(
        request,
        "drift",
        alias=alias,
        against=against,
        seen=seen,
        fault=fault,
        settings=settings,
        limit=_surprise(settings.alpha / 2),
        streams=[] if seen is None else [_stream(name, seen.looks) for name in dict.fromkeys(each.stream for each in seen.looks)],
        questions=questions,
        shown=_REQUESTS,
        may=allowed(caller_of(request), "POST", "/monitoring/feedback/harvest"),
    )


def _stream(name: str, looks: Any) -> dict[str, Any]:
    """The windows of one stream, the newest first, and what is drawn of them."""
    own = [each for each in looks if each.stream == name]
    least = [_surprise(min((part.p_adjusted for part in each.drift.properties), default=1.0)) for each in own]
    places = [float(i - len(own) + 1) for i in range(len(own))]
    return {"name": name, "newest": own[-1], "windows": own[::-1], "places": places, "least": least}


def _surprise(p: float) -> float:
    return -math.log10(max(p, 1e-9)) if p < 1 else 0.0


async def alerts(request: Request) -> Response:
    """GET /monitoring/alerts: every rule with its state, what was told, and silences."""
    place = pages_of(request).place

    def look() -> tuple[Any, Any, Any, Any]:
        log = AlertLog(place.store)
        return place.context().project.alerts, log.states(), log.events(_EVENTS), log.silences()

    rules, states, events, silences = await away(look)
    return page(
        request,
        "alerts",
        alerts=rules,
        states=states,
        events=events,
        silences=[{"labels": labels, "until": until, "text": _text(labels)} for labels, until in silences],
        may=allowed(caller_of(request), "POST", "/monitoring/alerts/look"),
    )


async def look_now(request: Request) -> Response:
    """POST /monitoring/alerts/look: read every rule now and tell what changed."""
    changes = await away(_alerting(request).look)
    told = ", ".join(f"{change.rule} {change.kind}" for change in changes)
    return back("/monitoring/alerts", f"Looked: {told or 'nothing changed'}.")


async def test(request: Request) -> Response:
    """POST /monitoring/alerts/test: a test to every channel."""
    problems = await away(_alerting(request).test)
    return back("/monitoring/alerts", "; ".join(f"{name}: {problem or 'told'}" for name, problem in problems.items()) + ".")


async def silence(request: Request) -> Response:
    """POST /monitoring/alerts/silence: tell nobody of alerts with these labels for a time, or end that."""
    form, place = await request.form(), pages_of(request).place
    labels = _labels(str(form.get("labels", "")))
    if form.get("end"):
        await away(AlertLog(place.store).end_silence, labels)
        return back("/monitoring/alerts", f"The silence of {_text(labels)} has ended.")
    span, who = str(form.get("for", "1h")).strip(), caller_of(request).key or "the pages"
    until = time.time() + span_s(span, "for")
    await away(lambda: AlertLog(place.store).silence(labels, until, reason=str(form.get("reason", ""))[:500], by=who))
    return back("/monitoring/alerts", f"Alerts with {_text(labels)} are silent for {span}.")


def _labels(text: str) -> dict[str, str]:
    """`KEY=VALUE, KEY=VALUE` as labels."""
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    if not pairs or not all(key and mark and value for key, mark, value in pairs) or len({key for key, _, _ in pairs}) < len(pairs):
        raise UsageError(f"the labels {text[:100]!r}", where="labels", allowed="KEY=VALUE, with commas between, each KEY once")
    return {key: value for key, _, value in pairs}


def _text(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def _alerting(request: Request) -> Alerting:
    place = pages_of(request).place
    project = place.context().project
    return Alerting(place.store, project.alerts, project.monitor, project.deploy.alias, place.file)
