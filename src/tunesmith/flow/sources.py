"""Where a project's rows come from and where its stages keep them: each source's word looked up, its content's hash, the rows of a part.
Knows nothing about how rows are read or cleaned.

    latest[:PART]           the newest data version
    3f2a…[:PART]            a version, by the beginning of its id
    catalog:NAME            a data set of the catalogue
    a URL, a query          read once and kept in the store; `tunesmith data fetch` reads it anew
    log:CONDITIONS          answered requests, such as log:alias=my-model,since=7d; read and kept in the same way
    anything else           a file, folder or pattern, from the project's folder
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.digests import file_digest
from tunesmith.core.errors import ConfigError, NotFound
from tunesmith.core.row_kinds import only
from tunesmith.core.rows import Row, read_parquet
from tunesmith.core.types import Example, digest
from tunesmith.data import version as versions
from tunesmith.data.collect import Source
from tunesmith.data.fetched import fetch, keep_rows, manifest_of
from tunesmith.data.ledger import Ledger
from tunesmith.data.sources import MANIFEST, files
from tunesmith.data.version import DatasetVersion
from tunesmith.flow.logged import conditions
from tunesmith.models.catalog import Catalog
from tunesmith.store.layout import Layout
from tunesmith.store.store import Row as StoreRow
from tunesmith.store.store import Store

PARTS = ("train", "validation", "test")
ALL = "all"  # the name of the one part of rows that were not split
Log = Callable[[str], Iterable[dict[str, Any]]]  # conditions → requests
_ONLY_EVALUATED = ("suite", "lm-eval", "promptfoo", "openai-evals")
TRAINED_ON = "latest[:PART], VERSION[:PART], catalog:NAME, log:CONDITIONS, a file, folder, pattern, URL or query"
_VERSION = re.compile(r"[0-9a-f]{4,40}")


@dataclass(frozen=True)
class Frozen:
    """A version where it lies, whole or one `part` of it."""

    version: DatasetVersion
    folder: Path
    part: str | None = None

    @property
    def name(self) -> str:
        """What it is called: the id, and the part where one was named."""
        return self.version.id if self.part is None else f"{self.version.id}:{self.part}"

    @property
    def parts(self) -> list[str]:
        """The parts that are meant, in their order."""
        order = sorted(self.version.counts, key=lambda name: (PARTS.index(name) if name in PARTS else -1, name))
        return order if self.part is None else [self.part]

    @property
    def is_split(self) -> bool:
        """Whether it is whole and divided into the three parts that training and evaluation take."""
        return self.part is None and set(self.version.counts) == set(PARTS)

    def rows(self, part: str) -> Sequence[Row]:
        """The rows of one part, as they were frozen. Raises DataError when they are not."""
        return versions.rows_in(self.folder, self.version, part)

    def ledger(self) -> Ledger:
        """The fates of the rows that came in; of one part those of its rows."""
        file = self.folder / versions.LEDGER
        rows = [row for part in self.parts for row in self.rows(part)] if self.part is not None or not file.is_file() else []
        if not file.is_file():
            return entered({ALL: rows})
        ledger = Ledger.read(file)
        return ledger if self.part is None else narrowed(ledger, {row.origin for row in rows})


def entered(splits: Mapping[str, Sequence[Row]]) -> Ledger:
    """A ledger in which the rows of the splits came in and were kept. Raises DataError when one origin is there twice."""
    ledger = Ledger()
    for rows in splits.values():
        for row in rows:
            ledger.enter(row.origin, row.id)
    return ledger


def narrowed(ledger: Ledger, origins: set[str]) -> Ledger:
    """The lines of the rows with these origins."""
    fits = Ledger()
    for line in ledger:
        if line.origin in origins:
            fits.add(line)
    return fits


@dataclass(frozen=True)
class Place:
    """A source that was looked up: with its real path, or as the version that it names."""

    source: Source
    frozen: Frozen | None = None

    @property
    def content(self) -> list[str]:
        """What names its content: a hash of every file, so that a changed file is a changed input."""
        if self.frozen is not None:
            return [self.frozen.version.digests.get(part, self.frozen.name) for part in self.frozen.parts]
        if "://" in self.source.path or self.source.path.startswith("log:"):
            return [f"not read yet: {digest(self.source.path, self.source.query)}"]
        manifest = manifest_of(Path(self.source.path))
        return [manifest.digest] if manifest is not None else [file_digest(path) for path in files(self.source.path)]


def located(
    sources: Sequence[Source],
    folder: Path,
    catalog: Catalog,
    store: Path,
    *,
    reading: bool = False,
    anew: bool = False,
    log: Log | None = None,
) -> list[Place]:
    """The sources looked up; paths are taken from `folder`, versions from the store's folder, requests from the `log`. With `reading` URLs,
    queries and requests that were not read yet are; without it they stay as they are. With `anew` URLs and queries are left to whoever
    takes their rows, whatever was kept of them.

    Raises ConfigError for a word that is no source, NotFound for a version that is not there, SourceUnavailable.
    """
    places = [
        Place(source) if anew and _is_remote(source) else _place(source, folder, catalog, store, log if reading else None, reading)
        for source in sources
    ]
    whole = next((place.frozen for place in places if place.frozen is not None and place.frozen.is_split), None)
    if whole is not None and len(places) > 1:
        raise ConfigError(
            f"version {whole.name} is split already, and rows of other sources belong to none of its parts",
            where="sources",
            allowed="that version alone, or its parts by name",
            remedy=f"path: {whole.name}:train",
        )
    return places


def _place(source: Source, folder: Path, catalog: Catalog, store: Path, log: Log | None, reading: bool) -> Place:
    word = source.path
    kind, _, rest = word.partition(":")
    if word in PARTS or kind == "run" or kind in _ONLY_EVALUATED:
        raise ConfigError(
            f"'{word}' cannot be trained on: {_why_not(word, kind)}",
            where="sources",
            allowed=TRAINED_ON,
        )
    if _is_remote(source):
        return Place(_kept(source, store, reading))
    if kind == "log":
        return Place(_kept_log(source, store, log))
    if kind == "catalog":
        return Place(msgspec.structs.replace(source, path=str(catalog.dataset(rest))))
    path = folder / Path(word).expanduser()
    if not path.exists():
        if (frozen := frozen_of(word, store)) is not None:
            return Place(source, frozen)
        _refuse_an_id(word, store)
    return Place(msgspec.structs.replace(source, path=str(path)))


def _is_remote(source: Source) -> bool:
    return bool(source.query) or "://" in source.path


def _refuse_an_id(word: str, store: Path) -> None:
    """Raises ConfigError for what looks like the id of a version and is none that can be trained on."""
    head = word.partition(":")[0]
    if not _VERSION.fullmatch(head):
        return
    root = store / "datasets"
    known = ", ".join(version.id for version in versions.log(root)[:5]) or "there is none yet"
    splits = any(Layout(store).stages.glob(f"{head}*/train.parquet"))
    what = f"'{word}' is the split that a run of this project made of its sources" if splits else f"there is no version '{word}'"
    remedy = "leave --data away: the project's sources are split so" if splits else "tunesmith data log lists versions"
    raise ConfigError(
        f"{what}{', and cannot be trained on by itself' if splits else ', and no file of that name'}",
        where="sources",
        allowed=f"{TRAINED_ON}; versions: {known}",
        remedy=f"{remedy}; tunesmith data import and data split make a version of rows",
    )


def _why_not(word: str, kind: str) -> str:
    if kind in _ONLY_EVALUATED:
        return "it is for evaluation, and what was trained on measures nothing"
    return f"'{word}' is what a run of this project makes of its sources"


def frozen_of(word: str, store: Path, more: Callable[[], Sequence[Frozen]] = lambda: ()) -> Frozen | None:
    """The version that a word names (`latest` or the beginning of an id, with or without a part), or None where it looks like none.

    `more`: splits that runs made. Raises NotFound for a `latest` that is not there and for a part that it does not have.
    """
    head, _, part = word.partition(":")
    root = store / "datasets"
    if head == "latest":
        known = versions.log(root)
        if not known:
            raise NotFound("there is no data version yet", where=str(root), remedy="tunesmith data import FILE")
        frozen = Frozen(known[0], root / known[0].id)
    elif _VERSION.fullmatch(head):
        fits = [Frozen(version, root / version.id) for version in versions.log(root) if version.id.startswith(head)]
        fits += [split for split in more() if split.version.id.startswith(head)]
        if not fits:
            return None
        frozen = fits[0] if len({split.version.id for split in fits}) == 1 else Frozen(versions.load(root, head), root / head)
    else:
        return None
    if part and part not in frozen.version.counts:
        raise NotFound(f"version {frozen.name} has no part '{part}'", allowed=", ".join(frozen.version.counts))
    return Frozen(frozen.version, frozen.folder, part) if part else frozen


# --- URLs and queries --------------------------------------------------------------------------------------------------------------------


def _kept(source: Source, store: Path, reading: bool, anew: bool = False) -> Source:
    """The source as the folder in which what was read of it is kept; itself where nothing was."""
    folder = Layout(store).sources / digest(source.path, source.query)[:24]
    if anew or (reading and not (folder / MANIFEST).is_file()):
        fetch(source.path, source.query, folder)
    return msgspec.structs.replace(source, path=str(folder), query="") if (folder / MANIFEST).is_file() else source


def _kept_log(source: Source, store: Path, log: Log | None, anew: bool = False) -> Source:
    """The answered requests that a word means, as the folder in which they are kept; the word itself where they were not read."""
    conditions(source.path.removeprefix("log:"))
    folder = Layout(store).sources / digest(source.path)[:24]
    if log is not None and (anew or not (folder / MANIFEST).is_file()):
        keep_rows(source.path, log(source.path.removeprefix("log:")), folder)
    return _requests_in(source, folder) if (folder / MANIFEST).is_file() else source


def log_now(source: Source, store: Path, log: Log) -> Source:
    """The answered requests that a word means as they are now, in a folder beside the one from which runs take them."""
    folder = Layout(store).sources / f"{digest(source.path)[:24]}-now"
    keep_rows(source.path, log(source.path.removeprefix("log:")), folder)
    return _requests_in(source, folder)


def _requests_in(source: Source, folder: Path) -> Source:
    return msgspec.structs.replace(source, path=str(folder), format="interaction", unique_ids=False)


def fetch_again(sources: Sequence[Source], store: Path, log: Log) -> list[str]:
    """Read every URL, query and `log:` anew; what they are called, without secrets. What they gave before is replaced."""
    remote = [source for source in sources if _is_remote(source)]
    replaced = [_kept(source, store, reading=True, anew=True) for source in remote]
    replaced += [_kept_log(source, store, log, anew=True) for source in sources if source.path.startswith("log:")]
    return [manifest.url for source in replaced if (manifest := manifest_of(Path(source.path))) is not None]


# --- what a stage kept -------------------------------------------------------------------------------------------------------------------


def splits_of_runs(store: Store) -> list[Frozen]:
    """The splits that runs made, newest first, each as a version under the beginning of its stage's digest."""
    done = [stage for stage in store.stages("split") if store.layout.stage(stage["digest"]).is_dir()]
    return [Frozen(_as_version(stage), store.layout.stage(stage["digest"])) for stage in done]


def _as_version(stage: StoreRow) -> DatasetVersion:
    known = msgspec.json.decode(stage["output"])
    return DatasetVersion(
        id=str(stage["digest"])[:24],
        recipe={"step": "run"},
        counts={part: int(known.get("splits", {}).get(part, 0)) for part in PARTS},
        digests={},
        parent=known.get("version"),
        fates=known.get("ledger", {}).get("fates", {}),
        note=f"split of a run of {stage['project']}",
        created=stage["created"],
    )


def relative_to(folder: Path) -> Callable[[str], str]:
    """How a file is called in origins: from the project's folder where it lies in it, so that a project can move; else as it is."""
    home = folder.resolve()

    def named(path: str) -> str:
        if "://" in path:
            return path
        try:
            return str(Path(path).expanduser().resolve().relative_to(home))
        except ValueError:
            return path

    return named


def rows(folder: Path, part: str) -> list[Row]:
    """The rows of one part, of whatever kind they are."""
    return list(read_parquet(folder / f"{part}.parquet"))


def examples(folder: Path, part: str) -> list[Example]:
    """The rows of one part. Raises DataError naming the method that fits when they are no examples."""
    return only(rows(folder, part), Example, "train.method")
