"""Where rows came from, such as `file.jsonl:17`, as a path and a number; knows nothing about files.

A set of a million rows has few paths, and the numbers of one path mostly ascend: an origin costs 28 bytes instead of two strings.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import overload


class _Path:
    """One path's numbers in the order in which they came, and which row each is of. When they do not ascend, a dict finds them."""

    __slots__ = ("index", "name", "numbers", "place_of", "places")

    def __init__(self, name: str, index: int) -> None:
        self.name, self.index = name, index
        self.numbers, self.places = array("q"), array("i")
        self.place_of: dict[int, int] | None = None

    def add(self, number: int, place: int) -> None:
        if self.place_of is not None:
            self.place_of[number] = place
        elif self.numbers and number <= self.numbers[-1]:
            self.place_of = {**dict(zip(self.numbers, self.places, strict=True)), number: place}
            self.numbers, self.places = array("q"), array("i")
        else:
            self.numbers.append(number)
            self.places.append(place)

    def find(self, number: int) -> int | None:
        if self.place_of is not None:
            return self.place_of.get(number)
        if not self.numbers or number > self.numbers[-1]:
            return None
        at = bisect_left(self.numbers, number)
        return self.places[at] if self.numbers[at] == number else None


class Origins(Sequence[str]):
    """Origins by place; each is there once or, when appended so, several times (the last one is found)."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._paths: list[_Path] = []
        self._path_of: dict[str, _Path] = {}
        self._which, self._number = array("i"), array("q")
        for origin in origins:
            self.append(origin)

    def append(self, origin: str) -> int:
        """Add an origin at the end; its place."""
        name, number = _parts(origin)
        return self._add(self._path_of.get(name) or self._new(name), number)

    def append_new(self, origin: str) -> int | None:
        """As `append`; None, and nothing is added, when the origin is there already."""
        name, number = _parts(origin)
        path = self._path_of.get(name)
        if path is not None and path.find(number) is not None:
            return None
        return self._add(path or self._new(name), number)

    def _new(self, name: str) -> _Path:
        path = self._path_of[name] = _Path(name, len(self._paths))
        self._paths.append(path)
        return path

    def _add(self, path: _Path, number: int) -> int:
        place = len(self._number)
        self._which.append(path.index)
        self._number.append(number)
        path.add(number, place)
        return place

    def find(self, origin: str) -> int | None:
        """The place of an origin, or None."""
        name, number = _parts(origin)
        path = self._path_of.get(name)
        return None if path is None else path.find(number)

    def __len__(self) -> int:
        return len(self._number)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        number = self._number[at]
        name = self._paths[self._which[at]].name
        return name if number < 0 else f"{name}:{number}"


def _parts(origin: str) -> tuple[str, int]:
    """Path and number; the whole and -1 where it does not end in a number that is written plainly."""
    path, colon, digits = origin.rpartition(":")
    if colon and digits.isdecimal() and digits.isascii() and len(digits) < 19 and (digits[0] != "0" or digits == "0"):
        return path, int(digits)
    return origin, -1
