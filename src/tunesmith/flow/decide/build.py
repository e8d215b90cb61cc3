"""Each arm built: its choices made on validation rows, its weights trained. A kind is a function here; what it costs is measured. Opens no
test row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec

from tunesmith.core.errors import ConfigError
from tunesmith.core.passages import Retrieval
from tunesmith.core.types import Example, Sampling
from tunesmith.decide import prompt as prompts
from tunesmith.decide import shots
from tunesmith.decide.arms import Arm, KindName
from tunesmith.evaluate.prompts import PromptVariant, as_given, instructed, shown
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.decide import lookup, training
from tunesmith.flow.decide.desk import Asking, Desk
from tunesmith.models.base import Model
from tunesmith.models.weights import Weights

_POOL, _GREEDY_ROWS = 6, 16  # rows that greedy chooses among, and validation rows on which it does
_TRIED_SHOWN = 12


@dataclass(frozen=True)
class Recipe:
    """How an arm answers, as a deployment would need it: the instruction in place of the rows' own (None: theirs), and the solved rows that
    always stand before the question, by their ids; `retrieval` is what is looked up for each question."""

    instruction: str | None = None
    shots: tuple[str, ...] = ()
    retrieval: Retrieval | None = None


@dataclass(frozen=True)
class Built:
    """An arm that can be asked: `opened` gives its model, which no arm holds in memory while others are built. `choices` is what was chosen
    on validation and out of what; `train_s` what training took, `ask_s` what asking for the choices took, with their tokens."""

    arm: Arm
    opened: Callable[[], Model]
    variant: PromptVariant
    sampling: Sampling
    recipe: Recipe = Recipe()
    choices: dict[str, Any] = field(default_factory=dict)
    train_s: float = 0.0
    ask_s: float = 0.0
    read: int = 0
    written: int = 0

    @property
    def build_s(self) -> float:
        """Seconds of this machine that building took."""
        return self.train_s + self.ask_s


def build(desk: Desk, arm: Arm) -> Built:
    """The arm with its choices made. Raises ConfigError where the rows cannot give what the arm needs."""
    asking = Asking()
    built = _BUILDERS[arm.kind](desk, arm, asking)
    seconds, read, written = asking.cost()
    return replace(built, ask_s=seconds, read=read, written=written)


def own_instruction(desk: Desk) -> str | None:
    """The user's prompt as it is asked; None where none is given."""
    return None if desk.plan.prompt is None else prompts.written(desk.plan.prompt)


def _context(desk: Desk, arm: Arm) -> ProjectContext:
    return desk.contexts[arm.base]


def _base(desk: Desk, arm: Arm) -> Model:
    context = _context(desk, arm)
    return context.models.lazy(context.start, arm.base)


def _made(desk: Desk, arm: Arm, variant: PromptVariant, **more: Any) -> Built:
    """An arm on its base; `opened` among `more` where another model answers."""
    opened = more.pop("opened", partial(_base, desk, arm))
    return Built(arm, opened, variant, desk.sampling(arm.base), **more)


def _plain(desk: Desk, arm: Arm) -> tuple[PromptVariant, Recipe]:
    """The rows under the user's prompt, where there is one."""
    own = own_instruction(desk)
    return (as_given, Recipe()) if own is None else (instructed(own, "prompt"), Recipe(own))


def _zero_shot(desk: Desk, arm: Arm, asking: Asking) -> Built:
    return _made(desk, arm, as_given)


def _prompt(desk: Desk, arm: Arm, asking: Asking) -> Built:
    variant, recipe = _plain(desk, arm)
    return _made(desk, arm, variant, recipe=recipe)


def _larger(desk: Desk, arm: Arm, asking: Asking) -> Built:
    """In memory of its own, beside the base: arms take turns."""
    variant, recipe = _plain(desk, arm)
    context = desk.project
    models = replace(context.models, weights=Weights(max_rows=context.project.evaluate.batch_size))
    return _made(desk, arm, variant, recipe=recipe, opened=partial(desk.hosted, arm.base, models))


def _few_shot_random(desk: Desk, arm: Arm, asking: Asking) -> Built:
    """The number of shots that scores best on validation; of equals the smallest."""
    order, own, model = shots.random_order(len(desk.train), desk.plan.seed), own_instruction(desk), _base(desk, arm)

    def variant(k: int) -> PromptVariant:
        return shown(desk.train, lambda _: order, k, f"{arm.kind} {k}", instruction=own)

    scores = {k: _mean(desk, arm, model, variant(k), asking) for k in _numbers(desk)}
    best = max(scores, key=lambda k: scores[k])
    ids = tuple(desk.train[i].id for i in order[:best])
    return _made(desk, arm, variant(best), recipe=Recipe(own, ids), choices=_numbers_tried(best, scores))


