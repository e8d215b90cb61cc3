"""The data room for people: every command on real rows with planted faults, through the command line."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import templates
from tunesmith.cli.data_work import app as data_app
from tunesmith.cli.shared import guarded
from tunesmith.core.config import percent
from tunesmith.core.errors import DataError
from tunesmith.data.collect import refuse_invalid
from tunesmith.data.import_stream import Intake


def chat(question: str, answer: str, **more: object) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns, **more}, ensure_ascii=False)


SUBJECTS = [
    "parcel", "invoice", "login", "refund", "voucher", "delivery", "address", "warranty", "colour", "battery",
    "charger", "screen", "contract", "roaming", "tariff", "router", "signal", "receipt", "exchange", "complaint",
]  # fmt: skip


def rows() -> list[str]:
    """60 different rows, then planted: a copy (61), a near-copy (62), an address of mail (63), a contradiction (64), broken text (65)."""
    asked = ["where do I find my", "how can I change the", "what happens with a lost"]
    found = [chat(f"{ask} {word} since last monday morning in the shop?", f"Look at {word} number {i}.") for i, (ask, word) in enumerate(
        (ask, word) for ask in asked for word in SUBJECTS)]  # fmt: skip
    near = "how can I change the parcel since last monday morning in our big town shop please ?"
    return [
        *found,
        found[4],
        chat(f"{near} really now and then", "Look at parcel number 20."),
        chat("who answers the letters that I write on paper?", "Write to jane.doe@example.org please."),
        chat("where do I find my parcel since last monday morning in the shop?", "Nowhere."),
        chat("is the cafÃ© in the station open on sundays or not?", "Yes, the cafÃ© is."),
    ]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("\n".join(rows()) + "\n", "utf-8")
    return tmp_path


def call(capsys, *words, code=0):
    found = guarded(data_app, list(words))
    said = capsys.readouterr()
    assert found == code, said.out + said.err
    return said.out, said.err


def told(capsys, *words, code=0):
    out, _ = call(capsys, *words, "--json", code=code)
    return json.loads(out.splitlines()[0])


def imported(capsys):
    return told(capsys, "import", "rows.jsonl", "--yes")["version"]["id"]


def test_three_rows_are_shown_before_anything_is_written(here, capsys):
    out, err = call(capsys, "import", "rows.jsonl", code=2)
    assert "format chat" in out
    assert out.count("assistant:") == 3
    assert "--yes" in err
    assert not (here / ".tunesmith").exists()
    found = told(capsys, "import", "rows.jsonl", "--yes", "--name", "first")
    assert found["version"]["counts"] == {"all": 65}
    assert [one["note"] for one in told(capsys, "log")["versions"]] == ["first"]


def test_odd_columns_are_mapped_and_a_wrong_map_is_explained(here, capsys):
    (here / "odd.csv").write_text("frage,antwort\nwas ist das hier?,ein Test\nund das?,noch einer\n", "utf-8")
    found = told(capsys, "import", "odd.csv", "--map", "prompt=frage", "--map", "response=antwort", "--yes")
    assert found["preview"][0]["format"] == "columns"
    assert [turn["text"] for turn in found["preview"][0]["rows"][0]["turns"]] == ["was ist das hier?", "ein Test"]
    _, err = call(capsys, "import", "odd.csv", "--map", "prompt", "--yes", code=2)
    assert "prompt=question" in err


def test_a_database_is_read_by_its_query(here, capsys):
    import sqlite3

    with sqlite3.connect(here / "rows.db") as base:
        base.execute("create table tickets (q text, a text)")
        base.executemany("insert into tickets values (?, ?)", [(f"question {i}", f"answer {i}") for i in range(5)])
    base.close()
    found = told(capsys, "import", "sqlite:///rows.db#SELECT q AS prompt, a AS response FROM tickets", "--yes")
    assert (found["inputs"], found["preview"][0]["format"]) == (5, "columns")


def test_invalid_rows_are_refused_until_they_are_accepted(here, capsys):
    (here / "rows.jsonl").write_text("\n".join([*rows(), "{broken"]), "utf-8")
    _, err = call(capsys, "import", "rows.jsonl", "--yes", code=1)
    assert "rows.jsonl:66" in err
    found = told(capsys, "import", "rows.jsonl", "--yes", "--max-invalid", "2%")
    assert (found["inputs"], found["invalid"]) == (66, 1)
    assert told(capsys, "why", "rows.jsonl:66")["rows"][0]["rule"] == "invalid"


def test_a_broken_file_is_the_same_one_message_before_and_after_yes(here, capsys):
    (here / "rows.jsonl").write_text("\n".join([*rows(), "{broken"]), "utf-8")
    before, after = (call(capsys, "import", "rows.jsonl", *more, code=1) for more in ((), ("--yes",)))
    assert before[0] == after[0] == ""
    assert before[1].splitlines()[1:] == after[1].splitlines()[2:], "all but where the rejects of --yes lie"
    assert "max_invalid: 1.6%" in before[1]
    out, _ = call(capsys, "import", "rows.jsonl", "--max-invalid", "1.6%", "--json", code=2)
    assert [(one["inputs"], one["invalid"], one["version"]) for one in map(json.loads, out.splitlines())] == [(66, 1, None)]
    (here / "tunesmith.yaml").write_text("name: x\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\nmax_invalid: 1.6%\n")
    assert told(capsys, "import", "rows.jsonl", "--yes")["invalid"] == 1, "the project's own max_invalid holds"


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_remedy_for_rows_with_faults_works(a, b):
    invalid, inputs = sorted((a, b))
    if invalid == inputs:
        return
    found = Intake(inputs=inputs, invalid=invalid)
    with pytest.raises(DataError) as caught:
        refuse_invalid(found, 0.0, None)
    share = re.search(r"max_invalid: ([\d.]+%)", str(caught.value))
    refuse_invalid(found, percent(share[1]), None)


def test_import_clean_split_and_the_fate_of_every_row(here, capsys):
    first = imported(capsys)
    cleaned = told(capsys, "clean", "--clean.personal_data.action", "redact")
    assert cleaned["rules"] == {"exact_duplicate": 1, "repair_text": 1, "personal_data": 1}
    assert (cleaned["before"], cleaned["after"]) == (65, 64)
    divided = told(capsys, "split", "--split.salt", "x", "--split.semantic.action", "off")
    assert sum(divided["version"]["counts"].values()) == 64
    assert divided["leakage"]["test"]["near"] == 0
    assert divided["meaning"]["test"]["why"] == "split.semantic.action is off"
    assert "parent" not in told(capsys, "log")["versions"][-1]
    copy = told(capsys, "why", "61")["rows"][0]
    assert (copy["fate"], copy["rule"], copy["other"]) == ("duplicate_of", "exact_duplicate", "rows.jsonl:5")
    assert copy["repeats"]["turns"][0]["text"].startswith("where do I find my voucher")
    mended = told(capsys, "why", "rows.jsonl:65")["rows"][0]
    assert "café" in mended["now"]["turns"][0]["text"]
    assert "cafÃ©" in mended["came_in"]["turns"][0]["text"]
    listed = told(capsys, "ledger", "--rule", "personal_data")
    assert [line["origin"] for line in listed["lines"]] == ["rows.jsonl:63"]
    assert sum(listed["fates"].values()) == listed["inputs"] == 65
    changes = told(capsys, "diff", first[:8], "latest")
    assert changes["counts"] == {"added": 0, "removed": 1, "changed": 2, "moved": 62}
    _, err = call(capsys, "ledger", "--fate", "droped", code=2)
    assert "did you mean 'dropped'" in err
    _, err = call(capsys, "ledger", "--rule", "exact_duplicates", code=2)
    assert "did you mean 'exact_duplicate'" in err


def test_near_duplicates_dropped_by_an_override_are_in_the_ledger(here, capsys):
    (here / "rows.jsonl").write_text("\n".join(chat(f"please tell me number {i // 2} of all the many things that are on the list" + " now" * (i % 2), "yes") for i in range(40)))  # fmt: skip
    imported(capsys)
    told(capsys, "clean", "--clean.near_duplicates.action", "drop", "--clean.near_duplicates.threshold", "0.8")
    listed = told(capsys, "ledger", "--rule", "near_duplicate")
    assert listed["fitting"] >= 20
    assert "Jaccard" in listed["lines"][0]["reason"]


def test_the_gate_on_dropped_rows_says_no_and_writes_nothing(here, capsys):
    imported(capsys)
    _, err = call(capsys, "clean", "--max-dropped", "1%", code=3)
    assert "max_dropped" in err
    assert len(told(capsys, "log")["versions"]) == 1
    told(capsys, "clean", "--max-dropped", "0.05")
    assert len(told(capsys, "log")["versions"]) == 2


def test_an_unknown_setting_names_the_nearest(here, capsys):
    imported(capsys)
    _, err = call(capsys, "clean", "--clean.refusal", "drop", code=2)
    assert "did you mean 'refusals'" in err


@pytest.mark.slow
def test_check_says_what_to_do_in_text_and_in_one_offline_file(here, capsys):
    out, _ = call(capsys, "check", "rows.jsonl", "--out", "report.html")
    assert "personal_data" in (here / "report.html").read_text("utf-8")
    assert "email (1)" in out
    assert "1 row repeats another" in out
    html = (here / "report.html").read_text("utf-8")
    assert "<svg" in html
    assert not re.findall(r"""(?:src|href)=["']https?:""", html)
    found = told(capsys, "check", "rows.jsonl", "--base", "gpt-4.1-mini")
    levels = [one["level"] for one in found["advice"]]
    assert levels == sorted(levels, key=["stop", "fix", "consider", "fine"].index)
    (here / "few.jsonl").write_text("\n".join(rows()[:5]))
    assert told(capsys, "check", "few.jsonl", code=3)["advice"][0]["code"] == "too_few_rows"


