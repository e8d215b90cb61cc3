"""A dashboard for Grafana and alert rules for Prometheus over what `metrics.py` shows: files beside this one. Knows nothing about where
they are used."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tunesmith.core.atomic import write_atomic
from tunesmith.core.errors import UsageError

FILES = ("grafana.json", "prometheus-rules.yaml")


def write(folder: Path) -> list[Path]:
    """Write the files to a folder; where they are. Raises UsageError where one of them is there with other words, before any is written."""
    texts = {folder / name: resources.files(__name__).joinpath(name).read_text("utf-8") for name in FILES}
    for path, text in texts.items():
        if path.exists() and path.read_text("utf-8") != text:
            raise UsageError(f"'{path}' is there and says something else", remedy="give another folder with --to, or move the file away")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    return list(texts)
