"""What was said of answers as proposed rows of training data, and what may not become one. Knows nothing about stores, versions or models.

correction    the question with the answer that somebody wrote; it may be trained on once it was reviewed
agreed        an answer that thumbs or a score call good, and an outcome or a corrected judge does too
question      what went wrong without a better answer (thumbs down, a bad outcome), or is unlike what was trained on: to be answered first

Thumbs alone train nothing. People press them for what pleases, and a model that is trained on them learns to please: answers that flatter
and run long. Neither counts a word that a model gave as a person's, nor an outcome that says nothing of good and bad.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from tunesmith.core.types import Example, Feedback, Interaction, Message, Record, example_id

Kind = Literal["correction", "agreed", "question"]
_GOOD, _BAD = 0.75, 0.25
_MODELS = frozenset({"model", "judge", "auto", "auto_eval", "eval", "llm"})  # who is no person, as tools call them
GOOD_OUTCOMES = frozenset({"true", "yes", "resolved", "solved", "accepted", "success", "good", "correct", "completed", "done"})
BAD_OUTCOMES = frozenset(
    {"false", "no", "unresolved", "rejected", "failure", "failed", "bad", "incorrect", "wrong", "refunded", "escalated"}
)


class Proposed(Record, frozen=True):
    """A proposed row and of which kind it is."""

    kind: Kind
    row: Example


class Harvest(Record, frozen=True):
    """Proposed rows, and what became none, by the reason."""

    proposed: tuple[Proposed, ...]
    left: dict[str, int]

    def of(self, *kinds: Kind) -> list[Example]:
        """The rows of some kinds."""
        return [each.row for each in self.proposed if each.kind in kinds]


def harvest(
    words: Iterable[Feedback], requests: Mapping[str, Interaction], judged: Mapping[str, float], drifted: Collection[str] = ()
) -> Harvest:
    """The rows that words about answers propose, one a request. `requests` are those of the log, `judged` what a judge that is corrected by
    people's labels gives them (0 to 1), `drifted` the requests that are least like the reference."""
    by_request: dict[str, list[Feedback]] = {}
    for word in words:
        by_request.setdefault(word.interaction, []).append(word)
    for id in drifted:
        by_request.setdefault(id, [])
    proposed, left = [], Counter[str]()
    for id, said in by_request.items():
        asked = requests.get(id) or _from_elsewhere(said)
        if asked is None:
            left["its request is no longer in the log"] += 1
            continue
        kind, answer, by, reason = _judged(said, judged.get(id), id in drifted)
        if kind is None:
            left[reason] += 1
            continue
        proposed.append(Proposed(kind=kind, row=_row(asked, kind, answer, by)))
    return Harvest(proposed=tuple(proposed), left=dict(left))


def _judged(said: Sequence[Feedback], judge: float | None, drifted: bool) -> tuple[Kind | None, str, Sequence[Feedback], str]:
    """(what these words about one answer make of it, the answer that is proposed, the words that count, why nothing)."""
    people = [word for word in said if word.by.lower() not in _MODELS]
    last = {(word.kind, word.name, word.by): word for word in people}  # a later word of the same person takes the earlier one's place
    corrections = [word for word in last.values() if word.kind == "correction"]
    if corrections:
        newest = max(corrections, key=lambda word: word.created)
        others = {str(word.value).strip() for word in corrections}
        if len(others) > 1:
            return "question", "", corrections, ""  # people disagree: one who reviews decides
        return "correction", str(newest.value), [newest], ""
    pleased = [value for word in last.values() if word.kind in ("thumbs", "score") and (value := _share(word)) is not None]
    outcomes = [value for word in last.values() if word.kind == "outcome" and (value := _share(word)) is not None]
    firm = [*outcomes, *([judge] if judge is not None else [])]
    if any(value <= _BAD for value in outcomes) or (any(value <= _BAD for value in pleased) and not any(value >= _GOOD for value in firm)):
        return "question", "", list(last.values()), ""
    if any(value >= _GOOD for value in pleased):
        if not firm:
            return (None, "", (), "thumbs or a score alone: no outcome and no corrected judge agrees")
        if min(firm) >= _GOOD:
            return "agreed", "", list(last.values()), ""
        return (None, "", (), "an outcome or the judge does not agree with the thumbs")
    if drifted:
        return "question", "", list(last.values()), ""
    return (None, "", (), "nothing was said that is clearly good or bad")


def _share(word: Feedback) -> float | None:
    """A word as a number from 0 (bad) to 1 (good); None where it is on no such scale."""
    if isinstance(word.value, str):
        known = word.value.strip().lower()
        return 1.0 if known in GOOD_OUTCOMES else 0.0 if known in BAD_OUTCOMES else None
    return word.value if 0 <= word.value <= 1 else None


def _from_elsewhere(said: Sequence[Feedback]) -> Interaction | None:
    """The conversation that a word brought with it."""
    word = next((word for word in said if word.messages and word.answer), None)
    if word is None:
        return None
    return Interaction(
        id=word.interaction, created=word.created, alias=word.alias, variant="", messages=word.messages, answer=word.answer,
        finish_reason="stop", prompt_tokens=0, completion_tokens=0, first_token_s=0.0, total_s=0.0, project=word.project,
    )  # fmt: skip


def _row(asked: Interaction, kind: Kind, answer: str, by: Sequence[Feedback]) -> Example:
    """A row with all that is known of where it comes from: who answered, how it came to that, who says what it is worth."""
    turns = list(asked.messages)
    if kind != "question":
        turns.append(Message(role="assistant", content=answer or asked.answer))
    known: dict[str, Any] = {
        "provenance": f"interaction:{asked.id}", "harvested": kind, "alias": asked.alias, "variant": asked.variant,
        "deployment": asked.deployment, "model_digest": asked.model_digest, "strategy": asked.strategy, "propensity": asked.propensity,
        "experiment": asked.experiment, "answered": asked.created,
        "answer": asked.answer if kind != "agreed" else None,
        "said": [
            {
                "id": word.id, "kind": word.kind, "value": word.value if word.kind != "correction" else None, "by": word.by,
                "source": word.source, "comment": word.comment,
            }
            for word in by
        ],
    }  # fmt: skip
    messages = tuple(turns)
    return Example(
        id=example_id(messages), messages=messages, group=asked.conversation, origin=f"interaction:{asked.id}",
        meta={key: value for key, value in known.items() if value not in (None, "", [])},
    )  # fmt: skip
