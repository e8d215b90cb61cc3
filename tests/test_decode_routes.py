"""Every family answers what transformers itself says, greedily and in numbers, on the fastest route that does; a wrong decoder is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from tunesmith.core.chat import Renderer
from tunesmith.core.errors import UsageError
from tunesmith.core.types import Example, Message, Prompt, Sampling
from tunesmith.evaluate.run import evaluate
from tunesmith.models import decode_check
from tunesmith.models.load_causal import load_causal
from tunesmith.models.local import LocalModel, load_engine
from tunesmith.models.routed import RoutedEngine
from tunesmith.nets import cached_attention
from tunesmith.nets.decoder import Engine
from tunesmith.nets.plain_decoder import PlainEngine
from tunesmith.nets.sequences import DecodeRequest, score
from tunesmith.train.loop import train
from tunesmith.train.plan import Plan

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.3, "sliding_window": None,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "n_routed_experts": 4, "head_dim": 4, "num_key_value_heads": 4,
}  # fmt: skip
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
}
MIXED = {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48}
SEES = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0]}
TEXT = {key: SIZES[key] for key in list(SIZES)[:6]} | {
    "max_position_embeddings": 128, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
}  # fmt: skip
# The configuration, what the family has of its own, the routes of the base and of an adapter on all linear layers (experts too).
FAMILIES = {
    "qwen3": ("Qwen3Config", {}, "batched", "batched"),
    "gemma3_text": ("Gemma3TextConfig", {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}, "batched", "batched"),
    "gpt_oss": ("GptOssConfig", {"sliding_window": 24}, "batched", "batched"),
    "phi3": ("Phi3Config", {"rope_parameters": LONG_ROPE}, "batched", "batched"),
    "gpt2": ("GPT2Config", {}, "batched", "batched"),
    "qwen3_moe": ("Qwen3MoeConfig", {}, "batched", "cached"),
    "deepseek_v3": ("DeepseekV3Config", LATENT, "batched", "cached"),
    "qwen2_5_vl": ("Qwen2_5_VLConfig", {"text_config": TEXT, "vision_config": SEES}, "batched", "batched"),
    "lfm2": ("Lfm2Config", MIXED, "cached", "cached"),
    "mamba2": ("Mamba2Config", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16}, "cached", "cached"),
    "falcon_h1": (
        "FalconH1Config",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16},
        "cached",
        "cached",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_remembered(tmp_path, monkeypatch):
    """Each test checks for itself, and what it finds is no other test's."""
    monkeypatch.setattr(decode_check, "user_folder", lambda: tmp_path / "user")


def base_of(folder: Path, name: str) -> Path:
    import transformers

    kind, own, *_ = FAMILIES[name]
    cls = getattr(transformers, kind)
    settings = own if "text_config" in own else {key: value for key, value in SIZES.items() if hasattr(cls(), key)} | own
    config = cls(**settings)
    torch.manual_seed(0)
    causal = type(config) in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForImageTextToText
    auto.from_config(config).save_pretrained(folder)
    return folder


def adapter_of(base: Path, folder: Path, **options: object) -> Path:
    import peft

    from tunesmith.train.targets import all_linear

    model = load_causal(base, dtype=torch.float32)
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": all_linear(model), "init_lora_weights": False} | options
    peft.get_peft_model(model, peft.LoraConfig(**settings)).save_pretrained(folder)
    return folder


def prompts(*sizes: int) -> list[list[int]]:
    """Rows of which all begin alike, one is the longest that a window or the short positions take, one is longer."""
    rng = np.random.default_rng(3)
    shared = rng.integers(3, VOCABULARY, 16).tolist()
    return [shared + rng.integers(3, VOCABULARY, size).tolist() for size in sizes or (1, 7, 44, 80)]


def greedy(model, ids: list[int], count: int) -> list[tuple[int, float]]:
    """What transformers' own full pass without a cache says, token after token."""
    ids, told = list(ids), []
    with torch.no_grad():
        for _ in range(count):
            logp = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
            ids.append(int(logp.argmax()))
            told.append((ids[-1], float(logp.max())))
    return told