@pytest.mark.slow
def test_the_report_is_readable_offline_on_a_desk_a_phone_and_in_the_dark(here, capsys):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    found = told(capsys, "check", "rows.jsonl", "--out", "report.html")
    todo = sum(one["level"] != "fine" for one in found["advice"])
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"])
        for width, scheme in ((1200, "light"), (390, "dark")):
            page = browser.new_context(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            page.on("console", lambda message: complaints.append(message.text))
            page.on("requestfailed", lambda request: complaints.append(request.url))
            page.goto((here / "report.html").as_uri())
            page.locator("summary").first.click()
            assert page.locator("ol.todo > li").count() == todo
            assert page.locator("ol.todo .row").first.is_visible()
            assert page.locator("svg").count() >= 2
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 1
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]
        browser.close()
    assert complaints == []


def test_mask_shows_trained_read_and_cut_tokens(here, capsys):
    from tunesmith.core.chat import Renderer
    from tunesmith.core.types import Example, Message, example_id
    from tunesmith.flow.datasets.tokens import mask

    renderer = Renderer.load(templates.save(here / "base", "qwen"))
    turns = (Message(role="user", content="who calls?"), Message(role="assistant", content="the system"))
    row = Example(id=example_id(turns), messages=turns)
    (side,) = mask(row, renderer)
    text = "".join(token["text"] for token in side["tokens"] if token["state"] == "trained")
    assert text == "the system<|im_end|>"
    (short,) = mask(row, renderer, max_length=len(side["tokens"]) - 3)
    assert short["counts"]["cut"] == 3
    (none,) = mask(row, renderer, max_length=4)
    assert not none["trained_before_the_cut"]


