"""`tunesmith eval`: any models × any data, kept in the store under the hash of everything that could change it; draws no conclusion.

In the store, `evaluations/` has `answers/MODEL.jsonl` (every answer that a model gave, asked once), `rows/DATA.jsonl` (the rows), and a
folder an evaluation with `kept.json` (what the leaderboard shows) and one `evaluation.json` a seed (rows, raw answers, scores).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as replace_rows
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from tunesmith.core.atomic import write_atomic
from tunesmith.core.counted import counted
from tunesmith.core.errors import ConfigError, DataError, NotFound
from tunesmith.core.progress import Progress
from tunesmith.core.row_kinds import as_examples, kind_of
from tunesmith.core.rows import write_jsonl
from tunesmith.core.seal import seal
from tunesmith.core.stats import run_noise
from tunesmith.core.types import Document, Sampling, digest
from tunesmith.evaluate.compare import estimate, merged
from tunesmith.evaluate.likelihood import Likelihood, by_likelihood, whole
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.openings import open_sealed, openings
from tunesmith.evaluate.prompts import PromptVariant, as_given, few_shot, instructed
from tunesmith.evaluate.run import Evaluation, dataset_digest, evaluate
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.engines import Engines
from tunesmith.flow.evaluation.ask import Ask
from tunesmith.flow.evaluation.metrics import build
from tunesmith.flow.evaluation.results import KeptEvaluation
from tunesmith.flow.last_run import view
from tunesmith.flow.project import open_store
from tunesmith.flow.rows import RowReader, Rows, Sections, evaluated, taught
from tunesmith.flow.undeployed import why_undeployed
from tunesmith.flow.upstreams import asked_upstreams
from tunesmith.models.around import Metered
from tunesmith.models.catalog import Catalog
from tunesmith.models.resolve import Models
from tunesmith.store.layout import FOLDER
from tunesmith.store.store import Store


@dataclass
class Bench:
    """Where evaluations happen: the store, the models, who is told, and what reads rows, for the project if there is one."""

    store: Store
    models: Models
    progress: Progress
    reader: RowReader
    _data: dict[str, list[Rows]] = field(init=False, default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where evaluations are kept."""
        return self.store.layout.evaluations

    @property
    def plan(self) -> dict[str, Any] | None:
        """Which plan of the project was looked at; None when no stage of it was."""
        return self.context.plan if self.context is not None else None

    @property
    def context(self) -> ProjectContext | None:
        """The project at work, if there is one."""
        return self.reader.context

    @property
    def log(self) -> Path:
        """The log of openings of sealed rows."""
        return self.store.layout.openings

    def data(self, word: str, ask: Ask) -> list[Rows]:
        """The rows to ask that the word means, read once; a suite has several."""
        if word not in self._data:
            several = [evaluated(rows, self.reader) for rows in self.reader.read(word, format=ask.format, mapping=ask.map)]
            sealed = ask.sealed and word == ask.data
            self._data[word] = [replace_rows(rows, sealed=rows.sealed or sealed) for rows in several]
        return self._data[word]


def bench_of(context: ProjectContext) -> Bench:
    """The bench of a project at work."""
    reader = RowReader(context.folder, context.project, context.progress, context.catalog, context)
    return Bench(context.store, context.models, context.progress, reader)


@contextmanager
def bench(
    config: Path, progress: Progress, *, concurrency: int = 8, rate: float | None = None, as_written: bool = False
) -> Iterator[Bench]:
    """The bench of the project file as its last run was made (`as_written`: as the file is), or, where there is none, of `.tunesmith`."""
    folder = config.resolve().parent
    seen = view(config, as_written=as_written, whole=True) if config.is_file() else None
    store = open_store(seen.project, folder) if seen else Store.open(folder / FOLDER)
    catalog = Catalog(progress=progress.bar)
    try:
        context = ProjectContext(seen.project, folder, store, catalog, progress, view=seen) if seen else None
        reader = RowReader(folder, seen.project if seen else Sections(), progress, catalog, context)
        run = context.last_trained if context else None
        models = Models(store, catalog, concurrency, rate, home=folder, run=run)
        if seen is not None:
            project = seen.project
            engines = Engines(project.serve.engines, models, store.folder)
            models.upstreams = {**asked_upstreams(project.serve.upstreams, concurrency, rate), **engines.makers}
            models.absent = lambda word: why_undeployed(project, store) if word == project.deploy.alias else ""
        at = Bench(store, models, progress, reader)
        yield at
        if at.plan is not None:
            progress.say(at.plan["text"])
    finally:
        store.close()


