"""What broke: a base's general abilities before and after fine-tuning, on items fetched by pinned name, version and hash; ships no item.

Fine-tuning on a narrow task can cost what the base could do. Each ability is a sample of rows from a package's evaluation file; the same
rows are asked before and after, so forgetting is a paired difference with an interval.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tunesmith.core.errors import ConfigError, StoreError
from tunesmith.core.stats import Difference, holm, paired_difference
from tunesmith.core.types import Example, Record, Sampling
from tunesmith.evaluate.importers import openai_rows
from tunesmith.evaluate.metrics import metric
from tunesmith.evaluate.prompts import as_given
from tunesmith.evaluate.run import Evaluation, ask_all, evaluate
from tunesmith.models.base import Model
from tunesmith.models.download import fetch_wheel


class Ability(Record, frozen=True):
    """One ability: a file of a package by hash, how many of its rows are drawn, and the metric that rates them."""

    name: str
    member: str
    sha256: str
    metric: str
    options: dict[str, Any] = {}
    rows: int = 100
    max_tokens: int = 32


class Suite(Record, frozen=True):
    """Abilities from one package; `sha256` is the wheel's."""

    name: str
    package: str
    version: str
    sha256: str
    abilities: tuple[Ability, ...]


class Forgotten(Record, frozen=True):
    """One ability after and before on the same rows. `p_adjusted` is Holm's over the suite; `lost` that the drop is sure at 5 %."""

    ability: str
    metric: str
    before: float
    after: float
    difference: Difference
    p_adjusted: float
    lost: bool


_LETTERS = {"labels": ["A", "B", "C"]}
GENERAL = Suite(
    name="general",
    package="evals",
    version="3.0.1.post1",
    sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    abilities=(
        Ability(
            name="cause and effect",
            member="quartz/samples.jsonl",
            sha256="e439668cc38aa157bb1a746d9540f61f29d7f494a6618a955c8e3b5f55a363e7",
            metric="accuracy",
            options={"labels": ["A", "B"]},
        ),
        Ability(
            name="social sense",
            member="theory_of_mind/socialiqa/test.jsonl",
            sha256="33e5a7e1f8270934fcff115f18ca51aede77987d1225cf3ac718a22fb1715714",
            metric="accuracy",
            options=_LETTERS,
        ),
        Ability(
            name="reading",
            member="theory_of_mind/tomi/test.jsonl",
            sha256="cbbe6814d838ca7f6beb858731e1f91307aa98053cb21657d379867ef0d8ff6f",
            metric="includes",
            options={"ignore_case": True},
        ),
        Ability(
            name="everyday knowledge",
            member="food/samples.jsonl",
            sha256="038d577fe7c9b948706b4a1a3bf487b476a5b19b7574bcf20c1690f791e26bf9",
            metric="balanced_accuracy",
            options={"labels": ["Yes", "No"]},
        ),
        Ability(
            name="world knowledge",
            member="largest_country/samples.jsonl",
            sha256="a0da25edffc8dc519a36904a725aa29cc6d2d95617954edb4be6367fe3ffe216",
            metric="normalized_match",
        ),
        Ability(
            name="dates as asked",
            member="european_date_format_challenge/samples.jsonl",
            sha256="b8decf8723d33f75b724b2127b2c5117ce7f20f2586176dc227792795f6ab288",
            metric="includes",
            options={"ignore_case": True},
        ),
    ),
)


def sized(suite: Suite, rows: int) -> Suite:
    """The suite with at most `rows` rows an ability: the first ones of the same draw, so that a small suite is part of the large one."""
    return replace(suite, abilities=tuple(replace(ability, rows=min(rows, ability.rows)) for ability in suite.abilities))


def fetch_suite(suite: Suite, folder: Path) -> dict[str, list[Example]]:
    """The suite's rows by ability, from the package's wheel in `folder`, which is downloaded once.

    Each ability's rows are drawn by their content hash: the same ones everywhere. Raises SourceUnavailable when the index cannot be
    reached, StoreError when a hash differs.
    """
    wheel = fetch_wheel(suite.package, suite.version, suite.sha256, folder)
    return suite_rows(suite, wheel)


