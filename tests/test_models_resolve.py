"""A word is the same model everywhere: deployed, evaluated, served, judged, and trained on; also after the project has moved."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest

import tiny
from tunesmith.core.deployment import Variant
from tunesmith.core.errors import NotFound, UsageError
from tunesmith.core.model_ref import ModelRef, artifact_ref, base_place, folder_at
from tunesmith.core.types import Message, Prompt, Sampling
from tunesmith.models.catalog import Catalog
from tunesmith.models.resolve import Models
from tunesmith.store.deployments import Deployments
from tunesmith.store.store import Store

openai = pytest.importorskip("openai")
pytest.importorskip("torch")

ASKED = ["Who signed it?", "Say yes or no.", "The credit agreement"]
GREEDY = Sampling(max_tokens=8)
YAML = "name: bot\nsources: [{{path: rows.jsonl}}]\nbase: {base}\ndeploy: {{alias: bot}}\nserve: {{workers: 0, port: 0}}\n{more}"


def prompts() -> list[Prompt]:
    return [Prompt(messages=(Message(role="user", content=words),)) for words in ASKED]


def texts(model) -> list[str]:
    return [answer.text for answer in model.answer(prompts(), GREEDY)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Two bases with other weights, and an adapter on each."""
    folder = tmp_path_factory.mktemp("parts")
    bases = [tiny.model(folder / f"base{i}", seed=i) for i in (1, 2)]
    return bases, [tiny.adapter(base, folder / f"adapter{i}", i + 2) for i, base in enumerate(bases)]


def project(folder: Path, base: str = "base1", more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
    (folder / "tunesmith.yaml").write_text(YAML.format(base=base, more=more))
    return folder


def deploy(folder: Path, **models: ModelRef) -> None:
    store = Store.open(folder / ".tunesmith")
    for alias, model in models.items():
        Deployments(store).put(alias, [Variant(name="tuned", model=model)], reason="test")
    store.close()


@pytest.fixture
def two(tmp_path, parts) -> Path:
    """A project with both bases in its folder, and an alias on each."""
    bases, adapters = parts
    folder = project(tmp_path / "project")
    for base in bases:
        shutil.copytree(base, folder / base.name)
    for i, adapter in enumerate(adapters):
        shutil.copytree(adapter, folder / ".tunesmith" / "stages" / f"digest{i}" / "adapter")
    store = (folder / ".tunesmith").resolve()
    refs = [
        artifact_ref(base_place(folder / base.name, store, folder), store / "stages" / f"digest{i}" / "adapter", store)
        for i, base in enumerate(bases)
    ]
    deploy(folder, first=refs[0], second=refs[1])
    return folder


@contextlib.contextmanager
def serving(folder: Path):
    """What `tunesmith serve` answers for the project: (client of the real SDK, what was said at the start)."""
    from tunesmith.api.app import create_app, running
    from tunesmith.api.serve import served
    from tunesmith.deploy.router import Router

    store = Store.open(folder / ".tunesmith")
    models, router = Models(store, Catalog(), home=folder), Router()
    lines = served(router, models, {})
    with running(create_app(router, store=store, models=models)) as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600), lines
    store.close()


def asked(client, model: str) -> tuple[list[str], str]:
    """What a served model says, and the digest that it says it with."""
    found = [
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": words}], max_tokens=8, temperature=0)
        for words in ASKED
    ]
    return [one.choices[0].message.content for one in found], found[0].system_fingerprint


def evaluated(folder: Path, word: str) -> tuple[list[str], str]:
    """The same of the word that `tunesmith eval` takes."""
    store = Store.open(folder / ".tunesmith")
    model = Models(store, Catalog(), home=folder).resolve(word)
    found = texts(model), f"fp_{model.digest[:12]}"
    store.close()
    return found


@pytest.mark.slow
def test_served_and_evaluated_an_alias_is_the_same_model_whatever_the_file_says(two):
    with serving(two) as (client, lines):
        served = {alias: asked(client, alias) for alias in ("first", "second")}
    assert lines == []
    assert served == {alias: evaluated(two, alias) for alias in ("first", "second")}
    assert served["first"] != served["second"]
    project(two, base="base2")
    with serving(two) as (client, _):
        assert {alias: asked(client, alias) for alias in ("first", "second")} == served


@pytest.mark.slow
def test_a_project_that_is_renamed_keeps_its_aliases(two):
    before = {alias: evaluated(two, alias) for alias in ("first", "second")}
    moved = two.rename(two.with_name("renamed"))
    assert {alias: evaluated(moved, alias) for alias in before} == before
    with serving(moved) as (client, lines):
        assert {alias: asked(client, alias) for alias in before} == before
    assert lines == []


@pytest.mark.slow
def test_what_an_older_record_says_by_its_whole_path_is_found_in_the_moved_store(two, parts):
    old = ModelRef(base=str(parts[0][0]), adapter=str(two / ".tunesmith" / "stages" / "digest0" / "adapter"))
    deploy(two, old=old)
    before = evaluated(two, "old")
    assert evaluated(two.rename(two.with_name("renamed")), "old") == before
    assert folder_at("/gone/.tunesmith/stages/other/adapter", two) == Path("/gone/.tunesmith/stages/other/adapter")


