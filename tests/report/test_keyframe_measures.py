"""What is measured of the keyframes' masks."""

import cv2
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from zarrmask.errors import OutputError
from zarrmask.masking import KeyframeStore
from zarrmask.masking.sighting import Sighting
from zarrmask.masking.sketch import Sketch, agreement
from zarrmask.report.keyframes import at_border, centre, pieces, read_keyframes


def disc(height=600, width=900, y=300, x=400, radius=150):
    return cv2.circle(np.zeros((height, width), np.uint8), (x, y), radius, 255, -1)


@given(st.integers(160, 440), st.integers(160, 740), st.integers(40, 150))
def test_place_and_size_survive_in_small(y, x, radius):
    sketch = Sketch.of_mask(disc(y=y, x=x, radius=radius))
    pixel = 900 / max(sketch.shape)
    np.testing.assert_allclose(np.array(centre(sketch)) * pixel, (y, x), atol=2)
    assert pieces(sketch) == 1
    assert at_border(sketch) == 0


def test_pieces_border_and_agreement():
    two = np.maximum(disc(x=200, radius=100), disc(x=600, radius=100))
    two[5:8, 5:8] = 255  # a speck is no piece
    assert pieces(Sketch.of_mask(two)) == 2
    left = np.zeros((600, 900), np.uint8)
    left[:, :300] = 255
    assert at_border(Sketch.of_mask(left)) == pytest.approx((600 + 2 * 300) / 3000, abs=0.02)
    half = np.zeros((600, 900), np.uint8)
    half[:, :600] = 255
    one, other = Sketch.of_mask(left), Sketch.of_mask(half)
    assert agreement(one, other) == agreement(other, one) == pytest.approx(0.5, abs=0.01)
    assert agreement(one, one) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (3, 2), (5000, 40)])
def test_empty_and_odd_masks_are_measured_too(shape):
    empty = Sketch.of_pixels(np.zeros(shape, bool))
    assert np.isnan(centre(empty)).all()
    assert (pieces(empty), at_border(empty), agreement(empty, empty)) == (0, 0, 1)
    full = Sketch.of_pixels(np.ones(shape, bool))
    assert at_border(full) == 1
    assert agreement(full, empty) == 0


def stored(path, z, masks, states=None):
    """Keep masks as a run does."""
    store = KeyframeStore(path)
    store.reserve(len(masks), *masks[0].shape)
    sightings = []
    for n, mask in enumerate(masks):
        found = int(mask.any())
        boxes, scores = np.zeros((found, 4), np.float32), np.full(found, 0.9, np.float32)
        sightings.append(Sighting.of_mask(mask, boxes, scores))
        store.write_mask(n, mask)
    store.write_sightings(np.array(z), sightings, states)
    return path


def test_keyframes_are_put_in_the_order_of_their_slices(tmp_path):
    masks = [disc(radius=radius) for radius in (150, 60, 100, 80)]
    masks[3][...] = 0
    path = stored(tmp_path / "k", [30, 10, 20, 40], masks, np.array([1, 0, 2, 1], np.int8))
    found = read_keyframes(path, 900)
    assert found.z.tolist() == [10, 20, 30, 40]
    assert found.used.tolist() == [False, True, True, True]
    assert found.empty_z == [40]
    assert (np.diff(found.area) > 0).tolist() == [True, True, False]
    assert found.pieces.tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(found.centre[:3], [[300, 400]] * 3, atol=2)
    np.testing.assert_allclose(found.agreement, [0.36, 0.44, 0], atol=0.03)
    kept = found.only(np.array([1, 3]))
    assert (kept.z.tolist(), len(kept.sketches)) == ([20, 40], 2)


def test_where_none_were_kept_nothing_is_known(tmp_path):
    found = read_keyframes(tmp_path / "nowhere", 900)
    assert (len(found.z), found.sketches, found.empty_z) == (0, (), [])
    assert found.centre.shape == (0, 2)
    assert found.agreement.shape == (0,)


def test_a_spoiled_chunk_is_named(tmp_path):
    path = stored(tmp_path / "k", [0], [disc()])
    (chunk,) = (path / "area").glob("[0-9]*")
    chunk.write_bytes(b"torn" * 8)
    with pytest.raises(OutputError, match="Run again with --overwrite"):
        read_keyframes(path, 900)


def test_a_broken_store_is_named(tmp_path):
    path = stored(tmp_path / "k", [0], [disc()])
    del zarr.open_group(path, mode="a")["sketch"]
    with pytest.raises(OutputError, match="Run again with --overwrite"):
        read_keyframes(path, 900)
