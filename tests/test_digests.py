"""One name for one content, whoever computes it and however it comes."""

from __future__ import annotations

import hashlib
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
