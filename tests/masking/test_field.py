"""Masks by signed distances, against plain NumPy."""

import cv2
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zarrmask.masking import FieldStore, InterpolatedMasks
from zarrmask.masking.field import (
    NOWHERE,
    REACH,
    UNITS,
    cell_side,
    cells,
    cells_around,
    coarse_mask,
    distance_to_zero,
    grown,
    parts_apart,
    pieces_apart,
    signed_distance,
)
from zarrmask.masking.keyframes import spans_between

SMALL = st.tuples(st.integers(1, 9), st.integers(1, 9))
INSIDE = SMALL.flatmap(lambda shape: arrays(np.bool_, shape))


def disc(shape, centre, radius):
    mask = np.zeros(shape, np.uint8)
    cv2.circle(mask, centre[::-1], radius, 255, -1)
    return mask


def masks_of(folder, planes, keyframes, growth, name="fields"):
    """Masks of a stack from those of its keyframes, by way of files."""
    store = FieldStore(folder / f"{name}.zarr", planes[0].shape)
    masks, positions = zarr.array(np.array(planes)), np.arange(len(planes))
    assert store.create(len(planes))
    assert not store.create(len(planes))
    for first in range(0, len(planes), 16):
        store.write(first, masks, positions)
    areas = np.array([np.count_nonzero(plane) for plane in planes])
    return InterpolatedMasks(store, np.array(keyframes), areas, growth)


def filled(masks, z, y, x):
    """The masks of a region as one array."""
    out = np.full((z.stop - z.start, y.stop - y.start, x.stop - x.start), 7, np.uint8)
    masks.region(z, y, x).fill(out, slice(0, x.stop - x.start))
    assert set(np.unique(out)) <= {0, 255}
    return out > 0


@given(INSIDE)
def test_distance_is_to_the_nearest_cell_of_the_other_kind(inside):
    distance = signed_distance(inside)
    places = np.argwhere(np.ones_like(inside))
    for place in places:
        others = [p for p in places if inside[tuple(p)] != inside[tuple(place)]]
        if not others:
            assert distance[tuple(place)] == (-NOWHERE if inside.all() else NOWHERE)
            continue
        nearest = min(np.hypot(*(p - place)) for p in others)
        expected = (nearest - 0.5) * UNITS * (1 if inside[tuple(place)] else -1)
        assert abs(distance[tuple(place)] - expected) <= 0.5


