"""Every command in a core without any extra: it does its work, or names the extra that it needs by the line that installs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LIGHT = [
    "--version", "schema", "models", "status", "doctor", "keys list", "jobs list", "monitor status", "metrics", "eval plan", "data log",
    "data ledger", "data show rows.jsonl", "data check rows.jsonl --base gpt-4.1-mini", "data labels rows.jsonl", "data next rows.jsonl",
    "data review rows.jsonl", "init rows.jsonl --config other.yaml", "eval echo --data rows.jsonl", "tune add --help",
]  # fmt: skip
HEAVY = {
    "run": "serve", "run --dry-run": "data", "train": "data", "train --overfit 2": "local", "estimate": "data", "serve": "serve",
    "demo --quick": "serve", "eval base --data rows.jsonl": "local", "eval openai:gpt-4.1-mini --data rows.jsonl": "openai",
    "eval echo --data rows.jsonl --metrics rougeL": "eval", "eval echo --data rows.jsonl --metrics bleu": "eval",
    "compare base echo --data rows.jsonl": "local", "data import rows.jsonl --yes": "data", "data show rows.parquet": "data",
    "data show rows.jsonl.zst": "data", "data clean rows.jsonl": "data", "data split rows.jsonl": "local",
    "migrate inventory": "openai", "data documents rows.pdf --encoder none": "documents", "data documents --rows rows.jsonl --encoder none": "documents",
    "data documents --rows rows.jsonl": "local", "tune": "tune",
}  # fmt: skip
# In a fresh Python, where nothing heavy is loaded yet: the packages of the extras, and what only comes with them, are not there.
WALK = """
import contextlib, importlib.abc, importlib.metadata, io, json, re, sys, traceback
mine = [line for line in importlib.metadata.requires("tunesmith") if "extra ==" in line]
gone = {re.match(r"[\\w.-]+", line)[0].replace("-", "_") for line in mine} - {"tunesmith"}
gone |= {"tokenizers", "huggingface_hub", "accelerate", "multipart", "pandas", "psycopg2"}

class Gone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Gone())
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = guarded(app, words.split())
        except BaseException:
            code = traceback.format_exc()
    print(json.dumps([words, code, said.getvalue()]))
"""
YAML = "name: p\nbase: base\nsources: [{path: rows.jsonl}]\n"


@pytest.mark.slow
def test_every_command_without_extras_works_or_names_the_one_that_it_needs(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"yes {i}"}]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("rows.parquet", "rows.jsonl.zst"):
        (tmp_path / name).write_bytes(b"no rows")
    (tmp_path / "rows.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "base").mkdir()
    (tmp_path / "tunesmith.yaml").write_text(YAML)
    process = subprocess.run(
        [sys.executable, "-c", WALK, json.dumps([*LIGHT, *HEAVY])], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    walked = {words: (code, said) for words, code, said in map(json.loads, process.stdout.splitlines())}
    assert walked.keys() == {*LIGHT, *HEAVY}, process.stderr
    for words, (code, said) in walked.items():
        extra = HEAVY.get(words)
        fine = {0, 1} if words == "doctor" else {0}  # it ends with 1 where this machine has little memory or disk left just now
        assert code in (fine if extra is None else {2}), f"{words}: {code} {said}"
        assert extra is None or f"pip install 'tunesmith[{extra}]'" in said, f"{words}: {said}"
