"""What a rollout does next, from what was counted: pure functions of plan, state and counts. Knows nothing about the store, clocks or
servers.

Each guardrail compares the canary with the requests that the others answered at the same time. Harm is a bet against "not worse by more
than the margin"; it is true however often one looks (`core.stats.excess`), and the guardrails share `alpha`. Going on is a bet against "at
the next share all requests together would be worse by the margin": at 5 % a canary may be worse by twenty margins, at 100 % by one.

A guardrail on a quantile counts requests beyond a limit: of the others those above their quantile, of the canary those above that times
1 + margin. If no quantile of the canary is larger by that factor, its share is not larger (a quantile test by counts, as Howard and
Ramdas 2022 have it, arXiv 2205.14762, with a limit that comes from before).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from typing import Literal

import numpy as np
from msgspec.structs import replace

from tunesmith.core.rollout import NO_COUNTS, Counts, GuardrailState, RolloutPlan, RolloutState, quantile_of
from tunesmith.core.stats.excess import Stakes, excess_evidence
from tunesmith.core.stats.sequential import rate_at_least, rate_at_most
from tunesmith.core.types import Record

FINE = 0.05  # the probability of going on, by one guardrail, though it would be worse by the margin
_KNOWN = 200.0  # requests from before that a first guess of a rate weighs at most
_MINUTE = 60.0
_SLACK, _SLACK_MOST = 0.4, 0.1  # of a share above a quantile, what more of it is tolerated before the next step

# A guardrail → its counts with each user weighted by how alike their requests are: since the rollout began, then of later times.
ByUser = Callable[[str], Sequence[Counts]]
Action = Literal["hold", "advance", "promote", "roll_back"]


class Block(Record, frozen=True):
    """What ended in one span of time, until `ended`: requests of the canary, and each guardrail's counts."""

    ended: float
    requests: int
    counts: dict[str, Counts]


class Decision(Record, frozen=True):
    """What to do and why; `guardrail` is the one that decided, `missing` what going on waits for."""

    action: Action
    reason: str
    guardrail: str = ""
    missing: tuple[str, ...] = ()


class Standing(Record, frozen=True):
    """Where a guardrail stands: how many bad requests, how much evidence of harm (`harm` to 1, taken back at `harm_at` to 1), and how much
    that the next step does no harm (`fine` to 1, goes on at `fine_at` to 1; None: there is no next step)."""

    guardrail: str
    margin: float
    canary: tuple[float, float]
    others: tuple[float, float]
    harm: float
    harm_at: float
    fine: float | None
    fine_at: float


def begun(plan: RolloutPlan, now: float, before: Mapping[str, tuple[float, float]]) -> RolloutState:
    """The state of a rollout that starts; `before` says of guardrails how many requests the alias had, and how many bad ones of these."""
    guardrails = {}
    for name in plan.guardrails:
        values, bad = before.get(name, (0.0, 0.0))
        scale = min(1.0, _KNOWN / values) if values else 0.0
        quantile = quantile_of(name)
        first = 0.05 if quantile is None else 1 - quantile[1]
        stakes = Stakes(values=1 + values * scale, bad=first + bad * scale)
        guardrails[name] = GuardrailState(harm=stakes, fine=(stakes_of_rest(stakes),) * len(plan.steps))
    return RolloutState(started=now, cut=now, guardrails=guardrails)


def stakes_of_rest(stakes: Stakes) -> Stakes:
    """The same knowledge, of the share that is not bad."""
    return replace(stakes, bad=stakes.values - stakes.bad)