@pytest.mark.parametrize("threads", [1, 2])
def test_distances_are_right_to_the_last_bit(threads):
    """With one thread, too, where OpenCV would have IPP take them."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        mask = np.ones((700, 900), np.uint8)
        mask[3, 5] = 0
        y, x = np.ogrid[:700, :900]
        exact = np.sqrt((y - 3.0) ** 2 + (x - 5.0) ** 2).astype(np.float32)
        assert np.array_equal(distance_to_zero(mask), exact)
    finally:
        cv2.setNumThreads(before)


@given(INSIDE, st.integers(1, 5))
def test_coarse_mask_is_the_majority_of_its_pixels(cell_values, side):
    large = cell_values.repeat(side, 0).repeat(side, 1)
    cut = large[: large.shape[0] - side // 2, : large.shape[1] - side // 2]  # half a cell, at most
    if cut.size:
        mask = np.where(cut, np.uint8(255), np.uint8(0))
        np.testing.assert_array_equal(coarse_mask(mask, side), cell_values)


@given(SMALL.flatmap(lambda shape: st.tuples(*[arrays(np.bool_, shape)] * 2)))
def test_pieces_apart_are_those_that_share_nothing(pair):
    expected = np.zeros_like(pair[0])
    for mask, other in (pair, pair[::-1]):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        for label in range(1, count):
            piece = labels == label
            if not (piece & other).any():
                expected |= piece
    np.testing.assert_array_equal(pieces_apart(*pair), expected)


@given(st.integers(0, 200), st.integers(0, 10))
def test_growth_by_the_reach_holds_both_masks_on_all_slices_between(tmp_path_factory, seed, blur):
    rng, shape = np.random.default_rng(seed), (90, 200)
    planes = []
    for _ in range(2):
        noise = rng.normal(size=shape).astype(np.float32)
        noise = cv2.GaussianBlur(noise, (0, 0), blur + 0.5)
        planes.append(np.where(noise > noise.std(), np.uint8(255), np.uint8(0)))
    masks = masks_of(tmp_path_factory.mktemp("fields"), planes, [0, 7], int(REACH * 200) + 1)
    found = filled(masks, slice(0, 8), slice(0, 90), slice(0, 200))
    assert found[1:7][:, (planes[0] | planes[1]) > 0].all()


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 9), st.data())
def test_cells_around_pixels_are_all_that_they_are_interpolated_from(size, length, side, data):
    start = data.draw(st.integers(0, size - 1))
    stop = min(start + length, size)
    count = -(-size // side)
    found = cells_around(start, stop, side, count)
    for pixel in (start, stop - 1):
        place = min(max((pixel + 0.5) / side - 0.5, 0), count - 1)
        assert found.start <= np.floor(place)
        assert np.ceil(place) <= found.stop - 1
    assert found.stop - found.start <= (stop - start) / side + 3


@given(st.sets(st.integers(0, 40), min_size=1), st.integers(0, 40), st.integers(1, 20))
def test_spans_are_between_the_nearest_keyframes(chosen, start, count):
    keyframes = np.array(sorted(chosen))
    seen = start
    for span in spans_between(start, start + count, keyframes):
        assert span.start == seen
        for z, place in enumerate(span.places, span.start):
            before, after = keyframes[keyframes <= z], keyframes[keyframes > z]
            one = before[-1] if len(before) else keyframes[0]
            other = after[0] if len(after) else keyframes[-1]
            if not len(before):
                other = one
            assert (keyframes[span.one], keyframes[span.other]) == (one, other)
            assert place == pytest.approx((z - one) / (other - one) if other != one else 0)
        seen += len(span.places)
        for part in span.part(slice(start + 2, start + count - 1)):
            assert part.places == span.places[max(0, start + 2 - span.start) :][: len(part.places)]
            assert part.start >= 0
    assert seen == start + count


@pytest.mark.parametrize("shape", [(60, 50), (1, 40), (700, 1030), (1500, 2060)])
def test_keyframes_keep_their_masks(tmp_path, shape):
    """Exactly where a cell is a pixel, and to half a cell's side elsewhere."""
    rng = np.random.default_rng(1)
    planes = []
    for _ in range(3):
        noise = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), 20)
        planes.append(np.where(noise > 0, np.uint8(255), np.uint8(0)))
    masks = masks_of(tmp_path, planes, [3, 5, 9], 0)
    whole = slice(0, shape[0]), slice(0, shape[1])
    for z, plane in zip((0, 3, 5, 9, 12), np.array(planes)[[0, 0, 1, 2, 2]], strict=True):
        found = filled(masks, slice(z, z + 1), *whole)[0]
        side = cell_side(*shape)
        if side == 1:
            np.testing.assert_array_equal(found, plane > 0)
        else:
            kernel = np.ones((2 * side + 1,) * 2, np.uint8)
            assert not (found & (cv2.dilate(plane, kernel) == 0)).any()
            assert not (~found & (cv2.erode(plane, kernel) > 0)).any()


@pytest.mark.parametrize(("radius", "moved"), [(60, False), (120, True)])
def test_a_disc_between_two_has_the_radius_between_theirs(tmp_path, radius, moved):
    """Unless it grows by more than an edge may move: then all of it is kept."""
    shape = 1000, 900
    planes = [disc(shape, (500, 450), 50), disc(shape, (500, 450), radius)]
    masks = masks_of(tmp_path, planes, [0, 10], 0)
    for z in range(1, 10):
        found = filled(masks, slice(z, z + 1), slice(0, 1000), slice(0, 900))
        expected = radius if moved else 50 + (radius - 50) * z / 10
        assert np.sqrt(found.sum() / np.pi) == pytest.approx(expected, abs=0.7)


