"""The decision on three real tasks, offline: one that fine-tuning should win, one that retrieval should win, one where prompting suffices;
what learning curves foresee; and the simulated decisions of `benchmarks.simulate_decide`. Everything is run through the command line.

`python -m benchmarks.decide first`, `tasks` or `curves` makes one part of the page anew, `TASK` runs one task alone. `DECIDE_BUDGET` is the
time that each task may take (13m).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.decide_curves import curve_table

HEADLINES = ("decide_within_margin", "decide_rows_saved", "curve_inside", "first_verdict_minutes")
ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".bench" / "decide"
PAGE = ROOT / "docs" / "decide.md"

COMMON = "base: smollm2-135m\nclean: {near_duplicates: {threshold: 0.8, action: cluster}}\n"
TASKS = {
    "entities": "Named entities of sentences in credit agreements (`ner_finance`, 1,164 rows)",
    "occupations": "Job title → occupation (`soc_codes`, 1,998 rows, 648 classes)",
    "invoices": "The invoice's number out of a message (made by a rule, 640 rows)",
}
YAMLS = {
    "entities": """name: entities
sources: [{path: "catalog:ner_finance"}]
split: {validation: 0.08, test: 0.24, by: cluster, at_least_train: 500}
train: {epochs: 2}
evaluate: {metrics: [entity_f1, exact_match]}
decide:
  arms: [zero-shot, few-shot-random, few-shot-nearest, retrieval-rows, fine-tuned]
  passages: [3]
  test_rows: 160
""",
    "occupations": """name: occupations
sources: [{path: rows.jsonl}]
split: {validation: 0.08, test: 0.15}
train: {epochs: 1}
evaluate: {metrics: [exact_match]}
decide:
  arms: [zero-shot, few-shot-nearest, retrieval, retrieval-rows, fine-tuned, fine-tuned-retrieval]
  documents: [occupations.md]
  prompt: Which occupation is this job title? Answer with the name of one occupation of the list, as it is written there, and nothing else.
  passages: [1, 3]
  test_rows: 240
""",
    "invoices": """name: invoices
sources: [{path: rows.jsonl}]
split: {validation: 0.1, test: 0.5}
train: {epochs: 1}
evaluate: {metrics: [exact_match]}
decide:
  arms: [zero-shot, prompt, few-shot-random, few-shot-greedy, optimised-prompt, retrieval-rows, fine-tuned]
  prompt: Copy the invoice number from the message. Reply with the number alone.
  passages: [3]
  test_rows: 320
""",
}
PLAN = """  margin: 0.05
  validation_rows: 32
  latency_rows: 6
  learning: {shares: [0.125, 0.25, 0.5], seeds: [0]}
  machine_per_hour: 0.20
  requests_per_month: 100000