@pytest.mark.slow
def test_mask_of_a_real_base_by_the_command(here, capsys, smollm2):
    side = told(capsys, "mask", "1", "--data", "rows.jsonl", "--base", "smollm2-135m")["sides"][0]
    assert "".join(token["text"] for token in side["tokens"] if token["state"] == "trained").endswith("<|im_end|>")
    out, _ = call(capsys, "mask", "1", "--data", "rows.jsonl", "--base", "smollm2-135m", "--max-length", "45")
    assert "[[" in out or "NOTHING" in out
    assert "tokens" in told(capsys, "check", "rows.jsonl", "--base", "smollm2-135m")


def test_suspects_go_into_review_and_the_majority_makes_a_version(here, capsys):
    wrong = [chat(f"where is my {word} of last week, please, can you tell me?", "Look it up.", label="lost" if i != 3 else "billing")
             for i, word in enumerate(SUBJECTS)]  # fmt: skip
    right = [chat(f"why did you charge {word} twice on this bill, I paid it before", "We check it.", label="billing") for word in SUBJECTS]
    (here / "rows.jsonl").write_text("\n".join([*wrong, *right]))
    imported(capsys)
    found = told(capsys, "labels")["suspects"]
    assert found[0]["origin"] == "rows.jsonl:4"
    assert (found[0]["given"], found[0]["suggested"]) == ("billing", "lost")
    waiting = told(capsys, "review", "--as", "ann", "-n", "2")["rows"]
    assert waiting[0]["origin"] == "rows.jsonl:4"
    assert "lost" in waiting[0]["why"]
    _, err = call(capsys, "review", "--agreement", code=1)
    assert "two annotators" in err
    told(capsys, "verdict", waiting[0]["id"], "reject", "--as", "ann")
    told(capsys, "verdict", waiting[0]["id"], "reject", "--as", "bob", "--comment", "no")
    told(capsys, "verdict", "5", "edit", "Better.", "--as", "ann")
    told(capsys, "verdict", "5", "accept", "--as", "bob")
    agreed = told(capsys, "review", "--agreement")
    assert set(agreed["agreement"]) == {"krippendorff_alpha", "cohen_kappa"}
    assert told(capsys, "review", "--as", "ann", "-n", "99")["rows"][0]["id"] != waiting[0]["id"]
    done = told(capsys, "review", "--apply")
    assert (done["changed"], sum(done["version"]["counts"].values())) == (1, 39)
    assert told(capsys, "why", "rows.jsonl:4")["rows"][0]["reason"].endswith("no")
    (here / ".tunesmith" / "review" / "suspects.json").write_text("[{")
    _, err = call(capsys, "review", code=1)
    assert "suspects.json" in err
    assert "tunesmith data labels" in err
    _, err = call(capsys, "verdict", "5", "acept", code=2)
    assert "did you mean 'accept'" in err
    _, err = call(capsys, "verdict", "5", "accept", "with an answer", code=2)
    assert "with 'edit'" in err


