"""Multipage TIFFs: what counts as one volume."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from zarrmask.errors import StackError
from zarrmask.stack import open_source, open_stack


@pytest.mark.parametrize(
    ("shape", "options", "what"),
    [
        ((2, 3, 37, 53), {"ome": True, "metadata": {"axes": "CZYX"}}, "C=2, Z=3"),
        ((2, 37, 53), {"ome": True, "metadata": {"axes": "CYX"}}, "C=2"),
        ((2, 37, 53), {"ome": True, "metadata": {"axes": "TYX"}}, "T=2"),
        ((2, 3, 37, 53), {"imagej": True, "metadata": {"axes": "TZYX"}}, "T=2, Z=3"),
        ((2, 5, 37, 53), {}, "Q=2, Q=5"),
        ((2, 37, 53, 3), {"photometric": "rgb"}, "expected greyscale"),
    ],
)
def test_no_single_volume(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], what: str
) -> None:
    path = tmp_path / "many.tif"
    tifffile.imwrite(path, np.zeros(shape, np.uint8), **options)
    with pytest.raises(StackError, match=r"many.tif") as caught:
        open_source(path)
    assert what in str(caught.value)


def test_pages_that_differ(tmp_path: Path, volume: np.ndarray) -> None:
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as tif:
        for image in (*volume, volume[0, :-1], volume[0].astype(np.float32)):
            tif.write(image, metadata=None)
    with pytest.raises(StackError) as caught:
        open_source(path)
    assert "2 problems" in str(caught.value)
    assert "page 5: 36 x 53 uint16" in str(caught.value)
    assert "page 6: 37 x 53 float32" in str(caught.value)
    assert "37 x 53 uint16, as 5 of 7" in str(caught.value)


@pytest.mark.parametrize("options", [{"metadata": None}, {"truncate": True}, {"imagej": True}])
def test_truncated(tmp_path: Path, volume: np.ndarray, options: dict[str, Any]) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, volume, **options)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(StackError, match=r"truncated|damaged"):
        open_source(path)


@pytest.mark.parametrize("content", [b"", b"II*\0", b"MM\0*\0\0\0\x08", b"not a TIFF"])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.tif"
    path.write_bytes(content)
    with pytest.raises(StackError, match=r"garbage.tif"):
        open_source(path)


def test_imagej_beyond_4_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "big.tif"
    with pytest.warns(UserWarning, match=r"truncating ImageJ"):
        pixels = tifffile.memmap(
            path, shape=(70, 8000, 8000), dtype=np.uint8, imagej=True, metadata={"axes": "ZYX"}
        )
    pixels[69, 7999, 7999] = 77  # the rest is a hole: the file takes no room on the disk
    pixels.flush()
    del pixels
    source = open_source(path)
    assert source.shape == (70, 8000, 8000)
    assert source.block == (1, 1, 1)
    np.testing.assert_array_equal(source[68:, 7999, 7998:], [[0, 0], [0, 77]])


@pytest.mark.real
def test_real_slice() -> None:
    shared = os.environ.get("ZARRMASK_SHARED")
    if not shared:
        pytest.skip("ZARRMASK_SHARED names no folder with real slices")
    path = Path(shared) / "data" / "rolled_sheet_uint16.tif"
    stack = open_stack(path)
    assert stack.shape == (1, 1400, 1400)
    assert stack.dtype == np.uint16
    image = tifffile.imread(path)
    np.testing.assert_array_equal(stack[0].values, image)
    np.testing.assert_array_equal(open_source(path)[0, 300:310, 7:90], image[300:310, 7:90])


def test_without_a_slice_a_file_is_known_by_the_others(tmp_path: Path, volume: np.ndarray) -> None:
    """To repair a slice is to write the file anew."""
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, volume, photometric="minisblack")
    whole, without = open_source(path).fingerprint(), open_source(path).fingerprint([1])
    repaired = volume.copy()
    repaired[1] += 1
    tifffile.imwrite(path, repaired, photometric="minisblack")
    assert open_source(path).fingerprint([1]) == without
    assert open_source(path).fingerprint() != whole
    tifffile.imwrite(path, volume + 1, photometric="minisblack")
    assert open_source(path).fingerprint([1]) != without
