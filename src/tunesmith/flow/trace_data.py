"""The data side of a trace: what a split was made from, what became of its rows, which versions hold a row. Knows nothing about models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core.counted import counted
from tunesmith.core.row_kinds import prompt_of
from tunesmith.core.rows import Row as DataRow
from tunesmith.core.rows import read_jsonl, read_parquet
from tunesmith.core.text_vectors import TextIndex
from tunesmith.core.types import Document, LedgerLine, Record
from tunesmith.data import version as versions
from tunesmith.data.ledger import LOST
from tunesmith.data.text import answer_of, question_of
from tunesmith.data.version import DatasetVersion
from tunesmith.flow.sources import PARTS
from tunesmith.store.lineage import Lineage
from tunesmith.store.store import Store

LEDGER = "ledger.jsonl"
NAME_OF_SPLIT = 24  # characters of its digest that name a run's split as a version
_LEAST_ROW = 6  # characters of a row's id that can name it


class Link(Record, frozen=True):
    """One thing on the way: what kind it is, its name, what is known of it in words, and in figures."""

    kind: str
    id: str
    text: str = ""
    facts: dict[str, Any] = {}


@dataclass(frozen=True)
class Fate:
    """What became of an input row in one set of data. `split` is the digest of the run's split that has it, None in a frozen version;
    `taught` says that the row is among those that were trained on."""

    line: LedgerLine
    where: Link
    split: str | None
    taught: bool


class DataTrace:
    """Looks at the data of one store; shows `shown` rows of each set: the first ones, or with `like` (a question and its answer) those that
    are most like it."""

    like: tuple[str, str] | None = None

    def __init__(self, store: Store, lineage: Lineage, shown: int) -> None:
        self._lineage, self._shown = lineage, shown
        self.root, self._stages = store.layout.datasets, store.layout.stages

    def split(self, digest: str) -> Iterator[Link]:
        """A run's split, and what it was made from."""
        stage = next(iter(self._lineage.stages([digest])), None)
        folder = self._stages / digest
        if stage is None or not folder.is_dir():
            yield Link(kind="data", id=digest, text="the split of a run whose result is no longer kept")
            return
        counts = {part: _rows(folder / f"{part}.parquet") for part in PARTS}
        yield Link(kind="data", id=digest, text=_counted(counts), facts={"counts": counts, "created": stage["created"]})
        yield from self._ledger(folder, digest)
        yield from self._examples(folder / "train.parquet")
        for collected in self._lineage.before(digest):
            yield from self.collected(collected)

    def collected(self, stage: Mapping[str, Any]) -> Iterator[Link]:
        """What a run read, and the versions that it read it from."""
        output = stage["output"]
        text = f"{counted(output.get('inputs', '?'), 'row')} read, {output.get('invalid', 0)} with faults"
        yield Link(kind="collected", id=stage["digest"], text=text, facts=dict(output))
        for word in output.get("versions", ()):
            name = str(word).partition(":")[0]
            version, earlier = self._known().get(name), self._lineage.stage(name)
            if version is not None:
                yield self.version(version)
                yield from self.before(version)
            elif earlier is not None and earlier["digest"] != stage["digest"]:  # the split of an earlier run
                yield from self.split(earlier["digest"])

    def _ledger(self, folder: Path, name: str) -> Iterator[Link]:
        if not (folder / LEDGER).is_file():
            return
        fates, sources = Counter[str](), Counter[str]()
        for line in read_jsonl(folder / LEDGER, LedgerLine):
            fates[line.fate] += 1
            sources[line.origin.rpartition(":")[0] or line.origin] += 1
        yield Link(kind="ledger", id=name, text=_counted(fates), facts={"fates": dict(fates)})
        for source, count in sources.most_common():
            yield Link(kind="source", id=source, text=f"{counted(count, 'row')}", facts={"rows": count})

    def _examples(self, file: Path) -> Iterator[Link]:
        """Some of the rows, with their origins."""
        if self._shown < 1 or not file.is_file():
            return
        if self.like is not None:
            yield from self.nearest(list(read_parquet(file)))
            return
        for i, row in enumerate(read_parquet(file)):
            if i == self._shown:
                return
            yield Link(kind="row", id=row.id, text=f"{row.origin}  {_beginning(row)}", facts={"origin": row.origin})

    def nearest(self, rows: Sequence[DataRow]) -> Iterator[Link]:
        """The rows whose question and answer have most words in common with `like`, the rare ones counting most (tf-idf cosines)."""
        if self.like is None or not rows:
            return
        question, answer = self.like
        asked = TextIndex([question_of(row) for row in rows]).similar([question])[0]
        answered = TextIndex([answer_of(row) for row in rows]).similar([answer])[0]
        likeness = (asked + answered) / 2
        for i in np.argsort(-likeness, kind="stable")[: self._shown]:
            if likeness[i] <= 0:
                return
            row, parts = rows[i], {"likeness": float(likeness[i]), "question": float(asked[i]), "answer": float(answered[i])}
            begins = _beginning(row)
            text = f"{row.origin}  {likeness[i]:.2f} alike  {begins}"
            yield Link(kind="row", id=row.id, text=text, facts={"origin": row.origin, "begins": begins, **parts})

    # frozen versions

    def _known(self) -> dict[str, DatasetVersion]:
        return {version.id: version for version in versions.log(self.root)}

    def version(self, version: DatasetVersion) -> Link:
        """A frozen version in words."""
        step = str(version.recipe.get("step", "frozen"))
        note = f"; {version.note}" if version.note else ""
        facts = {"counts": version.counts, "fates": version.fates, "recipe": version.recipe, "created": version.created}
        return Link(kind="data version", id=version.id, text=f"{step}: {_counted(version.counts)}{note}", facts=facts)

    def before(self, version: DatasetVersion) -> Iterator[Link]:
        """What a version was made from: its ledger, the versions before it, some of its rows."""
        yield from self._ledger(self.root / version.id, version.id)
        for earlier in versions.lineage(self.root, version.id)[1:]:
            yield self.version(earlier)
        part = "train" if "train" in version.counts else next(iter(version.counts), "")
        yield from self._examples(versions.rows_file(self.root / version.id, part))

    def after(self, version: DatasetVersion) -> Iterator[DatasetVersion]:
        """The versions that were made from this one."""
        for other in self._known().values():
            if version.id in [earlier.id for earlier in versions.lineage(self.root, other.id)[1:]]:
                yield other

    def splits_of(self, version: DatasetVersion) -> list[str]:
        """The digests of the splits of runs that read this version or one that was made from it."""
        return self._splits_from({version.id, *(later.id for later in self.after(version))})

    def splits_after(self, digest: str) -> list[str]:
        """The digests of the splits of later runs that read a stage's result under the name of a version."""
        return self._splits_from({digest[:NAME_OF_SPLIT]})

    def _splits_from(self, names: set[str]) -> list[str]:
        read = [
            stage["digest"]
            for stage in self._lineage.of_kind("collect")
            if names & {str(word).partition(":")[0] for word in stage["output"].get("versions", ())}
        ]
        return [stage["digest"] for digest in read for stage in self._lineage.after(digest) if stage["name"] == "split"]

    # single rows

    def fates(self, word: str) -> Iterator[Fate]:
        """Every set of data that an input row of this origin (`file:line`) or id came into, runs' splits first."""
        for stage in self._lineage.of_kind("split"):
            folder = self._stages / stage["digest"]
            for line in _lines(folder, word):
                part = "" if line.fate in LOST else _part_of(folder, PARTS, line.origin)
                where = Link(kind="data", id=stage["digest"], text=_fate(line, part), facts={"part": part, "fate": line.fate})
                yield Fate(line, where, stage["digest"], part == "train")
        for version in versions.log(self.root):
            folder = self.root / version.id
            for line in _lines(folder, word):
                part = "" if line.fate in LOST else _part_of(folder, tuple(version.counts), line.origin)
                where = Link(kind="data version", id=version.id, text=_fate(line, part), facts={"part": part, "fate": line.fate})
                yield Fate(line, where, None, False)


def _lines(folder: Path, word: str) -> Iterator[LedgerLine]:
    if not (folder / LEDGER).is_file():
        return
    for line in read_jsonl(folder / LEDGER, LedgerLine):
        if word in (line.origin, line.row) or line.origin.endswith(f"/{word}") or (len(word) >= _LEAST_ROW and line.row.startswith(word)):
            yield line


def _part_of(folder: Path, parts: tuple[str, ...], origin: str) -> str:
    return next((part for part in parts if any(row.origin == origin for row in read_parquet(folder / f"{part}.parquet"))), "")


def _fate(line: LedgerLine, part: str) -> str:
    why = f" by {line.rule}: {line.reason}" if line.rule else ""
    return f"{line.origin} {line.fate}{why}" + (f", in '{part}'" if part else "")


def _rows(file: Path) -> int:
    return sum(1 for _ in read_parquet(file)) if file.is_file() else 0


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "no rows"


def _beginning(row: DataRow, width: int = 60) -> str:
    text = row.text if isinstance(row, Document) else " ".join(turn.text for turn in prompt_of(row) if turn.role == "user")
    flat = " ".join(text.split())
    return flat if len(flat) <= width else f"{flat[:width]}…"