def answered(engine: RoutedEngine, asked: list[tuple[list[int], str | None]], count: int) -> list[list[tuple[int, float]]]:
    """The ids and log-probabilities that one decoder gives for all rows together."""
    decoder = engine.decoder()
    told = {decoder.add(DecodeRequest(ids=ids, max_tokens=count, adapter=name, top_logprobs=0, share=16)): [] for ids, name in asked}
    while decoder.busy:
        for token in decoder.step():
            told[token.sequence].append((token.id, token.logprob["logprob"]))
    return list(told.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_what_transformers_says(tmp_path, name):
    base = base_of(tmp_path / "base", name)
    folder = adapter_of(base, tmp_path / "adapter")
    engine = load_engine(base, "float32", "cpu").engine
    engine.adapters.load("tuned", folder)
    routes = [engine.choices[None].route, engine.choices["tuned"].route]
    assert routes == list(FAMILIES[name][2:]), [choice.why() for choice in engine.choices.values()]
    from peft import PeftModel

    plain = load_causal(base, dtype=torch.float32).eval()
    expected = [greedy(plain, ids, 6) for ids in prompts()]
    peft = PeftModel.from_pretrained(plain, folder).eval().get_base_model()
    expected += [greedy(peft, ids, 6) for ids in prompts()]
    told = answered(engine, [(ids, adapter) for adapter in (None, "tuned") for ids in prompts()], 6)
    assert [[token for token, _ in row] for row in told] == [[token for token, _ in row] for row in expected]
    np.testing.assert_allclose([[p for _, p in row] for row in told], [[p for _, p in row] for row in expected], atol=1e-4)
    assert told[:4] != told[4:], "the adapter changes what is said"
    rows = [(ids, [0] + [1] * (len(ids) - 1)) for ids in prompts()]
    for (ids, _), (nats, count) in zip(rows, score(engine, rows, "tuned"), strict=True):
        with torch.no_grad():
            logp = peft(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].log_softmax(-1)
        assert count == len(ids) - 1
        assert nats == pytest.approx(-float(logp[range(count), ids[1:]].sum()), rel=1e-4)


def blind_to_windows(monkeypatch) -> None:
    """A decoder that looks past its windows."""
    true = cached_attention._seen
    monkeypatch.setattr(cached_attention, "_seen", lambda distance, window: true(distance, None))


def one_place_late(monkeypatch) -> None:
    """A decoder whose new tokens stand a place too far."""
    forward = Engine.forward

    def late(self, tokens, positions, owners, forward_pass, keep):
        moved = [place + 1 for place in positions] if isinstance(forward_pass, cached_attention.DecodePass) else positions
        return forward(self, tokens, moved, owners, forward_pass, keep)

    monkeypatch.setattr(Engine, "forward", late)


@pytest.mark.slow
@pytest.mark.parametrize("planted", [blind_to_windows, one_place_late])
def test_a_wrong_decoder_is_seen_and_the_next_route_taken(tmp_path, monkeypatch, planted):
    base = base_of(tmp_path / "base", "gemma3_text")
    planted(monkeypatch)
    choice = load_engine(base, "float32", "cpu").engine.choices[None]
    assert choice.route == "cached"
    assert choice.tried[0].deviation > 1e-2
    assert "batched differs from transformers' own pass" in choice.why()


@pytest.mark.slow
def test_a_cache_that_forgets_is_seen_and_every_token_reads_all_again(tmp_path, monkeypatch):
    from transformers import DynamicCache

    base = base_of(tmp_path / "base", "lfm2")
    true = PlainEngine.next_logits

    def forgetful(self, sequence):
        if sequence.past is not None:
            sequence.past = (sequence.past[0], DynamicCache(config=self.model.config))
        return true(self, sequence)

    monkeypatch.setattr(PlainEngine, "next_logits", forgetful)
    engine = load_engine(base, "float32", "cpu").engine
    assert engine.choices[None].route == "reread"
    monkeypatch.undo()
    plain = load_causal(base, dtype=torch.float32).eval()
    (told,) = answered(engine, [(prompts()[1], None)], 4)
    assert [token for token, _ in told] == [token for token, _ in greedy(plain, prompts()[1], 4)]


@pytest.mark.slow
def test_it_is_checked_once_and_an_adapter_of_another_kind_for_itself(tmp_path, monkeypatch):
    base = base_of(tmp_path / "base", "qwen3")
    first, second, third = (adapter_of(base, tmp_path / str(r), r=r) for r in (4, 2, 4))
    engine = load_engine(base, "float32", "cpu").engine
    engine.adapters.load("first", first)

    made = []

    class Counted(decode_check.DecodeCheck):
        def __init__(self, plain, adapter, **options):
            made.append(adapter)
            super().__init__(plain, adapter, **options)

    monkeypatch.setattr(decode_check, "DecodeCheck", Counted)
    again = load_engine(base, "float32", "cpu").engine
    again.adapters.load("third", third)
    assert again.choices[None] == engine.choices[None]
    assert made == []
    again.adapters.load("second", second)
    assert made == ["second"]


@pytest.mark.slow
def test_an_adapter_that_lacks_what_it_names_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    base = base_of(tmp_path / "base", "lfm2")
    folder = adapter_of(base, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, file)
    engine = load_engine(base, "float32", "cpu").engine
    with pytest.raises(UsageError, match="the adapter has no"):
        engine.adapters.load("tuned", folder)
    assert engine.adapters.loaded == {}


SAID = {"Who signed it?": "First Bank of Ohio", "Say yes or no.": "no", "List the entities.": "Acme Holdings"}


@pytest.mark.slow
def test_a_base_with_states_is_trained_evaluated_and_served(tmp_path):
    openai = pytest.importorskip("openai")
    pytest.importorskip("llguidance", reason="answers are held to a form by llguidance (extra: serve)")
    from tunesmith.api.app import create_app, running
    from tunesmith.api.serve import slower
    from tunesmith.deploy.router import Router
    from tunesmith.evaluate.metrics import metric

    base = tiny.model(tmp_path / "base", "lfm2")
    turns = [(Message(role="user", content=asked), Message(role="assistant", content=answer)) for asked, answer in SAID.items()]
    examples = [Example(id=str(i), messages=both) for i, both in enumerate(turns)]
    plan = Plan(epochs=30, batch_size=3, learning_rate=0.02, dtype="float32", threads=1)
    result = train(plan, Renderer.load(base).examples(examples), base=base, out=tmp_path / "run")
    tuned = LocalModel(base, result.artifact, name="tuned", dtype="float32")
    assert tuned.route.route == "cached"
    rated = evaluate(tuned, examples, [metric("exact_match")], sampling=Sampling(max_tokens=20), out=tmp_path / "evaluation")
    assert rated.values["exact_match"] == 1.0
    models = {"base": tuned.with_adapter(None, "base"), "tuned": tuned}
    assert [line.partition(":")[0] for line in slower(Router(models))] == ["'base' answers cached", "'tuned' answers cached"]
    with running(create_app(models)) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
        asked = {"model": "tuned", "messages": [{"role": "user", "content": "Who signed it?"}], "temperature": 0}
        assert client.chat.completions.create(**asked, logprobs=True).choices[0].message.content == "First Bank of Ohio"
        stream = client.chat.completions.create(**asked, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in stream if piece.choices) == "First Bank of Ohio"
        other = client.chat.completions.create(**asked | {"model": "base", "max_tokens": 8})
        assert other.choices[0].message.content != "First Bank of Ohio"
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["Bern", "Rome"]}, "strict": True}}
        held = client.chat.completions.create(**asked | {"response_format": form, "max_tokens": 30})
        assert held.choices[0].message.content in ('"Bern"', '"Rome"')
        prompt = Renderer.load(base).prompt(Prompt(messages=turns[0][:1]))
        scored = client.completions.create(model="tuned", prompt=prompt, echo=True, logprobs=1, max_tokens=0).choices[0].logprobs
        (nats, _) = tuned.nll([(prompt, [1] * len(prompt))])[0]
        assert -sum(scored.token_logprobs[1:]) == pytest.approx(nats, rel=1e-4)
