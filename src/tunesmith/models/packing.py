"""Whether a model in memory decodes with packed weights (`nets/packed_linear.py`): where they were timed to be faster on this machine, and
where there is room for them. What was timed is remembered, so that a model computes alike in every process. Knows nothing about answers.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path

import torch
from torch import nn

from tunesmith.core.atomic import write_atomic
from tunesmith.core.digests import files_digest
from tunesmith.core.types import digest
from tunesmith.nets import packed_linear
from tunesmith.store.layout import user_folder

_ROOM = 4  # times the packed weights must fit into what is free: caches, prompts and other programs want memory too


def pack_for_decoding(model: nn.Module) -> str:
    """Pack the weights of `model`, whose parameters are final, where that pays; says what was done and why."""
    if not packed_linear.can_pack(model):
        return "as they are: no packed product for these weights on this device"
    needed, free = packed_linear.packed_bytes(model), _free_bytes()
    if needed * _ROOM > free:
        return f"as they are: packed ones would take {needed >> 20} MB more, and {free >> 20} MB are free"
    file = _place(model)
    least = _read(file)
    if least is None:
        least = packed_linear.timed(model)
        write_atomic(file, json.dumps(least, sort_keys=True).encode())
    count = packed_linear.pack(model, least)
    if not count:
        return "as they are: packed ones were timed to be no faster"
    return f"{count} matrices packed for few rows ({', '.join(f'{shape} from {rows} rows on' for shape, rows in sorted(least.items()))})"


def _free_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _place(model: nn.Module) -> Path:
    """The file that remembers what was timed: named by shapes, processor, threads, library and the code that times."""
    machine = [platform.node(), platform.processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    code = files_digest([Path(packed_linear.__file__)])
    named = digest(packed_linear.shapes(model), machine, importlib.metadata.version("torch"), code)
    return user_folder() / "speeds" / f"packed-{named}.json"


def _read(file: Path) -> dict[str, int] | None:
    try:
        kept = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and all(isinstance(rows, int) for rows in kept.values()) else None
