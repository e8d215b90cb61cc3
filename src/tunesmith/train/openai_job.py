"""Drives one fine-tuning job at OpenAI, or at any server that speaks its API: exactly one, whatever the network does. Knows nothing about
rows or prices.

Everything that identifies the job is written to `job.json` before it is needed, so a crash at any moment continues: the tag before the
upload, the files before the job, the job before it is followed. A create whose answer was lost is looked up by its tag, never repeated
blindly.
"""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.errors import ConfigError, NotFound, SourceUnavailable, TrainingError
from tunesmith.core.load import need
from tunesmith.core.types import Record

T = TypeVar("T")
OnEvent = Callable[[dict[str, Any]], None]

TAG = "tunesmith"  # the metadata key that a job is found by again
UPLOADS_ABOVE_BYTES = 100 << 20  # larger files go in parts through the Uploads API
PART_BYTES = 32 << 20
ENDED = frozenset({"succeeded", "failed", "cancelled"})
_AGAIN = "run again: it continues from here"
_TRIES, _FIRST_WAIT_S, _LONGEST_WAIT_S = 8, 0.5, 30.0


class Order(Record, frozen=True):
    """What is asked of the provider. `method` is the API's own object, such as {"type": "supervised", "supervised": {...}}."""

    model: str
    method: dict[str, Any]
    suffix: str | None = None
    seed: int | None = None
    metadata: dict[str, str] = {}


class HostedJob(Record, frozen=True):
    """What is known of the job; grows in `job.json` as it becomes known. `seen` are the ids of events already told."""

    tag: str
    order: Order
    base_url: str
    training_file: str | None = None
    validation_file: str | None = None
    id: str | None = None
    status: str = "not sent"
    fine_tuned_model: str | None = None
    error: str | None = None
    trained_tokens: int | None = None
    seen: tuple[str, ...] = ()


