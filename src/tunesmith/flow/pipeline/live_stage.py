"""The stage `live`: a model that passed its gate takes over its alias as a canary, asked held-out questions by real requests on a real
port, is watched, and one of its answers is corrected. Knows nothing about guardrails, drift or charts (the flows that it calls do).

What is asked are validation rows: nothing was trained on them, and unlike test rows they may be learned from later. The server is the run's
own and serves this alias alone; what it writes, the deployment's history, the log, scores, feedback, is the project's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.errors import DataError, GateRefused, TunesmithError
from tunesmith.core.feedback import FeedbackBody
from tunesmith.core.load import need
from tunesmith.core.rollout import OPEN, Rollout
from tunesmith.core.types import Example, Interaction, Message
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.datasets.versions import Datasets
from tunesmith.flow.deploying import deploy
from tunesmith.flow.evaluation.run import Bench, bench_of
from tunesmith.flow.harvest import harvested
from tunesmith.flow.parity_gate import compare_first
from tunesmith.flow.rollouts import abort, canary, status, step
from tunesmith.flow.runner import Output
from tunesmith.flow.temporary_server import Live, Server
from tunesmith.flow.watching import drift_of, plain, quality_of
from tunesmith.models.resolve import TUNED_WORD
from tunesmith.store.deployments import Deployments
from tunesmith.store.feedback import FeedbackLog
from tunesmith.store.interactions import Interactions
from tunesmith.store.rollouts import Rollouts

_BY = "tunesmith run"
_AT_ONCE = 12  # requests on their way together
_ALONE = 1 / 3  # of the questions, what is kept for the time after the canary
_POINTS = 10  # of a chart of quality
_SETTLED_S = 1.5  # after how long, beside the plan's own times, all that was asked is counted


def go_live(context: ProjectContext, server: Server, _: Path) -> Output:
    """Put the base in force where nothing is, let the tuned model take over by `deploy.rollout`, ask it the rest alone; then what was seen
    of it. Where it cannot be done, `left_out` says why."""
    left_out = _left_out(context) or _refused(context, server)
    if left_out:
        context.progress.say(f"live: left out: {left_out}")
        return {"left_out": left_out}
    began = _begun(context)
    rows = context.questions("validation")[: context.project.deploy.live_questions]
    with server({}, context.store, Live(began.alias, context.models)) as url:
        rollout = _asked(context, began, rows, url)
    context.progress.say(f"live: {rollout.status.replace('_', ' ')}: {rollout.outcome}")
    at = bench_of(context)
    return {
        "rollout": {
            "status": rollout.status,
            "outcome": rollout.outcome,
            "canary": rollout.canary,
            "steps": list(rollout.plan.steps),
            "step_s": rollout.plan.step_s,
            "step_requests": rollout.plan.step_requests,
        },
        "guardrails": msgspec.to_builtins(status(rollout.alias, context.store).guardrails),
        "history": _history(context, began),
        "asked": len(rows),
        "drift": _drift(at, context, rollout),
        "quality": _quality(at, context, rollout, _chats(context, rollout)),
        "correction": _corrected(context, _chats(context, rollout), rows, since=rollout.created),
    }


def _left_out(context: ProjectContext) -> str:
    """Why nothing goes live; empty where it does."""
    decision, alias = context.runner.run("compare").output["decision"], context.project.deploy.alias
    in_force = Deployments(context.store).in_force().get(alias)
    newest = Rollouts(context.store).newest(alias)
    if decision != "pass":
        return f"the gate said '{decision}'"
    if context.documents:
        return "documents ask nothing"
    if context.project.deploy.rollout.needs_approval:
        return f"a person starts its canary: tunesmith deploy canary {alias} run"
    if in_force is None or (newest is not None and newest.status == "running" and _is_of(context, newest)):
        return ""
    if len(in_force.variants) > 1:
        return f"'{alias}' answers with several variants; a canary beside them: tunesmith deploy canary {alias} run"
    if in_force.variants[0].model is None:
        return f"'{alias}' is answered elsewhere"
    if context.tuned.same_as(in_force.variants[0].model):
        return f"'{alias}' answers with this model already"
    return ""


def _refused(context: ProjectContext, server: Server) -> str:
    """What the comparison says of a model that adapter, export and server compute otherwise; empty where they agree."""
    try:
        compare_first(TUNED_WORD, bench_of(context), server)
    except GateRefused as error:
        return error.what
    return ""


def _is_of(context: ProjectContext, rollout: Rollout) -> bool:
    """Whether its canary is the model of this run: an interrupted run left it."""
    return any(v.name == rollout.canary and v.model is not None and context.tuned.same_as(v.model) for v in rollout.variants)


def _begun(context: ProjectContext) -> Rollout:
    """The rollout of the tuned model, begun now or by the run that was interrupted."""
    alias, models, store = context.project.deploy.alias, context.models, context.store
    newest = Rollouts(store).newest(alias)
    if newest is not None and newest.status == "running" and _is_of(context, newest):
        return newest
    if Deployments(store).in_force().get(alias) is None:
        deploy(alias, context.project.base, models, store, reason="what answers before the first canary", by=_BY)
    why = f"run of {context.project.name}: gate passed"
    return canary(alias, "run", models, store, context.project.deploy.rollout, reason=why, by=_BY)


def _asked(context: ProjectContext, rollout: Rollout, rows: Sequence[Example], url: str) -> Rollout:
    """Ask until the rollout is decided, then the rest of the new model alone; the rollout as it ended. One that the questions do not
    decide is aborted."""
    client = need("openai", extra="openai").OpenAI(base_url=url, api_key="none", max_retries=0)
    tokens, done, alone = context.sampling().max_tokens, 0, int(_ALONE * len(rows))
    with ThreadPoolExecutor(_AT_ONCE) as threads:

        def ask(most: int) -> int:
            """Ask the next rows, at most so many, each by a user of its own; how many were asked by then."""
            some = rows[done : min(done + _AT_ONCE, most)]
            list(threads.map(partial(_answered, client, rollout.alias, tokens), some, [f"held-out {done + i}" for i in range(len(some))]))
            context.progress.bar("live", done + len(some), len(rows))
            return done + len(some)

        while rollout.status in OPEN and done < len(rows) - alone:
            done = ask(len(rows) - alone)
            rollout = step(rollout.alias, context.store)
        rollout = _decided(rollout, context)
        while rollout.status == "promoted" and done < len(rows):
            done = ask(len(rows))
    return rollout


def _answered(client: Any, alias: str, tokens: int, row: Example, user: str) -> None:
    """One request of one user; an error is in the log and counts against who answered."""
    messages = [msgspec.to_builtins(message) for message in row.prompt]
    try:
        client.chat.completions.create(model=alias, messages=messages, max_tokens=tokens, temperature=0, user=user)
    except need("openai", extra="openai").APIConnectionError as error:
        raise TunesmithError(f"the run's own server did not answer: {error}", remedy="free memory, then run again") from error
    except need("openai", extra="openai").OpenAIError:
        return


def _decided(rollout: Rollout, context: ProjectContext) -> Rollout:
    """The rollout once its times have passed and all that was asked is counted."""
    plan, alias, store = rollout.plan, rollout.alias, context.store
    until = time.monotonic() + _SETTLED_S + plan.step_s + plan.look_s
    while rollout.status == "running" and time.monotonic() < until:
        time.sleep(plan.look_s)
        rollout = step(alias, store)
    if rollout.status not in OPEN:
        return rollout
    return abort(alias, store, reason=f"{context.project.deploy.live_questions} held-out questions did not decide it", by=_BY)


def _history(context: ProjectContext, began: Rollout) -> list[dict[str, Any]]:
    """The versions of the alias since the one that the canary joined, oldest first."""
    versions = [each for each in Deployments(context.store).history(began.alias) if each.version >= began.before]
    return [
        {
            "version": each.version,
            "created": each.created,
            "answers": [{"variant": variant.name, "share": variant.weight} for variant in each.variants],
            "reason": each.reason,
        }
        for each in sorted(versions, key=lambda each: each.version)
    ]


def _drift(at: Bench, context: ProjectContext, rollout: Rollout) -> dict[str, Any]:
    """What the canary was asked and answered against the training rows, window by window."""
    settings = context.project.monitor
    try:
        report = drift_of(rollout.alias, at, settings, against=settings.reference or "train", since=rollout.created, variant=rollout.canary)
    except DataError as error:
        return {"left_out": f"{error.what}: {error.allowed}"}
    return plain(report)


def _quality(at: Bench, context: ProjectContext, rollout: Rollout, chats: Sequence[Interaction]) -> dict[str, Any]:
    """What the canary answered, scored by the metrics of `monitor:`; a chart of some seconds has some ten points."""
    point_s = max(1.0, (chats[-1].created - chats[0].created) / _POINTS) if chats else 1.0
    return plain(quality_of(rollout.alias, at, context.project.monitor, variant=rollout.canary, point_s=point_s))


def _chats(context: ProjectContext, rollout: Rollout) -> list[Interaction]:
    """What the canary answered."""
    return Interactions(context.store).answered({"alias": rollout.alias, "variant": rollout.canary}, since=rollout.created)


def _corrected(context: ProjectContext, chats: Sequence[Interaction], rows: Sequence[Example], *, since: float) -> dict[str, Any] | None:
    """What somebody who knows the right answers says of the first wrong one, harvested; None where every answer is right."""
    right = {_words(row.prompt): row.answer.strip() for row in rows}
    wrong = next((each for each in chats if right.get(_words(each.messages), each.answer.strip()) != each.answer.strip()), None)
    if wrong is None:
        return None
    correction = right[_words(wrong.messages)]
    body = FeedbackBody(interaction=wrong.id, correction=correction, by="the row's own answer")
    FeedbackLog(context.store).put(body.feedback(time.time(), source="run", project=wrong.project))
    desk = Datasets(context.folder, context.project, context.progress, context.catalog, context)
    made = harvested(desk, context.store, context.project.monitor, since=since)
    return {
        "interaction": wrong.id,
        "asked": wrong.messages[-1].text,
        "answered": wrong.answer,
        "correction": correction,
        "version": made.rows,
        "kinds": made.kinds,
        "left": made.left,
        "lost": made.lost,
    }


def _words(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, message.text) for message in messages)
