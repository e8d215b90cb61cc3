"""Rows in tokens: what a base sees of a row, what of it is trained, how long rows are, what they cost at OpenAI. Trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from tunesmith.core.chat import Rendered, Renderer, replace_weight
from tunesmith.core.row_kinds import answer_turns
from tunesmith.core.rows import Row
from tunesmith.core.tokens import OpenAITokens, Tokens, openai_encoding, rendered, row_texts
from tunesmith.core.types import Document, Example, Message, Preference, Record

State = Literal["trained", "context", "cut"]


class Price(Record, frozen=True):
    """US dollars a million tokens."""

    training: float
    input: float
    output: float


class Prices(Record, frozen=True):
    """The price list, with the month it is of."""

    as_of: str
    source: str
    models: dict[str, Price]


@cache
def prices() -> Prices:
    """The price list that is shipped (`tunesmith/data/prices.yaml`)."""
    return msgspec.yaml.decode(resources.files("tunesmith.data").joinpath("prices.yaml").read_bytes(), type=Prices)


def price_of(model: str) -> Price | None:
    """The price of an OpenAI model: of its own name, else of the longest listed name that it begins with (dated and `ft:` names)."""
    name = model.removeprefix("openai:").removeprefix("ft:")
    fits = [known for known in prices().models if name == known or name.startswith((f"{known}-20", f"{known}:"))]
    return prices().models[max(fits, key=len)] if fits else None


def mask(row: Row, renderer: Renderer, max_length: int | None = None) -> list[dict[str, Any]]:
    """The row as the base sees it, token by token; a preference pair gives two, a conversation one or, where the template writes a turn
    otherwise once others follow, several; a document is raw text. Each: what it is, its tokens (id, text, state), counts.

    State: `trained` (carries loss), `context` (read only), `cut` (beyond `max_length`, lost).
    """
    if isinstance(row, Preference):
        preferred, other = renderer.pair(row)
        sides = [("preferred", preferred), ("non_preferred", other)]
    elif isinstance(row, Document):
        sides = [("row", renderer.documents([row])[0])]
    else:
        parts, _ = renderer.apart([as_example(row)])
        names = ["row"] if len(parts) == 1 else [f"row, up to turn {len(part.messages)}" for part in parts]
        sides = list(zip(names, renderer.examples(parts), strict=True))
    return [{"side": name, **_masked(sequence, renderer, max_length)} for name, sequence in sides]


def _masked(sequence: Rendered, renderer: Renderer, max_length: int | None) -> dict[str, Any]:
    length = len(sequence.ids) if max_length is None else min(max_length, len(sequence.ids))
    states: list[State] = ["cut" if i >= length else "trained" if on else "context" for i, on in enumerate(sequence.mask.tolist())]
    ids = sequence.ids.tolist()
    tokens = [{"id": number, "text": text, "state": state} for number, text, state in zip(ids, renderer.pieces(ids), states, strict=True)]
    counts = {state: states.count(state) for state in ("trained", "context", "cut")}
    return {"tokens": tokens, "counts": counts, "trained_before_the_cut": counts["trained"] > 0}


def lengths(rows: Sequence[Row], base: str, folder_of: Callable[[str], Path]) -> tuple[list[int], dict[str, Any]]:
    """Tokens of each row as a conversation (of pairs with the preferred answer), and about the counting: engine, why, base.

    `base`: an OpenAI model (counted offline), or any word for a model that is here, whose folder `folder_of` gives.
    Raises NotFound or SourceUnavailable for a base that cannot be had.
    """
    examples = [as_example(row) for row in rows]
    if openai_encoding(base.removeprefix("openai:")) is not None:
        counter = OpenAITokens(base.removeprefix("openai:"))
        return counter.rows(examples).tolist(), {"base": base, "engine": counter.engine, "why": ""}
    folder = folder_of(base)
    tokens = Tokens.load(folder, list(row_texts(examples[:: max(1, len(examples) // 500)])))
    counts = tokens.counts(rendered(Renderer.load(folder).template, examples))
    return counts.tolist(), {"base": base, "engine": tokens.engine, "why": tokens.why}


def as_example(row: Row) -> Example:
    """The row as the conversation that is trained: prompt and (preferred) answer, of which only the answer carries loss; a document is one
    turn, which counts its tokens but for a few."""
    if isinstance(row, Example):
        return row
    if isinstance(row, Document):
        return Example(id=row.id, messages=(Message(role="assistant", content=row.text),), origin=row.origin)
    prompt = tuple(replace_weight(turn, 0) for turn in row.messages)
    return Example(id=row.id, messages=(*prompt, answer_turns(row)[0]), tools=row.tools, origin=row.origin)


def training_cost(counts: Sequence[int], model: str, epochs: int = 3, limit: int = 65_536) -> dict[str, Any] | None:
    """What training on rows of these lengths costs at OpenAI: epochs × tokens (each row up to `limit`) × price; None without a price."""
    price = price_of(model)
    if price is None:
        return None
    billed = int(np.minimum(np.asarray(counts, dtype=np.int64), limit).sum()) * epochs
    return {"model": model, "epochs": epochs, "tokens": billed, "usd": billed * price.training / 1e6, "as_of": prices().as_of}
