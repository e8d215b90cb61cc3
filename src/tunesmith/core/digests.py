"""What names the content of files and of long lists; knows nothing about what is in them. Values in memory are named by `types.digest`.

BLAKE2b with 16 bytes in hex, but for sha256 where another party published it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tunesmith.core.types import canonical


def file_digest(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """Of several files in their order: their names (not their folders) and contents."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest()


def sha256_of(path: Path) -> str:
    """Of a file's content, to be compared with what its publisher says."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RunningDigest:
    """Of records that come one after another; memory is one record. The same as `types.digest` of all of them."""

    def __init__(self) -> None:
        self._total = hashlib.blake2b(digest_size=16)

    def add(self, value: object) -> None:
        """Take in the next record."""
        data = canonical(value)
        self._total.update(len(data).to_bytes(8, "little"))
        self._total.update(data)

    def hexdigest(self) -> str:
        """What names the records so far."""
        return self._total.hexdigest()
