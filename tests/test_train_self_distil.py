"""Self-distillation: the divergence against plain torch, a run that goes on to the same bytes, what a conversation becomes."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

import tiny
from train_parts import Stop, adapter_bytes, awake, plan, stopping_at, user_plan
from tunesmith.core.chat import Rendered, Renderer
from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Example, Message, ToolCall
from tunesmith.train.items import Item
from tunesmith.train.loop import train
from tunesmith.train.methods import METHODS, ready
from tunesmith.train.microbatch import gradients, lanes
from tunesmith.train.plan import Plan, ResolvedAdapter, SelfDistillation
from tunesmith.train.resolve import check
from tunesmith.train.self_distil import SelfTeacher

METHOD = METHODS["sdft"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"))


def chats(count: int, start: int = 0) -> list[Example]:
    return [
        Example(id=str(i), messages=(Message(role="user", content=f"bank {i}?"), Message(role="assistant", content=f"york {i % 3}")))
        for i in range(start, start + count)
    ]


def items_of(base, count: int, start: int = 0) -> list[Item]:
    return METHOD.render(Renderer.load(base), chats(count, start))


def logits_of(model, row: Rendered) -> torch.Tensor:
    """What plain transformers says before each trained token of a row."""
    ids = torch.from_numpy(row.ids.astype(np.int64))[None]
    return model(input_ids=ids).logits[0, :-1][torch.from_numpy(row.mask[1:].astype(bool))]


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("changes", [{}, {"micro_batch_tokens": 60}, {"adapter": ResolvedAdapter(kind="none")}])
def test_the_loss_is_the_divergence_from_the_start_shown_the_answer(base, beta, changes):
    resolved = plan(method="sdft", max_length=512, self_distillation=SelfDistillation(beta=beta), **changes)
    trainable, items = awake(base, resolved), items_of(base, 3)
    with lanes(resolved) as side:
        teacher = SelfTeacher(trainable, base, resolved, side)
        began = {name: p.detach().clone() for name, p in trainable.parameters().items()}
        for p in trainable.parameters().values():  # training has gone on
            p.data.mul_(1.2)
        objective, batch = teacher.step(items, 1)
        sums = gradients(trainable, objective, batch, resolved, side, seed=0)
    mine = {name: p.grad.clone() for name, p in trainable.parameters().items()}
    trainable.model.zero_grad()
    trainable.model.eval()
    trainable.causal.set_attn_implementation("eager")
    drawn = [item.rows[0] for item in batch.items]
    for item, row in zip(items, drawn, strict=True):
        own = item.rows[0]
        assert row.ids[: -row.trained].tolist() == own.ids[: int(np.flatnonzero(own.mask)[0])].tolist()
        assert 1 <= row.trained <= 2 * own.trained + 16
    now = {name: p.detach().clone() for name, p in trainable.parameters().items()}
    with torch.no_grad():
        for name, p in trainable.parameters().items():
            p.copy_(began[name])
        shown = []
        for item, row in zip(items, drawn, strict=True):
            other = item.rows[1]
            ids = np.concatenate([other.ids[: int(np.flatnonzero(other.mask)[0])], row.ids[-row.trained :]])
            mask = np.concatenate([np.zeros(len(ids) - row.trained, np.uint8), np.ones(row.trained, np.uint8)])
            shown.append(Categorical(logits=logits_of(trainable.model, Rendered(row.example_id, ids, mask))))
        for name, p in trainable.parameters().items():
            p.copy_(now[name])
    total = torch.zeros(())
    for row, p in zip(drawn, shown, strict=True):
        q = Categorical(logits=logits_of(trainable.model, row))
        total = total + (kl_divergence(q, p) if beta else kl_divergence(p, q)).sum()
    expected = total / sum(row.trained for row in drawn)
    expected.backward()
    assert expected > 1e-4
    assert sums["loss"] / sums["weight"] == pytest.approx(expected.item(), rel=1e-4)
    for name, p in trainable.parameters().items():
        assert (mine[name] - p.grad).norm() <= 1e-3 * p.grad.norm() + 1e-6, name


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes_and_counts_what_was_drawn(base, tmp_path):
    user = user_plan(method="sdft", epochs=3, checkpoint_every=2)
    rows, valid, events = items_of(base, 8), items_of(base, 3, 20), list[dict]()
    result = train(user, rows, valid, base=base, out=tmp_path / "whole", on_event=events.append)
    drawn = [event["answer_tokens"] for event in events if event["event"] == "step"]
    assert result.trained_tokens == sum(drawn) > 0
    first = next(event for event in events if event["event"] == "evaluation")
    assert first["valid_token_accuracy"] is not None, "held-out rows are judged by the likelihood of their own answers"
    with pytest.raises(Stop):
        train(user, rows, valid, base=base, out=tmp_path / "again", on_event=stopping_at(4))
    again = train(user, rows, valid, base=base, out=tmp_path / "again")
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(tmp_path / "whole")
    assert again.trained_tokens == result.trained_tokens


def test_a_conversation_becomes_a_row_for_each_trained_turn(base):
    renderer = Renderer.load(base)
    said = [
        Message(role="system", content="be brief"),
        Message(role="user", content="bank?"),
        Message(role="assistant", content="york"),
        Message(role="user", content="june?"),
        Message(role="assistant", content="skipped", weight=0),
        Message(role="user", content="ohio?"),
        Message(role="assistant", content="signed"),
    ]
    rows, note = ready("sdft", [Example(id="a", messages=tuple(said)), *chats(1)], renderer)
    assert "1 of 2 conversations became 2 rows" in note
    assert [len(row.messages) for row in rows] == [3, 7, 2]
    for item, answer in zip(METHOD.render(renderer, rows), ("york", "signed", "york 0"), strict=True):
        own, shown = (renderer.decode(row.ids[row.mask.astype(bool)].tolist()) for row in item.rows)
        assert own == shown
        assert own.startswith(answer)
        asked = renderer.decode(item.rows[1].ids[~item.rows[1].mask.astype(bool)].tolist())
        assert f"good answer:\n\n{answer}\n\n" in asked


def test_calls_and_thoughts_are_shown_and_a_question_is_made_where_there_is_none():
    from tunesmith.train.methods.sdft import _demonstrated

    call = msgspec.convert({"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"x": 1}'}}, ToolCall)
    answer = Message(role="assistant", content="yes", tool_calls=(call,), reasoning_content="first")
    shown = _demonstrated(Example(id="a", messages=(Message(role="system", content="s"), answer)))
    assert [message.role for message in shown.messages] == ["system", "user", "assistant"]
    assert 'first\nyes\nfind({"x": 1})' in shown.messages[1].text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Plan(self_distillation=SelfDistillation(beta=0.5)), "self_distillation means nothing to method sft"),
        (Plan(method="sdft", self_distillation=SelfDistillation(beta=1.5)), "beta is 1.5"),
        (Plan(method="sdft", over_length="truncate"), "over_length truncate and method sdft exclude each other"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        check(wrong)
