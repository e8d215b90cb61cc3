"""What an adapter reaches: experts in one tensor, routers that give several things, and the loss of routers that a base asks for."""

from __future__ import annotations

import pytest
import torch

from test_train_routes import base_of
from train_parts import make_rows, plan, slope_of
from tunesmith.core.errors import ConfigError
from tunesmith.train import choice
from tunesmith.train.adapters import prepare
from tunesmith.train.plan import ResolvedAdapter

EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


@pytest.fixture(autouse=True)
def nothing_is_remembered(tmp_path, monkeypatch):
    """Each test checks for itself, and what it finds is no other test's."""
    monkeypatch.setattr(choice, "user_folder", lambda: tmp_path / "user")


@pytest.mark.slow
def test_what_an_adapter_leaves_out_is_said_and_can_be_named(tmp_path):
    base = base_of(tmp_path / "base", "gpt_oss")
    some = prepare(base, plan(), make_rows(4))
    assert some.reach.share < 0.6
    assert set(EXPERTS) <= set(some.reach.parameters)
    assert "adapter.target_parameters: [" in some.reach.sentence()
    every = prepare(base, plan(adapter=ResolvedAdapter(r=4, alpha=8.0, target_parameters=tuple(some.reach.parameters))), make_rows(4))
    assert every.reach.share == 1.0
    assert every.reach.sentence() == ""
    assert every.choice.tried[-1].passed
    assert not every.parallel  # peft changes the experts' weights for a pass
    with pytest.raises(ConfigError, match=r"(?s)no tensor mlp\.experts\.up .*allowed.*mlp\.experts\.gate_up_proj"):
        prepare(base, plan(adapter=ResolvedAdapter(r=4, alpha=8.0, target_parameters=("mlp.experts.up",))))
    with pytest.raises(ConfigError, match=r"peft does not attach.*dropout"):
        prepare(base, plan(adapter=ResolvedAdapter(r=4, alpha=8.0, dropout=0.1, target_parameters=EXPERTS)))


@pytest.mark.slow
def test_a_layer_that_is_no_product_is_left_alone(tmp_path):
    """Llama 4's router is a linear layer by its class and gives two tensors: peft's own adapter would raise in its forward."""
    trainable = prepare(base_of(tmp_path / "base", "llama4_text"), plan(), make_rows(4, low=20, high=60))
    assert "feed_forward.router" in trainable.reach.left
    assert trainable.choice.tried[-1].passed


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_the_routers_loss_is_added_where_the_base_asks_for_it(tmp_path, packed):
    from peft import PeftModel

    base, rows, resolved = base_of(tmp_path / "base", "mixtral"), make_rows(3), plan(pack=packed)
    trainable = prepare(base, resolved, rows)
    assert (trainable.route.name, trainable.parallel) == ("plain", False)
    assert "routers' loss" in trainable.choice.why()
    with torch.no_grad():
        for name, p in trainable.parameters().items():
            if "lora_B" in name:
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
    trainable.model.save_pretrained(tmp_path / "adapter")
    trainable.model.eval()
    sums, found = slope_of(trainable, resolved, rows)
    plain = PeftModel.from_pretrained(
        trainable.causal.__class__.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter", is_trainable=True
    )
    causal, count = plain.get_base_model().eval(), sum(int(row.mask[1:].sum()) for row in rows)
    router = 0.0
    for row in rows:
        ids = torch.from_numpy(row.ids.astype("int64"))[None]
        labels = ids.masked_fill(torch.from_numpy(row.mask == 0)[None], -100)
        out = causal(input_ids=ids, labels=labels)  # the model's own loss, with its routers' in it
        own = 0.7 * out.aux_loss
        ((out.loss - own) * int(row.mask[1:].sum()) / count + own / len(rows)).backward()
        router += float(own.detach()) / len(rows)
    assert sums["balance"] / sums["balanced"] == pytest.approx(router, rel=1e-5)
    grads = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad and p.grad is not None}
    assert grads
    for name, grad in grads.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-5)


def test_the_families_of_the_catalogue_name_variants_that_are_tried(monkeypatch):
    import importlib
    from pathlib import Path

    from tunesmith.models.catalog import families

    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    variants = importlib.import_module("benchmarks.families_variants").VARIANTS
    assert len(variants) >= 120
    for name, family in families().items():
        assert set(family.variants) <= set(variants), name
        assert all(hub.count("/") == 1 and size > 0 for hub, size in family.hub.items()), name


@pytest.mark.slow
def test_the_routers_of_all_layers_are_heard_though_few_were_checked(tmp_path):
    """transformers lays its listeners at a model's first pass, which is that of the check, over the first layers alone."""
    import transformers

    base = base_of(tmp_path / "base", "mixtral")
    config = transformers.AutoConfig.from_pretrained(base)
    config.num_hidden_layers, config.layer_types = 5, None
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    trainable = prepare(base, plan(), make_rows(3), route="plain")  # as a run does that goes on
    assert len(trainable.causal(input_ids=torch.tensor([[3, 4, 5]])).router_logits) == 5
