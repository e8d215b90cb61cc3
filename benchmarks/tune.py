"""Studies: tokens until the best of a grid is met, against other searches; how often noise alone is recommended; adapters side by side.

Every plan of a grid is trained once (`tune_tasks.py`); the searches then choose among those plans (`tune_searches.py`). Studies in which
all plans are equal are simulated (`tune_noise.py`), adapters at once are timed (`tune_adapters.py`), workers are killed
(`tune_kills.py`). `python -m benchmarks.tune noise`
is one part.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from statistics import median

from benchmarks import tune_adapters, tune_kills
from benchmarks.harness import ROOT, ratio, table, write_section
from benchmarks.tune_noise import simulated
from benchmarks.tune_searches import SEEDS, searches
from benchmarks.tune_tasks import RUNGS, TASKS, Grid, measured
from tunesmith.core.counted import counted

HEADLINES = ("tune_tokens_vs_grid", "tune_default_kept", "adapters_at_once_vs_single")
PAGE = ROOT / "docs" / "tune.md"


def main(parts: Sequence[str] = ()) -> None:
    """Every part, or those that are named: each writes its own section."""
    known = {"noise": noise, "searches": searched, "adapters": adapters, "workers": workers}
    for part in parts or known:
        known[part]()


def noise() -> None:
    """Studies in which all plans are equal."""
    kept, power = simulated()
    body = (
        f"200 simulated studies of 20 equal plans each, 200 validation rows: the default is recommended in {_shares(kept)}. Where one "
        f"plan is better by 15 points, it is recommended in {_shares(power)}."
    )
    write_section(
        "tune noise",
        "Noise alone",
        f"{body}\n\n{ratio('tune_default_kept', min(kept.values()))}",
        PAGE,
        again="python -m benchmarks.tune noise",
    )


def adapters() -> None:
    """Adapters side by side on one base."""
    lines, said = tune_adapters.measured()
    times = counted(tune_adapters.ROUNDS, "round")
    about = f"Adapters of unlike rank and rate trained on one frozen base, one thread, eight rows a step each; {times}, both ways by turns."
    write_section("tune adapters", "Adapters at once", "\n\n".join([about, lines, *said]), PAGE, again="python -m benchmarks.tune adapters")


def workers() -> None:
    """Studies by several processes, one of which is killed; memory over many trials."""
    body = tune_kills.measured()
    write_section("tune workers", "Workers that are killed, and memory", body, PAGE, again="python -m benchmarks.tune workers")


def searched() -> None:
    """Searches over the same measured grids."""
    grids = [(task, measured(task)) for task in TASKS]
    rows, shares = [], []
    for label, search in searches().items():
        cells = []
        for task, grid in grids:
            reached = [min(1.0, search(grid, seed) / grid.tokens) for seed in range(SEEDS)]
            print(f"  {label}, {task.name}: {', '.join(f'{share:.3f}' for share in reached)}", flush=True)
            cells.append(f"{median(reached):.3f} ({min(reached):.3f} to {max(reached):.3f})")
            shares += [median(reached)] if label == "tunesmith tune" else []
        rows.append((label, *cells))
    about = (
        "Tokens trained until a whole training has the best value of the plans of a 4 × 4 × 3 grid (learning rate, batch size, rank), "
        f"as a share of the tokens of the grid: median of {SEEDS} seeds, least and most. A search that never meets it counts 1."
    )
    tasks = "\n".join(f"- {task.name}: {task.about}. {_correlations(grid)}" for task, grid in grids)
    head = table(["search", *(task.name for task, _ in grids)], rows)
    write_section(
        "tune searches",
        "Searches",
        "\n\n".join([about, head, tasks, ratio("tune_tokens_vs_grid", max(shares))]),
        PAGE,
        again="python -m benchmarks.tune searches",
    )


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{share:.1%} ({name})" for name, share in shares.items())


def _correlations(grid: Grid) -> str:
    """How well a rung says what comes at the end."""
    from tunesmith.core.stats import spearman

    curves, ends = grid.curves.values(), [curve[-1][1] for curve in grid.curves.values()]
    found = [(share, spearman([curve[i][1] for curve in curves], ends)) for i, share in enumerate(RUNGS[:-1])]
    told = ", ".join(f"{value:.2f} after {share:.0%} of the steps" for share, value in found if value is not None)
    rates: dict[float, list[float]] = {}
    for name, curve in grid.curves.items():
        rates.setdefault(json.loads(name)["learning_rate"], []).append(curve[-1][1])
    best = ", ".join(f"{max(values):.2f} at {rate:g}" for rate, values in sorted(rates.items()))
    return f"Rank correlation of the metric with its value at the end: {told}. Best value by learning rate: {best}."


if __name__ == "__main__":
    main(sys.argv[1:])
