"""The check at the start: the fastest route that computes what transformers computes, for families that differ where it matters."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from train_parts import make_rows, plan, tiny_base
from tunesmith.core.chat import Rendered
from tunesmith.core.errors import TrainingError
from tunesmith.nets import tree_attention
from tunesmith.nets.blocks import PackedAttention
from tunesmith.nets.prefix import first_of_each_kind
from tunesmith.train import choice, start_check
from tunesmith.train.adapters import Trainable, prepare
from tunesmith.train.choice import FUSED, PACKED, PLAIN, ROWS
from tunesmith.train.plan import ResolvedAdapter

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
# What each has that a plain pass over a pack would get wrong, and the route that computes it.
FAMILIES = {
    "mistral": ("MistralConfig", {"sliding_window": 12}, "fused"),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": 12, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
        "fused",
    ),
    "gpt_oss": (
        "GptOssConfig",
        {"head_dim": 8, "sliding_window": 12, "num_local_experts": 4, "num_experts_per_tok": 2},
        "fused",
    ),
    "granite": ("GraniteConfig", {"logits_scaling": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2}, "fused"),
    "cohere": ("CohereConfig", {"logit_scale": 0.3}, "fused"),
    "phi": ("PhiConfig", {}, "fused"),  # a bias on the output layer
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1, 0], "use_sliding_window": False}, "fused"),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}, "fused"),
    "stablelm": ("StableLmConfig", {}, "packed"),
    "phi3": ("Phi3Config", {"sliding_window": None}, "fused"),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.7}, "plain"),
    "llama4_text": (
        "Llama4TextConfig",
        {"intermediate_size_mlp": 48, "num_local_experts": 2, "head_dim": 8, "no_rope_layers": [1, 0, 1, 0], "attention_chunk_size": 16},
        "packed",
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_ff_dim": 48}, "rows"),
}


@pytest.fixture(autouse=True)
def nothing_is_remembered(tmp_path, monkeypatch):
    """Each test checks for itself, and what it finds is no other test's."""
    monkeypatch.setattr(choice, "user_folder", lambda: tmp_path / "user")


def base_of(folder, name: str, **more):
    import transformers

    kind, changes, _ = FAMILIES[name]
    cls = getattr(transformers, kind)
    known = {key: value for key, value in SIZES.items() if hasattr(cls(), key)}
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(cls(**known | changes | more)).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_takes_the_fastest_route_that_computes_what_transformers_does(tmp_path, name):
    trainable = prepare(base_of(tmp_path, name), plan(), make_rows(4, low=20, high=60))
    assert trainable.route.name == FAMILIES[name][2], trainable.choice.why()
    if not trainable.balances:  # then there is one way alone
        assert trainable.choice.tried[-1].passed
        assert trainable.choice.tried[-1].deviation <= 1e-4
    assert trainable.choice.unreached == 0


def leaky(monkeypatch) -> None:
    """A fused route that ignores where rows end: every token sees all that were laid down before it."""
    true = tree_attention._blocks

    def blocks(spans, *rest):
        return true([tree_attention.Span(span.start, span.end, spans[-1].end) for span in spans], *rest)

    monkeypatch.setattr(tree_attention, "_blocks", blocks)


def without_positions(monkeypatch) -> None:
    """A fused attention that forgets rotary positions, once its own trial is over."""
    monkeypatch.setattr(PackedAttention, "agrees", lambda self: True)
    true = PackedAttention.forward

    def forward(self, hidden_states, position_embeddings, *args, **options):
        cos, sin = position_embeddings
        return true(self, hidden_states, (torch.ones_like(cos), torch.zeros_like(sin)), *args, **options)

    monkeypatch.setattr(PackedAttention, "forward", forward)


@pytest.mark.slow
@pytest.mark.parametrize("planted", [leaky, without_positions])
def test_a_planted_fault_is_seen_and_a_slower_route_taken(tmp_path, monkeypatch, planted):
    planted(monkeypatch)
    trainable = prepare(tiny_base(tmp_path), plan(), make_rows(3))
    first = trainable.choice.tried[0]
    assert first.route == "fused"
    assert first.deviation > 1e-2
    assert trainable.route is PACKED


@pytest.mark.slow
def test_a_gradient_alone_that_is_wrong_is_seen_too(tmp_path, monkeypatch):
    true = start_check._measure

    def measure(trainable, rows, **options):
        measured = true(trainable, rows, **options)
        if trainable.route is FUSED:
            name = next(iter(measured.grads))
            measured.grads[name] = measured.grads[name] * 1.1
        return measured

    monkeypatch.setattr(start_check, "_measure", measure)
    assert prepare(tiny_base(tmp_path), plan(), make_rows(3)).route is PACKED


