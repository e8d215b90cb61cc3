"""A data word means the same rows to every command: looked at, trained on, estimated, evaluated; and a run is the same as its steps."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import random
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

import tiny
from tunesmith.cli import app
from tunesmith.cli.shared import guarded

WORDS = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]
PARTS = ("train", "validation", "test")
YAML = """
name: words
sources: [{{path: rows.jsonl}}]
base: {base}
split: {{validation: 0.15, test: 0.25}}
train: {{epochs: 1, learning_rate: 0.01, batch_size: 32, dtype: float32, threads: 1, adapter: {{kind: lora, r: 2}}}}
baselines: [{{name: zero-shot}}]
evaluate: {{metrics: [exact_match], max_tokens: 4}}
"""


def chats(count: int = 90, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    asked = [" ".join(draw.sample(WORDS, 7)) for _ in range(count)]
    made = [
        {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": f"{said[:9]} {i}"}]}
        for i, said in enumerate(asked)
    ]
    return [*made, made[4]]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"))


def project(folder: Path, base: Path) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats()))
    (folder / "tunesmith.yaml").write_text(YAML.format(base=base))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    return project(tmp_path, base)


def last_json(out: str) -> dict:
    return json.loads([line for line in out.splitlines() if line.startswith("{")][-1])


def call(capsys, *words: str, code: int = 0) -> dict:
    ended = guarded(app, [*words, "--json"])
    said = capsys.readouterr()
    assert ended == code, said.out + said.err
    return last_json(said.out)


def refused(capsys, *words: str, code: int = 2) -> str:
    return call(capsys, *words, code=code)["error"]["message"]


def ids(capsys, word: str) -> list[str]:
    return [row["id"] for row in call(capsys, "data", "show", word, "-n", "1000")["rows"]]


def done_once(folder: Path, base: Path, *commands: tuple[str, ...]) -> list[dict]:
    """What those commands say in a fresh project in `folder`."""
    project(folder, base)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        made = []
        for words in commands:
            assert guarded(app, [*words, "--json"]) == 0
            made.append(last_json(out.getvalue()))
    return made


@pytest.fixture(scope="module")
def frozen(tmp_path_factory, base):
    """A project whose rows were imported, cleaned and split, and what the three commands said."""
    folder = tmp_path_factory.mktemp("frozen")
    return folder, done_once(folder, base, ("data", "import", "rows.jsonl", "--yes"), ("data", "clean"), ("data", "split"))


@pytest.fixture(scope="module")
def planned(tmp_path_factory, base):
    """A project whose run was planned."""
    folder = tmp_path_factory.mktemp("planned")
    done_once(folder, base, ("run", "--dry-run"))
    return folder


@pytest.fixture
def versions(here, frozen) -> dict[str, str]:
    """A copy of the frozen project, here: the ids of its three versions."""
    shutil.copytree(frozen[0], here, dirs_exist_ok=True)
    return dict(zip(("import", "clean", "split"), (said["version"]["id"] for said in frozen[1]), strict=True))


@pytest.fixture
def run_here(here, planned) -> Path:
    """A copy of the project whose run was planned, here."""
    return shutil.copytree(planned, here, dirs_exist_ok=True)


@pytest.mark.slow
def test_import_clean_and_split_give_what_a_run_gives(versions, capsys):
    """The same rows in the same parts with the same fates: the steps are the stages."""
    call(capsys, "run", "--dry-run")
    for part in PARTS:
        assert ids(capsys, f"{versions['split']}:{part}") == ids(capsys, part) == ids(capsys, f"run:{part}") != []
    steps, stages = (call(capsys, "data", "ledger", word, "-n", "1000") for word in (versions["split"], "run"))
    assert steps["lines"] == stages["lines"]
    assert steps["fates"] == {"kept": 90, "duplicate_of": 1}
    logged = call(capsys, "data", "log")["versions"]
    assert sorted(one["recipe"]["step"] for one in logged) == ["clean", "import", "run", "split"]
    (of_run,) = (one for one in logged if one["recipe"]["step"] == "run")
    assert ids(capsys, f"{of_run['id'][:10]}:test") == ids(capsys, "test")
    assert of_run["counts"] == {part: len(ids(capsys, part)) for part in PARTS}


@pytest.mark.slow
def test_the_fates_of_a_runs_rows_are_those_of_its_own_tokens(here, run_here, capsys):
    """Rows that came, were tokenized, and went again: what is told of the run is not of the run in between."""

    def ledger() -> list:
        call(capsys, "run", "--dry-run")
        return call(capsys, "data", "ledger", "run", "-n", "1000")["lines"]

    before, text = ledger(), (here / "rows.jsonl").read_text()
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats(40, seed=8)))
    assert len(ledger()) == 41
    (here / "rows.jsonl").write_text(text)
    assert ledger() == before


@pytest.mark.slow
def test_a_version_is_trained_on_estimated_and_evaluated(here, versions, capsys):
    """What is split keeps its parts, whatever the project's section says; what is not is split by it."""
    for word in ("latest", versions["split"], versions["split"][:8]):
        call(capsys, "estimate", "--data", word, "--split.test", "0.5")
        shown = call(capsys, "status", "--sources", json.dumps([{"path": word}]), "--split.test", "0.5")["stages"]
        assert [one["state"] for one in shown[:3]] == ["done"] * 3
    kept = here / ".tunesmith" / "stages"
    (split,) = {path.parent for path in kept.glob("*/clusters.json")}
    assert {part: ids(capsys, str(split / f"{part}.parquet")) for part in PARTS} == {part: ids(capsys, f"latest:{part}") for part in PARTS}
    for word in (versions["import"], f"{versions['split']}:train"):
        report = call(capsys, "run", "--dry-run", "--data", word)
        assert "waiting" in report
        assert sorted(ids(capsys, "run")) == sorted(set(ids(capsys, word)))
    assert call(capsys, "train", "--data", "latest")["steps"] > 0
    assert ids(capsys, "run:test") == ids(capsys, "latest:test"), "the last run is the one that was trained"
    evaluated = call(capsys, "eval", "echo", "--data", "latest")["evaluations"][0]
    named = call(capsys, "eval", "echo", "--data", f"{versions['split'][:9]}:test")["evaluations"][0]
    assert (evaluated["id"], evaluated["rows"], evaluated["opening"]) == (named["id"], len(ids(capsys, "latest:test")), 1)
    whole = call(capsys, "eval", "echo", "--data", versions["clean"])["evaluations"][0]
    assert whole["rows"] == 90