def _few_shot_nearest(desk: Desk, arm: Arm, asking: Asking) -> Built:
    """Shots that are looked up, as a deployment looks them up: one code for what is measured and what is served."""
    models, model = _context(desk, arm).models, _base(desk, arm)
    variant, recipe = _plain(desk, arm)
    scores = {k: _mean(desk, arm, models.grounded(model, lookup.shots(desk, k)), variant, asking) for k in _numbers(desk)}
    best = max(scores, key=lambda k: scores[k])
    recipe = replace(recipe, retrieval=lookup.shots(desk, best))
    return _made(desk, arm, variant, recipe=recipe, choices=_numbers_tried(best, scores), opened=_grounded(desk, arm, recipe))


def _numbers_tried(best: int, scores: Mapping[int, float]) -> dict[str, Any]:
    return {"shots": best, "tried": {str(k): value for k, value in scores.items()}}


def _grounded(desk: Desk, arm: Arm, recipe: Recipe) -> Callable[[], Model]:
    """What opens the base with what the recipe looks up."""
    assert recipe.retrieval is not None
    retrieval = recipe.retrieval
    return lambda: _context(desk, arm).models.grounded(_base(desk, arm), retrieval)


def _few_shot_greedy(desk: Desk, arm: Arm, asking: Asking) -> Built:
    """Rows that cover the training rows are added one after the other, on the first validation rows."""
    own, model = own_instruction(desk), _base(desk, arm)
    rows = desk.validation[:_GREEDY_ROWS]

    def variant(chosen: tuple[int, ...]) -> PromptVariant:
        return shown(desk.train, lambda _: chosen, len(chosen), f"{arm.kind} {len(chosen)}", instruction=own)

    def score(chosen: tuple[int, ...]) -> float:
        if desk.budget.short():
            return float("-inf")
        return desk.quality(model, variant(chosen), rows, desk.sampling(arm.base), asking)

    chosen, tried = shots.greedy(desk.covering(_POOL), score, max(_numbers(desk)))
    chosen = chosen or tried[0]
    ids = tuple(desk.train[i].id for i in chosen)
    return _made(desk, arm, variant(chosen), recipe=Recipe(own, ids), choices={"shots": len(chosen), "sets_tried": len(tried)})


def _optimised_prompt(desk: Desk, arm: Arm, asking: Asking) -> Built:
    """The search of `decide/prompt.py`, from the user's prompt or from what all rows say first."""
    model, sampling = _base(desk, arm), desk.sampling(arm.base)
    sentences = prompts.hints([row.answer for row in desk.train])
    order = shots.random_order(len(desk.train), desk.plan.seed)
    numbers = _numbers(desk)

    def variant(candidate: prompts.PromptCandidate) -> PromptVariant:
        number = candidate.shots if candidate.by == "random" else 0
        return shown(desk.train, lambda _: order, number, "optimised", instruction=candidate.instruction)

    def recipe_of(candidate: prompts.PromptCandidate) -> Recipe:
        nearest = candidate.by == "nearest" and candidate.shots
        fixed = () if nearest else tuple(desk.train[i].id for i in order[: candidate.shots])
        return Recipe(candidate.instruction, fixed, lookup.shots(desk, candidate.shots) if nearest else None)

    def score(candidate: prompts.PromptCandidate, n: int) -> float:
        retrieval = recipe_of(candidate).retrieval
        asked = model if retrieval is None else _context(desk, arm).models.grounded(model, retrieval)
        return desk.quality(asked, variant(candidate), desk.validation[:n], sampling, asking)

    start = prompts.PromptCandidate(parts=prompts.parts_of(desk.plan.prompt or _common_instruction(desk.train)))
    best, tried = prompts.search(
        start,
        lambda one: prompts.edits(one, sentences, numbers, ("random", "nearest")),
        score,
        rows=len(desk.validation),
        generations=1 if desk.plan.quick else 3,
        going_on=lambda: not desk.budget.short(),
    )
    full = sorted((one for one in tried if one.rows == len(desk.validation)), key=lambda one: -one.score)
    choices = {
        "instruction": best.instruction,
        "shots": best.shots,
        "by": best.by,
        "prompts_tried": len(tried),
        "best": [{"edit": one.candidate.edit, "score": one.score} for one in full[:_TRIED_SHOWN]],
    }
    recipe = recipe_of(best)
    more = {} if recipe.retrieval is None else {"opened": _grounded(desk, arm, recipe)}
    return _made(desk, arm, variant(best), recipe=recipe, choices=choices, **more)


