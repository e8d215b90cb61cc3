"""Why the alias that a project deploys answers nothing yet, in words for who asks for it. Changes nothing."""

from __future__ import annotations

from tunesmith.flow.project import Project
from tunesmith.models.resolve import TUNED_WORD
from tunesmith.store.deployments import Deployments
from tunesmith.store.runs import Runs
from tunesmith.store.store import Store


def why_undeployed(project: Project, store: Store) -> str:
    """Why nothing was deployed under the project's alias, and what answers instead; empty where something was."""
    if project.deploy.alias in Deployments(store).in_force():
        return ""
    ended = [run for run in Runs(store).listed(project.name) if run.finished is not None and run.decision is not None]
    if not ended:
        return "nothing was deployed under that name yet: tunesmith run trains, measures and, where its gate passes, deploys"
    return f"the gate of the last run said '{ended[0].decision}', so it was not deployed; what that run trained is {TUNED_WORD}"
