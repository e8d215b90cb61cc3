"""What a training method is: one record of everything that is particular to it, and the parts that several methods share. Knows no method
by name.

Light on purpose: a project file is checked against the records before torch is worth loading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.errors import ConfigError, DataError, Fault
from tunesmith.core.types import Example, Preference
from tunesmith.train.plan import COOKBOOK_RATES, LORA_WITHOUT_REGRET, Choice, Facts, MethodName, OverLength, Plan, ResolvedPlan

if TYPE_CHECKING:
    from tunesmith.core.chat import Renderer
    from tunesmith.train.items import Item
    from tunesmith.train.items import Row as TrainRow
    from tunesmith.train.objectives import Objective


def longest_row(facts: Facts, answer: int) -> Choice:
    """`max_length` of a method that reads whole rows."""
    return min(facts.longest, facts.positions), f"the longest row, at most the model's {facts.positions} positions", "the data"


def token_rate(facts: Facts, lora: bool) -> Choice:
    """The learning rate of a loss that is a mean over tokens."""
    rate = min(1e-3, 3e-4 * math.sqrt(8e9 / facts.parameters))
    size = f"{facts.parameters / 1e6:.0f} M parameters"
    if lora:
        return float(f"{rate:.1e}"), f"{size}: 3e-4·√(8 B / parameters), at most 1e-3", COOKBOOK_RATES
    return float(f"{rate / 10:.1e}"), f"{size}: a tenth of LoRA's rate", LORA_WITHOUT_REGRET


def preference_rate(facts: Facts, lora: bool) -> Choice:
    """The learning rate of a loss that compares answers."""
    why = "comparing answers: 5e-6 for full training, ten times that for LoRA"
    return (5e-5 if lora else 5e-6), why, f"upper end of the published DPO rates; {LORA_WITHOUT_REGRET}"


def count_rows(facts: Facts, max_length: int) -> int:
    """A row is one example of an epoch."""
    return facts.rows


def nothing_drawn(plan: Plan, positions: int) -> int:
    """The rows bring their answers."""
    return 0


# Takes a field's name, what was given, and the choice where that was "auto"; gives the value and notes the reason.
Auto = Callable[[str, Any, Choice], Any]


def as_they_are(renderer: Renderer, rows: Sequence[Any]) -> tuple[list[Any], str]:
    """A row is asked for as a whole, and there is nothing to be said of it."""
    return list(rows), ""


def chats_apart(renderer: Renderer, rows: Sequence[Example]) -> tuple[list[Example], str]:
    """Conversations with each turn as serving asks for it (`Renderer.apart`)."""
    return renderer.apart(rows)


def no_section(plan: Plan, facts: Facts, auto: Auto) -> dict[str, Any]:
    """No option of the method is ever "auto"."""
    return {}


def no_check(plan: Plan) -> None:
    """Nothing is particular to the method."""


@dataclass(frozen=True)
class Job:
    """A method as a fine-tuning job: its `method.type`, whether OpenAI has it too, and the formats that its file may have.

    `options` are its hyperparameters besides the common ones, each with its place in the plan; `shown` are those that a job names even
    where they were not given, `models` those that name a model.
    """

    type: str
    formats: tuple[str, ...]
    openai: bool = False
    options: dict[str, str] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """A training method. To add one: a file with such a record, its name in `plan.MethodName`, its file in `train/methods/__init__.py`."""

    name: MethodName
    # The kind of row it takes; of other kinds, how one row becomes rows of that kind (none: it cannot), and what is then to be said.
    takes: type
    # An item for each row, of `rows` rows of tokens.
    render: Callable[[Renderer, Sequence[Any]], list[Item]]
    # What `train/loop.py` minimises, in `unit`.
    objective: Callable[[ResolvedPlan], Objective]
    learning_rate: Callable[[Facts, bool], Choice]
    job: Job
    converts: Mapping[type, Callable[[Any], tuple[Any, ...]]] = field(default_factory=dict)
    converted: str = ""
    rows: int = 1
    unit: str = "nats per trained token"
    # The rows as the base is asked for them, and what is to be said of it.
    parts: Callable[[Renderer, Sequence[Any]], tuple[list[Any], str]] = as_they_are
    # Items say whether they are wanted; every token of a row is trained; an item needs its prompt with another's answer beside it.
    labelled: bool = False
    every_token: bool = False
    mismatched: bool = False
    # The model draws answers itself, each of at most `drawn_tokens` on a base with so many positions, and trains by their rewards
    # (`train/grpo.py`).
    graded: bool = False
    drawn_tokens: Callable[[Plan, int], int] = nothing_drawn
    # The model draws answers itself, about as long as the row's, and learns from itself shown the row's answer (`train/self_distil.py`).
    # An item's second row is the first with that answer in its prompt.
    demonstrated: bool = False
    # `max_length` where the plan says auto; what may become of longer rows, the default first; how many examples an epoch counts.
    max_length: Callable[[Facts, int], Choice] = longest_row
    over_length: tuple[OverLength, ...] = ("drop", "truncate")
    examples: Callable[[Facts, int], int] = count_rows
    # The section of the plan with its options; those that it reads (empty: all); what they cannot be; numbers for those that are "auto".
    section: str = ""
    options: tuple[str, ...] = ()
    check: Callable[[Plan], None] = no_check
    resolve_section: Callable[[Plan, Facts, Auto], dict[str, Any]] = no_section
    # Why the task's metric cannot judge a run (empty: it can).
    no_metric: str = ""
    # What shows that it learned: answers to held-out prompts, or the likelihood of held-out rows.
    evaluated: Literal["answers", "likelihood"] = "answers"
    # Rows are known by heart below so much loss, None: below half of the first; or why there is no such proof.
    learned_nats: float | None = 0.1
    no_proof: str = ""

    @property
    def draws(self) -> bool:
        """Whether the model draws answers while it is trained."""
        return self.graded or self.demonstrated

    def items(self, rows: Sequence[TrainRow]) -> list[Item]:
        """Rows of tokens as items of this method. Raises DataError naming every row of another shape or with nothing to train."""
        from tunesmith.train.items import Item, all_trained, item_of, refuse_untrained

        items = [item_of(row) for row in rows]
        wrong = [i for i, item in enumerate(items) if len(item.rows) != self.rows or (self.labelled and not isinstance(rows[i], Item))]
        if wrong:
            shape = (
                "an answer and the same with it shown"
                if self.demonstrated
                else "a pair: preferred, other"
                if self.rows == 2
                else "an item with a label"
                if self.labelled
                else "a rendered row"
            )
            faults = [Fault(f"row {i}", "wrong_kind", f"{type(rows[i]).__name__} is not {shape}") for i in wrong]
            what = f"{len(wrong)} of {len(rows)} rows do not fit the method {self.name}"
            raise DataError(what, faults=faults, allowed=shape, where="train.method")
        if self.every_token:
            items = [all_trained(item) for item in items]
        if not self.graded:
            refuse_untrained(items)
        return items


def render_chats(renderer: Renderer, rows: Sequence[Example]) -> list[Item]:
    """Conversations, of which the mask marks what the assistant says."""
    from tunesmith.train.items import Item

    return [Item((row,)) for row in renderer.examples(rows)]


def render_pairs(renderer: Renderer, rows: Sequence[Preference]) -> list[Item]:
    """Pairs: the prompt with the preferred answer, and with the other."""
    from tunesmith.train.items import Item

    return [Item(pair) for pair in renderer.pairs(rows)]


def check_preference(plan: Plan) -> None:
    """Refuse what the options of preference methods cannot be. Raises ConfigError."""
    options = plan.preference
    if options.beta <= 0:
        raise ConfigError(f"preference.beta is {options.beta}", where="train.preference.beta", allowed="a number above 0")
    if not 0 <= options.label_smoothing < 0.5:
        smoothing = options.label_smoothing
        raise ConfigError(f"label_smoothing is {smoothing}", where="train.preference.label_smoothing", allowed="0 to below 0.5")
    for name in ("sft_weight", "desirable_weight", "undesirable_weight"):
        if getattr(options, name) < 0:
            raise ConfigError(f"{name} is {getattr(options, name)}", where=f"train.preference.{name}", allowed="0 or more")
