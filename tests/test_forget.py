"""Whoever is forgotten is in no byte of the store afterwards, and nobody else is missing."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json

import httpx
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from api_parts import running_server
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.person import Person
from tunesmith.core.row_kinds import prompt_of
from tunesmith.core.rows import write_jsonl, write_parquet
from tunesmith.core.types import Example, Interaction, LedgerLine, Message
from tunesmith.data import version as versions
from tunesmith.monitor.status import status
from tunesmith.store import tables
from tunesmith.store.batches import Batches
from tunesmith.store.erasure import erase, person_of
from tunesmith.store.files import Files
from tunesmith.store.interactions import InteractionLog, Interactions
from tunesmith.store.store import Store

ANNA, BERT = "anna-4711@shop.example", "joanna-4711@shop.example"
COMMON = "Where is my parcel, please?"
SECRET = 'my "Wohnung" is at Höhenweg 7,\nthird floor'  # quotes, a new line and a letter beyond ASCII: as texts and as JSON writes them


def everything(folder):
    """(name, bytes) of all files, Parquet also as it reads."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()
            if path.suffix == ".parquet":
                yield f"{path.name} read", json.dumps(pq.read_table(path).to_pylist(), ensure_ascii=False, default=str).encode()


def holding(folder, *marks):
    ways = [way for mark in marks for way in (mark, json.dumps(mark)[1:-1], json.dumps(mark, ensure_ascii=False)[1:-1])]
    return sorted({(name, way) for name, data in everything(folder) for way in ways if way.encode() in data})


