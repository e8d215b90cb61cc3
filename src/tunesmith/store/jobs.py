"""The queue of fine-tuning jobs in the store: their life, leases, events and checkpoints; knows nothing about HTTP or training.

A worker that takes a job holds a lease: a token and a time until which it must show that it lives. Everything a worker writes is
conditioned on its token, so one that lost its lease (it hung, it was thought dead) can change nothing any more.

    validating_files → queued → running → succeeded | failed | cancelled        running → paused → queued
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Record
from tunesmith.store.deliveries import announce
from tunesmith.store.json_pairs import has_pair
from tunesmith.store.paging import Missing, Refused, Row, new_id, page
from tunesmith.store.store import Store
from tunesmith.store.tables import checkpoints, files, idempotency, job_events, jobs, tuned_models

ACTIVE = ("validating_files", "queued", "running")
FINAL = ("succeeded", "failed", "cancelled")
MAX_TRIES = 3
_HELD_S = 1.0  # how long a job is left whose folder another process holds
_AGAIN_S = 600.0  # a repeated create is looked for this far back


class JobRequest(Record, frozen=True):
    """What a job was asked to be. `method` is shown to clients; `extras` are the plan's keys that the hyperparameters set."""

    model: str
    training_file: str
    validation_file: str | None
    suffix: str | None
    seed: int
    metadata: dict[str, str] | None
    integrations: list[dict[str, Any]] | None
    method: dict[str, Any]
    extras: dict[str, Any]
    priority: int
    fingerprint: str


class Stopped(Exception):
    """Work on a job must end now; what was written is kept."""


