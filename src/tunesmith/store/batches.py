"""Batches in the store: requests from a file, answers line by line, files at the end; knows nothing about how a line is answered.

Each answered line is kept as it comes, so a server that dies goes on where it stopped; the answers become files when all are there
(`batch_lease.py`).
"""

from __future__ import annotations

import io
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from tunesmith.core.json_text import json_value, too_deep
from tunesmith.store.batch_lease import BatchLease
from tunesmith.store.blobs import BlobDamaged
from tunesmith.store.files import BytesGone, Files
from tunesmith.store.paging import Missing, Refused, Row, new_id, page
from tunesmith.store.store import Store
from tunesmith.store.tables import batch_lines, batches

ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings")
# Documented by OpenAI: a batch for one of them is taken and fails with that reason.
UNSERVED = ("/v1/moderations", "/v1/images/generations", "/v1/images/edits", "/v1/videos")
MOST_LINES, DAY_S = 50_000, 86_400.0
_MOST_ERRORS = 100  # of a file that are told
OPEN = ("validating", "in_progress", "finalizing", "cancelling")


class BatchLine(msgspec.Struct, forbid_unknown_fields=True):
    """One request of a batch's file."""

    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


class Batches:
    """The batches of all projects in one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def create(self, *, project: str, endpoint: str, input_file: str, window: str, metadata: Mapping[str, str] | None) -> Row:
        """A new batch. Raises Refused for a file of another purpose, Missing."""
        if Files(self.store).find(input_file, project, param="input_file_id")["purpose"] != "batch":
            raise Refused(f"'{input_file}' has another purpose", param="input_file_id", code="invalid_file_purpose", allowed="batch")
        now = time.time()
        row = {"id": new_id("batch_"), "created": now, "project": project, "status": "validating", "endpoint": endpoint, "total": 0}
        row |= {"input_file": input_file, "window": window, "metadata": metadata, "times": {"expires_at": now + DAY_S}}
        with self.store.writing() as connection:
            connection.execute(sa.insert(batches).values(**row))
        return self.find(str(row["id"]), project)

    def find(self, number: str, project: str | None) -> Row:
        """A batch; `project` None looks in all. Raises Missing."""
        where = [batches.c.id == number, *([batches.c.project == project] if project is not None else [])]
        with self.store.reading() as connection:
            row = connection.execute(sa.select(batches).where(*where)).mappings().first()
        if row is None:
            raise Missing("batch", number, param="batch_id")
        return row

    def listed(self, project: str, *, after: str | None, limit: int) -> tuple[list[Row], bool]:
        """A page of batches, newest first, and whether more follow."""
        return page(self.store, batches, [batches.c.project == project], after=after, limit=min(limit, 100))

    def counts(self, number: str) -> tuple[int, int, int, int]:
        """(answered, failed, prompt tokens, completion tokens) so far."""
        figures = [sa.case((batch_lines.c.ok, 1), else_=0), sa.case((batch_lines.c.ok, 0), else_=1)]
        figures += [batch_lines.c.tokens[i].as_integer() for i in range(2)]
        query = sa.select(*(sa.func.coalesce(sa.func.sum(figure), 0) for figure in figures)).where(batch_lines.c.batch == number)
        with self.store.reading() as connection:
            answered, failed, prompt, completion = connection.execute(query).one()
        return int(answered), int(failed), int(prompt), int(completion)

    def cancel(self, number: str, project: str) -> Row:
        """Ask a batch to end; what is answered is kept. Raises Missing, Refused."""
        self.find(number, project)
        with self.store.exclusive() as connection:
            row = connection.execute(sa.select(batches).where(batches.c.id == number).with_for_update()).mappings().one()
            if row["status"] in ("validating", "in_progress"):
                times = {**row["times"], "cancelling_at": time.time()}
                connection.execute(sa.update(batches).where(batches.c.id == number).values(status="cancelling", times=times))
            elif row["status"] not in ("cancelling", "cancelled"):
                raise Refused(f"Batch '{number}' is {row['status']}", param="batch_id", code="invalid_batch_status")
        return self.find(number, project)

    def lease(self, seconds: float) -> BatchLease | None:
        """The oldest batch that nobody works on, leased; or None."""
        now, token = time.time(), secrets.token_hex(8)
        with self.store.exclusive() as connection:
            free = [batches.c.status.in_(OPEN), sa.or_(batches.c.lease.is_(None), batches.c.lease_until < now)]
            query = sa.select(batches).where(*free).order_by(batches.c.seq).limit(1).with_for_update(skip_locked=True)
            row = connection.execute(query).mappings().first()
            if row is None:
                return None
            connection.execute(sa.update(batches).where(batches.c.id == row["id"]).values(lease=token, lease_until=now + seconds))
        return BatchLease(self.store, row, token, seconds)

    def read(self, row: Row) -> tuple[list[BatchLine], list[dict[str, Any]]]:
        """(the requests of the input file, what is wrong with it)."""
        if row["endpoint"] in UNSERVED:
            reason = f"{row['endpoint']} is not served here; served: {', '.join(ENDPOINTS)}"
            return [], [{"code": "unsupported_endpoint", "message": reason, "line": None, "param": "endpoint"}]
        try:
            if row["status"] == "validating":
                Files(self.store).find(row["input_file"], row["project"])
            opened = Files(self.store).open(row["input_file"])
        except (Missing, BytesGone) as error:
            return [], [{"code": "invalid_input_file", "message": _gone(row, error), "line": None, "param": "input_file_id"}]
        lines, errors, seen = [], [], set()
        with opened as stream:
            for number, data in enumerate(io.BufferedReader(stream), 1):  # type: ignore[type-var]
                if not data.strip():
                    continue
                line = _line(data)
                if isinstance(line, str):
                    errors.append({"code": "invalid_json_line", "message": line, "line": number, "param": None})
                    if len(errors) >= _MOST_ERRORS:
                        break
                    continue
                if line.url != row["endpoint"] or line.method != "POST":
                    reason = f"{line.method} {line.url}, expected POST {row['endpoint']}"
                    errors.append({"code": "mismatched_endpoint", "message": reason, "line": number, "param": "url"})
                if line.custom_id in seen:
                    reason = f"'{line.custom_id[:100]}' came before"
                    errors.append({"code": "duplicate_custom_id", "message": reason, "line": number, "param": "custom_id"})
                seen.add(line.custom_id)
                lines.append(line)
                if len(lines) > MOST_LINES:
                    break
        if not 1 <= len(lines) <= MOST_LINES and not errors:
            errors = [{"code": "invalid_n_requests", "message": f"{len(lines)} requests; 1 to {MOST_LINES}", "line": None, "param": None}]
        return lines, errors[:_MOST_ERRORS]


def _line(data: bytes) -> BatchLine | str:
    """One line's request, or what is wrong with it. What can be read can also be sent to an endpoint."""
    try:
        line = msgspec.json.decode(data, type=BatchLine)
    except UnicodeError as error:
        return f"the line is not UTF-8 text: {error}"
    except msgspec.DecodeError as error:
        return str(error)
    except RecursionError:
        return "the line is nested too deeply"
    return "the line is nested too deeply" if too_deep(line.body, data) else line