@pytest.mark.slow
@pytest.mark.parametrize("word", ["run:test", "test", "run"])
def test_a_look_at_a_runs_test_rows_is_logged_under_every_word(run_here, capsys, word):
    assert call(capsys, "eval", "echo", "--data", word)["evaluations"][0].get("opening", 0) == 1
    assert call(capsys, "eval", "echo", "--data", "run:train")["evaluations"][0].get("opening", 0) == 0


@pytest.mark.slow
def test_the_yaml_takes_the_same_words(here, versions, capsys):
    text = (here / "tunesmith.yaml").read_text()
    for source in ("latest", versions["clean"][:7]):
        (here / "tunesmith.yaml").write_text(text.replace("rows.jsonl", source))
        call(capsys, "run", "--dry-run")
        assert sorted(ids(capsys, "run")) == sorted(ids(capsys, "latest"))
    (here / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats(20, seed=5)))
    (here / "tunesmith.yaml").write_text(text.replace("{path: rows.jsonl}", "{path: latest}, {path: more.jsonl}"))
    assert "is split already" in refused(capsys, "run", "--dry-run")
    (here / "tunesmith.yaml").write_text(text.replace("{path: rows.jsonl}", "{path: 'latest:train'}, {path: more.jsonl}"))
    call(capsys, "run", "--dry-run")
    assert len(ids(capsys, "run")) == len(ids(capsys, "latest:train")) + 20


WRONG = [
    ("run", "what a run of this project makes"),
    ("test", "what a run of this project makes"),
    ("suite:general", "is for evaluation"),
    ("lm-eval:x", "is for evaluation"),
    ("latest", "there is no data version yet"),
    ("log:alias=x", "there are no rows in it"),
    ("log:since=soon", "is no time"),
    ("log:aliass=x", "did you mean 'alias'"),
    ("nowhere.jsonl", "no such file"),
]


@pytest.mark.parametrize(("word", "said"), WRONG)
def test_a_word_that_cannot_be_trained_on_says_why(here, capsys, word, said):
    for command in ("run", "train", "estimate"):
        words = [command, "--data", word, *(["--dry-run"] if command == "run" else [])]
        ended = guarded(app, [*words, "--json"])
        told = capsys.readouterr().out
        assert ended in (1, 2), told
        assert said in told


