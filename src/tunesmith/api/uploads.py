"""The Uploads API: large files in parts; knows nothing about where the bytes go."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.files import check_purpose, file_object, form_of, keep_of, part_of
from tunesmith.api.http import away, project_of, reply
from tunesmith.api.limits import MAX_PART_BYTES
from tunesmith.api.state import store_of
from tunesmith.core import wire
from tunesmith.core.types import Record
from tunesmith.core.wire import BadRequest
from tunesmith.store.uploads import MAX_BYTES, Uploads, upload_object

_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data")


class _Create(Record, frozen=True):
    filename: str
    purpose: str
    bytes: int
    mime_type: str
    expires_after: dict[str, Any] | None = None


class _Complete(Record, frozen=True):
    part_ids: tuple[str, ...]
    md5: str | None = None


async def create(request: Request) -> Response:
    """POST /uploads."""
    asked = wire.convert(wire.decode_object(await request.body()), _Create)
    check_purpose(asked.purpose, _PURPOSES, request)
    if not 0 <= asked.bytes <= MAX_BYTES:
        raise BadRequest(f"'bytes' is {asked.bytes}", param="bytes", code="invalid_value", allowed=f"0 to {MAX_BYTES}")
    uploads, keep_s = Uploads(store_of(request)), keep_of(asked.expires_after)
    row = await away(
        uploads.create, project=project_of(request), filename=asked.filename, purpose=asked.purpose, size=asked.bytes, keep_s=keep_s
    )
    return reply(upload_object(row))


async def add_part(request: Request) -> Response:
    """POST /uploads/{upload}/parts."""
    number, project, uploads = request.path_params["upload"], project_of(request), Uploads(store_of(request))
    await away(uploads.find, number, project)
    async with await form_of(request) as form:
        row = await away(uploads.add, number, project, part_of(form, "data").file, most=MAX_PART_BYTES)
    return reply({"id": row["id"], "object": "upload.part", "created_at": int(row["created"]), "upload_id": row["upload"]})


async def complete(request: Request) -> Response:
    """POST /uploads/{upload}/complete."""
    asked = wire.convert(wire.decode_object(await request.body()), _Complete)
    uploads = Uploads(store_of(request))
    upload, file = await away(uploads.complete, request.path_params["upload"], project_of(request), asked.part_ids, asked.md5)
    return reply(upload_object(upload, file_object(file)))


async def cancel(request: Request) -> Response:
    """POST /uploads/{upload}/cancel."""
    return reply(upload_object(await away(Uploads(store_of(request)).cancel, request.path_params["upload"], project_of(request))))
