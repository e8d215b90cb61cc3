"""The engines of `serve.engines` as models: which engine each name has and why, one process for all that it can answer for. Knows nothing
about HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.errors import TunesmithError, UsageError
from tunesmith.core.types import digest
from tunesmith.deploy.serve_config import ServedEngine
from tunesmith.models.base import Model
from tunesmith.models.child_server import Care, ChildServer
from tunesmith.models.engine_settings import is_gguf
from tunesmith.models.resolve import Models

if TYPE_CHECKING:  # the extra `serve` is needed by who has engines, not by who has a project
    from tunesmith.models.engines import EngineModel, Vllm


class Engines:
    """Names → models over `engines`; words are resolved by `models`, each engine's output goes to a file in `logs`.

    A model is made once; a process is started with its first question or by `start`, and ends with `stop` or with this process.
    """

    def __init__(self, engines: Mapping[str, ServedEngine], models: Models, logs: Path) -> None:
        self._engines, self._models, self._logs = engines, models, logs
        self._made: dict[str, Model] = {}
        self._vllm: dict[str, Vllm] = {}
        self._servers: list[ChildServer] = []
        self.why: dict[str, str] = {}

    @property
    def makers(self) -> dict[str, Callable[[], Model]]:
        """What makes each model when it is first asked for, as `Models.upstreams` wants it."""
        return {name: partial(self.model, name) for name in self._engines}

    def model(self, name: str) -> Model:
        """The model of a name. Raises UsageError and NotFound for one whose engine cannot answer."""
        if name not in self._made:
            self._made[name] = self._make(name, self._engines[name])
        return self._made[name]

    def _make(self, name: str, entry: ServedEngine) -> Model:
        from tunesmith.models.engines import llama_cpp, pick

        engine, reason = pick(entry.engine, entry.model, entry.settings)
        self.why[name] = f"'{name}' is answered by {engine}: {reason}"
        if engine == "embedded":
            return self._models.load(self._models.ref(entry.model), name)
        care = Care(ready_s=entry.ready_s)
        if engine == "llama.cpp":
            made = llama_cpp(self._file(entry.model), name, self._logs / f"engine-{name}.log", entry.settings, care)
        else:
            made = self._by_vllm(name, entry, care)
        if made.server not in self._servers:
            self._servers.append(made.server)
        return made

    def _by_vllm(self, name: str, entry: ServedEngine, care: Care) -> EngineModel:
        from tunesmith.models.engines import Vllm

        base, adapter = self._models.folders(self._models.ref(entry.model))
        key = digest(str(base), entry.at_once, entry.context, entry.python, list(entry.options))
        if key not in self._vllm:
            self._vllm[key] = Vllm(base, name, self._logs / f"engine-{name}.log", entry.settings, self._adapters(key), care)
        if adapter is not None:
            self._vllm[key].load(adapter)
        return self._vllm[key].model(name, adapter)

    def _adapters(self, key: str) -> dict[str, Path]:
        """The adapters of every name that this process will answer for, since vLLM makes room for them when it starts."""
        adapters = {}
        for name, entry in self._engines.items():
            if is_gguf(entry.model) or entry.engine not in ("auto", "vllm"):
                continue
            base, adapter = self._models.folders(self._models.ref(entry.model))
            if adapter is not None and key == digest(str(base), entry.at_once, entry.context, entry.python, list(entry.options)):
                adapters[name] = adapter
        return adapters

    def _file(self, word: str) -> Path:
        path = Path(word).expanduser()
        home = self._models.home
        return path if path.is_absolute() or home is None or path.is_file() else home / path

    def start(self) -> tuple[dict[str, Model], list[str]]:
        """Start all and wait until they are ready: (the models by name, what is to be said). One that does not start is said, too, and is
        tried again while the server runs; one that cannot is not among the models."""
        made, lines = dict[str, Model](), list[str]()
        for name in self._engines:
            try:
                made[name] = self.model(name)
                lines.append(self.why[name])
            except TunesmithError as error:
                lines.append(f"NOT SERVED: '{name}': {error}")
        for server in self._servers:
            server.start()
        for server in self._servers:
            try:
                server.wait()
            except TunesmithError as error:
                lines.append(f"NOT READY: {error}")
        return made, lines

    def stop(self) -> None:
        """End every process."""
        for server in self._servers:
            server.stop()


def refuse_taken(engines: Mapping[str, ServedEngine], base: str) -> None:
    """Raises UsageError for an engine under the name of the project's base, which answers already."""
    if base in engines:
        raise UsageError(f"'{base}' is the project's base and answers already", where="serve.engines", remedy="another name for the engine")
