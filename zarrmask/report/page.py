"""`report.html`: a run on one page, in one file that loads nothing from anywhere."""

from __future__ import annotations

import shlex
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from zarrmask.errors import counted, listed
from zarrmask.report import headline, words
from zarrmask.report.charts import curves, histogram
from zarrmask.report.levels import open_levels
from zarrmask.report.pictures import FRAME, SECTION, SLICE, SUSPECT, Picture, picture
from zarrmask.report.suspects import Suspect, at_border_always, corrections
from zarrmask.report.views import Views
from zarrmask.report.words import DASH, number, pick, plain
from zarrmask.storage.atomic import replace_file
from zarrmask.storage.place import Place, is_local

PROJECT = "scroll.khprj"
FILES = {
    "volume.zarr": "the stack",
    "mask.zarr": "the mask, 0 or 255",
    "masked.zarr": "the stack with zeros outside the mask",
    "keyframes.zarr": "what the detector said on each keyframe",
    PROJECT: "a khartes project that holds these volumes",
    "overview.png": "the pictures of this page on one sheet",
    "run.json": "settings, versions, timings, all figures of this page",
}


SCRIPT = files("zarrmask.report").joinpath("slider.js").read_text(encoding="utf8")
LISTED = 100
"""Rows of a table, at most: of suspicious ranges, of slices that could not be read."""
REASONS = 4
"""Told of one of them, at most."""


@dataclass(frozen=True)
class Range:
    """A suspicious range as the template shows it."""

    slices: str
    why: Sequence[str]
    weight: int  # of 100
    means: str  # of correcting it; empty where that was done
    correct: str  # the command
    pictures: Sequence[tuple[Picture, bool]]  # and whether it is the worst


