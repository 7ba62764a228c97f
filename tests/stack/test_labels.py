"""Stacks of labels: masks of whatever type."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from zarrmask.errors import StackError
from zarrmask.stack import open_source

MASK = np.zeros((5, 9), np.uint8)
MASK[2:4, 3:6] = 1


def palette() -> Image.Image:
    image = Image.new("P", (9, 5))
    image.putdata(MASK.ravel().tolist())
    image.putpalette([0, 0, 0, 255, 0, 0] + 254 * [0, 9, 0])
    return image


def seen() -> Image.Image:
    """White all over, seen where the mask is."""
    return Image.fromarray(np.dstack([np.full((5, 9, 3), 255, np.uint8), MASK * 255]))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(MASK.astype(bool)),
        Image.fromarray(MASK * 7),
        Image.fromarray(MASK.astype(np.uint16) * 300),
        Image.fromarray(np.dstack([MASK * 0, MASK * 9, MASK * 0])),
        palette(),
        seen(),
    ],
    ids=["1", "L", "I;16", "RGB", "P", "RGBA"],
)
def test_pngs_of_any_colours(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "17.png")
    source = open_source(tmp_path, labels=True)
    assert source.numbers.tolist() == [17]
    np.testing.assert_array_equal(source[0] > 0, MASK > 0)
    np.testing.assert_array_equal(source[0, 2:, 3:5] > 0, MASK[2:, 3:5] > 0)


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.int8, np.uint8, np.float32, bool])
def test_volumes_of_any_whole_numbers(tmp_path: Path, dtype: type) -> None:
    labels = np.stack([MASK, MASK.T.reshape(5, 9)]).astype(dtype)
    zarr.save(tmp_path / "labels.zarr", labels)
    places = [tmp_path / "labels.zarr"]
    if dtype is not bool:
        tifffile.imwrite(tmp_path / "labels.tif", labels)
        (tmp_path / "slices").mkdir()
        for n, image in enumerate(labels):
            tifffile.imwrite(tmp_path / "slices" / f"{n}.tif", image)
        places += [tmp_path / "labels.tif", tmp_path / "slices"]
    for place in places:
        np.testing.assert_array_equal(open_source(place, labels=True)[:] > 0, labels > 0)
    if np.dtype(dtype).kind != "f" and dtype is not np.uint8:
        for place in places:
            with pytest.raises(StackError, match="expected uint8, uint16, int16 or float32"):
                open_source(place)


def test_jpegs_are_no_labels(tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "1.jpg")
    with pytest.raises(StackError, match=r"holds no slices \(found: 1 \.jpg\)"):
        open_source(tmp_path, labels=True)


def test_a_png_that_ends_early(tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "1.png")
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[:-12])
    with pytest.raises(StackError, match="no end marker"):
        open_source(tmp_path, labels=True)
