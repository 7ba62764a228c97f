"""Polygons around masks, rasterised again."""

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zarrmask.coco import Region
from zarrmask.coco.polygons import polygons_of


def drawn(polygons, shape):
    return Region.of_union([Region.of_polygon(p, *shape) for p in polygons], *shape).mask()


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14)))
def test_small_masks_come_back_to_the_pixel(mask):
    """Lone pixels, corners that touch, holes, holes within holes: whatever it is.

    With fewer than 200 pixels, a single wrong one is beyond what may be simplified.
    """
    polygons = polygons_of(mask)
    pieces, _ = cv2.connectedComponents(mask.astype(np.uint8))
    assert len(polygons) == pieces - 1
    np.testing.assert_array_equal(drawn(polygons, mask.shape), mask)


@pytest.fixture
def large():
    """A rough ring of 2,000 pixels with a piece of its own within, and specks."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:2000, :2000] / 1000 - 1
    radius = np.hypot(y, x) + 0.02 * np.sin(9 * np.arctan2(y, x))
    mask = (radius < 0.9) & (radius > 0.5) | (radius < 0.2)
    mask[tuple(rng.integers(0, 2000, (2, 50)))] = True
    return mask


def test_large_masks_come_back_by_few_points(large):
    polygons = polygons_of(large)
    back = drawn(polygons, large.shape)
    assert (back & large).sum() / (back | large).sum() > 0.99
    longest = max(polygons, key=len)
    assert 20 < len(longest) / 2 < 200


@given(hnp.arrays(bool, (9, 9)), st.integers(5, 20))
def test_any_mask_comes_back_nearly(mask, size):
    mask = np.kron(mask, np.ones((size, size), bool))
    back = drawn(polygons_of(mask), mask.shape)
    assert (back & mask).sum() >= 0.99 * (back | mask).sum()


def test_a_hole_is_joined_by_a_slit(large):
    """One polygon a piece: tools that read one list of points show the hole."""
    (ring,) = [p for p in polygons_of(large) if len(p) > 100 and drawn([p], large.shape)[200, 1000]]
    assert not drawn([ring], large.shape)[1000, 1000]


def test_long_lines_take_little_memory():
    mask = np.zeros((900, 900), bool)
    mask[5:-5, 5:-5] = np.indices((890, 890)).sum(0) % 13 > 0  # its edge is not straight
    mask[20:-20, 20:-20] = False
    mask[20:24, 20:-20:3] = True
    tracemalloc.start()
    polygons_of(mask)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6


def test_nothing_has_no_polygon():
    assert polygons_of(np.zeros((5, 5), bool)) == []


def test_specks_are_left_out_unless_they_are_all():
    mask = np.zeros((20, 20), np.uint8)
    mask[2, 2:4] = mask[5, 5] = 1
    assert len(polygons_of(mask)) == 2
    assert len(polygons_of(mask, 1)) == 1
    assert len(polygons_of(mask, 4)) == 1
    mask[10:15, 10:15] = 1
    assert len(polygons_of(mask, 4)) == 1
    assert polygons_of(np.zeros_like(mask), 4) == []
