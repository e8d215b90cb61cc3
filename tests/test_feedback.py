"""What people say of answers: sent to the API, imported from other tools, written once, about the right request."""

from __future__ import annotations

import json

import msgspec
import pytest

from api_parts import Server
from tunesmith.api.app import create_app, running
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.models.echo import EchoModel
from tunesmith.monitor.feedback_formats import read_export
from tunesmith.store.feedback import FeedbackLog
from tunesmith.store.store import Store

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A project's folder, a server over its store that has answered two questions, and their ids."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tunesmith.yaml").write_text("name: shop\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\n")
    store = Store.open(folder / ".tunesmith")
    with running(create_app({"echo": EchoModel()}, store=store)) as url:
        server = Server(url, store, folder)
        ids = [
            server.client.chat.completions.create(model="echo", messages=[{"role": "user", "content": words}]).id
            for words in ("which way?", "how far? " + "x" * 600)
        ]
        yield server, folder, ids
    store.close()


def post(server, **body):
    answer = server.request("POST", "/feedback", json=body, headers=body.pop("headers", {}))
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("kind", "value", "kept"), [("thumbs", "down", 0.0), ("score", 0.25, 0.25), ("correction", "left", "left"), ("outcome", True, 1.0)]
)
def test_a_word_is_kept_once_under_its_id(place, kind, value, kept):
    server, _, (first, _) = place
    body = {"interaction": first, "id": f"mine-{kind}", kind: value, "by": "ann", "comment": "why", "created": "2026-05-01T12:00:00Z"}
    assert [post(server, **body)[0] for _ in range(2)] == [200, 200]
    (word,) = [word for word in FeedbackLog(server.store).listed(kinds=[kind]) if word.id == f"mine-{kind}"]
    assert (word.interaction, word.value, word.by, word.comment, word.created) == (first, kept, "ann", "why", 1777636800.0)
    status, told = post(server, **body | {"by": "eve"})
    assert (status, told["error"]["code"]) == (400, "id_taken")
    assert server.request("GET", f"/feedback/mine-{kind}").json()["interaction"] == first
    assert f"mine-{kind}" in [word["id"] for word in server.request("GET", f"/feedback?interaction={first}").json()["data"]]


def test_the_official_client_sends_it_and_its_retries_count_once(place):
    server, _, (first, _) = place
    before = len(FeedbackLog(server.store).listed())
    for _ in range(2):
        headers = {"Idempotency-Key": "stainless-retry-1"}
        server.client.post("/feedback", body={"interaction": first, "thumbs": "up"}, cast_to=object, options={"headers": headers})
    assert len(FeedbackLog(server.store).listed()) == before + 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"interaction": "chatcmpl-nobody", "thumbs": "up"}, 404, "interaction_not_found"),
        ({"interaction": "ID"}, 400, "invalid_value"),
        ({"interaction": "ID", "thumbs": "up", "score": 1}, 400, "invalid_value"),
        ({"interaction": "ID", "correction": "  "}, 400, "invalid_value"),
        ({"interaction": "ID", "score": 1, "created": 9e12}, 400, "invalid_value"),
        ({"interaction": "ID", "score": 1, "created": "soon"}, 400, "invalid_value"),
        ({"interaction": "ID", "thumbs": "sideways"}, 400, "invalid_type"),
        ({"interaction": "ID", "stars": 5}, 400, "unknown_parameter"),
    ],
)
def test_what_cannot_be_is_refused(place, body, status, code):
    server, _, (first, _) = place
    answered, told = post(server, **body | ({"interaction": first} if body["interaction"] == "ID" else {}))
    assert (answered, told["error"]["code"]) == (status, code), told


def chat(question, answer):
    """A chat as Open WebUI keeps it: a tree of messages."""
    messages = {
        "u": {"id": "u", "parentId": None, "role": "user", "content": question},
        "a": {"id": "a", "parentId": "u", "role": "assistant", "content": answer, "model": "bot"},
    }
    return {"chat": {"chat": {"history": {"messages": messages, "currentId": "a"}}}}


