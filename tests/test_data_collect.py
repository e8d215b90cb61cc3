"""Import: every format and every kind of bad input, with one clear message each and a ledger that adds up."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.core.errors import ConfigError, DataError, NotFound
from tunesmith.core.rows import read_parquet
from tunesmith.core.types import Document, Example, Labelled, Message, Preference
from tunesmith.data.clean import Clean, clean
from tunesmith.data.collect import Source, collect
from tunesmith.data.formats.registry import FORMATS, detect, parse_line, parse_row
from tunesmith.data.import_stream import add_up, intake
from tunesmith.data.ledger import Ledger
from tunesmith.data.version import digest_of

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": "1"}'}}
QUESTION_AND_ANSWER = (Message(role="user", content="q"), Message(role="assistant", content="a"))
ROWS = {
    "chat": {"messages": [USER, ASSISTANT]},
    "rft": {"messages": [USER], "answer": "a"},
    "dpo": {
        "input": {"messages": [USER]},
        "preferred_output": [ASSISTANT],
        "non_preferred_output": [{"role": "assistant", "content": "b"}],
    },
    "evals": {"input": [USER], "ideal": "a"},
    "trl_preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "trl_kto": {"prompt": "q", "completion": "a", "label": False},
    "labelled_chat": {"messages": [USER, ASSISTANT], "label": True},
    "trl": {"prompt": "q", "completion": "a"},
    "alpaca": {"instruction": "q", "input": "", "output": "a"},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "columns": {"prompt": "q", "response": "a"},
    "text": {"text": "a"},
    "interaction": {"id": "i1", "alias": "bot", "variant": "v2", "messages": [USER], "answer": "a", "status": 200, "total_s": 0.1},
    "kiln": {
        "v": 1,
        "model_type": "task_run",
        "input": "q",
        "output": {"output": "b", "rating": {"value": 4.0}},
        "repaired_output": {"output": "a"},
    },
    "label_studio": {
        "data": {"text": "q"},
        "annotations": [
            {"was_cancelled": True, "result": []},
            {"result": [{"type": "textarea", "value": {"text": ["a"]}}, {"type": "choices", "value": {"choices": ["good"]}}]},
        ],
    },
    "tunesmith": {"id": "1", "messages": [USER, ASSISTANT], "origin": "f:1"},
}


def written(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return Source(path=str(path))


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_detected_and_read(name, tmp_path):
    assert set(ROWS) == set(FORMATS)
    assert detect([ROWS[name]]) == name
    row = collect(written(tmp_path, [ROWS[name]])).rows[0]
    if isinstance(row, Preference):
        assert (row.messages, row.preferred.text, row.non_preferred.text) == (QUESTION_AND_ANSWER[:1], "a", "b")
    elif isinstance(row, Labelled):
        assert (row.messages, row.answer, row.desirable) == (*[QUESTION_AND_ANSWER[:1], QUESTION_AND_ANSWER[1]], name == "labelled_chat")
    elif isinstance(row, Document):
        assert (name, row.text) == ("text", "a")
    elif name == "rft":
        assert (row.messages, row.meta) == (QUESTION_AND_ANSWER[:1], {"answer": "a"})
    else:
        assert row.messages == QUESTION_AND_ANSWER


def test_a_reinforcement_row_may_have_earlier_answers(tmp_path):
    """Its prompt ends in the user's turn; the same row may be a chat that goes on after its last answer: rows like it decide, or a reference."""
    later = {"messages": [USER, ASSISTANT, {"role": "user", "content": "and now?"}], "answer": "b"}
    assert [turn.text for turn in collect(written(tmp_path, [later, ROWS["rft"], ROWS["rft"]])).rows[0].prompt] == ["q", "a", "and now?"]
    chats = collect(written(tmp_path, [ROWS["chat"], {**ROWS["chat"], "n": 1}, later])).rows
    assert [turn.text for turn in chats[-1].messages] == ["q", "a"]
    assert len(collect(written(tmp_path, [later])).rows[0].messages) == 3, "a key that holds a reference tells"
    (row,) = collect(written(tmp_path, [{"messages": later["messages"], "source": "crm"}])).rows
    assert ([turn.text for turn in row.messages], row.meta) == (["q", "a"], {"source": "crm"})
    row = parse_row(later, "rft").row
    assert (len(row.messages), row.answer, row.meta) == (3, "", {"answer": "b"})


