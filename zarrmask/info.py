"""What a path holds, in a few lines for a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from zarrmask.correcting.corrections import Correction
from zarrmask.detection.files import SUFFIXES
from zarrmask.errors import ZarrmaskError, some_of
from zarrmask.images.numbered import EXPORTED, PROXIES
from zarrmask.pyramid import open_pyramid, read_metadata
from zarrmask.records.damage import ENTRIES
from zarrmask.records.journal import CORRECTING, Journal, RecordFile, to_go_on
from zarrmask.stack import open_source
from zarrmask.storage.place import Place, place_of, reached, written_command
from zarrmask.training import METRICS

LISTED = 20  # bad slices named
IMAGES = {EXPORTED: "slices that were exported from a run", PROXIES: "proxies of a stack"}
"""What a folder of images is that has this record."""


def describe(path: str | Place) -> dict[str, str]:
    """Say what a stack, a run's folder or an OME-Zarr is, or what else zarrmask writes.

    Parameters
    ----------
    path : path, URL or UPath

    Returns
    -------
    dict
        Names and values to print.

    Raises
    ------
    ZarrmaskError
        Where it is none of them.
    """
    place = place_of(path)
    with reached(place, to_be="read"):
        record = Journal.of_run(place).read()
        if record is not None:
            return _run(record)
        if place.suffix in SUFFIXES and place.is_file():
            command = written_command(["zarrmask", "checkpoint", "inspect", str(place)])
            return {"weights": f"of a detector, it seems; to look into them: {command}"}
        if place.name == "keyframes.zarr" and Journal.of_run(place.parent).read() is not None:
            command = written_command(["zarrmask", "info", str(place.parent)])
            return {"keyframes": f"what a run found on them; to see what it made: {command}"}
        if isinstance(place, Path) and (place / METRICS).is_file():
            return _training(place)
        try:
            return _pyramid(place)
        except ZarrmaskError:
            return _images(place) | _stack(place)


def _run(record: dict) -> dict[str, str]:
    if record["state"] == CORRECTING:
        return {"run": f"being corrected; to go on: {record['pending']['command']}"}
    if record["state"] != "finished":
        return {"run": f"{record['state']}; {to_go_on(record)}"}
    voxels, keyframes = record["voxels"], record["keyframes"]
    empty = len(keyframes["without_detection"])
    return {
        "run": f"finished, zarrmask {record['zarrmask']}",
        "input": f"{record['input']['path']} ({record['input']['kind']})",
        "slices": f"{record['z'][0]} to {record['z'][1] - 1}",
        "shape": _times(record["shape"]),
        "kept": f"{voxels['kept'] / voxels['total']:.1%} of {voxels['total']:,} voxels",
        "keyframes": f"{keyframes['count']}, {empty} without detection",
        "bad slices": _bad(record.get(ENTRIES, [])),
        "corrections": "\n".join(_corrections(record)) or "none",
        "warnings": "\n".join(record["warnings"]) or "none",
    }


def _corrections(record: dict[str, Any]) -> list[str]:
    entries = map(Correction.from_json, record.get("corrections", []))
    return [" ".join(correction.arguments) for correction in entries]


def _bad(entries: list[dict]) -> str:
    return some_of([f"{entry['z']} {entry['treated']}" for entry in entries], LISTED) or "none"


def _training(path: Path) -> dict[str, str]:
    """How far a training came, detectron2's too, and what it left."""
    # Only here: matplotlib, which draws them, takes a while.
    from zarrmask.training.curves import ITERATION, PICTURE, read_metrics

    done = [line[ITERATION] + 1 for line in read_metrics(path / METRICS)]
    weights = sorted(one.name for one in path.iterdir() if one.suffix in SUFFIXES)
    lines = {
        "training": f"{max(done, default=0):,} iterations, by {METRICS}",
        "weights": some_of(weights, LISTED) or "none yet",
    }
    if weights:
        command = ["zarrmask", "checkpoint", "inspect", str(path / weights[0])]
        lines["inspect"] = written_command(command)
    if (path / PICTURE).is_file():
        lines["curves"] = str(path / PICTURE)
    return lines


def _pyramid(path: Place) -> dict[str, str]:
    tree = open_pyramid(path)
    metadata = read_metadata(path)
    lines = {"image": f"OME-Zarr, NGFF {metadata.get('version')}, {metadata.get('name')}"}
    for name, level in tree.children.items():
        image = level["image"]
        lines[f"level {name}"] = f"{_times(image.shape)} {image.dtype}"
    finest = next(iter(tree.children.values()))
    if size := _voxel_size(finest.dataset["image"]):
        lines["voxel size"] = size
    if place := _place(finest.dataset["image"]):
        lines["begins at"] = place
    if (record := Journal.of_conversion(path).read()) is not None:
        lines["bad slices"] = _bad(record.get(ENTRIES, []))
        lines["missing"] = some_of(record.get("missing", []), LISTED) or "none"
    return lines


def _place(image: xr.DataArray) -> str:
    """Where an image begins in what it was cut from; nothing where it begins with that."""
    axes = [(name, image.coords[name]) for name in image.dims[-3:] if name in image.coords]
    scales = image.attrs["scale"][-len(axes) :]
    starts = [float(axis[0]) / scale for (_, axis), scale in zip(axes, scales, strict=True)]
    if not any(starts):
        return ""
    told = (f"{name} {start:.6g}" for (name, _), start in zip(axes, starts, strict=True))
    return f"{', '.join(told)} (voxels of what it was cut from)"


def _voxel_size(image: xr.DataArray) -> str:
    """A voxel's sides, once if all are the same; nothing where their unit is not told."""
    axes = [image.coords[name] for name in image.dims[-3:] if name in image.coords]
    sides = [
        f"{float(axis[1] - axis[0]):g} {axis.attrs['units']}"
        for axis in axes
        if "units" in axis.attrs and len(axis) > 1
    ]
    return " x ".join(sides[:1] if len(set(sides)) == 1 else sides)


def _images(path: Place) -> dict[str, str]:
    """Whose images a folder holds, where zarrmask wrote them."""
    for name, what in IMAGES.items():
        if (record := RecordFile(name).read(path)) is not None:
            finished = "" if record["state"] == "finished" else "; not finished"
            return {"images": f"{what}, zarrmask {record['zarrmask']}{finished}"}
    return {}


def _stack(path: Place) -> dict[str, str]:
    source = open_source(path, allow_missing=True)
    size = source.voxel_size
    stated = source.oblong or "not stated" if size is None else f"{size:g} micrometres"
    return {
        "stack": source.kind,
        "shape": f"{_times(source.shape)} {source.dtype}",
        "slices": f"{source.numbers[0]} to {source.numbers[-1]}, {len(source.missing)} missing",
        "voxel size": stated,
    }


def _times(shape: tuple[int, ...] | list[int]) -> str:
    return " x ".join(str(size) for size in shape)
