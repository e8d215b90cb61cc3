"""Where tokens stand in a tree of rows that begin alike; knows nothing about attention."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """Tokens [start, end) that follow each other; [end, reach) are the tokens of its descendants, which all attend to it."""

    start: int
    end: int
    reach: int
