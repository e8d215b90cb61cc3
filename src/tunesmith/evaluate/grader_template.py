"""The templates of OpenAI's graders: texts with places `{{ item.KEY }}` and `{{ sample.output_text }}`. Knows nothing about graders.

Each is read once from its beginning to its end, so that reading takes time in proportion to its length, whoever wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

MAX_TEXT = 4_000_000  # characters of a template that was filled in
_STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(\d{1,9})\]|\['([^']*)'\]|\[\"([^\"]*)\"\]")
_ROOTS = ("item", "sample")


class TooLong(Exception):
    """A template that has more than `MAX_TEXT` characters once it is filled in."""


def parts(template: str) -> Iterator[tuple[str, str | None]]:
    """(words, the place after them without its braces) in order; the place of the last is None. An open `{{` is words."""
    at = 0
    while (start := template.find("{{", at)) >= 0 and (end := template.find("}}", start + 2)) >= 0:
        yield template[at:start], template[start + 2 : end].strip()
        at = end + 2
    yield template[at:], None


def path_of(place: str) -> tuple[str, list[str | int]] | None:
    """(`item` or `sample`, the keys and indices below it) of a place; None where it names nothing."""
    root = next((name for name in _ROOTS if place.startswith(name)), None)
    if root is None:
        return None
    at, steps = len(root), list[str | int]()
    while at < len(place):
        step = _STEP.match(place, at)
        if step is None:
            return None
        name, index, single, double = step.groups()
        steps.append(int(index) if index is not None else next(key for key in (name, single, double) if key is not None))
        at = step.end()
    return root, steps


def filled(template: str, value_of: Callable[[str], str]) -> str:
    """The template with a value in each of its places. Raises TooLong."""
    pieces, size = list[str](), 0
    for words, place in parts(template):
        for piece in (words, *(() if place is None else (value_of(place),))):
            size += len(piece)
            if size > MAX_TEXT:
                raise TooLong
            pieces.append(piece)
    return "".join(pieces)
