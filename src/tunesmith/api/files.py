"""The Files API: upload, list, retrieve, content, delete; knows nothing about what files are used for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tunesmith.api.errors import APIError
from tunesmith.api.http import away, hidden_of, limit_of, listing, oldest_first, project_of, reply
from tunesmith.api.limits import MAX_FILE_BYTES
from tunesmith.api.state import store_of
from tunesmith.core.wire import BadRequest
from tunesmith.store.files import Files
from tunesmith.store.paging import Row

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")

_SHORTEST_S, _LONGEST_S = 3600, 2_592_000
_CHUNK = 1 << 18


def file_object(row: Row) -> dict[str, Any]:
    """A file as the API shows it. Keys without a value are left out, as OpenAI leaves them out."""
    body = {
        "id": row["id"],
        "object": "file",
        "bytes": row["bytes"],
        "created_at": int(row["created"]),
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
    }
    return body if row["expires"] is None else body | {"expires_at": int(row["expires"])}


async def create(request: Request) -> Response:
    """POST /files."""
    async with await form_of(request) as form:
        upload = part_of(form, "file")
        purpose = form.get("purpose")
        if not isinstance(purpose, str):
            raise BadRequest("Missing required parameter: 'purpose'", param="purpose", code="missing_required_parameter")
        check_purpose(purpose, PURPOSES, request)
        known = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}
        unknown = sorted(form.keys() - known)
        if unknown:
            raise BadRequest(
                f"Unrecognized request argument supplied: {unknown[0][:100]}", param=unknown[0][:100], code="unknown_parameter"
            )
        keep_s = keep_of({"anchor": form.get("expires_after[anchor]"), "seconds": form.get("expires_after[seconds]")})
        row = await away(
            Files(store_of(request)).put,
            upload.file,
            project=project_of(request),
            filename=upload.filename or "file",
            purpose=purpose,
            keep_s=keep_s,
            most=MAX_FILE_BYTES,
        )
    return reply(file_object(row))


async def list_files(request: Request) -> Response:
    """GET /files."""
    query = request.query_params
    rows, more = await away(
        Files(store_of(request)).listed,
        project_of(request),
        purpose=query.get("purpose"),
        after=query.get("after"),
        limit=limit_of(query, 10_000),
        oldest_first=oldest_first(query),
        hidden=hidden_of(request),
    )
    return reply(listing(map(file_object, rows), more, ends=True))


async def retrieve(request: Request) -> Response:
    """GET /files/{file_id}."""
    return reply(file_object(await _found(request)))


async def _found(request: Request) -> Row:
    """The row of the file that the path names. Raises Missing."""
    files = Files(store_of(request))
    return await away(files.find, request.path_params["file_id"], project_of(request), hidden=hidden_of(request))


async def content(request: Request) -> Response:
    """GET /files/{file_id}/content: the bytes as they came."""
    row = await _found(request)
    stream = await away(Files(store_of(request)).open, row["id"])
    return StreamingResponse(_chunks(stream), media_type="application/octet-stream", headers={"content-length": str(row["bytes"])})


async def _chunks(stream: IO[bytes]) -> AsyncIterator[bytes]:
    with stream:
        while block := await away(stream.read, _CHUNK):
            yield block


async def delete(request: Request) -> Response:
    """DELETE /files/{file_id}."""
    number = request.path_params["file_id"]
    await away(Files(store_of(request)).delete, number, project_of(request), hidden=hidden_of(request))
    return reply({"id": number, "object": "file", "deleted": True})


async def form_of(request: Request) -> Any:
    """The multipart form; parts are spooled to disk. Raises BadRequest when the body is none."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise BadRequest("the body is not multipart/form-data", code="invalid_content_type", allowed="multipart/form-data")
    try:
        form = await request.form(max_files=1, max_fields=16)
    except (MultiPartException, FormParserError) as error:
        raise BadRequest(f"the multipart body cannot be read: {error}", code="invalid_multipart") from error
    return _Closing(form)


class _Closing:
    def __init__(self, form: FormData) -> None:
        self._form = form

    async def __aenter__(self) -> FormData:
        return self._form

    async def __aexit__(self, *_: object) -> None:
        await self._form.close()


def part_of(form: FormData, name: str) -> UploadFile:
    """The file part of that name. Raises BadRequest when there is none."""
    part = form.get(name)
    if not isinstance(part, UploadFile):
        said = "is missing" if part is None else "has no filename, so it is no file"
        raise BadRequest(f"'{name}' {said}", param=name, code="missing_required_parameter", allowed="a file part")
    return part


def check_purpose(purpose: str, allowed: tuple[str, ...], request: Request) -> None:
    """Raises BadRequest for a purpose that clients may not give, APIError 403 for one that this key may not."""
    if purpose in hidden_of(request):
        raise APIError(
            403, f"This key may not make files for '{purpose}': it needs one of the scopes admin, train", code="insufficient_permissions"
        )
    if purpose not in allowed:
        raise BadRequest(f"'{purpose[:100]}' is not one of the purposes", param="purpose", code="invalid_value", allowed=", ".join(allowed))


def keep_of(asked: dict[str, Any] | None) -> float | None:
    """`expires_after` in seconds, None when it was not given. Raises BadRequest outside an hour to 30 days."""
    if asked is None or (asked.get("anchor") is None and asked.get("seconds") is None):
        return None
    anchor, seconds = asked.get("anchor"), str(asked.get("seconds"))
    if anchor != "created_at" or not seconds.isascii() or not seconds.isdigit() or not _SHORTEST_S <= int(seconds[:12]) <= _LONGEST_S:
        raise BadRequest(
            f"'expires_after' is anchor {str(anchor)[:50]!r}, seconds {seconds[:20]!r}",
            param="expires_after",
            code="invalid_value",
            allowed=f"anchor created_at, seconds {_SHORTEST_S} to {_LONGEST_S}",
        )
    return float(seconds)
