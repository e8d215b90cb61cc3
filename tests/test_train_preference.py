"""DPO, IPO, ORPO and KTO against their papers' formulas, written out row by row on plain transformers logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from train_parts import (
    Stop,
    adapter_bytes,
    awake,
    batch_of,
    killed,
    loss_of,
    make_pairs,
    make_rows,
    plan,
    slope_of,
    stopping_at,
    tiny_base,
    user_plan,
)
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.train.items import Item
from tunesmith.train.loop import train
from tunesmith.train.packing import pack
from tunesmith.train.plan import Adapter, Plan, PreferencePlan
from tunesmith.train.resolve import check


@pytest.fixture
def base(tmp_path):
    return tiny_base(tmp_path / "base")


def logp(model, row):
    """Σ log p of the trained tokens and their number, by plain transformers."""
    logits = model(input_ids=torch.from_numpy(row.ids.astype(np.int64))[None]).logits[0, :-1]
    trained = torch.from_numpy(row.mask[1:].astype(bool))
    chosen = logits.log_softmax(-1).gather(1, torch.from_numpy(row.ids[1:].astype(np.int64))[:, None])[:, 0]
    return chosen[trained].sum(), int(trained.sum())


def paper(trainable, method, options, rows):
    """The mean loss of the rows as the papers write it."""
    trainable.causal.set_attn_implementation("eager")
    model = trainable.model
    losses = []
    if method == "kto":
        joined = [item.mismatched for item in batch_of_kto(trainable, rows)]
        with torch.no_grad():
            policy = sum(logp(model, row)[0] for row in joined)
            with model.disable_adapter():
                z = max(0.0, float(policy - sum(logp(model, row)[0] for row in joined)) / len(joined))
    for row in rows:
        if method == "kto":
            with torch.no_grad(), model.disable_adapter():
                reference = logp(model, row.rows[0])[0]
            reward = options.beta * (logp(model, row.rows[0])[0] - reference)
            weight = options.desirable_weight if row.label else options.undesirable_weight
            gain = reward - options.beta * z if row.label else options.beta * z - reward
            losses.append(weight * (1 - torch.sigmoid(gain)))
            continue
        (w, n), (v, m) = logp(model, row[0]), logp(model, row[1])
        if method == "orpo":
            odds = [(p / k).exp() / (1 - (p / k).exp()) for p, k in ((w, n), (v, m))]
            losses.append(-w / n - options.beta * torch.log(torch.sigmoid(torch.log(odds[0] / odds[1]))))
            continue
        with torch.no_grad(), model.disable_adapter():
            rw, rl = (logp(model, r)[0] if not options.reference_free else torch.tensor(0.0) for r in row)
        if options.loss == "ipo":
            losses.append(((w - rw) / n - (v - rl) / m - 1 / (2 * options.beta)) ** 2)
        else:
            k, j = (n, m) if options.length_normalised else (1, 1)
            h = options.beta * ((w - rw) / k - (v - rl) / j)
            e = options.label_smoothing
            loss = -(1 - e) * torch.log(torch.sigmoid(h)) - e * torch.log(torch.sigmoid(-h))
            losses.append(loss - options.sft_weight * w / n)
    return sum(losses) / len(losses)


def batch_of_kto(trainable, rows):
    return batch_of(trainable, plan(method="kto"), rows).items


OPTIONS = [
    ("dpo", PreferencePlan()),
    ("dpo", PreferencePlan(beta=0.5, label_smoothing=0.1)),
    ("dpo", PreferencePlan(loss="ipo")),
    ("dpo", PreferencePlan(length_normalised=True)),
    ("dpo", PreferencePlan(reference_free=True, sft_weight=0.7)),
    ("orpo", PreferencePlan(beta=0.3)),
    ("kto", PreferencePlan(desirable_weight=1.3, undesirable_weight=0.8)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options"), OPTIONS)
@pytest.mark.parametrize("budget", [10_000, 100])
def test_losses_and_gradients_are_the_papers(base, method, options, budget):
    rows = make_pairs(6) if method != "kto" else [Item((row,), float(i % 3 > 0)) for i, row in enumerate(make_rows(6))]
    resolved = plan(method=method, preference=options, micro_batch_tokens=budget)
    trainable = awake(base, resolved)
    sums, ours = slope_of(trainable, resolved, rows)
    expected = paper(trainable, method, options, rows)
    expected.backward()
    assert sums["loss"] / sums["weight"] == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    for name, p in trainable.parameters().items():
        assert (ours[name] - p.grad).norm() <= 2e-5 * p.grad.norm(), name


def test_the_reference_is_the_model_without_its_adapter(base):
    """The reference computed with the adapter on would make every margin zero, trained or not."""
    resolved = plan(method="dpo")
    assert abs(loss_of(awake(base, resolved), resolved, make_pairs(6))["reward_margin"]) > 1e-3


def test_a_pair_computes_its_prompt_once():
    first, second = make_pairs(1)[0]
    prompt = int(first.mask.argmax())
    assert len(pack([first, second]).ids) == len(first.ids) + len(second.ids) - 2 - prompt


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_it_learns_what_is_preferred_and_resumes_to_the_same_bytes(base, tmp_path, method):
    pairs = make_pairs(12)
    rows = pairs
    valid = make_pairs(3, seed=4)
    if method == "kto":
        rows, valid = ([Item((row,), float(i == 0)) for pair in some for i, row in enumerate(pair)] for some in (pairs, valid))
    user = user_plan(method=method, learning_rate=5e-3, epochs=6, checkpoint_every=5)
    events: list[dict] = []
    result = train(user, rows, valid, base=base, out=tmp_path / "whole", on_event=events.append)
    first = next(e for e in events if e["event"] == "evaluation")
    if method == "dpo":
        assert first["valid_loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert [e["train_reward_accuracy"] for e in events if e["event"] == "step"][-1] == 1.0
    losses = [e["train_loss"] for e in events if e["event"] == "step"]
    assert losses[-1] < 0.8 * losses[0]

    with pytest.raises(Stop):
        train(user, rows, valid, base=base, out=tmp_path / "again", on_event=stopping_at(5))
    if method != "orpo":
        (tmp_path / "again" / "reference-train.safetensors").write_bytes(b"damaged")
    train(user, rows, valid, base=base, out=tmp_path / "again")
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(tmp_path / "whole")
    assert result.rows == len(rows)


KILLED = """
from pathlib import Path
from test_train_preference import ROWS, USER
from train_parts import dying_at
from tunesmith.train.loop import train

