"""Counting tokens against `tokenizers`' own batch call on the same real texts with the same tokenizer, and of whole conversations by the
model's template. Every id count is compared. Each side starts cold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.data_corpus import rows

HEADLINES = ("token_count_vs_tokenizers",)
SIDES = str(Path(__file__).parent / "data_sides.py")
ROWS = 100_000


def main() -> None:
    """Both sides in turn, then the page's section."""
    from benchmarks.harness import Side, alternate, ratio, table, write_section
    from tunesmith.models.catalog import Catalog

    path, folder = str(rows(ROWS)), str(Catalog().model("smollm2-135m"))
    names = {"ours": "tokens ours", "ours, conversations by the template": "tokens rendered", "tokenizers": "tokens plain"}
    found = alternate([Side(label, (sys.executable, SIDES, side, path, folder)) for label, side in names.items()])
    ours, plain, whole = (found[label] for label in ("ours", "tokenizers", "ours, conversations by the template"))
    same = ours.rounds[0]["counts"] == plain.rounds[0]["counts"]
    lines = [
        ratio("token_count_vs_tokenizers", ours.per_cpu_s / plain.per_cpu_s),
        f"Rendering with the template keeps {whole.per_cpu_s / ours.per_cpu_s:.0%} of that (bytes of the rendered text). "
        f"Token counts of all {len(json.loads(ours.rounds[0]['counts'])):,} texts {'are equal' if same else 'DIFFER'}. "
        f"Engine: {ours.rounds[0]['engine']}{'; ' + ours.rounds[0]['why'] if ours.rounds[0]['why'] else ''}.",
    ]
    cells = [[label, one.per_cpu_s / 1e6, one.median("peak_mb")] for label, one in found.items()]
    write_section("data_tokens", "Counting tokens", table(["side", "MB per CPU-s", "peak MB"], cells) + "\n\n" + "\n\n".join(lines))