LABELLED = [
    {"prompt": "q", "completion": "a", "label": True},
    {"prompt": [USER], "completion": [ASSISTANT], "label": True},
    {"messages": [USER, ASSISTANT], "label": True},
    {"messages": [USER, ASSISTANT], "desirable": True},
    {"prompt": "q", "completion": "a", "label": "True"},
]


@pytest.mark.parametrize("raw", LABELLED)
def test_a_labelled_answer_is_read_from_every_common_shape(raw, tmp_path):
    (row,) = collect(written(tmp_path, [{**raw, "source": "crm", "group": 7}])).rows
    assert isinstance(row, Labelled)
    assert (row.messages, row.answer, row.desirable) == (QUESTION_AND_ANSWER[:1], QUESTION_AND_ANSWER[1], True)
    assert (row.group, row.meta) == ("7", {"source": "crm"})


def test_a_label_that_names_a_class_is_no_judgement(tmp_path):
    for raw in ({"prompt": "q", "completion": "yes", "label": "1"}, {"prompt": "q", "completion": "true", "label": "true"}):
        (row,) = collect(written(tmp_path, [raw])).rows
        assert isinstance(row, Example)
        assert row.label == raw["label"]
    (named,) = collect(Source(path=written(tmp_path, [{"prompt": "q", "completion": "yes", "label": "0"}]).path, format="trl_kto")).rows
    assert (type(named), named.desirable) == (Labelled, False), "who names the format means it"
    table = tmp_path / "rows.csv"
    table.write_text("prompt,completion,label\nq,a,True\nq,b,False\n")
    assert [row.desirable for row in collect(Source(path=str(table))).rows] == [True, False]


BAD_KINDS = [
    ({"prompt": "q", "completion": "a", "label": None}, "trl_kto", None),
    ({"prompt": "q", "completion": ["a", "b"], "label": True}, "trl_kto", r"\$\.completion"),
    ({"messages": [ASSISTANT], "label": True}, "labelled_chat", "only the answer"),
    ({"prompt": "q", "completion": [USER], "label": False}, "trl_kto", r"\$\.completion\.role"),
    ({"text": 7}, "text", r"expected text, got 7 \(at \$\.text\)"),
    ({"text": "  "}, "text", "no text"),
]


@pytest.mark.parametrize(("raw", "name", "said"), BAD_KINDS)
def test_a_bad_row_of_any_kind_names_its_line_and_key(raw, name, said, tmp_path):
    good = {"trl_kto": LABELLED[0], "labelled_chat": LABELLED[2], "text": {"text": "a"}}[name]
    source = Source(path=written(tmp_path, [good, raw]).path, format=name)
    with pytest.raises(DataError, match=said or "no 'trl_kto' row") as caught:
        collect(source)
    assert [fault.where.rpartition("/")[2] for fault in caught.value.faults] == ["rows.jsonl:2"] * len(caught.value.faults)


def test_documents_may_say_where_they_are_from_but_not_bring_answers(tmp_path):
    page = {"text": "a page", "url": "https://example.org/a", "date": "2026-01-01", "language": "en"}
    (row,) = collect(written(tmp_path, [page])).rows
    assert (row.text, row.meta) == ("a page", {key: value for key, value in page.items() if key != "text"})
    with pytest.raises(DataError, match="not recognised"):
        collect(written(tmp_path, [{"text": "great film", "label": 1}]))
    mapped = Source(path=written(tmp_path, [{"body": "a page", "score": 1}]).path, format="text", map={"text": "body"})
    assert [(row.text, row.meta) for row in collect(mapped).rows] == [("a page", {"score": 1})]
    long = "word " * 200_000
    (row,) = collect(written(tmp_path, [{"text": long}])).rows
    assert row.text == long, "one turn may be no longer than half a million characters; a document may"


