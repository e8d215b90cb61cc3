"""What tells that a record, a line or a file is about one person: the key that clients call them by, the ids of what was answered to them,
and the words that they and the model wrote. Knows nothing about where any of it is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.core.load import need
from tunesmith.core.rows import open_read

LEAST_KEY, LEAST_ID, LEAST_TEXT = 6, 8, 16  # shorter ones are found in fields of their own alone: their letters stand in other words too
_NAMES = frozenset({"user", "safety_identifier", "user_key", "user_id", "by"})
_CHUNK = 16 << 20
_WEIGHTS = frozenset({".safetensors", ".pt", ".bin", ".gguf", ".npy", ".onnx"})
_PACKED = frozenset({".gz", ".zst", ".bz2", ".xz"})


@dataclass(frozen=True)
class Person:
    """One person as the store knows them: `ids` are those of requests and conversations, `texts` what was said."""

    user: str
    ids: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """What is looked for in bytes: the key, unless it is too short, ids, and texts that are long enough."""
        key = [self.user] if len(self.user) >= LEAST_KEY else []
        return tuple(
            dict.fromkeys(
                [
                    *key,
                    *(number for number in self.ids if len(number) >= LEAST_ID),
                    *(text for text in self.texts if len(text) >= LEAST_TEXT),
                ]
            )
        )

    @cached_property
    def _ways(self) -> tuple[str, ...]:
        """The marks as they stand in texts: plain, and as JSON writes them."""
        escaped = (json.dumps(mark, ensure_ascii=ascii)[1:-1] for mark in self.marks for ascii in (True, False))
        return tuple(dict.fromkeys([*self.marks, *escaped]))

    @cached_property
    def written(self) -> tuple[bytes, ...]:
        """The marks as they stand in files."""
        return tuple(way.encode("utf-8", "surrogatepass") for way in self._ways)

    def about(self, value: Any, key: str = "") -> bool:
        """Whether a tree of lists and mappings is about this person."""
        if isinstance(value, str):
            return (key in _NAMES and value == self.user) or any(way in value for way in self._ways)
        if isinstance(value, dict):
            return any(self.about(inner, str(name)) for name, inner in value.items())
        return isinstance(value, list | tuple) and any(self.about(inner, key) for inner in value)

    def in_line(self, line: bytes) -> bool:
        """Whether a line of a file is about this person."""
        if any(mark in line for mark in self.written):
            return True
        if self.user.encode("utf-8", "surrogatepass") not in line or not line.lstrip().startswith((b"{", b"[")):
            return False
        try:
            return self.about(json.loads(line))
        except ValueError:
            return False

    def in_file(self, path: Path) -> bool:
        """Whether a file is about this person: packed ones are unpacked, of weights the key alone is looked for."""
        if path.suffix == ".parquet":
            return any(map(self.about, _cells(path)))
        key = self.user.encode("utf-8", "surrogatepass")
        marks = ((key,) if len(self.user) >= LEAST_KEY else ()) if path.suffix in _WEIGHTS else self.written
        if any(mark in part for part in _parts(path, max(map(len, marks), default=0)) for mark in marks):
            return True
        return len(self.user) < LEAST_KEY and path.suffix == ".jsonl" and any(map(self.in_line, _lines(path)))


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