def exports(first, asked, said, long):
    """An export of each tool with one word about the first request, known there by its words or by its id."""
    dify = {"feedback_id": "f1", "message_id": "m1", "user_query": asked, "ai_response": said, "feedback_rating_raw": "dislike",
            "feedback_rating": "👎", "feedback_comment": "no", "feedback_source": "user", "feedback_date": "2026-05-01 12:00:00"}  # fmt: skip
    cut = dify | {"feedback_id": "f2", "user_query": long, "ai_response": long[:500] + "...", "feedback_rating_raw": "like"}
    webui = {"id": "w1", "user_id": "ann", "version": 0, "type": "rating", "data": {"rating": -1, "model_id": "bot", "reason": "wrong", "comment": "",
             "details": {"rating": 3}}, "meta": {"chat_id": "c", "message_id": "a"}, "snapshot": chat(asked, said), "updated_at": 1777636800}  # fmt: skip
    return {
        "open-webui.json": [webui],
        "dify.json": {"export_info": {"total_records": 2}, "feedback_data": [dify, cut]},
        "langfuse.jsonl": [
            {"id": "s1", "traceId": first, "name": "user-feedback", "value": 0, "dataType": "NUMERIC", "timestamp": "2026-05-01T12:00:00Z"},
            {"id": "s2", "traceId": first, "name": "resolved", "value": 0, "stringValue": "refunded", "dataType": "CATEGORICAL"},
        ],
        "langfuse-traces.json": {"data": [{"id": "t", "input": {"messages": [{"role": "user", "content": asked}]}, "output": {"content": said},
            "scores": [{"id": "s3", "name": "helpful", "value": 0.4, "dataType": "NUMERIC"}]}], "meta": {}},
        "langsmith.jsonl": [{"id": "l1", "run_id": first, "key": "user_score", "score": 0, "value": None, "comment": None, "correction": {"output": "left"},
            "created_at": "2026-05-01T12:00:00Z", "feedback_source": {"type": "app", "user_id": "ann"}}],
        "promptfoo.json": {"results": {"results": [{"id": "p1", "prompt": {"raw": asked}, "response": {"output": said}, "provider": {"id": "bot"},
            "success": True, "gradingResult": {"pass": False, "componentResults": [{"pass": False, "score": 0, "reason": "Manual result", "assertion": {"type": "human"}}]}}]}},
        "own.jsonl": [{"interaction": first, "thumbs": "down", "id": "o1"}],
    }  # fmt: skip


WORDS = {
    "open-webui.json": ("open-webui", ["score", "thumbs"]), "dify.json": ("dify", ["thumbs", "thumbs"]), "langfuse.jsonl": ("langfuse", ["outcome", "thumbs"]),
    "langfuse-traces.json": ("langfuse", ["score"]), "langsmith.jsonl": ("langsmith", ["correction", "thumbs"]), "promptfoo.json": ("promptfoo", ["thumbs"]),
    "own.jsonl": ("tunesmith", ["thumbs"]),
}  # fmt: skip


def imported(folder, file, capsys, code=0):
    assert guarded(app, ["feedback", "import", str(file), "--config", str(folder / "tunesmith.yaml"), "--json"]) == code
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.parametrize("name", WORDS)
def test_exports_of_other_tools_find_their_requests(place, name, tmp_path, capsys):
    server, folder, (first, second) = place
    asked = "which way?"
    tree = exports(first, asked, asked, "how far? " + "x" * 600)[name]
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in tree) if name.endswith("l") else json.dumps(tree))
    done = imported(folder, file, capsys)
    format, kinds = WORDS[name]
    assert (done["format"], done["new"], done["there"], done["unknown"], done["own"]) == (format, len(kinds), 0, [], 0)
    assert imported(folder, file, capsys) | {"new": len(kinds), "there": 0} == done, "the same file again changes nothing"
    words = FeedbackLog(server.store).listed()[: len(kinds)]
    assert sorted(word.kind for word in words) == kinds
    assert {word.interaction for word in words} == ({first, second} if name == "dify.json" else {first})
    assert all(word.value in (0.0, 0.4, 3.0, "left", "refunded") for word in words if word.interaction == first)


