"""From a file to a report for rows of every kind: what `init` writes runs, with the metrics and baselines that fit."""

from __future__ import annotations

import json
import random

import pytest

import tiny
from tunesmith.cli import app
from tunesmith.cli.shared import guarded

WORDS = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]
SMALL = {
    "--train.epochs": "1", "--train.batch_size": "16", "--train.dtype": "float32", "--train.threads": "1", "--train.adapter.r": "2",
    "--evaluate.max_tokens": "4", "--deploy.questions": "1", "--split.semantic.action": "off",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"))


def rows(kind: str) -> list[dict]:
    draw = random.Random(1)
    made = []
    for i in range(70):
        asked = " ".join(draw.sample(WORDS, 7))
        answer, other = f"{asked[:8]} {i}", f"no {asked[-6:]}"
        made.append(
            {
                "pairs": {"prompt": asked, "chosen": answer, "rejected": other},
                "labelled": {"prompt": asked, "completion": answer if i % 2 else other, "label": bool(i % 2)},
                "documents": {"text": f"{asked}. It was {answer}."},
            }[kind]
        )
    return made


def call(capsys, *words: str, codes: tuple[int, ...] = (0,)) -> dict:
    ended = guarded(app, [*words, "--json"])
    said = capsys.readouterr()
    assert ended in codes, said.out + said.err
    return json.loads([line for line in said.out.splitlines() if line.startswith("{")][-1])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method", "metrics"), [
    ("documents", "text", ["bits_per_byte", "perplexity"]), ("pairs", "dpo", ["rougeL"]), ("labelled", "kto", ["rougeL"]),
])  # fmt: skip
def test_what_init_writes_runs_to_a_report(kind, method, metrics, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
    assert call(capsys, "init", "rows.jsonl", "--base", str(base))["method"] == method
    small = [word for pair in SMALL.items() for word in pair]
    assert call(capsys, "estimate", *small)["plan"]["method"] == method
    found = call(capsys, "run", *small, codes=(0, 3))
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [one["name"] for one in report["metrics"]] == metrics
    arms = ["base", "tuned"] if kind == "documents" else ["zero-shot", "few-shot", "tuned"]
    assert [arm["name"] for arm in report["arms"]] == arms
    assert all(found["values"][arm][metrics[0]] is not None for arm in arms)
    difference = report["comparisons"][0]["metrics"][0]["difference"]
    assert difference["low"] <= difference["estimate"] <= difference["high"]
    assert len(report["questions"]) == 1
    assert all(answer["tokens"] >= 1 for answer in report["questions"][0]["answers"])
    compared = call(capsys, "compare", f"run:{arms[0]}", "run:tuned")
    assert compared
    evaluated = call(capsys, "eval", str(base), "--data", "test")["evaluations"][0]
    assert list(evaluated["metrics"]) == metrics
    assert evaluated["values"][metrics[0]] == pytest.approx(found["values"][arms[0]][metrics[0]], rel=0.05, abs=0.01)