@pytest.mark.slow
def test_the_check_leaves_the_weights_as_they_were_and_is_made_once(tmp_path, monkeypatch):
    base, rows = tiny_base(tmp_path), make_rows(3)
    first = prepare(base, plan(), rows)
    assert all(not bool(p.detach().any()) for name, p in first.parameters().items() if "lora_B" in name)
    assert all(p.grad is None for p in first.parameters().values())

    def never(*_):
        raise AssertionError("it was checked before")

    monkeypatch.setattr(start_check, "check", never)
    again = prepare(base, plan(), rows)
    assert again.route is first.route
    with pytest.raises(AssertionError, match="before"):
        prepare(base, plan(adapter=ResolvedAdapter(r=8)), rows)


@pytest.mark.slow
@pytest.mark.parametrize("route", [FUSED, PACKED, ROWS, PLAIN])
@pytest.mark.parametrize("full", [False, True])
def test_every_route_gives_the_same_loss_and_gradients(tmp_path, route, full):
    base, rows = tiny_base(tmp_path), make_rows(5)
    adapter = ResolvedAdapter(kind="none") if full else ResolvedAdapter(r=4, alpha=8.0)
    trainable = prepare(base, plan(adapter=adapter), rows)
    start_check._woken(trainable)
    trainable.model.eval()
    trainable.go(PLAIN)
    plain = start_check._measure(trainable, rows)
    trainable.go(route)
    assert trainable.route is route
    assert start_check._deviation(start_check._measure(trainable, rows), plain) < 1e-4


@pytest.mark.slow
def test_a_model_that_keeps_something_of_a_pass_is_computed_in_one_lane(tmp_path):
    rows = make_rows(6, low=20, high=60)
    assert prepare(tiny_base(tmp_path / "llama"), plan(), rows).parallel
    long = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    base = base_of(
        tmp_path / "phi3", "phi3", rope_parameters={**long, "original_max_position_embeddings": 70}, original_max_position_embeddings=70
    )
    trainable = prepare(base, plan(), rows)
    assert (trainable.route, trainable.parallel) == (ROWS, False)
    assert "one lane" in trainable.choice.why()
    assert not prepare(base, plan(), rows, route="plain").parallel


def test_a_base_that_transformers_itself_cannot_compute_is_one_error(tmp_path, monkeypatch):
    def states(self, one):
        raise RuntimeError("The size of tensor a (3) must match")

    monkeypatch.setattr(Trainable, "states", states)
    with pytest.raises(TrainingError, match="transformers itself cannot compute this base"):
        prepare(tiny_base(tmp_path), plan(), make_rows(3))


@pytest.mark.slow
def test_a_run_says_its_route_and_keeps_it(tmp_path):
    from train_parts import user_plan
    from tunesmith.train.loop import train

    base, events = base_of(tmp_path / "base", "stablelm"), []
    train(user_plan(epochs=1), make_rows(6), make_rows(3, seed=1), base=base, out=tmp_path / "run", on_event=events.append)
    start = next(event for event in events if event["event"] == "start")
    assert start["route"] == "packed"
    assert "fused raises KeyError" in start["route_why"]
    assert (tmp_path / "run" / "route.txt").read_text() == "packed"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["train_loss"] > 0


def test_the_probe_has_the_longest_and_the_shortest_row_and_two_that_begin_alike(tmp_path):
    trainable = prepare(tiny_base(tmp_path), plan(), route="plain")
    rows = [Rendered(str(n), np.arange(3, 3 + n, dtype=np.int32), np.ones(n, np.uint8)) for n in (5, 80, 33)]
    probe = start_check.probe_rows(rows, trainable)
    assert {len(row.ids) for row in probe} >= {5, 80}
    assert (probe[-1].ids[:24] == probe[-2].ids[:24]).all()


@pytest.mark.slow
def test_only_the_first_layers_of_each_kind_are_checked_and_all_are_back_afterwards(tmp_path):
    import transformers

    base = tmp_path / "deep"
    config = transformers.Gemma3TextConfig(
        **SIZES | {"num_hidden_layers": 9, "sliding_window": 16, "sliding_window_pattern": 3, "head_dim": 8}
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    trainable = prepare(base, plan(), route="plain")
    with first_of_each_kind(trainable.causal) as layers:
        assert layers == 1 + config.layer_types.index("full_attention")
        assert len(trainable.decoder.layers) == layers
    assert len(trainable.decoder.layers) == 9
    choice = start_check.check(trainable, plan(), make_rows(3))
    assert choice.tried[-1].passed
    assert len(trainable.decoder.layers) == 9
    trainable.go(FUSED)
    assert len(trainable.decoder.layers) == 9


@pytest.mark.slow
def test_a_plan_in_bfloat16_is_checked_exactly_in_float32_and_keeps_its_type(tmp_path):
    trainable = prepare(tiny_base(tmp_path), plan(dtype="bfloat16"), make_rows(3))
    assert trainable.route is FUSED
    assert trainable.choice.tried[-1].bound == start_check.TOLERANCE
    assert trainable.choice.tried[-1].deviation <= 1e-4
    assert trainable.causal.get_input_embeddings().weight.dtype is torch.bfloat16
