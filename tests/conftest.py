"""Real parts for the tests: models and data by the catalogue, kept in the user's store between runs; a store in a temporary folder."""

from __future__ import annotations

import gc
import os
import signal

import pytest

from postgres_parts import database, postgres  # noqa: F401 - fixtures

# Tests run in several processes; more threads than cores would only get in each other's way. Set before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test asks for more, one that waits for another sleeps: spinning would take the time of whoever it waits for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell starts what it runs in the background with SIGINT ignored, and so would be everything that is started here to be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What the modules hold stays: whoever collects garbage, as a run does after each stage, need not look through it (0.4 s each time)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2():
    """The folder of the prepared default base (a real 135 M model); fetched once into the user's store."""
    from tunesmith.models.catalog import Catalog

    return Catalog().model("smollm2-135m")
