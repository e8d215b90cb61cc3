"""What a word means as rows, for every command alike: training, evaluation, estimates, the data room. Asks no model, changes no row.

latest[:PART]              the newest data version; without one the rows of the last run; without one the project's sources, read anew
3f2a…[:PART]               a version, or the split of a run, by the beginning of its id
run[:PART]                 the rows of the project's run
train, validation, test    a part of the split that the project's plan asks for; `test` is sealed: each look at it is logged
catalog:NAME               a data set of the catalogue
suite:general              the regression suite: six abilities, each with its own rows and metric
lm-eval:TASK[@FOLDER]      a task of an installed lm-evaluation-harness (from a folder of its task files)
promptfoo:FILE             a promptfoo configuration with its assertions
openai-evals:FILE          a samples file, or an eval object with its graders
log:CONDITIONS             answered requests of the store's log, such as log:alias=my-model,since=7d
anything else              a file, folder, pattern or URL in any format of the data room
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.core.counted import counted
from tunesmith.core.errors import NotFound, SourceUnavailable, UsageError, nearest
from tunesmith.core.progress import Progress
from tunesmith.core.row_kinds import only
from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Record, digest
from tunesmith.data import version as versions
from tunesmith.data.clean import Clean
from tunesmith.data.collect import Collected, Source, collect
from tunesmith.data.formats.registry import parse_row
from tunesmith.data.ledger import Ledger
from tunesmith.data.set_rules import near_clusters
from tunesmith.data.sources import public_name
from tunesmith.data.split import Split
from tunesmith.data.version import DatasetVersion
from tunesmith.evaluate.run import load_evaluation
from tunesmith.flow.clusters import read_clusters
from tunesmith.flow.logged import logged
from tunesmith.flow.project import Project, open_store
from tunesmith.flow.sources import ALL, PARTS, Frozen, Place, entered, frozen_of, located, log_now, narrowed, relative_to, splits_of_runs
from tunesmith.flow.sources import rows as part_rows
from tunesmith.models.catalog import Catalog
from tunesmith.models.resolve import Models
from tunesmith.store.layout import FOLDER, Layout
from tunesmith.store.runs import Run, Runs
from tunesmith.store.store import Row as StoreRow
from tunesmith.store.store import Store

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext

WORDS = (
    "latest[:PART], VERSION[:PART], run[:PART], train, validation, test, catalog:NAME, suite:general, lm-eval:TASK, promptfoo:FILE, "
    "openai-evals:FILE, log:CONDITIONS, or a file, folder, pattern or URL"
)


class Sections(Record, frozen=True):
    """The parts of tunesmith.yaml that data commands read, for folders that have no such file."""

    max_invalid: float = 0.0
    clean: Clean = Clean()
    split: Split = Split()
    base: str = ""
    store: str = FOLDER


@dataclass(frozen=True)
class Rows:
    """Rows under a name, part by part. `ledger` fits these rows; `last` is the ledger that says the last word about each input row.

    `clusters`: row → cluster of rows that are not independent; `metrics` what the rows bring (name → options); `max_tokens` what their
    answers need (None: nothing is known); `limit`: an evaluation asks at most so many; `sealed`: each look is logged.
    """

    name: str
    splits: Mapping[str, Sequence[Row]]
    ledger: Ledger
    version: DatasetVersion | None = None
    last: Ledger | None = None
    clusters: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_tokens: int | None = None
    limit: int | None = None
    sealed: bool = False

    @property
    def rows(self) -> Sequence[Row]:
        """The rows of all parts."""
        if len(self.splits) == 1:
            return next(iter(self.splits.values()))
        return [row for rows in self.splits.values() for row in rows]

    @property
    def fates(self) -> Ledger:
        """What became of each row in the end, tokenizing included."""
        return self.last or self.ledger

    @property
    def seal(self) -> str:
        """What names sealed rows in the log of openings; the same for a run of the project and for a single evaluation."""
        return digest([row.id for row in self.rows[: self.limit]])

    def part(self, name: str | None) -> Sequence[Row]:
        """The rows of one part (None: of all). Raises NotFound with the parts there are."""
        if name is None:
            return self.rows
        if name not in self.splits:
            raise NotFound(f"{self.name} has no split '{name}'", allowed=", ".join(self.splits), remedy=nearest(name, self.splits))
        return self.splits[name]

    def narrowed(self, name: str) -> Rows:
        """One part alone, with the fates of its rows. Raises NotFound with the parts there are."""
        rows = self.part(name)
        origins = {row.origin for row in rows}
        last = narrowed(self.last, origins) if self.last is not None else None
        sealed = self.sealed or (name == "test" and set(self.splits) == set(PARTS))
        ledger, limit = narrowed(self.ledger, origins), self.limit if name == "test" else None
        return replace(self, name=f"{self.name}:{name}", splits={name: rows}, ledger=ledger, last=last, limit=limit, sealed=sealed)

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
                f"no row '{word}' in {self.name} ({counted(len(rows), 'row')})",
                allowed=f"an id, an origin such as {rows[0].origin if rows else 'file:line'}, or a number from 1",
                remedy=nearest(word, [row.origin for row in rows[:5_000]]) or f"tunesmith data why {word} tells what became of it",
            )
        if len({row.origin for row in fits}) > 1 and word != fits[0].id:
            raise UsageError(f"'{word}' fits {counted(len(fits), 'row')}", allowed=", ".join(row.origin for row in fits[:5]))
        return fits[0]


@dataclass
class RowReader:
    """Reads words in one folder: its settings (from tunesmith.yaml where there is one), the catalogue, who is told, and the project at
    work, where there is one."""

    folder: Path
    settings: Project | Sections
    progress: Progress
    catalog: Catalog = field(default_factory=Catalog)
    context: ProjectContext | None = None
    from_folder: bool = False  # paths of words start in the folder, not where the command runs

    @property
    def home(self) -> Path:
        """The store's folder."""
        return self.folder / self.settings.store

    @property
    def layout(self) -> Layout:
        """The places in the store's folder, which need not be there."""
        return Layout(self.home)

    @property
    def root(self) -> Path:
        """Where versions lie."""
        return self.layout.datasets

    def at_work(self) -> ProjectContext | None:
        """The project at work; None where there is no project file, or nothing was done yet."""
        if self.context is None and isinstance(self.settings, Project) and self.splits_of_runs():
            from tunesmith.flow.context import ProjectContext
            from tunesmith.flow.last_run import last_view

            store = self.store()
            seen = last_view(self.settings, self.folder, store)
            self.context = ProjectContext(self.settings, self.folder, store, self.catalog, self.progress, view=seen)
        return self.context

    def store(self) -> Store:
        """The folder's store, which is made where there is none."""
        if isinstance(self.settings, Project):
            return open_store(self.settings, self.folder)
        return Store.open(self.home)

    @contextmanager
    def models(self) -> Iterator[Models]:
        """What words mean as models beside these rows."""
        context = self.at_work()
        if not self.layout.database.is_file() and not isinstance(self.settings, Project):
            yield Models(None, self.catalog, home=self.folder)  # and looking makes no store
            return
        with closing(self.store()) as store:
            yield Models(store, self.catalog, home=self.folder, run=context.last_trained if context is not None else None)

    def tokens_of(self, word: str) -> Path:
        """The folder whose tokenizer and template a model has, by any word for one that is here; of an adapter its base's. Raises NotFound,
        UsageError."""
        with self.models() as models:
            return models.folders(models.ref(word))[0]

    # --- words ---------------------------------------------------------------------------------------------------------------------------

    def find(self, word: str = "latest", *, format: str = "auto", mapping: Mapping[str, str] | None = None) -> Rows:
        """The rows that the word means, parts of a suite as its splits. Rows with faults are left out, and said. Raises NotFound with what
        a word can be, DataError for what cannot be read."""
        several = self.read(word, format=format, mapping=mapping, max_invalid=1.0)
        if len(several) == 1:
            return several[0]
        splits = {rows.name.rpartition("/")[2]: rows.rows for rows in several}
        return Rows(word, splits, entered(splits))

    def read(self, word: str, *, format: str = "auto", mapping: Mapping[str, str] | None = None, max_invalid: float = 0.0) -> list[Rows]:
        """The rows that the word means; a suite has several. Raises as `find`, and DataError for more faults than `max_invalid`."""
        kind, _, rest = word.partition(":")
        if word in PARTS:
            return [self._of_plan(word)]
        if kind == "run" and (not rest or rest in PARTS):
            return [self._of_run(rest)]
        if kind == "latest" and not versions.log(self.root) and (self.splits_of_runs() or not rest):
            return [self._without_versions(rest)]
        if kind == "log":
            return [self._of_log(rest)]
        if kind in _BROUGHT:
            return _BROUGHT[kind](rest, self)
        is_source = "://" in word or kind == "catalog" or glob.has_magic(word)
        is_source = is_source or (kind != "latest" and Path(word).expanduser().exists())
        if not is_source and (frozen := frozen_of(word, self.home, self.splits_of_runs)) is not None:
            return [self._as_measured(self._frozen(frozen), frozen.folder)]
        if not is_source:
            known = [version.id for version in self.log()]
            remedy = nearest(word, ["latest", "run", *PARTS, *known]) or "tunesmith data log lists versions"
            raise NotFound(f"no data '{word}'", where=str(self.root), allowed=WORDS, remedy=remedy)
        source = Source(path=word, format=format, map=dict(mapping or {}), unique_ids=False)
        return [self._of_sources([source], word, max_invalid)]

    def _frozen(self, frozen: Frozen) -> Rows:
        """The rows of a version, checked against its digests. Near-duplicates are clusters, as in a run."""
        splits = {part: frozen.rows(part) for part in frozen.parts}
        return Rows(frozen.name, splits, frozen.ledger(), frozen.version, sealed=frozen.part == "test")

    def load(self, version: DatasetVersion) -> Rows:
        """A version's rows, checked against its digests, and its ledger."""
        return self._frozen(Frozen(version, self.root / version.id))

    def _without_versions(self, part: str) -> Rows:
        """What `latest` means before there is a version; parts are those of a run."""
        if self.splits_of_runs():
            return self._of_run(part)
        if not isinstance(self.settings, Project):
            raise NotFound("there is no data yet", where=str(self.root), remedy="tunesmith data import FILE, or name a file")
        return self._of_sources(list(self.settings.sources), "the project's sources", 1.0)

    def _of_sources(self, sources: list[Source], name: str, max_invalid: float) -> Rows:
        taken = self.collect(sources, max_invalid=max_invalid)
        if taken.invalid:
            self.progress.say(f"{taken.invalid} of {taken.inputs} rows have faults and are left out; the first: {taken.faults[0]}")
        clusters = {row.id: row.group for row in taken.rows if row.group is not None}
        return Rows(name, {ALL: taken.rows}, taken.ledger, clusters=clusters)

    def _of_log(self, text: str) -> Rows:
        """Answered requests as they are now; those that teach nothing are left out."""
        with closing(self.store()) as store:
            requests = list(logged(text, store))
        parsed = [parse_row(request, "interaction", origin=f"interaction:{request['id']}").row for request in requests]
        rows = [row for row in parsed if row is not None]
        if not rows:
            raise NotFound("no answered request fits", where=f"log:{text}", remedy="tunesmith monitor status tells what was asked")
        clusters = {row.id: row.group for row in rows if row.group is not None}
        return Rows(f"log:{text}", {ALL: rows}, entered({ALL: rows}), clusters=clusters)

    # --- runs ----------------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _splits_of_runs(self) -> list[Frozen]:
        elsewhere = isinstance(self.settings, Project) and self.settings.serve.database
        if not elsewhere and not self.layout.database.is_file():
            return []  # and looking makes no store
        with closing(self.store()) as store:
            return splits_of_runs(store)

    def splits_of_runs(self) -> Sequence[Frozen]:
        """The splits that runs made, newest first, as versions."""
        return self._splits_of_runs

    def log(self) -> list[DatasetVersion]:
        """Every version and every split of a run, newest first."""
        known = [*versions.log(self.root), *(split.version for split in self.splits_of_runs())]
        return sorted(known, key=lambda version: -version.created)

    def _of_run(self, part: str) -> Rows:
        """The split of the plan as it is now where a run finished it, else the newest."""
        planned = self._planned()
        fits = [split for split in self.splits_of_runs() if split.folder == planned] or list(self.splits_of_runs())
        if not fits:
            raise NotFound("this project has no finished run", where=str(self.folder), remedy="tunesmith run")
        rows = replace(self._frozen(fits[0]), name=f"run {fits[0].version.id[:12]}", last=self._tokenized(fits[0]), version=None)
        rows = self._as_measured(rows, fits[0].folder)
        return replace(rows.narrowed(part), sealed=part == "test") if part else rows

    def _as_planned(self, rows: Rows) -> Rows:
        """The rows of the project's split with what its plan knows of them: clusters, metrics, and what their answers need."""
        context = self.at_work()
        assert context is not None
        return replace(
            rows,
            clusters=context.clusters(rows.rows),
            metrics={name: {} for name in context.project.evaluate.metrics},
            max_tokens=context.sampling().max_tokens if context.runner.peek("tokens") is not None else None,
            limit=context.project.evaluate.limit if "test" in rows.splits else None,
        )

    def _as_measured(self, rows: Rows, folder: Path) -> Rows:
        """The rows of the split in a stage's folder with what the run that made it knows of them; of a version as they are."""
        if folder == self._planned():
            return self._as_planned(rows)
        if not any(folder == split.folder for split in self.splits_of_runs()):
            return rows
        rows = replace(rows, clusters=read_clusters(folder, {row.id for row in rows.rows}), version=None)
        with closing(self.store()) as store:
            stages = [key for run in Runs(store).with_digest(folder.name) for key in _measured_by(run)]
        done = next((self.layout.stage(key) for key in stages if (self.layout.stage(key) / "evaluation.json").is_file()), None)
        if done is None:
            settings = self.settings
            return replace(rows, metrics={name: {} for name in settings.evaluate.metrics}) if isinstance(settings, Project) else rows
        measured = load_evaluation(done)
        limit = len(measured.rows) if "test" in rows.splits else None
        return replace(rows, metrics={name: {} for name in measured.metrics}, max_tokens=measured.sampling.max_tokens, limit=limit)

    def _planned(self) -> Path | None:
        context = self.at_work()
        return context.data.folder("split") if context is not None else None

    def _tokenized(self, split: Frozen) -> Ledger | None:
        """The ledger after tokenizing, of the newest tokens that were made of that split (a stage of an older store does not say of which:
        the newest that came after it)."""
        with closing(self.store()) as store:
            done = [stage for stage in store.stages("tokens") if self._stage(stage).is_dir()]
        fits = [stage for stage in done if split.folder.name in (stage["needs"] or ())]
        fits = fits or [stage for stage in done if not stage["needs"] and stage["created"] >= split.version.created]
        return Ledger.read(self._stage(fits[0]) / "ledger.jsonl") if fits else None

    def _stage(self, stage: StoreRow) -> Path:
        return self.layout.stage(str(stage["digest"]))

    def _of_plan(self, part: str) -> Rows:
        """A part of the split that the project's plan asks for, with its clusters, metrics and what its answers need."""
        context = self.at_work()
        if context is None and not isinstance(self.settings, Project):
            raise UsageError(
                f"'{part}' is a part of a project's split, and there is no project file here",
                allowed=f"--config FILE, or the rows' file (./{part} where it is called so)",
                remedy="tunesmith init",
            )
        if context is None or context.data.peek("split") is None:
            raise UsageError(
                f"the project's '{part}' rows are not prepared", where=str(self.folder), remedy="tunesmith run, or tunesmith run --dry-run"
            )
        rows = list(part_rows(context.data.folder("split"), part))  # of a limit the evaluation knows
        ledger = Ledger.read(context.data.folder("split") / "ledger.jsonl")
        fates = narrowed(ledger, {row.origin for row in rows})
        return self._as_planned(Rows(f"{context.project.name}/{part}", {part: rows}, fates, sealed=part == "test"))

    # --- sources -------------------------------------------------------------------------------------------------------------------------

    def located(self, sources: Sequence[Source]) -> list[Place]:
        """The sources looked up, to be read as they are now: answered requests, URLs and queries too, whatever a run kept of them. Paths of
        the command line are relative to where it runs, those of the project to its folder."""
        mine = self.from_folder or (isinstance(self.settings, Project) and list(sources) == list(self.settings.sources))
        now = [self._read_now(source) for source in sources]
        return located(now, self.folder if mine else Path(), self.catalog, self.home, anew=True)

    def _read_now(self, source: Source) -> Source:
        if not source.path.startswith("log:"):
            return source
        with closing(self.store()) as store:
            return log_now(source, self.home, partial(logged, store=store))

    def named(self, path: str) -> str:
        """How a file is called in origins."""
        return relative_to(self.folder)(path)

    def collect(self, sources: Sequence[Source], *, max_invalid: float = 0.0, rejects: Path | None = None) -> Collected:
        """Every row of the sources (see `data.collect.collect`); of a version its rows."""
        self.progress.say(f"reading {', '.join(public_name(source.path) for source in sources)}")
        places = self.located(sources)
        taken = Collected()
        if files := [place.source for place in places if place.frozen is None]:
            taken = collect(files, max_invalid=max_invalid, rejects=rejects, named=self.named)
        for frozen in (place.frozen for place in places if place.frozen is not None):
            taken.rows += [row for part in frozen.parts for row in frozen.rows(part)]
            for line in frozen.ledger():
                taken.ledger.add(line)
                taken.inputs += 1
        return taken


