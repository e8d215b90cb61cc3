"""The merged model with the configuration by which Ray Serve runs vLLM over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tunesmith.core.atomic import write_atomic
from tunesmith.deploy.export.model_files import ModelFiles, read_config, text_config
from tunesmith.deploy.export.vllm import WEIGHTS, write_weights

PLACE = "/model"  # where every node of a cluster has the folder of the weights; `serve.sh` puts its own in its place

_SCRIPT = f"""#!/bin/sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
config=$(mktemp --suffix .yaml)
trap 'rm -f "$config"' EXIT
sed "s|model_source: {PLACE}$|model_source: $here/{WEIGHTS}|" "$here/serve.yaml" > "$config"
serve run "$config" "$@"
"""


def write_ray_serve(files: ModelFiles, folder: Path) -> None:
    """Fill the folder. Raises UsageError as `write_merged`."""
    write_weights(files, folder)
    write_atomic(folder / "serve.yaml", yaml.safe_dump(serve_config(files.name, folder / WEIGHTS), sort_keys=False))
    script = folder / "serve.sh"
    write_atomic(script, _SCRIPT)
    script.chmod(0o755)


def serve_config(name: str, weights: Path) -> dict[str, Any]:
    """One application that answers OpenAI's API with one replica of the model (`ray.serve.llm`)."""
    config = text_config(read_config(weights))
    kind, context = config.get("dtype") or config.get("torch_dtype"), config.get("max_position_embeddings")
    engine = {**({"dtype": str(kind)} if kind else {}), **({"max_model_len": context} if context else {})}
    model = {
        "model_loading_config": {"model_id": name, "model_source": PLACE},
        "engine_kwargs": engine,
        "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}, "graceful_shutdown_timeout_s": 60.0},
    }
    application = {"name": "llm", "route_prefix": "/", "import_path": "ray.serve.llm:build_openai_app", "args": {"llm_configs": [model]}}
    return {"applications": [application]}
