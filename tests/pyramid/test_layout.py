from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrmask.pyramid.layout import BrickGrid, Format, brick_grid, level_shapes, tiles

SIZES = st.integers(1, 3000)
SHAPES = st.tuples(SIZES, SIZES, SIZES)


@given(SHAPES)
def test_levels_are_halved_upwards_until_small(shape):
    shapes = level_shapes(shape)
    assert shapes[0] == shape
    assert len(shapes) <= 6
    for fine, coarse in pairwise(shapes):
        assert coarse == tuple(ceil(size / 2) for size in fine)
        assert max(fine) >= 128
    assert len(shapes) == 6 or max(shapes[-1]) < 128


FORMATS = st.builds(Format, st.sampled_from(["0.4", "0.5"]), st.sampled_from([16, 64, 128, 256]))


@given(SHAPES, st.sampled_from([1, 2]), st.booleans(), st.integers(2**20, 2**31), FORMATS)
def test_bricks_cover_the_volume_once_and_share_no_file(shape, itemsize, decoded, budget, form):
    block = (1, shape[1] if decoded else 1, shape[2])
    grid = brick_grid(shape, itemsize, block, budget, form.step)
    for axis, (size, edge, count) in enumerate(zip(shape, grid.brick, grid.counts, strict=True)):
        assert (count - 1) * edge < size <= count * edge
        assert count == 1 or edge % form.step[axis] == 0
    last = grid.region(tuple(count - 1 for count in grid.counts))
    assert tuple(part.stop for part in last) == shape


def test_a_whole_scroll_is_a_few_thousand_bricks():
    grid = brick_grid((27_000, 8_096, 8_096), 2, (1, 1, 8_096))
    assert len(grid) < 4_000
    assert np.prod(grid.brick) * 2 <= 2**30


def test_slices_that_are_decoded_whole_make_bricks_of_whole_slices_where_they_fit():
    assert brick_grid((260, 720, 1280), 2, (1, 720, 1280)).brick == (256, 720, 1280)


def test_bricks_that_would_share_chunks_are_refused():
    with pytest.raises(ValueError, match="share files"):
        BrickGrid((1000, 1000, 1000), (256, 128, 512))


def test_tiles_cover_a_region():
    region = (slice(0, 4), slice(2, 9), slice(512, 1300))
    assert [(z, y) for z, y, _ in tiles(region, (3, 4))] == [
        (slice(0, 3), slice(2, 6)),
        (slice(0, 3), slice(6, 9)),
        (slice(3, 4), slice(2, 6)),
        (slice(3, 4), slice(6, 9)),
    ]
    assert all(x == slice(512, 1300) for _, _, x in tiles(region, (3, 4)))
