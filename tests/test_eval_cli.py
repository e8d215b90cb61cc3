"""eval, compare, gate and report through the command line: kept, paid once, judged, gated, shown."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from forked import command as start_command
from tunesmith.api.serve import temporary
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import ConfigError, UsageError
from tunesmith.core.types import Answer, Message, Prompt, Sampling
from tunesmith.flow.evaluation.ask import Ask
from tunesmith.flow.evaluation.compare import Weigh
from tunesmith.flow.evaluation.options import options, split_words
from tunesmith.models.around import Paced
from tunesmith.models.echo import EchoModel
from tunesmith.store.store import Store
from waiting import until


def rows(path: Path, n: int = 120, wrong: int = 3) -> None:
    """Questions whose answer is the question itself, but for every `wrong`th: what echo gets right is known."""
    lines = []
    for i in range(n):
        said = f"topic{i % 5} question {i}"
        answer = "something else" if i % wrong == 0 else said
        lines.append(
            {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": answer}], "meta": {"half": str(i % 2)}}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows(tmp_path / "rows.jsonl")
    return tmp_path


def call(capsys, *words: str) -> tuple[int, dict, str]:
    code = guarded(app, [*words, "--json"])
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("{")]
    return code, json.loads(lines[-1]) if lines else {}, said.err


def test_models_are_measured_with_intervals_and_cost(here, capsys):
    code, found, _ = call(capsys, "eval", "echo", "echo:X ", "--data", "rows.jsonl", "--metrics", "exact_match,rougeL", "--price", "1,2")
    assert code == 0
    echo, other = found["evaluations"]
    assert echo["values"]["exact_match"] == pytest.approx(80 / 120)
    assert echo["intervals"]["exact_match"]["low"] < 80 / 120 < echo["intervals"]["exact_match"]["high"]
    assert other["values"]["exact_match"] == 0
    tokens = echo["prompt_tokens"] * 1 + echo["completion_tokens"] * 2
    assert echo["usd"] == echo["paid_usd"] == pytest.approx(tokens / 1e6)
    assert "cost" in echo["metrics"]
    kept = here / ".tunesmith" / "evaluations"
    said = [json.loads(line)["answer"]["text"] for path in (kept / "answers").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(said) == 240


def test_nothing_is_asked_or_paid_twice(here, capsys):
    words = ("eval", "echo", "--data", "rows.jsonl", "--price", "1,2")
    first = call(capsys, *words)[1]["evaluations"][0]
    again = call(capsys, *words)[1]["evaluations"][0]
    assert (first["asked"], again["asked"]) == (120, 0)
    assert again["paid_usd"] == 0
    assert again["usd"] == first["usd"]
    assert again["id"] == first["id"]
    changed = call(capsys, *words, "--max_tokens", "1")[1]["evaluations"][0]
    assert changed["asked"] == 120
    assert changed["id"] != first["id"]


def test_the_key_covers_a_file_that_the_prompt_includes(here, capsys):
    (here / "system.txt").write_text("Say it again.")
    words = ("eval", "echo", "--data", "rows.jsonl", "--instruction", "@system.txt")
    assert call(capsys, *words)[1]["evaluations"][0]["asked"] == 120
    assert call(capsys, *words)[1]["evaluations"][0]["asked"] == 0
    (here / "system.txt").write_text("Say it once more.")
    assert call(capsys, *words)[1]["evaluations"][0]["asked"] == 120


class Slow(EchoModel):
    """Takes its time over each row."""

    def answer(self, prompts: list[Prompt], sampling: Sampling, on_answer=None) -> list[Answer]:
        time.sleep(0.02)
        return super().answer(prompts, sampling, on_answer)


@pytest.mark.slow
def test_kill_9_pays_for_nothing_twice(here):
    """`tunesmith eval` against a server on a real port, killed at four moments: the server's own log says what it was asked."""
    rows(here / "rows.jsonl", 200)
    store, kills, at_once = Store.open(here / "served"), 4, 2
    with temporary({"echo": Slow()}, store) as url:
        words = [f"{url.rstrip('/')}#echo", "--data", "rows.jsonl", "--concurrency", str(at_once), "--json"]
        command = ["eval", *words]

        def asked() -> list[str]:
            with store.engine.connect() as connection:
                logged = connection.exec_driver_sql("SELECT messages FROM interactions")
                return [json.loads(messages)[-1]["content"] for (messages,) in logged]

        for _ in range(kills):
            before = len(asked())
            process = start_command(command, here)
            until(lambda before=before: len(asked()) >= before + 30, alive=process.alive, progress=asked)
            assert process.kill() == -signal.SIGKILL
        last = start_command(command, here)
        assert last.wait() == 0, last.err
        questions = asked()
    found = json.loads(last.out)["evaluations"][0]
    assert (found["rows"], found["values"]["exact_match"]) == (200, pytest.approx(133 / 200))
    assert len(set(questions)) == 200
    # At a kill each asker may have a question in flight, and an answer that came but was not yet on disk.
    assert len(questions) <= 200 + kills * 2 * at_once


