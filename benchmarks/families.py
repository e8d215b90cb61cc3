"""Every family of models that transformers knows: trained and asked by Tunesmith at toy size, held against transformers and peft alone.

`make families` makes the table of docs/families.md and prints four figures; `ARGS="--only qwen3,gpt_oss"` tries some of them,
`--processes N` several at a time. What was tried is kept in `build/families/` until the code or a library changes, so that a run that was
ended goes on; `--fresh` forgets it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.families_variants import MODES_OF, VARIANTS
from benchmarks.harness import ROOT, machine, ratio, table

KEPT = ROOT / "build" / "families"
PAGE = ROOT / "docs" / "families.md"
LIMIT_S = 300


def trials() -> dict[str, tuple[str, str | None]]:
    """What is tried: its name → the variant and the other way of training (None: an adapter by supervised examples)."""
    plain: dict[str, tuple[str, str | None]] = {name: (name, None) for name in VARIANTS}
    return plain | {f"{name} {mode}": (name, mode) for mode, names in MODES_OF.items() for name in names}


def code_digest() -> str:
    """Names all that an outcome depends on: the code of training and decoding, these files, the libraries."""
    h = hashlib.blake2b(digest_size=8)
    for folder in ("src/tunesmith/train", "src/tunesmith/nets", "src/tunesmith/models", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if folder != "benchmarks" or path.name in ("families_variants.py", "families_trial.py", "families_reference.py"):
                h.update(path.read_bytes())
    for name in ("torch", "transformers", "peft"):
        h.update(version(name).encode())
    return h.hexdigest()


def _path(name: str) -> Path:
    return KEPT / f"{name.replace(' ', '+')}.json"


def kept(name: str, code: str) -> dict[str, object] | None:
    """The outcome of an earlier run of the same code."""
    try:
        stored: dict[str, object] = json.loads(_path(name).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return stored if stored.get("code") == code else None


def _child(name: str, code: str) -> int:
    """Try one variant in a fork of this process, which has imported everything and computes with one thread; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(LIMIT_S)
    from benchmarks.families_trial import as_json, attempt

    variant, mode = trials()[name]
    with Path(os.devnull).open("w") as quiet:
        os.dup2(quiet.fileno(), 1)
        os.dup2(quiet.fileno(), 2)
        outcome = attempt(name, VARIANTS[variant], mode)
        _path(name).write_text(json.dumps({**as_json(outcome), "code": code}), "utf-8")
    os._exit(0)


def run(names: Sequence[str], processes: int, code: str) -> None:
    """Try the variants, some at a time; each one's line is printed when it ends."""
    import peft
    import torch
    import transformers

    from benchmarks import families_trial
    from tunesmith.models import local
    from tunesmith.nets import decoder
    from tunesmith.train import loop

    assert all((peft, families_trial, local, decoder, loop))  # imported for the forks
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    waiting, busy = list(names), dict[int, str]()
    while waiting or busy:
        while waiting and len(busy) < processes:
            name = waiting.pop(0)
            _path(name).unlink(missing_ok=True)
            busy[_child(name, code)] = name
        pid, status = os.wait()
        name = busy.pop(pid)
        if kept(name, code) is None:
            died = {
                "name": name,
                "kind": VARIANTS[trials()[name][0]].kind,
                "trains": "crash",
                "notes": [f"the process ended with {status}"],
            }
            _path(name).write_text(json.dumps({**_EMPTY, **died, "code": code}), "utf-8")
        print(line(kept(name, code) or {}), flush=True)


_EMPTY = {
    "trains": "–", "deviation": None, "where": "", "route": "", "packed": False, "decodes_base": "–", "decodes_tuned": "–", "decoding": "",
    "decode_deviation": None, "reach": None, "unrest": None, "seconds": 0.0, "notes": [],
}  # fmt: skip


def _number(value: object) -> str:
    return "–" if value is None else f"{value:.0e}"