def _measured_by(run: Run) -> list[str]:
    """The digests of the stages in which a run asked its test rows."""
    return [key for name, key in run.digests.items() if name.startswith("evaluate:")]


def taught(rows: Rows) -> Rows:
    """The rows that may be shown as solved: of a version that is split the training part."""
    return rows.narrowed("train") if set(rows.splits) == set(PARTS) else rows


def evaluated(rows: Rows, reader: RowReader) -> Rows:
    """The rows that an evaluation asks: of a version that is split the test part; equal rows (which a comparison pairs by id) once; with
    clusters, where none are known yet."""
    if set(rows.splits) == set(PARTS):
        rows = rows.narrowed("test")
    splits = {name: list({row.id: row for row in part}.values()) for name, part in rows.splits.items()}
    rows = replace(rows, splits=splits)
    if rows.version is None or rows.clusters:
        return rows
    _, clusters = near_clusters(rows.rows, reader.settings.clean.near_duplicates)
    return replace(rows, clusters={row.id: str(cluster) for row, cluster in zip(rows.rows, clusters.tolist(), strict=True)})


# --- rows that other tools and suites bring ----------------------------------------------------------------------------------------------


def _brought(name: str, rows: Sequence[Example], metrics: dict[str, dict[str, Any]], max_tokens: int | None = None) -> Rows:
    """Rows from elsewhere, each under an origin of its own."""
    seen: set[str] = set()
    named: list[Row] = []
    for number, row in enumerate(rows, start=1):
        origin = row.origin if row.origin and row.origin not in seen else f"{name}:{number}"
        seen.add(origin)
        named.append(msgspec.structs.replace(row, origin=origin))
    splits = {ALL: named}
    return Rows(name, splits, entered(splits), metrics=metrics, max_tokens=max_tokens)


