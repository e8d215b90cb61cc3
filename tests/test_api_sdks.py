"""The same scenario by older SDKs, each in an environment of its own under .peers/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from api_parts import MODEL, chat_rows, preference_rows, reward_rows, running_server

HERE = Path(__file__).resolve().parent
pytest.importorskip("openai")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["installed", "2.54.0", "1.109.1"])
def test_the_scenario(tmp_path, version):
    python = Path(sys.executable) if version == "installed" else HERE.parent / ".peers" / f"openai-{version}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no .peers/openai-{version}: python -m venv it, and pip install openai=={version}")
    for kind, rows in (("supervised", chat_rows), ("dpo", preference_rows), ("reinforcement", reward_rows)):
        (tmp_path / f"{kind}.jsonl").write_bytes(rows(12))
        (tmp_path / f"{kind}-validation.jsonl").write_bytes(b"".join(rows(16).splitlines(keepends=True)[12:]))
    with running_server(tmp_path) as server, server.worker():
        command = [str(python), str(HERE / "sdk_scenario.py"), server.url, MODEL, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert version in ("installed", done.stdout.strip())
