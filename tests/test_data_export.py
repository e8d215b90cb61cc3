"""Every file form is read with its places, and import → export → import is the identity for every format."""

import gzip
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.core.errors import ConfigError, DataError, NotFound, SourceUnavailable
from tunesmith.core.types import Document, Example, Function, Labelled, Message, Preference, ToolCall, example_id
from tunesmith.data.collect import Source, collect
from tunesmith.data.export import WRITERS, export, same, to_format
from tunesmith.data.formats.registry import FORMATS, detect, parse_row

MAP = {"prompt": "question", "response": "reply"}


def questions(found):
    return [(row.origin.rsplit("/", 1)[-1], row.messages[-2].text, row.answer) for row in found.rows]


def test_csv_and_tsv_keep_lines_quotes_and_places(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufeffquestion;reply\r\n"one; ""two""\nthree";"an, swer"\r\nü;b\r\n'.encode())
    (tmp_path / "b.tsv").write_text("question\treply\nq, r\ta\n")
    found = collect(Source(path=str(tmp_path), map=MAP))
    assert questions(found) == [("a.csv:2", 'one; "two"\nthree', "an, swer"), ("a.csv:4", "ü", "b"), ("b.tsv:2", "q, r", "a")]


def test_csv_faults_are_named_and_never_shift_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'question,reply\nq,a\nq,a,b\nq\n\xff,a\nq,a"b\nlast,one\n')
    found = collect(Source(path=str(path), map=MAP), max_invalid=1.0)
    assert questions(found) == [("a.csv:2", "q", "a"), ("a.csv:6", "q", 'a"b'), ("a.csv:7", "last", "one")]
    assert [(fault.where[-1], fault.code) for fault in found.faults] == [("3", "wrong_cells"), ("4", "wrong_cells"), ("5", "invalid_utf8")]
    path.write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="two columns have the same name"):
        collect(Source(path=str(path)))


def test_packed_files(tmp_path):
    line = json.dumps({"prompt": "q", "response": "a"}).encode()
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(line))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"prompt,response\nq,a\n"))
    assert len(collect(Source(path=str(tmp_path))).rows) == 2


