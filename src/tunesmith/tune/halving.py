"""Which trial is trained next, and how far: asynchronous successive halving (ASHA, arXiv 1810.05934) as a function of what was seen.

Knows nothing about training. Of the trials that were looked at on a rung, the best one of `eta` goes on to the next. The default plan and
those that a person added always do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from tunesmith.tune.settings import Tune
from tunesmith.tune.trials import DEFAULT, Rung, Trial, ranked

LOWEST = (1 / 9, 1 / 3)  # the one look before the end, the second where warm-up is long; `make bench-tune` says why one is enough
SHARE_LEAST = 1 / 9  # the least share of a training that says something of its end; `make bench-tune` prints the rank correlations
PROXY_SHARE, PROXY_ROWS, PROXY_STEPS = 0.1, 64, 8  # a proxy of fewer rows or steps shows noise
STEPS_LEAST = 6  # a rung of fewer steps is not worth a pause


class HalvingStep(NamedTuple):
    """What to do next: train trial `number` up to the rung `rung`, or (None) begin a new one."""

    number: int | None
    rung: int


def ladder(tune: Tune, *, rows: int, steps: int, warmup: float) -> tuple[Rung, ...]:
    """The rungs of a study whose default plan trains `steps` steps on `rows` rows, with at most the share `warmup` of warm-up.

    The lowest rung of a training lies above twice the warm-up: before, all plans look alike.
    """
    if tune.rungs != "auto":
        shares = list(tune.rungs)
    elif tune.eta == "auto":
        shares = [*[share for share in LOWEST if _worth(share, steps, warmup)][:1], 1.0]
    else:
        shares, share = [1.0], 1 / tune.eta
        while share >= SHARE_LEAST * 0.999 and _worth(share, steps, warmup):
            shares.insert(0, share)
            share /= tune.eta
    enough = rows * PROXY_SHARE >= PROXY_ROWS and steps * PROXY_SHARE >= PROXY_STEPS and tune.rungs == "auto"
    proxy = (PROXY_SHARE if enough else 0.0) if tune.proxy == "auto" else tune.proxy
    whole = [Rung(share=part) for part in shares]
    if not proxy:
        return tuple(whole)
    return (Rung(share=proxy, proxy=True), *(rung for rung in whole if rung.share > proxy * 1.5 or tune.rungs != "auto"))


def _worth(share: float, steps: int, warmup: float) -> bool:
    """Whether a look after that share of the steps says something, and is worth a pause."""
    return share >= 2 * warmup * 0.999 and share * steps >= STEPS_LEAST


def _eta(rungs: Sequence[Rung], rung: int, tune: Tune) -> int:
    """Of how many on a rung the best one goes on: as many as could be looked at there for the price of the next rung."""
    return max(2, round(rungs[rung + 1].share / rungs[rung].share)) if tune.eta == "auto" else tune.eta


def step(trials: Sequence[Trial], rungs: Sequence[Rung], tune: Tune, *, higher: bool, more: bool) -> HalvingStep | None:
    """What to do next; None when nothing is left. `more`: the budget allows another trial. Trials that are worked on come as running."""
    top = len(rungs) - 1
    always = [trial for trial in trials if trial.state == "paused" and (trial.number == DEFAULT or trial.origin == "added")]
    if always:
        return HalvingStep(always[0].number, len(always[0].looks))
    for rung in range(top - 1, -1, -1):
        number = _promoted(trials, rung, _eta(rungs, rung, tune), higher=higher)
        if number is not None:
            return HalvingStep(number, rung + 1)
    if more or any(trial.state == "waiting" for trial in trials):
        return HalvingStep(None, 0)
    return _last_ones(trials, tune, higher=higher)


def _promoted(trials: Sequence[Trial], rung: int, eta: int, *, higher: bool) -> int | None:
    """The best trial that is paused on a rung and belongs to the best one of `eta` there."""
    there = [at for trial in trials if (at := at_rung(trial, rung)) is not None]
    best = standing(there, higher=higher)[: math.floor(len(there) / eta)]
    paused = {trial.number for trial in trials if trial.state == "paused" and len(trial.looks) == rung + 1}
    return next((trial.number for trial in best if trial.number in paused), None)


def standing(trials: Sequence[Trial], *, higher: bool) -> list[Trial]:
    """Trials that have a value on a rung, the best first: by their places in the value and in the validation loss together, where all have
    both; of equal ones the better value, then the earlier.

    Before a model has learned its task a metric such as exact match says which answer it gives to everything, while the loss falls
    steadily (arXiv 2304.15004). A whole training is judged by the metric alone.
    """
    known, sign = ranked(trials, higher=higher), -1 if higher else 1
    values = [sign * (trial.value or 0.0) for trial in known]
    losses = [loss for trial in known if (loss := trial.looks[-1].loss) is not None]
    if len(losses) < len(known):
        return known
    places = [
        (sum(other < value for other in values), sum(other < loss for other in losses)) for value, loss in zip(values, losses, strict=True)
    ]
    return [known[i] for i in sorted(range(len(known)), key=lambda i: (sum(places[i]), places[i][0], known[i].number))]


def at_rung(trial: Trial, rung: int) -> Trial | None:
    """The trial as it was on a rung; None where it was not."""
    looks = [look for look in trial.looks if look.rung == rung]
    if not looks:
        return None
    return Trial(number=trial.number, params=trial.params, state=trial.state, origin=trial.origin, looks=tuple(looks))


def _last_ones(trials: Sequence[Trial], tune: Tune, *, higher: bool) -> HalvingStep | None:
    """At the end as many trials as there are finalists are trained whole, whatever one of `eta` says."""
    whole = sum(trial.state == "finished" and trial.number != DEFAULT for trial in trials)
    under_way = sum(trial.state == "running" for trial in trials)
    paused = [trial for trial in trials if trial.state == "paused"]
    if whole + under_way >= tune.finalists or not paused:
        return None
    furthest = max(len(trial.looks) for trial in paused)
    best = standing([trial for trial in paused if len(trial.looks) == furthest], higher=higher)
    return HalvingStep(best[0].number, furthest) if best else None


def waits(trials: Sequence[Trial], busy: Collection[int]) -> list[Trial]:
    """Trials that were begun and that nobody works on: of a process that was killed or stopped."""
    return [trial for trial in trials if trial.state == "running" and trial.number not in busy]
