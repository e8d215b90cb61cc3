"""From measured arms to the decision, a pure function: the cheapest arm that is not worse than the best by the margin; asks nobody.

An arm's case is the difference to each other arm on the rows that both were asked. It suffices where all of these, corrected for the number
of arms, lie above −margin. Where a race was run (`race`), its statements, which allow for having looked often, take the place of these
intervals for the choice; the intervals are still shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from math import ceil

from tunesmith.core.errors import UsageError
from tunesmith.core.stats import Difference, Interval, mean_interval, paired_difference
from tunesmith.core.stats.distributions import z_quantile
from tunesmith.decide.cost import Priced, cheapest_by_volume, total_usd
from tunesmith.decide.race import Race, RaceOutcome
from tunesmith.decide.records import KINDS, ArmStanding, Constraints, Decision, MeasuredArm, Standing

Compare = Callable[[MeasuredArm, MeasuredArm, float], Difference]
"""(A, B, level): B minus A on the rows that both were asked. A metric that is not the mean of its rows brings its own."""
Rate = Callable[[MeasuredArm, float], Interval]
_POWER = 0.8
_MOST_ROWS = 1_000_000  # beyond, a number of rows to ask is no advice
_SHOWN = 3  # changes of the margin that are told


def paired(a: MeasuredArm, b: MeasuredArm, level: float) -> Difference:
    """The mean difference over the rows that both were asked: the first ones, in the common order."""
    n = min(len(a.scores), len(b.scores))
    clusters = a.clusters or b.clusters
    return paired_difference(a.scores[:n], b.scores[:n], None if clusters is None else clusters[:n], level)


def rated(arm: MeasuredArm, level: float) -> Interval:
    """The mean of an arm's scores with its interval."""
    return mean_interval(arm.scores, arm.clusters, level)


def cheapest_first(arms: Sequence[MeasuredArm], requests: float | None = None) -> list[str]:
    """The names from the cheapest arm to the dearest: by what building and so many requests cost where that is known of all of them, else
    (and between equals) by how simple they are to keep running."""
    totals = {arm.name: _total(arm, requests) for arm in arms}
    priced = requests is not None and all(total is not None for total in totals.values())
    return [
        arm.name for arm in sorted(arms, key=lambda arm: (totals[arm.name] if priced else 0.0, arm.simpler_rank, KINDS.index(arm.kind)))
    ]


def broken_limits(arm: MeasuredArm, limits: Constraints, score: Interval | None = None) -> list[str]:
    """What an arm does not keep, in words. What was not measured is not kept: a limit is there to be relied on."""
    broken = []
    for name, words in _LIMITS.items():
        limit, value = getattr(limits, name), getattr(arm, name)
        if limit is not None and value is None:
            broken.append(f"{words} is not known, at most {limit:g} allowed")
        elif limit is not None and value > limit:
            broken.append(f"{words} is {value:g}, at most {limit:g} allowed")
    if limits.private and not arm.private:
        broken.append("requests leave your machines, which is not allowed")
    if limits.least_score is not None and score is not None and score.high < limits.least_score:
        broken.append(f"its score is at most {score.high:.3g}, at least {limits.least_score:g} wanted")
    return broken


_LIMITS = {
    "latency_p95_s": "latency at p95 in seconds",
    "first_token_s": "the time to the first token in seconds",
    "memory_bytes": "memory in bytes",
    "build_usd": "the cost to build in US dollars",
    "usd_per_1000": "the cost of 1,000 requests in US dollars",
}