@pytest.mark.slow
def test_review_at_a_terminal_asks_until_it_understands_and_keeps_each_verdict(here, capsys):
    imported(capsys)
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "tunesmith", "data", "review", "--as", "ann", "-n", "4"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    for answer in ("what", "reject not a question", "edit", "A better one.", "skip", "quit"):
        before = len(shown)
        while not re.search(rb"(may follow|better answer)[^\n]*: ?$", shown[before:]):
            assert select.select([ours], [], [], 600)[0], shown
            shown += os.read(ours, 65536)
        os.write(ours, f"{answer}\n".encode())
    assert process.wait() == 0
    os.close(ours)
    assert b"'what' is none of accept, edit, reject, skip, quit" in shown
    kept = [json.loads(line) for line in (here / ".tunesmith" / "review" / "verdicts.jsonl").read_text().splitlines()]
    assert [(one["action"], one.get("answer"), one.get("comment", "")) for one in kept] == [
        ("reject", None, "not a question"),
        ("edit", "A better one.", ""),
    ]


def test_answers_that_differ_from_their_neighbours_or_are_not_copied():
    from tunesmith.flow.datasets.people import disagreeing, not_copied

    asked = [f"the agreement between {a} and {b} is dated as of june" for a, b in zip(SUBJECTS, SUBJECTS[1:] + SUBJECTS[:1], strict=True)]
    asked += [
        "who signed the first letter of credit in the year after the war",
        "who signed the first letter of credit in the year after the war ?",
    ] * 2
    said = [f"[{a}, {b}]" for a, b in zip(SUBJECTS, SUBJECTS[1:] + SUBJECTS[:1], strict=True)] + ["nobody", "nobody", "nobody", "somebody"]
    assert [one.row for one in disagreeing(asked, said)] == [23]
    said[5] = "[elephant, giraffe]"
    assert 5 in [one.row for one in not_copied(asked, said)]


def test_export_and_import_again_is_the_same(here, capsys):
    imported(capsys)
    assert told(capsys, "export", "out.jsonl", "--format", "trl")["rows"] == 65
    told(capsys, "import", "out.jsonl", "--yes")
    before, after = (told(capsys, "show", data, "-n", "99")["rows"] for data in ("rows.jsonl", "latest"))
    assert [row["turns"] for row in before] == [row["turns"] for row in after]
    _, err = call(capsys, "export", "x.jsonl", "--format", "dpo", code=1)
    assert "cannot hold" in err


def test_leaks_are_found_with_exit_3_and_cleaned_away(here, capsys):
    imported(capsys)
    (here / "test.jsonl").write_text(rows()[62] + "\n" + chat("something else that nobody has asked until today here", "no"))
    found = told(capsys, "contamination", "test.jsonl", code=3)["found"]
    assert [one["row"] for one in found] == ["rows.jsonl:63"]
    assert told(capsys, "clean", "--against", "test.jsonl")["rules"]["contamination"] == 1
    assert told(capsys, "contamination", "test.jsonl")["found"] == []


def test_personal_data_is_listed_with_its_context(here, capsys):
    found = told(capsys, "pii", "rows.jsonl")
    assert found["kinds"] == {"email": 1}
    assert found["samples"]["email"][0]["found"] == "jane.doe@example.org"
    assert told(capsys, "pii", "rows.jsonl", "--kind", "iban")["kinds"] == {}


