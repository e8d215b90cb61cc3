"""Imports on demand: a package of an extra, or a user's own `module:attribute`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from tunesmith.core.errors import ConfigError, MissingExtra


def need(module: str, *, extra: str) -> Any:
    """Import `module`, or say which extra brings it.

    Raises MissingExtra when it is not installed; an error inside an installed package is passed on unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise MissingExtra(f"the package '{error.name}' is not installed", remedy=f"pip install 'tunesmith[{extra}]'") from error


def resolve(reference: str, *, where: str = "") -> Any:
    """The object that `module:attribute` (or `path/to/file.py:attribute`) names.

    The folder of the current project is importable. Raises ConfigError with what was looked for.
    """
    module_name, colon, attribute = reference.rpartition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"'{reference}' names no object", where=where, allowed="module:attribute, or path/to/file.py:attribute")
    if module_name.endswith(".py"):
        path = Path(module_name).resolve()
        sys.path.insert(0, str(path.parent))
        module_name = path.stem
    elif "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"no module '{module_name}' for '{reference}'", where=where, remedy="check the name, or run where it can be imported"
        ) from error
    if not hasattr(module, attribute):
        raise ConfigError(f"module '{module_name}' has no '{attribute}'", where=where)
    return getattr(module, attribute)
