"""The section `alerts:` of tunesmith.yaml: what is an alert and who is told; and when one fires. Knows nothing about how a value is
measured, stored or sent.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Record

METRICS = ("requests", "error_rate", "p95_s", "cost_usd", "thumbs_down_rate", "drift", "quality")
State = Literal["ok", "pending", "firing"]
_SPAN = re.compile(r"([1-9]\d{0,5})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def span_s(text: str, where: str) -> float:
    """`30s`, `5m`, `12h`, `7d` in seconds. Raises ConfigError."""
    parts = _SPAN.fullmatch(text)
    if parts is None:
        raise ConfigError(f"'{text[:40]}' is no time", where=where, allowed="such as 30s, 5m, 12h, 7d, 2w")
    return float(int(parts[1]) * _SECONDS[parts[2]])


class Rule(Record, frozen=True):
    """An alert: `metric` of an alias (empty: of all requests) over the last `over`, `above` or `below` a bound for `hold`. With fewer than
    `least` requests there is no reading, and nothing changes. `to` names channels (empty: all); `labels` are for silences."""

    name: str
    metric: str
    above: float | None = None
    below: float | None = None
    alias: str = ""
    over: str = "1h"
    hold: str = ""
    least: int = 1
    labels: dict[str, str] = {}
    to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"alerts.rules '{self.name}'"
        if self.metric not in METRICS:
            raise ConfigError(f"no metric '{self.metric}'", where=where, allowed=", ".join(METRICS))
        if self.metric in ("drift", "quality"):
            if self.above is not None or self.below is not None:
                raise ConfigError(f"'{self.metric}' with a bound", where=where, allowed="none: its own false-alarm rate is in monitor:")
        elif (self.above is None) == (self.below is None):
            raise ConfigError("no bound, or two", where=where, allowed="exactly one of above and below")
        span_s(self.over, f"{where}, over")
        if self.hold:
            span_s(self.hold, f"{where}, hold")

    def holds(self, value: float) -> bool:
        """Whether a value is beyond the bound."""
        if self.above is not None:
            return value > self.above
        return value < self.below if self.below is not None else value > 0

    @property
    def bound(self) -> str:
        """The condition in words."""
        if self.above is None and self.below is None:
            return f"{self.metric} is an alarm"
        return f"{self.metric} above {self.above:g}" if self.above is not None else f"{self.metric} below {self.below:g}"


class Email(Record, frozen=True):
    """A mail server; `password_from` names the environment variable with the password of `user`."""

    to: tuple[str, ...]
    host: str
    sender: str
    port: int = 587
    tls: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password_from: str = ""


class Channel(Record, frozen=True):
    """One way to tell: exactly one of `webhook` (a URL that gets the alert as JSON), `slack` (a URL that gets `{"text": …}`), `email`,
    `log` (the server's own)."""

    webhook: str | None = None
    slack: str | None = None
    email: Email | None = None
    log: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("webhook", "slack", "email", "log") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(
                f"a channel with {' and '.join(given) or 'nothing'}", where="alerts.channels", allowed="one of webhook, slack, email, log"
            )
        for name in ("webhook", "slack"):
            url = getattr(self, name)
            if url and not url.startswith(("http://", "https://")):
                raise ConfigError(f"'{name}' is '{url}'", where="alerts.channels", allowed="http:// or https://")


class Alerts(Record, frozen=True):
    """Rules and channels. They are looked at every `every`; `link` is put into what is told, `{alias}` replaced: a dashboard, a runbook."""

    rules: tuple[Rule, ...] = ()
    channels: dict[str, Channel] = msgspec.field(default_factory=lambda: {"log": Channel(log=True)})
    every: str = "1m"
    link: str = ""

    def __post_init__(self) -> None:
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"rules with one name: {', '.join(twice)}", where="alerts.rules", allowed="distinct names")
        for rule in self.rules:
            unknown = [name for name in rule.to if name not in self.channels]
            if unknown:
                raise ConfigError(
                    f"rule '{rule.name}' tells '{unknown[0]}'", where="alerts.rules", allowed=f"a channel: {', '.join(self.channels)}"
                )
        span_s(self.every, "alerts.every")


def next_state(rule: Rule, state: State, since: float, value: float | None, now: float) -> State:
    """What an alert is after a look. `since`: when it came to be what it is; a value that could not be read changes nothing."""
    if value is None:
        return state
    if not rule.holds(value):
        return "ok"
    if state == "firing" or not rule.hold:
        return "firing"
    return "firing" if state == "pending" and now - since >= span_s(rule.hold, rule.name) else "pending"


def silenced_until(labels: dict[str, str], silences: list[tuple[dict[str, str], float]], now: float) -> float | None:
    """The latest end of the silences in force that an alert with these labels falls under; None where there is none."""
    ends = [until for wanted, until in silences if until > now and wanted.items() <= labels.items()]
    return max(ends, default=None)
