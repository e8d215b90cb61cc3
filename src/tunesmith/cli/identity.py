"""The command that says whether what answers to a name is what was deployed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.shared import Json, emit, file_option

if TYPE_CHECKING:
    from tunesmith.core.deployment import Deployment
    from tunesmith.flow.identity_status import VariantIdentity


def identity(
    alias: Annotated[str | None, typer.Argument(help="The name that clients ask for (default: every one that is deployed).")] = None,
    url: Annotated[str | None, typer.Option(help="Look now, through the server at this address (ending in /v1).")] = None,
    api_key: Annotated[
        str | None, typer.Option(help="A key with the scope admin (default: the environment variable TUNESMITH_API_KEY).")
    ] = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Does each variant of a name answer as the weights that were deployed? Exit code 3 when one does not.

    Without --url: what the server that runs has found last. Example: tunesmith identity support --url http://127.0.0.1:8000/v1
    """
    from tunesmith.api.identity import through
    from tunesmith.core.progress import Silent
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.identity_status import identities, look_through
    from tunesmith.store.deployments import Deployments

    with bench(config, Silent()) as at:
        names = [alias] if alias is not None else list(Deployments(at.store).in_force())
        for name in names if url is not None else ():
            look_through(name, through(url or "", api_key or os.environ.get("TUNESMITH_API_KEY", "none")), url or "", at.store)
        seen = [identities(name, at.store) for name in names]
    lines = [line for made, known in seen for line in (f"'{made.alias}' (version {made.version})", *(f"  {each.text()}" for each in known))]
    emit({"aliases": [shown(*each) for each in seen]}, as_json, "\n".join(lines) or "nothing is deployed")
    if any(each.differs for _, known in seen for each in known):
        raise typer.Exit(3)


def shown(deployment: Deployment, known: Sequence[VariantIdentity]) -> dict[str, Any]:
    """What is known of an alias, as JSON."""
    import msgspec

    variants = [
        {
            "variant": each.variant.name,
            "probes": None if each.reference is None else len(each.reference.probes),
            "differs": each.differs,
            "looks": msgspec.to_builtins(each.looks),
        }
        for each in known
    ]
    return {"alias": deployment.alias, "version": deployment.version, "since": deployment.created, "variants": variants}