def test_where_rows_come_from_is_kept(tmp_path):
    (row,) = collect(written(tmp_path, [ROWS["interaction"]])).rows
    assert (row.meta, row.origin[-12:]) == ({"provenance": "interaction:i1", "alias": "bot", "variant": "v2"}, "rows.jsonl:1")
    again = {**ROWS["tunesmith"], "origin": "synthetic:teacher:p1"}
    assert collect(written(tmp_path, [again])).rows[0].meta == {"provenance": "synthetic:teacher:p1"}
    with pytest.raises(DataError, match="the request failed"):
        collect(written(tmp_path, [{**ROWS["interaction"], "status": 500, "error": "boom"}]))
    assert collect(written(tmp_path, [ROWS["kiln"]])).rows[0].meta == {"rating": 4.0}
    assert collect(written(tmp_path, [ROWS["label_studio"]])).rows[0].label == "good"


def test_formats_are_told_apart_by_name_and_by_map(tmp_path):
    with pytest.raises(DataError, match=r"several formats: .*trl.*"):
        detect([{"prompt": "q", "completion": "a", "response": "b"}])
    with pytest.raises(DataError, match=r"\['question', 'reply'\]"):
        detect([{"question": "q", "reply": "a"}])
    source = written(tmp_path, [{"question": "q", "reply": "a", "doc": 7, "lang": "de"}])
    mapped = Source(path=source.path, map={"prompt": "question", "response": "reply", "group": "doc"})
    row = collect(mapped).rows[0]
    assert (row.messages, row.group, row.meta) == (QUESTION_AND_ANSWER, "7", {"lang": "de"})
    with pytest.raises(ConfigError, match="did you mean 'prompt'"):
        collect(Source(path=source.path, map={"promt": "question"}))
    with pytest.raises(ConfigError, match="did you mean 'sharegpt'"):
        collect(Source(path=source.path, format="sharegtp"))
    with pytest.raises(DataError, match="no column 'ask' for 'prompt'"):
        collect(Source(path=source.path, format="columns", map={"prompt": "ask", "response": "reply"}))


def test_tool_calls_are_mended_and_said(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}
    planted = {"type": "function", "function": {**TOOL["function"], "parameters": {"properties": {"x": {"type": "string"}, "y": None}}}}
    turns = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call], "name": None},
        {"role": "tool", "content": "1", "tool_call_id": "call_0"},
        ASSISTANT,
        {"role": "user", "content": "thanks"},
    ]
    found = collect(written(tmp_path, [{"messages": turns, "tools": [planted]}]))
    row, line = found.rows[0], next(iter(found.ledger))
    assert row.messages[1].tool_calls[0].function.arguments == '{"x":"1"}'
    assert row.tools[0]["function"]["parameters"] == {"properties": {"x": {"type": "string"}}}
    assert row.messages[-1].role == "assistant"
    assert (line.fate, set(line.rule.split(", "))) == ("mended", {"nulls", "tool_call_id", "tool_arguments", "trailing_turns"})


