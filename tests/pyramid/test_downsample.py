import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zarrmask.pyramid.downsample import halve_max, halve_mean

BLOCKS = hnp.arrays(
    st.sampled_from([np.uint8, np.uint16]), hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)
)


def families(block):
    """Every voxel of the halved block with those it stands for, one by one."""
    for index in np.ndindex(*[(size + 1) // 2 for size in block.shape]):
        yield index, block[tuple(slice(2 * i, 2 * i + 2) for i in index)]


@given(BLOCKS)
def test_mean_is_rounded_half_up_over_the_voxels_that_exist(block):
    halved = halve_mean(block)
    assert halved.dtype == block.dtype
    for index, family in families(block):
        total, count = int(family.sum(dtype=np.int64)), family.size
        assert halved[index] == (total + count // 2) // count


@given(BLOCKS)
def test_maximum_loses_no_mask_voxel(block):
    halved = halve_max(block)
    assert halved.dtype == block.dtype
    for index, family in families(block):
        assert halved[index] == family.max()


def test_brightest_voxels_do_not_overflow():
    for dtype in (np.uint8, np.uint16):
        brightest = np.iinfo(dtype).max
        assert (halve_mean(np.full((4, 4, 4), brightest, dtype)) == brightest).all()


def test_the_block_is_left_as_it_is():
    block = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    before = block.copy()
    halve_mean(block)
    np.testing.assert_array_equal(block, before)


def test_a_single_voxel_stays():
    assert halve_mean(np.array([[[7]]], np.uint16)).tolist() == [[[7]]]
