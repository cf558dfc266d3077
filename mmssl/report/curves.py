"""Line charts as inline SVG: no library, no script; the page's colours, light or dark, through CSS variables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

Point = tuple[float, float]

# What training writes in metrics.jsonl: title of the chart, {key of the metric: name in the legend}, how to read it.
_CHARTS = (
    (
        "Loss",
        {"loss": "training", "heldout_loss": "held out"},
        "Both fall while the model learns. Held out are whole media under one fixed mask, training are new crops and "
        "masks in every step: either may lie above the other. Held out rising while training falls is overfitting.",
    ),
    (
        "Accuracy of the classifier",
        {"heldout_accuracy": "held out"},
        "On all that is held out. Of several classes a sample it is mean average precision.",
    ),
    (
        "Accuracy on half of the watched samples",
        {"knn_accuracy": "kNN", "linear_accuracy": "linear probe"},
        "Of the held-out media that are watched, one half tells the classes of the other: a trend, not a result.",
    ),
    (
        "Effective rank of the features",
        {"effective_rank": "effective rank"},
        "How many directions the held-out features use, at most their width or the number of media. Near 1, all media "
        "look alike to the model: it has collapsed.",
    ),
    (
        "Gradient norm",
        {"grad_norm": "gradient norm"},
        "Spikes that come back ask for a lower rate or for clipping; near 0 nothing is learned any more.",
    ),
    (
        "Learning rate",
        {"lr": "learning rate"},
        "Up during the warm-up, then down along half a cosine; what was asked for, not what was found.",
    ),
)
_WIDTH, _HEIGHT = 460, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 34, 40
_MOST_POINTS = 600


_PART = "parts/"


def curves(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """An SVG chart each for loss (training and held-out), accuracies, effective rank, gradient norm, learning rate
    and the method's named parts where it has several, and a sentence on how to read it.

    `metrics` are the rows of a run, each with its "step"; a row need not hold every metric, and None counts as not
    finite. Metrics that fewer than two rows hold are left out: a point is no curve.
    """
    metrics = [{**row, **{_PART + name: value for name, value in row.get("parts", {}).items()}} for row in metrics]
    charts = []
    for title, names, reading in (*_CHARTS, *_parts(metrics)):
        series = {
            legend: [(row["step"], math.nan if row[key] is None else row[key]) for row in metrics if key in row]
            for key, legend in names.items()
        }
        drawn = {legend: points for legend, points in series.items() if len(points) > 1}
        if drawn:
            charts.append((chart(drawn, title=title), reading))
    return charts


def _parts(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, str], str]]:
    """Charts of the named parts of what a method gives, where there are several."""
    names = dict.fromkeys(name for row in metrics for name in row if name.startswith(_PART))
    reading = "Of the training's batches, as the method names it: a term of the loss, or what it tells beside that."
    titles = {name: name.removeprefix(_PART).replace("_", " ").capitalize() for name in names}
    return [(title, {name: title}, reading) for name, title in titles.items()] if len(names) > 1 else []


def chart(series: Mapping[str, Sequence[tuple[int | float, int | float]]], *, title: str, x_label: str = "step") -> str:
    """One SVG line chart of named series of (x, y), each in ascending x; a legend where there is more than one.

    A y that is not finite breaks its line; a point between two breaks is a dot. Long series are thinned to the lowest
    and the highest point of equal stretches, so that no spike is lost.
    """
    lines = [[(float(x), float(y)) for x, y in points] for points in series.values()]
    finite = [(x, y) for points in lines for x, y in points if math.isfinite(y)]
    parts = [f'<text class="title" x="{_LEFT}" y="16">{escape(title)}</text>']
    if finite:
        x_range = _padded(min(x for x, _ in finite), max(x for x, _ in finite), 0.0)
        y_range = _padded(min(y for _, y in finite), max(y for _, y in finite), 0.04)
        parts += _axes(x_range, y_range, x_label)
        for index, points in enumerate(lines):
            parts += _line(points, x_range, y_range, index)
        parts += _legend(list(series)) if len(series) > 1 else []
    else:
        middle = f'x="{_WIDTH / 2:g}" y="{_HEIGHT / 2:g}" text-anchor="middle"'
        parts.append(f"<text {middle}>no finite value was recorded</text>")
    label = escape(f"{title} over {x_label}", quote=True)
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if low == high:
        reach = abs(low) / 2 or 1.0
        return low - reach, high + reach
    return low - share * (high - low), high + share * (high - low)


def _x(value: float, bounds: tuple[float, float]) -> float:
    return _LEFT + (value - bounds[0]) / (bounds[1] - bounds[0]) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, bounds: tuple[float, float]) -> float:
    return _HEIGHT - _BOTTOM - (value - bounds[0]) / (bounds[1] - bounds[0]) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(x_range: tuple[float, float], y_range: tuple[float, float], x_label: str) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick, text in ticks(*y_range):
        y = _y(tick, y_range)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    for tick, text in ticks(*x_range):
        x = _x(tick, x_range)
        yield f'<path class="axis" d="M{x:.1f} {bottom}v5"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>'
    yield f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>'
    yield f'<text x="{right}" y="{_HEIGHT - 5}" text-anchor="end">{escape(x_label)}</text>'


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Multiples of 1, 2 or 5 times a power of ten within the bounds, about five, and their texts."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= 5.5)
    places = [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    largest = max(abs(low), abs(high))
    if largest >= 1e4 and step >= 100:
        digits = 0 if step >= 1e3 else 1
        return [(place, f"{place / 1e3:.{digits}f}k" if place else "0") for place in places]
    if largest < 1e-2:
        exponent = math.floor(math.log10(largest))
        digits = max(0, exponent - math.floor(math.log10(step)))
        return [(place, f"{place / 10.0**exponent:.{digits}f}e{exponent}" if place else "0") for place in places]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(place, f"{place:.{digits}f}") for place in places]


def _line(
    points: Sequence[Point], x_range: tuple[float, float], y_range: tuple[float, float], index: int
) -> Iterator[str]:
    colour = f'style="--line:var(--series-{index % 4 + 1})"'
    path = ""
    for run in _runs(_thinned(points)):
        places = [f"{_x(x, x_range):.1f} {_y(y, y_range):.1f}" for x, y in run]
        if len(places) == 1:
            x, y = places[0].split()
            yield f'<circle class="dot" {colour} cx="{x}" cy="{y}" r="3"/>'
        else:
            path += "M" + "L".join(places)
    if path:
        yield f'<path class="line" {colour} d="{path}"/>'


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    if len(points) <= _MOST_POINTS:
        return points
    stretches = _MOST_POINTS // 2
    edges = [round(index * len(points) / stretches) for index in range(stretches + 1)]
    kept: list[Point] = []
    for start, stop in pairwise(edges):
        # A NaN compares false with everything; it must neither hide an extreme nor vanish.
        broken = [point for point in points[start:stop] if not math.isfinite(point[1])][:1]
        whole = [point for point in points[start:stop] if math.isfinite(point[1])]
        extremes = {min(whole, key=lambda point: point[1]), max(whole, key=lambda point: point[1])} if whole else set()
        kept += sorted([*extremes, *broken], key=lambda point: point[0])
    return kept


def _runs(points: Sequence[Point]) -> Iterator[list[Point]]:
    run: list[Point] = []
    for x, y in points:
        if math.isfinite(y):
            run.append((x, y))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _legend(names: Sequence[str]) -> Iterator[str]:
    # From the right edge inwards, with the width of a letter estimated: SVG cannot measure text without a script.
    right = float(_WIDTH - _RIGHT)
    for index, name in reversed(list(enumerate(names))):
        left = right - 6.2 * len(name)
        yield f'<text x="{left:.1f}" y="16">{escape(name)}</text>'
        yield f'<path class="line" style="--line:var(--series-{index % 4 + 1})" d="M{left - 22:.1f} 12h16"/>'
        right = left - 36