def test_parquet_and_arrow_without_planted_nulls(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "q", "tool_calls": None}, {"role": "assistant", "content": "a", "tool_calls": None}]},
        {
            "messages": [
                {"role": "user", "content": "q", "tool_calls": None},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
            ]
        },
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset_info.json").write_text("{}")
    with pa.OSFile(str(tmp_path / "set" / "data-0.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    found = collect([Source(path=str(tmp_path / "a.parquet")), Source(path=str(tmp_path / "set"))])
    assert found.rows[0].messages == (Message(role="user", content="q"), Message(role="assistant", content="a"))
    assert found.rows[1].messages[1].tool_calls[0].function.name == "f"
    assert [row.id for row in found.rows[:2]] == [row.id for row in found.rows[2:]]
    for name in ("b.parquet", "b.arrow"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(DataError, match=f"{name}: not an? "):
            collect(Source(path=str(tmp_path / name)))


def test_databases(tmp_path):
    path = tmp_path / "rows.db"
    with sqlite3.connect(path) as database:
        database.execute("create table t (question text, reply text)")
        database.executemany("insert into t values (?, ?)", [("q1", "a1"), ("q2", None)])
    found = collect(Source(path=f"sqlite:///{path}", query="select * from t order by question", map=MAP), max_invalid=0.5)
    assert questions(found) == [("rows.db:1", "q1", "a1")]
    with pytest.raises(DataError, match=r"the query failed: .*no such table"):
        collect(Source(path=f"sqlite:///{path}", query="select * from none", map=MAP))
    with pytest.raises(DataError, match="not a database URL"):
        collect(Source(path="what", query="select 1"))


def test_urls_and_pointers(tmp_path):
    import fsspec

    with fsspec.open("memory://folder/a.jsonl", "wb") as stream:
        stream.write(json.dumps({"prompt": "q", "response": "a"}).encode())
    assert questions(collect(Source(path="memory://folder/a.jsonl"))) == [("a.jsonl:1", "q", "a")]
    assert len(collect(Source(path="memory://folder/*.jsonl")).rows) == 1
    with pytest.raises(NotFound):
        collect(Source(path="memory://none/*.jsonl"))
    with pytest.raises(SourceUnavailable, match="cannot be read"):
        collect(Source(path="memory://none/a.jsonl"))
    (tmp_path / "a.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    with pytest.raises(DataError, match="git lfs pull"):
        collect(Source(path=str(tmp_path / "a.jsonl")))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=15)
SCALAR = TEXT | st.integers(-(10**6), 10**6) | st.booleans() | st.none() | st.lists(TEXT, max_size=2)
META = st.dictionaries(
    st.sampled_from(["id", "source", "input", "output", "messages", "meta", "ideal", "system", "tools"]) | TEXT, SCALAR, max_size=3
)
TOOLS = st.sampled_from([(), ({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},)])
OPTIONAL = st.none() | TEXT


@st.composite
def conversations(draw):
    turns = [Message(role="system", content=draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        turns.append(Message(role="user", content=draw(TEXT), name=draw(st.sampled_from([None, None, "ann"]))))
        if draw(st.integers(0, 4)) == 0:
            call = ToolCall(id="c1", function=Function(name="f", arguments=draw(TEXT)))
            turns += [Message(role="assistant", tool_calls=(call,)), Message(role="tool", content=draw(TEXT), tool_call_id="c1")]
        turns.append(Message(role="assistant", content=draw(TEXT), weight=draw(st.sampled_from([None, None, 0, 1])),
                             reasoning_content=draw(st.sampled_from([None, None, "Hm."]))))  # fmt: skip
    return tuple(turns)


@st.composite
def rows(draw):
    turns, tools, meta = draw(conversations()), draw(TOOLS), draw(META)
    if draw(st.integers(0, 3)) == 0:
        bad = Message(role="assistant", content=turns[-1].text + "!")
        return Preference(id="p", messages=turns[:-1], preferred=turns[-1], non_preferred=bad, tools=tools, group=draw(OPTIONAL), meta=meta)
    if draw(st.integers(0, 4)) == 0:
        turns = turns[:1] if turns[0].role == "user" else turns[:2]
    reference = draw(OPTIONAL)
    return Example(
        id=example_id(turns, tools, reference),
        messages=turns,
        tools=tools,
        reference=reference,
        group=draw(OPTIONAL),
        label=draw(OPTIONAL),
        meta=meta,
    )


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(rows(), st.sampled_from(list(WRITERS)))
def test_export_then_import_is_the_identity(row, name):
    try:
        fields = to_format(row, name)
    except DataError:
        fields = {}
    assert bool(fields) == (WRITERS[name](row) is not None)
    if not fields:
        return
    again = parse_row(json.loads(json.dumps(fields)), name)
    if not same(row, again.row):  # then a file of it is refused
        assert name in ("rft", "chat")
    else:
        assert all(mend == "id" or mend.startswith("to_meta:") for mend in again.mends)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=4), st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.json"]))
def test_files_come_back_whole(tmp_path_factory, made, ending):
    path = tmp_path_factory.mktemp("export") / ending
    made = [row for row in made if type(row) is type(made[0])]
    assert export(made, path, "tunesmith") == len(made)
    back = collect(Source(path=str(path), format="tunesmith", unique_ids=False)).rows
    assert all(same(a, b) for a, b in zip(made, back, strict=True))


ENDINGS = ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.tsv", "a.parquet"]


@st.composite
def fitting(draw, name):
    """A row that format `name` has a place for."""
    turns = (Message(role="user", content=draw(TEXT)), Message(role="assistant", content=draw(TEXT)))
    if name not in ("kiln", "label_studio") and draw(st.booleans()):
        turns = (Message(role="system", content=draw(TEXT)), *turns)
    meta = draw(META) if draw(st.booleans()) else {}
    if name in ("dpo", "trl_preference"):
        bad = Message(role="assistant", content=turns[-1].text + "!")
        return Preference(id="p", messages=turns[:-1], preferred=turns[-1], non_preferred=bad, group=draw(OPTIONAL), meta=meta)
    if name in ("trl_kto", "labelled_chat"):
        wanted = draw(st.booleans())
        return Labelled(id="l", messages=turns[:-1], answer=turns[-1], desirable=wanted, group=draw(OPTIONAL), meta=meta)
    if name == "text":
        return Document(id="d", text=turns[-1].text, group=draw(OPTIONAL), meta=meta)
    turns = turns[:-1] if name == "rft" else turns
    reference = turns[-1].text if name == "rft" else None
    return Example(id=example_id(turns, (), reference), messages=turns, reference=reference, group=draw(OPTIONAL), meta=meta)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(list(WRITERS)), st.sampled_from(ENDINGS))
def test_a_file_of_any_format_comes_back_the_same_or_is_not_written(tmp_path_factory, data, name, ending):
    path = tmp_path_factory.mktemp("any") / ending
    made = data.draw(st.lists(fitting(name), min_size=1, max_size=3))
    try:
        export(made, path, name)
    except DataError:
        assert not path.exists()
        return
    back = collect(Source(path=str(path), format=name, unique_ids=False)).rows
    assert all(same(a, b) for a, b in zip(made, back, strict=True))


def test_every_format_is_written_and_detected(tmp_path):
    turns = (Message(role="system", content="s"), Message(role="user", content="q"), Message(role="assistant", content="a"))
    row = Example(id=example_id(turns), messages=turns, label="l", meta={"k": 1}, origin="f:1")
    ask = Example(id=example_id(turns[:2], (), "a"), messages=turns[:2], reference="a", origin="f:1")
    pair = Preference(id="", messages=turns[:2], preferred=turns[2], non_preferred=Message(role="assistant", content="b"), origin="f:1")
    plain = Example(id=example_id(turns[1:]), messages=turns[1:], label="l", meta={"k": 1}, origin="f:1")
    judged = Labelled(id="", messages=turns[:2], answer=turns[2], desirable=False, meta={"k": 1}, origin="f:1")
    rows = {"dpo": pair, "trl_preference": pair, "rft": ask, "kiln": plain, "label_studio": plain}
    rows |= {"text": Document(id="", text="t", group="g", origin="f:1"), "trl_kto": judged, "labelled_chat": judged}
    for name in WRITERS:
        one = rows.get(name, row)
        path = tmp_path / f"{name}.jsonl"
        export([one], path, name)
        assert detect([json.loads(path.read_text())]) == name
        assert same(one, collect(Source(path=str(path))).rows[0])
        export([one], tmp_path / f"{name}.parquet", name)
        assert same(one, collect(Source(path=str(tmp_path / f"{name}.parquet"), format=name)).rows[0])
    assert set(FORMATS) - set(WRITERS) == {"interaction"}, "a log is written by a server, not by hand"
    export([row], tmp_path / "bare.jsonl", "chat", extras=False)
    assert json.loads((tmp_path / "bare.jsonl").read_text()).keys() == {"messages"}


def test_calls_and_reasoning_are_written_as_the_sdk_takes_them(tmp_path):
    """Into JSONL and Parquet, whole and strict; schemas that Arrow cannot hold as columns are JSON text."""
    typed = pytest.importorskip("openai.types.chat")
    pydantic = pytest.importorskip("pydantic")
    calls = tuple(ToolCall(id=f"c{i}", function=Function(name="f", arguments="{}")) for i in (1, 2))
    turns = (
        Message(role="user", content="q"),
        Message(role="assistant", tool_calls=calls, reasoning_content="Look."),
        *(Message(role="tool", content="7", tool_call_id=call.id) for call in calls),
        Message(role="assistant", content="a", reasoning_content="So."),
    )
    tools = tuple(
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": own}}} for own in ({}, {"a": {}})
    )
    row = Example(id=example_id(turns, tools), messages=turns, tools=tools)
    for name in ("chat", "trl"):
        for ending in (".jsonl", ".parquet"):
            export([row], tmp_path / f"{name}{ending}", name)
            assert same(row, collect(Source(path=str(tmp_path / f"{name}{ending}"))).rows[0])
    export([row], tmp_path / "strict.jsonl", "chat", extras=False)
    strict = json.loads((tmp_path / "strict.jsonl").read_text())
    assert "reasoning_content" not in str(strict)
    for fields in (strict, to_format(row, "chat")):
        pydantic.TypeAdapter(list[typed.ChatCompletionMessageParam]).validate_python(fields["messages"])
        pydantic.TypeAdapter(list[typed.ChatCompletionFunctionToolParam]).validate_python(fields["tools"])


def test_tables_and_refusals(tmp_path):
    turns = (Message(role="user", content='q,\n"x"'), Message(role="assistant", content="a"))
    row = Example(id=example_id(turns), messages=turns, label="l")
    for ending in (".csv", ".tsv"):
        export([row], tmp_path / f"a{ending}", "columns")
        assert same(row, collect(Source(path=str(tmp_path / f"a{ending}"))).rows[0])
    export([row], tmp_path / "a.parquet", "tunesmith")
    assert same(row, collect(Source(path=str(tmp_path / "a.parquet"))).rows[0])
    pair = Preference(id="", messages=turns[:1], preferred=turns[1], non_preferred=Message(role="assistant", content="b"), origin="f:7")
    with pytest.raises(DataError, match=r"f:7: format 'alpaca' cannot hold this row|1 rows cannot be written as 'alpaca'"):
        export([pair], tmp_path / "b.jsonl", "alpaca")
    assert not (tmp_path / "b.jsonl").exists()
    with pytest.raises(ConfigError, match="did you mean 'sharegpt'"):
        to_format(row, "sharegtp")
    with pytest.raises(ConfigError, match=r"the ending '\.xls'"):
        export([row], tmp_path / "a.xls")
    with pytest.raises(DataError, match="a table holds only texts"):
        export([row], tmp_path / "c.csv", "chat")
    several = [msgspec.structs.replace(row, meta={"seen": {key: 1, "then": None}}) for key in "ab"]
    with pytest.raises(DataError, match="Parquet's columns would change row 1"):
        export(several, tmp_path / "d.parquet", "chat")
    mixed = [msgspec.structs.replace(row, meta={"seen": value}) for value in (1, "one")]
    with pytest.raises(DataError, match="Parquet cannot hold these rows"):
        export(mixed, tmp_path / "d.parquet", "chat")
    assert not (tmp_path / "d.parquet").exists()
    export(several, tmp_path / "d.parquet", "tunesmith")
    assert all(same(a, b) for a, b in zip(several, collect(Source(path=str(tmp_path / "d.parquet"))).rows, strict=True))


@pytest.mark.slow
def test_broken_rows_and_files_never_end_in_a_traceback():
    command = [sys.executable, "-m", "benchmarks.fuzz_data", "5000", "11"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["rows"], found["failed_files"]) == (5000, 0)
    assert found["fates"]["kept"] > 100
    assert found["fates"]["dropped"] > 100
