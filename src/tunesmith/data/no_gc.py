"""A pause of the collector of cyclic garbage while many rows are made; knows nothing about rows."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_cycles() -> Iterator[None]:
    """Within it the collector does not run, as it was before afterwards. Rows have no cycles, and looking for some among millions of them
    costs a seventh of the whole work; memory of what is no longer used is still given back at once."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
