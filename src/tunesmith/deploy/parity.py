"""Do several ways to compute one model agree, token for token? Compares what each says along the same answers; asks nobody, loads nothing.

A side is followed along the reference's greedy answer: while its own likeliest token is the reference's at each place, its own greedy
answer is the same by induction; the first place where it is not is where its answer leaves. Log-probabilities in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.core.types import Record

# How far two log-probabilities may be apart by rounding alone, in nats (relative, from 1 nat on), by the coarsest type that one was
# computed or stored in. Two tokens that lie as near each other are a tie: which comes first is the rounding's choice.
TOLERANCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 0.25}
END = "(end)"  # what is said of an answer that stops where another goes on


class TokenPlace(Record, frozen=True):
    """One place of an answer: the side's likeliest token with its log-probability, and that of the reference's token; None where the
    side does not say it. `others` are the next likeliest of the reference."""

    chosen: str
    best: float | None
    expected: float | None
    others: dict[str, float] = {}


class SideRow(Record, frozen=True):
    """What a side said of one row: the ids (or, over HTTP, only the number) of the prompt as it read it, and its places up to the first one
    at which it leaves the reference."""

    row: str
    prompt: tuple[int, ...] | int
    places: tuple[TokenPlace, ...]


class TokenDifference(Record, frozen=True):
    """Where a side's answer leaves the reference's: both tokens with the log-probabilities that each of the two gives them."""

    row: str
    place: int
    expected: str
    chosen: str
    reference: tuple[float | None, float | None]
    side: tuple[float | None, float | None]
    tie: bool

    def text(self) -> str:
        """For people."""
        first, second = (_pair(values) for values in (self.reference, self.side))
        why = "a tie: rounding decides" if self.tie else "no tie"
        words = f"{self.expected!r} there, {self.chosen!r} here; log-probabilities {first} there, {second} here"
        return f"row {self.row}, token {self.place + 1}: {words}; {why}"


class Agreement(Record, frozen=True):
    """One line of the table. `largest` is the largest relative difference of the log-probabilities of the reference's own tokens; `judged`
    says whether the gate looks at it (a side that computes another model on purpose, such as a base in 4 bits, is only shown)."""

    side: str
    dtype: str
    rows: int
    same_prompts: int
    same_answers: int
    ties: int
    largest: float
    tolerance: float
    first: TokenDifference | None = None
    judged: bool = True
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether the prompts are the same, every answer is the same but for ties, and no log-probability is further away than rounding."""
        whole = self.rows == self.same_prompts == self.same_answers + self.ties
        return not self.judged or (whole and self.largest <= self.tolerance)


def agreement(side: str, dtype: str, reference: Sequence[SideRow], rows: Sequence[SideRow], *, judged: bool = True) -> Agreement:
    """Compare a side's rows with the reference's, in the same order. `dtype` is the coarsest type in which the two differ."""
    tolerance = TOLERANCE[dtype]
    differences = [_difference(a, b, tolerance) for a, b in zip(reference, rows, strict=True)]
    apart = [difference for difference in differences if difference is not None]
    real = [difference for difference in apart if not difference.tie]
    return Agreement(
        side=side,
        dtype=dtype,
        rows=len(rows),
        same_prompts=sum(_same_prompt(a.prompt, b.prompt) for a, b in zip(reference, rows, strict=True)),
        same_answers=len(rows) - len(apart),
        ties=len(apart) - len(real),
        largest=max((_largest(a, b) for a, b in zip(reference, rows, strict=True)), default=0.0),
        tolerance=tolerance,
        first=next(iter([*real, *apart]), None),
        judged=judged,
    )


def _same_prompt(a: tuple[int, ...] | int, b: tuple[int, ...] | int) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return (a if isinstance(a, int) else len(a)) == (b if isinstance(b, int) else len(b))
    return a == b


def _difference(reference: SideRow, row: SideRow, tolerance: float) -> TokenDifference | None:
    for at, place in enumerate(row.places):
        if at >= len(reference.places):
            return None
        wanted = reference.places[at]
        if place.chosen == wanted.chosen:
            continue
        other = wanted.others.get(place.chosen)
        # An end has no log-probability over HTTP: then the reference's own two decide.
        near, own = _near(wanted.best, other, tolerance), place.best is None or _near(place.best, place.expected, tolerance)
        return TokenDifference(
            row=row.row,
            place=at,
            expected=wanted.chosen,
            chosen=place.chosen,
            reference=(wanted.best, other),
            side=(place.expected, place.best),
            tie=near and own,
        )
    return None


def _near(a: float | None, b: float | None, tolerance: float) -> bool:
    return a is not None and b is not None and _relative(a, b) <= tolerance


def _relative(a: float, b: float) -> float:
    """The difference of two log-probabilities, relative from 1 nat on."""
    return abs(a - b) / max(1.0, abs(a))


def _largest(reference: SideRow, row: SideRow) -> float:
    """Over the places up to which the answers are the same."""
    pairs = zip(reference.places, row.places, strict=False)
    apart = [_relative(a.best, b.expected) for a, b in pairs if a.best is not None and b.expected is not None and a.chosen == b.chosen]
    return max(apart, default=0.0)


def _pair(values: tuple[float | None, float | None]) -> str:
    return " and ".join("unknown" if value is None else f"{value:.5f}" for value in values)


def table(lines: Sequence[Agreement]) -> str:
    """The table of agreement, and below it where each side that differs does so first."""
    width = max(len(line.side) for line in lines)
    head = f"{'side':<{width}}  {'type':<8}  prompts  answers  ties  largest difference"
    rows = [
        f"{line.side:<{width}}  {line.dtype:<8}  {line.same_prompts:>3}/{line.rows:<3}  {line.same_answers:>3}/{line.rows:<3}"
        f"  {line.ties:>4}  {line.largest:.2g} of {line.tolerance:g}  {_verdict(line)}"
        for line in lines
    ]
    return "\n".join([head, *rows, *(f"{line.side}: {line.first.text()}" for line in lines if line.first is not None)])


def _verdict(line: Agreement) -> str:
    return f"shown only: {line.reason}" if not line.judged else "agrees" if line.passed else "DIFFERS"
