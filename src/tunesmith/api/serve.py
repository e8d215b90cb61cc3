"""What `tunesmith serve` does: load what is deployed (or the project's models) and answer until told to stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from tunesmith.core.store import Store
from tunesmith.deploy.processes import Processes
from tunesmith.flow.project import load_project
from tunesmith.flow.server.keys import Keys
from tunesmith.models.base import Model
from tunesmith.models.catalog import Catalog


def serve_project(
    file: Path,
    host: str | None = None,
    port: int | None = None,
    say: Callable[[str], None] = print,
    *,
    names: Mapping[str, str] | None = None,
    workers: int = 1,
) -> None:
    """Serve the project's base, every deployed alias and the fine-tuning API; blocks until SIGTERM or ctrl-C.

    `names` are other names for bases (OpenAI's, for unchanged code); `workers` processes work on fine-tuning jobs. Raises UsageError when
    the port is taken, or the host can be reached from elsewhere and there is no API key.
    """
    from tunesmith.api.app import ServeConfig, create_app, listen, serve
    from tunesmith.models.local import LocalModel

    project = load_project(file)
    settings = ServeConfig(host=host or project.deploy.host, port=project.deploy.port if port is None else port, names=dict(names or {}))
    store = Store.open(file.resolve().parent / project.store)
    try:
        # A taken port is said before the model is loaded.
        listen(settings.host, settings.port, keyed=Keys(store).exist()).close()
        base = LocalModel(Catalog().model(project.base), name=project.base)
        models = {project.base: base}
        for alias, record in store.deployed().items():
            models[alias] = base.with_adapter(Path(record["adapter"]), alias)
        app = create_app(models, config=settings, store=store)
        words = ["--store", str(store.folder), "--parent", str(os.getpid())]
        with Processes("tunesmith.flow.jobs.worker", words, workers, store.folder / "workers.log"):
            serve(app, settings, on_ready=lambda url: say(f"serving {', '.join(models)} at {url} (ctrl-C stops)"))
    finally:
        store.close()


@contextmanager
def temporary(models: Mapping[str, Model], log: sa.Engine) -> Iterator[str]:
    """The models behind a free port of this machine for as long as the block lasts; gives the base URL. Requests go to the store's log."""
    from tunesmith.api.app import create_app, running

    with running(create_app(models, log)) as url:
        yield url