BAD = {
    "invalid_json": b'{"messages": [',
    "not_an_object": b"[1, 2]",
    "not_a_number": b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "score": NaN}',
    "lone_surrogate": b'{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "a"}]}',
    "invalid_utf8": b'{"messages": [{"role": "user", "content": "\xff"}, {"role": "assistant", "content": "a"}]}',
    "duplicate_key": b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "content": "b"}]}',
    "no_assistant": {"messages": [USER]},
    "no_messages": {"messages": []},
    "not_a_list": {"messages": "hello"},
    "wrong_role": {"messages": [{"role": "human", "content": "q"}, ASSISTANT]},
    "null_content": {"messages": [USER, {"role": "assistant", "content": None}]},
    "wrong_type": {"messages": [USER, {"role": "assistant", "content": 5}]},
    "wrong_weight": {"messages": [USER, {**ASSISTANT, "weight": 2}]},
    "weight_not_assistant": {"messages": [{**USER, "weight": 1}, ASSISTANT]},
    "unknown_key": {"messages": [USER, {**ASSISTANT, "weigth": 0}]},
    "unsupported_content": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ASSISTANT]},
    "unasked_tool_result": {"messages": [USER, {"role": "tool", "content": "1", "tool_call_id": "c9"}, ASSISTANT]},
    "message_too_long": {"messages": [{"role": "user", "content": "word " * 210_000}, ASSISTANT]},
    "wrong_format": {"question": "q"},
    "wrong_tool_call": {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1", "function": "f"}]}]},
}

BAD_LINES = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in BAD.values() if len(str(row)) < 1_000]


@pytest.mark.parametrize("code", BAD)
def test_each_fault_has_its_code_and_place(code, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"q{i}"}, ASSISTANT]} for i in range(16)]
    found = collect(written(tmp_path, [*rows, BAD[code], ROWS["chat"]]), max_invalid=0.2, rejects=tmp_path / "rejects.jsonl")
    assert [fault.code for fault in found.faults] == [code]
    assert found.faults[0].where.endswith("rows.jsonl:17")
    assert len(found.faults[0].message) < 300
    assert found.ledger.counts() == {"kept": 17, "dropped": 1}
    reject = json.loads((tmp_path / "rejects.jsonl").read_text())
    assert reject["faults"][0]["code"] == code


def test_all_faults_are_gathered_in_one_error(tmp_path):
    source = written(tmp_path, [ROWS["chat"], *BAD.values()])
    with pytest.raises(DataError) as caught:
        collect(source, rejects=tmp_path / "rejects.jsonl")
    assert {fault.code for fault in caught.value.faults} >= set(BAD)
    assert f"{len(BAD)} of {len(BAD) + 1} rows cannot be used" in str(caught.value)
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == len(BAD)


def test_duplicate_ids_name_the_first_place(tmp_path):
    source = written(tmp_path, [{**ROWS["chat"], "id": 1}, {**ROWS["chat"], "id": 1}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: its id 1 was already used at .*rows\.jsonl:1"):
        collect(source)
    assert len(collect(Source(path=source.path, unique_ids=False)).rows) == 2


def test_sources_without_rows(tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    with pytest.raises(DataError, match="there are no rows in it"):
        collect(Source(path=str(tmp_path / "empty.jsonl")))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.doc").write_text("x")
    with pytest.raises(DataError, match=r"notes\.doc"):
        collect(Source(path=str(tmp_path / "folder")))
    with pytest.raises(NotFound, match="no such file"):
        collect(Source(path=str(tmp_path / "none.jsonl")))
    with pytest.raises(NotFound, match="pattern"):
        collect(Source(path=str(tmp_path / "*.none")))
    (tmp_path / "u.jsonl").write_bytes('{"messages": []}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        collect(Source(path=str(tmp_path / "u.jsonl")))


def test_folders_patterns_arrays_and_archives(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ROWS["chat"], ROWS["chat"]], indent=1))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS["evals"]).encode()))
    found = collect(Source(path=str(tmp_path)))
    assert [row.origin.rsplit("/", 1)[1] for row in found.rows] == ["a.json:1", "a.json:2", "b.jsonl.gz:1"]
    assert sorted(found.formats.values()) == ["chat", "evals"]
    assert len(collect(Source(path=str(tmp_path / "*.json"))).rows) == 2
    with pytest.raises(DataError, match="entered twice"):
        collect([Source(path=str(tmp_path)), Source(path=str(tmp_path / "a.json"))])


