"""Wrong use and bad input: one clear message each, with place and remedy, the documented exit code, nothing half-written."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import typer

from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import UsageError
from tunesmith.flow.project import load_project

GOOD = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys, *words):
    code = guarded(app, list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def project(here, rows: bytes | str | None, extra: str = ""):
    if rows is not None:
        (here / "rows.jsonl").write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    (here / "tunesmith.yaml").write_text(f"name: x\nsources: [{{path: rows.jsonl}}]\nbase: smollm2-135m\n{extra}")


def many(bad: str, at: int = 17) -> str:
    lines = [json.dumps({"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}) for i in range(30)]
    lines[at - 1] = bad
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("rows", "code", "said"),
    [
        ("", 1, ["rows.jsonl", "no rows"]),
        (many('{"messages": [{"role": "user", "content": "q"}'), 1, ["rows.jsonl:17"]),
        (many('{"messages": [{"role": "user", "content": "q"}]}'), 1, ["rows.jsonl:17", "assistant"]),
        (GOOD.encode("utf-16"), 1, ["UTF-16", "UTF-8"]),
        (None, 2, ["rows.jsonl"]),
    ],
)
def test_bad_rows_are_named_by_file_and_line(here, capsys, rows, code, said):
    project(here, rows)
    found, _, err = call(capsys, "run")
    assert found == code
    for words in said:
        assert words in err


def test_all_faults_of_all_rows_come_in_one_go(here, capsys):
    project(here, many("{", 3).replace('"a9"', '""') + "not json\n")
    code, _, err = call(capsys, "run")
    assert code == 1
    assert "rows.jsonl:3" in err
    assert "rows.jsonl:31" in err


def test_rows_with_faults_are_kept_where_the_error_says(here, capsys):
    project(here, many("{broken"))
    code, _, err = call(capsys, "run")
    assert code == 1
    rejects = here / ".tunesmith" / "rejects.jsonl"
    assert str(rejects) in err
    assert json.loads(rejects.read_text())["line"] == 17


def test_a_directory_without_rows_is_said(here, capsys):
    (here / "rows.jsonl").mkdir()
    project(here, None)
    code, _, err = call(capsys, "run")
    assert code in (1, 2)
    assert "rows.jsonl" in err


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("train: {epoch: 2}\n", ["tunesmith.yaml:4", "unknown key 'epoch'", "did you mean 'epochs'"]),
        ("basee: x\n", ["unknown key 'basee'", "did you mean 'base'"]),
        ("split: {test: many}\n", ["split.test", "float"]),
        ("baselines: []\n", ["baselines", "at least one"]),
    ],
)
def test_a_wrong_configuration_names_line_and_key(here, capsys, extra, said):
    project(here, GOOD, extra)
    code, _, err = call(capsys, "run")
    assert code == 2
    for words in said:
        assert words in err


def test_every_unknown_key_comes_in_one_message(here, capsys):
    project(here, GOOD, "basee: x\ntrain: {epoch: 2, adapter: {zzz: 1}}\n")
    code, _, err = call(capsys, "run", "--epochs", "3")
    assert code == 2
    for words in (
        "4 unknown keys",
        "tunesmith.yaml:4: basee: did you mean 'base'?",
        "tunesmith.yaml:5: train.epoch: did you mean 'epochs'?",
        "tunesmith.yaml:5: train.adapter.zzz: allowed: kind, r,",
        "--epochs: did you mean 'train.epochs'?",
    ):
        assert words in err


def test_a_metric_that_does_not_exist_is_said_before_any_work(here, capsys):
    project(here, many(GOOD), "evaluate: {metrics: [exact_mach]}\n")
    for words in (["run"], ["run", "--dry-run"], ["init", "rows.jsonl", "--metric", "exact_mach", "-c", "other.yaml"]):
        code, _, err = call(capsys, *words)
        assert code == 2
        assert "did you mean 'exact_match'" in err
        assert "collect" not in err
    assert not (here / "other.yaml").exists()


def test_a_metric_that_cannot_decide_is_said_before_any_work(here, capsys):
    project(here, many(GOOD), "evaluate: {metrics: [length, exact_match]}\n")
    for words in (["run"], ["run", "--dry-run"]):
        code, _, err = call(capsys, *words)
        assert (code, "the first metric decides" in err, "collect" in err) == (2, True, False)


def test_an_unknown_base_is_named_with_the_nearest(here, capsys):
    project(here, many(GOOD))
    code, _, err = call(capsys, "run", "--base", "smollm2-135")
    assert code == 2
    assert "did you mean 'smollm2-135m'" in err


def test_a_check_of_rows_for_a_base_that_does_not_exist_is_refused(here, capsys):
    project(here, many(GOOD))
    code, _, err = call(capsys, "data", "check", "rows.jsonl", "--base", "smollm2-135")
    assert code == 2
    assert "did you mean 'smollm2-135m'" in err


def test_a_file_where_a_folder_should_be_is_one_clear_message(here, capsys):
    (here / "taken").touch()
    code, _, err = call(capsys, "demo", "--folder", "taken")
    assert code == 1
    assert "taken" in err
    assert "File exists" in err


def test_no_network_says_what_is_missing_and_where_it_looked(here, capsys, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(here / "empty"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    (here / "tunesmith.yaml").write_text("name: x\nsources: [{path: 'catalog:ner_finance'}]\nbase: smollm2-135m\n")
    code, _, err = call(capsys, "run")
    assert code == 1
    assert "'smollm2-135m' could not be fetched" in err
    assert "127.0.0.1:9" in err


def test_errors_are_json_where_json_was_asked_for(here, capsys):
    code, out, _ = call(capsys, "run", "--json")
    assert code == 2
    assert json.loads(out)["error"]["exit_code"] == 2


def test_an_unknown_option_says_where_help_is(here, capsys):
    code, _, err = call(capsys, "init", "--nonsense")
    assert code == 2
    assert "--help" in err


def test_init_writes_a_file_that_loads_and_never_overwrites(here, capsys):
    from tunesmith.flow.project import load_project

    assert call(capsys, "init", "rows.jsonl", "--name", "mine")[0] == 0
    assert load_project(here / "tunesmith.yaml").name == "mine"
    code, _, err = call(capsys, "init")
    assert code == 2
    assert "already there" in err


@pytest.mark.parametrize(
    "odd", ["a: b.jsonl", "*.jsonl", "true", "10%", 'a"b, c', "~/x#y", "1e3", "a\x7fb", "a\u2028b", "é: 😀", "long " * 40 + ":"]
)
def test_init_writes_any_name_so_that_it_is_read_back(here, capsys, odd):
    from tunesmith.flow.project import load_project

    assert call(capsys, "init", odd, "--name", odd)[0] == 0
    found = load_project(here / "tunesmith.yaml")
    assert (found.name, found.sources[0].path, found.deploy.alias) == (odd, odd, odd)


def test_a_wrong_setting_of_the_server_names_its_line_and_key(here, capsys):
    project = "name: x\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\nserve:\n"
    for key, value in (("database", "mysql://me:secret@host/x"), ("workers", "-1"), ("webhooks", "[{url: ftp://x, secret: whsec_aaaa}]")):
        (here / "bad.yaml").write_text(f"{project}  port: 1\n  {key}: {value}\n")
        code, _, err = call(capsys, "run", "--dry-run", "-c", "bad.yaml")
        assert (code, f"bad.yaml:6: serve.{key}" in err, "secret@" in err) == (2, True, False), err


def test_a_share_is_a_percentage_or_a_number(here):
    from tunesmith.cli.data import share
    from tunesmith.flow.project import load_project

    assert [share(text) for text in ("5%", "5% ", " 0.05")] == [0.05] * 3
    with pytest.raises(UsageError, match="'x%' is no share"):
        share("x%")
    (here / "tunesmith.yaml").write_text("name: 100%\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\nmax_invalid: 5%\n")
    project = load_project(here / "tunesmith.yaml")
    assert (project.name, project.max_invalid) == ("100%", 0.05)
    assert load_project(here / "tunesmith.yaml", ["--max_invalid", "7%"]).max_invalid == 0.07


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (b"frage,antwort\nwas?,das\n", "the format is not recognised: the keys are ['antwort', 'frage']"),
        (b"", "no rows"),
        (b'{"messages": [{"role": "user", "content": "q"}]}', "no assistant turn"),
        (None, "no such file"),
        (GOOD.encode("utf-16"), "UTF-8"),
        (b"\x8f\x00\xeb" * 99, "UTF-8"),
    ],
)
def test_init_says_at_once_what_keeps_the_rows_from_being_read(here, capsys, rows, said):
    name = "rows.csv" if rows and rows.startswith(b"frage") else "rows.jsonl"
    if rows is not None:
        (here / name).write_bytes(rows)
    code, out, _ = call(capsys, "init", name, "--json")
    assert code == 0
    assert said in json.loads(out)["fault"]
    assert (here / "tunesmith.yaml").is_file()


def test_init_shows_the_first_row(here, capsys):
    (here / "rows.jsonl").write_text(GOOD)
    _, out, _ = call(capsys, "init", "rows.jsonl")
    assert "format chat" in out
    assert "assistant: a" in out


def test_the_schema_covers_every_section(here, capsys):
    code, out, _ = call(capsys, "schema")
    assert code == 0
    assert {"Project", "Plan", "Split", "Clean"} <= set(json.loads(out)["$defs"])


def test_help_loads_nothing_heavy():
    program = (
        "import sys; from tunesmith.cli import app\n"
        "try: app(['--help'], standalone_mode=False)\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'sqlalchemy', 'openai', 'scipy', 'polars', 'starlette'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", [c.name or c.callback.__name__ for c in app.registered_commands])
def test_every_command_has_an_example_and_json(capsys, command):
    _, out, _ = call(capsys, command.replace("_", "-"), "--help")
    assert "Example:" in out
    assert "--json" in out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "serve"])
def test_a_missing_package_of_an_extra_is_one_line(here, command):
    project(here, many(GOOD))
    program = f"import sys; sys.modules['httptools'] = None; sys.argv = ['tunesmith', '{command}']; from tunesmith.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=here)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "the package 'httptools' is not installed"
    assert "tunesmith[serve]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("said", ["n\n", ""])
def test_a_question_that_nobody_answers_with_yes_ends_without_a_traceback(here, capsys, monkeypatch, said):
    pytest.importorskip("bpe_openai")
    (here / "rows.jsonl").write_text(GOOD)
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    words = ["migrate", "record", "ft:gpt-4o-mini-2024-07-18:a::b", "rows.jsonl", "--api-key", "none"]
    code, _, err = call(capsys, *words, "--base-url", "http://127.0.0.1:9/v1")
    assert code == 2
    assert "--yes" in err


def test_a_disk_that_takes_nothing_is_one_clear_message(capsys):
    writer = typer.Typer()

    @writer.command()
    def write() -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    assert guarded(writer, []) == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "to mend it" in err


def test_two_runs_do_not_share_a_project(here, capsys):
    from tunesmith.flow.runner import only_one

    project(here, many(GOOD))
    with only_one(here / ".tunesmith"):
        code, _, err = call(capsys, "run")
    assert code == 1
    assert "another run" in err


def test_a_taken_port_is_said_before_anything_is_loaded(here, capsys):
    import socket

    project(here, many(GOOD))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = call(capsys, "serve", "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "--port" in err


Q = {"role": "user", "content": "who signed it?"}
LONG = "Nobody signed it, as far as anybody who was there that day can tell."
PROPOSED = [
    ({"messages": [Q, {"role": "assistant", "content": "no"}]}, "sft", ("exact_match",)),
    ({"messages": [Q, {"role": "assistant", "content": LONG}]}, "sft", ("rougeL",)),
    ({"prompt": "who?", "chosen": "a", "rejected": "b"}, "dpo", ("rougeL",)),
    ({"prompt": "who?", "completion": "a", "label": False}, "kto", ("rougeL",)),
    ({"text": "The agreement was amended."}, "text", ("bits_per_byte", "perplexity")),
    ({"messages": [Q], "answer": "nobody"}, "grpo", ("exact_match",)),
]


@pytest.mark.parametrize(("row", "method", "metrics"), PROPOSED)
def test_init_proposes_what_fits_the_rows(row, method, metrics, tmp_path, monkeypatch, capsys):
    """And what it writes is a project that can be loaded and looked at."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 3)
    code, out, err = call(capsys, "init", "rows.jsonl", "--json")
    assert code == 0, err
    assert json.loads(out)["method"] == method
    project = load_project(tmp_path / "tunesmith.yaml")
    assert (project.train.method, project.evaluate.metrics) == (method, metrics)
    assert [one.name for one in project.baselines] == (["base"] if method == "text" else ["zero-shot", "few-shot"])
    if method == "grpo":
        assert project.train.reinforcement.grader["type"] == "string_check"
        assert project.sources[0].map == {"reference": "answer"}