def decide(
    arms: Sequence[MeasuredArm],
    margin: float,
    constraints: Constraints | None = None,
    alpha: float = 0.05,
    *,
    requests: float | None = None,
    race: Race | None = None,
    untried: Sequence[str] = (),
    compare: Compare = paired,
    score: Rate = rated,
) -> Decision:
    """The decision over these arms, and what would change it.

    `requests` is the number of requests over which cost is summed. A `race` counts where it was run over the arms that keep the
    constraints (the others withdrawn) in their order from cheap to dear; otherwise the rule is applied to the scores. `untried` names the
    arms that were wanted and not measured: one arm alone beside them is no decision. Raises UsageError for no arms, arms of one name, or
    a margin that is not positive.
    """
    _check(arms, margin)
    limits = constraints or Constraints()
    scores = {arm.name: score(arm, 1 - alpha) for arm in arms if arm.scores}
    broken = {arm.name: broken_limits(arm, limits, scores.get(arm.name)) for arm in arms}
    order = cheapest_first(arms, requests)
    by_name = {arm.name: arm for arm in arms}
    keeping = [by_name[name] for name in order if not broken[name] and by_name[name].scores]
    if not keeping:
        sentence = "No arm keeps the constraints: " + "; ".join(f"{name}: {_why_not(by_name[name], broken[name])}" for name in order) + "."
        standings = tuple(_barred(by_name[name], broken[name], scores, requests) for name in order)
        return Decision(chosen=None, sure=False, sentence=sentence, best=None, margin=margin, level=1 - alpha, arms=standings)
    case = Case(keeping, margin, alpha, compare)
    outcome = race.outcome() if race is not None and _counts(race, case) else case.outcome
    if untried and len(keeping) == 1:
        outcome = RaceOutcome(chosen=outcome.chosen, sure=False, undecided=(), reason="nothing was compared")
    standings = tuple(
        _standing(case, by_name[name], outcome, race, scores, requests)
        if name in case.by_name
        else _barred(by_name[name], broken[name], scores, requests)
        for name in order
    )
    needed = case.rows_needed(outcome)
    return Decision(
        chosen=outcome.chosen,
        sure=outcome.sure,
        sentence=_sentence(case, outcome, scores, needed) + _unmeasured(untried),
        best=case.best,
        margin=margin,
        level=1 - alpha,
        arms=standings,
        rows_needed=needed,
        changes=(*_margins(case, outcome), *_volumes(case, outcome), *_limits(case, outcome, [by_name[n] for n in order], broken)),
    )


def _check(arms: Sequence[MeasuredArm], margin: float) -> None:
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"the arms {names}", allowed="one or more with distinct names")
    if not margin > 0:
        raise UsageError(f"a margin of {margin:g}", allowed="more than 0, in the metric's unit")