def test_evals_with_several_ideals_keep_them_all(tmp_path):
    row = collect(written(tmp_path, [{"input": "q", "ideal": ["a", "b"]}])).rows[0]
    assert (row.messages, row.meta) == (QUESTION_AND_ANSWER, {"ideal": ["a", "b"]})


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "x"]), "content": st.one_of(WORDS, st.none())}
)


@pytest.mark.slow
@given(st.lists(TURN, max_size=4), st.booleans())
def test_the_fast_and_the_explaining_path_agree(turns, indented):
    row = {"messages": turns}
    data = json.dumps(row, indent=1 if indented else None, ensure_ascii=not indented).replace("\n", " ").encode()
    fast, slow = parse_line(data, "chat", origin="f:1"), parse_row(row, "chat", origin="f:1")
    assert fast == slow


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["messages", "role", "content", "tools", "input", "x"]) | WORDS, inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(JSON, st.binary(max_size=30), st.sampled_from(list(ROWS.values()))), min_size=1, max_size=8),
    st.sampled_from(list(FORMATS)),
)
def test_the_ledger_adds_up_for_any_input(tmp_path_factory, rows, name):
    folder = tmp_path_factory.mktemp("any")
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    lines = [b" ".join(line.split()) for line in lines]
    expected = sum(bool(line.removeprefix(b"\xef\xbb\xbf")) for line in lines[:1]) + sum(bool(line) for line in lines[1:])
    source = written(folder, [line.replace(b"\x00", b"0") for line in lines])
    try:
        found = collect(Source(path=source.path, format=name), max_invalid=1.0)
    except DataError:
        return
    assert found.inputs == len(found.ledger)
    assert sum(found.ledger.counts().values()) == found.inputs
    assert found.inputs == expected or lines[0].startswith(b"[")
    assert len(found.rows) + found.invalid == found.inputs


def test_a_ledger_refuses_what_cannot_be(tmp_path):
    ledger = Ledger()
    ledger.enter("f:1", "a")
    ledger.enter("f:2", "b")
    ledger.mark("f:1", "mended", "text", "moji")
    ledger.mark("f:1", "truncated", "length")
    ledger.mark("f:2", "dropped", "empty")
    with pytest.raises(DataError, match="already took out"):
        ledger.mark("f:2", "mended", "text")
    with pytest.raises(DataError, match="never came in"):
        ledger.mark("f:3", "dropped", "x")
    with pytest.raises(DataError, match="does not add up"):
        ledger.check(3, 1)
    ledger.check(2, 1)
    ledger.write(tmp_path / "ledger.jsonl")
    assert list(Ledger.read(tmp_path / "ledger.jsonl")) == list(ledger)
    assert (ledger.find("f:1")[0].fate, ledger.find("f:1")[0].rule) == ("truncated", "text, length")
    assert ledger.counts() == {"truncated": 1, "dropped": 1}


def test_a_reject_names_file_line_byte_path_and_code(tmp_path):
    good = json.dumps(ROWS["chat"]).encode()
    source = written(tmp_path, [good, {"messages": [USER, {**ASSISTANT, "weight": 2}]}])
    collect(source, max_invalid=0.5, rejects=tmp_path / "rejects.jsonl")
    reject = json.loads((tmp_path / "rejects.jsonl").read_text())
    assert (reject["file"], reject["line"], reject["offset"]) == (source.path, 2, len(good) + 1)
    (fault,) = reject["faults"]
    assert (fault["path"], fault["code"]) == ("$.messages[1].weight", "wrong_weight")
    assert json.loads(reject["row"])["messages"][1]["weight"] == 2


