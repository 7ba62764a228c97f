"""Judging a network by slices it has not learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from zarrmask.coco import CocoImage
from zarrmask.detection.config import ModelConfig
from zarrmask.detection.detections import union_mask
from zarrmask.detection.inputs import Window
from zarrmask.detection.load import MaskRCNNDetector
from zarrmask.detection.protocol import detect_one
from zarrmask.masking.overlap import Overlap
from zarrmask.settings import SCORE
from zarrmask.training.world import World


def mean_union_iou(
    config: ModelConfig,
    images: Sequence[CocoImage],
    window: Window,
    weights: Mapping[str, Tensor],
    world: World,
) -> float:
    """Give the mean IoU of what is found with what was annotated, over images.

    On each image the union of all detections, as `zarrmask run` takes it, is compared with that
    of all annotations. What is found in crowds does not count; where nothing is and nothing is
    found, the IoU is 1.
    The processes of `world` share the images.
    """
    judged = replace(config, score_threshold=SCORE)
    detector = MaskRCNNDetector(judged, weights, "what was learned", world.device)
    mine = images[world.rank :: world.size]
    sums = world.total(
        {"iou": sum(union_iou(detector, image, window) for image in mine), "images": len(mine)}
    )
    return sums["iou"] / sums["images"]


def union_iou(detector: MaskRCNNDetector, image: CocoImage, window: Window) -> float:
    """Give the IoU of what is found on an image with what was annotated."""
    found = detect_one(detector, image.grey(window))
    mask = union_mask(found, (image.height, image.width)) > 0
    return Overlap.of_masks(image.true().mask(), mask, image.ignored().mask()).iou
