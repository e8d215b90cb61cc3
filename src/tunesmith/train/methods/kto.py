"""kto: Kahneman–Tversky optimisation. Single answers that are wanted or not; a preference pair gives one of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.types import Labelled, Preference
from tunesmith.train.methods.base import Job, Method, check_preference, preference_rate
from tunesmith.train.plan import ResolvedPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.core.chat import Renderer
    from tunesmith.train.items import Item
    from tunesmith.train.objectives import Objective


def _render(renderer: Renderer, rows: Sequence[Labelled]) -> list[Item]:
    from tunesmith.train.items import Item

    return [Item((tokens,), float(row.desirable)) for tokens, row in zip(renderer.labelled(rows), rows, strict=True)]


def _both(pair: Preference) -> tuple[Labelled, ...]:
    """The preferred answer as a wanted row, the other as an unwanted one; both lead back to the pair."""
    return tuple(
        Labelled(
            id=f"{pair.id}/{side}",
            messages=pair.messages,
            answer=answer,
            desirable=desirable,
            tools=pair.tools,
            group=pair.group,
            meta=pair.meta,
            origin=pair.origin,
        )
        for side, answer, desirable in (("preferred", pair.preferred, True), ("other", pair.non_preferred, False))
    )


def _objective(plan: ResolvedPlan) -> Objective:
    from tunesmith.train.objectives import KTO

    return KTO(plan.preference)


OPTIONS = ("beta", "desirable_weight", "undesirable_weight")
METHOD = Method(
    name="kto",
    takes=Labelled,
    converts={Preference: _both},
    converted="each preference pair is trained as two labelled rows: its preferred answer as wanted, the other as unwanted",
    render=_render,
    labelled=True,
    mismatched=True,
    objective=_objective,
    learning_rate=preference_rate,
    section="preference",
    options=OPTIONS,
    check=check_preference,
    unit="loss of a row",
    learned_nats=None,
    job=Job(
        "kto",
        ("trl_kto", "labelled_chat", "dpo", "trl_preference"),
        options={name: f"preference.{name}" for name in OPTIONS},
        shown=("beta",),
    ),
)
