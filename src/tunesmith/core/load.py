"""Imports on demand: a package of an extra, or a user's own `module:attribute`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.core.errors import ConfigError, MissingExtra

_GATHERED = ("all", "dev")  # extras that only name others


def need(module: str, *, extra: str) -> Any:
    """Import `module`, or say which extra brings it.

    Raises MissingExtra when it is not installed; an error inside an installed package is passed on unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise _missing(error.name, extra) from error


def missing_extra(error: ModuleNotFoundError) -> MissingExtra | None:
    """That error as the extra that brings the module; None when no extra of ours does, so that something else is wrong."""
    for requirement in importlib.metadata.requires("tunesmith") or ():
        package, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"](\w+)", requirement)
        if package and extra and extra[1] not in _GATHERED and package[0].replace("-", "_") == (error.name or "").split(".")[0]:
            return _missing(package[0], extra[1])
    return None


def _missing(package: str, extra: str) -> MissingExtra:
    return MissingExtra(
        f"the package '{package}' is not installed", remedy=f"pip install 'tunesmith[{extra}]', or 'tunesmith[all]' for every part"
    )


def resolve(reference: str, *, where: str = "") -> Any:
    """The object that `module:attribute` (or `path/to/file.py:attribute`) names.

    The folder of the current project is importable. Raises ConfigError with what was looked for.
    """
    module_name, colon, attribute = reference.rpartition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"'{reference}' names no object", where=where, allowed="module:attribute, or path/to/file.py:attribute")
    if module_name.endswith(".py"):
        module = _from_file(Path(module_name).expanduser().resolve(), reference, where)
    else:
        if "" not in sys.path:
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


def _from_file(path: Path, reference: str, where: str) -> ModuleType:
    """The module in that file, under a name of its own, so that it cannot be mistaken for another of the same name."""
    name = f"tunesmith_user_{abs(hash(str(path))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"no file '{path}' for '{reference}'", where=where, remedy="relative paths start at the current folder")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
