"""What is measured of the keyframes' masks."""

import cv2
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from zarrmask.errors import OutputError
from zarrmask.report.keyframes import SIDE, Sketch, read_keyframes


def disc(height=600, width=900, y=300, x=400, radius=150):
    return cv2.circle(np.zeros((height, width), np.uint8), (x, y), radius, 255, -1)


@given(st.integers(160, 440), st.integers(160, 740), st.integers(40, 150))
def test_place_and_size_survive_in_small(y, x, radius):
    sketch = Sketch.of_mask(disc(y=y, x=x, radius=radius))
    assert max(sketch.shape) == SIDE
    np.testing.assert_allclose(sketch.centre, (y, x), atol=2)
    area = np.count_nonzero(sketch.inside) * sketch.pixel**2
    assert area == pytest.approx(np.pi * radius**2, rel=0.08)
    assert sketch.pieces == 1
    assert sketch.at_border == 0


def test_pieces_border_and_agreement():
    two = np.maximum(disc(x=200, radius=100), disc(x=600, radius=100))
    two[5:8, 5:8] = 255  # a speck is no piece
    assert Sketch.of_mask(two).pieces == 2
    left = np.zeros((600, 900), np.uint8)
    left[:, :300] = 255
    assert Sketch.of_mask(left).at_border == pytest.approx((600 + 2 * 300) / 3000, abs=0.02)
    half = np.zeros((600, 900), np.uint8)
    half[:, :600] = 255
    one, other = Sketch.of_mask(left), Sketch.of_mask(half)
    assert one.agreement(other) == other.agreement(one) == pytest.approx(0.5, abs=0.01)
    assert one.agreement(one) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (3, 2), (5000, 40)])
def test_empty_and_odd_masks_are_measured_too(shape):
    empty = Sketch.of_mask(np.zeros(shape, np.uint8))
    assert np.isnan(empty.centre).all()
    assert (empty.pieces, empty.at_border, empty.agreement(empty)) == (0, 0, 1)
    full = Sketch.of_mask(np.full(shape, 255, np.uint8))
    assert full.at_border == 1
    assert full.agreement(empty) == 0


def write(path, z, masks, state=None):
    group = zarr.create_group(path, zarr_format=2)
    areas = np.count_nonzero(masks, axis=(1, 2))
    columns = {"z": np.array(z), "mask": masks, "count": (areas > 0) * 1, "area": areas}
    columns["best_score"] = np.where(areas, 0.9, np.nan)
    if state is not None:
        columns["state"] = np.array(state, np.int8)
    for name, column in columns.items():
        group.create_array(name, data=column)


def test_keyframes_are_put_in_the_order_of_their_slices(tmp_path):
    masks = np.array([disc(radius=radius) for radius in (150, 60, 100, 80)])
    masks[3] = 0
    write(tmp_path / "k", [30, 10, 20, 40], masks, state=[1, 0, 2, 1])
    found = read_keyframes(tmp_path / "k")
    assert found.z.tolist() == [10, 20, 30, 40]
    assert found.used.tolist() == [False, True, True, True]
    assert found.empty_z == [40]
    assert (np.diff(found.area) > 0).tolist() == [True, True, False]
    assert found.pieces.tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(found.agreement, [0.36, 0.44, 0], atol=0.03)
    kept = found.only(np.array([1, 3]))
    assert (kept.z.tolist(), len(kept.sketches)) == ([20, 40], 2)


def test_keyframes_without_masks_are_not_measured(tmp_path):
    write(tmp_path / "k", [0, 10], np.array([disc(), disc()]))
    zarr.open_group(tmp_path / "k", mode="a").__delitem__("mask")
    found = read_keyframes(tmp_path / "k")
    assert found.used.all()
    assert found.sketches == ()
    assert np.isnan(found.agreement).all()
    assert np.isnan(found.pieces).all()
    assert np.isnan(found.centre).all()


def test_a_broken_store_is_named(tmp_path):
    write(tmp_path / "k", [0], np.array([disc()]))
    zarr.open_group(tmp_path / "k", mode="a").__delitem__("count")
    with pytest.raises(OutputError, match="Run again with --overwrite"):
        read_keyframes(tmp_path / "k")
