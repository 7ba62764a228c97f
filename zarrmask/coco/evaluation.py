"""A checkpoint judged by annotated images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zarrmask import __version__, masking
from zarrmask.coco.dataset import CocoDataset, CocoImage
from zarrmask.coco.greys import settle_window
from zarrmask.coco.pictures import picture
from zarrmask.coco.precision import Found, average_precision, found_in
from zarrmask.coco.reading import read_coco
from zarrmask.coco.region import Region
from zarrmask.detection.config import LOWEST_SCORE
from zarrmask.detection.detections import Detections, union_mask
from zarrmask.detection.files import guessed
from zarrmask.detection.inputs import Window
from zarrmask.detection.protocol import Detector, detect_one
from zarrmask.masking.field import grown
from zarrmask.masking.overlap import Overlap
from zarrmask.progress import Reporter
from zarrmask.running.model import find_checkpoint
from zarrmask.settings import Settings, read_settings
from zarrmask.storage.atomic import require_replaceable, whole_folder
from zarrmask.storage.digest import sha256


@dataclass(frozen=True)
class Judged:
    """An image, and how what was found on it compares with what is true.

    Attributes
    ----------
    image : CocoImage
    true : Region
        What was to be found.
    found : Region
        What was found above the score, not dilated.
    detections : int
        How many these were.
    detected, dilated : Overlap
        Of this, and of it as it is after a run's dilation: on a keyframe, where masks are
        interpolated unless the settings say "hold".
    ranked : sequence of Found
        What average precision is taken of, whatever the score.
    """

    image: CocoImage
    true: Region
    found: Region
    detections: int
    detected: Overlap
    dilated: Overlap
    ranked: Sequence[Found]


def evaluate(
    annotations: Path,
    images: Path,
    *,
    checkpoint: Path | None = None,
    model: Path | None = None,
    score: float | None = None,
    classes: Collection[int] | str | None = None,
    dilate: float | str | None = None,
    voxel_size: float | None = None,
    detect_window: str | tuple[float, float] | None = None,
    mirrored: bool | None = None,
    out: Path | None = None,
    worst: int = 10,
    reporter: Reporter | None = None,
    told: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Compare what a checkpoint finds on annotated images with what is on them.

    Parameters
    ----------
    annotations, images : Path
        See `read_coco`.
    checkpoint, model, score, classes, dilate, voxel_size, detect_window, mirrored : optional
        As `checkpoint`, `config` and so on of a run. "auto" takes its percentiles of up to eight
        images. Chosen classes are the annotations' categories too, where there are as many of
        these; average precision is of all classes.
    out : Path, optional
        Folder to make, for `evaluation.json` and pictures.
    worst : int
        How many images are drawn, those of the lowest IoU first.
    reporter : Reporter, optional
        Where progress goes.
    told : callable, optional
        Called with what is returned before anything is written, which a disk may refuse.

    Returns
    -------
    dict
        What `evaluation.json` holds: average precision of boxes and masks (of all detections above
        0.05); overlap of the union of what was found above the score with what is true, for all
        images together and for each, the worst first.

    Raises
    ------
    ZarrmaskError
        What was found, what was expected, and what to do; nothing is written then.
    """
    reporter = reporter or Reporter()
    settings = read_settings(
        model,
        checkpoint=checkpoint,
        score=score,
        classes=classes,
        dilate=dilate,
        voxel_size=voxel_size,
        detect_window=detect_window,
        mirrored=mirrored,
    )
    masking.kernel_side(1, 1, settings.dilate, settings.voxel_size)  # or refuse it at once
    if out is not None:
        require_replaceable(out)
    weights = find_checkpoint(settings)
    dataset = read_coco(annotations, images)
    reporter.say(str(dataset))
    detector = _loaded(weights, settings, reporter)
    by_category = detector.classes == len(dataset.names)
    if not by_category:
        reporter.warn(
            f"the checkpoint tells {detector.classes} classes apart and the annotations "
            f"{len(dataset.names)}: average precision is taken whatever the class"
        )
    window, warnings = settle_window(dataset.images, settings.detect_window)
    for warning in warnings:
        reporter.warn(warning)
    judged = _all_judged(dataset, detector, window, settings, reporter, by_category=by_category)
    record = _record(dataset, settings, weights, window, judged, by_category=by_category)
    if told is not None:
        told(record)
    if out is not None:
        with whole_folder(out) as folder:
            (folder / "evaluation.json").write_text(json.dumps(record, indent=2) + "\n")
            _draw(folder, judged[:worst], window)
    return record


def _loaded(weights: Path, settings: Settings, reporter: Reporter) -> Detector:
    """The detector of these settings, which finds whatever average precision counts."""
    from zarrmask.detection.load import load_detector  # torch takes its time

    if warning := guessed(weights, settings.model):
        reporter.warn(warning)
    return load_detector(
        weights,
        settings.model,
        backend=settings.backend,
        precision=settings.precision,
        device=settings.device,
        score_threshold=min(settings.score, LOWEST_SCORE),
        mirrored=settings.mirrored,
    )


