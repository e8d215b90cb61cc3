"""Asks a model every row of a data set once, keeps each answer as it comes and rates it; knows no metric, no interval and no other model.

`out/answers.jsonl` grows by one line an answer, keyed by everything that could change it (model digest, prompt, sampling); what is in it
is never asked again, whatever interrupted the run before. `out/evaluation.json` is written last, whole or not at all.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tunesmith.core.atomic import atomic_file
from tunesmith.core.errors import ConfigError, StoreError
from tunesmith.core.seal import checked, seal
from tunesmith.core.types import Answer, Example, Prompt, Record, Sampling, Score, digest
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.prompts import PromptVariant, as_given
from tunesmith.models.base import Model

OnProgress = Callable[[int, int], None]


class Row(Record, frozen=True):
    """One row's answer and its scores, in the order of the metrics. `key` names the answer in the cache."""

    example_id: str
    key: str
    answer: Answer
    scores: tuple[Score, ...]


class Evaluation(Record, frozen=True):
    """What a model answered to a data set and how that was rated; one row an example, in the data set's order.

    `values` has each metric's number over all rows (None: could not be computed); `missing` counts the rows without a score. `asked` is
    what this call asked anew, `failed` the rows that the model gave no answer to. Tokens and `seconds` (wall time while the
    model answered) are what the rows' answers cost when they were made, interruptions or not.
    """

    model: str
    model_digest: str
    variant: str
    dataset_digest: str
    sampling: Sampling
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    values: dict[str, float | None]
    missing: dict[str, int]
    asked: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float

    def scores(self, metric: str) -> list[Score]:
        """The scores of one metric, in the order of the rows. Raises ConfigError when it was not measured."""
        if metric not in self.metrics:
            raise ConfigError(f"'{metric}' was not measured", where=f"evaluation of {self.model}", allowed=", ".join(self.metrics))
        at = self.metrics.index(metric)
        return [row.scores[at] for row in self.rows]


class _Line(Record, frozen=True):
    """A line of the answers' file; `s` is the wall time since the answer before it, `digest` names the answer (empty in older lines)."""

    key: str
    answer: Answer
    s: float
    digest: str = ""

    @property
    def whole(self) -> bool:
        """Whether the answer is the one that was kept."""
        return self.digest in ("", digest(self.answer))


def cache_key(model: Model, prompt: Prompt, sampling: Sampling) -> str:
    """The name of an answer: the content hash of all that could change it."""
    return digest(model.digest, prompt, sampling)


class Answers:
    """The answers' file: append-only, safe against kill -9 at any byte and against a second process that appends too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, _Line] = {}
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes() if path.exists() else b""
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(f"cannot keep answers: {error}", where=str(path), remedy="give a folder that can be written") from error
        decode = msgspec.json.Decoder(_Line).decode
        for raw in data.split(b"\n"):
            try:
                line = decode(raw)
            except msgspec.DecodeError:
                continue  # a line that a killed process left half-written: its answer is asked again
            if line.whole:  # else it is asked again, as one that is cut off
                self._known.setdefault(line.key, line)
        if data and not data.endswith(b"\n"):
            os.write(self._file, b"\n")

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str) -> Answer | None:
        """The kept answer, or None."""
        line = self._known.get(key)
        return line.answer if line else None

    def seconds(self, keys: Sequence[str]) -> float:
        """Wall time that these answers cost when they were made."""
        return sum(self._known[key].s for key in set(keys) if key in self._known)

    def keep(self, key: str, answer: Answer, seconds: float) -> None:
        """Append one answer; a later one under the same key is dropped. Raises StoreError when the disk refuses."""
        answer = msgspec.json.decode(msgspec.json.encode(answer), type=Answer)  # as it will be read: a time of 0 is 0.0 then
        line = _Line(key=key, answer=answer, s=round(seconds, 6), digest=digest(answer))
        with self._lock:
            if key in self._known:
                return
            data = msgspec.json.encode(line) + b"\n"
            try:
                written = os.write(self._file, data)
            except OSError as error:
                raise StoreError(
                    f"cannot keep an answer: {error}", where=str(self.path), remedy="free some disk; nothing kept so far is lost"
                ) from error
            if written != len(data):
                raise StoreError(f"only {written} of {len(data)} bytes fitted", where=str(self.path), remedy="free some disk and run again")
            self._known[key] = line

    def close(self) -> None:
        """Bring the file to the disk and let it go."""
        os.fsync(self._file)
        os.close(self._file)


def evaluate(
    model: Model,
    examples: Sequence[Example],
    metrics: Sequence[Metric],
    *,
    sampling: Sampling,
    prompt_variant: Callable[[Example], Prompt] = as_given,
    out: Path,
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Ask `model` every row, rate the answers, and write `out/evaluation.json`.

    Equal prompts are asked once. `cache` is an answers' file to share between evaluations (default `out/answers.jsonl`).
    `on_progress(done, total)` counts rows that have an answer. An answer with `finish_reason` error is not kept: its scores are missing and
    the next call asks it again. Raises ConfigError without rows or metrics, StoreError when the folder cannot be written.
    """
    _check(examples, metrics)
    prompts = [prompt_variant(example) for example in examples]
    keys = [cache_key(model, prompt, sampling) for prompt in prompts]
    answered = Answers(cache or out / "answers.jsonl")
    try:
        asked, failures = _ask(model, dict(zip(keys, prompts, strict=True)), sampling, answered, _progress(keys, answered, on_progress))
    finally:
        answered.close()
    answers = [answered.get(key) or failures[key] for key in keys]
    columns = [metric.rows(examples, answers) for metric in metrics]
    evaluation = Evaluation(
        model=model.name,
        model_digest=model.digest,
        variant=prompt_variant.name if isinstance(prompt_variant, PromptVariant) else prompt_variant.__name__,
        dataset_digest=dataset_digest(examples),
        sampling=sampling,
        metrics=tuple(metric.name for metric in metrics),
        rows=tuple(
            Row(example_id=example.id, key=key, answer=answer, scores=tuple(scores))
            for example, key, answer, *scores in zip(examples, keys, answers, *columns, strict=True)
        ),
        values={metric.name: metric.value(column) for metric, column in zip(metrics, columns, strict=True)},
        missing={metric.name: sum(s.value is None for s in column) for metric, column in zip(metrics, columns, strict=True)},
        asked=asked,
        failed=sum(answer.finish_reason == "error" for answer in answers),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
        seconds=answered.seconds(keys),
    )
    with atomic_file(out / "evaluation.json") as file:
        file.write(msgspec.json.encode(evaluation))
    seal(out, only=("evaluation.json",))
    return evaluation


