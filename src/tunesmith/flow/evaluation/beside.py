"""Two evaluations beside each other for people: what differs and how sure, the gate, every row that one answered better. Asks nobody."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from tunesmith.core.errors import NotFound
from tunesmith.evaluate.failures import ChangedAnswer
from tunesmith.flow.evaluation.compare import Compared, GateLine, Weigh, compare_results, gate
from tunesmith.flow.evaluation.report import comparison_part, failures_part
from tunesmith.flow.evaluation.results import Result, kept_evaluations, result
from tunesmith.flow.evaluation.run import Bench

_REMEMBERED = 8
_known: OrderedDict[tuple[str, str, str], Beside] = OrderedDict()


@dataclass(frozen=True)
class Beside:
    """B against A: `part` is what the report shows of it, `gate` the decision by the first metric."""

    a: Result
    b: Result
    compared: Compared
    part: dict[str, Any]
    failures: dict[str, Any] | None
    gate: list[GateLine]

    def rows(self, side: Literal["won", "lost"]) -> list[ChangedAnswer]:
        """The rows that B answered better (or worse) by the first metric, the plainest first."""
        wanted = set(getattr(self.compared.comparison.metrics[0], side))
        changed = [answer for answer in self.compared.changed if answer.example_id in wanted]
        return changed[::-1] if side == "won" else changed


def named(word: str, at: Bench) -> Result:
    """The evaluation that a word names. Raises NotFound."""
    found = result(word, at.folder, at.context) if "/" not in word else None
    if found is None:
        known = ", ".join(evaluation.id[:8] for evaluation in kept_evaluations(at.folder)[:8])
        raise NotFound(f"'{word}' names no evaluation", allowed=known or "none is kept yet", remedy="tunesmith eval MODEL --data FILE")
    return found


def beside(a: str, b: str, at: Bench) -> Beside:
    """Both, compared; remembered, since evaluations never change. Raises NotFound, and UsageError for those of other rows."""
    key = (str(at.folder), a, b)
    if key not in _known:
        one, other = named(a, at), named(b, at)
        compared = compare_results(one, other, Weigh(), at)
        rule = at.context.project.gate if at.context is not None else Weigh().rule
        lines = gate(compared.comparison, {metric.name: metric.better for metric in other.metrics}, rule)
        _known[key] = Beside(one, other, compared, comparison_part(one, other, compared), failures_part(other, []), lines)
    _known.move_to_end(key)
    while len(_known) > _REMEMBERED:
        _known.popitem(last=False)
    return _known[key]


def as_lines(lines: list[GateLine]) -> list[dict[str, Any]]:
    """The gate for a page."""
    return [msgspec.structs.asdict(line) for line in lines]
