"""The decision for people and programs: `decision.html`, `.json` and `.md`, all of the same report. Measures nothing."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tunesmith._version import __version__
from tunesmith.core.atomic import write_atomic
from tunesmith.core.counted import counted
from tunesmith.decide.records import Decision
from tunesmith.flow.decide.desk import Desk
from tunesmith.flow.decide.evidence import ArmFigures, as_json
from tunesmith.flow.decide.racing import Raced
from tunesmith.flow.decide.upkeep import Upkeep

_DIGITS = 3


@dataclass(frozen=True)
class Found:
    """All that an experiment found. `left_out` says of arms and parts that were not tried why; `more` is what other parts of the experiment
    have to show, by name."""

    identity: str
    command: str
    decision: Decision
    figures: Sequence[ArmFigures]
    raced: Raced
    upkeeps: Mapping[str, Upkeep]
    left_out: dict[str, str]
    learning: dict[str, Any] | None
    more: dict[str, Any] = field(default_factory=dict)


def written(desk: Desk, found: Found, out: Path) -> dict[str, Any]:
    """Write the three files into `out`; returns the report."""
    from tunesmith.pages.render import render

    report = _report(desk, found)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "decision.html", render("decision", r=report))
    write_atomic(out / "decision.md", markdown(report))
    write_atomic(out / "decision.json", msgspec.json.format(msgspec.json.encode(report), indent=2))
    return report


def _report(desk: Desk, found: Found) -> dict[str, Any]:
    plan, metric, raced = desk.plan, desk.metric, found.raced
    arms = as_json(found.figures, found.upkeeps)
    decision = msgspec.to_builtins(found.decision)
    standing = {one["name"]: one for one in decision["arms"]}
    for arm in arms:
        own = standing.get(arm["name"], {})
        arm |= {"standing": own.get("standing", ""), "reason": own.get("reason", ""), "chosen": arm["name"] == found.decision.chosen}
        arm["chosen_facts"] = [(key.replace("_", " "), _shown(value)) for key, value in arm["choices"].items()]
    asked = sum(arm["rows"] for arm in arms)
    return {
        "id": found.identity,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "command": found.command,
        "project": desk.project.project.name,
        "base": desk.project.project.base,
        "quick": plan.quick,
        "metric": {"name": metric.name, "better": metric.better, "kind": metric.kind},
        "margin": plan.margin,
        "level": 1 - plan.alpha,
        "verdict": found.decision.sentence,
        "chosen": found.decision.chosen,
        "sure": found.decision.sure,
        "decision": decision,
        "rows": {
            "train": len(desk.train),
            "validation": len(desk.validation),
            "test": len(raced.rows),
            "asked": asked,
            "saved": 1 - asked / (len(arms) * len(raced.rows)),
            "missing": raced.missing,
        },
        "opening": msgspec.to_builtins(raced.opening),
        "stopped": raced.stopped,
        "arms": arms,
        "cost_axis": _axis(arms),
        "left_out": found.left_out,
        "learning": found.learning and found.learning | _drawn(found.learning),
        "seconds": desk.budget.taken_s,
        "usd": desk.budget.taken_usd if plan.machine_per_hour is not None else None,
        "machine_per_hour": plan.machine_per_hour,
        "busy": plan.busy,
        "next": next_commands(found, quick=plan.quick),
        **found.more,
    }


def _axis(arms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What quality is drawn against: dollars where every arm has a price, else seconds of this machine."""
    priced = all(arm["usd_per_1000"] is not None for arm in arms)
    key, label = ("usd_per_1000", "US dollars for 1,000 requests") if priced else ("busy_s", "seconds for a request, many at once")
    points = [
        (
            arm["name"],
            arm[key],
            arm["value"],
            *((arm["interval"]["low"], arm["interval"]["high"]) if arm["interval"] else (arm["value"],) * 2),
        )
        for arm in arms
        if arm["value"] is not None and arm[key]
    ]
    return {"label": label, "points": points}


def next_commands(found: Found, *, quick: bool) -> list[str]:
    """What to do next, as commands."""
    commands = []
    if found.decision.chosen is not None:
        commands.append(f"tunesmith run --arm {shlex.quote(found.decision.chosen)}")
    if quick:
        commands.append("tunesmith decide")
    if not found.decision.sure:
        commands.append("tunesmith data next")
    return commands


def markdown(report: dict[str, Any]) -> str:
    """The report in few lines, for a pull request."""
    metric = report["metric"]["name"]
    lines = [f"## Decision for {report['project']}", "", report["verdict"], ""]
    lines += [f"| arm | rows | {metric} | against the best simpler arm | s a request | USD for 1,000 | says |", "| --- " * 7 + "|"]
    for arm in report["arms"]:
        cells = [
            f"**{arm['name']}**" if arm["chosen"] else arm["name"],
            str(arm["rows"]),
            _span(arm["value"], arm["interval"]),
            f"{_difference(arm['difference'])} ({arm['against']})" if arm.get("difference") else "–",
            _number(arm["latency_p50_s"]),
            _number(arm["usd_per_1000"]),
            arm["standing"],
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    rows = report["rows"]
    lines += [
        "",
        f"{counted(rows['test'], 'sealed test row')}, opening number {report['opening']['number']}; {report['stopped']}.",
    ]
    lines += [f"- {report['probe']['sentence']}"] if report["probe"] else []
    lines += [f"- {change}" for change in report["decision"].get("changes", [])]
    if report["learning"] is not None:
        lines += [f"- {sentence}" for sentence in learning_sentences(report["learning"])]
    lines += [f"- not tried: {name}: {why}" for name, why in report["left_out"].items()]
    lines += [f"- next: `{command}`" for command in report["next"]]
    return "\n".join(lines) + "\n"


def learning_sentences(learning: dict[str, Any]) -> list[str]:
    """What more data would bring, in words."""
    if learning["law"] == "cannot tell":
        why = f": {learning['why']}" if learning["why"] else ": the laws that fit the points disagree"
        return [f"What more data would bring cannot be told{why}."]
    return [
        f"{one['times']} times the rows ({one['rows']:,}): {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}] on validation rows, "
        f"by the {learning['law']} law."
        for one in learning["more"]
    ]


def _drawn(learning: dict[str, Any]) -> dict[str, Any]:
    observed = [(one["rows"], one["score"]) for one in learning["points"] if one["rows"]]
    return {"observed": observed, "sentences": learning_sentences(learning)}


def _shown(value: Any) -> str:
    """A chosen value, or what was tried, in words."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "\n".join(", ".join(_shown(part) for part in one.values()) if isinstance(one, dict) else _shown(one) for one in value)
    return f"{value:.3f}" if isinstance(value, float) else "–" if value is None else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.{_DIGITS}g}"


def _span(value: float | None, interval: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{interval['low']:.3f}, {interval['high']:.3f}]" if interval else "")


def _difference(one: dict[str, Any]) -> str:
    return f"{one['estimate']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
