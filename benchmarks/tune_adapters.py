"""Adapters trained side by side on one base against one after the other: tokens a processor second, and memory.

`python -m benchmarks.tune_adapters BASE COUNT together|in-turn` is one side: it trains COUNT adapters of unlike rank and rate for some
steps and prints one JSON line. Only steps count, not what comes before the first and after the last.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Side, alternate, ratio, table

COUNTS = (1, 2, 4, 8)
STEPS, BATCH, LENGTHS = 4, 8, (24, 73)


def base_of(name: str, folder: Path) -> Path:
    """The small trained Llama of a package, or SmolLM2-135M as the catalogue has it."""
    from benchmarks.tune_tasks import glass
    from tunesmith.models.catalog import Catalog

    if name != "glassllm":
        return Catalog().model(name)
    glass(folder)
    return folder


def side(name: str, count: int, how: str) -> dict[str, Any]:
    """Train them and measure."""
    import numpy as np

    from tunesmith.core.chat import Rendered
    from tunesmith.flow.tuning.width import Meter
    from tunesmith.train.facts import base_shape
    from tunesmith.train.loop import train
    from tunesmith.train.plan import Adapter, Plan
    from tunesmith.train.side_by_side import side_by_side

    with tempfile.TemporaryDirectory() as temporary:
        folder, rng = Path(temporary), np.random.default_rng(0)
        base = base_of(name, folder / "base")
        size, rows = int(base_shape(base)["vocab_size"]), []
        for i in range(STEPS * BATCH):
            ids = rng.integers(4, size, rng.integers(*LENGTHS)).astype(np.int32)
            rows.append(Rendered(str(i), ids, (np.arange(len(ids)) >= len(ids) - 8).astype(np.uint8)))
        meters, works = [Meter() for _ in range(count)], list[Callable[[], Any]]()
        for i in range(count):
            adapter = Adapter(r=(8, 16, 4, 32)[i % 4])
            plan = Plan(adapter=adapter, learning_rate=(1e-3, 3e-4)[i % 2], seed=i, epochs=1, batch_size=BATCH, threads=1, lanes=1)
            works.append(partial(train, plan, rows, base=base, out=folder / str(i), on_event=meters[0 if how == "together" else i]))
        if how == "together":
            failed = [result for result in side_by_side(works) if isinstance(result, Exception)]
            if failed:
                raise failed[0]
        else:
            for work in works:
                work()
    used = sum(meter.ended - meter.began for meter in meters if meter.tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"work": sum(meter.tokens for meter in meters), "cpu_s": used, "peak_mb": peak}


def measured(bases: tuple[str, ...] = ("smollm2-135m", "glassllm"), rounds: int = 3) -> tuple[str, list[str]]:
    """The table, and its headline: the worst base's tokens a processor second of eight at once against one after the other."""
    lines, ratios = [], []
    for name in bases:
        sides = [(count, how) for count in COUNTS for how in ("together", "in-turn") if count > 1 or how == "in-turn"]
        command = [sys.executable, "-m", "benchmarks.tune_adapters", name]
        results = alternate([Side(f"{name} {count} {how}", [*command, str(count), how]) for count, how in sides], rounds)
        alone = results[f"{name} 1 in-turn"].median("peak_mb")
        for count in COUNTS:
            turn = results[f"{name} {count} in-turn"]
            both = turn if count == 1 else results[f"{name} {count} together"]
            gain = both.per_cpu_s / turn.per_cpu_s
            lines.append((name, count, both.per_cpu_s, turn.per_cpu_s, gain, both.median("peak_mb"), count * alone))
            ratios += [gain] if count == COUNTS[-1] else []
    heads = [
        "base",
        "adapters",
        "tokens a CPU-s at once",
        "one after the other",
        "ratio",
        "peak MB at once",
        "MB in processes of their own",
    ]
    return table(heads, lines), [ratio("adapters_at_once_vs_single", min(ratios))]


if __name__ == "__main__":
    print(json.dumps(side(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
