"""The arms of a decision: which kinds there are, from the simplest to the dearest, and which of them an experiment has. Builds none of them
and knows nothing about rows, weights or scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from tunesmith.core.errors import ConfigError, nearest
from tunesmith.core.types import Record
from tunesmith.decide.plan import Decide
from tunesmith.decide.records import ArmKind

KindName = Literal[
    "zero-shot",
    "prompt",
    "few-shot-random",
    "few-shot-nearest",
    "few-shot-greedy",
    "optimised-prompt",
    "retrieval",
    "retrieval-rows",
    "fine-tuned",
    "fine-tuned-retrieval",
    "distilled",
    "larger",
]
Input = Literal["prompt", "documents", "teacher", "models"]
Taught = Literal["rows", "passages", "answers"]


class Kind(Record, frozen=True):
    """A kind of arm: its family in the decision, what it is, which setting it cannot do without, whether weights are trained for it, and
    on what."""

    family: ArmKind
    about: str
    needs: Input | None = None
    trains: bool = False
    taught: Taught = "rows"


KINDS: dict[KindName, Kind] = {
    "zero-shot": Kind(family="zero-shot", about="the base asked the rows as they are"),
    "prompt": Kind(family="prompt", about="the base under the user's own prompt", needs="prompt"),
    "few-shot-random": Kind(family="few-shot", about="solved training rows before each question, the same ones always"),
    "few-shot-nearest": Kind(family="few-shot", about="the solved training rows that are most alike before each question"),
    "few-shot-greedy": Kind(family="few-shot", about="solved training rows, chosen one by one on validation rows"),
    "optimised-prompt": Kind(
        family="optimised prompt", about="the best instruction and shots that a small search found on validation rows"
    ),
    "retrieval": Kind(family="retrieval", about="passages of the documents before each question", needs="documents"),
    "retrieval-rows": Kind(family="retrieval", about="solved training rows, looked up as passages, before each question"),
    "fine-tuned": Kind(family="fine-tuned", about="an adapter trained on the training rows", trains=True),
    "fine-tuned-retrieval": Kind(
        family="fine-tuned + retrieval",
        about="an adapter trained on the training rows with passages before each question, and asked so",
        trains=True,
        taught="passages",
    ),
    "distilled": Kind(
        family="distilled",
        about="an adapter trained on the teacher's answers to the training questions",
        needs="teacher",
        trains=True,
        taught="answers",
    ),
    "larger": Kind(family="larger model", about="another model as it is", needs="models"),
}
# Words that stand for several kinds.
GROUPS: Mapping[str, tuple[KindName, ...]] = {"few-shot": ("few-shot-random", "few-shot-nearest", "few-shot-greedy")}
_SETTINGS: Mapping[Input, str] = {
    "prompt": "decide.prompt: your instruction",
    "documents": "decide.documents: [FOLDER], or the arm retrieval-rows, which looks up training rows",
    "teacher": "decide.teacher: MODEL",
    "models": "decide.models: [MODEL]",
}


class Arm(Record, frozen=True):
    """One arm: `kind` on `base` (for the kind `larger` the model itself). `rank` counts from the simplest, 0."""

    name: str
    kind: KindName
    base: str
    rank: int

    @property
    def trains(self) -> bool:
        """Whether weights are trained for it."""
        return KINDS[self.kind].trains

    @property
    def taught(self) -> Taught:
        """What its weights are trained on: the project's rows, these with their passages, or a teacher's answers."""
        return KINDS[self.kind].taught


class Arms(Record, frozen=True):
    """The arms of an experiment, the simplest first, and why the other kinds are not among them."""

    arms: tuple[Arm, ...]
    left_out: dict[str, str] = {}


def arms_of(plan: Decide, base: str) -> Arms:
    """The arms that `decide:` asks for on the project's base and its own `bases`.

    Raises ConfigError for a word that is no arm, an arm that is named twice, and one that cannot be built for want of a setting.
    """
    bases = (base, *plan.bases)
    if base in plan.bases:
        raise ConfigError(f"'{base}' is the project's base already", where="decide.bases", allowed="other bases", remedy="leave it out")
    possible = {arm.name: arm for arm in _possible(plan, bases)}
    if not plan.arms:
        gone = {str(name): f"no {lacking} given ({_SETTINGS[lacking]})" for name in KINDS if (lacking := _lacking(plan, name))}
        return Arms(arms=tuple(possible.values()), left_out=gone)
    names: list[str] = []
    for word in plan.arms:
        for name in _named(word, plan, possible):
            if name in names:
                raise ConfigError(f"arm '{name}' is named twice", where="decide.arms", allowed="each once", remedy=f"leave '{word}' out")
            names.append(name)
    return Arms(arms=tuple(arm for arm in possible.values() if arm.name in names))


def _possible(plan: Decide, bases: tuple[str, ...]) -> Iterator[Arm]:
    """Every arm whose settings are there, kind by kind; on the project's own base a kind's name alone names it."""
    rank = 0
    for kind in KINDS:
        if _lacking(plan, kind):
            continue
        for base in plan.models if kind == "larger" else bases:
            name = kind if base == bases[0] and kind != "larger" else f"{kind}@{base}"
            yield Arm(name=name, kind=kind, base=base, rank=rank)
            rank += 1


def _lacking(plan: Decide, kind: KindName) -> Input | None:
    """The setting that the kind cannot do without and that is not there."""
    needs = KINDS[kind].needs
    return None if needs is None or getattr(plan, needs) else needs


def _named(word: str, plan: Decide, possible: Mapping[str, Arm]) -> list[str]:
    """The arms that a word of `arms` means: one, or all of a kind or group."""
    kind, at, _ = word.partition("@")
    for name in GROUPS.get(kind, (kind,)):
        if name in KINDS and (lacking := _lacking(plan, name)):
            raise ConfigError(f"arm '{word}' has no {lacking}", where="decide.arms", remedy=_SETTINGS[lacking])
    if at:
        found = [word] if word in possible else []
    else:
        found = [arm.name for arm in possible.values() if arm.kind in GROUPS.get(word, (word,))]
    if not found:
        known = [*KINDS, *GROUPS]
        allowed = ", ".join([*(name for name in KINDS if not _lacking(plan, name)), *GROUPS, "each also as KIND@BASE"])
        raise ConfigError(f"no arm '{word}'", where="decide.arms", allowed=allowed, remedy=nearest(word, [*known, *possible]))
    return found
