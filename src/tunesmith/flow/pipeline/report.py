"""The last stage: everything that was found, as report.json and as one report.html that opens offline. Computes nothing new."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import platform
import re
from pathlib import Path
from typing import Any

import msgspec

from tunesmith._version import __version__
from tunesmith.core.atomic import write_atomic
from tunesmith.core.counted import counted
from tunesmith.evaluate.compare import Comparison
from tunesmith.evaluate.metrics import metric
from tunesmith.flow.context import TUNED, ProjectContext
from tunesmith.flow.datasets import findings as in_rows
from tunesmith.flow.evaluation.findings import findings, findings_html
from tunesmith.flow.evaluation.results import arm_evaluations, load_comparisons
from tunesmith.flow.failures import write_failures
from tunesmith.flow.pipeline.live_report import live_part
from tunesmith.flow.pipeline.training_stage import events
from tunesmith.flow.project import Project
from tunesmith.flow.runner import Output
from tunesmith.pages.render import render
from tunesmith.store.database import without_password
from tunesmith.train.methods import METHODS

_SHOWN = 6
# What an evaluation measures besides the loss and is worth a sentence.
_FIGURES = ("token_accuracy", "reward_accuracy", "reward_margin")
_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy", "scipy", "openai")


def write_report(context: ProjectContext, work: Path) -> Output:
    """Write report.json (every figure with its interval), report.html (the same for people) and failures.jsonl (for `data next`)."""
    report = _report(context)
    write_atomic(work / "report.json", json.dumps(report, indent=1, default=str))
    parts = {"findings_part": findings_html(report["findings"]), "rows_part": in_rows.section(report["data_findings"])}
    write_atomic(work / "report.html", render("run_report", r=report, **parts))
    write_failures(work / "failures.jsonl", report["findings"]["failures"])
    return {"files": ["report.html", "report.json", "failures.jsonl"]}


def _report(context: ProjectContext) -> dict[str, Any]:
    stages = [done for stage in context.runner.stages if (done := context.runner.peek(stage.name))]
    outputs = {done.name: done.output for done in stages}
    comparisons = load_comparisons(context.runner.folder("compare"))
    compared = outputs["compare"]
    best = compared["best_baseline"]
    in_answers, in_data = findings(context), in_rows.findings(context)
    return {
        "name": context.project.name,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": without_folders(_without_secrets(context.command, context.project)),
        "left_out": list(context.left_out),
        "versions": {"tunesmith": __version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}},
        "verdict": compared["verdict"],
        "gate": {**compared["gate"], **msgspec.structs.asdict(context.project.gate)},
        "primary": context.project.evaluate.metrics[0],
        "best_baseline": best,
        "total_time": _minutes(sum(done.seconds for done in stages)),
        **_measured(context, comparisons, outputs),
        **_rows_won_and_lost(context, best, comparisons[best]),
        "findings": in_answers,
        "data_findings": in_data,
        "data": _data(context, outputs),
        "training": _training(context, outputs["train"]),
        "questions": outputs["ask"]["questions"],
        "monitoring": [_watched(variant) for variant in outputs["ask"]["monitoring"]["variants"]],
        "live": live_part(outputs["live"]) if "live" in outputs else None,
        "stages": [{"name": done.name, "digest": done.digest, "seconds": done.seconds} for done in stages],
        "configuration": msgspec.yaml.encode(
            without_folders(_without_secrets(msgspec.to_builtins(context.project), context.project))
        ).decode(),
        "environment": f"{platform.platform()}\n" + "\n".join(f"{key}: {value}" for key, value in outputs["train"]["environment"].items()),
    }


def _without_secrets(value: Any, project: Project) -> Any:
    """A report is shown around: the database's password and the webhooks' secrets are taken out of every text in `value`."""
    if isinstance(value, dict):
        return {key: _without_secrets(item, project) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(item, project) for item in value]
    if not isinstance(value, str):
        return value
    for hook in project.serve.webhooks:
        value = value.replace(hook.secret, "…") if hook.secret else value
    url = project.serve.database
    return value.replace(url, without_password(url)) if url else value


_FOLDERS = re.compile(r"(?<![\w.:/~-])/(?:[^/\s'\"]+/)+(?=[^/\s'\"])")


def without_folders(value: Any) -> Any:
    """A report is sent to others, who have no use for this machine's folders: of absolute paths the last name is left; addresses stay."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return _FOLDERS.sub("…/", value) if isinstance(value, str) else value


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _measured(context: ProjectContext, comparisons: dict[str, Comparison], outputs: dict[str, Output]) -> dict[str, Any]:
    """Each arm's intervals, what is drawn of them, and the table of differences."""
    names = context.project.evaluate.metrics
    first = next(iter(comparisons.values()))
    intervals = {arm: {measured.metric: measured.a for measured in comparison.metrics} for arm, comparison in comparisons.items()}
    intervals["tuned"] = {measured.metric: measured.b for measured in first.metrics}
    labels = {arm: f"{arm} ({outputs[f'evaluate:{arm}']['variant']})" if arm not in ("zero-shot", "tuned") else arm for arm in intervals}
    plotted = []
    for name in names:
        kind = metric(name)
        rows = [
            (labels[arm], interval.estimate, interval.low, interval.high) for arm, each in intervals.items() if (interval := each[name])
        ]
        unit = kind.low == 0 and kind.high == 1
        about = f"{'pooled over all rows' if kind.kind == 'pooled' else 'mean over rows'}; {kind.better} is better"
        plotted.append({"name": name, "about": about, "rows": rows, "span": (0.0, 1.0) if unit else None})
    arms = [
        {
            "name": arm,
            "label": labels[arm],
            "scores": {name: msgspec.structs.asdict(interval) for name, interval in each.items() if interval},
            **outputs[f"evaluate:{arm}"],
        }
        for arm, each in intervals.items()
    ]
    table = [
        {"against": arm, "metrics": [_row(measured) for measured in comparison.metrics if measured.difference]}
        for arm, comparison in comparisons.items()
    ]
    return {"metrics": plotted, "arms": arms, "comparisons": table}


