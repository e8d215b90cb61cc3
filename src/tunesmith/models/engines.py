"""Engines of other programs behind the protocol of models: llama.cpp for a GGUF file, vLLM for folders of weights and adapters on them,
each a process of ours that is asked over HTTP; and which engine a model is answered by, with the reason. Knows nothing about names that
clients use.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith.core.digests import files_digest
from tunesmith.core.errors import NotFound, SourceUnavailable, UsageError, nearest
from tunesmith.core.types import Answer, Prompt, Sampling, digest
from tunesmith.models.base import OnAnswer
from tunesmith.models.child_server import Care, ChildServer, Launch
from tunesmith.models.connection import Incoming
from tunesmith.models.engine_settings import ENGINES, GGUF, EngineSettings, is_gguf
from tunesmith.models.upstream import Upstream

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
_ADAPTER_S = 120.0


def pick(asked: str, word: str, settings: EngineSettings) -> tuple[str, str]:
    """(the engine that answers for a model, why). `asked` is one of ENGINES. Raises UsageError for an engine that cannot read it."""
    if asked not in ENGINES:
        raise UsageError(f"no engine '{asked}'", where="serve.engines", allowed=", ".join(ENGINES), remedy=nearest(asked, ENGINES))
    if is_gguf(word):
        if asked not in ("auto", "llama.cpp"):
            raise UsageError(f"the engine '{asked}' does not read '{word}'", allowed="llama.cpp, for a GGUF file")
        return "llama.cpp", f"{Path(word).name} is a GGUF file"
    if asked == "llama.cpp":
        raise UsageError(
            f"llama.cpp does not read '{word}'", allowed=f"a file *{GGUF}", remedy=f"tunesmith export {word} --to gguf --out FOLDER"
        )
    if asked != "auto":
        return asked, "it is asked for by name"
    device, version = _gpu(), vllm_version(settings.python)
    if device is None:
        return "embedded", "there is no GPU, and vLLM is made for one"
    if version is None:
        return "embedded", f"there is a GPU ({device}), but no vLLM in {settings.python or sys.executable} (pip install 'tunesmith[vllm]')"
    return "vllm", f"there is a GPU ({device}), and vLLM {version}"


def _gpu() -> str | None:
    """The name of the first GPU that torch can use."""
    import torch

    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None


def vllm_version(python: str | None) -> str | None:
    """The version of vLLM in an interpreter's environment (None: this one's); None where it has none."""
    if python is None:
        return importlib.metadata.version("vllm") if importlib.util.find_spec("vllm") else None
    try:
        code = "import importlib.metadata as m; print(m.version('vllm'))"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


class EngineModel(Upstream):
    """A model that a server of ours answers for, under the name `model` there; the server is started with the first question, if not
    before. `digest` is of the weights, not of the address."""

    def __init__(self, server: ChildServer, model: str, weights: str, *, name: str) -> None:
        super().__init__(model, base_url=f"{server.url}/v1")
        self.server, self.called, self._weights = server, name, weights

    @property
    def digest(self) -> str:
        """Of the weights and the engine."""
        return self._weights

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`."""
        self.server.wait()
        return super().answer(prompts, sampling, on_answer)

    async def send(self, path: str, body: bytes) -> Incoming:
        """See `Passing.send`."""
        if not self.server.ready:
            self.server.start()
            raise ConnectionRefusedError(f"the engine of '{self.called}' is not ready ({self.server.log})")
        return await super().send(path, body)


def llama_cpp(file: Path, name: str, log: Path, settings: EngineSettings, care: Care | None = None) -> EngineModel:
    """A GGUF file, answered by llama.cpp. Raises NotFound where there is none, MissingExtra without the wheel."""
    if not file.is_file():
        raise NotFound(f"no file '{file}'", allowed="a GGUF file", remedy="tunesmith export MODEL --to gguf --out FOLDER")
    if importlib.util.find_spec("xllamacpp") is None:
        raise UsageError("llama.cpp is not installed", remedy="pip install 'tunesmith[llamacpp]'")
    if settings.options:
        raise UsageError(f"llama.cpp takes no options here, and {settings.options[0]} is given", allowed="at_once, context, threads")
    words = [sys.executable, "-m", "tunesmith.models.llama_child", str(file.resolve()), "--port", "{port}", "--name", name]
    words += ["--at-once", str(settings.at_once), "--context", str(settings.context or 0), "--threads", str(settings.threads or 0)]
    server = ChildServer(name, Launch(words), log, care=care)
    return EngineModel(server, name, digest("llama.cpp", importlib.metadata.version("xllamacpp"), files_digest([file])), name=name)


