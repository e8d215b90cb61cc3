"""The one harness: each side is a process of its own that prints one JSON line; sides alternate, medians and ratios are reported.

A side prints {"work": amount, "cpu_s": …, "wall_s": …, "peak_mb": …, "versions": {…}, …} as its last line. Peers live in
environments of their own under .peers/, pinned here, so that they cannot disturb the project's.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"


@dataclass(frozen=True)
class Side:
    """One competitor: its label, the command that runs it once, and extra environment variables."""

    label: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """What the rounds of one side gave."""

    label: str
    rounds: list[dict[str, Any]]

    def median(self, key: str) -> float:
        """The median of a figure over the rounds."""
        return float(median(entry[key] for entry in self.rounds))

    @property
    def per_cpu_s(self) -> float:
        """Median work per CPU-second."""
        return float(median(entry["work"] / entry["cpu_s"] for entry in self.rounds))


def peer_python(name: str, requirements: Sequence[str], *, torch: bool = False) -> str:
    """The python of the peer's environment `.peers/NAME`, made when it is missing."""
    folder = ROOT / ".peers" / name
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    wanted = "\n".join([*requirements, "torch" if torch else ""])
    if not ready.is_file() or ready.read_text() != wanted:
        print(f"making the environment of the peer '{name}' (once): {', '.join(requirements)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        if torch:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", "torch==2.13.0"], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        ready.write_text(wanted)
    return str(python)


def once(side: Side, timeout_s: float = 1800) -> dict[str, Any]:
    """One run of one side: the JSON object of its last line."""
    done = subprocess.run(
        list(side.command), cwd=ROOT, env={**os.environ, **side.environment}, capture_output=True, text=True, timeout=timeout_s
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"'{side.label}' failed ({done.returncode}): {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def alternate(sides: Sequence[Side], rounds: int = 3) -> dict[str, Result]:
    """Each side in turn, `rounds` times: A B A B …, so that a machine that speeds up or slows down touches all alike."""
    results = {side.label: Result(side.label, []) for side in sides}
    for number in range(rounds):
        for side in sides:
            results[side.label].rounds.append(once(side))
            print(f"  round {number + 1}/{rounds} {side.label}: {results[side.label].rounds[-1]['cpu_s']:.2f} CPU-s", flush=True)
    return results


def ratio(name: str, value: float) -> str:
    """Print the headline line `ratio NAME VALUE`, and return it for the page."""
    line = f"ratio {name} {value:.2f}"
    print(line, flush=True)
    return line


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *("| " + " | ".join(row) + " |" for row in cells)])


def machine() -> str:
    """What the run was made on, in one line."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return f"{os.cpu_count()} × {model or platform.machine()}, Python {platform.python_version()}, {datetime.date.today().isoformat()}"


def write_section(name: str, title: str, body: str, place: Path = PAGE, *, again: str = "") -> None:
    """Put one benchmark's section into a page (docs/performance.md), in place of its earlier one."""
    place.parent.mkdir(exist_ok=True)
    intro = "# Performance\n\nWritten by `make bench`: every figure comes from a run. Peers and Tunesmith ran alternately.\n"
    page = place.read_text("utf-8") if place.exists() else intro
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{start}\n## {title}\n\n{body.strip()}\n\nMachine: {machine()}. Again: `{again or f'make bench ARGS={name}'}`.\n{end}"
    head, found, rest = page.partition(start)
    page = head + section + rest.partition(end)[2] if found else page.rstrip() + "\n\n" + section + "\n"
    place.write_text(page, "utf-8")
