"""The loop with the real model, from corrections to a canary that is promoted, through the commands and the server that people have.

`python -m benchmarks.loop_real --folder FOLDER` works on a copy of a project's folder that `tunesmith demo` left (with --quick or without).
Users ask for the organisations alone, which nobody taught the model; they correct what else it lists. The corrections are harvested, put
into a version, trained and governed by `feedback retrain --start`, and what is offered takes over as a canary, asked old and new questions.
Prints the minutes from the corrections to the offer and what was gained on corrected questions that were not trained on, and writes its
table of docs/monitoring.md. Further words are settings of the training, such as --train.epochs=2.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness import ratio, table
from benchmarks.watch import write

HEADLINES = ("loop_real_minutes", "loop_real_gain", "loop_real_promoted")
WISH = "Only the organizations, please.\n"
NONE = "No entities found"
_ENTITY = re.compile(r"([^,\[\]]+) - ([A-Z]+)")
Turns = list[dict[str, Any]]


class Asked:
    """A question, its right answer, and once it was asked what was answered and its id."""

    def __init__(self, turns: Turns, right: str) -> None:
        self.turns, self.right, self.answer, self.id = turns, right, "", ""


def wishes(rows: Sequence[Any], count: int) -> list[Asked]:
    """Beginnings of training rows' sentences, asked for their organisations alone; half as long, so that none repeats a row."""
    import msgspec

    made = []
    for row in rows:
        words = row.prompt[-1].text.split()
        text = " ".join(words[: max(6, len(words) // 2)])
        there = [(name.strip(), kind) for name, kind in _ENTITY.findall(row.answer) if name.strip() in text]
        right = ", ".join(f"{name} - {kind}" for name, kind in there if kind == "ORGANIZATION")
        turns = [msgspec.to_builtins(message) for message in row.prompt]
        turns[-1]["content"] = WISH + text
        if there or len(words) < 4:
            made.append(Asked(turns, f"[{right}]" if right else NONE))
    return made[:count]


def ask(url: str, alias: str, questions: Sequence[Asked], tokens: int, users: str) -> None:
    """Ask all questions, some at a time, each by a user of its own."""
    import openai

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)

    def one(number: int, asked: Asked) -> None:
        made: Any = client.chat.completions.create(
            model=alias, messages=asked.turns, max_tokens=tokens, temperature=0, user=f"{users} {number}"
        )
        asked.id, asked.answer = made.id, made.choices[0].message.content or ""

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(one, range(len(questions)), questions))


def called(config: Path, *words: str, codes: Sequence[int] = (0,)) -> dict[str, Any]:
    """What a command prints as JSON. Ends with what it says where its code is another."""
    from tunesmith.cli import app
    from tunesmith.cli.shared import guarded

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = guarded(app, [*words, "--config", str(config), "--json"])
    lines = [line for line in out.getvalue().splitlines() if line.startswith("{")]
    if code not in codes or not lines:
        raise SystemExit(f"tunesmith {' '.join(words)}: exit {code}\n{out.getvalue()}")
    tree: dict[str, Any] = json.loads(lines[-1])
    return tree


@contextlib.contextmanager
def served(config: Path) -> Iterator[str]:
    """The project's own server on a free port."""
    from tunesmith.api.app import running
    from tunesmith.api.serve import application

    with application(config, [], lambda line: None, names={}) as there, running(there.app) as url:
        yield url


def corrected(config: Path, alias: str, questions: Sequence[Asked], tokens: int) -> int:
    """Ask, and correct what is wrong; how many answers that were."""
    import httpx

    with served(config) as url:
        ask(url, alias, questions, tokens, "user")
        wrong = [each for each in questions if each.answer.strip() != each.right]
        for each in wrong:
            body = {"interaction": each.id, "correction": each.right, "by": "somebody who knows"}
            httpx.post(f"{url}/feedback", json=body, timeout=60).raise_for_status()
    return len(wrong)


def accepted(config: Path, version: str) -> str:
    """The version of rows that somebody has looked at and accepted, each of them."""
    for row in called(config, "data", "review", version, "--rows", "100000")["rows"]:
        called(config, "data", "verdict", row["id"], "accept", "--data", version, "--as", "reviewer")
    return str(called(config, "data", "review", version, "--apply")["version"]["id"])


def promoted(config: Path, alias: str, candidate: str, questions: Sequence[Asked], tokens: int) -> dict[str, Any]:
    """Start the canary by the command that was offered, and ask until it is decided; how it ended."""
    called(config, "deploy", "canary", alias, candidate, "--gate", "pass", *_plan())
    with served(config) as url:
        for begin in range(0, len(questions), 12):
            ask(url, alias, questions[begin : begin + 12], tokens, f"later {begin}")
            if _standing(config, alias)["status"] != "running":
                break
        until = time.monotonic() + 20  # what was asked last is counted, and the step's seconds pass
        while _standing(config, alias)["status"] == "running" and time.monotonic() < until:
            time.sleep(0.5)
    return _standing(config, alias)


def _standing(config: Path, alias: str) -> dict[str, Any]:
    rollout: dict[str, Any] = called(config, "deploy", "status", alias)["rollout"]
    return rollout


def _plan() -> list[str]:
    return [
        *("--steps", "0.5,1", "--step-s", "2", "--step-requests", "15", "--look-s", "0.5"),
        *("--guardrail", "errors=0.2", "--guardrail", "malformed=0.2", "--guardrail", "latency_p95=off"),
    ]


def main() -> None:
    from tunesmith.core.progress import Silent
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.last_run import view

    parser = argparse.ArgumentParser(description="The loop with the real model.")
    parser.add_argument("--folder", type=Path, default=Path("tunesmith-demo"), help="a folder that `tunesmith demo` left; it is copied")
    parser.add_argument("--questions", type=int, default=140, help="how many users ask")
    asked, more = parser.parse_known_args()
    words = [word for word in more if word.startswith("--")]
    began_cpu = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(asked.folder, Path(place) / "project"))
        config = folder / "tunesmith.yaml"
        with bench(config, Silent()) as at:
            assert at.context is not None
            alias, tokens = at.context.project.deploy.alias, at.context.sampling().max_tokens
            every = [*at.context.questions("train")]
            questions, plain = wishes(every, asked.questions), at.context.questions("validation")
        told = corrected(config, alias, questions, tokens)
        began = time.monotonic()
        print(f"  {told} of {len(questions)} answers corrected", flush=True)
        rows = called(config, "feedback", "harvest")["rows"]
        reviewed = accepted(config, rows)
        settings = [*view(config).overrides, "--retrain.when.rows=10", "--retrain.margin=0.15", *words]
        done = called(config, "feedback", "retrain", "--rows", reviewed, "--start", *settings, codes=(0, 3))
        minutes = (time.monotonic() - began) / 60
        print(done.get("text", done), flush=True)
        ratio("loop_real_minutes", minutes)
        lines = [line for line in (done.get("ruling") or {}).get("lines", []) if line["kind"] == "corrected"]
        if lines:
            ratio("loop_real_gain", lines[0]["estimate"])
        if not done.get("offer"):
            raise SystemExit("nothing was offered")
        mixed = [Asked([{"role": m.role, "content": m.text} for m in row.prompt], row.answer) for row in plain]
        both = [each for pair in zip(questions, mixed, strict=False) for each in pair]
        ended = promoted(config, alias, f"{alias}-next", both, tokens)
        ratio("loop_real_promoted", float(ended["status"] == "promoted"))
        gain = lines[0]
        body = table(
            ["step", "what came of it"],
            [
                ("users ask for the organizations alone", f"{told} of {len(questions)} answers corrected"),
                ("`feedback retrain --start`", f"offered after {minutes:.1f} minutes"),
                (
                    "corrected questions that were not trained on",
                    f"{gain['before']:.3f} → {gain['after']:.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})",
                ),
                ("the canary", f"{ended['status']}: {ended['outcome']}"),
            ],
        )
        print(body, flush=True)
        if ended["status"] != "promoted":
            raise SystemExit("the canary was not promoted; nothing is written")
        write({"loop-real": body}, time.process_time() - began_cpu, "python -m benchmarks.loop_real --folder FOLDER")


if __name__ == "__main__":
    main()