def replicates(
    model: Model,
    examples: Sequence[Example],
    metrics: Sequence[Metric],
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    prompt_variant: Callable[[Example], Prompt] = as_given,
    out: Path,
    on_progress: OnProgress | None = None,
) -> list[Evaluation]:
    """One evaluation a seed, in `out/seed-N`, so that the noise of sampling can be measured; the same seeds give the same answers.

    Raises ConfigError for greedy sampling, where seeds change nothing, and for a seed that is given twice.
    """
    if sampling.temperature == 0 or len(set(seeds)) != len(seeds) or not seeds:
        allowed = "temperature above 0, at least one seed, each once"
        raise ConfigError(f"seeds {list(seeds)} at temperature {sampling.temperature}", where="replicates", allowed=allowed)
    return [
        evaluate(
            model,
            examples,
            metrics,
            sampling=msgspec.structs.replace(sampling, seed=seed),
            prompt_variant=prompt_variant,
            out=out / f"seed-{seed}",
            cache=out / "answers.jsonl",
            on_progress=on_progress,
        )
        for seed in seeds
    ]


def ask_all(
    model: Model, prompts: Sequence[Prompt], sampling: Sampling, cache: Path, on_progress: OnProgress | None = None
) -> list[Answer]:
    """The answers to these prompts, from the answers' file where it has them; equal prompts are asked once."""
    keys = [cache_key(model, prompt, sampling) for prompt in prompts]
    answered = Answers(cache)
    try:
        _, failures = _ask(model, dict(zip(keys, prompts, strict=True)), sampling, answered, _progress(keys, answered, on_progress))
    finally:
        answered.close()
    return [answered.get(key) or failures[key] for key in keys]


def load_evaluation(out: Path) -> Evaluation:
    """The finished evaluation in the folder `out`. Raises StoreError when there is none or it is damaged."""
    path = out / "evaluation.json"
    try:
        return msgspec.json.decode(checked(path).read_bytes(), type=Evaluation)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(
            f"no evaluation can be read: {error}", where=str(path), remedy="run the evaluation; kept answers are not asked again"
        ) from error


def dataset_digest(examples: Sequence[Example]) -> str:
    """The digest of rows in their order: ids (content hashes) with references and groups."""
    return digest([(example.id, example.reference, example.group) for example in examples])


def _check(examples: Sequence[Example], metrics: Sequence[Metric]) -> None:
    if not examples:
        raise ConfigError("no rows to evaluate", where="evaluate", remedy="give a data set with at least one row")
    named = [metric.name for metric in metrics]
    if not named or len(set(named)) != len(named):
        raise ConfigError(f"metrics {named}", where="evaluate", allowed="at least one, each name once")


def _progress(keys: Sequence[str], answered: Answers, tell: OnProgress | None) -> Callable[[str | None], None]:
    """Counts rows, not prompts: rows with equal prompts are done together."""
    rows: dict[str, int] = {}
    for key in keys:
        rows[key] = rows.get(key, 0) + 1
    done = sum(n for key, n in rows.items() if key in answered)

    def step(key: str | None) -> None:
        nonlocal done
        done += rows[key] if key else 0
        if tell:
            tell(done, len(keys))

    return step


def _ask(
    model: Model, wanted: dict[str, Prompt], sampling: Sampling, answered: Answers, step: Callable[[str | None], None]
) -> tuple[int, dict[str, Answer]]:
    """Ask what is not kept. Returns how many were asked, and the answers that failed by key."""
    todo = [key for key in wanted if key not in answered]
    step(None)
    failures: dict[str, Answer] = {}
    before = time.monotonic()

    def on_answer(index: int, answer: Answer) -> None:
        nonlocal before
        key, now = todo[index], time.monotonic()
        if key in answered or key in failures:
            return
        if answer.finish_reason == "error":
            failures[key] = answer
        else:
            answered.keep(key, answer, now - before)
            before = now
        step(key)

    if todo:
        for index, answer in enumerate(model.answer([wanted[key] for key in todo], sampling, on_answer)):
            on_answer(index, answer)  # a model that tells only at the end
    return len(todo), failures