class Jobs:
    """The jobs of all projects in one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def create(self, request: JobRequest, *, base: str, project: str, key: str | None = None, again: bool = False) -> Row:
        """A new job, or the one that the same request made before.

        `key` is an Idempotency-Key; `again` says that the client is repeating a request whose answer it did not see. Raises Refused when
        the key was used for something else.
        """
        with self.store.exclusive() as connection:
            known = _repeated(connection, request, project, key, again)
            if known is not None:
                return known
            now = time.time()
            row = {
                **{name: getattr(request, name) for name in request.__struct_fields__},
                "id": new_id("ftjob-"),
                "project": project,
                "created": now,
                "status": "validating_files",
                "base": base,
                "result_files": [],
                "step": 0,
                "tries": 0,
            }
            connection.execute(sa.insert(jobs).values(**row))
            if key is not None:
                fields = {"project": project, "route": "jobs", "key": key, "object": row["id"], "created": now}
                connection.execute(sa.insert(idempotency).values(fingerprint=request.fingerprint, **fields))
            say(connection, row["id"], "created", f"Created fine-tuning job: {row['id']}")
            say(connection, row["id"], "validating", f"Validating training file: {request.training_file}")
            return _one(connection, jobs.c.id == row["id"])

    def find(self, number: str, project: str | None) -> Row:
        """A job; `project` None looks in all. Raises Missing."""
        where = [jobs.c.id == number, *([jobs.c.project == project] if project is not None else [])]
        with self.store.reading() as connection:
            row = connection.execute(sa.select(jobs).where(*where)).mappings().first()
        if row is None:
            raise Missing("fine-tuning job", number, param="fine_tuning_job_id", code="fine_tune_not_found")
        return row

    def listed(
        self, project: str | None, *, after: str | None = None, limit: int = 20, metadata: Mapping[str, str] | None = None
    ) -> tuple[list[Row], bool]:
        """A page of jobs, newest first, and whether more follow; `metadata` pairs must all be there."""
        where: list[Any] = [jobs.c.project == project] if project is not None else []
        where += [has_pair(jobs.c.metadata, key, value) for key, value in (metadata or {}).items()]
        return page(self.store, jobs, where, after=after, limit=min(limit, 100))

    def events(self, number: str, *, after: str | None = None, limit: int = 20, oldest_first: bool = False) -> tuple[list[Row], bool]:
        """A page of what a job reported."""
        return page(self.store, job_events, [job_events.c.job == number], after=after, limit=min(limit, 1000), oldest_first=oldest_first)

    def checkpoints(self, number: str, *, after: str | None = None, limit: int = 10) -> tuple[list[Row], bool]:
        """A page of a job's checkpoints, newest first."""
        return page(self.store, checkpoints, [checkpoints.c.job == number], after=after, limit=min(limit, 100))

    def cancel(self, number: str, project: str | None) -> Row:
        """End a job. A worker that is at it stops within a step. Cancelling twice is the same as once. Raises Missing, Refused."""
        return self._change(number, project, "cancelled", (*ACTIVE, "paused"), "The job has been cancelled")

    def pause(self, number: str, project: str | None) -> Row:
        """Hold a job; its worker ends its step, writes a checkpoint and stops, and a resume goes on from there. Raises Missing, Refused."""
        return self._change(number, project, "paused", ACTIVE, "Fine-tuning job paused")

    def resume(self, number: str, project: str | None) -> Row:
        """Let a paused job go on. Resuming a job that waits or runs changes nothing. Raises Missing, Refused."""
        return self._change(number, project, "queued", ("paused",), "Fine-tuning job resumed", same=ACTIVE)

    def _change(
        self, number: str, project: str | None, status: str, allowed: tuple[str, ...], message: str, same: tuple[str, ...] = ()
    ) -> Row:
        self.find(number, project)
        with self.store.exclusive() as connection:
            job = _one(connection, jobs.c.id == number, lock=True)
            if job["status"] in (status, *same):
                return job
            if job["status"] not in allowed:
                raise Refused(
                    f"Job '{number}' is {job['status']}", param="fine_tuning_job_id", code="invalid_job_status", allowed=", ".join(allowed)
                )
            values: dict[str, Any] = {"status": status, "tries": 0, "estimated_finish": None}
            if status in FINAL:
                values["finished"] = time.time()
            connection.execute(sa.update(jobs).where(jobs.c.id == number).values(**values))
            say(connection, number, f"{status}:{new_id('')}", message)
            if status == "cancelled":
                announce(connection, job, "fine_tuning.job.cancelled")
            return _one(connection, jobs.c.id == number)

    def lease(self, *, seconds: float, per_project: int | None = None) -> Lease | None:
        """The next job for a worker: the highest priority, then the oldest, of projects below `per_project` jobs at once; or None."""
        now = time.time()
        with self.store.exclusive() as connection:
            held = sa.select(jobs.c.project).where(jobs.c.lease_until >= now)
            if per_project is not None:
                held = held.group_by(jobs.c.project).having(sa.func.count() >= per_project)
            free = [jobs.c.status.in_(ACTIVE), sa.or_(jobs.c.lease.is_(None), jobs.c.lease_until < now)]
            if per_project is not None:
                free.append(jobs.c.project.not_in(held))
            query = sa.select(jobs).where(*free).order_by(jobs.c.priority.desc(), jobs.c.seq).limit(1).with_for_update(skip_locked=True)
            job = connection.execute(query).mappings().first()
            if job is None:
                return None
            token = secrets.token_hex(8)
            connection.execute(sa.update(jobs).where(jobs.c.id == job["id"]).values(lease=token, lease_until=now + seconds))
            return Lease(self.store, job["id"], token, seconds)


