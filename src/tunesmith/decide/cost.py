"""What an arm costs: machines by their hours, hosted models by their price list, building once and answering each time; invents no price.

Money is in US dollars. A price that is not known is None and stays None through every sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.core.errors import UsageError
from tunesmith.core.types import Record


class MachineCost(Record, frozen=True):
    """What measured work costs on a machine that is paid by the hour. `usd` at the measured utilisation, of which `idle_usd` is for the
    time in which the machine waited; `full_usd` is what the same work costs on a machine that never waits."""

    usd: float
    full_usd: float
    idle_usd: float


def machine_cost(price_per_hour: float, seconds: float, utilisation: float = 1.0) -> MachineCost:
    """The cost of `seconds` of work (the machine busy) where it is busy for the share `utilisation` of the time that is paid.

    Two requests that are answered side by side in 3 s are 3 s of work, 1.5 each: measure the whole, not each request's wait.
    """
    _price(price_per_hour, "price_per_hour")
    if not seconds >= 0:
        raise UsageError(f"{seconds} seconds of work", allowed="0 or more")
    if not 0 < utilisation <= 1:
        raise UsageError(f"a utilisation of {utilisation}", allowed="more than 0, up to 1 (never waiting)")
    full = price_per_hour * seconds / 3600
    return MachineCost(usd=full / utilisation, full_usd=full, idle_usd=full / utilisation - full)


def per_1000(cost_usd: float, requests: int) -> float:
    """What a thousand requests cost, from what some cost together."""
    if requests < 1:
        raise UsageError(f"the cost of {requests} requests", allowed="1 or more")
    return _price(cost_usd, "cost") * 1000 / requests


def tokens_usd(input_tokens: float, output_tokens: float, price: tuple[float, float] | None) -> float | None:
    """What tokens cost at a price list's dollars a million tokens (read, written); None where nobody knows the price."""
    if price is None:
        return None
    return (input_tokens * _price(price[0], "the price of input") + output_tokens * _price(price[1], "the price of output")) / 1e6


def total_usd(build_usd: float | None, usd_per_1000: float | None, requests: float) -> float | None:
    """Building once and answering so many requests; None where a part is not known (answering nothing costs nothing)."""
    if build_usd is None or (usd_per_1000 is None and requests):
        return None
    return build_usd + (usd_per_1000 or 0.0) * requests / 1000


def break_even(build_usd: float, usd_per_1000: float, other_usd_per_1000: float, other_build_usd: float = 0.0) -> float | None:
    """The number of requests N at which an arm has earned back what it cost more to build: N = T / (P_other − P), T the difference of the
    building, P the price of one request. 0 where it is cheaper from the start; None where it never is."""
    dearer, saved = build_usd - other_build_usd, (other_usd_per_1000 - usd_per_1000) / 1000
    if dearer <= 0 and saved >= 0:
        return 0.0
    return dearer / saved if dearer > 0 and saved > 0 else None


class Priced(Record, frozen=True):
    """What it takes to price an arm: money paid once, and for each thousand requests."""

    name: str
    build_usd: float | None
    usd_per_1000: float | None


class CheapestRange(Record, frozen=True):
    """From how many requests (up to how many; None: without end) an arm is the cheapest of those compared."""

    name: str
    least: float
    most: float | None


def cheapest_by_volume(arms: Sequence[Priced]) -> tuple[CheapestRange, ...]:
    """Which arm is the cheapest at which number of requests, from 0 on. Arms with an unknown price are left out: nothing is said of them.

    The totals are straight lines, so the cheapest is their lower envelope; of equal ones the earlier in `arms`.
    """
    known = [(arm.name, arm.build_usd, arm.usd_per_1000) for arm in arms if arm.build_usd is not None and arm.usd_per_1000 is not None]
    if not known:
        return ()
    at, current = 0.0, min(known, key=lambda arm: (arm[1], arm[2]))
    reaches: list[CheapestRange] = []
    while True:
        name, build, price = current
        later = [(1000 * (b - build) / (price - p), p, other) for other in known for _, b, p in [other] if p < price]
        if not later:
            return (*reaches, CheapestRange(name=name, least=at, most=None))
        until, _, following = min(later, key=lambda change: (change[0], change[1]))
        until = max(until, at)
        if until > at:
            reaches.append(CheapestRange(name=name, least=at, most=until))
        at, current = until, following


def sensitivity(arms: Sequence[Priced], requests: float, factors: Sequence[float] = (0.5, 2.0)) -> Mapping[str, Mapping[float, str]]:
    """Which arm would be the cheapest if the price of one arm's answers were so many times as high: {arm: {factor: cheapest}}.

    Arms with an unknown price are left out.
    """
    known = [arm for arm in arms if total_usd(arm.build_usd, arm.usd_per_1000, requests) is not None]
    changed: dict[str, dict[float, str]] = {}
    for arm in known:
        changed[arm.name] = {}
        for factor in factors:
            totals = {
                each.name: total_usd(each.build_usd, (each.usd_per_1000 or 0.0) * (factor if each is arm else 1.0), requests) or 0.0
                for each in known
            }
            changed[arm.name][factor] = min(totals, key=lambda name: totals[name])
    return changed


def _price(value: float, what: str) -> float:
    if not 0 <= value < float("inf"):
        raise UsageError(f"{what} is {value}", allowed="0 or more, in US dollars")
    return float(value)
