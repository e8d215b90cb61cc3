"""The merged model in an image that serves it by vLLM on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.core.atomic import write_atomic
from tunesmith.deploy.export.model_files import ModelFiles
from tunesmith.deploy.export.vllm import WEIGHTS, write_weights

PORT = 8000
TAG = "v0.32.0"  # of the image vllm/vllm-openai; another one by --build-arg VLLM_TAG=…


def write_docker(files: ModelFiles, folder: Path) -> None:
    """Fill the folder. Raises UsageError as `write_merged`."""
    command = ["vllm", "serve", "/model", "--port", str(PORT), *write_weights(files, folder)]
    lines = [
        f"ARG VLLM_TAG={TAG}",
        "FROM vllm/vllm-openai:${VLLM_TAG}",
        f"COPY {WEIGHTS} /model",
        "# Nothing is fetched, and nothing is told to anybody, when the server runs.",
        "ENV HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1",
        f"EXPOSE {PORT}",
        f"ENTRYPOINT {json.dumps(command)}",
    ]
    write_atomic(folder / "Dockerfile", "\n".join(lines) + "\n")
