"""Where something comes from, and what was made of it: from an answered request back to the rows that taught its model, and the other way.
Changes nothing; what is no longer recorded is said, not guessed.

    a request's id              → deployment → model → run or job → plan → data → rows; and its conversation
    alias, alias@VERSION        a deployment
    ft:NAME, ftjob-ID           a job, or what it made
    file-ID                     an uploaded file
    run                         the last run
    run's id, stage's digest    a run of the project, or one stage of it
    model's digest              whatever answered with these weights
    data version's id           a frozen version, or the split that a run made
    row's id, FILE:LINE         an input row
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from tunesmith.core.counted import counted
from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import NotFound, StoreError, TunesmithError, UsageError, nearest
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Interaction, Record
from tunesmith.data import version as versions
from tunesmith.flow.jobs.reading import BadFile, read_rows
from tunesmith.flow.trace_data import DataTrace, Link
from tunesmith.models.passage_index import facts_of
from tunesmith.models.resolve import RUN
from tunesmith.store.deployments import Deployments
from tunesmith.store.feedback import last_question
from tunesmith.store.indexes import Indexes
from tunesmith.store.interactions import Interactions, RequestCount
from tunesmith.store.lineage import Lineage
from tunesmith.store.paging import Row
from tunesmith.store.runs import Run, Runs
from tunesmith.store.store import Store

CAN_BE = (
    "a request's id; run (the last one); ALIAS or ALIAS@VERSION; ft:NAME, ftjob-ID or file-ID; the id of a run; the digest of a stage or a "
    "model; the id of a data version; a row's id or FILE:LINE. Ids and digests may be given by their beginnings"
)
_HEX = re.compile(r"[0-9a-f]{4,64}")
_LEAST_ID = 12  # characters of a request's id that can name it; its prefix alone begins thousands
_PLAN = ("method", "epochs", "steps", "learning_rate", "batch_size", "max_length", "seed")


class Trace(Record, frozen=True):
    """What was asked about, what it came from (the nearest first), and what it led to."""

    asked: Link
    came_from: tuple[Link, ...]
    led_to: tuple[Link, ...]

    def text(self) -> str:
        """For people."""
        lines = [_line(self.asked)]
        for title, links in (("comes from", self.came_from), ("led to", self.led_to)):
            lines += ["", title, *(f"  {_line(link)}" for link in links)] if links else ["", f"{title}: nothing that is recorded"]
        return "\n".join(lines)


def _line(link: Link) -> str:
    return f"{link.kind:<12}  {link.id}" + (f"  {link.text}" if link.text else "")


def trace(store: Store, word: str, *, rows: int = 5, nearest_first: bool = False) -> Trace:
    """Walk from what `word` names, both ways; of data so many `rows` are shown, with `nearest_first` those that are most like the request
    and its answer.

    Raises NotFound with what a word can be, UsageError when several things begin with it, or for the nearest rows of what is no request.
    """
    tracer = _Tracer(store, rows)
    if nearest_first:
        if (walked := tracer.interaction(word, nearest_first=True)) is None:
            raise UsageError(f"'{word}' is no request's id", allowed="an answered request", remedy="leave --nearest away")
        return walked
    ways: tuple[Callable[[str], Trace | None], ...] = (
        tracer.interaction,
        tracer.deployment,
        tracer.job,
        tracer.file,
        tracer.run,
        tracer.stage,
        tracer.model,
        tracer.version,
        tracer.row,
    )
    for way in ways:
        if (walked := way(word)) is not None:
            return walked
    raise NotFound(f"nothing here is called '{word}'", where=str(store.folder), allowed=CAN_BE, remedy=tracer.hint(word))


def lineage_of(store: Store, model: ModelRef) -> list[Link]:
    """What trained a model, and on what: the nearest first."""
    return list(_Tracer(store, 0).made_by(model))


class _Tracer:
    """One look into a store."""

    def __init__(self, store: Store, rows: int) -> None:
        self._store = store
        self._lineage, self._log = Lineage(store), Interactions(store)
        self._deployments, self._runs = Deployments(store), Runs(store)
        self._data = DataTrace(store, self._lineage, rows)

    def hint(self, word: str) -> str:
        """What was probably meant by a word that names nothing."""
        aliases = list(self._deployments.in_force())
        if close := nearest(word, [*aliases, "run"]):
            return close
        return f"tunesmith trace {aliases[0]}, or tunesmith trace run" if aliases else "tunesmith trace run, once there was a run"

    # what a word can name

    def interaction(self, word: str, *, nearest_first: bool = False) -> Trace | None:
        """An answered request."""
        row = self._log.find(word) if len(word) >= _LEAST_ID else None
        if row is not None and nearest_first:
            self._data.like = (last_question(row.messages), row.answer)
        return _walked(_request(row), self._before_request(row), self._conversation(row)) if row is not None else None

    def deployment(self, word: str) -> Trace | None:
        """`alias@VERSION`, or an alias: what is in force for it."""
        history = self._deployments.history(word)
        alias, number = (word, "") if history else word.rpartition("@")[::2]
        history = history or self._deployments.history(alias)
        if not history:
            return None
        chosen = next((deployment for deployment in history if number in ("", str(deployment.version))), None)
        if chosen is None:
            known = ", ".join(f"{alias}@{deployment.version}" for deployment in history)
            raise NotFound(f"no deployment '{word}': '{alias}' never had that version", allowed=known)
        before = (link for variant in chosen.variants for link in self._variant(variant))
        return _walked(self._deployed(chosen), before, self._answers(_called(chosen), self._log.count(deployments=[chosen.version])))

    def job(self, word: str) -> Trace | None:
        """A fine-tuning job, or a model that one made."""
        job = self._lineage.job(word.removeprefix("job:"))
        return _chain(self._job(job), self._after_job(job)) if job is not None else None

    def file(self, word: str) -> Trace | None:
        """An uploaded file."""
        jobs = self._lineage.jobs_on(word) if word.startswith("file-") else []
        if not jobs and (not word.startswith("file-") or self._lineage.file(word) is None):
            return None
        return _walked(self._file(word), (), (link for job in jobs for link in (_job(job), *self._after_job(job))))

    def run(self, word: str) -> Trace | None:
        """A run, by its id or the beginning of it; `run:DIGEST` is what a model says of the run that trained it."""
        if word in RUN:
            newest = self._runs.newest()
            return self.run(newest.id) if newest is not None else None
        if word.startswith("run:"):
            return self.stage(word.removeprefix("run:"))
        try:
            run = self._runs.find(word) if _HEX.fullmatch(word) else None
        except NotFound:
            return None
        return _walked(_run(run), self._before_run(run), self._after_training(run.digests.get("train", ""))) if run is not None else None

    def stage(self, word: str) -> Trace | None:
        """One finished stage of a run."""
        stage = self._lineage.stage(word) if _HEX.fullmatch(word) else None
        if stage is None:
            return None
        digest, after = stage["digest"], self._after_data(stage["digest"])
        if stage["name"] == "train":
            return _chain(self._training(digest), self._after_training(digest))
        if stage["name"] == "split":
            return _chain(self._data.split(digest), after)
        if stage["name"] == "collect":
            return _chain(self._data.collected(stage), after)
        before = {stage["name"]: stage["digest"] for stage in self._lineage.before(digest)}
        came = self._training(before["train"]) if "train" in before else self._data.split(before["split"]) if "split" in before else ()
        return _walked(Link(kind="stage", id=digest, text=stage["name"], facts=stage["output"]), came, after)

    def model(self, word: str) -> Trace | None:
        """The weights that answered, by their digest or its beginning."""
        if not _HEX.fullmatch(word):
            return None
        known = {_digest(variant) for deployment in self._deployments.listed() for variant in deployment.variants}
        served = self._log.answered_by(word)
        fits = sorted({digest for digest in (*known, *(digest for digest, _, _ in served)) if digest.startswith(word)})
        if len(fits) > 1:
            raise UsageError(f"several models begin with '{word}'", allowed=", ".join(fits[:5]), remedy="give more of it")
        return self._model(fits[0], [(alias, number) for _, alias, number in served]) if fits else None

    def _model(self, digest: str, served: list[tuple[str, int | None]]) -> Trace:
        deployed = self._deployed_with(digest)
        names = list(dict.fromkeys([*(deployment.alias for deployment in deployed), *(alias for alias, _ in served)]))
        answers = (link for alias in names for link in self._answers(alias, self._log.count(aliases=[alias], model_digest=digest)))
        before = self._before_model(digest, deployed, served)
        return _walked(
            Link(kind="model", id=digest, text=f"answers as {', '.join(names)}"), before, (*map(self._deployed, deployed), *answers)
        )

    def version(self, word: str) -> Trace | None:
        """A frozen data version."""
        try:
            version = versions.load(self._data.root, word) if _HEX.fullmatch(word) else None
        except NotFound:
            return None
        if version is None:
            return None
        splits = self._data.splits_of(version)
        after = (link for split in splits for link in (next(self._data.split(split)), *self._after_data(split)))
        return _walked(
            self._data.version(version), self._data.before(version), (*map(self._data.version, self._data.after(version)), *after)
        )

    def row(self, word: str) -> Trace | None:
        """An input row, by its origin or its id. It led to what was trained on it."""
        fates = list(self._data.fates(word))
        if not fates:
            return None
        line = fates[0].line
        after = (link for fate in fates for link in (fate.where, *(self._after_data(fate.split) if fate.split and fate.taught else ())))
        source = Link(kind="source", id=line.origin.rpartition(":")[0] or line.origin)
        return _walked(Link(kind="row", id=line.row, text=line.origin, facts={"origin": line.origin}), (source,), after)

    # backwards

    def _before_request(self, row: Interaction) -> Iterator[Link]:
        if row.sources is not None:
            yield self._index(row.sources.index, f"{counted(len(row.sources.passages), 'passage')} read")
        if row.deployment is not None:
            try:
                deployment = self._deployments.version(row.deployment)
            except NotFound:
                yield Link(kind="deployment", id=f"{row.alias}@{row.deployment}", text="no longer recorded")
                return
            yield self._deployed(deployment)
            for variant in deployment.variants:
                if variant.name == row.variant:
                    yield from self._variant(variant, digest=row.model_digest)
            return
        job = self._lineage.job(row.alias)
        if job is not None:
            yield Link(kind="model", id=row.alias, text=row.model_digest)
            yield from self._job(job)
        elif row.model_digest:
            yield Link(kind="model", id=row.model_digest, text=f"'{row.variant}', answering without a deployment")
            yield from self._before_model(row.model_digest, self._deployed_with(row.model_digest), [])

    def _deployed_with(self, digest: str) -> list[Deployment]:
        return [
            deployment for deployment in self._deployments.listed() if any(_digest(variant) == digest for variant in deployment.variants)
        ]

    def _before_model(self, digest: str, deployed: list[Deployment], served: list[tuple[str, int | None]]) -> Iterator[Link]:
        """Who made the weights of a digest: a deployment knows it, else the job whose name answered with them."""
        known = [variant for deployment in deployed for variant in deployment.variants if _digest(variant) == digest]
        for variant in known[:1]:
            if variant.model is not None:
                yield from self.made_by(variant.model)
            return
        for alias, number in served:
            job = self._lineage.job(alias)
            if job is not None:
                yield from self._job(job)
                return
            if number is not None:
                yield from (link for variant in self._deployments.version(number).variants for link in self._variant(variant))
                return

    def _index(self, digest: str, read: str = "looked up") -> Link:
        """An index of passages, with what it was made of where it is still there."""
        indexes = Indexes(self._store.layout)
        try:
            facts = facts_of(indexes.folder(digest))
        except StoreError:
            return Link(kind="index", id=digest, text=f"{read}; no longer recorded")
        names = {name: index for name, index in indexes.names().items() if index.digest == digest}
        called = f"{', '.join(names)}: " if names else ""
        text = f"{called}{read}; {counted(facts.passages, 'passage')} of {counted(facts.sources, 'document')}"
        recipes: dict[str, Any] = {name: index.recipe for name, index in names.items()}
        return Link(kind="index", id=digest, text=text, facts={**msgspec.structs.asdict(facts), "made_of": recipes})

    def _variant(self, variant: Variant, digest: str = "") -> Iterator[Link]:
        if variant.retrieval is not None:
            yield self._index(variant.retrieval.index)
        if variant.model is None:
            text = "another server; what stands behind it cannot be seen from here"
            yield Link(kind="upstream", id=str(variant.upstream), text=text, facts={"variant": variant.name})
            return
        digest = digest or variant.model.digest
        place = variant.model.trained or "the base alone"
        yield Link(kind="model", id=digest or place, text=f"'{variant.name}': {place}, from {variant.model.base}", facts={"digest": digest})
        yield from self.made_by(variant.model)

    def made_by(self, model: ModelRef) -> Iterator[Link]:
        """The run or job that made a model's weights, with its plan and data."""
        kind, _, name = model.made_by.partition(":")
        if kind == "run":
            yield from self._training(name)
        elif kind == "job" and (job := self._lineage.job(name)) is not None:
            yield from self._job(job)
        elif model.trained is None:
            yield Link(kind="base", id=model.base, text="as it came")
        else:
            yield Link(kind="unknown", id=model.made_by or model.trained, text="what trained it is not recorded")

    def _before_run(self, run: Run) -> Iterator[Link]:
        if "train" in run.digests:
            yield from self._training(run.digests["train"], runs=False)
        elif "split" in run.digests:
            yield from self._data.split(run.digests["split"])

    def _training(self, digest: str, *, runs: bool = True) -> Iterator[Link]:
        """A training, the run that did it, its plan and its data."""
        made = self._runs.with_digest(digest)[::-1]
        stage = next(iter(self._lineage.stages([digest])), None)
        text = f"{stage['seconds']:.0f} s, {_day(stage['created'])}" if stage is not None else "not finished, or no longer recorded"
        yield Link(kind="training", id=digest, text=text, facts={} if stage is None else _without(stage["output"], "plan", "reasons"))
        if runs and made:
            yield _run(made[0])
        if stage is not None:
            yield _plan(digest, stage["output"].get("plan") or {})
        before = {stage["name"]: stage["digest"] for stage in self._lineage.before(digest)}
        split = before.get("split") or next((run.digests["split"] for run in made if "split" in run.digests), None)
        if split is not None:
            yield from self._data.split(split)
        else:
            yield Link(kind="data", id="unknown", text="the stages that this one needed were not recorded; a new run records them")

    def _job(self, job: Row) -> Iterator[Link]:
        """A job, its plan, its files, and the model that it went on from."""
        yield _job(job)
        manifest = self._store.layout.job(job["id"]) / "run" / "run.json"
        if manifest.is_file():
            yield _plan(job["id"], json.loads(manifest.read_text("utf-8")).get("resolved") or {})
        for param in ("training_file", "validation_file"):
            if job[param]:
                yield self._file(job[param], param)
        if self._data.like is not None:
            with suppress(BadFile, TunesmithError, OSError):  # a file that is gone tells no rows
                yield from self._data.nearest(read_rows(self._store, job, "training_file"))
        earlier = self._lineage.job(job["model"])
        if earlier is not None and earlier["id"] != job["id"]:
            yield from self._job(earlier)
        else:
            yield Link(kind="base", id=job["base"], text=f"asked for as {job['model']}" if job["model"] != job["base"] else "")

    def _file(self, number: str, role: str = "file") -> Link:
        row = self._lineage.file(number)
        if row is None:
            return Link(kind="file", id=number, text=f"{role.replace('_', ' ')}, deleted since")
        facts = {"sha256": row["sha256"], "bytes": row["bytes"], "filename": row["filename"]}
        return Link(kind="file", id=number, text=f"{role.replace('_', ' ')} {row['filename']}, {row['bytes']} bytes", facts=facts)

    # forwards

    def _conversation(self, row: Interaction) -> Iterator[Link]:
        if row.conversation is not None:
            yield from self._answers(row.conversation, self._log.count(conversation=row.conversation), kind="conversation")

    def _after_data(self, digest: str) -> Iterator[Link]:
        """The trainings that had this data, and what they led to."""
        for stage in self._lineage.after(digest):
            if stage["name"] == "train":
                yield Link(kind="training", id=stage["digest"], text=_day(stage["created"]))
                yield from self._after_training(stage["digest"])
        for later in self._data.splits_after(digest):
            yield next(self._data.split(later))
            yield from self._after_data(later)

    def _after_training(self, digest: str) -> Iterator[Link]:
        yield from map(_run, self._runs.with_digest(digest) if digest else ())
        yield from self._made(f"run:{digest}")

    def _after_job(self, job: Row) -> Iterator[Link]:
        names = self._lineage.names_of(job["id"])
        for name in names:
            yield Link(kind="model", id=name)
            yield from self._answers(name, self._log.count(aliases=[name]))
        yield from self._made(f"job:{job['id']}")
        yield from map(_job, self._lineage.jobs_from(names))

    def _made(self, maker: str) -> Iterator[Link]:
        """The deployments of what a run or a job made, and how often each answered."""
        for deployment in reversed(self._deployments.listed()):
            if any(variant.model is not None and variant.model.made_by == maker for variant in deployment.variants):
                yield self._deployed(deployment)
                yield from self._answers(_called(deployment), self._log.count(deployments=[deployment.version]))

    def _deployed(self, deployment: Deployment) -> Link:
        newest = self._deployments.history(deployment.alias)[0]
        state = "in force" if newest.version == deployment.version else f"replaced by {_called(newest)}"
        why = f": {deployment.reason}" if deployment.reason else ""
        facts = {
            "version": deployment.version,
            "created": deployment.created,
            "by": deployment.by,
            "variants": [variant.name for variant in deployment.variants],
        }
        return Link(kind="deployment", id=_called(deployment), text=f"{_day(deployment.created)}, {state}{why}", facts=facts)

    def _answers(self, name: str, count: RequestCount, kind: str = "answers") -> Iterator[Link]:
        if not count.requests:
            yield Link(kind=kind, id=name, text="0 requests", facts={"requests": 0})
            return
        cost = f", ${count.cost_usd:.4f}" if count.cost_usd else ""
        text = f"{counted(count.requests, 'request')}, {counted(count.errors, 'error')}, {_day(count.first)} to {_day(count.last)}{cost}"
        facts = {"requests": count.requests, "errors": count.errors, "first": count.first, "last": count.last, "cost_usd": count.cost_usd}
        yield Link(kind=kind, id=name, text=text, facts=facts)


