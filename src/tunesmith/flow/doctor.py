"""Looks at the machine before work starts; changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from typing import Any

from tunesmith.store.layout import user_folder

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


def examine() -> list[dict[str, Any]]:
    """One line a check: {name, ok, said}."""
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
    return checks


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
