"""JSON that somebody else wrote, read so that it fails in one way only; knows nothing about what it should say."""

from __future__ import annotations

import json
from typing import Any


def json_value(text: str | bytes) -> Any:
    """The value that the text is. Raises json.JSONDecodeError for anything else, also for what is nested deeper than can be read and for a
    number of more digits than are read."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", _beginning(text), 0) from error
    except ValueError as error:
        raise json.JSONDecodeError(str(error), _beginning(text), 0) from error


def _beginning(text: str | bytes) -> str:
    return text[:100].decode("utf-8", "replace") if isinstance(text, bytes) else text[:100]