def suite_rows(suite: Suite, wheel: Path) -> dict[str, list[Example]]:
    """The suite's rows by ability from a wheel on disk; nothing in it is imported or run. Raises StoreError when a hash differs."""
    examples = {}
    with zipfile.ZipFile(wheel) as archive:
        for ability in suite.abilities:
            member = f"{suite.package}/registry/data/{ability.member}"
            try:
                data = archive.read(member)
            except KeyError as error:
                raise StoreError(f"no member '{member}'", where=str(wheel), remedy="the package changed; do not use it") from error
            seen = hashlib.sha256(data).hexdigest()
            if seen != ability.sha256:
                where, remedy = f"{wheel}:{member}", "the package changed; do not use it"
                raise StoreError(f"sha256 {seen}, expected {ability.sha256}", where=where, remedy=remedy)
            rows = {row.id: row for row in openai_rows(data, origin=f"{suite.package}=={suite.version}:{ability.member}")}
            examples[ability.name] = [rows[key] for key in sorted(rows)][: ability.rows]
    return examples


def run_suite(
    model: Model,
    suite: Suite,
    rows: Mapping[str, Sequence[Example]],
    out: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Evaluation]:
    """Ask the model every ability's rows, greedily; one folder an ability under `out`, so that an interrupted run continues.

    Abilities with the same `max_tokens` are asked together, since a model writes many answers at once faster than a few.
    """
    cache, total, done = out / "answers.jsonl", sum(len(rows[ability.name]) for ability in suite.abilities), 0
    for tokens in sorted({ability.max_tokens for ability in suite.abilities}):
        prompts = [as_given(row) for ability in suite.abilities if ability.max_tokens == tokens for row in rows[ability.name]]
        tell = (lambda n, _, before=done: on_progress(before + n, total)) if on_progress else None
        ask_all(model, prompts, Sampling(max_tokens=tokens), cache, tell)
        done += len(prompts)
    return {
        ability.name: evaluate(
            model,
            rows[ability.name],
            [metric(ability.metric, **ability.options)],
            sampling=Sampling(max_tokens=ability.max_tokens),
            out=out / ability.name.replace(" ", "_"),
            cache=cache,
        )
        for ability in suite.abilities
    }


def forgetting(before: Mapping[str, Evaluation], after: Mapping[str, Evaluation], level: float = 0.95) -> list[Forgotten]:
    """Each ability's change, the worst first, over rows that both answered; differences are of row values, so of right and wrong.

    Raises ConfigError when the two are not of the same abilities and rows.
    """
    if set(before) != set(after):
        raise ConfigError(f"abilities {sorted(set(before) ^ set(after))} are in one evaluation only", where="forgetting")
    tested: list[tuple[str, str, float, float, Difference]] = []
    for name, first in before.items():
        second, rated = after[name], first.metrics[0]
        if first.dataset_digest != second.dataset_digest or first.metrics != second.metrics:
            raise ConfigError(f"'{name}' was asked with other rows or metrics", where="forgetting", remedy="run the same suite for both")
        pairs = [(x.value, y.value) for x, y in zip(first.scores(rated), second.scores(rated), strict=True)]
        a, b = zip(*[(x, y) for x, y in pairs if x is not None and y is not None], strict=True)
        tested.append((name, rated, sum(a) / len(a), sum(b) / len(b), paired_difference(a, b, level=level)))
    adjusted = [float(p) for p in holm([test[-1].p_value for test in tested])]
    lines = [
        Forgotten(ability=n, metric=m, before=x, after=y, difference=d, p_adjusted=p, lost=d.estimate < 0 and p < 1 - level)
        for (n, m, x, y, d), p in zip(tested, adjusted, strict=True)
    ]
    return sorted(lines, key=lambda line: line.difference.estimate)