def test_what_failed_is_handed_to_the_choice_of_new_rows(here, capsys):
    call(capsys, "eval", "echo", "--data", "rows.jsonl")
    kept = next((here / ".tunesmith" / "evaluations").glob("*/kept.json")).parent.name
    assert call(capsys, "report", kept, "--out", "shown")[0] == 0
    failed = [json.loads(line) for line in (here / "shown" / "failures.jsonl").read_text().splitlines()]
    assert {one["question"] for one in failed} == {f"topic{i % 5} question {i}" for i in range(0, 120, 3)}
    groups = {one["group"]: one["collect"] for one in failed}
    assert sum(groups.values()) == pytest.approx(1)
    pool = ["bread and butter pudding", "topic0 question 3", "topic0 question 300", "wholly other words"]
    lines = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "?"}]} for text in pool]
    (here / "pool.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("data", "next", "pool.jsonl", "--known", "none", "--rows", "2")
    code, found, _ = call(capsys, *words, "--failures", "shown/failures.jsonl")
    assert code == 0
    assert {one["turns"][0]["text"] for one in found["rows"]} == {"topic0 question 3", "topic0 question 300"}
    assert all(one["wanted"] > 0.5 for one in found["rows"])
    code, refused, _ = call(capsys, *words, "--failures", "pool.jsonl")
    assert code != 0
    assert "pool.jsonl:1" in json.dumps(refused)


def test_samples_are_seeds_and_their_noise_is_shown(here, capsys):
    found = call(capsys, "eval", "echo", "--data", "rows.jsonl", "--samples", "3", "--temperature", "1")[1]["evaluations"][0]
    assert found["seeds"] == [0, 1, 2]
    assert found["noise"] == {"exact_match": 0.0}
    assert found["asked"] == 360
    code, refused, _ = call(capsys, "eval", "echo", "--data", "rows.jsonl", "--samples", "3")
    assert code == 2
    assert "temperature" in refused["error"]["message"]


def test_the_winner_is_chosen_on_one_set_and_measured_on_the_sealed_other(here, capsys):
    rows(here / "sealed.jsonl", 90, wrong=2)
    words = ("eval", "echo:no ", "echo", "echo:X", "--data", "sealed.jsonl", "--sealed", "--choose-on", "rows.jsonl")
    found = call(capsys, *words)[1]["evaluations"]
    assert [(one["model"], one["data"]) for one in found[3:]] == [("echo:no ", "sealed.jsonl"), ("echo", "sealed.jsonl")]
    assert [one.get("opening", 0) for one in found] == [0, 0, 0, 1, 2]
    log = (here / ".tunesmith" / "openings.jsonl").read_text().splitlines()
    assert len(log) == 2
    again = call(capsys, *words)[1]["evaluations"]
    assert [one.get("opening") for one in again] == [one.get("opening") for one in found]
    assert (here / ".tunesmith" / "openings.jsonl").read_text().splitlines() == log
    shown = call(capsys, "report")[1]
    assert [one["who"].rpartition(": ")[2] for one in shown["openings"]] == ["echo:no ", "echo"]
    later = call(capsys, "eval", "echo:Y ", "--data", "sealed.jsonl")[1]["evaluations"][0]
    assert later["opening"] == 3  # once sealed, always logged


def test_compare_takes_models_ids_and_slices(here, capsys):
    code, found, _ = call(capsys, "compare", "echo:X ", "echo", "--data", "rows.jsonl", "--slices", "meta.half,length")
    one = found["comparison"]["metrics"][0]
    assert (code, one["verdict"]) == (0, "better")
    assert one["difference"]["estimate"] == pytest.approx(2 / 3)
    assert one["smallest_detectable"] > 0
    halves = [line for line in found["slices"] if line["dimension"] == "meta.half"]
    assert [line["n"] for line in halves] == [60, 60]
    assert all(line["p_adjusted"] < 0.05 for line in halves)
    ids = [json.loads(path.read_text())["id"] for path in sorted((here / ".tunesmith" / "evaluations").glob("*/kept.json"))]
    code, same, _ = call(capsys, "compare", ids[0][:6], ids[1][:6])
    assert code == 0
    assert abs(same["comparison"]["metrics"][0]["difference"]["estimate"]) == pytest.approx(2 / 3)


def test_runs_of_one_model_bring_their_noise(here, capsys):
    code, found, _ = call(capsys, "compare", "echo,echo:X ", "echo,echo", "--data", "rows.jsonl")
    assert code == 0
    difference = found["comparison"]["metrics"][0]["difference"]
    assert "noise of 2 and 2 runs" in difference["method"]
    assert difference["low"] < 0 < difference["estimate"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "margin", "more", "code", "decision"),
    [
        ("echo", "0.05", (), 0, "pass"),
        ("echo:X ", "0.05", (), 3, "block"),
        ("echo", "0.001", (), 3, "cannot tell"),
        ("echo", "0.05", ("--superior",), 3, "block"),
        ("echo:X ", "0", ("--superior",), 3, "block"),
    ],
)
def test_the_gate_has_three_answers_and_a_junit_file(here, capsys, candidate, margin, more, code, decision):
    words = ("gate", "echo", candidate, "--data", "rows.jsonl", "--margin", margin, "--junit", "gate.xml", *more)
    found, said, _ = call(capsys, *words)
    assert found == code
    assert said["lines"][0]["decision"] == decision
    assert 0 <= said["lines"][0]["power"] <= 1
    assert (said["lines"][0]["rows_needed"] is None) == (margin == "0")
    suite = ElementTree.parse(here / "gate.xml").getroot()
    failures = suite.findall("./testcase/failure")
    assert suite.attrib["failures"] == str(len(failures)) == str(int(code != 0))
    assert [one.attrib["type"] for one in failures] == [decision.replace(" ", "-")] * len(failures)