def _all_judged(
    dataset: CocoDataset,
    detector: Detector,
    window: Window,
    settings: Settings,
    reporter: Reporter,
    *,
    by_category: bool,
) -> list[Judged]:
    """Judge all images; the worst come first."""
    judged: list[Judged] = []
    with reporter.stage("detecting", len(dataset.images), "images") as advance:
        for image in dataset.images:
            detections = detect_one(detector, image.grey(window))
            judged.append(_judged(image, detections, settings, by_category=by_category))
            advance(1)
    return sorted(judged, key=lambda one: one.detected.iou)


def _judged(
    image: CocoImage, every: Detections, settings: Settings, *, by_category: bool
) -> Judged:
    """Compare the union of what counts, as it is and as a run dilates it, with what is true."""
    shape = (image.height, image.width)
    counts = every.above(settings.score)
    if settings.classes is not None:
        counts = counts.of_classes(settings.classes)
    true = image.true(settings.classes if by_category else None)
    mask = union_mask(counts, shape)
    side = masking.kernel_side(*shape, settings.dilate, settings.voxel_size)
    held = settings.propagate == "hold"
    after = masking.dilate(mask, side) if held else grown(mask, side / 2)
    ignored = image.ignored().mask()
    detected, dilated = (Overlap.of_masks(true.mask(), one > 0, ignored) for one in (mask, after))
    ranked = found_in(every.above(LOWEST_SCORE), shape)
    return Judged(image, true, Region.of_mask(mask), len(counts), detected, dilated, ranked)


def _record(
    dataset: CocoDataset,
    settings: Settings,
    weights: Path,
    window: Window,
    judged: Sequence[Judged],
    *,
    by_category: bool,
) -> dict[str, Any]:
    """What `evaluation.json` holds."""
    ranked = {one.image.id: one.ranked for one in judged}
    nothing = Overlap(0, 0, 0)
    return {
        "zarrmask": __version__,
        "checkpoint": {"path": str(weights), "sha256": sha256(weights)},
        "by_category": by_category,
        "boxes": average_precision(dataset, ranked, "bbox", by_category=by_category),
        "masks": average_precision(dataset, ranked, "segm", by_category=by_category),
        "classes": settings.classes and list(settings.classes),
        "detect_window": window if window == "seed" else list(window),
        "mirrored": settings.mirrored,
        "annotations": str(dataset.path),
        "categories": list(dataset.names),
        "images": len(dataset.images),
        "instances": sum(len(image.instances) for image in dataset.images),
        "crowds": sum(len(image.crowds) for image in dataset.images),
        "score": settings.score,
        "dilate": settings.dilate,
        "detected": sum((one.detected for one in judged), nothing).record(),
        "dilated": sum((one.dilated for one in judged), nothing).record(),
        "mean_iou": float(np.mean([one.detected.iou for one in judged])),
        "by_image": [
            {
                "id": one.image.id,
                "file": one.image.path.name,
                "detections": one.detections,
                "detected": one.detected.record(),
                "dilated": one.dilated.record(),
            }
            for one in judged
        ],
    }


def _draw(folder: Path, worst: Sequence[Judged], window: Window) -> None:
    """Draw images, numbered in their order."""
    for place, one in enumerate(worst, start=1):
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", one.image.path.stem)
        words = f"{stem}  IoU {one.detected.iou:.3f}, detections: {one.detections}"
        true, found, ignored = (
            region.mask() for region in (one.true, one.found, one.image.ignored())
        )
        drawn = picture(one.image.grey(window), true, found, ignored, words)
        (folder / f"worst_{place:02d}_{stem}.png").write_bytes(drawn)


def as_table(record: Mapping[str, Any]) -> str:
    """Set an evaluation's figures in a short table."""
    rows = [f"checkpoint {record['checkpoint']['path']}", ""]
    rows += [f"{'average precision':<24}{'AP':>9}{'AP50':>9}{'AP75':>9}"]
    rows += [
        f"  {name:<22}" + "".join(map(_share, record[name].values())) for name in ("boxes", "masks")
    ]
    rows += ["", f"{'union of detections':<24}{'IoU':>9}{'lost':>9}{'surplus':>9}"]
    dilation = record["dilate"]
    by = dilation if isinstance(dilation, str) else f"{dilation:g} %"
    names = {"detected": "as detected", "dilated": f"dilated by {by}"}
    for key, name in names.items():
        rows.append(f"  {name:<22}" + "".join(_share(record[key][k]) for k in _OVERLAP))
    rows += ["", f"{'worst images':<24}{'IoU':>9}{'lost':>9}{'surplus':>9}"]
    for image in record["by_image"][:5]:
        figures = "".join(_share(image["detected"][key]) for key in _OVERLAP)
        rows.append(f"  {image['file'][:21]:<22}{figures}")
    return "\n".join(rows)


_OVERLAP = ("iou", "lost", "surplus")


def _share(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:>9.4f}"
