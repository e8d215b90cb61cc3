"""Training methods, one file each: the rows that a method takes, how they are rendered, its limits, defaults, checks and objective.

Nobody else asks which method a plan has; they ask its record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import ConfigError
from tunesmith.core.row_kinds import NAMES
from tunesmith.core.rows import Row
from tunesmith.train.methods import distil, dpo, grpo, kto, orpo, sdft, sft, text
from tunesmith.train.methods.base import Method
from tunesmith.train.plan import MethodName, Plan

if TYPE_CHECKING:
    from tunesmith.core.chat import Renderer

METHODS: dict[MethodName, Method] = {file.METHOD.name: file.METHOD for file in (sft, text, dpo, orpo, kto, grpo, distil, sdft)}
# By the name that a fine-tuning job gives it.
JOB_METHODS: dict[str, Method] = {method.job.type: method for method in METHODS.values()}


def fitting(kind: type) -> list[str]:
    """The methods that take rows of that kind as they are, or else make rows of their own kind of them."""
    names: list[str] = [name for name, method in METHODS.items() if method.takes is kind]
    return names + [name for name, method in METHODS.items() if kind in method.converts and method.converted]


def taken(name: MethodName, rows: Sequence[Row]) -> tuple[list[Row], str]:
    """The rows as the method takes them, and what is to be said where they had to be converted.

    Raises ConfigError naming the methods that fit.
    """
    method, ready, note = METHODS[name], list[Row](), ""
    for row in rows:
        if isinstance(row, method.takes):
            ready.append(row)
            continue
        convert = method.converts.get(type(row))
        converted = convert(row) if convert else ()
        if not converted:
            raise _misfit(method, row)
        ready += converted
        note = method.converted
    return ready, note


def ready(name: MethodName, rows: Sequence[Row], renderer: Renderer) -> tuple[list[Row], str]:
    """The rows as the method takes them and as the base is asked for them, and what is to be said of both.

    Raises ConfigError naming the methods that fit.
    """
    taken_rows, note = taken(name, rows)
    parts, split = METHODS[name].parts(renderer, taken_rows)
    return list(parts), "; ".join(filter(None, (note, split)))


def token_inputs(plan: Plan) -> tuple[Any, ...]:
    """What of a plan the tokens of its rows depend on. Methods that render alike share them: changing one for the other does not ask
    the base again."""
    method = METHODS[plan.method]
    over_length = method.over_length[0] if plan.over_length == "auto" else plan.over_length
    drawn = plan.reinforcement.max_tokens if method.graded else 0
    replay = () if plan.replay is None else (plan.replay,)
    return f"{method.render.__module__}.{method.render.__name__}", plan.max_length, over_length, drawn, *replay


def _misfit(method: Method, row: Row) -> ConfigError:
    kind, fits = NAMES[type(row)], fitting(type(row))
    return ConfigError(
        f"these rows are {kind}, and method {method.name} takes {NAMES[method.takes]}",
        where="train.method",
        allowed=f"for {kind}: method {' or '.join(fits)}",
        remedy=f"method: {fits[0]}, or rows of the other kind",
    )