class Case:
    """The arms that may be chosen, from cheap to dear, and what the rows say of each pair."""

    def __init__(self, arms: Sequence[MeasuredArm], margin: float, alpha: float, compare: Compare) -> None:
        self.arms, self.margin, self.alpha, self._compare = list(arms), margin, alpha, compare
        self.by_name = {arm.name: arm for arm in arms}
        self._known: dict[tuple[str, str, float], Difference] = {}

    @property
    def level(self) -> float:
        """The level of each two-sided interval at which one side of all comparisons of an arm together is wrong with probability α."""
        return 1 - min(2 * self.alpha / max(1, len(self.arms) - 1), 0.5)

    def difference(self, name: str, other: str, level: float | None = None) -> Difference:
        """An arm minus another."""
        key = (name, other, level or self.level)
        if key not in self._known:
            self._known[key] = self._compare(self.by_name[other], self.by_name[name], key[2])
        return self._known[key]

    def margin_needed(self, name: str) -> float:
        """The margin at which an arm is shown to be within it of every other: the farthest that it may be behind."""
        return max((-self.difference(name, arm.name).low for arm in self.arms if arm.name != name), default=0.0)

    def suffices(self, name: str) -> bool:
        """Whether the rows show that an arm is within the margin of every other."""
        return self.margin_needed(name) < self.margin

    def worse(self, name: str) -> bool:
        """Whether the rows show that an arm is worse than some other by more than the margin."""
        return any(self.difference(name, arm.name).high < -self.margin for arm in self.arms if arm.name != name)

    @cached_property
    def best(self) -> str:
        """The arm with the best score, of those that were asked the most rows."""
        most = max(len(arm.scores) for arm in self.arms)
        full = [arm.name for arm in self.arms if len(arm.scores) == most]
        return max(
            full, key=lambda name: (sum(self.difference(name, other).estimate for other in full if other != name), -full.index(name))
        )

    @property
    def outcome(self) -> RaceOutcome:
        """The rule: the cheapest arm that suffices; without one the best, not shown."""
        names = [arm.name for arm in self.arms]
        chosen = next((name for name in names if self.suffices(name)), None)
        cheaper = names[: names.index(chosen or self.best)]
        undecided = tuple(name for name in cheaper if not self.worse(name))
        return RaceOutcome(chosen=chosen or self.best, sure=chosen is not None, undecided=undecided, reason="")

    def rows_needed(self, outcome: RaceOutcome) -> int | None:
        """How many rows would probably (80 %) settle what is open: whether the chosen arm suffices; where that is sure, whether the
        cheaper ones do of which it cannot be told."""
        open_arms = outcome.undecided if outcome.sure else (outcome.chosen,)
        rival = {name: self.best if name != self.best else self._next_best(name) for name in open_arms}
        needed = [self._rows(name, rival[name]) for name in open_arms if rival[name] is not None]
        known = [n for n in needed if n is not None]
        return max(known) if known and len(known) == len(needed) else None

    def _next_best(self, name: str) -> str | None:
        others = [arm.name for arm in self.arms if arm.name != name]
        return min(others, key=lambda other: self.difference(name, other).low, default=None)

    def _rows(self, name: str, other: str | None) -> int | None:
        if other is None:
            return None
        found = self.difference(name, other)
        room = abs(found.estimate + self.margin)
        reach = z_quantile(0.5 + self.level / 2) + z_quantile(_POWER)
        if room * _MOST_ROWS**0.5 <= reach * found.se * found.n**0.5:
            return None
        return max(found.n + 1, ceil(found.n * (reach * found.se / room) ** 2))


def _counts(race: Race, case: Case) -> bool:
    """Whether a race was run over these arms in this order, at this margin, the others withdrawn."""
    raced = [name for name in race.arms if name not in race.dropped or race.dropped[name].why != "withdrawn"]
    return raced == [arm.name for arm in case.arms] and race.margin == case.margin


def _total(arm: MeasuredArm, requests: float | None) -> float | None:
    return None if requests is None else total_usd(arm.build_usd, arm.usd_per_1000, requests)


def _why_not(arm: MeasuredArm, broken: Sequence[str]) -> str:
    return "; ".join(broken or (() if arm.scores else ("no row was answered",)))


def _barred(arm: MeasuredArm, broken: Sequence[str], scores: dict[str, Interval], requests: float | None) -> ArmStanding:
    return ArmStanding(
        name=arm.name,
        kind=arm.kind,
        standing="breaks a constraint" if broken else "cannot tell",
        reason=_why_not(arm, broken),
        rows=len(arm.scores),
        score=scores.get(arm.name),
        usd=_total(arm, requests),
    )


def _standing(
    case: Case, arm: MeasuredArm, outcome: RaceOutcome, race: Race | None, scores: dict[str, Interval], requests: float | None
) -> ArmStanding:
    names = [each.name for each in case.arms]
    cheaper = names.index(arm.name) < names.index(outcome.chosen)
    standing: Standing
    if arm.name == outcome.chosen:
        standing = "chosen"
        reason = "the cheapest arm that is shown to suffice" if outcome.sure else "the best score so far; not shown to suffice"
    elif arm.name in outcome.undecided:
        standing, reason = "cannot tell", f"cheaper; neither shown to be within {case.margin:g} of the best nor to be worse"
    elif cheaper or case.worse(arm.name):
        standing, reason = "worse", f"worse than another by more than {case.margin:g}"
    elif case.suffices(arm.name):
        standing, reason = "within the margin", f"within {case.margin:g} of every arm, and dearer than {outcome.chosen}"
    else:
        standing, reason = "cannot tell", f"dearer than {outcome.chosen}; not shown to be within {case.margin:g} of every arm"
    if race is not None and arm.name in race.dropped:
        reason = f"{race.dropped[arm.name].reason} (asked {race.dropped[arm.name].rows} rows)"
    return ArmStanding(
        name=arm.name,
        kind=arm.kind,
        standing=standing,
        reason=reason,
        rows=len(arm.scores),
        score=scores[arm.name],
        to_best=None if arm.name == case.best else case.difference(arm.name, case.best, 1 - case.alpha),
        usd=_total(arm, requests),
    )