class Lease:
    """One worker's right to work on one job. Each method raises Stopped when the right is lost."""

    def __init__(self, store: Store, job: str, token: str, seconds: float) -> None:
        self.store, self.job, self.token, self.seconds = store, job, token, seconds

    def beat(self) -> None:
        """Show that the worker lives."""
        with self.store.writing() as connection:
            changed = connection.execute(self._mine(status=False).values(lease_until=time.time() + self.seconds)).rowcount
        if not changed:
            raise Stopped(f"the lease of {self.job} is lost")

    def check(self) -> Row:
        """The job as it stands; Stopped when it is another worker's now, or has ended."""
        with self.store.reading() as connection:
            row = _one(connection, jobs.c.id == self.job)
        if row["lease"] != self.token or row["status"] in FINAL:
            raise Stopped(f"{self.job} is {row['status']}")
        return row

    def cancelled(self) -> bool:
        """Whether the job was cancelled, whoever works on it."""
        with self.store.reading() as connection:
            return bool(_one(connection, jobs.c.id == self.job)["status"] == "cancelled")

    def pausing(self) -> bool:
        """Whether the job shall pause. One that was resumed before its worker had let go runs on. Stopped as in `check`."""
        status = self.check()["status"]
        if status == "queued":
            self.begin()
        return bool(status == "paused")

    def read(self) -> Row:
        """The job as it stands; Stopped unless it is this worker's and not paused or cancelled."""
        row = self.check()
        if row["status"] not in ACTIVE:
            raise Stopped(f"{self.job} is {row['status']}")
        return row

    def write(self, events: list[dict[str, Any]] | None = None, also: Any = None, *, pausing: bool = False, **values: Any) -> None:
        """Events and new values of the job in one transaction; `also(connection)` adds to it.

        Only while the job is active, so that a pause or a cancel in between is not undone; with `pausing` also while its worker brings a
        paused one to rest.
        """
        with self.store.exclusive() as connection:
            job = _one(connection, jobs.c.id == self.job, lock=True)
            if job["lease"] != self.token or job["status"] not in (*ACTIVE, *(["paused"] if pausing else [])):
                raise Stopped(f"{self.job} is {job['status']}")
            if values:
                connection.execute(sa.update(jobs).where(jobs.c.id == self.job).values(**values))
            for event in events or ():
                say(connection, self.job, **event)
            if also is not None:
                also(connection)

    def begin(self) -> None:
        """The job runs. One that was resumed a moment ago, while its worker was still stopping, waits for the next lease."""
        self.write([{"key": "started", "message": "Fine-tuning job started"}], status="running")

    def fail(self, code: str, message: str, param: str | None = None) -> None:
        """The job ends as failed, with an error for the client."""
        error = {"code": code, "message": message, "param": param}
        event = {"key": "failed", "message": f"The job failed: {message}", "level": "error"}

        def also(connection: sa.Connection) -> None:
            announce(connection, _one(connection, jobs.c.id == self.job), "fine_tuning.job.failed")

        self.write([event], also, status="failed", error=error, finished=time.time(), lease=None, lease_until=None, estimated_finish=None)

    def succeed(self, name: str, model: ModelRef, *, trained_tokens: int, results: Sequence[Mapping[str, Any]]) -> None:
        """The job ends with a model that answers to its name. `results` are its files, prepared (`Files.prepare`)."""
        events = [
            {"key": "model", "message": f"New fine-tuned model created: {name}"},
            {"key": "succeeded", "message": "The job has successfully completed"},
        ]

        def also(connection: sa.Connection) -> None:
            job = _one(connection, jobs.c.id == self.job)
            connection.execute(sa.insert(files), list(results))
            _keep_model(connection, job, name, model)
            announce(connection, job, "fine_tuning.job.succeeded")

        values: dict[str, Any] = {"fine_tuned_model": name, "trained_tokens": trained_tokens, "error": None}
        values["result_files"] = [row["id"] for row in results]
        ended: dict[str, Any] = {
            "status": "succeeded",
            "finished": time.time(),
            "lease": None,
            "lease_until": None,
            "estimated_finish": None,
        }
        self.write(events, also, **values, **ended)

    def checkpoint_steps(self) -> set[int]:
        """The steps whose checkpoints are kept."""
        with self.store.reading() as connection:
            return set(connection.execute(sa.select(checkpoints.c.step).where(checkpoints.c.job == self.job)).scalars())

    def keep_checkpoint(
        self, step: int, name: str, metrics: Mapping[str, float], results: Sequence[Mapping[str, Any]], model: ModelRef | None
    ) -> None:
        """Keep a checkpoint with its prepared files; `model` answers to its name (None: nothing does)."""

        def also(connection: sa.Connection) -> None:
            job = _one(connection, jobs.c.id == self.job)
            row = {"id": new_id("ftckpt_"), "created": time.time(), "project": job["project"], "job": self.job, "step": step}
            row |= {"model": name, "metrics": dict(metrics), "files": [file["id"] for file in results]}
            connection.execute(sa.insert(files), list(results))
            connection.execute(sa.insert(checkpoints).values(**row))
            if model is not None:
                _keep_model(connection, job, name, model, checkpoint=True)

        self.write([], also, pausing=True)

    def forget_checkpoint(self, step: int) -> None:
        """Forget a checkpoint, its name and its files."""
        mine = [checkpoints.c.job == self.job, checkpoints.c.step == step]
        with self.store.writing() as connection:
            row = connection.execute(sa.select(checkpoints).where(*mine)).mappings().one()
            connection.execute(sa.delete(files).where(files.c.id.in_(row["files"])))
            connection.execute(sa.delete(tuned_models).where(tuned_models.c.id == row["model"]))
            connection.execute(sa.delete(checkpoints).where(*mine))
        for number in row["files"]:
            self.store.blobs.remove(f"files/{number}")

    def release(self) -> None:
        """Give the job back; another worker may take it at once."""
        with self.store.writing() as connection:
            connection.execute(self._mine(status=False).values(lease=None, lease_until=None))

    def wait(self) -> None:
        """Leave the job for a moment: the process of a worker that lost it still holds its folder. That is nobody's death."""
        message = "Waiting for the process that had the job before: it was stopped for longer than its lease"
        self.write([{"key": "held", "message": message, "level": "warn"}], lease_until=time.time() + min(self.seconds, _HELD_S))

    def crashed(self, message: str) -> None:
        """The process that ran the job died. Without progress in between, the last of MAX_TRIES such deaths ends the job as failed."""
        job = self.read()
        tries = job["tries"] + 1
        if tries >= MAX_TRIES:
            self.write(tries=tries)
            self.fail("server_error", f"The training process died {tries} times: {message}")
            return
        event = {"key": f"died:{new_id('')}", "message": f"The training process died, trying again: {message}", "level": "warn"}
        self.write([event], tries=tries, lease_until=time.time() + min(self.seconds, 2.0**tries / 4))

    def _mine(self, *, status: bool) -> Any:
        where = [jobs.c.id == self.job, jobs.c.lease == self.token, *([jobs.c.status.in_(ACTIVE)] if status else [])]
        return sa.update(jobs).where(*where)


