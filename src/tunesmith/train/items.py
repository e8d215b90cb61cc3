"""What one training item is for each method: a row, a pair of rows, a labelled row. Knows nothing about losses or models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tunesmith.core.chat import Rendered
from tunesmith.core.errors import DataError, Fault, TrainingError
from tunesmith.train.plan import Method


class Labelled(NamedTuple):
    """A row for KTO: an answer that is wanted, or one that is not."""

    row: Rendered
    desirable: bool


class Item(NamedTuple):
    """The rows that a loss needs together (SFT and KTO: one; DPO and ORPO: preferred, other), KTO's label and its second row."""

    rows: tuple[Rendered, ...]
    label: float = 1.0
    mismatched: Rendered | None = None

    @property
    def every(self) -> tuple[Rendered, ...]:
        """All rows of the item, the mismatched one last."""
        return self.rows if self.mismatched is None else (*self.rows, self.mismatched)


Row = Rendered | tuple[Rendered, Rendered] | Labelled
_KINDS: dict[Method, type] = {
    "sft": Rendered,
    "text": Rendered,
    "distil": Rendered,
    "grpo": Rendered,
    "dpo": tuple,
    "orpo": tuple,
    "kto": Labelled,
}


def as_items(method: Method, rows: Sequence[Row]) -> list[Item]:
    """The rows as items of the method (grpo: prompts, of which no token is trained).

    Raises DataError naming every row that is of another method's kind or has nothing to train.
    """
    wanted = _KINDS[method]
    wrong = [i for i, row in enumerate(rows) if not isinstance(row, wanted) or (wanted is tuple and isinstance(row, Labelled))]
    if wrong:
        kind = {Rendered: "a rendered row", Labelled: "a labelled row"}.get(wanted, "a pair: preferred, other")
        faults = [Fault(f"row {i}", "wrong_kind", f"{type(rows[i]).__name__} is not {kind}") for i in wrong]
        raise DataError(
            f"{len(wrong)} of {len(rows)} rows do not fit the method {method}", faults=faults, allowed=kind, where="train.method"
        )
    items = [_item(row) for row in rows]
    if method == "text":
        items = [Item((replace(item.rows[0], mask=np.ones(len(item.rows[0].ids), np.uint8)),)) for item in items]
    faults = [
        Fault(row.example_id, "nothing_trained", "no token of this row is trained")
        for item in items
        for row in item.rows
        if method != "grpo" and not row.mask[1:].any()
    ]
    if faults:
        raise DataError(f"{len(faults)} rows train nothing", faults=faults, remedy="give each an assistant turn with weight 1")
    return items


def _item(row: Row) -> Item:
    if isinstance(row, Rendered):
        return Item((row,))
    if isinstance(row, Labelled):
        return Item((row.row,), float(row.desirable))
    return Item(tuple(row))


def mismatch(items: Sequence[Item]) -> list[Item]:
    """KTO's items with the row that joins each prompt with the answer of the item before it (the first one takes the last's)."""
    rows = [item.rows[0] for item in items]
    starts = [int(np.flatnonzero(row.mask)[0]) for row in rows]
    found = []
    for i, item in enumerate(items):
        own, other = rows[i], rows[i - 1]
        joined = replace(
            own,
            ids=np.concatenate([own.ids[: starts[i]], other.ids[starts[i - 1] :]]),
            mask=np.concatenate([own.mask[: starts[i]], other.mask[starts[i - 1] :]]),
        )
        found.append(item._replace(mismatched=joined))
    return found


def usable(items: Sequence[Item], max_length: int, over_length: str) -> tuple[list[Item], list[str], list[str]]:
    """The items to train on, and the ids of those dropped and truncated because a row is longer than `max_length`.

    `over_length` split makes several items of such a row; each starts anew, and nothing of the row is lost. Raises TrainingError when
    nothing is left.
    """
    kept, dropped, truncated = [], [], []
    for item in items:
        if all(len(row.ids) <= max_length for row in item.rows):
            kept.append(item)
        elif over_length == "split":
            kept += split(item, max_length)
        elif over_length == "truncate" and all(row.mask[1:max_length].any() for row in item.rows):
            kept.append(item._replace(rows=tuple(row.limited(max_length) for row in item.rows)))
            truncated.append(item.rows[0].example_id)
        else:
            dropped.append(item.rows[0].example_id)
    if items and not kept:
        longest = max(len(row.ids) for item in items for row in item.rows)
        what = f"all {len(items)} rows are longer than max_length {max_length}"
        raise TrainingError(what, where="train.max_length", remedy=f"max_length: {longest}")
    if not items:
        raise TrainingError("there are no rows to train on")
    return kept, dropped, truncated


def split(item: Item, max_length: int) -> list[Item]:
    """The item's row in pieces of nearly equal length, at most `max_length` tokens.

    Each piece begins with the last token of the piece before it, so that every token but the row's first is predicted once.
    """
    (row,) = item.rows
    count = -(-(len(row.ids) - 1) // (max_length - 1))
    bounds = np.linspace(0, len(row.ids) - 1, count + 1).round().astype(int)
    return [
        item._replace(rows=(replace(row, example_id=f"{row.example_id}/{i}", ids=row.ids[a : b + 1], mask=row.mask[a : b + 1]),))
        for i, (a, b) in enumerate(pairwise(bounds))
    ]


def refuse_overlap(items: Sequence[Item], validation: Sequence[Item]) -> None:
    """Raises TrainingError naming validation rows that are training rows too."""
    seen = {item.rows[0].ids.tobytes() for item in items}
    shared = [item.rows[0].example_id for item in validation if item.rows[0].ids.tobytes() in seen]
    if shared:
        raise TrainingError(f"{len(shared)} validation rows are training rows too: {', '.join(shared[:5])}", remedy="split the data again")
