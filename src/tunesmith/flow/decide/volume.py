"""Which arm is the cheapest at which number of requests, where one has earned back what it cost to build, what other prices would change.
Only arms whose price is known are compared, and only those that the decision holds to be good enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tunesmith.decide.cost import Priced, break_even, cheapest_by_volume, sensitivity, total_usd
from tunesmith.decide.records import Decision
from tunesmith.flow.decide.upkeep import Upkeep

_GOOD = ("chosen", "within the margin")
_USUAL_REQUESTS = 100_000.0


def volumes(upkeeps: Sequence[Upkeep], decision: Decision, requests: float | None) -> dict[str, Any] | None:
    """The arms that are good enough by volume; None where fewer than two of them have a price."""
    good = {arm.name for arm in decision.arms if arm.standing in _GOOD}
    priced = [Priced(name=one.name, build_usd=one.build_usd, usd_per_1000=one.usd_per_1000) for one in upkeeps if one.name in good]
    priced = [one for one in priced if one.build_usd is not None and one.usd_per_1000 is not None]
    if len(priced) < 2:
        return None
    count = _USUAL_REQUESTS if requests is None else requests
    changed = {name: {str(factor): other for factor, other in by.items()} for name, by in sensitivity(priced, count).items()}
    return {
        "requests": count,
        "assumed": requests is None,
        "totals": {one.name: total_usd(one.build_usd, one.usd_per_1000, count) for one in priced},
        "cheapest": msgspec.to_builtins(cheapest_by_volume(priced)),
        "break_even": [_against(one, other) for i, one in enumerate(priced) for other in priced[:i]],
        "sensitivity": changed,
    }


def _against(one: Priced, other: Priced) -> dict[str, Any]:
    """The number of requests at which the dearer to build has earned that back."""
    assert one.build_usd is not None
    assert one.usd_per_1000 is not None
    assert other.build_usd is not None
    assert other.usd_per_1000 is not None
    first, second = (one, other) if one.build_usd >= other.build_usd else (other, one)
    requests = break_even(first.build_usd or 0.0, first.usd_per_1000 or 0.0, second.usd_per_1000 or 0.0, second.build_usd or 0.0)
    return {"arm": first.name, "against": second.name, "requests": requests}
