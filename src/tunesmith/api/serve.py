"""What `tunesmith serve` does: load what is deployed (or the project's models) and answer until told to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tunesmith.api.reload import Reload
from tunesmith.api.state import Watch
from tunesmith.core.progress import Silent
from tunesmith.deploy.processes import Processes
from tunesmith.deploy.router import Router
from tunesmith.deploy.serve_config import Elsewhere, ServeConfig
from tunesmith.flow.alerting import Alerting
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.engines import Engines, refuse_taken
from tunesmith.flow.jobs import worker
from tunesmith.flow.last_run import view
from tunesmith.flow.project import DEFAULT_FILE, Project, open_store, without_file
from tunesmith.flow.temporary_server import Live
from tunesmith.flow.undeployed import why_undeployed
from tunesmith.flow.upstreams import key_of
from tunesmith.models.base import Model, route_of
from tunesmith.models.catalog import Catalog
from tunesmith.models.resolve import TUNED_WORD, Models
from tunesmith.models.upstream import Upstream
from tunesmith.models.weights import Weights
from tunesmith.monitor.alerts import span_s
from tunesmith.store.keys import Keys
from tunesmith.store.store import Store

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from tunesmith.api.guard import Site

Pages = Callable[[Path, ProjectContext], "Site"]  # what shows the project of that file to people


def serve_project(
    file: Path,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
    *,
    names: Mapping[str, str] | None = None,
    as_written: bool = False,
    pages: Pages | None = None,
) -> None:
    """Serve the project's base as the last run had it, every deployed alias, its upstreams and the fine-tuning API; blocks until SIGTERM
    or ctrl-C. Without a project the first of `names` is the base.

    Each alias answers with the model that its deployment names, on that model's own base. One that cannot be loaded is said, answers 503
    and keeps no other from being served. `overrides` are `--serve.key value` as on the command line; `names` are further names for models
    (OpenAI's, for unchanged code), `pages` what is shown under `/`. Raises UsageError when the port is taken, or the host can be reached
    from elsewhere and there is no API key; NotFound and SourceUnavailable for the project's own base.
    """
    from tunesmith.api.app import serve

    with application(file, overrides, say, names=names or {}, as_written=as_written, pages=pages) as served:
        store, settings = served.store, served.settings
        with Processes(worker.MODULE, worker.place(store), settings.workers, store.layout.workers_log, stdin=store.url):
            answering = ", ".join(name for name, _ in served.router.listed())

            def ready(url: str) -> None:
                say(f"serving {answering} at {url} (ctrl-C stops)")
                if pages is not None:
                    say(f"pages at {url.removesuffix('v1')}")

            serve(served.app, settings, on_ready=ready)


@dataclass(frozen=True)
class Application:
    """What is about to be served, and over what."""

    app: Starlette
    settings: ServeConfig
    router: Router
    store: Store


@contextmanager
def application(
    file: Path,
    overrides: Sequence[str],
    say: Callable[[str], None],
    *,
    names: Mapping[str, str],
    as_written: bool = False,
    pages: Pages | None = None,
) -> Iterator[Application]:
    """The application that `serve_project` serves, with its models loaded; says what it does not serve. Raises as that does."""
    from tunesmith.api.app import create_app, listen

    home, seen = file.resolve().parent, None
    if file == DEFAULT_FILE and not file.exists():
        project = without_file(next(iter(names.values()), None), overrides)
        say(f"no {file} here: serving '{project.base}'; requests, files and jobs are kept in {project.store}/")
    else:
        seen = view(file, beside=overrides, as_written=as_written)
        project = seen.project
        if seen.overrides:
            say(seen.text())
    settings = _settings(project, names)
    refuse_taken(settings.engines, project.base)
    store = open_store(project, home)
    engines: Engines | None = None
    try:
        store.blobs.check()
        # A taken port is said before the model is loaded.
        listen(settings.host, settings.port, keyed=Keys(store).exist()).close()
        upstreams = {name: _upstream(name, one) for name, one in settings.upstreams.items()}
        catalog = Catalog()
        context = ProjectContext(project, home, store, catalog, Silent(), view=seen)
        weights = Weights(max_adapters=settings.max_adapters)
        models = Models(store, catalog, home=home, run=context.last_trained, weights=weights)
        engines = Engines(settings.engines, models, store.folder)
        started, lines = engines.start()
        _say_all(lines, say)
        router = Router({project.base: models.load(models.ref(project.base), project.base)})
        others: dict[str, Model] = {**upstreams, **started}
        reload = Reload(router, models, others)
        _say_all(reload.start(), say)
        for name, other in others.items():
            router.put(name, other)
        _say_all([*slower(router), *(absent(router, project, settings, store) if seen else [])], say)
        site = pages(file, context) if pages is not None else None
        watch = _watch(project, store, file) if seen is not None else None
        app = create_app(router, config=settings, store=store, models=models, reload=reload, site=site, watch=watch)
        yield Application(app, settings, router, store)
    finally:
        if engines is not None:
            engines.stop()
        store.close()


def _say_all(lines: Sequence[str], say: Callable[[str], None]) -> None:
    for line in lines:
        say(line)


def served(router: Router, models: Models, upstreams: Mapping[str, Model]) -> list[str]:
    """Let every alias in force answer with the models of its variants, as it is now; what is to be said of that."""
    return Reload(router, models, upstreams).start()


def slower(router: Router) -> list[str]:
    """Of each model that does not answer on the fastest route: its name, its route and why."""
    lines = []
    for model in router.models():
        route = route_of(model)
        if route is not None and not route.fastest:
            lines.append(f"'{model.name}' answers {route.why()}")
    return lines


def absent(router: Router, project: Project, settings: ServeConfig, store: Store) -> list[str]:
    """Let the router say why the project's alias answers nothing, where it does; what is to be said of it."""
    alias = project.deploy.alias
    why = "" if router.known(alias) or alias in settings.names else why_undeployed(project, store)
    if not why:
        return []
    router.explain(alias, why)
    anyhow = f" (tunesmith serve --name {alias}={TUNED_WORD} serves it under its name)" if TUNED_WORD in why else ""
    return [f"NOT SERVED: '{alias}': {why}{anyhow}"]


def _watch(project: Project, store: Store, file: Path) -> Watch | None:
    """What looks at the project's alerts, where it has rules."""
    if not project.alerts.rules:
        return None
    alerting = Alerting(store, project.alerts, project.monitor, project.deploy.alias, file)
    return alerting.look, span_s(project.alerts.every, "alerts.every")


def _settings(project: Project, names: Mapping[str, str]) -> ServeConfig:
    """The section with the names of the command line."""
    return msgspec.structs.replace(project.serve, names={**project.serve.names, **names})


def _upstream(name: str, one: Elsewhere) -> Upstream:
    return Upstream(one.model, base_url=one.base_url, api_key=key_of(name, one), timeout_s=one.timeout_s)


@contextmanager
def temporary(models: Mapping[str, Model], log: Store, live: Live | None = None) -> Iterator[str]:
    """The models behind a free port of this machine for as long as the block lasts; gives the base URL. Requests go to the store's log.
    With `live` its alias answers as its deployment in the store says, each change with the next request."""
    from tunesmith.api.app import create_app, running

    router = Router(dict(models))
    reload = Reload(router, live.models, {}, only=live.alias) if live is not None else None
    if reload is not None:
        reload.start()
    with running(create_app(router, log, models=live.models if live is not None else None, reload=reload)) as url:
        yield url
