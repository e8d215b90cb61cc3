"""Bases that bring code of their own: refused with the line that allows them, then trained, evaluated and asked like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tiny
from test_jobs import add
from tunesmith.core.chat import Rendered, Renderer
from tunesmith.core.deployment import Variant
from tunesmith.core.errors import ConfigError, TrainingError, UsageError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Example, Message, Prompt, Sampling
from tunesmith.flow.jobs.worker import Worker
from tunesmith.flow.project import load_project
from tunesmith.models import trust
from tunesmith.models.catalog import Catalog
from tunesmith.models.local import LocalModel
from tunesmith.models.resolve import Models
from tunesmith.nets.sequences import DecodeRequest
from tunesmith.store.deployments import Deployments
from tunesmith.store.jobs import Jobs
from tunesmith.store.store import Store
from tunesmith.train.loop import train
from tunesmith.train.plan import Adapter, Plan

CODE = """
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaForCausalLM


class Blind(LlamaAttention):
    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        return self.o_proj(self.q_proj(hidden_states.cumsum(1))), None


class Closed(LlamaAttention):
    def forward(self, hidden_states, position_embeddings, attention_mask, past_key_values, use_cache, position_ids):
        return self.o_proj(self.q_proj(hidden_states)), None


class Broken(LlamaAttention):
    def forward(self, hidden_states, **kwargs):
        raise KeyError("window")


class Own(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for number, layer in enumerate(self.model.layers if config.own else ()):
            layer.self_attn = {"blind": Blind, "closed": Closed, "broken": Broken}.get(config.own, type(layer.self_attn))(config, number)
        if config.own == "hidden":
            self.base_model_prefix = "nowhere"
"""
ANSWERS = {"Who signed it?": "First Bank of Ohio", "Say yes or no.": "no", "List the entities.": "Acme Holdings"}


def remote(folder: Path, *, own: str = "") -> Path:
    """A tiny Llama whose configuration names a class of the file beside it."""
    tiny.model(folder)
    (folder / "modeling_own.py").write_text(CODE, "utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}, "own": own}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.fixture(autouse=True)
def nobody_is_trusted_afterwards():
    yield
    trust.allow(())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return remote(tmp_path_factory.mktemp("own"))


def rows(base: Path) -> list[Rendered]:
    turns = [(Message(role="user", content=asked), Message(role="assistant", content=said)) for asked, said in ANSWERS.items()]
    return Renderer.load(base).examples([Example(id=str(i), messages=both) for i, both in enumerate(turns)])


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [True, False])
def test_a_workers_process_trusts_what_its_server_does(base, tmp_path, allowed):
    trust.allow([str(base)] if allowed else [])
    store = Store.open(tmp_path)
    number = add(store, base)
    assert Worker(store).once()
    done = Jobs(store).find(number, None)
    store.close()
    assert done["status"] == ("succeeded" if allowed else "failed")
    assert ("auto_map" in json.dumps(done["error"] or {})) != allowed


def plan(**changes: object) -> Plan:
    values = {"epochs": 2, "batch_size": 3, "learning_rate": 0.01, "dtype": "float32", "threads": 1}
    return Plan(**values | changes)


def test_code_is_refused_with_the_line_that_allows_it(base, tmp_path):
    name = str(base)
    for load in (lambda: LocalModel(Catalog().model(name), name="m"), lambda: train(plan(), rows(base), base=base, out=tmp_path / "out")):
        with pytest.raises(UsageError, match="sets 'auto_map'") as refused:
            load()
        assert f"write trust_remote_code: [{name}] into tunesmith.yaml" in refused.value.remedy
    trust.allow(["another"])
    with pytest.raises(UsageError, match="sets 'auto_map'"):
        LocalModel(base, name="m")


def test_a_project_allows_a_base_by_its_name_and_the_next_one_does_not(base, tmp_path, monkeypatch):
    monkeypatch.chdir(base.parent)
    text = f"name: x\nsources: [{{path: rows.jsonl}}]\nbase: ./{base.name}\n"
    (tmp_path / "tunesmith.yaml").write_text(text + f"trust_remote_code: [./{base.name}]\n", "utf-8")
    folder = Catalog().model(load_project(tmp_path / "tunesmith.yaml").base)
    assert trust.trusted(folder)
    assert trust.trusted(base), "the same folder by its whole path"
    (tmp_path / "tunesmith.yaml").write_text(text, "utf-8")
    load_project(tmp_path / "tunesmith.yaml")
    assert not trust.trusted(folder)


def test_a_folder_stays_trusted_however_it_is_asked_for(base, monkeypatch):
    monkeypatch.chdir(base.parent)
    trust.allow(["some/base"])
    for name in ("some/base", str(base), f"./{base.name}"):
        trust.asked_as(name, base)
        assert trust.trusted(base)
    assert set(trust.allowed()) == {"some/base", str(base.resolve())}
    for name in (str(base), base.name, f"./{base.name}", f"{base}/../{base.name}"):
        trust.allow([name])
        assert trust.trusted(base)
        assert trust.trusted(Path(base.name))
    assert not trust.trusted(base.parent)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["deployed", "folder"])
def test_an_evaluation_trusts_by_name_what_an_earlier_process_fetched(tmp_path, word):
    """A deployed alias and an adapter name their base by its folder, here one of the catalogue's that nobody has asked for by name."""
    base = remote(tmp_path / "data" / "models" / "some--base")
    (base / "tunesmith.txt").write_text("some/base\n", "utf-8")
    adapter = tiny.adapter(tiny.model(tmp_path / "plain"), tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}), "utf-8")
    store = Store.open(tmp_path / "store")
    Deployments(store).put("deployed", [Variant(name="tuned", model=ModelRef(base=str(base), adapter=str(adapter)))])
    model = Models(store, Catalog(tmp_path / "data")).resolve(str(adapter) if word == "folder" else word)
    asked = [Prompt(messages=(Message(role="user", content="Say yes or no."),))]
    with pytest.raises(UsageError, match="sets 'auto_map'"):
        model.answer(asked, Sampling(max_tokens=2))
    trust.allow(["some/base"])
    assert len(model.answer(asked, Sampling(max_tokens=2))) == 1
    store.close()


