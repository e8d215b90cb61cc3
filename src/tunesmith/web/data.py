"""Pages about data: versions, the rows of one, one row with its fate and tokens, its ledger, two versions beside each other."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from msgspec.structs import replace
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from tunesmith.api.http import away
from tunesmith.core.errors import DataError, UsageError
from tunesmith.data.collect import Source
from tunesmith.data.formats.registry import FORMATS
from tunesmith.data.table import Wanted
from tunesmith.flow.datasets import table
from tunesmith.flow.datasets.clustered import seen_clusters
from tunesmith.flow.datasets.table import frozen_rows
from tunesmith.flow.datasets.uploads import keep_upload, upload_of
from tunesmith.flow.datasets.versions import differences
from tunesmith.flow.sources import Frozen
from tunesmith.web.door import allowed
from tunesmith.web.errands import Outcome
from tunesmith.web.page import HEADERS, caller_of, page, pages_of, share_of
from tunesmith.web.waiting import errand
from tunesmith.web.workplace import Workplace

_ROWS = 50
_SEARCHED_ON_S = 0.5  # a search that goes on in the background may take longer than a page
_DIFFERENCES = 50
_SPLIT = ("test", "validation", "at_least_train")  # what the page changes of the section `split`
_FATES = ("dropped", "duplicate_of", "mended", "truncated", "kept")


async def versions(request: Request) -> Response:
    """GET /data."""
    place = pages_of(request).place
    known = await away(lambda: table.every_version(place.context()))
    return page(request, "data_versions", versions=known, formats=["auto", *FORMATS], may=_may(request))


async def brought(request: Request) -> Response:
    """POST /data/import: keep a file that a person chose, and show its first rows before anything is made of it."""
    form, place = await request.form(), pages_of(request).place
    file = form.get("file")
    if not isinstance(file, UploadFile) or not file.filename:
        raise UsageError("no file was chosen", allowed="a file with rows: JSONL, JSON, CSV, TSV, Parquet, chat logs, documents")
    kept = await away(keep_upload, place.context().folder, file.filename, file.file)
    return await _previewed(request, kept.name, form)


async def looked_at(request: Request) -> Response:
    """POST /data/import/FILE: its first rows as the form says now; with `keep` a version of all of them."""
    form, place, name = await request.form(), pages_of(request).place, request.path_params["file"]
    if not form.get("keep"):
        return await _previewed(request, name, form)
    tolerated, note = share_of(str(form.get("max_invalid", "")), "max_invalid"), str(form.get("note", "")).strip()[:200]

    def work() -> Outcome:
        desk = place.datasets()
        most = desk.settings.max_invalid if tolerated is None else tolerated
        version, taken = desk.keep([_source(place, name, form)], max_invalid=most, note=note)
        return Outcome(f"/data/{version.id}", f"{taken.inputs:,} rows came in, {taken.invalid:,} of them with faults.")

    return await errand(request, f"Reading {name}", work)


async def _previewed(request: Request, name: str, form: Any) -> Response:
    place, given = pages_of(request).place, {key: str(form.get(key, "")) for key in ("format", "map", "note", "max_invalid")}
    source, seen, fault = await away(_source, place, name, form), [], None
    try:
        seen = await away(lambda: place.datasets().preview([source]))
    except DataError as error:  # what is wrong stands beside the fields that mend it
        fault = error
    return page(request, "data_import", name=name, seen=seen, fault=fault, given=given, formats=["auto", *FORMATS])


def _source(place: Workplace, name: str, form: Any) -> Source:
    """A file that was brought, as the form says that it is to be read. Raises UsageError."""
    pairs = [part.strip().partition("=") for part in str(form.get("map", "")).split(",") if part.strip()]
    if not all(key.strip() and mark and value.strip() for key, mark, value in pairs):
        raise UsageError(f"the columns {str(form.get('map'))[:100]!r}", where="columns", allowed="prompt=question, response=answer")
    columns = {key.strip(): value.strip() for key, _, value in pairs}
    return Source(path=str(upload_of(place.context().folder, name)), format=str(form.get("format", "")) or "auto", map=columns)


async def cleaned(request: Request) -> Response:
    """POST /data/VERSION/clean: apply the project's rules; each row's fate is in the ledger."""
    place, word = pages_of(request).place, request.path_params["version"]

    def work() -> Outcome:
        desk = place.datasets()
        version, done, _ = desk.cleaned(frozen_rows(place.context(), word))
        return Outcome(f"/data/{version.id}", f"{len(done.rows):,} rows are left.")

    return await errand(request, f"Cleaning {word[:12]}", work)


async def divided(request: Request) -> Response:
    """POST /data/VERSION/split: train, validation and test, near-duplicates on one side."""
    form, place, word = await request.form(), pages_of(request).place, request.path_params["version"]
    given = {name: str(form.get(name, "")).strip() for name in _SPLIT}
    shares: dict[str, Any] = {name: share_of(text, name) for name, text in given.items() if text}
    if "at_least_train" in shares:
        shares["at_least_train"] = int(shares["at_least_train"])

    def work() -> Outcome:
        desk = place.datasets()
        split = replace(place.context().project.split, **shares)
        desk.settings = replace(place.context().project, split=split)
        version, parts = desk.divided(frozen_rows(place.context(), word))
        leaks = ", ".join(f"{name}: {leak.near} near-duplicates of training rows" for name, leak in parts.leakage.items())
        return Outcome(f"/data/{version.id}/leakage", f"Divided; {leaks or 'nothing was held out'}.")

    return await errand(request, f"Dividing {word[:12]}", work)


async def leakage(request: Request) -> Response:
    """GET /data/VERSION/leakage: near-duplicate clusters, and what held-out rows repeat of training rows."""
    place, word = pages_of(request).place, request.path_params["version"]
    frozen, seen = await away(lambda: seen_clusters(place.context(), place.datasets(), word))
    return page(request, "data_leakage", version=frozen.version, seen=seen, base=f"/data/{frozen.version.id}")


def _may(request: Request) -> bool:
    return allowed(caller_of(request), "POST", "/data/import")


async def rows(request: Request) -> Response:
    """GET /data/VERSION[?part=&q=&label=&origin=&at=]."""
    query, word = request.query_params, request.path_params["version"]
    wanted = Wanted(words=query.get("q", "").strip(), label=query.get("label", ""), origin=query.get("origin", ""))
    start, going_on = _number(query.get("at")), "on" in query
    at = pages_of(request).place.context

    def look() -> tuple[Any, str, Any]:
        frozen = table.version_of(at(), word)
        part = query.get("part") or frozen.parts[0]
        budget = _SEARCHED_ON_S if going_on else table.BUDGET_S
        return frozen, part, table.page_of_rows(frozen, part, wanted, start, _ROWS, budget_s=budget)

    frozen, part, found = await away(look)
    filters = {key: value for key, value in (("q", wanted.words), ("label", wanted.label), ("origin", wanted.origin)) if value}
    base = f"/data/{frozen.version.id}"

    def link(place: int, **more: str) -> str:
        return f"{base}?{urlencode({'part': part, **filters, 'at': place, **more})}"

    return page(
        request,
        "data_rows",
        version=frozen.version,
        part=part,
        parts=_parts(frozen, part, base, filters),
        rows=[table.in_short(placed) for placed in found.rows],
        found=found,
        wanted=wanted,
        before=link(max(0, start - _ROWS)) if wanted.everything and start else None,
        after=link(found.next) if found.next is not None else None,
        go_on=link(found.next, on="1") if found.next is not None and len(found.rows) < _ROWS and not wanted.everything else None,
        row_base=f"{base}/{quote(part)}",
        split={name: f"{getattr(pages_of(request).place.project.split, name):g}" for name in _SPLIT},
        step=str(frozen.version.recipe.get("step", "")),
        may=_may(request),
        may_train=allowed(caller_of(request), "POST", "/jobs"),
        base=base,
    )


def _parts(frozen: Frozen, part: str, base: str, filters: dict[str, str]) -> list[dict[str, Any]]:
    counts = frozen.version.counts
    return [
        {"name": name, "href": f"{base}?{urlencode({'part': name, **filters})}", "here": name == part, "count": counts[name]}
        for name in frozen.parts
    ]


async def row(request: Request) -> Response:
    """GET /data/VERSION/PART/PLACE."""
    word, part, at = request.path_params["version"], request.path_params["part"], pages_of(request).place.context
    place = request.path_params["place"]

    def look() -> tuple[Any, dict[str, Any]]:
        frozen = table.version_of(at(), word)
        return frozen, table.one_row(at(), frozen, part, place)

    frozen, known = await away(look)
    return page(request, "data_row", version=frozen.version, part=part, base=f"/data/{frozen.version.id}", **known)


async def text(request: Request) -> Response:
    """GET /data/VERSION/PART/PLACE/text: the whole row as plain text, however long."""
    from tunesmith.flow.datasets.versions import text_of

    word, part, place = (request.path_params[name] for name in ("version", "part", "place"))
    at = pages_of(request).place.context
    known = await away(lambda: table.one_row(at(), table.version_of(at(), word), part, place))
    return PlainTextResponse(text_of(known["row"], width=1 << 30), headers=HEADERS)


async def tokens(request: Request) -> Response:
    """GET /data/VERSION/PART/PLACE/tokens: the row as the base sees it."""
    word, part, place = (request.path_params[name] for name in ("version", "part", "place"))
    at = pages_of(request).place.context
    sides = await away(lambda: table.masked_row(at(), table.version_of(at(), word), part, place))
    return page(request, "data_tokens", sides=sides, base=pages_of(request).place.project.base, back=f"/data/{word}/{part}/{place}")


async def ledger(request: Request) -> Response:
    """GET /data/VERSION/ledger[?fate=&at=]."""
    query, word, at = request.query_params, request.path_params["version"], pages_of(request).place.context
    fate = query.get("fate", "")
    fates = [fate] if fate in _FATES else []

    def look() -> tuple[Any, Any]:
        frozen = table.version_of(at(), word)
        return frozen, table.page_of_fates(frozen, fates, _number(query.get("at")), _ROWS)

    frozen, found = await away(look)
    base = f"/data/{frozen.version.id}"
    tabs = [{"name": "all", "href": f"{base}/ledger", "here": not fates, "count": sum(frozen.version.fates.values())}]
    tabs += [
        {"name": name.replace("_", " "), "href": f"{base}/ledger?fate={name}", "here": name == fate, "count": frozen.version.fates[name]}
        for name in _FATES
        if frozen.version.fates.get(name)
    ]
    after = f"{base}/ledger?{urlencode({'fate': fate, 'at': found.next})}" if found.next is not None else None
    return page(request, "data_ledger", version=frozen.version, lines=found.lines, fates=tabs, after=after, found=found, base=base)


async def changes(request: Request) -> Response:
    """GET /data/VERSION/against/OTHER: what changed from the other version to this one."""
    new, old, at = request.path_params["version"], request.path_params["other"], pages_of(request).place
    told = await away(lambda: differences(at.datasets(), old, new))
    return page(request, "data_changes", d=told, most=_DIFFERENCES, base=f"/data/{new}")


async def compare(request: Request) -> Response:
    """GET /data/compare?a=&b=: leads to the page of that comparison."""
    query = request.query_params
    return RedirectResponse(f"/data/{quote(query.get('b', ''))}/against/{quote(query.get('a', ''))}", 303)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 16 else 0