def test_words_about_answers_from_elsewhere_keep_their_conversation_and_others_are_named(place, tmp_path, capsys):
    server, folder, _ = place
    elsewhere = tmp_path / "webui.json"
    elsewhere.write_text(json.dumps(exports("", "who?", "nobody", "")["open-webui.json"]).replace('"w1"', '"w2"'))
    assert imported(folder, elsewhere, capsys)["own"] == 2
    (word,) = FeedbackLog(server.store).listed(kinds=["thumbs"], limit=1)
    assert (word.messages[0].text, word.answer, word.alias) == ("who?", "nobody", "bot")
    nameless = json.dumps(exports("", "who?", "nobody", "")["langfuse-traces.json"]["data"][0] | {"id": None, "output": "nobody"})
    for n in (8, 9):
        (tmp_path / f"{n}.json").write_text(nameless.replace('"s3"', f'"s{n}"').replace("who?", f"who {n}?"))
        assert imported(folder, tmp_path / f"{n}.json", capsys)["own"] == 1
    assert len({word.interaction for word in FeedbackLog(server.store).listed(kinds=["score"], limit=2)}) == 2
    lost = tmp_path / "lost.jsonl"
    lost.write_text(json.dumps({"interaction": "gone", "score": 1}) + "\n")
    assert imported(folder, lost, capsys)["unknown"] == ["gone"]
    out = tmp_path / "all.jsonl"
    assert guarded(app, ["feedback", "export", str(out), "--config", str(folder / "tunesmith.yaml")]) == 0
    capsys.readouterr()
    again = imported(folder, out, capsys)
    assert (again["new"], again["unknown"]) == (0, []), "what is written out is what was there, conversations too"


@pytest.mark.parametrize(
    ("text", "told"), [('[{"a": 1}]', "the keys a"), ("{", "lost.json:1"), ('{"interaction": "x", "score": "much"}', "row 1")]
)
def test_what_is_no_feedback_is_told_with_its_place(place, tmp_path, capsys, text, told):
    file = tmp_path / "lost.json"
    file.write_text(text)
    assert told in imported(place[1], file, capsys, code=1)["error"]["message"]


def test_shapes_that_the_same_tools_write_elsewhere():
    """Tables whose cells are texts, messages with their feedback, ratings that were taken back."""
    said = {"rating": "dislike", "content": "no", "from_source": "user", "from_end_user_id": "ann"}
    shapes = {
        "dify": [{"id": "m", "query": "q", "answer": "a", "feedbacks": [said, said | {"rating": "like"}], "created_at": 1777636800}],
        "langfuse": [{"traceId": "t", "name": "is_right", "value": "True", "dataType": "BOOLEAN"}, {"traceId": "t", "name": "x", "stringValue": ""}],
        "langsmith": [{"run_id": "r", "key": "thumbs", "score": "1.0", "feedback_source": {"type": "model"}, "created_at": "2026-05-01 12:00:00"}],
        "open-webui": [{"id": "w", "user_id": "u", "data": {"rating": "1"}, "meta": {"message_id": "m"}, "updated_at": 1}, {"id": "v", "user_id": "u", "data": {"rating": None}, "meta": None}],
    }  # fmt: skip
    words = {name: read_export(rows, 2e9) for name, rows in shapes.items()}
    assert {name: export.format for name, export in words.items()} == {name: name for name in shapes}
    assert {name: [(word.kind, word.value, word.by) for word in export.words] for name, export in words.items()} == {
        "dify": [("thumbs", 0.0, "ann"), ("thumbs", 1.0, "ann")], "langfuse": [("outcome", 1.0, "")], "langsmith": [("thumbs", 1.0, "model")],
        "open-webui": [("thumbs", 1.0, "u")],
    }  # fmt: skip
    assert (words["langfuse"].empty, words["open-webui"].empty) == (1, 1)


def test_each_project_sees_its_own_words(place):
    server, _, (first, _) = place
    log = FeedbackLog(server.store)
    (word,) = log.listed(kinds=["thumbs"], limit=1)
    for project in ("a", "b"):
        log.put(msgspec.structs.replace(word, id="same", project=project, by=project))
    assert [log.find("same", project).by for project in ("a", "b")] == ["a", "b"]
    assert log.requests([first], "a") == set()
