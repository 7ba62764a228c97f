"""Against what detectron2 itself predicted with the same weights."""

import numpy as np
import pytest
import tifffile
import torch
from torchvision.ops import box_iou

from zarrmask.detection.detections import instance_mask, union_mask
from zarrmask.detection.load import load_detector
from zarrmask.detection.protocol import detect_one

pytestmark = pytest.mark.reference


def three_channels(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey, grey[::-1], 255 - grey[:, ::-1]], -1)


@pytest.fixture(scope="module")
def detector(reference_checkpoint):
    return load_detector(reference_checkpoint, score_threshold=0.1)


@pytest.mark.parametrize("name", ["square", "wide"])
def test_agrees_with_detectron2(detector, reference_checkpoint, shared, name):
    grey = (tifffile.imread(shared / "data" / "rolled_sheet_uint16.tif") >> 8).astype(np.uint8)
    image = three_channels(grey if name == "square" else grey[200:1100])
    shape = image.shape[:2]
    file = f"expected_{reference_checkpoint.stem}_{name}.npz"
    with np.load(shared / "detectron2-reference" / file) as archive:
        expected = dict(archive)

    found = detect_one(detector, image)

    overlap = box_iou(torch.tensor(expected["boxes"]), torch.tensor(found.boxes)).numpy()
    match = overlap.argmax(1)
    assert len(found) == len(expected["boxes"])
    assert sorted(match) == list(range(len(found)))
    least_overlap = overlap.max(1).min()
    assert least_overlap > 0.99
    score_difference = np.abs(found.scores[match] - expected["scores"]).max()
    assert score_difference < 1e-4
    assert (found.classes == 0).all()

    union = union_mask(found, shape) > 0
    true_union = np.unpackbits(expected["union"], count=union.size).reshape(shape) > 0
    union_overlap = (union & true_union).sum() / (union | true_union).sum()
    assert union_overlap >= 0.9999

    count = min(len(found), 20)
    true_masks = np.unpackbits(expected["masks"], count=count * union.size)
    true_masks = true_masks.reshape(count, *shape) > 0
    for number, which in enumerate(match):
        mask = instance_mask(found.boxes[which], found.patches[which], shape) > 0
        assert abs(mask.sum() - expected["mask_area"][number]) <= 20
        if number < count:
            assert (mask != true_masks[number]).sum() <= 40
    print(  # shown with -rP
        f"{file}: least IoU of a box {least_overlap:.6f}, largest difference of a score "
        f"{score_difference:.1e}, IoU of the union {union_overlap:.6f}"
    )
