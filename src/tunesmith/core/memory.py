"""Memory that nothing uses any more, given back to the system; knows nothing about who used it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import lru_cache

# oneDNN compiles a kernel for every shape of a product and keeps 1024 of them, torch as many again in every thread: 0.6 MB a shape. Packs
# and batches differ in length, so nearly all of them are never used again; 128 hold those of the step that is computed.
KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}


def keep_few_kernels() -> None:
    """Bound the caches of compiled products, unless the user has; holds for a process that has not multiplied yet."""
    for name, value in KERNELS.items():
        os.environ.setdefault(name, value)


@lru_cache
def _trim() -> Callable[[int], int] | None:
    import ctypes

    try:
        trim: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None  # no glibc: other allocators give back by themselves
    return trim


def give_back(*, cycles: bool = False) -> None:
    """Return freed memory to the system; glibc keeps it otherwise, in an arena of each thread. `cycles`: collect those first."""
    if cycles:
        gc.collect()
    trim = _trim()
    if trim is not None:
        trim(0)