def run_eval(words: Sequence[str], ask: Ask, at: Bench) -> list[KeptEvaluation]:
    """Every model on every part of the data; with `choose_on`, the first model and the winner only. Raises ConfigError for no model."""
    if not words:
        raise ConfigError("no model to evaluate", allowed="at least one", remedy="tunesmith eval MODEL --data FILE")
    chosen = list(dict.fromkeys(words))
    for word in chosen:
        at.models.resolve(word)  # a word that names no model is told before another one is asked, or sealed rows are opened
    parts = at.data(ask.data, ask)  # as data that is none
    chosen_on: list[KeptEvaluation] = []
    if ask.choose_on:
        chosen_on = [measure(word, part, ask, at) for part in at.data(ask.choose_on, ask) for word in chosen]
        chosen = list(dict.fromkeys([chosen[0], winner(chosen_on).model]))
    return chosen_on + [measure(word, part, ask, at) for part in parts for word in chosen]


def winner(evaluations: Sequence[KeptEvaluation]) -> KeptEvaluation:
    """The best by the first metric, in its good direction. Raises DataError when none has a value."""
    first = evaluations[0].metrics[0]
    sign = -1.0 if build(first, evaluations[0].options.get(first, {})).better == "lower" else 1.0
    valued = [(sign * value, evaluation) for evaluation in evaluations if (value := evaluation.values[first]) is not None]
    if not valued:
        raise DataError(f"no model has a value of {first}", remedy="look at the missing scores")
    return max(valued, key=lambda pair: pair[0])[1]


def measure(word: str, data: Rows, ask: Ask, at: Bench) -> KeptEvaluation:
    """One model on one part of the data, from kept answers where there are; the result is kept. A look at sealed rows is logged first."""
    return _Task(word, data, ask, at).run()


def _usual(documents: bool) -> dict[str, dict[str, Any]]:
    """The metrics where nobody named one."""
    return {"bits_per_byte": {}, "perplexity": {}} if documents else {"exact_match": {}}


