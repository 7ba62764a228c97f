"""Average precision: cases whose answer is known."""

import numpy as np
import pytest

from zarrmask.coco import CocoDataset, CocoImage, Instance, Region
from zarrmask.coco.precision import Found, average_precision, found_in
from zarrmask.detection.detections import Detections

NONE = {"AP": None, "AP50": None, "AP75": None}


def region(x, y, side=20):
    mask = np.zeros((60, 80), bool)
    mask[y : y + side, x : x + side] = True
    return Region.of_mask(mask)


def dataset(tmp_path, *images, names=("scroll",)):
    return CocoDataset(
        tmp_path,
        names,
        tuple(CocoImage(n, tmp_path / f"{n}", 60, 80, *parts) for n, parts in enumerate(images, 1)),
    )


def found(region, score=0.9, category=0):
    return Found(category, region, region.box, score)


def both(data, detections, **options):
    precision = [average_precision(data, detections, of, **options) for of in ("bbox", "segm")]
    assert precision[0] == precision[1]  # squares fill their boxes
    return precision[0]


@pytest.fixture
def two(tmp_path):
    """An image with a square, one with another."""
    squares = region(5, 5), region(40, 30)
    return dataset(tmp_path, *(((Instance(0, square),), ()) for square in squares)), squares


def test_what_is_found_to_the_pixel(two):
    data, (a, b) = two
    perfect = both(data, {1: [found(a)], 2: [found(b)]})
    assert perfect == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1})


def test_nothing_found(two):
    assert both(two[0], {1: [], 2: []}) == {"AP": 0, "AP50": 0, "AP75": 0}


def test_half_found(two):
    """Recall up to a half at full precision: 51 of 101 points of the curve."""
    data, (a, _) = two
    assert both(data, {1: [found(a)]})["AP"] == pytest.approx(51 / 101)


def test_found_roughly(two):
    """Shifted by 4 of 20 pixels: IoU 16/24, right for 4 of the 10 thresholds."""
    data, _ = two
    rough = both(data, {1: [found(region(9, 5))], 2: [found(region(44, 30))]})
    assert rough == pytest.approx({"AP": 0.4, "AP50": 1, "AP75": 0})


def test_what_is_found_in_a_crowd_is_ignored(tmp_path):
    true, crowd = Instance(0, region(5, 5)), Instance(0, region(40, 20, side=40))
    data = dataset(tmp_path, ((true,), (crowd,)))
    detections = [found(true.region, 0.5), found(region(50, 30), 0.9)]
    assert both(data, {1: detections})["AP"] == pytest.approx(1)
    alone = dataset(tmp_path, ((true,), ()))
    assert both(alone, {1: detections})["AP"] == pytest.approx(0.5)


def test_categories_count_where_they_are_to(tmp_path):
    square = region(5, 5)
    data = dataset(tmp_path, ((Instance(1, square),), ()), names=("case", "scroll"))
    other = {1: [found(square, category=0)]}
    assert both(data, other)["AP"] == 0
    assert both(data, other, by_category=False)["AP"] == pytest.approx(1)
    assert both(data, {1: [found(square, category=1)]})["AP"] == pytest.approx(1)
    beyond = {1: [found(square, category=79)]}  # of a detector with more classes than the file
    assert both(data, beyond, by_category=False)["AP"] == pytest.approx(1)


def test_nothing_true(tmp_path):
    assert both(dataset(tmp_path, ((), ())), {1: [found(region(5, 5))]}) == NONE


def test_detections_are_pasted(tmp_path):
    detections = Detections(
        np.float32([[5, 5, 25, 25]]),
        np.float32([0.75]),
        np.array([1]),
        np.ones((1, 28, 28), np.float32),
    )
    (one,) = found_in(detections, (60, 80))
    assert (one.category, one.box, one.score) == (1, (5, 5, 25, 25), 0.75)
    np.testing.assert_array_equal(one.region.mask(), region(5, 5).mask())
