"""A plan in a file of its own, as a study writes it and a run takes it. Knows nothing about studies."""

from __future__ import annotations

from pathlib import Path

import msgspec
import yaml

from tunesmith.core.atomic import write_atomic
from tunesmith.core.config import load
from tunesmith.core.types import Record
from tunesmith.train.plan import Plan


class PlanFile(Record, frozen=True):
    """What a plan's file holds: the section `train:` of a project."""

    train: Plan


def write_plan(out: Path, plan: Plan, why: str) -> None:
    """Write the plan, with why it is this one in a comment."""
    comment = "".join(f"# {line}\n" for line in why.splitlines())
    write_atomic(out, comment + yaml.safe_dump({"train": msgspec.to_builtins(plan)}, sort_keys=False, allow_unicode=True))


def plan_words(file: Path) -> list[str]:
    """The override that puts a plan's file in place of the section `train:`. Raises ConfigError with the file's line."""
    return [f"--train={msgspec.json.encode(load(file, PlanFile).train).decode()}"]
