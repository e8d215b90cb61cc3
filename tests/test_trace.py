"""`tunesmith trace`: from an answer to deployment, run, plan, data and rows, and from each of them back to what was made of it."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.deployment import Variant
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.rows import write_parquet
from tunesmith.core.types import Example, Interaction, Message, example_id
from tunesmith.data.ledger import Ledger
from tunesmith.data.version import freeze
from tunesmith.store.deployments import Deployments
from tunesmith.store.interactions import InteractionLog
from tunesmith.store.runs import Runs
from tunesmith.store.store import Store

COLLECT, SPLIT, TOKENS, TRAIN = ("c" * 32, "5" * 32, "7" * 32, "a1" * 16)
WEIGHTS = "d1" * 16


def row(i: int) -> Example:
    messages = (Message(role="user", content=f"question {i}"), Message(role="assistant", content=f"answer {i}"))
    return Example(id=example_id(messages), messages=messages, origin=f"data/rows.jsonl:{i}")


def answered(number: int, **more) -> Interaction:
    fields = {
        "id": f"chatcmpl-{number:024d}", "created": 1000.0 + number, "alias": "bot", "variant": "tuned", "messages": (Message(role="user", content="hi"),),
        "answer": "yes", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 2, "first_token_s": 0.1, "total_s": 0.2,
        "project": "default", "deployment": 1, "model_digest": WEIGHTS, "conversation": "conv-1",
    }  # fmt: skip
    return Interaction(**fields | more)


def stage(store: Store, digest: str, name: str, needs: tuple[str, ...], **output) -> None:
    (store.folder / "stages" / digest).mkdir(parents=True)
    store.finish(digest, project="shop", name=name, seconds=2.0, output=output, needs=needs)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose run was deployed and asked: three rows trained on, one tested, one that was dropped; a frozen version of the rows."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tunesmith.yaml").write_text("name: shop\nsources: [{path: data/rows.jsonl}]\nbase: smollm2-135m\n")
    store = Store.open(folder / ".tunesmith")
    ledger = Ledger()
    for i in range(1, 6):
        ledger.enter(row(i).origin, row(i).id)
    ledger.mark(row(5).origin, "dropped", "too_short", "1 word")
    version = freeze(store.folder / "datasets", {"all": [row(i) for i in range(1, 5)]}, {"step": "import"}, ledger=ledger, note="the first")
    stage(store, COLLECT, "collect", (), inputs=5, invalid=0, rows=5, versions=[version.id])
    stage(store, SPLIT, "split", (COLLECT,), rows=4)
    for part, numbers in (("train", (1, 2, 3)), ("validation", ()), ("test", (4,))):
        write_parquet(store.folder / "stages" / SPLIT / f"{part}.parquet", [row(i) for i in numbers])
    ledger.write(store.folder / "stages" / SPLIT / "ledger.jsonl")
    stage(store, TOKENS, "tokens", (SPLIT,))
    stage(store, TRAIN, "train", (TOKENS,), plan={"method": "sft", "epochs": 2, "learning_rate": 0.01}, steps=6)
    run = Runs(store).begin("shop", "tunesmith run", ["--train.epochs", "2"], {"split": SPLIT, "train": TRAIN})
    Runs(store).finish(run.id, "pass")
    model = ModelRef(base="smollm2-135m", adapter=f"stages/{TRAIN}/adapter", digest=WEIGHTS, made_by=f"run:{TRAIN}")
    deployments = Deployments(store)
    deployments.put("bot", [Variant(name="tuned", model=model)], reason="gate passed")
    deployments.put("far", [Variant(name="theirs", upstream="big")])
    deployments.put("old", [Variant(name="tuned", model=ModelRef(base="x", adapter="gone"))])
    log = InteractionLog(store)
    rows = [
        answered(1),
        answered(2, status=500, error="broken", answer=""),
        answered(3, alias="far", variant="theirs", deployment=2, model_digest="e" * 32),
    ]
    rows += [
        answered(4, alias="old", deployment=3, model_digest=""),
        answered(5, alias="smollm2-135m", deployment=None, model_digest=WEIGHTS),
    ]

    async def write() -> None:
        await asyncio.gather(*map(log.write, rows))

    asyncio.run(write())
    log.close()
    store.close()
    return folder, run.id, version.id


def trace(project, word, *more, code=0, capsys):
    assert guarded(app, ["trace", word, "--config", str(project[0] / "tunesmith.yaml"), "--json", *more]) == code
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def kinds(links):
    return [(link["kind"], link["id"]) for link in links]


def test_an_answer_leads_to_its_rows(project, capsys):
    walked = trace(project, "chatcmpl-000000000000000000000001", capsys=capsys)
    assert walked["asked"]["facts"]["conversation"] == "conv-1"
    came = kinds(walked["came_from"])
    expected = [
        ("deployment", "bot@1"), ("model", WEIGHTS), ("training", TRAIN), ("run", project[1]), ("plan", TRAIN), ("data", SPLIT),
        ("ledger", SPLIT), ("source", "data/rows.jsonl"), *(("row", row(i).id) for i in (1, 2, 3)), ("collected", COLLECT), ("data version", project[2]),
    ]  # fmt: skip
    assert came[: len(expected)] == expected
    by_kind = {link["kind"]: link for link in reversed(walked["came_from"])}
    assert by_kind["plan"]["facts"]["epochs"] == 2
    assert by_kind["run"]["facts"]["overrides"] == ["--train.epochs=2"]
    assert by_kind["data"]["facts"]["counts"] == {"train": 3, "validation": 0, "test": 1}
    assert by_kind["ledger"]["facts"]["fates"] == {"kept": 4, "dropped": 1}
    assert by_kind["row"]["facts"]["origin"] == "data/rows.jsonl:1"
    assert [link["facts"]["requests"] for link in walked["led_to"] if link["kind"] == "conversation"] == [5]


@pytest.mark.parametrize("word", ["data/rows.jsonl:2", "rows.jsonl:2", row(2).id, row(2).id[:8]])
def test_a_row_leads_to_the_answers_of_what_was_trained_on_it(project, word, capsys):
    walked = trace(project, word, capsys=capsys)
    assert (walked["asked"]["id"], kinds(walked["came_from"])) == (row(2).id, [("source", "data/rows.jsonl")])
    led = kinds(walked["led_to"])
    expected = [
        ("data", SPLIT),
        ("training", TRAIN),
        ("run", project[1]),
        ("deployment", "bot@1"),
        ("answers", "bot@1"),
        ("data version", project[2]),
    ]
    assert led == expected
    answers = next(link for link in walked["led_to"] if link["kind"] == "answers")
    assert (answers["facts"]["requests"], answers["facts"]["errors"]) == (2, 1)


@pytest.mark.parametrize(("number", "fate"), [(4, "in 'test'"), (5, "dropped by too_short: 1 word")])
def test_a_row_that_was_not_trained_on_leads_to_no_answer(project, number, fate, capsys):
    walked = trace(project, f"data/rows.jsonl:{number}", capsys=capsys)
    assert {link["kind"] for link in walked["led_to"]} == {"data", "data version"}
    assert fate in walked["led_to"][0]["text"]


@pytest.mark.parametrize(
    "word", ["run", "bot", "bot@1", f"run:{TRAIN}", TRAIN, TRAIN[:10], WEIGHTS, WEIGHTS[:8], "version", SPLIT, COLLECT, TOKENS]
)
def test_every_word_leads_both_ways(project, word, capsys):
    word = {"run": project[1], "version": project[2]}.get(word, word)
    walked = trace(project, word, "--rows", "1", capsys=capsys)
    there = [*kinds([walked["asked"]]), *kinds(walked["came_from"])]
    assert ("row", row(1).id) in there or word == COLLECT
    assert ("row", row(2).id) not in there  # as many as were asked for
    tallies = [link["facts"]["requests"] for link in walked["led_to"] if link["kind"] == "answers"]
    assert tallies[:1] == [2]


def test_a_later_run_on_an_earlier_runs_split_is_led_to(tmp_path, capsys):
    (tmp_path / "tunesmith.yaml").write_text("name: shop\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\n")
    later_collect, later_split, later_train = "ca" * 16, "5b" * 16, "ab" * 16
    with contextlib.closing(Store.open(tmp_path / ".tunesmith")) as store:
        stage(store, SPLIT, "split", ())
        write_parquet(store.folder / "stages" / SPLIT / "train.parquet", [row(1)])
        stage(store, later_collect, "collect", (), inputs=1, versions=[f"{SPLIT[:24]}:train"])
        stage(store, later_split, "split", (later_collect,))
        stage(store, later_train, "train", (later_split,))
    assert ("training", later_train) in kinds(trace((tmp_path,), SPLIT[:24], capsys=capsys)["led_to"])
    assert ("row", row(1).id) in kinds(trace((tmp_path,), later_train, capsys=capsys)["came_from"])


def test_what_cannot_be_seen_is_said(project, capsys):
    far = trace(project, "chatcmpl-000000000000000000000003", capsys=capsys)
    assert kinds(far["came_from"]) == [("deployment", "far@2"), ("upstream", "big")]
    assert "cannot be seen" in far["came_from"][1]["text"]
    old = trace(project, "chatcmpl-000000000000000000000004", capsys=capsys)
    assert old["came_from"][-1]["kind"] == "unknown"
    assert "not recorded" in old["came_from"][-1]["text"]


def test_an_answer_without_a_deployment_is_found_by_its_weights(project, capsys):
    walked = trace(project, "chatcmpl-000000000000000000000005", capsys=capsys)
    assert kinds(walked["came_from"])[:3] == [("model", WEIGHTS), ("training", TRAIN), ("run", project[1])]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("nobody", "ALIAS@VERSION"),
        ("bot@7", "bot@1"),
        ("chatcmpl-0000", "several requests begin with"),
        ("file-nothing", "file-ID"),
        ("data/rows.jsonl:99", "FILE:LINE"),
    ],
)
def test_a_word_that_is_nothing_says_what_it_can_be(project, word, said, capsys):
    error = trace(project, word, code=2, capsys=capsys)["error"]
    assert said in error["message"]
    assert word in error["message"]


def test_in_words_for_people(project, capsys):
    assert guarded(app, ["trace", "bot", "--config", str(project[0] / "tunesmith.yaml")]) == 0
    said = capsys.readouterr().out
    assert said.index("comes from") < said.index("data/rows.jsonl:1  question 1") < said.index("led to") < said.index("2 requests, 1 error")
    assert "gate passed" in said


def test_stages_of_an_older_store_are_found_by_their_run(tmp_path, capsys):
    (tmp_path / "tunesmith.yaml").write_text("name: shop\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\n")
    with contextlib.closing(Store.open(tmp_path / ".tunesmith")) as store:
        stage(store, SPLIT, "split", ())
        write_parquet(store.folder / "stages" / SPLIT / "train.parquet", [row(1)])
        stage(store, TRAIN, "train", ())
        unknown = trace((tmp_path,), TRAIN, capsys=capsys)
        assert "were not recorded" in unknown["came_from"][-1]["text"]
        Runs(store).begin("shop", "tunesmith run", [], {"split": SPLIT, "train": TRAIN})
        assert ("row", row(1).id) in kinds(trace((tmp_path,), TRAIN, capsys=capsys)["came_from"])


def test_from_a_bad_answer_back_to_the_rows_that_most_likely_taught_it(project, capsys):
    store = Store.open(project[0] / ".tunesmith")
    log = InteractionLog(store)
    asyncio.run(log.write(answered(77, messages=(Message(role="user", content="what about question 3 then"),), answer="answer 3")))
    log.close()
    store.close()
    walked = trace(project, "chatcmpl-000000000000000000000077", "--nearest", "--rows", "2", capsys=capsys)
    split = [link for link in walked["came_from"] if link["kind"] == "row"][:2]
    assert [link["id"] for link in split] == [row(3).id, row(1).id]
    assert split[0]["facts"]["likeness"] > split[1]["facts"]["likeness"] > 0
    error = trace(project, "bot", "--nearest", code=2, capsys=capsys)
    assert "no request's id" in error["error"]["message"]
