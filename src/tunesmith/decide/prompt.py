"""A small search for a better prompt that needs no model but the one that answers: edits of the user's own instruction, and solved rows,
tried on validation rows in rounds that halve. Asks nothing itself; who asks is handed in.

What stands between `{{` and `}}` in an instruction is frozen: no edit changes, moves or drops it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Record

_FROZEN = re.compile(r"\{\{(.*?)\}\}", re.S)
_SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n+")
_MOST_LABELS, _SHORT = 12, 12  # answers that are named as the only ones; words of a short answer


class InstructionPart(Record, frozen=True):
    """A piece of an instruction and the white space before it; a frozen one is the user's, word for word."""

    text: str
    frozen: bool = False
    gap: str = " "


class PromptCandidate(Record, frozen=True):
    """A prompt to try: the instruction's parts (none: the rows' own instruction stays), and how many solved rows of which kind before the
    question. `edit` says how it came about."""

    parts: tuple[InstructionPart, ...] = ()
    shots: int = 0
    by: str = "random"
    edit: str = "as given"

    @property
    def instruction(self) -> str | None:
        """The instruction as a model reads it; None where the rows' own stays."""
        return "".join(part.gap + part.text for part in self.parts).strip() or None


class TriedPrompt(Record, frozen=True):
    """One candidate with its mean score on the first `rows` validation rows."""

    candidate: PromptCandidate
    score: float
    rows: int


def parts_of(instruction: str | None) -> tuple[InstructionPart, ...]:
    """The instruction in its sentences, the frozen ones whole. Raises ConfigError for a `{{` or `}}` without its other half."""
    if not instruction or not instruction.strip():
        return ()
    rest = _FROZEN.sub("", instruction)
    if "{{" in rest or "}}" in rest:
        raise ConfigError("'{{' and '}}' do not pair up", where="decide.prompt", allowed="{{what no search may change}}")
    found, start = list[InstructionPart](), 0
    for match in _FROZEN.finditer(instruction):
        found += _sentences(instruction[start : match.start()])
        before = instruction[: match.start()]
        found.append(InstructionPart(text=match[1], frozen=True, gap=before[len(before.rstrip()) :]))
        start = match.end()
    return tuple(found + _sentences(instruction[start:]))


def _sentences(text: str) -> list[InstructionPart]:
    """The sentences of a text, each with the white space before it."""
    found, start = list[InstructionPart](), 0
    for end in [*(match.start() for match in _SENTENCE.finditer(text)), len(text)]:
        piece = text[start:end]
        if piece.strip():
            found.append(InstructionPart(text=piece.strip(), gap=piece[: len(piece) - len(piece.lstrip())]))
        start = end
    return found


def written(instruction: str) -> str:
    """The instruction as it is asked: word for word as it was written, without the marks of what is frozen."""
    parts_of(instruction)
    return _FROZEN.sub(lambda match: match[1], instruction).strip()


def hints(answers: Sequence[str]) -> list[str]:
    """Sentences that the training answers justify: which answers there are, how long they are, what they begin and end with."""
    said = [answer.strip() for answer in answers if answer.strip()]
    if not said:
        return []
    found = ["Reply with the answer alone, without explanation."]
    kinds = Counter(said)
    if len(kinds) <= _MOST_LABELS and len(kinds) * 3 <= len(said):
        found.append(f"The answer is exactly one of: {', '.join(label for label, _ in kinds.most_common())}.")
    longest = int(np.quantile([len(answer.split()) for answer in said], 0.95))
    if longest <= _SHORT:
        found.append(f"Use at most {longest} word{'s' if longest > 1 else ''}.")
    for place, word in (("Begin", _shared(said)), ("End", _shared([answer[::-1] for answer in said])[::-1])):
        if word:
            found.append(f"{place} the answer with “{word}”.")
    shown = min(kinds, key=lambda answer: (-kinds[answer], len(answer)))
    if len(shown) <= 120:
        found.append(f"Write it in the form of this answer: {shown}")
    return found


