"""What real files have: nothing that a row says moves aside unsaid, and no row vanishes or is made up. Each kind with an input of our own."""

import gzip
import http.server
import json
import random
import threading

import pytest
import zstandard

from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.row_kinds import answer_turns, prompt_of, turns_of
from tunesmith.core.types import Example, Labelled, Preference
from tunesmith.data.clean import Clean, clean
from tunesmith.data.collect import Source, collect
from tunesmith.data.export import to_format
from tunesmith.data.pii import PersonalData, find_all


def read(folder, *rows, name="rows.jsonl", **options):
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return collect(Source(path=str(path), **options), max_invalid=1.0 if len(rows) > 1 else 0.0)


def turns(row):
    return [(turn.role, turn.text) for turn in turns_of(row)]


def ask(text="Which way?"):
    return {"role": "user", "content": text}


def say(text="Left.", **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = ("system", "Speak like a sailor.")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ask(), say()]},
        {"prompt": "Which way?", "completion": "Left."},
        {"prompt": [ask()], "completion": [say()]},
        {"prompt": "Which way?", "response": "Left."},
        {"instruction": "Which way?", "output": "Left."},
        {"conversations": [{"from": "human", "value": "Which way?"}, {"from": "gpt", "value": "Left."}]},
        {"prompt": "Which way?", "completion": "Left.", "label": True},
        {"messages": [ask(), say()], "label": False},
        {"input": "Which way?", "ideal": "Left."},
    ],
)
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_prompt_beside_the_turns_is_the_first_turn(row, key, tmp_path):
    found = read(tmp_path, {**row, key: SYSTEM[1]})
    assert turns(found.rows[0]) == [SYSTEM, ("user", "Which way?"), ("assistant", "Left.")]
    assert found.rows[0].meta == {}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Which way?", "chosen": "Left.", "rejected": "Up."},
        {"question": "Which way?", "chosen": "Left.", "rejected": "Up."},
        {"prompt": "Which way?", "chosen": [ask(), say()], "rejected": [ask(), say("Up.")]},
        {"chosen": [ask(), say()], "rejected": [ask(), say("Up.")]},
        {"prompt": [ask()], "chosen": [say()], "rejected": [say("Up.")]},
        {"messages": [ask()], "chosen": "Left.", "rejected": "Up."},
        {
            "conversations": [{"from": "human", "value": "Which way?"}],
            "chosen": {"from": "gpt", "value": "Left."},
            "rejected": {"from": "gpt", "value": "Up."},
        },
        {"chosen": "\n\nHuman: Which way?\n\nAssistant: Left.", "rejected": "\n\nHuman: Which way?\n\nAssistant: Up."},
        {"input": {"messages": [ask()]}, "preferred_output": [say()], "non_preferred_output": [say("Up.")]},
        {"prompt": "Which way?", "chosen": [ask(), say()], "rejected": [ask(), say("Up.")], "messages": [ask(), say()], "score": 4},
    ],
)
def test_pairs_in_their_common_shapes(row, tmp_path):
    for extra in ({}, {"system": SYSTEM[1]}):
        pair = read(tmp_path, {**row, **extra}).rows[0]
        assert isinstance(pair, Preference)
        assert [(turn.role, turn.text) for turn in prompt_of(pair)] == [*([SYSTEM] if extra else []), ("user", "Which way?")]
        assert [turn.text for turn in answer_turns(pair)] == ["Left.", "Up."]


def test_a_prompt_inside_both_answers_may_say_more_but_nothing_else(tmp_path):
    inside = [{"role": "system", "content": SYSTEM[1]}, ask()]
    row = {"prompt": "Which way?", "chosen": [*inside, say()], "rejected": [*inside, say("Up.")]}
    assert turns(read(tmp_path, row).rows[0])[:2] == [SYSTEM, ("user", "Which way?")]
    with pytest.raises(DataError, match="Where to"):
        read(tmp_path, {**row, "prompt": "Where to?"})


@pytest.mark.parametrize("mapping", [{}, {"prompt": "instruction"}])
def test_pairs_with_instruction_and_input(mapping, tmp_path):
    row = {"instruction": "Which way?", "input": "The harbour lies behind us.", "chosen": "Left.", "rejected": "Up."}
    assert turns(read(tmp_path, row, map=mapping).rows[0])[0] == ("user", "Which way?\n\nThe harbour lies behind us.")


