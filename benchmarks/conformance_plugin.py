"""A pytest plugin for openai-python's tests: the store is seeded again before each. Runs in the peer's environment, without Tunesmith."""

from __future__ import annotations

import os
import urllib.request

import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    request = urllib.request.Request(os.environ["SEED_URL"], method="POST")
    urllib.request.urlopen(request, timeout=60).close()
