"""Data preparation against its peers on the same real texts: near-duplicates, personal data, and the whole pipeline of rows.

`DATA_ROWS` sets the rows of our largest runs (default 1,000,000; the whole takes about 13 minutes then). Slow peers run on fewer rows and
are compared by rows per CPU-second: their cost a row does not fall with more rows.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.data_corpus import personal, rows
from benchmarks.data_sides import read, word_pairs

HEADLINES = ("data_pipeline", "near_duplicates_vs_datasketch", "near_duplicates_vs_datatrove", "personal_data_vs_presidio")
USUAL = ("datasketch==2.0.0", "datasets==5.2.0", "presidio-analyzer==2.2.366", "faker==40.1.2", "numpy==2.4.6")
DATATROVE = ("datatrove[processing]==0.10.1", "xxhash<4", "orjson", "spacy", "numpy==2.4.6")
SIDES = str(Path(__file__).parent / "data_sides.py")
FEW, SOME = 10_000, 100_000


def main() -> None:
    """Every comparison, then the page's section."""
    from benchmarks.harness import peer_python, write_section

    usual, datatrove = peer_python("data-usual", USUAL), peer_python("datatrove", DATATROVE)
    most = int(os.environ.get("DATA_ROWS", "1000000"))
    parts = [near(usual, datatrove, most), personal_data(usual), pipeline(usual, most)]
    write_section("data", "Data", "\n\n".join(parts))


def near(usual: str, datatrove: str, most: int) -> str:
    """Near-duplicates at Jaccard 0.8: rows per CPU-second, and recall and precision against the exact pairs of each side's own sets."""
    from benchmarks.harness import Side, alternate, ratio, table

    few, some, many = str(rows(FEW)), str(rows(SOME)), str(rows(most))
    found = alternate(
        [
            Side("ours, 10 k", (sys.executable, SIDES, "near ours", few)),
            Side("datatrove, 10 k", (datatrove, SIDES, "near datatrove", few)),
            Side("datasketch, 10 k", (usual, SIDES, "near datasketch", few)),
            Side("ours, 100 k", (sys.executable, SIDES, "near ours", some)),
        ]
    )
    found |= alternate(
        [
            Side("datasketch, 100 k", (usual, SIDES, "near datasketch", some)),
            Side(f"ours, {most:,}", (sys.executable, SIDES, "near ours", many)),
        ],
        rounds=1,
    )
    lines = [
        ratio("near_duplicates_vs_datasketch", found["ours, 100 k"].per_cpu_s / found["datasketch, 100 k"].per_cpu_s),
        ratio("near_duplicates_vs_datatrove", found["ours, 10 k"].per_cpu_s / found["datatrove, 10 k"].per_cpu_s),
    ]
    quality = {
        "ours, 10 k": right(our_sets(few), found["ours, 10 k"].rounds[0]["pairs"]),
        "datasketch, 10 k": right([frozenset(word_pairs(text)) for text in read(few)], found["datasketch, 10 k"].rounds[0]["pairs"]),
    }
    cells = [
        [label, f"{one.per_cpu_s:,.0f}", f"{one.median('peak_mb'):,.0f}", *(f"{value:.4f}" for value in quality.get(label, ()))]
        for label, one in found.items()
    ]
    filled = [row + [""] * (5 - len(row)) for row in cells]
    return (
        "### Near-duplicates\n\n"
        + table(["side", "rows per CPU-s", "peak MB", "recall", "precision"], filled)
        + "\n\n"
        + "\n\n".join(lines)
    )


def our_sets(path: str) -> list[frozenset[int]]:
    """Our shingle sets, to be compared pair by pair."""
    from tunesmith.data.shingle import shingles

    sets = shingles(read(path), compiled=False)
    return [frozenset(sets.hashes[a:b].tolist()) for a, b in zip(sets.starts[:-1].tolist(), sets.starts[1:].tolist(), strict=True)]


