"""What names the content of files and of long lists; knows nothing about what is in them. Values in memory are named by `types.digest`.

BLAKE2b with 16 bytes in hex, but for sha256 where another party published it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from tunesmith.core.types import canonical

# A file that changed less long ago than this may change again within the same tick of its file system's clock.
_AT_REST_NS = 2_000_000_000
_remembered: dict[str, tuple[tuple[int, ...], bytes]] = {}


def file_digest(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """Of several files in their order: their names (not their folders) and contents. A content is read once a process, and again when the
    file's size, times or place on the disk have changed."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        total.update(path.name.encode() + _content(path))
    return total.hexdigest()


def _content(path: Path) -> bytes:
    """The digest of a file's content. That of a file which changed just now is not remembered: what comes next may leave no trace."""
    facts, key = path.stat(), os.path.realpath(path)
    stamp = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
    known = _remembered.get(key)
    if known is not None and known[0] == stamp:
        return known[1]
    at_rest = time.time_ns() - facts.st_mtime_ns > _AT_REST_NS
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "blake2b").digest()
    if at_rest:
        _remembered[key] = (stamp, content)
    return content


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
