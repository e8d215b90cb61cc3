"""Tokens that were added to a base: their embeddings are trained, saved as peft does, and served beside other adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from tunesmith.core.chat import Rendered, Renderer
from tunesmith.core.errors import ConfigError, TrainingError, UsageError
from tunesmith.core.types import Example, Message, Prompt, Sampling
from tunesmith.models.local import LocalModel
from tunesmith.train.adapters import prepare
from tunesmith.train.artifact import _mean, _plain_losses
from tunesmith.train.estimate import lora_parameters
from tunesmith.train.facts import base_shape
from tunesmith.train.loop import TrainResult, train
from tunesmith.train.plan import Adapter, Plan, ResolvedAdapter, ResolvedPlan
from tunesmith.train.run import Paused

NEW = ("<|party|>", "<|date|>")
ANSWERS = {"Who signed it?": "<|party|>First Bank of Ohio", "When?": "<|date|>June 3", "Say yes or no.": "no"}


def speaking(folder: Path, *, tied: bool) -> Path:
    """A tiny base with two tokens that were added to its tokenizer and its embeddings."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny.model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(NEW))
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = tied
    model.tie_weights()
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path_factory):
    return speaking(tmp_path_factory.mktemp("base"), tied=request.param)


def rows(base: Path) -> list[Rendered]:
    turns = [(Message(role="user", content=asked), Message(role="assistant", content=said)) for asked, said in ANSWERS.items()]
    return Renderer.load(base).examples([Example(id=str(i), messages=both) for i, both in enumerate(turns)])


def plan(**changes: object) -> Plan:
    adapter = Adapter(r=4, trainable_tokens=NEW)
    return Plan(**{"adapter": adapter, "epochs": 6, "batch_size": 3, "learning_rate": 0.02, "dtype": "float32", "threads": 1} | changes)


def trained(base: Path, out: Path, **changes: object) -> TrainResult:
    return train(plan(**changes), rows(base), base=base, out=out)


