"""Data sets of a project at work: import, cleaning and splitting into immutable versions, and what became of each row. Knows nothing about
how a rule decides, what a word means as rows (`flow/rows.py` does), nor about screens."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.config import convert, parse_overrides
from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError, NotFound, UsageError
from tunesmith.core.progress import Progress
from tunesmith.core.row_kinds import NAMES, kind_of, prompt_of, tools_of, turns_of
from tunesmith.core.rows import Row
from tunesmith.core.types import Document, Example, Labelled, LedgerLine, Preference
from tunesmith.data import version as versions
from tunesmith.data.clean import Cleaned
from tunesmith.data.collect import Source, stream_all
from tunesmith.data.import_stream import Intake
from tunesmith.data.ledger import Ledger
from tunesmith.data.sources import public_name
from tunesmith.data.split import Splits
from tunesmith.data.version import DatasetVersion
from tunesmith.flow.datasets.imports import imported, reading, surveyed
from tunesmith.flow.datasets.prepared import cleaned_rows, clusters_of, divided_rows, salted
from tunesmith.flow.logged import logged
from tunesmith.flow.project import Project, load_project
from tunesmith.flow.rows import RowReader, Rows, Sections
from tunesmith.flow.sources import ALL, PARTS, fetch_again
from tunesmith.models.catalog import Catalog

PREVIEW = 3


class Datasets(RowReader):
    """The data of one folder at work: what words mean, and import, cleaning, splitting and looking."""

    @classmethod
    def open(cls, config: Path, progress: Progress, overrides: Sequence[str] = ()) -> Datasets:
        """The data beside `config`; without that file its folder with the defaults. Raises ConfigError."""
        words = list(overrides)
        settings: Project | Sections
        if config.exists():
            settings = load_project(config, words)
        elif config.name != "tunesmith.yaml":
            raise NotFound("no such project file", where=str(config), remedy="tunesmith init writes one")
        else:
            settings = convert(_tree(words), Sections)
        return cls(config.resolve().parent, settings, progress, Catalog(progress=progress.bar))

    @classmethod
    def beside(cls, config: Path, progress: Progress) -> Datasets:
        """The data of a folder whose project file is still to be written: paths start there."""
        return cls(config.resolve().parent, Sections(), progress, Catalog(progress=progress.bar), from_folder=True)

    # --- import ------------------------------------------------------------------------------------------------------------------------

    def preview(self, sources: Sequence[Source], *, most: int = PREVIEW) -> list[dict[str, Any]]:
        """For each source its first file: the format that was detected, the first good rows, and the faults met until then."""
        previews = []
        places = self.located(sources)
        for frozen in (place.frozen for place in places if place.frozen is not None):
            rows = [row for part in frozen.parts for row in frozen.rows(part)][:most]
            previews.append({"path": frozen.name, "format": "tunesmith", "rows": [shown(row) for row in rows], "faults": []})
        for source in (place.source for place in places if place.frozen is None):
            formats: dict[str, str] = {}
            rows = []
            faults: list[str] = []
            for incoming in stream_all(source, formats, self.named):
                if incoming.row is not None:
                    rows.append(incoming.row)
                faults += [f"{incoming.origin}: {message}" for _, message in incoming.faults]
                if len(rows) >= most or len(faults) >= 20:
                    break
            path, name = next(iter(formats.items()), (source.path, source.format))
            previews.append({"path": path, "format": name, "rows": [shown(row) for row in rows], "faults": faults[:5]})
        return previews

    def first(self, sources: Sequence[Source], most: int = 50) -> list[Row]:
        """The first good rows of the sources, of one kind."""
        rows: list[Row] = []
        for place in self.located(sources):
            frozen = place.frozen
            good = (row for part in frozen.parts for row in frozen.rows(part)) if frozen is not None else self._good(place.source)
            rows += itertools.islice(good, most)
        return [row for row in rows[:most] if type(row) is type(rows[0])]

    def _good(self, source: Source) -> Iterator[Row]:
        return (incoming.row for incoming in stream_all(source, {}, self.named) if incoming.row is not None)

    def survey(self, sources: Sequence[Source], *, max_invalid: float = 0.0) -> Intake:
        """What `keep` would take in, counted; nothing is written. Raises as `keep`."""
        return surveyed(self._read_anew(sources), max_invalid=max_invalid)

    def keep(self, sources: Sequence[Source], *, max_invalid: float = 0.0, note: str = "") -> tuple[DatasetVersion, Intake]:
        """Import: read the sources into a version, row by row, in bounded memory. Rows with faults lie in `rejects.jsonl` beside the
        versions."""
        public = [msgspec.structs.replace(source, path=public_name(source.path)) for source in sources]
        self.progress.say(f"reading {', '.join(source.path for source in public)}")
        read = self._read_anew(sources)
        hashes = [name for place in self.located(sources) if "://" not in place.source.path for name in place.content]
        recipe = {"step": "import", "sources": msgspec.to_builtins(public), "content": hashes, "max_invalid": max_invalid}
        bar = reading(read, self.progress, self.named)
        return imported(self.root, read, recipe, max_invalid=max_invalid, note=note, on_row=bar, named=self.named)

    def _read_anew(self, sources: Sequence[Source]) -> list[Source]:
        """The sources with real paths. Raises UsageError for versions, which need no import."""
        places = self.located(sources)
        if frozen := next((place.frozen for place in places if place.frozen is not None), None):
            raise UsageError(f"{frozen.name} is a version already", allowed="files, folders, patterns, URLs, queries or catalog:NAME")
        return [place.source for place in places]

    def fetch(self) -> list[str]:
        """Read the project's URLs and queries anew; what they are called."""
        sources = self.settings.sources if isinstance(self.settings, Project) else ()
        with closing(self.store()) as store:
            return fetch_again(sources, self.home, partial(logged, store=store))

    # --- clean and split ---------------------------------------------------------------------------------------------------------------

    def cleaned(self, data: Rows, evaluation: Sequence[Row] = (), note: str = "") -> tuple[DatasetVersion, Cleaned, Ledger]:
        """Apply the `clean` section; freezes the rows that are left. Raises GateRefused above `max_dropped`, and nothing is written."""
        ledger = own_ledger(data.ledger)
        self.progress.say(f"cleaning {counted(len(data.rows), 'row')}")
        done = cleaned_rows(data.rows, ledger, self.settings.clean, self.catalog, evaluation=evaluation, progress=self.progress)
        recipe = {"step": "clean", "from": data.name, "clean": msgspec.to_builtins(self.settings.clean)}
        recipe["evaluation"] = versions.digest_of(evaluation) if evaluation else None
        return self.freeze({ALL: done.rows}, recipe, ledger, data, note), done, ledger

    def divided(self, data: Rows, note: str = "") -> tuple[DatasetVersion, Splits]:
        """Split by the `split` section. Near-duplicates are found anew, so that none straddles. Raises GateRefused when parts leak."""
        rows = data.rows
        self.progress.say(f"finding near-duplicates among {counted(len(rows), 'row')}")
        clusters = clusters_of(rows, self.settings.clean.near_duplicates)
        wanted = salted(self.settings.split, [name for name in data.splits if len(data.splits) == 1 and name in PARTS])
        parts = divided_rows(rows, clusters, wanted, self.catalog, progress=self.progress)
        near = msgspec.to_builtins(self.settings.clean.near_duplicates)
        recipe = {"step": "split", "from": data.name, "split": msgspec.to_builtins(wanted), "near_duplicates": near}
        named = {name: getattr(parts, name) for name in PARTS}
        return self.freeze(named, recipe, own_ledger(data.ledger), data, note), parts

    def freeze(
        self, splits: Mapping[str, Sequence[Row]], recipe: dict[str, Any], ledger: Ledger, parent: Rows, note: str
    ) -> DatasetVersion:
        """Keep rows that were made from `parent` as a version."""
        came = parent.version.id if parent.version is not None and parent.version.recipe["step"] != "run" else None
        return versions.freeze(self.root, splits, recipe, ledger=ledger, parent=came, note=note)

    # --- looking -----------------------------------------------------------------------------------------------------------------------

    def why(self, data: Rows, word: str) -> list[dict[str, Any]]:
        """What became of the rows that `word` names: fate, rule, reason, the row now, before, and the one that it repeats."""
        lines = self._lines(data, word)
        now = {row.origin: (name, row) for name, rows in data.splits.items() for row in rows}
        before = {row.origin: row for row in self._earliest(data)}
        fates = []
        for line in lines:
            part, row = now.get(line.origin, (None, None))
            first = before.get(line.origin)
            other = now.get(line.other or "", (None, None))[1] or before.get(line.other or "")
            fates.append(
                {
                    **msgspec.structs.asdict(line),
                    "split": part,
                    "now": shown(row) if row is not None else None,
                    "came_in": shown(first) if first is not None and first != row else None,
                    "repeats": shown(other) if other is not None else None,
                }
            )
        return fates

    def _lines(self, data: Rows, word: str) -> list[LedgerLine]:
        ends = [line for line in data.fates if line.origin.endswith(f"/{word}") or (len(word) >= 6 and line.row.startswith(word))]
        if ends and not any(word in (line.origin, line.row) for line in ends):
            return ends
        if word.isdigit():  # a line's number, where there is one file
            numbered = [line for line in data.fates if line.origin.endswith(f":{word}")]
            if len(numbered) == 1:
                return numbered
        return data.fates.find(word)

    def _earliest(self, data: Rows) -> Sequence[Row]:
        """The rows as they were imported."""
        if data.version is None or data.version.recipe["step"] == "run":
            return []
        first = versions.lineage(self.root, data.version.id)[-1]
        return self.load(first).rows if first.id != data.version.id else []


