"""One name for one content, whoever computes it and however it comes."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.digests import RunningDigest, file_digest, files_digest, sha256_of
from tunesmith.core.types import digest

JSON = st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), lambda inner: st.lists(inner, max_size=3))


@pytest.mark.slow
@given(st.lists(JSON, max_size=5))
def test_records_one_after_another_are_named_as_all_together(values):
    running = RunningDigest()
    for value in values:
        running.add(value)
    assert running.hexdigest() == digest(*values)


@pytest.mark.slow
@given(st.text(), st.text())
def test_where_one_record_ends_and_the_next_begins_is_part_of_the_name(a, b):
    assert digest([a, b]) != digest(a, b) != digest(a + b)


def test_files_are_named_by_their_names_and_contents_wherever_they_lie(tmp_path: Path):
    for place, first, second in (("a", b"one", b"two"), ("b", b"one", b"two"), ("c", b"two", b"one")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x").write_bytes(first)
        (tmp_path / place / "y").write_bytes(second)
    a, b, c = ([tmp_path / place / name for name in ("x", "y")] for place in "abc")
    assert files_digest(a) == files_digest(b) != files_digest(c)
    assert files_digest(a) != files_digest(reversed(a))
    assert file_digest(a[0]) == file_digest(b[0]) == file_digest(c[1]) == hashlib.blake2b(b"one", digest_size=16).hexdigest()
    assert sha256_of(a[0]) == hashlib.sha256(b"one").hexdigest()


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what a process reads")
def test_a_content_is_read_once_while_nothing_speaks_of_a_change(tmp_path: Path):
    size, file, copy = 1 << 20, tmp_path / "x", tmp_path / "copy" / "x"
    copy.parent.mkdir()
    for path in (file, copy):
        path.write_bytes(b"a" * size)
        os.utime(path, (0, 0))
    first, before = files_digest([file]), bytes_read()
    assert files_digest([file]) == first
    assert bytes_read() - before < size
    assert files_digest([copy]) == first  # another file of the same content, which is read
    assert bytes_read() - before >= size
    file.write_bytes(b"b" * size)
    os.utime(file, (0, 0))  # its size, its time and its place are what they were
    assert files_digest([file]) != first


def test_a_file_that_changes_within_one_tick_is_read_each_time(tmp_path: Path):
    file, now, seen = tmp_path / "x", time.time_ns(), set()
    for content in b"abc":
        file.write_bytes(bytes([content]))
        os.utime(file, ns=(now, now))
        seen.add(files_digest([file]))
    assert len(seen) == 3
