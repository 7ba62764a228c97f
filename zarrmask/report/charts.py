"""Lines over z for the HTML page: where things go, in pixels. The template draws them as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from zarrmask.report.views import Views
from zarrmask.report.words import short

WIDTH, HEIGHT = 1100, 240
LEFT, RIGHT, TOP, BOTTOM = 96, 1070, 12, 190
STEPS = 1500
"""A line has at most this many steps: more than the page has pixels to show."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A keyframe's value, with what is told on hovering."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Chart:
    """A chart over z, all places in pixels of its view box.

    Attributes
    ----------
    summary : str
        What it shows, for those who cannot see it.
    line, fill : str
        SVG paths of a line and of the area below it; empty where there is none.
    dots : sequence of Dot
        What was found on each keyframe with a detection.
    empty : sequence of Dot
        Keyframes without a detection, on the axis.
    keyframes : str
        SVG path of a tick for each keyframe.
    threshold : Tick or None
        A level to compare with.
    width, height : int
        Size of the view box.
    left, right, top, bottom : int
        Where the axes lie in it.
    """

    summary: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    line: str
    fill: str
    dots: Sequence[Dot]
    empty: Sequence[Dot]
    keyframes: str
    threshold: Tick | None = None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


@dataclass(frozen=True)
class _Scale:
    """A straight map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def area_chart(views: Views) -> Chart:
    """Chart the mask's area over z, and the area as detected on each keyframe."""
    unit, name = views.area_unit
    found = views.keyframes.area * unit
    edges, area = _thinned(views.survey.edges + views.first_z, views.survey.area * unit)
    top = max(area.max(initial=0), found.max(initial=0)) or 1.0
    x, y = _scales(views, top * 1.05)
    line, fill = _steps(edges, area, x, y)
    titles = [
        f"z {z}: {short(value)} {name} detected"
        for z, value in zip(views.keyframes.z, found, strict=True)
    ]
    summary = (
        f"Mask area over z, from {views.first_z} to {views.stop_z - 1}: at most "
        f"{short(float(area.max(initial=0)))} {name}."
    )
    return _chart(views, summary, f"mask area, {name}", found, titles, x, y, line=line, fill=fill)


def score_chart(views: Views, threshold: float | None) -> Chart:
    """Chart the best detection's score on each keyframe."""
    x, y = _scales(views, 1.05)
    scores = views.keyframes.best_score
    titles = [f"z {z}: score {s:.3f}" for z, s in zip(views.keyframes.z, scores, strict=True)]
    known = scores[np.isfinite(scores)]
    summary = (
        f"Best score on each keyframe: {known.min():.2f} to {known.max():.2f}."
        if known.size
        else "Best score on each keyframe: there is none."
    )
    chart = _chart(views, summary, "best score", scores, titles, x, y)
    return chart if threshold is None else _with_threshold(chart, threshold, y)


def _with_threshold(chart: Chart, threshold: float, y: _Scale) -> Chart:
    return replace(chart, threshold=Tick(y(threshold), f"threshold {threshold:g}"))


def _scales(views: Views, top: float) -> tuple[_Scale, _Scale]:
    x = _Scale(views.first_z, views.stop_z, LEFT, RIGHT)
    return x, _Scale(0, top, BOTTOM, TOP)


def _chart(
    views: Views,
    summary: str,
    y_label: str,
    values: NDArray[np.float64],
    titles: Sequence[str],
    x: _Scale,
    y: _Scale,
    *,
    line: str = "",
    fill: str = "",
) -> Chart:
    keyframes = views.keyframes
    places = [x(int(z) + 0.5) for z in keyframes.z]
    dots, empty = [], []
    for place, z, count, value, title in zip(
        places, keyframes.z, keyframes.count, values, titles, strict=True
    ):
        if count == 0:
            empty.append(Dot(place, BOTTOM, f"z {z}: nothing detected"))
        elif np.isfinite(value):
            dots.append(Dot(place, y(float(value)), title))
    return Chart(
        summary=summary,
        y_label=y_label,
        x_ticks=[Tick(x(at), f"{at:.0f}") for at in _nice(x, 12, integer=True)],
        y_ticks=[Tick(y(at), short(at)) for at in _nice(y, 5)],
        line=line,
        fill=fill,
        dots=dots,
        empty=empty,
        keyframes="".join(f"M{place} {BOTTOM}v6" for place in places),
    )


def _nice(scale: _Scale, most: int, *, integer: bool = False) -> list[float]:
    ticks = MaxNLocator(most, integer=integer).tick_values(scale.low, scale.high)
    return [float(tick) for tick in ticks if scale.low <= tick <= scale.high]


def _thinned(
    edges: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Average neighbouring steps of a line that has more of them than can be seen."""
    together = -(-len(values) // STEPS)
    starts = np.arange(0, len(values), together)
    sums = np.add.reduceat(values * np.diff(edges), starts)
    coarse = np.append(edges[starts], edges[-1])
    return coarse, sums / np.diff(coarse)


def _steps(
    edges: NDArray[np.int64], values: NDArray[np.float64], x: _Scale, y: _Scale
) -> tuple[str, str]:
    """Write a stepped line, and the area below it, as SVG paths."""
    line = f"M{x(float(edges[0]))} {y(float(values[0]))}"
    for end, value in zip(edges[1:], values, strict=True):
        line += f"V{y(float(value))}H{x(float(end))}"
    return line, f"{line}V{BOTTOM}H{LEFT}Z"
