"""What one training item is: the rows of tokens that a loss needs together. Knows nothing about methods, losses or models."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tunesmith.core.chat import Rendered
from tunesmith.core.errors import DataError, Fault, StoreError, TrainingError
from tunesmith.core.seal import checked


class Item(NamedTuple):
    """The rows that a loss needs together (one, or preferred and other), a label (KTO: 1 wanted, 0 not) and KTO's second row."""

    rows: tuple[Rendered, ...]
    label: float = 1.0
    mismatched: Rendered | None = None

    @property
    def every(self) -> tuple[Rendered, ...]:
        """All rows of the item, the mismatched one last."""
        return self.rows if self.mismatched is None else (*self.rows, self.mismatched)


# What a caller of training may hand in: a row, a pair (preferred, other), or an item with its label.
Row = Rendered | tuple[Rendered, Rendered] | Item


def item_of(row: Row) -> Item:
    """The row as an item."""
    if isinstance(row, Item):
        return row
    return Item((row,)) if isinstance(row, Rendered) else Item(tuple(row))


def all_trained(item: Item) -> Item:
    """The item with every token trained."""
    return item._replace(rows=tuple(replace(row, mask=np.ones(len(row.ids), np.uint8)) for row in item.rows))


def refuse_untrained(items: Sequence[Item]) -> None:
    """Raises DataError naming every row of which no token is trained."""
    faults = [
        Fault(row.example_id, "nothing_trained", "no token of this row is trained")
        for item in items
        for row in item.rows
        if not row.mask[1:].any()
    ]
    if faults:
        raise DataError(f"{len(faults)} rows train nothing", faults=faults, remedy="give each an assistant turn with weight 1")


def mismatch(items: Sequence[Item], max_length: int) -> list[Item]:
    """KTO's items with the row that joins each prompt with the answer of an item before it (the first ones take the last's), cut to
    `max_length`. That item is the nearest with another prompt, where there is one: an answer to the same prompt would fit."""
    rows = [item.rows[0] for item in items]
    starts = [int(np.flatnonzero(row.mask)[0]) for row in rows]
    prompts = [row.ids[:start].tobytes() for row, start in zip(rows, starts, strict=True)]
    joined, nearest = [], {i: i - 1 for i in range(len(items))}
    for i in 2 * list(range(len(items))):  # the second time round the first ones know what stands before them
        nearest[i] = i - 1 if prompts[i - 1] != prompts[i] else nearest.get(i - 1, nearest[len(items) - 1])
    for i, item in enumerate(items):
        j = nearest[i]
        own, other = rows[i], rows[j]
        row = replace(
            own,
            ids=np.concatenate([own.ids[: starts[i]], other.ids[starts[j] :]]),
            mask=np.concatenate([own.mask[: starts[i]], other.mask[starts[j] :]]),
        )
        joined.append(item._replace(mismatched=row.limited(max_length)))
    return joined


class Fitted(NamedTuple):
    """Items of which no row is longer than a limit. `cut` and `dropped` are the places, in what came, of those truncated and left out."""

    items: list[Item]
    dropped: list[int]
    cut: list[int]


def fitted(items: Sequence[Item], max_length: int, over_length: str) -> Fitted:
    """The items within `max_length`. One that has a longer row is dropped as a whole, truncated (each of its rows, as long as something
    trained is left of each), or split: several items, each starting anew, and nothing of the row is lost."""
    ready, dropped, cut = [], [], []
    for place, item in enumerate(items):
        if all(len(row.ids) <= max_length for row in item.rows):
            ready.append(item)
        elif over_length == "split":
            ready += split(item, max_length)
        elif over_length == "truncate" and all(row.mask[1:max_length].any() for row in item.rows):
            ready.append(item._replace(rows=tuple(row.limited(max_length) for row in item.rows)))
            cut.append(place)
        else:
            dropped.append(place)
    return Fitted(ready, dropped, cut)


def usable(items: Sequence[Item], max_length: int, over_length: str) -> tuple[list[Item], list[str], list[str]]:
    """The items to train on, and the ids of those dropped and truncated (see `fitted`). Raises TrainingError when nothing is left."""
    if not items:
        raise TrainingError("there are no rows to train on")
    within = fitted(items, max_length, over_length)
    if not within.items:
        longest = max(len(row.ids) for item in items for row in item.rows)
        what = f"all {len(items)} rows are longer than max_length {max_length}"
        raise TrainingError(what, where="train.max_length", remedy=f"max_length: {longest}")
    dropped, cut = ([items[i].rows[0].example_id for i in places] for places in (within.dropped, within.cut))
    return within.items, dropped, cut


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


def _tokens(item: Item) -> tuple[bytes, ...]:
    return tuple(row.ids.tobytes() for row in item.rows)


def apart(items: Sequence[Item], validation: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """The validation items that are none of the training items, and those that are: token for token, all rows of an item together."""
    seen = {_tokens(item) for item in items}
    return [item for item in validation if _tokens(item) not in seen], [item for item in validation if _tokens(item) in seen]


def refuse_overlap(items: Sequence[Item], validation: Sequence[Item]) -> None:
    """Raises TrainingError naming validation rows that are training rows too."""
    shared = [item.rows[0].example_id for item in apart(items, validation)[1]]
    if shared:
        raise TrainingError(f"{len(shared)} validation rows are training rows too: {', '.join(shared[:5])}", remedy="split the data again")


def save_items(path: Path, items: Sequence[Item]) -> None:
    """Items as one npz file of flat arrays (no pickle): of all rows end to end `ids` and `mask`, of each row its length, cut and name, of
    each item how many rows it has, and its label."""
    rows = [row for item in items for row in item.rows]
    np.savez(
        path,
        ids=np.concatenate([row.ids for row in rows]) if rows else np.zeros(0, np.int32),
        mask=np.concatenate([row.mask for row in rows]) if rows else np.zeros(0, np.uint8),
        lengths=np.array([len(row.ids) for row in rows], dtype=np.int64),
        cut=np.array([row.cut for row in rows], dtype=np.int64),
        names=np.array([row.example_id for row in rows], dtype=np.str_),
        sizes=np.array([len(item.rows) for item in items], dtype=np.int64),
        labels=np.array([item.label for item in items], dtype=np.float64),
    )


def load_items(path: Path) -> list[Item]:
    """The items that `save_items` wrote. Raises StoreError when the file is not what was written."""
    try:
        with np.load(checked(path), allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        return _items_of(arrays)
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        remedy = "remove its folder and run again: it is made anew"
        raise StoreError(f"the rendered rows cannot be read: {error}", where=str(path), remedy=remedy) from error


def _items_of(arrays: Mapping[str, Any]) -> list[Item]:
    ends = np.cumsum(arrays["lengths"])
    rows = [
        Rendered(str(name), arrays["ids"][end - length : end], arrays["mask"][end - length : end], int(cut))
        for name, end, length, cut in zip(arrays["names"], ends, arrays["lengths"], arrays["cut"], strict=True)
    ]
    last = np.cumsum(arrays["sizes"])
    return [
        Item(tuple(rows[end - size : end]), float(label)) for end, size, label in zip(last, arrays["sizes"], arrays["labels"], strict=True)
    ]
