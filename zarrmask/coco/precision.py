"""COCO's average precision, by its own evaluation."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from zarrmask.coco.dataset import CocoDataset, Instance
from zarrmask.coco.region import Region
from zarrmask.detection.detections import Detections, instance_mask

ALL_SIZES, MOST_DETECTIONS = 0, -1
"""Where COCOeval keeps the precision of objects of any size, and of up to 100 detections."""


@dataclass(frozen=True)
class Found:
    """A detection on an image.

    Attributes
    ----------
    category : int
        Counted from 0.
    region : Region
    box : tuple of float
        x0, y0, x1, y1, pixels.
    score : float
    """

    category: int
    region: Region
    box: tuple[float, float, float, float]
    score: float


def found_in(detections: Detections, shape: tuple[int, int]) -> list[Found]:
    """Keep a slice's detections as small as annotations are."""
    return [
        Found(int(category), Region.of_mask(instance_mask(box, patch, shape)), tuple(box), score)
        for box, score, category, patch in zip(
            detections.boxes.tolist(),
            detections.scores.tolist(),
            detections.classes,
            detections.patches,
            strict=True,
        )
    ]


def average_precision(
    dataset: CocoDataset,
    found: Mapping[int, Sequence[Found]],
    of: Literal["bbox", "segm"],
    *,
    by_category: bool = True,
) -> dict[str, float | None]:
    """Average precision of detections: COCO's AP, AP50 and AP75.

    Parameters
    ----------
    dataset : CocoDataset
        What is true; what is found in its crowds is ignored.
    found : mapping
        Detections by the images' ids, of any score: the curve goes through all of them.
    of : "bbox" or "segm"
        What has to overlap: boxes or masks.
    by_category : bool
        Whether what is found has to be of the true category.

    Returns
    -------
    dict
        From 0 to 1; None where nothing is true.
    """
    # Not by COCOeval's useCats: without it too, it leaves out what no category of the file is.
    true = [
        (image.id, _entry(instance, instance.region.box, by_category, crowd=crowd))
        for image in dataset.images
        for crowd, instances in enumerate((image.instances, image.crowds))
        for instance in instances
    ]
    seen = [
        (id_, {**_entry(one, one.box, by_category, crowd=0), "score": one.score})
        for id_, detections in found.items()
        for one in detections
    ]
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_indexed(dataset, true), _indexed(dataset, seen), of)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., ALL_SIZES, MOST_DETECTIONS]
    thresholds = evaluation.params.iouThrs
    return {
        "AP": _mean(precision),
        "AP50": _mean(precision[np.isclose(thresholds, 0.5)]),
        "AP75": _mean(precision[np.isclose(thresholds, 0.75)]),
    }


def _entry(
    one: Instance | Found,
    box: tuple[float, float, float, float],
    by_category: bool,
    *,
    crowd: int,
) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {
        "category_id": one.category if by_category else 0,
        "segmentation": one.region.coded(),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": one.region.area,
        "iscrowd": crowd,
    }


def _indexed(dataset: CocoDataset, entries: Iterable[tuple[int, dict[str, Any]]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i.id, "height": i.height, "width": i.width} for i in dataset.images],
        "categories": [{"id": index, "name": name} for index, name in enumerate(dataset.names)],
        "annotations": [
            {"id": number, "image_id": image, **entry}
            for number, (image, entry) in enumerate(entries, start=1)  # 0 counts as no match
        ],
    }
    coco.createIndex()
    return coco


def _mean(precision: Any) -> float | None:
    there = precision[precision >= 0]
    return float(there.mean()) if there.size else None
