"""Pages for people: one template environment and one stylesheet for every report; knows nothing about where its numbers come from.

A page is one file that opens offline: the stylesheet stands in it, plots are SVG text, nothing is fetched. Whatever comes from data is
escaped; what is already HTML (a plot, another template's part) is `Markup`, nothing else is. A name that a template misspells is an error
and no gap in the page: what a page may lack is asked for with `if`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jinja2
from markupsafe import Markup

from tunesmith.core.errors import UsageError
from tunesmith.pages import plots


class _Missing(jinja2.Undefined):
    """A value that is not there: a template may ask whether it is, never print it or walk over it."""

    __slots__ = ()
    __str__ = __iter__ = __len__ = jinja2.Undefined._fail_with_undefined_error


def render(template: str, **values: Any) -> Markup:
    """A template of `pages/templates` over the values: a whole page, or a part that another page takes in as it is.

    Raises UsageError for a template that does not exist.
    """
    try:
        page = _environment().get_template(f"{template}.html.j2")
    except jinja2.TemplateNotFound as error:
        known = [name.removesuffix(".html.j2") for name in _environment().list_templates() if name.endswith(".html.j2")]
        raise UsageError(f"no page '{template}'", allowed=", ".join(known)) from error
    return Markup(page.render(**values))


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tunesmith.pages"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=_Missing
    )
    environment.globals |= {
        draw.__name__: draw
        for draw in (plots.band, plots.bars, plots.histogram, plots.intervals, plots.lines, plots.parallel, plots.points, plots.scatter)
    }
    filters: dict[str, Callable[..., Any]] = {
        "count": lambda number: f"{number:,.0f}",
        "brief": lambda number: _number(number, ".3g"),
        "signed": lambda number: _number(number, "+.3g"),
        "fixed": _fixed,
        "percent": lambda share: "–" if share is None else f"{100 * share:.0f} %",
        "p_value": lambda p: "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}",
        "interval": _interval,
        "short": lambda origin: origin.rpartition("/")[2],
        "moment": lambda iso: iso[:16].replace("T", " "),
        "when": _when,
        "clip": _clip,
        "bytes": _bytes,
    }
    environment.filters |= filters
    return environment


def _when(seconds: float | None) -> Markup:
    """Seconds of the epoch as a local time that programs can read, too; a dash for None."""
    if seconds is None:
        return Markup("–")
    moment = datetime.datetime.fromtimestamp(seconds).astimezone()
    return Markup('<time datetime="{}">{}</time>').format(moment.isoformat(timespec="seconds"), f"{moment:%Y-%m-%d %H:%M}")


def _clip(text: str, most: int = 300) -> str:
    """The beginning of a text, with how long it is where that is not all."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def _bytes(count: float) -> str:
    """A size in words."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _fixed(value: float | None, digits: int = 3) -> str:
    return _number(value, f".{digits}f")


def _interval(difference: Any, digits: int = 3) -> str:
    """`+0.123 [+0.045, +0.201]` of a record or mapping with estimate, low and high; a dash for None."""
    if difference is None:
        return "–"
    values = difference if isinstance(difference, dict) else {name: getattr(difference, name) for name in ("estimate", "low", "high")}
    return "{:+.{n}f} [{:+.{n}f}, {:+.{n}f}]".format(values["estimate"], values["low"], values["high"], n=digits)
