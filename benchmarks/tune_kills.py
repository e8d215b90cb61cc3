"""Studies by the command that a user has, on a tiny random model: of two workers one is killed by kill -9, and the study ends as one that
nobody disturbed; and what the process of a long study holds in memory.

`python -m benchmarks.tune_kills kills PLANS` and `… memory TRIALS` are one part each, with its result as one JSON line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, table

KILLED_AT = (1, 4, 6)  # the trial at which a worker is killed, one study each
EARLY = 20  # the memory after so many trials is what later memory is compared with
RANKS, RATES = (2, 4, 8, 16), (1e-3, 1e-2, 3e-2)
YAML = """
name: study
sources: [{{path: rows.jsonl}}]
base: ./base
split: {{validation: 0.3, test: 0.1, semantic: {{action: "off"}}}}
train: {{epochs: {epochs}, learning_rate: 0.003, batch_size: 8, dtype: float32, threads: 1, adapter: {{r: 4}}}}
evaluate: {{metrics: [exact_match], max_tokens: 3}}
tune: {tune}
"""


def project(folder: Path, *, rows: int, epochs: int, **tune: Any) -> Path:
    """A project of the toy task with few rows."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny
    from benchmarks.tune_tasks import toy_rows

    folder.mkdir(parents=True, exist_ok=True)
    tiny.model(folder / "base", context=128)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows()[:rows]))
    (folder / "tunesmith.yaml").write_text(YAML.format(epochs=epochs, tune=json.dumps(tune)))
    return folder


def worker(folder: Path) -> subprocess.Popen[str]:
    """`tunesmith tune --json` in a process of its own."""
    command = [sys.executable, "-m", "tunesmith", "tune", "--json"]
    with (folder / f"worker-{time.monotonic_ns()}.log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a worker printed at its end."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"tunesmith tune ended with {process.returncode}: {out[-2000:]}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def until(process: subprocess.Popen[str], path: Path, holds: str) -> None:
    """Until that file has that word."""
    while not (path.is_file() and holds in path.read_text("utf-8", "replace")):
        if process.poll() is not None:
            raise RuntimeError(f"the worker ended before {path} had {holds}")
        time.sleep(0.02)


def kills(plans: int) -> list[dict[str, Any]]:
    """Studies of the same plans: by one worker, by two, and by two of which one is killed amid a training, at several trials."""
    tune = {
        "trials": plans, "sampler": "grid", "rungs": [1], "seeds": 2, "finalists": 1, "at_once": 1,
        "space": {"learning_rate": {"choices": RATES}, "adapter.r": {"choices": RANKS}},
    }  # fmt: skip
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, at in (("one worker", None), ("two workers", 0), *((f"two, one killed in trial {at}", at) for at in KILLED_AT)):
            folder = project(Path(temporary) / name.replace(" ", "-"), rows=160, epochs=2, **tune)
            first = worker(folder)
            if at is not None:
                begun = folder / ".tunesmith" / "tuning" / "study" / "trials"
                until(first, begun / "0" / "train" / "events.jsonl", "step")
                second = worker(folder)
                if at:
                    until(first, begun / str(at) / "train" / "events.jsonl", "step")
                    os.kill(first.pid, signal.SIGKILL)
                    first.communicate()
                last = [ended(second)] if at else [ended(first), ended(second)]
                end = next((each for each in last if each["verdict"]), None) or ended(worker(folder))
            else:
                end = ended(first)
            best = next(row for row in end["trials"] if row["number"] == end["best"])
            found.append({
                "study": name, "ended": end["ended"], "trials": sum(row["state"] == "finished" for row in end["trials"]),
                "best": json.dumps(best["params"], sort_keys=True), "value": best["value"], "tokens": end["tokens"],
                "verdict": end["verdict"]["sentence"],
            })  # fmt: skip
            print(f"  {found[-1]}", file=sys.stderr, flush=True)
    return found


def memory(trials: int) -> dict[str, Any]:
    """The resident memory of one process after each trial of a study of so many, in MB; the median of ten trials at both ends."""
    space = {"learning_rate": {"low": 1e-4, "high": 3e-2, "log": True}, "adapter.r": {"choices": RANKS}}
    seen: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = project(Path(temporary), rows=60, epochs=1, trials=trials, rungs=[1], seeds=0, at_once=1, space=space)
        process = worker(folder)
        begun = folder / ".tunesmith" / "tuning" / "study" / "trials"
        while process.poll() is None:
            done = len(list(begun.glob("*/rung-0/evaluation.json")))
            if done > len(seen):
                status = Path(f"/proc/{process.pid}/status").read_text()
                seen += [int(status.split("VmRSS:")[1].split()[0]) / 1024] * (done - len(seen))
            time.sleep(0.2)
        ended(process)
    early, late = (sorted(part)[len(part) // 2] for part in (seen[EARLY - 5 : EARLY + 5], seen[-10:]))
    return {"trials": trials, "early_mb": early, "late_mb": late, "growth": late / early - 1}


def measured(plans: int = 12, trials: int = 200) -> str:
    """Both parts in words."""
    rows = [(row["study"], row["trials"], row["best"], row["value"], row["tokens"]) for row in _alone("kills", plans)]
    held = _alone("memory", trials)
    same = len({row[2:] for row in rows}) == 1
    head = table(["study of the same plans", "trials finished", "best plan", "its value", "tokens trained"], rows)
    said = "All end with the same best." if same else "They do not end with the same best."
    grown = (
        f"Memory of the process of one study: {held['early_mb']:.0f} MB after {EARLY} trials, {held['late_mb']:.0f} MB after "
        f"{held['trials']} ({held['growth']:+.1%})."
    )
    return f"{head}\n\n{said}\n\n{grown}"


def _alone(part: str, size: int) -> Any:
    command = [sys.executable, "-m", "benchmarks.tune_kills", part, str(size)]
    out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def main(words: Sequence[str]) -> None:
    """One part, with its result as one JSON line."""
    part, size = words
    print(json.dumps(kills(int(size)) if part == "kills" else memory(int(size))))


if __name__ == "__main__":
    main(sys.argv[1:])