@pytest.mark.parametrize("past", [[["Who?", "Me."], ["Sure?", "Yes."]], [ask("Who?"), say("Me."), ask("Sure?"), say("Yes.")]])
@pytest.mark.parametrize("keys", [("instruction", "output"), ("prompt", "response"), ("prompt", "completion")])
def test_history_is_what_was_said_before(past, keys, tmp_path):
    row = {keys[0]: "Which way?", keys[1]: "Left.", "history": past, "system": SYSTEM[1]}
    said = turns(read(tmp_path, row).rows[0])
    assert said == [
        SYSTEM,
        *((("user", "assistant")[i % 2], t) for i, t in enumerate(["Who?", "Me.", "Sure?", "Yes.", "Which way?", "Left."])),
    ]


def test_what_speaks_and_has_no_place_is_said(tmp_path):
    found = read(tmp_path, {"messages": [ask(), say()], "context": "It is dark.", "source": "a book", "prompt": "Which way?"})
    assert found.rows[0].meta == {"context": "It is dark.", "source": "a book", "prompt": "Which way?"}
    assert [(line.fate, line.rule) for line in found.ledger] == [("mended", "to_meta:context")]


def test_two_system_prompts_are_a_fault(tmp_path):
    row = {"messages": [{"role": "system", "content": "Be brief."}, ask(), say()]}
    assert turns(read(tmp_path, {**row, "system": "Be brief."}).rows[0])[0] == ("system", "Be brief.")
    with pytest.raises(DataError, match="which holds"):
        read(tmp_path, {**row, "system": "Be long."})


@pytest.mark.parametrize("key", ["loss", "train", "trainable"])
@pytest.mark.parametrize("shape", ["chat", "sharegpt"])
def test_turns_that_are_marked_not_to_train_have_weight_0(key, shape, tmp_path):
    rows = {
        "chat": {"messages": [ask(), say("Up.", **{key: False}), ask("No."), say(**{key: True})]},
        "sharegpt": {
            "conversations": [
                {"from": "human", "value": "Which way?", key: False},
                {"from": "gpt", "value": "Up.", key: False},
                {"from": "human", "value": "No."},
                {"from": "gpt", "value": "Left.", key: 1},
            ]
        },
    }
    assert [turn.weight for turn in read(tmp_path, rows[shape]).rows[0].messages] == [None, 0, None, 1]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (say(los=False), "'loss'"),
        (say(loss="no"), "true or false"),
        ({**ask(), "reasoning_content": "It was dark."}, "only an assistant message can have 'reasoning_content'"),
        (say(reasoning_content="It was dark.", thinking="It was light."), "differ"),
        (say(mood="calm"), r"ignore: \[mood\]"),
        (say(loss=False, weight=1), "which holds"),
        ({**ask(), "train": True}, "only an assistant"),
    ],
)
def test_a_key_of_a_turn_that_would_be_lost_is_a_fault(turn, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(tmp_path, {"messages": [ask(), turn, say()]})


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thoughts"])
def test_thoughts_stay_beside_the_words(key, tmp_path):
    row = {"messages": [ask(), say(**{key: "It was dark."})]}
    turn = read(tmp_path, row).rows[0].messages[1]
    assert (turn.content, turn.reasoning_content) == (say()["content"], "It was dark.")
    assert read(tmp_path, row, ignore=(key,)).rows[0].messages[1].reasoning_content is None


def test_keys_that_may_be_left_out(tmp_path):
    row = {"messages": [{**ask(), "id": "m1"}, say(mood="calm", timestamp=7, annotations=[])]}
    found = read(tmp_path, row, ignore=("mood",))
    assert turns(found.rows[0]) == [("user", "Which way?"), ("assistant", "Left.")]
    assert "message_key:mood" in next(iter(found.ledger)).rule


TOOL = {"name": "steer", "description": "Turn the wheel", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}}


@pytest.mark.parametrize("tools", [[TOOL], [{"type": "function", **TOOL}], json.dumps([TOOL]), [{"type": "function", "function": TOOL}]])
def test_tools_may_be_flat(tools, tmp_path):
    row = {"messages": [ask(), say()], "tools": tools}
    assert read(tmp_path, row).rows[0].tools == ({"type": "function", "function": TOOL},)


