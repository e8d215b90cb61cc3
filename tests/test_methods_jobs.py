"""Training methods as jobs of the server and at a provider, through the real SDK."""

from __future__ import annotations

import json

import pytest

import tiny
from api_parts import MODEL, running_server
from method_parts import GRADER, asked, lines, project
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.types import Document, Example, Labelled, Preference
from tunesmith.train.methods import JOB_METHODS, METHODS


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tunesmith(capsys):
    """The command in this process: exit code, its JSON, what it said."""

    def run(*words: object) -> tuple[int, dict, str]:
        code = guarded(app, [*map(str, words), "--json"])
        said = capsys.readouterr()
        found = [line for line in said.out.splitlines() if line.startswith("{")]
        return code, json.loads(found[-1]) if found else {}, said.err

    return run


# --- the server's jobs --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("openai")
    # Where a client may not say how long an answer is, it is as long as there is room.
    with running_server(tmp_path_factory.mktemp("server"), tiny.model(tmp_path_factory.mktemp("served"), context=96)) as server:
        yield server


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


DPO_ROWS = [
    {
        "input": {"messages": [{"role": "user", "content": asked(i)}]},
        "preferred_output": [{"role": "assistant", "content": "yes"}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    for i in range(12)
]
KTO_CHATS = [
    {"messages": [{"role": "user", "content": asked(i)}, {"role": "assistant", "content": "yes"}], "label": i % 2 == 0} for i in range(12)
]
REWARDED = [{"messages": [{"role": "user", "content": asked(i)}], "reference": "the bank of York"} for i in range(12)]
JOBS = {
    "supervised": ("supervised", lines(Example, 12), {}),
    "dpo": ("dpo", DPO_ROWS, {"beta": 0.3}),
    "ipo": ("dpo", DPO_ROWS, {"loss": "ipo"}),
    "orpo": ("orpo", DPO_ROWS, {}),
    "orpo-trl": ("orpo", lines(Preference, 12), {}),
    "kto": ("kto", lines(Labelled, 12), {"desirable_weight": 1.2}),
    "kto-chats": ("kto", KTO_CHATS, {}),
    "kto-pairs": ("kto", DPO_ROWS, {}),
    "text": ("text", lines(Document, 12), {"max_length": 32}),
    "distillation": ("distillation", lines(Example, 12), {"teacher": MODEL, "temperature": 2}),
    "self_distillation": ("self_distillation", lines(Example, 12), {"beta": 0.5}),
    "reinforcement": ("reinforcement", REWARDED, {"max_tokens": 4, "compute_multiplier": 0.3}),
    "full": ("supervised", lines(Example, 12), {"lora": False}),
    "full-kto": ("kto", lines(Labelled, 12), {"lora": False}),
}


def job_of(server, name: str, **more: object):
    kind, rows, options = JOBS[name]
    section = {"hyperparameters": {"n_epochs": 1, "batch_size": 4, **options, **more}} | (
        {"grader": GRADER} if kind == "reinforcement" else {}
    )
    file = server.upload(jsonl(rows)).id
    return server.client.fine_tuning.jobs.create(model=MODEL, training_file=file, seed=3, method={"type": kind, kind: section})


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_a_job_of_every_method(server, name):
    """Through the real SDK, from the file to the model's answer; methods that OpenAI does not have are extensions of `method`."""
    assert {kind for kind, _, _ in JOBS.values()} == {*JOB_METHODS}
    made = job_of(server, name)
    server.work()
    job = server.client.fine_tuning.jobs.retrieve(made.id)
    assert job.status == "succeeded", job.error
    kind, _, options = JOBS[name]
    assert job.method.type == kind
    section = getattr(job.method, kind)
    shown = (section if isinstance(section, dict) else section.model_dump())["hyperparameters"]
    assert shown.items() >= {"n_epochs": 1, "batch_size": 4, **options}.items()
    assert "auto" not in shown.values()
    said = [event.message for event in server.client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert any("two labelled rows" in message for message in said) == (name == "kto-pairs")
    asked_for = [{"role": "user", "content": asked(1)}]
    checkpoint = server.client.fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint
    complete = server.client.chat.completions.create
    said = [complete(model=model, messages=asked_for, temperature=0).choices[0] for model in (job.fine_tuned_model, checkpoint)]
    assert said[0].finish_reason
    assert said[0].message.content == said[1].message.content, "the last checkpoint is the model"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "param"),
    [
        ("orpo", {"loss": "ipo"}, "method.orpo.hyperparameters.loss"),
        ("kto", {"beta": 0}, "method.kto.hyperparameters.beta"),
        ("kto", {"desirable_weight": -1}, "method.kto.hyperparameters.desirable_weight"),
        ("text", {"over_length": "drop"}, "method.text.hyperparameters.over_length"),
        ("distillation", {}, "method.distillation.hyperparameters.teacher"),
        ("distillation", {"teacher": "nobody"}, "method.distillation.hyperparameters.teacher"),
        ("dpo", {"loss": "hinge"}, "method.dpo.hyperparameters.loss"),
    ],
)
def test_faults_of_the_extensions_are_named(server, kind, options, param):
    body = {
        "model": MODEL,
        "training_file": server.upload(jsonl(DPO_ROWS)).id,
        "method": {"type": kind, kind: {"hyperparameters": options}},
    }
    answer = server.request("POST", "/fine_tuning/jobs", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.slow
def test_a_file_of_another_kind_fails_the_job_with_what_it_is(server):
    job = server.client.fine_tuning.jobs.create(model=MODEL, training_file=server.upload(jsonl(DPO_ROWS)).id, method={"type": "text"})
    server.work()
    error = server.client.fine_tuning.jobs.retrieve(job.id).error
    assert error.code == "invalid_training_file"
    assert "'dpo', expected 'text'" in error.message


# --- a provider ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_a_provider_trains_what_it_has(tunesmith, server, base, tmp_path, name, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    config = project(tmp_path, base, name)
    words = ["--train.adapter.r", "auto", "--train.epochs", 1]
    words += ["--train.reinforcement.samples", "auto", "--train.reinforcement.max_tokens", "auto"] if name == "grpo" else []
    with server.worker():
        code, result, said = tunesmith(
            "train", "--config", config, "--backend", f"openai:{MODEL}", "--base-url", server.url, "--yes", *words
        )
    assert code == 0, said
    assert result["status"] == "succeeded"
    assert result["order"]["method"]["type"] == METHODS[name].job.type
    assert result["bill"]["not_sent"] == ["train.learning_rate"]
    assert "not sent, OpenAI chooses it itself: train.learning_rate" in said


@pytest.mark.parametrize("name", ["text", "orpo", "kto", "distil", "sdft", "ipo"])
def test_a_provider_is_not_asked_for_what_it_has_not(tunesmith, base, tmp_path, name, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    code, _, said = tunesmith("train", "--config", project(tmp_path, base, name), "--backend", f"openai:{MODEL}", "--yes")
    assert code == 2
    assert ("has no loss" if name == "ipo" else f"has no {name}") in said
