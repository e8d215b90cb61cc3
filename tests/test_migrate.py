"""From an old job id to a local replacement: inventory, golden set, project, comparison, against a real server that speaks the API."""

from __future__ import annotations

import datetime
import json

import pytest

from api_parts import MODEL, chat_rows, preference_rows, running_server
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import DataError
from tunesmith.flow import migrate
from tunesmith.flow.project import load_project

TODAY = datetime.date(2026, 11, 22)


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    """A server with one finished fine-tune, as a hosted provider would have."""
    with running_server(tmp_path_factory.mktemp("provider")) as server:
        training = server.upload(chat_rows(14))
        method = {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.5}},
        }
        job = server.client.fine_tuning.jobs.create(model=MODEL, training_file=training.id, method=method, suffix="old")
        server.work()
        yield server, server.client.fine_tuning.jobs.retrieve(job.id)


def call(capsys, *words):
    code = guarded(app, [*words, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]), said.err


def priced(row) -> float:
    """Dollars of one recorded answer of a fine-tuned gpt-4o-mini: 0.30 and 1.20 a million tokens read and written."""
    return (row.meta["prompt_tokens"] * 0.30 + row.meta["completion_tokens"] * 1.20) / 1e6


@pytest.mark.slow
def test_from_an_old_job_id_to_a_compared_replacement(provider, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server, job = provider
    where = ["--base-url", server.url, "--api-key", "none"]
    code, found, _ = call(capsys, "migrate", "inventory", *where, "--today", TODAY.isoformat())
    assert code == 0
    one = next(entry for entry in found["models"] if entry["model"] == job.fine_tuned_model)
    assert (one["job"], one["days_left"], one["shutdown"]) == (job.id, 53, "2027-01-14")

    (tmp_path / "prompts.jsonl").write_bytes(chat_rows(12))  # with answers, as a file of rows has them
    record = ["migrate", "record", job.fine_tuned_model, "prompts.jsonl", "--max-tokens", "4", "--yes", *where]
    code, found, _ = call(capsys, *record)
    assert (code, found["rows"]) == (0, 12)
    golden = (tmp_path / "golden.jsonl").read_bytes()
    assert call(capsys, *record)[0] == 0
    assert (tmp_path / "golden.jsonl").read_bytes() == golden, "a second recording asks nothing again"

    code, found, _ = call(
        capsys, "migrate", "retrain", job.id, "--base", str(server.base), "--folder", "new", "--golden", "golden.jsonl", *where
    )
    assert code == 0
    project = load_project(tmp_path / "new" / "tunesmith.yaml")
    assert (project.train.epochs, project.train.batch_size) == (2, 4)
    assert (tmp_path / "new" / "training.jsonl").read_bytes() == chat_rows(14)
    assert "1.5" in (tmp_path / "new" / "tunesmith.yaml").read_text()

    compare = ["migrate", "compare", "golden.jsonl", "--model", job.fine_tuned_model, "--max-tokens", "4", "--metrics", "normalized_match"]
    code, found, _ = call(capsys, *compare, *where)
    assert code == 0
    assert found["agreement"]["normalized_match"]["estimate"] == 1.0, "the same model agrees with itself"
    assert found["usd_before"] == pytest.approx(sum(priced(row) for row in migrate.golden_rows(tmp_path / "golden.jsonl")))
    code, found, _ = call(capsys, *compare, "--judge", "echo:[[B]] ", *where)
    assert code == 0
    judged = found["judged"]
    assert (judged["share"]["estimate"], judged["bias"]["flips"]) == (0.5, 1.0), "a judge that always says B cancels out"
    code, _, _ = call(capsys, "migrate", "report", "--golden", "golden.jsonl", "--today", TODAY.isoformat(), *where)
    assert code == 0
    page = (tmp_path / "migration.md").read_text()
    assert job.fine_tuned_model in page
    assert "the new model's share of the win 0.500" in page


def test_prompts_need_no_answers_and_all_faults_are_said_before_anything_is_asked(tmp_path):
    asked, answered = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    lines = [{"messages": [asked]}, {"messages": [asked, answered]}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    rows = migrate.prompts_of(str(path))
    assert [[turn.role for turn in row.prompt] for row in rows] == [["user"], ["user"]]
    path.write_text("\n".join(json.dumps(line) for line in [*lines, {"messages": [asked, answered, {**asked, "content": "q2"}]}]))
    *_, last = migrate.prompts_of(str(path))
    assert [turn.text for turn in last.prompt] == ["q", "a", "q2"], "the last question is asked, not the answered one again"
    path.write_text("\n".join(json.dumps(line) for line in [*lines, {"messages": []}, {"messages": [{"role": "user"}]}]))
    with pytest.raises(DataError, match="cannot be asked") as caught:
        migrate.prompts_of(str(path))
    assert [fault.where for fault in caught.value.faults] == [f"{path}:3", f"{path}:4"]
    path.write_text(preference_rows(2).decode())
    assert [row.prompt[-1].role for row in migrate.prompts_of(str(path))] == ["user"] * 2, "a pair is asked its prompt"
    path.write_text(json.dumps({"text": "a page"}))
    with pytest.raises(DataError, match="a document, not a question"):
        migrate.prompts_of(str(path))


def test_an_option_of_record_that_does_not_exist_names_the_nearest(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, found, _ = call(capsys, "migrate", "record", "ft:x", "prompts.jsonl", "--max-token", "4")
    assert code == 2
    assert "did you mean 'max_tokens'" in found["error"]["message"]


@pytest.mark.slow
def test_what_recording_costs_is_known_before():
    pytest.importorskip("bpe_openai")
    from tunesmith.core.types import Example, Message

    row = Example(id="a", messages=(Message(role="user", content="hello"), Message(role="assistant", content="yes")), origin="x")
    usd = migrate.most_usd("ft:gpt-4o-mini-2024-07-18:acme::abc", [row] * 1000, 100)
    assert 1000 * 100 * 1.2e-6 < usd < 0.125  # the answers at 1.2 USD a million tokens, and some tokens for the prompts
    assert migrate.most_usd("llama", [row], 100) is None


def test_a_report_without_its_comparison_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, found, _ = call(capsys, "migrate", "report", "--golden", "golden.jsonl")
    assert code == 2
    assert "migrate compare golden.jsonl" in found["error"]["message"]


@pytest.mark.slow
def test_an_unknown_model_is_named_with_those_that_exist(provider, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server, job = provider
    code, found, _ = call(capsys, "migrate", "retrain", "ft:nothing", "--base-url", server.url, "--api-key", "none")
    assert code == 2
    assert job.fine_tuned_model in found["error"]["message"]


def test_the_dated_table_matches_the_longest_name():
    one = migrate._ended(migrate.FineTune(model="ft:x", base="gpt-4.1-nano-2025-04-14"), None, TODAY)
    assert (one.shutdown, one.days_left) == (datetime.date(2026, 10, 23), -30)
    assert migrate._ended(migrate.FineTune(model="ft:x", base="llama"), None, TODAY).days_left is None


@pytest.mark.slow
def test_a_server_that_is_not_there_is_one_clear_message(capsys):
    code, found, _ = call(capsys, "migrate", "inventory", "--base-url", "http://127.0.0.1:9/v1", "--api-key", "none")
    assert code == 1
    assert "127.0.0.1:9" in found["error"]["message"]
