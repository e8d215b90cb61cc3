"""Import of mutated rows: no traceback, no hang, every line accounted for. `python -m benchmarks.fuzz_data [ROWS] [SEED]` (100,000 rows).

Rows of every format are broken at random (bytes flipped, cut, doubled; values replaced, keys renamed, nesting changed) and imported in
files of 500, as JSONL and as CSV. Prints what became of them; exit status 1 when anything but a DataError came out.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.types import Example, Message, Preference, example_id
from tunesmith.data.clean import Clean, clean
from tunesmith.data.collect import Source, collect
from tunesmith.data.export import WRITERS, to_format

VALUES: list[Any] = [
    None,
    True,
    -1,
    1e308,
    10**30,
    "",
    "\u2028",
    "a" * 10_000,
    "\ud7ff",
    [],
    {},
    [[]],
    {"role": "user"},
    [None],
    "user",
    "assistant",
]
BYTES = [b"\xff", b"\x00", b'"', b"{", b"}", b"\\ud800", b"\\", b"NaN", b"\n", b"\r", b",", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"1e999"]


def seeds() -> list[dict[str, Any]]:
    """A row of every format that can be written."""
    turns = (Message(role="system", content="s"), Message(role="user", content="who?"), Message(role="assistant", content="I ü", weight=1))
    row = Example(id=example_id(turns), messages=turns, label="l", meta={"k": [1, {"x": None}]}, origin="f:1")
    ask = Example(id=example_id(turns[:2]), messages=turns[:2], reference="a")
    pair = Preference(id="", messages=turns[:2], preferred=turns[2], non_preferred=Message(role="assistant", content="b"), origin="f:1")
    chosen = {"dpo": pair, "trl_preference": pair, "rft": ask}
    plain = (turns[0], turns[1], Message(role="assistant", content="I ü"))
    simple = Example(id=example_id(plain), messages=plain, label="l", origin="f:1")
    return [to_format(chosen.get(name, row if name in ("chat", "tunesmith", "trl") else simple), name) for name in WRITERS]


def mutate(value: Any, draw: random.Random) -> Any:
    """The value with something changed somewhere inside."""
    if draw.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return draw.choice(VALUES)
    if isinstance(value, dict):
        key = draw.choice(list(value))
        if draw.random() < 0.2:
            return {(draw.choice(["role", "content", "x", key.upper(), ""]) if name == key else name): item for name, item in value.items()}
        return {name: mutate(item, draw) if name == key else item for name, item in value.items()}
    at = draw.randrange(len(value))
    if draw.random() < 0.2:
        return value[:at] + value[at:] * 2
    return [mutate(item, draw) if i == at else item for i, item in enumerate(value)]


def line(seed: dict[str, Any], draw: random.Random) -> bytes:
    """One broken line (some stay whole)."""
    value: Any = seed
    for _ in range(draw.choice([0, 1, 1, 2, 4])):
        value = mutate(value, draw)
    data = json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    for _ in range(draw.choice([0, 0, 0, 1, 3])):
        at = draw.randrange(len(data) + 1)
        data = draw.choice([data[:at], data[:at] + draw.choice(BYTES) + data[at:], data[:at] + data[at + 1 :], data + data[at:]])
    return data.replace(b"\n", b" ") if draw.random() < 0.9 else data


def in_file(path: Path) -> int:
    """Lines that are not blank; a byte order mark at the beginning is no text."""
    return sum(bool(one.strip(b" \t\r")) for one in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"))


def main() -> int:
    total, seed = (int(word) for word in [*sys.argv[1:], *("100000", "0")[len(sys.argv) - 1 :]])
    draw, rows_of_formats = random.Random(seed), seeds()
    fates: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    done = failed = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        while done < total:
            chosen = draw.choice(rows_of_formats)
            lines = [line(chosen if draw.random() < 0.8 else draw.choice(rows_of_formats), draw) for _ in range(500)]
            path = Path(folder) / draw.choice(["a.jsonl", "a.jsonl", "a.jsonl", "a.csv"])
            path.write_bytes(b"\n".join(lines) + b"\n")
            started = time.perf_counter()
            try:
                found = collect(Source(path=str(path)), max_invalid=1.0)
                if sum(found.ledger.counts().values()) != found.inputs or len(found.rows) + found.invalid != found.inputs:
                    raise AssertionError(f"{found.inputs} rows, {found.ledger.counts()}")
                if path.suffix == ".jsonl" and found.inputs != in_file(path):
                    raise AssertionError(f"{found.inputs} rows of another number of lines")
                codes.update(fault.code for fault in found.faults)
                if found.rows:
                    clean(found.rows, Clean(), found.ledger)
                fates.update(found.ledger.counts())
            except DataError as error:
                fates["file refused"] += len(lines)
                codes[error.what.split(":")[0][:60]] += 1
            except Exception as error:  # noqa: BLE001 a fuzzer counts whatever comes
                failed += 1
                print(f"seed {seed}, after {done} rows: {type(error).__name__}: {error}"[:500])
                (Path(tempfile.gettempdir()) / f"fuzz-{seed}-{done}{path.suffix}").write_bytes(path.read_bytes())
            slowest = max(slowest, time.perf_counter() - started)
            done += len(lines)
    print(
        json.dumps(
            {"rows": done, "failed_files": failed, "slowest_file_s": round(slowest, 2), "fates": fates, "faults": dict(codes.most_common())}
        )
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