@pytest.mark.slow
def test_every_word_is_looked_at_and_evaluated_alike(here, versions, capsys):
    call(capsys, "run", "--dry-run")
    (here / "old").mkdir()
    (here / "old" / "part.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats(12, seed=9)))
    (here / "samples.jsonl").write_text(json.dumps({"input": [{"role": "user", "content": "q"}], "ideal": "q"}) + "\n")
    words = ["latest:test", f"{versions['split']}:test", "run:test", "test", versions["import"], "rows.jsonl", "old", "old/*.jsonl"]
    for word in [*words, "openai-evals:samples.jsonl"]:
        seen = set(ids(capsys, word))
        assert call(capsys, "eval", "echo", "--data", word, "--metrics", "exact_match")["evaluations"][0]["rows"] == len(seen) > 0
        assert call(capsys, "data", "check", word, code=3 if len(seen) < 10 else 0)["numbers"]["rows"] >= len(seen)
    assert "no data 'latets'" in refused(capsys, "eval", "echo", "--data", "latets")
    assert "did you mean 'latest'" in refused(capsys, "data", "show", "latets")
    assert "has no part 'tset'" in refused(capsys, "eval", "echo", "--data", "latest:tset")


@pytest.mark.parametrize("word", ["run:test", "run", "latest:test", "latest"])
def test_the_test_rows_are_sealed_and_judged_alike_by_every_name(here, run_here, capsys, word):
    """Each look is logged; metrics, length of the answers and clusters are those of the project."""
    (here / "tunesmith.yaml").write_text((here / "tunesmith.yaml").read_text().replace("[exact_match]", "[rougeL, exact_match]"))
    call(capsys, "run", "--dry-run")
    evaluated = call(capsys, "eval", "echo", "--data", word)["evaluations"][0]
    assert evaluated["opening"] == 1
    assert len((here / ".tunesmith" / "openings.jsonl").read_text().splitlines()) == 1
    assert list(evaluated["metrics"]) == ["rougeL", "exact_match"]
    by_part = call(capsys, "eval", "echo", "--data", "test")["evaluations"][0]
    assert (by_part["id"], by_part["intervals"], by_part["asked"]) == (evaluated["id"], evaluated["intervals"], 0)


def test_a_model_that_is_not_there_opens_no_sealed_rows(here, run_here, capsys):
    assert "no model 'eco'" in refused(capsys, "eval", "echo", "eco", "--data", "test")
    assert not (here / ".tunesmith" / "openings.jsonl").exists()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(here):
    handler = functools.partial(_Quiet, directory=str(here))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_run_takes_urls_and_keeps_what_it_read(here, served, capsys):
    """Read once; a run goes on without the network; read anew on request, and only a changed content is done again."""
    address = f"http://me:secret@127.0.0.1:{served.server_port}/rows.jsonl?token=secret"
    text = (here / "tunesmith.yaml").read_text()
    (here / "tunesmith.yaml").write_text(text.replace("{path: rows.jsonl}", f'{{path: "{address}"}}'))
    states = [one["state"] for one in call(capsys, "status")["stages"]]
    assert set(states) == {"waiting"}, "who only looks reads nothing"
    assert not (here / ".tunesmith" / "sources").exists()
    call(capsys, "run", "--dry-run")
    shown = call(capsys, "data", "show", "run", "-n", "1")["rows"][0]
    assert shown["origin"].startswith(f"http://127.0.0.1:{served.server_port}/rows.jsonl:")
    assert "secret" not in json.dumps(call(capsys, "data", "ledger", "run", "-n", "1000"))
    first = {one["name"]: one["digest"] for one in call(capsys, "status")["stages"]}
    call(capsys, "data", "fetch")
    assert {one["name"]: one["digest"] for one in call(capsys, "status")["stages"]} == first, "the same content is the same input"
    with (here / "rows.jsonl").open("a") as file:
        file.write(json.dumps(chats(5, seed=77)[0]) + "\n")
    assert call(capsys, "status")["stages"][0]["state"] == "done"
    assert call(capsys, "data", "fetch")["read"] == [f"http://127.0.0.1:{served.server_port}/rows.jsonl"]
    assert call(capsys, "status")["stages"][0]["state"] == "waiting"
    served.shutdown()
    call(capsys, "run", "--dry-run")
    assert len(ids(capsys, "run")) == 91, "from what was kept, without the network"


@pytest.mark.slow
def test_a_run_takes_queries(here, capsys):
    with sqlite3.connect(here / "rows.db") as database:
        database.execute("CREATE TABLE tickets (question TEXT, answer TEXT)")
        turns = [row["messages"] for row in chats()]
        database.executemany("INSERT INTO tickets VALUES (?, ?)", [(a["content"], b["content"]) for a, b in turns])
    database.close()
    query = "SELECT question AS prompt, answer AS response FROM tickets"
    text = (here / "tunesmith.yaml").read_text()
    (here / "tunesmith.yaml").write_text(text.replace("{path: rows.jsonl}", f'{{path: "sqlite:///rows.db", query: "{query}"}}'))
    found = call(capsys, "run", "--dry-run")
    assert "tokens" not in found["waiting"]
    assert len(ids(capsys, "run")) == 90


@pytest.mark.parametrize("condition", ["limit=²", "limit=0", "limit=" + "9" * 30, "since=" + "9" * 400 + "w"])
def test_a_condition_that_is_no_number_is_told(here, capsys, condition):
    assert "allowed" in json.dumps(call(capsys, "data", "show", f"log:{condition}", code=2)["error"])


@pytest.mark.slow
def test_requests_that_come_after_a_run_found_none_are_read(here, capsys):
    """A log without rows that fit is kept by nobody: neither a run nor a look at the project's sources goes on with nothing."""
    from tunesmith.api.serve import temporary
    from tunesmith.models.echo import EchoModel
    from tunesmith.store.store import Store

    text = (here / "tunesmith.yaml").read_text()
    (here / "tunesmith.yaml").write_text(text.replace("{path: rows.jsonl}", "{path: 'log:alias=bot'}"))
    assert "there are no rows in it" in refused_of_any(capsys, "run", "--dry-run")
    openai = pytest.importorskip("openai")
    store = Store.open(here / ".tunesmith")
    with temporary({"bot": EchoModel("bot")}, store) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        for row in chats(40, seed=3)[:40]:
            client.chat.completions.create(model="bot", messages=row["messages"][:1], max_tokens=5)
    store.close()
    assert len(ids(capsys, "latest")) == 40, "without a version: the project's sources, read anew"
    call(capsys, "run", "--dry-run")
    assert len(ids(capsys, "run")) == 40


def refused_of_any(capsys, *words: str) -> str:
    assert guarded(app, [*words, "--json"]) in (1, 2)
    return capsys.readouterr().out


@pytest.mark.slow
def test_answered_requests_are_rows(here, capsys):
    """Asked through a real server; trained on as they were when they were read first."""
    import openai

    from tunesmith.api.serve import temporary
    from tunesmith.models.echo import EchoModel
    from tunesmith.store.store import Store

    store = Store.open(here / ".tunesmith")
    with temporary({"bot": EchoModel("bot"), "other": EchoModel("other")}, store) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        for alias, count in (("bot", 40), ("other", 3)):
            for row in chats(max(count, 5), seed=3)[:count]:
                client.chat.completions.create(model=alias, messages=row["messages"][:1], max_tokens=5)
    store.close()
    shown = call(capsys, "data", "show", "log:alias=bot,since=1h", "-n", "100")
    assert (shown["splits"], shown["rows"][0]["meta"]["alias"]) == ({"all": 40}, "bot")
    assert call(capsys, "data", "show", "log:", "-n", "1")["fitting"] == 43
    assert call(capsys, "data", "show", "log:limit=2", "-n", "9")["rows"][0]["meta"]["alias"] == "other"
    assert "no answered request fits" in refused(capsys, "data", "show", "log:alias=bot,until=2020-01-01")
    taken = call(capsys, "data", "import", "log:alias=bot", "--yes")
    assert (taken["version"]["counts"], taken["inputs"]) == ({"all": 40}, 40)
    assert call(capsys, "data", "import", "log:limit=4", "rows.jsonl", "--yes")["inputs"] == 4 + 91
    found = call(capsys, "eval", "echo", "--data", "log:alias=bot", "--max_tokens", "5")["evaluations"][0]
    assert (found["rows"], found["values"]["exact_match"]) == (40, 1.0)
    call(capsys, "run", "--dry-run", "--data", "log:alias=bot")
    assert len(ids(capsys, "run")) == 40
    assert call(capsys, "status", "--sources", '[{"path": "log:alias=bot"}]')["stages"][0]["state"] == "done"
