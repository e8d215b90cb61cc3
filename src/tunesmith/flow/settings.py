"""Settings of a project's file changed by a command or a page: one key at a time, checked as a whole before it is written. Knows nothing
about what a key means."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.config import parse_overrides
from tunesmith.core.digests import sha256_of
from tunesmith.core.errors import ConfigError, NotFound, UsageError
from tunesmith.core.yaml_edit import with_value
from tunesmith.deploy.serve_config import Webhook
from tunesmith.flow.project import Project, load_project


def stamp_of(file: Path) -> str:
    """What names the file's content: who changes it from a page says which one the page showed."""
    return sha256_of(file)[:16] if file.is_file() else ""


def set_key(file: Path, key: str, value: Any, *, seen: str = "") -> Project:
    """Write a value into a project's file where it stands, comments and layout kept, once the whole file is valid with it. Raises
    ConfigError for what the project cannot be, UsageError where the file is not the one that was `seen`."""
    if not file.is_file():
        raise NotFound(f"no file '{file}'", remedy="tunesmith init writes one")
    if seen and seen != stamp_of(file):
        raise UsageError(f"somebody has changed '{file.name}' meanwhile", remedy="look at it as it is now, and decide again")
    text = with_value(file.read_text("utf-8"), tuple(key.split(".")), value)
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / file.name
        tried.write_text(text, "utf-8")
        try:
            project = load_project(tried)
        except ConfigError as error:
            where = (error.where or "").replace(str(tried), str(file))
            raise ConfigError(error.what, where=where, allowed=error.allowed, remedy=error.remedy) from error
    write_atomic(file, text)
    return project


def set_word(file: Path, key: str, text: str) -> Project:
    """As `set_key`, of a value as it is written in YAML: `30`, `null`, `[email, phone]`."""
    _, value = parse_overrides([f"--{key}={text}"])[0]
    return set_key(file, key, value)


def add_webhook(file: Path, url: str, events: Sequence[str] = (), *, seen: str = "") -> str:
    """Tell a further address of events; returns the secret that signs what it is told, which stands in the file. Raises ConfigError."""
    secret = f"whsec_{base64.b64encode(os.urandom(24)).decode()}"
    hooks = load_project(file).serve.webhooks
    if any(hook.url == url for hook in hooks):
        raise UsageError(f"'{url}' is told already", allowed="another address, or the old one ended first")
    set_key(file, "serve.webhooks", [*_plain(hooks), *_plain((Webhook(url=url, secret=secret, events=tuple(events)),))], seen=seen)
    return secret


def end_webhook(file: Path, url: str, *, seen: str = "") -> None:
    """Tell an address no longer. Raises NotFound."""
    hooks = load_project(file).serve.webhooks
    left = tuple(hook for hook in hooks if hook.url != url)
    if len(left) == len(hooks):
        raise NotFound(f"no webhook '{url[:200]}'", allowed=", ".join(hook.url for hook in hooks) or "none")
    set_key(file, "serve.webhooks", _plain(left), seen=seen)


def _plain(hooks: Sequence[Webhook]) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = msgspec.to_builtins(list(hooks))
    return plain
