"""Every code block of the README and the pages: what can run here runs, the rest is parsed by the command that it names, with a reason."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

from api_parts import chat_rows, running_server
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.config import load, parse_overrides
from tunesmith.flow.evaluation.ask import Ask
from tunesmith.flow.evaluation.compare import Weigh
from tunesmith.flow.evaluation.options import Question, options, split_words
from tunesmith.flow.project import Project, load_project

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = "name: my-model\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\n"


class Block(NamedTuple):
    """A fenced block: where it stands, the word after the fence, and its lines."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The shell lines, without prompts, comments and a closing `&`; none where the block shows what is printed."""
        lines = [re.sub(r"(^|\s)#.*$", "", line).strip().removeprefix("$ ").removesuffix("&").strip() for line in self.text.split("\n")]
        return [line for line in lines if re.match(r"(tunesmith|make|pip|export) ", line)]


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in re.finditer(r"^ *```(\w*)\n(.*?)^ *```$", text, re.M | re.S):
            found.append(Block(str(page.relative_to(ROOT)), text[: match.start()].count("\n") + 1, match[1], match[2]))
    return found


BLOCKS = blocks()
COMMANDS = [(block, line) for block in BLOCKS if block.kind in ("", "sh", "shell", "bash") for line in block.commands]
# What is not run here, and why; everything that is not listed runs below.
PRINTED = {"docs/architecture.md", "docs/families.md", "docs/performance.md", "docs/monitoring.md"}  # a picture, and what commands print
NEEDS = {
    "openai:": "asks a provider",
    "smollm2-135m": "answers with a real model; test_run_whole does so with a tiny one",
    " ab ": "compares variants of a deployed name; test_experiments does so",
    "deploy ": "changes deployments; test_variants does so with tiny ones",
    "identity": "looks at what a server answers; test_identity does so",
    "my-alias": "asks a deployed alias; test_eval_cli does so",
    "run-a": "asks three trained models; test_eval_cli does so",
    "run:": "looks at a finished run; test_run_whole does so",
    "a1,a2,a3": "looks at six evaluations; test_eval_cli does so",
    "samples_task": "looks at another tool's logs; test_eval_importers does so",
    "migrate": "moves a provider's fine-tune; test_migrate does so",
    "migrated": "runs what migrate wrote; test_migrate does so",
    "run": "walks the circle; test_run_whole does so",
    "decide": "carries out an experiment; test_decide does so with a tiny model",
    "serve": "answers until it is stopped; test_serve does so",
    "estimate": "plans for a real base; test_train_estimate does so",
    "train": "trains; test_train_bad_input and test_run_whole do so",
    "trace": "traces a request; test_trace does so",
    " tune": "trains many plans; test_tune does so",
    "make": "are long; their targets are looked up",
    "pip": "install; their extras are looked up",
    "export": "sets a variable, or writes a model; test_exports does so",
    "parity": "computes a model in every way; test_exports does so",
}
RUN = {
    "tunesmith init my-rows.jsonl": "my-rows.jsonl",
    "tunesmith eval echo --data rows.jsonl --instruction @system.txt": "rows.jsonl",
}


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    for block in BLOCKS:
        assert block.commands or block.page in PRINTED or block.kind in ("python", "yaml"), f"{block.page}:{block.line}"
    for block, line in COMMANDS:
        known = line in RUN or block.page in ("docs/data.md", "docs/retrieval.md") or any(word in line for word in NEEDS)
        assert known, f"{block.page}:{block.line}: '{line}' is neither run nor said why not"


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=[f"{block.page}:{line[:50]}" for block, line in COMMANDS])
def test_commands_are_taken_by_the_program_that_they_name(block: Block, line: str) -> None:
    program, *words = shlex.split(line)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program == "pip":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert all(extra in known for word in words for extra in re.findall(r"\[(\w+)\]", word))
    elif program == "tunesmith":
        parsed(words)


def parsed(words: list[str]) -> None:
    """The words as the command line reads them, to the last option, without carrying them out."""
    command = typer.main.get_command(app)
    context = command.make_context("tunesmith", list(words))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    if command.name in ("eval", "compare") and "words" in context.params:
        names, overrides = split_words([*context.params["words"], *context.args])
        options(overrides, *{"eval": (Question,) if names[:1] == ["plan"] else (Ask,), "compare": (Weigh, Ask)}[command.name])
    elif context.args:
        parse_overrides(context.args)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "yaml"], ids=lambda b: f"{b.page}:{b.line}")
