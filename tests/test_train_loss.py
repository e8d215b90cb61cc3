"""The chunked loss against torch's own cross-entropy, and the traps that live in losses."""

from __future__ import annotations

import threading

import numpy as np
import psutil
import pytest
import torch

from train_parts import awake, loss_of, make_rows, plan, slope_of, tiny_base
from tunesmith.core.chat import Rendered
from tunesmith.train import loss as loss_module
from tunesmith.train.loss import chunked_nll
from tunesmith.train.microbatch import packs_of
from tunesmith.train.packing import pack
from tunesmith.train.plan import ResolvedAdapter


@pytest.mark.parametrize("chunk_bytes", [1, 64 << 20])
def test_chunked_nll_is_cross_entropy_with_its_gradients(monkeypatch, chunk_bytes):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    hidden, weight = torch.randn(53, 12, requires_grad=True), torch.randn(31, 12, requires_grad=True)
    targets, coefficients = torch.randint(31, (53,)), torch.rand(53)
    total, nll, hit = chunked_nll(hidden, weight, targets, coefficients)
    (3 * total).backward()
    mine = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (3 * (expected * coefficients).sum()).backward()
    torch.testing.assert_close(nll, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine[0], hidden.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine[1], weight.grad, rtol=1e-4, atol=1e-4)
    assert (hit == (logits.argmax(1) == targets)).all()


@pytest.mark.slow
def test_accumulation_divides_by_trained_tokens_not_by_micro_batches(tmp_path):
    """Rows of very unequal answers: the mean of micro-batch means would differ (trl 2175, axolotl 2262)."""
    rows = make_rows(3, trained=1) + make_rows(3, seed=1, low=28, trained=25)
    trained = sum(row.trained for row in rows)
    found = []
    for budget in (10_000, 30):
        resolved = plan(micro_batch_tokens=budget)
        trainable = awake(tiny_base(tmp_path), resolved)
        sums, slopes = slope_of(trainable, resolved, rows)
        assert sums["weight"] == trained
        packs = packs_of([(row,) for row in rows], resolved)
        found.append((len(packs), sums["loss"] / trained, torch.cat([slope.flatten() for slope in slopes.values()])))
    assert found[0][0] == 1
    assert found[1][0] > 3
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-4, atol=1e-6)


def test_labels_are_shifted_exactly_once():
    ids = np.array([10, 11, 12, 13, 14], np.int32)
    one = pack([Rendered("r", ids, np.array([0, 0, 1, 0, 1], np.uint8))])
    assert list(one.targets) == [12, 14]
    assert list(one.ids[one.at]) == [11, 13]


def test_end_of_turn_that_equals_padding_is_trained():
    rows = make_rows(3)  # token 2 is pad and eos, and is a target of every row
    assert all(row.mask[-2] and row.ids[-2] == 2 for row in rows)
    assert int((pack(rows).targets == 2).sum()) == 3


def test_a_first_token_is_never_a_target():
    one = pack([Rendered("r", np.array([4, 5, 6], np.int32), np.ones(3, np.uint8))])
    assert list(one.targets) == [5, 6]


@pytest.mark.slow
def test_evaluation_has_no_dropout_and_leaves_the_gradients_as_they_were(tmp_path):
    rows = make_rows(6)
    resolved = plan(adapter=ResolvedAdapter(r=4, alpha=8.0, dropout=0.5))
    trainable = awake(tiny_base(tmp_path), resolved)
    trainable.model.train()

    before = slope_of(trainable, resolved, rows, seed=5)[1]
    assert loss_of(trainable, resolved, rows) == loss_of(trainable, resolved, rows)
    again = slope_of(trainable, resolved, rows, seed=5)[1]
    other = slope_of(trainable, resolved, rows, seed=6)[1]
    assert all(torch.equal(before[name], again[name]) for name in before)
    assert not all(torch.equal(before[name], other[name]) for name in before)  # the seed decides the dropout


@pytest.mark.slow
def test_evaluation_never_holds_the_logits_of_all_positions(tmp_path):
    """A vocabulary of 50,000 and 6,000 trained positions would be 1.2 GB of float32 logits (transformers 12878)."""
    base = tiny_base(tmp_path, vocab_size=50_000, hidden_size=24)
    resolved = plan(micro_batch_tokens=10_000)
    trainable = awake(base, resolved)
    rows = make_rows(100, low=62, high=63, trained=60, prefix=0)
    process = psutil.Process()
    before, peak = process.memory_info().rss, 0
    stop = threading.Event()

    def watch():
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    loss_of(trainable, resolved, rows)
    stop.set()
    thread.join()
    assert peak - before < 600e6
