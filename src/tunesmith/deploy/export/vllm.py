"""The merged model with the command that vLLM serves it by."""

from __future__ import annotations

import shlex
from pathlib import Path

from tunesmith.core.atomic import write_atomic
from tunesmith.deploy.export.merged import write_merged
from tunesmith.deploy.export.model_files import ModelFiles, read_config, text_config

WEIGHTS = "model"  # the folder of the merged model


def options(files: ModelFiles, folder: Path) -> list[str]:
    """vLLM's options for a model whose merged weights lie in the folder: its name, its type, and its context."""
    config = text_config(read_config(folder / WEIGHTS))
    kind, context = config.get("dtype") or config.get("torch_dtype"), config.get("max_position_embeddings")
    more = [*(["--dtype", str(kind)] if kind else []), *(["--max-model-len", str(context)] if context else [])]
    return ["--served-model-name", files.name, *more]


def write_weights(files: ModelFiles, folder: Path) -> list[str]:
    """The merged model in a folder of its own below; returns vLLM's options for it."""
    (folder / WEIGHTS).mkdir()
    write_merged(files, folder / WEIGHTS)
    return options(files, folder)


def write_vllm(files: ModelFiles, folder: Path) -> None:
    """Fill the folder. Raises UsageError as `write_merged`."""
    words = shlex.join(write_weights(files, folder))
    script = folder / "serve.sh"
    write_atomic(script, f'#!/bin/sh\nset -eu\nexec vllm serve "$(dirname "$0")/{WEIGHTS}" {words} "$@"\n')
    script.chmod(0o755)
