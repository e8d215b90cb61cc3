"""JSONL and Parquet: places are right, files are whole or absent, and what cannot be read says why."""

import gzip
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.atomic import atomic_file
from tunesmith.core.errors import DataError, NotFound, StoreError
from tunesmith.core.rows import read_jsonl, read_lines, read_parquet, write_jsonl, write_parquet
from tunesmith.core.types import Example, Function, LedgerLine, Message, Preference, ToolCall, example_id

CALL = ToolCall(id="c1", function=Function(name="f", arguments='{"a":null}'))
EXAMPLE = Example(
    id="x",
    messages=(
        Message(role="user", content="q"),
        Message(role="assistant", tool_calls=(CALL,), weight=0),
        Message(role="tool", content="1", tool_call_id="c1"),
        Message(role="assistant", content="ä\u2028"),
    ),
    tools=({"type": "function", "function": {"name": "f", "parameters": {"a": None}}},),
    parallel_tool_calls=False,
    reference="",
    label="l",
    meta={"n": 1, "none": None, "list": [1, "2"]},
    origin="f.jsonl:1",
)


def test_lines_carry_number_and_offset(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf{}\r\n\r\n  [1] \n{2}")
    assert [(line.number, line.offset, line.data) for line in read_lines(path)] == [(1, 0, b"{}"), (3, 9, b"[1]"), (4, 16, b"{2}")]


def test_gzip_and_damaged_gzip(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    assert write_jsonl(path, [{"a": i} for i in range(5000)]) == 5000
    assert sum(1 for _ in read_lines(path)) == 5000
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged after line"):
        list(read_lines(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_utf16_is_refused_with_the_way_out(tmp_path, encoding):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"a": 1}\n'.encode(encoding))
    with pytest.raises(DataError, match="iconv -f UTF-16"):
        list(read_lines(path))


def test_folder_and_missing_file(tmp_path):
    with pytest.raises(DataError, match="folder"):
        list(read_lines(tmp_path))
    with pytest.raises(NotFound, match="no such file"):
        list(read_lines(tmp_path / "none.jsonl"))


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [1])

    def rows():
        yield 2
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())
    assert path.read_bytes() == b"1\n"
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_a_store_error():
    with pytest.raises(StoreError, match="cannot write"), atomic_file("/proc/none/a"):
        pytest.fail("the block must not run")


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_jsonl(tmp_path / name, [{"b": 1, "a": 2}])
    unpacked = [gzip.decompress((tmp_path / name).read_bytes()) for name in ("a.jsonl.gz", "b.jsonl.gz")]
    assert unpacked == [b'{"a":2,"b":1}\n'] * 2


def test_records_come_back_and_damage_is_named(tmp_path):
    path = tmp_path / "ledger.jsonl"
    lines = [LedgerLine(row="a", origin="f:1", fate="kept"), LedgerLine(row="b", origin="f:2", fate="dropped", rule="r")]
    write_jsonl(path, lines)
    assert list(read_jsonl(path, LedgerLine)) == lines
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"ledger\.jsonl:2"):
        list(read_jsonl(path, LedgerLine))


def test_parquet_keeps_every_field(tmp_path):
    path = tmp_path / "rows.parquet"
    pair = Preference(
        id="p", messages=EXAMPLE.messages[:1], preferred=EXAMPLE.messages[3], non_preferred=Message(role="assistant", content="no")
    )
    for rows in ([EXAMPLE, Example(id="y", messages=EXAMPLE.messages[:1])], [pair], []):
        assert write_parquet(path, rows, batch=1) == len(rows)
        assert list(read_parquet(path)) == rows
    with pytest.raises(DataError, match="cannot share"):
        write_parquet(path, [EXAMPLE, pair])
    (tmp_path / "no.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match="not a Parquet file"):
        list(read_parquet(tmp_path / "no.parquet"))


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))), max_size=5)
)
def test_any_text_survives(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("rows")
    rows = []
    for question, answer in texts:
        turns = (Message(role="user", content=question), Message(role="assistant", content=answer))
        rows.append(Example(id=example_id(turns), messages=turns, meta={"k": question}))
    write_parquet(folder / "a.parquet", rows)
    write_jsonl(folder / "a.jsonl", rows)
    assert list(read_parquet(folder / "a.parquet")) == rows
    assert list(read_jsonl(folder / "a.jsonl", Example)) == rows
