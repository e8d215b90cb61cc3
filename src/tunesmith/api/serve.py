"""What `tunesmith serve` does: load what is deployed (or the project's models) and answer until told to stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tunesmith.core.errors import UsageError
from tunesmith.deploy.processes import Processes
from tunesmith.deploy.serve_config import Elsewhere, ServeConfig
from tunesmith.flow.jobs import worker
from tunesmith.flow.last_run import view
from tunesmith.flow.project import Project, open_store
from tunesmith.models.base import Model
from tunesmith.models.catalog import Catalog
from tunesmith.models.upstream import Upstream
from tunesmith.store.deployments import Deployments
from tunesmith.store.keys import Keys
from tunesmith.store.store import Store


def serve_project(
    file: Path,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
    *,
    names: Mapping[str, str] | None = None,
    as_written: bool = False,
) -> None:
    """Serve the project's base as the last run had it, every deployed alias, its upstreams and the fine-tuning API; blocks until SIGTERM
    or ctrl-C.

    `overrides` are `--serve.key value` as on the command line; `names` are further names for bases (OpenAI's, for unchanged code). Raises
    UsageError when the port is taken, or the host can be reached from elsewhere and there is no API key.
    """
    from tunesmith.api.app import create_app, listen, serve
    from tunesmith.models.local import LocalModel

    seen = view(file, beside=overrides, as_written=as_written)
    project = seen.project
    if seen.overrides:
        say(seen.text())
    settings = _settings(project, names or {})
    store = open_store(project, file.resolve().parent)
    try:
        # A taken port is said before the model is loaded.
        listen(settings.host, settings.port, keyed=Keys(store).exist()).close()
        base = LocalModel(Catalog().model(project.base), name=project.base)
        models: dict[str, Model] = {project.base: base}
        for alias, deployment in Deployments(store).in_force().items():
            model = deployment.variants[0].model
            models[alias] = base.with_adapter(store.folder / model.adapter if model and model.adapter else None, alias)
        models |= {name: _upstream(name, one) for name, one in settings.upstreams.items()}
        app = create_app(models, config=settings, store=store)
        with Processes(worker.MODULE, worker.place(store), settings.workers, store.folder / "workers.log", told=store.url):
            serve(app, settings, on_ready=lambda url: say(f"serving {', '.join(models)} at {url} (ctrl-C stops)"))
    finally:
        store.close()


def _settings(project: Project, names: Mapping[str, str]) -> ServeConfig:
    """The section with the names of the command line."""
    return msgspec.structs.replace(project.serve, names={**project.serve.names, **names})


def _upstream(name: str, one: Elsewhere) -> Upstream:
    if one.api_key_from is not None and one.api_key_from not in os.environ:
        raise UsageError(
            f"the upstream '{name}' takes its key from {one.api_key_from}, which is not set", remedy=f"export {one.api_key_from}=…"
        )
    key = os.environ[one.api_key_from] if one.api_key_from else "none"
    return Upstream(one.model, base_url=one.base_url, api_key=key, timeout_s=one.timeout_s)


@contextmanager
def temporary(models: Mapping[str, Model], log: Store) -> Iterator[str]:
    """The models behind a free port of this machine for as long as the block lasts; gives the base URL. Requests go to the store's log."""
    from tunesmith.api.app import create_app, running

    with running(create_app(models, log)) as url:
        yield url
