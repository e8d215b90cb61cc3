"""What `tunesmith serve` does: load what is deployed (or the project's models) and answer until told to stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tunesmith.core.deployment import Variant
from tunesmith.core.errors import NotFound, TunesmithError, UsageError
from tunesmith.deploy.processes import Processes
from tunesmith.deploy.router import Router
from tunesmith.deploy.serve_config import Elsewhere, ServeConfig
from tunesmith.flow.jobs import worker
from tunesmith.flow.last_run import view
from tunesmith.flow.project import DEFAULT_FILE, Project, open_store, without_file
from tunesmith.models.base import Model, route_of
from tunesmith.models.catalog import Catalog
from tunesmith.models.resolve import Models
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
    or ctrl-C. Without a project the first of `names` is the base.

    Each alias answers with the model that its deployment names, on that model's own base. One that cannot be loaded is said, answers 503
    and keeps no other from being served. `overrides` are `--serve.key value` as on the command line; `names` are further names for models
    (OpenAI's, for unchanged code). Raises UsageError when the port is taken, or the host can be reached from elsewhere and there is no API
    key; NotFound and SourceUnavailable for the project's own base.
    """
    from tunesmith.api.app import create_app, listen, serve

    home = file.resolve().parent
    if file == DEFAULT_FILE and not file.exists():
        project = without_file(next(iter((names or {}).values()), None), overrides)
        say(f"no {file} here: serving '{project.base}'; requests, files and jobs are kept in {project.store}/")
    else:
        seen = view(file, beside=overrides, as_written=as_written)
        project = seen.project
        if seen.overrides:
            say(seen.text())
    settings = _settings(project, names or {})
    store = open_store(project, home)
    try:
        store.blobs.check()
        # A taken port is said before the model is loaded.
        listen(settings.host, settings.port, keyed=Keys(store).exist()).close()
        upstreams = {name: _upstream(name, one) for name, one in settings.upstreams.items()}
        models = Models(store, Catalog(), home=home)
        router = Router({project.base: models.load(models.ref(project.base), project.base)})
        for line in served(router, models, upstreams):
            say(line)
        for name, upstream in upstreams.items():
            router.put(name, upstream)
        for line in slower(router):
            say(line)
        app = create_app(router, config=settings, store=store, models=models)
        with Processes(worker.MODULE, worker.place(store), settings.workers, store.layout.workers_log, told=store.url):
            answering = ", ".join(name for name, _ in router.listed())
            serve(app, settings, on_ready=lambda url: say(f"serving {answering} at {url} (ctrl-C stops)"))
    finally:
        store.close()


def served(router: Router, models: Models, upstreams: Mapping[str, Model]) -> list[str]:
    """Let every alias in force answer with the models of its variants; what is to be said: who cannot be loaded and why, and who computes
    otherwise than when it was deployed."""
    lines, deployments = [], Deployments(models.store).in_force() if models.store is not None else {}
    for alias, deployment in deployments.items():
        try:
            loaded = {variant.name: _variant(variant, alias, models, upstreams) for variant in deployment.variants}
            router.deploy(deployment, loaded)
        except TunesmithError as error:
            router.fail(alias, error)
            lines.append(f"NOT SERVED: '{alias}' (version {deployment.version}): {error}")
            continue
        lines += [
            f"'{alias}' computes otherwise than when version {deployment.version} was deployed: other files, precision or template"
            for variant in deployment.variants
            if variant.model is not None and variant.model.digest not in ("", loaded[variant.name].digest)
        ]
    return lines


def slower(router: Router) -> list[str]:
    """Of each model that does not answer on the fastest route: its name, its route and why."""
    lines = []
    for model in router.models():
        route = route_of(model)
        if route is not None and not route.fastest:
            lines.append(f"'{model.name}' answers {route.why()}")
    return lines


def _variant(variant: Variant, alias: str, models: Models, upstreams: Mapping[str, Model]) -> Model:
    if variant.model is not None:
        return models.load(variant.model, alias)
    if variant.upstream is None or variant.upstream not in upstreams:
        raise NotFound(f"no upstream '{variant.upstream}'", where="serve.upstreams", allowed=", ".join(upstreams) or "none")
    return upstreams[variant.upstream]


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
