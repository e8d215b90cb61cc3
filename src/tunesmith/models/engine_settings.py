"""Which engines there are, and how one is started; read with a project's file, so it loads nothing. Knows nothing about the engines."""

from __future__ import annotations

from dataclasses import dataclass

ENGINES = ("auto", "embedded", "llama.cpp", "vllm")
GGUF = ".gguf"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine is started: `at_once` requests are answered together, each of `context` tokens at most (None: the model's own), by
    `threads` threads (None: all); `python` is the interpreter that has vLLM, `options` are further words of its command."""

    at_once: int = 8
    context: int | None = None
    threads: int | None = None
    python: str | None = None
    options: tuple[str, ...] = ()


def is_gguf(word: str) -> bool:
    """Whether a word names a GGUF file."""
    return word.endswith(GGUF) and "://" not in word
