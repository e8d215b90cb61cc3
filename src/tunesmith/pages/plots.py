"""Plots as inline SVG, coloured by the pages' stylesheet, so that a report is one file; knows nothing about what is plotted.

Each plot is 640 units wide and made to be read at the width of a phone too: labels stand above what they name, legends below the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

_COLOURS = 6  # the stylesheet's: stroke0 … stroke5, fill0 … fill5
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 72, 16, 26, 48
_LONGEST_LABEL = 32


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
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _clipped(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"


def _range(values: Iterable[float], empty: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float]:
    """The least and the greatest finite value."""
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else empty


class _Frame:
    """A plotting area of fixed units over data coordinates."""

    def __init__(self, height: int, left: int, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.height, self.left = height, left
        self.x0, self.x1 = x[0], x[1] if x[1] > x[0] else x[0] + 1.0
        self.y0, self.y1 = y[0], y[1] if y[1] > y[0] else y[0] + 1.0
        self.parts: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (min(max(x, self.x0), self.x1) - self.x0) / (self.x1 - self.x0)
        up = (min(max(y, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return self.left + across * (_WIDTH - self.left - _RIGHT), self.height - _BOTTOM - up * (self.height - _BOTTOM - _TOP)

    def text(self, x: float, y: float, words: str, anchor: str = "middle") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>')

    def line(self, start: tuple[float, float], end: tuple[float, float], kind: str) -> None:
        self.parts.append(f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" class="{kind}"/>')

    def dot(self, x: float, y: float, radius: float, colour: int) -> None:
        across, up = self.at(x, y)
        self.parts.append(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="{radius}" class="fill{colour}"/>')

    def box(self, corner: tuple[float, float], width: float, height: float) -> None:
        self.parts.append(f'<rect x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{width:.1f}" height="{height:.1f}" class="fill0"/>')

    def tick(self, x: float, words: str) -> None:
        """A label under the axis below; at its right end one that ends with the picture."""
        place = self.at(x, self.y0)[0]
        last = place > _WIDTH - 3 * _RIGHT  # centred, it would leave the picture
        self.text(_WIDTH - 2 if last else place, self.height - 28, words, "end" if last else "middle")

    def across(self, label: str) -> None:
        """The axis below: its ticks and what it measures."""
        for tick in _ticks(self.x0, self.x1):
            self.tick(tick, _label(tick))
        self.text((_WIDTH + self.left) / 2, self.height - 5, label)

    def upwards(self, label: str, wanted: int = 5) -> None:
        """The axis on the left, with a line over the picture for each of its ticks."""
        for tick in _ticks(self.y0, self.y1, wanted):
            self.line(self.at(self.x0, tick), self.at(self.x1, tick), "rule")
            self.text(self.left - 8, self.at(self.x0, tick)[1] + 4, _label(tick), "end")
        self.text(4, 15, label, "start")

    def figure(self, title: str, legend: Sequence[str] = ()) -> Markup:
        name = escape(title)
        keys = "".join(f'<li><i class="key{i % _COLOURS}"></i>{escape(label)}</li>' for i, label in enumerate(legend))
        below = f'<ul class="legend">{keys}</ul>' if legend else ""
        head = f'<svg viewBox="0 0 {_WIDTH} {self.height}" role="img" aria-label="{name}"><title>{name}</title>'
        return Markup(f'<figure class="plot">{head}{"".join(self.parts)}</svg>{below}</figure>')  # every text above was escaped


def lines(title: str, series: Sequence[tuple[str, Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> Markup:
    """Curves over one axis; `series` is (label, xs, ys). Points that are not finite are left out."""
    low, high = _range(y for _, _, values in series for y in values)
    frame = _Frame(290, _LEFT, _range(x for _, values, _ in series for x in values), (min(0.0, low), high * 1.05))
    frame.upwards(y_label)
    frame.across(x_label)
    for i, (_, across, up) in enumerate(series):
        finite = [(x, y) for x, y in zip(across, up, strict=True) if math.isfinite(x) and math.isfinite(y)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (frame.at(*point) for point in finite))
        frame.parts.append(f'<polyline points="{points}" class="stroke{i % _COLOURS}"/>')
        for x, y in finite if len(finite) <= 12 else ():
            frame.dot(x, y, 3.5, i % _COLOURS)
    return frame.figure(title, [label for label, _, _ in series])


def intervals(title: str, rows: Sequence[tuple[str, float, float, float]], x_label: str, span: tuple[float, float] | None = None) -> Markup:
    """Estimates with their intervals, one row each: (label, estimate, low, high). A line marks zero where it is in the picture.

    Rows whose estimate is not finite are left out.
    """
    rows = [row for row in rows if math.isfinite(row[1])]
    low, high = span or _range(value for row in rows for value in row[1:])
    margin = 0.0 if span else 0.08 * (high - low or 1.0)
    frame = _Frame(_TOP + _BOTTOM + 52 * len(rows), _RIGHT, (low - margin, high + margin), (0.0, float(len(rows) or 1)))
    for tick in _ticks(frame.x0, frame.x1):
        frame.line(frame.at(tick, 0), frame.at(tick, frame.y1), "zero" if abs(tick) < 1e-12 else "rule")
    frame.across(x_label)
    for i, (label, estimate, left, right) in enumerate(rows):
        y, colour = len(rows) - i - 0.72, i % _COLOURS
        frame.line(frame.at(left, y), frame.at(right, y), f"thick stroke{colour}")
        frame.dot(estimate, y, 6, colour)
        above = frame.at(frame.x0, y)[1] - 16
        frame.text(_RIGHT, above, _clipped(label), "start")
        frame.text(_WIDTH - _RIGHT, above, f"{estimate:.3g} [{left:.3g}, {right:.3g}]", "end")
    return frame.figure(title)


def scatter(title: str, points: Sequence[tuple[str, float, float, float, float]], x_label: str, y_label: str) -> Markup:
    """Numbered points with upright intervals over a logarithmic axis: (label, x, y, low, high); the legend names the numbers. Points that
    are not finite, or not above 0 across, are left out."""
    points = [point for point in points if point[1] > 0 and all(map(math.isfinite, point[1:]))]
    low, high = _range(math.log10(x) for _, x, *_ in points)
    bottom, top = _range(value for _, _, *values in points for value in values)
    margin = 0.08 * (high - low) or 0.3
    frame = _Frame(330, _LEFT, (low - margin, high + margin), (min(0.0, bottom), top * 1.05 or 1.0))
    frame.upwards(y_label)
    for value in _decades(frame.x0, frame.x1):
        frame.tick(math.log10(value), f"{value:.3g}")
    frame.text((_WIDTH + _LEFT) / 2, frame.height - 5, x_label)
    for i, (_, x, y, below, above) in enumerate(points):
        across = math.log10(x)
        frame.line(frame.at(across, below), frame.at(across, above), f"stroke{i % _COLOURS}")
        frame.dot(across, y, 6, i % _COLOURS)
        right, up = frame.at(across, y)
        frame.text(right + 10, up + 5, str(i + 1), "start")
    return frame.figure(title, [f"{i}. {label}" for i, (label, *_) in enumerate(points, 1)])


def _decades(low: float, high: float) -> list[float]:
    """Round values between 10^low and 10^high, at most a few."""
    for steps in ((1, 2, 5), (1,)):
        values = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
        inside = [value for value in values if low <= math.log10(value) <= high]
        if len(inside) <= 6:
            break
    return inside[:: max(1, len(inside) // 5)]


def band(
    title: str, curve: Sequence[tuple[float, float, float, float]], points: Sequence[tuple[float, float]], x_label: str, y_label: str
) -> Markup:
    """A curve with its band over a logarithmic axis, (x, y, low, high) each, and the points (x, y) that were observed."""
    curve = [point for point in curve if point[0] > 0 and all(map(math.isfinite, point))]
    low, high = _range(math.log10(x) for x in [point[0] for point in curve] + [x for x, _ in points])
    bottom, top = _range([value for _, *values in curve for value in values] + [y for _, y in points])
    frame = _Frame(310, _LEFT, (low, high), (min(0.0, bottom), top * 1.05 or 1.0))
    edge = [frame.at(math.log10(x), up) for x, _, _, up in curve] + [frame.at(math.log10(x), down) for x, _, down, _ in reversed(curve)]
    frame.parts.append(f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in edge)}" class="area"/>')
    frame.upwards(y_label)
    for value in _decades(frame.x0, frame.x1):
        frame.tick(math.log10(value), f"{value:,.0f}")
    frame.text((_WIDTH + _LEFT) / 2, frame.height - 5, x_label)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (frame.at(math.log10(x), y) for x, y, _, _ in curve))
    frame.parts.append(f'<polyline points="{line}" class="stroke0"/>')
    for x, y in points:
        frame.dot(math.log10(x), y, 5, 1)
    return frame.figure(title, ["the law, with the band in which it is expected", "trainings"])


def bars(title: str, rows: Sequence[tuple[str, float]], x_label: str) -> Markup:
    """Horizontal bars with their values."""
    most = max((value for _, value in rows), default=1.0) or 1.0
    height = 40 * len(rows) + 30
    frame = _Frame(height, _RIGHT, (0.0, most), (0.0, 1.0))
    for i, (label, value) in enumerate(rows):
        top = 40.0 * i
        frame.text(_RIGHT, top + 16, _clipped(label), "start")
        frame.text(_WIDTH - _RIGHT, top + 16, _label(value), "end")
        frame.box((_RIGHT, top + 23), max(frame.at(value, 0)[0] - _RIGHT, 1), 9)
    frame.text(_WIDTH / 2, height - 5, x_label)
    return frame.figure(title)


def histogram(title: str, values: Sequence[float], x_label: str, bins: int = 24) -> Markup:
    """How often values fall into equal bins; the last bin of a long tail holds all above the 99th percentile."""
    ordered = sorted(values) or [0.0]
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in ordered:
        counts[min(bins - 1, int((value - low) / width))] += 1
    frame = _Frame(240, _LEFT, (low, low + width * bins), (0.0, max(counts) * 1.05))
    frame.upwards("rows", 4)
    for i, count in enumerate(counts):
        (x, y), (right, floor) = frame.at(low + i * width, count), frame.at(low + (i + 1) * width, 0)
        frame.box((x, y), max(right - x - 1, 1), floor - y)
    frame.across(x_label)
    return frame.figure(title)


def points(title: str, groups: Sequence[tuple[str, Sequence[tuple[float, float, str]]]], x_label: str, y_label: str) -> Markup:
    """Points over two axes, each group in its colour: (label, [(x, y, name)]); a name that is not empty stands beside its point."""
    known = [point for _, group in groups for point in group if math.isfinite(point[0]) and math.isfinite(point[1])]
    low, high = _range(y for _, y, _ in known)
    margin = 0.08 * (high - low or 1.0)
    frame = _Frame(290, _LEFT, (0.0, 1.05 * _range(x for x, _, _ in known)[1]), (low - margin, high + margin))
    frame.upwards(y_label)
    frame.across(x_label)
    for i, (_, group) in enumerate(groups):
        for x, y, name in group:
            if math.isfinite(x) and math.isfinite(y):
                frame.dot(x, y, 4.5, i % _COLOURS)
                across, up = frame.at(x, y)
                frame.text(across - 7 if across > _WIDTH / 2 else across + 7, up + 4, name, "end" if across > _WIDTH / 2 else "start")
    return frame.figure(title, [label for label, _ in groups])


def parallel(title: str, axes: Sequence[tuple[str, str, str]], groups: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> Markup:
    """Parallel coordinates: `axes` are (label, lowest, highest) in words, `groups` (label, rows of values from 0 to 1, one an axis)."""
    frame = _Frame(300, _RIGHT + 24, (0.0, float(max(1, len(axes) - 1))), (0.0, 1.0))
    for place, (label, lowest, highest) in enumerate(axes):
        frame.line(frame.at(place, 0), frame.at(place, 1), "rule")
        x, bottom = frame.at(place, 0)
        anchor = "start" if place == 0 else "end" if place == len(axes) - 1 else "middle"
        frame.text(x, frame.at(place, 1)[1] - 6, _clipped(highest), anchor)
        frame.text(x, bottom + 14, _clipped(lowest), anchor)
        frame.text(x, bottom + (30 if place % 2 else 44), _clipped(label.rpartition(".")[2]), anchor)
    for i, (_, rows) in enumerate(groups):
        for row in rows:
            way = " ".join("{:.1f},{:.1f}".format(*frame.at(place, value)) for place, value in enumerate(row))
            frame.parts.append(f'<polyline points="{way}" class="stroke{i % _COLOURS}"/>')
    return frame.figure(title, [label for label, _ in groups])