def _gone(row: Row, error: Missing | BytesGone) -> str:
    """Why a batch whose file is no longer there ends."""
    if row["status"] == "validating" or isinstance(error.__cause__, BlobDamaged):
        return error.what
    return f"The input file '{row['input_file']}' was deleted while the batch ran; what was answered until then is in its files"


def batch_object(row: Row, counts: tuple[int, int, int, int]) -> dict[str, Any]:
    """A batch as the API shows it; times that have not come are left out."""
    done, failed, prompt, completion = counts
    body = {
        "id": row["id"],
        "object": "batch",
        "endpoint": row["endpoint"],
        "input_file_id": row["input_file"],
        "completion_window": row["window"],
        "status": row["status"],
        "created_at": int(row["created"]),
        "request_counts": {"total": row["total"], "completed": done, "failed": failed},
        "metadata": row["metadata"],
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        },
    }
    named = {"output_file_id": row["output_file"], "error_file_id": row["error_file"], "errors": row["errors"]}
    times = {key: int(value) for key, value in row["times"].items()}
    return {**body, **{key: value for key, value in named.items() if value is not None}, **times}


def output_line(custom_id: str, status: int, request_id: str, body: bytes) -> str:
    """A line of the output (or error) file."""
    try:
        answer = json_value(body)
    except ValueError:
        answer = {"error": {"message": body.decode("utf-8", "replace")[:1000]}}
    response = {"status_code": status, "request_id": request_id, "body": answer}
    return json.dumps({"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": None}, ensure_ascii=False)
