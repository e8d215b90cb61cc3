"""Pages about data: versions, the rows of one, one row with its fate and tokens, its ledger, two versions beside each other."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from tunesmith.api.http import away
from tunesmith.data.table import Wanted
from tunesmith.flow.datasets import table
from tunesmith.flow.datasets.versions import differences
from tunesmith.flow.sources import Frozen
from tunesmith.web.page import HEADERS, page, pages_of

_ROWS = 50
_SEARCHED_ON_S = 0.5  # a search that goes on in the background may take longer than a page
_DIFFERENCES = 50
_FATES = ("dropped", "duplicate_of", "mended", "truncated", "kept")


async def versions(request: Request) -> Response:
    """GET /data."""
    place = pages_of(request).place
    known = await away(lambda: table.every_version(place.context()))
    return page(request, "data_versions", versions=known)


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