def _tree(words: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in parse_overrides(words):
        node = tree
        for part in key[:-1]:
            node = node.setdefault(part, {})
        node[key[-1]] = value
    return tree


def own_ledger(ledger: Ledger) -> Ledger:
    """The same lines in a ledger of their own, so that a failed step leaves the first as it was."""
    other = Ledger()
    for line in ledger:
        other.enter(line.origin, line.row)
        if line.fate != "kept":
            other.mark(line.origin, line.fate, line.rule, line.reason, other=line.other)
    return other


def shown(row: Row) -> dict[str, Any]:
    """A row for people: where it came from, its turns with their roles, and what else is known of it."""
    shown_turns = turns_of(row) if isinstance(row, Example) else prompt_of(row)
    turns = [{"role": turn.role, "text": _said(turn)} for turn in shown_turns]
    turns += [{"role": "text", "text": row.text}] if isinstance(row, Document) else []
    always = {"id": row.id, "origin": row.origin, "turns": turns}
    more = {**_known(row), "group": row.group, "tools": len(tools_of(row)) or None, "meta": row.meta or None}
    return {**always, **{key: value for key, value in more.items() if value is not None}}


def _known(row: Row) -> dict[str, Any]:
    """What only rows of this kind have."""
    if isinstance(row, Preference):
        return {"preferred": _said(row.preferred), "non_preferred": _said(row.non_preferred)}
    if isinstance(row, Labelled):
        return {"answer": _said(row.answer), "desirable": row.desirable}
    return {"reference": row.reference, "label": row.label} if isinstance(row, Example) else {}


def _said(turn: Any) -> str:
    calls = [f"{call.function.name}({call.function.arguments})" for call in turn.tool_calls]
    return "\n".join([*([turn.text] if turn.text else []), *calls])


def text_of(entry: Mapping[str, Any], width: int = 2_000) -> str:
    """A row that `shown` made as lines of text."""
    lines = [f"{entry['origin']}  {entry['id']}"]
    lines += [f"  {turn['role']:>9}: {_cut(turn['text'], width)}" for turn in entry["turns"]]
    for key in ("reference", "label", "preferred", "non_preferred", "answer", "desirable", "group", "tools"):
        if key in entry:
            lines.append(f"  {key:>9}: {_cut(str(entry[key]), width)}")
    if "meta" in entry:
        lines.append(f"  {'meta':>9}: {_cut(json.dumps(entry['meta'], ensure_ascii=False, default=str), width)}")
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    flat = text.replace("\n", "\n" + " " * 13)
    return flat if len(flat) <= width else f"{flat[:width]}… ({len(text)} characters)"


def evaluation_rows(datasets: Datasets, words: Sequence[str]) -> list[Row]:
    """The rows of several words, such as evaluation sets."""
    return [row for word in words for row in datasets.find(word).rows]


def differences(datasets: Datasets, old: str, new: str) -> dict[str, Any]:
    """What changed between two versions: added, removed, changed and moved rows. Raises DataError when they hold other kinds of rows."""
    a, b = datasets.find(old), datasets.find(new)
    kinds = kind_of(a.rows), kind_of(b.rows)
    if a.rows and b.rows and kinds[0] is not kinds[1]:
        holds = f"{old} holds {NAMES[kinds[0]]}, {new} {NAMES[kinds[1]]}"
        raise DataError(f"different kinds of rows cannot be compared: {holds}", allowed="two sets of one kind")
    difference = versions.diff(a.splits, b.splits)

    def sides(changes: Sequence[versions.ChangedRow]) -> Iterator[dict[str, Any]]:
        for change in changes:
            before, after = (shown(row) if row is not None else None for row in (change.before, change.after))
            yield {"origin": change.origin, "before": before, "after": after}

    moved = [{"origin": origin, "from": was, "to": now} for origin, was, now in difference.moved]
    lists = {
        "added": list(sides(difference.added)),
        "removed": list(sides(difference.removed)),
        "changed": list(sides(difference.changed)),
        "moved": moved,
    }
    return {"old": a.name, "new": b.name, "counts": {key: len(value) for key, value in lists.items()}, **lists}
