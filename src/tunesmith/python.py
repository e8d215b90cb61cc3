"""The commands as Python functions, for notebooks and scripts: the same flows, the same project file, the same store. Knows nothing that
the command line does not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UsageError
from tunesmith.core.progress import Progress, Silent, Terminal

if TYPE_CHECKING:
    from tunesmith.core.types import Example
    from tunesmith.evaluate.compare import Comparison
    from tunesmith.evaluate.run import Evaluation
    from tunesmith.flow.evaluation.compare import GateLine
    from tunesmith.flow.evaluation.run import Bench
    from tunesmith.flow.pipeline.run import RunOutcome
    from tunesmith.models.base import Model

FILE = "tunesmith.yaml"
Changes = Mapping[str, Any]
AS_WRITTEN: Changes = MappingProxyType({})


def init(data: str, config: str | Path = FILE, *, base: str = "smollm2-135m", metric: str = "exact_match", name: str = "my-model") -> Path:
    """Write a commented project file for these rows; returns its place. Raises ConfigError when it is already there.

    >>> tunesmith.init("rows.jsonl", base=BASE, name="support").name
    'tunesmith.yaml'
    """
    from tunesmith.flow.project import write_template

    write_template(Path(config), path=data, base=base, metric=metric, name=name)
    return Path(config)


def rows(data: str, config: str | Path = FILE) -> list[Example]:
    """The rows that a data word means: a file, folder, pattern or URL, `catalog:NAME`, or `train`, `validation`, `test` of the project.

    >>> len(tunesmith.rows("rows.jsonl"))
    60
    """
    from tunesmith.flow.evaluation.ask import Ask

    with _bench(config) as at:
        return [row for part in at.data(data, Ask(data=data)) for row in part.examples()]


def plan(config: str | Path = FILE, changes: Changes = AS_WRITTEN, *, progress: bool = False) -> dict[str, Any]:
    """What a run would do: time, memory, tokens, and every `auto` as a number with its reason. Prepares the data, trains nothing.

    `changes` are keys of the project file: `{"train.epochs": 2}`.

    >>> tunesmith.plan(changes={"train.epochs": 1})["epochs"]
    1
    """
    from tunesmith.flow.pipeline.run import dry_run
    from tunesmith.flow.project import load_project

    with _telling(progress) as telling:
        return dry_run(load_project(Path(config), _words(changes)), _folder(config), telling)


def finetune(config: str | Path = FILE, changes: Changes = AS_WRITTEN, *, progress: bool = False) -> dict[str, Any]:
    """Prepare the data and train; what is done is found, what was interrupted continues. `artifact` is where the weights lie.

    >>> sorted(tunesmith.finetune(changes={"train.epochs": 1}).keys() & {"artifact", "cached", "train_loss"})
    ['artifact', 'cached', 'train_loss']
    """
    from tunesmith.flow.last_run import written_name
    from tunesmith.flow.pipeline.run import RunCommand
    from tunesmith.flow.pipeline.train_only import train_project
    from tunesmith.flow.project import load_project

    words = _words(changes)
    made = RunCommand("tunesmith train", tuple(words), written_name(Path(config), words))
    with _telling(progress) as telling:
        return train_project(load_project(Path(config), words), _folder(config), telling, made=made)


def run(config: str | Path = FILE, changes: Changes = AS_WRITTEN, *, progress: bool = False) -> RunOutcome:
    """Walk the whole circle; `verdict`, `decision`, `values` and the place of the `report`. What is done is not done again.

    >>> outcome = tunesmith.run(changes={"train.epochs": 1})
    >>> outcome.decision in ("pass", "block", "cannot tell")
    True
    """
    from tunesmith.api.serve import temporary
    from tunesmith.flow.last_run import written_name
    from tunesmith.flow.pipeline.run import RunCommand, run_pipeline
    from tunesmith.flow.project import load_project

    words = _words(changes)
    made = RunCommand("tunesmith run", tuple(words), written_name(Path(config), words))
    with _telling(progress) as telling:
        return run_pipeline(load_project(Path(config), words), _folder(config), telling, temporary, made=made)


def model(word: str, config: str | Path = FILE) -> Model:
    """What a model word means: a catalogue name, a folder, BASE+ADAPTER, a deployed alias, URL#MODEL, openai:MODEL or echo.

    >>> tunesmith.model("echo").name
    'echo'
    """
    with _bench(config) as at:
        return at.models.resolve(word)


def ask(answers: str | Model, text: str, *, max_tokens: int = 256, config: str | Path = FILE) -> str:
    """What a model, or the model of that word, answers to one message; greedy.

    >>> tunesmith.ask("echo", "good morning")
    'good morning'
    """
    from tunesmith.core.types import Message, Prompt, Sampling

    prompt = Prompt(messages=(Message(role="user", content=text),))
    return _model(answers, config).answer([prompt], Sampling(max_tokens=max_tokens))[0].text


def measure(
    answers: str | Model,
    data: str | Sequence[Example],
    metrics: Sequence[str] = ("exact_match",),
    *,
    max_tokens: int = 256,
    config: str | Path = FILE,
) -> Evaluation:
    """Ask a model every row and rate the answers: `values` by metric, and `rows` with answers and scores.

    `eval` on the command line keeps each answer in the store; this keeps nothing. Raises NotFound for an unknown metric.

    >>> tunesmith.measure("echo", "rows.jsonl").values["exact_match"]
    0.5
    """
    from tunesmith.core.types import Sampling
    from tunesmith.evaluate.metrics import metric
    from tunesmith.evaluate.run import evaluate

    examples = rows(data, config) if isinstance(data, str) else list(data)
    chosen, asked = [metric(name) for name in metrics], _model(answers, config)
    with TemporaryDirectory() as folder:
        return evaluate(asked, examples, chosen, sampling=Sampling(max_tokens=max_tokens), out=Path(folder))


def compare(a: Evaluation, b: Evaluation, *, clusters: Mapping[str, str] | None = None, level: float = 0.95) -> Comparison:
    """Is B better than A, by how much and how sure, on every metric that both have; rows of one cluster count as one observation.

    >>> a, b = (tunesmith.measure(word, "rows.jsonl") for word in ("echo:No. ", "echo"))
    >>> tunesmith.compare(a, b).metrics[0].verdict
    'better'
    """
    from tunesmith.evaluate.compare import compare as compared
    from tunesmith.evaluate.metrics import metric

    common = [metric(name) for name in a.metrics if name in b.metrics]
    if not common:
        raise UsageError(f"no common metric: {list(a.metrics)} and {list(b.metrics)}", remedy="evaluate both with the same metrics")
    scores = [[score for row in side.rows for score in row.scores] for side in (a, b)]
    return compared(scores[0], scores[1], metrics=common, clusters=clusters, names=(a.model, b.model), level=level)


def gate(comparison: Comparison, *, margin: float = 0.02, superior: bool = False, only: Sequence[str] = ()) -> list[GateLine]:
    """May B take A's place? `decision` and `sentence` for each metric of `only` (empty: the first), as `tunesmith gate` says them.

    >>> a, b = (tunesmith.measure(word, "rows.jsonl") for word in ("echo:No. ", "echo"))
    >>> tunesmith.gate(tunesmith.compare(a, b), margin=0.05)[0].decision
    'pass'
    """
    from tunesmith.core.stats import GateRule
    from tunesmith.evaluate.metrics import metric
    from tunesmith.flow.evaluation.compare import gate as decide

    directions = {measured.metric: metric(measured.metric).better for measured in comparison.metrics}
    return decide(comparison, directions, GateRule(margin=margin, superior=superior), only)


@contextmanager
def serve(models: Mapping[str, str | Model], config: str | Path = FILE) -> Iterator[str]:
    """Models under names behind a free port of this machine, in OpenAI's API, for as long as the block lasts; gives the base URL.

    >>> with tunesmith.serve({"parrot": "echo"}) as url:
    ...     client = openai.OpenAI(base_url=url, api_key="none")
    ...     said = client.chat.completions.create(model="parrot", messages=[{"role": "user", "content": "good morning"}])
    >>> said.choices[0].message.content
    'good morning'
    """
    from tunesmith.api.serve import temporary

    with _bench(config) as at:
        answering = {name: at.models.resolve(word) if isinstance(word, str) else word for name, word in models.items()}
        with temporary(answering, at.store) as url:
            yield url


def catalog() -> dict[str, Any]:
    """Bases, encoders and data sets that the catalogue knows, with their licences.

    >>> "smollm2-135m" in tunesmith.catalog()["models"]
    True
    """
    import msgspec

    from tunesmith.models.catalog import Catalog

    listing: dict[str, Any] = msgspec.to_builtins(Catalog().listing)
    return listing


def _bench(config: str | Path) -> AbstractContextManager[Bench]:
    from tunesmith.flow.evaluation.run import bench

    return bench(Path(config), Silent())


def _model(answers: str | Model, config: str | Path) -> Model:
    return model(answers, config) if isinstance(answers, str) else answers


def _words(changes: Changes) -> list[str]:
    """The changes as the words of the command line, so that they are checked and remembered as those are."""
    return [f"--{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]


def _folder(config: str | Path) -> Path:
    return Path(config).resolve().parent


def _telling(progress: bool) -> AbstractContextManager[Progress]:
    return Terminal() if progress else nullcontext(Silent())