def advanced(plan: RolloutPlan, state: RolloutState, blocks: Sequence[Block], step: int, until: float) -> RolloutState:
    """The state after further blocks, all of which ended by `until`, in the order of their ends."""
    minutes = [1 + int(max(0.0, block.ended - state.started) // _MINUTE) for block in blocks]
    fresh, done = [], state.restarts
    for minute in minutes:  # half of the stake is put in over the minutes, half over the steps
        fresh.append((_kept_back(done[0]) - _kept_back(max(done[0], minute))) / 2 + (_kept_back(done[1]) - _kept_back(step + 1)) / 2)
        done = (max(done[0], minute), max(done[1], step + 1))
    guardrails = {
        name: _guardrail_after(name, plan, step, state.guardrails[name], [block.counts.get(name, NO_COUNTS) for block in blocks], fresh)
        for name in plan.guardrails
    }
    own = sum(block.requests for block in blocks)
    return replace(
        state,
        cut=until,
        guardrails=guardrails,
        restarts=done,
        requests=state.requests + own,
        step_requests=state.step_requests + own,
    )


def _kept_back(times: int) -> float:
    """The share of the stake that is not put in yet after so many times: it falls slowly, so that what turns bad late is still seen."""
    return 0.4 / (1.0 + log(times)) if times else 1.0


def _guardrail_after(
    name: str, plan: RolloutPlan, step: int, state: GuardrailState, counts: Sequence[Counts], fresh: Sequence[float]
) -> GuardrailState:
    margin, rows, put = plan.guardrails[name], [], []
    carried, waiting = np.array(state.carried), state.owed
    for block, stake in zip(counts, fresh, strict=True):
        carried, waiting = carried + np.array(block), waiting + stake
        if carried[0] and carried[2]:  # both sides are there: else it waits for the other one, however long
            rows.append(carried)
            put.append(waiting)
            carried, waiting = np.zeros(4), 0.0
    seen = np.array(state.seen) + sum((np.array(block) for block in counts), np.zeros(4))
    state = replace(state, seen=_counts(seen), carried=_counts(carried), owed=waiting)
    if not rows:
        return state
    table = np.array(rows)
    evidence, harm = excess_evidence(table, 0.0 if quantile_of(name) else margin, state.harm, put)
    rest = np.stack([table[:, 0], table[:, 0] - table[:, 1], table[:, 2], table[:, 2] - table[:, 3]], axis=1)
    whole = [0.0 if state.begun or i else 1.0 for i in range(len(rows))]
    fine = tuple(
        excess_evidence(rest, -slack, stakes, whole)[1] if i > step and (slack := _slack(name, margin) / share) < 1 else stakes
        for i, (share, stakes) in enumerate(zip(plan.steps, state.fine, strict=True))
    )
    return replace(state, harm=harm, fine=fine, peak=max(state.peak, float(evidence.max())), begun=True)


def _slack(name: str, margin: float) -> float:
    """How much larger the share of bad requests of all requests together may become."""
    quantile = quantile_of(name)
    return margin if quantile is None else min(_SLACK_MOST, _SLACK * (1 - quantile[1]))


def _counts(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Counts:
    n, bad, m, worse = map(float, values)
    return n, bad, m, worse


def harm_at(plan: RolloutPlan, name: str) -> float:
    """The odds (so many to 1) at which a guardrail takes back: `alpha` is shared, half of it is for errors."""
    others = len(plan.guardrails) - 1
    if not others:
        return 1 / plan.alpha
    if "errors" not in plan.guardrails:
        return (others + 1) / plan.alpha
    return 2 / plan.alpha if name == "errors" else 2 * others / plan.alpha


def standings(plan: RolloutPlan, state: RolloutState, step: int) -> list[Standing]:
    """Where each guardrail stands."""
    made = []
    for name, margin in plan.guardrails.items():
        at = state.guardrails[name]
        fine = None if step + 1 >= len(plan.steps) else _fine(name, margin, plan.steps[step + 1], at.fine[step + 1])
        made.append(
            Standing(
                guardrail=name,
                margin=margin,
                canary=at.seen[:2],
                others=at.seen[2:],
                harm=_odds(at.peak if at.begun else 0.0),
                harm_at=harm_at(plan, name),
                fine=fine,
                fine_at=1 / FINE,
            )
        )
    return made


def difference_bounds(at: Standing) -> tuple[float, float] | None:
    """Between what the canary's share of bad requests is above that of the others, at every look together as sure as its harm must be; for
    people, since it takes both shares to stay as they are. None before both sides have requests."""
    (n, bad), (m, worse), alpha = at.canary, at.others, 0.5 / at.harm_at
    if not n or not m:
        return None
    low = rate_at_least(bad, n, alpha) - rate_at_most(worse, m, alpha)
    return low, rate_at_most(bad, n, alpha) - rate_at_least(worse, m, alpha)


def _fine(name: str, margin: float, share: float, stakes: Stakes) -> float:
    """The odds that a share does no harm; beyond all where even a canary that is always bad could do none."""
    return 1 / FINE if _slack(name, margin) / share >= 1 else _odds(stakes.log_evidence)


def _odds(logarithm: float) -> float:
    return exp(min(logarithm, 690.0))


def decide(plan: RolloutPlan, state: RolloutState, step: int, step_since: float, now: float, by_user: ByUser | None = None) -> Decision:
    """What to do now. What would be done is looked at again with the counts `by_user`, who may be few: a canary is taken back only where
    these show it too, and goes on only where they do.

    Nothing is decided without requests: no traffic holds.
    """
    stood = standings(plan, state, step)
    for at in stood:
        if at.harm >= at.harm_at and (by_user is None or any(_worse(at, counts) for counts in by_user(at.guardrail))):
            return Decision(action="roll_back", reason=_harm_words(at), guardrail=at.guardrail)
    if step + 1 >= len(plan.steps):
        return Decision(action="hold", reason="the last step is reached", missing=("a person: it was planned to stop here",))
    share, missing = plan.steps[step + 1], []
    if (left := step_since + plan.step_s - now) > 0:
        missing.append(f"{left:.0f} s of the step's {plan.step_s:g} s")
    if state.step_requests < plan.step_requests:
        missing.append(f"{plan.step_requests - state.step_requests} of the step's {plan.step_requests} requests")
    for at in stood:
        if at.fine is not None and at.fine < at.fine_at:
            missing.append(f"evidence by '{at.guardrail}': {at.fine:.3g} to 1, {at.fine_at:.3g} to 1 suffices")
    if not missing and by_user is not None:
        alike = [at.guardrail for at in stood if not any(_not_worse(at, share, counts) for counts in by_user(at.guardrail)[:1])]
        missing += [f"more users for '{name}'" for name in alike]
    if missing:
        return Decision(action="hold", reason=f"not at {share:g} of the requests yet", missing=tuple(missing))
    shown = "; ".join(_shown(at) for at in stood)
    return Decision(action="promote" if share >= 1 else "advance", reason=f"{state.step_requests} requests, not worse: {shown}")


def _worse(at: Standing, counts: Counts) -> bool:
    return _at_once(counts, 0.0 if quantile_of(at.guardrail) else at.margin)


def _not_worse(at: Standing, share: float, counts: Counts) -> bool:
    n, bad, m, worse = counts
    slack = _slack(at.guardrail, at.margin) / share
    return slack >= 1 or _at_once((n, n - bad, m, m - worse), -slack)


def _at_once(counts: Counts, margin: float) -> bool:
    """Whether the counts taken together speak 20 to 1 against "the first rate is at most the second + margin"."""
    n, _, m, worse = counts
    if not n or not m:
        return False
    evidence, _ = excess_evidence([counts], margin, Stakes(values=m + 1, bad=worse + 0.05), [1.0])
    return bool(evidence[-1] >= log(1 / FINE))


def _harm_words(at: Standing) -> str:
    return f"{_shown(at)} ({at.harm:.3g} to 1 that it is worse by more than {at.margin:g}, {at.harm_at:.4g} to 1 suffices)"


def _shown(at: Standing) -> str:
    (n, bad), (m, worse) = at.canary, at.others
    return f"{at.guardrail} {_number(bad)} of {_number(n)} against {_number(worse)} of {_number(m)}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
