"""Mutated rows and files: no traceback, no hang, every line accounted for. `python -m benchmarks.fuzz_data [ROWS] [SEED]` (100,000 rows).

Rows of every format are broken at random (bytes flipped, cut, doubled; values replaced, keys renamed, nesting changed), in files of
500 (JSONL, plain and packed, JSON, CSV, TSV, Parquet, some of them damaged), imported, cleaned, checked, split and exported again. Prints
what became of them; exit status 1 when anything but a DataError came out or a file took longer than HANG_S.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.core.rows import Row
from tunesmith.core.types import Document, Example, Labelled, Message, Preference, example_id
from tunesmith.data.check import check
from tunesmith.data.clean import Clean, clean
from tunesmith.data.collect import Source, collect
from tunesmith.data.export import WRITERS, export, same, to_format
from tunesmith.data.split import Split, split

ROWS, HANG_S = 500, 30.0

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
    chosen: dict[str, Row] = {"dpo": pair, "trl_preference": pair, "rft": ask}
    plain = (turns[0], turns[1], Message(role="assistant", content="I ü"))
    simple = Example(id=example_id(plain), messages=plain, label="l", origin="f:1")
    bare = Example(id=example_id(plain[1:]), messages=plain[1:], label="l", origin="f:1")
    judged = Labelled(id="", messages=turns[:2], answer=plain[2], desirable=False, meta={"k": 1}, origin="f:1")
    chosen |= {"kiln": bare, "label_studio": bare, "text": Document(id="t", text="I ü", origin="f:1")}
    chosen |= {"trl_kto": judged, "labelled_chat": judged}
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


def written(folder: Path, formats: Sequence[dict[str, Any]], rows: int, draw: random.Random) -> Path:
    """A file of `rows` broken rows, most of them of one format; every fourth file is another form than JSONL."""
    chosen = draw.choice(formats)
    path = folder / draw.choice(["a.jsonl"] * 6 + ["a.jsonl.gz", "a.json", "a.csv", "a.tsv", "a.parquet"])
    several = [_numbered(chosen if draw.random() < 0.9 else draw.choice(formats), i) for i in range(rows)]
    if path.suffix in (".csv", ".tsv"):
        return _table(path, several, draw)
    if path.suffix == ".parquet":
        return _parquet(path, several, draw)
    lines = [line(one, draw) for one in several]
    if path.suffix == ".json":
        whole = [json.dumps(mutate(one, draw) if draw.random() < 0.5 else one).encode("utf-8", "surrogatepass") for one in several]
        path.write_bytes(b"[" + b",".join(whole) + draw.choice([b"]", b"]", b"]", b"", b",]"]))
        return path
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(_cut(gzip.compress(data), draw) if path.suffix == ".gz" else data)
    return path


def _numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row with another question and answer than the others have."""
    return dict(json.loads(json.dumps(row).replace("who?", f"who is {number} of {number % 7}?").replace('"I ', f'"I am {number} ')))


def _cut(data: bytes, draw: random.Random) -> bytes:
    """The bytes, sometimes damaged or cut."""
    at = draw.randrange(len(data))
    return draw.choice([data, data, data[:at], data[:at] + draw.choice(BYTES) + data[at + 1 :]])


def _table(path: Path, rows: Sequence[dict[str, Any]], draw: random.Random) -> Path:
    """Text columns under the header of the first row, with odd cells, delimiters and quotes, and here and there a broken byte."""
    header = list(rows[0])
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, delimiter=draw.choice([",", ";"]) if path.suffix == ".csv" else "\t")
        table.writerow(header)
        for one in rows:
            cells = [str(mutate(one.get(key), draw) if draw.random() < 0.1 else one.get(key, "")) for key in header]
            table.writerow([cell.encode("utf-8", "replace").decode() for cell in cells][: draw.choice([None, None, None, None, 1])])
    if draw.random() < 0.5:
        path.write_bytes(_cut(path.read_bytes(), draw))
    return path


def _parquet(path: Path, rows: Sequence[dict[str, Any]], draw: random.Random) -> Path:
    """One text column a key, what is no text as JSON; sometimes damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = {
        key: [json.dumps(mutate(one.get(key), draw)) if draw.random() < 0.3 else json.dumps(one.get(key)) for one in rows]
        for key in rows[0]
    }
    pq.write_table(pa.table(cells), path)
    path.write_bytes(_cut(path.read_bytes(), draw))
    return path


def through(path: Path) -> tuple[Counter[str], Counter[str]]:
    """The file imported, cleaned, looked at, divided and written again: fates and faults. Raises DataError for a file that is refused, and
    AssertionError when a row is not accounted for."""
    found = collect(Source(path=str(path)), max_invalid=1.0)
    assert sum(found.ledger.counts().values()) == found.inputs == len(found.rows) + found.invalid, (
        f"{found.inputs} rows, {found.ledger.counts()}"
    )
    if path.suffix == ".jsonl":
        assert found.inputs == in_file(path), f"{found.inputs} rows of another number of lines"
    codes = Counter(fault.code for fault in found.faults)
    if found.rows:
        try:
            cleaned = clean(found.rows, Clean(), found.ledger)
            check(cleaned.rows)
            parts = split(cleaned.rows, Split(), cleaned.clusters)
            assert len(parts.train) + len(parts.validation) + len(parts.test) == len(cleaned.rows)
            out = path.with_name("out.jsonl")
            assert export(cleaned.rows, out, "tunesmith") == len(cleaned.rows)
            back = collect(Source(path=str(out), format="tunesmith", unique_ids=False))
            assert all(same(a, b) for a, b in zip(cleaned.rows, back.rows, strict=True)), "rows came back changed"
        except DataError as error:  # too few rows are left to go on
            codes[error.what.split(":")[0][:40]] += 1
    return Counter(found.ledger.counts()), codes


def main() -> int:
    total, seed = (int(word) for word in [*sys.argv[1:], *("100000", "0")[len(sys.argv) - 1 :]])
    draw, formats = random.Random(seed), seeds()
    fates: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    done = failed = 0
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        while done < total:
            path = written(Path(folder), formats, ROWS, draw)
            started = time.perf_counter()
            try:
                here, faults = through(path)
                fates.update(here)
                codes.update(faults)
            except DataError as error:
                fates["file refused"] += ROWS
                codes[error.what.split(":")[0][:60]] += 1
            except Exception as error:  # noqa: BLE001 a fuzzer counts whatever comes
                failed += 1
                print(f"seed {seed}, after {done} rows: {type(error).__name__}: {error}"[:500])
                (Path(tempfile.gettempdir()) / f"fuzz-{seed}-{done}{''.join(path.suffixes)}").write_bytes(path.read_bytes())
            slowest = max(slowest, time.perf_counter() - started)
            done += ROWS
    failed += slowest > HANG_S
    print(
        json.dumps(
            {"rows": done, "failed_files": failed, "slowest_file_s": round(slowest, 2), "fates": fates, "faults": dict(codes.most_common())}
        )
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
