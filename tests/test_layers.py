"""The kernels that training and serving share: exact against plain formulas and against peft."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tunesmith.nets.blocks import fuse_blocks
from tunesmith.nets.dropout import SeededDropout, dropout_seed
from tunesmith.nets.linear import FusedLoraLinear
from tunesmith.nets.norm import fuse_norms
from tunesmith.nets.spans import Span
from tunesmith.nets.tree_attention import register_attention, tree_attention


@st.composite
def trees(draw):
    """Spans in depth-first order, with the parent of each."""
    spans, parents = [], []

    def grow(at, depth, parent):
        length = draw(st.integers(1, 7))
        index = len(spans)
        spans.append(None)
        parents.append(parent)
        end = at + length
        reach = end
        if depth < 3:
            for _ in range(draw(st.integers(0, 3 - depth))):
                reach = grow(reach, depth + 1, index)
        spans[index] = Span(at, end, reach)
        return reach

    at = 0
    for _ in range(draw(st.integers(1, 3))):
        at = grow(at, 0, None)
    return tuple(spans), parents


def visible(spans, parents):
    tokens = spans[-1].end if spans[-1].reach == spans[-1].end else max(s.reach for s in spans)
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i, span in enumerate(spans):
        own = torch.arange(span.start, span.end)
        mask[own[:, None], own[None, :]] = own[:, None] >= own[None, :]
        parent = parents[i]
        while parent is not None:
            mask[span.start : span.end, spans[parent].start : spans[parent].end] = True
            parent = parents[parent]
    return mask


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(trees(), st.integers(0, 100))
def test_tree_attention_is_masked_softmax_attention(tree, seed):
    spans, parents = tree
    mask = visible(spans, parents)
    generator = torch.Generator().manual_seed(seed)
    q, k, v, slope = (torch.randn(heads, len(mask), 8, generator=generator) for heads in (6, 2, 2, 6))
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    theirs = [x.clone().double().requires_grad_() for x in (q, k, v)]
    out = tree_attention(*ours, spans, 0.3)
    keys, values = (x.repeat_interleave(3, 0) for x in theirs[1:])
    scores = (theirs[0] @ keys.transpose(1, 2) * 0.3).masked_fill(~mask, float("-inf"))
    expected = (scores.softmax(-1) @ values).transpose(0, 1)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    out.backward(slope.transpose(0, 1))
    expected.backward(slope.transpose(0, 1).double())
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)


def test_huge_scores_stay_finite():
    q, k, v = torch.full((2, 6, 4), 30.0), torch.full((2, 6, 4), 30.0), torch.ones(2, 6, 4)
    out = tree_attention(q, k, v, (Span(0, 2, 6), Span(2, 4, 4), Span(4, 6, 6)), 1.0)
    torch.testing.assert_close(out, torch.ones(6, 2, 4), rtol=1e-3, atol=1e-3)


def lora(seed=0, dropout=0.0, rslora=False, dora=False, cls=FusedLoraLinear):
    from peft import LoraConfig

    torch.manual_seed(seed)
    base = nn.Linear(24, 36)
    base.requires_grad_(False)
    config = LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, use_rslora=rslora, use_dora=dora)
    layer = cls(base, "default", config=config, r=4, lora_alpha=6)
    nn.init.normal_(layer.lora_B["default"].weight)
    return layer


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}])
def test_fused_lora_equals_peft(options):
    from peft.tuners.lora.layer import Linear

    fused, plain = lora(**options), lora(**options, cls=Linear)
    x = torch.randn(2, 9, 24)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    a, b = fused(mine), plain(theirs)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    a.square().sum().backward()
    b.square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    for (name, p), (_, q) in zip(fused.named_parameters(), plain.named_parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-3, msg=name)


def test_disabled_or_merged_adapter_is_the_base_or_the_same():
    layer = lora()
    x = torch.randn(5, 24)
    with_adapter = layer(x)
    layer.enable_adapters(False)
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    layer.enable_adapters(True)
    layer.merge()
    torch.testing.assert_close(layer(x), with_adapter, rtol=1e-5, atol=1e-5)


def test_dropout_reaches_only_the_adapter_and_follows_its_seed():
    layer = lora()
    layer.lora_dropout["default"] = SeededDropout(0.5)
    x = torch.randn(7, 24, requires_grad=True)
    with dropout_seed(11):
        out = layer(x)
        out.sum().backward()
    with dropout_seed(11):
        keep = layer.lora_dropout["default"].mask(x)
    y = x.detach().clone().requires_grad_()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer(y) + 1.5 * ((y * keep) @ a.T) @ b.T
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    mine = a.grad.clone()
    a.grad = None
    expected.sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine, a.grad, rtol=1e-4, atol=1e-4)
    layer.eval()
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 1.5 * (x @ a.T) @ b.T, rtol=1e-5, atol=1e-5)


def test_fused_norm_replaces_only_what_it_equals():
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    torch.manual_seed(0)
    plain, shifted = LlamaRMSNorm(16, 1e-3), GemmaRMSNorm(16, 1e-3)
    for norm in (plain, shifted):
        nn.init.normal_(norm.weight)
    model = nn.Sequential(plain, shifted)
    assert len(fuse_norms(model)) == 1
    assert model[1] is shifted
    x = torch.randn(3, 5, 16)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    slope = torch.randn(3, 5, 16)
    model[0](mine).backward(slope)
    weight_grad = plain.weight.grad.clone()
    plain.weight.grad = None
    plain(theirs).backward(slope)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight_grad, plain.weight.grad, rtol=1e-5, atol=1e-5)


def decoder(kind="llama", **changes):
    """A tiny decoder with adapters whose B is not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    options = {"vocab_size": 31, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, **(options | {"num_key_value_heads": 2, "head_dim": 6} | changes.pop("config", {})))
    model = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(register_attention())
    lora = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=4, **({"target_modules": "all-linear"} | changes))
    lora._register_custom_module({nn.Linear: FusedLoraLinear})
    model = get_peft_model(model, lora)
    for name, p in model.named_parameters():
        if "lora_B" in name or name.endswith("bias"):
            nn.init.normal_(p)
    return model


