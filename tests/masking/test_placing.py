"""Keyframes that place themselves, on masks that are known."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zarrmask.masking.placing import FAR, Placing
from zarrmask.masking.sketch import NOWHERE, SPECK, Sketch, agreement, displacement

MASKS = hnp.arrays(bool, (24, 30), elements=st.sampled_from([False, False, True]))


def box(left, width=40, top=20, height=60, shape=(100, 200)):
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return Sketch.of_pixels(mask)


NOTHING = box(0, width=0)


def looked(placing, sketch_of):
    """What is seen at the end, and in how many rounds; every answer at once or one by one."""
    seen, rounds = {}, []
    while wanted := placing.wanted(seen):
        assert wanted == sorted(set(wanted) - set(seen))
        rounds.append(wanted)
        seen |= {position: sketch_of(position) for position in wanted}
    return seen, rounds


# Sketches.


@given(MASKS)
def test_a_sketch_is_what_it_was_made_of(pixels):
    sketch = Sketch.of_pixels(pixels)
    again = Sketch.from_json(sketch.to_json())
    np.testing.assert_array_equal(again.pixels, pixels)
    assert again.area == pixels.sum()


@given(MASKS)
def test_a_sketch_is_empty_only_where_the_mask_is(pixels):
    mask = cv2.resize(pixels.astype(np.uint8) * 255, (1200, 960), interpolation=cv2.INTER_NEAREST)
    assert Sketch.of_mask(mask).shape == (205, 256)
    assert bool(Sketch.of_mask(mask).area) == pixels.any()
    dot = np.zeros((960, 1200), np.uint8)
    dot[700, 900] = 255
    assert Sketch.of_mask(dot).area == 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_displacement_is_how_far_an_edge_moved(one, other):
    assert displacement(box(one), box(other)) == pytest.approx(abs(one - other) / 2)


def test_displacement_to_nowhere():
    assert displacement(box(5), NOTHING) == displacement(NOTHING, box(5)) == NOWHERE
    assert displacement(NOTHING, NOTHING) == 0


def test_a_piece_that_matches_none_lies_far_away_but_a_speck_does_not():
    mask = box(0).pixels.copy()
    mask[90, 150 : 150 + SPECK] = True
    assert displacement(box(0), Sketch.of_pixels(mask)) == 0
    mask[91, 150] = True
    assert displacement(box(0), Sketch.of_pixels(mask)) > 50


# Placing.


@given(
    st.sets(st.integers(0, 300), min_size=1).map(sorted).map(np.array),
    st.integers(1, 12),
    st.integers(1, 9),
)
def test_candidates_are_slices_that_are_there(there, least, times):
    placing = Placing.adaptive(there, least, least * times, 1)
    assert set(placing.candidates) <= set(there)
    assert {there[0], there[-1]} <= set(placing.candidates[placing.first])
    gaps = np.diff(np.searchsorted(there, placing.candidates[placing.first]))
    assert (gaps <= least * times).all()
    assert (np.diff(np.searchsorted(there, placing.candidates)) <= least).all()
    fixed = Placing.fixed(there, least)
    assert fixed.candidates.tolist() == there[::least].tolist()


@given(st.integers(1, 90), st.integers(1, 20))
def test_a_fixed_interval_takes_one_round(count, every):
    placing = Placing.fixed(np.arange(count), every)
    seen, rounds = looked(placing, lambda position: box(position))
    assert len(rounds) == 1
    assert sorted(seen) == list(range(len(placing.candidates)))


def test_a_fixed_interval_ends_with_the_last_slice_where_masks_are_interpolated():
    there = np.array([3, 4, 5, 6, 9, 10])
    assert Placing.fixed(there, 4).candidates.tolist() == [3, 9]
    assert Placing.fixed(there, 4, last=True).candidates.tolist() == [3, 9, 10]
    assert Placing.fixed(there, 5, last=True).candidates.tolist() == [3, 10]


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 150)), min_size=1, max_size=80),
    st.integers(1, 16),
    st.floats(0, 100),
)
def test_neighbours_agree_at_the_end_or_stand_next_to_each_other(places, step, tolerance):
    sketches = [NOTHING if place is None else box(place) for place in places]
    placing = Placing(np.arange(len(places)), step, tolerance)
    seen, rounds = looked(placing, sketches.__getitem__)
    assert set(placing.first) <= set(seen)
    for left, right in pairwise(sorted(seen)):
        if right - left > 1:
            assert agreement(seen[left], seen[right]) >= 1 - tolerance / 100 - 1e-9
            assert displacement(seen[left], seen[right]) <= FAR
    most = placing.rounds()
    assert len(rounds) <= len(most)
    for wanted, there in zip(rounds, most, strict=False):
        assert set(wanted) <= set(there.tolist())
    assert sorted(np.concatenate(most)) == list(range(len(places)))


@given(st.lists(st.one_of(st.none(), st.integers(0, 150)), min_size=2, max_size=60), st.randoms())
def test_the_order_of_answers_changes_nothing(places, random):
    """A run that was stopped, or whose workers are slow, ends with the same keyframes."""
    sketches = [NOTHING if place is None else box(place) for place in places]
    placing = Placing(np.arange(len(places)), 8, 15.0)
    whole, _ = looked(placing, sketches.__getitem__)
    seen = {}
    while wanted := placing.wanted(seen):
        position = random.choice(wanted)
        seen[position] = sketches[position]
    assert set(seen) == set(whole)


def test_where_nothing_is_found_at_first_all_is_looked_at():
    """An object that is shorter than the first interval, with air before and behind it."""
    sketches = [NOTHING] * 3 + [box(40)] * 4 + [NOTHING] * 2
    seen, _ = looked(Placing(np.arange(9), 8, 15.0), sketches.__getitem__)
    assert set(seen) == set(range(9))


def test_what_does_not_change_is_seen_seldom_and_an_end_closely():
    sketches = [NOTHING] * 130 + [box(40)] * 130
    seen, _ = looked(Placing(np.arange(260), 64, 15.0), sketches.__getitem__)
    assert {129, 130} <= set(seen)
    assert len(seen) == 6 + 6  # every 64th and the last; six halvings


def test_a_piece_that_comes_is_followed_however_small_it_is():
    """It makes no difference to the agreement of masks, but is nowhere near the rest."""
    whole, piece = box(0, width=150).pixels, box(190, width=8, height=8).pixels
    sketches = [Sketch.of_pixels(whole)] * 40 + [Sketch.of_pixels(whole | piece)] * 25
    assert agreement(sketches[0], sketches[-1]) > 0.99
    seen, _ = looked(Placing(np.arange(65), 64, 15.0), sketches.__getitem__)
    assert {39, 40} <= set(seen)