@pytest.mark.slow
def test_it_is_trained_and_asked_as_any_other(base, tmp_path):
    trust.allow([str(base)])
    result = train(plan(), rows(base), base=base, out=tmp_path / "out")
    assert result.steps == 2
    model = LocalModel(base, result.artifact, name="m", dtype="float32")
    assert type(model.engine.model).__module__.startswith("transformers_modules")
    asked = [Prompt(messages=(Message(role="user", content=words),)) for words in ANSWERS]
    said = [answer.text for answer in model.answer(asked, Sampling(max_tokens=8))]
    plain = tiny.model(tmp_path / "plain")  # the same weights without the code
    other = LocalModel(plain, result.artifact, name="m", dtype="float32")
    assert said == [answer.text for answer in other.answer(asked, Sampling(max_tokens=8))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "route", "answers"),
    [
        ("blind", "rows", "reread"),
        ("closed", "packed", "cached"),
        ("hidden", "plain", "batched"),
    ],
)
def test_attention_of_its_own_is_trained_and_answers_on_slower_routes(tmp_path, own, route, answers):
    base = remote(tmp_path / "base", own=own)
    trust.allow([str(base)])
    events: list[dict] = []
    result = train(plan(), rows(base), base=base, out=tmp_path / "out", on_event=events.append)
    assert next(event["route"] for event in events if event["event"] == "start") == route
    assert result.steps == 2
    model = LocalModel(base, name="m", dtype="float32")
    assert model.route.route == answers, model.route.why()
    row = rows(base)[0].ids.tolist()
    truth = model.engine.model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
    decoder = model.decoder()
    decoder.add(DecodeRequest(ids=row, max_tokens=1))
    assert decoder.step()[0].id == int(truth.argmax())


@pytest.mark.slow
def test_a_base_whose_own_code_fails_is_one_clear_error(tmp_path):
    base = remote(tmp_path / "base", own="broken")
    trust.allow([str(base)])
    with pytest.raises(TrainingError, match="transformers itself cannot compute this base: KeyError: 'window'"):
        train(plan(), rows(base), base=base, out=tmp_path / "out")
    with pytest.raises(UsageError, match=r"transformers itself cannot compute this base: KeyError: 'window'"):
        LocalModel(base, name="m", dtype="float32")


def test_what_stays_refused(base, tmp_path):
    trust.allow([str(base), str(tmp_path / "far")])
    with pytest.raises(ConfigError, match="trained through an adapter"):
        train(plan(adapter=Adapter(kind="none")), rows(base), base=base, out=tmp_path / "out")
    far = remote(tmp_path / "far")
    config = json.loads((far / "config.json").read_text("utf-8"))
    for key, value, said in (
        ("auto_map", {"AutoModelForCausalLM": "some/where--modeling_own.Own"}, "fetched from elsewhere"),
        ("auto_map", "modeling_own.Own", "auto_map is 'modeling_own.Own'"),
        ("auto_map", ["modeling_own.Own", None], "auto_map is "),
        ("quantization_config", {"quant_method": "x"}, "sets 'quantization_config'"),
    ):
        (far / "config.json").write_text(json.dumps(config | {key: value}), "utf-8")
        with pytest.raises(UsageError, match=said):
            LocalModel(far, name="m")
