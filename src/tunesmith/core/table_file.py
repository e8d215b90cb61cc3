"""Mappings as a Parquet file whose columns are known beforehand; knows nothing about what they say."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.core.atomic import atomic_file
from tunesmith.core.load import need

_ROWS = 20_000  # in a row group


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], *, like: Mapping[str, type]) -> int:
    """Write the rows, each with the columns that `like` names (str, int or float; any may be None), some thousand at a time; how many.

    The file appears whole or not at all.
    """
    pa, pq = need("pyarrow", extra="data"), need("pyarrow.parquet", extra="data")
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in like.items()])
    rows, count = iter(rows), 0
    with atomic_file(path) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        while batch := list(itertools.islice(rows, _ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count
