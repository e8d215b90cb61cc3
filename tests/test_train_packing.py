"""Packing changes what is computed, never what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train_parts import awake, make_rows, padded_loss, plan, slope_of, tiny_base
from tunesmith.core.chat import Rendered
from tunesmith.train.adapters import prepare
from tunesmith.train.loss import chunked_logp, chunked_nll
from tunesmith.train.microbatch import hidden_at
from tunesmith.train.packing import epoch_order, micro_batches, pack
from tunesmith.train.plan import ResolvedAdapter


@st.composite
def many_rows(draw):
    """Rows over three tokens that repeat each other's beginnings, some equal, some a prefix of another."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    stems = [rng.integers(0, 3, rng.integers(1, 700)) for _ in range(draw(st.integers(1, 3)))]
    rows = []
    for i in range(draw(st.integers(1, 8))):
        stem = stems[rng.integers(len(stems))]
        ids = np.concatenate([stem[: rng.integers(1, len(stem) + 1)], rng.integers(0, 3, rng.integers(1, 40))]).astype(np.int32)
        mask = (rng.random(len(ids)) < 0.3).astype(np.uint8)
        mask[-1] = 1
        rows.append(Rendered(str(i), ids, mask))
    return rows


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(many_rows(), st.booleans())
def test_every_target_is_predicted_from_exactly_its_own_row(rows, share):
    packed = pack(rows, share=share)
    above = {}
    for i, span in enumerate(packed.spans):
        above[i] = [j for j, other in enumerate(packed.spans) if other.end <= span.start < other.reach]
    of = np.empty(len(packed.ids), int)
    for i, span in enumerate(packed.spans):
        of[span.start : span.end] = i
    for r, row in enumerate(rows):
        mine = packed.row == r
        trained = np.flatnonzero(row.mask)
        trained = trained[trained > 0]
        assert list(packed.targets[mine]) == list(row.ids[trained])
        for at, t in zip(packed.at[mine], trained, strict=True):
            spans = [packed.spans[j] for j in above[of[at]]]
            seen = np.concatenate([*(np.arange(s.start, s.end) for s in spans), np.arange(packed.spans[of[at]].start, at + 1)])
            assert list(packed.ids[seen]) == list(row.ids[:t])
            assert list(packed.positions[seen]) == list(range(t))


@settings(max_examples=60, deadline=None)
@given(many_rows(), st.integers(10, 2000), st.integers(1, 4), st.booleans())
def test_micro_batches_hold_every_row_once(rows, budget, lanes, share):
    groups = micro_batches([(row,) for row in rows], budget, lanes=lanes, share=share)
    assert sorted(i for group in groups for i in group) == list(range(len(rows)))


def test_a_shared_prefix_is_computed_once():
    rows = make_rows(8, prefix=100)
    assert len(pack(rows).ids) == len(pack(rows, share=False).ids) - 7 * 100


def test_epoch_order_depends_on_seed_and_epoch_alone():
    assert list(epoch_order(50, seed=1, epoch=2)) == list(epoch_order(50, seed=1, epoch=2))
    assert list(epoch_order(50, seed=1, epoch=2)) != list(epoch_order(50, seed=1, epoch=3))
    assert sorted(epoch_order(50, seed=1, epoch=3)) == list(range(50))


def relative(ours, theirs):
    return max(float((ours[name] - grad).norm() / grad.norm()) for name, grad in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"share_prefix": False}, {"pack": False}, {"micro_batch_tokens": 60}, {"lanes": 2, "threads": 2}])
@pytest.mark.parametrize("prefix", [0, 40, 300])
def test_loss_and_gradients_equal_those_of_the_padded_batch(tmp_path, changes, prefix):
    rows = make_rows(7, prefix=prefix)
    resolved = plan(**changes)
    trainable = awake(tiny_base(tmp_path), resolved)
    sums, ours = slope_of(trainable, resolved, rows)
    trainable.causal.set_attn_implementation("eager")
    loss = padded_loss(trainable.causal, rows)
    loss.backward()
    assert sums["loss"] / sums["weight"] == pytest.approx(loss.item(), abs=1e-5)
    assert relative(ours, {name: p.grad for name, p in trainable.parameters().items()}) < 1e-5


def test_full_training_has_the_same_gradients_too(tmp_path):
    rows = make_rows(5)
    resolved = plan(adapter=ResolvedAdapter(kind="none"))
    trainable = awake(tiny_base(tmp_path), resolved)
    _, ours = slope_of(trainable, resolved, rows)
    trainable.causal.set_attn_implementation("eager")
    padded_loss(trainable.causal, rows).backward()
    assert relative(ours, {name: p.grad for name, p in trainable.parameters().items()}) < 1e-5


def nll_of_each(trainable, rows):
    one = pack(rows)
    _, nll, _ = chunked_nll(hidden_at(trainable, one), trainable.head.weight, torch.from_numpy(one.targets), torch.ones(len(one.at)))
    return [float(nll[one.row == r].sum()) for r in range(int(one.row.max()) + 1)]


def test_rows_of_a_pack_do_not_see_each_other(tmp_path):
    trainable = awake(tiny_base(tmp_path), plan())
    rows = make_rows(4)
    other = [*rows[:3], Rendered("changed", np.where(rows[3].mask, rows[3].ids, 7).astype(np.int32), rows[3].mask)]
    first, second = (nll_of_each(trainable, some) for some in (rows, other))
    for r in range(3):
        assert first[r] == pytest.approx(second[r], abs=2e-5)
    assert abs(first[3] - second[3]) > 1e-3


def test_rows_longer_than_the_sliding_window_see_no_further_than_it(tmp_path):
    from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=16,
        initializer_range=0.3,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    trainable, rows = prepare(tmp_path, plan(adapter=ResolvedAdapter(kind="none"))), make_rows(3)
    assert trainable.route.name == "fused"
    one = pack(rows)
    logp = chunked_logp(hidden_at(trainable, one), trainable.head, torch.from_numpy(one.targets)).detach()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for number, row in enumerate(rows):
        ids = torch.from_numpy(row.ids.astype(np.int64))
        whole = torch.log_softmax(plain(input_ids=ids[None]).logits[0], -1).detach()
        places = torch.from_numpy(np.flatnonzero(row.mask))
        torch.testing.assert_close(logp[torch.from_numpy(one.row == number)], whole[places - 1, ids[places]], rtol=1e-4, atol=1e-5)
