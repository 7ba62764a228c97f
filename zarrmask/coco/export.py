"""A run's keyframes as images and annotations, for a person to correct."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask import __version__
from zarrmask.coco.polygons import polygons_of
from zarrmask.coco.region import Region
from zarrmask.coco.undilated import Undilated, told, undilated_masks
from zarrmask.contrast import detected_window
from zarrmask.detection.inputs import to_8bit
from zarrmask.errors import OutputError, listed
from zarrmask.masking.sketch import SPECK, agreement
from zarrmask.progress import Reporter
from zarrmask.records.damage import slices_of
from zarrmask.records.journal import finished_record
from zarrmask.storage.atomic import require_replaceable, whole_folder
from zarrmask.storage.place import Place, place_of, reached

CATEGORY = {"id": 1, "name": "scroll", "supercategory": ""}
JPEG_QUALITY = 95


def annotate(
    run: str | Place,
    folder: Path,
    *,
    worst: int | None = 20,
    png: bool = False,
    reporter: Reporter | None = None,
) -> list[int]:
    """Write keyframes of a finished run as images and COCO annotations.

    What was corrected since has the mask that the correction was given or detected for that very
    slice; where there is none, the slice is left out, and named in a warning.

    Parameters
    ----------
    run : path, URL or UPath
        The run's folder.
    folder : Path
        Folder to make: `annotations.json` and `images/`, 8 bits as the detector saw them.
    worst : int, optional
        How many keyframes: those most under suspicion, see `suspicions`; None takes all of them.
    png : bool
        PNG, which loses nothing, instead of JPEG of quality 95.
    reporter : Reporter, optional
        Where progress goes.

    Returns
    -------
    list of int
        Slice numbers of what was written, the most suspicious first.

    Raises
    ------
    OutputError
        If there is no finished run, its slices are gone, nothing is left that was not corrected
        without a mask for the slice, or `folder` is not empty.
    """
    reporter = reporter or Reporter()
    place = place_of(run)
    with reached(place, to_be="read"):
        record = finished_record(place)
        known, lost = undilated_masks(place, record)
        require_replaceable(folder)
        if lost:
            reporter.warn(
                "slices that were corrected, and of which no mask before dilation is known since, "
                f"are left out: {told(lost)}"
            )
        if not known:
            raise OutputError(
                f"nothing of {place} is left to annotate: {told(lost)}. Detect on these slices "
                "anew, or give masks for them (zarrmask redo)"
            )
        painted = "masks" in record
        read, there = _reader(place, record, known[0].store.masks().shape[1:])
        given, known = known, [one for one in known if one.number in there]
        if not known:
            raise OutputError(
                f"nothing of {place} is left to annotate: there are masks for slices "
                f"{listed([one.number for one in given])}, but none of these can be read; put the "
                "run's stack back"
            )
        alike = [agreement(one.sketch, other.sketch) for one, other in pairwise(known)]
        suspected = suspicions(np.array([one.score for one in known]), alike)
        suspected[[one.given for one in known]] = 0  # whatever its neighbours are like
        chosen = np.argsort(-suspected, kind="stable")[:worst].tolist()
        with (
            whole_folder(folder) as half,
            reporter.stage("writing", len(chosen), "images") as advance,
        ):
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            (half / "images").mkdir()
            for id_, position in enumerate(chosen, start=1):
                number, mask = known[position].number, known[position].mask()
                name = f"{number:05d}.{'png' if png else 'jpg'}"
                _write_image(half / "images" / name, read(number))
                height, width = mask.shape
                speck = 0 if painted or known[position].given else _speck(known[position])
                image = {"id": id_, "file_name": name, "height": height, "width": width}
                images.append({**image, "z": number, "suspicion": float(suspected[position])})
                annotations += [
                    _annotation(id_, polygon, height, width) for polygon in polygons_of(mask, speck)
                ]
                advance(1)
            content = {
                "info": {"description": f"keyframes of a run of zarrmask {__version__}"},
                "categories": [CATEGORY],
                "images": images,
                "annotations": [{"id": n, **one} for n, one in enumerate(annotations, start=1)],
            }
            (half / "annotations.json").write_text(json.dumps(content) + "\n")
        return [known[position].number for position in chosen]


def suspicions(scores: NDArray, agreement: Sequence[float]) -> NDArray[np.float64]:
    """Tell how likely each keyframe's mask is wrong.

    Parameters
    ----------
    scores : (k,) float
        Best score on each keyframe; NaN where nothing was found, which alone is nothing suspicious:
        a stack reaches beyond its scroll.
    agreement : (k - 1,) float
        IoU of the masks of each two neighbours; a jump of the area lowers it too.

    Returns
    -------
    (k,) float64
        What the score lacks to 1, and what the IoU with the more alike of two neighbours lacks to
        1: a wrong mask is like neither, the right ones beside it are like their other neighbours.

    Examples
    --------
    >>> suspicions(np.array([1.0, 1.0, 0.75, np.nan]), [0.5, 0.25, 0.0]).tolist()
    [0.5, 0.5, 1.0, 1.0]
    """
    sides = np.array(agreement, np.float64)
    lonely = 1.0 if len(scores) == 1 else 0.0
    alike = np.maximum(np.append(sides, lonely), np.insert(sides, 0, lonely))
    total: NDArray[np.float64] = 1 - alike + np.nan_to_num(1 - scores.astype(np.float64), nan=0.0)
    return total


def _speck(one: Undilated) -> float:
    """Pixels of a detector's mask that may lie anywhere, and are no piece of the object."""
    whole, small = one.store.masks().shape[1:], one.sketch.shape
    return SPECK * float(np.prod(whole) / np.prod(small))


def _reader(
    place: Place, record: dict[str, Any], shape: tuple[int, ...]
) -> tuple[Callable[[int], NDArray[np.uint8]], NDArray[np.int64]]:
    """Give what reads a slice by its number, as the detector saw it, and the numbers there are.

    From the stack, if it is still the one that the run read; else from the run's volume, if that
    has whole slices and their own grey values.
    """
    window = detected_window(record)
    source, _ = slices_of(
        place,
        record,
        lambda volume: record["window"] is None and volume.shape[1:] == shape,
        "whole slices with their own grey values",
    )
    numbers = np.setdiff1d(source.numbers, record["input"]["missing"])
    return lambda number: to_8bit(source[number - source.numbers[0]], window), numbers


def _write_image(path: Path, grey: NDArray[np.uint8]) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
    path.write_bytes(bytes(cv2.imencode(path.suffix, grey, options)[1]))


def _annotation(image: int, polygon: list[float], height: int, width: int) -> dict[str, Any]:
    region = Region.of_polygon(polygon, height, width)
    x0, y0, x1, y1 = region.box
    return {
        "image_id": image,
        "category_id": CATEGORY["id"],
        "segmentation": [polygon],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": region.area,
        "iscrowd": 0,
    }
