"""`tunesmith decide` through the command line with a tiny real model: every arm on the same sealed rows, one decision, nothing asked twice."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest

import browser
import tiny
from forked import command
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.passages import solved_id, solved_rows
from tunesmith.core.rows import read_parquet
from tunesmith.core.types import Example, Message, Sampling
from tunesmith.evaluate.prompts import as_given
from tunesmith.models.echo import EchoModel
from tunesmith.models.grounded import GroundedModel
from tunesmith.models.passage_index import PassageIndex
from waiting import until

YAML = """
name: tiny
sources: [{{path: rows.jsonl}}]
base: {base}
split: {{validation: 0.2, test: 0.3}}
train: {{epochs: 4, learning_rate: 0.01, batch_size: 8, dtype: float32, threads: 1, adapter: {{kind: lora, r: 8}}}}
evaluate: {{metrics: [exact_match], max_tokens: 4}}
deploy: {{alias: tiny}}
decide:
  prompt: "Read it. {{{{Say yes or no.}}}} Who signed it?"
  shots: [1, 2]
  passages: [2]
  encoder: words
  models: [echo]
  teacher: echo
  margin: 0.1
  validation_rows: 12
  shard: 8
  latency_rows: 2
  machine_per_hour: 3.6
  learning: {{shares: [0.25, 0.5], seeds: [0]}}
