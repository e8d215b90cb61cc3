"""`tunesmith decide`: which way to a good answer is worth its price."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.shared import Json, data_option, emit, file_option, instead, told

if TYPE_CHECKING:
    from tunesmith.decide.rules import Needs
    from tunesmith.flow.project import Project

OUT = "decision"  # the folder of the last decision, beside the project file


def decide(
    context: typer.Context,
    config: file_option = Path("tunesmith.yaml"),
    data: data_option = None,
    ask: Annotated[bool, typer.Option("--ask", help="Ask first what only you know, as decide.needs says it.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rows and choices, one epoch: a first verdict.")] = False,
    arms: Annotated[str | None, typer.Option(help="Arms with commas between them (default: all that can be built).")] = None,
    budget: Annotated[str | None, typer.Option(help="The time that the experiment may take: 90s, 20m, 2h.")] = None,
    budget_usd: Annotated[float | None, typer.Option(help="What the experiment may cost, in US dollars.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where decision.html, .json and .md go (default: decision, beside the file).")] = None,
    as_json: Json = False,
) -> None:
    """Measure prompt, shots, retrieval and fine-tuning on the same sealed rows, and name the cheapest that is not worse than the best.

    Arms: zero-shot, prompt, few-shot-random, few-shot-nearest, few-shot-greedy (few-shot: all three), optimised-prompt, retrieval,
    retrieval-rows, fine-tuned, fine-tuned-retrieval, distilled, larger; each also as KIND@BASE. The section `decide:` of tunesmith.yaml
    has prompt, documents, bases, models, margin; any key can be overridden: --decide.margin 0.05. Interrupted, the next call goes on.

    Example: tunesmith decide --quick --budget 10m
    Example: tunesmith decide --ask
    Example: tunesmith decide --arms zero-shot,few-shot,fine-tuned --decide.machine-per-hour 0.4
    """
    from tunesmith.flow.decide.experiment import run_decide
    from tunesmith.flow.project import DEFAULT_FILE, load_project

    given = {"quick": "true" if quick else None, "budget": budget, "budget_usd": None if budget_usd is None else str(budget_usd)}
    given["arms"] = None if arms is None else json.dumps([word.strip() for word in arms.split(",") if word.strip()])
    words = [word for key, value in given.items() if value is not None for word in (f"--decide.{key}", value)]
    project, folder = load_project(config, instead(data, config, [*words, *context.args])), config.resolve().parent
    if ask:
        words += _asked(project.decide.needs)
        project = load_project(config, instead(data, config, [*words, *context.args]))
    place = [] if config == DEFAULT_FILE else ["--config", str(config)]
    command = shlex.join(["tunesmith", "decide", *place, *words, *context.args])
    with told(as_json) as progress:
        outcome = run_decide(project, folder, progress, out=out or folder / OUT, command=command)
    emit(outcome.report, as_json, outcome.text())


def _asked(needs: Needs) -> list[str]:
    """The questions that the project file leaves open, asked one by one; their answers as overrides."""
    from tunesmith.core.errors import UsageError
    from tunesmith.decide.rules import QUESTIONS, read_answer

    answers: dict[str, str] = {}
    for question in QUESTIONS:
        answered = getattr(needs, question.key) is not None
        while not answered:
            text = typer.prompt(f"{question.text} ({question.answer}; nothing leaves it open)", default="", show_default=False, err=True)
            try:
                value = read_answer(question, text)
            except UsageError as error:
                typer.echo(str(error), err=True)
                continue
            answers |= {} if value is None else {question.key: value}
            answered = True
    if answers:
        line = ", ".join(f"{key}: {value}" for key, value in answers.items())
        typer.echo(f"to keep these answers, in the project file under decide: needs: {{{line}}}", err=True)
    return [word for key, value in answers.items() for word in (f"--decide.needs.{key}", value)]


def taken(project: Project, folder: Path, name: str, *, as_json: bool) -> bool:
    """Put an arm of the last decision in force; False for one that is trained as the project says, which a whole run makes and judges."""
    from tunesmith.api.serve import temporary
    from tunesmith.flow.decide.adopt import adopt, decided_arm

    arm = decided_arm(folder / OUT, name)
    if arm["name"] == "fine-tuned":
        return False
    with told(as_json) as progress:
        adopted = adopt(project, folder, arm, progress, temporary)
    emit(asdict(adopted), as_json, adopted.text())
    return True