@pytest.mark.slow
def test_their_rows_are_trained_and_nothing_else_of_the_embeddings(base, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    result = trained(base, tmp_path / "out")
    plain, tied = AutoModelForCausalLM.from_pretrained(base), base_shape(base)["tie_word_embeddings"]
    saved = load_file(Path(result.artifact) / "adapter_model.safetensors")
    deltas = {name: tensor for name, tensor in saved.items() if "lora" not in name}
    assert len(deltas) == (1 if tied else 2)
    ids = sorted(Renderer.load(base).ids(NEW))
    for name, tensor in deltas.items():
        before = plain.get_output_embeddings().weight[ids] if "lm_head" in name else plain.get_input_embeddings().weight[ids]
        assert tensor.shape == (2, 64)
        assert (tensor - before).norm(dim=1).min() > 0.01
    resolved = ResolvedPlan(adapter=ResolvedAdapter(r=4, trainable_tokens=NEW))
    assert result.trainable_parameters == lora_parameters(base_shape(base), resolved)


@pytest.mark.slow
def test_plain_peft_and_our_server_give_the_trained_model(base, tmp_path):
    """The server answers base, this adapter and one without rows in one batch; each as peft does alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ours = Path(trained(base, tmp_path / "out").artifact)
    other = tiny.adapter(base, tmp_path / "other", init_lora_weights=False)
    asked = rows(base)
    pairs = [(row.ids.tolist(), row.mask.tolist()) for row in asked]
    served = {None: LocalModel(base, name="m", dtype="float32")}
    served |= {folder: served[None].with_adapter(folder, "m") for folder in (ours, other)}
    for folder, model in served.items():
        plain = AutoModelForCausalLM.from_pretrained(base)
        peft = (plain if folder is None else PeftModel.from_pretrained(plain, folder)).eval()
        found = model.nll(pairs)
        assert sum(nats for nats, _ in found) / sum(n for _, n in found) == pytest.approx(
            _mean(_plain_losses(peft, asked), asked), abs=1e-4
        )
    engine = served[None].engine.fast
    names = [served[folder].adapter for folder in (None, ours, other, ours)]
    mixed = _mixed(engine, [row.ids.tolist() for row in (asked[0], asked[0], asked[0], asked[1])], names)
    alone = [
        _mixed(engine, [row.ids.tolist()], [name])[0] for row, name in zip((asked[0], asked[0], asked[0], asked[1]), names, strict=True)
    ]
    for both, one in zip(mixed, alone, strict=True):
        torch.testing.assert_close(both, one, atol=2e-4, rtol=1e-4)
    assert (mixed[0] - mixed[1]).abs().max() > 0.1


def _mixed(engine, prompts, adapters):
    """The logits after each prompt, all read in one pass."""
    from tunesmith.nets.cached_attention import PrefillPass, Segment, SequenceCache

    tokens = [number for ids in prompts for number in ids]
    ends = [sum(len(ids) for ids in prompts[: i + 1]) for i in range(len(prompts))]
    segments = [Segment(end - len(ids), end, 0, SequenceCache()) for ids, end in zip(prompts, ends, strict=True)]
    places = [place for ids in prompts for place in range(len(ids))]
    owners = [name for ids, name in zip(prompts, adapters, strict=True) for _ in ids]
    return engine.forward(tokens, places, owners, PrefillPass(segments), [end - 1 for end in ends])


@pytest.mark.slow
def test_a_paused_run_ends_in_the_same_bytes_and_another_goes_on_from_it(base, tmp_path):
    whole = Path(trained(base, tmp_path / "whole").artifact)
    stops = iter([False, True])
    with pytest.raises(Paused):
        train(plan(), rows(base), base=base, out=tmp_path / "out", should_stop=lambda: next(stops))
    again = Path(trained(base, tmp_path / "out").artifact)
    name = "adapter_model.safetensors"
    assert (again / name).read_bytes() == (whole / name).read_bytes()
    more = Adapter(start_from=str(whole), trainable_tokens=NEW)
    assert trained(base, tmp_path / "more", adapter=more).train_loss < trained(base, tmp_path / "out").train_loss
    with pytest.raises(TrainingError, match="tensors differ between the plan's adapter and the one to start from"):
        trained(base, tmp_path / "without", adapter=Adapter(start_from=str(whole)))


@pytest.mark.slow
def test_answers_are_held_to_a_form_beside_an_adapter_with_tokens(base, tmp_path):
    from tunesmith.models.base import Constraint
    from tunesmith.models.constrain import Grammars

    pytest.importorskip("llguidance", reason="answers are held to a form by llguidance (extra: serve)")
    model = LocalModel(base, trained(base, tmp_path / "out").artifact, name="m", dtype="float32")
    decoder, constraint = model.decoder(), Constraint(schema={"enum": ["Bern", "Rome"]})
    grammars = Grammars(model.base, model.renderer.vocabulary, model.renderer.stop_ids)
    prompt = Prompt(messages=(Message(role="user", content="Where?"),))
    number = decoder.add(model.request(prompt, model.renderer.prompt(prompt), Sampling(max_tokens=30)))
    decoder.hold(number, grammars.grammar(constraint))
    said = []
    while decoder.busy:
        said += [token.id for token in decoder.step() if token.finish is None]
    assert model.renderer.decode(said) in ('"Bern"', '"Rome"')


@pytest.mark.slow
def test_rows_of_tokens_beside_lora_on_the_output_layer_are_computed_by_peft(tmp_path):
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    base = speaking(tmp_path / "base", tied=True)
    ours = trained(base, tmp_path / "out").artifact
    other = tiny.adapter(base, tmp_path / "other", target_modules=["lm_head"])
    file = other / "adapter_model.safetensors"  # as save_pretrained writes it with save_embedding_layers=False
    save_file({name: tensor for name, tensor in load_file(file).items() if "base_layer" not in name}, file)
    for first, second in ((other, ours), (ours, other)):
        model = LocalModel(base, first, name="m", dtype="float32")
        both = (model, model.with_adapter(second, "n"))
        assert [one.route.route for one in both] == ["batched", "cached"]
        for folder, one in zip((first, second), both, strict=True):
            peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
            expected = peft(input_ids=torch.tensor([[1, 2, 3]])).logits[0].log_softmax(-1)
            truth = -float(expected[0, 2] + expected[1, 3])
            assert one.nll([([1, 2, 3], [1, 1, 1])])[0][0] == pytest.approx(truth, abs=1e-4)


@pytest.mark.slow
def test_arithmetic_is_counted_without_copying_the_output_layer(base):
    trainable = prepare(base, ResolvedPlan(dtype="float32", adapter=ResolvedAdapter(r=4, trainable_tokens=NEW)))
    with torch.autograd.profiler.profile() as seen:
        assert trainable.flops(10, 5) > 0
    assert not seen.function_events


@pytest.mark.slow
def test_the_head_is_the_bases_where_the_adapter_is_off(base):
    resolved = ResolvedPlan(dtype="float32", adapter=ResolvedAdapter(r=4, trainable_tokens=NEW))
    trainable = prepare(base, resolved)
    for name, p in trainable.parameters().items():
        if "trainable_tokens" in name:
            p.data.add_(1.0)
    changed = (trainable.head.weight - base_weight(trainable)).abs().sum(1).nonzero().flatten().tolist()
    assert changed == sorted(Renderer.load(base).ids(NEW))
    with trainable.model.disable_adapter():
        assert torch.equal(trainable.head.weight, base_weight(trainable))


def base_weight(trainable):
    return trainable.causal.get_output_embeddings().token_adapter.base_layer.weight


def test_tokens_that_are_not_there_are_refused(base, tmp_path):
    adapter = Adapter(r=4, trainable_tokens=("<|party|>", "<|nobody|>"))
    with pytest.raises(ConfigError, match=r"no token <\|nobody\|>") as refused:
        trained(base, tmp_path / "out", adapter=adapter)
    assert "resize_token_embeddings" in refused.value.remedy


@pytest.mark.slow
def test_an_adapter_of_a_larger_vocabulary_is_not_served(base, tmp_path):
    ours = trained(base, tmp_path / "out").artifact
    with pytest.raises(UsageError, match=r"numbers up to token \d+ for"):
        LocalModel(tiny.model(tmp_path / "small"), ours, name="m", dtype="float32")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(base, tmp_path):
    small = tiny.model(tmp_path / "small")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (small / name).write_bytes((base / name).read_bytes())
    with pytest.raises(TrainingError, match=r"row 0 has token \d+, and the base has \d+ embeddings"):
        train(plan(adapter=Adapter(r=4)), rows(small), base=small, out=tmp_path / "out")