"""
FROZEN = "Say yes or no."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"), context=128)


def project(folder: Path, base: Path) -> Path:
    """80 rows that a trained model can answer and no other: yes where the bank is named."""
    rng = random.Random(0)
    words = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]
    lines = []
    for _ in range(80):
        said = " ".join(rng.sample(words, 6))
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": "yes" if "bank" in said else "no"}]
        lines.append({"messages": turns, "meta": {"half": "<script>alert(1)</script>" if len(lines) % 2 else "{{ 7 * 7 }}"}})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tunesmith.yaml").write_text(YAML.format(base=base))
    return folder


def call(capsys, folder: Path, name: str, *words: str) -> tuple[int, dict, str]:
    code = guarded(app, [name, "--config", str(folder / "tunesmith.yaml"), *words, "--json"])
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("{")]
    return code, json.loads(lines[-1]) if lines else {}, said.err


def answers(folder: Path) -> list[str]:
    """The key of every answer that was kept, however often it was asked for."""
    files = sorted((folder / ".tunesmith" / "evaluations" / "answers").glob("*.jsonl"))
    return [json.loads(line)["key"] for file in files for line in file.read_text().splitlines()]


def openings(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / ".tunesmith" / "openings.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def decided(tmp_path_factory, base):
    folder = project(tmp_path_factory.mktemp("decided"), base)
    (folder / "notes").mkdir()
    (folder / "notes" / "who.md").write_text("# Signing\n\nWhere the bank is named, say yes.\n\n# Else\n\nSay no.\n")
    with (folder / "tunesmith.yaml").open("a") as file:
        file.write("  documents: [notes]\n")
    assert guarded(app, ["decide", "--config", str(folder / "tunesmith.yaml"), "--json"]) == 0
    return folder, json.loads((folder / "decision" / "decision.json").read_text())


@pytest.mark.slow
def test_every_arm_is_asked_the_same_sealed_rows_and_one_is_chosen(decided):
    folder, found = decided
    arms = {arm["name"]: arm for arm in found["arms"]}
    assert {"zero-shot", "prompt", "few-shot-random", "few-shot-nearest", "few-shot-greedy", "optimised-prompt"} < arms.keys()
    assert {"retrieval", "retrieval-rows", "fine-tuned", "fine-tuned-retrieval", "distilled", "larger@echo"} < arms.keys()
    assert found["chosen"] in ("fine-tuned", "fine-tuned-retrieval"), "nothing else answers these rows"
    assert arms["fine-tuned"]["value"] > arms["zero-shot"]["value"]
    assert [one["who"] for one in openings(folder)] == [found["opening"]["who"]]
    kept = {name: json.loads((folder / ".tunesmith/decisions" / found["id"] / "arms" / name / "evaluation.json").read_text())
            for name in ("zero-shot", "fine-tuned", "few-shot-greedy")}  # fmt: skip
    asked = {name: [row["example_id"] for row in one["rows"]] for name, one in kept.items()}
    assert asked["zero-shot"] == asked["fine-tuned"][: len(asked["zero-shot"])]
    for name, one in kept.items():
        usage = [row["answer"].get("prompt_tokens", 0) + row["answer"].get("completion_tokens", 0) for row in one["rows"]]
        assert arms[name]["tokens_per_request"] * len(usage) == pytest.approx(sum(usage))
        assert arms[name]["usd_per_1000"] == pytest.approx(3.6 / 3600 * 1000 * arms[name]["busy_s"])
    assert arms["fine-tuned"]["build_s"] > 0
    assert arms["zero-shot"]["build_s"] == 0
    assert all(arm["latency_p50_s"] <= arm["latency_p95_s"] for arm in arms.values() if arm["latency_p50_s"] is not None)
    assert {point["rows"] for point in found["learning"]["points"]} == {0, 12, 24, 48}
    assert [one["times"] for one in found["learning"]["more"]] == [2, 10]
    assert all(one["low"] <= one["value"] <= one["high"] for one in found["learning"]["more"])
    assert found["probe"]["closed"]["estimate"] == 0
    assert found["probe"]["rows"] <= 12
    assert arms["prompt"]["variant"]["instruction"] == f"Read it. {FROZEN} Who signed it?"
    assert FROZEN in arms["optimised-prompt"]["choices"]["instruction"]
    taught = [row for part in (folder / ".tunesmith").rglob("taught/*/split/train.parquet") for row in read_parquet(part)]
    assert any("say yes" in row.prompt[-1].text for row in taught), "what answers with passages is taught with them"


def test_a_row_that_is_taught_with_passages_does_not_see_what_solves_it():
    turns = [(Message(role="user", content=f"who signed agreement {i}"), Message(role="assistant", content=f"bank {i}")) for i in range(4)]
    rows = [Example(id=str(i), messages=pair) for i, pair in enumerate(turns)]
    asked = GroundedModel(EchoModel(), PassageIndex.build(solved_rows(rows), None), k=2, how="words", template="{passages}\n{question}")
    own = [frozenset({solved_id(row.id)}) for row in rows]
    for row, whole, apart in zip(
        rows, *(asked.ground([as_given(row) for row in rows], Sampling(), hidden) for hidden in (None, own)), strict=True
    ):
        assert (row.answer in whole.prompt.messages[-1].text, row.answer in apart.prompt.messages[-1].text) == (True, False)
        assert len(apart.sources.passages) == 2


@pytest.mark.slow
def test_an_experiment_that_is_done_asks_nobody_and_opens_nothing(decided, capsys):
    folder, found = decided
    before = answers(folder)
    code, again, _ = call(capsys, folder, "decide", "--decide.machine_per_hour", "7.2")
    assert code == 0
    assert (answers(folder), len(openings(folder))) == (before, 1)
    assert (again["id"], again["chosen"], again["opening"]) == (found["id"], found["chosen"], found["opening"])
    assert again["arms"][0]["usd_per_1000"] == pytest.approx(2 * found["arms"][0]["usd_per_1000"])


@pytest.mark.slow
def test_the_page_is_legible_on_a_phone_and_says_the_verdict_first(decided):
    folder, found = decided
    page = folder / "decision" / "decision.html"
    html = page.read_text()
    assert "<script" not in html
    assert html.index('class="verdict') < html.index("<h2")
    assert found["verdict"].split(".")[0][:40] in (folder / "decision" / "decision.md").read_text()
    with browser.browser() as opened:
        assert {width: browser.faults(opened, page, width=width, scheme="light") for width in (390, 1200)} == {390: [], 1200: []}


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["few-shot-random", "few-shot-nearest", "retrieval"])
def test_a_decided_arm_is_put_in_force_and_answers_as_it_was_measured(decided, capsys, arm):
    folder, found = decided
    code, adopted, said = call(capsys, folder, "run", "--arm", arm)
    assert code == 0, said
    assert adopted["alias"] == "tiny"
    measured = json.loads((folder / ".tunesmith/decisions" / found["id"] / "arms" / arm / "evaluation.json").read_text())
    code, evaluated, said = call(capsys, folder, "eval", "tiny", "--data", "test")
    assert code == 0, said
    again = json.loads((folder / ".tunesmith/evaluations" / evaluated["evaluations"][0]["id"] / "evaluation.json").read_text())
    texts = {row["example_id"]: row["answer"]["text"] for row in again["rows"]}
    assert [row["answer"]["text"] for row in measured["rows"]] == [texts[row["example_id"]] for row in measured["rows"]]


@pytest.mark.slow
def test_an_arm_that_cannot_be_taken_is_told(decided, base, capsys):
    folder, _ = decided
    code, _, said = call(capsys, folder, "run", "--arm", "larger@echo")
    assert code == 2
    assert "cannot be deployed" in said
    code, _, said = call(capsys, folder, "run", "--arm", "few-shot")
    assert code == 2
    assert "few-shot-random" in said
    for words in ((), ("--canary", "0.1")):
        assert guarded(app, ["deploy", "tiny", str(base), *words, "--reason", "a try", "--config", str(folder / "tunesmith.yaml")]) == 0
    code, _, said = call(capsys, folder, "run", "--arm", "zero-shot")
    assert code == 2
    assert "canary), which run --arm does not end" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--arms", "zero-shot,few-shot-random,few-shot"), "arm 'few-shot-random' is named twice"),
        (("--arms", "zero-shot,zero-shot"), "'zero-shot' is named twice"),
        (("--arms", "zero-shoot"), "did you mean 'zero-shot'"),
        (("--arms", "zero-shot@other"), "no arm 'zero-shot@other'"),
        (("--arms", "larger", "--decide.models", "[]"), "decide.models"),
        (("--decide.models", "[nobodyhere]"), "nobodyhere"),
        (("--budget", "0.001s"), "too small for one arm"),
        (("--budget", "soon"), "20m"),
        (("--budget-usd", "0.0000001"), "too small for one arm"),
        (("--decide.prompt", "'{{never ends'"), "pair up"),
        (("--decide.margin", "0"), "decide.margin"),
        (("--decide.marginn", "0.1"), "did you mean"),
        (("--evaluate.metrics", "[perplexity]"), "perplexity"),
        (("--arms", "retrieval"), "decide.documents"),
        (("--decide.needs.fresh_facts", "true", "--arms", "zero-shot,few-shot,fine-tuned"), "2312.05934"),
        (("--decide.needs.fresh_fact", "true"), "did you mean 'fresh_facts'"),
        (("--decide.needs.memory_bytes", "1", "--arms", "zero-shot"), "at most 1 allowed"),
        (("--decide.documents", "[nowhere]"), "no document 'nowhere'"),
        (("--decide.documents", "[rows.jsonl]"), "rows.jsonl"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_spent(tmp_path, base, capsys, words, message):
    folder = project(tmp_path, base)
    code, _, said = call(capsys, folder, "decide", *words)
    assert code in (1, 2), said
    assert message in said
    assert not (folder / ".tunesmith" / "evaluations").exists()
    assert not (folder / ".tunesmith" / "openings.jsonl").exists()


@pytest.mark.slow
def test_a_pooled_metric_decides_by_the_number_that_the_page_shows(tmp_path, base, capsys):
    """By the mean of the rows' own values, saying nothing would be right where there is nothing to say."""
    folder = project(tmp_path, base)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row["messages"][1]["content"] = "[]" if i % 4 else '["bank"]'
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--arms", "zero-shot,few-shot-random", "--evaluate.metrics", "[entity_f1]", "--quick")
    code, report, said = call(capsys, folder, "decide", *words)
    assert code == 0, said
    shown = {arm["name"]: arm["value"] or 0.0 for arm in report["arms"]}
    decided_by = {arm["name"]: arm["score"]["estimate"] for arm in report["decision"]["arms"]}
    assert decided_by == pytest.approx(shown)