def _row(comparison: Any) -> dict[str, Any]:
    return {
        "metric": comparison.metric,
        "difference": msgspec.structs.asdict(comparison.difference),
        "p_adjusted": comparison.p_adjusted,
        "smallest": comparison.smallest_detectable,
        "verdict": comparison.verdict,
        "sentence": comparison.sentence,
    }


def _rows_won_and_lost(context: ProjectContext, best: str, comparison: Comparison) -> dict[str, Any]:
    evaluations = arm_evaluations(context, [best, TUNED])
    texts = {arm: {row.example_id: _said(context, row) for row in evaluation.rows} for arm, evaluation in evaluations.items()}
    rows = {row.id: row for row in context.questions("test")}
    first = comparison.metric(context.project.evaluate.metrics[0])

    def shown(ids: tuple[str, ...]) -> dict[str, Any]:
        longest = sorted(ids, key=lambda i: (-len(rows[i].answer), i))[:_SHOWN]
        entries = [
            {
                "asked": rows[i].prompt[-1].text if rows[i].prompt else "",
                "reference": rows[i].answer,
                "baseline": texts[best][i],
                "tuned": texts[TUNED][i],
            }
            for i in longest
        ]
        return {"count": len(ids), "shown": entries}

    return {"won": shown(first.won), "lost": shown(first.lost)}


def _said(context: ProjectContext, row: Any) -> str:
    """What a model answered; of a document what it costs the model."""
    if not context.documents or row.scores[0].value is None:
        return str(row.answer.text)
    return f"{row.scores[0].metric} {row.scores[0].value:.3f}"