"""
QUICK, WHOLE = "8m", os.environ.get("DECIDE_BUDGET", "13m")  # so that everything fits into an hour on two cores
NAMES = ("Anna", "Luis", "Mei", "Tom", "Priya", "Olga", "Jonas", "Amina")
GOODS = ("October delivery", "new chairs", "site visit", "license renewal", "catering", "repair of the lift", "audit", "translation")
MESSAGES = (
    "Dear {n}, please find attached invoice {i} for the {g}. Best regards, {m}",
    "Hi {n}, we have not received the payment of invoice {i} yet. It was for the {g}. {m}",
    "{n}, can you check {i}? The {g} was billed twice. Thanks, {m}",
    "The {g} is done. Our invoice {i} is due in 30 days. Kind regards, {m}",
    "{m} here. Before we pay for the {g} I need a copy of {i}, {n}.",
)


def invoices() -> list[dict[str, Any]]:
    """Messages that name one invoice, and its number."""
    draw, rows = random.Random(7), []
    for _ in range(640):
        number = f"INV-{draw.randint(1000, 9999)}"
        said = draw.choice(MESSAGES).format(n=draw.choice(NAMES), m=draw.choice(NAMES), g=draw.choice(GOODS), i=number)
        rows.append({"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": number}]})
    return rows


def occupations() -> list[dict[str, Any]]:
    """Titles with their occupations, without the instruction that all rows share, or all rows would be near-duplicates."""
    from tunesmith.models.catalog import Catalog

    rows = []
    for line in Catalog().dataset("soc_codes").read_text("utf-8").splitlines():
        row = json.loads(line)
        title = row["input"][-1]["content"].removeprefix("What is the SOC Code for the job title ").rstrip("' ")
        rows.append({"messages": [{"role": "user", "content": title}, {"role": "assistant", "content": row["ideal"].strip()}]})
    return rows


def prepared(task: str) -> Path:
    """The task's folder with its project file and, where they are not the catalogue's, its rows."""
    folder = WORK / task
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tunesmith.yaml").write_text(COMMON + YAMLS[task] + PLAN)
    makers = {"occupations": occupations, "invoices": invoices}
    if task in makers and not (folder / "rows.jsonl").exists():
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in makers[task]()))
    if task == "occupations":
        (folder / "occupations.md").write_text(classification())
    return folder


def classification() -> str:
    """The classification itself as a document: the name of each occupation, in alphabetical order. It says nothing of any title."""
    names = sorted({row["messages"][-1]["content"] for row in occupations()})
    return "".join(f"# {name}\n\n{name}\n\n" for name in names)


def decided(task: str, *words: str) -> tuple[dict[str, Any], float]:
    """`tunesmith decide` on the task: its report, and the minutes that the whole command took."""
    folder, began = prepared(task), time.monotonic()
    command = [sys.executable, "-m", "tunesmith", "decide", "--json", "--out", "quick" if "--quick" in words else "decision", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{task}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]), (time.monotonic() - began) / 60


def arms_table(report: dict[str, Any]) -> str:
    """Every arm of a report: rows, value with interval, against the best simpler arm, seconds and dollars."""
    from benchmarks.harness import table

    rows = []
    for arm in report["arms"]:
        interval, difference = arm["interval"], arm["difference"]
        span = f" [{interval['low']:.3f}, {interval['high']:.3f}]" if interval else ""
        gap = (
            f"{difference['estimate']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}] ({arm['against']})" if difference else "–"
        )
        name = f"**{arm['name']}**" if arm["chosen"] else arm["name"]
        rows.append(
            (name, arm["rows"], f"{arm['value']:.3f}{span}", gap, f"{arm['busy_s']:.2f}", f"{arm['build_s']:.0f}", arm["usd_per_1000"])
        )
    return table(
        ("arm", "rows", report["metric"]["name"], "minus the best simpler arm", "s a request", "s to build", "USD for 1,000"), rows
    )


def write(part: str, text: str) -> None:
    """Put what was measured between the marks of its part of the page."""
    from benchmarks.harness import machine

    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    page = PAGE.read_text("utf-8")
    head, tail = page.partition(begin)[0], page.partition(end)[2]
    PAGE.write_text(f"{head}{begin}\n`python -m benchmarks.decide {part}`, {machine()}.\n\n{text}\n{end}{tail}", "utf-8")


def first() -> None:
    """The first verdict on entities, timed."""
    from benchmarks.harness import ratio

    report, minutes = decided("entities", "--quick", "--budget", QUICK)
    about = f"`tunesmith decide --quick --budget {QUICK}` on entities, after {minutes:.1f} minutes: {report['verdict']}"
    write("first", "\n\n".join([about, arms_table(report), f"`{ratio('first_verdict_minutes', minutes)}`"]))


def tasks() -> list[tuple[str, dict[str, Any]]]:
    """The experiment on every task; their reports."""
    parts: list[str] = []
    reports = []
    for task, about in TASKS.items():
        report, minutes = decided(task, "--budget", WHOLE)
        parts += [f"#### {about}", report["verdict"], arms_table(report)]
        parts += [f"{report['stopped'][:1].upper()}{report['stopped'][1:]}; {minutes:.1f} minutes (`--budget {WHOLE}`)."]
        reports.append((task, report))
    write("tasks", "\n\n".join(parts))
    return reports


def curves(reports: list[tuple[str, dict[str, Any]]]) -> None:
    """What learning curves foresee, of labelled tasks and of what the experiments fine-tuned."""
    from benchmarks.harness import ratio

    table, inside = curve_table(reports)
    write("curves", "\n\n".join([table, f"`{ratio('curve_inside', inside)}`"]))


def main() -> None:
    """The first verdict, all tasks, the curves, and the simulation."""
    first()
    curves(tasks())
    subprocess.run([sys.executable, "-m", "benchmarks.simulate_decide"], cwd=ROOT, check=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["first"]:
            first()
        case ["tasks"]:
            tasks()
        case ["curves"]:
            curves([])
        case [task, *words]:
            report, minutes = decided(task, *words)
            print(report["verdict"], arms_table(report), f"{minutes:.1f} minutes", sep="\n\n")