class Driver:
    """One job in one folder. `client` is an `openai.OpenAI`; its own retries are not used for creating."""

    def __init__(self, client: Any, out: Path, on_event: OnEvent = lambda _: None, *, first_wait_s: float = _FIRST_WAIT_S) -> None:
        self._client, self._out, self._on_event, self._first_wait_s = client, out, on_event, first_wait_s
        self._openai = need("openai", extra="openai")

    @property
    def _file(self) -> Path:
        return self._out / "job.json"

    def known(self) -> HostedJob | None:
        """The job of this folder, or None when none was begun."""
        return msgspec.json.decode(self._file.read_bytes(), type=HostedJob) if self._file.exists() else None

    def _keep(self, job: HostedJob, **changes: Any) -> HostedJob:
        job = msgspec.structs.replace(job, **changes)
        write_atomic(self._file, msgspec.json.encode(job))
        return job

    def run(self, order: Order, training: Path, validation: Path | None = None, *, poll_s: float = 10.0) -> HostedJob:
        """Upload, create and follow the job to its end; call again after a crash to continue.

        Raises ConfigError when the folder holds another order, TrainingError when the job ends in failure or the provider refuses,
        SourceUnavailable when it cannot be reached.
        """
        return self.follow(self.submit(order, training, validation), poll_s=poll_s)

    def submit(self, order: Order, training: Path, validation: Path | None = None) -> HostedJob:
        """Upload what is not there yet and create the job if it does not exist."""
        job = self.known()
        if job is not None and job.order != order:
            raise ConfigError("the folder holds another job", where=str(self._file), remedy="use another folder, or remove this one")
        if job is None:
            job = self._keep(HostedJob(tag=uuid.uuid4().hex, order=order, base_url=str(self._client.base_url)))
        if job.training_file is None:
            job = self._keep(job, training_file=self._upload(training, f"{job.tag}-train.jsonl"))
        if validation is not None and job.validation_file is None:
            job = self._keep(job, validation_file=self._upload(validation, f"{job.tag}-validation.jsonl"))
        if job.id is None:
            made = self._create(job)
            job = self._keep(job, id=made.id, status=made.status)
            self._on_event({"event": "created", "job": made.id, "status": made.status})
        return job

    def _upload(self, path: Path, name: str) -> str:
        def find() -> str | None:
            for file in self._client.files.list(purpose="fine-tune"):
                if file.filename == name:
                    return str(file.id)
            return None

        def send() -> str:
            return self._send_parts(path, name) if path.stat().st_size > UPLOADS_ABOVE_BYTES else self._send_whole(path, name)

        file_id = self._once(send, find, f"upload of '{path.name}'")
        self._on_event({"event": "uploaded", "file": file_id, "bytes": path.stat().st_size})
        return file_id

    def _send_whole(self, path: Path, name: str) -> str:
        with path.open("rb") as file:
            return str(self._client.with_options(max_retries=0).files.create(file=(name, file), purpose="fine-tune").id)

    def _send_parts(self, path: Path, name: str) -> str:
        size = path.stat().st_size
        upload = self._client.uploads.create(bytes=size, filename=name, mime_type="application/jsonl", purpose="fine-tune")
        parts = []
        with path.open("rb") as file:
            while block := file.read(PART_BYTES):
                parts.append(self._client.uploads.parts.create(upload_id=upload.id, data=block).id)
                self._on_event({"event": "uploading", "done": file.tell(), "total": size})
        return str(self._client.uploads.complete(upload_id=upload.id, part_ids=parts).file.id)

    def _create(self, job: HostedJob) -> Any:
        order = job.order
        request = {
            "model": order.model,
            "training_file": job.training_file,
            "method": order.method,
            "metadata": {**order.metadata, TAG: job.tag},
            "extra_headers": {"Idempotency-Key": job.tag},
        }
        optional: Mapping[str, Any] = {"validation_file": job.validation_file, "suffix": order.suffix, "seed": order.seed}
        request |= {key: value for key, value in optional.items() if value is not None}
        client = self._client.with_options(max_retries=0)
        made = self._once(lambda: client.fine_tuning.jobs.create(**request), lambda: self._tagged(job), "creation of the job")
        return self._only(job) or made

    def _jobs(self, job: HostedJob) -> list[Any]:
        """Every job with our tag, oldest first. Servers that ignore the filter are filtered here."""
        jobs = [
            tuning for tuning in self._client.fine_tuning.jobs.list(metadata={TAG: job.tag}) if (tuning.metadata or {}).get(TAG) == job.tag
        ]
        return sorted(jobs, key=lambda twin: (twin.created_at, twin.id))

    def _tagged(self, job: HostedJob) -> Any | None:
        jobs = self._jobs(job)
        return jobs[0] if jobs else None

    def _only(self, job: HostedJob) -> Any | None:
        """The oldest job with our tag; a twin that a repeated request made is cancelled."""
        jobs = self._steady(lambda: self._jobs(job), "list of jobs")
        for twin in jobs[1:]:
            if twin.status not in ENDED:
                twin_id = twin.id
                self._steady(lambda twin_id=twin_id: self._client.fine_tuning.jobs.cancel(twin_id), "cancelling a twin")  # type: ignore[misc]
                self._on_event({"event": "twin_cancelled", "job": twin_id})
        return jobs[0] if jobs else None

    def _once(self, act: Callable[[], T], find: Callable[[], T | None], what: str) -> T:
        """Do something that must not be done twice: after an answer was lost, look whether it was done before doing it again."""
        wait = self._first_wait_s
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT_S)
                done = self._steady(find, what)
                if done is not None:
                    return done
            try:
                return act()
            except self._openai.APIStatusError as error:
                if not _passing(error):
                    raise self._refused(error, what) from error
                last: Exception = error
            except self._openai.APIConnectionError as error:
                last = error
            self._on_event({"event": "retry", "what": what, "attempt": attempt + 1, "error": str(last)})
        raise SourceUnavailable(
            f"{what} did not succeed in {_TRIES} tries: {last}",
            where=str(self._client.base_url),
            remedy=_AGAIN,
        ) from last

    def _steady(self, act: Callable[[], T], what: str) -> T:
        """Do something harmless to repeat, with patience."""
        wait = self._first_wait_s
        for attempt in range(_TRIES):
            try:
                return act()
            except (self._openai.APIConnectionError, self._openai.APIStatusError) as error:
                if isinstance(error, self._openai.APIStatusError) and not _passing(error):
                    raise self._refused(error, what) from error
                last = error
            if attempt + 1 < _TRIES:
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT_S)
        raise SourceUnavailable(f"{what} failed: {last}", where=str(self._client.base_url), remedy=_AGAIN) from last

    def _refused(self, error: Any, what: str) -> TrainingError:
        if error.code == "training_not_available":
            return TrainingError(
                f"{what}: this provider no longer takes fine-tuning jobs from this organisation ({error.message})",
                where=str(self._client.base_url),
                remedy="train here instead (tunesmith train), or move an old fine-tune over (tunesmith migrate inventory)",
            )
        where = f"{self._client.base_url}{f' ({error.param})' if error.param else ''}"
        return TrainingError(f"{what} was refused: {error.message}", where=where, remedy="mend the request; nothing was created")

    def follow(self, job: HostedJob, *, poll_s: float = 10.0) -> HostedJob:
        """Tell every new event until the job ends. Raises TrainingError when it failed or was cancelled."""
        if job.id is None:
            raise NotFound("there is no job to follow", where=str(self._file), remedy="submit it first")
        jobs, job_id = self._client.fine_tuning.jobs, job.id
        while True:
            now = self._steady(lambda: jobs.retrieve(job_id), "looking at the job")
            job = self._tell(job)
            job = self._keep(
                job,
                status=now.status,
                fine_tuned_model=now.fine_tuned_model,
                trained_tokens=now.trained_tokens,
                error=getattr(now.error, "message", None) if now.error else None,
            )
            if now.status in ENDED:
                break
            time.sleep(poll_s)
        if now.status != "succeeded":
            raise TrainingError(f"job {job_id} {now.status}: {job.error or 'no reason given'}", where=str(self._client.base_url))
        return job

    def _tell(self, job: HostedJob) -> HostedJob:
        seen, fresh = set(job.seen), []
        events = self._steady(lambda: list(self._client.fine_tuning.jobs.list_events(job.id, limit=100)), "events of the job")
        for event in reversed(events):
            if event.id not in seen:
                fresh.append(event.id)
                data = event.data if isinstance(event.data, dict) else {}
                self._on_event({"event": event.type or "message", "level": event.level, "message": event.message, **data})
        return self._keep(job, seen=(*job.seen, *fresh)) if fresh else job

    def results(self, job: HostedJob) -> list[str]:
        """The result files as text (CSV), also where the provider sends them base64-encoded."""
        finished = self._steady(lambda: self._client.fine_tuning.jobs.retrieve(job.id), "looking at the job")
        texts = []
        for name in finished.result_files:
            data = self._steady(lambda name=name: self._client.files.content(name).read(), "result file")  # type: ignore[misc]
            texts.append(plain_text(data))
        return texts


def _passing(error: Any) -> bool:
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def plain_text(data: bytes) -> str:
    """A result file as text. One that is base64 throughout is decoded."""
    try:
        return base64.b64decode(b"".join(data.split()), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return data.decode("utf-8", "replace")
