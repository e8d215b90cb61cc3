"""Distillation: the divergence against plain torch, a student that nears its teacher, teachers that cannot teach it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

import tiny
from train_parts import Stop, adapter_bytes, awake, make_rows, plan, slope_of, stopping_at, user_plan
from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.train.distil import divergences
from tunesmith.train.loop import train
from tunesmith.train.plan import Adapter, Distillation, Plan, ResolvedAdapter
from tunesmith.train.resolve import check


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("teacher"), seed=7)


def plain(trainable, teacher, rows, options):
    """The mean divergence over the trained tokens, row by row, by torch's own KL and plain transformers."""
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    trainable.causal.set_attn_implementation("eager")
    total, count = 0.0, 0
    for row in rows:
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        trained = torch.from_numpy(row.mask[1:].astype(bool))
        with torch.no_grad():
            p = Categorical(logits=other(input_ids=ids).logits[0, :-1][trained] / options.temperature)
        q = Categorical(logits=trainable.model(input_ids=ids).logits[0, :-1][trained] / options.temperature)
        if options.beta in (0, 1):
            found = kl_divergence(p, q) if options.beta == 0 else kl_divergence(q, p)
        else:
            mixed = Categorical(probs=options.beta * p.probs + (1 - options.beta) * q.probs)
            found = options.beta * kl_divergence(p, mixed) + (1 - options.beta) * kl_divergence(q, mixed)
        total, count = total + found.sum(), count + int(trained.sum())
    return total / count


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"beta": 1.0}, {"beta": 0.3, "temperature": 2.0}])
@pytest.mark.parametrize("changes", [{}, {"micro_batch_tokens": 60}, {"adapter": ResolvedAdapter(kind="none")}])
def test_the_divergence_and_its_gradient_are_plain_torchs(base, teacher, options, changes):
    options = Distillation(teacher=str(teacher), **options)
    resolved = plan(method="distil", distillation=options, **changes)
    trainable, rows = awake(base, resolved), make_rows(5)
    sums, mine = slope_of(trainable, resolved, rows)
    expected = plain(trainable, teacher, rows, options)
    expected.backward()
    assert sums["loss"] / sums["weight"] == pytest.approx(expected.item(), rel=1e-5)
    for name, p in trainable.parameters().items():
        assert (mine[name] - p.grad).norm() <= 1e-4 * p.grad.norm() + 1e-7, name


def test_a_divergence_is_nought_for_the_same_and_bounded_between():
    logits, other = torch.randn(4, 9), 5 * torch.randn(4, 9)
    for beta in (0.0, 0.5, 1.0):
        assert divergences(logits, logits, Distillation(beta=beta)).abs().max() < 1e-6
    assert divergences(logits, other, Distillation(beta=0.5)).max() <= math.log(2) + 1e-6


@pytest.mark.slow
def test_a_larger_output_layer_is_cut_to_the_vocabulary_that_both_have(base, tmp_path):
    """Models of one family pad their output layers differently."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.model(tmp_path / "padded", seed=7), dtype=torch.float32)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 24)
    model.save_pretrained(tmp_path / "padded")
    resolved = plan(method="distil", distillation=Distillation(teacher=str(tmp_path / "padded")))
    narrow = plan(method="distil", distillation=Distillation(teacher=str(tiny.model(tmp_path / "narrow", seed=7))))
    wide, same = (slope_of(awake(base, one), one, make_rows(3))[0]["loss"] for one in (resolved, narrow))
    assert wide == pytest.approx(same, rel=1e-6)


@pytest.mark.slow
def test_the_student_nears_its_teacher_and_resumes_to_the_same_bytes(base, teacher, tmp_path):
    options = Distillation(teacher=str(teacher))
    user = user_plan(method="distil", distillation=options, epochs=20, learning_rate=2e-2, adapter=Adapter(r=16), checkpoint_every=30)
    rows, valid = make_rows(16, trained=12, low=15), make_rows(4, seed=5, trained=12, low=15)
    events: list[dict] = []
    result = train(user, rows, valid, base=base, out=tmp_path / "whole", on_event=events.append)
    first = next(event["valid_loss"] for event in events if event["event"] == "evaluation")
    losses = [event["train_loss"] for event in events if event["event"] == "step"]
    assert losses[-1] < 0.5 * losses[0]
    assert result.valid_loss < 0.9 * first

    with pytest.raises(Stop):
        train(user, rows, valid, base=base, out=tmp_path / "again", on_event=stopping_at(30))
    train(user, rows, valid, base=base, out=tmp_path / "again")
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_another_teacher_is_another_run(base, teacher, tmp_path):
    user = user_plan(method="distil", distillation=Distillation(teacher=str(teacher)), epochs=1)
    train(user, make_rows(4), base=base, out=tmp_path / "out")
    moved = tiny.model(tmp_path / "other", seed=8)
    kept = teacher / "model.safetensors"
    before = kept.read_bytes()
    kept.write_bytes((moved / "model.safetensors").read_bytes())
    try:
        with pytest.raises(TrainingError, match="another base or teacher"):
            train(user, make_rows(4), base=base, out=tmp_path / "out")
    finally:
        kept.write_bytes(before)


def test_a_teacher_with_other_tokens_is_refused(base, tmp_path):
    other = tiny.model(tmp_path / "teacher")
    tree = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tree))
    user = user_plan(method="distil", distillation=Distillation(teacher=str(other)))
    with pytest.raises(ConfigError, match=r"the teacher has another tokenizer: 2 of \d+ tokens differ"):
        train(user, make_rows(4), base=base, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Plan(method="distil"), "method distil has no teacher"),
        (Plan(distillation=Distillation(teacher="x")), "distillation means nothing to method sft"),
        (Plan(method="distil", distillation=Distillation(teacher="x", beta=1.5)), "beta is 1.5"),
        (Plan(method="distil", distillation=Distillation(teacher="x", temperature=0.0)), "temperature is 0.0"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        check(wrong)
