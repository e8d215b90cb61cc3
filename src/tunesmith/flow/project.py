"""What `tunesmith.yaml` says, as one frozen record composed of the rooms' own sections; knows nothing about how it is carried out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from tunesmith.core.atomic import write_atomic
from tunesmith.core.config import convert, load, parse_overrides
from tunesmith.core.errors import ConfigError
from tunesmith.core.rollout import RolloutPlan
from tunesmith.core.stats.gate import GateRule
from tunesmith.core.types import Record
from tunesmith.data.clean import Clean
from tunesmith.data.collect import Source
from tunesmith.data.split import Split
from tunesmith.decide.plan import Decide
from tunesmith.deploy.serve_config import ServeConfig
from tunesmith.evaluate import sandbox
from tunesmith.evaluate.sandbox import Boundary
from tunesmith.flow.plan_keys import check_space
from tunesmith.flow.propose import Proposal
from tunesmith.models import trust
from tunesmith.monitor.alerts import Alerts
from tunesmith.monitor.governor import Retrain
from tunesmith.monitor.settings import Monitor
from tunesmith.store.layout import FOLDER
from tunesmith.store.store import Store
from tunesmith.train.methods import METHODS
from tunesmith.train.plan import Plan
from tunesmith.train.resolve import check
from tunesmith.tune.settings import Tune

DEFAULT_FILE = Path("tunesmith.yaml")


class Baseline(Record, frozen=True):
    """One way to use the base untrained. `shots` solved training rows go before each question; `instruction` replaces the rows' own."""

    name: str
    shots: int = 0
    by: Literal["random", "nearest"] = "random"
    instruction: str | None = None


class Evaluate(Record, frozen=True):
    """How answers are measured. The first metric decides. `limit`: at most so many test rows (None: all). `general_rows` of each general
    ability are asked before and after training (0: none)."""

    metrics: tuple[str, ...] = ("exact_match",)
    max_tokens: int | Literal["auto"] = "auto"
    limit: int | None = None
    batch_size: int = 64
    general_rows: int = 20


class Deploy(Record, frozen=True):
    """The name under which the tuned model answers. `questions` held-out rows are asked through the server as a check; `rollout` is how
    `tunesmith deploy canary` lets a model take over by steps. With `live_questions` a model that passed its gate takes over as such a
    canary in the run itself, asked so many validation rows through a server of the run's own, and is watched. With `parity` adapter, merged
    export and server are compared on some of the task's own rows before a trained model is deployed, by whatever command, where a run has
    split them."""

    alias: str = "custom"
    questions: int = 5
    parity: bool = True
    rollout: RolloutPlan = RolloutPlan()
    live_questions: int = 0

    def __post_init__(self) -> None:
        if self.live_questions < 0:
            raise ConfigError(f"'live_questions' is {self.live_questions}", where="deploy.live_questions", allowed="0 (none) or more")


class Project(Record, frozen=True):
    """The whole circle. Paths are relative to the file's folder. `gate`: may the tuned model take the best baseline's place, by the first
    metric? `trackers` are told what training reports; they change nothing.

    `trust_remote_code` names the bases, as `base` (or a teacher) names them, that may run the code beside their weights. `python_boundary`
    is the weakest one in which Python of graders and answers may run: `kernel` (Linux), or where the programs are trusted `process`.
    """

    name: str
    sources: tuple[Source, ...]
    base: str
    max_invalid: float = 0.0
    clean: Clean = Clean()
    split: Split = Split()
    train: Plan = Plan()
    tune: Tune = Tune()
    baselines: tuple[Baseline, ...] = (Baseline(name="zero-shot"), Baseline(name="few-shot", shots=4))
    evaluate: Evaluate = Evaluate()
    gate: GateRule = GateRule()
    deploy: Deploy = Deploy()
    decide: Decide = Decide()
    serve: ServeConfig = ServeConfig()
    monitor: Monitor = Monitor()
    alerts: Alerts = Alerts()
    retrain: Retrain = Retrain()
    trust_remote_code: tuple[str, ...] = ()
    python_boundary: Boundary = "kernel"
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    report: str = "report"
    store: str = FOLDER

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("no sources", where="sources", allowed="at least one", remedy="sources: [{path: data.jsonl}]")
        if not self.evaluate.metrics:
            raise ConfigError("no metric", where="evaluate.metrics", allowed="at least one metric name")
        rules = [rule.name for rule in self.alerts.rules]
        if unknown := [name for name in self.retrain.when.alerts if name not in rules]:
            known = ", ".join(rules) or "there are none"
            raise ConfigError(f"no alert '{unknown[0]}'", where="retrain.when.alerts", allowed=f"names of alerts.rules: {known}")
        names = [baseline.name for baseline in self.baselines]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice or "tuned" in names:
            raise ConfigError(f"baselines {names}", where="baselines", allowed="at least one; distinct names; not 'tuned'")


