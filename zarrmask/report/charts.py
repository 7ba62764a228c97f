"""Curves of the HTML page: where things go, in pixels. The template draws them as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from zarrmask.report.views import Views
from zarrmask.report.words import short

WIDTH, HIGH, LOW = 1100, 240, 170
"""Of a chart, pixels: one that is looked at first is higher."""
LEFT, RIGHT, TOP, BELOW = 96, 1070, 12, 50
STEPS = 1500
"""A line has at most this many steps: more than the page has pixels to show."""
BANDS = 300
"""Suspicious ranges that are shaded, at most."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Band:
    """A part of z, with what is told on hovering."""

    x: float
    width: float
    title: str


@dataclass(frozen=True)
class Series:
    """Something drawn: a path, how it looks (a class of the style sheet), and what it is."""

    look: str
    path: str
    name: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart, all places in pixels of its view box.

    Attributes
    ----------
    title : str
    summary : str
        What it shows, for those who cannot see it.
    series : sequence of Series
        In the order in which they are drawn.
    bands : sequence of Band
        Suspicious ranges.
    threshold : Tick or None
        A level to compare with.
    width, height, left, right, top, bottom : int
        Size of the view box, and where the axes lie in it.
    """

    title: str
    summary: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    series: Sequence[Series]
    bands: Sequence[Band] = ()
    threshold: Tick | None = None
    height: int = HIGH
    width: int = WIDTH
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP

    @property
    def bottom(self) -> int:
        """Where the lower axis lies."""
        return self.height - BELOW


@dataclass(frozen=True)
class _Scale:
    """A straight map from values to half pixels: what falls together is drawn once."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(2 * (self.start + share * (self.end - self.start))) / 2


def curves(views: Views, threshold: float | None) -> list[Chart]:
    """Chart what there is along z: area, centre, pieces, score, agreement with the next keyframe.

    Parameters
    ----------
    threshold : float or None
        Score above which detections count.
    """
    scores = views.keyframes.best_score
    charts = [area_chart(views)]
    if views.keyframes.sketches:
        charts += [_centre_chart(views), _pieces_chart(views)]
    charts.append(
        _chart(
            views,
            "Best score on each keyframe",
            "best score",
            [("dot", "best detection", views.keyframes.z + 0.5, scores)],
            (0.0, 1.05),
            threshold=threshold,
        )
    )
    if views.keyframes.sketches and len(scores) > 1:
        charts.append(_agreement_chart(views))
    return charts


def area_chart(views: Views) -> Chart:
    """Chart the mask's area over z, and the area as detected on each keyframe."""
    unit, name = views.area_unit
    keyframes = views.keyframes
    edges, area = _thinned(views.survey.edges + views.first_z, views.survey.area * unit)
    found = np.where(keyframes.count > 0, keyframes.area * unit, np.nan)
    top = max(area.max(initial=0), np.nanmax(found, initial=0)) or 1.0
    x = _Scale(views.first_z, views.stop_z, LEFT, RIGHT)
    y = _Scale(0, top * 1.05, HIGH - BELOW, TOP)
    line, fill = _steps(edges, area, x, y)
    return _chart(
        views,
        "Mask area over z",
        f"mask area, {name}",
        [("dot", "keyframe, as detected", keyframes.z + 0.5, found)],
        (0, top * 1.05),
        height=HIGH,
        beneath=[Series("fill", fill), Series("line", line, "mask")],
        summary=f"Mask area over z, from {views.first_z} to {views.stop_z - 1}: at most "
        f"{short(float(area.max(initial=0)))} {name}.",
    )


def _centre_chart(views: Views) -> Chart:
    keyframes = views.keyframes
    away = keyframes.centre - _middle(keyframes.centre)
    most = max(1.0, float(np.nanmax(np.abs(away), initial=0.0)))
    z = keyframes.z + 0.5
    return _chart(
        views,
        "Centre of each keyframe's mask",
        "from usual, voxels",
        [("dot", "x", z, away[:, 1]), ("box", "y", z, away[:, 0])],
        (-1.1 * most, 1.1 * most),
    )


def _middle(centre: NDArray[np.float64]) -> NDArray[np.float64]:
    known = centre[np.isfinite(centre).all(axis=1)]
    return np.median(known, axis=0) if len(known) else np.zeros(2)


def _pieces_chart(views: Views) -> Chart:
    pieces = views.keyframes.pieces
    return _chart(
        views,
        "Pieces of each keyframe's mask",
        "pieces",
        [("dot", "keyframe", views.keyframes.z + 0.5, pieces)],
        (0, 1.1 * max(1.0, float(np.nanmax(pieces, initial=1.0)))),
        integer=True,
    )


def _agreement_chart(views: Views) -> Chart:
    agreement = views.keyframes.agreement
    z = (views.keyframes.z[1:] + views.keyframes.z[:-1]) / 2 + 0.5
    low = min(0.9, float(np.nanmin(agreement, initial=1.0)))
    return _chart(
        views,
        "Agreement of neighbouring keyframes",
        "IoU",
        [("dot", "of two neighbours' masks, before dilation", z, agreement)],
        (max(0.0, low - 0.05), 1.01),
    )


