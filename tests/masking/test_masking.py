"""Masks against the rule of the replaced scripts, written down plainly with OpenCV."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zarrmask.masking import (
    HeldMasks,
    KeyframeStore,
    Sighting,
    cut_out,
    dilate,
    kernel_side,
)
from zarrmask.masking.dilation import dilated_part
from zarrmask.masking.keyframes import held_by
from zarrmask.masking.placing import Placing
from zarrmask.masking.sighting import AS_SEEN, REPLACED, SEEN_ANEW, UNSEEN

MASKS = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
    elements=st.sampled_from([0, 0, 0, 255]),
)


@pytest.mark.parametrize(
    ("size", "percent", "side"),
    [
        ((720, 1280), 3, 38),
        ((8000, 7888), 3, 240),
        ((30, 20), 3, 0),
        ((100, 10), 1, 1),
        ((9, 9), 0, 0),
    ],
)
def test_kernel_side(size, percent, side):
    assert kernel_side(*size, percent) == side


def test_a_kernel_is_no_longer_than_its_slice():
    """However small voxels are stated to be."""
    assert kernel_side(300, 500, "40um", 8) == 5
    assert kernel_side(300, 500, "5um", 1e-320) == 500


@given(MASKS, st.integers(0, 15))
def test_dilation_is_the_square_kernels(mask, side):
    expected = np.zeros_like(mask)
    reach = max(side, 1)
    for y, x in np.argwhere(mask):
        top, left = y + reach // 2 - reach + 1, x + reach // 2 - reach + 1
        expected[max(top, 0) : top + reach, max(left, 0) : left + reach] = 255
    np.testing.assert_array_equal(dilate(mask, side), expected)


@given(MASKS, st.integers(-15, 15), st.data())
def test_a_part_of_a_dilated_mask_is_that_of_the_whole(mask, side, data):
    y, x = (
        slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))))
        for n in mask.shape
    )
    part = dilated_part(lambda rows, columns: mask[rows, columns], y, x, mask.shape, side)
    np.testing.assert_array_equal(part, dilate(mask, side)[y, x])
    assert part.base is None  # no margins are kept in memory


@given(st.lists(st.booleans(), min_size=1, max_size=60).map(np.array), st.integers(1, 12))
def test_held_masks_are_the_seeds(present, every):
    """The replaced loop: count slices that could be read, detect on every n-th, hold the last."""
    expected, count, held = {}, 0, None
    for z, readable in enumerate(present):
        if readable:
            if count % every == 0:
                held = z
            count += 1
            expected[z] = held
    chosen = Placing.fixed(np.flatnonzero(present), every).candidates
    actual = {
        z: int(chosen[position])
        for position, start, stop in held_by(0, len(present), chosen)
        for z in range(start, stop)
    }
    assert {z: actual[z] for z in expected} == expected


@given(st.integers(0, 60), st.integers(1, 60), st.sets(st.integers(0, 120), max_size=9))
def test_parts_of_a_stack_hold_what_the_whole_does(start, length, chosen):
    chosen = np.array(sorted(chosen), np.int64)
    whole = {z: n for n, a, b in held_by(0, 200, chosen) for z in range(a, b)}
    part = {z: n for n, a, b in held_by(start, start + length, chosen) for z in range(a, b)}
    assert part == {z: n for z, n in whole.items() if start <= z < start + length}


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.integers(0, 6))
def test_blocks_of_held_masks_equal_the_replaced_loop(tmp_path_factory, every, percent):
    depth, height, width = 13, 30, 50
    rng = np.random.default_rng(every)
    detected = (rng.random((depth, height, width)) < 0.01).astype(np.uint8) * 255
    chosen = Placing.fixed(np.arange(depth), every).candidates
    store = KeyframeStore(tmp_path_factory.mktemp("held") / "keyframes.zarr")
    store.reserve(len(chosen), height, width)
    for position, z in enumerate(chosen):
        store.write_mask(position, detected[z])

    side, mask, expected = int(max(height, width) * percent / 100), None, []
    for z in range(depth):
        if z % every == 0:
            mask = detected[z]
            if side >= 1:
                mask = cv2.dilate(mask, np.ones((side, side), np.uint8), iterations=1)
        expected.append(mask)

    masks = HeldMasks(
        store, chosen, np.arange(len(chosen)), np.ones(len(chosen)), (height, width), side
    )
    region = (slice(2, 12), slice(5, 30), slice(10, 45))
    part = masks.region(*region).part(slice(1, 9), slice(2, 20))
    block = np.full((8, 18, 17), 7, np.uint8)
    part.fill(block, slice(3, 20))
    expected = np.array(expected)[region][1:9, 2:20]
    np.testing.assert_array_equal(block, expected[:, :, 3:20])
    runs = part.columns(side=4, most=8)
    assert all(columns.stop - columns.start <= 8 for columns, _ in runs)
    told = np.zeros(expected.shape[2], np.uint8)  # 1: some are inside; 2: all
    for columns, full in runs:
        told[columns] += 1 + full
    for start in range(0, len(told), 4):
        file = expected[:, :, start : start + 4]
        np.testing.assert_array_equal(told[start : start + 4], int(file.any()) + int(file.all()))


def test_what_was_found_is_kept(tmp_path):
    store = KeyframeStore(tmp_path / "keyframes.zarr")
    mask, empty = np.full((4, 5), 255, np.uint8), np.zeros((4, 5), np.uint8)
    assert store.reserve(4, 4, 5)
    store.write_mask(1, mask)
    boxes, scores = np.ones((2, 4), np.float32), np.array([0.9, 0.3], np.float32)
    found = Sighting.of_mask(mask, boxes, scores)
    nothing = Sighting.of_mask(empty, boxes[:0], scores[:0])
    assert not store.reserve(4, 4, 5)  # leaves what is there
    torn = tmp_path / "keyframes.zarr" / "mask" / "0.0.0.1234.partial"  # of a worker that was lost
    torn.write_bytes(b"half")
    store.write_sightings(
        np.array([100, 110, 120, 130]),
        [nothing, found, nothing],
        np.array([AS_SEEN, SEEN_ANEW, REPLACED]),
        np.array([0, 1, 3]),
    )
    assert not torn.exists()
    assert store.masks().shape == (4, 4, 5)
    assert np.asarray(store.masks()[1]).all()
    assert store.numbers() == [100, 110, 120, 130]
    assert store.states().tolist() == [AS_SEEN, SEEN_ANEW, UNSEEN, REPLACED]
    assert store.seen().tolist() == [0, 1, 3]
    assert store.used().tolist() == [0, 1]
    assert store.without_detection() == [100]
    assert store.areas().tolist() == [0, 20, 0, 0]
    assert store.reserve(3, 4, 5)  # of another run: nothing of it counts
    assert not np.asarray(store.masks()).any()


@given(
    hnp.arrays(st.sampled_from([np.uint8, np.uint16]), (3, 5, 7)),
    hnp.arrays(bool, (3, 5, 7)),
)
def test_what_is_cut_out_is_zero_outside(voxels, inside):
    out = np.empty_like(voxels)
    assert cut_out(voxels, np.where(inside, 255, 0).astype(np.uint8), out) is out
    np.testing.assert_array_equal(out, voxels * inside)
