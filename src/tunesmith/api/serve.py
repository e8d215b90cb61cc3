"""What `tunesmith serve` does: load what is deployed (or the project's models) and answer until told to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from tunesmith.core.errors import NotFound
from tunesmith.core.store import Store
from tunesmith.flow.project import load_project
from tunesmith.models.base import Model
from tunesmith.models.catalog import Catalog


def serve_project(file: Path, host: str | None = None, port: int | None = None, say: Callable[[str], None] = print) -> None:
    """Serve the project's base and every deployed alias; blocks until SIGTERM or ctrl-C.

    Raises NotFound when nothing was deployed yet, UsageError when the port is taken.
    """
    from tunesmith.api.app import ServeConfig, create_app, listen, serve
    from tunesmith.models.local import LocalModel

    project = load_project(file)
    settings = ServeConfig(host=host or project.deploy.host, port=project.deploy.port if port is None else port)
    listen(settings.host, settings.port).close()  # a taken port is said before the model is loaded
    folder = file.resolve().parent
    store = Store.open(folder / project.store)
    try:
        deployed = store.deployed()
        if not deployed:
            raise NotFound("nothing is deployed yet", where=str(store.folder), remedy="tunesmith run; its gate deploys the tuned model")
        base = LocalModel(Catalog().model(project.base), name=project.base)
        models = {project.base: base}
        for alias, record in deployed.items():
            models[alias] = base.with_adapter(Path(record["adapter"]), alias)
        app = create_app(models, store.engine, settings)
        serve(app, settings, on_ready=lambda url: say(f"serving {', '.join(models)} at {url} (ctrl-C stops)"))
    finally:
        store.close()


@contextmanager
def temporary(models: Mapping[str, Model], log: sa.Engine) -> Iterator[str]:
    """The models behind a free port of this machine for as long as the block lasts; gives the base URL. Requests go to the store's log."""
    from tunesmith.api.app import create_app, running

    with running(create_app(models, log)) as url:
        yield url
