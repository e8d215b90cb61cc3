"""Small inputs of the kinds that real files, endpoints and clients break software with: the right value against what the commands give.

`python -m benchmarks.cases [--folder PATH] [--only KIND …]`; prints `ratio cases_wrong N`. A kind is the name of a file in tests/cases (or,
with `--folder`, of a file there, with or without a number before it); the right value is read from the input itself by the few lines below,
which share nothing with the reader. The HTTP cases (`cases_http`) need no file. Knows nothing about how a file is read.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import cases_http
from benchmarks.harness import ROOT, ratio

HEADLINES = ("cases_wrong",)
OWN = ROOT / "tests" / "cases"
BASE = "smollm2-135m"
Turns = list[tuple[str, str]]


class Told(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str


class Wrong(Exception):
    """What a command gave is not the right value; says both."""


def call(*words: str) -> Told:
    """A command of the command line, in this process. A traceback is wrong whatever was asked."""
    from tunesmith.cli import app
    from tunesmith.cli.shared import guarded

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = guarded(app, list(words))
        except Exception as error:
            raise Wrong(f"{' '.join(words[:2])}: raw {type(error).__name__}: {error}") from error
    return Told(code, out.getvalue(), err.getvalue())


def right(what: str, expected: object, given: object) -> None:
    """Raises Wrong when they differ."""
    if expected != given:
        raise Wrong(f"{what}: right {str(expected)[:200]!r}, given {str(given)[:300]!r}")


def imported(file: Path, *more: str) -> list[dict[str, Any]]:
    """The rows that `data import` makes of the file, in Tunesmith's own format."""
    done = call("data", "import", str(file), "--yes", *more)
    right("exit code of data import", (0, ""), (done.code, done.err if done.code else ""))
    right("exit code of data export", 0, call("data", "export", "rows.jsonl", "--format", "tunesmith").code)
    return [json.loads(line) for line in Path("rows.jsonl").read_text("utf-8").split("\n") if line]


def given(file: Path) -> list[dict[str, Any]]:
    """The rows as they stand in the file."""
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line.strip()]


def turns(row: dict[str, Any]) -> Turns:
    """Role and text of the turns of a row in Tunesmith's own format, the answers last."""
    answers = [row[key] for key in ("preferred", "non_preferred", "answer") if key in row]
    return [(turn["role"], turn.get("content") or "") for turn in [*row["messages"], *answers]]


def system_of(row: dict[str, Any]) -> Turns:
    text = row.get("system") or row.get("system_prompt")
    return [("system", text)] if text else []


_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}


def spoken(row: dict[str, Any]) -> Turns:
    """What a row of any of the shapes says, in order: system, history, question, then the answer or answers."""
    text = str(row.get("prompt") or row.get("instruction") or "") + (f"\n\n{row['input']}" if row.get("input") else "")
    past = [turn for asked, answered in row.get("history") or [] for turn in (("user", asked), ("assistant", answered))]
    if "conversations" in row:
        return [*system_of(row), *((_ROLES[turn["from"]], turn["value"]) for turn in row["conversations"])]
    if "chosen" not in row and "messages" in row:
        return [*system_of(row), *((turn["role"], turn["content"] or "") for turn in row["messages"])]
    before = [*system_of(row), *past, ("user", text)]
    if isinstance(row.get("chosen"), list):
        before = [*system_of(row), *((turn["role"], turn["content"]) for turn in row["chosen"][:-1])]
    answers = [row[key] for key in ("output", "completion", "response", "chosen", "rejected") if key in row]
    return [*before, *(("assistant", str(a[-1]["content"] if isinstance(a, list) else a)) for a in answers)]


def says_the_same(file: Path, *more: str) -> None:
    """Every row is there, each says what it said, and nothing that speaks went to `meta`."""
    rows = imported(file, *more)
    right("turns", [spoken(row) for row in given(file)], [turns(row) for row in rows])
    aside = {key for row in rows for key in row.get("meta", {})} - {"messages", "score_chosen", "score_rejected"}
    right("keys in meta", set(), aside)


def pairs_with_input(file: Path) -> None:
    says_the_same(file)
    says_the_same(file, "--map", "prompt=instruction")


def marked_turns(file: Path) -> None:
    """Turns that are marked not to train have weight 0, and the base's mask trains none of their tokens."""
    says_the_same(file)
    for row, made in zip(given(file), imported(file), strict=True):
        marks = [turn.get("loss", turn.get("train", True)) for turn in row.get("messages") or row["conversations"]]
        answers = [not mark for mark, turn in zip(marks, made["messages"], strict=True) if turn["role"] == "assistant"]
        right("weight 0", answers, [turn.get("weight") == 0 for turn in made["messages"] if turn["role"] == "assistant"])
    mask = call("data", "mask", "1", "--data", str(file), "--base", BASE).out
    kept = [turn["content"] for turn in made["messages"] if turn["role"] == "assistant" and turn.get("weight") != 0]
    right("trained text", kept, [text.removesuffix("<|im_end|>").strip() for text in re.findall(r"\[\[(.*?)\]\]", mask, re.DOTALL)])