def gradients_of(model):
    ids, positions = torch.arange(9)[None] % 31, torch.tensor([[0, 1, 2, 3, 3, 0, 1, 2, 3]])
    spans = (Span(0, 3, 5), Span(3, 4, 4), Span(4, 5, 5), Span(5, 9, 9))
    hidden = model.get_base_model().model(input_ids=ids, position_ids=positions, use_cache=False, spans=spans, longest=4).last_hidden_state
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad((hidden * torch.linspace(-1, 1, 24)).square().sum(), list(weights.values()))
    return hidden, dict(zip(weights, slopes, strict=True))


@pytest.mark.parametrize(
    ("kind", "changes", "blocks"),
    [
        ("llama", {}, 4),
        ("llama", {"target_modules": ["q_proj", "down_proj"]}, 4),  # the others have no adapter
        ("llama", {"target_modules": ["v_proj"], "use_rslora": True}, 4),
        ("llama", {"use_dora": True}, 4),  # laid over, and falls back to the modules' own forward
        ("qwen2", {}, 4),  # biases
        ("qwen3", {}, 2),  # norms inside its attention: only the MLPs are the same
        ("llama", {"config": {"hidden_act": "gelu"}}, 2),
        ("llama", {"config": {"num_key_value_heads": 1}}, 4),
    ],
)
def test_fused_blocks_give_the_same_states_and_gradients(kind, changes, blocks):
    model = decoder(kind, **changes)
    states, slopes = gradients_of(model)
    assert len(fuse_blocks(model)) == blocks
    mine, found = gradients_of(model)
    torch.testing.assert_close(mine, states, rtol=1e-5, atol=1e-5)
    for name, slope in slopes.items():
        torch.testing.assert_close(found[name], slope, rtol=1e-4, atol=1e-4, msg=name)


def test_fused_blocks_follow_adapters_that_are_switched_off():
    model = decoder()
    fuse_blocks(model)
    with model.disable_adapter(), torch.no_grad():
        bare = model.get_base_model().model(input_ids=torch.arange(4)[None], spans=(Span(0, 4, 4),), longest=4).last_hidden_state
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.zeros_(p)
    with torch.no_grad():
        zero = model.get_base_model().model(input_ids=torch.arange(4)[None], spans=(Span(0, 4, 4),), longest=4).last_hidden_state
    torch.testing.assert_close(bare, zero, rtol=1e-5, atol=1e-5)
