"""The adapter as peft loads it: its own two files unchanged but for the name of the base, with the base's tokenizer and template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tunesmith.core.atomic import write_atomic
from tunesmith.core.errors import UsageError
from tunesmith.core.model_ref import ADAPTER_SETTINGS, adapter_settings
from tunesmith.core.seal import check_folder
from tunesmith.deploy.export.model_files import ModelFiles, copy_companions

WEIGHTS = "adapter_model.safetensors"


def write_adapter(files: ModelFiles, folder: Path) -> None:
    """Fill the folder. Raises UsageError for a model that has no adapter, or one whose weights are in no safetensors."""
    if files.adapter is None:
        raise UsageError(f"'{files.name}' has no adapter: its weights are whole", where="--to adapter", allowed="--to merged")
    weights = check_folder(files.adapter) / WEIGHTS
    if not weights.is_file():
        raise UsageError(f"no {WEIGHTS}", where=str(files.adapter), allowed="an adapter whose weights are in safetensors")
    copy_companions(files.base, folder)
    shutil.copyfile(weights, folder / WEIGHTS)
    settings = {**adapter_settings(files.adapter), "base_model_name_or_path": files.base_name, "inference_mode": True}
    write_atomic(folder / ADAPTER_SETTINGS, json.dumps(settings, indent=2) + "\n")
