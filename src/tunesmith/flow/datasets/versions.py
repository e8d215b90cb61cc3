"""Data sets of a project at work: what a word means as rows, and import, cleaning and splitting into immutable versions. Knows nothing
about how a rule decides, nor about screens.

latest                      the newest version; without one the rows of the last run; without one the project's sources, read anew
run                         the rows of the project's last run
3f2a…                       a version, by the beginning of its id
catalog:NAME                a data set of the catalogue
anything else               a file, folder, pattern or URL in any format of the data room
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.config import convert, parse_overrides
from tunesmith.core.errors import DataError, NotFound, UsageError, nearest
from tunesmith.core.progress import Progress
from tunesmith.core.row_kinds import NAMES, kind_of, only, prompt_of, tools_of, turns_of
from tunesmith.core.rows import Row, read_parquet
from tunesmith.core.types import Document, Example, Labelled, LedgerLine, Preference, Record
from tunesmith.data import version as versions
from tunesmith.data.clean import Clean, Cleaned, clean
from tunesmith.data.collect import Collected, Source, collect, stream_all
from tunesmith.data.import_stream import Intake
from tunesmith.data.ledger import Ledger
from tunesmith.data.set_rules import near_clusters
from tunesmith.data.split import Split, Splits, split
from tunesmith.data.version import DatasetVersion
from tunesmith.flow.datasets.imports import ALL as ALL
from tunesmith.flow.datasets.imports import imported, reading, surveyed
from tunesmith.flow.datasets.leaks import meaning
from tunesmith.flow.datasets.vectors import embed
from tunesmith.flow.project import Project, load_project, open_store
from tunesmith.flow.sources import PARTS, content, located
from tunesmith.models.catalog import Catalog
from tunesmith.store.store import Store

PREVIEW = 3


class Sections(Record, frozen=True):
    """The parts of tunesmith.yaml that data commands read, for folders that have no such file."""

    max_invalid: float = 0.0
    clean: Clean = Clean()
    split: Split = Split()
    base: str = ""
    store: str = ".tunesmith"


@dataclass(frozen=True)
class Data:
    """Rows under a name. `fates` is the ledger that says the last word about each input row; `ledger` the one that fits these rows."""

    name: str
    splits: dict[str, list[Row]]
    ledger: Ledger
    version: DatasetVersion | None = None
    last: Ledger | None = None

    @property
    def rows(self) -> list[Row]:
        """The rows of all splits."""
        return [row for rows in self.splits.values() for row in rows]

    @property
    def fates(self) -> Ledger:
        """What became of each row in the end, tokenizing included."""
        return self.last or self.ledger

    def part(self, name: str | None) -> list[Row]:
        """The rows of one split (None: of all). Raises NotFound with the splits there are."""
        if name is None:
            return self.rows
        if name not in self.splits:
            raise NotFound(f"{self.name} has no split '{name}'", allowed=", ".join(self.splits), remedy=nearest(name, self.splits))
        return self.splits[name]

    def examples(self) -> list[Example]:
        """All rows as Examples. Raises DataError when they are of another kind."""
        return only(self.rows, Example, self.name)

    def find(self, word: str) -> Row:
        """One row by its id (or the beginning of it), its origin, the end of its origin (`file.jsonl:17`), or its number from 1.

        Raises NotFound, or UsageError when several fit.
        """
        rows = self.rows
        if word.isdigit() and 1 <= int(word) <= len(rows):
            return rows[int(word) - 1]
        fits = [row for row in rows if word in (row.id, row.origin)] or [row for row in rows if row.origin.endswith(f"/{word}")]
        fits = fits or [row for row in rows if len(word) >= 4 and row.id.startswith(word)]
        if not fits:
            raise NotFound(
                f"no row '{word}' in {self.name} ({len(rows)} rows)",
                allowed=f"an id, an origin such as {rows[0].origin if rows else 'file:line'}, or a number from 1",
                remedy=nearest(word, [row.origin for row in rows[:5_000]]) or f"tunesmith data why {word} tells what became of it",
            )
        if len({row.origin for row in fits}) > 1 and word != fits[0].id:
            raise UsageError(f"'{word}' fits {len(fits)} rows", allowed=", ".join(row.origin for row in fits[:5]))
        return fits[0]


@dataclass
class Datasets:
    """The data of one folder: its settings (from tunesmith.yaml where there is one), its versions, and who is told."""

    folder: Path
    settings: Project | Sections
    progress: Progress
    catalog: Catalog = field(default_factory=Catalog)

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

    @property
    def root(self) -> Path:
        """Where versions lie."""
        return self.folder / self.settings.store / "datasets"

    def store(self) -> Store:
        """The folder's store, which is made where there is none."""
        if isinstance(self.settings, Project):
            return open_store(self.settings, self.folder)
        return Store.open(self.folder / self.settings.store)

    def find(self, word: str = "latest", *, format: str = "auto", mapping: Mapping[str, str] | None = None) -> Data:
        """The rows that the word means. Raises NotFound with what a word can be, DataError for what cannot be read."""
        if word == "latest":
            return self._latest()
        if word == "run":
            found = self._run()
            if found is None:
                raise NotFound("this project has no finished run", where=str(self.folder), remedy="tunesmith run")
            return found
        if "://" in word or word.startswith("catalog:") or Path(word).expanduser().exists() or glob.has_magic(word):
            return self._read([Source(path=word, format=format, map=dict(mapping or {}))], word)
        if not versions.log(self.root) or not any(one.id.startswith(word) for one in versions.log(self.root)):
            raise NotFound(
                f"no data '{word}'",
                where=str(self.root),
                allowed="latest, run, the beginning of a version's id, catalog:NAME, or a file, folder, pattern or URL",
                remedy=nearest(word, ["latest", "run", *(one.id for one in versions.log(self.root))])
                or "tunesmith data log lists versions",
            )
        return self.load(versions.load(self.root, word))

    def load(self, version: DatasetVersion) -> Data:
        """A version's rows, checked against its digests, and its ledger."""
        names = sorted(version.counts, key=lambda name: (PARTS.index(name) if name in PARTS else -1, name))
        splits = {name: versions.rows_of(self.root, version, name) for name in names}
        kept = self.root / version.id / versions.LEDGER
        return Data(version.id, splits, Ledger.read(kept) if kept.is_file() else entered(splits), version)

    def _latest(self) -> Data:
        known = versions.log(self.root)
        if known:
            return self.load(known[0])
        found = self._run()
        if found is not None:
            return found
        if not isinstance(self.settings, Project):
            raise NotFound("there is no data yet", where=str(self.root), remedy="tunesmith data import FILE, or name a file")
        return self._read(list(self.settings.sources), "the project's sources")

    def _read(self, sources: list[Source], name: str) -> Data:
        found = self.collect(sources, max_invalid=1.0)
        if found.invalid:
            self.progress.say(f"{found.invalid} of {found.inputs} rows have faults and are left out; the first: {found.faults[0]}")
        return Data(name, {ALL: found.rows}, found.ledger)

    def _run(self) -> Data | None:
        """The rows of the newest finished split stage of the project's runs, or None."""
        elsewhere = isinstance(self.settings, Project) and self.settings.serve.database
        if not elsewhere and not (self.folder / self.settings.store / "tunesmith.db").is_file():
            return None  # and looking makes no store
        with closing(self.store()) as store:
            kept = [row for row in store.stages("split", "tokens") if self._stage(row["digest"]).is_dir()]
        done = next((row for row in kept if row["name"] == "split"), None)
        if done is None:
            return None
        tokens = next((row for row in kept if row["name"] == "tokens" and row["created"] >= done["created"]), None)
        place = self._stage(done["digest"])
        return Data(
            f"run {done['digest'][:12]}",
            {part: list(read_parquet(place / f"{part}.parquet")) for part in PARTS},
            Ledger.read(place / "ledger.jsonl"),
            last=Ledger.read(self._stage(tokens["digest"]) / "ledger.jsonl") if tokens else None,
        )

    def _stage(self, digest: str) -> Path:
        return self.folder / self.settings.store / "stages" / digest

    # --- import ------------------------------------------------------------------------------------------------------------------------

    def located(self, sources: Sequence[Source]) -> list[Source]:
        """The sources with real paths. Paths of the command line are relative to where it runs, those of the project to its folder."""
        mine = isinstance(self.settings, Project) and list(sources) == list(self.settings.sources)
        return located(sources, self.folder if mine else Path(), self.catalog)

    def preview(self, sources: Sequence[Source], *, most: int = PREVIEW) -> list[dict[str, Any]]:
        """For each source its first file: the format that was detected, the first good rows, and the faults met until then."""
        found = []
        for source in self.located(sources):
            formats: dict[str, str] = {}
            rows: list[Row] = []
            faults: list[str] = []
            for incoming in stream_all(source, formats):
                if incoming.row is not None:
                    rows.append(incoming.row)
                faults += [f"{incoming.origin}: {message}" for _, message in incoming.faults]
                if len(rows) >= most or len(faults) >= 20:
                    break
            path, name = next(iter(formats.items()), (source.path, source.format))
            found.append({"path": path, "format": name, "rows": [shown(row) for row in rows], "faults": faults[:5]})
        return found

    def collect(self, sources: Sequence[Source], *, max_invalid: float = 0.0, rejects: Path | None = None) -> Collected:
        """Every row of the sources (see `data.collect.collect`)."""
        self.progress.say(f"reading {', '.join(source.path for source in sources)}")
        return collect(self.located(sources), max_invalid=max_invalid, rejects=rejects)

    def survey(self, sources: Sequence[Source], *, max_invalid: float = 0.0) -> Intake:
        """What `keep` would take in, counted; nothing is written. Raises as `keep`."""
        return surveyed(self.located(sources), max_invalid=max_invalid)

    def keep(self, sources: Sequence[Source], *, max_invalid: float = 0.0, note: str = "") -> tuple[DatasetVersion, Intake]:
        """Import: read the sources into a version, row by row, in bounded memory. Rows with faults lie in `rejects.jsonl` beside the
        versions."""
        self.progress.say(f"reading {', '.join(source.path for source in sources)}")
        places = self.located(sources)
        hashes = content([one for one in places if "://" not in one.path])
        recipe = {"step": "import", "sources": msgspec.to_builtins(list(sources)), "content": hashes, "max_invalid": max_invalid}
        return imported(self.root, places, recipe, max_invalid=max_invalid, note=note, told=reading(places, self.progress))

    # --- clean and split ---------------------------------------------------------------------------------------------------------------

    def cleaned(self, data: Data, evaluation: Sequence[Row] = (), note: str = "") -> tuple[DatasetVersion, Cleaned, Ledger]:
        """Apply the `clean` section; freezes the rows that are left. Raises GateRefused above `max_dropped`, and nothing is written."""
        ledger = copied(data.ledger)
        self.progress.say(f"cleaning {len(data.rows)} rows")
        encoder = partial(embed, catalog=self.catalog, encoder=self.settings.clean.semantic_duplicates.encoder)
        done = clean(data.rows, self.settings.clean, ledger, evaluation=evaluation, encoder=encoder, progress=self.progress)
        recipe = {"step": "clean", "from": data.name, "clean": msgspec.to_builtins(self.settings.clean)}
        recipe["evaluation"] = versions.digest_of(evaluation) if evaluation else None
        return self.freeze({ALL: done.rows}, recipe, ledger, data, note), done, ledger

    def divided(self, data: Data, note: str = "") -> tuple[DatasetVersion, Splits]:
        """Split by the `split` section. Near-duplicates are found anew, so that none straddles. Raises GateRefused when parts leak."""
        rows = data.rows
        self.progress.say(f"finding near-duplicates among {len(rows)} rows")
        _, clusters = near_clusters(rows, self.settings.clean.near_duplicates)
        parts = split(rows, self.settings.split, clusters)
        parts = replace(parts, meaning=meaning(parts, self.settings.split.semantic, self.catalog, self.progress))
        near = msgspec.to_builtins(self.settings.clean.near_duplicates)
        recipe = {"step": "split", "from": data.name, "split": msgspec.to_builtins(self.settings.split), "near_duplicates": near}
        named = {name: getattr(parts, name) for name in PARTS}
        return self.freeze(named, recipe, copied(data.ledger), data, note), parts

    def freeze(
        self, splits: Mapping[str, Sequence[Row]], recipe: dict[str, Any], ledger: Ledger, parent: Data, note: str
    ) -> DatasetVersion:
        """Keep rows that were made from `parent` as a version."""
        came = parent.version.id if parent.version is not None else None
        return versions.freeze(self.root, splits, recipe, ledger=ledger, parent=came, note=note)

    # --- looking -----------------------------------------------------------------------------------------------------------------------

    def why(self, data: Data, word: str) -> list[dict[str, Any]]:
        """What became of the rows that `word` names: fate, rule, reason, the row now, before, and the one that it repeats."""
        lines = self._lines(data, word)
        now = {row.origin: (name, row) for name, rows in data.splits.items() for row in rows}
        before = {row.origin: row for row in self._earliest(data)}
        found = []
        for line in lines:
            part, row = now.get(line.origin, (None, None))
            first = before.get(line.origin)
            other = now.get(line.other or "", (None, None))[1] or before.get(line.other or "")
            found.append(
                {
                    **msgspec.structs.asdict(line),
                    "split": part,
                    "now": shown(row) if row is not None else None,
                    "came_in": shown(first) if first is not None and first != row else None,
                    "repeats": shown(other) if other is not None else None,
                }
            )
        return found

    def _lines(self, data: Data, word: str) -> list[LedgerLine]:
        ends = [line for line in data.fates if line.origin.endswith(f"/{word}") or (len(word) >= 6 and line.row.startswith(word))]
        if ends and not any(word in (line.origin, line.row) for line in ends):
            return ends
        if word.isdigit():  # a line's number, where there is one file
            numbered = [line for line in data.fates if line.origin.endswith(f":{word}")]
            if len(numbered) == 1:
                return numbered
        return data.fates.find(word)

    def _earliest(self, data: Data) -> list[Row]:
        """The rows as they were imported."""
        if data.version is None:
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


