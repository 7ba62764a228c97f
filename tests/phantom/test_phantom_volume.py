from itertools import pairwise

import cv2
import numpy as np
import pytest
import tifffile

from zarrmask.errors import OutputError, SettingsError
from zarrmask.phantom import Phantom, write_phantom


@pytest.fixture(scope="module")
def stack():
    """Every slice of a small scroll: images (z, y, x) and masks (z, y, x)."""
    phantom = Phantom((60, 160, 180), seed=3)
    slices = [phantom.slice(z) for z in range(60)]
    return np.stack([image for image, _ in slices]), np.stack([mask for _, mask in slices])


def test_slices_depend_on_seed_and_number_alone(stack):
    again = Phantom((60, 160, 180), seed=3)
    for z in (47, 30, 0):  # in another order
        image, mask = again.slice(z)
        assert np.array_equal(image, stack[0][z])
        assert np.array_equal(mask, stack[1][z])
    other, _ = Phantom((60, 160, 180), seed=4).slice(30)
    assert not np.array_equal(other, stack[0][30])


def test_types_and_shapes(stack):
    images, masks = stack
    assert images.dtype == np.uint16
    assert masks.dtype == bool
    assert images.shape == masks.shape == (60, 160, 180)
    assert images.std() > 1000  # of 65535: 16 bits are used, not 12


def test_ends_hold_no_papyrus_and_the_middle_much(stack):
    area = stack[1].mean(axis=(1, 2))
    assert not stack[1][[0, 1, 58, 59]].any()
    assert area[20:40].min() > 0.3
    assert 0 < area[7] < area[30]


def test_ends_break_into_pieces_or_a_c(stack):
    pieces = [cv2.connectedComponents(mask.astype(np.uint8))[0] - 1 for mask in stack[1]]
    assert max(pieces) > 1
    assert pieces[30] == 1


def test_is_smooth_along_z(stack):
    masks = stack[1]
    for below, above in pairwise(masks[18:42]):
        assert (below & above).sum() / (below | above).sum() > 0.9


def test_papyrus_is_brighter_than_air(stack):
    image, mask = stack[0][30], stack[1][30]
    air = np.percentile(image, 5)
    assert np.median(image[mask]) > 1.15 * air


def test_truth_has_no_holes(stack):
    mask = stack[1][30].astype(np.uint8)
    outside = 1 - cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    assert cv2.connectedComponents(outside, connectivity=4)[0] - 1 == 1


@pytest.mark.parametrize("shape", [(1, 60, 50), (8, 40, 48), (3, 1, 5), (2, 9, 3), (4, 33, 130)])
def test_any_shape(shape):
    phantom = Phantom(shape, seed=1)
    for z in range(shape[0]):
        image, mask = phantom.slice(z)
        assert image.shape == mask.shape == shape[1:]


def test_a_single_slice_shows_the_whole_section():
    assert Phantom((1, 60, 50)).slice(0)[1].mean() > 0.3


def test_impossible_shapes_and_slices_are_refused():
    with pytest.raises(SettingsError, match="three sizes"):
        Phantom((3, 0, 5))
    with pytest.raises(IndexError):
        Phantom((3, 9, 5)).slice(3)


def test_write_leaves_mappable_slices_and_truth(tmp_path):
    seen = []
    write_phantom(
        tmp_path / "scroll",
        (9, 40, 48),
        seed=2,
        progress=seen.append,
    )
    phantom = Phantom((9, 40, 48), seed=2)
    for z in range(9):
        image, mask = phantom.slice(z)
        assert np.array_equal(tifffile.memmap(tmp_path / f"scroll/{z:05d}.tif", mode="r"), image)
        truth = cv2.imread(str(tmp_path / f"scroll/truth/{z:05d}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(truth, mask * np.uint8(255))
    assert len(list((tmp_path / "scroll").iterdir())) == 10
    assert seen == [1] * 9


def test_write_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not an empty folder"):
        write_phantom(tmp_path, (1, 20, 24))
