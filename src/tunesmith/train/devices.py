"""Which kinds of device there are on this machine, and what was ever run on them. Knows nothing about models or plans.

Every kind goes through the same check at the start: its routes against transformers' own pass, on that device.
"""

from __future__ import annotations

import platform
from pathlib import Path

from tunesmith.core.errors import ConfigError

KINDS = ("cuda", "xpu", "mps")  # besides cpu, in the order in which `auto` looks for them
# Kinds on which no test of this project was run so far.
UNTRIED = frozenset({"cuda", "xpu", "mps"})


def available(kind: str) -> bool:
    """Whether torch finds a device of that kind."""
    import torch

    if kind == "cpu":
        return True
    if kind == "mps":
        return torch.backends.mps.is_available()
    return bool(getattr(torch, kind).is_available()) if hasattr(torch, kind) else False


def device_of(asked: str) -> str:
    """The kind that is asked for, of `auto` the first that is there. Raises ConfigError for one that is not there."""
    if asked == "auto":
        return next((kind for kind in KINDS if available(kind)), "cpu")
    if not available(asked):
        here = ", ".join(["auto", "cpu", *(kind for kind in KINDS if available(kind))])
        what = f"device is {asked}, and torch finds none" if asked != "cuda" else "device is cuda, and torch finds no GPU"
        raise ConfigError(what, where="train.device", allowed=here, remedy="device: auto, or a torch built for this device")
    return asked


def untried(kind: str) -> str:
    """What to say of a kind on which nothing of this project was run; nothing for the others."""
    return f"nothing of this was ever run on {kind}: the check at the start compares its routes there" if kind in UNTRIED else ""


def multiplies_bfloat16(kind: str) -> bool:
    """Whether devices of that kind here multiply bfloat16 themselves."""
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        return _processor_multiplies_bfloat16()
    try:
        x = torch.ones(2, 2, dtype=torch.bfloat16, device=kind)
        return bool((x @ x).sum() == 8)
    except (RuntimeError, TypeError):
        return False


def _processor_multiplies_bfloat16() -> bool:
    """AVX512-BF16 or AMX on x86; on Arm, the bf16 flag."""
    import torch

    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    try:
        return " bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
