"""What tells that a record, a line or a file is about one person: the key that clients call them by, the ids of what was answered to them,
and the words that they and the model wrote. Knows nothing about where any of it is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.core.load import need
from tunesmith.core.rows import open_read

LEAST_NAME, LEAST_TEXT = 6, 16  # shorter ones are found in fields of their own alone: their letters stand in other words too
_FIELDS = frozenset({"user", "safety_identifier", "user_key", "user_id", "by"})
_CHUNK = 16 << 20
_WEIGHTS = frozenset({".safetensors", ".pt", ".bin", ".gguf", ".npy", ".onnx"})
_PACKED = frozenset({".gz", ".zst", ".bz2", ".xz"})
_JOINED = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-@")  # what makes a name a part of a longer one
_ESCAPE = re.compile(rb"\\(?:[bfnrt]|u[0-9a-fA-F]{4})\Z")  # JSON's, whose last letter is no letter of a name


@dataclass(frozen=True)
class Person:
    """One person as the store knows them: `ids` are those of requests and conversations, `texts` what was said."""

    user: str
    ids: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What stands for the person wherever it is written as a word of its own: ids, and the key where it is like one. `user-471` does
        not stand in `user-4711`, and `customer` is a word."""
        like = len(self.user) >= LEAST_NAME and any(letter.isdigit() or letter == "@" for letter in self.user)
        return tuple(dict.fromkeys([*([self.user] if like else []), *(number for number in self.ids if len(number) >= LEAST_NAME)]))

    @cached_property
    def _written(self) -> tuple[tuple[bytes, bool], ...]:
        """What is looked for in bytes, plain and as JSON writes it, and whether it must stand alone."""
        marks = [*((name, True) for name in self.names), *((text, False) for text in self.texts if len(text) >= LEAST_TEXT)]
        ways = ((way, alone) for mark, alone in marks for way in (mark, _json(mark, True), _json(mark, False)))
        return tuple(dict.fromkeys((_bytes(way), alone) for way, alone in ways))

    def about(self, value: Any, key: str = "") -> bool:
        """Whether a tree of lists and mappings is about this person."""
        if isinstance(value, str):
            return (key in _FIELDS and value == self.user) or self.in_bytes(_bytes(value))
        if isinstance(value, dict):
            return any(self.about(inner, str(name)) for name, inner in value.items())
        return isinstance(value, list | tuple) and any(self.about(inner, key) for inner in value)

    def in_bytes(self, data: bytes) -> bool:
        """Whether a name or a text of this person stands in bytes."""
        return any(_stands(mark, data) if alone else mark in data for mark, alone in self._written)

    def in_line(self, line: bytes) -> bool:
        """Whether a line of a file is about this person."""
        if self.in_bytes(line):
            return True
        if _bytes(self.user) not in line or not line.lstrip().startswith((b"{", b"[")):
            return False
        try:
            return self.about(json.loads(line))
        except ValueError:
            return False

    def in_file(self, path: Path) -> bool:
        """Whether a file is about this person: packed ones are unpacked, of weights the key alone is looked for."""
        if path.suffix == ".parquet":
            return any(map(self.about, _cells(path)))
        if path.suffix == ".jsonl":
            return any(map(self.in_line, _lines(path)))
        sought = Person(self.user) if path.suffix in _WEIGHTS else self
        overlap = max((len(mark) + 8 for mark, _ in sought._written), default=0)
        return any(map(sought.in_bytes, _parts(path, overlap)))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _json(text: str, ascii_only: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii_only)[1:-1]


def _stands(mark: bytes, data: bytes) -> bool:
    """Whether a name stands in bytes as a word of its own."""
    at = data.find(mark)
    while at >= 0:
        end = at + len(mark)
        begins = not at or data[at - 1] not in _JOINED or _ESCAPE.search(data[max(0, at - 6) : at]) is not None
        after = data[end : end + 2]
        ends = not after or (after[0] not in _JOINED and not (after[:1] == b"." and after[1:] and after[1] in _JOINED))
        if begins and ends:
            return True
        at = data.find(mark, at + 1)
    return False


def without(lines: Iterable[bytes], person: Person) -> Iterator[bytes]:
    """The lines that are not about a person."""
    return (line for line in lines if not person.in_line(line))


def _cells(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of any Parquet file."""
    with need("pyarrow.parquet", extra="data").ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _lines(path: Path) -> Iterator[bytes]:
    with open_read(path) as stream:
        yield from stream


def _parts(path: Path, overlap: int) -> Iterator[bytes]:
    """A file's bytes, each part beginning with the end of the one before."""
    with open_read(path) if path.suffix in _PACKED else path.open("rb") as stream:
        before = b""
        while chunk := stream.read(_CHUNK):
            yield before + chunk
            before = chunk[-overlap:] if overlap else b""