def _data(context: ProjectContext, outputs: dict[str, Output]) -> dict[str, Any]:
    split, tokens = outputs["split"], outputs["tokens"]
    clusters, leakage = split["clusters"], split["leakage"]["test"]
    test = {row.id for row in context.questions("test")}
    of = context.clusters(context.rows("test"))
    ledger = context.runner.folder("tokens") / "ledger.jsonl"
    fates: dict[tuple[str, str], int] = {}
    for text in ledger.read_text("utf-8").splitlines():
        line = json.loads(text)
        key = (line["fate"], line.get("rule", ""))
        fates[key] = fates.get(key, 0) + 1
    answers = [f"{count} rows answer “{answer[:60]}”" for answer, count in split["answers"][:3]]
    return {
        "inputs": outputs["collect"]["inputs"],
        "ledger": str(ledger.relative_to(context.folder)) if ledger.is_relative_to(context.folder) else ledger.name,
        "fates": [{"fate": fate, "rule": rule, "rows": rows} for (fate, rule), rows in sorted(fates.items(), key=lambda item: -item[1])],
        "split": split["splits"],
        "test_clusters": len({of[row] for row in test}),
        "findings": [
            f"{clusters['rows_in_clusters']} rows stand in {clusters['clusters_of_several']} clusters of near-identical texts "
            f"(largest: {clusters['largest']}); each cluster is on one side of the split",
            f"leakage from training into test: {leakage['exact']} exact and {leakage['near']} near-duplicate rows of {leakage['rows']}",
            *answers,
            f"all training rows start with the same {tokens['shared_prefix']} tokens, computed once a batch",
            f"{tokens['train']['tokens']} tokens in the training rows, of which {tokens['train']['trained']} carry loss",
            *split["notes"],
            *([tokens["converted"]] if "converted" in tokens else []),
        ],
        "lengths": tokens["lengths"],
        "mask": [{"text": text, "trained": bool(on)} for text, on in zip(*tokens["shown"], strict=True)],
    }


def _training(context: ProjectContext, output: Output) -> dict[str, Any]:
    history = events(context.runner.folder("train"))
    method = METHODS[output["plan"].get("method", "sft")]
    figure, unit = "reward" if method.graded else "loss", method.unit
    steps = [event for event in history if event["event"] == "step" and f"train_{figure}" in event]
    valid = [event for event in history if event.get(f"valid_{figure}") is not None]
    series = [("training", [event["step"] for event in steps], _smooth([event[f"train_{figure}"] for event in steps]))]
    if valid:
        series.append(("validation", [event["step"] for event in valid], [event[f"valid_{figure}"] for event in valid]))
    test = output["test"]
    merged = f"; merged into the base, the logits differ by {test['merge_error']:.2g}" if "merge_error" in test else ""  # only of LoRA
    checks = [
        f"saved and loaded again, loss on the same rows: {test['trained_loss']:.4f} before, {test['reloaded_loss']:.4f} after "
        f"(base alone: {test['base_loss']:.4f})",
        f"largest weight {test['largest_weight']:.3g}, so not zero{merged}",
    ]
    size = f"{output['trainable_parameters'] / 1e6:.2f} M trainable parameters"
    reached = output.get(f"valid_{figure}")
    loss = f"; validation {figure} {reached:.3f} ({unit}) at the end" if reached is not None else ""
    figures = {key: value for key, value in output["validation"].items() if key in _FIGURES}
    if method.evaluated == "likelihood" and output["valid_loss"] is not None:
        figures["perplexity"] = math.exp(output["valid_loss"])
    more = "".join(f", {key.replace('_', ' ')} {value:.3f}" for key, value in figures.items())
    return {
        "figures": figures,
        "about": f"{counted(output['rows'], 'row')}, {counted(output['epochs'], 'epoch')}, {counted(output['steps'], 'step')}, {size}, "
        f"{_minutes(output['seconds'])}{loss}{more}.",
        "figure": figure,
        "unit": unit,
        "curves": series,
        "reasons": output["reasons"],
        "plan": output["plan"],
        "checks": checks,
        "computed": _computed(history),
        "events": history,
    }


def _computed(history: list[dict[str, Any]]) -> list[str]:
    """On which route the run was computed, why, how fast, and what of the model its adapter leaves out."""
    start = next((event for event in history if event["event"] == "start" and event.get("route")), None)
    if start is None:
        return []
    speeds = sorted(event["tokens_per_s"] for event in history if event["event"] == "step" and "tokens_per_s" in event)
    fast = f", {speeds[len(speeds) // 2]:,.0f} tokens/s in the middle step" if speeds else ""
    lines = [f"route {start['route']}{fast}: {start['route_why']}"]
    return lines + [start[key] for key in ("unreached", "untried") if start.get(key)]


def _smooth(values: list[float], width: int = 5) -> list[float]:
    """Running mean over up to `width` values, so that single batches do not hide the course."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


def _watched(variant: dict[str, Any]) -> dict[str, Any]:
    def seconds(name: str) -> str:
        quantile = variant["total_s"].get(name)
        return f"{quantile['value']:.2f} s" if quantile else "–"

    keys = ("alias", "variant", "requests", "errors", "prompt_tokens", "completion_tokens")
    return {key: variant[key] for key in keys} | {"p50": seconds("p50"), "p95": seconds("p95")}