def say(
    connection: sa.Connection,
    job: str,
    key: str,
    message: str,
    *,
    level: str = "info",
    type: str = "message",
    data: dict[str, Any] | None = None,
) -> None:
    """One event of a job, unless it was said before under the same key."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    row = {"id": new_id("ftevent-"), "created": time.time(), "job": job, "key": key, "level": level, "type": type}
    statement = insert(job_events).values(**row, message=message, data=data or {})
    connection.execute(statement.on_conflict_do_nothing(index_elements=["job", "key"]))


def _keep_model(connection: sa.Connection, job: Row, name: str, model: ModelRef, *, checkpoint: bool = False) -> None:
    """Let a name answer with a model that the job made."""
    if connection.execute(sa.select(tuned_models.c.id).where(tuned_models.c.id == name)).first() is None:
        row = {"id": name, "created": time.time(), "project": job["project"], "job": job["id"], "base": model.base, "digest": model.digest}
        row |= {"adapter": model.adapter, "weights": model.weights, "checkpoint": checkpoint}
        connection.execute(sa.insert(tuned_models).values(**row))


def _one(connection: sa.Connection, where: Any, *, lock: bool = False) -> Row:
    query = sa.select(jobs).where(where)
    return connection.execute(query.with_for_update() if lock else query).mappings().one()


def _repeated(connection: sa.Connection, request: JobRequest, project: str, key: str | None, again: bool) -> Row | None:
    """The job that the same request made before, if it did."""
    if key is not None:
        same = [idempotency.c.project == project, idempotency.c.route == "jobs", idempotency.c.key == key]
        known = connection.execute(sa.select(idempotency).where(*same)).mappings().first()
        if known is not None and known["fingerprint"] != request.fingerprint:
            raise Refused(
                f"Idempotency-Key '{key[:64]}' was used for another request", code="idempotency_key_reused", remedy="send a fresh key"
            )
        return _one(connection, jobs.c.id == known["object"]) if known is not None else None
    if not again:
        return None
    twin = [jobs.c.project == project, jobs.c.fingerprint == request.fingerprint, jobs.c.created > time.time() - _AGAIN_S]
    return connection.execute(sa.select(jobs).where(*twin).order_by(jobs.c.seq.desc())).mappings().first()
