"""Looking closer: what is shown again, and what becomes of both answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrmask.detection.closer import GAIN, MARGIN, look_closer, part_to_see
from zarrmask.detection.detections import Detections
from zarrmask.detection.inputs import NetworkInput

CLOSER = NetworkInput(100, 150, closer=True)
SHAPE = (1000, 1200)


def detections(boxes, scores):
    count = len(scores)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4),
        np.array(scores, np.float32),
        np.zeros(count, np.int64),
        np.ones((count, 2, 2), np.float32),
    )


def bright(prepared, size):
    """Finds the box of what is bright, as a network would: in pixels of what it saw."""
    rows, columns = (np.flatnonzero((prepared > 127).any(axis)) for axis in (1, 0))
    scale = np.array([size[1] / prepared.shape[1], size[0] / prepared.shape[0]] * 2)
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) * scale
    return detections([box], [0.9])


def asked(answer):
    """Give a detector that answers so, and the list of what it was shown."""
    shown = []

    def detect(prepared, size):
        shown.append((prepared.shape, size))
        return answer

    return detect, shown


@pytest.mark.parametrize("coarser", [1, 4])
def test_the_second_look_is_in_more_pixels_and_found_where_it_is(coarser):
    truth = np.array([806, 204, 1014, 336])
    image = np.zeros(SHAPE, np.uint8)
    image[truth[1] : truth[3], truth[0] : truth[2]] = 255
    image = image[::coarser, ::coarser]
    first = bright(CLOSER.prepare(image, SHAPE), SHAPE)
    second = look_closer(first, image, SHAPE, CLOSER, bright)
    errors = [np.abs(found.boxes[0] - truth).max() for found in (first, second)]
    assert len(second) == 1
    assert errors[1] < errors[0] / 2, errors


@pytest.mark.parametrize(
    ("seen", "boxes", "scores"),
    [
        (NetworkInput(100, 150), [[9, 9, 99, 99]], [0.9]),  # not this network's way
        (CLOSER, [], []),
        (CLOSER, [[9, 9, 99, 99]], [0.5]),  # not sure
        (CLOSER, [[9, 9, 1190, 900]], [0.9]),  # large
        (CLOSER, [[9, 900, 99, 1000]], [0.9]),  # cut by the slice's border
        (NetworkInput(0, 150, closer=True), [[9, 9, 99, 99]], [0.9]),  # at its own size already
        (NetworkInput(900, 1500, closer=True), [[9, 9, 99, 99]], [0.9]),  # no pixels to gain
    ],
)
def test_nobody_looks_again_where_there_is_nothing_to_gain(seen, boxes, scores):
    detect, shown = asked(None)
    found = detections(boxes, scores)
    assert look_closer(found, np.zeros(SHAPE, np.uint8), SHAPE, seen, detect) is found
    assert not shown


def test_a_second_look_that_is_not_sure_does_not_count():
    detect, shown = asked(detections([[0, 0, 50, 50]], [0.4]))
    found = detections([[100, 100, 300, 300]], [0.9])
    assert look_closer(found, np.zeros(SHAPE, np.uint8), SHAPE, CLOSER, detect) is found
    assert shown == [((100, 100), (280, 280))]


def test_what_the_second_look_does_not_see_stays():
    """A sure piece, one beside it that only the first look sees, and one that both do."""
    found = detections(
        [[400, 400, 600, 600], [700, 400, 720, 420], [640, 400, 660, 420]], [0.9, 0.4, 0.3]
    )
    again = detections([[52, 52, 252, 252], [281, 52, 302, 72]], [0.8, 0.6])
    detect, _ = asked(again)
    both = look_closer(found, np.zeros(SHAPE, np.uint8), SHAPE, CLOSER, detect)
    np.testing.assert_allclose(both.scores, [0.8, 0.6, 0.4])
    np.testing.assert_allclose(both.boxes[0], [412, 412, 612, 612])
    np.testing.assert_allclose(both.boxes[2], [700, 400, 720, 420])


boxes = st.tuples(*[st.floats(0, 900)] * 2, *[st.floats(1, 300)] * 2).map(
    lambda one: (one[0], one[1], one[0] + one[2], one[1] + one[3])
)
answers = st.lists(st.tuples(boxes, st.floats(0.05, 1)), min_size=0, max_size=6).map(
    lambda some: sorted(some, key=lambda one: -one[1])
)


def of(answer):
    return detections([box for box, _ in answer], [score for _, score in answer])


@given(answers, answers, st.floats(0.05, 0.5))
def test_a_threshold_may_come_before_or_after(first, again, score):
    image = np.zeros(SHAPE, np.uint8)

    def both(threshold):
        detect, _ = asked(of(again).above(threshold))
        return look_closer(of(first).above(threshold), image, SHAPE, CLOSER, detect)

    one, other = both(0.0).above(score), both(score)
    assert one.scores.tolist() == other.scores.tolist()
    assert sorted(one.boxes.tolist()) == sorted(other.boxes.tolist())


@given(st.lists(boxes, min_size=1, max_size=4), st.integers(1, 1200), st.integers(1, 1200))
def test_the_part_that_is_seen_again_holds_all_boxes_and_gains(some, height, width):
    inside = np.array(some, np.float32) / 1200 * np.array([width, height] * 2, np.float32)
    part = part_to_see(inside, (height, width), CLOSER)
    if part is None:
        return
    rows, columns = part
    assert 0 <= rows.start < rows.stop <= height
    assert 0 <= columns.start < columns.stop <= width
    reach = MARGIN * (inside[:, 2:].max(0) - inside[:, :2].min(0)).max()
    for start, stop, of_side, low, high in (
        (columns.start, columns.stop, width, inside[:, 0].min(), inside[:, 2].max()),
        (rows.start, rows.stop, height, inside[:, 1].min(), inside[:, 3].max()),
    ):
        assert start <= max(0, low - reach + 1e-3)
        assert stop >= min(of_side, high + reach - 1e-3)
    before, after = (
        CLOSER.shape(*size)[0] / size[0]
        for size in ((height, width), (rows.stop - rows.start, columns.stop - columns.start))
    )
    assert after >= GAIN * before
