"""Engines of other programs behind the protocol of models: which one answers and why, and processes that are looked after."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.core.errors import ConfigError, NotFound, SourceUnavailable, UsageError
from tunesmith.core.types import Message, Prompt, Sampling
from tunesmith.deploy.serve_config import Elsewhere, ServeConfig, ServedEngine
from tunesmith.models.child_server import GUARDIAN, Care, ChildServer, Launch
from tunesmith.models.engine_settings import EngineSettings
from tunesmith.models.engines import Vllm, llama_cpp, pick
from waiting import until

PROMPT = Prompt(messages=(Message(role="user", content="hi"),))
QUICK = Care(every_s=0.05, pause_s=0.05, grace_s=5)
HERE = Path(__file__).parent


def said(model) -> tuple[str, int]:
    """What it calls itself, and its process."""
    name, _, pid = model.answer([PROMPT], Sampling(max_tokens=4))[0].text.rpartition(" of ")
    return name, int(pid)


def gone(pid: int) -> bool:
    """Whether no such process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def vllm_python(tmp_path):
    """An interpreter whose environment has vLLM."""
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then echo 0.15.0; exit; fi\nshift 2\nexec {sys.executable} -S {HERE / "vllm_stand_in.py"} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def adapter(folder: Path, rank: int = 4, weights: bytes = b"1") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_vllm_has_its_adapters_while_it_runs_and_again_after_it_died(tmp_path, vllm_python):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two", rank=12)
    server = Vllm(base, "b", tmp_path / "log", EngineSettings(python=vllm_python), {"one": one}, QUICK)
    try:
        models = {name: server.model(name, path) for name, path in (("b", None), ("one", one), ("two", two))}
        assert len({model.digest for model in models.values()}) == 3
        name, pid = said(models["b"])
        assert name == "b"
        assert os.getpgid(server.server.pid or 0) != os.getpgid(0), "a ctrl-C in the terminal would end it before what is open has ended"
        assert said(models["one"])[0].startswith("one-")
        with pytest.raises(UsageError, match="does not exist"):
            said(models["two"])
        server.load(two)  # while it runs
        assert said(models["two"])[0].startswith("two-")
        server.unload(one)
        with pytest.raises(UsageError, match="does not exist"):
            said(models["one"])
        os.kill(pid, signal.SIGKILL)
        until(lambda: server.server.starts == 2 and server.server.ready)
        assert said(models["two"])[0].startswith("two-"), "loaded again, and only what was not unloaded"
        with pytest.raises(UsageError, match="does not exist"):
            said(models["one"])
        pid = said(models["b"])[1]
    finally:
        server.server.stop()
    assert gone(pid)
    with pytest.raises(SourceUnavailable, match="stopped"):
        said(models["b"])
    words = (tmp_path / "log").read_text()
    assert "--max-lora-rank 8" in words  # of the adapters that it began with
    assert "--enable-lora" in words


