"""The rows of a job's file, from the job's own copy of it; knows nothing about training."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tunesmith.core.atomic import atomic_file, write_atomic
from tunesmith.core.counted import counted
from tunesmith.core.digests import sha256_of
from tunesmith.core.errors import DataError
from tunesmith.core.rows import Row as DataRow
from tunesmith.core.rows import read_lines
from tunesmith.data.formats.objects import load_object
from tunesmith.data.formats.registry import FORMATS, parse_line
from tunesmith.store.files import BytesGone, Files
from tunesmith.store.paging import Missing, Row
from tunesmith.store.store import Store
from tunesmith.train.methods import JOB_METHODS

FEWEST = 10
_SHOWN_FAULTS = 5


class BadFile(Exception):
    """A training or validation file that cannot be used; the words and the code are for the client."""

    def __init__(self, code: str, message: str, param: str) -> None:
        self.code, self.message, self.param = code, message, param
        super().__init__(message)


def folder_of(store: Store, job: str) -> Path:
    """Where the run of a job lies."""
    return store.layout.job(job)


def read_rows(store: Store, job: Row, param: str) -> list[DataRow]:
    """The rows of a job's file. Raises BadFile as OpenAI words it: which lines are wrong, which format it is in, how many there must be."""
    formats, number, code = JOB_METHODS[job["method"]["type"]].job.formats, job[param], f"invalid_{param}"
    rows, faults, seen = [], [], 0
    try:
        for line in read_lines(_local(store, job, param)):
            seen += 1
            name = _fitting(line.data, formats)
            parsed = parse_line(line.data, name, origin=f"{number}:{line.number}")
            if parsed.row is None:
                faults.append(f"line {line.number}: {parsed.faults[0][1]}{_format_of(line.data, formats)}")
                if len(faults) > 1000:
                    break
            else:
                rows.append(parsed.row)
    except DataError as error:
        raise BadFile(code, f"The file cannot be read: {error.what}", param) from error
    if faults:
        shown = "; ".join(faults[:_SHOWN_FAULTS])
        raise BadFile(code, f"The job failed due to an invalid {param.replace('_', ' ')}: {counted(len(faults), 'line')}. {shown}", param)
    if param == "training_file" and seen < FEWEST:
        raise BadFile("invalid_n_examples", f"Training file has {seen} example(s), but must have at least {FEWEST} examples", param)
    return rows


def _local(store: Store, job: Row, param: str) -> Path:
    """The job's own copy of a file, made when it began: deleting the file does not break a job that is under way. A copy that is damaged is
    made again."""
    path, source = folder_of(store, job["id"]) / f"{param}.jsonl", Files(store)
    whole = path.with_suffix(".sha256")
    if path.is_file() and whole.is_file() and whole.read_text("ascii", "replace") == sha256_of(path):
        return path
    try:
        source.find(job[param], job["project"])
    except Missing as error:
        raise BadFile(f"invalid_{param}", f"The file {job[param]} does not exist any more", param) from error
    try:
        with source.open(job[param]) as stream, atomic_file(path, private=True) as local:
            shutil.copyfileobj(stream, local, 1 << 20)
    except BytesGone as error:
        raise BadFile(f"invalid_{param}", error.what, param) from error
    write_atomic(whole, sha256_of(path))
    return path


def _fitting(data: bytes, formats: Sequence[str]) -> str:
    """The first of the formats that a line is in, else the first of all."""
    if len(formats) == 1:
        return formats[0]
    row, _ = load_object(data)
    return next((name for name in formats if isinstance(row, dict) and FORMATS[name].matches(row)), formats[0])


def _format_of(data: bytes, formats: Sequence[str]) -> str:
    row, fault = load_object(data)
    if fault is not None or not isinstance(row, dict):
        return ""
    others = [known for known, form in FORMATS.items() if known not in formats and form.matches(row)]
    expected = " or ".join(f"'{name}'" for name in formats)
    return f" (the line is in the format '{others[0]}', expected {expected})" if others else ""