def _common_instruction(rows: Sequence[Example]) -> str | None:
    """What all rows say first, where it is the same; none of it is free to leave out by accident."""
    first = {row.messages[0].text if row.messages and row.messages[0].role in ("system", "developer") else "" for row in rows}
    return first.pop() or None if len(first) == 1 else None


def _fine_tuned(desk: Desk, arm: Arm, asking: Asking) -> Built:
    context = _context(desk, arm)
    made = training.whole(context)
    return _tuned(desk, arm, context, made)


def _distilled(desk: Desk, arm: Arm, asking: Asking) -> Built:
    assert desk.plan.teacher is not None
    context = _context(desk, arm)
    made = training.on_answers(desk, context, arm.base, desk.hosted(desk.plan.teacher, desk.project.models), asking)
    return _tuned(desk, arm, context, made)


def _tuned(desk: Desk, arm: Arm, context: ProjectContext, made: training.Taught) -> Built:
    """Trained weights are asked as they were taught: the rows as they are."""
    choices = {"rows": made.rows, "model": msgspec.to_builtins(made.ref)}
    opened = partial(context.models.lazy, made.ref, arm.name)
    return _made(desk, arm, as_given, choices=choices, train_s=made.seconds, opened=opened)


def _retrieval(desk: Desk, arm: Arm, asking: Asking) -> Built:
    return _looking_up(desk, arm, asking, partial(_base, desk, arm), lookup.ways_of(desk, lookup.document_indexes(desk)))


def _retrieval_rows(desk: Desk, arm: Arm, asking: Asking) -> Built:
    return _looking_up(desk, arm, asking, partial(_base, desk, arm), lookup.ways_of(desk, [("", lookup.over_rows(desk))]))


def _fine_tuned_retrieval(desk: Desk, arm: Arm, asking: Asking) -> Built:
    """An adapter taught the rows with their passages, of documents where there are some, else of other training rows; a row never sees what
    solves it."""
    context = _context(desk, arm)
    rows = not desk.plan.documents
    name, index = ("", lookup.over_rows(desk)) if rows else lookup.document_indexes(desk)[0]
    k = max(desk.plan.passages)
    way = Retrieval(index=index, k=k, template=lookup.PLAIN)
    made = training.on_passages(desk, context, context.models.grounded(_base(desk, arm), way), lookup.solving(context) if rows else {})
    ways = {f"{name}{k} passages, plain": way}
    tuned = partial(context.models.lazy, made.ref, arm.name)
    built = _looking_up(desk, arm, asking, tuned, ways, plain=True)
    return replace(built, choices={**built.choices, "model": msgspec.to_builtins(made.ref)}, train_s=made.seconds)


def _looking_up(
    desk: Desk, arm: Arm, asking: Asking, inner: Callable[[], Model], ways: Mapping[str, Retrieval], *, plain: bool = False
) -> Built:
    """The index, the number of passages and the form in which they stand that score best on validation; `plain`: rows as they are."""
    variant, recipe = (as_given, Recipe()) if plain else _plain(desk, arm)
    models, model = _context(desk, arm).models, inner()
    scores = {name: _mean(desk, arm, models.grounded(model, way), variant, asking) for name, way in ways.items()}
    best = max(scores, key=lambda name: scores[name])
    chosen = {"passages": best, "tried": scores}
    recipe = replace(recipe, retrieval=ways[best])
    return _made(desk, arm, variant, recipe=recipe, choices=chosen, opened=lambda: models.grounded(inner(), ways[best]))


def _numbers(desk: Desk) -> list[int]:
    """The numbers of shots that there are rows for. Raises ConfigError where there are none."""
    numbers = sorted(k for k in desk.plan.shots if k <= len(desk.train))
    if not numbers:
        raise ConfigError(
            f"shots {list(desk.plan.shots)} from {len(desk.train)} training rows", where="decide.shots", allowed="fewer shots"
        )
    return numbers


def _mean(desk: Desk, arm: Arm, model: Model, variant: PromptVariant, asking: Asking) -> float:
    return desk.quality(model, variant, desk.validation, desk.sampling(arm.base), asking)


_BUILDERS: Mapping[KindName, Callable[[Desk, Arm, Asking], Built]] = {
    "zero-shot": _zero_shot,
    "prompt": _prompt,
    "few-shot-random": _few_shot_random,
    "few-shot-nearest": _few_shot_nearest,
    "few-shot-greedy": _few_shot_greedy,
    "optimised-prompt": _optimised_prompt,
    "retrieval": _retrieval,
    "retrieval-rows": _retrieval_rows,
    "fine-tuned": _fine_tuned,
    "fine-tuned-retrieval": _fine_tuned_retrieval,
    "distilled": _distilled,
    "larger": _larger,
}
