"""Plots as inline SVG text, so that a report is one file that opens offline; knows nothing about what is plotted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values that cover low..high."""
    if high <= low:
        high = low + 1.0
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step) * step
    values = [first + step * i for i in range(wanted * 3)]
    return [value for value in values if low - 1e-9 <= value <= high + 1e-9]


def _label(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


class _Frame:
    """A plotting area of fixed pixels over data coordinates."""

    def __init__(self, size: tuple[int, int], left: int, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.width, self.height, self.left = size[0], size[1], left
        self.x0, self.x1 = x[0], x[1] if x[1] > x[0] else x[0] + 1.0
        self.y0, self.y1 = y[0], y[1] if y[1] > y[0] else y[0] + 1.0
        self.parts: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x0) / (self.x1 - self.x0)
        up = (y - self.y0) / (self.y1 - self.y0)
        return self.left + across * (self.width - self.left - 16), self.height - 34 - up * (self.height - 52)

    def text(self, x: float, y: float, words: str, anchor: str = "middle", size: int = 12) -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>')

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        self.parts.append(f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" {style}/>')

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        across, up = self.at(x, y)
        self.parts.append(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{radius}" fill="{colour}"/>')

    def box(self, corner: tuple[float, float], width: float, height: float, colour: str = COLOURS[0]) -> None:
        self.parts.append(f'<rect x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>')

    def svg(self, title: str) -> str:
        body = f"<title>{escape(title)}</title>{''.join(self.parts)}"
        return f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(title)}">{body}</svg>'


GRID = 'class="grid"'


def lines(title: str, series: Sequence[tuple[str, Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> str:
    """Curves over one axis; `series` is (label, xs, ys)."""
    xs = [x for _, values, _ in series for x in values] or [0.0, 1.0]
    ys = [y for _, _, values in series for y in values] or [0.0, 1.0]
    frame = _Frame((640, 280), 54, (min(xs), max(xs)), (min(0.0, min(ys)), max(ys) * 1.05))
    for tick in _ticks(frame.y0, frame.y1):
        frame.line(frame.at(frame.x0, tick), frame.at(frame.x1, tick), GRID)
        frame.text(46, frame.at(0, tick)[1] + 4, _label(tick), "end")
    for tick in _ticks(frame.x0, frame.x1):
        frame.text(frame.at(tick, 0)[0], frame.height - 18, _label(tick))
    frame.text(frame.width / 2, frame.height - 3, x_label)
    frame.text(8, 12, y_label, "start")
    for i, (label, across, up) in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        places = [frame.at(x, y) for x, y in zip(across, up, strict=True)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        frame.parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(across) <= 12:
            for x, y in zip(across, up, strict=True):
                frame.dot(x, y, 3.5, colour)
        frame.box((frame.width - 190, 8 + 18 * i), 12, 12, colour)
        frame.text(frame.width - 172, 18 + 18 * i, label, "start")
    return frame.svg(title)


def intervals(title: str, rows: Sequence[tuple[str, float, float, float]], x_label: str, span: tuple[float, float] | None = None) -> str:
    """Estimates with their intervals, one row each: (label, estimate, low, high). A line marks zero where it is in the picture."""
    low, high = span or (min((row[2] for row in rows), default=0.0), max((row[3] for row in rows), default=1.0))
    margin = 0.0 if span else 0.08 * (high - low or 1.0)
    frame = _Frame((640, 62 + 34 * len(rows)), 200, (low - margin, high + margin), (0.0, float(len(rows))))
    for tick in _ticks(frame.x0, frame.x1):
        frame.line(frame.at(tick, 0), frame.at(tick, len(rows)), 'class="zero"' if abs(tick) < 1e-12 else GRID)
        frame.text(frame.at(tick, 0)[0], frame.height - 18, _label(tick))
    frame.text((frame.width + 200) / 2, frame.height - 3, x_label)
    for i, (label, estimate, left, right) in enumerate(rows):
        y, colour = len(rows) - i - 0.5, COLOURS[i % len(COLOURS)]
        frame.line(frame.at(left, y), frame.at(right, y), f'stroke="{colour}" stroke-width="3"')
        frame.dot(estimate, y, 6, colour)
        frame.text(192, frame.at(0, y)[1] + 4, label, "end", 13)
    return frame.svg(title)


def bars(title: str, rows: Sequence[tuple[str, float]], x_label: str) -> str:
    """Horizontal bars with their values."""
    most = max((value for _, value in rows), default=1.0) or 1.0
    frame = _Frame((640, 44 + 26 * len(rows)), 170, (0.0, most * 1.12), (0.0, float(len(rows))))
    for i, (label, value) in enumerate(rows):
        x, y = frame.at(value, len(rows) - i - 0.5)
        frame.box((170, y - 8), max(x - 170, 1), 16)
        frame.text(162, y + 4, label, "end")
        frame.text(x + 6, y + 4, _label(value), "start")
    frame.text((frame.width + 170) / 2, frame.height - 8, x_label)
    return frame.svg(title)


def histogram(title: str, values: Sequence[float], x_label: str, bins: int = 24) -> str:
    """How often values fall into equal bins; the last bin of a long tail holds all above the 99th percentile."""
    ordered = sorted(values) or [0.0]
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in ordered:
        counts[min(bins - 1, int((value - low) / width))] += 1
    frame = _Frame((640, 220), 54, (low, low + width * bins), (0.0, max(counts) * 1.05))
    for tick in _ticks(frame.y0, frame.y1, 4):
        frame.line(frame.at(frame.x0, tick), frame.at(frame.x1, tick), GRID)
        frame.text(46, frame.at(0, tick)[1] + 4, _label(tick), "end")
    for i, count in enumerate(counts):
        (x, y), (right, floor) = frame.at(low + i * width, count), frame.at(low + (i + 1) * width, 0)
        frame.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(right - x - 1, 1):.1f}" height="{floor - y:.1f}" fill="{COLOURS[0]}"/>'
        )
    for tick in _ticks(frame.x0, frame.x1):
        frame.text(frame.at(tick, 0)[0], frame.height - 18, _label(tick))
    frame.text(frame.width / 2, frame.height - 3, x_label)
    return frame.svg(title)
