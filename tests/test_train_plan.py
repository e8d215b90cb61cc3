"""Plans: every "auto" gets a number with a reason; what cannot be is refused with the value and the place."""

from __future__ import annotations

import msgspec
import pytest

from tunesmith.core.errors import ConfigError
from tunesmith.train.plan import Adapter, Distillation, Facts, Plan, Reinforcement
from tunesmith.train.resolve import check, resolve

FACTS = Facts(
    parameters=134_500_000, hidden_size=576, layers=30, positions=8192, rows=600, trained_tokens=7000, longest=655, cores=2, bfloat16=True
)


@pytest.mark.parametrize("plan", [Plan(), Plan(method="grpo"), Plan(method="distil", distillation=Distillation(teacher="x"))])
def test_every_auto_becomes_a_number_with_reason_and_source(plan):
    resolved, reasons = resolve(plan, FACTS)
    values = msgspec.to_builtins(resolved)
    assert "auto" not in str(values)
    given = {name for name, value in msgspec.structs.asdict(plan).items() if value == "auto"}
    given |= {f"adapter.{name}" for name, value in msgspec.structs.asdict(Adapter()).items() if value == "auto"}
    if plan.method == "grpo":
        given |= {"reinforcement.samples", "reinforcement.max_tokens"}
    assert {reason.field for reason in reasons} == given
    assert all(reason.why and reason.source for reason in reasons)


def test_given_values_are_kept_and_need_no_reason():
    resolved, reasons = resolve(Plan(epochs=7, learning_rate=3e-5, adapter=Adapter(r=5, alpha=1.5)), FACTS)
    assert (resolved.epochs, resolved.learning_rate, resolved.adapter.r, resolved.adapter.alpha) == (7, 3e-5, 5, 1.5)
    assert not {"epochs", "learning_rate", "adapter.r"} & {reason.field for reason in reasons}


@pytest.mark.parametrize(("rows", "epochs"), [(4, 25), (20, 5), (600, 3), (12_500, 2), (1_000_000, 1)])
def test_epochs_follow_the_number_of_rows(rows, epochs):
    assert resolve(Plan(), msgspec.structs.replace(FACTS, rows=rows))[0].epochs == epochs


def test_full_training_gets_a_tenth_of_the_rate():
    lora, full = (resolve(Plan(adapter=Adapter(kind=kind)), FACTS)[0].learning_rate for kind in ("lora", "none"))
    assert lora == pytest.approx(10 * full)


def test_answers_have_room_beside_the_longest_prompt():
    wanted = Plan(method="grpo", reinforcement=Reinforcement(max_tokens=100))
    assert resolve(wanted, FACTS)[0].max_length == 655 + 100
    assert resolve(wanted, msgspec.structs.replace(FACTS, positions=700))[0].max_length == 700
    assert resolve(Plan(method="grpo"), msgspec.structs.replace(FACTS, positions=128))[0].reinforcement.max_tokens == 64


def test_rank_grows_with_the_data_and_max_length_stops_at_the_model():
    big = msgspec.structs.replace(FACTS, trained_tokens=30_000_000, longest=9000)
    resolved, _ = resolve(Plan(), big)
    assert resolved.adapter.r == 128
    assert resolved.max_length == 8192


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(epochs=0), "epochs is 0"),
        (Plan(learning_rate=-1.0), "learning_rate is -1.0"),
        (Plan(warmup_ratio=1.5), "warmup_ratio is 1.5"),
        (Plan(adapter=Adapter(r=0)), "adapter.r is 0"),
        (Plan(adapter=Adapter(dropout=1.0)), "adapter.dropout is 1.0"),
        (Plan(adapter=Adapter(kind="none", r=8, dora=True)), "r, dora mean nothing"),
        (Plan(adapter=Adapter(dora=True, init="pissa")), "exclude each other"),
    ],
)
def test_what_cannot_be_is_refused(plan, said):
    with pytest.raises(ConfigError, match=said):
        check(plan)


def test_unknown_keys_and_methods_are_refused():
    with pytest.raises(msgspec.ValidationError, match="learning_rat"):
        msgspec.json.decode(b'{"learning_rat": 1}', type=Plan)
    with pytest.raises(msgspec.ValidationError, match="magic"):
        msgspec.json.decode(b'{"method": "magic"}', type=Plan)


def test_plans_need_no_torch():
    import subprocess
    import sys

    code = "import sys, tunesmith.train.resolve; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
