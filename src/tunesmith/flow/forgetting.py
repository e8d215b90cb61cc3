"""A person's data taken out of everything that a store keeps, and a receipt of it: tables, files of clients, data versions, results of
runs, free pages; then every file of the store is searched. Knows nothing about how a table or a file is written.

What can be made again is deleted and made again by the next run, without the person: results of stages, evaluations. Data versions are made
anew under new names. Trained models stay: the receipt names those that saw the rows, and the command that trains them without.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunesmith.core.atomic import atomic_file
from tunesmith.core.errors import TunesmithError, UsageError
from tunesmith.core.person import Person, without
from tunesmith.core.seal import SEAL
from tunesmith.core.types import Record
from tunesmith.data.erased import without_rows
from tunesmith.store.deployments import Deployments
from tunesmith.store.erasure import compact, erase, mentions, open_batches, person_of, rewrite_files
from tunesmith.store.lineage import Lineage
from tunesmith.store.runs import Runs
from tunesmith.store.store import Store

_TRAIN, _SPLIT = "train", "split"


class SawRows(Record, frozen=True):
    """A model that was trained on rows of the person, and the command that trains it without them."""

    model: str
    names: tuple[str, ...]
    retrain: str


class Receipt(Record, frozen=True):
    """What was erased and what a search found afterwards. `rows` by table, `files` of clients and of the store that lost lines or are gone,
    `versions` old → new name (empty: nothing was left), `stages` that the next run makes again. `left` has what still mentions the person,
    empty where nothing does. `backups` says what backups still have."""

    created: float
    requests: int
    rows: dict[str, int]
    files: tuple[str, ...]
    versions: dict[str, str]
    stages: tuple[str, ...]
    models: tuple[SawRows, ...]
    searched_files: int
    searched_bytes: int
    left: tuple[str, ...]
    elsewhere: tuple[str, ...]
    backups: str

    def text(self) -> str:
        """For people."""
        lines = [f"erased: {', '.join(f'{count} of {name}' for name, count in self.rows.items()) or 'no row of the tables'}"]
        lines += [f"  lines or file gone: {name}" for name in self.files]
        lines += [f"  data version {old} is {new or 'gone: nothing else was in it'}" for old, new in self.versions.items()]
        lines += [f"  made again by the next run: {name}" for name in self.stages]
        lines += [
            f"trained on it: {saw.model} ({', '.join(saw.names) or 'not deployed'}); without it: {saw.retrain}" for saw in self.models
        ]
        lines += [f"NOT ERASED: {name}" for name in self.left]
        lines += [f"outside the store, yours to look at: {name}" for name in self.elsewhere]
        found = f"{len(self.left)} still mention them" if self.left else "nothing of them was found"
        return "\n".join([*lines, f"searched {self.searched_files} files, {self.searched_bytes:,} bytes: {found}", self.backups])


def forget(store: Store, user: str, *, around: Path | None = None, backup_days: float | None = None) -> Receipt:
    """Erase what the store has of the user whom clients call so; `around` is a folder that is searched too, and left as it is.

    Raises UsageError for an empty key and while batches are under way, StoreError where the store cannot be written anew.
    """
    if not user.strip():
        raise UsageError("the user's key is empty", allowed="what clients send as `safety_identifier` or `user`")
    if working := open_batches(store):
        raise UsageError(f"batch {working[0]} is under way", remedy="wait until it has ended, or cancel it: its lines are not to move")
    person = person_of(store, user)
    files = [*rewrite_files(store, person)]
    models = tuple(_models(store, person, files))
    versions = without_rows(store.layout.datasets, person.about)
    stages = tuple(_stages(store, person))
    files += _loose(store, person)
    rows = erase(store, person)
    compact(store)
    left, many, size = _search(store.folder, person)
    left += [f"the table {name}" for name in mentions(store, person)]
    elsewhere = [] if around is None else [str(path) for path in _outside(around, store.folder) if _mentions(path, person)]
    return Receipt(
        created=time.time(),
        requests=rows.get("interactions", 0),
        rows=rows,
        files=tuple(files),
        versions=versions,
        stages=stages,
        models=models,
        searched_files=many,
        searched_bytes=size,
        left=tuple(left),
        elsewhere=tuple(elsewhere),
        backups=_backups(store, backup_days),
    )


def _backups(store: Store, days: float | None) -> str:
    now = time.time()
    upto = time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
    server = "" if store.engine.dialect.name == "sqlite" else " and the database server's archived write-ahead log"
    if days is None:
        return f"backups{server} from before {upto} still have it: delete them, or say with --backup-days how long they are kept"
    gone = time.strftime("%Y-%m-%d", time.localtime(now + 86_400 * days))
    return f"backups{server} from before {upto} still have it; kept for {days:g} days, the last of them is gone on {gone}"


def _models(store: Store, person: Person, files: Sequence[str]) -> Iterator[SawRows]:
    """The models whose training rows are about the person: those of runs, and those of jobs on files that lost lines."""
    lineage, deployments = Lineage(store), Deployments(store).listed()

    def made(*makers: str) -> tuple[str, ...]:
        called = (each for each in deployments if any(variant.model and variant.model.made_by in makers for variant in each.variants))
        return tuple(f"{each.alias}@{each.version}" for each in called)

    for split in lineage.of_kind(_SPLIT):
        if not _mentions(store.layout.stage(split["digest"]) / "train.parquet", person):
            continue
        for stage in lineage.after(split["digest"]):
            if stage["name"] == _TRAIN:
                runs = [" ".join((run.command, *run.overrides)) for run in Runs(store).with_digest(stage["digest"])]
                maker = f"run:{stage['digest']}"
                yield SawRows(model=maker, names=made(maker), retrain=runs[0] if runs else "tunesmith run")
    for file in files:
        for job in lineage.jobs_on(file):
            again = f"a job on {job['model']} with the training file {job['training_file']}"
            yield SawRows(model=f"job:{job['id']}", names=(*lineage.names_of(job["id"]), *made(f"job:{job['id']}")), retrain=again)


def _stages(store: Store, person: Person) -> Iterator[str]:
    """Delete the results of stages that are about the person, and those that were made from their rows, such as their tokens; of training
    the files, not the weights."""
    lineage, gone = Lineage(store), set[str]()
    for stage in lineage.all_stages():
        folder = store.layout.stage(stage["digest"])
        about = [path for path in _files(folder) if _mentions(path, person)]
        if stage["name"] == _TRAIN:
            for path in about:
                path.unlink()
        elif about or person.about(stage["output"]) or gone.intersection(earlier["digest"] for earlier in lineage.before(stage["digest"])):
            shutil.rmtree(folder, ignore_errors=True)
            gone.add(stage["digest"])
            yield f"{stage['name']} {stage['digest'][:16]}"
    for digest in gone:
        store.unfinish(digest)


def _loose(store: Store, person: Person) -> Iterator[str]:
    """Take the person out of everything else that lies in the store's folder: lines where there are lines, else files, sealed folders."""
    layout = store.layout
    apart = (layout.datasets, layout.stages, layout.blobs)
    for path in _files(store.folder):
        if path.name.startswith(layout.database.name) or any(path.is_relative_to(folder) for folder in apart):
            continue
        if not path.is_file() or not _mentions(path, person):
            continue
        sealed = next((folder for folder in path.parents if folder != store.folder and (folder / SEAL).is_file()), None)
        if sealed is not None and sealed.is_relative_to(store.folder):
            shutil.rmtree(sealed)
            yield f"{sealed.relative_to(store.folder)}/"
        elif path.suffix in (".jsonl", ".log"):
            kept = b"".join(without(path.read_bytes().splitlines(keepends=True), person))
            with atomic_file(path) as stream:
                stream.write(kept)
            yield str(path.relative_to(store.folder))
        else:
            path.unlink()
            yield str(path.relative_to(store.folder))


def _search(folder: Path, person: Person) -> tuple[list[str], int, int]:
    """(files that mention the person, files, bytes) of a folder; what is packed is unpacked."""
    paths = list(_files(folder))
    return (
        [str(path.relative_to(folder)) for path in paths if _mentions(path, person)],
        len(paths),
        sum(path.stat().st_size for path in paths),
    )


def _mentions(path: Path, person: Person) -> bool:
    if not path.is_file():
        return False
    try:
        return person.in_file(path)
    except (TunesmithError, OSError, ValueError):  # not what its name says: its bytes are looked at
        return person.in_bytes(path.read_bytes())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()) if folder.is_dir() else iter(())


def _outside(around: Path, store: Path) -> Iterator[Path]:
    """The files of a folder beside the store, no hidden ones."""
    for path in _files(around):
        if not path.is_relative_to(store) and not any(part.startswith(".") for part in path.relative_to(around).parts):
            yield path
