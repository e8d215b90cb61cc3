"""A model that looks passages up answers like any other: whole, streamed, in a batch, evaluated, traced; and says what it read."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

import tiny
from document_parts import pdf
from openai_spec import assert_valid, require_spec
from tunesmith.api.app import create_app, running
from tunesmith.api.serve import application
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core import wire
from tunesmith.core.deployment import Variant
from tunesmith.core.errors import ConfigError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.passages import Retrieval, SourceText, cut
from tunesmith.core.types import Answer, Example, Message, Prompt, Sampling, example_id
from tunesmith.data.ledger import Ledger
from tunesmith.data.version import freeze
from tunesmith.models.catalog import Catalog
from tunesmith.models.echo import EchoModel
from tunesmith.models.grounded import GroundedModel
from tunesmith.models.passage_index import PassageIndex
from tunesmith.models.resolve import Models
from tunesmith.models.retrieval import asked_with
from tunesmith.store.deployments import Deployments
from tunesmith.store.indexes import Indexes, NamedIndex
from tunesmith.store.interactions import Interactions
from tunesmith.store.store import Store

TEXTS = [
    SourceText(source="manual.pdf", page=3, text="The bank of Ohio signed the credit agreement in June."),
    SourceText(source="manual.pdf", page=4, text="Nobody in York signed it."),
    SourceText(source="prices list.xlsx", part="sheet A", text="name: York; price: 3"),
]
QUESTION = "who signed in Ohio?"


def by_words(text):
    return len(text.split())


@pytest.fixture(scope="module")
def index():
    return PassageIndex.build(cut(TEXTS, by_words))


def asked(words, *before):
    return Prompt(messages=(*before, Message(role="user", content=words)))


def test_the_prompt_has_the_passages_and_the_answer_its_sources(index):
    model = GroundedModel(EchoModel(), index, 2, "words")
    told = []
    system, earlier = Message(role="system", content="Be brief."), Message(role="user", content="hello")
    prompts = [asked(QUESTION, system, earlier), asked("{passages} xyzzy"), Prompt(messages=(system,))]
    answers = model.answer(prompts, Sampling(max_tokens=500), lambda i, answer: told.append((i, answer)))
    first, second, third = answers
    assert sorted(told, key=lambda pair: pair[0]) == list(enumerate(answers))
    assert "[1] manual.pdf, page 3\nThe bank of Ohio signed" in first.text
    assert first.text.endswith(f"Question: {QUESTION}")
    assert [(one.number, one.source, one.page) for one in first.sources.passages] == [(1, "manual.pdf", 3), (2, "manual.pdf", 4)]
    assert (first.sources.index, first.sources.dropped) == (index.digest, 0)
    assert "(no passage was found)\n\nQuestion: {passages} xyzzy" in second.text, "a question is no template"
    assert (second.sources.passages, third.text, third.sources.passages) == ((), "", ())
    grounded = model.ground(prompts[:1], Sampling())[0].prompt
    assert grounded.messages[:2] == (system, earlier)
    assert len({model.digest, GroundedModel(EchoModel(), index, 3, "words").digest, EchoModel().digest}) == 3


def test_numbers_in_brackets_are_citations(index):
    model = GroundedModel(EchoModel(), index, 3, "words", "{question}{passages}")
    (made,) = model.ground([asked("York")], Sampling())
    said = "Nobody [1]. Or [2, 1][9] or [x] or [99999] list[0]."
    cited = wire.cited(Answer(text=said, sources=made.sources))
    places = [
        (said[one["start_index"] : one["end_index"]], one["title"]) for one in (mark["url_citation"] for mark in cited["annotations"])
    ]
    first, second = (passage.place for passage in made.sources.passages)
    assert {first, second} == {"manual.pdf, page 4", "prices list.xlsx, sheet A"}
    assert places == [("[1]", first), ("[2, 1]", second), ("[2, 1]", first)]
    assert {one["url"] for one in cited["sources"]["passages"]} == {"manual.pdf#page=4", "prices%20list.xlsx#sheet%20A"}
    assert wire.cited(Answer(text=said)) == {}


def test_an_answer_with_sources_is_what_the_published_schema_says(index):
    require_spec()
    (made,) = GroundedModel(EchoModel(), index, 3, "words").ground([asked("York")], Sampling())
    identity = {"id": "c", "created": 1, "model": "support-rag", "system_fingerprint": "f"}
    answer = Answer(text="Nobody [1], [2].", sources=made.sources)
    assert_valid("CreateChatCompletionResponse", wire.completion(identity, [wire.choice(0, answer, with_logprobs=False)], wire.usage(1, 2)))
    assert_valid("CreateChatCompletionStreamResponse", wire.chunk(identity, 0, wire.cited(answer)))


def test_the_time_of_looking_up_is_time_until_the_first_token(index):
    """Looking up reads every passage, and takes longer than to say a word again."""
    quickest = [
        min(model.answer([asked("York")], Sampling())[0].first_token_s for _ in range(9))
        for model in (EchoModel(), GroundedModel(EchoModel(), index, 3, "words"))
    ]
    assert quickest == sorted(quickest)


@pytest.mark.parametrize("template", ["{question}", "{passages} {question} {question}", ""])
def test_a_template_has_each_place_once(index, template):
    with pytest.raises(ConfigError, match=r"allowed: \{passages\} once"):
        GroundedModel(EchoModel(), index, 2, "words", template)


@pytest.mark.slow
def test_passages_that_have_no_room_are_left_out_and_counted(tmp_path):
    local = Models(None, Catalog(tmp_path / "catalog")).resolve(str(tiny.model(tmp_path / "base", context=512)))
    texts = [SourceText(source=f"{i}.md", text=" ".join([f"bank {i}"] + ["agreement"] * 30)) for i in range(9)]
    index = PassageIndex.build(cut(texts, by_words))
    model = GroundedModel(local, index, 9, "words")
    made = model.ground([asked("bank"), asked("bank " + "of York " * 400)], Sampling(max_tokens=16))
    shown, dropped = len(made[0].sources.passages), made[0].sources.dropped
    assert shown + dropped == 9
    assert 0 < shown < 9
    count = len(local.loaded().encode(made[0].prompt))
    assert count + 16 <= 512
    assert made[1].prompt == asked("bank " + "of York " * 400), "where not even one fits the model itself says that it is too long"
    assert (len(made[1].sources.passages), made[1].sources.dropped) == (0, 9)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with an index, an alias on a tiny base and one on another server, both with it."""
    folder = tmp_path_factory.mktemp("project")
    base = tiny.model(folder / "base", context=1024)
    tiny.encoder(folder / "encoder")
    (folder / "tunesmith.yaml").write_text(
        f"name: p\nbase: {base}\nsources: [{{path: rows.jsonl}}]\nserve: {{names: {{gpt-4o: '{base}?manuals&k=2'}}}}\n"
    )
    row = {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "no"}]}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    with closing(Store.open(folder / ".tunesmith")) as store:
        index = PassageIndex.build(cut(TEXTS, by_words))
        place = Indexes(store.layout).folder(index.digest)
        place.mkdir(parents=True)
        index.save(place)
        Indexes(store.layout).name("manuals", NamedIndex(digest=index.digest, created=1.0))
        retrieval = Retrieval(index=index.digest, k=2, template="[1] cites\n{passages}\nQuestion: {question}")
        Deployments(store).put("support-rag", [Variant(name="rag", model=ModelRef(base=str(base)), retrieval=retrieval)], reason="tried")
    return folder


