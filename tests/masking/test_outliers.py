"""Mistakes of a detector, made on purpose on simulated scrolls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sightings import DEPTH, disc, seen

from zarrmask.masking.outliers import Contradiction, cost, difference, outliers
from zarrmask.masking.sketch import Sketch


@pytest.mark.parametrize("every", [10, 40])
def test_a_scroll_and_its_ends_are_no_outliers(truth, every):
    assert outliers([seen(truth(z)) for z in range(0, DEPTH, every)]) == []


def test_a_sudden_but_real_change_is_no_outlier():
    for after in (disc(20), disc(40, x=60), disc(0)):
        assert outliers([seen(disc(40))] * 9 + [seen(after)] * 9) == []
        lasting = [seen(disc(40))] * 9 + [seen(after)] * 4 + [seen(disc(40))] * 9
        assert outliers(lasting) == []


def test_mistakes_in_a_row_are_caught_and_what_is_between_them_is_kept():
    right, wrong = seen(disc(40)), seen(disc(0))
    row = [right, right, wrong, wrong, right, wrong, right, right]
    assert outliers(row) == [2, 3, 5]


def test_an_end_that_covers_all_borders_is_caught_unless_that_is_usual():
    right, airy = seen(disc(40)), seen(~disc(40))
    assert outliers([airy, right, right, right, airy]) == [0, 4]
    assert outliers([airy] * 5) == []
    assert outliers([airy]) == outliers([right]) == outliers([]) == []


@given(st.lists(st.integers(0, 45), min_size=3, max_size=30).map(sorted))
def test_what_grows_is_no_outlier(radii):
    assert outliers([seen(disc(radius)) for radius in radii]) == []


def test_what_the_detector_was_unsure_of_or_what_is_dark_goes_sooner():
    right, piece = disc(30), disc(12, x=85, y=85)
    beside = [seen(right, contrast=40.0)] * 4
    for share, score, contrast in ((False, 1.0, 40.0), (True, 0.2, 40.0), (True, 1.0, -40.0)):
        odd = seen(right | disc(6, x=88, y=88), score, contrast)
        assert (outliers([*beside, odd, *beside]) == [4]) == share
    assert outliers([*beside, seen(right | piece, contrast=40.0), *beside]) == [4]


def test_contradiction_counts_what_neither_has_and_what_both_have():
    plain = Sketch.of_pixels(disc(30))
    assert Contradiction.of(plain, plain, plain) == Contradiction(0, 0)
    nothing = Contradiction.of(plain, Sketch.of_pixels(disc(0)), plain)
    assert nothing == Contradiction(0, 1)
    assert Contradiction.of(Sketch.of_pixels(disc(0)), plain, plain) == Contradiction(0, 0)
    more = Contradiction.of(plain, Sketch.of_pixels(disc(30) | disc(10, 88, 88)), plain)
    assert 0.05 < more.surplus < 0.15
    assert more.lacking == 0


def test_what_fits_costs_less():
    before, behind = seen(disc(30)), seen(disc(34))
    fitting, other = seen(disc(32)), seen(disc(32, x=65))
    for sides in ((before, behind), (before, None), (None, behind)):
        assert cost(sides[0], fitting, sides[1], 3000) < cost(sides[0], other, sides[1], 3000)


def test_it_is_said_what_speaks_against_a_keyframe():
    right = seen(disc(30))
    assert "nothing was found" in difference(right, seen(disc(0)), right)
    assert "borders" in difference(right, seen(~disc(30)), right)
    assert difference(right, seen(disc(30, x=60)), right).endswith("on neither side")
    assert "missing" in difference(right, seen(disc(10)), right)


@pytest.mark.parametrize("seen_on", range(1, 8))
@pytest.mark.parametrize("ends", [1, 30])
def test_what_is_seen_on_a_few_keyframes_is_kept(seen_on, ends):
    """However soon it is over: it may be all that there is."""
    nothing = [seen(disc(0))] * ends
    shapes = [disc(40 if 0 < n < seen_on - 1 else 25) for n in range(seen_on)]
    assert outliers([*nothing, *map(seen, shapes), *nothing]) == []


def test_what_a_few_keyframes_lack_is_mended_all_the_same():
    right, wrong = seen(disc(40)), seen(disc(0))
    assert outliers([right, right, wrong, right, right]) == [2]


def test_many_keyframes_outweigh_one_that_has_more():
    right, more = seen(disc(30)), seen(disc(30) | disc(12, x=85, y=85))
    for beside, expected in ((3, []), (4, [4])):
        assert outliers([*[right] * beside, more, *[right] * beside]) == expected
    alone = [seen(disc(0))] * 20
    assert outliers([*[right] * 8, *alone, more, *alone]) == [28]
