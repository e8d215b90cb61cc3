"""What the data stage found in the rows of a run: near-duplicates as pairs, contradictions, suspicious answers and labels, personal data,
token lengths, and what a test of this size can show. Reads finished stages; changes nothing.

    found = findings(circle)          # a plain dict, JSON-able
    html = section(found)             # one <section>, in the report's own styles
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tunesmith.core.rows import Row, read_parquet
from tunesmith.data.check import check, held_out_power
from tunesmith.data.labels import label_errors
from tunesmith.data.set_rules import NearDuplicates, contradictions, near_clusters
from tunesmith.data.text import answer_of, normalised, question_of
from tunesmith.flow.datasets.people import disagreeing, not_copied, omitted, personal
from tunesmith.flow.rows import Rows
from tunesmith.flow.sources import PARTS, entered
from tunesmith.pages import plots
from tunesmith.pages.render import render

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext

PAIRS, SUSPECTS, LABELS = 6, 8, 100
# Near-duplicates link quadratically many pairs at worst; what is shown needs no more rows than this.
MOST = 20_000


def findings(context: ProjectContext) -> dict[str, Any]:
    """The findings of a run whose stages `split` and `tokens` are finished. Under a second a thousand rows."""
    folder = context.runner.folder("split")
    splits: dict[str, list[Row]] = {part: list(read_parquet(folder / f"{part}.parquet")) for part in PARTS}
    tokens = context.runner.run("tokens").output
    near = context.project.clean.near_duplicates.threshold
    numbers = of_rows(splits, near, lengths=tokens.get("lengths"), max_length=_limit(context))
    return {**numbers, "meaning": context.runner.run("split").output.get("meaning", {})}


def _limit(context: ProjectContext) -> int | None:
    wanted = context.project.train.max_length
    return None if wanted == "auto" else int(wanted)


def of_rows(
    splits: dict[str, list[Row]], threshold: float = 0.8, *, lengths: Sequence[int] | None = None, max_length: int | None = None
) -> dict[str, Any]:
    """The same for any rows: `lengths` are the tokens of each training row."""
    whole = [row for rows in splits.values() for row in rows]
    rows = whole[:MOST]
    side = {row.origin: part for part, each in splits.items() for row in each}
    held = len(splits.get("test", ()))
    checked = check(rows, held_out=held / max(len(whole), 1))
    numbers: dict[str, Any] = {
        "rows": len(whole),
        "looked_at": len(rows),
        "near_duplicates": _near(rows, side, threshold),
        "contradictions": [[_shown(rows[i], side) for i in places[:4]] for places in contradictions(rows)[:PAIRS]],
        "suspects": _suspects(rows, side),
        "personal_data": _personal(rows),
        "advice": [msgspec.to_builtins(advice) for advice in checked.advice],
        "topics": [msgspec.to_builtins(topic) for topic in checked.topics],
        "test": {**held_out_power(max(held, 1)), "train_rows": len(splits.get("train", whole))},
        "tokens": _tokens(lengths, max_length) if lengths else None,
    }
    return numbers


def _personal(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts and places; of each value only the ends, since reports travel further than data."""
    numbers = personal(Rows("rows", {"all": list(rows)}, entered({})), samples=3)
    for places in numbers["samples"].values():
        for place in places:
            place["found"] = place["found"][:2] + "•" * max(1, len(place["found"]) - 4) + place["found"][-2:]
    return numbers


def _near(rows: Sequence[Row], side: dict[str, str], threshold: float) -> dict[str, Any]:
    """How many pairs and clusters there are, the pairs that differ most while still alike, and the largest cluster."""
    pairs, clusters = near_clusters(rows, NearDuplicates(threshold=threshold))
    numbers, sizes = np.unique(clusters, return_counts=True)
    several = sizes[sizes > 1]
    different = [
        (value, i, j)
        for i, j, value in zip(pairs.left.tolist(), pairs.right.tolist(), pairs.jaccard.tolist(), strict=True)
        if normalised(question_of(rows[i])) != normalised(question_of(rows[j]))
    ]
    biggest = int(numbers[sizes.argmax()]) if len(several) else None
    members = np.flatnonzero(clusters == biggest).tolist() if biggest is not None else []
    return {
        "threshold": threshold,
        "pairs": len(pairs.left),
        "clusters": len(several),
        "rows": int(several.sum()),
        "largest": int(sizes.max(initial=0)),
        "largest_rows": [_shown(rows[i], side) for i in members[:4]],
        "shown": [
            {
                "jaccard": value,
                "a": _shown(rows[i], side),
                "b": _shown(rows[j], side),
                "marked": _marked(question_of(rows[i]), question_of(rows[j])),
            }
            for value, i, j in sorted(different)[:PAIRS]
        ],
    }


