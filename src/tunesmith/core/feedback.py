"""What somebody says of an answer, as it is sent to `/v1/feedback` and as it stands in a file of our own; knows nothing about where answers
are kept."""

from __future__ import annotations

import contextlib
import datetime
import math
from typing import Any, Literal

from tunesmith.core.errors import UsageError
from tunesmith.core.types import Feedback, Record, digest

KINDS = ("thumbs", "score", "correction", "outcome")
_LATER_S = 86_400.0  # how far clocks of clients may be ahead
_THUMBS = {"up": 1.0, "down": 0.0}


class FeedbackBody(Record, frozen=True):
    """One word about one answer: exactly one of thumbs, score, correction and outcome. `interaction` is the answer's id; `created` seconds
    since 1970 or a date (without it, now); the same `id` is the same word, however often it is sent."""

    interaction: str
    id: str | None = None
    thumbs: Literal["up", "down"] | None = None
    score: float | None = None
    correction: str | None = None
    outcome: bool | float | str | None = None
    name: str = ""
    by: str = ""
    comment: str = ""
    created: float | str | None = None

    def feedback(self, now: float, *, source: str, project: str, own_id: str = "") -> Feedback:
        """The record of it, received `now`. `own_id` is its id where the body has none; without either it is named by its content.

        Raises UsageError for none or several values, and for values that cannot be.
        """
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise UsageError(f"feedback with {' and '.join(given) or 'no value'}", allowed=f"exactly one of {', '.join(KINDS)}")
        kind: Any = given[0]
        created = now if self.created is None else seconds_since_1970(self.created)
        if created > now + _LATER_S:
            raise UsageError(f"'created' is {self.created!r}, which is to come", allowed="a time that has been")
        for name in ("interaction", "id", "name", "by"):
            if len(getattr(self, name) or "") > 200:
                raise UsageError(f"'{name}' has {len(getattr(self, name))} characters", allowed="200 at most")
        value = self._value(kind)
        identity = self.id or own_id or f"fb-{digest(self.interaction, kind, value, self.name, self.by, self.comment, self.created)}"
        return Feedback(
            id=identity, interaction=self.interaction, created=created, kind=kind, value=value, name=self.name, by=self.by,
            comment=self.comment, source=source, project=project, received=now,
        )  # fmt: skip

    def _value(self, kind: str) -> float | str:
        value = getattr(self, kind)
        if kind == "thumbs":
            return _THUMBS[value]
        if isinstance(value, str):
            if not value.strip():
                raise UsageError(f"'{kind}' is an empty text", allowed="some words")
            return value
        if not math.isfinite(value):
            raise UsageError(f"'{kind}' is {value}", allowed="a finite number")
        return float(value)


def body_of(feedback: Feedback) -> FeedbackBody:
    """The same word as a body: what `feedback export` writes and `feedback import` reads."""
    value: Any = feedback.value
    if feedback.kind == "thumbs":
        value = "up" if value == 1 else "down"
    fields: dict[str, Any] = {feedback.kind: value}
    return FeedbackBody(
        interaction=feedback.interaction, id=feedback.id, name=feedback.name, by=feedback.by, comment=feedback.comment,
        created=feedback.created, **fields,
    )  # fmt: skip


def seconds_since_1970(value: object) -> float:
    """A number of seconds or milliseconds, or a date in ISO 8601 (UTC where it names no zone), as seconds since 1970. Raises UsageError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e14:
        return value / 1000 if value > 1e11 else float(value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):  # told below
            moment = datetime.datetime.fromisoformat(value.strip())
            return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    raise UsageError(f"{value!r} is no time", allowed="seconds since 1970, or a date such as 2026-05-01T12:00:00Z")