def tool_calls(file: Path) -> None:
    """Calls go out as the SDK takes them; a template that shows no calls is refused with the rows, or what is trained names the call."""
    says_the_same(file)
    right("exit code of data export", 0, call("data", "export", "chat.jsonl", "--format", "chat", "--strict").code)
    for before, after in zip(given(file), given(Path("chat.jsonl")), strict=True):
        right("calls", before["messages"][-1]["tool_calls"], after["messages"][-1]["tool_calls"])
    name = before["messages"][-1]["tool_calls"][0]["function"]["name"]
    for words in (("check", str(file)), ("mask", "1", "--data", str(file))):
        done = call("data", *words, "--base", BASE)
        if done.code not in (1, 2) and "None" in done.out:
            raise Wrong(f"data {words[0]}: the word None is shown")
    if done.code == 0 and name not in "".join(re.findall(r"\[\[(.*?)\]\]", done.out, re.DOTALL)):
        raise Wrong(f"data mask: nothing of the call is trained, and it is not refused: {done.out[-200:]}")
    if done.code != 0 and file.name not in done.err:
        raise Wrong(f"data mask: the refusal does not name the row: {done.err[-200:]}")


def trains(*methods: str) -> Callable[[Path], None]:
    """Each method takes the file: estimate and a dry run."""

    def check(file: Path) -> None:
        says_the_same(file)
        write_project(file)
        for method in methods:
            for words in (("estimate",), ("run", "--dry-run")):
                done = call(*words, "--train.method", method)
                right(f"exit code of {words[0]} with {method}", (0, ""), (done.code, done.err[-300:] if done.code else ""))

    return check


def write_project(file: Path) -> None:
    Path("tunesmith.yaml").write_text(f"name: case\nsources: [{{path: '{file}'}}]\nbase: {BASE}\n", "utf-8")


def stays_through_cleaning(file: Path) -> None:
    """Rows that differ stay, and say what they said."""
    write_project(file)
    imported(file)
    right("exit code of data clean", 0, call("data", "clean").code)
    right("exit code of data export", 0, call("data", "export", "clean.jsonl", "--format", "tunesmith").code)
    pages = [[(role, re.sub("[\f\v]", "\n", text)) for role, text in spoken(row)] for row in given(file)]
    right("turns", pages, [turns(row) for row in given(Path("clean.jsonl"))])


def reasoning(file: Path) -> None:
    """Kept with the row, or a fault that names the key."""
    done = call("data", "import", str(file), "--yes")
    if done.code == 0:
        rows = json.dumps(imported(file), ensure_ascii=False)
        right(
            "reasoning kept", [], [t for row in given(file) for m in row["messages"] if (t := m.get("reasoning_content")) and t not in rows]
        )
    elif "reasoning_content" not in done.err:
        raise Wrong(f"the fault does not name reasoning_content: {done.err[-300:]}")


def flat_calls(file: Path) -> None:
    """ShareGPT with tools: calls are calls, thinking before them stays, the tools are there."""
    for before, after in zip(given(file), imported(file), strict=True):
        right("roles", [_ROLES[turn["from"]] for turn in before["conversations"]], [turn["role"] for turn in after["messages"]])
        for said, turn in zip(before["conversations"], after["messages"], strict=True):
            if said["from"] == "function_call":
                thought, _, written = said["value"].rpartition("</think>")
                function = turn["tool_calls"][0]["function"]
                right("call", json.loads(written), {"name": function["name"], "arguments": json.loads(function["arguments"])})
                right("thinking", f"{thought}</think>" if thought else "", turn.get("content") or "")
            else:
                right("text", said["value"], turn["content"])
        tools = json.loads(before["tools"]) if before.get("tools") else []
        right("tools", [t.get("function", t) for t in tools], [tool["function"] for tool in after.get("tools", ())])


def promptfoo(file: Path) -> None:
    """A row for each prompt and each combination of listed variables; `echo` answers what it is asked."""
    import math

    import yaml

    body = yaml.safe_load(file.read_text("utf-8"))
    combinations = sum(math.prod(len(v) if isinstance(v, list) else 1 for v in test["vars"].values()) for test in body["tests"])
    done = call("eval", "echo", "--data", f"promptfoo:{file}", "--json")
    if done.code == 0:
        result = json.loads(done.out)
        result = result["evaluations"][0]
        right("rows", len(body["prompts"]) * combinations, result["rows"])
        right("score", {"promptfoo": 1.0}, result["values"])
    elif "transform" not in done.err:
        raise Wrong(f"eval: neither done nor named: {done.err[-300:]}")


def evals(file: Path) -> None:
    """One row a line, though the texts hold what other readers take for line ends."""
    done = call("eval", "echo", "--data", f"openai-evals:{file}", "--json")
    right("exit code of eval", (0, ""), (done.code, done.err if done.code else ""))
    right("rows", len(given(file)), json.loads(done.out)["evaluations"][0]["rows"])
    says_so = [[*((t["role"], t["content"]) for t in row["input"]), ("assistant", row["ideal"])] for row in given(file)]
    right("turns", says_so, [turns(row) for row in imported(file)])