@pytest.mark.parametrize("growth", [-7, 0, 12.5, 30])
@pytest.mark.parametrize("shape", [(300, 320), (1600, 2060)])
def test_growth_is_in_pixels(tmp_path, growth, shape):
    mask = disc(shape, (150, 160), 80)
    masks = masks_of(tmp_path, [mask], [4], growth)
    found = filled(masks, slice(3, 4), slice(0, 300), slice(0, 320))
    for inside in (mask, mask // 255):
        np.testing.assert_array_equal(grown(inside, growth)[:300, :320] > 0, found[0])
    assert np.sqrt(found.sum() / np.pi) == pytest.approx(80 + growth, abs=cell_side(*shape))


def test_what_one_keyframe_lacks_is_kept_up_to_it(tmp_path):
    """Pieces that begin, end or jump are on all slices between; no papyrus is lost."""
    shape = 60, 200
    body, piece, jumped = (disc(shape, (30, x), 15) for x in (30, 90, 150))
    nothing = np.zeros(shape, np.uint8)
    planes = [nothing, body, body | piece, body | jumped, nothing]
    masks = masks_of(tmp_path, planes, [0, 10, 20, 30, 40], 0)
    found = filled(masks, slice(0, 41), slice(0, 60), slice(0, 200))

    def has(z, what):
        inside = found[z][what > 0]
        assert inside.all() or not inside.any()
        return bool(inside[0])

    assert [z for z in range(41) if has(z, body)] == list(range(1, 40))
    assert [z for z in range(41) if has(z, piece)] == list(range(11, 30))
    assert [z for z in range(41) if has(z, jumped)] == list(range(21, 40))
    np.testing.assert_array_equal(masks.any_on(0, 41), np.arange(41) < 40)
    assert not masks_of(tmp_path, [nothing], [0], 5, "none").any_on(0, 3).any()


@settings(max_examples=60)
@given(st.data())
def test_a_region_is_cut_from_the_whole(tmp_path_factory, data):
    """Whatever regions, tiles and columns it is asked for in; and no file is taken amiss."""
    longest, side = data.draw(st.sampled_from([(0, 1), (1536, 3), (3072, 3), (4608, 5)]))
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    shape = (rows, longest + columns)
    assert cell_side(*shape) == side
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    keyframes = sorted(data.draw(st.sets(st.integers(0, 20), min_size=1, max_size=5)))
    planes = []
    for _ in keyframes:
        noise = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), 4)
        level = rng.choice([-9, noise.mean(), noise.mean(), 9])
        planes.append(np.where(noise > level, np.uint8(255), np.uint8(0)))
    growth = data.draw(st.sampled_from([-3, 0, 0.5, 4]))
    masks = masks_of(tmp_path_factory.mktemp("fields"), planes, keyframes, growth)
    whole = filled(masks, slice(0, 22), slice(0, shape[0]), slice(0, shape[1]))
    expected, doubtful = by_hand(planes, keyframes, growth, side)
    assert ((whole == expected) | doubtful).all()

    z, y, x = (some(data, size) for size in (22, *shape))
    region = masks.region(z, y, x)
    dz, dy = some(data, z.stop - z.start), some(data, y.stop - y.start)
    part = region.part(dz, dy)
    truth = whole[z, y, x][dz, dy]
    file = data.draw(st.sampled_from([8, 16, 512]))
    runs = part.columns(file, 2 * file)
    reached = np.zeros(truth.shape[2], bool)
    for run, full in runs:
        reached[run] = True
        assert run.start % file == 0
        assert run.stop % file == 0 or run.stop == truth.shape[2]
        assert not full or truth[:, :, run].all()
        out = np.full((*truth.shape[:2], run.stop - run.start), 7, np.uint8)
        part.fill(out, run)
        np.testing.assert_array_equal(out, np.where(truth[:, :, run], 255, 0))
    assert not truth[:, :, ~reached].any()


@pytest.mark.parametrize("row", range(3))
def test_a_row_by_itself_is_the_row_among_others(tmp_path, row):
    """Masks of which many a pixel lies at the threshold, within the error of a sum."""
    rng, shape = np.random.default_rng(0), (10, 2000)
    planes = []
    for _ in range(2):
        noise = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), 4)
        planes.append(np.where(noise > noise.mean(), np.uint8(255), np.uint8(0)))
    for growth in range(-4, 5):
        folder = tmp_path / str(growth)
        folder.mkdir()
        masks = masks_of(folder, planes, [1, 7], growth)
        whole = filled(masks, slice(0, 8), slice(0, 10), slice(0, 2000))
        alone = filled(masks, slice(0, 8), slice(row, row + 1), slice(0, 2000))
        np.testing.assert_array_equal(alone, whole[:, row : row + 1])


def some(data, size):
    start = data.draw(st.integers(0, size - 1))
    return slice(start, data.draw(st.integers(start + 1, size)))


def by_hand(planes, keyframes, growth, side):
    """Masks in doubles, and where they are too near the threshold to be sure of."""
    shape = planes[0].shape
    coarse = [coarse_mask(plane, side) for plane in planes]
    fields = [signed_distance(inside).astype(float) for inside in coarse]
    distances = []
    for z in range(22):
        after = np.searchsorted(keyframes, z, "right")
        if after in (0, len(keyframes)):
            distances.append(fields[min(after, len(keyframes) - 1)])
            continue
        one, other = after - 1, after
        place = (z - keyframes[one]) / (keyframes[other] - keyframes[one])
        field = fields[one] * (1 - place) + fields[other] * place
        ends = [signed_distance(coarse[n]) for n in (one, other)]
        apart = parts_apart(coarse[one], coarse[other], ends)
        if place and apart.any():
            field = np.maximum(field, signed_distance(apart))
        distances.append(field)
    rows, columns = cells(shape, side)
    weights = [hats(size, count, side) for size, count in zip(shape, (rows, columns), strict=True)]
    large = weights[0] @ np.array(distances) @ weights[1].T
    threshold = -growth * UNITS / side
    return large > threshold, abs(large - threshold) <= 1.5


def hats(size, count, side):
    """Weights of bilinear interpolation along an axis: (pixels, cells)."""
    places = np.clip((np.arange(size) + 0.5) / side - 0.5, 0, count - 1)
    return np.clip(1 - abs(places[:, None] - np.arange(count)), 0, 1)
