"""Words of the command line → typed records of options, and `eval plan`; evaluates nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from tunesmith.core.config import convert, parse_overrides, value_of
from tunesmith.core.counted import counted
from tunesmith.core.errors import ConfigError, UsageError, nearest
from tunesmith.core.stats import sample_size_non_inferiority, sample_size_paired_rates, smallest_detectable_rates
from tunesmith.core.types import Record

_FLAGS = {"--sealed", "--superior"}


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The plain words, and the `--key value` pairs among them (a flag may stand alone)."""
    plain: list[str] = []
    options: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            plain.append(word)
        elif "=" in word:
            options.append(word)
        elif word in _FLAGS:
            options += [word, left.pop(0) if left and left[0] in ("true", "false") else "true"]
        else:
            options += [word, *([left.pop(0)] if left and not left[0].startswith("--") else [])]
    return plain, options


def options(words: Sequence[str], *records: type[Record]) -> list[Any]:
    """Each record filled with the keys that are its own; a key of several goes to the first. Lists may be written with commas.

    Raises ConfigError for a key that none has, with the nearest one, and for a value of the wrong type.
    """
    trees: list[dict[str, Any]] = [{} for _ in records]
    hints = [get_type_hints(record) for record in records]
    known = [name for own in hints for name in own]
    for word, raw in _pairs(words):
        name, *inner = word.replace("-", "_").split(".")
        place = next((i for i, own in enumerate(hints) if name in own), None)
        if place is None:
            raise ConfigError(f"unknown option '--{name}'", allowed=", ".join(known), remedy=nearest(name, known))
        kinds = (hints[place][name], *get_args(hints[place][name]))
        node = trees[place]
        for outer, part in zip([name, *inner], inner, strict=False):
            node = node.setdefault(outer, {})
            name = part
        node[name] = raw if str in kinds and not inner and not _is_list(kinds[0]) else _value(word, raw, _is_list(kinds[0]) and not inner)
    return [convert(tree, record) for tree, record in zip(trees, records, strict=True)]


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    left = list(words)
    while left:
        word, equals, value = left.pop(0).removeprefix("--").partition("=")
        if not equals:
            value = value_of(f"--{word}", left)
        yield word, value


def _value(word: str, raw: str, listed: bool) -> Any:
    """The value as YAML; of a list each part between commas."""
    texts = raw.strip("[]").split(",") if listed else [raw]
    values = [value for text in texts if text.strip() for _, value in parse_overrides([f"--{word}={text}"])]
    return values if listed else values[0] if values else None


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is tuple or any(get_origin(part) is tuple for part in get_args(kind))


def pair(words: Sequence[str]) -> tuple[str, str]:
    """The two words. Raises UsageError for more or fewer."""
    if len(words) != 2:
        raise UsageError(f"{counted(len(words), 'word')}: {' '.join(words)}", allowed="A B: two evaluations or two models")
    return words[0], words[1]


class Question(Record, frozen=True):
    """What a test set should be able to answer. `difference`: a true difference of two rates to be seen; `margin`: what a gate tolerates
    for a model that is truly equal; `discordance`: the share of rows that only one of the two models gets right; `rows`: those there are.
    `design_effect` multiplies the rows when they come in clusters: 1 + (rows a cluster − 1) × their correlation."""

    difference: float = 0.05
    margin: float = 0.02
    discordance: float = 0.2
    power: float = 0.8
    alpha: float = 0.05
    rows: int | None = None
    design_effect: float = 1.0

    def __post_init__(self) -> None:
        if not self.design_effect >= 1:
            raise ConfigError(f"design_effect is {self.design_effect}", allowed="1 (rows stand alone) or more")


def plan(question: Question) -> dict[str, Any]:
    """The rows to see the difference and to let the gate pass, and what the rows there are can see."""
    q = question
    see = sample_size_paired_rates(q.difference, q.discordance, power=q.power, alpha=q.alpha)
    passes = sample_size_non_inferiority(q.margin, q.discordance, power=q.power, alpha=q.alpha)
    see, passes = (-(-int(n * q.design_effect * 1000) // 1000) for n in (see, passes))
    lines = [
        f"{see} rows show a true difference of {q.difference:g} with {q.power:.0%} power (paired, two-sided {q.alpha:g}, discordance "
        f"{q.discordance:g}).",
        f"{passes} rows let a gate with tolerance {q.margin:g} pass a truly equal model {q.power:.0%} of the time.",
    ]
    result: dict[str, Any] = {"see_difference": see, "pass_gate": passes, "question": msgspec.to_builtins(q)}
    if q.rows is not None:
        least = smallest_detectable_rates(max(1, int(q.rows / q.design_effect)), q.discordance, power=q.power, alpha=q.alpha)
        result["smallest_detectable"] = least
        lines.append(f"{q.rows} rows show a true difference from {least:.3f} on.")
    return {**result, "text": "\n".join(lines)}
