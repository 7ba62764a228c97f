"""Which keyframes a person is sent to."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrmask.masking.sketch import Sketch
from zarrmask.report.greys import Greys
from zarrmask.report.keyframes import KeyframeTable
from zarrmask.report.suspects import at_border_always, suspects

SHAPE = (300, 400)
COUNT = 15


def ellipse(y=150, x=200, height=90, width=140):
    mask = np.zeros(SHAPE, np.uint8)
    return cv2.ellipse(mask, (x, y), (width, height), 0, 0, 360, 255, -1)


def smooth(count=COUNT):
    """Masks of an object that drifts, grows and shrinks slowly."""
    t = np.linspace(0, 1, count)
    return [
        ellipse(int(150 + 15 * a), int(190 + 20 * a), int(80 + 20 * np.sin(3 * a)))
        for a in t.tolist()
    ]


def keyframes(masks, scores=None, used=None, every=10):
    masks = np.array(masks)
    areas = np.count_nonzero(masks, axis=(1, 2))
    sketches = tuple(Sketch.of_mask(mask) for mask in masks)
    given = np.full(len(masks), 0.95) if scores is None else np.array(scores)
    return KeyframeTable(
        np.arange(len(masks)) * every,
        (areas > 0).astype(np.int64),
        np.where(areas > 0, given, np.nan),
        areas.astype(np.float64),
        np.ones(len(masks), bool) if used is None else np.array(used),
        sketches,
        max(SHAPE) / max(sketches[0].shape) if sketches else 1.0,
    )


def greys(count=COUNT, every=10, odd=None, at=None):
    """Kept are values about 600, removed ones about 300; of one part what else is told."""
    random = np.random.default_rng(0)
    usual = np.bincount(random.normal(600, 40, 5000).astype(int), minlength=1024)
    kept = np.array([usual] * count)
    if odd is not None:
        kept[at] = np.bincount(odd.astype(int), minlength=1024)
    removed = np.bincount(random.normal(300, 40, 50_000).astype(int), minlength=1024)
    return Greys(np.arange(1025.0), kept, removed, np.arange(count) * every)


def spoilt(kind, masks, at):
    mask = masks[at]
    if kind == "blank":
        return np.zeros_like(mask)
    if kind == "inverted":
        return 255 - mask
    if kind == "shifted":
        return np.roll(mask, SHAPE[1] // 10, axis=1)
    if kind == "doubled":
        return cv2.dilate(mask, np.ones((41, 41), np.uint8))
    if kind == "halved":
        return np.where(np.arange(SHAPE[1]) < 200, mask, 0).astype(np.uint8)
    other = mask.copy()  # case added
    other[5:40, 20:380] = 255
    return other


KINDS = ("blank", "inverted", "shifted", "doubled", "halved", "case")


def test_where_all_changes_slowly_nothing_is_suspicious():
    assert suspects(keyframes(smooth()), greys(), {}) == []


@pytest.mark.parametrize("at", [1, 7, COUNT - 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_keyframe_is_the_worst(kind, at):
    masks = smooth()
    masks[at] = spoilt(kind, masks, at)
    first, *others = suspects(keyframes(masks), greys(), {})
    assert first.worst == at
    assert first.weight > 0.15
    assert (first.first, first.last) == (at, at)
    assert others == []


@settings(max_examples=40)
@given(st.sets(st.integers(0, 40), max_size=4), st.sampled_from(KINDS))
def test_ranges_are_apart_in_order_and_hold_their_worst(places, kind):
    masks = smooth(41)
    for at in places:
        masks[at] = spoilt(kind, masks, at)
    found = suspects(keyframes(masks), greys(41), {})
    assert [one.weight for one in found] == sorted((one.weight for one in found), reverse=True)
    covered = sorted((one.first, one.last) for one in found)
    assert all(0 <= one.first <= one.worst <= one.last <= 40 for one in found)
    assert all(this[1] + 1 < following[0] for this, following in pairwise(covered))
    inner = {at for at in places if 0 < at < 40 and not {at - 1, at + 1} & places}
    for at in inner:
        assert any(first <= at <= last for first, last in covered)


def test_nothing_at_the_ends_weighs_little_and_nothing_within_much():
    masks = smooth()
    for at in (0, 1, 8, 14):
        masks[at] = np.zeros(SHAPE, np.uint8)
    found = {one.worst: one.weight for one in suspects(keyframes(masks), greys(), {})}
    assert found[8] >= 1
    assert found[14] == found[0] == pytest.approx(0.1)


def test_a_score_that_drops_and_pieces_that_come_and_go_are_told():
    scores = np.full(COUNT, 0.95)
    scores[5] = 0.4
    masks = smooth()
    masks[10] = cv2.circle(masks[10], (30, 30), 12, 255, -1)
    by_place = {one.worst: one for one in suspects(keyframes(masks, scores), greys(), {})}
    assert any("score" in why for why in by_place[5].why)
    assert any("more pieces" in why for why in by_place[10].why)


def test_a_lasting_change_is_told_where_it_happens():
    masks = smooth()
    masks[7:] = [
        np.where(np.arange(SHAPE[1]) < 210, mask, 0).astype(np.uint8) for mask in masks[7:]
    ]
    (one,) = suspects(keyframes(masks), greys(), {})
    assert (one.first, one.last) == (6, 7)
    assert "changes abruptly between z 60 and z 70" in one.why[0]


def test_a_mask_at_the_border_is_told_unless_most_are_there():
    masks = smooth()
    masks[4][:, :30] = 255
    touched = keyframes(masks)
    assert any("border" in why for one in suspects(touched, greys(), {}) for why in one.why)
    assert not at_border_always(touched)
    for mask in masks:
        mask[:8] = 255
    always = keyframes(masks)
    assert at_border_always(always)
    assert not any("border" in why for one in suspects(always, greys(), {}) for why in one.why)


@pytest.mark.parametrize(("kind", "value"), [("air", 300), ("case", 900)])
def test_greys_of_air_or_case_are_told(kind, value):
    random = np.random.default_rng(1)
    odd = np.concatenate([random.normal(600, 40, 4000), random.normal(value, 20, 1500)])
    (one,) = suspects(keyframes(smooth()), greys(odd=odd, at=6), {})
    assert (one.first, one.last) == (6, 6)
    assert f"grey values of the {kind}" in one.why[0]


def test_what_the_run_mended_is_told_and_what_it_replaced_is_judged_no_more():
    masks = smooth()
    masks[4] = spoilt("inverted", masks, 4)
    used = [n != 4 for n in range(COUNT)]
    entries = {
        "replaced": [{"z": 40, "why": "it is odd", "between": [30, 50]}],
        "redone": [{"z": 90, "why": "nothing was found", "between": [80, None], "by": "a window"}],
    }
    first, second = suspects(keyframes(masks, used=used), greys(), {"keyframes": entries})
    assert first.why == ("replaced by what is on z 30 and z 50, since it is odd",)
    assert (first.first, first.last) == (4, 4)
    assert second.why == ("detected anew, by a window, since nothing was found",)


def test_what_a_person_corrected_weighs_little():
    masks = smooth()
    for at in (4, 10):
        masks[at] = spoilt("doubled", masks, at)
    record = {"corrections": [{"z": [35, 45], "how": {"from": 30}, "voxels": -5}, {"z": "odd"}]}
    first, second = suspects(keyframes(masks), greys(), record)
    assert first.worst == 10
    assert (second.worst, second.why[0]) == (4, "corrected since")
    assert second.weight < 0.1 < first.weight


def test_what_a_person_did_not_correct_weighs_as_much_as_before():
    masks = smooth()
    masks[3:7] = np.zeros((4, *SHAPE), np.uint8)
    (whole,) = suspects(keyframes(masks), greys(), {})
    record = {"corrections": [{"z": [30, 40], "how": {"from": 20}}]}
    left, corrected = suspects(keyframes(masks), greys(), record)
    assert (left.first, left.last, left.weight) == (4, 6, whole.weight)
    assert (corrected.first, corrected.last, corrected.why[0]) == (3, 3, "corrected since")


def test_what_was_not_found_anew_is_said():
    detected = {"without_detection": [78, 79, 80]}
    entry = {"z": [70, 90], "how": {"detect": {"score": 0.9}}, "detected": detected}
    (found,) = suspects(keyframes(smooth()), greys(), {"corrections": [entry]})
    assert (found.first, found.last, found.weight) == (8, 8, 1.0)
    assert found.why == ("nothing was found on z 78 and 2 more when that was detected anew",)
    mended = {"z": [78, 81], "how": {"from": 70}}
    assert suspects(keyframes(smooth()), greys(), {"corrections": [entry, mended]}) == []


@pytest.mark.parametrize(
    "told",
    [None, 3, [], {"replaced": None}, {"replaced": [None, {}, {"z": "x"}, {"z": 5}]}],
    ids=range(5),
)
def test_a_record_that_says_nothing_does_no_harm(told):
    assert suspects(keyframes(smooth()), greys(), {"keyframes": told}) == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_keyframes_are_no_trouble(count):
    masks = np.array(smooth()[:count]).reshape(count, *SHAPE)
    assert suspects(keyframes(masks), greys(), {}) == []
