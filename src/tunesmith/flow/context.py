"""One project at work: its record, its folder, its store, and its stages by name: what each depends on and where its result lies. Knows
nothing about what a stage does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.core.errors import ConfigError, NotFound
from tunesmith.core.model_ref import ModelRef, artifact_in, artifact_ref
from tunesmith.core.progress import Progress
from tunesmith.core.row_kinds import as_examples
from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Sampling, digest
from tunesmith.data.collect import Source
from tunesmith.flow.clusters import read_clusters
from tunesmith.flow.engines import Engines
from tunesmith.flow.last_run import View
from tunesmith.flow.logged import logged
from tunesmith.flow.project import Evaluate, Project
from tunesmith.flow.runner import Runner, Stage
from tunesmith.flow.sources import Frozen, Place, located, rows
from tunesmith.flow.upstreams import asked_upstreams
from tunesmith.models.catalog import Catalog
from tunesmith.models.resolve import RUN, Models
from tunesmith.models.weights import Weights
from tunesmith.store.lineage import Lineage
from tunesmith.store.store import Store
from tunesmith.train.methods import METHODS, token_inputs
from tunesmith.tune.settings import Tune

if TYPE_CHECKING:
    from tunesmith.evaluate.metrics import Metric
    from tunesmith.models.local import LocalModel

TUNED = "tuned"
_CONTINUED = 64  # tokens that a document is continued by where a model is shown


@dataclass
class ProjectContext:
    """One project at work: its record, its folder, its store, the catalogue, and who is told. With `reading` URLs and queries among its
    sources are read where they were not yet; who only looks at what was done reads none."""

    project: Project
    folder: Path
    store: Store
    catalog: Catalog
    progress: Progress
    command: str = "tunesmith run"
    left_out: tuple[str, ...] = ()
    view: View | None = None  # of a command that only looks: which run's stages
    changed: list[str] = field(init=False, default_factory=list)
    reading: bool = False

    @cached_property
    def models(self) -> Models:
        """What words mean here as models; one base at a time is in memory."""
        weights = Weights(alone=True, max_rows=self.project.evaluate.batch_size)
        upstreams = asked_upstreams(self.project.serve.upstreams)
        models = Models(self.store, self.catalog, home=self.folder, run=self.last_trained, upstreams=upstreams, weights=weights)
        models.upstreams = {**upstreams, **Engines(self.project.serve.engines, models, self.store.folder).makers}
        return models

    @cached_property
    def start(self) -> ModelRef:
        """What training starts from: the project's `base`, a base by name or folder, or what was trained before. Raises ConfigError for a
        word that would mean something else after each run."""
        word, alias = self.project.base, self.project.deploy.alias
        if word in RUN or word == alias:
            what = "what this project's last run trained" if word in RUN else "what this project deploys"
            raise ConfigError(
                f"base '{word}' is {what}: each run would start from its own result",
                where="base",
                allowed="a base, or one version of an alias",
                remedy=f"base: {alias}@VERSION continues from that version",
            )
        return self.models.ref(word)

    @cached_property
    def base(self) -> Path:
        """The prepared folder of the whole weights that training starts from."""
        return self.models.folders(self.start)[0]

    @cached_property
    def start_adapter(self) -> Path | None:
        """The folder of the adapter that training goes on from; None where it starts with a fresh one."""
        return self.models.folders(self.start)[1]

    @cached_property
    def base_digest(self) -> str:
        """The content hash of what training starts from."""
        whole = self.catalog.digest(self.base)
        return whole if self.start_adapter is None else digest(whole, self.catalog.digest(self.start_adapter))

    def trained_before(self) -> frozenset[str]:
        """The ids of the rows that the model was trained on from which training goes on. Raises ConfigError where no run of this store
        made it."""
        kind, _, made_by = self.start.made_by.partition(":")
        splits = [stage for stage in Lineage(self.store).before(made_by) if stage["name"] == "split"] if kind == "run" else []
        folder = self.store.layout.stage(splits[0]["digest"]) if splits else None
        if folder is None or not folder.is_dir():
            raise ConfigError(
                f"'{self.project.base}' was trained by no run of this store, and replay takes its rows",
                where="train.replay",
                allowed="with a base that a run trained",
                remedy=f"base: {self.project.deploy.alias}@VERSION, or leave it out",
            )
        return frozenset(row.id for row in rows(folder, "train"))

    @cached_property
    def places(self) -> list[Place]:
        """The sources, looked up."""
        return located(
            self.project.sources, self.folder, self.catalog, self.store.folder, reading=self.reading, log=partial(logged, store=self.store)
        )

    @property
    def given_split(self) -> Frozen | None:
        """The version whose parts are used as they are: the project's only source, and split already."""
        frozen = self.places[0].frozen
        return frozen if frozen is not None and frozen.is_split else None

    @property
    def model(self) -> LocalModel:
        """What training starts from as a model that answers, shared by every stage that asks it; it takes the place of another base in
        memory."""
        return self.models.load(self.start, self.project.base)

    @cached_property
    def metrics(self) -> list[Metric]:
        """What rates the answers. Raises NotFound for a name that is no metric."""
        from tunesmith.evaluate.metrics import metric

        return [metric(name) for name in self.project.evaluate.metrics]

    def forget_model(self) -> None:
        """Let go of the loaded models; who asks next loads them again."""
        self.models.weights.forget()

    def tuned_model(self) -> LocalModel:
        """The trained model: on the base in memory where it is an adapter, else in its place."""
        return self.models.load(self.tuned, self.project.deploy.alias)

    @property
    def trained(self) -> Path:
        """Where the trained adapter (or the whole weights) lies once the stage `train` is finished. Raises NotFound before."""
        return artifact_in(self.runner.folder("train"))

    @property
    def tuned(self) -> ModelRef:
        """The trained model as it is written down. Raises NotFound before the stage `train` is finished."""
        return artifact_ref(self.start.as_base, self.trained, self.store.folder, made_by=f"run:{self.runner.digests['train']}")

    def last_trained(self) -> ModelRef:
        """What `run` means as a model: what the stage `train` of this plan made. Raises NotFound where it is not finished."""
        if self.runner.peek("train") is None:
            raise NotFound(f"nothing was trained yet by '{self.project.name}' as it is configured now", remedy="tunesmith run")
        return self.tuned

    @cached_property
    def runner(self) -> Runner:
        """The stages, with the digest of each."""
        runner = Runner(self.store, self.project.name, self.progress, self.stages())
        if self.view is not None and self.view.run is not None:
            # The report also depends on how the server listens, which no run is made with.
            self.changed = [name for name in runner.pin(self.view.run.digests) if name != "report"]
        return runner

    @property
    def plan(self) -> dict[str, Any] | None:
        """Which plan was looked at, once a stage was; None before, and for a command that runs."""
        return self.view.summary(self.changed) if self.view is not None and "runner" in self.__dict__ else None

    @cached_property
    def data(self) -> Runner:
        """The stages that need no base, for who only looks at rows."""
        runner = Runner(self.store, self.project.name, self.progress, self.data_stages())
        if self.view is not None and self.view.run is not None:
            runner.pin(self.view.run.digests)
        return runner

    @property
    def arms(self) -> list[str]:
        """Everything that is measured: the baselines in their order, then the tuned model."""
        return [*(baseline.name for baseline in self.project.baselines), TUNED]

    def data_stages(self) -> list[Stage]:
        """From the sources to the split. What is split already is neither cleaned nor split again."""
        project = self.project
        described = [(source.format, source.map, source.unique_ids, *_unusual(source)) for source in project.sources]
        content = [name for place in self.places for name in place.content]
        divided = (project.clean, project.split) if self.given_split is None else (project.clean.near_duplicates, project.split.semantic)
        return [
            Stage("collect", (described, content, project.max_invalid), version=2, about="reading every row"),
            Stage("split", divided, ("collect",), about="cleaning, finding near-duplicates, splitting"),
        ]

    def stages(self) -> list[Stage]:
        """All stages in an order in which each comes after what it needs."""
        project, measured = self.project, [f"evaluate:{arm}" for arm in self.arms]
        general = project.evaluate.general_rows
        asked = (msgspec.structs.replace(project.evaluate, general_rows=Evaluate().general_rows), self.base_digest)
        judged = (project.evaluate.metrics[0], project.evaluate.max_tokens) if project.train.metric_rows else ()
        watched = (project.deploy.alias, project.deploy.live_questions, project.deploy.rollout, project.monitor)
        live = (
            [Stage("live", watched, ("compare",), about="a canary on held-out questions, watched")] if project.deploy.live_questions else []
        )
        return [
            *self.data_stages(),
            Stage(
                "tokens",
                (*token_inputs(project.train), self.base_digest),
                ("split",),
                version=2,
                about="token ids and loss masks by the base's own template",
            ),
            *(
                Stage(
                    f"evaluate:{baseline.name}",
                    (asked, baseline),
                    ("tokens",),
                    about="asking the base the held-out rows",
                )
                for baseline in project.baselines
            ),
            Stage("train", (project.train, self.base_digest, *judged), ("tokens",), about="training"),
            Stage(f"evaluate:{TUNED}", asked, ("train",), about="asking the tuned model the same rows"),
            Stage("compare", project.gate, tuple(measured), version=2, about="paired differences with their intervals"),
            Stage("regression", (self.base_digest, general), ("train",), about="the base's general abilities before and after"),
            Stage(
                "ask",
                (project.deploy.alias, project.deploy.questions),
                ("train",),
                about="serving base and tuned model, asking them through the openai SDK",
            ),
            *live,
            Stage(
                "report",
                (msgspec.structs.replace(project, tune=Tune()), self.left_out),
                ("compare", "ask", "regression", *(stage.name for stage in live)),
                about="writing the report",
            ),
        ]

    def rows(self, part: str) -> list[Row]:
        """The rows of one part of the split; the test part as `evaluate.limit` allows."""
        every = rows(self.data.folder("split"), part)
        return every[: self.project.evaluate.limit] if part == "test" else every

    def questions(self, part: str) -> list[Example]:
        """The rows of one part as things to ask, whatever their kind: pairs and labelled rows with the answer that is wanted."""
        return as_examples(self.rows(part))

    @property
    def documents(self) -> bool:
        """Whether what the method trains asks nothing, as running text: it is measured by its likelihood."""
        return METHODS[self.project.train.method].evaluated == "likelihood"

    def clusters(self, rows: Iterable[Row]) -> dict[str, str]:
        """The near-duplicate cluster of each of these rows."""
        return read_clusters(self.data.folder("split"), {row.id for row in rows})

    def sampling(self) -> Sampling:
        """Greedy answers; as many tokens as the longest training answer needs and a quarter more, where the project says auto."""
        wanted = self.project.evaluate.max_tokens
        if self.documents and wanted == "auto":
            return Sampling(max_tokens=_CONTINUED)
        tokens = self.runner.run("tokens").output
        return Sampling(max_tokens=int(tokens["longest_answer"] * 1.25) + 8 if wanted == "auto" else wanted)


def _unusual(source: Source) -> list[object]:
    """How a source is read, where it is not as usual: a source that says nothing of it keeps the digest that it has always had."""
    return [source.ignore, source.encoding] if source.ignore or source.encoding != "utf-8" else []