class Vllm:
    """vLLM over the weights in `base`, called `name` there. Adapters are loaded and unloaded while it runs, and loaded again when it was
    started again.

    An adapter is called by its name and its content: vLLM keeps what it computed under an old adapter's name, so a new version has a new
    one.
    """

    def __init__(
        self, base: Path, name: str, log: Path, settings: EngineSettings, adapters: Mapping[str, Path], care: Care | None = None
    ) -> None:
        self.base, self._settings = base, settings
        self._adapters: dict[str, Path] = {}
        self._lock = threading.Lock()
        self.server = ChildServer(name, self._launch(name, list(adapters.values())), log, care=care, on_ready=self._load_all)
        for path in adapters.values():
            self._adapters[_adapter_name(path)] = path

    def _launch(self, name: str, adapters: Sequence[Path]) -> Launch:
        python = self._settings.python or sys.executable
        words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.base), "--served-model-name", name]
        words += ["--host", "127.0.0.1", "--port", "{port}", "--max-num-seqs", str(self._settings.at_once)]
        words += ["--max-model-len", str(self._settings.context)] if self._settings.context else []
        if adapters:
            most = max(_rank(path) for path in adapters)
            rank = next((rank for rank in _RANKS if rank >= most), None)
            if rank is None:
                raise UsageError(f"an adapter has rank {most}", where=str(self.base), allowed=f"at most {_RANKS[-1]}, vLLM's limit")
            words += ["--enable-lora", "--max-loras", str(min(8, len(adapters))), "--max-cpu-loras", str(2 * max(8, len(adapters)))]
            words += ["--max-lora-rank", str(rank)]
        return Launch([*words, *self._settings.options], {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"})

    def model(self, name: str, adapter: Path | None = None) -> EngineModel:
        """The base, or an adapter on it that is loaded or will be, as a model."""
        files = [*sorted(self.base.glob("*.safetensors")), self.base / "config.json"]
        files += [] if adapter is None else [adapter / "adapter_config.json", adapter / "adapter_model.safetensors"]
        weights = digest("vllm", vllm_version(self._settings.python), list(self._settings.options), files_digest(files))
        return EngineModel(self.server, self.server.name if adapter is None else _adapter_name(adapter), weights, name=name)

    def load(self, adapter: Path) -> str:
        """Let it answer for an adapter too; returns its name there. Raises SourceUnavailable when vLLM does not take it."""
        name = _adapter_name(adapter)
        with self._lock:
            if name not in self._adapters:
                if self.server.ready:
                    self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(adapter.resolve())})
                self._adapters[name] = adapter
        return name

    def unload(self, adapter: Path) -> None:
        """Let go of an adapter; nothing happens when it is not loaded."""
        name = _adapter_name(adapter)
        with self._lock:
            if self._adapters.pop(name, None) is not None and self.server.ready:
                self._post("unload_lora_adapter", {"lora_name": name})

    def _load_all(self) -> None:
        with self._lock:
            for name, path in self._adapters.items():
                self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(path.resolve())})

    def _post(self, path: str, body: Mapping[str, str]) -> None:
        url = f"{self.server.url}/v1/{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_ADAPTER_S) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise SourceUnavailable(f"vLLM does not {path.partition('_')[0]} '{body['lora_name']}': {said}", where=url) from error
        except OSError as error:
            raise SourceUnavailable(f"vLLM does not answer: {error}", where=url) from error


def _adapter_name(folder: Path) -> str:
    return f"{folder.name}-{files_digest([folder / 'adapter_config.json', folder / 'adapter_model.safetensors'])[:12]}"


def _rank(folder: Path) -> int:
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    return max([int(config["r"]), *(config.get("rank_pattern") or {}).values()])
