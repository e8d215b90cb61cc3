"""Numbers of things in words: one row, two rows. Knows nothing about what is counted."""

from __future__ import annotations


def counted(number: float, noun: str, several: str = "") -> str:
    """`1 row`, `2 rows`; `several` where the word for more than one does not end in an s alone."""
    return f"{number} {noun if number == 1 else several or f'{noun}s'}"
