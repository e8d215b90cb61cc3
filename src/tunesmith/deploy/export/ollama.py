"""A GGUF file with a Modelfile for Ollama. Knows nothing about Ollama's own templates: it finds the one that fits the file's."""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.core.atomic import write_atomic
from tunesmith.core.chat import Renderer
from tunesmith.deploy.export.gguf import FILE, write_file
from tunesmith.deploy.export.model_files import ModelFiles, read_config


def write_ollama(files: ModelFiles, folder: Path) -> None:
    """Fill the folder. Raises UsageError as `gguf.write_file`."""
    write_file(files, folder / FILE, "f16")
    renderer = Renderer.load(files.base)
    stops = [f"PARAMETER stop {json.dumps(renderer.word(number), ensure_ascii=False)}" for number in sorted(renderer.stop_ids)]
    context = read_config(files.base).get("max_position_embeddings")
    lines = [f"FROM ./{FILE}", *stops, *([f"PARAMETER num_ctx {context}"] if context else [])]
    write_atomic(folder / "Modelfile", "\n".join(lines) + "\n")