@pytest.mark.parametrize("tools", ["", " ", "[]", [], None])
def test_no_tools_are_none(tools, tmp_path):
    assert read(tmp_path, {"messages": [ask(), say()], "tools": tools}).rows[0].tools == ()


def test_thinking_before_a_call_stays(tmp_path):
    thought = "<think>\nThe rocks are right.\n</think>"
    call = json.dumps({"name": "steer", "arguments": {"to": "left"}})
    spoken = [("human", "Which way?"), ("function_call", f"{thought}\n\n{call}"), ("observation", "done"), ("gpt", "Left.")]
    row = read(tmp_path, {"conversations": [{"from": who, "value": value} for who, value in spoken], "tools": [TOOL]}).rows[0]
    assert row.messages[1].content == thought
    assert json.loads(row.messages[1].tool_calls[0].function.arguments) == {"to": "left"}


def test_numbers_are_texts_and_truth_values_are_not(tmp_path):
    found = read(tmp_path, {"prompt": "1+1?", "completion": 2}, {"prompt": 7, "completion": 2.5}, {"prompt": "Is it?", "completion": True})
    assert [turns(row)[1][1] for row in found.rows] == ["2", "2.5"]
    assert turns(found.rows[1])[0] == ("user", "7")
    assert "expected text, got True" in found.faults[0].message


def test_an_id_that_comes_twice_names_the_way_out(tmp_path):
    found = read(tmp_path, *({"id": "doc", "messages": [ask(f"{i}?"), say()]} for i in range(2)))
    assert (len(found.rows), found.invalid) == (1, 1)
    assert "unique_ids: false" in found.faults[0].message
    found = read(tmp_path, *({"id": "doc", "messages": [ask(f"{i}?"), say()]} for i in range(2)), unique_ids=False)
    assert len(found.rows) == 2


def test_labelled_rows_keep_their_kind(tmp_path):
    row = read(tmp_path, {"prompt": "Which way?", "completion": "Up.", "label": False, "system": SYSTEM[1]}).rows[0]
    assert isinstance(row, Labelled)
    assert not row.desirable


@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("name", ["chat", "trl", "tunesmith"])
def test_calls_come_back_from_every_format_and_are_what_the_sdk_takes(content, name, tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "steer", "arguments": '{"to": "left"}'}}
    row = {
        "messages": [ask(), {"role": "assistant", "content": content, "tool_calls": [call]}],
        "tools": [{"type": "function", "function": TOOL}],
    }
    first = read(tmp_path, row).rows[0]
    assert isinstance(first, Example)
    fields = to_format(first, name)
    assert read(tmp_path, fields, name="again.jsonl").rows[0].id == first.id
    if name == "chat":
        assert fields["messages"][1]["tool_calls"] == [call]


# --- files -------------------------------------------------------------------------------------------------------------------------------


def table(folder, text, name="rows.csv", encoding="utf-8", **options):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return collect(Source(path=str(path), **options), max_invalid=1.0)


def pairs(found):
    return [(row.messages[-2].text, row.messages[-1].text) for row in found.rows]


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ('"prompt, or so, in short";response\nleft?;no\nright?;yes\n', {"prompt": "prompt, or so, in short"}),
        ("sep=;\nprompt;response\nleft?;no\nright?;yes\n", {}),
        ("sep=|\r\nprompt|response\r\nleft?|no\r\nright?|yes\r\n", {}),
        ("\n  \n\nprompt,response\nleft?,no\n\nright?,yes\n", {}),
        ('"prompt\n;;;",response\nleft?,no\nright?,yes\n', {"prompt": "prompt\n;;;"}),
        ("prompt\tresponse\nleft?\tno\nright?\tyes", {}),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_dialects_and_encodings_of_tables(text, mapping, encoding, tmp_path):
    found = table(tmp_path, text, encoding=encoding, map=mapping) if encoding.startswith("utf-8") else None
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode(encoding))
    found = found or collect(Source(path=str(path), map=mapping, encoding=encoding))
    assert pairs(found) == [("left?", "no"), ("right?", "yes")]