def _marked(a: str, b: str) -> list[list[str]]:
    """Two texts as one, word by word: [kind, words] with kind same, only_a or only_b."""
    left, right, pieces = a.split(), b.split(), []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(["same", " ".join(left[i:j])])
            continue
        pieces += [["only_a", " ".join(left[i:j])]] if j > i else []
        pieces += [["only_b", " ".join(right[k:m])]] if m > k else []
    return pieces


def _suspects(rows: Sequence[Row], side: dict[str, str]) -> dict[str, Any]:
    questions, answers = [question_of(row) for row in rows], [answer_of(row) for row in rows]
    listed = [("neighbours", suspect) for suspect in disagreeing(questions, answers, names=[row.origin.rpartition("/")[2] for row in rows])]
    listed += [("not copied", suspect) for suspect in not_copied(questions, answers)]
    listed += [("omitted", suspect) for suspect in omitted(questions, answers)]
    labels = [getattr(row, "label", None) for row in rows]
    known = [i for i, label in enumerate(labels) if label is not None]
    if len(known) >= 20 and 2 <= len({labels[i] for i in known}) <= LABELS:
        wrong = label_errors([questions[i] for i in known], [str(labels[i]) for i in known])
        listed += [("label", suspect._replace(row=known[suspect.row])) for suspect in wrong]
    counts: dict[str, int] = {}
    shown: list[dict[str, Any]] = []
    for method, suspect in listed:
        counts[method] = counts.get(method, 0) + 1
        if counts[method] <= SUSPECTS:
            shown.append({**_shown(rows[suspect.row], side), "method": method, "score": suspect.score, "reason": suspect.reason})
    return {"counts": counts, "shown": shown}


def _shown(row: Row, side: dict[str, str]) -> dict[str, str]:
    return {
        "origin": row.origin.rpartition("/")[2],
        "id": row.id,
        "part": side.get(row.origin, ""),
        "question": question_of(row)[:600],
        "answer": answer_of(row)[:400],
    }


def _tokens(lengths: Sequence[int], max_length: int | None) -> dict[str, Any]:
    cuts = np.percentile(lengths, [5, 50, 95, 100])
    long = sum(n > max_length for n in lengths) if max_length is not None else 0
    names = ("p5", "median", "p95", "longest")
    return {**dict(zip(names, cuts.tolist(), strict=True)), "total": int(sum(lengths)), "max_length": max_length, "too_long": long}


def section(numbers: dict[str, Any]) -> str:
    """The findings as one <section> of HTML, for a report that brings the styles of `report.html.j2`."""
    sizes = [float(n) for n in (25, 50, 100, 200, 400, 800, 1600, 3200)]
    powers = [held_out_power(int(n)) for n in sizes]
    curves = [
        ("± of a share near 50 %", sizes, [power["half_width_at_50"] for power in powers]),
        ("smallest difference seen", sizes, [power["smallest_difference"] for power in powers]),
        ("yours", [numbers["test"]["rows"]] * 2, [0.0, max(power["smallest_difference"] for power in powers)]),
    ]
    topics = [(" ".join(topic["words"][:3])[:24] or "(no common words)", 100 * topic["share"]) for topic in numbers["topics"][:12]]
    drawn = {
        "test": plots.lines("test size", curves, "rows held out", "points"),
        "topics": plots.bars("topics", topics, "% of the rows") if topics else "",
    }
    return render("data_findings", f=numbers, plots=drawn)