def test_texts_are_rows_by_file_or_by_paragraph(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("\ufeffFirst line.\nSecond line.\n\n\nOther paragraph.\n", "utf-8")
    (folder / "b.md").write_text("# Title\n", "utf-8")
    whole = collect(Source(path=str(folder))).rows
    assert all(isinstance(row, Document) for row in whole)
    assert [row.text for row in whole] == ["First line.\nSecond line.\n\n\nOther paragraph.", "# Title"]
    split = collect(Source(path=str(folder), format="paragraphs")).rows
    assert [(row.text, row.origin.rpartition("/")[2], row.group) for row in split] == [
        ("First line.\nSecond line.", "a.txt:1", str(folder / "a.txt")),
        ("Other paragraph.", "a.txt:5", str(folder / "a.txt")),
        ("# Title", "b.md:1", str(folder / "b.md")),
    ]
    (folder / "bad.txt").write_bytes(b"caf\xe9")
    (folder / "empty.txt").write_bytes(b" \n")
    found = collect(Source(path=str(folder)), max_invalid=0.5)
    assert [fault.code for fault in found.faults] == ["invalid_utf8", "no_text"]
    (folder / "rows.jsonl").write_text(json.dumps(ROWS["chat"]) + "\n")
    assert len(collect(Source(path=str(folder))).rows) == 1, "beside files of rows a text is about them"


def test_texts_are_not_one_cluster_for_asking_nothing(tmp_path):
    for name, said in (("a", "the cat sat on the mat"), ("b", "an entirely different story"), ("c", "a third one about ships")):
        (tmp_path / f"{name}.txt").write_text(said)
    found = collect(Source(path=str(tmp_path)))
    assert clean(found.rows, Clean(), found.ledger).clusters.tolist() == [0, 1, 2]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([json.dumps(ROWS["chat"]).encode(), json.dumps(ROWS["evals"]).encode(), *BAD_LINES]), min_size=1))
def test_intake_writes_what_collect_holds(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("intake")
    source = written(folder, lines)
    source = Source(path=source.path, format="chat", unique_ids=False)
    files = (folder / "rows.parquet", folder / "ledger.jsonl")
    try:
        held = collect(source, max_invalid=1.0, rejects=folder / "held.jsonl")
    except DataError:
        with pytest.raises(DataError):
            intake(source, *files, max_invalid=1.0)
        assert not any(file.exists() for file in files)
        return
    found = intake(source, *files, max_invalid=1.0, rejects=folder / "rejects.jsonl")
    assert list(read_parquet(files[0])) == held.rows
    assert list(Ledger.read(files[1])) == list(held.ledger)
    assert (found.inputs, found.invalid, found.rows, found.faults) == (held.inputs, held.invalid, len(held.rows), held.faults)
    assert dict(found.fates) == held.ledger.counts()
    assert found.digest == digest_of(held.rows)
    assert (folder / "rejects.jsonl").exists() == bool(held.invalid)
    if held.invalid:
        assert (folder / "rejects.jsonl").read_bytes() == (folder / "held.jsonl").read_bytes()


@pytest.mark.slow
def test_a_source_that_breaks_off_leaves_nothing(tmp_path):
    packed = gzip.compress(b"\n".join(json.dumps({**ROWS["chat"], "n": i}).encode() for i in range(20_000)))
    (tmp_path / "rows.jsonl.gz").write_bytes(packed[: len(packed) * 9 // 10])
    with pytest.raises(DataError, match=r"damaged after line 1\d{4}"):
        intake(Source(path=str(tmp_path / "rows.jsonl.gz")), tmp_path / "rows.parquet", tmp_path / "ledger.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl.gz"]


def test_an_import_whose_counts_do_not_add_up_fails(tmp_path):
    found = intake(written(tmp_path, [ROWS["chat"]] * 3), tmp_path / "rows.parquet", tmp_path / "ledger.jsonl")
    add_up(found, 3)
    with pytest.raises(DataError, match="3 rows came in, 0 have faults, 2 were written"):
        add_up(found, 2)
    found.fates["kept"] -= 1
    with pytest.raises(DataError, match="does not add up"):
        add_up(found, 3)