def test_what_to_label_next_differs_from_what_is_known(here, capsys):
    imported(capsys)
    far = "quantum chromodynamics describes gluons"
    (here / "pool.jsonl").write_text("\n".join([*rows()[:3], chat(far, "?"), chat(f"{far} and quarks", "?")]))
    assert told(capsys, "next", "pool.jsonl", "-n", "1")["rows"][0]["origin"] in ("pool.jsonl:4", "pool.jsonl:5")


def test_new_rows_from_documents_with_their_span_and_without_repeats(here, capsys):
    said = {"question": "When does the shop open?", "answer": "At nine.", "quote": "opens at nine"}
    (here / "docs").mkdir()
    (here / "docs" / "a.txt").write_text(f"{json.dumps(said)} The shop opens at nine every day but sunday.")
    found = told(capsys, "synth", "documents", "--teacher", "echo", "--of", "docs", "--data", "none", "--count", "2")
    assert found["rows"] == 1
    assert found["refused"] == {"it repeats another new row": 1}
    assert found["cost"]["requests"] == 2
    row = told(capsys, "show")["rows"][0]
    assert row["origin"].startswith("synthetic:echo:")
    assert row["meta"]["document"].endswith("a.txt")
    _, err = call(capsys, "synth", "documents", "--teacher", "echo", "--of", "docs", "--data", "none", "--usd_in", "1", code=2)
    assert "--yes" in err
    _, err = call(capsys, "synth", "topic", "--teacher", "echo", code=2)
    assert "did you mean 'topics'" in err
    _, err = call(capsys, "synth", "seeds", "--teacher", "echo", "--temprature", "1", code=2)
    assert "did you mean 'temperature'" in err


def test_preference_pairs_from_a_weaker_model(here, capsys):
    found = told(capsys, "synth", "preferences", "--teacher", "echo", "--data", "rows.jsonl", "--count", "5")
    assert found["rows"] == 5
    assert {"preferred", "non_preferred"} <= told(capsys, "show")["rows"][0].keys()


def test_a_grader_of_the_user_filters(here, capsys, monkeypatch):
    (here / "mine.py").write_text("def short(row):\n    return 0.0\n")
    said = {"question": "When?", "answer": "At nine.", "quote": "opens at nine"}
    (here / "a.txt").write_text(f"{json.dumps(said)} It opens at nine.")
    words = ("synth", "documents", "--teacher", "echo", "--of", "a.txt", "--data", "none", "--count", "1", "--grader", "mine.py:short")
    assert told(capsys, *words)["refused"] == {"the judge gave 0.0; at least 0.5 is asked": 1}


def test_rows_are_found_by_id_origin_and_number_and_misses_are_explained(here, capsys):
    row = told(capsys, "show", "rows.jsonl", "--row", "3")["rows"][0]
    assert told(capsys, "show", "rows.jsonl", "--row", row["id"][:8])["rows"][0]["origin"] == "rows.jsonl:3"
    _, err = call(capsys, "show", "rows.jsonl", "--row", "rows.jsonl:900", code=2)
    assert "no row" in err
    _, err = call(capsys, "show", "nowhere", code=2)
    assert "latest" in err
    _, err = call(capsys, "show", code=2)
    assert "data import" in err


@pytest.mark.parametrize("command", [c.name or c.callback.__name__ for c in data_app.registered_commands])
def test_every_command_has_an_example_and_json(capsys, command):
    out, _ = call(capsys, command, "--help")
    assert "Example: tunesmith data" in out
    assert "--json" in out


def test_answers_that_leave_out_what_others_repeat():
    from tunesmith.flow.datasets.people import omitted

    asked = [f"payment number {i} goes from Borrower to the treasury" for i in range(20)] + [
        f"nothing of note on day {i}" for i in range(30)
    ]
    said = ["[Borrower]"] * 20 + ["none"] * 30
    assert omitted(asked, said) == []
    said[7] = "none"
    (found,) = omitted(asked, said)
    assert (found.row, found.score) == (7, 0.95)
    assert "'Borrower'" in found.reason