@pytest.mark.slow
def test_questions_are_asked_until_they_are_answered_or_left_open(tmp_path, base, capsys, monkeypatch):
    folder = project(tmp_path, base)
    monkeypatch.setattr("sys.stdin", io.StringIO("perhaps\nyes\n\n\nno\n-3\n2.5\n\n"))
    code, _, said = call(capsys, folder, "decide", "--ask", "--arms", "zero-shot,few-shot,fine-tuned")
    assert code == 2
    assert "'perhaps' is no answer" in said
    assert "'-3' is no answer" in said
    assert "needs: {fresh_facts: true, private: false, latency_p95_s: 2.5}" in said
    assert "2312.05934" in said  # the answer cut all arms, with its source


@pytest.mark.slow
def test_an_experiment_that_was_killed_goes_on_and_asks_nobody_twice(tmp_path, base, capsys):
    folder = project(tmp_path, base)
    other = tiny.model(tmp_path / "other", seed=1, context=128)
    words = ("--arms", "zero-shot,few-shot-random", "--decide.bases", f"[{other}]")
    process = command(["decide", *words], folder)
    until(lambda: (folder / ".tunesmith" / "openings.jsonl").exists(), alive=process.alive, progress=lambda: process.err)
    process.kill()
    before = answers(folder)
    code, found, said = call(capsys, folder, "decide", *words)
    assert code == 0, said
    after = answers(folder)
    assert set(before) <= set(after)
    assert len(after) == len(set(after))
    assert found["opening"]["number"] == 1
    assert len(openings(folder)) == 1
    assert {arm["base"] for arm in found["arms"]} == {str(base), str(other)}
    assert f"few-shot-random@{other}" in {arm["name"] for arm in found["arms"]}
