"""JSON that somebody else wrote, read so that it fails in one way only; knows nothing about what it should say."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100  # of rows and requests: what works through them level by level must come to their end


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


def too_deep(value: Any, text: bytes | None = None) -> bool:
    """Whether a value is nested deeper than `MAX_DEPTH`; of one whose text has no more brackets than that nothing is looked at."""
    if text is not None and text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    level, depth = [value] if isinstance(value, (dict, list, tuple)) else [], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        inner = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
        level = [child for child in inner if isinstance(child, (dict, list, tuple))]
    return False


def _beginning(text: str | bytes) -> str:
    return text[:100].decode("utf-8", "replace") if isinstance(text, bytes) else text[:100]
