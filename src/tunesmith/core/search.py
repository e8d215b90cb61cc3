"""Regular expressions that somebody else wrote, searched for within bounded time; knows nothing about what they look for.

Python's own `re` holds the interpreter's lock for as long as a pattern backtracks, which can be for ever. `regex` reads the same syntax and
gives up when the time is over.
"""

from __future__ import annotations

from typing import Any

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.load import need

SEARCH_S, MOST_CHARACTERS = 2.0, 2_000


class Pattern:
    """A pattern of `re`'s syntax. Raises UsageError when it is none."""

    def __init__(self, pattern: str, seconds: float = SEARCH_S) -> None:
        self.text, self._seconds = pattern, seconds
        if len(pattern) > MOST_CHARACTERS:  # of very long ones the reading alone takes seconds
            raise UsageError(f"the pattern has {len(pattern)} characters", allowed=f"at most {MOST_CHARACTERS}")
        library = need("regex", extra="eval")
        try:
            self._compiled = library.compile(pattern)
        except (library.error, RecursionError, OverflowError) as error:
            raise UsageError(f"the pattern '{pattern[:200]}' does not compile: {error}", allowed="Python's re syntax") from error

    def search(self, text: str) -> Any:
        """The first match, or None. Raises DataError when the time is over."""
        return self._within(self._compiled.search, text)

    def fullmatch(self, text: str) -> Any:
        """The match of the whole text, or None. Raises DataError when the time is over."""
        return self._within(self._compiled.fullmatch, text)

    def _within(self, find: Any, text: str) -> Any:
        try:
            return find(text, timeout=self._seconds)
        except TimeoutError as error:
            raise DataError(
                f"the pattern '{self.text[:200]}' takes longer than {self._seconds:g} s on a text of {len(text)} characters",
                remedy="write it without repetitions inside repetitions",
            ) from error