def _suite(name: str, reader: RowReader) -> list[Rows]:
    from tunesmith.evaluate.regression import GENERAL, fetch_suite

    if name != GENERAL.name:
        raise UsageError(f"no suite '{name}'", allowed=f"suite:{GENERAL.name}")
    rows = fetch_suite(GENERAL, reader.catalog.folder / "downloads")
    return [
        _brought(f"{name}/{ability.name}", rows[ability.name], {ability.metric: ability.options}, ability.max_tokens)
        for ability in GENERAL.abilities
    ]


def _harness(word: str, reader: RowReader) -> list[Rows]:
    from tunesmith.evaluate.harness import harness_task

    name, _, folder = word.partition("@")
    task = harness_task(name, folder or None)
    return [_brought(name, task.rows(), {"lm_eval": {"task": name, "folder": folder}}, task.max_tokens)]


def _promptfoo(word: str, reader: RowReader) -> list[Rows]:
    from tunesmith.evaluate.importers import promptfoo

    made = promptfoo(Path(word))
    return [_brought(made.name, made.examples, {"promptfoo": {}})]


def _openai(word: str, reader: RowReader) -> list[Rows]:
    from tunesmith.evaluate.importers import openai_eval, openai_rows

    path = Path(word)
    if path.suffix == ".jsonl":
        try:
            return [_brought(path.stem, openai_rows(path.read_bytes(), str(path)), {})]
        except OSError as error:
            raise SourceUnavailable(f"cannot read: {error.strerror}", where=str(path)) from error
    made = openai_eval(path)
    graders = {str(grader.get("name", f"grader {i}")): {"grader": grader} for i, grader in enumerate(made.graders)}
    return [_brought(made.name, made.examples, graders)]


_BROUGHT = {"suite": _suite, "lm-eval": _harness, "promptfoo": _promptfoo, "openai-evals": _openai}
