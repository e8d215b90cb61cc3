"""New rows from a teacher: what is asked, what it will cost at most, what was kept and why the rest was not, as a version. How rows are
asked for and filtered is the data room's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from tunesmith.core.config import convert, parse_overrides
from tunesmith.core.errors import ConfigError, SourceUnavailable, UsageError, nearest
from tunesmith.core.load import resolve
from tunesmith.core.rows import Row
from tunesmith.core.types import Answer, Example, Prompt, Record, Sampling
from tunesmith.data import synth, version
from tunesmith.data.synth import Judge, Synth, Synthesis
from tunesmith.data.version import DatasetVersion
from tunesmith.evaluate.run import Answers, ask_all, cache_key
from tunesmith.flow.datasets.tokens import price_of
from tunesmith.flow.datasets.versions import Datasets, own_ledger
from tunesmith.flow.rows import Rows
from tunesmith.flow.sources import ALL, entered
from tunesmith.models.base import Model, OnAnswer
from tunesmith.models.resolve import Models

Method = Literal["seeds", "documents", "topics", "evolve", "preferences"]
METHODS: tuple[Method, ...] = ("seeds", "documents", "topics", "evolve", "preferences")
TEXTS = (".txt", ".md", ".rst")
_JUDGED = (1, 5)


class Wish(Record, frozen=True):
    """What is wanted. `of`: a folder or file of texts (documents), or the root of the tree (topics). `count`: rows, for documents rows a
    part. `system`: the first turn of every new row. `criterion`: what the judge asks of a row. `grader`: a user's `module:function`.
    `against`: evaluation rows that must not be repeated."""

    method: Method
    teacher: str
    count: int = 20
    of: str = ""
    system: str | None = None
    judge: str = ""
    criterion: str = "The question is clear and could be asked by a user; the answer is correct, complete and in the style of the task."
    grader: str = ""
    against: tuple[str, ...] = ()
    settings: Synth = Synth()


def wished(method: str, teacher: str, words: Sequence[str]) -> Wish:
    """The wish that `--count 5 --temperature 0.3` words describe; Synth's keys go to its settings. Raises ConfigError with the nearest."""
    if method not in METHODS:
        raise UsageError(f"no method '{method}'", allowed=", ".join(METHODS), remedy=nearest(method, METHODS))
    tree: dict[str, Any] = {"method": method, "teacher": teacher, "settings": {}}
    for key, value in parse_overrides(words):
        name = ".".join(key)
        known = (*Wish.__struct_fields__[2:-1], *Synth.__struct_fields__)
        if name not in known:
            raise ConfigError(
                f"unknown option '--{name}'", allowed=", ".join(f"--{option}" for option in known), remedy=nearest(name, known)
            )
        (tree["settings"] if name in Synth.__struct_fields__ else tree)[name] = value
    return convert(tree, Wish)


def priced(wish: Wish) -> Synth:
    """The settings with the teacher's price, where the list knows it and none was given."""
    price = price_of(wish.teacher.rpartition("#")[2])
    if price is None or wish.settings.usd_in or wish.settings.usd_out:
        return wish.settings
    return msgspec.structs.replace(wish.settings, usd_in=price.input, usd_out=price.output)


class RememberingTeacher:
    """A teacher whose answers are on disk as they come: what it said before a stop is neither asked nor paid again."""

    def __init__(self, teacher: Model, file: Path) -> None:
        self.name, self.digest = teacher.name, teacher.digest
        self._teacher, self._file = teacher, file

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """As the teacher's; a kept answer counts no tokens. Raises SourceUnavailable, saying how to go on."""
        stored = Answers(self._file)
        old = [cache_key(self, prompt, sampling) in stored for prompt in prompts]
        stored.close()
        try:
            answers = ask_all(self._teacher, prompts, sampling, self._file)
        except SourceUnavailable as error:
            remedy = "what it answered until now is kept: the same command goes on from there"
            raise SourceUnavailable(error.what, where=error.where, remedy=remedy) from error
        return [
            msgspec.structs.replace(answer, prompt_tokens=0, completion_tokens=0) if again else answer
            for answer, again in zip(answers, old, strict=True)
        ]


class Teachers:
    """The models of one command, over the project's store; `teacher` gives one whose answers are kept."""

    def __init__(self, datasets: Datasets) -> None:
        self._file = datasets.layout.synthesis / "answers.jsonl"
        self._store = datasets.store()
        self._models = Models(self._store, datasets.catalog)

    def __enter__(self) -> Teachers:
        return self

    def __exit__(self, *error: object) -> None:
        self._store.close()

    def resolve(self, word: str) -> Model:
        """The model that the word names."""
        return self._models.resolve(word)

    def teacher(self, word: str) -> Model:
        """The same, with its answers kept."""
        return RememberingTeacher(self._models.resolve(word), self._file)