@pytest.mark.slow
def test_an_alias_that_cannot_be_loaded_is_told_and_keeps_no_other_from_being_served(two):
    shutil.rmtree(two / "base2")
    with serving(two) as (client, lines):
        assert asked(client, "first")[0]
        with pytest.raises(openai.InternalServerError, match="could not be loaded") as refused:
            asked(client, "second")
        assert refused.value.status_code == 503
        with pytest.raises(openai.PermissionDeniedError, match="no fine-tuned model"):  # as of every alias, loaded or not
            client.models.delete("second")
        assert [model.id for model in client.models.list()] == ["first"]
    (line,) = lines
    assert line.startswith("NOT SERVED: 'second'")
    assert "base2" in line


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "other shapes"])
def test_an_adapter_that_fails_midway_leaves_nothing_in_memory(two, parts, tmp_path, damage):
    place = two / ".tunesmith" / "stages" / "digest0" / "adapter"
    if damage == "cut":
        weights = place / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-40])
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(place / "adapter_model.safetensors")
        last = sorted(name for name in tensors if "lora_A" in name)[-1]
        save_file(tensors | {last: tensors[last][:, :-1].contiguous()}, place / "adapter_model.safetensors")
    store = Store.open(two / ".tunesmith")
    models = Models(store, Catalog(), home=two)
    base = models.load(models.ref("base1"), "base1")
    with pytest.raises(UsageError):
        models.load(models.ref("first"), "first")
    adapters = base.engine.adapters
    assert adapters.loaded == {}
    assert [module for module in base.engine.fast.model.modules() if getattr(module, "changes", None)] == []
    store.close()


@pytest.mark.slow
def test_weights_that_changed_since_they_were_deployed_are_told(two):
    store = Store.open(two / ".tunesmith")
    models = Models(store, Catalog(), home=two)
    ref = models.ref("first")
    digest = models.load(ref, "first").digest
    store.close()
    deploy(two, first=ModelRef(base=ref.base, adapter=ref.adapter, digest=digest))
    with serving(two) as (_, lines):
        assert lines == []
    tiny.adapter(two / "base1", two / ".tunesmith" / "stages" / "digest0" / "adapter", 9)
    with serving(two) as (_, lines):
        assert len(lines) == 1
        assert "computes otherwise" in lines[0]


@pytest.mark.slow
def test_every_word_is_one_model(two, parts):
    bases, adapters = parts
    store = Store.open(two / ".tunesmith")
    models = Models(store, Catalog(), home=two, run=lambda: ModelRef(base="../base2", adapter="stages/digest1/adapter"))
    version = Deployments(store).in_force()["first"].version
    Deployments(store).put("first", [Variant(name="other", model=models.ref("second"))], reason="test")
    tuned = {"run", "run:tuned", "second", "first", f"base2+{adapters[1]}", "./base2+.tunesmith/stages/digest1/adapter", str(adapters[1])}
    assert len({models.resolve(word).digest for word in tuned}) == 1
    assert models.resolve(f"first@{version}").digest == models.resolve(f"base1+{adapters[0]}").digest
    assert models.resolve("base1").digest == models.resolve(str(bases[0])).digest
    assert len({models.resolve(word).digest for word in ("run", "base1", "base2", f"first@{version}", f"base1+{adapters[1]}")}) == 5
    store.close()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("firts", "did you mean 'first'"),
        ("first@99", "first@1"),
        ("never@1", "no model 'never@1'|never deployed"),
        ("run", "no project file"),
        ("ft:gpt-4o-mini:acme::x", "openai:ft:gpt-4o-mini:acme::x"),
        ("http://127.0.0.1:1/v1", "names no model"),
    ],
)
def test_words_that_mean_nothing_say_what_a_word_can_be(two, word, said):
    store = Store.open(two / ".tunesmith")
    with pytest.raises((NotFound, UsageError), match=said):
        Models(store, Catalog(), home=two).resolve(word)
    store.close()


def test_an_adapter_on_an_adapter_is_refused_and_not_put_on_the_base_below(two):
    store = Store.open(two / ".tunesmith")
    other = two / ".tunesmith" / "stages" / "digest1" / "adapter"
    models = Models(store, Catalog(), home=two)
    for word in ("first", str(two / ".tunesmith" / "stages" / "digest0" / "adapter")):
        with pytest.raises(UsageError, match="is an adapter"):
            models.ref(f"{word}+{other}")
    assert models.ref(f"base1+{other}").adapter == "stages/digest1/adapter"
    store.close()


@pytest.mark.slow
def test_an_alias_under_an_instruction_is_evaluated_under_it(two):
    store = Store.open(two / ".tunesmith")
    models = Models(store, Catalog(), home=two)
    plain = models.resolve("first")
    told = Variant(name="told", model=models.ref("first"), instruction="Say yes or no.")
    Deployments(store).put("told", [told], reason="test")
    under = models.resolve("told")
    asked = [Prompt(messages=(Message(role="system", content="Say yes or no."), *prompt.messages)) for prompt in prompts()]
    assert texts(under) == [answer.text for answer in plain.answer(asked, GREEDY)]
    assert under.digest != plain.digest
    store.close()
