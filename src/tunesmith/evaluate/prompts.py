"""Prompt variants: what is put in front of a row before a model is asked; knows no model and reads no answer but those of training rows.

A variant is a callable from a row to a Prompt. What all rows share comes first, so that a server's prefix cache serves it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from tunesmith.core.errors import ConfigError
from tunesmith.core.text_vectors import TextIndex
from tunesmith.core.types import Example, Message, Prompt


@dataclass(frozen=True)
class PromptVariant:
    """A named way from a row to a prompt."""

    name: str
    build: Callable[[Example], Prompt]

    def __call__(self, example: Example) -> Prompt:
        """The prompt for this row."""
        return self.build(example)


def _prompt(example: Example, messages: Sequence[Message]) -> Prompt:
    return Prompt(messages=tuple(messages), tools=example.tools)


def _system(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """Leading instructions, and the rest."""
    cut = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer")), len(messages))
    return list(messages[:cut]), list(messages[cut:])


as_given = PromptVariant("zero-shot", lambda example: _prompt(example, example.prompt))


def instructed(system: str, name: str = "instructed") -> PromptVariant:
    """The row with `system` in place of its own leading instructions."""
    head = Message(role="system", content=system)
    return PromptVariant(name, lambda example: _prompt(example, [head, *_system(example.prompt)[1]]))


def few_shot(train: Sequence[Example], k: int, by: Literal["random", "nearest"] = "random", seed: int = 0) -> PromptVariant:
    """The row after `k` solved training rows.

    `random`: the same shots for every row, drawn with `seed`. `nearest`: the rows most alike in words (TF-IDF cosine), the most alike
    last. A row is never shown itself nor a row of its own group. The instructions come once, first: those of the row asked.
    Raises ConfigError when there are fewer than `k` rows to choose from.
    """
    if not 1 <= k <= len(train):
        raise ConfigError(f"{k} shots from {len(train)} training rows", where="few_shot", allowed=f"1 to {len(train)}")
    if by not in ("random", "nearest"):
        raise ConfigError(f"by = '{by}'", where="few_shot", allowed="random, nearest")
    order = random.Random(seed).sample(range(len(train)), len(train))
    near = TextIndex([asked(row) for row in train]) if by == "nearest" else None
    name = f"{k}-shot {by}"
    if near is None:
        return shown(train, lambda _: order, k, name)
    return shown(train, lambda example: near.rank(asked(example)), k, name, best_last=True)


def shown(
    train: Sequence[Example],
    order: Callable[[Example], Sequence[int]],
    k: int,
    name: str,
    *,
    best_last: bool = False,
    instruction: str | None = None,
) -> PromptVariant:
    """The row after the first `k` training rows by `order`, solved, the first of them last where `best_last` says so; `instruction` stands
    in place of the row's own leading instructions (None: those stay). A row is never shown itself nor a row of its own group."""
    given = None if instruction is None else [Message(role="system", content=instruction)]

    def build(example: Example) -> Prompt:
        chosen = list(islice((train[i] for i in order(example) if _apart(train[i], example)), k))
        head, own = _system(example.prompt)
        shots = [message for row in (reversed(chosen) if best_last else chosen) for message in solved(row)]
        return _prompt(example, [*(head if given is None else given), *shots, *own])

    return PromptVariant(name, build)


def _apart(row: Example, example: Example) -> bool:
    return row.id != example.id and (row.group is None or row.group != example.group)


def asked(example: Example) -> str:
    """The words of a row's question: its prompt without the leading instructions."""
    return "\n".join(m.text for m in _system(example.prompt)[1])


def solved(row: Example) -> list[Message]:
    """A row's question and its answer as turns, without its leading instructions."""
    last = row.messages[-1] if row.messages else None
    answered = last is not None and last.role == "assistant" and row.reference is None
    reply = row.messages[-1] if answered else Message(role="assistant", content=row.answer)
    return [*_system(row.prompt)[1], reply]
