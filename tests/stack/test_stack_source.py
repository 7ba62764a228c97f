"""What all sources share: indices, chunks, fingerprints, size when pickled."""

import os
import pickle
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from zarrmask.chunks import MOST_CHUNKS, default_chunks
from zarrmask.stack import open_source
from zarrmask.stack.header import Header
from zarrmask.stack.slices import SliceSource
from zarrmask.stack.source import index_ranges
from zarrmask.stack.tiff import read_tiff


@pytest.mark.parametrize(
    "index", [(1, 2, 3, 4), (None, 1), 5, -6, ([0, 1],), (..., ...), 1.5, np.array([0, 1])]
)
def test_indices_that_numpy_or_we_refuse(index: object) -> None:
    with pytest.raises(IndexError):
        index_ranges(index, (5, 6, 7))


@given(
    shape=st.tuples(st.integers(1, 30_000), st.integers(1, 10_000), st.integers(1, 10_000)),
    itemsize=st.sampled_from(["u1", "u2"]),
    data=st.data(),
)
def test_default_chunks(shape: tuple[int, int, int], itemsize: str, data: st.DataObject) -> None:
    _, y, x = shape
    block = data.draw(
        st.sampled_from(
            [
                (1, 1, x),
                (1, y, x),
                (1, min(16, y), x),
                (1, min(256, y), min(256, x)),
                tuple(min(128, side) for side in shape),
                tuple(min(256, side) for side in shape),
            ]
        )
    )
    chunks = default_chunks(shape, np.dtype(itemsize), block)
    assert tuple(map(sum, chunks)) == shape
    assert prod(map(len, chunks)) <= MOST_CHUNKS
    if block[0] > 1:
        assert all(
            side % edge == 0 for s, edge in zip(chunks, block, strict=True) for side in s[:-1]
        )
    largest = prod(map(max, chunks)) * np.dtype(itemsize).itemsize
    assert largest <= max(512 * 2**20, prod(block) * 2)


def test_a_whole_scroll_travels_in_a_tenth_of_a_megabyte() -> None:
    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.integers(10**7, 10**8, 27_000))
    headers = [
        Header((8000, 8000), np.dtype(np.uint16), (8000, 8000), ifd=int(end)) for end in ends
    ]
    names = [f"scroll4_53keV_3.24um_{z:05d}.tif" for z in range(27_000)]
    source = SliceSource("/scroll", "TIFF slices", read_tiff, 0, names, headers)
    assert len(pickle.dumps(source)) < 300_000  # where each slice's directory stands anywhere
    headers = [Header((8000, 8000), np.dtype(np.uint16), (1, 8000), offset=8)] * 27_000
    source = SliceSource("/scroll", "TIFF slices", read_tiff, 0, names, headers)
    assert len(pickle.dumps(source)) < 100_000


def test_fingerprint(tiff_folder: Callable[..., Path], volume: np.ndarray) -> None:
    folder = tiff_folder()
    before = open_source(folder).fingerprint()
    assert open_source(folder).fingerprint() == before

    moved = folder.rename(folder.with_name("moved"))
    assert open_source(moved).fingerprint() == before  # the same files elsewhere

    path = moved / "scan2_9.tif"
    times = path.stat().st_mtime_ns
    os.utime(path, ns=(times, times + 1))
    touched = open_source(moved).fingerprint()
    assert touched != before

    path.rename(moved / "other_9.tif")
    assert open_source(moved).fingerprint() not in (before, touched)


def test_fingerprint_of_one_file(tmp_path: Path, volume: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, volume)
    source = open_source(path)
    before = source.fingerprint()
    assert before == source.fingerprint()
    tifffile.imwrite(path, volume[:4], photometric="minisblack")
    assert open_source(path).fingerprint() != before


def test_only_what_is_asked_for_is_read(tiff_folder: Callable[..., Path]) -> None:
    """A row of a slice is still readable when the bytes of all other rows' files are gone."""
    folder = tiff_folder(compression="lzw", rowsperstrip=4)
    source = open_source(folder)
    assert source.block == (1, 4, 53)
    truth = source[:]
    for path in folder.iterdir():
        with tifffile.TiffFile(path) as tif:
            page = tif.pages.first
            keep = page.dataoffsets[3], page.databytecounts[3]
            wipe = [
                (o, c)
                for o, c in zip(page.dataoffsets, page.databytecounts, strict=True)
                if (o, c) != keep
            ]
        with path.open("r+b") as file:
            for offset, count in wipe:
                file.seek(offset)
                file.write(b"\xff" * count)
    np.testing.assert_array_equal(source[:, 12:16], truth[:, 12:16])


def test_no_descriptor_is_left_open(tiff_folder: Callable[..., Path]) -> None:
    for options in ({}, {"compression": "lzw"}):
        folder = tiff_folder(f"stack{len(options)}", **options)
        source = open_source(folder)
        for _ in range(20):
            source[:, 3:5]
        descriptors = Path("/proc/self/fd").iterdir()
        assert not [fd for fd in descriptors if os.path.realpath(fd).startswith(f"{folder}/")]
