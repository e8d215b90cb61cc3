"""Byte strings on disk that are only appended, each found again by its offset; knows nothing about what they say.

The file has no name and is gone with the process. It lies in the system's folder for temporary files (TMPDIR names another).
"""

from __future__ import annotations

import tempfile


class Spool:
    """Lines that are written once and read by offset. The first `in_memory` bytes stay in memory, so small work makes no file."""

    def __init__(self, in_memory: int = 1 << 20) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=in_memory)  # noqa: SIM115 it lives as long as the spool
        self._end = 0
        self._at_end = True

    def append(self, line: bytes) -> int:
        """Keep a line without line feeds; its offset."""
        if not self._at_end:
            self._file.seek(0, 2)
            self._at_end = True
        offset = self._end
        self._end += self._file.write(line + b"\n")
        return offset

    def read(self, offset: int) -> bytes:
        """The line that `append` gave that offset."""
        self._at_end = False
        self._file.seek(offset)
        return self._file.readline()[:-1]