@dataclass
class _Task:
    """One model on one part of the data."""

    word: str
    data: Rows
    ask: Ask
    at: Bench
    model: Metered = field(init=False)
    metrics: list[Metric] = field(init=False)
    sampling: Sampling = field(init=False)
    opening: int = 0

    def __post_init__(self) -> None:
        self.rows = as_examples(self.data.rows)[: self.data.limit if self.ask.limit is None else self.ask.limit]
        self.documents = kind_of(self.data.rows) is Document
        self.metrics = [build(name, own, self.at.models, self.at.folder / "answers" / "judge.jsonl") for name, own in self.options.items()]
        self.by_likelihood = by_likelihood(self.metrics, documents=self.documents)
        model = self.at.models.resolve(self.word)
        self.model = Metered(Likelihood.of(model) if self.by_likelihood else model)
        self.sampling = self._sampling()

    @cached_property
    def options(self) -> dict[str, dict[str, Any]]:
        """Metric → options, in order: those asked for, else what the rows bring, else exact match; then the judge's rubric and the cost."""
        ask, brought = self.ask, self.data.metrics
        wanted = {name: brought.get(name, {}) for name in ask.metrics} or dict(brought) or _usual(self.documents)
        by_metric = {name: {**own, **ask.options.get(name, {})} for name, own in wanted.items()}
        if ask.judge:
            by_metric["rubric"] = {"judge": ask.judge, "criterion": ask.criterion}
        if ask.price is not None:
            by_metric["cost"] = {"prompt_usd": ask.price[0], "completion_usd": ask.price[1]}
        return by_metric

    @cached_property
    def variant(self) -> PromptVariant:
        """What is put in front of each row."""
        ask = self.ask
        if self.by_likelihood:
            return whole
        if ask.shots:
            solved = [taught(rows) for rows in self.at.reader.read(ask.shots_from, format=ask.format, mapping=ask.map)]
            train = [row for rows in solved for row in as_examples(rows.rows)]
            return few_shot(train, ask.shots, ask.by, ask.seed)
        if ask.instruction is None:
            return as_given
        try:
            return instructed(Path(ask.instruction[1:]).read_text("utf-8") if ask.instruction.startswith("@") else ask.instruction)
        except OSError as error:
            raise NotFound(f"no instruction can be read: {error.strerror}", where=ask.instruction[1:]) from error

    def _sampling(self) -> Sampling:
        """How the first sample is drawn: as asked for, else as the deployed variant draws, else greedily. Raises ConfigError."""
        ask, own = self.ask, self.at.models.drawn(self.word)
        cap = ask.max_tokens or int(own.get("max_tokens", 0)) or self.data.max_tokens or 256
        temperature = own.get("temperature", 0.0) if ask.temperature is None else ask.temperature
        ask.check_samples(temperature)
        seed = ask.seed if temperature > 0 else None
        return Sampling(max_tokens=cap, temperature=temperature, top_p=own.get("top_p", 1.0) if temperature > 0 else 1.0, seed=seed)

    @cached_property
    def id(self) -> str:
        """The hash of everything that could change the result: weights, whole prompts (so every file in them), sampling, metrics."""
        asked = [self.variant(row) for row in self.rows]
        return digest(self.model.digest, asked, dataset_digest(self.rows), self.sampling, self.ask.samples, self.options)[:16]

    def run(self) -> KeptEvaluation:
        """Ask, rate, keep."""
        self._open()
        started, out = time.monotonic(), self.at.folder / self.id
        runs = self._ask(out)
        record = self._summary(runs)
        self._keep_rows(record.dataset_digest)
        write_atomic(out / "kept.json", msgspec.json.encode(record))
        seal(out)
        took = time.monotonic() - started
        self.at.progress.say(f"{self.word} on {self.data.name}: {counted(record.rows, 'row')}, {self.model.asked} asked now, {took:.1f} s")
        return record

    def _open(self) -> None:
        """Log a look at sealed rows, unless this very evaluation is finished: then nothing is looked at anew."""
        sealed, who = self.data.seal, f"eval {self.id}: {self.word}"
        before = [opening.who for opening in openings(self.at.log, sealed)]
        if not (self.data.sealed or before):
            return
        if who in before and (self.at.folder / self.id / "kept.json").is_file():
            self.opening = before.index(who) + 1
            return
        self.opening = open_sealed(self.at.log, sealed, who=who, why="tunesmith eval")
        self.at.progress.say(f"{self.data.name} is sealed: opening number {self.opening} is logged in {self.at.log}")

    def _ask(self, out: Path) -> list[Evaluation]:
        cache = self.at.folder / "answers" / f"{digest(self.model.digest)[:16]}.jsonl"
        label = f"{self.word} on {self.data.name}"

        def tell(done: int, total: int) -> None:
            self.at.progress.bar(label, done, total)

        def evaluation(sampling: Sampling, folder: Path) -> Evaluation:
            return evaluate(
                self.model,
                self.rows,
                self.metrics,
                sampling=sampling,
                prompt_variant=self.variant,
                out=folder,
                cache=cache,
                on_progress=tell,
            )

        if self.sampling.temperature <= 0:
            return [evaluation(self.sampling, out)]
        seeds = range(self.ask.seed, self.ask.seed + self.ask.samples)
        return [evaluation(replace(self.sampling, seed=seed), out / f"seed-{seed}") for seed in seeds]

    def _usd(self, read: int, written: int) -> float | None:
        price = self.ask.price
        return None if price is None else (read * price[0] + written * price[1]) / 1e6

    def _summary(self, runs: Sequence[Evaluation]) -> KeptEvaluation:
        whole = merged(runs, self.metrics)
        values = {m.name: [value for run in runs if (value := run.values[m.name]) is not None] for m in self.metrics}
        return KeptEvaluation(
            id=self.id,
            model=self.word,
            data=self.data.name,
            variant=whole.variant,
            dataset_digest=whole.dataset_digest,
            metrics=whole.metrics,
            options=self.options,
            sampling=whole.sampling,
            seeds=tuple(run.sampling.seed for run in runs if run.sampling.seed is not None),
            rows=len(whole.rows),
            values=whole.values,
            intervals={m.name: estimate(m, whole.scores(m.name), self.data.clusters) for m in self.metrics},
            missing=whole.missing,
            noise={name: spread for name, each in values.items() if each and (spread := run_noise(each)) is not None},
            asked=self.model.asked,
            failed=whole.failed,
            prompt_tokens=whole.prompt_tokens,
            completion_tokens=whole.completion_tokens,
            seconds=whole.seconds,
            created=time.time(),
            usd=self._usd(whole.prompt_tokens, whole.completion_tokens),
            paid_usd=self._usd(self.model.prompt_tokens, self.model.completion_tokens),
            opening=self.opening,
        )

    def _keep_rows(self, name: str) -> None:
        folder, clusters = self.at.folder / "rows", self.data.clusters
        if not (folder / f"{name}.jsonl").is_file():
            write_jsonl(folder / f"{name}.jsonl", self.rows)
        if clusters:
            own = {row.id: clusters[row.id] for row in self.rows if row.id in clusters}
            write_atomic(folder / f"{name}.clusters.json", msgspec.json.encode(own))
        seal(folder)