def test_what_the_data_stage_found_is_one_offline_section(here):
    from tunesmith.core.rows import Row
    from tunesmith.data.collect import Source, collect
    from tunesmith.data.semantic import Overlap
    from tunesmith.flow.datasets.findings import of_rows, section
    from tunesmith.flow.datasets.leaks import as_plain

    found: list[Row] = collect(Source(path="rows.jsonl")).rows
    result = of_rows({"train": found[:40], "validation": [], "test": found[40:]}, lengths=[9] * 40, max_length=8)
    assert json.loads(json.dumps(result))["rows"] == 65
    assert result["near_duplicates"]["clusters"] >= 1
    assert len(result["contradictions"]) == 1
    assert result["personal_data"]["kinds"] == {"email": 1}
    assert result["tokens"]["too_long"] == 40
    one = Overlap(found=1, looked_at=25, threshold=0.95, examples=(("a/f:1", "b/f:2", 0.97),))
    measured = {"test": one, "validation": Overlap(found=0, looked_at=0, threshold=0.95, why="it is off")}
    html = section({**result, "meaning": as_plain({**measured, "other": Overlap(found=0, looked_at=17, threshold=0.95)})})
    assert "1 of 25 rows say the same as a training row" in html
    assert "0 of 17 rows say the same as a training row" in html
    assert "f:1 ≈ f:2 (0.97)" in html
    assert "not measured: it is off" in html
    assert html.strip().startswith("<section")
    assert "ja••••••••••••••••rg" in html
    assert "jane.doe@example.org" not in json.dumps(result["personal_data"])
    assert "http" not in html.replace("http://www.w3.org", "")


KINDS = {
    "pairs": lambda q, a: {"prompt": q, "chosen": a, "rejected": f"no: {a}"},
    "labelled": lambda q, a: {"prompt": q, "completion": a, "label": len(a) % 3 > 0},
    "documents": lambda q, a: {"text": f"{q} {a}"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_rows_goes_through_every_room(kind, tmp_path, monkeypatch, capsys):
    """Read, check, clean, split, look, mask, differ and write again: pairs, labelled answers and documents as conversations do."""
    monkeypatch.chdir(tmp_path)
    asked = [json.loads(row)["messages"] for row in rows()[:60]]
    made = [KINDS[kind](one[0]["content"], f"{one[1]['content']} {'dear ' * (i % 4)}reader {i}") for i, one in enumerate(asked)]
    made += [made[3], KINDS[kind]("whom do I write to about the lights?", "Write to jane.doe@example.org please.")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, made)) + "\n")
    first = imported(capsys)
    checked = told(capsys, "check")
    assert {"duplicates", "personal_data"} <= {one["code"] for one in checked["advice"]}
    cleaned = told(capsys, "clean", "--clean.personal_data.action", "pseudonymise")
    assert cleaned["rules"] == {"personal_data": 1, "exact_duplicate": 1}
    assert (cleaned["before"], cleaned["after"]) == (62, 61)
    divided = told(capsys, "split", "--split.semantic.action", "off")
    assert sum(divided["version"]["counts"].values()) == 61
    shown = told(capsys, "show", "--grep", "lights")["rows"]
    assert "jane.doe" not in json.dumps(shown)
    assert {"pairs": "preferred", "labelled": "desirable", "documents": "turns"}[kind] in shown[0]
    assert told(capsys, "why", "rows.jsonl:62")["rows"][0]["came_in"] is not None
    assert told(capsys, "diff", first, "latest")["counts"]["removed"] == 1
    name = {"pairs": "trl_preference", "labelled": "trl_kto", "documents": "text"}[kind]
    told(capsys, "export", "out.jsonl", "--format", name)
    again = told(capsys, "import", "out.jsonl", "--yes")
    assert again["version"]["counts"] == {"all": 61}


def test_the_mask_of_every_kind(tmp_path, monkeypatch, capsys):
    """Of a labelled row the answer is trained, of a document every token, without any chat markup."""
    import tiny

    monkeypatch.chdir(tmp_path)
    tiny.model(tmp_path / "base")
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "The agreement was amended in New York."}) + "\n")
    (tmp_path / "kto.jsonl").write_text(json.dumps({"prompt": "Who signed it?", "completion": "Nobody did", "label": False}) + "\n")
    (document,) = told(capsys, "mask", "1", "--data", "text.jsonl", "--base", "base")["sides"]
    assert "".join(token["text"] for token in document["tokens"]) == "The agreement was amended in New York.<|end|>"
    assert {token["state"] for token in document["tokens"]} == {"trained"}
    (judged,) = told(capsys, "mask", "1", "--data", "kto.jsonl", "--base", "base")["sides"]
    assert "".join(token["text"] for token in judged["tokens"] if token["state"] == "trained") == "Nobody did<|end|>"