def cells(outcome: dict[str, object]) -> list[str]:
    """One row of the table."""
    reach, notes = outcome["reach"], outcome["notes"]
    unrest = outcome["unrest"]
    assert isinstance(notes, list)
    extra = (
        [f"transformers itself moves by {unrest:.0e} nats with other tokens after a row"]
        if isinstance(unrest, float) and unrest > 1e-3
        else []
    )
    return [
        str(outcome["name"]),
        str(outcome["trains"]),
        _number(outcome["deviation"]),
        str(outcome["route"]) or "–",
        "yes" if outcome["packed"] else "no",
        f"{outcome['decodes_base']}, {outcome['decodes_tuned']}",
        str(outcome["decoding"]) or "–",
        _number(outcome["decode_deviation"]),
        f"{reach:.0%}" if isinstance(reach, float) else "–",
        "; ".join([*notes, *extra]).replace("|", "/")[:400],
    ]


HEADER = (
    "variant",
    "trains right",
    "deviation",
    "route",
    "packed",
    "answers right (base, tuned)",
    "by",
    "nats",
    "all-linear reaches",
    "note",
)


def line(outcome: dict[str, object]) -> str:
    """An outcome for the terminal."""
    return "  ".join(cells(outcome)) + f"  {outcome['seconds']:.1f} s"


def figures(outcomes: Sequence[dict[str, object]]) -> dict[str, int]:
    """Variants that were tried, that were wrong somewhere, that ended in a raw error of ours, that were refused."""

    def having(verdict: str) -> int:
        return sum(verdict in (o["trains"], o["decodes_base"], o["decodes_tuned"]) for o in outcomes)

    fails_itself = sum(o["trains"] == "reference" for o in outcomes)
    return {
        "families_tried": len({o["name"] for o in outcomes}) - fails_itself,
        "families_wrong": having("no"),
        "families_raw_errors": having("crash"),
        "families_refused": having("refused"),
    }


def page(outcomes: Sequence[dict[str, object]], headlines: Sequence[str]) -> str:
    """docs/families.md."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "torch"))
    plain = [cells(o) for o in outcomes if " " not in str(o["name"])]
    other = [cells(o) for o in outcomes if " " in str(o["name"])]
    return f"""# Model families

Written by `make families`; every cell comes from a run. Tiny random models (2–4 layers, width 32, float32, no dropout) of the configuration
classes of {libraries}. What real weights do is not in this table.

Each is trained by `train` (LoRA, r = 4, on all linear layers, two steps over six rows of 18 to 100 tokens, some of which begin alike, in
two lanes); then the loss and the gradient of every trainable tensor, at the weights that came out, are held against transformers and peft
alone, one row at a time. *Deviation* is the largest relative one, *trains right* says whether it is at most 1e-4. *Answers right*: greedy
answers to three prompts in one batch, each token judged by a full pass of transformers without a cache; *nats* is the largest difference of
a log-probability. *Route* and *by* are what the checks at the start chose ([training.md](training.md)). A suffix names a variant: `-window`
has a window shorter than the rows, `-vl` is the text part of a model that sees. *reference*: transformers or peft itself fails, for the
reason in the note; that is not counted.

```
{chr(10).join(headlines)}
```

{table(HEADER, plain)}

## Other ways of training

Full weights, a base in 4 bits (the reference has the same 4-bit weights as ordinary matrices), and preference pairs.

{table(HEADER, other)}

Machine: {machine()}. Again: `make families`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Try what was asked for, print the figures, and write the page when all were tried."""
    parser = argparse.ArgumentParser(prog="make families")
    parser.add_argument("--only", default="", help="names, separated by commas; 'qwen3 full' is another way of training")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="try again what was tried")
    asked = parser.parse_args(arguments)
    known, only = trials(), [name.strip() for name in asked.only.split(",") if name.strip()]
    unknown = [name for name in only if name not in known]
    if unknown:
        print(f"no variant {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    KEPT.mkdir(parents=True, exist_ok=True)
    names, code, started = only or list(known), code_digest(), time.perf_counter()
    run([name for name in names if asked.fresh or kept(name, code) is None], asked.processes, code)
    outcomes = [outcome for name in names if (outcome := kept(name, code)) is not None]
    headlines = [ratio(name, value) for name, value in figures(outcomes).items()]
    if not only:
        PAGE.write_text(page(outcomes, headlines), "utf-8")
    print(f"{len(outcomes)} variants, {(time.perf_counter() - started) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
