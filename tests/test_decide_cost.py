"""Cost arithmetic against examples computed by hand."""

from __future__ import annotations

import pytest

from tunesmith.core.errors import UsageError
from tunesmith.decide.cost import Priced, break_even, cheapest_by_volume, machine_cost, per_1000, sensitivity, tokens_usd, total_usd


def test_a_machine_by_the_hour() -> None:
    """1.80 dollars an hour, 200 requests answered in 100 s: 5 cents at full use, a quarter busy four times that, 15 cents for waiting."""
    cost = machine_cost(1.80, 100, utilisation=0.25)
    assert (cost.full_usd, cost.usd, cost.idle_usd) == pytest.approx((0.05, 0.20, 0.15))
    assert per_1000(cost.usd, 200) == pytest.approx(1.0)
    assert machine_cost(1.80, 0).usd == 0


def test_tokens_by_the_price_list() -> None:
    """1,200 tokens read and 300 written at .80 and 3.20 dollars a million: .00096 + .00096."""
    assert tokens_usd(1200, 300, (0.80, 3.20)) == pytest.approx(0.00192)
    assert tokens_usd(1200, 300, None) is None


def test_break_even_is_the_building_over_what_each_request_saves() -> None:
    """Built for 30 dollars, then .50 instead of 2.50 a thousand: 2 dollars saved a thousand, 15,000 requests."""
    assert break_even(30, 0.5, 2.5) == pytest.approx(15_000)
    assert break_even(30, 0.5, 2.5, other_build_usd=10) == pytest.approx(10_000)
    assert break_even(30, 2.5, 2.5) is None
    assert break_even(0, 1.0, 2.5) == 0
    assert total_usd(30, 0.5, 15_000) == pytest.approx(total_usd(0, 2.5, 15_000))
    assert total_usd(30, None, 10) is None
    assert total_usd(None, 0.5, 10) is None


def test_the_cheapest_arm_by_volume_is_the_lower_envelope() -> None:
    """0 + 4 a thousand; 10 + 2: cheaper from 5,000 on; 40 + 1.50 would be cheaper than the first from 16,000 on, than the second from 60,000."""
    arms = [Priced(name=n, build_usd=b, usd_per_1000=p) for n, b, p in (("prompt", 0, 4), ("shots", 10, 2), ("tuned", 40, 1.5))]
    arms.append(Priced(name="hosted", build_usd=0, usd_per_1000=None))
    assert [(r.name, r.least, r.most) for r in cheapest_by_volume(arms)] == [
        ("prompt", 0, pytest.approx(5_000)),
        ("shots", pytest.approx(5_000), pytest.approx(60_000)),
        ("tuned", pytest.approx(60_000), None),
    ]
    assert [r.name for r in cheapest_by_volume([*arms, Priced(name="never", build_usd=41, usd_per_1000=1.5)])] == [
        "prompt",
        "shots",
        "tuned",
    ]
    assert cheapest_by_volume(arms[-1:]) == ()


def test_sensitivity_asks_each_price_alone() -> None:
    """At 10,000 requests: prompt 40, shots 30. Prompt at half its price 20: cheaper; shots at twice theirs 50: prompt."""
    arms = [Priced(name="prompt", build_usd=0, usd_per_1000=4), Priced(name="shots", build_usd=10, usd_per_1000=2)]
    assert sensitivity(arms, 10_000) == {"prompt": {0.5: "prompt", 2.0: "shots"}, "shots": {0.5: "shots", 2.0: "prompt"}}


def test_what_cannot_be_priced_is_refused() -> None:
    for call in (lambda: machine_cost(-1, 5), lambda: machine_cost(1, 5, 0), lambda: machine_cost(1, -5), lambda: per_1000(1, 0)):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(UsageError, match="price of output is nan"):
        tokens_usd(1, 1, (1.0, float("nan")))