train(USER[{name!r}], ROWS[{name!r}], base=Path({base!r}), out=Path({out!r}), on_event=dying_at({at}))
"""
NF4 = Adapter(r=4, dropout=0.1, quantise="nf4")
USER = {
    "dpo": user_plan(method="dpo", checkpoint_every=2, adapter=Adapter(r=4, dropout=0.1)),
    "qlora": user_plan(checkpoint_every=2, adapter=NF4),
    "qlora dpo": user_plan(method="dpo", checkpoint_every=2, adapter=NF4),
}
ROWS = {"dpo": make_pairs(16), "qlora": make_rows(16), "qlora dpo": make_pairs(16)}


@pytest.mark.slow
@pytest.mark.parametrize("name", USER)
def test_killed_anywhere_it_ends_in_the_same_bytes(base, tmp_path, name):
    train(USER[name], ROWS[name], base=base, out=tmp_path / "whole")
    out = tmp_path / "killed"
    for at in (4, 5):
        killed(KILLED.format(base=str(base), out=str(out), at=at, name=name))
    events: list[dict] = []
    train(USER[name], ROWS[name], base=base, out=out, on_event=events.append)
    assert events[0]["resumed"]
    weights = "adapter/adapter_model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_rows_of_another_kind_are_refused(base, tmp_path):
    with pytest.raises(DataError, match="a pair: preferred, other"):
        train(user_plan(method="dpo"), make_rows(2), base=base, out=tmp_path / "a")
    with pytest.raises(DataError, match="a rendered row"):
        train(user_plan(), make_pairs(2), base=base, out=tmp_path / "b")
    with pytest.raises(DataError, match="an item with a label"):
        train(user_plan(method="kto"), make_rows(2), base=base, out=tmp_path / "c")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Plan(preference=PreferencePlan(beta=0.2)), "means nothing to method sft"),
        (Plan(method="dpo", preference=PreferencePlan(beta=0.0)), "beta is 0"),
        (Plan(method="dpo", preference=PreferencePlan(label_smoothing=0.5)), "label_smoothing is 0.5"),
    ],
)
def test_preference_options_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        check(wrong)