def _shared(texts: Sequence[str]) -> str:
    """What nine in ten texts begin with, where it is more than a letter and less than most of them."""
    counts, best = Counter[str](), ""
    for text in texts:
        counts.update(text[:n] for n in range(1, min(len(text), 24) + 1))
    for start, times in counts.items():
        if times >= 0.9 * len(texts) and len(start) > len(best):
            best = start
    return best.strip() if len(best.strip()) > 1 and len(set(texts)) > 2 else ""


def edits(candidate: PromptCandidate, sentences: Sequence[str], shots: Sequence[int], ways: Sequence[str]) -> list[PromptCandidate]:
    """Every prompt that is one edit away: a sentence more, one less, one moved to the end, solved rows before the question."""
    parts, found = candidate.parts, list[PromptCandidate]()
    have = {part.text for part in parts}
    found += [_with(candidate, (*parts, InstructionPart(text=one)), f"+ {one}") for one in sentences if one not in have]
    free = [i for i, part in enumerate(parts) if not part.frozen]
    found += [_with(candidate, parts[:i] + parts[i + 1 :], f"− {parts[i].text}") for i in free if len(parts) > 1]
    found += [_with(candidate, parts[:i] + parts[i + 1 :] + parts[i : i + 1], f"last: {parts[i].text}") for i in free if i < len(parts) - 1]
    for number in (0, *shots):
        for by in ways if number else ways[:1]:
            if (number, by) != (candidate.shots, candidate.by) and (number or candidate.shots):
                edit = f"{number} shots, {by}" if number else "no shots"
                found.append(PromptCandidate(parts=parts, shots=number, by=by, edit=edit))
    return found


def _with(candidate: PromptCandidate, parts: tuple[InstructionPart, ...], edit: str) -> PromptCandidate:
    return PromptCandidate(parts=parts, shots=candidate.shots, by=candidate.by, edit=edit)


def search(
    start: PromptCandidate,
    neighbours: Callable[[PromptCandidate], Sequence[PromptCandidate]],
    score: Callable[[PromptCandidate, int], float],
    *,
    rows: int,
    generations: int = 3,
    first_rows: int = 12,
    going_on: Callable[[], bool] = lambda: True,
) -> tuple[PromptCandidate, list[TriedPrompt]]:
    """Hill climbing with successive halving (Jamieson and Talwalkar 2016): all neighbours of the best prompt on a few rows, the better half
    of them on twice as many, until one is left on all `rows`; it takes the best's place when it scores higher there. Neighbours that are
    worse than the best on the same rows are not asked further, nor any where none differs from it.

    `score(candidate, n)` is its mean over the first n rows (minus infinity: it cannot be asked). Ends without a better neighbour, after
    `generations`, or when `going_on` says no. Returns the best prompt and every trial.
    """
    best = TriedPrompt(candidate=start, score=score(start, rows), rows=rows)
    tried, seen = [best], {(start.parts, start.shots, start.by)}
    for _ in range(generations):
        field = [one for one in neighbours(best.candidate) if (one.parts, one.shots, one.by) not in seen]
        seen |= {(one.parts, one.shots, one.by) for one in field}
        n, winner = min(first_rows, rows), None
        while field and going_on():
            scored = [TriedPrompt(candidate=one, score=score(one, n), rows=n) for one in field]
            tried += scored
            level = best.score if n == rows else score(best.candidate, n)
            scored = sorted((one for one in scored if one.score >= level), key=lambda one: -one.score)  # of equals the earlier edit stays
            if not scored or scored[0].score == level:
                break
            if n == rows:
                winner = scored[0]
                break
            field = [one.candidate for one in scored[: max(1, len(scored) // 2)]]
            n = rows if len(field) == 1 else min(rows, 2 * n)
        if winner is None:
            break
        best = winner
    return best.candidate, tried
