"""A study in numbers and in words: every trial with what was seen of it. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.counted import counted
from tunesmith.core.stats import spearman
from tunesmith.flow.tuning.study import STOP
from tunesmith.tune.search import Search
from tunesmith.tune.trials import Trial, front, ranked


def summary(search: Search, place: Path) -> dict[str, Any]:
    """Everything about a study that people and programs ask for; `place` is its folder."""
    trials, facts = search.trials(), search.facts
    order = ranked([trial for trial in trials if trial.state == "finished"], higher=facts.higher)
    return {
        "study": search.name,
        "metric": facts.metric,
        "better": "higher" if facts.higher else "lower",
        "rungs": [rung.name for rung in facts.rungs],
        "space": {each.key: {"values": each.text(), "default": each.default, "source": each.source} for each in facts.space},
        "trials": [_row(trial) for trial in trials],
        "best": order[0].number if order else None,
        "front": front(trials, higher=facts.higher),
        "loss_correlation": _correlation(trials, higher=facts.higher),
        "tokens": sum(trial.tokens for trial in trials if trial.origin != "cloned"),
        "stopping": (place / STOP).exists(),
    }


def _row(trial: Trial) -> dict[str, Any]:
    look = trial.last
    return {
        "number": trial.number,
        "origin": trial.origin,
        "state": trial.state,
        "params": trial.params,
        "value": None if look is None else look.value,
        "interval": None if look is None or look.low is None else [look.low, look.high],
        "values": {} if look is None else look.values,
        "loss": None if look is None else look.loss,
        "rung": None if look is None else look.rung,
        "tokens": trial.tokens,
        "seconds": trial.seconds,
        "looks": [msgspec.to_builtins(each) for each in trial.looks],
        "note": trial.note,
    }


def _correlation(trials: list[Trial], *, higher: bool) -> float | None:
    """Spearman's correlation of the validation loss with the metric among whole trainings; None for fewer than 4."""
    seen = [(t.looks[-1].loss, next(iter(t.looks[-1].values.values()))) for t in trials if t.state == "finished" and t.looks[-1].values]
    pairs = [(loss, value) for loss, value in seen if loss is not None and value is not None]
    return spearman([loss for loss, _ in pairs], [value for _, value in pairs]) if len(pairs) >= 4 else None


def status_text(found: Mapping[str, Any]) -> str:
    """The table of a study for people."""
    lines = [f"study {found['study']}: {counted(len(found['trials']), 'trial')}, {found['tokens']:,} tokens trained, by {found['metric']}"]
    for row in found["trials"]:
        value = "–" if row["value"] is None else f"{row['value']:.4g}"
        spread = "" if row["interval"] is None else f" [{row['interval'][0]:.3g}, {row['interval'][1]:.3g}]"
        rung = "" if row["rung"] is None else found["rungs"][row["rung"]]
        params = " ".join(f"{key}={_short(value)}" for key, value in row["params"].items())
        mark = "*" if row["number"] == found["best"] else " "
        note = f"  {row['note']}" if row["note"] else ""
        lines.append(
            f"{mark}{row['number']:>4}  {row['state']:<8} {rung:>15}  {value:>8}{spread:<18} {row['tokens']:>10,}  {params}"
            f"{'' if row['origin'] == 'search' else ' (' + row['origin'] + ')'}{note}"
        )
    if found["loss_correlation"] is not None:
        lines.append(f"rank correlation of validation loss and {found['metric']} over whole trainings: {found['loss_correlation']:+.2f}")
    if found["front"]:
        lines.append(f"quality against trained tokens: nothing beats {', '.join(f'trial {number}' for number in found['front'])}")
    if found["stopping"]:
        lines.append("asked to stop; tunesmith tune goes on with it")
    lines.append(found["verdict"]["sentence"] if found["verdict"] else "no verdict yet: tunesmith tune goes on until there is one")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