def _chart(
    views: Views,
    title: str,
    y_label: str,
    dots: Sequence[tuple[str, str, NDArray, NDArray[np.float64]]],
    span: tuple[float, float],
    *,
    height: int = LOW,
    beneath: Sequence[Series] = (),
    summary: str = "",
    threshold: float | None = None,
    integer: bool = False,
) -> Chart:
    """Chart dots (look, name, z, values) over z."""
    keyframes = views.keyframes
    bottom = height - BELOW
    x = _Scale(views.first_z, views.stop_z, LEFT, RIGHT)
    y = _Scale(*span, bottom, TOP)
    places = [x(z + 0.5) for z in keyframes.z.tolist()]
    ticks = "".join(f"M{place} {bottom}v6" for place in dict.fromkeys(places))
    series = [*beneath, Series("axis", ticks)]
    series += [Series(look, _dots(z, values, x, y), name) for look, name, z, values in dots]
    empty = [place for place, count in zip(places, keyframes.count, strict=True) if not count]
    if empty:
        triangles = "".join(f"M{place} {bottom}l-6 -11h12z" for place in dict.fromkeys(empty))
        series.append(Series("empty", triangles, "keyframe without a detection"))
    if views.bad:
        bad = dict.fromkeys(x(z + 0.5) for z in views.bad)
        lines = "".join(f"M{place} {TOP}V{bottom}" for place in bad)
        series.append(Series("bad", lines, "slice that could not be read"))
    return Chart(
        title=title,
        summary=summary or _summary(title, dots),
        x_label="slice z",
        y_label=y_label,
        x_ticks=[Tick(x(at), f"{at:.0f}") for at in _nice(x, 12, integer=True)],
        y_ticks=[Tick(y(at), short(at)) for at in _nice(y, 5, integer=integer)],
        series=series,
        bands=_bands(views, x),
        threshold=None if threshold is None else Tick(y(threshold), f"threshold {threshold:g}"),
        height=height,
    )


def _summary(title: str, dots: Sequence[tuple[str, str, NDArray, NDArray[np.float64]]]) -> str:
    parts = []
    for _, name, _, values in dots:
        known = values[np.isfinite(values)]
        told = f"{short(known.min())} to {short(known.max())}" if known.size else "there is none"
        parts.append(f"{name}: {told}" if len(dots) > 1 else told)
    return f"{title}: {', '.join(parts)}."


def _dots(z: NDArray, values: NDArray[np.float64], x: _Scale, y: _Scale) -> str:
    """Write dots as a path of steps of no length, which round ends make visible."""
    known = np.isfinite(values)
    places = [(x(float(at)), y(float(v))) for at, v in zip(z[known], values[known], strict=True)]
    return "".join(f"M{across:g} {up:g}h0" for across, up in dict.fromkeys(places))


def _bands(views: Views, x: _Scale) -> list[Band]:
    z = views.keyframes.z
    bands = []
    for one, _ in views.suspects[:BANDS]:
        left, right = x(float(z[one.first])), x(float(z[one.last]) + 1)
        width = max(right - left, 3.0)
        bands.append(Band(round((left + right - width) / 2, 1), round(width, 1), one.why[0]))
    return bands


def histogram(views: Views) -> Chart | None:
    """Chart how often each grey value was kept and removed; None where nothing was kept."""
    greys = views.greys
    kept = greys.kept.sum(axis=0)
    both = kept + greys.removed
    if not kept.any():
        return None
    first, last = (greys.percentile(share, both) for share in (0.0005, 0.9995))
    together = max(1, -(-(last - first + 1) // 160))
    stop = first + -(-(last - first + 1) // together) * together
    starts = np.arange(first, min(stop, len(both)), together)
    edges = greys.edges[np.append(starts, min(stop, len(both)))]
    heights = [
        np.add.reduceat(counts[: min(stop, len(both))], starts) / max(1, counts.sum())
        for counts in (kept, greys.removed)
    ]
    top = float(max(one.max() for one in heights)) or 1.0
    x = _Scale(float(edges[0]), float(edges[-1]), LEFT, RIGHT)
    y = _Scale(0, 105 * top, HIGH - BELOW, TOP)
    line, fill = _steps(edges, heights[0] * 100, x, y)
    series = [Series("fill", fill), Series("line", line, "kept")]
    if greys.removed.any():
        series.append(Series("other", _steps(edges, heights[1] * 100, x, y)[0], "removed"))
    return Chart(
        title="Grey values that were kept and removed",
        summary="Histogram of grey values: most kept ones lie about "
        f"{short(float(greys.edges[greys.percentile(0.5, kept)]))}"
        + (
            f", most removed ones about "
            f"{short(float(greys.edges[greys.percentile(0.5, greys.removed)]))}."
            if greys.removed.any()
            else "."
        ),
        x_label="grey value",
        y_label="share, %",
        x_ticks=[Tick(x(at), f"{at:,.0f}") for at in _nice(x, 10, integer=True)],
        y_ticks=[Tick(y(at), short(at)) for at in _nice(y, 5)],
        series=series,
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


def _steps(edges: NDArray, values: NDArray[np.float64], x: _Scale, y: _Scale) -> tuple[str, str]:
    """Write a stepped line, and the area below it, as SVG paths."""
    line = f"M{x(float(edges[0]))} {y(float(values[0]))}"
    for end, value in zip(edges[1:], values, strict=True):
        line += f"V{y(float(value))}H{x(float(end))}"
    return line, f"{line}V{y.start}H{LEFT}Z"
