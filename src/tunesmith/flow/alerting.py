"""Alerts looked at and told: readings of the rules' metrics out of the store, changes of state, channels. Knows nothing about which
server runs."""

from __future__ import annotations

import logging
import os
import smtplib
import ssl
import time
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.core.errors import DataError, TunesmithError
from tunesmith.core.progress import Silent
from tunesmith.monitor.alerts import Alerts, Channel, Email, Rule, State, next_state, silenced_until, span_s
from tunesmith.monitor.settings import Monitor
from tunesmith.monitor.status import status
from tunesmith.store.alerts import AlertLog
from tunesmith.store.feedback import FeedbackLog
from tunesmith.store.store import Store

_log = logging.getLogger("tunesmith.alerts")
_TIMEOUT_S = 10.0
_SLOW_S = 3_600.0  # how long what reads whole chats is believed


class Reading(NamedTuple):
    """The value of a rule's metric (None: too little to say), and what is told with it."""

    value: float | None
    context: dict[str, Any]


class Change(NamedTuple):
    """What one look changed: an alert fired or was resolved."""

    rule: str
    kind: str
    value: float | None


@dataclass
class Alerting:
    """Looks at the rules of one project. `config` is its file, for what reads the project's rows."""

    store: Store
    alerts: Alerts
    monitor: Monitor
    alias: str
    config: Path
    _slow: dict[str, tuple[float, Reading]] = field(default_factory=dict)

    def look(self) -> list[Change]:
        """Read every rule's metric, write what changed, and tell the channels what is due. Raises StoreError."""
        log = AlertLog(self.store)
        states, changes = log.states(), []
        for rule in self.alerts.rules:
            row = states.get((rule.name, rule.alias))
            state: State = row["state"] if row is not None else "ok"
            since = row["since"] if row is not None else 0.0
            reading = self.reading(rule)
            after = next_state(rule, state, since, reading.value, time.time())
            kind = "fired" if after == "firing" and state != "firing" else "resolved" if state == "firing" and after != "firing" else ""
            if after == state and row is not None:
                continue
            tell = {name: self._body(rule, kind, reading) for name in rule.to or self.alerts.channels} if kind else {}
            before = None if row is None else (state, since)
            if log.change(rule.name, rule.alias, before, after, reading.value, tell, self.labels(rule)) and kind:
                changes.append(Change(rule.name, kind, reading.value))
        self.deliver()
        return changes

    def labels(self, rule: Rule) -> dict[str, str]:
        """The labels of a rule's alerts, with its name and alias."""
        return {"rule": rule.name, "alias": rule.alias or self.alias, **rule.labels}

    def deliver(self) -> None:
        """Tell the channels what is due; what fails is tried again."""
        log = AlertLog(self.store)
        for row in log.take_due():
            if row["outcome"] == "silenced" and log.over(row):
                log.drop(row)
                continue
            until = silenced_until(row["labels"], log.silences(), time.time())
            if until is not None:
                log.wait(row, until)
                continue
            if row["kind"] == "resolved" and log.over(row):
                log.drop(row)
                continue
            channel = self.alerts.channels.get(row["channel"])
            log.told(row, send(channel, row["body"]) if channel is not None else "no such channel any longer")

    def test(self) -> dict[str, str]:
        """Tell every channel that this is a test: channel → what went wrong, empty where nothing did."""
        body = {
            "id": "test",
            "kind": "test",
            "rule": "test",
            "alias": self.alias,
            "text": "Tunesmith: a test of this channel",
            "at": time.time(),
        }
        return {name: send(channel, body) for name, channel in self.alerts.channels.items()}

    def _body(self, rule: Rule, kind: str, reading: Reading) -> dict[str, Any]:
        value = "" if reading.value is None else f" ({rule.metric} is {reading.value:.4g})"
        alias = rule.alias or self.alias
        said = f"{'FIRED' if kind == 'fired' else 'resolved'}: {rule.name}, {alias}: {rule.bound} over {rule.over}{value}"
        link = self.alerts.link.replace("{alias}", alias)
        return {
            "kind": kind, "rule": rule.name, "alias": alias, "metric": rule.metric, "value": reading.value, "bound": rule.bound,
            "over": rule.over, "labels": rule.labels, "context": reading.context, "link": link,
            "text": f"{said}{' ' + link if link else ''}",
        }  # fmt: skip

    # --- readings ------------------------------------------------------------------------------------------------------------------------

    def reading(self, rule: Rule) -> Reading:
        """The value of a rule's metric now."""
        if rule.metric in ("drift", "quality"):
            return self._slowly(rule)
        since = time.time() - span_s(rule.over, rule.name)
        if rule.metric == "thumbs_down_rate":
            return self._thumbs(rule, since)
        return _counted(rule, status(self.store, since))

    def _thumbs(self, rule: Rule, since: float) -> Reading:
        words = FeedbackLog(self.store).listed(kinds=["thumbs"], since=since)
        last = {(word.interaction, word.by): word.value for word in reversed(words)}
        down = [interaction for (interaction, _), value in last.items() if value == 0]
        value = len(down) / len(last) if len(last) >= max(rule.least, 1) else None
        return Reading(value, {"thumbs": len(last), "down": len(down), "requests": down[:5]})

    def _slowly(self, rule: Rule) -> Reading:
        known = self._slow.get(rule.metric + rule.alias)
        if known is not None and time.time() - known[0] < _SLOW_S:
            return known[1]
        reading = self._watched(rule)
        self._slow[rule.metric + rule.alias] = (time.time(), reading)
        return reading

    def _watched(self, rule: Rule) -> Reading:
        from tunesmith.flow.evaluation.run import bench
        from tunesmith.flow.watching import drift_of, quality_of

        alias = rule.alias or self.alias
        with bench(self.config, Silent()) as at:
            if rule.metric == "quality":
                quality = quality_of(alias, at, self.monitor, score=False)
                fell = {name: chart.segments[-1].mean for name, chart in quality.charts.items() if chart.alarm is not None}
                return Reading(float(quality.alarm), {"fell": fell})
            try:
                drift = drift_of(alias, at, self.monitor)
            except DataError as error:
                return Reading(None, {"why": error.what})
        moved = {look.stream: [part.name for part in look.drift.properties if part.p_adjusted < 0.05] for look in drift.newest}
        return Reading(float(drift.alarm), {"moved": moved, "requests": [id for look in drift.newest for id in look.requests[:5]]})


