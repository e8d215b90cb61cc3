"""sdft: self-distillation. The model draws answers itself, and learns from what it would have said had the row's answer stood in its prompt
(arXiv 2601.19897).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Example, Message
from tunesmith.train.methods.base import Job, Method, token_rate
from tunesmith.train.plan import Choice, Facts, Plan, ResolvedPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.core.chat import Renderer
    from tunesmith.train.items import Item
    from tunesmith.train.objectives import Objective

_SHOWN = "\n\nThis is a good answer:\n\n{answer}\n\nGive an answer as good as this one, in the same form."


def _turns(renderer: Renderer, rows: Sequence[Example]) -> tuple[list[Example], str]:
    """A row for each trained turn, which ends in it; the turns before it are only read."""
    from tunesmith.core.chat import replace_weight

    apart, several = list[Example](), 0
    for row in rows:
        places = [i for i, message in enumerate(row.messages) if message.role == "assistant" and message.weight != 0]
        several += len(places) > 1
        for i in places:
            before = (replace_weight(message, 0) for message in row.messages[:i])
            apart.append(msgspec.structs.replace(row, messages=(*before, row.messages[i])))
        apart += [row] if not places else []  # nothing of it is trained: the mask gate says so
    what = (
        f"{several} of {len(rows)} conversations became {len(apart) - len(rows) + several} rows: the model answers each trained turn itself"
    )
    return apart, what if several else ""


def _words(answer: Message) -> str:
    """An answer as it is shown: thoughts, words and calls."""
    calls = (f"{call.function.name}({call.function.arguments})" for call in answer.tool_calls)
    return "\n".join(filter(None, (answer.reasoning_content, answer.text, *calls)))


def _demonstrated(row: Example) -> Example:
    """The row with its answer shown in the last question."""
    shown, asked = _SHOWN.format(answer=_words(row.messages[-1])), list(row.messages[:-1])
    last = next((i for i in reversed(range(len(asked))) if asked[i].role == "user"), None)
    if last is None:
        asked.append(Message(role="user", content=shown.strip()))
    else:
        asked[last] = msgspec.structs.replace(asked[last], content=asked[last].text + shown)
    return msgspec.structs.replace(row, messages=(*asked, row.messages[-1]))


def _render(renderer: Renderer, rows: Sequence[Example]) -> list[Item]:
    """The row, and the same with its answer shown."""
    from tunesmith.train.items import Item

    both = renderer.examples([form for row in rows for form in (row, _demonstrated(row))])
    return [Item(pair) for pair in zip(both[::2], both[1::2], strict=True)]


def _max_length(facts: Facts, answer: int) -> Choice:
    why = f"twice the longest row, so that the model's own answer has room, at most its {facts.positions} positions"
    return min(2 * facts.longest, facts.positions), why, "the data"


def _check(plan: Plan) -> None:
    if not 0 <= plan.self_distillation.beta <= 1:
        beta = plan.self_distillation.beta
        raise ConfigError(f"beta is {beta}", where="train.self_distillation.beta", allowed="0 (forward) to 1 (reverse)")


def _objective(plan: ResolvedPlan) -> Objective:
    """What held-out rows are judged by: the likelihood of their answers. Steps have one of their own (`train/self_distil.py`)."""
    from tunesmith.train.objectives import SFT

    return SFT()


METHOD = Method(
    name="sdft",
    takes=Example,
    render=_render,
    parts=_turns,
    rows=2,
    demonstrated=True,
    objective=_objective,
    learning_rate=token_rate,
    max_length=_max_length,
    over_length=("drop",),
    section="self_distillation",
    check=_check,
    unit="nats: of divergence per drawn token in training, per token of the rows' answers in validation",
    no_proof="sdft learns from its own answers, not rows by heart",
    job=Job("self_distillation", ("chat",), options={"beta": "self_distillation.beta"}, shown=("beta",)),
)
