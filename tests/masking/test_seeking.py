"""Keyframes from what is seen: stretches, second looks, mistakes made on purpose."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sightings import DEPTH, disc, seen

from zarrmask.masking.placing import Placing
from zarrmask.masking.seeking import Doubt, seek
from zarrmask.masking.sighting import AS_SEEN, REPLACED, SEEN_ANEW
from zarrmask.phantom.mistakes import MISTAKES


@pytest.fixture
def short(monkeypatch):
    """Short stretches, so that a few keyframes are several."""
    monkeypatch.setattr("zarrmask.masking.placing.STRETCH", 32)


def settled(placing, look, look_again=None, choose=lambda asks: 0):
    """Keyframes as they are settled; answers come in the order in which they are chosen."""

    def looks(ask):
        asks = []
        while asks := asks + list(ask()):
            one = asks.pop(choose(asks))
            yield one, look_again(one) if isinstance(one, Doubt) else look(one)

    return seek(placing, looks, mends=look_again is not None)


def sought(*arguments, **options):
    """All keyframes, at the end."""
    *_, found = settled(*arguments, **options)
    assert found.complete
    return found


def told(found, stop=None):
    """Keyframes before a position, to be compared."""
    states = zip(found.positions.tolist(), found.states.tolist(), strict=True)
    areas = [sighting.area for sighting in found.sightings]
    odd = [one for one in found.odd if stop is None or one.position < stop]
    count = len(areas) if stop is None else int(np.searchsorted(found.positions, stop))
    return list(states)[:count], areas[:count], odd


PLACINGS = {
    "every 10": Placing.fixed(np.arange(DEPTH), 10),
    "adaptive": Placing.adaptive(np.arange(DEPTH), 8, 64, 15.0),
}


@pytest.mark.parametrize("stretch", [256, 32])
@pytest.mark.parametrize("placing", PLACINGS.values(), ids=PLACINGS.keys())
def test_of_spoiled_keyframes_nearly_all_are_caught_and_hardly_a_good_one(
    truth, placing, stretch, monkeypatch
):
    monkeypatch.setattr("zarrmask.masking.placing.STRETCH", stretch)
    count = caught = good = touched = 0
    seeds = itertools.count()
    while count < 60:
        seed, spoiled = next(seeds), set()

        def look(position, seed=seed, spoiled=spoiled):
            rng = np.random.default_rng([seed, position])
            mask = truth(int(placing.candidates[position]))
            if rng.random() < 0.05:
                mistaken = rng.choice(list(MISTAKES.values()))(mask, rng)
                if (mistaken != mask).any():
                    mask = mistaken
                    spoiled.add(position)
            return seen(mask)

        found = sought(placing, look, lambda doubt: None)
        replaced = set(found.positions[found.states == REPLACED].tolist())
        assert {one.position for one in found.odd} == replaced
        count += len(spoiled)
        caught += len(spoiled & replaced)
        good += len(found.positions) - len(spoiled)
        touched += len(replaced - spoiled)
    assert caught >= 0.95 * count
    assert touched < 0.01 * good


# Looking again.


def test_a_second_look_is_used_where_it_fits_and_else_the_keyframe_is_not():
    masks = [disc(30 + z // 4) for z in range(40)]
    first = {8: disc(0), 20: ~disc(35), 30: disc(30, x=20)}
    second = {8: disc(32), 20: disc(34)}
    asked = []

    def look(position):
        return seen(first.get(position, masks[position]))

    def look_again(doubt):
        asked.append(doubt.position)
        assert doubt.before.area
        assert doubt.behind.area
        mask = second.get(doubt.position)
        return None if mask is None else ("other means", seen(mask))

    found = sought(Placing.fixed(np.arange(40), 1), look, look_again)
    assert asked == [8, 20, 30]  # once each
    states = np.full(40, AS_SEEN)
    states[[8, 20]], states[30] = SEEN_ANEW, REPLACED
    np.testing.assert_array_equal(found.states, states)
    assert found.sightings[8].area == disc(32).sum()
    assert [(one.position, one.before, one.behind, one.by) for one in found.odd] == [
        (8, 7, 9, "other means"),
        (20, 19, 21, "other means"),
        (30, 29, 31, None),
    ]


def test_without_a_second_look_nothing_is_doubted():
    masks = [disc(40), disc(0), disc(40)]
    placing = Placing.fixed(np.arange(3), 1)
    found = sought(placing, lambda position: seen(masks[position]))
    assert found.states.tolist() == [AS_SEEN] * 3
    assert found.odd == []


# Stretches.


def small(x):
    return disc(9, x=x, y=16, side=32)


def wavering(rng, count):
    """Masks of slices that change at times, with mistakes; and what a second look shows of some."""
    x = 16 + 8 * np.sin(np.cumsum(rng.choice([0.0, 0.1], count)))
    masks = [small(round(at)) for at in x]
    first = {n: small(4) for n in np.flatnonzero(rng.random(count) < 0.06).tolist()}
    second = {n: masks[n] for n in first if rng.random() < 0.5}

    def look(position):
        return seen(first.get(position, masks[position]))

    def look_again(doubt):
        mask = second.get(doubt.position)
        return None if mask is None else ("other means", seen(mask))

    return look, look_again


@settings(max_examples=15)
@given(st.integers(0, 2**20), st.sampled_from([1, 8]), st.randoms())
def test_the_order_of_answers_changes_nothing(seed, step, random):
    """Workers may be slow, stretches be looked at in any order, the run be stopped."""
    placing = Placing(np.arange(150), step, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zarrmask.masking.placing.STRETCH", 32)
        looks = wavering(np.random.default_rng(seed), 150)
        ordered = sought(placing, *looks)
        shuffled = sought(placing, *looks, choose=lambda asks: random.randrange(len(asks)))
        backwards = sought(placing, *looks, choose=lambda asks: -1)
    assert told(shuffled) == told(backwards) == told(ordered)


def test_what_is_settled_stays_and_more_follows(short):
    placing = Placing(np.arange(300), 8, 1.0)
    *some, whole = settled(placing, *wavering(np.random.default_rng(3), 300))
    assert len(some) > 5
    assert whole.odd
    for found in some:
        assert not found.complete
        stop = int(found.positions[-1]) + 1
        # Between which keyframes the last ones stand is told when all are there.
        assert told(found, stop - 32) == told(whole, stop - 32)
        assert told(found)[:2] == told(whole, stop)[:2]
    assert [len(found.positions) for found in some] == sorted({len(f.positions) for f in some})


def test_a_stretch_waits_for_its_neighbours_alone(short):
    placing = Placing(np.arange(300), 1)
    looked = []

    def look(position):
        looked.append(position)
        return seen(small(16))

    found = next(settled(placing, look, lambda doubt: None))
    assert found.positions.tolist() == list(range(32))
    assert max(looked) == 64  # the one that the next two share


def test_stretches_find_what_all_together_find(truth, monkeypatch):
    def look(position):
        rng = np.random.default_rng(position)
        mask = truth(int(placing.candidates[position]))
        spoiled = rng.random() < 0.05
        return seen(rng.choice(list(MISTAKES.values()))(mask, rng) if spoiled else mask)

    placing = Placing.adaptive(np.arange(DEPTH), 8, 64, 15.0)
    found = []
    for stretch in (32, DEPTH):
        monkeypatch.setattr("zarrmask.masking.placing.STRETCH", stretch)
        found.append(sought(placing, look, lambda doubt: None))
    assert len(placing.stretches) == 1
    np.testing.assert_array_equal(found[0].positions, found[1].positions)
    assert np.mean(found[0].states == found[1].states) > 0.99


def test_keyframes_that_are_used_and_their_areas():
    found = sought(Placing.fixed(np.arange(9), 1), lambda n: seen(disc(n + 20)))
    found = replace(found, states=np.where(np.arange(9) == 4, REPLACED, found.states))
    assert found.used.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert found.areas.tolist() == [disc(n + 20).sum() for n in found.used]
