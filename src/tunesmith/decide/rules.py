"""Rules before spending: a questionnaire cuts arms that cannot meet what is asked, and a probe says what the base lacks; runs nothing.

The rules and figures are in `rules.yaml`, each with its source. An answer that was not given (None) cuts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal

import msgspec
from numpy.typing import ArrayLike

from tunesmith.core.errors import ConfigError, UsageError
from tunesmith.core.stats import Difference, Interval, mean_interval, paired_difference
from tunesmith.core.stats.records import Clusters
from tunesmith.core.types import Record
from tunesmith.decide.records import ArmKind


class Needs(Record, frozen=True):
    """The questionnaire; None: not answered.

    `fresh_facts`: answers depend on facts that change, or are newer than the base. `sources`: an answer must name its source. `form`: what
    matters is format, style or behaviour rather than knowledge. `documents`: there are documents to look things up in. `rows`: solved
    training rows. `better_model`: a stronger model is there to learn from. `private`: no request may leave the user's machines.
    `memory_bytes`: what serving may take; `latency_p95_s`: what 19 of 20 requests may take.
    """

    fresh_facts: bool | None = None
    sources: bool | None = None
    form: bool | None = None
    documents: bool | None = None
    rows: int | None = None
    better_model: bool | None = None
    private: bool | None = None
    memory_bytes: int | None = None
    latency_p95_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "memory_bytes", "latency_p95_s"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} is {value}", where=f"needs.{name}", allowed="0 or more")


class Question(Record, frozen=True):
    """A question whose answer only a person knows: the key of `Needs`, the words, and whether a yes or a number is the answer."""

    key: str
    text: str
    answer: Literal["yes or no", "number"] = "yes or no"


QUESTIONS = (
    Question(key="fresh_facts", text="Do answers depend on facts that change, or that are newer than the base model?"),
    Question(key="sources", text="Must an answer name its source?"),
    Question(key="form", text="Is it format, style or behaviour that matters, rather than knowledge?"),
    Question(key="private", text="Must requests stay on your own machines?"),
    Question(key="latency_p95_s", text="How many seconds may 19 of 20 requests take at most?", answer="number"),
    Question(key="memory_bytes", text="How many bytes of memory may serving take at most?", answer="number"),
)


def read_answer(question: Question, text: str) -> str | None:
    """The answer as the value of `decide.needs.KEY`; None where the question was left open. Raises UsageError for what is no answer."""
    word = text.strip().lower()
    if not word:
        return None
    if question.answer == "number":
        try:
            number = float(word)
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise UsageError(f"'{text.strip()}' is no answer", allowed="a number of 0 or more, or nothing to leave it open")
        return str(int(number)) if question.key == "memory_bytes" else f"{number:g}"
    if word in ("y", "yes", "true") or word in ("n", "no", "false"):
        return "true" if word in ("y", "yes", "true") else "false"
    raise UsageError(f"'{text.strip()}' is no answer", allowed="yes, no, or nothing to leave it open")


class UnbuiltArm(Record, frozen=True):
    """An arm before it is built. `memory_bytes` and `least_latency_s` are what it takes at least (None: not known yet)."""

    name: str
    kind: ArmKind
    private: bool = True
    memory_bytes: int | None = None
    least_latency_s: float | None = None


class Cut(Record, frozen=True):
    """An arm that cannot meet what is asked: by which rule, why, and where that is from."""

    name: str
    rule: str
    reason: str
    source: str


class Rule(Record, frozen=True):
    """A line of `cuts`."""

    name: str
    when: dict[str, bool | int]
    arms: tuple[ArmKind, ...]
    reason: str
    source: str


class Guidance(Record, frozen=True):
    """A line of `guidance`: a published figure that bears on the answers."""

    when: dict[str, bool | int]
    text: str
    source: str


class Rules(Record, frozen=True):
    """The whole of `rules.yaml`."""

    cuts: tuple[Rule, ...]
    guidance: tuple[Guidance, ...]


@cache
def rules() -> Rules:
    """The rules that are shipped."""
    return msgspec.yaml.decode(resources.files("tunesmith.decide").joinpath("rules.yaml").read_bytes(), type=Rules)


def cut(candidates: Sequence[UnbuiltArm], needs: Needs) -> tuple[Cut, ...]:
    """The arms that cannot meet what is asked, in their order, each by the first rule that cuts it."""
    return tuple(found for each in candidates if (found := _cut(each, needs)) is not None)


def guidance(needs: Needs) -> tuple[Guidance, ...]:
    """The published figures that bear on these answers."""
    return tuple(line for line in rules().guidance if _holds(line.when, needs))


def _cut(arm: UnbuiltArm, needs: Needs) -> Cut | None:
    if needs.private and not arm.private:
        reason = "requests must not leave your machines, and this arm sends them to another"
        return Cut(name=arm.name, rule="privacy", reason=reason, source="your answer")
    for rule, least, most, unit in (
        ("memory", arm.memory_bytes, needs.memory_bytes, "bytes of memory"),
        ("latency", arm.least_latency_s, needs.latency_p95_s, "seconds a request"),
    ):
        if least is not None and most is not None and least > most:
            return Cut(name=arm.name, rule=rule, reason=f"takes at least {least:g} {unit}, at most {most:g} allowed", source="your answer")
    for line in rules().cuts:
        if arm.kind in line.arms and _holds(line.when, needs):
            return Cut(name=arm.name, rule=line.name, reason=line.reason, source=line.source)
    return None


def _holds(when: dict[str, bool | int], needs: Needs) -> bool:
    return all(_answers(key, wanted, needs) for key, wanted in when.items())


def _answers(key: str, wanted: bool | int, needs: Needs) -> bool:
    if key.endswith("_below"):
        value: Any = getattr(needs, key.removesuffix("_below"))
        return value is not None and value < wanted
    return getattr(needs, key) is wanted


Lack = Literal["knowledge", "behaviour", "both", "nothing", "cannot tell"]


class ProbeResult(Record, frozen=True):
    """What the base lacks for a task: what it knows (then look it up), how it must behave (then train it), both, or nothing.

    `gain` is the score with the right passage in the prompt minus the score without, on the same rows; `closed` and `given` are the two.
    """

    lacks: Lack
    gain: Difference
    closed: Interval
    given: Interval
    sentence: str


def probe(
    closed_book: ArrayLike, gold_context: ArrayLike, enough: float, margin: float, clusters: Clusters | None = None, *, alpha: float = 0.05
) -> ProbeResult:
    """Whether a task lacks knowledge or behaviour, from the base's scores without and with the right passage in the prompt, row by row.

    `enough` is the score at which the task counts as done, `margin` the gain from which a passage counts as a help. Knowledge is lacking
    where the passage helps by more than the margin, behaviour where the score with it stays below enough. An interval that contains the
    edge says "cannot tell". Scores are from 0 to 1. Raises UsageError for an edge that is not between 0 and 1.
    """
    for name, value in (("enough", enough), ("margin", margin)):
        if not 0 < value <= 1:
            raise UsageError(f"{name} is {value}", allowed="more than 0, at most 1")
    level = 1 - alpha / 2  # two intervals decide together
    gain = paired_difference(closed_book, gold_context, clusters, level)
    closed, given = mean_interval(closed_book, clusters, level), mean_interval(gold_context, clusters, level)
    helps = _side(gain.low, gain.high, margin)
    done = _side(given.low, given.high, enough)
    lacks: Lack = "cannot tell"
    if closed.low >= enough:
        lacks = "nothing"
    elif helps is not None and done is not None:
        lacks = {(True, True): "knowledge", (True, False): "both", (False, False): "behaviour", (False, True): "nothing"}[helps, done]  # type: ignore[assignment]
    sentence = (
        f"{_WORDS[lacks]}: {closed.estimate:.3g} without and {given.estimate:.3g} with the right passage, a gain of {gain.estimate:+.3g} "
        f"({100 * level:.3g} % interval {gain.low:+.3g} to {gain.high:+.3g}); {enough:g} is enough."
    )
    return ProbeResult(lacks=lacks, gain=gain, closed=closed, given=given, sentence=sentence)


_WORDS: dict[Lack, str] = {
    "knowledge": "The base lacks knowledge, which retrieval can give it",
    "behaviour": "The base lacks behaviour, which examples or training can give it",
    "both": "The base lacks knowledge and behaviour",
    "nothing": "The base lacks nothing for this",
    "cannot tell": "Cannot tell what the base lacks",
}


def _side(low: float, high: float, edge: float) -> bool | None:
    """Whether an interval lies above an edge (True), below it (False), or around it (None)."""
    return True if low >= edge else False if high < edge else None
