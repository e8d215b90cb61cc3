"""Near-duplicates of a version for people who look: its largest clusters, and what held-out rows repeat. Knows no screen."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from tunesmith.core.types import Record
from tunesmith.data.split import Leakage, leakages
from tunesmith.data.text import answer_of, question_of
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.datasets.prepared import clusters_of
from tunesmith.flow.datasets.table import version_of
from tunesmith.flow.datasets.versions import Datasets
from tunesmith.flow.sources import PARTS, Frozen

MOST = 20_000  # rows that are looked through for a page; `tunesmith data check` takes any number
_CLUSTERS, _MEMBERS, _REMEMBERED = 20, 12, 8


class Member(Record, frozen=True):
    """A row of a cluster: its part, its place there, where it came from, what it asks and answers."""

    part: str
    place: int
    origin: str
    asked: str
    answered: str


class Cluster(Record, frozen=True):
    """Rows that are near-duplicates of each other: how many, in which parts, and the first of them."""

    size: int
    parts: tuple[str, ...]
    members: tuple[Member, ...]


class SeenClusters(Record, frozen=True):
    """The largest clusters of more than one row, how many such clusters and rows in them there are, and the leakage of held-out parts.
    `rows` above the most that are looked through: nothing else was looked at."""

    rows: int
    looked: bool
    clusters: tuple[Cluster, ...] = ()
    count: int = 0
    within: int = 0
    leakage: dict[str, Leakage] = {}


_seen: OrderedDict[str, SeenClusters] = OrderedDict()


def seen_clusters(at: ProjectContext, desk: Datasets, word: str) -> tuple[Frozen, SeenClusters]:
    """The version that a word names, and its clusters; a version never changes, so they are found once. Raises NotFound."""
    frozen = version_of(at, word)
    total = sum(frozen.version.counts.values())
    if total > MOST:
        return frozen, SeenClusters(rows=total, looked=False)
    settings = desk.settings.clean.near_duplicates
    key = f"{frozen.folder}:{settings!r}"
    if key not in _seen:
        _seen[key] = _looked(frozen, settings, total)
        while len(_seen) > _REMEMBERED:
            _seen.popitem(last=False)
    return frozen, _seen[key]


def _looked(frozen: Frozen, settings: Any, total: int) -> SeenClusters:
    placed = [(part, place, row) for part in frozen.parts for place, row in enumerate(frozen.rows(part))]
    rows = [row for _, _, row in placed]
    labels = np.asarray(clusters_of(rows, settings)) if rows else np.zeros(0, dtype=np.int64)
    numbers, sizes = np.unique(labels, return_counts=True)
    several = sorted(np.flatnonzero(sizes > 1), key=lambda i: -sizes[i])
    clusters = []
    for i in several[:_CLUSTERS]:
        members = [placed[j] for j in np.flatnonzero(labels == numbers[i])]
        shown = [
            Member(part=part, place=place, origin=row.origin, asked=question_of(row), answered=answer_of(row))
            for part, place, row in members[:_MEMBERS]
        ]
        clusters.append(Cluster(size=len(members), parts=tuple(dict.fromkeys(part for part, _, _ in members)), members=tuple(shown)))
    held_out = {part: [row for name, _, row in placed if name == part] for part in PARTS[1:] if frozen.version.counts.get(part)}
    train = [row for name, _, row in placed if name == PARTS[0]]
    measured = leakages(train, held_out) if train and held_out else {}
    within = int(sizes[sizes > 1].sum()) if len(sizes) else 0
    return SeenClusters(rows=total, looked=True, clusters=tuple(clusters), count=len(several), within=within, leakage=measured)