@pytest.fixture
def call(project, monkeypatch, capsys):
    monkeypatch.chdir(project)

    def made(*words):
        code = guarded(app, [*words, "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out.splitlines()[-1]), said.err

    return made


@pytest.mark.slow
def test_it_is_served_evaluated_and_traced_like_any_model(project, call, index):
    openai = pytest.importorskip("openai")
    lines = []
    with application(project / "tunesmith.yaml", (), lines.append, names={}) as served:
        with running(served.app) as url:
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
            request = {"model": "support-rag", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 6, "temperature": 0}
            whole = client.chat.completions.create(**request)
            message = whole.choices[0].message
            assert message.annotations == []
            assert message.sources["index"] == index.digest
            titles = [(one["number"], one["title"], one["url"]) for one in message.sources["passages"]]
            assert titles == [(1, "manual.pdf, page 3", "manual.pdf#page=3"), (2, "manual.pdf, page 4", "manual.pdf#page=4")]
            plain = client.chat.completions.create(**{**request, "model": str(project / "base")})
            assert whole.usage.prompt_tokens > plain.usage.prompt_tokens + 20
            assert not hasattr(plain.choices[0].message, "sources")

            chunks = list(client.chat.completions.create(**request, stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
            assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 1, "it comes word by word"
            told = [chunk.choices[0].delta.sources for chunk in chunks if "sources" in (chunk.choices[0].delta.model_extra or {})]
            assert told == [message.sources]
            again = [*request["messages"], message.model_dump(), {"role": "user", "content": "and in York?"}]
            assert client.chat.completions.create(**{**request, "messages": again}).choices[0].message.sources["passages"]
            several = client.chat.completions.create(**{**request, "model": "gpt-4o", "n": 2})
            assert [len(choice.message.sources["passages"]) for choice in several.choices] == [2, 2]
            schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
            form = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
            held = client.chat.completions.create(**{**request, "max_tokens": 40}, response_format=form)
            assert json.loads(held.choices[0].message.content) == {"a": 1}
            with pytest.raises(openai.BadRequestError, match="looks passages up for a question"):
                client.completions.create(model="support-rag", prompt="The bank")
        row = Interactions(served.store).find(whole.id)
    assert [(one.source, one.page) for one in row.sources.passages] == [("manual.pdf", 3), ("manual.pdf", 4)]
    assert row.messages == (Message(role="user", content=QUESTION),), "the log has what was asked"

    code, traced, _ = call("trace", whole.id)
    link = next(link for link in traced["came_from"] if link["kind"] == "index")
    assert (code, link["id"], link["text"]) == (0, index.digest, "manuals: 2 passages read; 3 passages of 2 documents")
    assert [link["id"] for link in call("trace", "support-rag")[1]["came_from"] if link["kind"] == "index"] == [index.digest]

    code, found, said = call(
        "eval", "support-rag", f"{project / 'base'}?manuals&k=1&how=words", "--data", "rows.jsonl", "--max_tokens", "4"
    )
    assert code == 0, said
    assert len({one["id"] for one in found["evaluations"]}) == 2
    (kept,) = [
        json.loads(path.read_text()) for path in project.glob(f".tunesmith/evaluations/{found['evaluations'][0]['id']}/evaluation.json")
    ]
    assert [one["page"] for one in kept["rows"][0]["answer"]["sources"]["passages"]] == [3, 4], "an evaluation keeps what was read"


@pytest.mark.slow
def test_a_server_elsewhere_answers_with_passages_from_here(project, index):
    openai = pytest.importorskip("openai")
    with running(create_app({"behind": EchoModel()})) as far, closing(Store.open(project / ".tunesmith")) as store:
        Deployments(store).put("far-rag", [Variant(name="far", upstream="far", retrieval=Retrieval(index=index.digest, k=1))])
        overrides = ["--serve.upstreams", json.dumps({"far": {"base_url": far, "model": "behind"}})]
        with application(project / "tunesmith.yaml", overrides, lambda _: None, names={}) as served, running(served.app) as url:
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
            message = client.chat.completions.create(model="far-rag", messages=[{"role": "user", "content": QUESTION}]).choices[0].message
    assert "[1] manual.pdf, page 3" in message.content
    assert [one.url_citation.title for one in message.annotations] == ["manual.pdf, page 3"] * 2, (
        "the template's own example, and its passage"
    )
    assert len(message.sources["passages"]) == 1


@pytest.mark.slow
def test_what_is_not_there_is_one_clear_error(project, call):
    for word, expected in {
        "echo?manual": "did you mean 'manuals'?",
        "echo?manuals&n=3": "k=…, how=…",
        "echo?manuals&k=0": "1 to 64",
        "echo?manuals&k=many": "k from 1 to 64",
        "echo?manuals&how=vectors": "how words",
        "?manuals": "names no model",
        "echo?": "names no index",
    }.items():
        code, _, said = call("eval", word, "--data", "rows.jsonl")
        assert (code, expected in said) == (2, True), f"{word}: {said}"
    code, _, said = call("run", "--base", f"{project / 'base'}?manuals", "--dry-run")
    assert (code, "not one with weights of its own" in said) == (2, True), said
    assert asked_with("http://h/v1?a=1#m") == ("http://h/v1?a=1#m", None)
    assert asked_with("http://h/v1#m?manuals") == ("http://h/v1#m", Retrieval(index="manuals"))


@pytest.mark.slow
def test_an_index_that_is_gone_keeps_no_other_alias_from_being_served(project):
    with closing(Store.open(project / ".tunesmith")) as store:
        lost = Variant(name="v", model=ModelRef(base=str(project / "base")), retrieval=Retrieval(index="0" * 32))
        Deployments(store).put("lost", [lost])
    lines = []
    with application(project / "tunesmith.yaml", (), lines.append, names={}) as served:
        assert served.router.has("support-rag")
    assert any("NOT SERVED: 'lost'" in line and "no index of passages" in line for line in lines)


def solved(part):
    messages = (Message(role="user", content=f"a row of {part}"), Message(role="assistant", content="yes"))
    return Example(id=example_id(messages), messages=messages, origin=f"r.jsonl:{part}")


@pytest.mark.slow
def test_documents_become_an_index_that_a_name_answers_with(project, call):
    folder = project / "docs"
    folder.mkdir()
    (folder / "pump.md").write_text("# Pump\n\nScrew it to the wall.\n\n# Care\n\nRinse the filter once a week.\n")
    (folder / "a.pdf").write_bytes(pdf(["The bank of Ohio pays."], ["Nobody in York does."]))
    (folder / "bad.pdf").write_bytes(pdf(["x"], password=True))
    (folder / "logo.png").write_bytes(b"x")
    words = ("data", "documents", "docs", "--name", "house", "--encoder", str(project / "encoder"), "--size", "60", "--overlap", "8")
    code, found, said = call(*words)
    assert (code, "docs/bad.pdf: it needs a password" in said, "--skip NAME" in said) == (1, True, True)
    assert not list(project.glob(".tunesmith/indexes/.*")), "nothing was begun"
    code, found, said = call(*words, "--skip", "bad.pdf", "--rows", "rows.jsonl")
    assert (code, found["files"], found["facts"]["sources"], found["cached"]) == (0, 2, 3, False), said
    assert found["aside"] == ["docs/bad.pdf", "docs/logo.png"]
    again = call(*words, "--skip", "bad.pdf", "--rows", "rows.jsonl")[1]
    assert (again["cached"], again["facts"]) == (True, found["facts"])
    code, listing, _ = call("data", "documents")
    assert next((one["name"], one["digest"]) for one in listing["indexes"]) == ("house", found["facts"]["digest"])

    code, told, _ = call("data", "passages", "house", "how often is the filter rinsed?", "xyzzy", "-k", "2")
    assert [len(one["hits"]) for one in told["answers"]] == [2, 2]
    best = told["answers"][0]["hits"][0]["passage"]
    assert (best["source"], best["text"]) == ("docs/pump.md", "# Care\n\nRinse the filter once a week.")
    (hit,) = call("data", "passages", "house", "York", "-k", "1", "--how", "words")[1]["answers"][0]["hits"]
    assert (hit["passage"]["source"], hit["passage"]["page"]) == ("docs/a.pdf", 2)

    (project / "asked.txt").write_text("{question} {passages}")
    code, made, said = call("deploy", "house-bot", f"{project / 'base'}?house&k=1&how=words", "--template", "@asked.txt", "--reason", "new")
    assert (code, made["variants"][0]["retrieval"]["index"]) == (0, found["facts"]["digest"]), said
    before = call("eval", "house-bot", "--data", "rows.jsonl", "--max_tokens", "4")[1]["evaluations"][0]
    (folder / "pump.md").write_text("# Pump\n\nAnother text about Ohio and who signed.\n")
    changed = call(*words, "--skip", "bad.pdf")[1]
    assert changed["facts"]["digest"] != found["facts"]["digest"]
    after = call("eval", "house-bot", "--data", "rows.jsonl", "--max_tokens", "4")[1]["evaluations"][0]
    assert (after["id"], after["asked"]) == (before["id"], 0), "what is deployed does not change with the name"
    (folder / "bad.pdf").unlink()
    parts = {part: [solved(part)] for part in ("train", "validation", "test")}
    ledger = Ledger()
    for (row,) in parts.values():
        ledger.enter(row.origin, row.id)
    freeze(project / ".tunesmith" / "datasets", parts, {"step": "split"}, ledger=ledger)
    code, rows, _ = call("data", "documents", "--rows", "latest", "--encoder", "none", "--name", "rows")
    assert (code, rows["facts"]["passages"]) == (0, 1), "of rows that are split those to train on"
    assert call("data", "passages", "rows", "train")[1]["answers"][0]["hits"][0]["passage"]["source"] == "r.jsonl:train"
    for wrong, expected in {
        ("deploy", "x", "echo?house"): "answers elsewhere",
        ("deploy", "x", str(project / "base"), "--template", "{question}{passages}"): "looks nothing up",
        ("deploy", "x", f"{project / 'base'}?hause"): "did you mean 'house'?",
        ("deploy", "x", f"{project / 'base'}?manuals&how=vectors"): "how words",
        ("deploy", "x", "house-bot?house"): "looks passages up already",
        ("eval", "house-bot?house", "--data", "rows.jsonl"): "looks passages up already",
        ("data", "documents", "docs", "--size", "500", "--encoder", str(project / "encoder")): "reads 128",
        ("data", "documents", "docs", "--name", "a?b"): "cannot be called 'a?b'",
        ("data", "documents", "doc"): "no document 'doc'",
        ("data", "passages", "house"): "QUESTION",
        ("data", "documents", "--rows", "latest:test"): "are sealed rows",
    }.items():
        code, _, said = call(*wrong)
        assert (code, expected in said) == (2, True), f"{wrong}: {said}"
