"""Shares of pixels: lost, surplus, in both."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from zarrmask.masking.overlap import Overlap

three_masks = hnp.arrays(bool, (3, 7, 9))


@given(three_masks)
def test_the_shares_fit_together(masks):
    true, found, ignored = masks
    overlap = Overlap.of_masks(true, found, ignored)
    assert 0 <= overlap.iou <= 1
    assert overlap.true == true.sum()
    if overlap.true:
        assert overlap.lost == pytest.approx((true & ~found).sum() / true.sum())
        assert overlap.surplus == pytest.approx((found & ~true & ~ignored).sum() / true.sum())
        assert overlap.iou == pytest.approx((1 - overlap.lost) / (1 + overlap.surplus))
    else:
        assert overlap.lost is overlap.surplus is None


@given(three_masks)
def test_images_are_added_by_their_pixels(masks):
    parts = [Overlap.of_masks(*(mask[rows] for mask in masks)) for rows in (slice(3), slice(3, 7))]
    assert parts[0] + parts[1] == Overlap.of_masks(*masks)


def test_an_empty_image_on_which_nothing_is_found_is_right():
    nothing = np.zeros((4, 4), bool)
    assert Overlap.of_masks(nothing, nothing, nothing).iou == 1
    assert Overlap.of_masks(nothing, ~nothing, nothing).iou == 0
    assert Overlap.of_masks(nothing, ~nothing, ~nothing).iou == 1