def test_plan_gives_the_rows(here, capsys):
    code, found, _ = call(capsys, "eval", "plan", "--difference", "0.05", "--margin", "0.03", "--discordance", "0.2", "--rows", "621")
    assert (code, found["see_difference"], found["pass_gate"]) == (0, 621, 1761)
    assert found["smallest_detectable"] == pytest.approx(0.05, abs=5e-4)
    assert call(capsys, "eval", "plan", "--design_effect", "2")[1]["see_difference"] == 1242
    assert call(capsys, "eval", "plan", "--differense", "2")[0] == 2


@pytest.mark.slow
def test_the_report_is_three_files_that_need_nothing_else(here, capsys):
    call(capsys, "eval", "echo:<b>X</b>", "echo", "--data", "rows.jsonl")
    ids = {
        json.loads(p.read_text())["model"]: json.loads(p.read_text())["id"] for p in (here / ".tunesmith/evaluations").glob("*/kept.json")
    }
    code, found, _ = call(capsys, "report", ids["echo:<b>X</b>"], ids["echo"], "--out", "out")
    assert code == 0
    assert [entry["model"] for entry in found["boards"][0]["entries"]] == ["echo", "echo:<b>X</b>"]
    html = (here / "out" / "report.html").read_text()
    assert "<b>X</b>" not in html
    assert "&lt;b&gt;X" in html
    assert "http" not in html.replace("http://www.w3.org", "")
    assert "is better than" in (here / "out" / "report.md").read_text()
    assert json.loads((here / "out" / "report.json").read_text())["comparisons"][0]["won"]["count"] == 80
    assert "<svg" not in (here / "out" / "report.json").read_text(), "numbers for programs, pictures for people"
    assert found["failures"]["groups"]