def _sentence(case: Case, outcome: RaceOutcome, scores: dict[str, Interval], needed: int | None) -> str:
    chosen, best, margin = outcome.chosen, case.best, f"{case.margin:g}"
    plan = f"; plan about {needed:,} rows" if needed is not None else ""
    value = f"{scores[chosen].estimate:.3g}"
    if len(case.arms) == 1 and not outcome.sure:
        return f"Cannot tell: {chosen} ({value}) is the only arm that was measured, so nothing was compared."
    if len(case.arms) == 1:
        return f"{chosen} ({value}) is the only arm that keeps the constraints."
    if not outcome.sure:
        return f"Cannot tell: {chosen} has the best score ({value}), but is not shown to be within {margin} of every other arm{plan}."
    if chosen == best:
        head = f"{chosen} ({value}): the best arm"
        tail = ", and no cheaper one is within " + margin if not outcome.undecided else ""
    else:
        gap = case.difference(chosen, best, 1 - case.alpha)
        head = f"{chosen} ({value}): the cheapest arm that is within {margin} of the best, {best} ({scores[best].estimate:.3g}); "
        tail = f"difference {gap.estimate:+.3g}, {100 * gap.level:.3g} % interval {gap.low:+.3g} to {gap.high:+.3g}"
    if outcome.undecided:
        tail += f"; whether {' or '.join(outcome.undecided)}, which is cheaper, would do cannot be told{plan}"
    return f"{head}{tail}."


def _unmeasured(untried: Sequence[str]) -> str:
    """Which arms were wanted and are in no comparison."""
    return f" Not measured: {', '.join(untried)}." if untried else ""


def _margins(case: Case, outcome: RaceOutcome) -> list[str]:
    """At which other margins another arm would be chosen."""
    names = [arm.name for arm in case.arms]
    needs = sorted((case.margin_needed(name), name) for name in names[: names.index(outcome.chosen)])
    lines = [
        f"with a margin above {need:.3g}, {name} would be shown to suffice, which is cheaper" for need, name in needs if need >= case.margin
    ][:_SHOWN]
    own = case.margin_needed(outcome.chosen)
    if outcome.sure and 0 < own < case.margin:
        lines.append(f"with a margin of {own:.3g} or less, these rows would not show that {outcome.chosen} suffices")
    return lines


def _volumes(case: Case, outcome: RaceOutcome) -> list[str]:
    """At which volumes another of the arms that suffice would be the cheapest."""
    able = [arm for arm in case.arms if arm.name == outcome.chosen or case.suffices(arm.name)]
    reaches = cheapest_by_volume([Priced(name=arm.name, build_usd=arm.build_usd, usd_per_1000=arm.usd_per_1000) for arm in able])
    lines = []
    for reach in reaches:
        if reach.name != outcome.chosen:
            until = f" to {reach.most:,.0f}" if reach.most is not None else " on"
            lines.append(f"from {reach.least:,.0f} requests{until}, {reach.name} is the cheapest of those that suffice")
    return lines


def _limits(case: Case, outcome: RaceOutcome, arms: Sequence[MeasuredArm], broken: dict[str, list[str]]) -> list[str]:
    """Which arms would be chosen without the limits that they break."""
    lines = []
    for arm in arms:
        if broken[arm.name] and arm.scores:
            allowed = {*case.by_name, arm.name}
            wider = Case([each for each in arms if each.name in allowed], case.margin, case.alpha, case._compare)
            if wider.outcome.chosen == arm.name and wider.outcome.sure:
                lines.append(f"{arm.name} would be chosen, but {'; '.join(broken[arm.name])}")
    return lines
