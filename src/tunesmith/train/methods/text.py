"""text: continued pre-training. Every token of running text, without any chat template."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Document, Example
from tunesmith.train.methods.base import Job, Method, token_rate
from tunesmith.train.plan import Choice, Facts, Plan, ResolvedPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.core.chat import Renderer
    from tunesmith.train.items import Item
    from tunesmith.train.objectives import Objective


LONGEST_PIECE = 2048


def _render(renderer: Renderer, rows: Sequence[Document]) -> list[Item]:
    from tunesmith.train.items import Item

    return [Item((row,)) for row in renderer.documents(rows)]


def _document(row: Example) -> tuple[Document, ...]:
    """A conversation that is one assistant turn of plain words, as text was read before it had a kind of its own."""
    turns = row.messages
    if len(turns) != 1 or turns[0].role != "assistant" or turns[0].tool_calls or row.tools:
        return ()
    return (Document(id=row.id, text=turns[0].text, group=row.group, meta=row.meta, origin=row.origin),)


def _max_length(facts: Facts, answer: int) -> Choice:
    length = min(facts.longest, facts.positions, LONGEST_PIECE)
    why = f"the longest text, at most {LONGEST_PIECE} and the model's {facts.positions} positions; longer ones are split"
    return length, why, "the data"


def _examples(facts: Facts, max_length: int) -> int:
    """A book is one row and many examples."""
    return max(facts.rows, math.ceil(facts.trained_tokens / max_length))


def _check(plan: Plan) -> None:
    if plan.max_length == 1:
        raise ConfigError("max_length is 1", where="train.max_length", allowed="2 or more: the first token predicts the second")


def _objective(plan: ResolvedPlan) -> Objective:
    from tunesmith.train.objectives import SFT

    return SFT()


METHOD = Method(
    name="text",
    takes=Document,
    converts={Example: _document},
    render=_render,
    objective=_objective,
    learning_rate=token_rate,
    max_length=_max_length,
    examples=_examples,
    over_length=("split",),
    every_token=True,
    no_metric="text has no questions to answer",
    evaluated="likelihood",
    unit="nats per token",
    learned_nats=None,  # how fast a text is known by heart depends on its length
    check=_check,
    job=Job("text", ("text",)),
)
