"""lm-evaluation-harness, in an environment of its own, against the served model: the same task agrees with our evaluation to the row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from tunesmith.api.serve import temporary
from tunesmith.core.types import Example, Message, Sampling, example_id
from tunesmith.evaluate.importers import lm_eval_log
from tunesmith.evaluate.metrics import metric
from tunesmith.evaluate.run import evaluate
from tunesmith.models.local import LocalModel
from tunesmith.models.openai_api import OpenAIModel
from tunesmith.store.store import Store

PEER = Path(__file__).parent.parent / ".peers" / "lm-eval" / "bin" / "python"
TASK = """
task: said
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<|never said|>"], max_gen_toks: 12, do_sample: false, temperature: 0}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
WORDS = ("credit", "bank", "york", "signed", "june", "holdings", "amended", "ohio")


def harness(folder: Path, url: str) -> Path:
    """Run the harness on the task in `folder` against `url`; returns its log of samples."""
    model = f"model=tiny,base_url={url.rstrip('/')}/chat/completions,num_concurrent=1,max_retries=1,tokenized_requests=False"
    words = ["-m", "lm_eval", "--model", "local-chat-completions", "--model_args", model, "--tasks", "said", "--include_path", str(folder)]
    words += ["--apply_chat_template", "--log_samples", "--output_path", str(folder / "out")]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OPENAI_API_KEY": "none"}
    done = subprocess.run([PEER, *words], env={**os.environ, **offline}, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return next((folder / "out").rglob("samples_said_*.jsonl"))


def by_task(folder: Path, url: str) -> dict:
    """`tunesmith eval --data lm-eval:said@FOLDER` in our environment with the harness's packages behind it; returns the evaluation."""
    packages = next((PEER.parent.parent / "lib").glob("python*/site-packages"))
    start = f"import site; site.addsitedir({str(packages)!r}); import sys; from tunesmith.cli import main; main()"
    words = ["eval", f"{url}#tiny", "--data", f"lm-eval:said@{folder}", "--json"]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run([sys.executable, "-c", start, *words], env={**os.environ, **offline}, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["evaluations"][0]


@pytest.mark.slow
@pytest.mark.skipif(
    not PEER.exists(), reason="no lm-evaluation-harness: python -m venv .peers/lm-eval, then pip install 'lm-eval[api]' there"
)
def test_the_harness_and_our_evaluation_agree_to_the_row(tmp_path):
    asked = [f"{first} {second}?" for first in WORDS for second in WORDS if first != second][:24]
    store = Store.open(tmp_path / "store")
    local = LocalModel(tiny.model(tmp_path / "base"), name="tiny", dtype="float32")
    with temporary({"tiny": local}, store) as url:
        base = url if url.rstrip("/").endswith("/v1") else f"{url.rstrip('/')}/v1"
        served = OpenAIModel("tiny", base_url=base, api_key="none")
        rows = [(Message(role="user", content=text),) for text in asked]
        probe = evaluate(
            served,
            [Example(id=example_id(row), messages=row, reference="") for row in rows],
            [metric("length")],
            sampling=Sampling(max_tokens=12),
            out=tmp_path / "probe",
        )
        # Every second row's right answer is what the model says, so that the metric has both values.
        wanted = [row.answer.text if i % 2 else "no" for i, row in enumerate(probe.rows)]
        examples = [Example(id=example_id(row, (), want), messages=row, reference=want) for row, want in zip(rows, wanted, strict=True)]
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in zip(asked, wanted, strict=True)))
        (tmp_path / "said.yaml").write_text(TASK.format(data=data))
        ours = evaluate(served, examples, [metric("exact_match")], sampling=Sampling(max_tokens=12), out=tmp_path / "ours")
        theirs = lm_eval_log(harness(tmp_path, base), model="tiny").evaluation
        mine = by_task(tmp_path, base)
    store.close()
    assert mine["values"]["lm_eval"] == pytest.approx(theirs.values["exact_match"])
    assert [row.answer.text for row in theirs.rows] == [row.answer.text for row in ours.rows]
    assert [score.value for score in theirs.scores("exact_match")] == [score.value for score in ours.scores("exact_match")]
    assert 0 < ours.values["exact_match"] < 1