def right(sets: list[frozenset[Any]], pairs: list[tuple[int, int]]) -> tuple[float, float]:
    """Recall and precision of pairs against counting every shared shingle; of equal sets only the first takes part."""
    first: dict[frozenset[Any], int] = {}
    chosen = {first.setdefault(one, i) for i, one in enumerate(sets) if one}
    where: dict[Any, list[int]] = {}
    truth: set[tuple[int, int]] = set()
    for i in sorted(chosen):
        shared = Counter(j for shingle in sets[i] for j in where.get(shingle, ()))
        truth |= {(j, i) for j, n in shared.items() if n >= 0.8 * (len(sets[i]) + len(sets[j]) - n) - 1e-9}
        for shingle in sets[i]:
            where.setdefault(shingle, []).append(i)
    said = {(min(a, b), max(a, b)) for a, b in pairs if a in chosen and b in chosen}
    return len(truth & said) / max(len(truth), 1), len(truth & said) / max(len(said), 1)


def personal_data(usual: str) -> str:
    """Personal data by patterns: rows per CPU-second, recall by kind, and the share of found spans that lie on a planted one."""
    from benchmarks.harness import Side, alternate, ratio, table

    path = personal(usual)
    found = alternate(
        [
            Side("ours", (sys.executable, SIDES, "personal ours", str(path))),
            Side("presidio", (usual, SIDES, "personal presidio", str(path))),
        ]
    )
    line = ratio("personal_data_vs_presidio", found["ours"].per_cpu_s / found["presidio"].per_cpu_s)
    truth = [json.loads(text)["spans"] for text in path.read_text("utf-8").splitlines()]
    kinds = sorted({kind for one in truth for kind, _, _ in one})
    cells = []
    for label, one in found.items():
        spans = one.rounds[0]["spans"]
        cells.append([label, f"{one.per_cpu_s:,.0f}", *(f"{value:.3f}" for value in planted(truth, spans, kinds))])
    return "### Personal data\n\n" + table(["side", "rows per CPU-s", "recall", "precision", *kinds], cells) + "\n\n" + line


def planted(truth: list[Any], spans: list[Any], kinds: list[str]) -> list[float]:
    """Recall over all (found: a span of any kind covers it whole), precision (a span that touches a planted one), recall by kind."""
    hits: Counter[str] = Counter()
    total: Counter[str] = Counter()
    good = said = 0
    for wanted, given in zip(truth, spans, strict=True):
        for kind, start, end in wanted:
            total[kind] += 1
            hits[kind] += any(a <= start and end <= b for _, a, b in given)
        said += len(given)
        good += sum(any(a < end and start < b for _, start, end in wanted) for _, a, b in given)
    return [hits.total() / total.total(), good / max(said, 1), *(hits[kind] / total[kind] for kind in kinds)]


def pipeline(usual: str, most: int) -> str:
    """Import, validation, exact and near-duplicates, personal data and split: rows per CPU-second and peak memory; and what the import
    alone holds."""
    from benchmarks.harness import Side, alternate, ratio, table

    few, sizes = str(rows(FEW)), sorted({FEW, SOME, most})

    def ours(side: str, sizes: list[int]) -> list[Side]:
        return [Side(f"{side}, {n:,}", (sys.executable, SIDES, f"{side} ours", str(rows(n)))) for n in sizes]

    found = alternate([Side("the usual parts, 10 k", (usual, SIDES, "pipeline usual", few)), *ours("pipeline", sizes)])
    found |= alternate(ours("import", sizes), rounds=1)
    last = found[f"pipeline, {most:,}"]
    line = ratio("data_pipeline", last.per_cpu_s / found["the usual parts, 10 k"].per_cpu_s)
    cells = [
        [label, f"{one.per_cpu_s:,.0f}", f"{one.median('wall_s'):.1f}", f"{one.median('peak_mb'):,.0f}"] for label, one in found.items()
    ]
    before = found[f"pipeline, {sizes[-2]:,}"]
    tenfold = last.median("cpu_s") * (last.median("cpu_s") / before.median("cpu_s")) / 60
    note = (
        "Ours: pipeline (import, cleaning, splitting, each from file to file, as the stages of `run` work) and import alone. "
        f"{10 * most:,} rows would take about {tenfold:.0f} CPU-minutes, by the step from {sizes[-2]:,} to {most:,}; the memory of the "
        "import stays as it is."
    )
    return "### The whole pipeline\n\n" + table(["side", "rows per CPU-s", "seconds", "peak MB"], cells) + f"\n\n{note}\n\n{line}"
