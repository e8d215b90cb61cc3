"""What of the log of requests is kept: words without personal data, a sample, for a time; and what is counted all the same."""

from __future__ import annotations

import asyncio
import json

import httpx
import pyarrow.parquet as pq
import pytest

from api_parts import running_server
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Interaction, Message, ShadowAnswer, ToolCall
from tunesmith.deploy.serve_config import LogConfig
from tunesmith.flow.redaction import redaction
from tunesmith.monitor.status import status
from tunesmith.store.interactions import InteractionLog, Interactions
from tunesmith.store.shadows import ShadowAnswers
from tunesmith.store.store import Store
from tunesmith.store.wording import reworded

MAIL, CARD = "anna.smith@example.com", "4111 1111 1111 1111"


def row(number, **more):
    fields = {
        "id": f"chatcmpl-{number}", "created": 1000.0 + number, "alias": "bot", "variant": "bot", "answer": f"yes {MAIL}", "finish_reason": "stop",
        "messages": (Message(role="user", content=f"I am {MAIL}"),), "prompt_tokens": 3, "completion_tokens": 2, "first_token_s": 0.1,
        "total_s": 0.2, "user_key": f"u{number}",
    }  # fmt: skip
    return Interaction(**fields | more)


def write(log, rows):
    async def all_rows():
        await asyncio.gather(*(log.write(each) for each in rows))

    asyncio.run(all_rows())
    log.close()


def holding(folder, text):
    """The files of a folder that have the text in them."""
    return [path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_personal_data_is_redacted_before_it_is_written(tmp_path):
    with running_server(tmp_path, tmp_path, log=LogConfig(redact=("email", "card"), survives="kill")) as served:
        turns = [
            {"role": "system", "content": [{"type": "text", "text": f"write to {MAIL}"}]},
            {"role": "user", "content": f"{MAIL} pays {CARD}"},
        ]
        answer = httpx.post(f"{served.url}/chat/completions", json={"model": "echo", "messages": turns}, timeout=60).json()
        assert MAIL in answer["choices"][0]["message"]["content"], "who asked has the words as they are"
        logged = Interactions(served.store).find(answer["id"])
        assert [message.text for message in logged.messages] == ["write to <EMAIL>", "<EMAIL> pays <CARD>"]
        assert logged.answer == "<EMAIL> pays <CARD>"
    assert holding(tmp_path / "store", MAIL) == holding(tmp_path / "store", CARD) == []


def test_every_text_of_a_row_is_reworded_and_nothing_else():
    call = ToolCall(id=MAIL, function={"name": "send", "arguments": f'{{"to": "{MAIL}"}}'})
    (changed,) = reworded([row(1, tool_calls=(call,), error=MAIL)], redaction(["email"]))
    assert changed.tool_calls[0].function.arguments == '{"to": "<EMAIL>"}'
    assert (changed.error, changed.tool_calls[0].id, changed.total_s) == ("<EMAIL>", MAIL, 0.2)
    with pytest.raises(ConfigError, match="no kind of personal data is called 'emial'"):
        redaction(["emial"])


def test_a_sample_is_kept_and_all_is_counted(tmp_path):
    store = Store.open(tmp_path)
    often = [row(i, user_key=f"u{i % 50}") for i in range(400)]
    always = [row(1000, status=500), row(1001, strategy="split"), row(1002, experiment="e")]
    write(InteractionLog(store, sample=0.25), [*often, *always])
    kept = {each.id for each in Interactions(store).answered({"alias": "bot"})}
    users = {each.user_key for each in often if each.id in kept}
    assert kept >= {"chatcmpl-1001", "chatcmpl-1002"}
    assert 4 <= len(users) <= 22, "about a quarter of fifty"
    assert kept - {"chatcmpl-1001", "chatcmpl-1002"} == {each.id for each in often if each.user_key in users}, "of a user all or nothing"
    assert (status(store)["requests"], status(store)["errors"]) == (403, 1)
    store.close()


def test_old_rows_go_with_what_hangs_on_them_and_counts_stay(tmp_path):
    store = Store.open(tmp_path)
    write(InteractionLog(store), [row(i) for i in range(10)])
    shadows = ShadowAnswers(store, redaction(["email"]))
    for number in (1, 8):
        shadows.put(
            ShadowAnswer(interaction=f"chatcmpl-{number}", created=1.0, project="", alias="bot", deployment=1, variant="s", answer=MAIL)
        )
    assert Interactions(store).expire(1005.0, most=3) == 3
    assert Interactions(store).expire(1005.0) == 2
    assert Interactions(store).expire(1005.0) == 0
    assert [each.id for each in Interactions(store).answered({})] == [f"chatcmpl-{i}" for i in range(5, 10)]
    assert [(each.interaction, each.answer) for each in shadows.of("bot")] == [("chatcmpl-8", "<EMAIL>")]
    assert status(store)["requests"] == 10
    store.close()


@pytest.mark.parametrize("wrong", [{"sample": 1.5}, {"retention_days": 0}, {"retention_days": float("inf")}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LogConfig(**wrong)


def test_the_log_is_exported_as_it_is(tmp_path, capsys):
    (tmp_path / "tunesmith.yaml").write_text("name: shop\nsources: [{path: rows.jsonl}]\nbase: echo\nstore: store\n")
    store = Store.open(tmp_path / "store")
    write(InteractionLog(store), [row(i, alias="ab"[i % 2], status=200 if i else 500, cost_usd=0.5 if i else None) for i in range(5)])

    def export(name, *words, code=0):
        assert (
            guarded(app, ["monitor", "export", str(tmp_path / name), "--config", str(tmp_path / "tunesmith.yaml"), "--json", *words])
            == code
        )
        return json.loads(capsys.readouterr().out)

    assert export("all.parquet")["requests"] == 5
    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert [(each["id"], each["status"], each["cost_usd"], json.loads(each["messages"])[0]["role"]) for each in rows] == [
        (f"chatcmpl-{i}", 200 if i else 500, 0.5 if i else None, "user") for i in range(5)
    ]
    assert export("some.jsonl", "--where", "alias=b,user=u3")["requests"] == 1
    (only,) = (json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines())
    assert only == rows[3]
    assert export("none.parquet", "--where", "alias=nobody")["requests"] == 0
    assert pq.read_schema(tmp_path / "none.parquet") == pq.read_schema(tmp_path / "all.parquet")
    assert ".parquet, .jsonl" in export("log.csv", code=2)["error"]["message"]
    assert "alias" in export("log.jsonl", "--where", "aliass=x", code=2)["error"]["message"]
    assert not (tmp_path / "log.jsonl").exists()
    store.close()
