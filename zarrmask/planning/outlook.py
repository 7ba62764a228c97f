"""A forecast for a person, in lines that fit a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import NamedTuple

from zarrmask.errors import sized
from zarrmask.planning.forecast import Forecast

WIDTH = 68
"""Characters of a line, less the names before it."""


class Outlook(NamedTuple):
    """What a run, or a conversion, will take.

    Attributes
    ----------
    forecast : Forecast
        Of all of it.
    left : float
        Share of its bricks that is to be written: of an output that is unfinished not all.
    hours : float or None
        That the whole work will take; None where they were not measured.
    """

    forecast: Forecast
    left: float
    hours: float | None


def describe_forecast(forecast: Forecast, free: int | None, hours: float | None) -> dict[str, str]:
    """Say what the work will take.

    Parameters
    ----------
    forecast : Forecast
    free : int or None
        Bytes that are free on the target; None where nobody knows.
    hours : float or None
        That it will take; None where that was not measured.

    Returns
    -------
    dict
        Names, and what to print behind them.
    """
    plan, crew, memory = forecast.plan, forecast.crew, forecast.memory
    grid, itemsize = plan.grid, forecast.source.dtype.itemsize
    z, y, x = grid.brick
    lines = {
        "slices": f"{plan.shape[0]:,} of {plan.shape[1]:,} x {plan.shape[2]:,}, "
        f"{forecast.source.dtype}: {sized(grid_bytes(plan.shape, itemsize))}",
    }
    if forecast.detects:
        lines["keyframes"] = f"{forecast.keyframes:,}"
        if (least := forecast.keyframes_at_least) < forecast.keyframes:
            lines["keyframes"] = (
                f"{least:,} to {forecast.keyframes:,}: as many as it takes until neighbours agree; "
                "all that follows is for the most there may be"
            )
    lines["bricks"] = (
        f"{len(grid):,} ({times(grid.counts)}), each {z:,} x {y:,} x {x:,} voxels, "
        f"{sized(grid_bytes(grid.brick, itemsize))}"
    )
    stages = [f"{name} {count:,}" for name, count in forecast.tasks.items()]
    lines["tasks"] = f"{sum(forecast.tasks.values()):,}: " + ",\n".join(stages)
    read = forecast.bytes_read
    lines["reads"] = f"{sized(sum(read.values()))}, if nothing were compressed"
    if (keyframes := read.get("keyframes", 0)) > read["bricks"]:
        lines["reads"] += (
            f";\n{sized(keyframes)} of it for keyframes: each lies in chunks of many slices"
        )
    written, files = forecast.bytes_written, forecast.files
    lines["writes"] = (
        f"{sized(sum(written.values()))} at most, if nothing were compressed or left out;\n"
        f"{sum(files.values()):,} files at most\n"
        + "\n".join(
            f"{name:<9} {len(pyramid.levels)} levels {sized(written[name]):>9} "
            f"{files[name]:>12,} files"
            for name, pyramid in forecast.pyramids.items()
        )
    )
    lines["scratch"] = f"{sized(forecast.scratch_bytes)} beside the output, while it is written"
    lines["free"] = "unknown" if free is None else f"{sized(free)} on the target"
    there = "unknown" if crew.memory is None else sized(crew.memory)
    workers = "1 process" if crew.workers == 1 else f"{crew.workers} processes"
    threads = "" if crew.threads == 1 else f" of {crew.threads} tasks at once"
    lines["workers"] = workers + threads
    lines["memory"] = f"{sized(memory.total)} at most of {there}: {sized(memory.a_worker)} a worker"
    lines["time"] = "not measured; --measure does" if hours is None else took(hours)
    if hours is not None and forecast.keyframes_at_least < forecast.keyframes:
        lines["time"] = f"at most {lines['time']}"
    return lines


def grid_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes of a volume."""
    z, y, x = shape
    return z * y * x * itemsize


def times(shape: tuple[int, ...]) -> str:
    """Sides of a volume."""
    return " x ".join(f"{size:,}" for size in shape)


def took(hours: float) -> str:
    """Hours for a person.

    Examples
    --------
    >>> took(0.01), took(0.2), took(30)
    ('36 seconds', '12 minutes', '30.0 hours')
    """
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} seconds"
    return f"{hours * 60:.0f} minutes" if hours < 1 else f"{hours:.1f} hours"


def in_columns(lines: Mapping[str, str]) -> str:
    """Set names and texts in two columns, of 80 characters together."""
    rows = [
        (name if first else "", row) for name, text in lines.items() for first, row in _rows(text)
    ]
    return "\n".join(f"{name:<12}{row}".rstrip() for name, row in rows)


def _rows(text: str) -> list[tuple[bool, str]]:
    """Lines of at most 68 characters, and whether each is the first."""
    rows = [
        row
        for line in text.splitlines()
        for row in ([line] if len(line) <= WIDTH else wrap(line, WIDTH, break_on_hyphens=False))
    ]
    return [(place == 0, row) for place, row in enumerate(rows)]