def test_settings_are_settings_of_the_project_file(block: Block, tmp_path: Path) -> None:
    (tmp_path / "tunesmith.yaml").write_text(PROJECT + block.text.replace("whsec_…", "whsec_c2VjcmV0"))
    assert isinstance(load(tmp_path / "tunesmith.yaml", Project), Project)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "python"], ids=lambda b: f"{b.page}:{b.line}")
def test_python_is_python_with_names_that_are_there(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            exec(compile(ast.Module([node], []), block.page, "exec"), {})
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tunesmith":
            assert hasattr(__import__("tunesmith"), node.attr)


def rows(name: str) -> None:
    turns = [("which way?", "left"), ("and then?", "straight on"), ("how far?", "two miles")]
    Path(name).write_text(
        "".join(json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}) + "\n" for q, a in turns)
    )


@pytest.mark.parametrize("line", RUN)
def test_single_commands_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    rows(RUN[line])
    Path("system.txt").write_text("Speak like a sailor.")
    assert line in {said for _, said in COMMANDS}
    assert guarded(app, shlex.split(line)[1:]) == 0, capsys.readouterr().err


def test_the_data_room_runs_as_its_page_shows(tmp_path, monkeypatch, capsys) -> None:
    """Without `check --base`, which reads a real base's tokenizer (test_data_cli does so)."""
    monkeypatch.chdir(tmp_path)
    Path("tunesmith.yaml").write_text(PROJECT + 'split: {semantic: {action: "off"}}\n')
    words = [
        "tide",
        "harbour",
        "buoy",
        "anchor",
        "rope",
        "sail",
        "mast",
        "keel",
        "rudder",
        "hull",
        "deck",
        "crew",
        "chart",
        "wind",
        "wave",
        "rock",
        "light",
        "fog",
        "gull",
        "net",
        "oar",
        "pier",
        "dock",
        "tow",
    ]
    Path("support.csv").write_text(
        "question,answer\n" + "".join(f"where is the {w} of number {i}?,ask {w} {i}\n" for i, w in enumerate(words))
    )
    (block,) = [block for block in BLOCKS if block.page == "docs/data.md"]
    for line in block.commands:
        if "check" not in line:
            assert guarded(app, shlex.split(line)[1:]) == 0, f"{line}: {capsys.readouterr().err}"
    assert "support.csv:17" in capsys.readouterr().out


@pytest.mark.slow
def test_retrieval_runs_as_its_page_shows(tmp_path, monkeypatch, capsys) -> None:
    """What reads documents and rows; what asks a model is in test_retrieval."""
    monkeypatch.chdir(tmp_path)
    Path("manuals").mkdir()
    Path("manuals/pump.md").write_text("# Pump\n\n## Mounting\n\nThe pump is mounted with four screws.\n\n## Care\n\nRinse the filter.")
    rows("support.jsonl")
    for block in BLOCKS:
        if block.page == "docs/retrieval.md":
            for line in block.commands:
                if line.startswith("tunesmith data"):
                    assert guarded(app, shlex.split(line)[1:]) == 0, f"{line}: {capsys.readouterr().err}"
    said = capsys.readouterr().out
    assert "mounted with four screws" in said.partition("\n\n")[0]
    (*_, block) = (block for block in BLOCKS if block.page == "docs/retrieval.md" and block.kind == "python")
    exec(compile(block.text, block.page, "exec"), {})
    assert "manuals/pump.md" in capsys.readouterr().out


@pytest.mark.slow
def test_clients_run_as_their_pages_show(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with running_server(tmp_path) as server:
        Path("rows.jsonl").write_bytes(b"".join(line + b"\n" for line in _rows_of_a_job()))
        for page in ("README.md", "docs/api.md"):
            (block,) = [b for b in BLOCKS if b.page == page and b.kind == "python"]
            text = block.text.replace("http://127.0.0.1:8000/v1", server.url).replace("my-model", "echo")
            first, _, then = text.partition("# … when")
            space: dict[str, object] = {}
            exec(compile(first, page, "exec"), space)
            if then:
                server.work()
                space["job"] = space["client"].fine_tuning.jobs.retrieve(space["job"].id)  # type: ignore[attr-defined]
                assert space["job"].status == "succeeded"  # type: ignore[attr-defined]
                exec(compile(then.partition("\n")[2], page, "exec"), space)
    assert "…" in capsys.readouterr().out


def _rows_of_a_job() -> list[bytes]:
    return chat_rows().splitlines()


def test_the_project_file_of_init_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows("my-rows.jsonl")
    assert guarded(app, ["init", "my-rows.jsonl"]) == 0
    assert load_project(Path("tunesmith.yaml")).sources[0].path == "my-rows.jsonl"
