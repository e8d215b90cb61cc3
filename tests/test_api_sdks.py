"""The same scenario by older SDKs, each in an environment of its own under .peers/."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from api_parts import MODEL, chat_rows, preference_rows, reward_rows, running_server

HERE = Path(__file__).resolve().parent
pytest.importorskip("openai")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["installed", "2.54.0", "1.109.1"])
def test_the_scenario(tmp_path, version, monkeypatch):
    python = HERE.parent / ".peers" / f"openai-{version}" / "bin" / "python"
    if version != "installed" and not python.exists():
        pytest.skip(f"no .peers/openai-{version}: python -m venv it, and pip install openai=={version}")
    for kind, rows in (("supervised", chat_rows), ("dpo", preference_rows), ("reinforcement", reward_rows)):
        (tmp_path / f"{kind}.jsonl").write_bytes(rows(12))
        (tmp_path / f"{kind}-validation.jsonl").write_bytes(b"".join(rows(16).splitlines(keepends=True)[12:]))
    with running_server(tmp_path) as server, server.worker():
        words = [str(HERE / "sdk_scenario.py"), server.url, MODEL, str(tmp_path)]
        if version == "installed":
            monkeypatch.setattr(sys, "argv", words)
            runpy.run_path(words[0], run_name="__main__")
            return
        done = subprocess.run([str(python), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == version
