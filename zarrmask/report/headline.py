"""What a run is called, what came of it and how it was set: a line each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zarrmask.errors import counted
from zarrmask.report.views import Views
from zarrmask.report.words import DASH, duration, number, percent, pick, plain
from zarrmask.storage.place import Place


def title(out: Place, record: Mapping[str, Any]) -> str:
    """Name a run after its input, or after its folder where the record names no input."""
    path = pick(record, "input", "path")
    name = Path(path).name if isinstance(path, str) else ""
    return f"{name or out.absolute().name}, masked"


def headline(views: Views, record: Mapping[str, Any]) -> str:
    """Sum a run up: slices, keyframes, what is kept, how long it took."""
    kept = percent(pick(record, "voxels", "kept"), pick(record, "voxels", "total"))
    parts = [f"{slices(views)}, {size_in_voxels(views)}", keyframes(views)]
    parts += [f"{kept} kept"] if kept != DASH else []
    seconds = run_seconds(record)
    parts += [duration(seconds)] if seconds is not None else []
    return "   ·   ".join(parts)


def how(record: Mapping[str, Any]) -> str:
    """Name the program, the checkpoint and the settings that shape a mask."""
    checkpoint = pick(record, "checkpoint", "path")
    parts = [f"zarrmask {plain(pick(record, 'zarrmask'))}"]
    parts += [f"checkpoint {Path(checkpoint).name}"] if isinstance(checkpoint, str) else []
    parts += [
        f"{name} {plain(value)}"
        for name in ("every", "score", "dilate")
        if (value := pick(record, "settings", name)) is not None
    ]
    return "   ·   ".join(parts)


def slices(views: Views) -> str:
    """Write which slices a run covers, the last one included."""
    if views.shape[0] == 1:
        return f"slice z {views.first_z}"
    return f"slices z {views.first_z} to {views.stop_z - 1}"


def size_in_voxels(views: Views) -> str:
    """Write a volume's size in voxels, z first."""
    return " × ".join(f"{side:,}" for side in views.shape) + " voxels"


def keyframes(views: Views) -> str:
    """Write how many keyframes there are, and on how many there is nothing."""
    empty = len(views.keyframes.empty_z)
    every = counted(len(views.keyframes.z), "keyframes")
    return every + (f", {empty:,} without a detection" if empty else "")


def run_seconds(record: Mapping[str, Any]) -> float | None:
    """Count the seconds in which any stage went on; None where the record has none.

    Examples
    --------
    >>> run_seconds({"stages": [{"seconds": 5, "began": 1}, {"seconds": 2, "began": 3}]})
    5.0
    """
    stages = pick(record, "stages")
    spans = [
        (number(pick(stage, "began")), seconds)
        for stage in (stages if isinstance(stages, list | tuple) else ())
        if (seconds := number(pick(stage, "seconds"))) is not None
    ]
    timed = sorted((began, began + seconds) for began, seconds in spans if began is not None)
    if len(timed) < len(spans):  # records of earlier versions do not tell when stages began
        return sum(seconds for _, seconds in spans)
    total, last = 0.0, float("-inf")
    for began, ended in timed:
        total += max(ended - max(began, last), 0.0)
        last = max(last, ended)
    return total if spans else None
