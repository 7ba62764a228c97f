"""Speed and time left, by a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrmask import pace
from zarrmask.pace import RECENT, Pace, until_next


def worked(steps, total=10_000, done=0):
    """A pace after steps of (seconds, items), and the time."""
    now, one = 0.0, Pace(total, done)
    for seconds, items in steps:
        now += seconds
        one.advance(items, now)
    return one, now


def test_nothing_is_known_before_the_first():
    one = Pace(10)
    assert one.speed(5) is one.left(5) is one.mean_speed(5) is None


@given(st.floats(0.3, 100), st.integers(1, 8), st.integers(0, 500), st.integers(1, 300))
def test_a_steady_pace_is_told_from_the_first_to_the_last(seconds, hands, done, steps):
    total = done + steps * hands + 40
    one, now = worked([(seconds, hands)] * steps, total, done)
    assert one.speed(now) == pytest.approx(hands / seconds)
    assert one.mean_speed(now) == pytest.approx(hands / seconds)
    assert one.left(now) == pytest.approx(40 * seconds / hands)


def test_what_another_session_did_makes_nothing_faster():
    fresh, now = worked([(2.0, 1)] * 10, total=20)
    resumed, _ = worked([(2.0, 1)] * 10, total=1020, done=1000)
    assert resumed.left(now) == fresh.left(now) == pytest.approx(20)


def test_the_latest_count_and_not_the_beginning():
    one, now = worked([(1000.0, 1), *[(0.5, 1)] * 3 * RECENT])
    assert one.speed(now) == pytest.approx(2.0, rel=0.02)
    assert one.mean_speed(now) < 0.2


def test_a_batch_of_many_at_once_is_no_burst():
    one, now = worked([(16.0, 0), *[(0.01, 1)] * 16] * 20)
    assert one.speed(now) == pytest.approx(1.0, rel=0.05)


def test_while_nothing_comes_it_falls():
    one, now = worked([(1.0, 1)] * 100)
    speeds = [one.speed(now + wait) for wait in (0, 60, 600, 6000)]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[-1] < 0.02


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 20)), min_size=1, max_size=500))
def test_whatever_comes_marks_are_few_and_nothing_is_negative(steps):
    one, now = worked(steps)
    assert one.done == sum(items for _, items in steps)
    for told in (one.speed(now), one.left(now), one.mean_speed(now)):
        assert told is None or told >= 0
    most = RECENT + pace.RECENT_SECONDS / pace.APART
    assert len(one._marks) <= 2 * most + 3 or all(items == 0 for _, items in steps)


def test_marks_do_not_grow_with_the_work():
    one, _ = worked([(0.001, 1)] * 100_000, total=100_000)
    assert len(one._marks) < 500


def test_the_longest_run_is_no_flood_of_lines():
    elapsed, lines = 0.0, 0
    while elapsed < 24 * 3600:
        wait = until_next(elapsed, 30)
        assert wait >= 30
        elapsed, lines = elapsed + wait, lines + 1
    assert lines < 300
