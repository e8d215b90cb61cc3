"""Fine-tuning jobs ordered from here, not by an OpenAI client: over rows of a data version, or again as an earlier job with changes. The
body is the API's own, so both are checked alike."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.config import parse_overrides
from tunesmith.core.errors import UsageError
from tunesmith.core.row_kinds import kind_of
from tunesmith.core.types import Example, Labelled, Preference
from tunesmith.data.export import export
from tunesmith.flow.jobs.request import job_request
from tunesmith.flow.jobs.start import starting
from tunesmith.flow.rows import Rows
from tunesmith.models.resolve import Models
from tunesmith.store.files import Files
from tunesmith.store.jobs import Jobs
from tunesmith.store.keys import DEFAULT_PROJECT
from tunesmith.store.paging import Row
from tunesmith.store.store import Store

# What OpenAI calls the training on each kind of rows, and the format of its file.
SEALED = "test"  # the part that nobody trains on
_TAUGHT = {Example: ("supervised", "chat"), Preference: ("dpo", "dpo"), Labelled: ("kto", "labelled_chat")}


def order(
    store: Store,
    models: Models,
    model: str,
    data: Rows,
    *,
    validation: Rows | None = None,
    settings: Mapping[str, Any] = {},
    suffix: str = "",
    project: str = DEFAULT_PROJECT,
) -> Row:
    """A job that trains `model` on rows; `settings` are hyperparameters, as the API names them. The rows become files of the project.
    Raises UsageError for rows that no job can train on, BadRequest and NotFound as the API does."""
    kind = kind_of(data.rows)
    if not data.rows or kind not in _TAUGHT:
        raise UsageError(
            f"{data.name} has {len(data.rows)} rows that a job can train on", allowed="conversations, preferences, or labelled answers"
        )
    if SEALED in (data.name.rpartition(":")[2], *(data.splits if len(data.splits) > 1 else ())):
        raise UsageError(f"{data.name} has sealed rows", allowed="rows that no test is made of, such as VERSION:train")
    method = _TAUGHT[kind][0]
    body: dict[str, Any] = {"model": model, "method": {"type": method, method: {"hyperparameters": dict(settings)}}}
    body |= {"suffix": suffix} if suffix else {}
    files = {"training_file": data, **({"validation_file": validation} if validation is not None and validation.rows else {})}
    asked = job_request(msgspec.json.encode({**body, **dict.fromkeys(files, "file-")}))  # refused before anything is written
    start = models.ref(model)
    asked = starting(asked, start, models)
    numbers = {name: _file(store, rows, project) for name, rows in files.items()}
    return Jobs(store).create(msgspec.structs.replace(asked, **numbers), base=start.as_base, project=project)


def order_again(store: Store, models: Models, number: str, settings: Mapping[str, Any] = {}, *, project: str | None = None) -> Row:
    """The job `number` once more, with other settings where some are given; `project` None sees all. Raises Missing, and as `order`."""
    before = Jobs(store).find(number, project)
    kind = before["method"]["type"]
    method = {"type": kind, kind: {**before["method"][kind]}}
    method[kind]["hyperparameters"] = {**before["method"][kind].get("hyperparameters", {}), **settings}
    same = {
        name: before[name]
        for name in ("model", "training_file", "validation_file", "suffix", "seed", "metadata")
        if before[name] is not None
    }
    asked = job_request(msgspec.json.encode({**same, "method": method}))
    for name in ("training_file", "validation_file"):
        if before[name]:
            Files(store).find(before[name], before["project"], name)
    start = models.ref(before["model"])
    return Jobs(store).create(starting(asked, start, models), base=start.as_base, project=before["project"])


def settings_of(words: str) -> dict[str, Any]:
    """`n_epochs=2 learning_rate=1e-4` as hyperparameters. Raises UsageError."""
    parts = words.split()
    if not all(part.partition("=")[0] and part.partition("=")[2] for part in parts):
        raise UsageError(
            f"the settings '{words[:100]}'", where="settings", allowed="NAME=VALUE with spaces between: n_epochs=2 learning_rate=1e-4"
        )
    return {key[0] if len(key) == 1 else ".".join(key): value for key, value in parse_overrides([f"--{part}" for part in parts])}


def _file(store: Store, data: Rows, project: str) -> str:
    name = f"{data.name.replace(':', '-')}.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        export(data.rows, Path(folder) / "rows.jsonl", _TAUGHT[kind_of(data.rows)][1], extras=False)
        with (Path(folder) / "rows.jsonl").open("rb") as stream:
            return str(Files(store).put(stream, project=project, filename=name, purpose="fine-tune")["id"])