def chat(served, user, text, **more):
    body = {"model": "echo", "safety_identifier": user, "messages": [{"role": "user", "content": text}], **more}
    answer = httpx.post(f"{served.url}/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def post(served, path, **more):
    answer = httpx.post(f"{served.url}/{path}", timeout=60, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def forgotten(tmp_path_factory):
    """(project folder, what was asked by whom, the receipt) after everything that keeps words has had both users'."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tunesmith.yaml").write_text("name: shop\nsources: [{path: rows.jsonl}]\nbase: echo\nstore: store\n")
    asked = {ANNA: [], BERT: []}
    with running_server(folder, folder) as served:
        for user in (ANNA, BERT):
            asked[user] += [
                chat(served, user, f"{SECRET} {user[:3]}"),
                chat(served, user, COMMON),
                chat(served, user, f"keep {user}", store=True),
            ]
            body = {"model": "echo", "input": f"a response for {SECRET} {user[:3]}", "safety_identifier": user}
            asked[user].append(post(served, "responses", json=body)["id"])
            post(served, "feedback", json={"interaction": asked[user][0], "correction": f"so says {user}", "by": user})
        lines = [
            {"custom_id": f"{user[:3]}-{i}", "method": "POST", "url": "/v1/chat/completions",
             "body": {"model": "echo", "user": user, "messages": [{"role": "user", "content": f"in a batch, {SECRET} {user[:3]}"}]}}
            for i in range(2) for user in (ANNA, BERT)
        ]  # fmt: skip
        upload = {"file": ("in.jsonl", io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))}
        batch = post(served, "files", files=upload, data={"purpose": "batch"})["id"]
    assert guarded(app, ["data", "import", "log:alias=echo", "--config", str(folder / "tunesmith.yaml"), "--json", "--yes"]) == 0
    (first,) = versions.log(folder / "store" / "datasets")
    with_child = versions.freeze(folder / "store" / "datasets", {"train": [example(BERT, "x")]}, {"step": "later"}, parent=first.id)
    store = Store.open(folder / "store")
    split(store, asked[ANNA][0])
    score = {"instrument": "m", "alias": "echo", "metric": "m", "answered": 1.0, "scored": 1.0, "golden": False}
    with store.writing() as connection:
        connection.execute(sa.insert(tables.quality_scores), [score | {"interaction": asked[user][0]} for user in (ANNA, BERT)])
    (folder / "store" / "judged").mkdir()
    write_jsonl(folder / "store" / "judged" / "said.jsonl", [{"row": "1", "text": f"{SECRET} ann"}, {"row": "2", "text": f"{SECRET} joa"}])
    (folder / "export.csv").write_text(f"{ANNA},yes\n")
    assert all(holding(folder / "store", user) for user in (ANNA, BERT))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        words = ["monitor", "forget", ANNA, "--config", str(folder / "tunesmith.yaml"), "--yes", "--json", "--backup-days", "30"]
        assert guarded(app, words) == 0
    made = {"batch": batch, "first": first.id, "child": with_child.id, "store": store, "receipt": json.loads(said.getvalue())}
    return folder, asked, made


def example(user, number):
    turns = (Message(role="user", content=f"{SECRET} {user[:3]}"), Message(role="assistant", content="yes"))
    return Example(id=f"{number}{user[:3]}", messages=turns, origin=f"interaction:{number}")


def split(store, number):
    """A run's split and its tokens, made from a request of the log, and a model that was trained on them."""
    for name, needs in (("split", []), ("tokens", ["split"]), ("train", ["split", "tokens"])):
        folder = store.layout.stage(name * 4)
        folder.mkdir(parents=True)
        (folder / "tokens.bin").write_bytes(b"1 2 3")
        store.finish(name * 4, project="shop", name=name, seconds=1.0, output={}, needs=[need * 4 for need in needs])
    write_parquet(store.layout.stage("split" * 4) / "train.parquet", [example(ANNA, number), example(BERT, "y")])
    write_jsonl(store.layout.stage("split" * 4) / "ledger.jsonl", [LedgerLine(row="1", origin=f"interaction:{number}", fate="kept")])


@pytest.mark.slow
def test_no_byte_of_the_store_is_about_them(forgotten):
    folder, asked, made = forgotten
    receipt = made["receipt"]
    assert receipt["rows"] == {"interactions": 4, "chats": 1, "responses": 1, "feedback": 1, "quality_scores": 1}
    assert [name.partition("/")[0] for name in receipt["files"]] == [made["batch"], "judged", "sources"]
    assert receipt["left"] == []
    assert receipt["searched_files"] > 8
    assert [name.rpartition("/")[2] for name in receipt["elsewhere"]] == ["export.csv"], "not ours to change"
    assert "the last of them is gone on" in receipt["backups"]
    assert holding(folder / "store", f"{SECRET} ann", *asked[ANNA]) == []
    assert [name for name, data in everything(folder / "store") if ANNA.encode() in data.replace(BERT.encode(), b"")] == []
    store = Store.open(folder / "store")
    assert status(store)["requests"] == 8, "what was counted names nobody"
    store.close()


@pytest.mark.slow
def test_nobody_else_is_missing(forgotten):
    folder, asked, made = forgotten
    store = Store.open(folder / "store")
    log = Interactions(store)
    assert [log.find(number) is not None for number in asked[BERT]] == [True] * 4
    kept = Files(store).open(made["batch"]).read().splitlines()
    assert [json.loads(line)["custom_id"] for line in kept] == ["joa-0", "joa-1"]
    assert Batches(store).listed("default", after=None, limit=9)[0] == []
    assert (folder / "store" / "judged" / "said.jsonl").read_text().count("\n") == 1
    store.close()


@pytest.mark.slow
def test_the_versions_that_follow_leave_them_out(forgotten):
    folder, _, made = forgotten
    root = folder / "store" / "datasets"
    known = {version.id: version for version in versions.log(root)}
    assert made["first"] not in known
    child = known.pop(made["child"])
    (new,) = known.values()
    assert child.parent == new.id
    rows = [row for name in new.counts for row in versions.rows_of(root, new, name)]
    said = sorted(turn.text for row in rows for turn in prompt_of(row))
    assert (len(said), COMMON in said, any("third floor ann" in text for text in said)) == (4, True, False)
    assert "erased" in new.note


@pytest.mark.slow
def test_what_was_made_of_their_rows_is_made_again_and_the_model_is_named(forgotten, capsys):
    folder, _, made = forgotten
    store = made["store"]
    assert [store.finished(name * 4) is not None for name in ("split", "tokens", "train")] == [False, False, True]
    assert not store.layout.stage("tokens" * 4).exists()
    assert made["receipt"]["models"] == [{"model": f"run:{'train' * 4}", "names": [], "retrain": "tunesmith run"}]
    assert guarded(app, ["monitor", "forget", "nobody-here", "--config", str(folder / "tunesmith.yaml"), "--yes"]) == 0
    said = capsys.readouterr().out
    assert "no row of the tables" in said
    assert "nothing of them was found" in said
    assert "say with --backup-days" in said


def test_what_others_have_too_is_no_mark(tmp_path):
    def row(number, user, conversation, text):
        return Interaction(
            id=f"chatcmpl-{number:08}", created=1.0, alias="a", variant="a", messages=(Message(role="user", content=text),), answer="",
            finish_reason="stop", prompt_tokens=1, completion_tokens=1, first_token_s=0.1, total_s=0.2, user_key=user, conversation=conversation,
        )  # fmt: skip

    store = Store.open(tmp_path)
    log = InteractionLog(store)
    own, common = "conversation-of-anna", "conversation-of-all"
    rows = [row(1, ANNA, own, "mine alone, by name"), row(2, None, own, "mine alone, without a name")]
    rows += [row(3, ANNA, common, COMMON), row(4, BERT, common, COMMON), row(5, None, common, "nobody's")]

    async def write():
        for each in rows:
            await log.write(each)

    asyncio.run(write())
    log.close()
    person = person_of(store, ANNA)
    assert person.ids == {"chatcmpl-00000001", "chatcmpl-00000002", "chatcmpl-00000003", own}
    assert person.texts == {"mine alone, by name", "mine alone, without a name"}
    assert erase(store, person) == {"interactions": 3}
    assert [each.id for each in Interactions(store).answered({})] == ["chatcmpl-00000004", "chatcmpl-00000005"]
    store.close()


def test_a_key_is_no_part_of_a_longer_one_and_no_common_word():
    person = Person("user-471", frozenset({"chatcmpl-12345678"}), frozenset({"short", "a text that is long enough"}))
    theirs = [
        "user-471",
        "ask user-471.",
        'said "user-471", twice',
        "a line\nuser-471",
        "ä\tuser-471",
        "chatcmpl-12345678",
        "so: a text that is long enough!",
    ]
    others = ["user-4711", "super-user-471", "user-471@example.com", "user-471.example", "a short one", "chatcmpl-123456789"]
    assert [text for text in [*theirs, *others] if person.about({"text": text})] == theirs
    lines = [json.dumps({"deep": json.dumps([text])}).encode() for text in [*theirs, *others]]
    assert [person.in_line(line) for line in lines] == [True] * len(theirs) + [False] * len(others)
    for key, word in (("customer", "dear customer"), ("ann", "annual")):
        lines = [json.dumps({"body": {field: key}}).encode() for field in ("user", "safety_identifier")]
        assert [Person(key).in_line(line) for line in [*lines, json.dumps({"text": word}).encode()]] == [True, True, False]
