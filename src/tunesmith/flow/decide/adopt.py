"""`tunesmith run --arm`: the arm that was decided for takes the alias of the project. An arm without training of its own is put in force as
it was measured; a trained one goes through the whole run and its gate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.deployment import Variant
from tunesmith.core.errors import NotFound, UsageError, nearest
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.progress import Progress
from tunesmith.core.seal import checked
from tunesmith.flow.evaluation.run import bench_of
from tunesmith.flow.identity import references_of, system_of
from tunesmith.flow.parity_gate import compare_first
from tunesmith.flow.pipeline.run import opened
from tunesmith.flow.project import Project
from tunesmith.flow.temporary_server import Server
from tunesmith.store.deployments import Deployments

DECIDED = "decided"  # in place of an arm's name: the one that the decision chose
FILE = "decision.json"


@dataclass(frozen=True)
class Adopted:
    """The arm that answers for an alias now, with what it was measured to be worth."""

    arm: str
    alias: str
    version: int
    value: float | None

    def text(self) -> str:
        """In words."""
        worth = "" if self.value is None else f", measured at {self.value:.3f}"
        return f"deployed: '{self.alias}' answers with the arm {self.arm} (version {self.version}{worth})"


def decided_arm(folder: Path, name: str) -> dict[str, Any]:
    """What the decision in `folder` says of an arm. Raises NotFound without a decision, and for an arm that it does not have."""
    path = folder / FILE
    try:
        report: dict[str, Any] = msgspec.json.decode(checked(path).read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise NotFound(f"no decision to take an arm from: {error}", where=str(path), remedy="tunesmith decide") from error
    arms = {arm["name"]: arm for arm in report["arms"]}
    wanted = report["chosen"] if name == DECIDED else name
    if wanted is None:
        raise NotFound("the decision chose no arm", where=str(path), allowed=", ".join(arms))
    if wanted not in arms:
        raise NotFound(
            f"no arm '{wanted}' in the decision", where=str(path), allowed=f"{DECIDED}, {', '.join(arms)}", remedy=nearest(wanted, arms)
        )
    found: dict[str, Any] = arms[wanted]
    return found


def adopt(project: Project, folder: Path, arm: dict[str, Any], progress: Progress, server: Server) -> Adopted:
    """Put an arm in force for the project's alias, as it was measured. Raises UsageError for one that no deployment can answer as, and
    where several variants answer for the alias; GateRefused for weights that adapter, export and server compute otherwise."""
    variant = msgspec.convert(arm["variant"], Variant) if arm.get("variant") else None
    if variant is None:
        raise UsageError(
            f"the arm '{arm['name']}' cannot be deployed: {arm.get('undeployable') or 'it answers elsewhere'}", allowed="another arm"
        )
    alias = project.deploy.alias
    with opened(project, folder, progress) as context:
        if names := Deployments(context.store).side_by_side(alias):
            raise UsageError(
                f"'{alias}' answers with several variants ({', '.join(names)}), which run --arm does not end",
                allowed="an alias with one variant",
                remedy=f"tunesmith deploy promote {alias} {names[0]}, then ask again; or deploy.alias: another name",
            )
        if variant.model is not None:
            compare_first(arm["name"], bench_of(context), server, ref=variant.model)
            variant = msgspec.structs.replace(variant, model=_there(context.models.lazy(variant.model, arm["name"]), variant.model))
        asked = references_of([variant], context.models, context.store, alias, system=system_of(context))
        reason = f"decided for {arm['name']}"
        made = Deployments(context.store, references=asked).put(alias, [variant], reason=reason, by="tunesmith run --arm")
    return Adopted(arm["name"], alias, made.version, arm["value"])


def _there(model: Any, ref: ModelRef) -> ModelRef:
    return msgspec.structs.replace(ref, digest=model.digest)
