"""Looks at the machine before work starts; changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tunesmith.core.errors import TunesmithError
from tunesmith.store.layout import FOLDER, user_folder

_PACKAGES = (
    ("torch", "local"),
    ("transformers", "local"),
    ("peft", "local"),
    ("tokenizers", "local"),
    ("numba", "data"),
    ("starlette", "serve"),
    ("openai", "openai"),
)
_NEEDED_BYTES = 4 * 2**30


def examine(config: Path | None = None) -> list[dict[str, Any]]:
    """One line a check: {name, ok, said}; with the file of a project also what its servers could not load."""
    checks = [_check("python", sys.version_info >= (3, 11), sys.version.split()[0])]
    for package, extra in _PACKAGES:
        try:
            checks.append(_check(package, True, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(_check(package, False, f"not installed: pip install 'tunesmith[{extra}]'"))
    checks.append(_check("processor", True, f"{os.cpu_count()} cores{_features()}"))
    checks.append(_memory())
    place = user_folder()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    checks.append(_check("disk", free > _NEEDED_BYTES, f"{free / 2**30:.0f} GiB free for {place}"))
    checks.append(_check("store", os.access(existing, os.W_OK), f"{place} can be written"))
    return [*checks, *(_deployed(config) if config is not None and (config.parent / FOLDER).is_dir() else [])]


def _deployed(config: Path) -> list[dict[str, Any]]:
    """What is deployed, as the servers over the project's store found it when they loaded it."""
    from tunesmith.flow.identity_status import not_loaded
    from tunesmith.flow.project import load_project, open_store
    from tunesmith.store.deployments import Deployments
    from tunesmith.store.store import Store

    try:
        folder = config.resolve().parent
        with closing(open_store(load_project(config), folder) if config.is_file() else Store.open(folder / FOLDER)) as store:
            names, missing = list(Deployments(store).in_force()), not_loaded(store)
    except TunesmithError as error:
        return [_check("deployed", False, f"could not be looked up: {error}")]
    if not missing:
        return [_check("deployed", True, ", ".join(names) or "nothing")]
    return [
        _check("deployed", False, f"variant '{variant}' of '{alias}' (version {version}) could not be loaded: {why}")
        for (alias, version, variant), why in missing.items()
    ]


def _check(name: str, ok: bool, text: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "said": text}


def _features() -> str:
    """The processor features that decide the speed; empty where the system does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return ""
    features = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags.split()]
    return f", {' '.join(features)}" if features else ""


def _memory() -> dict[str, Any]:
    if not hasattr(os, "sysconf"):
        return _check("memory", True, "unknown on this system")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _check("memory", free > _NEEDED_BYTES, f"{free / 2**30:.1f} GiB free")
