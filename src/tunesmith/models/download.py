"""Fetch one pinned wheel of the Python package index: resumable, checked by hash; knows nothing about models."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tunesmith.core.digests import sha256_of
from tunesmith.core.errors import SourceUnavailable, StoreError
from tunesmith.core.progress import EVERY_S

# (label, bytes done, bytes in all)
Progress = Callable[[str, int, int], None]


class Announced:
    """The progress of downloads where nobody shows a bar: a line on standard error when one begins, and then every half minute."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def __call__(self, label: str, done: int, total: int) -> None:
        """Say it, or nothing where it was said a moment ago."""
        last, now = self._told.get(label), time.monotonic()
        if last is not None and now - last < EVERY_S:
            return
        self._told[label] = now
        size = f", {total / 1e6:,.0f} MB" if total else ""
        text = f"fetching {label} (once{size})" if last is None and total else f"{label}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        print(text if total else label, file=sys.stderr, flush=True)


def index_url() -> str:
    """The package index: pip's own PIP_INDEX_URL where it is set, else PyPI."""
    return os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")


def fetch_wheel(package: str, version: str, sha256: str | None, folder: Path, progress: Progress | None = None) -> Path:
    """The wheel of `package` at `version` as a file in `folder`; a partial download is continued.

    Raises SourceUnavailable when the index cannot be reached or lacks it, StoreError when the hash differs from `sha256`
    (or from the index's own, where none is pinned).
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f"{package}-{version}.whl"
    if done.is_file() and (sha256 is None or sha256_of(done) == sha256):
        return done
    page = f"{index_url()}/{package}/"
    try:
        with httpx.Client(follow_redirects=True, timeout=60.0) as client:
            link, known = _find(client, page, package, version)
            part = done.with_suffix(".part")
            _stream(client, link, part, progress, label=package)
    except httpx.HTTPError as error:
        raise SourceUnavailable(
            f"'{package}' {version} could not be fetched: {error}",
            where=page,
            remedy="check the network (or set PIP_INDEX_URL to an index that has it); what was loaded is kept and the next call continues",
        ) from error
    digest = sha256_of(part)
    if digest != (sha256 or known):
        part.unlink()
        raise StoreError(
            f"'{package}' {version} has sha256 {digest}, expected {sha256 or known}", where=link, remedy="try again, or distrust the index"
        )
    part.replace(done)
    return done


def _find(client: httpx.Client, page: str, package: str, version: str) -> tuple[str, str]:
    answer = client.get(page, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    answer.raise_for_status()
    files = answer.json()["files"]
    start = f"{package.replace('-', '_')}-{version}-".lower()
    for file in files:
        name = file["filename"].lower()
        if name.endswith("none-any.whl") and (name.startswith(start) or name.replace("-", "_", package.count("-")).startswith(start)):
            return str(httpx.URL(page).join(file["url"])), file["hashes"]["sha256"]
    raise SourceUnavailable(f"the index has no wheel of '{package}' {version}", where=page, allowed=f"{len(files)} other files")


def _stream(client: httpx.Client, link: str, part: Path, progress: Progress | None, *, label: str) -> None:
    have = part.stat().st_size if part.exists() else 0
    with client.stream("GET", link, headers={"Range": f"bytes={have}-"} if have else {}) as answer:
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:  # it was whole already
            return
        answer.raise_for_status()
        if answer.status_code != httpx.codes.PARTIAL_CONTENT:
            have = 0
        total = have + int(answer.headers.get("content-length", 0))
        with part.open("ab" if have else "wb") as file:
            for chunk in answer.iter_bytes(1 << 18):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(label, have, total)
