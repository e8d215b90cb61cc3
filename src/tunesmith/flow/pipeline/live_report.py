"""What the stage `live` found, as the report shows it: tables, curves on the way to their alarms, sentences. Computes nothing new."""

from __future__ import annotations

from typing import Any

from tunesmith.core.counted import counted
from tunesmith.flow.runner import Output


def live_part(output: Output) -> dict[str, Any]:
    """The part of the report's numbers; of a stage that was left out only why."""
    if "left_out" in output:
        return {"left_out": output["left_out"]}
    rollout = output["rollout"]
    steps = ", ".join(f"{share:.0%}" for share in rollout["steps"])
    return {
        "left_out": "",
        "status": rollout["status"].replace("_", " "),
        "about": f"{counted(output['asked'], 'held-out question')} asked by as many users; '{rollout['canary']}' answers {steps} of them "
        f"in turn, a step of at least {rollout['step_s']:g} s and {counted(rollout['step_requests'], 'request')}.",
        "outcome": rollout["outcome"],
        "history": [
            {
                "version": each["version"],
                "answers": ", ".join(f"{one['variant']} {one['share']:.0%}" for one in each["answers"]),
                "reason": each["reason"],
            }
            for each in output["history"]
        ],
        "guardrails": output["guardrails"],
        "drift": _drift(output["drift"]),
        "quality": _quality(output["quality"]),
        "correction": output["correction"],
    }


def _drift(report: dict[str, Any]) -> dict[str, Any]:
    if "left_out" in report:
        return {"left_out": report["left_out"]}
    curves, lines = [], []
    for stream in dict.fromkeys(look["stream"] for look in report["looks"]):
        looks = [look for look in report["looks"] if look["stream"] == stream]
        curves.append(
            (stream, [float(report["window"] * i) for i in range(1, len(looks) + 1)], [look["drift"].get("level", 0.0) for look in looks])
        )
        moved = [look for look in looks if look["drift"]["alarm"] or look["drift"]["lasting"]]
        names = dict.fromkeys(part["name"] for look in moved for part in look["drift"]["properties"] if part["p_adjusted"] < 0.05)
        seen = f"moved in {len(moved)} of {counted(len(looks), 'window')}: {', '.join(names)}" if moved else "quiet"
        lines.append(f"{stream}: {seen}")
    about = f"windows of {report['window']} against {report['reference']}; {report['waiting']} are in none yet"
    return {"left_out": "", "curves": curves, "lines": lines, "about": about}


def _quality(report: dict[str, Any]) -> dict[str, Any]:
    curves, rows = [], []
    for name, chart in report["charts"].items():
        for segment in chart["segments"]:
            limit, first = segment.get("limit"), segment["days"][0]["start"]
            points = [(day["start"] - first, day["level"]) for day in segment["days"] if day["level"] is not None]
            curves += [(name, [at for at, _ in points], [level for _, level in points])] if points else []
            state = "no alarm can be given yet" if limit is None else "fell" if segment.get("alarm") is not None else "steady"
            rows.append({"metric": name, "n": segment["n"], "mean": segment["mean"], "golden": segment.get("golden"), "state": state})
    return {"curves": curves, "rows": rows}