def test_a_file_that_is_not_of_the_encoding_or_of_none_is_said(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,response\ncaf\xe9?,yes\n")
    assert pairs(collect(Source(path=str(path), encoding="latin-1"))) == [("café?", "yes")]
    with pytest.raises(DataError, match="the file is not utf-16"):
        collect(Source(path=str(path), encoding="utf-16"))
    with pytest.raises(ConfigError, match="no encoding 'klingon'"):
        collect(Source(path=str(path), encoding="klingon"))
    path.write_bytes("prompt,response\na,b\n".encode("utf-16"))
    with pytest.raises(DataError, match="encoding: utf-16"):
        collect(Source(path=str(path)))


ROWS = "".join(f"question {i},answer {i}\n" for i in range(30))


@pytest.mark.parametrize("at", [0, 7, 29])
@pytest.mark.parametrize("broken", ['"never closed,x\n', 'x,"never closed\n', '"a "b" c,x\n'])
def test_a_quote_that_is_never_closed_costs_its_own_row(at, broken, tmp_path):
    lines = ROWS.splitlines(keepends=True)
    found = table(tmp_path, "prompt,response\n" + "".join([*lines[:at], broken, *lines[at:]]))
    assert (found.inputs, len(found.rows), found.invalid) == (31, 30, 1)
    assert found.faults[0].where.endswith(f":{at + 2}")


def test_rows_between_two_quotes_are_all_said(tmp_path):
    lines = ROWS.splitlines(keepends=True)
    found = table(
        tmp_path,
        "prompt,response\n" + "".join([*lines[:5], '"open,x\n', *lines[5:20], 'he said" "no,y\n', '"and, so on",z\n', *lines[20:]]),
    )
    assert found.inputs == 33
    assert len(found.rows) + found.invalid == 33
    assert ("and, so on", "z") in pairs(found)
    assert {"question 4", "question 25"} <= {asked for asked, _ in pairs(found)}


def test_no_row_is_made_of_the_middle_of_a_broken_one(tmp_path):
    found = table(tmp_path, 'prompt,response\n"said \\"no\\" twice\nthen,went\nhome",x\nb,c\n')
    assert (pairs(found), found.inputs) == ([("b", "c")], 2)
    assert "lines 2 to 4" in found.faults[0].message


def test_a_table_in_good_order_keeps_line_breaks_in_cells(tmp_path):
    found = table(tmp_path, 'prompt,response\n"one\ntwo, ""three""","a\n\nb"\nb,c\n')
    assert pairs(found) == [('one\ntwo, "three"', "a\n\nb"), ("b", "c")]
    assert [row.origin[-2:] for row in found.rows] == [":2", ":6"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.jsonl.zst", "rows.jsonl.gz", "rows.csv.zst"])
def test_an_archive_that_was_cut_is_no_whole_one(name, tmp_path):
    whole = b"prompt,response\n" if "csv" in name else b""
    draw = random.Random(0)
    for _ in range(4_000):
        text = f"{draw.random()}"
        whole += f"{text},{text}\n".encode() if "csv" in name else json.dumps({"prompt": text, "response": text}).encode() + b"\n"
    packed = gzip.compress(whole) if name.endswith("gz") else zstandard.ZstdCompressor().compress(whole)
    path = tmp_path / name
    path.write_bytes(packed)
    assert len(collect(Source(path=str(path))).rows) == 4_000
    for share in (0.3, 0.6, 0.99):
        path.write_bytes(packed[: int(share * len(packed))])
        with pytest.raises(DataError, match="damaged"):
            collect(Source(path=str(path)), max_invalid=1.0)
    if name.endswith("zst"):  # several frames one after the other, as zstd's own tool joins them
        path.write_bytes(
            zstandard.ZstdCompressor().compress(whole[: whole.index(b"\n") + 1])
            + zstandard.ZstdCompressor().compress(whole[whole.index(b"\n") + 1 :])
        )
        assert len(collect(Source(path=str(path))).rows) == 4_000


def test_json_lines_under_the_name_of_a_text_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        read(tmp_path, {"messages": [ask(), say()]}, {"messages": [ask("2"), say()]}, name="rows.txt")
    (tmp_path / "prose.txt").write_text("{ is a brace.\n}\n")
    assert len(collect(Source(path=str(tmp_path / "prose.txt"))).rows) == 1


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_the_nulls_that_arrow_plants_are_not_there(suffix, tmp_path):
    import pyarrow as pa
    import pyarrow.ipc
    import pyarrow.parquet

    def calling(**arguments):
        call = {"id": "c", "type": "function", "function": {"name": "steer", "arguments": arguments}}
        return {"messages": [{**ask(), "tool_calls": None}, {"role": "assistant", "content": None, "tool_calls": [call]}]}

    data = pa.Table.from_pylist([calling(to="left", by={"rudder": 1}), calling(fast=True)])
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pa.parquet.write_table(data, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, data.schema) as writer:
            writer.write_table(data)
    rows = collect(Source(path=str(path))).rows
    assert [json.loads(row.messages[1].tool_calls[0].function.arguments) for row in rows] == [
        {"to": "left", "by": {"rudder": 1}},
        {"fast": True},
    ]


# --- texts -------------------------------------------------------------------------------------------------------------------------------


def cleaned(folder, *rows, **settings):
    found = read(folder, *rows)
    return clean(found.rows, Clean(**settings), found.ledger).rows


def test_pages_stay_apart_and_talk_of_mojibake_stays(tmp_path):
    rows = cleaned(
        tmp_path,
        {"messages": [ask("pages"), say("first\x0csecond\x0bthird\x1fa\x1eb")]},
        {"messages": [ask("What is wrong with Ã¼?"), say("Somebody read ü as Latin-1.")]},
        {"messages": [ask("MÃ¼nchen?"), say("GrÃ¼ÃŸe")]},
        {"messages": [ask("Ã¨?"), say("Ã¨ is how è looks.")]},
        {"messages": [ask("Why do I see cafÃ©?"), say("Send it as UTF-8.")]},
        {"messages": [ask("What is â€œ?"), say("A curly quote, “, of mojibake.")]},
    )
    assert rows[0].messages[1].text == "first\nsecond\nthird a b"
    assert [turn.text for row in rows[3:] for turn in row.messages] == [
        "Ã¨?", "Ã¨ is how è looks.", "Why do I see cafÃ©?", "Send it as UTF-8.", "What is â€œ?", "A curly quote, “, of mojibake.",
    ]  # fmt: skip
    assert rows[1].messages[0].text == "What is wrong with Ã¼?"
    assert [turn.text for turn in rows[2].messages] == ["München?", "Grüße"]


@pytest.mark.parametrize("between", ["|", ",", ";", " ", "\n", "/", "|||", "<>", ":", "`", "=", "'", "}{"])
def test_every_one_of_several_addresses_is_taken_out(between, tmp_path):
    text = between.join(["ann@example.com", "bo@example.org", "cy@example.net"])
    (row,) = cleaned(tmp_path, {"messages": [ask(text), say()]}, personal_data=PersonalData(action="redact"))
    assert "@" not in row.messages[0].text
    assert row.messages[0].text.count("<EMAIL>") == 3
    assert find_all([row.messages[0].text]) == [[]]


def test_how_files_are_read_is_an_option_of_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_bytes("id,prompt,response\n1,café?,yes\n1,crème?,no\n".encode("cp1252"))
    words = ["data", "import", "rows.csv", "--yes", "--json", "--config", str(tmp_path / "tunesmith.yaml")]

    def run(*more):
        code = guarded(app, [*words, *more])
        return code, capsys.readouterr()

    code, said = run("--read", "encoding=cp1252", "--read", "unique_ids=false")
    assert code == 0, said.err
    shown = json.loads(said.out)
    assert [turn["text"] for row in shown["preview"][0]["rows"] for turn in row["turns"]] == ["café?", "yes", "crème?", "no"]
    assert run("--read", "encodin=cp1252")[0] == 2
    assert run("--read", "unique_ids=maybe")[0] == 2


def test_secrets_of_an_address_are_kept_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = b"".join(json.dumps({"prompt": f"question {i}", "response": f"answer {i}"}).encode() + b"\n" for i in range(3))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path.startswith("/rows")
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(rows) if found else 0))
            self.end_headers()
            self.wfile.write(rows if found and self.command == "GET" else b"")

        do_HEAD = do_GET

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for name, code in (("rows", 0), ("missing", 1)):
            url = f"http://ann:hunter2@127.0.0.1:{server.server_port}/{name}.jsonl?X-Amz-Signature=signed99"
            ended, said = guarded(app, ["data", "import", url, "--yes"]), capsys.readouterr()
            assert ended == code, said.err
            kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
            for secret in ("hunter2", "signed99"):
                assert secret not in said.out + said.err
                assert secret.encode() not in kept
    finally:
        server.shutdown()
    assert b"question 2" in b"".join(path.read_bytes() for path in tmp_path.rglob("*.jsonl")) or list(tmp_path.rglob("*.parquet"))
