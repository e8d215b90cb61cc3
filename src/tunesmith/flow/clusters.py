"""The near-duplicate cluster of each row of a split, in `clusters.json`: written and read row by row, since a list of all ids would take
more memory than all else of a large split. Knows nothing about how clusters are found."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from tunesmith.core.atomic import atomic_file
from tunesmith.core.seal import checked

CLUSTERS = "clusters.json"
_FIRST = b"{\n"  # one row a line: what an earlier version wrote has them all in one


def write_clusters(folder: Path, clusters: Iterable[tuple[str, int]]) -> None:
    """Write the number of each row's cluster, by the row's id, as one JSON object."""
    with atomic_file(folder / CLUSTERS) as stream:
        stream.write(_FIRST)
        comma = b""
        for row, cluster in clusters:
            stream.write(comma + msgspec.json.encode(row) + b":%d" % cluster)
            comma = b",\n"
        stream.write(b"\n}\n")


def read_clusters(folder: Path, rows: Collection[str]) -> dict[str, str]:
    """The clusters of these rows, of which each is in one."""
    wanted = rows if isinstance(rows, set) else set(rows)
    with checked(folder / CLUSTERS).open("rb") as stream:
        if stream.readline() != _FIRST:
            stream.seek(0)
            numbers = msgspec.json.decode(stream.read(), type=dict[str, int])
            return {row: str(numbers[row]) for row in wanted}
        clusters = {}
        for line in stream:
            key, colon, cluster = line.rstrip(b",\n").rpartition(b":")
            if colon and (row := msgspec.json.decode(key, type=str)) in wanted:
                clusters[row] = cluster.decode()
    return clusters
