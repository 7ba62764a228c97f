"""Figures as people read them."""

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrmask.report import charts, headline, khartes, planes, words

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@pytest.mark.parametrize("module", [words, planes, khartes, charts, headline])
def test_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


@settings(max_examples=50)
@given(anything, anything)
def test_whatever_a_record_holds_becomes_one_text(value, other):
    for write in (words.plain, words.large, words.duration, words.size):
        assert isinstance(write(value), str)
        assert write(value)
    assert words.percent(value, other)
    words.pick(value, "a", "b")


@given(st.sets(st.integers(0, 60)), st.integers(1, 7))
def test_ranges_name_each_chosen_slice_and_no_other(chosen, every):
    among = range(0, 60, every)
    kept = sorted(chosen & set(among))
    text = words.runs(kept, among)
    named = set()
    for part in filter(None, text.split(", ")):
        first, _, last = part.partition("–")
        named |= {z for z in among if int(first) <= z <= int(last or first)}
    assert named == set(kept)


def test_a_slice_outside_the_series_stands_alone():
    assert words.runs([0, 5, 10], [0, 10, 20]) == "0, 5, 10"