def test_what_a_killed_parent_started_ends(tmp_path):
    """The pipe ends as it does when whoever holds its other end is killed; a process that ignores SIGTERM is killed, its child too."""
    script = "trap '' TERM; (trap '' TERM; sleep 600) & echo $! $$; wait"
    guardian = subprocess.Popen(
        [sys.executable, str(GUARDIAN), "0.1", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert guardian.stdout is not None
    assert guardian.stdin is not None
    pids = [int(word) for word in guardian.stdout.readline().split()]
    assert not any(map(gone, pids))
    guardian.stdin.close()
    assert guardian.wait() == 128 + signal.SIGKILL
    until(lambda: all(map(gone, pids)))
    guardian.stdout.close()


def test_a_server_that_does_not_start_says_its_own_last_words(tmp_path):
    server = ChildServer("big", Launch(["sh", "-c", "echo no kernel for this GPU; exit 3"]), tmp_path / "log", care=QUICK)
    with pytest.raises(SourceUnavailable, match=r"'big' does not start: ended with code 3(.|\n)*no kernel for this GPU"):
        server.wait()
    until(lambda: (tmp_path / "log").read_text().count("no kernel") > 2)  # it is tried again
    server.stop()
    assert server.pid is None
    missing = ChildServer("big", Launch([str(tmp_path / "nothing")]), tmp_path / "other", care=QUICK)
    with pytest.raises(SourceUnavailable, match="cannot be started"):
        missing.wait()
    missing.stop()


def test_a_server_that_answers_wrongly_is_started_again(tmp_path):
    file = tmp_path / "starts"
    code = f"import http.server as h; open({str(file)!r}, 'a').write('x'); n = [0]\nclass H(h.BaseHTTPRequestHandler):\n"
    code += " def do_GET(self):\n  n[0] += 1; self.send_response(200 if n[0] < 3 else 500); self.end_headers()\n"
    code += "h.HTTPServer(('127.0.0.1', {port}), H).serve_forever()"
    server = ChildServer("ill", Launch([sys.executable, "-S", "-c", code]), tmp_path / "log", care=QUICK)
    server.wait()
    until(lambda: server.starts == 3)  # and the second was well, too
    assert file.read_text().startswith("xx")
    server.stop()


def test_which_engine_answers_and_why(monkeypatch, vllm_python):
    plain = EngineSettings()
    assert pick("auto", "models/small.gguf", plain) == ("llama.cpp", "small.gguf is a GGUF file")
    assert pick("vllm", "smollm2-135m", plain)[0] == "vllm"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    engine, why = pick("auto", "smollm2-135m", EngineSettings(python=vllm_python))
    assert (engine, "no GPU" in why) == ("embedded", True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H200")
    assert pick("auto", "smollm2-135m", EngineSettings(python="/no/python"))[0] == "embedded"
    assert pick("auto", "smollm2-135m", EngineSettings(python=vllm_python)) == (
        "vllm",
        "there is a GPU (NVIDIA H200), and vLLM 0.15.0",
    )
    for asked, word, what in [
        ("llama.cpp", "smollm2-135m", "--to gguf"), ("vllm", "a.gguf", "does not read 'a.gguf'"), ("embedded", "a.gguf", "llama.cpp"),
        ("vlm", "smollm2-135m", "did you mean 'vllm'"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=what):
            pick(asked, word, plain)


def test_what_an_engine_may_be_is_said():
    for given, what in [
        ({"engine": "llamacpp"}, "did you mean 'llama.cpp'"), ({"at_once": 0}, "at_once"), ({"context": -1}, "context"), ({"ready_s": 0}, "ready_s"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=what):
            ServedEngine(model="x", **given)
    elsewhere = Elsewhere(base_url="http://127.0.0.1:1/v1", model="m")
    with pytest.raises(ConfigError, match="an engine and an upstream"):
        ServeConfig(engines={"big": ServedEngine(model="x")}, upstreams={"big": elsewhere})
    with pytest.raises(NotFound, match="no file"):
        llama_cpp(Path("nothing.gguf"), "x", Path("log"), EngineSettings())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="llama.cpp's wheel is not installed")
def test_a_gguf_file_is_served_and_evaluated_as_the_weights_that_it_was_made_of(tmp_path, monkeypatch):
    import httpx

    import tiny
    from tunesmith.api.app import running
    from tunesmith.api.serve import application
    from tunesmith.deploy.export.gguf import write_file
    from tunesmith.deploy.export.model_files import ModelFiles
    from tunesmith.models.catalog import Catalog
    from tunesmith.models.local import LocalModel
    from tunesmith.models.resolve import Models

    monkeypatch.chdir(tmp_path)
    base = tiny.model(tmp_path / "base", "qwen2")
    write_file(ModelFiles("tiny", base, None, "tiny"), tmp_path / "tiny.gguf", "f32")
    (tmp_path / "tunesmith.yaml").write_text(
        "name: t\nsources: [{path: rows.jsonl}]\nbase: base\nserve: {workers: 0, port: 0, engines: {small: {model: tiny.gguf, threads: 1}, lost: {model: no.gguf}}}\n"
    )
    prompts = [Prompt(messages=(Message(role="user", content=text),)) for text in ("Who signed it?", "New York", "yes or no")]
    draw = Sampling(max_tokens=12, temperature=0.0)
    expected = LocalModel(base, name="base", dtype="float32").answer(prompts, draw)
    lines: list[str] = []
    with application(tmp_path / "tunesmith.yaml", (), lines.append, names={}) as made:
        (child,) = [model.server for model in made.router.models() if hasattr(model, "server")]
        pid = child.pid
        with running(made.app) as url:
            for prompt, answer in zip(prompts, expected, strict=True):
                body = {
                    "model": "small",
                    "messages": [{"role": "user", "content": prompt.messages[0].content}],
                    "max_tokens": 12,
                    "temperature": 0,
                }
                got = httpx.post(f"{url}/chat/completions", json=body, timeout=60).json()
                assert got["usage"]["prompt_tokens"] == answer.prompt_tokens
                assert got["choices"][0]["message"]["content"].rstrip("\ufffd") == answer.text.rstrip("\ufffd")  # a character that was cut
    assert any("'small' is answered by llama.cpp: tiny.gguf is a GGUF file" in line for line in lines)
    assert any(line.startswith("NOT SERVED: 'lost'") for line in lines)
    assert pid is not None
    assert gone(pid)
    models = Models(None, Catalog(), home=tmp_path)
    model = models.resolve("tiny.gguf")
    assert [answer.text.rstrip("\ufffd") for answer in model.answer(prompts[:1], draw)] == [expected[0].text.rstrip("\ufffd")]
    model.server.stop()  # type: ignore[attr-defined]