def requests(wish: Wish, data: Rows | None, teacher: Model) -> list[synth.TeacherRequest]:
    """What will be asked. Raises UsageError for what is missing. `topics` asks the teacher for its tree already here."""
    settings = priced(wish)
    rows = _seeds(data)
    if wish.method == "documents":
        return synth.from_documents(documents(wish.of), each=wish.count)
    if wish.method == "topics":
        if not wish.of:
            raise UsageError("no topic", allowed="--of TOPIC", remedy="--of 'returns and refunds'")
        return synth.from_topics(wish.of, teacher, settings, each=max(1, wish.count // 16))[: wish.count]
    if wish.method == "evolve":
        return synth.evolve(rows[: wish.count], settings)
    return synth.from_seeds(rows, wish.count, settings)


def documents(place: str) -> list[tuple[str, str]]:
    """(name, text) of a text file or of every text file in a folder. Raises UsageError when there is none."""
    path = Path(place).expanduser()
    files = sorted(file for file in path.rglob("*") if file.suffix in TEXTS) if path.is_dir() else [path] if path.is_file() else []
    if not place or not files:
        raise UsageError(f"no documents in '{place}'", allowed=f"--of FILE or FOLDER with {', '.join(TEXTS)}")
    try:
        return [(str(file), file.read_text("utf-8")) for file in files]
    except UnicodeDecodeError as error:
        raise UsageError(f"a document is not UTF-8 text: {error}", where=place, remedy="convert it") from error


def _seeds(data: Rows | None) -> Sequence[Row]:
    """The rows that may be shown to a teacher: training rows, or all where nothing is split yet."""
    return [] if data is None else data.splits.get("train", data.rows)


def estimate(asked: Sequence[synth.TeacherRequest], wish: Wish) -> dict[str, float]:
    """The most that the requests can take: tokens and US dollars."""
    return synth.estimate(asked, priced(wish))


def make(
    datasets: Datasets, wish: Wish, data: Rows | None, asked: Sequence[synth.TeacherRequest], avoid: Sequence[Row], models: Teachers
) -> Synthesis:
    """Ask, filter, judge. Held-out rows of `data` and `avoid` are never repeated."""
    held = [row for part in ("validation", "test") for row in (data.splits.get(part, []) if data is not None else [])]

    def on_answer(done: int, of: int, usd: float) -> None:
        datasets.progress.bar("asking the teacher" + (f" (${usd:.4f} so far)" if usd else ""), done, of)
        if usd and (done == of or done % (8 * wish.settings.batch) == 0):
            datasets.progress.say(f"{done} of {of} asked, ${usd:.4f} so far")

    return synth.make(
        asked,
        models.teacher(wish.teacher),
        priced(wish),
        seeds=_seeds(data),
        avoid=[*held, *avoid],
        judge=_judge(datasets, wish, models),
        system=wish.system,
        progress=on_answer,
    )


def _judge(datasets: Datasets, wish: Wish, models: Teachers) -> Judge | None:
    if wish.grader:
        graded: Judge = resolve(wish.grader, where="--grader")
        return graded
    if not wish.judge:
        return None
    from tunesmith.evaluate.judge import rubric
    from tunesmith.evaluate.metrics import Measured

    low, high = _JUDGED
    cache = datasets.layout.judged
    metric = rubric(models.resolve(wish.judge), wish.criterion, cache=cache, low=low, high=high)

    def judged(row: Example) -> float | None:
        rating = metric.rate(msgspec.structs.replace(row, messages=row.prompt), Answer(text=row.answer))
        value = rating.value if isinstance(rating, Measured) else rating
        return None if value is None else (value - low) / (high - low)

    return judged


def pairs(datasets: Datasets, wish: Wish, data: Rows, models: Teachers) -> tuple[list[Row], list[tuple[str, str]]]:
    """Preference pairs: each row's own answer over what the weaker model says."""
    weak, rows = models.teacher(wish.teacher), [row for row in _seeds(data) if isinstance(row, Example)][: wish.count]
    made: list[Row] = []
    refused: list[tuple[str, str]] = []
    for begin in range(0, len(rows), wish.settings.batch):
        good, bad = synth.preferences(rows[begin : begin + wish.settings.batch], weak, wish.settings)
        made += good
        refused += bad
        datasets.progress.bar("asking the weaker model", min(begin + wish.settings.batch, len(rows)), len(rows))
    return made, refused


def keep(datasets: Datasets, wish: Wish, rows: Sequence[Row], data: Rows | None, *, add: bool, note: str = "") -> DatasetVersion:
    """The new rows as a version of their own, or added to the training rows of `data`. Their origins name teacher and prompt."""
    recipe: dict[str, Any] = {
        "step": "synth",
        "method": wish.method,
        "teacher": wish.teacher,
        "settings": msgspec.to_builtins(wish.settings),
        "of": wish.of,
        "from": data.name if data is not None else None,
    }
    if not add or data is None:
        return version.freeze(datasets.root, {ALL: list(rows)}, recipe, ledger=entered({ALL: rows}), note=note)
    part = "train" if "train" in data.splits else ALL
    ledger = own_ledger(data.ledger)
    for row in rows:
        ledger.enter(row.origin, row.id)
    splits = {name: [*each, *(rows if name == part else [])] for name, each in data.splits.items()}
    return datasets.freeze(splits, recipe, ledger, data, note)