def write_report(out: Place, record: Mapping[str, Any], views: Views) -> Place:
    """Write `report.html` of a finished run, one file with all pictures in it.

    Parameters
    ----------
    out : Place
        The run's folder; of its pyramids only the metadata are read.
    record : mapping
        The content of its `run.json`; what is missing is shown as a dash.
    views : Views
        What `read_views` gave of it.

    Returns
    -------
    Place
        The page.

    Raises
    ------
    OutputError
        The run's pyramids are missing or cannot be read.
    """
    environment = Environment(
        loader=PackageLoader("zarrmask.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    page = environment.get_template("report.html.j2").render(_content(views, out, record))
    path = out / "report.html"
    # A file name that is no UTF-8 holds lone surrogates, which cannot be encoded.
    replace_file(path, page.encode("utf-8", errors="replace"))
    return path


def _content(views: Views, out: Place, record: Mapping[str, Any]) -> dict[str, Any]:
    """Gather all that the template shows."""
    folder = out.absolute()
    for_khartes = is_local(out) and (out / "mask.zarr" / ".zgroup").exists()  # zarr 2, in folders
    absent = set() if for_khartes else {PROJECT}
    absent |= set() if (out / "volume.zarr").is_dir() else {"volume.zarr"}
    return {
        "title": headline.title(out, record),
        "summary": headline.slices(views) + ", " + headline.size_in_voxels(views),
        "how": headline.how(record),
        "command": pick(record, "command"),
        "tiles": _tiles(views, record),
        "warnings": _warnings(views, record),
        "from_masked": views.from_masked,
        "slices": [picture(views, plane, SLICE) for plane in views.slices],
        "frames": [picture(views, plane, FRAME) for plane in views.frames],
        "sections": [picture(views, plane, SECTION) for plane in views.sections]
        if views.shape[0] > 1
        else [],
        "lying": views.lying,
        "held": _held(record),
        "ranges": _ranges(views, out, record),
        "corrections": _corrections(record),
        "bad_slices": words.bad_slices(record)[:LISTED],
        "bad_unlisted": max(0, len(words.bad_slices(record)) - LISTED),
        "unlisted": max(0, len(views.suspects) - LISTED),
        "measured": bool(views.keyframes.sketches),
        "before": "the mask as it was given" if _given(record) else "what the detector found",
        "curves": curves(views, number(pick(record, "settings", "score"))),
        "greys": histogram(views),
        "script": SCRIPT,
        "script_hash": b64encode(sha256(SCRIPT.encode()).digest()).decode(),
        "tables": _tables(record),
        "stages": _stages(record),
        "files": [
            (name, use, _stored(out / name)) for name, use in FILES.items() if name not in absent
        ],
        "folder": str(folder),
        "khartes": f"python khartes.py {shlex.quote(str(folder / PROJECT))}"
        if for_khartes
        else None,
        "masked": repr(str(folder / "masked.zarr")),
        "first_z": views.first_z,
    }


def _given(record: Mapping[str, Any]) -> bool:
    """Whether the masks were given: there was no detector."""
    return pick(record, "masks") is not None


def _tiles(views: Views, record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Give the figures that matter most: what, how much, out of what."""
    voxels = partial(pick, record, "voxels")
    share = partial(words.percent, whole=voxels("total"))
    keyframes = views.keyframes
    empty, replaced = len(keyframes.empty_z), int(np.count_nonzero(~keyframes.used))
    doubtful = len(views.doubtful)
    corrected = len(views.suspects) - doubtful
    return [
        ("kept", share(voxels("kept")), f"{words.large(voxels('kept'))} voxels"),
        ("removed", share(voxels("removed")), f"{words.large(voxels('removed'))} voxels"),
        ("slices", f"{views.shape[0]:,}", headline.slices(views).split(" ", 1)[1]),
        (
            "keyframes",
            f"{len(keyframes.z):,}",
            (f"{empty:,}" if empty else "none")
            + (" empty" if _given(record) else " without a detection")
            + (f", {replaced:,} replaced" if replaced else ""),
        ),
        (
            "to look at",
            f"{doubtful:,}",
            "suspicious range"
            + ("" if doubtful == 1 else "s")
            + (f", {corrected:,} corrected" if corrected else ""),
        ),
        ("time", words.duration(headline.run_seconds(record)), _sessions(record)),
        ("peak memory", words.size(pick(record, "peak_memory_bytes")), _processes(record)),
    ]


def _warnings(views: Views, record: Mapping[str, Any]) -> list[str]:
    """Give what the run warned of, and each keyframe without a detection if it named only some."""
    given = pick(record, "warnings")
    warnings = [str(one) for one in given] if isinstance(given, list | tuple) else []
    empty = views.keyframes.empty_z
    named = ", ".join(str(z) for z in empty)
    if empty and not any(named in warning for warning in warnings):
        among = [int(z) for z in views.keyframes.z]
        warnings.append(f"Keyframes without a detection: z {words.runs(empty, among)}")
    if at_border_always(views.keyframes):
        warnings.append(
            "Most keyframes' masks touch the slice's border: the object may reach beyond what was "
            "scanned, or the mask takes what is around it."
        )
    if not views.survey.area.any():
        warnings.append("The mask is empty: nothing was kept.")
    return warnings


def _input(record: Mapping[str, Any]) -> Any:
    """Give the input's entry, its missing slices as ranges: there can be thousands."""
    values = pick(record, "input")
    missing = pick(values, "missing")
    if isinstance(missing, list | tuple) and missing and all(type(z) is int for z in missing):
        among = range(min(missing), max(missing) + 1)
        return {**values, "missing": words.runs(missing, among)}
    return values


def _settings(record: Mapping[str, Any]) -> Any:
    """Give the settings, and what they came to on this stack."""
    values = pick(record, "settings")
    came_to = {
        "detect window used": pick(record, "detect_window"),
        "window used": pick(record, "window"),
        "dilation, pixels": pick(record, "dilation_pixels"),
    }
    known = {name: value for name, value in came_to.items() if value is not None}
    return {**values, **known} if isinstance(values, Mapping) else values


def _ranges(views: Views, out: Place, record: Mapping[str, Any]) -> list[Range]:
    """Give the suspicious ranges, the worst first."""
    z = views.keyframes.z.tolist()
    ranges = []
    for one, planes in views.suspects[:LISTED]:
        first, last = z[one.first], z[one.last]
        why = [*one.why[:REASONS]]
        why += [f"and {len(one.why) - REASONS} more"] if len(one.why) > REASONS else []
        worst = z[one.worst] - views.first_z
        pictures = [(picture(views, plane, SUSPECT), plane.index == worst) for plane in planes]
        slices = f"z {first}" if first == last else f"z {first} to {last}"
        correcting = ("", "")
        if not one.corrected:
            correcting = _correcting(views, out, one, held=_held(record), given=_given(record))
        ranges.append(Range(slices, why, round(100 * min(1, one.weight)), *correcting, pictures))
    return ranges


def _held(record: Mapping[str, Any]) -> bool:
    """Whether a mask counts until the next."""
    return bool(pick(record, "settings", "propagate") == "hold")


def _correcting(
    views: Views, out: Place, one: Suspect, *, held: bool, given: bool
) -> tuple[str, str]:
    """Say how a range may be corrected, and write the command.

    The mask of a good neighbour is held over it; at an end of the stack, where the object ends, it
    is looked at more closely: by whoever gave the masks, else by the detector. Where masks are
    held, a keyframe's reaches to the next; else it shapes those on both sides.
    """
    z = views.keyframes.z.tolist()
    before = z[one.first - 1] if one.first else None
    behind = z[one.last + 1] if one.last + 1 < len(z) else None
    start = z[one.first] if held else views.first_z if before is None else before + 1
    stop = views.stop_z if behind is None else behind
    command = f"zarrmask redo {shlex.quote(str(out.absolute()))} --z {start}:{stop}"
    if before is not None and behind is not None:
        return "hold a good neighbour’s mask over it", f"{command} --from {before}"
    if given:
        return "give more masks for it, in a folder of their own", f"{command} --masks MORE"
    apart = min((b - a for a, b in pairwise(z[max(one.first - 1, 0) : one.last + 2])), default=2)
    return "look at it more closely", f"{command} --detect-every {max(1, apart // 2)}"


def _corrections(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give what was corrected since: how, how many voxels came or went, and where nothing was."""
    told = []
    for entry in corrections(record):
        voxels = number(pick(entry, "voxels")) or 0
        start, stop = pick(entry, "z")
        asked = {**pick(entry, "how")}
        asked |= asked.pop("detect", {})
        how = ", ".join(
            name if v is True else f"{name} {plain(pick(v, 'path') or v)}"
            for name, v in asked.items()
        )
        change = f"{words.large(abs(voxels))} voxels {'more' if voxels >= 0 else 'fewer'} kept"
        empty = pick(entry, "detected", "without_detection")
        if isinstance(empty, list | tuple) and empty:
            change += f"; nothing was found on {listed(empty)}"
        told.append((f"z {start} to {stop - 1}: {how}", change))
    return told


def _tables(record: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Give tables of names and values; one that the record lacks holds a dash."""
    return [
        ("Settings", _rows(_settings(record))),
        ("Input", _rows(_input(record))),
        ("Checkpoint", _rows(pick(record, "checkpoint"))),
        ("Versions", _rows(pick(record, "versions"))),
    ]


def _rows(values: Any) -> list[tuple[str, str]]:
    if not isinstance(values, Mapping) or not values:
        return [(DASH, DASH if values is None else plain(values))]
    return [(str(key).replace("_", " "), plain(value)) for key, value in values.items()]


def _processes(record: Mapping[str, Any]) -> str:
    most, lost = (number(pick(record, "workers", name)) for name in ("most", "lost"))
    if most is None:
        return "all processes"
    return f"{most:.0f} workers" + (f", {lost:.0f} lost" if lost else "")


def _sessions(record: Mapping[str, Any]) -> str:
    return "since it went on" if pick(record, "resumed") else "all stages"


def _stages(record: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Give each stage's name, time, amount and rate."""
    stages = pick(record, "stages")
    rows = []
    for stage in stages if isinstance(stages, list | tuple) else ():
        seconds, items = number(pick(stage, "seconds")), number(pick(stage, "items"))
        unit = pick(stage, "unit") or ""
        amount = DASH if items is None else f"{items:,.0f} {unit}".strip()
        timed = seconds is not None and seconds >= 0.05 and items is not None
        rate = f"{words.short(items / seconds)} {unit}/s" if timed else DASH  # type: ignore[operator]
        rows.append((plain(pick(stage, "name")), words.duration(seconds), amount, rate))
    return rows


def _stored(path: Place) -> str:
    """Say what an output holds: of a pyramid its size, type and levels."""
    if path.name not in ("volume.zarr", "mask.zarr", "masked.zarr"):
        return ""
    pyramid = open_levels(path)
    shape = " × ".join(f"{side:,}" for side in pyramid.shape)
    return f"{shape}, {pyramid.levels[0].dtype}, {counted(len(pyramid.levels), 'levels')}"
