"""An arm as what a deployment would answer with, so that it answers as it was measured; puts nothing in force."""

from __future__ import annotations

import msgspec

from tunesmith.core.deployment import Variant
from tunesmith.core.model_ref import ModelRef
from tunesmith.evaluate.prompts import solved
from tunesmith.flow.decide.build import Built
from tunesmith.flow.decide.desk import Desk
from tunesmith.models.resolve import is_remote


def variant_of(desk: Desk, one: Built) -> tuple[Variant | None, str]:
    """(the variant, ""), or (None, why no variant answers as this arm does)."""
    if one.arm.kind == "larger" and is_remote(one.arm.base):
        return None, f"{one.arm.base} answers elsewhere: name it under serve.upstreams"
    by_id = {row.id: row for row in desk.train}
    turns = [turn for row in one.recipe.shots for turn in solved(by_id[row])]
    return (
        Variant(
            name="".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in one.arm.name),
            model=_ref(desk, one),
            instruction=one.recipe.instruction,
            shots=tuple(turns),
            retrieval=one.recipe.retrieval,
            sampling={"max_tokens": float(one.sampling.max_tokens), "temperature": one.sampling.temperature},
        ),
        "",
    )


def _ref(desk: Desk, one: Built) -> ModelRef:
    if "model" in one.choices:
        return msgspec.convert(one.choices["model"], ModelRef)
    if one.arm.kind == "larger":
        return desk.project.models.ref(one.arm.base)
    return desk.contexts[one.arm.base].start
