"""Rows → any known format, so that importing the result gives the same rows; knows nothing about where rows came from.

What a format has no place for goes beside its own keys: `group`, `label`, `reference`, and the keys of `meta` (all of them inside one
`meta` where a name would clash). A row that a format cannot hold is refused, never bent.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.atomic import atomic_file
from tunesmith.core.errors import ConfigError, DataError, Fault, nearest
from tunesmith.core.load import need
from tunesmith.core.row_kinds import NAMES, tools_of, turns_of
from tunesmith.core.rows import Row, write_jsonl, write_parquet
from tunesmith.core.types import Example
from tunesmith.data.formats.own import own_kind
from tunesmith.data.formats.record import Fields
from tunesmith.data.formats.registry import FORMATS, parse_row
from tunesmith.data.formats.writing import OWN, own_fields
from tunesmith.data.sources import without_planted

_OPENAI = ("chat", "dpo", "rft")  # OpenAI refuses a training file that has any other key
WHOLE = ("tunesmith", "kiln", "label_studio")


def to_format(row: Row, name: str) -> Fields:
    """The JSON object that holds the row in format `name`. Raises ConfigError for an unknown format, DataError when it cannot hold it."""
    if name not in WRITERS:
        raise ConfigError(f"rows cannot be written as '{name}'", allowed=", ".join(WRITERS), remedy=nearest(name, WRITERS))
    fields = WRITERS[name](row)
    if fields is None:
        raise DataError(
            f"format '{name}' cannot hold this row: {_why(row)}",
            where=row.origin,
            remedy="export it as tunesmith, or in its kind's format",
        )
    return fields if name in WHOLE else _with_rest(fields, row, name)


def export(rows: Iterable[Row], path: str | Path, name: str = "chat", *, extras: bool = True) -> int:
    """Write rows as format `name`: JSONL (also .gz), or by its ending JSON, CSV, TSV or Parquet; returns how many. Whole or absent.

    `extras` False leaves out everything that is not the format's own (OpenAI refuses unknown keys in training files).
    Raises DataError naming every row that the format cannot hold, or that would not come back the same.
    """
    made, faults = [], []
    path = Path(path)
    for row in rows:
        try:
            fields = to_format(row, name) if extras or name == "tunesmith" else _strict(WRITERS[name](row), name)
        except DataError as error:
            faults.append(Fault(row.origin, "cannot_hold", error.what))
            continue
        if fields is None or (extras and not same(row, parse_row(fields, name).row)):
            faults.append(Fault(row.origin, "not_the_same", f"it would not come back from '{name}' as it is"))
            continue
        made.append(fields)
    if faults:
        raise DataError(
            f"{len(faults)} rows cannot be written as '{name}'", faults=faults, where=str(path), allowed="tunesmith holds every row"
        )
    _write(made, path, name)
    return len(made)


def _strict(fields: Fields | None, name: str) -> Fields | None:
    """The format's own keys; of OpenAI's also without what its turns do not know."""
    if fields is None:
        return None
    own = {key: value for key, value in fields.items() if key != OWN}
    return _openai(own) if name in _OPENAI else own


def _openai(value: Any) -> Any:
    if isinstance(value, list):
        return [_openai(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "role" in value:
        return {key: part for key, part in value.items() if key != "reasoning_content"}
    return {key: part if key == "tools" else _openai(part) for key, part in value.items()}


def same(a: Row, b: Row | None) -> bool:
    """Whether two rows are equal but for where they came from."""
    return b is not None and msgspec.structs.replace(a, origin="", id="") == msgspec.structs.replace(b, origin="", id="")


def _write(made: Sequence[Fields], path: Path, name: str) -> None:
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind in (".csv", ".tsv"):
        _write_table(made, path, "\t" if kind == ".tsv" else ",")
    elif kind == ".json":
        with atomic_file(path) as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(list(made)), indent=1))
    elif kind == ".parquet" and name == "tunesmith":
        rows: Iterable[Row] = (msgspec.convert(fields, own_kind(fields)) for fields in made)
        write_parquet(path, rows)
    elif kind == ".parquet":
        _write_columns(made, path, name)
    elif kind in (".jsonl", ".ndjson"):
        write_jsonl(path, made)
    else:
        raise ConfigError(
            f"cannot tell what to write from the ending '{kind}'",
            where=str(path),
            allowed=".jsonl .jsonl.gz .json .csv .tsv .parquet",
        )


def _write_columns(made: Sequence[Fields], path: Path, name: str) -> None:
    """Parquet with nested columns, as trainers read it. Arrow gives all structs of a column the same keys and plants nulls where a row has
    none: tools that it cannot hold so are JSON text, as data sets have them, and what would not come back the same is refused."""
    texts = [
        fields | {"tools": msgspec.json.encode(fields["tools"]).decode()} if isinstance(fields.get("tools"), list) else fields
        for fields in made
    ]
    packed, why = _packed(made, name)
    if packed is None and any("tools" in fields for fields in made):
        packed, why = _packed(texts, name)
    if packed is None:
        raise DataError(why, where=str(path), remedy="export as tunesmith, or as .jsonl")
    with atomic_file(path) as stream:
        stream.write(packed)


def _packed(made: Sequence[Fields], name: str) -> tuple[bytes | None, str]:
    """The rows as Parquet; None where it would not give them back, with the reason."""
    pa, pq = need("pyarrow", extra="data"), need("pyarrow.parquet", extra="data")
    packed = io.BytesIO()
    try:
        table = pa.Table.from_pylist(_with_all_keys(made))
        pq.write_table(table, packed, compression="zstd")
    except pa.ArrowException as error:
        return None, f"Parquet cannot hold these rows: {error}"
    back = [without_planted(fields) for fields in table.to_pylist()]
    for number, (fields, now) in enumerate(zip(made, back, strict=True), start=1):
        if _other(parse_row(fields, name).row, parse_row(now, name).row):
            return None, f"Parquet's columns would change row {number}"
    return packed.getvalue(), ""


def _with_all_keys(made: Sequence[Fields]) -> list[Fields]:
    """Every row with every key: Arrow takes its columns from the first row alone."""
    header = dict.fromkeys(key for fields in made for key in fields)
    return [{key: fields.get(key) for key in header} for fields in made]


def _other(a: Row | None, b: Row | None) -> bool:
    return a is None or not same(a, b)


def _write_table(made: Sequence[Fields], path: Path, delimiter: str) -> None:
    import csv

    header = list(dict.fromkeys(key for fields in made for key in fields))
    wrong = next(
        (fields for fields in made if not all(isinstance(value, str) and value and "\r" not in value for value in fields.values())), None
    )
    if wrong is not None:
        raise DataError(
            "a table holds only texts that are not empty and have no carriage return; one row has another value",
            where=str(path),
            remedy="export columns or alpaca without meta, or as .jsonl",
        )
    with atomic_file(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        table = csv.DictWriter(text, header, delimiter=delimiter, lineterminator="\n")
        table.writeheader()
        table.writerows(made)
        text.detach()


def _why(row: Row) -> str:
    what = f"{NAMES[type(row)]} are something else" if not isinstance(row, Example) else ""
    roles = ", ".join(turn.role for turn in turns_of(row))
    reasons = [what, f"its turns are {roles}" if roles else "", "with tools" if tools_of(row) else ""]
    return ", ".join(part for part in reasons if part)


def _with_rest(fields: Fields, row: Row, name: str) -> Fields:
    """The format's keys, then group, label, reference and meta."""
    rest, meta = own_fields(row), row.meta
    flat = {**fields, **rest, **meta}
    if meta.keys().isdisjoint({*fields, *rest, "meta", "group", "label", "reference"}) and same(row, parse_row(flat, name).row):
        return flat
    return {**fields, **rest, "meta": meta} if meta else {**fields, **rest}


WRITERS: dict[str, Callable[[Row], Fields | None]] = {name: known.write for name, known in FORMATS.items() if known.write is not None}
