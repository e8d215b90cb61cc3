"""What is ruled before anything is spent: arms that cannot meet the answers of the questionnaire are cut, each with its reason; and, on
validation rows, whether the base lacks knowledge or behaviour. Opens no test row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Example, Message, Prompt
from tunesmith.core.words import words
from tunesmith.decide.arms import KINDS, Arm, Arms
from tunesmith.decide.rules import Guidance, Needs, UnbuiltArm, cut, guidance, probe
from tunesmith.evaluate.prompts import PromptVariant, as_given
from tunesmith.flow.decide import lookup
from tunesmith.flow.decide.desk import Asking, Desk
from tunesmith.models.resolve import is_remote
from tunesmith.train.facts import base_shape

_LOOKED_THROUGH = 20  # passages in which the one with the answer is looked for
_FEWEST = 8  # rows with such a passage, from which the probe says anything
_BYTES_A_WEIGHT = 2


def needs_of(desk: Desk) -> Needs:
    """The user's answers, with what the project itself answers."""
    plan, own = desk.plan, desk.plan.needs
    return msgspec.structs.replace(
        own,
        documents=bool(plan.documents),
        rows=len(desk.train),
        better_model=plan.teacher is not None,
        private=own.private or plan.constraints.private or None,
    )


def ruled(desk: Desk, arms: Arms) -> tuple[Arms, tuple[Guidance, ...]]:
    """The arms that can meet what is asked, and published figures that bear on it. Raises ConfigError where none can."""
    needs = needs_of(desk)
    reasons = {one.name: f"{one.reason} ({one.source})" for one in cut([_candidate(desk, arm) for arm in arms.arms], needs)}
    left = tuple(arm for arm in arms.arms if arm.name not in reasons)
    if not left:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ConfigError(
            f"no arm can meet what decide.needs asks for ({why})", where="decide.needs", remedy="other arms: retrieval looks up"
        )
    return Arms(arms=left, left_out=arms.left_out | reasons), guidance(needs)


def _candidate(desk: Desk, arm: Arm) -> UnbuiltArm:
    context = desk.contexts.get(arm.base)
    size = None if context is None else _BYTES_A_WEIGHT * int(base_shape(context.base)["parameters"])
    here = arm.kind != "larger" or arm.base == "echo" or not is_remote(arm.base)
    return UnbuiltArm(name=arm.name, kind=KINDS[arm.kind].family, private=here, memory_bytes=size)


def knowledge_probe(desk: Desk) -> dict[str, Any] | None:
    """The base's scores on validation rows without and with the passage that holds the answer; None where too few rows have one.

    Passages are those of the documents; where there are none, solved training rows with the same answer.
    """
    index = desk.project.models.indexes.load(_index(desk), desk.project.store, desk.project.catalog)
    found: list[tuple[Example, str]] = []
    for row in desk.validation:
        (hits,) = index.search([row.prompt[-1].text], _LOOKED_THROUGH, index.ways[-1])
        text = next((hit.passage.text for hit in hits if _holds(hit.passage.text, row.answer)), None)
        if text is not None:
            found.append((row, text))
    if len(found) < _FEWEST:
        return None
    rows, texts = [row for row, _ in found], {row.id: text for row, text in found}
    context, asking = desk.project, Asking()
    model, sampling = context.models.lazy(context.start, context.project.base), context.sampling()
    given = PromptVariant("with the passage", lambda row: _with(row, texts[row.id]))
    closed = desk.scored(model, as_given, rows, sampling, asking)
    told = desk.scored(model, given, rows, sampling, asking)
    clusters = context.clusters(rows)
    result = probe(closed, told, desk.plan.enough, desk.plan.margin, [clusters.get(row.id, row.id) for row in rows], alpha=desk.plan.alpha)
    context_of = "documents" if desk.plan.documents else "training rows"
    return {**msgspec.to_builtins(result), "rows": len(rows), "of": len(desk.validation), "context": context_of}


def _index(desk: Desk) -> str:
    return lookup.document_indexes(desk)[-1][1] if desk.plan.documents else lookup.over_rows(desk)


def _holds(text: str, answer: str) -> bool:
    """Whether all words of the answer stand in the text one after the other."""
    wanted, there = words(answer), words(text)
    starts: Sequence[int] = range(len(there) - len(wanted) + 1)
    return bool(wanted) and any(there[i : i + len(wanted)] == wanted for i in starts)


def _with(row: Example, text: str) -> Prompt:
    last = row.prompt[-1]
    said = lookup.PLAIN.replace("{passages}", text).replace("{question}", last.text)
    return Prompt(messages=(*row.prompt[:-1], Message(role=last.role, content=said)), tools=row.tools)
