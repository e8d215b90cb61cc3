"""`python -m tunesmith.models.llama_child FILE --port P --context N --at-once N [--threads N] [--name WORD]`: llama.cpp's own server, from
the wheel `xllamacpp`, over a GGUF file, until SIGTERM.

Keys and values are kept in float32 and attention is computed as written, so that a file in float32 answers as transformers does. Knows
nothing about who asks.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from tunesmith.core.load import need


def main(words: Sequence[str]) -> int:
    """Serve; returns 0 when told to stop."""
    given = _parsed(words)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    library = need("xllamacpp", extra="llamacpp")
    server = library.Server(_settings(library, given))
    print(f"llama.cpp serves {given.file} at {server.listening_address}", flush=True)
    while not ending.wait(0.2):
        pass
    sys.stdout.flush()
    os._exit(0)  # its threads have no other end


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llama_child")
    parser.add_argument("file")
    for name, default in (("--port", None), ("--context", 0), ("--at-once", 8), ("--threads", 0)):
        parser.add_argument(name, type=int, default=default, required=default is None)
    parser.add_argument("--name", default="")
    return parser.parse_args(list(words))


def _settings(library: Any, given: argparse.Namespace) -> Any:
    settings = library.CommonParams()
    settings.model.path, settings.hostnames, settings.port = given.file, ["127.0.0.1"], given.port
    settings.model_alias = {given.name or given.file}
    settings.n_parallel, settings.kv_unified = given.at_once, True
    settings.n_ctx = given.context * given.at_once  # 0: the context that the model was trained with, for all of them
    settings.warmup, settings.verbosity = False, 1
    threads = given.threads or len(os.sched_getaffinity(0))
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cache_type_k = settings.cache_type_v = library.ggml_type.GGML_TYPE_F32
    return settings


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