def test_a_rating_that_cannot_be_read_is_missing(here, capsys):
    found = call(capsys, "eval", "echo", "--data", "rows.jsonl", "--judge", "echo", "--metrics", "exact_match")[1]["evaluations"][0]
    assert found["missing"] == {"exact_match": 0, "rubric": 120}
    assert found["values"]["rubric"] is None
    assert found["values"]["exact_match"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_a_judge_sees_both_orders_and_people_correct_it(here, capsys):
    words = ("compare", "echo", "echo:X ", "--data", "rows.jsonl", "--judge", "echo:[[B]] ")
    said = call(capsys, *words)[1]["judged"]
    assert (said["share"]["estimate"], said["bias"]["flips"], said["bias"]["slot_one"]) == (0.5, 1.0, -0.5)
    assert said["corrected"] is None
    ids = [
        json.loads(line)["id"] for path in (here / ".tunesmith/evaluations/rows").glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    (here / "people.jsonl").write_text("".join(json.dumps({"id": i, "b": float(n % 4 == 0)}) + "\n" for n, i in enumerate(ids[:60])))
    fixed = call(capsys, *words, "--human", "people.jsonl")[1]["judged"]["corrected"]
    assert fixed["human"] == 60
    assert fixed["corrected"]["low"] < 0.25 < fixed["corrected"]["high"]
    assert not fixed["believed"]
    (here / "people.jsonl").write_text('{"id": "x", "b": 2, "c": 1}\n')
    assert "people.jsonl:1" in call(capsys, *words, "--human", "people.jsonl")[1]["error"]["message"]


def test_other_tools_results_are_compared(here, capsys):
    def log(name: str, right: int) -> None:
        lines = [
            {"doc_id": i, "doc": {}, "target": "t", "arguments": [[f"q{i}", {}]], "resps": [["t"]], "exact_match": float(i < right)}
            for i in range(40)
        ]
        (here / name).mkdir()
        (here / name / "samples_x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    log("one", 10)
    log("two", 30)
    code, found, _ = call(capsys, "compare", "one/samples_x.jsonl", "two/samples_x.jsonl")
    assert code == 0
    assert found["comparison"]["metrics"][0]["difference"]["estimate"] == pytest.approx(0.5)


def test_promptfoo_and_openai_files_bring_rows_and_checks(here, capsys):
    (here / "pf.yaml").write_text(
        "description: d\nprompts: ['Greet {{name}}']\ntests:\n"
        "- {vars: {name: Ann}, assert: [{type: contains, value: Ann}]}\n- {vars: {name: Bob}, assert: [{type: contains, value: Eve}]}\n"
    )
    assert call(capsys, "eval", "echo", "--data", "promptfoo:pf.yaml")[1]["evaluations"][0]["values"] == {"promptfoo": 0.5}
    grader = {"type": "string_check", "name": "same", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.ideal}}"}
    items = [{"item": {"question": f"q{i}", "ideal": f"q{i % 2}"}} for i in range(4)]
    body = {"name": "e", "testing_criteria": [grader], "data_source": {"source": {"content": items}}}
    (here / "e.json").write_text(json.dumps(body))
    assert call(capsys, "eval", "echo", "--data", "openai-evals:e.json")[1]["evaluations"][0]["values"] == {"same": 0.5}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eval", "smollm2-135", "--data", "rows.jsonl"), "did you mean 'smollm2-135m'"),
        (("eval", "http://127.0.0.1:9/v1", "--data", "rows.jsonl"), "names no model"),
        (("eval", "echo"), "project"),
        (("eval", "echo", "--data", "rows.jsonl", "--metrics", "exact_mach"), "did you mean 'exact_match'"),
        (("eval", "echo", "--data", "rows.jsonl", "--max_token", "3"), "did you mean 'max_tokens'"),
        (("eval", "echo", "--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("compare", "echo", "--data", "rows.jsonl"), "A B"),
        (("compare", "echo", "echo", "--data", "rows.jsonl", "--slices", "colour"), "meta.KEY"),
        (("gate", "echo", "echo", "--data", "rows.jsonl", "--margin", "0"), "superior: true with margin 0"),
        (("gate", "echo", "echo", "--data", "rows.jsonl", "--margin", "-0.1", "--superior"), "margin of -0.1"),
        (("gate", "echo", "echo", "--data", "rows.jsonl", "--metrics", "length"), "direction"),
        (("report", "abcdef"), "names no result"),
        (("eval", "echo", "--data", "suite:special"), "suite:general"),
    ],
)
def test_wrong_use_is_told(here, capsys, words, said):
    code, found, _ = call(capsys, *words)
    assert code == 2
    assert said in found["error"]["message"]


def test_pairs_and_flags_among_the_words():
    assert split_words(["a", "--x", "1", "b", "--sealed", "--y=2"]) == (["a", "b"], ["--x", "1", "--sealed", "true", "--y=2"])
    weigh, ask = options(["--judge", "j", "--metrics", "a,b", "--price", "1,2", "--options.a.k", "3", "--instruction", "5"], Weigh, Ask)
    assert (weigh.judge, ask.judge, ask.metrics, ask.price, ask.options) == ("j", "", ("a", "b"), (1.0, 2.0), {"a": {"k": 3}})
    with pytest.raises(ConfigError, match="nothing"):
        options(["--nothing", "1"], Weigh)
    with pytest.raises((ConfigError, UsageError)):
        options(["--samples", "0"], Ask)


def test_a_paced_model_keeps_its_rate_and_its_order():
    told: list[tuple[int, str]] = []

    def tell(index: int, answer: Answer) -> None:
        told.append((index, answer.text))

    prompts = [Prompt(messages=(Message(role="user", content=f"q{i}"),)) for i in range(6)]
    start = time.perf_counter()
    answers = Paced(EchoModel(), per_minute=1200, batch=2).answer(prompts, Sampling(), tell)
    assert time.perf_counter() - start >= 0.19  # two pauses of two questions at 20 a second
    assert [answer.text for answer in answers] == [f"q{i}" for i in range(6)]
    assert told == [(i, f"q{i}") for i in range(6)]
