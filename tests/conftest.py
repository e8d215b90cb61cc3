"""Real parts for the tests: models and data by the catalogue, kept in the user's store between runs; a store in a temporary folder."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def smollm2():
    """The folder of the prepared default base (a real 135 M model); fetched once into the user's store."""
    from tunesmith.models.catalog import Catalog

    return Catalog().model("smollm2-135m")
