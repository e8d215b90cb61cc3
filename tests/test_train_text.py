"""Continued pre-training: every token of every document is predicted exactly once, and long documents are split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train_parts import VOCABULARY, loss_of, plan, tiny_base, user_plan
from tunesmith.core.chat import Rendered
from tunesmith.core.errors import ConfigError
from tunesmith.train.adapters import prepare
from tunesmith.train.estimate import estimate
from tunesmith.train.items import split, usable
from tunesmith.train.loop import train
from tunesmith.train.methods import METHODS
from tunesmith.train.resolve import check


def documents(*lengths: int, seed: int = 0) -> list[Rendered]:
    """Random texts whose mask says that nothing is trained, which this method does not ask."""
    rng = np.random.default_rng(seed)
    return [Rendered(f"text-{i}", rng.integers(3, VOCABULARY, n).astype(np.int32), np.zeros(n, np.uint8)) for i, n in enumerate(lengths)]


@given(st.integers(2, 400), st.integers(2, 60))
def test_every_token_but_the_first_is_predicted_once(length, max_length):
    (item,) = METHODS["text"].items(documents(length))
    kept, dropped, truncated = usable([item], max_length, "split")
    assert not dropped
    assert not truncated
    pieces = [one.rows[0] for one in kept]
    assert max(len(piece.ids) for piece in pieces) <= max_length
    predicted = np.concatenate([piece.ids[1:] for piece in pieces])
    assert np.array_equal(predicted, item.rows[0].ids[1:])
    assert sum(int(piece.mask[1:].sum()) for piece in pieces) == length - 1
    assert len({piece.example_id for piece in pieces}) == len(pieces)


def test_pieces_are_of_nearly_equal_length():
    (item,) = METHODS["text"].items(documents(101))
    lengths = [len(piece.rows[0].ids) for piece in split(item, 40)]
    assert max(lengths) - min(lengths) <= 1


def test_the_loss_is_the_plain_one_over_each_document_alone(tmp_path):
    from transformers import AutoModelForCausalLM

    base = tiny_base(tmp_path)
    rows = documents(30, 50, 20)
    resolved = plan(method="text")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    total = 0.0
    for row in rows:
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (len(row.ids) - 1)
    assert loss_of(prepare(base, resolved), resolved, rows)["loss"] == pytest.approx(total / 97, rel=1e-5)


@pytest.mark.slow
def test_a_run_on_text_trains_all_of_it_and_the_estimate_knows(tmp_path):
    base = tiny_base(tmp_path / "base")
    rows = documents(90, 33, 12, 70)
    wanted = user_plan(method="text", max_length=32, epochs=1)
    expected = estimate(wanted, rows, base=base)
    result = train(wanted, rows, documents(40, seed=7), base=base, out=tmp_path / "out")
    assert (result.rows, result.dropped, result.truncated) == (9, (), ())
    assert expected.steps == result.steps == 3
    assert expected.tokens == result.tokens


def test_what_belongs_to_other_methods_is_refused():
    with pytest.raises(ConfigError, match="over_length split and method sft"):
        check(user_plan(over_length="split"))
    with pytest.raises(ConfigError, match="over_length truncate and method text"):
        check(user_plan(method="text", over_length="truncate"))
    with pytest.raises(ConfigError, match="max_length is 1"):
        check(user_plan(method="text", max_length=1))
