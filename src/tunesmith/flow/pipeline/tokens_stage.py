"""The token stage: the rows of a split as a training method reads them, token ids and loss masks; what becomes of rows that are too long
is in the ledger. Knows nothing about weights, and no method by name."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core.chat import Rendered, Renderer
from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError
from tunesmith.core.rows import Row
from tunesmith.data.ledger import Ledger
from tunesmith.flow.sources import rows as rows_of
from tunesmith.train.facts import base_shape
from tunesmith.train.items import Item, fitted, save_items, split
from tunesmith.train.methods import METHODS, ready
from tunesmith.train.methods.base import Method
from tunesmith.train.plan import Plan


def tokenize(
    split_folder: Path, base: Path, plan: Plan, work: Path, say: Callable[[str], None], known: Collection[str] = ()
) -> dict[str, Any]:
    """Render train and validation rows as the plan's method does: the mask gate. Rows beyond `max_length` (auto: beyond what the base has
    positions for) are dropped, cut or split, in the ledger; so are those of the `known` rows (their ids) that `replay` leaves out.

    Raises ConfigError for rows of another kind than the method takes, DataError when nothing is left to train.
    """
    method, renderer = METHODS[plan.method], Renderer.load(base)
    positions = int(base_shape(base).get("max_position_embeddings", 1 << 20))
    ledger, limit = Ledger.read(split_folder / "ledger.jsonl"), _limit(plan, method, positions)
    facts: dict[str, Any] = {"template": renderer.digest}
    for part in ("train", "validation"):
        given: Sequence[Row] = rows_of(split_folder, part)
        if part == "train" and plan.replay is not None:
            given = _replayed(given, known, plan.replay, ledger)
        rows, converted = ready(plan.method, given, renderer)
        if part == "train" and converted:
            say(f"  {converted}")
            facts["converted"] = converted
        rendered = method.render(renderer, rows)
        items = rendered if limit is None else _within(rendered, rows, limit, method, plan, ledger)
        if part == "train" and not method.graded:
            _refuse_untrained(items, rendered, plan)
        save_items(work / f"{part}.npz", items)
        tokens = [row for item in items for row in item.rows]
        facts[part] = {
            "rows": len(items),
            "tokens": sum(len(row.ids) for row in tokens),
            "trained": sum(row.trained for row in tokens),
            "longest": max((len(row.ids) for row in tokens), default=0),
        }
        if part == "train":
            facts |= _about(tokens, renderer) | {"longest_answer": method.drawn_tokens(plan, positions) or _longest_answer(items, method)}
    ledger.write(work / "ledger.jsonl")
    return facts


def _replayed(rows: Sequence[Row], known: Collection[str], share: float, ledger: Ledger) -> list[Row]:
    """The rows without those that are known already and not drawn."""
    left = {row.id for row in rows if row.id in known and zlib.crc32(row.id.encode()) >= share * 2**32}
    for row in rows:
        if row.id in left:
            ledger.mark(row.origin, "dropped", "replay", f"trained on before, and not among the {share:.0%} that are trained on again")
    return [row for row in rows if row.id not in left]


def _limit(plan: Plan, method: Method, positions: int) -> int | None:
    """How many tokens a row may have; None where training decides, because it splits what is longer."""
    if plan.max_length == "auto" and "split" in method.over_length:
        return None
    return (positions if plan.max_length == "auto" else plan.max_length) - method.drawn_tokens(plan, positions)


def _within(rendered: Sequence[Item], rows: Sequence[Row], limit: int, method: Method, plan: Plan, ledger: Ledger) -> list[Item]:
    """The items within the limit. All that one row became shares its fate."""
    over_length = method.over_length[0] if plan.over_length == "auto" else plan.over_length
    within = fitted(rendered, limit, over_length)
    lost = {rows[place].origin: place for place in within.dropped}
    for origin, place in lost.items():
        tokens = max(len(row.ids) for row in rendered[place].rows)
        left = "" if over_length == "drop" else ": nothing trained would be left"
        ledger.mark(origin, "dropped", "max_length", f"{tokens} tokens, max_length {limit}{left}")
    for origin, place in {rows[place].origin: place for place in within.cut}.items():
        if origin not in lost:
            tokens = max(len(row.ids) for row in rendered[place].rows)
            ledger.mark(origin, "truncated", "max_length", f"{tokens} tokens, max_length {limit}: {tokens - limit} tokens cut")
    for item, row in zip(rendered, rows, strict=True):
        if over_length == "split" and len(item.rows[0].ids) > limit:
            ledger.mark(row.origin, "mended", "max_length", f"{len(item.rows[0].ids)} tokens: split into {len(split(item, limit))} pieces")
    if not lost:
        return within.items
    together = [item for item, row in zip(rendered, rows, strict=True) if row.origin not in lost]
    return fitted(together, limit, over_length).items


def _refuse_untrained(items: Sequence[Item], rendered: Sequence[Item], plan: Plan) -> None:
    if any(row.trained for item in items for row in item.rows):
        return
    shortest = min((max(len(row.ids) for row in item.rows) for item in rendered if item.rows[0].trained), default=None)
    mend = "rows need an assistant turn whose weight is not 0"
    if shortest is not None:
        mend = f"max_length is {plan.max_length}, and the shortest of {counted(len(rendered), 'row')} has {shortest} tokens"
    raise DataError("no token of any row would be trained", where="mask gate", remedy=mend)


def _about(rows: Sequence[Rendered], renderer: Renderer) -> dict[str, Any]:
    """What the report and the estimate say of the training rows: their lengths, what they share, and one of usual length token by token."""
    lengths = [len(row.ids) for row in rows]
    middle = int(np.median(lengths)) if lengths else 0
    shown = min(rows, key=lambda row: abs(len(row.ids) - middle), default=None)
    return {
        "lengths": lengths,
        "shared_prefix": _shared_prefix(rows),
        "shown": [[], []] if shown is None else [renderer.pieces(shown.ids.tolist()), shown.mask.tolist()],
    }


def _longest_answer(items: Sequence[Item], method: Method) -> int:
    """Tokens of the longest answer that the rows teach to give; running text has none."""
    if method.every_token:
        return 0
    return max((item.rows[0].trained for item in items if item.label > 0), default=0)


def _shared_prefix(rows: Sequence[Rendered]) -> int:
    """How many leading tokens all rows share (a common system prompt); training computes them once a batch."""
    if not rows:
        return 0
    first, shared = rows[0].ids, len(rows[0].ids)
    for row in rows[1:]:
        length = min(shared, len(row.ids))
        differ = np.flatnonzero(first[:length] != row.ids[:length])
        shared = int(differ[0]) if differ.size else length
    return shared