def _counted(rule: Rule, numbers: dict[str, Any]) -> Reading:
    parts = [part for part in numbers["variants"] if part["alias"] == rule.alias] if rule.alias else [numbers]
    requests, errors = sum(part["requests"] for part in parts), sum(part["errors"] for part in parts)
    context = {"requests": requests, "errors": errors}
    if rule.metric == "requests":
        return Reading(float(requests), context)
    if requests < max(rule.least, 1):
        return Reading(None, context)
    if rule.metric == "error_rate":
        return Reading(errors / requests, context)
    if rule.metric == "cost_usd":
        return Reading(sum(part["cost_usd"] or 0.0 for part in parts), context)
    slowest = [part["total_s"]["p95"]["value"] for part in parts if part["total_s"].get("p95")]
    return Reading(max(slowest, default=None), context)


# --- channels ----------------------------------------------------------------------------------------------------------------------------


def send(channel: Channel, body: dict[str, Any]) -> str:
    """Tell one channel; empty where it was told, else what went wrong. The body's `id` is the same at every try."""
    try:
        if channel.log:
            _log.warning("%s", body["text"])
        elif channel.email is not None:
            _mail(channel.email, body)
        else:
            _post(channel, body)
    except (OSError, smtplib.SMTPException, ValueError, TunesmithError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _post(channel: Channel, body: dict[str, Any]) -> None:
    import httpx

    try:
        payload = {"text": body["text"]} if channel.slack else body
        answer = httpx.post(
            channel.slack or channel.webhook or "", json=payload, timeout=_TIMEOUT_S, headers={"idempotency-key": body["id"]}
        )
    except httpx.HTTPError as error:
        raise OSError(str(error)) from error
    if not 200 <= answer.status_code < 300:
        raise OSError(f"status {answer.status_code}")


def _mail(email: Email, body: dict[str, Any]) -> None:
    letter = EmailMessage()
    letter["Subject"] = " ".join(str(body["text"]).split())[:200]
    letter["From"], letter["To"] = email.sender, ", ".join(email.to)
    letter["Message-ID"] = f"<{body['id']}@tunesmith>"
    details = {key: value for key, value in body.items() if value not in ("", None, {}, [])}
    letter.set_content("\n".join([str(body["text"]), "", *(f"{key}: {value}" for key, value in details.items() if key != "text")]))
    kind = smtplib.SMTP_SSL if email.tls == "tls" else smtplib.SMTP
    with kind(email.host, email.port, timeout=_TIMEOUT_S) as server:
        if email.tls == "starttls":
            server.starttls(context=ssl.create_default_context())
        if email.user:
            server.login(email.user, os.environ.get(email.password_from, ""))
        server.send_message(letter)
