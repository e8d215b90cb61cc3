"""Responses against OpenAI's published description. It is not part of this repository: TUNESMITH_OPENAI_SPEC names the file."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "spec" / "openai-subset.yaml"


@functools.cache
def _components() -> dict[str, Any] | None:
    import yaml

    path = Path(os.environ.get("TUNESMITH_OPENAI_SPEC", _DEFAULT))
    if not path.is_file():
        return None
    return yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["components"]


def require_spec() -> None:
    """Skip the test where the description is not on this machine."""
    if _components() is None:
        pytest.skip("TUNESMITH_OPENAI_SPEC names no OpenAPI file of the OpenAI API")


def assert_valid(name: str, body: Any) -> None:
    """The body is what the description calls `name`."""
    import jsonschema

    schema = {"$ref": f"#/components/schemas/{name}", "components": _components()}
    faults = [f"{fault.json_path}: {fault.message}" for fault in jsonschema.Draft202012Validator(schema).iter_errors(body)]
    assert not faults, faults