def load_project(file: Path, overrides: list[str] | None = None) -> Project:
    """The project that a file describes; what it trusts is trusted from now on. Raises ConfigError with file, line and key."""
    project = fitted(load(file, Project, overrides or []))
    check(project.train)
    check_space(project.tune, project.train)
    trust.allow(project.trust_remote_code)
    sandbox.accept(project.python_boundary)
    return project


def fitted(project: Project) -> Project:
    """The project with the metrics and baselines that its method's rows can have, where it names none of its own: documents ask nothing, so
    they are measured by their likelihood under the base as it is. Raises ConfigError for those that it names and that cannot be."""
    if METHODS[project.train.method].evaluated != "likelihood":
        return project
    plain = Evaluate().metrics
    metrics = ("bits_per_byte", "perplexity") if project.evaluate.metrics == plain else project.evaluate.metrics
    usual = Project.__struct_defaults__[Project.__struct_fields__.index("baselines") - len(Project.__struct_fields__)]
    baselines = (Baseline(name="base"),) if project.baselines == usual else project.baselines
    shown = next((baseline.name for baseline in baselines if baseline.shots or baseline.instruction is not None), None)
    if shown is not None:
        raise ConfigError(
            f"baseline '{shown}' puts something before a question, and documents ask nothing",
            where="baselines",
            allowed="a baseline of the base as it is",
            remedy="baselines: [{name: base}]",
        )
    return msgspec.structs.replace(project, baselines=baselines, evaluate=msgspec.structs.replace(project.evaluate, metrics=metrics))


def without_file(base: str | None, overrides: Sequence[str] = ()) -> Project:
    """What is served where there is no project: the base alone. Raises ConfigError where none is named."""
    if base is None:
        raise ConfigError(
            f"no file '{DEFAULT_FILE}' here", remedy="tunesmith init writes one; without a project: tunesmith serve --name NAME=BASE"
        )
    tree: dict[str, Any] = {"name": "served", "sources": [{"path": "none"}], "base": base}
    for key, value in parse_overrides(overrides):
        tree.setdefault("serve", {})[key[-1]] = value
    return convert(tree, Project, places={(): "the command line"})


def open_store(project: Project, folder: Path) -> Store:
    """The project's store; `folder` holds its file. Raises StoreError."""
    blobs = project.serve.blobs
    place = str(folder / Path(blobs).expanduser()) if blobs is not None and "://" not in blobs else blobs
    return Store.open(folder / project.store, url=project.serve.database, blobs=place)


def write_template(
    file: Path,
    *,
    path: str,
    base: str = "smollm2-135m",
    metric: str | None = None,
    name: str = "my-model",
    proposed: Proposal = Proposal(),
) -> None:
    """Write the commented `tunesmith.yaml` with what is proposed for the rows; `metric` is the one that decides (None: as proposed).

    Raises ConfigError when the file is already there, NotFound for an unknown metric.
    """
    from tunesmith.evaluate.metrics import metric as known_metric

    metrics = (metric,) if metric is not None else proposed.metrics
    for each in metrics:
        known_metric(each)
    if file.exists():
        raise ConfigError(f"'{file}' is already there", remedy="edit it, or give another name with --config")
    text = resources.files("tunesmith.flow").joinpath("project.yaml").read_text("utf-8")
    lines = {
        "source": "".join(f"\n{line}" for line in proposed.source),
        "train": "".join(f"\n{line}" for line in proposed.train),
        "baselines": "\n".join(proposed.baselines),
        "metrics": ", ".join(map(_scalar, metrics)),
    }
    values = {"name": _scalar(name), "path": _scalar(path), "base": _scalar(base), "method": proposed.method}
    write_atomic(file, text.format(**values, **lines))


def _scalar(text: str) -> str:
    """The text as it is where YAML reads it so, else in quotes; what does not print, such as a line separator, is escaped."""
    try:
        plain = text.isprintable() and parse_overrides([f"--text=[{text}]"]) == [(("text",), [text])]
    except ConfigError:
        plain = False
    return text if plain else yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).rstrip("\n")
