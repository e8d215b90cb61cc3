"""The stages of the circle as `tunesmith.yaml` describes them: which there are, what each depends on, what each calls. Knows nothing
about how a room does its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from tunesmith.core.progress import Progress
from tunesmith.core.types import Example, Sampling, digest
from tunesmith.data.collect import Source
from tunesmith.data.import_stream import intake
from tunesmith.flow.pipeline import data_stages as prepare
from tunesmith.flow.pipeline.runner import Output, Runner, Stage
from tunesmith.flow.project import Baseline, Project
from tunesmith.models.base import Model
from tunesmith.models.catalog import Catalog
from tunesmith.store.store import Store

if TYPE_CHECKING:
    from tunesmith.evaluate.metrics import Metric

TUNED = "tuned"

# Puts models behind a port and gives the base URL; handed in, because the HTTP layer stands above the flows.
Server = Callable[[Mapping[str, Model], sa.Engine], AbstractContextManager[str]]


@dataclass
class ProjectContext:
    """One project at work: its record, its folder, its store, the catalogue, and who is told."""

    project: Project
    folder: Path
    store: Store
    catalog: Catalog
    progress: Progress
    server: Server
    command: str = "tunesmith run"
    left_out: tuple[str, ...] = ()

    @cached_property
    def base(self) -> Path:
        """The prepared folder of the base."""
        return self.catalog.model(self.project.base)

    @cached_property
    def base_digest(self) -> str:
        """The content hash of the base."""
        return self.catalog.digest(self.base)

    @cached_property
    def sources(self) -> list[Source]:
        """The sources with real paths."""
        return prepare.located(self.project.sources, self.folder, self.catalog)

    @cached_property
    def model(self) -> Any:
        """The base, loaded once and shared by every stage that asks it."""
        from tunesmith.models.local import LocalModel

        return LocalModel(self.base, name=self.project.base, max_rows=self.project.evaluate.batch_size)

    @cached_property
    def metrics(self) -> list[Metric]:
        """What rates the answers. Raises NotFound for a name that is no metric."""
        from tunesmith.evaluate.metrics import metric

        return [metric(name) for name in self.project.evaluate.metrics]

    def tuned_model(self) -> Any:
        """The base with the trained adapter."""
        return self.model.with_adapter(self.adapter, self.project.deploy.alias)

    @property
    def adapter(self) -> Path:
        """Where the trained adapter lies once the stage `train` is finished."""
        return self.runner.folder("train") / "adapter"

    @cached_property
    def runner(self) -> Runner:
        """The stages, with the digest of each."""
        return Runner(self.store, self.project.name, self.progress, self.stages())

    @property
    def arms(self) -> list[str]:
        """Everything that is measured: the baselines in their order, then the tuned model."""
        return [*(baseline.name for baseline in self.project.baselines), TUNED]

    def stages(self) -> list[Stage]:
        """All stages in an order in which each comes after what it needs."""
        project, measured = self.project, [f"evaluate:{arm}" for arm in self.arms]
        described = [(source.format, source.map, source.unique_ids) for source in project.sources]
        asked = (project.evaluate, self.base_digest)
        judged = (project.evaluate.metrics[0], project.evaluate.max_tokens) if project.train.metric_rows else ()
        return [
            Stage("collect", self._collect, (described, prepare.content(self.sources), project.max_invalid), about="reading every row"),
            Stage("split", self._split, (project.clean, project.split), ("collect",), about="cleaning, finding near-duplicates, splitting"),
            Stage(
                "tokens",
                self._tokens,
                (project.train.max_length, project.train.over_length, self.base_digest),
                ("split",),
                about="token ids and loss masks by the base's own template",
            ),
            *(
                Stage(
                    f"evaluate:{baseline.name}",
                    partial(self._evaluate_baseline, baseline),
                    (asked, baseline),
                    ("tokens",),
                    about="asking the base the held-out rows",
                )
                for baseline in project.baselines
            ),
            Stage("train", self._train, (project.train, self.base_digest, *judged), ("tokens",), about="training"),
            Stage(f"evaluate:{TUNED}", self._evaluate_tuned, asked, ("train",), about="asking the tuned model the same rows"),
            Stage("compare", self._compare, project.gate, tuple(measured), about="paired differences with their intervals"),
            Stage("regression", self._regression, self.base_digest, ("train",), about="the base's general abilities before and after"),
            Stage(
                "ask",
                self._ask,
                (project.deploy.alias, project.deploy.questions),
                ("train",),
                about="serving base and tuned model, asking them through the openai SDK",
            ),
            Stage("report", self._report, (project, self.left_out), ("compare", "ask", "regression"), about="writing the report"),
        ]

    def _collect(self, work: Path) -> Output:
        """Every row; those with faults lie in the store's own folder, since a stage that fails leaves no folder to look into."""
        found = intake(
            self.sources,
            work / "rows.parquet",
            work / "ledger.jsonl",
            max_invalid=self.project.max_invalid,
            rejects=self.store.folder / "rejects.jsonl",
        )
        return {"inputs": found.inputs, "invalid": found.invalid, "rows": found.rows, "formats": sorted(set(found.formats.values()))}

    def _split(self, work: Path) -> Output:
        return prepare.clean_and_split(self.runner.folder("collect"), self.project.clean, self.project.split, self.catalog, work)

    def _tokens(self, work: Path) -> Output:
        return prepare.tokenize(self.runner.folder("split"), self.base, self.project.train, work)

    def _train(self, work: Path) -> Output:
        from tunesmith.flow.pipeline.training_stage import train_rows

        self.__dict__.pop("model", None)  # the answering model's memory is free for training; the next stage loads it again
        return train_rows(self, work)

    def rows(self, part: str) -> list[Example]:
        """The rows of one part of the split; the test part as `evaluate.limit` allows."""
        rows = prepare.examples(self.runner.folder("split"), part)
        return rows[: self.project.evaluate.limit] if part == "test" else rows

    def clusters(self) -> dict[str, str]:
        """The near-duplicate cluster of each row."""
        numbers = msgspec.json.decode((self.runner.folder("split") / "clusters.json").read_bytes())
        return {row: str(cluster) for row, cluster in numbers.items()}

    def sampling(self) -> Sampling:
        """Greedy answers; as many tokens as the longest training answer needs and a quarter more, where the project says auto."""
        wanted = self.project.evaluate.max_tokens
        tokens = self.runner.run("tokens").output
        return Sampling(max_tokens=int(tokens["longest_answer"] * 1.25) + 8 if wanted == "auto" else wanted)

    def _evaluate_baseline(self, baseline: Baseline, work: Path) -> Output:
        from tunesmith.evaluate import prompts

        if baseline.shots:
            variant = prompts.few_shot(self.rows("train"), baseline.shots, baseline.by, seed=self.project.train.seed)
        elif baseline.instruction is not None:
            variant = prompts.instructed(baseline.instruction, baseline.name)
        else:
            variant = prompts.as_given
        return self._evaluate(self.model, variant, baseline.name, work)

    def _evaluate_tuned(self, work: Path) -> Output:
        from tunesmith.evaluate import prompts

        return self._evaluate(self.tuned_model(), prompts.as_given, TUNED, work)

    def _evaluate(self, model: Any, variant: Callable[[Example], Any], arm: str, work: Path) -> Output:
        from tunesmith.evaluate.openings import open_sealed
        from tunesmith.evaluate.run import evaluate

        rows = self.rows("test")
        open_sealed(
            self.store.folder / "openings.jsonl", digest([row.id for row in rows]), who=f"{self.project.name}: {arm}", why="stage of a run"
        )
        found = evaluate(
            model,
            rows,
            self.metrics,
            sampling=self.sampling(),
            prompt_variant=variant,
            out=work,
            on_progress=lambda done, total: self.progress.bar(f"evaluate:{arm}", done, total),
        )
        keys = ("model", "variant", "values", "missing", "failed", "prompt_tokens", "completion_tokens", "seconds")
        return {key: getattr(found, key) for key in keys} | {
            "rows": len(rows),
            "precision": model.precision,
            "max_tokens": found.sampling.max_tokens,
        }

    def _compare(self, work: Path) -> Output:
        from tunesmith.flow.pipeline.compare_stage import judge

        return judge(self, work)

    def _ask(self, work: Path) -> Output:
        from tunesmith.flow.pipeline.serving_stage import ask

        return ask(self, work)

    def _regression(self, work: Path) -> Output:
        from tunesmith.flow.evaluation.findings import regression

        return regression(self, work)

    def _report(self, work: Path) -> Output:
        from tunesmith.flow.pipeline.report import write_report

        return write_report(self, work)


def evaluations(context: ProjectContext, arms: Sequence[str]) -> dict[str, Any]:
    """The finished evaluation of each arm."""
    from tunesmith.evaluate.run import load_evaluation

    return {arm: load_evaluation(context.runner.folder(f"evaluate:{arm}")) for arm in arms}