def copied(ledger: Ledger) -> Ledger:
    """A ledger of its own with the same lines, so that a failed step leaves the first as it was."""
    other = Ledger()
    for line in ledger:
        other.enter(line.origin, line.row)
        if line.fate != "kept":
            other.mark(line.origin, line.fate, line.rule, line.reason, other=line.other)
    return other


def entered(splits: Mapping[str, Sequence[Row]]) -> Ledger:
    """A ledger in which the rows of the splits came in and were kept. Raises DataError when one origin is there twice."""
    ledger = Ledger()
    for rows in splits.values():
        for row in rows:
            ledger.enter(row.origin, row.id)
    return ledger


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
    found = versions.diff(a.splits, b.splits)

    def sides(changes: Sequence[versions.Change]) -> Iterator[dict[str, Any]]:
        for one in changes:
            before, after = (shown(row) if row is not None else None for row in (one.before, one.after))
            yield {"origin": one.origin, "before": before, "after": after}

    moved = [{"origin": origin, "from": was, "to": now} for origin, was, now in found.moved]
    lists = {
        "added": list(sides(found.added)),
        "removed": list(sides(found.removed)),
        "changed": list(sides(found.changed)),
        "moved": moved,
    }
    return {"old": a.name, "new": b.name, "counts": {key: len(value) for key, value in lists.items()}, **lists}
