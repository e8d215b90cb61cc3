"""Rows that are no conversations are measured too: documents by their likelihood, pairs and labelled answers by what they would have said."""

from __future__ import annotations

import json
import math

import pytest

import tiny
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.chat import Renderer
from tunesmith.core.row_kinds import as_examples
from tunesmith.core.types import Document
from tunesmith.evaluate.likelihood import Likelihood, whole
from tunesmith.models.local import LocalModel

TEXTS = [
    "The credit agreement between Acme Holdings and First Bank of Ohio is dated as of June 3.",
    "It was amended in New York. Who signed it? Nobody did, as far as we know!",
    "List the named entities of this sentence: 1 2 3 4 5 6 7 8 9 0 é ü 你好 🙂",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path


def call(capsys, *words: str, code: int = 0) -> dict:
    ended = guarded(app, [*words, "--json"])
    said = capsys.readouterr()
    assert ended == code, said.out + said.err
    return json.loads([line for line in said.out.splitlines() if line.startswith("{")][-1])


def nats_by_transformers(base, ids: list[int]) -> float:
    """The oracle: summed cross entropy of all ids but the first."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))


@pytest.mark.slow
def test_documents_are_measured_in_bits_a_byte_and_perplexity(here, base, capsys):
    (found,) = call(capsys, "eval", str(base), "--data", "texts.jsonl")["evaluations"]
    renderer = Renderer.load(base)
    rows = [renderer.documents([Document(id="", text=text)])[0].ids.tolist() for text in TEXTS]
    nats = sum(nats_by_transformers(base, ids) for ids in rows)
    size, tokens = sum(len(text.encode()) for text in TEXTS), sum(len(ids) - 1 for ids in rows)
    assert found["metrics"] == ["bits_per_byte", "perplexity"]
    assert found["values"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=0.01)
    assert found["values"]["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=0.05)
    interval = found["intervals"]["bits_per_byte"]
    assert interval["low"] < found["values"]["bits_per_byte"] < interval["high"]
    assert call(capsys, "eval", str(base), "--data", "texts.jsonl")["evaluations"][0]["asked"] == 0, "kept like answers"


def test_a_document_longer_than_the_context_is_scored_whole(base):
    model = LocalModel(base, name="base")
    text = " ".join(TEXTS * 20)
    (example,) = as_examples([Document(id="d", text=text)])
    (answer,) = Likelihood.of(model).answer([whole(example)], None)
    ids = Renderer.load(base).documents([Document(id="d", text=text)])[0].ids
    assert len(ids) > model.engine.context
    assert answer.logprobs[0]["tokens"] == len(ids) - 1, "every token but the first, each once"


def test_what_documents_cannot_be_asked_is_said(here, base, capsys):
    said = call(capsys, "eval", str(base), "--data", "texts.jsonl", "--metrics", "exact_match", code=2)["error"]["message"]
    assert "documents ask nothing" in said
    assert "bits_per_byte" in said
    said = call(capsys, "eval", "echo", "--data", "texts.jsonl", code=2)["error"]["message"]
    assert "does not say how likely a text is" in said
    (here / "tunesmith.yaml").write_text(
        f"name: t\nsources: [{{path: texts.jsonl}}]\nbase: {base}\ntrain: {{method: text}}\nbaselines: [{{name: few, shots: 2}}]\n"
    )
    assert "documents ask nothing" in call(capsys, "status", code=2)["error"]["message"]


def test_pairs_and_labelled_rows_are_asked_their_prompts(here, capsys):
    """The wanted answer is the reference; what nobody wants is not asked for."""
    pairs = [{"prompt": f"say {i}", "chosen": f"say {i}" if i % 2 else "no", "rejected": "never"} for i in range(20)]
    (here / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (found,) = call(capsys, "eval", "echo", "--data", "pairs.jsonl", "--metrics", "exact_match")["evaluations"]
    assert (found["rows"], found["values"]["exact_match"]) == (20, 0.5)
    judged = [{"prompt": f"say {i}", "completion": f"say {i}", "label": i % 4 > 0} for i in range(20)]
    (here / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    (found,) = call(capsys, "eval", "echo", "--data", "judged.jsonl", "--metrics", "exact_match")["evaluations"]
    assert (found["rows"], found["values"]["exact_match"]) == (15, 1.0)
