"""A model as the folders that it is made of, and what of a base's folder travels with every export of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.errors import StoreError
from tunesmith.core.model_ref import ADAPTER_SETTINGS
from tunesmith.core.seal import SEAL

_COMPANIONS = {".json", ".jinja", ".txt", ".model", ".py"}
_OWN = {"config.json", ADAPTER_SETTINGS, SEAL, "tunesmith.txt", "run.json"}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What is exported: the folder of whole weights, perhaps that of an adapter on them, and what both are called elsewhere.

    `name` is what clients will ask for, `base_name` the word by which others load the base: an id of the hub, else its folder.
    """

    name: str
    base: Path
    adapter: Path | None
    base_name: str


def read_config(folder: Path) -> dict[str, Any]:
    """The model's configuration as it is written. Raises StoreError when there is none."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"no configuration can be read: {error}", where=str(folder / "config.json")) from error
    return dict(config)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that is about text: all of it, but for models that also see or hear."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def companions(base: Path) -> Iterator[Path]:
    """What lies beside a base's weights and goes with them: tokenizer, template, generation settings, licence, code that it needs."""
    for path in sorted(base.iterdir()):
        wanted = path.suffix in _COMPANIONS or path.name.upper().startswith("LICENSE")
        if path.is_file() and wanted and path.name not in _OWN and not path.name.endswith(".index.json"):
            yield path


def copy_companions(base: Path, folder: Path) -> None:
    """Put them into the folder, in place of what a library wrote there under their names."""
    for path in companions(base):
        shutil.copyfile(path, folder / path.name)