def broken_record(file: Path) -> None:
    """The row after the broken record, and none made of its middle."""
    last = file.read_text("utf-8").rstrip("\n").split("\n")[-1].split(",")
    right("turns", [[("user", last[0]), ("assistant", last[1])]], [turns(row) for row in imported(file, "--max-invalid", "50%")])


def table(file: Path) -> None:
    """A table whose delimiter stands in a quoted header, or is named in its first line."""
    lines = file.read_text("utf-8").split("\n")
    named = re.match(r"sep=(.)", lines[0])
    rows = list(csv.reader([line for line in lines[1 if named else 0 :] if line], delimiter=named[1] if named else ";"))
    more = [] if rows[0][0] == "prompt" else ["--map", f"prompt={rows[0][0]}"]
    right("turns", [[("user", a), ("assistant", b)] for a, b in rows[1:]], [turns(row) for row in imported(file, *more)])


def numbers(file: Path) -> None:
    """Numbers are taken as text; what is not is named with its line."""
    done = call("data", "import", str(file), "--yes", "--max-invalid", "99%")
    right("exit code of data import", (0, ""), (done.code, done.err[-300:] if done.code else ""))
    taken = [row for row in given(file) if not any(isinstance(value, bool) for value in row.values())]
    right("turns", [spoken(row) for row in taken], [turns(row) for row in imported(file, "--max-invalid", "99%")])


def ids_twice(file: Path) -> None:
    done = call("data", "import", str(file), "--yes")
    right("names the way out", (1, True), (done.code, "unique_ids: false" in done.err))
    right("turns", [spoken(row) for row in given(file)], [turns(row) for row in imported(file, "--read", "unique_ids=false")])


def damaged(file: Path) -> None:
    done = call("data", "import", str(file), "--yes")
    right("one clear error", (1, True, True), (done.code, str(file) in done.err, "to mend it" in done.err))


KINDS: dict[str, Callable[[Path], None]] = {
    **dict.fromkeys(("alpaca_history", "system_beside_messages", "system_beside_prompt", "system_beside_pair"), says_the_same),
    **dict.fromkeys(("pairs_prompt_inside", "pairs_and_messages"), says_the_same),
    "alpaca_pairs_with_input": pairs_with_input,
    **dict.fromkeys(("turn_loss_false", "turn_train_false", "sharegpt_turn_loss_false"), marked_turns),
    **dict.fromkeys(("tool_calls_null_content", "tool_calls_empty_content"), tool_calls),
    "pairs": trains("dpo", "orpo"),
    "kto": trains("kto"),
    **dict.fromkeys(("not_duplicates", "form_feed_and_mojibake"), stays_through_cleaning),
    "reasoning_content": reasoning,
    **dict.fromkeys(("flat_tools", "empty_tools", "think_before_call"), flat_calls),
    **dict.fromkeys(("promptfoo_var_lists", "promptfoo_transform"), promptfoo),
    "u2028_evals": evals,
    "broken_record": broken_record,
    **dict.fromkeys(("header_comma", "sep"), table),
    "numbers": numbers,
    "ids_twice": ids_twice,
    **dict.fromkeys(("cut", "damaged"), damaged),
}


def kind_of(file: Path) -> str:
    return re.sub(r"^\d+[a-z]?_", "", file.stem)


@contextlib.contextmanager
def elsewhere() -> Iterator[Path]:
    """An empty folder to work in."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def wrong_of(check: Callable[[], None]) -> str:
    """What is wrong, or '' when all is right."""
    with elsewhere():
        try:
            check()
        except Wrong as wrong:
            return str(wrong)
        except Exception:  # noqa: BLE001 - one case that breaks must not end the others
            return traceback.format_exc(limit=-3)
    return ""


def main(words: list[str] | None = None) -> int:
    """Every case, one line each; the number of wrong ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="inputs beside the project's own, by the same names")
    parser.add_argument("--only", nargs="*", default=[], help="kinds; the others are left out")
    asked = parser.parse_args(words or [])
    files = [*OWN.iterdir(), *(asked.folder.resolve().iterdir() if asked.folder else [])]
    cases: list[tuple[str, Callable[[], None]]] = [
        (f"{kind_of(file)} ({file.parent.name}/{file.name})", lambda file=file: KINDS[kind_of(file)](file))  # type: ignore[misc]
        for file in sorted(files)
        if file.suffix not in (".md", ".py")
    ]
    cases += [(f"http: {name}", check) for name, check in cases_http.CASES.items()]
    cases = [(name, check) for name, check in cases if not asked.only or re.split(r" \(|: ", name)[0] in asked.only]
    wrong = 0
    with cases_http.parts():
        for name, check in cases:
            fault = wrong_of(check)
            wrong += bool(fault)
            print(f"{'WRONG' if fault else 'right'}  {name}" + (f"\n       {fault}" if fault else ""), flush=True)
    print(f"{len(cases)} cases, {wrong} wrong")
    ratio("cases_wrong", wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