def _walked(asked: Link, before: Iterable[Link], after: Iterable[Link]) -> Trace:
    return Trace(asked=asked, came_from=_distinct(before), led_to=_distinct(after))


def _chain(before: Iterator[Link], after: Iterable[Link]) -> Trace:
    """A trace whose way back begins with what was asked about."""
    return _walked(next(before), before, after)


def _distinct(links: Iterable[Link]) -> tuple[Link, ...]:
    """Each thing once, where it is met first."""
    return tuple({(link.kind, link.id, link.text): link for link in links}.values())


def _request(row: Interaction) -> Link:
    answer = " ".join((row.error or row.answer).split())
    text = f"{_day(row.created)}, '{row.alias}' ({row.endpoint}), status {row.status}: {answer[:80]}{'…' if len(answer) > 80 else ''}"
    looked_up = {} if row.sources is None else {"sources": msgspec.to_builtins(row.sources)}
    names = ("project", "variant", "model_digest", "user_key", "conversation", "prompt_tokens", "completion_tokens", "cost_usd")
    return Link(kind="request", id=row.id, text=text, facts={**{name: getattr(row, name) for name in names}, **looked_up})


def _run(run: Run) -> Link:
    ended = "not ended" if run.finished is None else f"gate: {run.decision}" if run.decision else "ended"
    facts = {"command": run.command, "overrides": list(run.overrides), "digests": run.digests, "decision": run.decision}
    with_words = f" ({shlex.join(run.overrides)})" if run.overrides and shlex.join(run.overrides) not in run.command else ""
    return Link(kind="run", id=run.id, text=f"{_day(run.created)}, {run.project}: {run.command}{with_words}, {ended}", facts=facts)


def _job(job: Row) -> Link:
    facts = {"method": job["method"], "extras": job["extras"], "seed": job["seed"], "trained_tokens": job["trained_tokens"]}
    return Link(
        kind="job", id=job["id"], text=f"{_day(job['created'])}, {job['method']['type']} on {job['model']}, {job['status']}", facts=facts
    )


def _plan(name: str, plan: dict[str, Any]) -> Link:
    text = ", ".join(f"{key} {plan[key]}" for key in _PLAN if plan.get(key) is not None)
    return Link(kind="plan", id=name, text=text, facts=plan)


def _digest(variant: Variant) -> str:
    return variant.model.digest if variant.model is not None else ""


def _called(deployment: Deployment) -> str:
    return f"{deployment.alias}@{deployment.version}"


def _day(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "minutes") if seconds is not None else "?"


def _without(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in keys}
