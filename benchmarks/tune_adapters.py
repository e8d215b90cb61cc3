"""Adapters trained side by side on one base against one after the other: tokens a processor second, and memory.

`python -m benchmarks.tune_adapters BASE ROUNDS` is one base: both ways by turns, the result as one JSON line. Only steps count, not what
comes before the first and after the last.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.harness import ROOT, ratio, table

BASES = ("smollm2-135m", "glassllm")
COUNTS, ROUNDS = (1, 2, 4, 8), 1
STEPS, BATCH, LENGTHS = 3, 8, (24, 73)


def base_of(name: str, folder: Path) -> Path:
    """The small trained Llama of a package, or SmolLM2-135M as the catalogue has it."""
    from benchmarks.tune_tasks import glass
    from tunesmith.models.catalog import Catalog

    if name != "glassllm":
        return Catalog().model(name)
    glass(folder)
    return folder


class Round(NamedTuple):
    """What some adapters gave: tokens a processor second of their steps, and the most memory of the process meanwhile, in MB."""

    count: int
    together: bool
    rate: float
    peak_mb: float


def rounds(name: str, repeat: int) -> list[Round]:
    """Every number of adapters, together and in turn by turns, `repeat` times."""
    import numpy as np

    from tunesmith.core.chat import Rendered
    from tunesmith.train.facts import base_shape

    done: list[Round] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder, rng = Path(temporary), np.random.default_rng(0)
        base = base_of(name, folder / "base")
        size, rows = int(base_shape(base)["vocab_size"]), []
        for i in range(STEPS * BATCH):
            ids = rng.integers(4, size, rng.integers(*LENGTHS)).astype(np.int32)
            rows.append(Rendered(str(i), ids, (np.arange(len(ids)) >= len(ids) - 8).astype(np.uint8)))
        carry_out(base, rows, folder / "first", 1, together=False)  # what is done once a process
        for number, count, together in itertools.product(range(repeat), COUNTS, (False, True)):
            if together and count == 1:
                continue
            done.append(carry_out(base, rows, folder / f"{number}-{count}-{together}", count, together=together))
            print(f"  {name}: {done[-1]}", file=sys.stderr, flush=True)
    return done


def carry_out(base: Path, rows: Sequence[Any], folder: Path, count: int, *, together: bool) -> Round:
    """Train so many adapters of unlike rank and rate, and measure."""
    from tunesmith.core.memory import give_back
    from tunesmith.flow.tuning.width import Meter
    from tunesmith.train.loop import train
    from tunesmith.train.plan import Adapter, Plan
    from tunesmith.train.side_by_side import side_by_side

    meter, works = Meter(), list[Callable[[], Any]]()
    for i in range(count):
        adapter = Adapter(r=(8, 16, 4, 32)[i % 4])
        plan = Plan(adapter=adapter, learning_rate=(1e-3, 3e-4)[i % 2], seed=i, epochs=1, batch_size=BATCH, threads=1, lanes=1)
        works.append(partial(train, plan, rows, base=base, out=folder / str(i), on_event=meter))
    give_back(cycles=True)
    Path("/proc/self/clear_refs").write_text("5")  # Linux then measures the peak anew
    if together:
        failed = [result for result in side_by_side(works) if isinstance(result, Exception)]
        if failed:
            raise failed[0]
    else:
        for work in works:
            work()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert meter.rate is not None
    return Round(count, together, meter.rate, int(peak.split()[1]) / 1024)


def measured(repeat: int = ROUNDS) -> tuple[str, list[str]]:
    """The table, and its headline: the worst base's tokens a processor second of eight at once against one after the other."""
    lines, ratios = [], []
    for name in BASES:
        command = [sys.executable, "-m", "benchmarks.tune_adapters", name, str(repeat)]
        out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        found = [Round(*each) for each in json.loads(out.splitlines()[-1])]
        rate = {key: median(r.rate for r in found if (r.count, r.together) == key) for key in {(r.count, r.together) for r in found}}
        peak = {key: median(r.peak_mb for r in found if (r.count, r.together) == key) for key in rate}
        for count in COUNTS:
            at_once = (count, count > 1)
            gain = rate[at_once] / rate[count, False]
            lines.append((name, count, rate[at_once], rate[count, False], gain, peak[at_once], count * peak[1, False]))
            ratios += [gain] if count == COUNTS[-1] else []
    heads = ["base", "adapters", "tokens a CPU-s at once", "in turn", "ratio", "peak MB at once", "MB in processes of their own"]
    return table(heads, lines), [ratio("adapters_at_once_vs_single", min(ratios))]


if __name__ == "__main__":
    print(json.dumps(rounds(sys.argv[1], int(sys.argv[2]))))
