"""Answered requests as rows: the conditions of a word such as `log:alias=my-model,since=7d`, and the requests that fit. Knows nothing about
how a request was answered.

    alias, variant, project, conversation, user    as the log has them
    since, until                                   a date, or a time ago: 30m, 12h, 7d, 2w
    limit                                          the newest so many

Only chats that were answered: a failed request teaches nothing.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.errors import UsageError, nearest
from tunesmith.core.rows import write_jsonl
from tunesmith.core.table_file import write_table
from tunesmith.store.interactions import Interactions
from tunesmith.store.store import Store

_EQUAL = {"alias": "alias", "variant": "variant", "project": "project", "conversation": "conversation", "user": "user_key"}
KEYS = (*_EQUAL, "since", "until", "limit")
_SECONDS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def conditions(text: str) -> dict[str, str]:
    """`alias=x,since=7d` as a mapping; empty text asks for all. Raises UsageError for what is no condition."""
    wanted: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if key not in KEYS or not equals or not value or key in wanted:
            raise UsageError(
                f"'{part}' is no condition of the log", where=f"log:{text}", allowed=f"each of {', '.join(KEYS)} once, as key=value",
                remedy=nearest(key, KEYS),
            )  # fmt: skip
        wanted[key] = value
    for key in ("since", "until"):
        if key in wanted:
            seconds_of(wanted[key])
    if "limit" in wanted and not re.fullmatch("[1-9][0-9]{0,8}", wanted["limit"]):
        raise UsageError(f"limit is '{wanted['limit'][:40]}'", where=f"log:{text[:80]}", allowed="a number from 1 to 999999999")
    return wanted


def seconds_of(text: str) -> float:
    """A date or a time ago, in seconds of the epoch. Raises UsageError for what is neither."""
    if ago := re.fullmatch(r"([0-9]{1,6})([mhdw])", text):
        return time.time() - int(ago[1]) * _SECONDS[ago[2]]
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise UsageError(f"'{text[:40]}' is no time", allowed="a date such as 2026-05-01, or a time ago: 30m, 12h, 7d, 2w") from error


def export(store: Store, text: str, file: Path) -> int:
    """Write the requests that fit the conditions, however they ended, to a `.parquet` or `.jsonl` file, a column each as in the table; how
    many. Raises UsageError for another kind of file, and for what is no condition."""
    if file.suffix not in (".parquet", ".jsonl"):
        raise UsageError(f"'{file.name}' is no kind of file that the log is written to", allowed=".parquet, .jsonl")
    wanted = conditions(text)
    if "limit" in wanted:
        raise UsageError("an export has no limit", where=f"log:{text[:80]}", allowed=", ".join(key for key in KEYS if key != "limit"))
    equal = {column: wanted[key] for key, column in _EQUAL.items() if key in wanted}
    times = {key: seconds_of(wanted[key]) for key in ("since", "until") if key in wanted}
    rows = Interactions(store).rows(equal, **times)
    return write_jsonl(file, rows) if file.suffix == ".jsonl" else write_table(file, rows, like=Interactions.columns())


def logged(text: str, store: Store) -> Iterator[dict[str, Any]]:
    """The requests that fit, oldest first, as rows of the format `interaction`. Raises UsageError for what is no condition."""
    wanted = conditions(text)
    equal = {column: wanted[key] for key, column in _EQUAL.items() if key in wanted}
    times = {key: seconds_of(wanted[key]) for key in ("since", "until") if key in wanted}
    limit = int(wanted["limit"]) if "limit" in wanted else None
    for interaction in Interactions(store).answered(equal, since=times.get("since"), until=times.get("until"), limit=limit):
        yield msgspec.json.decode(msgspec.json.encode(interaction))
