"""Charts as SVG: learning curves and scores by seed. Colours and fonts are those of the page's style sheet."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

Scale = Callable[[float], float]

COLOURS = 8  # of the style sheet; after them the dashes change
DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "12 3", "1 4")
MOST_POINTS = 300  # per line


class Frame(NamedTuple):
    """A size of a chart, in pixels: one for wide screens and paper, one for phones, so that its text is readable on both."""

    name: str
    width: int
    height: int
    left: int = 46
    right: int = 12
    top: int = 12
    bottom: int = 34


WIDE, NARROW = Frame("wide", 880, 380), Frame("narrow", 340, 300, left=40, right=8)


@dataclass(frozen=True)
class Line:
    """The curves of a method: one per seed, and their mean where all have a value.

    Attributes:
        number: position of the method, which decides its colour and dashes.
        name: of the method.
        seeds: points (epoch, value) of each run.
    """

    number: int
    name: str
    seeds: list[list[tuple[int, float]]]

    @property
    def mean(self) -> list[tuple[int, float]]:
        values: dict[int, list[float]] = {}
        for points in self.seeds:
            for epoch, value in points:
                values.setdefault(epoch, []).append(value)
        return [(e, statistics.fmean(v)) for e, v in sorted(values.items()) if len(v) == len(self.seeds)]


def style(number: int) -> Markup:
    """Colour and dashes of a method's lines, as attributes; no two of the first 56 are equal."""
    dashes = DASHES[(number // COLOURS + number) % len(DASHES)] if number else ""
    return Markup('class="c{}" stroke-dasharray="{}"').format(number % COLOURS, dashes or "none")


def nice(low: float, high: float, number: int = 5) -> list[float]:
    """About `number` round values between two numbers."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / max(number, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def shown_range(lines: Sequence[Line], rising: bool) -> tuple[float, float]:
    """The values to show: all but those of the first quarter of the epochs, which would press the others together."""
    last = max(epoch for line in lines for points in line.seeds for epoch, _ in points)
    start = 1 + last // 4 if last > 4 else 1
    values = [value for line in lines for points in line.seeds for epoch, value in points if epoch >= start]
    values = values or [value for line in lines for points in line.seeds for _, value in points]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    return (low, min(high, 100.0)) if rising and high > 100 else (low if rising else max(low, 0.0), high)


def curves(lines: Sequence[Line], title: str, rising: bool, key: str) -> Markup:
    """Learning curves in both sizes: thin lines for the seeds, a thick one for their mean."""
    epochs = [epoch for line in lines for points in line.seeds for epoch, _ in points]
    low, high = shown_range(lines, rising)
    first, last = min(epochs), max(epochs)
    described = f"{title} over the epochs {first} to {last}. " + "; ".join(
        f"{line.name}: {line.mean[-1][1]:.4g} in epoch {line.mean[-1][0]}" for line in lines if line.mean
    )
    return Markup("").join(
        _curves(lines, frame, title, key, (first, max(last, first + 1)), (low, high), described) for frame in (WIDE, NARROW)
    )


def _curves(
    lines: Sequence[Line],
    frame: Frame,
    title: str,
    key: str,
    span: tuple[int, int],
    values: tuple[float, float],
    described: str,
) -> Markup:
    across, up = _scales(frame, span, values)
    body = [_grid(frame, span, values, across, up)]
    clip = f"clip-{key}-{frame.name}"
    body.append(
        Markup('<clipPath id="{}"><rect x="{}" y="{}" width="{}" height="{}"/></clipPath>').format(
            clip, frame.left, frame.top, frame.width - frame.left - frame.right, frame.height - frame.top - frame.bottom
        )
    )
    body.append(Markup('<g clip-path="url(#{})">').format(clip))
    for line in lines:
        body.append(Markup('<g class="line" data-method="{}">').format(line.number))
        if len(line.seeds) > 1:
            body += [
                Markup('<polyline class="c{} seed" points="{}"/>').format(line.number % COLOURS, _points(points, across, up))
                for points in line.seeds
            ]
        body.append(Markup('<polyline {} points="{}"/>').format(style(line.number), _points(line.mean, across, up)))
        if len(line.mean) == 1:
            (x, y) = line.mean[0]
            body.append(
                Markup('<circle class="c{}" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(line.number % COLOURS, across(x), up(y))
            )
        body.append(Markup("</g>"))
    body.append(
        Markup('</g><line class="cursor" y1="{}" y2="{}" x1="0" x2="0" hidden/>').format(
            frame.top, frame.height - frame.bottom
        )
    )
    plot = f"{frame.left} {frame.width - frame.right} {span[0]} {span[1]}"
    return _svg(frame, title, described, key, Markup("").join(body), plot)


def strips(rows: Sequence[tuple[int, str, Sequence[float], tuple[float, float] | None]], title: str, key: str) -> Markup:
    """Scores by seed in both sizes: a dot per run, a bar at the mean, a line for the 95 % interval of the mean.

    Args:
        rows: number and name of each method, its scores, and the interval, where there is one.
    """
    values = [v for _, _, scores, _ in rows for v in scores]
    low, high = min(values), max(values)
    margin = 0.35 * (high - low) or 1.0
    low, high = low - margin, high + margin
    described = f"{title}. " + "; ".join(
        f"{name}: mean {statistics.fmean(scores):.2f} of {len(scores)} run{'s' * (len(scores) > 1)}, {min(scores):.2f} to {max(scores):.2f}"
        for _, name, scores, _ in rows
    )
    return Markup("").join(_strips(rows, frame, title, key, (low, high), described) for frame in (WIDE, NARROW))


def _strips(
    rows: Sequence[tuple[int, str, Sequence[float], tuple[float, float] | None]],
    frame: Frame,
    title: str,
    key: str,
    span: tuple[float, float],
    described: str,
) -> Markup:
    step = 46
    frame = frame._replace(height=frame.top + step * len(rows) + frame.bottom, left=12, right=12)
    across, _ = _scales(frame, span, (0, 1))
    foot = frame.height - frame.bottom
    body = []
    for tick in nice(span[0], span[1], 6 if frame.name == "wide" else 4):
        x = across(tick)
        body.append(Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(x, frame.top, foot))
        body.append(Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(x, foot + 18, tick))
    for place, (number, name, scores, interval) in enumerate(rows):
        y, colour = frame.top + step * place + 31, number % COLOURS
        body.append(Markup('<g class="line" data-method="{}">').format(number))
        body.append(Markup('<text class="name" x="{}" y="{}">{}</text>').format(frame.left, y - 15, _short(name, frame)))
        body.append(
            Markup('<line class="rail" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                frame.left, frame.width - frame.right, y, y
            )
        )
        if interval is not None:
            ends = [min(max(across(v), frame.left), frame.width - frame.right) for v in interval]
            body.append(
                Markup('<line class="c{} interval" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(colour, *ends, y, y)
            )
        for value in scores:
            body.append(Markup('<circle class="c{} dot" cx="{:.1f}" cy="{}" r="5"/>').format(colour, across(value), y))
        x = across(statistics.fmean(scores))
        body.append(
            Markup('<line class="c{0} mean" x1="{1:.1f}" x2="{1:.1f}" y1="{2}" y2="{3}"/></g>').format(
                colour, x, y - 10, y + 10
            )
        )
    return _svg(frame, title, described, key, Markup("").join(body), "")


def _scales(frame: Frame, span: tuple[float, float], values: tuple[float, float]) -> tuple[Scale, Scale]:
    def across(x: float) -> float:
        return frame.left + (x - span[0]) / (span[1] - span[0]) * (frame.width - frame.left - frame.right)

    def up(y: float) -> float:
        return (
            frame.height
            - frame.bottom
            - (y - values[0]) / (values[1] - values[0]) * (frame.height - frame.top - frame.bottom)
        )

    return across, up


def _grid(frame: Frame, span: tuple[int, int], values: tuple[float, float], across: Scale, up: Scale) -> Markup:
    right, foot = frame.width - frame.right, frame.height - frame.bottom
    body = []
    for tick in nice(*values):
        y = up(tick)
        body.append(Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>').format(frame.left, right, y))
        body.append(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{:g}</text>').format(frame.left - 6, y + 4, tick))
    for tick in nice(span[0], span[1], 8 if frame.name == "wide" else 4):
        if float(tick).is_integer():
            body.append(
                Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(across(tick), foot + 17, tick)
            )
    body.append(Markup('<text x="{}" y="{}" text-anchor="end">epoch</text>').format(right, foot + 31))
    return Markup("").join(body)


def _points(points: Sequence[tuple[int, float]], across: Scale, up: Scale) -> str:
    return " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in thinned(points))


def thinned(points: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> Iterator[tuple[int, float]]:
    """At most about `most` of the points, evenly chosen, the last one among them."""
    stride = max(1, -(-len(points) // most))
    yield from (point for place, point in enumerate(points) if (len(points) - 1 - place) % stride == 0)


def _short(name: str, frame: Frame) -> str:
    most = 46 if frame.name == "narrow" else 120
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _svg(frame: Frame, title: str, described: str, key: str, body: Markup, plot: str) -> Markup:
    label = f"{key}-{frame.name}"
    return Markup(
        '<svg class="chart {0}" viewBox="0 0 {1} {2}" role="img" aria-labelledby="{3}-title {3}-text" data-plot="{4}">'
        '<title id="{3}-title">{5}</title><desc id="{3}-text">{6}</desc>{7}</svg>'
    ).format(frame.name, frame.width, frame.height, escape(label), plot, title, described, body)
